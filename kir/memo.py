"""What is below a node, kept on it (`kir.ir.kept`)."""

from __future__ import annotations

from kir.ir import (
    Axis,
    Buffer,
    Define,
    If,
    Loop,
    Node,
    Read,
    Reduce,
    Stmt,
    Store,
    children,
    kept,
    vars_of,
)


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


@kept
def tensors_in(node: Node) -> frozenset[str]:
    """The tensors that are read, stored to or declared below."""
    below: set[str] = set()
    match node:
        case Read(tensor):
            below = {tensor}
        case Store(target):
            below = {target}
        case Buffer(name) | Define(name):
            below = {name}
    return frozenset(below.union(*(tensors_in(c) for c in children(node))))


def statements_of(stmt: Stmt) -> tuple[Stmt, ...]:
    """The statement and all below it, parents first, in the order of the text."""
    return (stmt, *_inside(stmt)) if isinstance(stmt, (Loop, If)) else (stmt,)


@kept
def _inside(stmt: Loop | If) -> tuple[Stmt, ...]:
    """All statements below; the statement itself is not kept on it, lest it refer to itself."""
    return tuple(below for s in stmt.body for below in statements_of(s))


@kept
def in_loops(node: Node) -> bool:
    """Whether there is no definition and no reduction below."""
    return not isinstance(node, Define | Reduce) and all(in_loops(c) for c in children(node))


__all__ = ["declared_in", "in_loops", "kept", "reads_of", "statements_of", "tensors_in", "vars_of"]
