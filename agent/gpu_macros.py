"""Macro moves for GPUs, from canonical loops: recipes over nests of a form, as in `macros.py`.

- `tiles`: a reduction under two parallel loops or more, as a grid of programs with a block of lanes
  each, the reduction in steps of tiles: what a matrix unit takes.
- `rows`: all nests over one outer loop fused and their temporaries kept in registers, the outer
  loop a grid, inner loops in tiles of lanes.
- `flat`: the last loop of each nest in tiles of lanes, the others a grid.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

from kir.agent.macros import Cursor, Nest, Steps, bound_to, fuse_alike, reductions
from kir.errors import RewriteError
from kir.ir import Kernel, Loop
from kir.rewrites.base import buffers_of

TILES = ((64, 64, 32), (128, 128, 64), (128, 64, 64), (64, 128, 32), (32, 32, 32), (16, 16, 16))
"""Rows, columns and depth: powers of two, 16 at the least, as Triton's products are."""
WARPS = (4, 8)
WIDTHS = (1024, 512, 256, 2048)


def macros(kernel: Kernel) -> Iterator[tuple[str, Callable[[], Steps]]]:
    """What may be done here, named, as functions that give the steps (RewriteError where it cannot
    be)."""
    for nest, tile, warps in itertools.product(reductions(kernel), TILES, WARPS):
        if len(nest[1]) >= 2:
            yield (
                f"tiles {nest[0]} {tile} warps={warps}",
                bound_to(_tiles, kernel, nest, tile, warps),
            )
    if any(isinstance(s, Loop) for s in kernel.body):
        for width in WIDTHS:
            yield f"rows {width}", bound_to(_rows, kernel, width)
            yield f"flat {width}", bound_to(_flat, kernel, width)


def _tiles(kernel: Kernel, nest: Nest, tile: tuple[int, int, int], warps: int) -> Steps:
    cursor = Cursor(kernel)
    _, around, reducing = nest
    i, j, k = around[-2], around[-1], reducing[0]
    i_o, j_o = _outer(cursor, i, tile[0]), _outer(cursor, j, tile[1])
    grid = (*around[:-2], i_o, j_o)
    cursor.do("reorder", (*grid, i, j))
    before = set(cursor.loops())
    cursor.do("fission", j, after=k)
    cursor.do("fission", i, after=j)
    after = [name for name in cursor.loops() if name not in before]
    k_o = _outer(cursor, k, tile[2])
    cursor.do("reorder", (k_o, *reducing[1:], i, j, k))
    for name in (i, j, k, *after):
        cursor.do("bind", name, "tile")
    for name in grid:
        cursor.do("bind", name, "grid")
    cursor.attempt("hint", grid[0], "num_warps", warps)
    cursor.attempt("hint", grid[0], "num_stages", 3)
    return tuple(cursor.steps)


def _outer(cursor: Cursor, loop: str, factor: int) -> str:
    """Cut a loop whatever its extent: lanes beyond it are masked."""
    before = set(cursor.loops())
    cursor.do("split", loop, factor)
    return next(name for name in cursor.loops() if name not in before)


def _rows(kernel: Kernel, width: int) -> Steps:
    cursor = Cursor(kernel)
    fuse_alike(cursor, lambda: list(cursor.kernel.body))
    for buffer in [b for b in buffers_of(cursor.kernel.body) if b.space == "global"]:
        trial = Cursor(cursor.kernel)
        if trial.attempt("contract", buffer.name, "reg"):
            (left,) = [b for b in buffers_of(trial.kernel.body) if b.name == buffer.name]
            cursor.attempt("contract", buffer.name, "local" if left.shape else "reg")
    return _finish(cursor, width)


def _flat(kernel: Kernel, width: int) -> Steps:
    return _finish(Cursor(kernel), width)


def _finish(cursor: Cursor, width: int) -> Steps:
    """Innermost loops in tiles of lanes, all loops outside of them that may be a grid."""
    begun = len(cursor.steps)
    for name, loop in list(cursor.loops().items()):
        if loop.kind == "for" and not any(isinstance(s, Loop) for s in loop.body):
            trial = Cursor(cursor.kernel)
            if trial.attempt("split", name, width) and trial.attempt("bind", name, "tile"):
                cursor.kernel = trial.kernel
                cursor.steps += trial.steps
    for top in [s for s in cursor.kernel.body if isinstance(s, Loop)]:
        level: Loop | None = top
        while level is not None and level.kind == "for":
            if not cursor.attempt("bind", level.axis.name, "grid"):
                break
            inside = level.body
            level = inside[0] if len(inside) == 1 and isinstance(inside[0], Loop) else None
    if len(cursor.steps) == begun:
        raise RewriteError("nothing here can be lanes or a grid", kernel=cursor.kernel)
    return tuple(cursor.steps)
