"""Convolutions: direct, register-blocked like a matrix product.

A block is some output channels by output rows by whole vectors of output columns. For each step of
the reduction it takes the block's vectors from the input and multiplies them by one weight per
channel, broadcast. The input is staged with its padding (see `windows`). Weights are read where
they are: each channel's are contiguous along the reduction.
"""

from __future__ import annotations

from math import prod

from kir.ir import Const, Expr, Loop, Op, Read, Var, walk
from kir.plan.common import Contraction, Draft, chain, nests, parallel_prefix
from kir.plan.cpu.chip import Chip
from kir.plan.cpu.windows import WindowPlan, Windows, windows_of
from kir.rewrites.base import free_vars, loops_of

MOST_PHASES = 4
"""Nests that one may be parted into; of more, it is hard to see that they write all outputs."""


def convolution(draft: Draft, found: Contraction, chip: Chip) -> bool:
    """Schedule a contraction that reads through windows; False if it is none, or refused."""
    seen = _seen(draft, found, found.right, found.rows, found.columns)
    other = found.left
    if seen is None:
        seen = _seen(draft, found, found.left, found.columns, found.rows)
        other = found.right
    if seen is None:
        return False
    if not any(seen.taps.values()) and set(seen.strides.values()) == {1} and seen.line is None:
        return False  # a plain matrix product
    trial = draft.fork()
    weights = [n for n in walk(other) if isinstance(n, Read)]
    if len(weights) != 1:
        return False
    if not WindowPlan(trial, seen, found.update.value.dtype, chip, weights[0]).run():
        return False
    draft.adopt(trial)
    return True


def _seen(
    draft: Draft, found: Contraction, e: Expr, rows: tuple[str, ...], columns: tuple[str, ...]
) -> Windows | None:
    """The windows that one factor goes through along `columns`, the other one having `rows`."""
    reads = [n for n in walk(e) if isinstance(n, Read)]
    if len(reads) != 1 or len(rows) != 1:
        return None
    parallel = found.batch + rows + columns
    return windows_of(draft, reads[0], parallel, found.reduction, rows[0])


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


def phases(draft: Draft, name: str) -> list[str]:
    """Part a nest whose reduction runs under conditions such as `(p + 1 - r) % 2 == 0`, as that
    of a transposed convolution does: a nest for each remainder of its parallel axes, in which the
    conditions are decided. The names of the nests after."""
    trial = draft.fork()
    others = {x.axis.name for x in nests(draft.kernel)} - {name}

    def mine() -> list[str]:
        return [x.axis.name for x in nests(trial.kernel) if x.axis.name not in others]

    parted = _parted(draft.loop(name))
    parallel = [x.axis.name for x in parallel_prefix(draft.loop(name))]
    outer = [a for a in parted if a in parallel]
    inner = [a for a in parted if a not in parallel]
    if not outer or not inner or prod(parted[a] for a in outer) > MOST_PHASES:
        return [name]
    if not all(trial.attempt("split", a, c) for a, c in parted.items()):
        return [name]
    prefix = parallel_prefix(trial.loop(*mine()))
    (reduction,) = [s for s in prefix[-1].body if isinstance(s, Loop)]
    for first, loops in ((outer, prefix), (inner, chain(reduction))):
        order = [*first, *(x.axis.name for x in loops if x.axis.name not in first)]
        if not trial.attempt("reorder", tuple(order)):
            return [name]
    if not all(trial.attempt("unroll", a) for a in reversed(outer)):
        return [name]
    for nest in mine():
        while decided := _decided(trial.loop(nest)):
            if not trial.attempt("unroll", decided):
                return [name]
        for x in loops_of((trial.loop(nest),)):
            if x.where:
                trial.attempt("skip", x.axis.name)
    draft.adopt(trial)
    return mine()


def _parted(nest: Loop) -> dict[str, int]:
    """The axes in the masks `(...) % c == 0` of a nest, each with its c."""
    found: dict[str, int] = {}
    for x in loops_of((nest,)):
        for e in x.where:
            match e:
                case Op("eq", (Op("mod", (index, Const(c))), Const(0))):
                    found |= dict.fromkeys(sorted(free_vars(index)), int(c))
    return found


def _decided(nest: Loop) -> str | None:
    """A loop of which a mask chooses the iterations one by one: an equation in its index alone."""
    for x in loops_of((nest,)):
        for c in x.where:
            if isinstance(c, Op) and c.name == "eq" and free_vars(c) == {x.axis.name}:
                return x.axis.name
    return None
