"""Indices that a graph is given, looked at before it runs: eager raises for those out of range, and
a kernel, which keeps them within the tensor, would compute something else.

Only those that come from an input, by views alone, can be looked at before; indices that the graph
computes are its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

NDArray = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Check:
    """Elements of the tensor input `number` are at least `low` and below `high`, or `ignored`."""

    number: int
    low: int
    high: int
    error: type[Exception]
    ignored: int | None = None

    def __call__(self, array: NDArray) -> None:
        """Raises what eager raises (IndexError or RuntimeError) where one is out of range."""
        if not array.size or (self.low <= array.min() and array.max() < self.high):
            return
        beyond = (array < self.low) | (array >= self.high)
        if self.ignored is not None:
            beyond &= array != self.ignored
        if beyond.any():
            first = array[beyond].flat[0]
            raise self.error(f"index {first} is out of bounds for dimension with size {self.high}")


VIEWS = {
    "alias", "clone", "contiguous", "detach", "expand", "permute", "reshape", "squeeze", "t",
    "transpose", "unsqueeze", "view", "_to_copy", "_unsafe_view",
}  # fmt: skip
"""What keeps all elements of an index, or repeats them."""
ALONG: Mapping[str, type[Exception]] = {
    "gather": RuntimeError, "scatter": RuntimeError, "scatter_add": RuntimeError,
    "scatter_reduce": RuntimeError, "index_select": RuntimeError, "index_add": RuntimeError,
    "index_copy": IndexError,
}  # fmt: skip
"""op(x, dim, index, ...): what eager raises for an index that is negative or beyond the dim."""
BOTH_ENDS = {"index", "index_put", "_unsafe_index", "_unsafe_index_put"}
"""op(x, [index or None, ...], ...): a negative index counts from the end."""


def index_checks(graph: torch.fx.Graph) -> tuple[Check, ...]:
    """What the inputs of a graph must satisfy for eager not to raise."""
    tensors = [n for n in graph.nodes if n.op == "placeholder" and _is_tensor(n)]
    numbers = {n: k for k, n in enumerate(tensors)}
    return tuple(dict.fromkeys(c for n in graph.nodes for c in _checks(n, numbers)))


def _is_tensor(node: torch.fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


def _checks(node: torch.fx.Node, numbers: Mapping[torch.fx.Node, int]) -> Iterator[Check]:
    name = _name(node)
    if name not in {"embedding", "index_fill", *ALONG, *BOTH_ENDS} or not _is_tensor(node.args[0]):
        return
    shape = node.args[0].meta["val"].shape
    if name == "embedding":
        uses: list[tuple[Any, int, int, type[Exception]]] = [
            (node.args[1], 0, int(shape[0]), IndexError)
        ]
    elif name == "index_fill":
        size = int(shape[node.args[1]]) if shape else 1
        uses = [(node.args[2], -size, size, IndexError)]
    elif name in ALONG:
        size = int(shape[node.args[1]]) if shape else 1
        uses = [(node.args[2], 0, size, ALONG[name])]
    else:
        listed = [i for i in node.args[1] if isinstance(i, torch.fx.Node)]
        masks = any(i.meta["val"].dtype in (torch.bool, torch.uint8) for i in listed)
        uses = [] if masks else [  # a mask takes more than one dim
            (i, -int(n), int(n), IndexError) for i, n in zip(node.args[1], shape)
            if isinstance(i, torch.fx.Node)
        ]  # fmt: skip
    for index, low, high, error in uses:
        found = _origin(index, Check(-1, low, high, error), numbers)
        if found is not None:
            yield found


def _origin(index: Any, check: Check, numbers: Mapping[torch.fx.Node, int]) -> Check | None:
    """The check of the input that an index comes from; None where it is computed."""
    while isinstance(index, torch.fx.Node) and index not in numbers:
        name = _name(index)
        if name in VIEWS and index.meta["val"].numel():
            index = index.args[0]
        elif name == "where" and check.ignored is None:
            kept = _unless(*index.args)
            if kept is None or not check.low <= kept[2] < check.high:
                return None
            index, check = kept[0], replace(check, ignored=kept[1], error=IndexError)
        else:
            return None
    return replace(check, number=numbers[index]) if index in numbers else None


def _unless(condition: Any, value: Any, other: Any) -> tuple[torch.fx.Node, int, int] | None:
    """`where(x != ignored, x, other)` as (x, ignored, other): how losses skip a class."""
    if not isinstance(condition, torch.fx.Node) or _name(condition) != "ne":
        return None
    x, ignored = condition.args
    if x is not value or not isinstance(ignored, int) or not isinstance(other, int):
        return None
    return value, ignored, other


def _name(node: torch.fx.Node) -> str:
    target = node.target
    return target._opname if isinstance(target, torch._ops.OpOverload) else ""
