"""Matrix products by packing and blocking: the steps that make the loops of a `Blocking`.

    grid rows' blocks, columns' parts {          programs
      for slabs of the depth {                   both operands packed: left in L2
        for panels of columns {
          for strips of the depth {              the panel's strip in L1
            for register blocks of rows {
              for depth { tile rows, columns { acc += left * right } }
            } } }
        epilogue
      } }

Packed operands are filled up with zeros, so that a register block is always whole.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from kir.dtypes import DType
from kir.errors import RewriteError
from kir.ir import Cast, Expr, Read, Store, Var
from kir.plan.common import (
    Contraction,
    Draft,
    constant_extent,
    contraction_in,
    innermost_loops,
)
from kir.plan.cpu.chip import Chip
from kir.plan.cpu.model import Blocking, Packing, Product, blocking
from kir.plan.cpu.pairs import fits_pairs, pair
from kir.rewrites.base import buffers_of, extent_of, statements, var_names
from kir.simplify import linear

WIDE = 4
"""Panels that a packing loop fills side by side, from whole lines of the source."""
DEEP = 8
"""Elements along the depth that packing transposes at a time."""


@dataclass(frozen=True)
class Operand:
    """A factor that is one tensor's element, perhaps converted: by dim the axis it goes along
    (None: no axis of the block)."""

    tensor: str
    axes: tuple[str | None, ...]
    type: DType
    converts: bool

    def dim(self, axis: str) -> int:
        return self.axes.index(axis)


@dataclass
class _Nest:
    """The loops of a product as they come to be, by name; None where there is none."""

    draft: Draft
    acc: str
    left: Operand
    right: Operand
    i: str
    j: str
    k: str
    batch: tuple[str, ...]
    blocks: str = ""
    behind: str | None = None
    """Over the same blocks of rows, behind the sums."""
    panels: str = ""
    rows: str | None = None
    """Of the grid, over blocks of rows; `columns` over parts of the columns."""
    columns: str | None = None
    slabs: str | None = None
    strips: str | None = None
    steps: str | None = None
    epilogue: tuple[str, ...] = ()
    """Loops over rows and columns of a register block, behind the sums."""
    pairs: bool = False
    """Whether operands are packed as i16, to be multiplied and added in pairs."""

    @property
    def grid(self) -> list[str]:
        return [n for n in (self.rows, self.columns) if n is not None]

    def split(self, name: str, factor: int) -> str:
        """Split a loop; gives the outer one's name."""
        before = set(self.draft.loop_names())
        self.draft.take("split", name, factor)
        (outer,) = set(self.draft.loop_names()) - before
        return outer

    def peel(self, name: str, factor: int) -> tuple[str, str | None]:
        """Split a loop, its rest a nest of its own where there is one: the names of both."""
        extent, before = constant_extent(self.draft, name), set(self.draft.loop_names())
        if extent is None or extent < factor or extent % factor == 0:
            return self.split(name, factor), None
        self.draft.take("split", name, factor, tail="peel")
        made = [n for n in self.draft.loop_names() if n not in before]
        return made[0], made[1]

    def fission(self, name: str, after: str) -> str:
        """Cut a loop behind another one in its body; gives the second piece's name."""
        before = set(self.draft.loop_names())
        self.draft.take("fission", name, after=after)
        (second,) = set(self.draft.loop_names()) - before
        return second


def product(draft: Draft, found: Contraction, chip: Chip) -> bool:
    """Schedule a contraction of two plain operands; False, and nothing taken, where it is none or
    a step is refused."""
    if len(found.reduction) != 1:
        return False
    i, j, k = found.rows[-1], found.columns[-1], found.reduction[0]
    left, right = operand(found.left, i, k, {i, j, k}), operand(found.right, j, k, {i, j, k})
    if left is None or right is None or found.update.value.dtype.bits < 32:
        return False
    b = blocking(_shape(draft, found, left, right, (i, j, k)), chip)
    batch = tuple(a for a in found.parallel if a not in (i, j))
    pairs = "direct" not in (b.left, b.right) and fits_pairs(
        draft, chip, k, (left.tensor, right.tensor), b.unroll
    )
    nest = _Nest(draft.fork(), found.acc, left, right, i, j, k, batch, pairs=pairs)
    try:
        rest = _loops(nest, b)
        _operands(nest, b)
        if pairs and not pair(nest.draft, (i, j, k)):
            return product(draft, found, replace(chip, dots=()))
        _kinds(nest, b)
    except RewriteError:
        return False
    if rest is not None:
        other = contraction_in(nest.draft.loop(rest))
        if other is None or not product(nest.draft, other, chip):
            return False
    draft.adopt(nest.draft)
    return True


def operand(e: Expr, own: str, depth: str, axes: set[str]) -> Operand | None:
    """The factor `e` as an operand, if it reads one tensor at an element that goes along `own`
    and `depth` by an index each, element by element."""
    read = e.value if isinstance(e, Cast) else e
    if not isinstance(read, Read) or read.fill is not None:
        return None
    found: list[str | None] = []
    for index in read.indices:
        mine = var_names(index) & axes
        terms = linear(index).terms
        if len(mine) > 1 or any(terms.get(Var(name)) != 1 for name in mine):
            return None
        found.append(next(iter(mine), None))
    if found.count(own) != 1 or found.count(depth) != 1:
        return None
    return Operand(read.tensor, tuple(found), e.dtype, read is not e)


def _shape(
    draft: Draft, found: Contraction, left: Operand, right: Operand, axes: tuple[str, str, str]
) -> Product:
    i, j, k = axes
    rows, columns, depth = (constant_extent(draft, a) for a in axes)
    batch: int | None = 1
    for a in found.parallel:
        extent = constant_extent(draft, a)
        if a not in (i, j):
            batch = None if batch is None or extent is None else batch * extent
    plain = not left.converts and left.axes[-1] == k, not right.converts and right.axes[-1] == j
    return Product(rows, columns, depth, *plain, batch, found.update.value.dtype.bits)


def _loops(nest: _Nest, b: Blocking) -> str | None:
    """Cut the loops and bring them into order, down to the register block. Gives the loop over the
    rows that are left for a nest of their own, where there is one."""
    draft, i, j, k = nest.draft, nest.i, nest.j, nest.k
    rest = None
    if b.left == "direct" and b.row_blocks is not None and not nest.batch:
        nest.blocks, rest = nest.peel(i, b.mr)
    else:
        nest.blocks = nest.split(i, b.mr)
    nest.panels = nest.split(j, b.nr)
    if b.row_blocks is not None:
        nest.rows = nest.split(nest.blocks, b.row_blocks)
    if b.panels is not None:
        nest.columns = nest.split(nest.panels, b.panels)
    inside = [nest.panels, nest.blocks]
    if b.rows_outside:
        inside.reverse()
    draft.take("reorder", (*nest.batch, *nest.grid, *inside, i, j))
    ends = [nest.fission(j, k), nest.fission(i, j)]
    order = [i, j]
    if b.strip is not None or b.slab is not None:
        nest.behind = nest.fission(nest.blocks, i)
        order.insert(0, nest.blocks)
    if b.slab is not None:
        nest.fission(nest.panels, nest.blocks)
        order.insert(0, nest.panels)
    nest.epilogue = tuple(ends)
    _depth(nest, b)
    inner = [n for n in (nest.steps, k) if n is not None]
    order[-2:-2] = inner
    if nest.strips is not None:
        order.insert(order.index(nest.blocks), nest.strips)
    if nest.slabs is not None:
        order.insert(0, nest.slabs)
    draft.take("reorder", tuple(order))
    return rest


def _parts(nest: _Nest, parts: int) -> None:
    """Let programs sum slabs in turn, each into an accumulator of its own."""
    draft = nest.draft
    loops = set(draft.loop_names())
    draft.take("split_k", nest.acc, nest.slabs or "", parts)
    block = draft.loop(nest.i).body
    (nest.acc,) = {s.target for s in statements(block) if isinstance(s, Store)}
    made = [n for n in draft.loop_names() if n not in loops and extent_of(draft.loop(n)) != 1]
    inner = {x.axis.name for n in made for x in innermost_loops(draft.loop(n))}
    nest.epilogue += tuple(n for n in made if n in inner)


def _depth(nest: _Nest, b: Blocking) -> None:
    """Cut the depth into slabs, strips and steps."""
    extent = constant_extent(nest.draft, nest.k)
    if b.unroll > 1 and extent is not None and extent > b.unroll:
        nest.steps = nest.split(nest.k, b.unroll)
    step, outermost = b.unroll if nest.steps else 1, nest.steps or nest.k
    if b.strip is not None:
        nest.strips = outermost = nest.split(outermost, b.strip // step)
        step = b.strip
    if b.slab is not None:
        nest.slabs = nest.split(outermost, -(-b.slab // step))


# --- operands --------------------------------------------------------------------------------


def _operands(nest: _Nest, b: Blocking) -> None:
    """Pack the operands, and keep the register block in registers along the depth."""
    for operand, own, width, where in (
        (nest.right, nest.j, b.nr, b.right),
        (nest.left, nest.i, b.mr, b.left),
    ):
        if where != "direct":
            _pack(nest, operand, own, width, where)
    for name in (nest.i, nest.j):
        nest.draft.attempt("unmask", name)
    if nest.slabs is not None and b.parts > 1:
        _parts(nest, b.parts)
    if nest.strips is not None or nest.slabs is not None:
        before = set(nest.draft.loop_names())
        nest.draft.take("stage_out", nest.acc, nest.blocks, "reg")
        made = [n for n in nest.draft.loop_names() if n not in before]
        nest.epilogue += tuple(made[-2:])


def _pack(nest: _Nest, operand: Operand, own: str, width: int, where: Packing) -> None:
    """Copy an operand to panels of `width`, converted, for one program or for all."""
    draft, lane = nest.draft, operand.dim(own)
    before = {x.name for x in buffers_of(draft.kernel.body)}
    outermost = [*nest.grid, *([nest.slabs] if nest.slabs else []), nest.panels]
    loop = outermost[0] if where == "shared" else nest.slabs or [*nest.batch, *nest.grid][-1]
    space = "global" if where == "shared" else "local"
    draft.take("stage", operand.tensor, loop, space, pack=(lane, width))
    (made,) = {x.name for x in buffers_of(draft.kernel.body)} - before
    if where == "shared":
        draft.take("lift", made)
    if operand.converts:
        draft.take("cast_storage", made, "i16" if nest.pairs else operand.type.name)
    _arrange(nest, made, operand, lane, where)


def _arrange(nest: _Nest, made: str, operand: Operand, lane: int, where: Packing) -> None:
    """Order the loops of a copy along the source, and make lanes of what is contiguous."""
    draft, depth = nest.draft, f"{made}_{operand.dim(nest.k)}"
    panel, element = f"{made}_{lane}_o", f"{made}_{lane}"
    if lane == len(operand.axes) - 1:
        wide = nest.split(panel, WIDE)
        draft.take("reorder", (wide, depth, panel, element))
        draft.take("bind", element, "tile")
    else:
        wide, chunks = panel, nest.split(depth, DEEP)
        draft.take("reorder", (panel, chunks, depth, element))
        draft.take("bind", element, "tile")
        draft.take("bind", depth, "tile")
    if where == "shared":
        draft.take("bind", wide, "grid")


# --- kinds -----------------------------------------------------------------------------------


def _kinds(nest: _Nest, b: Blocking) -> None:
    draft = nest.draft
    for name in (nest.i, nest.j, *nest.epilogue):
        draft.take("bind", name, "tile")
    if nest.steps is not None and not nest.pairs:
        draft.take("bind", nest.k, "unroll")
    if b.left == "direct" and b.row_blocks is None:
        _peel_blocks(nest)
    for name in (*nest.batch, *nest.grid):
        if not draft.attempt("bind", name, "grid"):
            break


def _peel_blocks(nest: _Nest) -> None:
    """Set the last block of rows apart where it is not whole, so that the others need no mask."""
    for name in (nest.blocks, nest.behind):
        blocks = constant_extent(nest.draft, name) if name is not None else None
        masked = any(x.where for n in (nest.i, *nest.epilogue) for x in [nest.draft.loop(n)])
        if name is not None and blocks is not None and blocks > 1 and masked:
            nest.draft.take("split", name, blocks - 1, tail="peel")
