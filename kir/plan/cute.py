"""The default schedule for `nvidia` via CuTe DSL.

Rows that reduce get a CTA each, with the row's elements as lanes; elementwise kernels get blocks
of lanes along their last axis; a contraction is tiled, for the tensor cores where its factors are
of 16 bits. Only ordinary steps are taken.
"""

from __future__ import annotations

from kir.dtypes import NARROW_FLOATS
from kir.ir import Cast, Expr, Kernel, Loop, Step
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
from kir.rewrites.base import loops_of

LANES = 1024
SMALL = 64
"""A constant loop of at most so many steps is left to each lane."""
TENSOR_TILE, TENSOR_WARPS = (128, 128, 64), 8
PLAIN_TILE = (32, 32, 16)


def plan(kernel: Kernel) -> tuple[Step, ...]:
    """The steps from a spec to what `kir.backends.cute` expresses, as far as it can."""
    draft = Draft(kernel)
    inline_pointwise(draft, recompute_heavy=True)
    draft.take("loops")
    fuse_nests(draft)
    contract_temporaries(draft)
    for name in [n.axis.name for n in nests(draft.kernel)]:
        nest = draft.loop(name)
        found = contraction_in(nest)
        if found is None or not _contraction(draft, found):
            _parallel(draft, nest)
    return tuple(draft.steps)


def _contraction(draft: Draft, found: Contraction) -> bool:
    """Tile a sum of products; False where a step is refused."""
    trial = draft.fork()
    tensor = all(_is_widened(f) for f in (found.left, found.right))
    made = tile_contraction(trial, found, *(TENSOR_TILE if tensor else PLAIN_TILE))
    if made is None:
        return False
    for name in made.grid:
        if not trial.attempt("bind", name, "grid"):
            return False
    for name in (made.rows, made.columns, made.depth, *(n for e in made.epilogue for n in e)):
        if not trial.attempt("bind", name, "tile"):
            return False
    if tensor:
        trial.take("hint", made.grid[-1], "num_warps", TENSOR_WARPS)
    draft.adopt(trial)
    return True


def _is_widened(factor: Expr) -> bool:
    return isinstance(factor, Cast) and factor.value.dtype in NARROW_FLOATS


def _parallel(draft: Draft, nest: Loop) -> None:
    """Independent axes become the grid; lanes are the last of them, or the loops below them."""
    grid = [x.axis.name for x in parallel_prefix(nest)]
    below = [x for x in loops_of((nest,)) if x.axis.name not in grid]
    sizes = [constant_extent(draft, x.axis.name) for x in below]
    if grid and all(n is not None and n <= SMALL for n in sizes):
        _lanes(draft, grid.pop())
    else:
        for x in below:
            if not any(True for _ in loops_of(x.body)):
                vectorise(draft, x.axis.name, LANES)
    for name in grid:
        draft.attempt("bind", name, "grid")


def _lanes(draft: Draft, axis: str) -> None:
    """Blocks of `axis` for the grid, with a lane for each element of a block."""
    extent = constant_extent(draft, axis)
    if extent is not None and extent <= LANES:
        draft.attempt("bind", axis, "tile")
        return
    before = set(draft.loop_names())
    trial = draft.fork()
    if not trial.attempt("split", axis, LANES):
        return
    (outer,) = set(trial.loop_names()) - before
    if trial.attempt("bind", outer, "grid") and trial.attempt("bind", axis, "tile"):
        draft.adopt(trial)
