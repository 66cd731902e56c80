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

from dataclasses import dataclass

from kir.dtypes import DType
from kir.errors import RewriteError
from kir.ir import Cast, Expr, Read, Var
from kir.plan.common import Contraction, Draft, constant_extent
from kir.plan.cpu.chip import Chip
from kir.plan.cpu.model import Blocking, Packing, Product, blocking
from kir.rewrites.base import buffers_of, var_names

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
    panels: str = ""
    rows: str | None = None
    """Of the grid, over blocks of rows; `columns` over parts of the columns."""
    columns: str | None = None
    slabs: str | None = None
    strips: str | None = None
    steps: str | None = None
    epilogue: tuple[str, ...] = ()
    """Loops over rows and columns of a register block, behind the sums."""

    @property
    def grid(self) -> list[str]:
        return [n for n in (self.rows, self.columns) if n is not None]

    def split(self, name: str, factor: int) -> str:
        """Split a loop; gives the outer one's name."""
        before = set(self.draft.loop_names())
        self.draft.take("split", name, factor)
        (outer,) = set(self.draft.loop_names()) - before
        return outer

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
    nest = _Nest(draft.fork(), found.acc, left, right, i, j, k, batch)
    try:
        _loops(nest, b)
        _operands(nest, b)
        _kinds(nest, b)
    except RewriteError:
        return False
    draft.adopt(nest.draft)
    return True


def operand(e: Expr, own: str, depth: str, axes: set[str]) -> Operand | None:
    """The factor `e` as an operand, if it reads one tensor at an element that goes along `own`
    and `depth` by an index each."""
    read = e.value if isinstance(e, Cast) else e
    if not isinstance(read, Read) or read.fill is not None:
        return None
    found: list[str | None] = []
    for index in read.indices:
        if isinstance(index, Var) and index.name in axes:
            found.append(index.name)
        elif var_names(index) & axes:
            return None
        else:
            found.append(None)
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


def _loops(nest: _Nest, b: Blocking) -> None:
    """Cut the loops and bring them into order, down to the register block."""
    draft, i, j, k = nest.draft, nest.i, nest.j, nest.k
    nest.blocks, nest.panels = nest.split(i, b.mr), nest.split(j, b.nr)
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
        nest.fission(nest.blocks, i)
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
    if nest.slabs is not None and b.parts > 1:
        draft.take("split_k", nest.acc, nest.slabs, b.parts)


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
        draft.take("cast_storage", made, operand.type.name)
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
        draft.take("reorder", (panel, chunks, element, depth))
        draft.take("bind", element, "tile")
        draft.take("bind", depth, "tile")
    if where == "shared":
        draft.take("bind", wide, "grid")


# --- kinds -----------------------------------------------------------------------------------


def _kinds(nest: _Nest, b: Blocking) -> None:
    draft = nest.draft
    for name in (nest.i, nest.j, *nest.epilogue):
        draft.take("bind", name, "tile")
    if nest.steps is not None:
        draft.take("bind", nest.k, "unroll")
    for name in (*nest.batch, *nest.grid):
        if not draft.attempt("bind", name, "grid"):
            break
