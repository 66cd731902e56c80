"""Names while elaborating: which are visible at a place, and what each stands for."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from typing import Any

from lark import Token, Tree

from kir.dtypes import DTYPES, DType
from kir.errors import DuplicateNameError, KirError, ParseError, UnknownNameError
from kir.ir import ARG_REDUCTIONS, LOOP_KINDS, REDUCTIONS, Expr, Span
from kir.ops import OPS

Node = Any  # a lark Tree: its children are Trees and Tokens, told apart by the grammar

FUNCTIONS = {d.name for d in OPS.values() if d.infix is None}
LITERALS = {"inf": math.inf, "nan": math.nan, "true": True, "false": False}
KEYWORDS = {"kernel", "graph", "schedule", "of", "where", "hint", "buffer", "in", "if", "else",
            "and", "or", "not", "bitcast", *LOOP_KINDS}  # fmt: skip
RESERVED = (
    KEYWORDS | FUNCTIONS | set(REDUCTIONS) | set(ARG_REDUCTIONS) | set(DTYPES) | set(LITERALS)
)


def span_of(thing: Node | Token) -> Span | None:
    at: Any = thing.meta if isinstance(thing, Tree) else thing
    if isinstance(thing, Tree) and thing.meta.empty:
        return None
    return Span(at.line, at.column, at.end_line, at.end_column)


@dataclass(frozen=True)
class Tensor:
    """What a tensor's name stands for. `dtype` is None for a recurrence not yet defined."""

    dtype: DType | None
    shape: tuple[Expr, ...]
    role: str  # input, output, buffer, definition


class Scope:
    """Names visible at a place: indices and dims (None), tensors; inner scopes see outer ones."""

    def __init__(self, parent: Scope | None = None, loop: str | None = None) -> None:
        self.parent = parent
        self.loop = loop
        self.depth: int = parent.depth + 1 if parent else 0
        self.names: dict[str, Tensor | None] = {}

    def find(self, name: str) -> tuple[bool, Tensor | None]:
        scope: Scope | None = self
        while scope is not None:
            if name in scope.names:
                return True, scope.names[name]
            scope = scope.parent
        return False, None

    def visible(self) -> list[str]:
        return list(self.names) + (self.parent.visible() if self.parent else [])

    def outside_of(self, loop: str) -> Scope:
        """The scope around the loop of this index (where a recurrence over it lives)."""
        scope: Scope = self
        while scope.loop != loop:
            assert scope.parent is not None
            scope = scope.parent
        assert scope.parent is not None
        return scope.parent

    def loops(self) -> list[str]:
        own = [self.loop] if self.loop else []
        return own + (self.parent.loops() if self.parent else [])

    def declare(self, token: Token, meaning: Tensor | None) -> str:
        name = str(token)
        if name in RESERVED:
            raise ParseError(
                f"`{name}` is a word of the language",
                span=span_of(token),
                hint=f"call it `{name}_` or something better",
            )
        if self.find(name)[0]:
            raise DuplicateNameError(
                f"`{name}` already has a meaning here",
                span=span_of(token),
                hint="names are not shadowed: choose another",
            )
        self.names[name] = meaning
        return name

    def unknown(self, token: Token, what: str = "name") -> KirError:
        near = difflib.get_close_matches(str(token), self.visible(), 3)
        hint = "did you mean " + " or ".join(f"`{n}`" for n in near) + "?" if near else None
        visible = ", ".join(sorted(set(self.visible()))[:12])
        return UnknownNameError(
            f"there is no {what} `{token}` here",
            span=span_of(token),
            hint=hint or f"the names here are: {visible}",
        )
