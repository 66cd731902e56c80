"""Windows (convolution, pooling): blocks of output rows by whole vectors of output columns, over
the windows of the input, staged with their padding so that no mask is left inside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil, prod

from kir.dtypes import DType
from kir.ir import Loop, Read, Store, Var, walk
from kir.plan.common import (
    Draft,
    chain,
    constant_extent,
    contiguous_score,
    innermost_loops,
    parallel_prefix,
)
from kir.plan.cpu.chip import Chip
from kir.plan.cpu.loops import spread, tile
from kir.rewrites.base import buffers_of, free_vars
from kir.simplify import linear

FMA_LATENCY = 4
"""Cycles until a result of a multiply-add can be used; two may start in each cycle."""
LOAD = 0.15
"""Cycles by which a load, from caches of all levels, delays the multiply-adds; as measured."""
COPIED = 64
"""Lanes of a copy's tile, at most."""
USES = 12
"""Vectors of output that a weight is to serve at least, for its conversion and copy (some four
cycles) to cost less than conversions at each use."""
PARTS = 4
"""Parts of a line, by column modulo the stride, whose copies are written out, at most."""
UNROLLED = 32
"""Taps of a window that are written out, at most."""


@dataclass(frozen=True)
class Windows:
    """A reduction over windows of `tensor`: what the plan needs to know of its nest.

    `line` (if there is one) and `column` are the axes of the output's rows and columns, `channel`
    an axis on which the windows do not depend (None: there is none), `outer` the other parallel
    axes. `strides` and `taps` say by dim of the tensor how far it is from one window to the next,
    and how many elements beyond one a window has.
    """

    tensor: str
    type: DType
    outer: tuple[str, ...]
    channel: str | None
    line: str | None
    column: str
    reduction: tuple[str, ...]
    extents: dict[str, int]
    strides: dict[int, int]
    taps: dict[int, int]
    line_dim: int | None
    column_dim: int

    @property
    def overlap(self) -> bool:
        """Whether some element is in more than one window."""
        return any(self.taps[d] >= s for d, s in self.strides.items())

    def size(self, axis: str | None) -> int:
        return 1 if axis is None else self.extents[axis]


def windows_of(
    draft: Draft,
    read: Read,
    parallel: Sequence[str],
    reduction: Sequence[str],
    channel: str | None,
) -> Windows | None:
    """How `read` goes through windows; None if its last dim does not go along the last parallel
    axis, or an extent is unknown."""
    extents = {a: constant_extent(draft, a) for a in (*parallel, *reduction)}
    sizes = {a: e for a, e in extents.items() if e}
    if len(sizes) != len(extents):
        return None
    strides, taps, axis_of = dict[int, int](), dict[int, int](), dict[int, str]()
    for d, index in enumerate(read.indices):
        form = linear(index).terms
        inside = {t.name: c for t, c in form.items() if isinstance(t, Var)}
        if len(inside) != len(form):
            return None
        mine = [a for a in parallel if a in inside]
        if not mine:
            continue
        if len(mine) > 1 or inside[mine[0]] < 1:
            if any(a in inside for a in parallel[-2:]):
                return None
            continue
        strides[d], axis_of[d] = inside[mine[0]], mine[0]
        taps[d] = sum(abs(c) * (sizes[a] - 1) for a, c in inside.items() if a in reduction)
    column_dim = len(read.indices) - 1
    if axis_of.get(column_dim) != parallel[-1]:
        return None
    line_dim = column_dim - 1 if axis_of.get(column_dim - 1) not in (None, channel) else None
    line = axis_of[line_dim] if line_dim is not None else None
    outer = tuple(a for a in parallel if a not in (line, parallel[-1], channel))
    return Windows(read.tensor, read.type, outer, channel, line, parallel[-1], tuple(reduction),
                   sizes, strides, taps, line_dim, column_dim)  # fmt: skip


@dataclass(frozen=True)
class Block:
    """A register block: channels by output rows by vectors of output columns."""

    rows: int
    lines: int
    vectors: int


def blocks(chip: Chip) -> list[Block]:
    """The register blocks that fit: accumulators, the vectors of the input, a weight, and one
    register to spare."""
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


class WindowPlan:
    """The steps for one nest over windows, on a draft of its own."""

    def __init__(
        self,
        draft: Draft,
        seen: Windows,
        accumulates: DType,
        chip: Chip,
        weights: Read | None = None,
    ) -> None:
        self.draft, self.seen, self.chip, self.accumulates = draft, seen, chip, accumulates
        self.weights = weights
        rows, lines, columns = map(seen.size, (seen.channel, seen.line, seen.column))
        fitting = [b for b in blocks(chip) if seen.channel or lines % b.lines == 0]
        self.block = min(fitting, key=lambda b: cycles(b, rows, lines, columns, chip))

    def run(self) -> bool:
        """Take the steps; False where one is refused that the others need."""
        d, s = self.draft, self.seen
        part, lines = self.part(), self.block.lines > 1
        grid = [*s.outer]
        if s.line and part < s.size(s.line):
            grid.append(self.cut(s.line, part))
        tiles = [self.cut(s.line, self.block.lines) if lines else s.line] if s.line else []
        tiles.append(self.cut(s.column, self.block.vectors * self.chip.lanes))
        inner = [*([s.channel] if s.channel else []), *([s.line] if s.line and lines else [])]
        inner.append(s.column)
        if not d.attempt("reorder", (*grid, *tiles, *inner)):
            return False
        nests = self.channels(inner) if s.channel else [(inner, list(s.reduction))]
        kinds = [n for names, _ in nests for n in names]
        for names, reduction in nests:
            made = self.accumulate(names, reduction)
            if made is None:
                return False
            kinds += made
        if s.overlap or s.channel:
            self.stage(grid[-1] if grid else tiles[0])
        if self.weights is not None and grid:
            self.pack(self.weights, grid[-1])
        for names, _ in nests:
            for name in names:
                d.attempt("unmask", name)
        for name in kinds:
            d.attempt("bind", name, "tile")
        taps = [s.size(a) for a in s.reduction]
        if s.channel is None and prod(taps) <= UNROLLED:
            for name in s.reduction:
                d.attempt("bind", name, "unroll")
        spread(d, grid)
        return True

    def part(self) -> int:
        """Output rows that are staged together: as many as half of the L2 cache holds."""
        s = self.seen
        if s.line_dim is None:
            return 1
        width = s.size(s.column) * s.strides[s.column_dim] + s.taps[s.column_dim]
        taps = prod(t + 1 for t in s.taps.values())
        deep = max(1, prod(s.size(a) for a in s.reduction) // taps)
        line = 4 * deep * width * s.strides[s.line_dim]
        cache = self.chip.l1 if s.channel is None else self.chip.l2 // 2
        lines, most = s.size(s.line), max(1, cache // line)
        even = ceil(lines / ceil(lines / most))
        return ceil(even / self.block.lines) * self.block.lines

    def cut(self, name: str, factor: int, **options: str) -> str:
        """Split a loop; the name of the loop around."""
        before = set(self.draft.loop_names())
        self.draft.take("split", name, factor, **options)
        return next(n for n in self.draft.loop_names() if n not in before)

    def channels(self, inner: list[str]) -> list[tuple[list[str], list[str]]]:
        """Blocks of channels, and a nest of its own for those left: the loops of each block, and
        of its reduction."""
        d, s, reduction = self.draft, self.seen, list(self.seen.reduction)
        size = min(self.block.rows, s.size(s.channel))
        before = d.loop_names()
        if s.size(s.channel) % size == 0:
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
        if buffer.type != self.accumulates:
            d.attempt("cast_storage", buffer.name, self.accumulates.name)
        if stride > 1:
            d.attempt("layout", buffer.name, order=(*range(1, len(buffer.shape)), 0))
            made[-2:] = reversed(made[-2:])
            d.attempt("reorder", tuple(made[-2:]))
            if stride <= PARTS:  # which of the parts it is decides where the padding lies
                d.attempt("bind", made[-2], "unroll")
        width = constant_extent(d, made[-1])
        rest = []
        if width is not None and width > COPIED:
            before = set(d.loop_names())
            outer = self.cut(made[-1], COPIED, tail="peel")
            rest = [n for n in d.loop_names() if n not in before and n != outer]
        for name in (made[-1], *rest):
            d.attempt("bind", name, "tile")

    def pack(self, weights: Read, loop: str) -> None:
        """Copy the weights into panels of channels, where a channel's do not lie together, or are
        of a narrower type that would be converted for each use of many."""
        d, s, axes = self.draft, self.seen, [free_vars(i) for i in weights.indices]
        channel = next((d for d, mine in enumerate(axes) if s.channel in mine), 0)
        apart = any(a in mine for mine in axes[:channel] for a in s.reduction)
        uses = self.part() * s.size(s.column) // self.chip.lanes
        if not apart and (weights.type == self.accumulates or uses < USES):
            return
        had = {b.name for b in buffers_of(d.kernel.body)}
        panels = (channel, self.block.rows)
        if d.attempt("stage", weights.tensor, loop, "local", pack=panels):
            (buffer,) = [b for b in buffers_of(d.kernel.body) if b.name not in had]
            if buffer.type != self.accumulates:
                d.attempt("cast_storage", buffer.name, self.accumulates.name)


def windows(draft: Draft, nest: Loop, chip: Chip) -> bool:
    """Schedule a reduction over windows of a tensor, such as a pooling; False if it is none."""
    prefix = parallel_prefix(nest)
    parallel = [x.axis.name for x in prefix]
    loops = [s for s in prefix[-1].body if isinstance(s, Loop)] if prefix else []
    if len(loops) != 1:
        return False
    inside = chain(loops[0])
    reduction = [x.axis.name for x in inside]
    if len(inside[-1].body) != 1:
        return False
    (update,) = inside[-1].body
    if not isinstance(update, Store) or update.op is None or update.indices:
        return False
    axes = {parallel[-1], *reduction}
    reads = [n for n in walk(update.value) if isinstance(n, Read)]
    wide = [n for n in reads if axes & _axes(n) == axes]
    if len(wide) != 1 or any(parallel[-1] in _axes(n) for n in reads if n is not wide[0]):
        return False
    seen = windows_of(draft, wide[0], parallel, reduction, None)
    trial = draft.fork()
    if seen is None or not WindowPlan(trial, seen, update.value.dtype, chip).run():
        return False
    draft.adopt(trial)
    return True


def _axes(read: Read) -> set[str]:
    return {v for i in read.indices for v in free_vars(i)}


# --- unknown extents: lanes along the contiguous parallel axis, which walk the inner loops together


def lanes_outside(draft: Draft, name: str) -> bool:
    """Whether the last parallel axis is walked element by element, and the loops inside not."""
    loop = draft.loop(name)
    inner = [contiguous_score(x) for x in innermost_loops(loop)]
    return contiguous_score(loop) > max(inner, default=0)


def lanes_around(draft: Draft, prefix: list[str], width: int) -> None:
    tile(draft, prefix[-1], width)
    around = [n for n in draft.loop_names() if n not in prefix]
    outer = prefix[:-1]
    if draft.loop(prefix[-1]).kind == "tile":
        path = [x.axis.name for x in chain(draft.loop(outer[0] if outer else around[0]))]
        outer = path[: path.index(prefix[-1])] if prefix[-1] in path else outer
    spread(draft, outer)
