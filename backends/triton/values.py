"""Values of generated expressions, and how they are brought to common axes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_ATOM = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*(\([^()]*\))?(\[[:, None]*\])?|\d+(\.\d+)?")


@dataclass(frozen=True)
class Value:
    """Triton source of an expression. `axes` are the lanes along which it varies, one dimension
    of the block each, in that order; none for a scalar. `literal` is a bare Python literal that
    may stand for it beside a typed operand."""

    text: str
    axes: tuple[str, ...] = ()
    literal: str | None = None


def atom(text: str) -> str:
    """`text`, in parentheses unless it binds tightly anyway."""
    return text if _ATOM.fullmatch(text) or _enclosed(text) else f"({text})"


def _enclosed(text: str) -> bool:
    """Whether text is `(...)` or `name(...)` with the last parenthesis closing the first."""
    head = re.match(r"[A-Za-z_0-9.]*\(", text)
    if head is None or not text.endswith(")"):
        return False
    depth = 0
    for k, c in enumerate(text):
        depth += (c in "([") - (c in ")]")
        if depth == 0 and c in ")]" and k < len(text) - 1:
            return False
    return depth == 0


def bare(text: str) -> str:
    """`text` without parentheses that enclose all of it."""
    while text.startswith("(") and _enclosed(text):
        text = text[1:-1]
    return text


def permuted(value: Value, axes: Sequence[str]) -> Value:
    """The value with its dimensions in the order of `axes` (a permutation of its own)."""
    if value.axes == tuple(axes):
        return value
    order = ", ".join(str(value.axes.index(a)) for a in axes)
    return Value(f"tl.permute({bare(value.text)}, ({order}))", tuple(axes))


def expanded(value: Value, axes: Sequence[str]) -> str:
    """Source of the value with a dimension for each of `axes`, of size 1 where it does not vary.
    Scalars stay scalars: Triton broadcasts them."""
    if not value.axes or value.axes == tuple(axes):
        return value.text
    value = permuted(value, [a for a in axes if a in value.axes])
    places = ", ".join(":" if a in value.axes else "None" for a in axes)
    return value.text if value.axes == tuple(axes) else f"{atom(value.text)}[{places}]"
