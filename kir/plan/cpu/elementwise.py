"""Elementwise nests: a grid over the outer axes and chunks of the contiguous one, which is cut into
tiles of lanes."""

from __future__ import annotations

from kir.plan.common import Draft, constant_extent, contiguous_score
from kir.plan.cpu.loops import spread, tile

CHUNK = 1 << 14
"""Elements of the contiguous axis that one iteration of an elementwise grid takes."""


def elementwise(draft: Draft, prefix: list[str], width: int) -> None:
    """Chunks of the contiguous axis form the grid, with the other axes."""
    best = max(prefix, key=lambda n: (contiguous_score(draft.loop(n)), prefix.index(n)))
    order = [n for n in prefix if n != best] + [best]
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
    spread(draft, outer)
