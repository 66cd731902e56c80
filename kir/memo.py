"""Facts about nodes, kept on the nodes."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from kir.ir import Axis, Buffer, Define, Node, Read, Var, children

N = TypeVar("N", bound=Node)
T = TypeVar("T")


def kept(compute: Callable[[N], T]) -> Callable[[N], T]:
    """`compute`, its result kept on the node: a node never changes, so what depends on it alone
    stays true, and is freed with it. The result is shared: it must not be changed either."""
    key = f"_{compute.__module__}.{compute.__qualname__}"

    @wraps(compute)
    def look(node: N) -> T:
        memory: dict[str, Any] = node.__dict__
        try:
            return memory[key]  # type: ignore[no-any-return]
        except KeyError:
            found = memory[key] = compute(node)
            return found

    return look


@kept
def vars_of(node: Node) -> frozenset[str]:
    """The names of all Vars below, bound ones included."""
    below: set[str] = {node.name} if isinstance(node, Var) else set()
    return frozenset(below.union(*(vars_of(c) for c in children(node))))


@kept
def reads_of(node: Node) -> frozenset[str]:
    """The tensors that are read below."""
    below: set[str] = {node.tensor} if isinstance(node, Read) else set()
    return frozenset(below.union(*(reads_of(c) for c in children(node))))


@kept
def declared_in(node: Node) -> frozenset[str]:
    """The names of all axes, definitions and buffers below."""
    below: set[str] = {node.name} if isinstance(node, Axis | Define | Buffer) else set()
    return frozenset(below.union(*(declared_in(c) for c in children(node))))
