"""Elementwise nests: a grid over the outer axes and chunks of the contiguous one, which is cut into
tiles of lanes. Where an operand is contiguous along another axis (a transposition), tiles of both
axes, which whole lines of the cache fill, in blocks that the second cache holds."""

from __future__ import annotations

from math import prod

from kir.ir import Const, Define, Op, Read, Store, Var, walk
from kir.plan.common import HEAVY, Draft, constant_extent, contiguous_score
from kir.plan.cpu.chip import Chip
from kir.plan.cpu.loops import spread, tile
from kir.rewrites.base import buffers_of, var_names
from kir.simplify import linear

CHUNK = 1 << 14
"""Elements of the contiguous axis that one iteration of an elementwise grid takes."""
GRAIN = 1 << 12
"""Elements that such an iteration takes at least: finding its indices takes divisions."""
LINE = 64
"""Bytes of a line of the cache."""
PAGE = 4096
"""Bytes after which addresses fall on the same lines of the first cache again."""
SIDES = (32, 8)
"""Elements of a transposition's tile, at most: along the axis that is contiguous in the output, and
the other one."""
TILES = (8, 8)
"""Tiles of a transposition's block along the axis that is contiguous in the output, and the
other one. The pages that a block touches stay in the first translation table and the next."""


CHEAPER = {"tanh": ("tanh_of_log1p",)}
"""Laws that spare functions, and err no more than these do, by a function on their left side."""


def cheaper(draft: Draft) -> None:
    """Use the laws of `CHEAPER` in every definition where they fit."""
    for s in draft.kernel.body:
        if isinstance(s, Define):
            used = {n.name for n in walk(s.value) if isinstance(n, Op)} & CHEAPER.keys()
            for law in (law for name in sorted(used) for law in CHEAPER[name]):
                draft.attempt("rule", s.name, law)


def elementwise(draft: Draft, prefix: list[str], width: int, chip: Chip) -> None:
    """Chunks of the contiguous axis form the grid, with the other axes."""
    if _transposed(draft, prefix, chip):
        return
    best = max(prefix, key=lambda n: (contiguous_score(draft.loop(n)), prefix.index(n)))
    order = [n for n in _as_read(draft, prefix, best) if n != best] + [best]
    if order != prefix and not draft.attempt("reorder", tuple(order)):
        best, order = prefix[-1], prefix
    extent = constant_extent(draft, best)
    outer = order[:-1]
    before = set(draft.loop_names())
    tile(draft, best, width)
    blocks = set(draft.loop_names()) - before
    if blocks and (extent is None or extent > CHUNK):
        before = set(draft.loop_names())
        if draft.attempt("split", *blocks, CHUNK // width):
            outer = [*outer, *(set(draft.loop_names()) - before)]
    grid = coarse(draft, outer, extent, GRAIN)
    inner = [n for n in prefix if n in order[:-1] and n not in grid]
    if len(inner) > 1:
        draft.attempt("reorder", tuple(inner))
    spread(draft, grid)
    ops = {n.name for n in walk(draft.loop(best)) if isinstance(n, Op)}
    if blocks and ops & HEAVY:  # what takes long to compute does not look far ahead by itself
        draft.attempt("hint", *blocks, "ahead", 1)


def _as_read(draft: Draft, prefix: list[str], best: str) -> list[str]:
    """The axes in the order of an operand that has them all, `best` last, but otherwise than the
    output: reading in order is worth more than writing so, since stores need not be waited for."""
    for n in walk(draft.loop(prefix[0])):
        if isinstance(n, Read) and _last(n) == best:
            order = [i.name for i in n.indices if isinstance(i, Var)]
            if sorted(order) == sorted(prefix):
                return order
    return prefix


def coarse(draft: Draft, outer: list[str], inside: int | None, grain: int) -> list[str]:
    """The outer loops that a grid should have, where one iteration of them all is `inside` units
    of work: inner ones stay loops, or are cut, until an iteration has about `grain` units."""
    outer, inside = list(outer), inside if inside is None else max(1, inside)
    while outer and inside is not None and 2 * inside <= grain:
        extent = constant_extent(draft, outer[-1])
        if extent is None:
            break
        if inside * extent > grain or len(outer) == 1:
            before = set(draft.loop_names())
            if extent > grain // inside and draft.attempt("split", outer[-1], grain // inside):
                (made,) = set(draft.loop_names()) - before
                outer[-1] = made
            break
        inside *= max(1, extent)
        outer.pop()
    return outer


def _transposed(draft: Draft, prefix: list[str], chip: Chip) -> bool:
    """Tiles of the axes along which the output and an operand are contiguous.

    Within a block lines of the output that follow one another are stored one soon after another,
    which memory likes. But where the operand's rows lie on the same lines of the first cache, those
    would be gone before their second half is read: then all of a block's run of a row comes first.
    """
    found = _axes(draft, prefix)
    if found is None:
        return False
    trial, ((along, wide), (across, high)) = draft.fork(), found
    others = [n for n in prefix if n not in (along, across)]
    made: dict[str, list[str]] = {}
    for axis, side, tiles in ((along, wide, TILES[0]), (across, high, TILES[1])):
        made[axis] = []
        for factor in (side, tiles):
            name = made[axis][-1] if made[axis] else axis
            before = set(trial.loop_names())
            if not trial.attempt("split", name, factor):
                return False
            made[axis] += set(trial.loop_names()) - before
    (along_o, along_oo), (across_o, across_oo) = made[along], made[across]
    grid = [*others, along_oo, across_oo]
    large, inside = _is_large(draft, chip), [along_o, across_o]
    if large and not _aliased(draft, prefix, along, across):
        inside.reverse()
    if not trial.attempt("reorder", (*grid, *inside, across, along)):
        return False
    if not all(trial.attempt("bind", n, "tile") for n in (across, along)):
        return False
    spread(trial, grid)
    if large:  # no prefetcher follows runs so short
        trial.attempt("hint", inside[0], "ahead", 2)
    if trial.loop(grid[0]).kind != "grid":
        return False
    draft.adopt(trial)
    return True


def _aliased(draft: Draft, prefix: list[str], along: str, across: str) -> bool:
    """Whether a read that strides along the output's last axis does so by whole pages."""
    shapes = {p.name: p.shape for p in draft.kernel.params}
    shapes |= {b.name: b.shape for b in buffers_of(draft.kernel.body)}
    for n in walk(draft.loop(prefix[0])):
        if not isinstance(n, Read) or not n.indices or _last(n) != across:
            continue
        d = max((d for d, i in enumerate(n.indices) if along in var_names(i)), default=None)
        inner = shapes[n.tensor][d + 1 :] if d is not None else ()
        row = [int(e.value) for e in inner if isinstance(e, Const)]
        if row and len(row) == len(inner) and prod(row) * n.dtype.bytes % PAGE == 0:
            return True
    return False


def _is_large(draft: Draft, chip: Chip) -> bool:
    """Whether inputs and outputs leave the second cache, or may."""
    total = 0
    for p in draft.kernel.params:
        if not all(isinstance(e, Const) for e in p.shape):
            return True
        total += prod(int(e.value) for e in p.shape if isinstance(e, Const)) * p.type.bytes
    return total > chip.l2


def _axes(draft: Draft, prefix: list[str]) -> tuple[tuple[str, int], tuple[str, int]] | None:
    """The axis along which all stores are contiguous, one along which a read is that strides
    along the first; and the sides of a tile: what is stored side by side fills a line, so that it
    may bypass the cache."""
    nodes = list(walk(draft.loop(prefix[0])))
    stores = [n for n in nodes if isinstance(n, Store)]
    along = {_last(n) for n in stores}
    reads = [n for n in nodes if isinstance(n, Read) and n.indices]
    bits_of = {p.name: p.type.bits for p in draft.kernel.params}
    bits_of |= {b.name: b.type.bits for b in buffers_of(draft.kernel.body)}
    if len(along) != 1 or None in along or any(s.op is not None for s in stores):
        return None
    (axis,) = along
    across = {
        _last(n) for n in reads
        if any(axis in var_names(i) for i in n.indices[:-1]) and _last(n) != axis
    } - {None}  # fmt: skip
    if len(across) != 1 or axis not in prefix or not across <= set(prefix):
        return None
    assert axis is not None
    (other,) = across
    assert other is not None
    bits = (min(bits_of[n.target] for n in stores), min(n.dtype.bits for n in reads))
    wide, high = (max(8, min(side, LINE * 8 // b)) for side, b in zip(SIDES, bits, strict=True))
    return (axis, wide), (other, high)


def _last(n: Read | Store) -> str | None:
    """The index that walks the last dim by ones and does nothing else there."""
    if not n.indices:
        return None
    form = linear(n.indices[-1])
    names = [t.name for t, c in form.terms.items() if isinstance(t, Var) and c == 1]
    return names[0] if len(names) == 1 and len(form.terms) == 1 else None
