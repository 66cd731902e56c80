"""From the statements of one launch to the body of one Triton function."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from kir.backends.triton.contraction import Contraction, match_contraction
from kir.backends.triton.expressions import Expressions
from kir.backends.triton.scope import (
    Condition,
    Lane,
    MemoryBuffer,
    ValueBuffer,
    conjuncts,
    injective,
)
from kir.backends.triton.types import held
from kir.backends.triton.values import Value, atom, bare, expanded, permuted
from kir.dtypes import DType
from kir.ir import (
    TRUE,
    Axis,
    Buffer,
    Const,
    Expr,
    If,
    Kernel,
    Loop,
    Node,
    Read,
    Stmt,
    Store,
    Var,
    const,
    walk,
)
from kir.ops import identity, op

MAX_BLOCK = 1 << 20
MAX_NESTING = 18  # CPython takes 20 nested blocks
ATOMIC = {
    "add": ("f64", "f32", "f16", "i32", "i64", "u32", "u64"),
    "max": ("f64", "f32", "i32", "i64", "u32", "u64"),
    "min": ("f64", "f32", "i32", "i64", "u32", "u64"),
    "or": ("bool",),
    "and": ("bool",),
}


@dataclass(frozen=True)
class Access:
    """One use of a buffer: where, under which lanes (innermost last) and conditions."""

    node: Store | Read
    lanes: tuple[tuple[str, int], ...]
    conditions: tuple[Expr, ...]
    update: bool


def accesses(body: Sequence[Stmt]) -> Iterator[tuple[str, Access]]:
    """Every read and store below, by tensor."""

    def expressions(node: Node, lanes: tuple[tuple[str, int], ...], conditions: tuple[Expr, ...],
                    own: str | None) -> Iterator[tuple[str, Access]]:  # fmt: skip
        for n in walk(node):
            if isinstance(n, Read):
                yield n.tensor, Access(n, lanes, conditions, n.tensor == own)

    def go(stmts: Sequence[Stmt], lanes: tuple[tuple[str, int], ...],
           conditions: tuple[Expr, ...]) -> Iterator[tuple[str, Access]]:  # fmt: skip
        for s in stmts:
            match s:
                case Loop(kind, axis, where, inner):
                    here = lanes
                    if kind == "tile" and isinstance(axis.extent, Const):
                        here = (*lanes, (axis.name, int(axis.extent.value)))
                    under = (*conditions, *conjuncts(where))
                    for e in (axis.extent, *where):
                        yield from expressions(e, here, conditions, None)
                    yield from go(inner, here, under)
                case If(condition, inner):
                    yield from expressions(condition, lanes, conditions, None)
                    yield from go(inner, lanes, (*conditions, *conjuncts((condition,))))
                case Store(target, indices, value):
                    for e in (*indices, value):
                        yield from expressions(e, lanes, conditions, target)
                    yield target, Access(s, lanes, conditions, s.op is not None)
                case Buffer(_, _, shape, _, init):
                    for e in (*shape, *(() if init is None else (init,))):
                        yield from expressions(e, lanes, conditions, None)

    yield from go(body, (), ())


@dataclass(frozen=True)
class Scratch:
    """Memory that one launch needs for a buffer: elements of each program."""

    pointer: str
    type: DType
    size: Expr


class Statements(Expressions):
    """Writes statements. `scratch` collects the buffers that must live in memory."""

    def __init__(self, kernel: Kernel, body: Sequence[Stmt]) -> None:
        super().__init__(kernel)
        self.uses: dict[str, list[Access]] = {}
        for name, access in accesses(body):
            self.uses.setdefault(name, []).append(access)
        self.scratch: list[Scratch] = []
        self.program = "0"

    # --- statements

    def block_of(self, body: Sequence[Stmt]) -> None:
        before = len(self.lines)
        declared = dict(self.tensors)
        for stmt in body:
            self.statement(stmt)
        self.tensors = declared
        if len(self.lines) == before:
            self.line("pass")

    def statement(self, stmt: Stmt) -> None:
        self.cache.clear()
        match stmt:
            case Loop():
                self.tile(stmt) if stmt.kind == "tile" else self.loop(stmt)
            case If():
                self.guarded(tuple(conjuncts((stmt.condition,))), stmt.body)
            case Buffer():
                self.buffer(stmt)
            case Store():
                self.store(stmt)
            case _:
                raise self.refuse(
                    f"the Triton backend takes scheduled IR, not {type(stmt).__name__}",
                    stmt,
                    "apply the rewrite loops() first",
                )
        self.cache.clear()

    def guarded(self, conditions: Sequence[Expr], body: Sequence[Stmt]) -> None:
        """The body under conditions: an `if` on scalars, a mask on what varies by lane."""
        scalars = [c for c in conditions if not self.lanes_in(c)]
        masks = [c for c in conditions if self.lanes_in(c)]
        known = [c for c in scalars if c != TRUE]
        outside = self.depth
        if known:
            values = [self.value(c).text for c in known]
            both = " & ".join(atom(v) for v in values)
            self.line(f"if {bare(values[0]) if len(values) == 1 else both}:")
            self.deepen(body)
        self.cache.clear()
        held_before = len(self.conditions)
        for c in masks:
            v = self.value(c)
            if not v.axes:
                v = Value(
                    self.full(v, self.sorted(self.lanes_in(c))), self.sorted(self.lanes_in(c))
                )
            self.conditions.append(Condition(c, self.hoist(v, "mask")))
        self.cache.clear()
        self.block_of(body)
        del self.conditions[held_before:]
        self.depth = outside

    def deepen(self, body: Sequence[Stmt]) -> None:
        self.depth += 1
        if self.depth > MAX_NESTING:
            raise self.refuse(
                "loops and guards are nested too deeply for Python",
                body[0] if body else self.kernel,
                "fuse loops, or make the outer ones a grid",
            )

    def loop(self, loop: Loop) -> None:
        """A sequential loop. Lanes walk it together: where its extent varies by lane, to the
        greatest of them, each masked by its own."""
        axis = loop.axis
        extent = self.value(axis.extent)
        name = self.names.fresh(axis.name)
        conditions = list(conjuncts(loop.where))
        if extent.axes:
            conditions.insert(0, op("lt", Var(axis.name), axis.extent))
            extent = self.reduced(extent, set(extent.axes), "max", axis.extent.dtype)
        ranges = "tl.static_range" if loop.kind == "unroll" else "range"
        stages = dict(loop.hints).get("num_stages")
        options = f", num_stages={stages}" if stages is not None else ""
        if options and ranges == "range":
            ranges = "tl.range"
        self.line(f"for {name} in {ranges}(0, {extent.literal or bare(extent.text)}{options}):")
        self.deepen(loop.body)
        self.line(f"{name} = tl.cast({name}, tl.int64)")
        self.scalars[axis.name] = name
        self.extents[axis.name] = axis.extent
        self.guarded(conditions, loop.body)
        self.depth -= 1
        del self.scalars[axis.name], self.extents[axis.name]

    def tile(self, loop: Loop) -> None:
        """A block of lanes. Perfectly nested tiles are entered one by one; a block's dimensions
        stand in the order of the nest."""
        axis = loop.axis
        extent = self.lane_extent(axis)
        lane = Lane(self.names.fresh(axis.name), extent)
        self.lanes.append(lane)
        self.lane_of[axis.name] = lane
        self.extents[axis.name] = axis.extent
        self.line(f"{lane.name} = tl.cast(tl.arange(0, {extent}), tl.int64)")
        self.guarded(tuple(conjuncts(loop.where)), loop.body)
        self.lanes.pop()
        del self.lane_of[axis.name], self.extents[axis.name]

    def lane_extent(self, axis: Axis) -> int:
        hint = "split by a power of two; the rest becomes a mask"
        if not isinstance(axis.extent, Const):
            raise self.refuse(f"the extent of the tile `{axis.name}` is not a constant", axis, hint)
        extent = int(axis.extent.value)
        if extent < 1 or extent & (extent - 1):
            raise self.refuse(
                f"the extent {extent} of the tile `{axis.name}` is not a power of two", axis, hint
            )
        return extent

    # --- buffers

    def buffer(self, b: Buffer) -> None:
        shape = tuple(int(e.value) for e in b.shape if isinstance(e, Const))
        if len(shape) == len(b.shape) and self.fits_registers(b, shape):
            self.register_buffer(b, shape)
        elif b.space == "reg":
            raise self.refuse(
                f"the reg buffer `{b.name}` is not addressed by whole lanes",
                b,
                "index each of its dimensions by a tile of the same power-of-two extent, "
                "or put it in local",
            )
        else:
            self.memory_buffer(b)

    def fits_registers(self, b: Buffer, shape: tuple[int, ...]) -> bool:
        for access in self.uses.get(b.name, []):
            lanes = dict(access.lanes)
            names = [i.name for i in access.node.indices if isinstance(i, Var)]
            if len(names) < len(shape) or len(set(names)) < len(names):
                return False
            if any(lanes.get(n) != extent for n, extent in zip(names, shape, strict=True)):
                return False
        return prod(shape) * prod(x.extent for x in self.lanes) <= MAX_BLOCK

    def register_buffer(self, b: Buffer, shape: tuple[int, ...]) -> None:
        buffer = ValueBuffer(self.names.fresh(b.name), b.type, tuple(self.lanes), shape)
        dims = [lane.extent for lane in self.lanes] + list(shape)
        size = "[" + ", ".join(map(str, dims)) + "]"
        zero = identity("or" if b.type.is_bool else "add", b.type)
        init = self.value(b.init if b.init is not None else zero)
        if init.axes:
            places = ", ".join([":"] * len(self.lanes) + ["None"] * len(shape))
            source = atom(expanded(init, [lane.name for lane in self.lanes]))
            text = f"tl.broadcast_to({source}[{places}], {size})"
        else:
            text = f"tl.full({size}, {init.literal or bare(init.text)}, {held(b.type).value})"
        self.line(f"{buffer.name} = {text}")
        self.tensors[b.name] = buffer

    def memory_buffer(self, b: Buffer) -> None:
        """A slice of scratch memory for each program, and for each lane around it."""
        for e in b.shape:
            if any(isinstance(n, Var) and n.name not in self.dims() for n in walk(e)):
                raise self.refuse(f"the shape of `{b.name}` depends on a loop", b)
        size: Expr = const(1)
        for e in b.shape:
            size = op("mul", size, e)
        lanes = prod(lane.extent for lane in self.lanes)
        pointer = self.names.fresh(b.name)
        per_program = op("mul", size, const(lanes))
        self.scratch.append(Scratch(pointer, b.type, per_program))
        one = self.dim(size) if b.shape else "1"
        base = self.hoist(Value(f"{self.program} * {lanes} * {one}"), f"{b.name}_at")
        if self.lanes:
            number: Value = Value("0")
            for lane in self.lanes:
                value = Value(lane.name, (lane.name,))
                scaled = Value(f"{atom(number.text)} * {lane.extent}", number.axes)
                number = self.join([scaled, value], lambda t: f"{t[0]} + {t[1]}")
            offset = Value(f"{base.text} + {atom(number.text)} * {one}", number.axes)
            base = self.hoist(offset, f"{b.name}_at")
        buffer = MemoryBuffer(pointer, b.type, b.shape, base)
        self.tensors[b.name] = buffer
        self.read_and_written.add(b.name)
        if b.init is not None:
            self.fill(b, buffer, size)

    def dims(self) -> set[str]:
        return {d.name for d in self.kernel.dims}

    def fill(self, b: Buffer, buffer: MemoryBuffer, size: Expr) -> None:
        """Set every element of a scratch buffer, block by block where no lane is around."""
        assert b.init is not None and buffer.base is not None
        init = self.value(b.init)
        value = self.to_memory(init.text, b.type)
        k = self.names.fresh("fill")
        total = self.dim(size)
        self.line("tl.debug_barrier()")
        if self.lanes:
            self.line(f"for {k} in range(0, {total}):")
            axes = [lane.name for lane in self.lanes]
            at = f"{self.full(buffer.base, axes)} + {k}"
            filled = expanded(Value(value, init.axes), axes)
            self.line(f"    tl.store({buffer.pointer} + ({at}), {bare(filled)})")
        else:
            lanes = self.names.fresh("fill_lanes")
            self.line(f"{lanes} = tl.arange(0, 256)")
            self.line(f"for {k} in range(0, {total}, 256):")
            at = f"{buffer.base.text} + {k} + {lanes}"
            self.line(
                f"    tl.store({buffer.pointer} + ({at}), {value}, mask={k} + {lanes} < {total})"
            )
        self.line("tl.debug_barrier()")

    # --- stores

    def store(self, s: Store) -> None:
        buffer = self.tensors[s.target]
        if isinstance(buffer, ValueBuffer):
            if s.op is None:
                self.set_block(s, buffer)
            else:
                self.update_block(s, buffer)
        elif s.op is None:
            self.set_memory(s, buffer)
        else:
            self.update_memory(s, buffer)

    def set_block(self, s: Store, buffer: ValueBuffer) -> None:
        target = self.block(buffer, s.indices, s)
        v = self.value(s.value)
        self.no_other_lanes(s, v, set(target.axes))
        mask = self.target_mask(set(target.axes))
        axes = target.axes
        if mask is not None:
            text = (
                f"tl.where({bare(expanded(mask, axes))}, {bare(expanded(v, axes))}, {target.text})"
            )
            if not axes:
                text = f"tl.where({bare(mask.text)}, {bare(v.text)}, {target.text})"
        else:
            text = bare(self.full(v, axes)) if axes else bare(v.text)
        self.line(f"{target.text} = {text}")

    def no_other_lanes(self, s: Store, v: Value, axes: set[str]) -> None:
        if set(v.axes) - axes:
            raise self.refuse(
                f"lanes store different values to one element of `{s.target}`",
                s,
                "make it an update (`+=`, `max=`...), or index the target by the lane",
            )

    def target_mask(self, axes: set[str]) -> Value | None:
        """Which elements of a target some active lane reaches."""
        mask, wider = self.mask(axes)
        if mask is not None and wider - axes:
            order = self.sorted(wider)
            everywhere = Value(self.full(mask, order), order)
            return self.reduced(everywhere, wider - axes, "or", None)
        return mask

    def all_conditions(self) -> Value | None:
        if not self.conditions:
            return None
        values = [c.value for c in self.conditions]
        return self.join(values, lambda t: " & ".join(atom(x) for x in t))

    def contribution(self, s: Store, target: set[str], dtype: DType) -> Value:
        """What an update adds to its target: the value, reduced over all lanes on which the
        target does not depend, the inactive ones counting as the identity."""
        assert s.op is not None
        lanes = {lane.name for lane in self.lanes}
        v = self.value(s.value)
        gone = lanes - target
        mask = self.all_conditions()
        if not gone and mask is None:
            return v
        if mask is not None:
            neutral = self.constant(identity(s.op, dtype)).text
            v = self.join([mask, v], lambda t: f"tl.where({bare(t[0])}, {bare(t[1])}, {neutral})")
        if not gone:
            return v
        axes = self.sorted(gone | set(v.axes))
        if prod(lane.extent for lane in self.lanes if lane.name in axes) > MAX_BLOCK:
            raise self.refuse(
                f"the block of this update has more than {MAX_BLOCK} elements",
                s,
                "split its tiles with smaller factors",
            )
        return self.reduced(Value(self.full(v, axes), axes), gone, s.op, dtype)

    def reduced(self, v: Value, gone: set[str], name: str, dtype: DType | None) -> Value:
        """A block reduced over lanes, the innermost first. `dtype` is None for a mask."""
        axes = list(v.axes)
        text = v.text
        is_bool = dtype is None or dtype.is_bool
        combine = f"{name}_of"
        if dtype is not None and dtype.is_float and name in ("max", "min"):
            combine = f"{name}_nan"
        plain = name == "add" and dtype is not None and dtype.bits >= 32
        plain = plain or (name == "add" and dtype is not None and dtype.is_float)
        if is_bool:
            text = f"{atom(text)}.to(tl.int32)"
        for lane in [a for a in reversed(axes) if a in gone]:
            place = axes.index(lane)
            axes.remove(lane)
            if plain:
                text = f"tl.sum({bare(text)}, {place})"
            else:
                text = f"tl.reduce({bare(text)}, {place}, {combine})"
        if is_bool:
            text = f"({text} != 0)"
        return Value(text, tuple(axes))

    def combined(self, name: str, old: str, new: str, dtype: DType) -> str:
        """Source of `old op new`, rounded to the dtype."""
        a, b = atom(old), atom(new)
        if name in ("add", "mul"):
            text = f"{a} {'+' if name == 'add' else '*'} {b}"
            return self.rounded(f"({text})", dtype) if dtype.is_float and dtype.bits < 32 else text
        if name in ("and", "or"):
            return f"{a} {'&' if name == 'and' else '|'} {b}"
        from kir.backends.triton.handlers import HANDLERS

        return HANDLERS[name]([a, b], dtype)

    def update_block(self, s: Store, buffer: ValueBuffer) -> None:
        assert s.op is not None
        target = self.block(buffer, s.indices, s)
        contraction = match_contraction(self, s, buffer, target)
        if contraction is not None:
            self.dot(s, target, contraction)
            return
        v = self.contribution(s, set(target.axes), buffer.type)
        new = bare(expanded(v, target.axes)) if target.axes else bare(v.text)
        self.line(f"{target.text} = {bare(self.combined(s.op, target.text, new, buffer.type))}")

    def dot(self, s: Store, target: Value, c: Contraction) -> None:
        """`acc[m, n] += a * b` over lanes m, n, k, on the matrix unit."""
        m, n, k = c.axes
        with self.ordered([m, k, n]):
            a = self.operand(c.left, (m, k), c)
        with self.ordered([k, n, m]):
            b = self.operand(c.right, (k, n), c)
        text = f"tl.dot({a}, {b}, {target.text}, {c.options})"
        if c.strict:
            mask = self.mask({m, n}, safe=True)[0]
            if mask is not None:
                condition = bare(expanded(mask, target.axes))
                text = f"tl.where({condition}, {text}, {target.text})"
        self.line(f"{target.text} = {text}")

    def operand(self, e: Expr, axes: tuple[str, str], c: Contraction) -> str:
        """A block of a product, in the type of the matrix unit, 0 where it is masked."""
        if isinstance(e, Read):
            memory = self.tensors[e.tensor]
            if isinstance(memory, MemoryBuffer) and e.fill is None and c.raw:
                loaded = self.load(e, memory, raw=True)
                if set(loaded.axes) == set(axes):
                    return permuted(loaded, axes).text
        v = self.value(e)
        mask, _ = self.mask(set(axes), safe=True)
        if mask is not None:
            v = self.join([mask, v], lambda t: f"tl.where({bare(t[0])}, {bare(t[1])}, 0)")
        text = self.full(v, axes)
        if c.cast is not None:
            text = f"{atom(text)}.to({c.cast})"
        return self.hoist(Value(text, axes), "operand").text

    # --- memory

    def barrier(self, name: str) -> None:
        """Threads of a program see each other's stores after a barrier only."""
        if name in self.read_and_written:
            self.line("tl.debug_barrier()")

    def set_memory(self, s: Store, buffer: MemoryBuffer) -> None:
        v = self.value(s.value)
        at = self.offset(buffer, s.indices)
        axes = set(at.axes)
        self.no_other_lanes(s, v, axes)
        self.write(s, buffer, at, v, self.target_mask(axes))

    def write(
        self, s: Store, buffer: MemoryBuffer, at: Value, v: Value, mask: Value | None
    ) -> None:
        order = self.sorted(set(at.axes))
        value = bare(expanded(v, order)) if order else bare(v.text)
        parts = [self.address(buffer, Value(at.text, at.axes, at.literal), order)]
        parts.append(bare(self.to_memory(value, buffer.type)))
        if mask is not None:
            parts.append(f"mask={bare(expanded(mask, order))}")
        self.barrier(s.target)
        self.line(f"tl.store({', '.join(parts)})")
        self.barrier(s.target)

    def update_memory(self, s: Store, buffer: MemoryBuffer) -> None:
        assert s.op is not None
        at = self.offset(buffer, s.indices)
        target = set(at.axes)
        v = self.contribution(s, target, buffer.type)
        mask = self.target_mask(target)
        if set(v.axes) - target:
            raise self.refuse("an update's value varies by lanes its target does not", s)
        if self.is_private(s, buffer):
            order = self.sorted(target)
            pointer = self.address(buffer, at, order)
            where = f", mask={bare(expanded(mask, order))}" if mask is not None else ""
            self.barrier(s.target)
            loaded = self.from_memory(f"tl.load({pointer}{where})", buffer.type)
            old = self.hoist(Value(loaded, order), s.target)
            new = bare(expanded(v, order)) if order else bare(v.text)
            self.write(
                s, buffer, at, Value(self.combined(s.op, old.text, new, buffer.type), order), mask
            )
        else:
            self.atomic(s, buffer, at, v, mask)

    def is_private(self, s: Store, buffer: MemoryBuffer) -> bool:
        """Whether no two lanes, and no two programs, update one element."""
        wanted = {n for n, lane in self.lane_of.items() if self.reaches(s, lane.name)}
        if buffer.base is None:
            wanted |= self.grid_names()
        return injective(s.indices, self.extents, wanted)

    def reaches(self, s: Store, lane: str) -> bool:
        return any(lane in self.lanes_in(i) for i in s.indices)

    def grid_names(self) -> set[str]:
        return set()

    def atomic(
        self, s: Store, buffer: MemoryBuffer, at: Value, v: Value, mask: Value | None
    ) -> None:
        assert s.op is not None
        if buffer.type.name not in ATOMIC.get(s.op, ()):
            raise self.refuse(
                f"there is no atomic `{s.op}` on {buffer.type} here",
                s,
                "index the target so that no two iterations of a grid or tile share an element, "
                "or keep it in a buffer of f32",
            )
        order = self.sorted(set(at.axes))
        pointer = self.address(buffer, at, order)
        if buffer.type.is_bool:  # all who store, store the same
            wanted = v if s.op == "or" else Value(f"({v.text} == False)", v.axes)
            mask = (
                wanted
                if mask is None
                else self.join([mask, wanted], lambda t: f"{atom(t[0])} & {atom(t[1])}")
            )
            value = str(int(s.op == "or"))
            self.line(f"tl.store({pointer}, {value}, mask={bare(expanded(mask, order))})")
            return
        text = self.full(v, order) if order else v.text
        if buffer.type.is_float and s.op != "add":
            text = f"nan_{'up' if s.op == 'max' else 'down'}ward({bare(text)})"
        text = self.to_memory(text, buffer.type)
        where = f", mask={bare(expanded(mask, order))}" if mask is not None else ""
        self.barrier(s.target)
        self.line(f'tl.atomic_{s.op}({pointer}, {bare(text)}{where}, sem="relaxed")')
        self.barrier(s.target)
