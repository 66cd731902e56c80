"""Products of a matrix and a vector: memory limits them, so the matrix is walked as it lies.

Along its rows (`y[i] = sum(k) a[i, k] * x[k]`) some rows go side by side, so that several streams
are fetched at once, with lanes and partial sums along `k`. Across them (`y[j] = sum(k) x[k] *
b[k, j]`) whole rows are added, some at a time, to sums that stay in L1.
"""

from __future__ import annotations

from dataclasses import dataclass

from kir.errors import RewriteError
from kir.ir import Buffer, Cast, Expr, Loop, Op, Read, Store, Var, walk
from kir.plan.common import Draft, constant_extent, innermost_loops, parallel_prefix, vectorise
from kir.plan.cpu.chip import Chip
from kir.rewrites.base import statements, var_names

ROWS = 4
"""Rows of the matrix that are walked side by side: streams of memory, and chains of sums."""
VECTORS = 4
"""Vectors of sums that a row has in registers."""
BLOCKS = 16
"""Blocks of rows that a program takes, where there are enough for some programs."""


@dataclass(frozen=True)
class _Product:
    """`acc += matrix * vector` over `k`, for each `axis` (that of the vector's parallel axes
    alone, `batch`, are the others); `along`: the matrix is contiguous in `k`."""

    acc: str
    axis: str
    k: str
    batch: tuple[str, ...]
    along: bool


def matrix_vector(draft: Draft, nest: Loop, chip: Chip) -> bool:
    """Schedule a product of a matrix and a vector; False where the nest is none."""
    found = _find(nest)
    if found is None:
        return False
    trial = draft.fork()
    try:
        rest = _along(trial, found, chip) if found.along else _across(trial, found, chip)
    except RewriteError:
        return False
    if rest is not None and not matrix_vector(trial, trial.loop(rest), chip):
        return False
    draft.adopt(trial)
    return True


def _find(nest: Loop) -> _Product | None:
    parallel = parallel_prefix(nest)
    if not parallel:
        return None
    body = parallel[-1].body
    scalars = {s.name for s in body if isinstance(s, Buffer) and not s.shape}
    loops = [s for s in body if isinstance(s, Loop)]
    if len(loops) != 1 or len(loops[0].body) != 1:
        return None
    k, update = loops[0].axis.name, loops[0].body[0]
    if not isinstance(update, Store) or update.op != "add" or update.target not in scalars:
        return None
    value: Expr = update.value
    while isinstance(value, Cast):
        value = value.value
    match value:
        case Op("mul", (left, right)):
            pass
        case _:
            return None
    axes = [x.axis.name for x in parallel]
    for matrix, vector in ((left, right), (right, left)):
        own = [a for a in axes if a in _axes(matrix) and a not in _axes(vector)]
        if not own or k not in _axes(matrix) or k not in _axes(vector):
            continue
        for axis, along in ((k, True), (own[-1], False)):
            if _contiguous(matrix, axis):
                rows = own[-1]
                batch = tuple(a for a in axes if a != rows)
                return _Product(update.target, rows, k, batch, along)
    return None


def _axes(e: Expr) -> set[str]:
    return {v for n in walk(e) if isinstance(n, Read) for i in n.indices for v in var_names(i)}


def _contiguous(e: Expr, axis: str) -> bool:
    reads = [n for n in walk(e) if isinstance(n, Read) and n.indices]
    return all(n.indices[-1] == Var(axis) for n in reads)


def _along(draft: Draft, p: _Product, chip: Chip) -> str | None:
    """Blocks of rows by vectors along `k`. Gives the loop over the rows that are left."""
    rows, rest = constant_extent(draft, p.axis), None
    count = ROWS if rows is None else max(1, min(ROWS, rows))
    before = set(draft.loop_names())
    if rows is not None and rows % count and not p.batch:
        draft.take("split", p.axis, count, tail="peel")
        outer, rest = [n for n in draft.loop_names() if n not in before][:2]
    else:
        outer = _split(draft, p.axis, count)
    made = vectorise(draft, p.k, VECTORS * chip.lanes)
    if made is None:
        raise RewriteError(f"`{p.k}` makes no lanes")
    draft.take("reorder", (*p.batch, outer, p.axis))
    draft.take("fission", p.axis, after=made.outer)
    draft.take("reorder", (made.outer, p.axis, made.lanes))
    draft.take("bind", p.axis, "tile")
    if rows is None or rows >= 4 * count * BLOCKS:
        outer = _split(draft, outer, BLOCKS)
    _grid(draft, (*p.batch, outer))
    return rest


def _across(draft: Draft, p: _Product, chip: Chip) -> str | None:
    """Sums of a part of the columns in L1, to which some rows at a time are added. Where one part
    has all of them, programs take rows in turn."""
    width = VECTORS * chip.lanes
    columns, depth = constant_extent(draft, p.axis), constant_extent(draft, p.k)
    part = max(1, chip.l1 // 2 // (4 * width))
    count = next((r for r in (ROWS, 5, 6, 7, 3, 2) if depth and depth % r == 0), ROWS)
    whole = columns is not None and columns <= part * width and not p.batch
    turns = whole and depth is not None and depth >= 16 * count * chip.cores
    if columns is not None and not turns:
        part = max(1, min(part, -(-columns // (width * chip.cores))))
    strips = _split(draft, p.axis, width)
    parts = [] if turns else [_split(draft, strips, part)]
    draft.take("reorder", (*p.batch, *parts, strips, p.axis))
    behind = [_fission(draft, p.axis, p.k), _fission(draft, strips, p.axis)]
    steps = _split(draft, p.k, count)
    draft.take("reorder", (steps, strips, p.k, p.axis))
    acc, tiles = p.acc, [p.axis, behind[0]]
    if turns:
        before = set(draft.loop_names())
        draft.take("split_k", acc, steps, chip.cores)
        (acc,) = {s.target for s in statements(draft.loop(p.axis).body) if isinstance(s, Store)}
        made = [n for n in draft.loop_names() if n not in before]
        inner = {x.axis.name for n in made for x in innermost_loops(draft.loop(n))}
        tiles += [n for n in made if n in inner]
    before = set(draft.loop_names())
    draft.take("stage_out", acc, strips, "reg")
    tiles += [n for n in draft.loop_names() if n not in before][-1:]
    draft.take("bind", p.k, "unroll")
    for name in tiles:
        draft.take("bind", name, "tile")
    _grid(draft, (*p.batch, *parts))
    return None


def _grid(draft: Draft, names: tuple[str, ...]) -> None:
    for name in names:
        if not draft.attempt("bind", name, "grid"):
            break


def _split(draft: Draft, name: str, factor: int) -> str:
    before = set(draft.loop_names())
    draft.take("split", name, factor)
    (outer,) = set(draft.loop_names()) - before
    return outer


def _fission(draft: Draft, name: str, after: str) -> str:
    before = set(draft.loop_names())
    draft.take("fission", name, after=after)
    (second,) = set(draft.loop_names()) - before
    return second
