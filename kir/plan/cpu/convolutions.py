"""Convolutions: direct, register-blocked like a matrix product.

A block is `rows` output channels by `lines` output rows by whole vectors of output columns. For
each step of the reduction it takes the block's vectors from the input and multiplies them by one
weight per channel, broadcast. The input of some output rows is staged with its padding, so that no
mask is left inside. Weights are read where they are: each channel's are contiguous along the
reduction.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import ceil, prod

from kir.ir import Const, Op, Read, Var, walk
from kir.plan.common import Contraction, Draft, constant_extent, parallel_prefix
from kir.plan.cpu.chip import Chip
from kir.plan.cpu.loops import spread
from kir.rewrites.base import buffers_of, free_vars
from kir.simplify import linear

FMA_LATENCY = 4
"""Cycles until a result of a multiply-add can be used; two may start in each cycle."""
LOAD = 0.15
"""Cycles by which a load, from caches of all levels, delays the multiply-adds; as measured."""
LANES_READ = 64
"""Lanes of a copy's tile."""


@dataclass(frozen=True)
class Block:
    """A register block: channels by output rows by vectors of output columns."""

    rows: int
    lines: int
    vectors: int


@dataclass(frozen=True)
class Windowed:
    """A contraction whose right operand is read through windows: what the plan needs to know.

    `channel` goes through the rows of the block; `line` (if there is one) and `column` through the
    output's rows and columns; `outer` are the other parallel axes. `tensor` is what the windows
    are of, `column_dim` and `line_dim` its dims, `strides` theirs, by dim.
    """

    tensor: str
    weights: str
    outer: tuple[str, ...]
    channel: str
    line: str | None
    column: str
    extents: dict[str, int]
    reduction: tuple[str, ...]
    strides: dict[int, int]
    taps: dict[int, int]
    """By dim, how many elements beyond one the window of one output goes through."""
    line_dim: int | None
    column_dim: int


def windowed(draft: Draft, found: Contraction) -> Windowed | None:
    """How a contraction reads through windows; None if it does not, or has unknown extents."""
    rights = [n for n in walk(found.right) if isinstance(n, Read)]
    lefts = [n for n in walk(found.left) if isinstance(n, Read)]
    if len(rights) != 1 or len(lefts) != 1 or len(found.rows) != 1:
        return None
    axes = (*found.parallel, *found.reduction)
    extents = {a: constant_extent(draft, a) for a in axes}
    sizes = {a: e for a, e in extents.items() if e is not None}
    if len(sizes) != len(extents) or 0 in sizes.values():
        return None
    strides, taps, axis_of = dict[int, int](), dict[int, int](), dict[int, str]()
    for d, index in enumerate(rights[0].indices):
        mine = [a for a in found.columns if a in free_vars(index)]
        form = linear(index).terms
        if any(not isinstance(t, Var) for t in form) or len(mine) > 1:
            return None
        if not mine:
            continue
        strides[d], axis_of[d] = form[Var(mine[0])], mine[0]
        others = ((a, c) for t, c in form.items() if (a := t.name) in found.reduction)  # type: ignore[attr-defined]
        taps[d] = sum(abs(c) * (sizes[a] - 1) for a, c in others)
    column_dim = len(rights[0].indices) - 1
    if axis_of.get(column_dim) != found.columns[-1] or min(strides.values()) < 1:
        return None
    if not any(taps.values()) and set(strides.values()) == {1} and len(found.columns) < 2:
        return None  # a plain matrix product
    line_dim = column_dim - 1 if column_dim - 1 in axis_of and len(found.columns) > 1 else None
    line = axis_of[line_dim] if line_dim is not None else None
    column, channel = found.columns[-1], found.rows[0]
    outer = tuple(a for a in found.parallel if a not in (line, column, channel))
    return Windowed(rights[0].tensor, lefts[0].tensor, outer, channel, line, column, sizes,
                    found.reduction, strides, taps, line_dim, column_dim)  # fmt: skip


def blocks(chip: Chip) -> list[Block]:
    """The register blocks that fit: accumulators, the vectors of the smaller operand, and one of
    the other."""
    sizes = range(1, chip.registers)
    return [
        Block(r, p, v)
        for r, p, v in product(sizes, sizes, (1, 2, 3, 4))
        if r * p * v + p * v + 1 < chip.registers
    ]


def cycles(block: Block, rows: int, lines: int, columns: int, chip: Chip) -> float:
    """Per step of the reduction, for all outputs: the multiply-adds (two a cycle), or the latency
    of the accumulators where there are few; and what loads delay them."""
    full, rest = divmod(rows, block.rows)
    tiles = -(-lines // block.lines) * -(-columns // (block.vectors * chip.lanes))
    total = 0.0
    for r, count in ((block.rows, full), (rest, 1)):
        vectors = block.lines * block.vectors
        cost = max(r * vectors / 2, FMA_LATENCY if r else 0) + (r + vectors) * LOAD
        total += count * cost
    return total * tiles


def convolution(draft: Draft, found: Contraction, chip: Chip) -> bool:
    """Schedule a contraction that reads through windows; False if it is none, or refused."""
    seen = windowed(draft, found)
    if seen is None:
        return False
    trial = draft.fork()
    if not _Plan(trial, found, seen, chip).run():
        return False
    draft.adopt(trial)
    return True


def ungroup(draft: Draft, name: str) -> str:
    """Cut parallel axes of the nest `name` into groups where reads take `axis // size`: in a
    grouped convolution each group of output channels has input channels of its own. The name of
    the nest after."""
    for loop in parallel_prefix(draft.loop(name)):
        axis = loop.axis.name
        sizes = {
            int(c.value)
            for n in walk(loop)
            if isinstance(n, Read)
            for index in n.indices
            for e in walk(index)
            if isinstance(e, Op) and e.name == "floordiv" and e.args[0] == Var(axis)
            and isinstance(c := e.args[1], Const) and int(c.value) > 1
        }  # fmt: skip
        if len(sizes) == 1:
            before = set(draft.loop_names())
            if draft.attempt("split", axis, *sizes) and axis == name:
                (name,) = set(draft.loop_names()) - before
    return name


class _Plan:
    """The steps of one convolution, on a draft of its own."""

    def __init__(self, draft: Draft, found: Contraction, seen: Windowed, chip: Chip) -> None:
        self.draft, self.found, self.seen, self.chip = draft, found, seen, chip
        self.rows = seen.extents[seen.channel]
        self.lines = 1 if seen.line is None else seen.extents[seen.line]
        self.columns = seen.extents[seen.column]
        self.block = min(
            blocks(chip), key=lambda b: cycles(b, self.rows, self.lines, self.columns, chip)
        )

    def run(self) -> bool:
        d, s = self.draft, self.seen
        grid = [*s.outer]
        parts = self.parts()
        line_block = self.cut(s.line, parts) if s.line and parts < self.lines else None
        tiles = []
        if s.line is not None and self.block.lines > 1:
            tiles.append(self.cut(s.line, self.block.lines))
        tiles.append(self.cut(s.column, self.block.vectors * self.chip.lanes))
        grid += [line_block] if line_block else []
        lines = [s.line] if s.line is not None and self.block.lines > 1 else []
        tiles = ([s.line] if s.line is not None and not lines else []) + tiles
        inner = [s.channel, *lines, s.column]
        if not d.attempt("reorder", (*grid, *tiles, *inner)):
            return False
        nests = self.channels(inner)
        epilogues = []
        for names, reduction in nests:
            made = self.accumulate(names, reduction)
            if made is None:
                return False
            epilogues += made
        stage_at = grid[-1] if grid else None
        if stage_at is not None:
            self.stage(stage_at)
        for name in [n for names, _ in nests for n in names]:
            d.attempt("unmask", name)
        for name in [*(n for names, _ in nests for n in names), *epilogues]:
            d.attempt("bind", name, "tile")
        spread(d, grid)
        return True

    def parts(self) -> int:
        """Output rows that are staged together: as many as half of the L2 cache holds."""
        s = self.seen
        if s.line_dim is None:
            return 1
        width = self.columns * s.strides[s.column_dim] + s.taps[s.column_dim]
        channels = prod(s.extents[a] for a in s.reduction) // max(
            1, prod(t + 1 for t in s.taps.values())
        )
        line = 4 * max(1, channels) * width * s.strides[s.line_dim]
        most = max(1, (self.chip.l2 // 2) // line)
        even = ceil(self.lines / ceil(self.lines / most))
        return ceil(even / self.block.lines) * self.block.lines

    def cut(self, name: str, factor: int, **options: str) -> str:
        """Split a loop; the name of the loop around."""
        before = set(self.draft.loop_names())
        self.draft.take("split", name, factor, **options)
        made = [n for n in self.draft.loop_names() if n not in before]
        return made[0]

    def channels(self, inner: list[str]) -> list[tuple[list[str], list[str]]]:
        """Blocks of channels, and a nest of its own for those left: the loops of each block, and
        of its reduction."""
        d, reduction = self.draft, list(self.found.reduction)
        size = min(self.block.rows, self.rows)
        before = d.loop_names()
        if self.rows % size == 0:
            self.cut(inner[0], size)
            return [(inner, reduction)]
        outer = self.cut(inner[0], size, tail="peel")
        rest = [n for n in d.loop_names() if n not in before and n != outer]
        return [(inner, reduction), (rest[: len(inner)], rest[len(inner) :])]

    def accumulate(self, names: list[str], reduction: list[str]) -> list[str] | None:
        """Accumulators for the block, the reduction around it; the loops of what follows."""
        d, before = self.draft, set(self.draft.loop_names())
        after = reduction[0]
        for name in reversed(names):
            if not d.attempt("fission", name, after=after):
                return None
            after = name
        made = [n for n in d.loop_names() if n not in before]
        return made if d.attempt("reorder", (*reduction, *names)) else None

    def stage(self, loop: str) -> None:
        """Copy the windows of the input, padding and all, into cache; where lanes would stride,
        parted into the columns that are read together."""
        d, s = self.draft, self.seen
        before, had = set(d.loop_names()), {b.name for b in buffers_of(d.kernel.body)}
        stride = s.strides[s.column_dim]
        packing = {"pack": (s.column_dim, stride)} if stride > 1 else {}
        if not d.attempt("stage", s.tensor, loop, "local", **packing):
            return
        made = [n for n in d.loop_names() if n not in before]
        (buffer,) = [b for b in buffers_of(d.kernel.body) if b.name not in had]
        if buffer.type != self.found.update.value.dtype:
            d.attempt("cast_storage", buffer.name, self.found.update.value.dtype.name)
        if stride > 1:
            rank = len(buffer.shape)
            d.attempt("layout", buffer.name, order=(*range(1, rank), 0))
            made[-2:] = reversed(made[-2:])
            d.attempt("reorder", tuple(made[-2:]))
        width = constant_extent(d, made[-1])
        if width is not None and width > LANES_READ:
            self.cut(made[-1], LANES_READ)
        d.attempt("bind", made[-1], "tile")
