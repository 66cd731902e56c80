"""Random well-typed kernels: every construct of the language, small enough to be read.

`generate(seed)` gives the kernel of a seed, the same one everywhere. It is well typed; whether
every access is in bounds is for `kir.check` to say (nearly always yes: `draw_kernel` tries again).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from kir.dtypes import (
    DTYPES,
    DType,
    bf16,
    bool_,
    f8e4m3,
    f8e5m2,
    f16,
    f32,
    f64,
    i8,
    i16,
    i32,
    i64,
    u8,
    u16,
    u32,
    u64,
)
from kir.fuzz.expressions import Dice, Expressions, Index, Scope, axis_index
from kir.fuzz.templates import TEMPLATES, template
from kir.ir import (
    Axis,
    Buffer,
    Const,
    Define,
    Dim,
    Expr,
    If,
    Kernel,
    Loop,
    LoopKind,
    Param,
    Read,
    Stmt,
    Store,
    Var,
    const,
    walk,
)
from kir.ops import identity, op

M, N, K = Var("M"), Var("N"), Var("K")
DIMS = (M, N, K)
LIKELY = [(f32, 40), (i32, 16), (f64, 6), (f16, 6), (bf16, 8), (f8e4m3, 2), (f8e5m2, 2), (i8, 3),
          (i16, 2), (i64, 4), (u8, 3), (u16, 2), (u32, 2), (u64, 2), (bool_, 2)]  # fmt: skip
"""Dtypes by weight."""
MAIN = [*LIKELY[:11], (i64, 4), (u8, 3)]
assert {t for t, _ in LIKELY} == set(DTYPES.values())


def dtype_of(dice: Dice, table: Sequence[tuple[DType, float]]) -> DType:
    return dice.weighted(table)


@dataclass
class Maker(Expressions):
    """A kernel in the making."""

    dims: list[Dim] = field(default_factory=list)
    constraints: list[Expr] = field(default_factory=list)
    body: list[Stmt] = field(default_factory=list)
    written: dict[str, Param] = field(default_factory=dict)
    """What the body defines, in order: the outputs are among these."""
    kept: tuple[str, ...] = ()
    """Those that are outputs in any case."""
    count: int = 0

    # --- the frame ---------------------------------------------------------------------------

    def start_empty(self) -> None:
        count = self.weighted([(1, 25), (2, 55), (3, 20)])
        self.dims = [Dim(d.name) for d in DIMS[:count]]
        self.extents = list(DIMS[:count])
        self.names = {d.name for d in DIMS}
        self.input("x", self.palette[0], tuple(self.extents[:2]))
        for name in "abcde"[: 1 + self.below(3)]:
            rank = self.weighted([(0, 15), (1, 45), (2, 35), (3, 5)])
            shape = tuple(
                const(2 + self.below(3)) if self.chance(8) else self.pick(self.extents)
                for _ in range(rank)
            )
            self.input(name, self.dtype(), shape)

    def start_from(self, name: str) -> None:
        floats = [t for t in self.palette if t.is_float] or [f32]
        whole = [t for t in self.palette if t.is_integer] or [i32]
        kernel = template(name, floats[0].name, whole[0].name)
        self.dims = list(kernel.dims)
        self.constraints = list(kernel.constraints)
        self.extents = [Var(d.name) for d in kernel.dims if d.default is None]
        self.names = {n.name for n in walk(kernel) if isinstance(n, Axis | Dim | Define)}
        for p in kernel.inputs:
            self.input(p.name, p.type, p.shape)
        self.body = list(kernel.body)
        shapes = {
            s.name: Param(s.name, s.value.dtype, tuple(a.extent for a in s.axes))
            for s in kernel.body
            if isinstance(s, Define)
        }
        for p in (*shapes.values(), *kernel.outputs):
            self.declare(p)
        self.kept = tuple(p.name for p in kernel.outputs)
        if self.chance(40):
            self.dims = [replace(d, default=self.setting(d)) for d in self.dims]

    def setting(self, dim: Dim) -> int | None:
        """Another value of a compile-time parameter."""
        return None if dim.default is None else 1 + self.below(3)

    def input(self, name: str, dtype: DType, shape: tuple[Expr, ...]) -> None:
        self.inputs[name] = self.tensors[name] = Param(name, dtype, shape)

    def declare(self, p: Param) -> None:
        self.written[p.name] = self.tensors[p.name] = p

    def fresh(self) -> str:
        self.count += 1
        return f"t{self.count}"

    # --- statements --------------------------------------------------------------------------

    def axes(self, low: int, high: int) -> tuple[tuple[Axis, ...], Scope]:
        """New axes over dims, never triangular."""
        axes: list[Axis] = []
        scope: Scope = ()
        for _ in range(low + self.below(high - low + 1)):
            extent = const(2 + self.below(2)) if self.chance(6) else self.pick(self.extents)
            axis = Axis(self.name(scope), extent)
            axes.append(axis)
            scope = (*scope, axis_index(axis))
        return tuple(axes), scope

    def statement(self) -> None:
        made = self.weighted(STATEMENTS)
        made(self)

    def map(self) -> None:
        axes, scope = self.axes(0, 3) if self.chance(20) else self.axes(1, 2)
        self.define(axes, self.expr(self.dtype(), scope, 3))

    def reduce(self) -> None:
        axes, scope = self.axes(0, 2)
        found: Expr = self.reduction(scope, 2)
        if self.chance(30) and not found.dtype.is_bool:
            found = op(self.pick(("add", "mul", "max")), found, self.leaf(found.dtype, scope))
        self.define(axes, found)

    def arg(self) -> None:
        axes, scope = self.axes(0, 2)
        self.define(axes, self.argument(scope, 2))

    def pad(self) -> None:
        axes, scope = self.axes(1, 2)
        readable = [p for p in self.tensors.values() if p.shape]
        p = self.pick(readable)
        read = self.read(p, scope, 100)
        self.define(axes, op("select", self.condition(scope, 1), read, self.constant(p.type)))

    def draw_random(self) -> None:
        axes, scope = self.axes(1, 2)
        dtype = self.dtype()
        keep = op("lt", self.convert(self.random(scope), f32), Const(0.5, f32))
        self.define(axes, op("select", keep, self.expr(dtype, scope, 1), self.constant(dtype)))

    def define(self, axes: tuple[Axis, ...], value: Expr) -> None:
        name = self.fresh()
        self.body.append(Define(name, axes, value))
        self.declare(Param(name, value.dtype, tuple(a.extent for a in axes)))

    def place(self, extent: Expr, over: Axis) -> Expr:
        """An index below `extent` that is read from an input: in range by how inputs are drawn."""
        dtype = self.pick((i64, i64, i32, u8, u32))
        name = self.fresh()
        self.inputs[name] = Param(name, dtype, (over.extent,))
        read = Read(name, (Var(over.name),), dtype)
        return self.convert(read, i64)

    def gather(self) -> None:
        axes, scope = self.axes(1, 2)
        known = [p for p in self.inputs.values() if p.shape and p.name in self.tensors]
        p = self.pick(known)
        at = self.below(len(p.shape))
        indices = [
            self.place(p.shape[at], axes[0]) if n == at else None for n in range(len(p.shape))
        ]
        fits = [[s.expr for s in scope if e in s.fits] for e in p.shape]
        sure = all(i is not None or f for i, f in zip(indices, fits, strict=True))
        full = tuple(
            i if i is not None else self.pick(f) if f else self.anywhere(scope)
            for i, f in zip(indices, fits, strict=True)
        )
        read = Read(p.name, full, p.type, None if sure else self.constant(p.type))
        value: Expr = read
        if self.chance(50) and not p.type.is_bool:
            value = op(self.pick(("add", "max")), read, self.leaf(p.type, scope))
        self.define(axes, value)

    def recurrence(self) -> None:
        """A definition inside `for t`, over its earlier slices; maybe a temporary before it."""
        time = Axis(self.name(()), self.pick(self.extents))
        at = axis_index(time)
        axes: tuple[Axis, ...] = ()
        scope: Scope = (at,)
        for _ in range(self.below(3)):
            axis = Axis(self.name(scope), self.pick(self.extents))
            axes, scope = (*axes, axis), (*scope, axis_index(axis))
        name, dtype = self.fresh(), self.dtype()
        inside: list[Stmt] = []
        extra: list[str] = []
        if self.chance(35):
            local = self.fresh()
            value = self.reduction(scope, 1) if self.chance(50) else self.expr(dtype, scope, 2)
            inside.append(Define(local, axes, value))
            self.tensors[local] = Param(local, value.dtype, tuple(a.extent for a in axes))
            extra.append(local)
        back = op("sub", Var(time.name), const(1 + self.below(2)))
        before = Read(name, (back, *(Var(a.name) for a in axes)), dtype, self.fill(dtype, scope))
        step = self.expr(dtype, scope, 2)
        value = self.combine(dtype, before, step)
        inside.append(Define(name, (Var(time.name), *axes), value))
        for gone in extra:
            del self.tensors[gone]
        where = (self.condition((at,), 1),) if False else ()
        self.body.append(Loop("for", time, where, tuple(inside)))
        self.declare(Param(name, dtype, (time.extent, *(a.extent for a in axes))))

    def combine(self, dtype: DType, before: Expr, step: Expr) -> Expr:
        if dtype.is_bool:
            return op(self.pick(("or", "and", "ne")), before, step)
        if dtype.is_float:
            faded = op("mul", before, Const(0.5, dtype))
            return op(self.pick(("add", "max", "min", "sub")), faded, step)
        return op(self.pick(("add", "max", "min", "mul", "bit_xor", "sub")), before, step)

    # --- loops -------------------------------------------------------------------------------

    def memory(self, dtype: DType, shape: tuple[Expr, ...]) -> str:
        """A tensor that loops write; a buffer unless it becomes an output."""
        name = self.fresh()
        self.body.append(Buffer(name, dtype, shape, "global"))
        return name

    def filled(self, dtype: DType, shape: tuple[Expr, ...]) -> str:
        """A tensor with a first value everywhere."""
        name = self.memory(dtype, shape)
        scope: Scope = ()
        axes: list[Axis] = []
        for extent in shape:
            axis = Axis(self.name(scope), extent)
            axes.append(axis)
            scope = (*scope, axis_index(axis))
        value = self.constant(dtype) if self.chance(70) else self.expr(dtype, scope, 1)
        store: Stmt = Store(name, tuple(Var(a.name) for a in axes), value)
        for axis in reversed(axes):
            store = Loop("for", axis, (), (store,))
        self.body.append(store)
        return name

    def updated(self) -> DType:
        """The dtype of what is updated: bools often enough to meet their updates."""
        return bool_ if self.chance(10) else self.dtype()

    def update_of(self, dtype: DType) -> str:
        if dtype.is_bool:
            return self.pick(("and", "or"))
        return self.weighted([("add", 50), ("max", 20), ("min", 20), ("mul", 10)])

    def update(self, name: str, at: tuple[Expr, ...], dtype: DType, scope: Scope) -> Store:
        change = self.update_of(dtype)
        value = self.expr(dtype, scope, 2)
        if change == "mul" and dtype.is_float:
            value = op("max", op("min", value, Const(1.0, dtype)), Const(-1.0, dtype))
        return Store(name, at, value, change)

    def where(self, scope: Scope, percent: float) -> tuple[Expr, ...]:
        return (self.condition(scope, 1),) if self.chance(percent) else ()

    def accumulate(self) -> None:
        """One program for each row, a register that a loop updates under masks and guards."""
        row, column = Axis(self.name(()), self.pick(self.extents)), self.pick(self.extents)
        outer: Scope = (axis_index(row),)
        inner_axis = Axis(self.name(outer), column)
        scope = (*outer, axis_index(inner_axis))
        dtype = self.updated()
        change = self.update_of(dtype)
        start = identity(change, dtype) if self.chance(60) else self.constant(dtype)
        acc = self.fresh()
        steps: list[Stmt] = [self.update(acc, (), dtype, scope)]
        if self.chance(30):
            steps.append(If(self.condition(scope, 1), (self.update(acc, (), dtype, scope),)))
        name = self.memory(dtype, (row.extent,))
        final: Expr = Read(acc, (), dtype)
        if self.chance(40):
            final = self.combine(dtype, final, self.leaf(dtype, outer))
        body: tuple[Stmt, ...] = (
            Buffer(acc, dtype, (), self.pick(("reg", "local")), start),
            Loop("for", inner_axis, self.where(scope, 25), tuple(steps)),
            Store(name, (Var(row.name),), final),
        )
        hints = (("num_warps", 4),) if self.chance(10) else ()
        self.body.append(Loop(self.kind(), row, (), body, hints))
        self.declare(Param(name, dtype, (row.extent,)))

    def kind(self) -> LoopKind:
        return "grid" if self.chance(40) else "for"

    def tiled(self) -> None:
        """A map in tiles of a constant size, the last one masked."""
        extent, size = self.pick(self.extents), self.pick((2, 3, 4))
        outer = Axis(self.name(()), op("cdiv", extent, const(size)))
        first: Scope = (axis_index(outer),)
        lane = Axis(self.name(first), const(size))
        place = op("add", op("mul", Var(outer.name), const(size)), Var(lane.name))
        scope: Scope = (Index(place, frozenset((extent,))),)
        dtype = self.dtype()
        reads_lane = (Var(lane.name), frozenset((lane.extent,)))
        value = self.expr(dtype, (*scope, Index(*reads_lane)), 2)
        name = self.memory(dtype, (extent,))
        kind: LoopKind = "tile" if self.chance(60) else self.pick(("for", "unroll"))
        inner = Loop(kind, lane, (op("lt", place, extent),), (Store(name, (place,), value),))
        self.body.append(Loop(self.kind(), outer, (), (inner,)))
        self.declare(Param(name, dtype, (extent,)))

    def staged(self) -> None:
        """Rows that go through a local buffer, which is read in another order."""
        row, column = Axis(self.name(()), self.pick(self.extents)), self.pick(self.extents)
        outer: Scope = (axis_index(row),)
        first = Axis(self.name(outer), column)
        scope = (*outer, axis_index(first))
        dtype = self.dtype()
        line = self.fresh()
        value = self.expr(dtype, scope, 2)
        name = self.memory(dtype, (row.extent, column))
        self.tensors[line] = Param(line, dtype, (column,))
        again = self.expr(dtype, scope, 2)
        if self.chance(60):
            mirror = op("sub", op("sub", column, const(1)), Var(first.name))
            again = self.combine(dtype, Read(line, (mirror,), dtype), again)
        del self.tensors[line]
        body: tuple[Stmt, ...] = (
            Buffer(line, dtype, (column,), self.pick(("local", "reg", "global"))),
            Loop("for", first, (), (Store(line, (Var(first.name),), value),)),
            Loop("for", first, (), (Store(name, (Var(row.name), Var(first.name)), again),)),
        )
        self.body.append(Loop("for", row, (), body))
        self.declare(Param(name, dtype, (row.extent, column)))

    def scatter(self) -> None:
        """Updates at indices that are read from an input."""
        over, extent = Axis(self.name(()), self.pick(self.extents)), self.pick(self.extents)
        scope: Scope = (axis_index(over),)
        dtype = self.updated()
        shape: tuple[Expr, ...] = (extent,)
        loops = [over]
        at: tuple[Expr, ...] = (self.place(extent, over),)
        if self.chance(50):
            column = Axis(self.name(scope), self.pick(self.extents))
            loops.append(column)
            scope = (*scope, axis_index(column))
            shape, at = (extent, column.extent), (*at, Var(column.name))
        name = self.filled(dtype, shape)
        self.nest(loops, scope, (self.update(name, at, dtype, scope),))
        self.declare(Param(name, dtype, shape))

    def updates(self) -> None:
        """Updates of one tensor under masks and guards that depend on data."""
        axes, scope = self.axes(1, 2)
        dtype = self.updated()
        shape = tuple(a.extent for a in axes)
        name = self.filled(dtype, shape)
        at = tuple(Var(a.name) for a in axes)
        extra, inner = list(axes), scope
        if self.chance(50):  # a loop that the target does not depend on: a reduction in memory
            more, index = self.axis(scope)
            extra, inner = [*axes, more], (*scope, index)
        step: Stmt = self.update(name, at, dtype, inner)
        if self.chance(60):
            step = If(self.condition(inner, 1), (step,))
        body: tuple[Stmt, ...] = (step,)
        if self.chance(30):
            body = (*body, self.update(name, at, dtype, inner))
        self.nest(extra, inner, body)
        self.declare(Param(name, dtype, shape))

    def nest(self, loops: list[Axis], scope: Scope, body: tuple[Stmt, ...]) -> None:
        for n, axis in enumerate(reversed(loops)):
            where = self.where(scope, 20) if n == 0 else ()
            kind: LoopKind = "for"
            if isinstance(axis.extent, Const) and self.chance(50):
                kind = "unroll"
            body = (Loop(kind, axis, where, body),)
        self.body.extend(body)

    def sequence(self) -> None:
        """A loop that carries values from one element to the next, in place."""
        axis = Axis(self.name(()), self.pick(self.extents))
        scope: Scope = (axis_index(axis),)
        dtype = self.dtype()
        name = self.memory(dtype, (axis.extent,))
        before = Read(name, (op("sub", Var(axis.name), const(1)),), dtype, self.constant(dtype))
        value = self.combine(dtype, before, self.expr(dtype, scope, 2))
        self.body.append(Loop("for", axis, (), (Store(name, (Var(axis.name),), value),)))
        self.declare(Param(name, dtype, (axis.extent,)))

    # --- the whole ---------------------------------------------------------------------------

    def finish(self) -> Kernel:
        read = {n.tensor for s in self.body for n in walk(s) if isinstance(n, Read)}
        outputs = [p for p in self.written.values() if p.name not in read or p.name in self.kept]
        others = [p for p in self.written.values() if p not in outputs]
        outputs += self.sample(others, self.below(2))
        outputs = outputs or list(self.written.values())[-1:]
        order = {name: n for n, name in enumerate(self.written)}
        outputs.sort(key=lambda p: order[p.name])
        names = {p.name for p in outputs}
        body = tuple(
            _stored(s, names) for s in self.body if not (isinstance(s, Buffer) and s.name in names)
        )
        used = {n.tensor for s in body for n in walk(s) if isinstance(n, Read)}
        inputs = tuple(p for p in self.inputs.values() if p.name in used) or tuple(
            self.inputs.values()
        )
        return Kernel("k", tuple(self.dims), inputs, tuple(outputs), tuple(self.constraints), body)


def _stored(stmt: Stmt, outputs: set[str]) -> Stmt:
    """The statement with definitions of single elements of outputs as what their text means."""
    if isinstance(stmt, Loop):
        return replace(stmt, body=tuple(_stored(s, outputs) for s in stmt.body))
    if isinstance(stmt, Define) and not stmt.axes and stmt.name in outputs:
        return Store(stmt.name, stmt.dims, stmt.value)  # type: ignore[arg-type]
    return stmt


STATEMENTS: list[tuple[Callable[[Maker], None], float]] = [
    (Maker.map, 18),
    (Maker.reduce, 20),
    (Maker.arg, 6),
    (Maker.pad, 7),
    (Maker.draw_random, 3),
    (Maker.gather, 6),
    (Maker.recurrence, 9),
    (Maker.accumulate, 8),
    (Maker.tiled, 6),
    (Maker.staged, 5),
    (Maker.scatter, 6),
    (Maker.updates, 7),
    (Maker.sequence, 4),
]


def generate(seed: str | int) -> Kernel:
    """The kernel of a seed: well typed, parameters still open, not checked yet."""
    rng = random.Random(f"kernel {seed}")
    dice = Dice(rng)
    palette = [dtype_of(dice, MAIN)]
    for _ in range(dice.below(3)):
        palette.append(dtype_of(dice, LIKELY))
    maker = Maker(rng, palette, ())
    if dice.chance(35):
        maker.start_from(dice.pick(tuple(TEMPLATES)))
        count = dice.weighted([(0, 45), (1, 35), (2, 20)])
    else:
        maker.start_empty()
        count = dice.weighted([(1, 35), (2, 35), (3, 20), (4, 10)])
    for _ in range(count):
        maker.statement()
    return maker.finish()
