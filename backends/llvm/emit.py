"""Scheduled IR to LLVM IR: one exported function for a kernel, one internal one for each top-level
`grid` nest.

`i32 kir_<kernel>(pointers of inputs and outputs, i64 dims, i32 threads)` returns 0. A `grid` nest
is flattened into one range of iterations, which `Machine.grid` says how to spread. Of a nest of
`tile` loops one axis becomes the lanes of vectors and the others are unrolled. All else is loops.

A checked build takes one more pointer after the outputs, to an error cell of four i64, zeros before
the call. Each index that is read from memory is compared with its extent; where it is outside, the
access is left out, and the first of all threads to meet such a place records it: 1 + the position
of the access in `walk(kernel)`, the dim, the index, the extent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from kir.backends.llvm import dots, scratch
from kir.backends.llvm.affine import (
    coefficient,
    conjuncts,
    mentions,
    names,
    product,
    reads_memory,
    worst_case,
)
from kir.backends.llvm.bodies import accumulates, assigns, launches
from kir.backends.llvm.builder import (
    COLD,
    COPIES_WEIGHT,
    SUMS_WEIGHT,
    Builder,
    Module,
    V,
    integer,
)
from kir.backends.llvm.machine import Machine
from kir.backends.llvm.memory import AHEAD_BYTES, CELL, Accesses
from kir.backends.llvm.paired import paired_tiles
from kir.backends.llvm.region import Region
from kir.backends.llvm.scalars import memory
from kir.backends.llvm.scope import Lane, Scope, Tensor
from kir.backends.llvm.turned import turned
from kir.dtypes import i64
from kir.errors import UnsupportedError
from kir.ir import (
    Buffer,
    Const,
    Define,
    Expr,
    If,
    Kernel,
    Loop,
    Node,
    Op,
    Read,
    Reduce,
    Stmt,
    Store,
    const,
    substitute,
    transform,
    walk,
)
from kir.ops import op

MAX_LANES = 64
UNROLL_LIMIT = 32
"""Copies of a tile's body; beyond it, outer axes become loops."""
EXPLICIT_UNROLL_LIMIT = 256
FILE_BYTES = 4096
"""A buffer of at most this size may end up in registers, and is initialised store by store, which
lets LLVM see it; what is larger cannot, and a loop does it."""
PADDING = MAX_LANES
"""Elements after each private buffer, so that whole vectors may be read at its end."""


@dataclass(frozen=True)
class Emitted:
    """LLVM IR as text, the exported symbol, and what was decided on the way."""

    text: str
    symbol: str
    regions: int


def emit(
    kernel: Kernel,
    machine: Machine,
    checked: bool = False,
    module: Module | None = None,
    symbol: str | None = None,
) -> Emitted:
    """LLVM IR of a scheduled kernel; UnsupportedError where a construct has no lowering. With a
    `module`, internal and under another `symbol`; the text is empty then."""
    for node in walk(kernel):
        if isinstance(node, Define | Reduce):
            raise UnsupportedError(
                f"`{kernel.name}` is a specification, not a schedule",
                hint="apply the rewrite `loops` first",
                kernel=kernel,
                node=node,
            )
    try:
        return KernelEmitter(kernel, machine, checked, module, symbol).run()
    except UnsupportedError as error:
        raise error.at(kernel=kernel) from None


def symbol_of(kernel: Kernel) -> str:
    return f"kir_{kernel.name}"


class KernelEmitter:
    """The entry function and, made on the way, the parallel regions: in a module of their own, or
    under another `symbol`, and internal, in one that is given."""

    def __init__(
        self,
        kernel: Kernel,
        machine: Machine,
        checked: bool = False,
        module: Module | None = None,
        symbol: str | None = None,
    ) -> None:
        self.kernel, self.machine = kernel, machine
        self.places = {id(n): k for k, n in enumerate(walk(kernel))} if checked else None
        self.module = module or Module(machine.triple)
        self.linkage = "internal " if module is not None else ""
        self.symbol = symbol or symbol_of(kernel)
        self.regions = 0
        pairs = machine.unaligned and not checked and "bf16" not in machine.dots
        self.paired = paired_tiles(kernel) if pairs else frozenset[int]()

    def run(self) -> Emitted:
        b = Builder(self.module)
        scope = Scope()
        arguments = []
        for p in self.kernel.params:
            pointer = V(f"%p.{p.name}", "ptr")
            output = p in self.kernel.outputs
            scope.tensors[p.name] = Tensor(pointer, p.type, p.shape, output=output, param=True)
            arguments.append(f"ptr noalias{'' if output else ' readonly'} {pointer.ref}")
        if self.places is not None:
            cell = V(f"%p.{CELL}", "ptr")
            scope.tensors[CELL] = Tensor(cell, i64, (const(4),))
            arguments.append(f"ptr noalias {cell.ref}")
        for d in self.kernel.dims:
            known = d.default is not None
            scope.values[d.name] = integer(d.default or 0) if known else V(f"%d.{d.name}", "i64")
            arguments.append(f"i64 %d.{d.name}")
        arguments.append("i32 %threads")
        code = Code(self, b, scope, top=True)
        code.block(self.kernel.body)
        head = f"define {self.linkage}i32 @{self.symbol}({', '.join(arguments)})"
        b.define(head, COLD if all(map(launches, self.kernel.body)) else "nounwind", "ret i32 0")
        if self.linkage:
            return Emitted("", self.symbol, self.regions)
        scratch.finish(self.module)
        return Emitted(self.module.text(), self.symbol, self.regions)


class Code:
    """Statements of one function. `top`: not inside a parallel region, so `grid` makes one."""

    def __init__(self, owner: KernelEmitter, b: Builder, scope: Scope, top: bool) -> None:
        self.owner, self.machine, self.b, self.scope, self.top = owner, owner.machine, b, scope, top
        self.access = Accesses(b, owner.machine, scope, owner.places)
        self.fixed = set(scope.values)
        """Names whose values are known at the function's entry."""

    def inside(self, b: Builder, scope: Scope) -> Code:
        """The same for the function of a parallel region."""
        return Code(self.owner, b, scope, top=False)

    # --- statements

    def block(self, body: Sequence[Stmt]) -> None:
        """Statements in order; buffers made here leave the scope, and memory, at the end."""
        before, releases = dict(self.scope.tensors), list[str]()
        for s in body:
            release = self.statement(s)
            if release is not None:
                releases.append(release)
        self.b.lines += reversed(releases)
        self.scope.tensors.clear()
        self.scope.tensors.update(before)

    def statement(self, s: Stmt) -> str | None:
        try:
            if isinstance(s, Buffer):
                return self._buffer(s)
            if isinstance(s, Store):
                self.access.store(s)
            elif isinstance(s, If):
                with self.where([s.condition]):
                    self.block(s.body)
            elif isinstance(s, Loop):
                self._loop(s)
            return None
        except UnsupportedError as error:
            raise error.at(node=s) from None

    @contextmanager
    def where(self, conditions: Sequence[Expr]) -> Iterator[None]:
        """Code under conditions: uniform ones branch, others narrow the mask of the lanes.

        They are met in order, so a condition that reads memory is read only where all before it
        hold. Code under a mask runs only where some lane does.
        """
        parts = [c for e in conditions for c in conjuncts(e)]
        if not parts:
            yield
            return
        late = next((k for k, c in enumerate(parts) if k and reads_memory(c)), len(parts))
        now, then = parts[:late], parts[late:]
        b, outer = self.b, self.scope.mask
        limits = {id(c): self._lane_limit(c) for c in now}
        counts = [v for v in limits.values() if v is not None]
        values = [self.access.value(c) for c in now if limits[id(c)] is None]
        lanewise = [v for v in values if v.lanes]
        with b.when(b.logical_and([v for v in values if not v.lanes])):
            count = self._least(counts)
            with b.when(None if count is None else b.icmp("sgt", count, integer(0))):
                masks = lanewise if count is None else [self._first_lanes(count), *lanewise]
                if outer is not None and masks:
                    masks.insert(0, outer)
                mask = b.logical_and(masks)
                simple = mask is None or (outer is None and not lanewise)
                with b.when(None if simple or mask is None else b.any(mask)):
                    self.scope.mask = mask if mask is not None else outer
                    with self.where(then):
                        yield
                    self.scope.mask = outer

    def _lane_limit(self, condition: Expr) -> V | None:
        """For `index < bound`, where `index` goes up by one per lane: how many lanes it lets run.
        None for other conditions."""
        lane = self.scope.lane
        if lane is None or reads_memory(condition):
            return None
        match condition:
            case Op("lt" | "le", (left, right)):
                pass
            case Op("gt" | "ge", (right, left)):
                pass
            case _:
                return None
        step, other = coefficient(left, lane.name), coefficient(right, lane.name)
        if step is None or other is None or step - other != 1:
            return None
        values = [self.access.at_first_lane(e) for e in (right, left)]
        limit = self.b.op("sub", *values)
        closed = isinstance(condition, Op) and condition.name in ("le", "ge")
        return self.b.op("add", limit, integer(1)) if closed else limit

    def _least(self, counts: Sequence[V]) -> V | None:
        if not counts:
            return None
        least = counts[0]
        for other in counts[1:]:
            least = self.b.intrinsic("llvm.smin", least, other)
        return least

    def _first_lanes(self, count: V) -> V:
        """The mask of the first `count` lanes."""
        b, lane = self.b, self.scope.lane
        assert lane is not None
        kept = b.intrinsic("llvm.smin", count, integer(lane.count))
        return b.icmp("slt", b.iota(lane.count, "i32"), b.convert("trunc", kept, "i32"))

    # --- buffers

    def _buffer(self, s: Buffer) -> str | None:
        """Declare and initialise; gives what frees its memory at the block's end, if anything."""
        lane = self.scope.lane
        lanes = lane.count if lane is not None else 0
        freed = None
        shape = [n.value if isinstance(n, Const) else None for n in s.shape]
        count: int | None = max(1, lanes)
        for n in shape:
            count = None if count is None or n is None else count * int(n)
        small = count is not None and count * s.type.bytes <= self.machine.stack_bytes
        if count is not None and small and s.space != "global":
            pointer = self.b.alloca(memory(s.type), count + PADDING, 64)
        else:
            pointer, freed = self._scratch(s, max(1, lanes))
        padded = s.space != "global"
        tensor = Tensor(pointer, s.type, s.shape, padded=padded, lanes=lanes)
        self.scope.tensors[s.name] = tensor
        if s.init is not None:
            self._initialise(s, tensor, count, max(1, lanes))
        return freed

    def _scratch(self, s: Buffer, lanes: int) -> tuple[V, str | None]:
        """Memory of run-time size: made at the function's entry where its size is known there."""
        size = [const(s.type.bytes * lanes), *s.shape]
        hoisted = all(name in self.fixed for e in s.shape for name in names(e)) and not any(
            reads_memory(e) for e in s.shape
        )
        if not hoisted:
            pointer, release = self._allocate(self.access.uniform(product(size)))
            return pointer, release
        with self.b.in_prologue():
            pointer, release = self._allocate(self.access.uniform(product(size)))
        self.b.epilogue.append(release)
        return pointer, None

    def _allocate(self, size: V) -> tuple[V, str]:
        """A block, and the instruction that gives it back."""
        b = self.b
        if self.machine.local == "arena":
            pointer = b.call("kir_local_alloc", "ptr", 0, size, attributes="nounwind")
            b.module.declare("kir_local_free", "void", ["ptr"], "nounwind")
            return pointer, f"  call void @kir_local_free({pointer})"
        padded = b.op("add", size, integer(PADDING * 8))
        slot, pointer = scratch.take(b, padded, self.machine.grid == "gomp")
        return pointer, scratch.give(slot, pointer)

    def _initialise(self, s: Buffer, t: Tensor, count: int | None, lanes: int) -> None:
        assert s.init is not None
        b = self.b
        value = self.access.scalars.to_memory(self.access.value(s.init), s.type)
        ty, width = memory(s.type), lanes
        if count is not None and not value.lanes:
            last = s.shape[-1] if s.shape else None
            if isinstance(last, Const) and 0 < int(last.value) * lanes <= MAX_LANES:
                width = int(last.value) * lanes
        if count is not None:
            row = b.splat(value, width if width > 1 or lanes > 1 or t.lanes else 0)
            if count * s.type.bytes <= FILE_BYTES or count == width:
                for place in range(0, count, width):
                    b.store(row, b.gep(t.pointer, ty, integer(place)), s.type.bytes)
                return
            with b.loop(integer(0), integer(count // width)) as k:
                start = b.op("mul", k, integer(width))
                b.store(row, b.gep(t.pointer, ty, start), s.type.bytes)
            return
        with b.loop(integer(0), self.access.uniform(product(list(s.shape)))) as k:
            start = b.op("mul", k, integer(lanes))
            row = b.splat(value, lanes if t.lanes else 0)
            b.store(row, b.gep(t.pointer, ty, start), s.type.bytes)

    # --- loops

    def _loop(self, s: Loop) -> None:
        if s.kind == "grid" and self.top and self.scope.lane is None:
            Region(self, s).write()
        elif s.kind == "tile":
            self._tile(s)
        elif s.kind == "unroll" and _extent(s) is not None:
            self._unrolled(s)
        else:
            self._counted(s)

    def _counted(self, s: Loop) -> None:
        end = self.access.value(s.axis.extent)
        if end.lanes:
            raise UnsupportedError("the extent of a loop differs from lane to lane", node=s)
        where = []
        for c in (c for e in s.where for c in conjuncts(e)):
            limit = self.limit(s, c)
            if limit is None:
                where.append(c)
            else:
                end = self.b.intrinsic("llvm.smin", end, limit)
        before = self.scope.ahead
        if not before and self.scope.grid:
            self.scope.ahead = AHEAD_BYTES.get(dict(s.hints).get("ahead", 0), 0)
        most = SUMS_WEIGHT if accumulates(s) else COPIES_WEIGHT
        loop = self.b.loop(integer(0), end, unroll=most)
        with loop as index, self.bound(s, index), self.where(where):
            self.block(s.body)
        self.scope.ahead = before

    def limit(self, s: Loop, condition: Expr) -> V | None:
        """Where the loop may end early: the first index for which `index + a < b` fails."""
        if not (isinstance(condition, Op) and condition.name == "lt") or reads_memory(condition):
            return None
        name = s.axis.name
        left, right = condition.args
        step, other = coefficient(left, name), coefficient(right, name)
        if step is None or other is None or step - other != 1:
            return None
        if self.scope.lane is not None and mentions(condition, self.scope.lane.name):
            return None
        start: dict[str, Expr] = {name: const(0)}
        here = [self.access.value(substitute(e, start)) for e in (right, left)]
        return self.b.op("sub", here[0], here[1])

    def _unrolled(self, s: Loop) -> None:
        extent = _extent(s)
        if extent is None or extent > EXPLICIT_UNROLL_LIMIT:
            self._counted(s)
            return
        for k in range(extent):
            with self.bound(s, integer(k)), self.where(s.where):
                self.block(s.body)

    @contextmanager
    def bound(self, s: Loop, index: V) -> Iterator[None]:
        """The loop's index stands for `index`."""
        name = s.axis.name
        self.scope.values[name] = index
        self.scope.extents[name] = _extent(s)
        yield
        del self.scope.values[name], self.scope.extents[name]

    # --- tiles

    def _tile(self, s: Loop) -> None:
        """A nest of tiles: with a test in front that all of it is inside, where that can be."""
        nest = [s]
        while len(nest[-1].body) == 1 and _is_tile(nest[-1].body[0]):
            nest.append(nest[-1].body[0])  # type: ignore[arg-type]
        extents = [_extent(n) for n in nest]
        if None in extents:
            raise UnsupportedError("a `tile` needs a constant extent", node=s)
        if any(_is_tile(n) for x in nest[-1].body for n in walk(x)) or self.scope.lane is not None:
            self._outer_tiles(nest, 0)
            return
        if dots.write(self, nest):
            return
        lane = self._choose_lane(nest)
        where = tuple(c for n in nest for c in n.where)
        box = {n.axis.name: e for n, e in zip(nest, extents, strict=True) if e is not None}
        corners = [worst_case(c, box) for e in where for c in conjuncts(e)]
        bounds = self._padded_bounds(nest[-1].body, box)
        corners += bounds
        tests = [c for c in corners if c is not None]
        if not corners or len(tests) != len(corners) or any(reads_memory(c) for c in tests):
            self._nest(nest, lane, where)
            return
        inside = nest if not bounds else [*nest[:-1], _without_fills(nest[-1])]
        full = self.b.logical_and([self.access.value(c) for c in tests])
        if full is None or full.constant == 0:
            self._nest(inside if full is None else nest, lane, () if full is None else where)
            return
        fast, slow, done = (self.b.fresh(x) for x in ("full", "partial", "tiled"))
        self.b.branch(full, fast, slow)
        self.b.label(fast)
        self._nest(inside, lane, ())
        self.b.jump(done)
        self.b.label(slow)
        self._nest(nest, lane, where)
        self.b.jump(done)
        self.b.label(done)

    def _padded_bounds(self, body: Sequence[Stmt], box: Mapping[str, int]) -> list[Expr | None]:
        """Of a copy that fills what is out of bounds: the tests at the corners of the tile for all
        of it to be inside. Empty for other bodies, and where only reading can tell."""
        copy = body[0] if len(body) == 1 else None
        if not isinstance(copy, Store) or copy.op is not None or self.owner.places is not None:
            return []
        reads = [n for n in walk(copy.value) if isinstance(n, Read) and n.fill is not None]
        if len(reads) != 1:
            return []
        shape = self.scope.tensors[reads[0].tensor].shape
        tests: list[Expr | None] = []
        for index, extent in zip(reads[0].indices, shape, strict=True):
            for c in (op("ge", index, const(0)), op("lt", index, extent)):
                tests.append(worst_case(c, box))
        return [] if None in tests else tests

    def _outer_tiles(self, nest: list[Loop], at: int) -> None:
        """Tiles around other tiles: loops, unrolled where small."""
        if at == len(nest):
            self.block(nest[-1].body)
            return
        s = nest[at]
        extent = _extent(s) or 0
        if extent > UNROLL_LIMIT:
            loop = self.b.loop(integer(0), integer(extent), unroll=COPIES_WEIGHT)
            with loop as i, self.bound(s, i), self.where(s.where):
                self._outer_tiles(nest, at + 1)
            return
        for k in range(extent):
            with self.bound(s, integer(k)), self.where(s.where):
                self._outer_tiles(nest, at + 1)

    def _choose_lane(self, nest: list[Loop]) -> int | None:
        """The axis to spread over lanes: that of most unit steps; the innermost of equals. None
        where a loop inside has an extent that differs from lane to lane."""
        best, best_score = None, -(10**6)
        for k, s in enumerate(nest):
            name = s.axis.name
            if any(_extent_mentions(x, name) for x in nest[-1].body):
                continue
            score = sum(self._lane_score(n, name) for x in nest[-1].body for n in walk(x))
            if (_extent(s) or 0) < 4:
                score -= 8
            if score >= best_score:
                best, best_score = k, score
        return best

    def _lane_score(self, node: Node, name: str) -> int:
        if not isinstance(node, Read | Store):
            return 0
        steps = [coefficient(i, name) for i in node.indices]
        if all(step == 0 for step in steps):
            return -2 if isinstance(node, Store) else 1
        return 2 if steps[-1] == 1 and all(step == 0 for step in steps[:-1]) else -3

    def _nest(self, nest: list[Loop], lane: int | None, where: Sequence[Expr]) -> None:
        outer = [s for k, s in enumerate(nest) if k != lane]
        copies, unrolled = 1, 0
        for s in reversed(outer):
            if copies * max(1, _extent(s) or 0) > UNROLL_LIMIT or lane is None:
                break
            if where and assigns(nest[-1].body):  # a rare part, with no accumulators to unroll for
                break
            copies *= max(1, _extent(s) or 0)
            unrolled += 1
        loops = len(outer) - unrolled

        def level(k: int) -> None:
            if k == len(outer):
                if lane is None:
                    with self.where(where):
                        self.block(nest[-1].body)
                else:
                    self._lanes(nest[lane], nest[-1].body, where)
            elif k < loops:
                end = integer(_extent(outer[k]) or 0)
                loop = self.b.loop(integer(0), end, unroll=COPIES_WEIGHT)
                with loop as index, self.bound(outer[k], index):
                    level(k + 1)
            elif k + 1 == len(outer) and lane is not None and not where:
                with turned(self, nest[lane], outer[k], nest[-1].body):
                    copies_of(k)
            else:
                copies_of(k)

        def copies_of(k: int) -> None:
            for i in range(_extent(outer[k]) or 0):
                with self.bound(outer[k], integer(i)):
                    level(k + 1)

        level(0)

    def _lanes(self, s: Loop, body: Sequence[Stmt], where: Sequence[Expr]) -> None:
        """One tile axis as vectors: strips of equal width, and a narrower last one."""
        extent = _extent(s) or 0
        width = min(extent, self._strip(body, extent))
        if width == 0:
            return
        strips = extent // width
        if strips == 1:
            self._strip_of_lanes(s, body, where, integer(0), width)
        else:
            with self.b.loop(integer(0), integer(strips), unroll=COPIES_WEIGHT) as k:
                start = self.b.op("mul nsw", k, integer(width))
                self._strip_of_lanes(s, body, where, start, width)
        if extent % width:
            start = integer(strips * width)
            self._strip_of_lanes(s, body, where, start, extent % width)

    def _strip(self, body: Sequence[Stmt], extent: int) -> int:
        """Lanes of a vector: the whole axis up to MAX_LANES, else four registers of f32."""
        return extent if extent <= MAX_LANES else max(8, self.machine.vector_bits // 8)

    def _strip_of_lanes(
        self, s: Loop, body: Sequence[Stmt], where: Sequence[Expr], start: V, count: int
    ) -> None:
        scope, name = self.scope, s.axis.name
        scope.lane, scope.paired = Lane(name, start, count), id(s) in self.owner.paired
        scope.extents[name], scope.factors[name] = _extent(s), count
        with self.where(where):
            self.block(body)
        scope.lane, scope.paired = None, False
        del scope.extents[name], scope.factors[name]


def _extent(s: Loop) -> int | None:
    return int(s.axis.extent.value) if isinstance(s.axis.extent, Const) else None


def _without_fills(s: Loop) -> Loop:
    """The loop over a copy, all of whose reads are in bounds."""

    def visit(n: Node) -> Node | None:
        return replace(n, fill=None) if isinstance(n, Read) and n.fill is not None else None

    return transform(s, visit)


def _is_tile(node: Node) -> bool:
    return isinstance(node, Loop) and node.kind == "tile"


def _extent_mentions(s: Stmt, name: str) -> bool:
    for n in walk(s):
        if isinstance(n, Loop) and (mentions(n.axis.extent, name) or reads_memory(n.axis.extent)):
            return True
        if isinstance(n, Buffer) and any(mentions(e, name) for e in n.shape):
            return True
    return False
