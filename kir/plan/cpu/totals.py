"""Reductions to one value: parts of the outermost loop for the cores, their results combined."""

from __future__ import annotations

from math import prod

from kir.ir import Loop
from kir.plan.common import Draft, accumulators, chain, constant_extent
from kir.plan.cpu.chip import Chip

LEAST = 1 << 15
"""Iterations in all from which on parts pay."""
CHUNK = 1 << 13
"""Of a single loop, the consecutive iterations that belong to one part."""
PARTS = 4
"""For each core: cores are not equally fast all the time."""


def totals(draft: Draft, nest: Loop, chip: Chip) -> Loop:
    """Cut a nest that only accumulates into one scalar into parts for a grid: the loop inside that
    does the work; the nest as it is where that does not pay or is refused."""
    loops = [x.axis.name for x in chain(nest)]
    extents = [constant_extent(draft, n) for n in loops]
    known = [n for n in extents if n is not None]
    found = accumulators(draft, nest.axis.name)
    if len(found) != 1 or (len(known) == len(extents) and prod(known) < LEAST):
        return nest
    trial, parts, outer = draft.fork(), PARTS * chip.cores, nest.axis.name
    if len(loops) == 1:
        before = set(trial.loop_names())
        if not trial.attempt("split", outer, CHUNK):
            return nest
        (outer,) = set(trial.loop_names()) - before
    elif extents[0] is not None:
        parts = min(parts, max(1, extents[0]))
    before = set(trial.loop_names())
    if not trial.attempt("split_k", found[0], outer, parts):
        return nest
    part = next(n for n in trial.loop_names() if n not in before)
    draft.adopt(trial)
    return draft.loop(part)
