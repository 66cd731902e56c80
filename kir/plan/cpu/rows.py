"""Rows: each innermost loop is cut into tiles of lanes, with a partial sum per lane where it
reduces; where such a loop strides, the parallel loop around it is cut instead.

Short rows go in blocks, pass by pass: what one pass adds up at the end of a row (the lanes of a
vector, one after another) takes long, but is computed while the next rows of the block are read.
"""

from __future__ import annotations

from math import prod

from kir.ir import Const, Loop, Op, Read, Var, walk
from kir.plan.common import (
    HEAVY,
    Draft,
    constant_extent,
    contiguous_score,
    innermost_loops,
    is_parallel,
    vectorise,
)
from kir.plan.cpu.loops import REGISTERS, tile

ROWS = 8
"""Rows of a block, at most."""
BLOCK = 1 << 9
"""Elements of such a block, at most: longer runs of reading alone, and then of writing alone, leave
the memory idle by turns."""


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
            vectorise(draft, name, _width(draft, name, lanes))


def _width(draft: Draft, name: str, lanes: int) -> int:
    """Lanes of a reduction: not more vectors than a short one fills."""
    extent = constant_extent(draft, name)
    if extent is None or extent >= lanes * REGISTERS:
        return lanes * REGISTERS
    return lanes * max(1, -(-extent // lanes))


def in_blocks(draft: Draft, prefix: list[str]) -> tuple[list[str], list[str]]:
    """Cut the innermost of the parallel loops, over short rows, into blocks, and part it after
    every reduction of a row that another loop over the row follows. Gives the loops for a grid,
    and those over rows. Rows that are long or of unknown length, or that are walked once, stay as
    they are."""
    *outer, row = prefix
    loops = [s for s in draft.loop(row).body if isinstance(s, Loop)]
    sums = [s.axis.name for s in loops[:-1] if s.kind == "tile"]
    rows, length = constant_extent(draft, row), _longest(loops)
    side = min(ROWS, BLOCK // length if length else 0, ROWS if rows is None else rows)
    if not sums or side < 2:
        return prefix, [row]
    trial, pieces = draft.fork(), [row]
    before = set(trial.loop_names())
    if (rows != side or not outer) and not trial.attempt("split", row, side):
        return prefix, [row]
    outer += set(trial.loop_names()) - before
    for name in sums:
        before = set(trial.loop_names())
        if trial.attempt("fission", pieces[-1], after=name):
            pieces += [n for n in trial.loop_names() if n not in before][:1]
    if len(pieces) == 1:
        return prefix, [row]
    draft.adopt(trial)
    return outer, pieces


def _longest(loops: list[Loop]) -> int | None:
    """Iterations of the longest of the nests; None where one is unknown."""
    sizes = []
    for s in loops:
        extents = [n.axis.extent for n in walk(s) if isinstance(n, Loop)]
        if not all(isinstance(e, Const) for e in extents):
            return None
        sizes.append(prod(int(e.value) for e in extents if isinstance(e, Const)))
    return max(sizes, default=None)


def fetch_ahead(draft: Draft, rows: list[str]) -> None:
    """Of the loops inside those over the same rows, the second that reads an input finds it in
    cache: let it fetch the next rows meanwhile, so that computing and reading memory overlap. Far
    ones too, where it computes much."""
    inputs, seen = {p.name for p in draft.kernel.inputs}, set[str]()
    for s in (s for row in rows for s in draft.loop(row).body):
        if not isinstance(s, Loop) or s.kind != "for":
            continue
        found = {
            n.tensor
            for n in walk(s)
            if isinstance(n, Read) and n.tensor in inputs
            and any(isinstance(v, Var) and v.name in rows for i in n.indices for v in walk(i))
        }  # fmt: skip
        if found & seen:
            heavy = any(isinstance(n, Op) and n.name in HEAVY for n in walk(s))
            draft.attempt("hint", s.axis.name, "ahead", 2 if heavy else 1)
            return
        seen |= found


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
