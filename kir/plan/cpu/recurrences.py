"""Recurrences whose steps hold matrix products, such as an LSTM's.

What a step multiplies that does not depend on earlier steps (the projection of its input) leaves
the recurrence: for all steps at once it is one large product. The product with the state stays, its
weights packed once for all steps into panels of columns; blocks of columns form one parallel region
per step, in which the pointwise part follows while its operands are in cache.
"""

from __future__ import annotations

from dataclasses import dataclass

from kir.errors import RewriteError
from kir.ir import Define, Loop, Op, Read, Reduce, Store, Var, walk
from kir.plan.common import (
    Draft,
    chain,
    constant_extent,
    contraction_in,
    is_parallel,
    parallel_prefix,
    tile_contraction,
)
from kir.plan.cpu.chip import Chip
from kir.plan.cpu.loops import tile
from kir.rewrites.base import buffers_of, fresh, names_in, path_to, statements, var_names
from kir.rewrites.legality import carried
from kir.rewrites.places import Place, places, tensors_read

ROWS = 4
"""Rows of a register block of two vectors."""
CHAINS = 8
"""Vectors of columns of a block where the state is a single row: they hide an fma's latency."""


def outline_inputs(draft: Draft) -> tuple[str, ...]:
    """In every recurrence, definitions of their own for products that no earlier step takes part
    in, and for operands out of earlier steps that are not plain reads: the names of the first."""
    made: list[str] = []
    for loop in [s for s in draft.kernel.body if isinstance(s, Loop)]:
        here = {s.name for s in walk(loop) if isinstance(s, Define)}
        for name in [s.name for s in loop.body if isinstance(s, Define)]:
            for place in _products(draft, name):
                if not tensors_read(place.expr) & here and loop.axis.name in var_names(place.expr):
                    into = fresh(f"{name}_input", names_in(draft.kernel))
                    if draft.attempt("outline", name, place.path, into=into):
                        made.append(into)
                        break
    for loop in [s for s in draft.kernel.body if isinstance(s, Loop)]:
        here = {s.name for s in walk(loop) if isinstance(s, Define)} - set(made)
        for name in [s.name for s in loop.body if isinstance(s, Define) and s.name in here]:
            _outline_state(draft, name, here)
    return tuple(made)


def _products(draft: Draft, name: str) -> list[Place]:
    """The sums of products in a definition, but for one that is all of it."""
    define = next(s for s in walk(draft.kernel) if isinstance(s, Define) and s.name == name)
    return [
        p
        for p in places(define)
        if isinstance(p.expr, Reduce)
        and p.expr.name == "sum"
        and p.expr is not define.value
        and isinstance(p.expr.body, Op)
        and p.expr.body.name == "mul"
    ]


def _outline_state(draft: Draft, name: str, here: set[str]) -> None:
    """Give the factor that earlier steps made, converted or with a fill, a definition."""
    for place in _products(draft, name):
        assert isinstance(place.expr, Reduce) and isinstance(place.expr.body, Op)
        for factor in place.expr.body.args:
            plain = isinstance(factor, Read) and factor.fill is None
            if tensors_read(factor) & here and not plain:
                path = next(p.path for p in places(place.stmt) if p.expr is factor)
                into = fresh(f"{name}_state", names_in(draft.kernel))
                draft.attempt("outline", name, path, into=into)
                return


# --- loops -----------------------------------------------------------------------------------


def recurrences(draft: Draft, inputs: tuple[str, ...], chip: Chip) -> None:
    """Take the `inputs` of `outline_inputs` out of their loops, and schedule what a step does
    with products of earlier ones; what is refused is left to others."""
    for name in inputs:
        around = _around(draft, name)
        if len(around) > 1 and draft.attempt("fission", around[0], after=around[1]):
            _longest_rows(draft, name)
    for loop in [s for s in draft.kernel.body if isinstance(s, Loop)]:
        if carried(loop) is None:
            continue
        for nest in [s.axis.name for s in loop.body if isinstance(s, Loop)]:
            found = _matrix(draft, nest) if nest in draft.loop_names() else None
            if found is not None:
                trial = draft.fork()
                try:
                    _step(trial, loop.axis.name, nest, found, chip)
                except RewriteError:
                    continue
                draft.adopt(trial)


def _longest_rows(draft: Draft, name: str) -> None:
    """Make time the rows of a product for all steps, where it is the longest of its row axes:
    the weights are then packed once for all of it."""
    time, *others = _around(draft, name)
    found = contraction_in(draft.loop(time))
    if found is None or len(found.rows) < 2:
        return
    steps, rows = (constant_extent(draft, n) for n in (time, found.rows[-1]))
    if rows is not None and (steps is None or steps > rows):
        at = others.index(found.rows[-1]) + 1
        draft.attempt("reorder", (*others[:at], time, *others[at:]))


def _around(draft: Draft, target: str) -> list[str]:
    """The loops around the first store to `target`, outermost first."""
    body = draft.kernel.body
    store = next(s for s in statements(body) if isinstance(s, Store) and s.target == target)
    return [x.axis.name for x in path_to(body, store) or () if isinstance(x, Loop)]


@dataclass(frozen=True)
class _Matrix:
    """The weights of a product, which are the same in every step: the tensor, and its dims along
    the last parallel axis, `column`, and along the sum, `depth`. `rows`: whether the state has
    several rows, or is a vector."""

    read: Read
    column: str
    depth: str
    at: int
    deep: int
    rows: bool


def _matrix(draft: Draft, nest: str) -> _Matrix | None:
    """The weights of the product that a nest computes, where it is one."""
    loops = parallel_prefix(draft.loop(nest))
    sums = [s for s in loops[-1].body if isinstance(s, Loop)] if loops else []
    if len(sums) != 1 or len(sums[0].body) != 1:
        return None
    update, column, depth = sums[0].body[0], loops[-1].axis.name, sums[0].axis.name
    if not isinstance(update, Store) or update.op != "add" or update.indices:
        return None
    inputs = {p.name for p in draft.kernel.inputs}
    for read in [n for n in walk(update.value) if isinstance(n, Read) and n.tensor in inputs]:
        dims = {i.name: d for d, i in enumerate(read.indices) if isinstance(i, Var)}
        if column in dims and depth in dims:
            others = {x.axis.name for x in loops[:-1]} - dims.keys()
            rows = any(constant_extent(draft, n) != 1 for n in others)
            return _Matrix(read, column, depth, dims[column], dims[depth], rows)
    return None


def _step(draft: Draft, time: str, nest: str, found: _Matrix, chip: Chip) -> None:
    """One region per step: blocks of columns of the product, and what follows from them."""
    column, width = found.column, (2 if found.rows else CHAINS) * chip.lanes
    extent = constant_extent(draft, column)
    if extent is None or extent < width:
        raise RewriteError("there are too few columns", kernel=draft.kernel)
    target = _result(draft, nest)
    _pack(draft, time, found, width)
    block = _outermost(draft, nest, column, width)
    followers = [
        n for n in _followers(draft, time, block, extent) if _follow(draft, block, n, width)
    ]
    if len(followers) > 1:
        draft.attempt("merge", followers[0], len(_chain(draft, followers[0])))
    if draft.attempt("contract", target, "reg"):
        draft.attempt("set_space", target, "local")
    product = next(s for s in draft.loop(block).body if isinstance(s, Loop))
    for name in _registers(draft, product, found, width):
        draft.take("bind", name, "tile")
    for s in [s for s in draft.loop(block).body if isinstance(s, Loop)]:
        last = draft.loop(_chain(draft, s.axis.name)[-1])
        if s.axis.name in followers and is_parallel(last):
            tile(draft, last.axis.name, width)
    draft.take("bind", block, "grid")


def _registers(draft: Draft, product: Loop, found: _Matrix, width: int) -> list[str]:
    """Register blocks of a product: the loops that are to be tiles."""
    if found.rows:
        again = contraction_in(product)
        tiled = None if again is None else tile_contraction(draft, again, ROWS, width, None)
        if tiled is None:
            raise RewriteError("the product cannot be tiled", kernel=draft.kernel)
        return [tiled.rows, tiled.columns, *(n for pair in tiled.epilogue for n in pair)]
    before = set(draft.loop_names())
    draft.take("fission", found.column, after=found.depth)
    (rest,) = set(draft.loop_names()) - before
    draft.take("reorder", (found.depth, found.column))
    return [found.column, rest]


def _result(draft: Draft, nest: str) -> str:
    """The tensor that a product's nest stores last."""
    stores = [s for s in statements((draft.loop(nest),)) if isinstance(s, Store)]
    return stores[-1].target


def _chain(draft: Draft, name: str) -> list[str]:
    return [x.axis.name for x in chain(draft.loop(name))]


def _outermost(draft: Draft, nest: str, column: str, width: int) -> str:
    """Blocks of columns around all of a nest: the name of the loop over them."""
    names = _chain(draft, nest)
    before = set(draft.loop_names())
    draft.take("split", column, width)
    (block,) = set(draft.loop_names()) - before
    around = names[: names.index(column)]
    if around:
        draft.take("reorder", (block, *around, column))
    return block


def _followers(draft: Draft, time: str, block: str, extent: int) -> list[str]:
    """The nests behind the product's in a step whose last loop goes along its columns."""
    found = [s.axis.name for s in draft.loop(time).body if isinstance(s, Loop)]
    after = found[found.index(block) + 1 :]
    return [n for n in after if constant_extent(draft, _chain(draft, n)[-1]) == extent]


def _follow(draft: Draft, block: str, nest: str, width: int) -> bool:
    """Fuse a nest into the loop over blocks of columns."""
    trial = draft.fork()
    try:
        trial.take("fuse", block, _outermost(trial, nest, _chain(trial, nest)[-1], width))
    except RewriteError:
        return False
    draft.adopt(trial)
    return True


def _pack(draft: Draft, time: str, found: _Matrix, width: int) -> None:
    """Panels of `width` columns of the weights, the same for all steps."""
    order = [d for d in range(len(found.read.indices)) if d != found.deep]
    before = {b.name for b in buffers_of(draft.kernel.body)}
    pack = (found.at, width)
    draft.take("stage", found.read.tensor, time, "global", order=(*order, found.deep), pack=pack)
    (made,) = {b.name for b in buffers_of(draft.kernel.body)} - before
    draft.take("lift", made)
