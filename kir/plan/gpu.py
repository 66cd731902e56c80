"""The default schedule for GPUs: ordinary rewrite steps, for any kernel.

- Contractions: a grid of blocks, the accumulator in reg, the product on tiles of three axes, which
  is what a matrix unit takes.
- Elementwise nests and small windows: the last parallel axes are lanes, the others a grid; inner
  loops are walked by all lanes together.
- Rows: a grid over the parallel axes, each innermost loop below cut into tiles of lanes.
- Recurrences: parallel axes are moved outside where that is legal; else the loop that carries the
  dependence runs on the host, around launches.
- Scatter: a grid with atomic updates, or (style `ordered`) the parallel axes alone.

Style `plain` only makes the outer parallel loops a grid: programs of scalars, which always work.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from kir.ir import Cast, Define, Expr, If, Kernel, Loop, Read, Reduce, Step, Stmt, Store, walk
from kir.plan.common import (
    Contraction,
    Draft,
    Tiled,
    chain,
    constant_extent,
    contract_temporaries,
    contraction_in,
    inline_pointwise,
    is_parallel,
    nests,
    parallel_prefix,
    tile_contraction,
)
from kir.rewrites.base import free_vars
from kir.rewrites.legality import carried
from kir.simplify import simplify

Style = Literal["tiled", "ordered", "plain"]
STYLES: tuple[Style, ...] = ("tiled", "ordered", "plain")
LANES = 1024
LEAST_LANES = 256
BLOCKS = {"wide": (128, 128, 64), "middle": (64, 64, 32), "scalar": (16, 16, 16)}
STAGES = {"sm_80": 3, "sm_90": 3, "sm_100": 3, "gfx942": 2, "gfx950": 2, "gfx1100": 2}


def plan(kernel: Kernel, arch: str = "sm_90", style: Style = "tiled") -> tuple[Step, ...]:
    """The steps from `kernel` (a spec, or half scheduled) to a schedule for the chip `arch`."""
    draft = Draft(kernel)
    if any(isinstance(n, Define | Reduce) for n in walk(kernel)):
        inline_pointwise(draft, recompute_heavy=True)
        draft.take("loops")
    if style != "plain":
        while _fuse_one(draft):
            pass
    contract_temporaries(draft)
    for name in [loop.axis.name for loop in nests(draft.kernel)]:
        if style != "plain":
            _schedule(draft, name, arch, style)
        else:
            _grid(draft, [x.axis.name for x in parallel_prefix(draft.loop(name))])
    return tuple(draft.steps)


# --- fusing rows -----------------------------------------------------------------------------


def _fuse_one(draft: Draft) -> bool:
    """Fuse two consecutive nests whose leading axes are parallel and stay so, and which leave the
    blocks of a contraction whole."""
    for a, b in _neighbours(draft.kernel.body):
        one, two = parallel_prefix(a), parallel_prefix(b)
        shared = _shared(one, two)
        if not shared or any(
            contraction_in(nest) is not None and shared < len(prefix)
            for nest, prefix in ((a, one), (b, two))
        ):
            continue
        trial = draft.fork()
        taken = 0
        for x, y in list(zip(one, two, strict=False))[:shared]:
            if not trial.attempt("fuse", x.axis.name, y.axis.name):
                break
            if not is_parallel(trial.loop(x.axis.name)):
                break
            taken += 1
        if taken == shared:
            draft.adopt(trial)
            return True
    return False


def _neighbours(body: tuple[Stmt, ...]) -> list[tuple[Loop, Loop]]:
    """Pairs of loops that follow one another, at the top and inside loops that stay in order."""
    loops = [s for s in body if isinstance(s, Loop)]
    found = list(pairwise(loops))
    for s in body:
        if isinstance(s, If) or (isinstance(s, Loop) and not is_parallel(s)):
            found += _neighbours(s.body)
    return found


def _shared(one: tuple[Loop, ...], two: tuple[Loop, ...]) -> int:
    count = 0
    for x, y in zip(one, two, strict=False):
        if simplify(x.axis.extent) != simplify(y.axis.extent) or x.where != y.where:
            break
        count += 1
    return count


# --- one nest --------------------------------------------------------------------------------


def _schedule(draft: Draft, name: str, arch: str, style: Style) -> None:
    nest = draft.loop(name)
    found = contraction_in(nest)
    if found is not None and _contract(draft, found, arch):
        return
    prefix = [x.axis.name for x in parallel_prefix(nest)]
    if not prefix:
        prefix = _move_outside(draft, nest)
    if not prefix and style == "tiled":
        prefix = _updating(draft, nest)
    if not prefix:
        _rows(draft, draft.loop(name).axis.name)
        return
    if _by_lanes(draft.loop(prefix[-1])):
        _lanes(draft, prefix)
    else:
        for s in draft.loop(prefix[-1]).body:
            if isinstance(s, Loop | If):
                _rows_in(draft, s)
        _grid(draft, prefix)
        draft.attempt("hint", prefix[0], "num_warps", 4)


def _grid(draft: Draft, names: list[str]) -> None:
    for name in names:
        draft.attempt("bind", name, "grid")


def _move_outside(draft: Draft, nest: Loop) -> list[str]:
    """Make parallel loops inside a perfect nest its outermost ones: their names, if that works."""
    loops = chain(nest)
    inner = [x.axis.name for x in loops[1:] if is_parallel(x)]
    if not inner:
        return []
    trial = draft.fork()
    others = [x.axis.name for x in loops if x.axis.name not in inner]
    if not trial.attempt("reorder", (*inner, *others)):
        return []
    prefix = [x.axis.name for x in parallel_prefix(trial.loop(inner[0]))]
    if prefix:
        draft.adopt(trial)
    return prefix


def _updating(draft: Draft, nest: Loop) -> list[str]:
    """The loops of a perfect nest that only updates tensors (a scatter): the updates of a grid
    are atomic."""
    scalars = {p.name for p in draft.kernel.params if p.type.bits >= 32}
    loops = chain(nest)
    stores = loops[-1].body
    if not all(isinstance(s, Store) and s.op == "add" and s.target in scalars for s in stores):
        return []
    names = []
    for x in loops:
        if carried(x) is not None:
            break
        names.append(x.axis.name)
    return names


def _by_lanes(loop: Loop) -> bool:
    """Whether the last parallel axis is better as lanes than the loops inside: there are none, or
    what they read lies along that axis."""
    inner = [s for s in loop.body if isinstance(s, Loop | If)]
    name = loop.axis.name
    if not inner:
        return True
    reads = [n for s in inner for n in walk(s) if isinstance(n, Read) and n.indices]
    return any(name in free_vars(r.indices[-1]) for r in reads)


def _lanes(draft: Draft, prefix: list[str]) -> None:
    """The last parallel axes as lanes, enough of them to fill a program; the others a grid."""
    lanes: list[str] = []
    grid = list(prefix)
    total = 1
    inner_loops = any(
        isinstance(s, Loop) for s in walk(draft.loop(prefix[-1])) if s is not draft.loop(prefix[-1])
    )
    most = LEAST_LANES if inner_loops else LANES
    for name in reversed(prefix):
        width = _width(constant_extent(draft, name), most // total)
        trial = draft.fork()
        outer = f"{name}_o"
        taken = set(trial.loop_names())
        if not trial.attempt("split", name, width):
            break
        (outer,) = set(trial.loop_names()) - taken
        if lanes and not trial.attempt("reorder", (outer, *_between(grid, name), name)):
            break
        draft.adopt(trial)
        grid[grid.index(name)] = outer
        lanes.insert(0, name)
        total *= width
        if total >= LEAST_LANES:
            break
    for name in lanes:
        if not draft.attempt("bind", name, "tile"):
            break
    _grid(draft, grid)
    draft.attempt("hint", grid[0], "num_warps", 4)


def _between(grid: list[str], name: str) -> list[str]:
    return grid[grid.index(name) + 1 :]


def _width(extent: int | None, most: int) -> int:
    """A power of two that covers `extent`, `most` at the most."""
    width = 1
    while width < most and (extent is None or width < extent):
        width *= 2
    return width


def _rows_in(draft: Draft, stmt: Stmt) -> None:
    if isinstance(stmt, If):
        for s in stmt.body:
            _rows_in(draft, s)
    elif isinstance(stmt, Loop):
        _rows(draft, stmt.axis.name)


def _rows(draft: Draft, name: str) -> None:
    """Cut each innermost loop at or below `name` into tiles of lanes."""
    loop = draft.loop(name)
    inner = [s for s in loop.body if isinstance(s, Loop | If)]
    if any(isinstance(n, Loop) for s in loop.body for n in walk(s)):
        for s in inner:
            _rows_in(draft, s)
        return
    trial = draft.fork()
    if trial.attempt("split", name, _width(constant_extent(draft, name), LANES)) and trial.attempt(
        "bind", name, "tile"
    ):
        draft.adopt(trial)


# --- contractions ----------------------------------------------------------------------------


def _contract(draft: Draft, found: Contraction, arch: str) -> bool:
    """Tile a contraction for the matrix unit. False where a rewrite refuses."""
    size = _size(found)
    rows, columns, depth = BLOCKS[size]
    if arch == "gfx1100" and size == "wide":
        rows, columns, depth = BLOCKS["middle"]
    least = 32 if _operand_bits(found) == 8 else 16
    if size == "middle" and least == 32:
        depth = 64
    rows = max(16, _width(constant_extent(draft, found.rows[-1]), rows))
    columns = max(16, _width(constant_extent(draft, found.columns[-1]), columns))
    trial = draft.fork()
    tiled = tile_contraction(trial, found, rows, columns, depth)
    if tiled is None or not _bind_tiles(trial, tiled):
        return False
    trial.attempt("hint", tiled.grid[0], "num_warps", 8 if size == "wide" else 4)
    trial.attempt("hint", tiled.grid[0], "num_stages", STAGES.get(arch, 2))
    draft.adopt(trial)
    return True


def _bind_tiles(draft: Draft, tiled: Tiled) -> bool:
    pairs = [n for pair in tiled.epilogue for n in pair]
    for name in (tiled.rows, tiled.columns, tiled.depth, *pairs):
        if not draft.attempt("bind", name, "tile"):
            return False
    return all(draft.attempt("bind", name, "grid") for name in tiled.grid)


def _size(found: Contraction) -> str:
    """Which block: the matrix unit takes 2-byte and 1-byte operands, and f32 by other means."""
    dtype = found.update.value.dtype
    if dtype.name not in ("f32", "i32"):
        return "scalar"
    return "wide" if _operand_bits(found) == 16 else "middle"


def _operand_bits(found: Contraction) -> int:
    return max(_inner_bits(found.left), _inner_bits(found.right))


def _inner_bits(e: Expr) -> int:
    return e.value.dtype.bits if isinstance(e, Cast) else e.dtype.bits


__all__ = ["STYLES", "Style", "plan"]
