"""Scans: running sums and other recurrences of one element from the one before it.

What runs along the recurrence is the loop inside; lanes run along a parallel axis, several vectors
of them, so that the latency of one step hides behind others. The newest slice is kept in registers.
Where the recurrence itself walks memory element by element (a running sum along rows), blocks of
rows are turned in registers on their way in and out.
"""

from __future__ import annotations

from kir.errors import RewriteError
from kir.ir import Loop, Read, Store, Var, walk
from kir.plan.common import Draft, chain, constant_extent, is_parallel
from kir.plan.cpu.chip import Chip
from kir.plan.cpu.loops import spread
from kir.rewrites.base import buffers_of, fresh, names_in
from kir.rewrites.legality import carried

CHAINS = 1
"""Vectors of lanes. One: few rows at a time are few streams, which the prefetchers can follow."""
BLOCK = 32
"""Steps of the recurrence that are staged at a time: so few that a core turns one block while it
walks the one before and stores the one before that; two tiles, or a line of 16-bit floats."""
SIDE = 16
"""Rows and columns of a tile that is turned in registers, at the least."""
LINE = 64
"""Bytes of a line of the cache: what a tile stores side by side fills lines, so that they may
bypass the cache."""


def scans(draft: Draft, chip: Chip) -> None:
    """Schedule the nests that are scans; what is refused is left to others."""
    for loop in [s for s in draft.kernel.body if isinstance(s, Loop) and s.kind == "for"]:
        if carried(loop) is None:
            continue
        trial = draft.fork()
        if len(loop.body) > 1 and isinstance(loop.body[0], Loop):
            trial.attempt("merge", loop.body[0].axis.name, len(chain(loop.body[0])))
        nest = chain(trial.loop(loop.axis.name))
        if len(nest) < 2 or not all(map(is_parallel, nest[1:])):
            continue
        try:
            _scan(trial, nest, chip)
        except RewriteError:
            continue
        draft.adopt(trial)


def _scan(draft: Draft, nest: tuple[Loop, ...], chip: Chip) -> None:
    """Take the steps; RewriteError where the nest has another form or one is refused."""
    steps, names = nest[0].axis.name, [x.axis.name for x in nest]
    first, store = nest[-1].body[0], nest[-1].body[-1]
    outputs = {p.name for p in draft.kernel.outputs}
    if not isinstance(first, Store) or not isinstance(store, Store) or len(nest[-1].body) > 2:
        raise RewriteError("no scan", kernel=draft.kernel)
    if store.op is not None or store.target not in outputs or not store.indices:
        raise RewriteError("no output is stored", kernel=draft.kernel)
    last = store.indices[-1]
    if not isinstance(last, Var) or last.name not in names:
        raise RewriteError("the store strides", kernel=draft.kernel)
    along = last.name == steps
    lane = names[-1] if along else last.name
    width = CHAINS * chip.lanes
    extent = constant_extent(draft, lane)
    if extent is not None and extent < chip.lanes:
        raise RewriteError("there are too few lanes", kernel=draft.kernel)
    running = first.target
    if first is store:
        running = fresh(f"{store.target}_running", names_in(draft.kernel))
        draft.take("shadow", store.target, buffer=running)
    draft.take("split", lane, width)
    around = chain(draft.loop(steps))
    (block,) = (x.axis.name for x in around if x.axis.name not in names)
    outer = [n for n in names[1:] if n != lane]
    draft.take("reorder", (*outer, block, steps, lane))
    draft.take("contract", running, "local")
    draft.take("carry", running, steps)
    blocks = _turn(draft, (first, store), steps, lane) if along else None
    draft.take("bind", lane, "tile")
    spread(draft, [*outer, block])
    if blocks is not None:  # each row is a stream of its own, which takes a while to be noticed
        draft.attempt("hint", blocks, "ahead", 1)


def _turn(draft: Draft, stores: tuple[Store, Store], steps: str, lane: str) -> str:
    """Stage what is read and stored along the recurrence, blocks of steps at a time: the loop over
    these blocks."""
    before = set(draft.loop_names())
    draft.take("split", steps, BLOCK)
    (blocks,) = set(draft.loop_names()) - before
    reads = dict.fromkeys(
        n.tensor
        for s in stores
        for n in walk(s.value)
        if isinstance(n, Read) and n.tensor not in {x.target for x in stores} and n.indices
        and n.indices[-1] == Var(steps) and any(Var(lane) == i for i in n.indices)
    )  # fmt: skip
    store = stores[-1]
    rank = len(store.indices)
    order = (rank - 1, *range(rank - 1))
    for tensor in reads:
        _square(draft, "stage", tensor, blocks, order)
    _square(draft, "stage_out", store.target, blocks, order)
    return blocks


def _square(draft: Draft, rewrite: str, tensor: str, blocks: str, order: tuple[int, ...]) -> None:
    """Stage a tensor the other way round, its copy in tiles that are turned in registers."""
    before = set(draft.loop_names())
    draft.take(rewrite, tensor, blocks, "local", order=order)
    tiles = [n for n in draft.loop_names() if n not in before][-2:]
    side = SIDE
    if rewrite == "stage":
        tiles.reverse()  # the last one is to be contiguous in what is stored
    else:
        side = max(SIDE, LINE // _bytes_of(draft, tensor))
    around: list[str] = []
    for name in tiles:
        before = set(draft.loop_names())
        extent = constant_extent(draft, name) or side
        draft.take("split", name, min(side, extent))
        around += set(draft.loop_names()) - before
    draft.take("reorder", (*around, *tiles))
    for name in tiles:
        draft.take("bind", name, "tile")


def _bytes_of(draft: Draft, tensor: str) -> int:
    kernel = draft.kernel
    types = {p.name: p.type for p in kernel.params}
    types |= {b.name: b.type for b in buffers_of(kernel.body)}
    return types[tensor].bytes
