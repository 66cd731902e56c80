"""Steps that may be legal on a kernel as it stands, by its loops and buffers.

A rewrite class that offers `instances(kernel)` speaks for itself; else the table below guesses
from the shape of the code. What is illegal is refused when it is applied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

from kir.ir import Buffer, Const, If, Kernel, Loop, Step, Stmt, Store
from kir.rewrites import REWRITES

FACTORS = (4, 8, 16, 32, 64, 128, 256)
MAX_UNROLL = 8
MAX_TILE = 4096
"""Lanes of a `tile` worth trying: each is a register's worth of code on a CPU."""


def legal_looking(kernel: Kernel) -> Iterator[Step]:
    """Candidate steps, in the order of the code; most, but not all, will apply."""
    for name, rewrite in REWRITES.items():
        offered = getattr(rewrite, "instances", None)
        if offered is not None:
            yield from offered(kernel)
        elif name in _WITHOUT_ARGUMENTS:
            yield Step(name)
        elif name in _GUESSES:
            for block in _blocks(kernel.body):
                yield from _GUESSES[name](block)


def _blocks(body: tuple[Stmt, ...]) -> Iterator[tuple[Stmt, ...]]:
    yield body
    for stmt in body:
        if isinstance(stmt, Loop | If):
            yield from _blocks(stmt.body)


def _loops(block: tuple[Stmt, ...]) -> Iterator[Loop]:
    return (s for s in block if isinstance(s, Loop))


def _extent(loop: Loop) -> int | None:
    extent = loop.axis.extent
    return int(extent.value) if isinstance(extent, Const) else None


def _split(block: tuple[Stmt, ...]) -> Iterator[Step]:
    for loop in _loops(block):
        extent = _extent(loop)
        for factor in FACTORS:
            if extent is None or factor < extent:
                yield Step("split", (loop.axis.name, factor))


def _bind(block: tuple[Stmt, ...]) -> Iterator[Step]:
    for loop in _loops(block):
        extent = _extent(loop)
        kinds = ["for", "grid"]
        if extent is not None and 1 < extent <= MAX_TILE:
            kinds.append("tile")
        yield from (Step("bind", (loop.axis.name, k)) for k in kinds if k != loop.kind)


def _unroll(block: tuple[Stmt, ...]) -> Iterator[Step]:
    for loop in _loops(block):
        extent = _extent(loop)
        if extent is not None and extent <= MAX_UNROLL:
            yield Step("unroll", (loop.axis.name,))


def _reorder(block: tuple[Stmt, ...]) -> Iterator[Step]:
    for loop in _loops(block):
        if len(loop.body) == 1 and isinstance(loop.body[0], Loop):
            yield Step("reorder", ((loop.body[0].axis.name, loop.axis.name),))


def _fission(block: tuple[Stmt, ...]) -> Iterator[Step]:
    for loop in _loops(block):
        if len(loop.body) > 1:
            yield Step("fission", (loop.axis.name,))


def _fuse(block: tuple[Stmt, ...]) -> Iterator[Step]:
    loops = list(_loops(block))
    for first, second in pairwise(loops):
        if first.axis.extent == second.axis.extent:
            yield Step("fuse", (first.axis.name, second.axis.name))


def _contract(block: tuple[Stmt, ...]) -> Iterator[Step]:
    for stmt in block:
        if isinstance(stmt, Buffer) and stmt.shape:
            yield Step("contract", (stmt.name, "reg"))
            yield Step("contract", (stmt.name, "local"))


def _unmask(block: tuple[Stmt, ...]) -> Iterator[Step]:
    yield from (Step("unmask", (loop.axis.name,)) for loop in _loops(block) if loop.where)


def _rfactor(block: tuple[Stmt, ...]) -> Iterator[Step]:
    """Partial accumulators for each scalar that a loop updates."""
    for loop in _loops(block):
        inside = (s for b in _blocks(loop.body) for s in b)
        updated = (s.target for s in inside if isinstance(s, Store) and s.op and not s.indices)
        yield from (Step("rfactor", (name, loop.axis.name)) for name in dict.fromkeys(updated))


_WITHOUT_ARGUMENTS = ("contract_fma",)
_GUESSES: dict[str, Callable[[tuple[Stmt, ...]], Iterator[Step]]] = {
    "split": _split,
    "bind": _bind,
    "unroll": _unroll,
    "reorder": _reorder,
    "fission": _fission,
    "fuse": _fuse,
    "contract": _contract,
    "unmask": _unmask,
    "rfactor": _rfactor,
}
