"""How a matrix product is blocked on a CPU: sizes from its shape and the chip, in closed form.

The scheme is that of Goto and van de Geijn (Anatomy of High-Performance Matrix Multiplication, ACM
TOMS 34(3), 2008) in the five-loop form of BLIS (Van Zee and van de Geijn, ACM TOMS 41(3), 2015);
the sizes follow Low, Igual, Smith and Quintana-Orti (Analytical Modeling Is Enough for
High-Performance BLIS, ACM TOMS 43(2), 2016): a register block fills the vector registers, a panel
of the right operand stays in L1 while the blocks of rows run over it, and a block of the left
operand stays in L2 while the panels run over it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kir.plan.cpu.chip import Chip

Packing = Literal["direct", "block", "shared"]
"""Where an operand is read: in place; from a copy that each program makes of its part; from one
copy that all programs share."""
PASSES = 16
"""Column panels from which on a packed left operand repays its copy."""
BLOCKS = 8
"""Register blocks of rows that use a panel of the right operand while it is in L1, at least."""
BALANCE = 0.97
"""Of the best balance over the cores, what a split may give away for larger pieces."""
DEEP = 16
"""Times that a product is deeper than its result is wide and high, from which on cores sum parts of
the depth, where the result fits L2."""


@dataclass(frozen=True)
class Product:
    """The shape of `rows x depth` times `depth x columns`; None where an extent is symbolic.

    `plain_left`: the left operand needs no conversion and goes along `depth`; `plain_right`: the
    right one needs none and goes along the columns. `batch` products are made; `bits` is the width
    of the accumulated type.
    """

    rows: int | None
    columns: int | None
    depth: int | None
    plain_left: bool = True
    plain_right: bool = True
    batch: int | None = 1
    bits: int = 32


@dataclass(frozen=True)
class Blocking:
    """The sizes of a product's schedule.

    A register block has `mr` rows and `nr` columns. A program takes `row_blocks` of them (None:
    all rows) and `panels` panels of `nr` columns (None: all). The depth is walked in `slabs` of
    elements for which both operands are packed (None: whole), in `strips` for which a panel stays
    in L1 (None: whole), with `unroll` steps written out. With `rows_outside`, a program walks its
    rows outside of the panels. `parts` programs share one sum (1: none do).
    """

    mr: int
    nr: int
    row_blocks: int | None
    panels: int | None
    slab: int | None
    strip: int | None
    unroll: int
    left: Packing
    right: Packing
    rows_outside: bool = False
    parts: int = 1


def blocking(p: Product, chip: Chip) -> Blocking:
    """The blocking for a product on a chip."""
    size = p.bits // 8
    nr = max(1, 2 * chip.vector_bits // p.bits)
    mr = max(1, (chip.registers - 3) // 2)
    strip = _down(chip.l1 // 2 // (nr * size), 8)
    if p.rows is None or p.columns is None or p.depth is None:
        slab = _down(chip.l2 // 2 // (BLOCKS * mr * size), strip)
        return Blocking(mr, nr, BLOCKS, None, slab, strip, 1, "block", "shared")
    m, n, k = p.rows, p.columns, p.depth
    if 0 < m <= mr // 2:  # few rows: wider panels make up for the chains that they lack
        mr, nr = m, 2 * nr
    unroll = next(u for u in (4, 5, 6, 7, 3, 8, 2, 1) if k % u == 0) if k else 1
    shape = _Shape(mr, nr, _cdiv(m, mr), _cdiv(n, nr), _even(k, strip, unroll), unroll, size)
    alone = p.batch is not None and p.batch >= chip.cores and (m + n) * k * size <= 2 * chip.l2
    if alone or (m * k * size <= chip.l2 // 2 and shape.panels >= 2 * chip.cores):
        return _by_columns(p, chip, shape, alone)
    if (
        k >= max(DEEP * max(m, n), 4 * strip * chip.cores)
        and m * n * size <= chip.l2 // 2
        and p.batch == 1
    ):
        part = _down(min(chip.l2 // 2 // (m * size), k // chip.cores), strip)
        return Blocking(mr, nr, None, None, part, shape.strip, unroll, "block", "block",
                        parts=chip.cores)  # fmt: skip
    return _by_rows(p, chip, shape, strip)


@dataclass(frozen=True)
class _Shape:
    """What follows from the extents alone: register blocks along the rows, panels of columns."""

    mr: int
    nr: int
    blocks: int
    panels: int
    strip: int | None
    unroll: int
    size: int


def _by_rows(p: Product, chip: Chip, s: _Shape, strip: int) -> Blocking:
    """Programs take rows, and share the right operand. Of the left one each packs its own block,
    which stays in L2, unless too few columns pay for that."""
    assert p.columns is not None and p.depth is not None
    n, k, half = p.columns, p.depth, chip.l2 // 2
    slab = _even(k, _down(half // (BLOCKS * s.mr * s.size), strip), s.unroll * (strip // s.unroll))
    most = 3 * chip.l2 // 4 // (s.mr * s.size * (slab or k))
    row_blocks = share(s.blocks, max(1, most), chip.cores)
    slim = n * k * s.size <= chip.l1 // 2
    packs = s.panels >= PASSES or not p.plain_left or slab is not None
    direct = p.plain_right and slim and n % s.nr == 0
    return Blocking(
        s.mr, s.nr, row_blocks, None, slab, None if slim else s.strip, s.unroll,
        "block" if packs else "direct", "direct" if direct else "shared",
        rows_outside=slim and not packs,
    )  # fmt: skip


def _by_columns(p: Product, chip: Chip, s: _Shape, alone: bool) -> Blocking:
    """Programs take columns, and share the left operand, which fits L2. With `alone`, a program
    makes a whole product of the batch."""
    assert p.columns is not None and p.depth is not None
    small = p.columns * p.depth * s.size <= 2 * chip.l1 and p.columns % s.nr == 0
    panels = None if alone else share(s.panels, max(4, s.panels // (2 * chip.cores)), chip.cores)
    left: Packing = "direct" if p.plain_left else "block" if alone else "shared"
    right: Packing = "direct" if p.plain_right and small else "block"
    strip = None if small else s.strip
    return Blocking(s.mr, s.nr, None, panels, None, strip, s.unroll, left, right)


def share(pieces: int, most: int, cores: int) -> int:
    """How many of `pieces` a program takes, `most` at most: of the numbers that keep all cores
    about equally busy the largest."""

    def balance(size: int) -> float:
        """The mean load of a core over the greatest."""
        whole, short = divmod(pieces, size)
        rounds, extra = divmod(whole, cores)
        longest = (rounds + 1) * size if extra else rounds * size + short
        return pieces / cores / longest

    most = max(1, min(most, _cdiv(pieces, cores)))
    sizes = range(max(1, most // 4), most + 1)
    best = max(map(balance, sizes))
    return max(s for s in sizes if balance(s) >= BALANCE * best)


def _even(extent: int, most: int, step: int) -> int | None:
    """Pieces of an extent, `most` at most, about equal, multiples of `step`; None: one piece."""
    if extent <= most + most // 4:
        return None
    piece = _cdiv(extent, _cdiv(extent, most))
    return _cdiv(piece, step) * step


def _down(value: int, step: int) -> int:
    return max(step, value // step * step)


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)
