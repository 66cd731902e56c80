"""The default schedule for `accel`: a grid over the PEs, blocks staged into the scratchpad by DMA,
lanes for the vector unit, and tiles of the matrix engine for contractions whose dtypes it has.

Only ordinary steps are taken; whatever a rewrite refuses stays as it is, so every kernel gets a
legal schedule, the plainest being `loops` and the grid.
"""

from __future__ import annotations

from dataclasses import dataclass

from kir.ir import Buffer, Cast, Const, Expr, Kernel, Loop, Read, Step, walk
from kir.plan.common import (
    Contraction,
    Draft,
    constant_extent,
    contract_temporaries,
    contraction_in,
    fuse_nests,
    inline_pointwise,
    nests,
    parallel_prefix,
    tile_contraction,
    vectorise,
)
from kir.rewrites.base import buffers_of, loops_of

BLOCK = 1024
"""Elements of a row that are brought in at a time."""
PLAIN_TILE = (16, 64, 32)
"""Rows, columns and depth of a contraction that the vector unit does."""
SMALL = 64
"""A constant loop of at most so many steps is left to each lane."""
WORTH = 16
"""Fewer elements are not worth a transfer."""


@dataclass(frozen=True)
class Chip:
    """What a plan must know: the engine's (a, b, acc, m, n, k) by dtype names, the scratchpad's
    bytes, the DMA's alignment in bytes, and lanes of f32 worth one loop of the vector unit."""

    engines: tuple[tuple[str, str, str, int, int, int], ...]
    local_bytes: int
    alignment: int
    lanes: int


def plan(kernel: Kernel, chip: Chip) -> tuple[Step, ...]:
    """The steps from a spec to what the accelerator runs well."""
    draft = Draft(kernel)
    inline_pointwise(draft, recompute_heavy=True)
    draft.take("loops")
    fuse_nests(draft)
    contract_temporaries(draft)
    for name in [n.axis.name for n in nests(draft.kernel)]:
        nest = draft.loop(name)
        found = contraction_in(nest)
        if found is None or not _contraction(draft, found, chip):
            _rows(draft, nest, chip)
    return tuple(draft.steps)


def plain(kernel: Kernel) -> tuple[Step, ...]:
    """Loops, and the grid where that is legal: nothing staged, nothing tiled."""
    draft = Draft(kernel)
    draft.take("loops")
    for nest in nests(draft.kernel):
        for loop in parallel_prefix(nest):
            draft.attempt("bind", loop.axis.name, "grid")
    return tuple(draft.steps)


# --- contractions ----------------------------------------------------------------------------


def _contraction(draft: Draft, found: Contraction, chip: Chip) -> bool:
    """Tile a sum of products, for the engine where it has the dtypes; False where refused."""
    trial = draft.fork()
    dtypes = tuple(_stored(f) for f in (found.left, found.right))
    acc = next(b.type.name for b in buffers_of(draft.kernel.body) if b.name == found.acc)
    tile = next(
        ((m, n, k) for a, b, c, m, n, k in chip.engines if (a, b, c) == (*dtypes, acc)), None
    )
    made = tile_contraction(trial, found, *(tile or PLAIN_TILE))
    if made is None:
        return False
    if not trial.attempt("set_space", made.acc, "local"):
        return False
    _stage(trial, made.steps[-1], chip)
    for name in made.grid:
        if not trial.attempt("bind", name, "grid"):
            return False
    block = (made.columns,) if tile is None else (made.rows, made.columns, made.depth)
    for name in (*block, *(columns for _, columns in made.epilogue)):
        if not trial.attempt("bind", name, "tile"):
            return False
    if tile is None:  # the vector unit: lanes along the columns, the depth around them
        trial.attempt("reorder", (made.depth, made.rows, made.columns))
    draft.adopt(trial)
    return True


def _stored(factor: Expr) -> str | None:
    """The dtype a factor is stored in, its widening taken off; None where it is computed."""
    inner = factor.value if isinstance(factor, Cast) else factor
    return inner.dtype.name if isinstance(inner, Read) else None


# --- rows ------------------------------------------------------------------------------------


def _rows(draft: Draft, nest: Loop, chip: Chip) -> None:
    """Independent axes become the grid; what is left is brought in block by block."""
    grid = [x.axis.name for x in parallel_prefix(nest)]
    below = [x for x in loops_of((nest,)) if x.axis.name not in grid]
    sizes = [constant_extent(draft, x.axis.name) for x in below]
    if grid and all(n is not None and n <= SMALL for n in sizes):
        block = _blocks(draft, grid.pop(), chip)
        if block is not None:
            grid.append(block)
    else:
        for x in below:
            if not any(True for _ in loops_of(x.body)):
                _blocks(draft, x.axis.name, chip)
    for name in grid:
        draft.attempt("bind", name, "grid")


def _blocks(draft: Draft, name: str, chip: Chip) -> str | None:
    """Split an innermost loop into blocks, stage what a block reads, and give it lanes; the name
    of the loop over blocks, or None where it could not be split."""
    extent = constant_extent(draft, name)
    if extent is not None and extent <= WORTH:
        return name
    trial = draft.fork()
    before = set(trial.loop_names())
    if not trial.attempt("split", name, BLOCK):
        return None
    (outer,) = set(trial.loop_names()) - before
    _stage(trial, outer, chip)
    vectorise(trial, name, chip.lanes)
    draft.adopt(trial)
    return outer


# --- staging ---------------------------------------------------------------------------------


def _stage(draft: Draft, loop: str, chip: Chip) -> None:
    """Bring in what the body of `loop` reads of global memory, where that is a block of constant
    size that fits, and the DMA can move it."""
    held = {b.name for b in buffers_of(draft.kernel.body) if b.space != "global"}
    reads = [n for n in walk(draft.loop(loop)) if isinstance(n, Read) and n.tensor not in held]
    for tensor in dict.fromkeys(r.tensor for r in reads):
        if any(r.dtype.bytes < chip.alignment for r in reads if r.tensor == tensor):
            continue
        trial = draft.fork()
        before = {b.name for b in buffers_of(trial.kernel.body)}
        if not trial.attempt("stage", tensor, loop, "local"):
            continue
        (made,) = (b for b in buffers_of(trial.kernel.body) if b.name not in before)
        size = _elements(made)
        total = sum(
            (_elements(b) or 0) * b.type.bytes
            for b in buffers_of(trial.kernel.body)
            if b.space == "local"
        )
        if size is not None and size >= WORTH and total <= chip.local_bytes:
            draft.adopt(trial)


def _elements(buffer: Buffer) -> int | None:
    size = 1
    for extent in buffer.shape:
        if not isinstance(extent, Const):
            return None
        size *= int(extent.value)
    return size
