"""How elements are addressed, loaded, stored and updated, lanes included."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from kir.backends.llvm import paired
from kir.backends.llvm.affine import coefficient, mentions, multiple_of, reads_memory, same_floats
from kir.backends.llvm.builder import Builder, V, integer
from kir.backends.llvm.machine import Machine
from kir.backends.llvm.scalars import Scalars, memory
from kir.backends.llvm.scope import Address, Scope, Tensor, exclusive
from kir.dtypes import NARROW_FLOATS, DType, f32, i64
from kir.errors import UnsupportedError
from kir.ir import Bitcast, Cast, Const, Expr, Op, Read, Store, Var, const, walk
from kir.ops import identity

STRIDES = range(2, 5)
"""Steps from lane to lane for which whole vectors are read, and the lanes picked out of them."""
AHEAD_BYTES = {1: 1 << 17, 2: 1 << 19}
"""By the value of `hint(ahead = ...)` how far prefetching goes: so that it stays in a core's cache
until it is used, or in the next one, for loops that compute so much that this is worth it."""
LINE = 64
LEAST_STREAMED = 16
"""Bytes of the narrowest store that bypasses the cache."""

CELL = "kir.cell"
"""The name of a checked build's error cell among the tensors: no KIR name has a dot."""


class Accesses:
    """Expressions and element accesses on the current builder and scope. `places` numbers the
    kernel's nodes (by `id`) where the build is checked."""

    def __init__(
        self, b: Builder, machine: Machine, scope: Scope, places: Mapping[int, int] | None = None
    ) -> None:
        self.b, self.machine, self.scope, self.places = b, machine, scope, places
        self.scalars = Scalars(b, machine)
        self._first_lane = False
        self._known: dict[Read, V] | None = None
        """Elements that the expression of one store has read already: nothing writes meanwhile."""

    # --- expressions

    def value(self, e: Expr) -> V:
        """The SSA value of an expression: a vector where it depends on the lane."""
        if isinstance(e, Const):
            return self.scalars.constant(e)
        if isinstance(e, Var):
            return self._index(e.name)
        if isinstance(e, Read):
            return self.read(e)
        if isinstance(e, Op):
            test = self._lane_test(e)
            if test is not None:
                return test
            args = [self.value(a) for a in e.args]
            return self.scalars.op(e.name, [a.dtype for a in e.args], args)
        if isinstance(e, Cast):
            if e.type in NARROW_FLOATS and isinstance(e.value, Cast) and e.value.type == f32:
                inner = e.value.value
                if inner.dtype == e.type:  # there and back: every bf16 is a f32
                    return self.value(inner)
            return self.scalars.cast(self.value(e.value), e.value.dtype, e.type)
        if isinstance(e, Bitcast):
            return self.scalars.bitcast(self.value(e.value), e.value.dtype, e.type)
        raise UnsupportedError(
            f"{type(e).__name__} is no scheduled IR", hint="apply the rewrite `loops` first", node=e
        )

    def _index(self, name: str) -> V:
        lane = self.scope.lane
        if lane is None or name != lane.name:
            return self.scope.values[name]
        if self._first_lane:
            return lane.start
        return self.b.op("add", self.b.iota(lane.count), lane.start)

    def at_first_lane(self, e: Expr) -> V:
        """An index expression at the lane's start: a scalar."""
        before, self._first_lane = self._first_lane, True
        try:
            return self.value(e)
        finally:
            self._first_lane = before

    def _lane_test(self, e: Op) -> V | None:
        """A comparison of indices whose difference moves by one per lane: it holds for the first
        lanes, or the last ones, so that narrow numbers of lanes stand in for 64-bit indices."""
        lane, b = self.scope.lane, self.b
        if e.name not in ("lt", "le", "gt", "ge") or lane is None or self._first_lane:
            return None
        left, right = e.args if e.name in ("lt", "le") else e.args[::-1]
        if left.dtype != i64 or reads_memory(e):
            return None
        step, other = coefficient(left, lane.name), coefficient(right, lane.name)
        if step is None or other is None or abs(step - other) != 1:
            return None
        rising = step - other == 1
        ends = (right, left) if rising else (left, right)
        bound = b.op("sub", *(self.at_first_lane(x) for x in ends))
        if (e.name in ("le", "ge")) == rising:
            bound = b.op("add", bound, integer(1))
        kept = b.intrinsic("llvm.smin", bound, integer(lane.count))
        kept = b.intrinsic("llvm.smax", kept, integer(0))
        test = "slt" if rising else "sge"
        return b.icmp(test, b.iota(lane.count, "i32"), b.convert("trunc", kept, "i32"))

    def lane_coefficient(self, e: Expr) -> int | None:
        """How an index moves from lane to lane; None where irregularly."""
        if self.scope.lane is None or self._first_lane:
            return 0
        private = any(isinstance(n, Read) and self.scope.tensors[n.tensor].lanes for n in _reads(e))
        return None if private else coefficient(e, self.scope.lane.name)

    # --- addresses

    def address(self, t: Tensor, indices: Sequence[Expr]) -> Address:
        steps = [self.lane_coefficient(i) for i in indices]
        if t.lanes:
            return self._private_address(t, indices, steps)
        if all(s == 0 for s in steps):
            return Address("uniform", self.element(t, self.offset(t, indices)))
        moving = [d for d, s in enumerate(steps) if s != 0]
        after = t.shape[moving[-1] + 1 :]
        if len(moving) == 1 and steps[moving[0]] == 1 and all(_is_one(n) for n in after):
            first = [self.at_first_lane(i) for i in indices]
            return Address("row", self.element(t, self._horner(t, first)))
        return Address("spread", self.element(t, self.offset(t, indices)))

    def _private_address(
        self, t: Tensor, indices: Sequence[Expr], steps: Sequence[int | None]
    ) -> Address:
        offset = self.b.op("mul", self.offset(t, indices), integer(t.lanes))
        if all(s == 0 for s in steps):
            return Address("row", self.element(t, offset))
        return Address("spread", self.element(t, self.b.op("add", offset, self.b.iota(t.lanes))))

    def offset(self, t: Tensor, indices: Sequence[Expr]) -> V:
        return self._horner(t, [self.value(i) for i in indices])

    def _horner(self, t: Tensor, indices: Sequence[V]) -> V:
        """The row-major offset, in elements."""
        total = integer(0)
        for index, extent in zip(indices, t.shape, strict=True):
            size = self.uniform(extent)
            total = self.b.op("add nsw", self.b.op("mul nsw", total, size), index)
        return total

    def uniform(self, e: Expr) -> V:
        """A shape or extent: the same for all lanes."""
        return self.at_first_lane(e)

    def element(self, t: Tensor, offset: V) -> V:
        return self.b.gep(t.pointer, memory(t.type), offset)

    # --- reads

    def read(self, e: Read) -> V:
        t = self.scope.tensors[e.tensor]
        if self.scope.turned and e in self.scope.turned and not self._first_lane:
            axis, block = self.scope.turned[e]
            return self.scalars.from_memory(block[self.scope.values[axis].constant or 0], t.type)
        known = None if self._first_lane else self._known
        if e.fill is not None or self._is_checked(e):
            self._known = None  # what is read on the way there is read under conditions
            found = self._padded_read(t, e, e.fill or Cast(const(0), t.type))
            self._known = known
            return found
        if known is not None and e in known:
            return known[e]
        found = self._plain_read(t, e)
        if known is not None:
            known[e] = found
        return found

    def _plain_read(self, t: Tensor, e: Read) -> V:
        if self.scope.mask is None and self._stride(t, e.indices):
            return self._load_strided(t, e.indices)
        place = self.address(t, e.indices)
        if self.scope.ahead and t.outer and place.kind == "row":
            self.prefetch(t, e, place.pointer, self.lanes * t.type.bytes)
        return self.load(t, place, self.scope.mask)

    def prefetch(self, t: Tensor, e: Read, pointer: V, size: int) -> None:
        """Of as many bytes at the same place in the next iteration of the grid, where that is near
        enough."""
        b = self.b
        steps = [coefficient(i, self.scope.grid[-1]) for i in e.indices]
        if None in steps or not any(steps):
            return
        zeros = [integer(step or 0) for step in steps]
        distance = b.op("mul", self._horner(t, zeros), integer(t.type.bytes))
        near = b.icmp("ule", distance, integer(self.scope.ahead))
        distance = b.select(near, distance, integer(0))
        for offset in range(0, size, LINE):
            place = b.gep(pointer, "i8", b.op("add", distance, integer(offset)))
            kind = [integer(k, "i32") for k in (0, 2, 1)]  # a read, to the second level, of data
            b.call("llvm.prefetch.p0", "void", 0, place, *kind)

    def load(self, t: Tensor, a: Address, mask: V | None) -> V:
        """The elements at an address; where masked off, zeros of no consequence."""
        b, ty, align = self.b, memory(t.type), t.type.bytes
        lanes = self.lanes
        if a.kind == "uniform":
            bits = b.load(a.pointer, ty, 0, align)
        elif self._in_pairs(t):
            return paired.load(b, a.pointer, lanes)
        elif a.kind == "row" and (mask is None or t.padded):
            bits = b.load(a.pointer, ty, lanes, align)
        elif a.kind == "row":
            assert mask is not None
            bits = b.masked_load(a.pointer, mask, V("zeroinitializer", ty, lanes), align)
        else:
            bits = b.gather(a.pointer, mask, V("zeroinitializer", ty, lanes), align)
        return self.scalars.from_memory(bits, t.type)

    def _in_pairs(self, t: Tensor) -> bool:
        """Whether lanes that take a tensor's elements side by side find them in another order."""
        return self.scope.paired and t.param and not self._first_lane

    def _stride(self, t: Tensor, indices: Sequence[Expr]) -> int:
        """How many elements lie from lane to lane, where that is one of STRIDES; else 0."""
        steps = [self.lane_coefficient(i) or 0 if not t.lanes else 0 for i in indices]
        moving = [d for d, s in enumerate(steps) if s or self.lane_coefficient(indices[d]) is None]
        if len(moving) != 1 or not all(_is_one(n) for n in t.shape[moving[0] + 1 :]):
            return 0
        return steps[moving[0]] if steps[moving[0]] in STRIDES else 0

    def _load_strided(self, t: Tensor, indices: Sequence[Expr], bounded: bool = False) -> V:
        """All lanes, from whole vectors of which none reaches beyond the last lane's element, nor
        where `bounded` beyond the bounds of the last dim."""
        b, ty, step, lanes = self.b, memory(t.type), self._stride(t, indices), self.lanes
        first = self.element(t, self._horner(t, [self.at_first_lane(i) for i in indices]))
        whole = max(4, self.machine.vector_bits // (8 * t.type.bytes))
        parts = []
        for start in range(0, lanes, whole):
            count = min(whole, lanes - start)
            offsets = [*range(0, (count - 1) * step + 1 - count, count), (count - 1) * (step - 1)]
            found: V | None = None
            for offset in dict.fromkeys(offsets):
                place = b.gep(first, ty, integer(start * step + offset))
                if bounded:
                    known = self._within(t, indices, start * step + offset, count)
                    zeros = V("zeroinitializer", ty, count)
                    piece = b.masked_load(place, known, zeros, t.type.bytes)
                else:
                    piece = b.load(place, ty, count, t.type.bytes)
                if found is None:
                    at = [i * step if i * step < count else -1 for i in range(count)]
                    found = b.shuffle(piece, piece, at)
                    done = sum(k >= 0 for k in at)
                else:
                    new = [i * step - offset for i in range(count)]
                    last = [i for i, k in enumerate(new) if i >= done and 0 <= k < count]
                    picked = [i if i < done else count + new[i] if i in last else -1
                              for i in range(count)]  # fmt: skip
                    found, done = b.shuffle(found, piece, picked), done + len(last)
            assert found is not None
            parts.append(found)
        return self.scalars.from_memory(b.joined(parts), t.type)

    def _within(self, t: Tensor, indices: Sequence[Expr], start: int, count: int) -> V:
        """For elements side by side in the dim that moves from lane to lane, the first of them
        `start` after the first lane's, whether they are in bounds."""
        b = self.b
        (d,) = [d for d, i in enumerate(indices) if self.lane_coefficient(i)]
        first = b.op("add", self.at_first_lane(indices[d]), integer(start))
        return b.icmp("ult", b.op("add", b.iota(count), first), self.uniform(t.shape[d]))

    @property
    def lanes(self) -> int:
        return self.scope.lane.count if self.scope.lane is not None and not self._first_lane else 0

    def _padded_read(self, t: Tensor, e: Read, fill: Expr) -> V:
        """Inside the bounds the element, else the fill; memory outside is never touched."""
        b = self.b
        inside = self._inside(t, e, report=e.fill is None)
        uniform = b.logical_and([c for c in inside if not c.lanes])
        lanewise = b.logical_and([c for c in inside if c.lanes])
        other = self.value(fill)
        if uniform is not None and uniform.constant == 0:
            return other
        before = b.block
        lanes = self.lanes if lanewise is not None or self._moves(e) else other.lanes
        skipped = b.splat(other, lanes)
        if uniform is None:
            return self._inside_read(t, e, lanewise, other)
        there, done = b.fresh("inside"), b.fresh("read")
        b.branch(uniform, there, done)
        with b.arm(there):
            found = b.splat(self._inside_read(t, e, lanewise, other), lanes)
            after = b.block
            b.jump(done)
        b.label(done, dominated=True)
        return b.phi(found, after, skipped, before)

    def _inside_read(self, t: Tensor, e: Read, inside: V | None, other: V) -> V:
        """The element where a lane is `inside` (None: all are), else `other`."""
        b = self.b
        if inside is not None and self._stride(t, e.indices):
            return self._inside_strided(t, e, inside, other)
        mask = b.logical_and([m for m in (self.scope.mask, inside) if m is not None])
        if self._first_lane:
            mask = inside
        found = self.load(t, self.address(t, e.indices), mask)
        return found if inside is None else b.select(inside, *b.together(found, other))

    def _inside_strided(self, t: Tensor, e: Read, inside: V, other: V) -> V:
        """The same where lanes stride along the last dim, with a test in front that all are in
        bounds. What lies between the lanes is read as long as it is in bounds, masked lanes or
        not."""
        b = self.b
        near, far, done = b.fresh("near"), b.fresh("far"), b.fresh("picked")
        b.branch(b.all(inside), near, far)
        with b.arm(near):
            whole, last = self._load_strided(t, e.indices), b.block
            b.jump(done)
        with b.arm(far):
            found = self._load_strided(t, e.indices, bounded=True)
            some, end = b.select(inside, *b.together(found, other)), b.block
            b.jump(done)
        b.label(done, dominated=True)
        return b.phi(whole, last, some, end)

    def _moves(self, e: Read) -> bool:
        """Whether a read gives a vector: its element or its tensor changes from lane to lane."""
        private = self.scope.tensors[e.tensor].lanes > 0
        return private or any(self.lane_coefficient(i) != 0 for i in e.indices)

    def _inside(self, t: Tensor, e: Read | Store, report: bool) -> list[V]:
        """For each index, whether it is in bounds; those that are read from memory and are not
        go to the error cell where `report` is set."""
        tests = []
        for dim, (i, n) in enumerate(zip(e.indices, t.shape, strict=True)):
            index, extent = self.value(i), self.uniform(n)
            tests.append(self.b.icmp("ult", index, extent))
            if report and reads_memory(i):
                self._report(e, dim, index, extent, tests[-1])
        return tests

    # --- checked builds

    def _is_checked(self, e: Read | Store) -> bool:
        return self.places is not None and any(reads_memory(i) for i in e.indices)

    def _report(self, e: Read | Store, dim: int, index: V, extent: V, good: V) -> None:
        """Record the index, of the first active lane, that is out of bounds."""
        b, mask = self.b, None if self._first_lane else self.scope.mask
        assert self.places is not None
        if "kir.report" not in b.module.made:
            b.module.made.add("kir.report")
            b.module.functions.append(REPORT)
        bad = b.op("xor", good, b.splat(integer(1, "i1"), good.lanes))
        if bad.lanes and mask is not None:
            bad = b.op("and", bad, mask)
        with b.when(b.any(bad) if bad.lanes else bad):
            if bad.lanes:
                word = f"i{bad.lanes}"
                bits = b.emit(f"bitcast {bad} to {word}", word)
                first = b.call(f"llvm.cttz.{word}", word, 0, bits, integer(1, "i1"))
                vector = b.splat(index, bad.lanes)
                index = b.emit(f"extractelement {vector}, {first}", "i64")
            known = [integer(self.places[id(e)] + 1), integer(dim)]
            cell = self.scope.tensors[CELL].pointer
            b.call("kir.report", "void", 0, cell, *known, index, extent)

    @contextmanager
    def _only_inside(self, t: Tensor, s: Store) -> Iterator[None]:
        """Code under the condition that the store's indices are in bounds."""
        b, outer = self.b, self.scope.mask
        inside = self._inside(t, s, report=True)
        lanewise = b.logical_and([c for c in inside if c.lanes])
        with b.when(b.logical_and([c for c in inside if not c.lanes])):
            mask = b.logical_and([m for m in (outer, lanewise) if m is not None])
            with b.when(b.any(mask) if lanewise is not None and mask is not None else None):
                self.scope.mask = mask
                yield
                self.scope.mask = outer

    # --- stores

    def store(self, s: Store) -> None:
        counts, ahead = self._some_lane_counts(s), self.scope.ahead
        with self.b.when(counts):
            self.scope.ahead = ahead if counts is None else 0  # the test has fetched it all
            self._store_all(s)
        self.scope.ahead = ahead

    def _some_lane_counts(self, s: Store) -> V | None:
        """For `t min= select(c, index, the greatest integer)`, whether c holds in any lane: mostly
        it does not, where the index of an extremum is sought. None for other stores."""
        lane, mask = self.scope.lane, self.scope.mask
        if lane is None or s.op not in ("min", "max") or not isinstance(s.value, Op):
            return None
        if s.value.name != "select" or not s.value.type.is_integer:
            return None
        condition, _, other = s.value.args
        if other != identity(s.op, s.value.type):
            return None
        sides = same_floats(condition)
        if sides is not None and mask is None:
            return self._some_lane_may_equal(*sides)
        holds = self.value(condition)
        if not holds.lanes:
            return None
        return self.b.any(holds if mask is None else self.b.op("and", holds, mask))

    def _some_lane_may_equal(self, x: Expr, y: Expr) -> V | None:
        """Whether two floats are equal in any lane, or one of them is NaN: one comparison, of which
        nothing else is made, so that LLVM need not bring its lanes in order."""
        b = self.b
        sides = b.together(self.value(x), self.value(y))
        return b.any(b.fcmp("ueq", *sides)) if sides[0].lanes else None

    def _store_all(self, s: Store) -> None:
        t = self.scope.tensors[s.target]
        self._known = {}
        value = self.value(s.value)
        self._known = None
        if self._is_checked(s):
            with self._only_inside(t, s):
                self._store(t, s, value)
        else:
            self._store(t, s, value)

    def _store(self, t: Tensor, s: Store, value: V) -> None:
        shared = s.op is not None and t.outer and not exclusive(self.scope, s)
        if s.op is not None and shared:
            self._serial_update(t, s, value, atomic=True)
        elif s.op is not None:
            self._update(t, s, s.op, value)
        else:
            self._assign(t, s, value)

    def _assign(self, t: Tensor, s: Store, value: V) -> None:
        a = self.address(t, s.indices)
        if a.kind == "uniform":
            self._put(t, a.pointer, self._last_lane(value), 0)
        else:
            self._put_lanes(t, a, self.b.splat(value, self.lanes), self._streams(t, s))

    def _last_lane(self, value: V) -> V:
        """What the last iteration that runs leaves in an element that all lanes assign."""
        if not value.lanes:
            return value
        mask, b = self.scope.mask, self.b
        result = b.lane(value, 0 if mask is not None else value.lanes - 1)
        if mask is not None:
            for i in range(1, value.lanes):
                result = b.select(b.lane(mask, i), b.lane(value, i), result)
        return result

    def _put(self, t: Tensor, pointer: V, value: V, lanes: int, stream: int = 0) -> None:
        if lanes and self._in_pairs(t):
            bits = paired.packed(self.b, value)
        else:
            bits = self.b.splat(self.scalars.to_memory(value, t.type), lanes)
        self.b.store(bits, pointer, stream or t.type.bytes, stream > 0)

    def _put_lanes(self, t: Tensor, a: Address, value: V, stream: int = 0) -> None:
        mask, b = self.scope.mask, self.b
        if a.kind == "row" and mask is None:
            self._put(t, a.pointer, value, value.lanes, stream)
        elif a.kind == "row" and t.padded:
            old = self.load(t, a, None)
            assert mask is not None
            self._put(t, a.pointer, b.select(mask, value, old), value.lanes)
        elif a.kind == "row":
            assert mask is not None
            b.masked_store(self.scalars.to_memory(value, t.type), a.pointer, mask, t.type.bytes)
        else:
            b.scatter(self.scalars.to_memory(value, t.type), a.pointer, mask, t.type.bytes)

    def _streams(self, t: Tensor, s: Store) -> int:
        """The alignment with which a store may bypass the cache; 0 where it may not."""
        lane, align = self.scope.lane, self.scope.stream
        if not (align and t.output and lane is not None and s.indices):
            return 0
        while align >= LEAST_STREAMED:
            step = max(1, align // t.type.bytes)
            if lane.count % step == 0 and multiple_of(s.indices[-1], step, self.scope.factors):
                return align
            align //= 2
        return 0

    # --- updates

    def _update(self, t: Tensor, s: Store, name: str, value: V) -> None:
        b, lane = self.b, self.scope.lane
        a = self.address(t, s.indices)
        if a.kind == "uniform":
            if lane is not None:
                value = self._combined(name, t.type, b.splat(value, lane.count))
            old = self.load(t, a, None)
            self._put(t, a.pointer, self.scalars.update(name, t.type, old, value), 0)
        elif a.kind == "row" or any(self.lane_coefficient(i) for i in s.indices):
            old = self.load(t, a, self.scope.mask)
            new = self.scalars.update_lanes(name, t.type, old, b.splat(value, self.lanes))
            self._put_lanes(t, a, new)
        else:
            self._serial_update(t, s, value, atomic=False)

    def _combined(self, name: str, t: DType, value: V) -> V:
        if self.scope.mask is not None:
            neutral = self.scalars.constant(identity(name, t))
            value = self.b.select(self.scope.mask, value, neutral)
        return self.scalars.reduce(name, t, value)

    def _serial_update(self, t: Tensor, s: Store, value: V, atomic: bool) -> None:
        """Lane after lane, since lanes may meet in one element."""
        assert s.op is not None
        b, lane, mask = self.b, self.scope.lane, self.scope.mask
        a = self.address(t, s.indices)
        if a.kind == "uniform" and lane is not None:
            value = self._combined(s.op, t.type, b.splat(value, lane.count))
        if a.kind == "uniform":
            self._update_one(t, s.op, a.pointer, value, atomic)
            return
        value = b.splat(value, self.lanes)
        for i in range(self.lanes):
            if a.kind == "spread":
                pointer = b.lane(a.pointer, i)
            else:
                pointer = b.gep(a.pointer, memory(t.type), integer(i))
            with b.when(b.lane(mask, i) if mask is not None else None):
                self._update_one(t, s.op, pointer, b.lane(value, i), atomic)

    def _update_one(self, t: Tensor, name: str, pointer: V, value: V, atomic: bool) -> None:
        if not atomic:
            old = self.scalars.from_memory(
                self.b.load(pointer, memory(t.type), 0, t.type.bytes), t.type
            )
            self._put(t, pointer, self.scalars.update(name, t.type, old, value), 0)
        elif t.type.is_integer and name != "mul":
            stem = {"add": "add"}.get(name, ("u" if t.type.kind == "uint" else "") + name)
            self.b.emit(f"atomicrmw {stem} {pointer}, {value} monotonic", value.ty)
        else:
            self._compare_exchange(t, name, pointer, value)

    def _compare_exchange(self, t: Tensor, name: str, pointer: V, value: V) -> None:
        b, word = self.b, f"i{t.type.bits}"
        first = b.emit(f"load atomic {word}, {pointer} monotonic, align {t.type.bytes}", word)
        again, done, before = b.fresh("again"), b.fresh("stored"), b.block
        found = V("%" + b.fresh(), word)
        b.jump(again)
        b.label(again)
        head = len(b.lines)
        seen = b.emit("", word)
        old = self.scalars.from_memory(b.convert("bitcast", seen, memory(t.type)), t.type)
        new = self.scalars.to_memory(self.scalars.update(name, t.type, old, value), t.type)
        new = b.convert("bitcast", new, word)
        pair = b.emit(f"cmpxchg {pointer}, {seen}, {new} monotonic monotonic", "pair")
        b.line(f"{found.ref} = extractvalue {{ {word}, i1 }} {pair.ref}, 0")
        good = b.emit(f"extractvalue {{ {word}, i1 }} {pair.ref}, 1", "i1")
        b.lines[head] = (
            f"  {seen.ref} = phi {word} [ {first.ref}, %{before} ], [ {found.ref}, %{b.block} ]"
        )
        b.branch(good, done, again)
        b.label(done)

    def depends_on_lane(self, e: Expr) -> bool:
        lane = self.scope.lane
        if lane is None:
            return False
        private = any(self.scope.tensors[r.tensor].lanes for r in _reads(e))
        return private or mentions(e, lane.name)


def _reads(e: Expr) -> list[Read]:
    return [n for n in walk(e) if isinstance(n, Read)]


def _is_one(e: Expr) -> bool:
    return isinstance(e, Const) and e.value == 1


REPORT = """define internal void @kir.report(
    ptr %cell, i64 %place, i64 %dim, i64 %index, i64 %extent) cold noinline nounwind {
  %pair = cmpxchg ptr %cell, i64 0, i64 %place monotonic monotonic
  %first = extractvalue { i64, i1 } %pair, 1
  br i1 %first, label %record, label %done
record:
  %cell1 = getelementptr i64, ptr %cell, i64 1
  %cell2 = getelementptr i64, ptr %cell, i64 2
  %cell3 = getelementptr i64, ptr %cell, i64 3
  store i64 %dim, ptr %cell1
  store i64 %index, ptr %cell2
  store i64 %extent, ptr %cell3
  br label %done
done:
  ret void
}
"""
