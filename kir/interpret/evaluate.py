"""The interpreter: runs any kernel, spec or scheduled, over a domain of values.

Loops whose iterations may run side by side (`kir.interpret.affine`), the axes of definitions and
of reductions become axes of NumPy arrays, in chunks that keep temporaries within `BUDGET`
elements. All other loops run in order. Conditions are masks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from kir.dtypes import DType, bool_, i64
from kir.errors import EvaluationError
from kir.interpret.affine import Affine, LoopPlan, affine
from kir.interpret.domain import Array, Domain, Value
from kir.interpret.memory import (
    Index,
    Lane,
    Strided,
    Tensor,
    bind,
    bordered,
    distinct,
    in_order,
    lanes,
    layout,
    places,
    view,
)
from kir.ir import (
    ARG_REDUCTIONS,
    REDUCTIONS,
    Axis,
    Bitcast,
    Buffer,
    Cast,
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
    Var,
    children,
    walk,
)
from kir.ops import identity
from kir.simplify import interval

BUDGET = 1 << 22
"""Most elements that one temporary should have."""
GUESS = 256
"""Extent assumed, for the budget only, where none is known beforehand."""


class Evaluator:
    """One run of a kernel whose dims are all constants."""

    def __init__(self, domain: Domain, kernel: Kernel, inputs: Mapping[str, Value]) -> None:
        self.domain = domain
        self.kernel = kernel
        self.outputs = frozenset(p.name for p in kernel.outputs)
        self.plan = LoopPlan(self.outputs)
        self.frame: list[int] = []
        self.env: dict[str, Index] = {}
        self.masks: list[Value | None] = [None]
        """The condition on each lane; on top of it, one more inside each reduction."""
        self.tensors: dict[str, Tensor] = {}
        self.costs: dict[int, int] = {}
        self.forms: dict[int, Affine | None] = {}
        """By the id of an index expression; all of them live as long as the run."""
        self.slots: dict[int, tuple[Expr, ...]] = {}
        """The indices that a definition stores to, by its id."""
        self.borders: dict[tuple[object, ...], Tensor] = {}
        self.lost = False
        """Whether the extent of a loop was in doubt, so that nothing can be said any more."""
        self.ranges = {
            a.name: (0, max(int(a.extent.value) - 1, 0) if isinstance(a.extent, Const) else None)
            for a in walk(kernel)
            if isinstance(a, Axis)
        }
        for p in kernel.inputs:
            planes = inputs[p.name]
            self.tensors[p.name] = Tensor(p.name, p.type, planes[0].shape, (), planes, True)
        for p in kernel.outputs:
            shape = tuple(_greatest(self.extent(e))[0] for e in p.shape)
            self.new(p.name, p.type, shape)

    def run(self) -> dict[str, Value]:
        self.block(self.kernel.body)
        found = {p.name: self.tensors[p.name].planes for p in self.kernel.outputs}
        if self.lost:
            found = {n: self.domain.unknown(v, np.ones((), np.bool_)) for n, v in found.items()}
        return found

    # --- statements --------------------------------------------------------------------------

    def block(self, body: Sequence[Stmt]) -> None:
        before = set(self.tensors)
        for s in body:
            if isinstance(s, Define):
                self.define(s)
            elif isinstance(s, Buffer):
                self.buffer(s)
            elif isinstance(s, Store):
                self.write(self.tensors[s.target], s.indices, s.value, s.op, s)
            elif isinstance(s, If):
                self.guarded((s.condition,), s.body)
            elif isinstance(s, Loop):
                self.loop(s)
        for name in self.tensors.keys() - before:
            del self.tensors[name]

    def guarded(self, conditions: Sequence[Expr], body: Sequence[Stmt]) -> None:
        before = self.masks[-1]
        if all(self.restrict(self.eval(c)) for c in conditions):
            self.block(body)
        self.masks[-1] = before

    def loop(self, s: Loop) -> None:
        for define, extents in _recurrences(s):
            if define.name not in self.outputs:
                self.allocate(define, extents)
        extent = self.extent(s.axis.extent)
        count, varies = _greatest(extent)
        count = self.reach(s, extent, count)
        if self.plan.side_by_side(s):
            cost = self.cost_of_block(s)
            self.nest([s.axis], cost, lambda: self.guarded(s.where, s.body), count)
            return
        for n in range(count):
            before = self.masks[-1]
            self.env[s.axis.name] = n
            inside = self.domain.lift(np.asarray(n < extent), bool_)
            if not varies or self.restrict(inside):
                self.guarded(s.where, s.body)
            self.masks[-1] = before
        self.env.pop(s.axis.name, None)

    def reach(self, s: Loop, extent: int | Array, count: int) -> int:
        """How many iterations there are up to the last that `where` lets through on some lane."""
        if not s.where or count < 2 or count * math.prod(self.frame) > BUDGET:
            return count
        with self.lane(s.axis.name, 0, count, extent) as alive:
            if not alive or not all(self.restrict(self.eval(c)) for c in s.where):
                return 0
            mask = self.masks[-1]
            if mask is None or mask[0].ndim < len(self.frame):
                return count
            doubt = self.domain.doubt(mask)
            open_ = mask[0] if doubt is None else mask[0] | doubt
            some = np.flatnonzero(open_.any(axis=tuple(range(1, open_.ndim))))
            return int(some[-1]) + 1 if some.size else 0

    def define(self, s: Define) -> None:
        if s.name not in self.outputs and len(s.axes) == len(s.dims):
            self.allocate(s, {})
        indices = self.slots.setdefault(id(s), tuple(Var(d.name) for d in s.dims))

        def body() -> None:
            self.write(self.tensors[s.name], indices, s.value, None, s)

        self.nest(s.axes, self.cost(s.value), body)

    def allocate(self, s: Define, extents: Mapping[str, Expr]) -> None:
        shape = [d.extent if isinstance(d, Axis) else extents[d.name] for d in s.dims]
        self.new(s.name, s.value.dtype, tuple(_greatest(self.extent(e))[0] for e in shape))

    def buffer(self, s: Buffer) -> None:
        tensor = self.new(s.name, s.type, tuple(_greatest(self.extent(e))[0] for e in s.shape))
        if s.init is not None:
            depth = len(self.frame)
            for plane, value in zip(tensor.planes, self.eval(s.init), strict=True):
                lead = (1,) * (depth - value.ndim) + value.shape
                plane[...] = value.reshape((*lead, *(1,) * len(tensor.shape)))

    def new(self, name: str, dtype: DType, shape: tuple[int, ...]) -> Tensor:
        private = tuple(reversed(self.frame))
        planes = self.domain.poison(private + shape, dtype)
        self.tensors[name] = Tensor(name, dtype, shape, private, planes)
        return self.tensors[name]

    def write(
        self, target: Tensor, indices: Sequence[Expr], value: Expr, op: str | None, s: Stmt
    ) -> None:
        """`target[indices] op= value` for all lanes, in the order of the loops' iterations."""
        result = self.eval(value)
        bound = self.bound_indices(indices)
        if bound is not None and _inside(bound, target.shape, self.frame):
            place = layout(target, bound)
            free = [p for p, n in enumerate(self.frame) if n > 1 and p not in place.steps]
            if distinct(place, self.frame) and not (free and op is None):
                self.write_view(target, place, free, result, op)
                return
        self.write_scattered(target, indices, result, op, s)

    def write_view(
        self, target: Tensor, place: Strided, free: list[int], value: Value, op: str | None
    ) -> None:
        memory = tuple(view(p, place, self.frame, writeable=True) for p in target.planes)
        mask, dtype = self.masks[-1], target.dtype
        if op is not None and free:
            if mask is not None:
                value = self.domain.select(mask, value, self.domain.identity(op, dtype), dtype)
            terms = tuple(self.terms_first(p, free) for p in value)
            start = tuple(_kept(self.whole(m), free) for m in memory)
            total = self.domain.accumulate(op, start, terms, dtype)
            shape = self.whole(memory[0]).shape
            value = tuple(np.broadcast_to(t, start[0].shape).reshape(shape) for t in total)
        else:
            if op is not None:
                value = self.domain.op(op, [memory, value], [dtype, dtype], dtype)
            if mask is not None:
                value = self.domain.select(mask, value, memory, dtype)
        for m, v in zip(memory, value, strict=True):
            lead = v.ndim - m.ndim
            m[...] = v.reshape(v.shape[lead:]) if lead > 0 else v

    def whole(self, array: Array) -> Array:
        """`array` with one axis for each of the frame's."""
        return array.reshape((1,) * (len(self.frame) - array.ndim) + array.shape)

    def terms_first(self, array: Array, free: list[int]) -> Array:
        """Over the whole frame, with the axes at positions `free` joined in order in front."""
        depth = len(self.frame)
        full = np.broadcast_to(array, tuple(reversed(self.frame)))
        front = [depth - 1 - p for p in free]
        back = [a for a in range(depth) if a not in front]
        moved = full.transpose(front + back)
        return moved.reshape(-1, *moved.shape[len(front) :])

    def write_scattered(
        self, target: Tensor, indices: Sequence[Expr], value: Value, op: str | None, s: Stmt
    ) -> None:
        found, doubt = self.index_arrays(indices)
        outside = _outside(found, target.shape)
        self.refuse(outside, found, target, s)
        safe = [np.clip(i, 0, max(n - 1, 0)) for i, n in zip(found, target.shape, strict=True)]
        flat = in_order(places(target, safe, self.frame), self.frame)
        planes = tuple(in_order(p, self.frame) for p in value)
        memory = tuple(p.reshape(-1) for p in target.planes)
        mask = self.masks[-1]
        if mask is not None:
            active = in_order(mask[0], self.frame)
            unsure = self.domain.doubt(mask)
            if unsure is not None:
                maybe = in_order(unsure, self.frame)
                self.forget(memory, flat[maybe])
            flat, planes = flat[active], tuple(p[active] for p in planes)
        if flat.size:
            self.domain.scatter(op, memory, flat, planes, target.dtype)
        if doubt is not None and doubt.any():
            self.forget(memory, np.arange(memory[0].size))

    def forget(self, memory: Value, where: Array) -> None:
        hit = np.zeros(memory[0].shape, np.bool_)
        hit[where] = True
        for old, new in zip(memory, self.domain.unknown(memory, hit), strict=True):
            old[...] = new

    # --- loops and conditions ----------------------------------------------------------------

    def nest(
        self, axes: Sequence[Axis], cost: int, body: Callable[[], None], most: int | None = None
    ) -> None:
        """Run `body` with the axes as array axes, in chunks; `cost` elements in it per lane.

        `most` cuts the extent of a single axis short.

        The last axis is pushed first, so that arrays of a definition are laid out as it is;
        axes whose extent depends on another are pushed in their own order.
        """
        names = {a.name for a in axes}
        tied = any(isinstance(n, Var) and n.name in names for a in axes for n in walk(a.extent))
        if tied and len(axes) > 1:
            rest = cost * math.prod(self.upper(a.extent) for a in axes[1:])
            self.nest(axes[:1], rest, lambda: self.nest(axes[1:], cost, body))
            return
        extents = [self.extent(a.extent) for a in axes]
        counts = [_greatest(e)[0] if most is None else most for e in extents]
        room = max(1, BUDGET // (math.prod(self.frame) * max(cost, 1)))
        chunks: list[int] = []
        for k, count in enumerate(counts):
            chunk = max(1, min(count, room // max(1, math.prod(counts[k + 1 :]))))
            chunks.append(chunk)
            room = max(1, room // chunk)

        def go(k: int) -> None:
            if k < 0:
                body()
                return
            for low in range(0, counts[k], chunks[k]):
                size = min(chunks[k], counts[k] - low)
                with self.lane(axes[k].name, low, size, extents[k]) as alive:
                    if alive:
                        go(k - 1)

        go(len(axes) - 1)

    @contextmanager
    def lane(self, name: str, low: int, size: int, extent: int | Array) -> Iterator[bool]:
        """Bind an index to `low .. low + size - 1`; where the extent varies, mask."""
        before = self.masks[-1]
        self.env[name] = Lane(len(self.frame), low) if size > 1 else low
        if size > 1:
            self.frame.append(size)
        alive = True
        if not isinstance(extent, int):
            values = lanes(self.frame, len(self.frame) - 1, low) if size > 1 else np.asarray(low)
            alive = self.restrict(self.domain.lift(np.asarray(values < extent), bool_))
        try:
            yield alive
        finally:
            if size > 1:
                self.frame.pop()
            del self.env[name]
            self.masks[-1] = before

    def restrict(self, condition: Value) -> bool:
        """Mask by one more condition; whether a lane is left that may be active."""
        doubt = self.domain.doubt(condition)
        if doubt is None and condition[0].all():
            return True
        top = self.masks[-1]
        condition = tuple(p.copy() for p in condition)  # the body may write what it was read from
        merged = condition if top is None else self.domain.both(top, condition)
        self.masks[-1] = merged
        return bool(merged[0].any()) or (doubt is not None and bool(doubt.any()))

    def active(self) -> Array:
        found: Array = np.ones((), np.bool_)
        for mask in self.masks:
            if mask is not None:
                found = found & mask[0]
        return found

    def extent(self, expr: Expr) -> int | Array:
        """The extent of an axis: a number, or one for each lane."""
        if isinstance(expr, Const):
            return max(int(expr.value), 0)
        value = self.eval(expr)
        self.lost = self.lost or self.domain.doubt(value) is not None
        if value[0].ndim == 0:
            return max(int(value[0]), 0)
        return np.where(self.active(), np.maximum(value[0], 0), 0)

    def upper(self, extent: Expr) -> int:
        high = interval(extent, self.ranges)[1]
        return GUESS if high is None else max(high, 1)

    def cost(self, expr: Node) -> int:
        """Elements per lane of the largest temporary in an expression."""
        if id(expr) not in self.costs:
            below = max((self.cost(c) for c in children(expr)), default=1)
            if isinstance(expr, Reduce):
                below *= math.prod(self.upper(a.extent) for a in expr.axes)
            self.costs[id(expr)] = below
        return self.costs[id(expr)]

    def cost_of_block(self, block: Loop | If) -> int:
        if id(block) not in self.costs:
            self.costs[id(block)] = max((self.cost_of(s) for s in block.body), default=1)
        return self.costs[id(block)]

    def cost_of(self, s: Stmt) -> int:
        if isinstance(s, Loop):
            inside = self.upper(s.axis.extent) if self.plan.side_by_side(s) else 1
            return inside * self.cost_of_block(s)
        if isinstance(s, If):
            return self.cost_of_block(s)
        if isinstance(s, Buffer):
            return math.prod(self.upper(e) for e in s.shape)
        if isinstance(s, Define):
            return self.cost(s.value) * math.prod(self.upper(a.extent) for a in s.axes)
        return self.cost(s)

    # --- expressions -------------------------------------------------------------------------

    def eval(self, e: Expr) -> Value:
        """The value over the frame; axes that it does not depend on may have size 1."""
        if isinstance(e, Const):
            return self.domain.constant(e.value, e.type)
        if isinstance(e, Var):
            index = self.env[e.name]
            if isinstance(index, Lane):
                return self.domain.lift(lanes(self.frame, index.position, index.offset), i64)
            return self.domain.lift(np.asarray(index), i64)
        if isinstance(e, Read):
            return self.read(e)
        if isinstance(e, Op):
            args = [self.eval(a) for a in e.args]
            return self.domain.op(e.name, args, [a.dtype for a in e.args], e.type)
        if isinstance(e, Cast):
            return self.domain.cast(self.eval(e.value), e.value.dtype, e.type)
        if isinstance(e, Bitcast):
            return self.domain.bitcast(self.eval(e.value), e.value.dtype, e.type)
        assert isinstance(e, Reduce)
        return self.arg_reduce(e) if e.name in ARG_REDUCTIONS else self.reduce(e)

    def reduce(self, e: Reduce) -> Value:
        op, dtype, depth = REDUCTIONS[e.name], e.body.dtype, len(self.frame)
        neutral = self.domain.constant(identity(op, dtype).value, dtype)
        count = self.terms(e)
        total: list[Value] = []

        def body() -> None:
            if not all(self.restrict(self.eval(c)) for c in e.where):
                return
            value = self.eval(e.body)
            if self.masks[-1] is not None:
                value = self.domain.select(self.masks[-1], value, neutral, dtype)
            added = len(self.frame) - depth
            first = self.whole(value[0]) if added else value[0]
            lead = tuple(reversed(self.frame[depth:]))
            first = np.broadcast_to(first, lead + first.shape[added:])
            part = self.domain.reduce(op, (first, *value[1:]), added, count, dtype)
            if total:
                part = self.domain.op(op, [total.pop(), part], [dtype, dtype], dtype)
            total.append(part)

        self.masks.append(None)
        self.nest(e.axes, self.cost(e.body), body)
        self.masks.pop()
        return total[0] if total else neutral

    def terms(self, e: Reduce) -> int:
        """How many terms a reduction has at most."""
        names = {a.name for a in e.axes}
        if any(isinstance(n, Var) and n.name in names for a in e.axes for n in walk(a.extent)):
            return math.prod(self.upper(a.extent) for a in e.axes)
        return math.prod(_greatest(self.extent(a.extent))[0] for a in e.axes)

    def arg_reduce(self, e: Reduce) -> Value:
        (axis,) = e.axes
        extent = self.extent(axis.extent)
        count, _ = _greatest(extent)
        found = self.domain.constant(-1, i64)
        if not count:
            return found
        self.masks.append(None)
        self.frame.append(count)  # even where it is 1: the index along it is the result
        self.env[axis.name] = Lane(len(self.frame) - 1, 0)
        alive = True
        if not isinstance(extent, int):
            values = lanes(self.frame, len(self.frame) - 1)
            alive = self.restrict(self.domain.lift(np.asarray(values < extent), bool_))
        if alive and all(self.restrict(self.eval(c)) for c in e.where):
            value = self.eval(e.body)
            mask = self.masks[-1] or self.domain.constant(True, bool_)
            first = self.whole(value[0])
            first = np.broadcast_to(first, (count, *first.shape[1:]))
            found = self.domain.argument(e.name, (first, *value[1:]), mask, e.body.dtype)
        del self.env[axis.name]
        self.frame.pop()
        self.masks.pop()
        return found

    def read(self, e: Read) -> Value:
        tensor = self.tensors[e.tensor]
        bound = self.bound_indices(e.indices)
        if bound is not None:
            if _inside(bound, tensor.shape, self.frame):
                place = layout(tensor, bound)
                return tuple(view(p, place, self.frame) for p in tensor.planes)
            found = self.read_bordered(e, tensor, bound)
            if found is not None:
                return found
        return self.gather(e, tensor)

    def read_bordered(self, e: Read, tensor: Tensor, bound: tuple[Strided, ...]) -> Value | None:
        """Reads that leave the tensor, through a copy with a border; None where it is no use."""
        if e.fill is None:
            arrays, _ = self.index_arrays(e.indices)
            self.refuse(_outside(arrays, tensor.shape), arrays, tensor, e)
            fill = self.domain.identity("or", bool_)
            fill = self.domain.cast(fill, bool_, e.type)
        else:
            fill = self.eval(e.fill)
        if any(p.size != 1 for p in fill):
            return None
        spans = tuple(b.span(self.frame) for b in bound)
        key = (e.tensor, spans, *(p.tobytes() for p in fill))
        wide = self.borders.get(key) or bordered(tensor, spans, fill)
        if wide is None:
            return None
        if tensor.constant:
            self.borders[key] = wide
        moved = [
            Strided(b.constant - min(low, 0), b.steps)
            for b, (low, _) in zip(bound, spans, strict=True)
        ]
        place = layout(wide, moved)
        return tuple(view(p, place, self.frame) for p in wide.planes)

    def gather(self, e: Read, tensor: Tensor) -> Value:
        """A read through arrays of indices."""
        found, doubt = self.index_arrays(e.indices)
        outside = _outside(found, tensor.shape)
        if e.fill is None:
            self.refuse(outside, found, tensor, e)
        if math.prod(tensor.shape):
            safe = [np.clip(i, 0, n - 1) for i, n in zip(found, tensor.shape, strict=True)]
            flat = places(tensor, safe, self.frame)
            value: Value = tuple(p.reshape(-1)[flat] if p.ndim else p for p in tensor.planes)
        else:
            value = self.domain.cast(self.domain.constant(False, bool_), bool_, e.type)
        if e.fill is not None:
            inside = self.domain.lift(~outside, bool_)
            value = self.domain.select(inside, value, self.eval(e.fill), e.type)
        return value if doubt is None else self.domain.unknown(value, doubt)

    # --- indices -----------------------------------------------------------------------------

    def bound_indices(self, indices: Sequence[Expr]) -> tuple[Strided, ...] | None:
        found = []
        for e in indices:
            if id(e) not in self.forms:
                self.forms[id(e)] = affine(e)
            form = self.forms[id(e)]
            if form is None:
                return None
            found.append(bind(form, self.env))
        return tuple(found)

    def index_arrays(self, indices: Sequence[Expr]) -> tuple[list[Array], Array | None]:
        """Indices as i64 arrays, and where they are in doubt."""
        found: list[Array] = []
        doubt: Array | None = None
        for e in indices:
            value = self.eval(e)
            found.append(value[0].astype(np.int64))
            unsure = self.domain.doubt(value)
            if unsure is not None:
                doubt = unsure if doubt is None else doubt | unsure
        return found, doubt

    def refuse(self, outside: Array, indices: list[Array], tensor: Tensor, node: Node) -> None:
        """EvaluationError where an active lane's index is out of range."""
        bad = outside & self.active()
        if not bad.any():
            return
        first = tuple(np.argwhere(bad)[0])
        values = [int(np.broadcast_to(i, bad.shape)[first]) for i in indices]
        for axis, (value, n) in enumerate(zip(values, tensor.shape, strict=True)):
            if not 0 <= value < n:
                raise EvaluationError(
                    f"`{tensor.name}[{', '.join(map(str, values))}]` is out of range: axis {axis} "
                    f"has {n} elements" + (f", 0 to {n - 1}" if n else ""),
                    hint="`where`, `if` or a read with `else` can leave such places out",
                    node=node,
                    kernel=self.kernel,
                )


def _greatest(extent: int | Array) -> tuple[int, bool]:
    """The greatest extent of all lanes, and whether it varies."""
    if isinstance(extent, int):
        return extent, False
    return int(extent.max(initial=0)), True


def _inside(indices: Sequence[Strided], shape: Sequence[int], frame: Sequence[int]) -> bool:
    for index, n in zip(indices, shape, strict=True):
        low, high = index.span(frame)
        if low < 0 or high >= n:
            return False
    return True


def _outside(indices: Sequence[Array], shape: Sequence[int]) -> Array:
    outside: Array = np.zeros((), np.bool_)
    for index, n in zip(indices, shape, strict=True):
        outside = outside | (index < 0) | (index >= n)
    return outside


def _kept(array: Array, free: list[int]) -> Array:
    """`array` over the frame without the axes at positions `free`, along which it has size 1."""
    return array.reshape([n for a, n in enumerate(array.shape) if array.ndim - 1 - a not in free])


def _recurrences(loop: Loop) -> Iterator[tuple[Define, dict[str, Expr]]]:
    """Definitions inside `loop` that have a slice for each of its iterations and for none of a
    loop further out, with the extents of the loops their dims name."""

    def go(
        body: Sequence[Stmt], extents: dict[str, Expr]
    ) -> Iterator[tuple[Define, dict[str, Expr]]]:
        for s in body:
            if isinstance(s, Define):
                names = {d.name for d in s.dims if isinstance(d, Var)}
                if loop.axis.name in names and names <= extents.keys():
                    yield s, extents
            elif isinstance(s, Loop):
                yield from go(s.body, {**extents, s.axis.name: s.axis.extent})
            elif isinstance(s, If):
                yield from go(s.body, extents)

    yield from go(loop.body, {loop.axis.name: loop.axis.extent})
