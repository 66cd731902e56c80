"""Reductions along an axis that is not the contiguous one: lanes along the contiguous parallel
axis, and an accumulator for each of a block of results, which the first cache holds while the
reduced axis is walked outside of it. So memory is read in long runs, in the order in which it lies.

    for j_o { acc[16, 256] = 0; for i { for j: 16, k: 256 { acc[j, k] += x[i, j_o*16 + j, k] } } }
"""

from __future__ import annotations

from math import prod

from kir.ir import Buffer, Loop, Read, Store, Var, walk
from kir.plan.common import Draft, chain, constant_extent
from kir.plan.cpu.chip import Chip
from kir.plan.cpu.loops import REGISTERS, spread, tile
from kir.rewrites.base import var_names

LEAST = 64
"""Results of a block, at least: some lines of the cache."""
STEPS = (4, 3, 2)
"""Steps of a reduced loop that are added at once: accumulators are loaded and stored less often."""
TASKS = 4
"""Blocks for each core, at least, where there are enough results."""


def columns(draft: Draft, prefix: list[str], chip: Chip) -> bool:
    """Schedule the nest, if it is such a reduction (or several in turn) over constant extents."""
    reductions = _reductions(draft, prefix)
    if not reductions:
        return False
    inside = _inside(draft, prefix, reductions)
    trial = draft.fork()
    grid = _block(trial, prefix, inside, _size(draft, prefix, reductions, chip))
    if grid is None:
        return False
    for reduced in reductions:
        after = _apart(trial, inside, reduced[0])
        if after is None or not trial.attempt("reorder", (*reduced, *inside)):
            return False
        before = set(trial.loop_names())
        tile(trial, inside[-1], chip.lanes * REGISTERS)
        _together(trial, reduced[-1], [*inside[:-1], *(set(trial.loop_names()) - before)])
        inside = after
    tile(trial, inside[-1], chip.lanes * REGISTERS)
    spread(trial, grid)
    draft.adopt(trial)
    return True


def _together(draft: Draft, reduced: str, around: list[str]) -> None:
    """Add some steps of the reduced loop at once to each accumulator, within the loops `around`:
    steps far apart, so that memory is read in several streams."""
    extent = constant_extent(draft, reduced) or 1
    steps = next((n for n in STEPS if extent % n == 0), 1)
    if steps == 1 or not around:
        return
    trial = draft.fork()
    before = set(trial.loop_names())
    if not trial.attempt("split", reduced, extent // steps):
        return
    (far,) = set(trial.loop_names()) - before
    if trial.attempt("reorder", (reduced, *around, far)) and trial.attempt("bind", far, "unroll"):
        draft.adopt(trial)


def _reductions(draft: Draft, prefix: list[str]) -> list[list[str]]:
    """For each reduction of the nest its loops; none where it is more than reductions, or where the
    last parallel axis is not the one along which all that is reduced is contiguous."""
    found = []
    for s in draft.loop(prefix[-1]).body:
        if isinstance(s, Buffer | Store):
            continue
        if not isinstance(s, Loop):
            return []
        loops = chain(s)
        if any(isinstance(n, Loop | Buffer) for x in loops[-1].body for n in walk(x)):
            return []
        if any(not isinstance(x, Store) or x.indices for x in loops[-1].body):
            return []
        if any(x.where or constant_extent(draft, x.axis.name) is None for x in loops):
            return []
        found.append([x.axis.name for x in loops])
        if not _straight(draft, prefix, loops):
            return []
    if any(constant_extent(draft, n) is None for n in prefix):
        return []
    return found


def _straight(draft: Draft, prefix: list[str], loops: tuple[Loop, ...]) -> bool:
    """Whether all that the loops read element by element has the last parallel axis last, alone,
    and every reduced one in a dim of its own."""
    names, last, some = {x.axis.name for x in loops}, prefix[-1], False
    for n in walk(loops[-1]):
        if not isinstance(n, Read) or not n.indices:
            continue
        alone = [i.name if isinstance(i, Var) else None for i in n.indices]
        for i, only in zip(n.indices, alone, strict=True):
            if only is None and var_names(i) & (names | {last}):
                return False
        if last in alone:
            if alone[-1] != last:
                return False
            some = True
        elif alone[-1] in names and len(names & set(alone)) == len(alone):
            continue  # a vector beside it
        elif set(alone) & set(prefix) and alone[-1] in names:
            return False
    return some


def _inside(draft: Draft, prefix: list[str], reductions: list[list[str]]) -> list[str]:
    """The parallel axes that lie within one step of the reduced ones, in memory."""
    names = {n for r in reductions for n in r}
    inner: set[str] = set(prefix)
    for n in walk(draft.loop(prefix[-1])):
        if isinstance(n, Read) and prefix[-1] in {v for i in n.indices for v in var_names(i)}:
            order = [i.name if isinstance(i, Var) else "" for i in n.indices]
            first = min((k for k, v in enumerate(order) if v in names), default=len(order))
            inner &= set(order[first:])
    found = [prefix[-1]]
    for axis in reversed(prefix[:-1]):
        if axis not in inner:
            break
        found.insert(0, axis)
    return found


def _size(draft: Draft, prefix: list[str], reductions: list[list[str]], chip: Chip) -> int:
    """Results of a block: half the first cache holds their accumulators; where what is reduced is
    read again, half the second holds that; and every core gets some blocks."""
    size = chip.l1 // 8
    extents = {n: constant_extent(draft, n) or 1 for n in draft.loop_names()}
    if len(reductions) > 1:
        size = min(size, chip.l2 // 8 // max(1, prod(extents[n] for n in reductions[0])))
    total = prod(extents[n] for n in prefix)
    return max(LEAST, min(size, total // (TASKS * chip.cores)))


def _block(draft: Draft, prefix: list[str], inside: list[str], size: int) -> list[str] | None:
    """Cut the axes `inside` (which changes) so that a block has about `size` results; the grid."""
    grid, kept, room = prefix[: len(prefix) - len(inside)], list[str](), size
    for n, axis in reversed(list(enumerate(inside))):
        extent = constant_extent(draft, axis) or 1
        if extent <= room:
            kept.insert(0, axis)
            room //= max(1, extent)
            continue
        outer = inside[: n + 1]
        if room > 1 or not kept:
            before = set(draft.loop_names())
            if not draft.attempt("split", axis, max(1, room)):
                return None
            kept.insert(0, axis)
            outer = [*inside[:n], *(set(draft.loop_names()) - before)]
        grid = [*grid, *outer]
        break
    inside[:] = kept
    order = (*grid, *kept)
    if list(order) != prefix and not draft.attempt("reorder", order):
        return None
    return grid


def _apart(draft: Draft, inside: list[str], reduced: str) -> list[str] | None:
    """Part the nest after the reduction: the axes of what follows; None where refused."""
    before = set(draft.loop_names())
    after = reduced
    for axis in reversed(inside):
        if not draft.attempt("fission", axis, after=after):
            return None
        after = axis
    return [n for n in draft.loop_names() if n not in before]
