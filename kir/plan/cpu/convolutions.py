"""Convolutions: direct, register-blocked like a matrix product.

A block is some output channels by output rows by whole vectors of output columns. For each step of
the reduction it takes the block's vectors from the input and multiplies them by one weight per
channel, broadcast. The input is staged with its padding (see `windows`). Weights are read where
they are: each channel's are contiguous along the reduction.
"""

from __future__ import annotations

from kir.ir import Const, Op, Read, Var, walk
from kir.plan.common import Contraction, Draft, parallel_prefix
from kir.plan.cpu.chip import Chip
from kir.plan.cpu.windows import WindowPlan, windows_of


def convolution(draft: Draft, found: Contraction, chip: Chip) -> bool:
    """Schedule a contraction that reads through windows; False if it is none, or refused."""
    reads = [n for n in walk(found.right) if isinstance(n, Read)]
    if len(reads) != 1 or len(found.rows) != 1:
        return False
    parallel, (channel,) = found.batch + found.rows + found.columns, found.rows
    seen = windows_of(draft, reads[0], parallel, found.reduction, channel)
    if seen is None:
        return False
    if not any(seen.taps.values()) and set(seen.strides.values()) == {1} and seen.line is None:
        return False  # a plain matrix product
    trial = draft.fork()
    if not WindowPlan(trial, seen, found.update.value.dtype, chip).run():
        return False
    draft.adopt(trial)
    return True


def ungroup(draft: Draft, name: str) -> str:
    """Cut parallel axes of the nest `name` into groups where reads take `axis // size`: in a
    grouped convolution each group of output channels has input channels of its own. The name of
    the nest after."""
    for loop in parallel_prefix(draft.loop(name)):
        axis = loop.axis.name
        sizes = {
            int(c.value)
            for n in walk(loop)
            if isinstance(n, Read)
            for index in n.indices
            for e in walk(index)
            if isinstance(e, Op) and e.name == "floordiv" and e.args[0] == Var(axis)
            and isinstance(c := e.args[1], Const) and int(c.value) > 1
        }  # fmt: skip
        if len(sizes) == 1:
            before = set(draft.loop_names())
            if draft.attempt("split", axis, *sizes) and axis == name:
                (name,) = set(draft.loop_names()) - before
    return name
