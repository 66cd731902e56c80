"""Which parts of a program the DMA and the matrix engine do: loop nests become calls, in the IR.

    tile r: 32, c: 64 { at[r, c] = a[r0 + r, c0 + c] else 0 }       a copy: Fill, Dma, Wait
    tile i: 32, j: 32, k: 32 { acc[i, j] += f32(at[i, k]) * f32(bt[k, j]) }            Mma

The statements Dma, Wait and Mma exist only between this pass and the emitter. A nest that is none
of these is left to the vector core, which can do everything; `Counts` says how many were which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from kir.backends.accel.machine import Machine, Matrix
from kir.dtypes import DType, i64
from kir.ir import (
    Axis,
    Buffer,
    Cast,
    Const,
    Expr,
    If,
    Kernel,
    Loop,
    Node,
    Op,
    Read,
    Stmt,
    Store,
    Var,
    const,
    substitute,
    transform,
    walk,
)
from kir.ops import op
from kir.rewrites.memory import determines
from kir.simplify import FALSE, linear, simplify


@dataclass(frozen=True)
class Dma(Stmt):
    """Move `rows` rows of `row` elements; strides in elements. `load` is global to local."""

    load: bool
    local: str
    local_at: tuple[Expr, ...]
    tensor: str
    tensor_at: tuple[Expr, ...]
    rows: Expr
    row: Expr
    local_stride: Expr
    tensor_stride: Expr
    type: DType


@dataclass(frozen=True)
class Wait(Stmt):
    """Until every transfer is done."""


@dataclass(frozen=True)
class Operand:
    """A matrix in the scratchpad: its first element, and its two strides in elements."""

    tensor: str
    at: tuple[Expr, ...]
    row: Expr
    column: Expr


@dataclass(frozen=True)
class Mma(Stmt):
    """acc[m, n] += a[m, k] * b[k, n]."""

    mode: Matrix
    acc: Operand
    a: Operand
    b: Operand
    m: Expr
    n: Expr
    k: Expr


@dataclass
class Counts:
    """What became of the nests that the engines might do, and static sizes where known."""

    dma: int = 0
    core_copies: int = 0
    mma: int = 0
    core_products: int = 0


@dataclass(frozen=True)
class Place:
    """A tensor or buffer: where it is, its dtype, its shape."""

    space: str
    type: DType
    shape: tuple[Expr, ...]

    def strides(self) -> tuple[Expr, ...]:
        """Row-major, in elements."""
        strides: list[Expr] = []
        step: Expr = const(1)
        for extent in reversed(self.shape):
            strides.append(step)
            step = simplify(op("mul", step, extent))
        return tuple(reversed(strides))


def with_engines(kernel: Kernel, machine: Machine) -> tuple[Kernel, Counts]:
    """The kernel with its engines' statements. Accumulators of the matrix engine become `local`."""
    places = {p.name: Place("global", p.type, p.shape) for p in kernel.params}
    first = _Pass(machine)
    first.block(kernel.body, places)

    def move(node: Node) -> Node | None:
        if isinstance(node, Buffer) and node.name in first.accumulators and node.space == "reg":
            return replace(node, space="local")
        return None

    moved = transform(kernel, move)
    engines = _Pass(machine)
    return replace(moved, body=engines.block(moved.body, places)), engines.counts


@dataclass
class _Pass:
    machine: Machine
    counts: Counts = field(default_factory=Counts)
    accumulators: set[str] = field(default_factory=set)

    def block(self, body: Sequence[Stmt], outer: Mapping[str, Place]) -> tuple[Stmt, ...]:
        places = dict(outer)
        done: list[Stmt] = []
        pending: set[str] = set()  # buffers of the transfers that the last wait is for
        for stmt in body:
            if isinstance(stmt, Buffer):
                places[stmt.name] = Place(stmt.space, stmt.type, stmt.shape)
                done.append(stmt)
                continue
            engine = self.engine(stmt, places)
            if engine is None:
                lanes = isinstance(stmt, Loop) and stmt.kind == "tile"  # engines serve no lane
                if isinstance(stmt, Loop | If) and not lanes:
                    stmt = replace(stmt, body=self.block(stmt.body, places))
                done.append(stmt)
                continue
            if not (done and isinstance(done[-1], Wait)):
                pending = set()
            if isinstance(engine[-1], Wait):
                touched = {n.local for s in engine for n in walk(s) if isinstance(n, Dma)}
                if pending and not pending & touched:
                    done.pop()  # transfers are done in order: one wait serves those in a row
                pending |= touched
            done.extend(engine)
        return tuple(done)

    def engine(self, stmt: Stmt, places: Mapping[str, Place]) -> tuple[Stmt, ...] | None:
        """What replaces a nest that an engine does; None where none does."""
        nest = nest_of(stmt)
        if nest is None:
            return None
        value = nest.store.value
        if nest.store.op is None and isinstance(value, Read):
            spaces = (places[nest.store.target].space, places[value.tensor].space)
            if spaces not in (("local", "global"), ("global", "local")):
                return None
            made = copy(nest, value, places, self.machine)
            self.counts.dma += made is not None
            self.counts.core_copies += made is None and len(nest.loops) == 1
            return made
        if nest.store.op == "add" and isinstance(value, Op) and value.name == "mul":
            product = mma(nest, value, places, self.machine)
            if product is None:
                self.counts.core_products += len(nest.loops) == 3
                return None
            self.counts.mma += 1
            self.accumulators.add(product.acc.tensor)
            guard = nest.guard(nest.where)
            return (If(guard, (product,)),) if guard is not None else (product,)
        return None


# --- nests -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Nest:
    """Perfectly nested loops, none of them a `grid`, around one store; the outermost first."""

    loops: tuple[Loop, ...]
    store: Store

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(x.axis.name for x in self.loops)

    @property
    def where(self) -> tuple[Expr, ...]:
        return tuple(c for x in self.loops for c in x.where)

    def coefficients(self, e: Expr) -> dict[str, int] | None:
        """The coefficient of each of the nest's indices in an i64 expression; None where it is
        not linear in them."""
        found = {}
        for atom, coefficient in linear(e).terms.items():
            if isinstance(atom, Var) and atom.name in self.names:
                found[atom.name] = coefficient
            elif _names(atom) & set(self.names):
                return None
        return found

    def at(self, indices: Sequence[Expr], values: Mapping[str, Expr]) -> tuple[Expr, ...]:
        """Indices with the nest's indices replaced."""
        return tuple(simplify(substitute(e, dict(values))) for e in indices)

    def guard(self, conditions: Sequence[Expr]) -> Expr | None:
        """The conditions that depend on none of the nest's indices, joined."""
        guard: Expr | None = None
        for c in conditions:
            if not _names(c) & set(self.names):
                guard = c if guard is None else op("and", guard, c)
        return guard

    def box(self, conditions: Sequence[Expr]) -> dict[str, Range] | None:
        """The range of each index for which all conditions hold; None where they are no box."""
        lows: dict[str, list[Expr]] = {n: [const(0)] for n in self.names}
        highs: dict[str, list[Expr]] = {x.axis.name: [x.axis.extent] for x in self.loops}
        for c in conditions:
            if not _names(c) & set(self.names):
                continue
            bound = self._bound(c)
            if bound is None:
                return None
            name, low, high = bound
            if low is not None:
                lows[name].append(low)
            if high is not None:
                highs[name].append(high)
        return {n: Range(_fold("max", lows[n]), _fold("min", highs[n])) for n in self.names}

    def _bound(self, c: Expr) -> tuple[str, Expr | None, Expr | None] | None:
        """`base + v < limit` and the like as (v, low, high)."""
        if not isinstance(c, Op) or c.name not in ("lt", "le", "gt", "ge"):
            return None
        left, right = c.args if c.name in ("lt", "le") else (c.args[1], c.args[0])
        if left.dtype != i64:
            return None
        gap = op("sub", right, left)  # the condition is gap > 0, or gap >= 0
        if c.name in ("le", "ge"):
            gap = op("add", gap, const(1))
        found = self.coefficients(gap)
        if found is None or len(found) != 1:
            return None
        ((name, coefficient),) = found.items()
        rest = simplify(substitute(gap, {name: const(0)}))
        if coefficient == -1:  # rest - v > 0
            return name, None, rest
        if coefficient == 1:  # rest + v > 0
            return name, simplify(op("sub", const(1), rest)), None
        return None


@dataclass(frozen=True)
class Range:
    """low <= index < high; empty where high <= low."""

    low: Expr
    high: Expr

    @property
    def count(self) -> Expr:
        return simplify(op("max", op("sub", self.high, self.low), const(0)))


def nest_of(stmt: Stmt) -> Nest | None:
    """The statement as a nest whose extents and body are plain; None where it is none."""
    loops: list[Loop] = []
    while isinstance(stmt, Loop) and stmt.kind != "grid" and len(stmt.body) == 1:
        loops.append(stmt)
        stmt = stmt.body[0]
    if not loops or not isinstance(stmt, Store):
        return None
    names = {x.axis.name for x in loops}
    if any(_names(x.axis.extent) & names for x in loops):
        return None
    plain = [*(x.axis.extent for x in loops), *(c for x in loops for c in x.where), *stmt.indices]
    if any(isinstance(n, Read) for e in plain for n in walk(e)):
        return None
    return Nest(tuple(loops), stmt)


def _names(e: Expr) -> set[str]:
    return {n.name for n in walk(e) if isinstance(n, Var)}


def _fold(name: str, values: Sequence[Expr]) -> Expr:
    result = values[0]
    for v in values[1:]:
        result = op(name, result, v)
    return simplify(result)


def stride(nest: Nest, indices: Sequence[Expr], place: Place) -> dict[str, Expr] | None:
    """How far one step of each index moves in a tensor, in elements; None where not linear."""
    found: dict[str, Expr] = {n: const(0) for n in nest.names}
    for e, step in zip(indices, place.strides(), strict=True):
        coefficients = nest.coefficients(e)
        if coefficients is None:
            return None
        for name, c in coefficients.items():
            found[name] = op("add", found[name], op("mul", step, const(c)))
    return {n: simplify(e) for n, e in found.items()}


# --- copies ----------------------------------------------------------------------------------


def copy(
    nest: Nest, read: Read, places: Mapping[str, Place], machine: Machine
) -> tuple[Stmt, ...] | None:
    """Transfers for a nest that copies between global memory and the scratchpad, with the fill of
    what is out of bounds; None where the DMA cannot do it."""
    store, source, target = nest.store, places[read.tensor], places[nest.store.target]
    if any(isinstance(n, Read) for e in read.indices for n in walk(e)):
        return None
    if not determines(store.indices, nest.loops):
        return None  # elements are stored more than once: the order counts
    from_strides = stride(nest, read.indices, source)
    to_strides = stride(nest, store.indices, target)
    conditions = nest.where
    inside = conditions + (() if read.fill is None else _in_bounds(read, source))
    outer_box, box = nest.box(conditions), nest.box(inside)
    if from_strides is None or to_strides is None or outer_box is None or box is None:
        return None
    if read.fill is not None and not isinstance(read.fill, Const):
        return None
    axes = _row_and_column(nest, from_strides, to_strides, machine)
    if axes is None:
        return None
    row, column = axes
    load = target.space == "local"
    local_strides, tensor_strides = (
        (to_strides, from_strides) if load else (from_strides, to_strides)
    )
    start: dict[str, Expr] = {
        n: r.low if n in axes else op("add", r.low, Var(n)) for n, r in box.items()
    }
    from_at, to_at = nest.at(read.indices, start), nest.at(store.indices, start)
    step = const(0) if row is None else None
    transfer = Dma(
        load=load,
        local=store.target if load else read.tensor,
        local_at=to_at if load else from_at,
        tensor=read.tensor if load else store.target,
        tensor_at=from_at if load else to_at,
        rows=const(1) if row is None else box[row].count,
        row=box[column].count,
        local_stride=step or local_strides[row or ""],
        tensor_stride=step or tensor_strides[row or ""],
        type=read.type,
    )
    if not _aligned(transfer, places, machine):
        return None
    move: Stmt = transfer
    for loop in reversed(nest.loops):
        if loop.axis.name not in axes:
            axis = Axis(loop.axis.name, box[loop.axis.name].count)
            move = Loop("for", axis, (), (move,))
    within = nest.guard(inside[len(conditions) :])
    if within is not None:
        move = If(within, (move,))
    done = (*_fill(nest, read, outer_box, box, within), move, Wait())
    guard = nest.guard(conditions)
    return done if guard is None else (If(guard, done),)


def _in_bounds(read: Read, place: Place) -> tuple[Expr, ...]:
    return tuple(
        c
        for e, extent in zip(read.indices, place.shape, strict=True)
        for c in (op("ge", e, const(0)), op("lt", e, extent))
    )


def _row_and_column(
    nest: Nest,
    from_strides: Mapping[str, Expr],
    to_strides: Mapping[str, Expr],
    machine: Machine,
) -> tuple[str | None, str] | None:
    """The index that is contiguous on both sides, and the longest other one, if any."""
    extents = {x.axis.name: _value(x.axis.extent) for x in nest.loops}
    one = const(1)
    columns = [n for n in nest.names if from_strides[n] == one and to_strides[n] == one]
    if not columns:
        return None
    column = columns[-1]
    others = [n for n in nest.names if n != column]
    fitting = [n for n in others if 1 < (extents[n] or 0) <= machine.dma.max_rows]
    fitting = [n for n in fitting if _forward(from_strides[n]) and _forward(to_strides[n])]
    longest = max(fitting, key=lambda n: extents[n] or 0, default=None)
    size = extents[column]
    if size is None or size * 8 > machine.dma.max_row_bytes:
        return None
    return longest, column


def _value(e: Expr) -> int | None:
    return int(e.value) if isinstance(e, Const) else None


def _forward(step: Expr) -> bool:
    """Whether a stride is sure to be at least 0: indices and dims are."""
    form = linear(step)
    return form.constant >= 0 and all(c >= 0 for c in form.terms.values())


def _aligned(transfer: Dma, places: Mapping[str, Place], machine: Machine) -> bool:
    """Whether every address, stride and row size is sure to be a multiple of the alignment."""
    size, alignment = transfer.type.bytes, machine.dma.alignment
    if alignment <= size:
        return True
    offsets: list[Expr] = [transfer.row, transfer.local_stride, transfer.tensor_stride]
    for name, at in ((transfer.local, transfer.local_at), (transfer.tensor, transfer.tensor_at)):
        for e, step in zip(at, places[name].strides(), strict=True):
            offsets.append(op("mul", e, step))

    def multiple(e: Expr) -> bool:
        form = linear(simplify(e))
        return not any(c * size % alignment for c in (form.constant, *form.terms.values()))

    return all(multiple(e) for e in offsets)


def _fill(
    nest: Nest,
    read: Read,
    outer: Mapping[str, Range],
    box: Mapping[str, Range],
    within: Expr | None,
) -> tuple[Stmt, ...]:
    """Stores of the fill all over `outer`, unless the transfer covers it: core code."""
    if read.fill is None:
        return ()
    partial: Expr = FALSE if within is None else op("not", within)
    for n in nest.names:
        partial = op("or", partial, op("ne", box[n].count, outer[n].count))
    partial = simplify(partial)
    if isinstance(partial, Const) and not partial.value:
        return ()
    start = {n: op("add", outer[n].low, Var(n)) for n in nest.names}
    body: Stmt = Store(nest.store.target, nest.at(nest.store.indices, start), read.fill)
    for loop in reversed(nest.loops):
        extent = outer[loop.axis.name].count
        kind = loop.kind if isinstance(extent, Const) else "for"
        body = Loop(kind, Axis(loop.axis.name, extent), (), (body,))
    return (If(partial, (body,)),)


# --- products --------------------------------------------------------------------------------


def mma(nest: Nest, value: Op, places: Mapping[str, Place], machine: Machine) -> Mma | None:
    """The matrix engine's call for `acc += a * b` over three `tile` indices; None where it has no
    such mode, the block is too large, or an operand is not on chip."""
    if len(nest.loops) != 3 or any(x.kind != "tile" for x in nest.loops):
        return None
    acc = Read(nest.store.target, nest.store.indices, nest.store.value.dtype)
    a, b = (_operand(x) for x in value.args)
    if a is None or b is None or acc.tensor in (a.tensor, b.tensor):
        return None
    mode = machine.engine(a.dtype, b.dtype, acc.dtype)
    on_chip = places[acc.tensor].space != "global" and all(
        places[x.tensor].space == "local" for x in (a, b)
    )
    box = nest.box(nest.where)
    if mode is None or not on_chip or box is None:
        return None
    steps = [stride(nest, x.indices, places[x.tensor]) for x in (acc, a, b)]
    acc_steps, a_steps, b_steps = steps
    if acc_steps is None or a_steps is None or b_steps is None:
        return None
    zero = const(0)
    m, n, k = (
        [v for v in nest.names if tuple(s[v] != zero for s in (acc_steps, a_steps, b_steps)) == on]
        for on in ((True, True, False), (True, False, True), (False, True, True))
    )
    if not (len(m) == len(n) == len(k) == 1):
        return None
    i, j, p = m[0], n[0], k[0]
    if not determines(acc.indices, [x for x in nest.loops if x.axis.name != p]):
        return None
    sizes = {x.axis.name: _value(x.axis.extent) for x in nest.loops}
    if any(
        size is None or size > most
        for size, most in ((sizes[i], mode.m), (sizes[j], mode.n), (sizes[p], mode.k))
    ):
        return None
    if not all(_forward(s[v]) for s in (acc_steps, a_steps, b_steps) for v in (i, j, p)):
        return None
    start = {v: r.low for v, r in box.items()}

    def operand(x: Read, steps: Mapping[str, Expr], row: str, column: str) -> Operand:
        return Operand(x.tensor, nest.at(x.indices, start), steps[row], steps[column])

    return Mma(
        mode,
        operand(acc, acc_steps, i, j),
        operand(a, a_steps, i, p),
        operand(b, b_steps, p, j),
        *(box[v].count for v in (i, j, p)),
    )


def _operand(e: Expr) -> Read | None:
    """The read of a factor, its widening cast taken off."""
    inner = e.value if isinstance(e, Cast) else e
    if isinstance(inner, Read) and inner.fill is None:
        return inner
    return None
