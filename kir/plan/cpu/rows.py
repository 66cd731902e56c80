"""Rows: each innermost loop is cut into tiles of lanes, with a partial sum per lane where it
reduces; where such a loop strides, the parallel loop around it is cut instead."""

from __future__ import annotations

from kir.ir import Loop, Read, Var, walk
from kir.plan.common import Draft, contiguous_score, innermost_loops, is_parallel, vectorise
from kir.plan.cpu.loops import REGISTERS, tile


def inner_loops(draft: Draft, nest: Loop, lanes: int) -> None:
    """Cut the innermost loops into tiles; where such a loop strides, the parallel one around."""
    for loop in innermost_loops(nest):
        if loop is nest:
            if not is_parallel(nest):
                vectorise(draft, nest.axis.name, lanes * REGISTERS)
            continue
        name = loop.axis.name
        if contiguous_score(draft.loop(name)) < 0 and _cut_around(draft, nest, name, lanes):
            continue
        if is_parallel(draft.loop(name)):
            tile(draft, name, lanes * REGISTERS)
        else:
            vectorise(draft, name, lanes * REGISTERS)


def fetch_ahead(draft: Draft, row: str) -> None:
    """Of the loops over a row, the second that reads an input finds it in cache: let it fetch the
    next row meanwhile, so that computing and reading memory overlap."""
    inputs, seen = {p.name for p in draft.kernel.inputs}, set[str]()
    for s in draft.loop(row).body:
        if not isinstance(s, Loop) or s.kind != "for":
            continue
        rows = {
            n.tensor
            for n in walk(s)
            if isinstance(n, Read) and n.tensor in inputs
            and any(isinstance(v, Var) and v.name == row for i in n.indices for v in walk(i))
        }  # fmt: skip
        if rows & seen:
            draft.attempt("hint", s.axis.name, "ahead", 1)
            return
        seen |= rows


def _cut_around(draft: Draft, nest: Loop, name: str, lanes: int) -> bool:
    """Make lanes of the parallel loop around a strided reduction, all of which walk it."""
    around = [
        x
        for x in walk(draft.loop(nest.axis.name))
        if isinstance(x, Loop)
        and x.kind == "for"
        and x.axis.name not in (name, nest.axis.name)
        and any(isinstance(n, Loop) and n.axis.name == name for n in walk(x))
    ]
    for x in reversed(around):
        if is_parallel(x) and contiguous_score(x) > 0:
            tile(draft, x.axis.name, lanes * 2)
            return draft.loop(x.axis.name).kind == "tile"
    return False
