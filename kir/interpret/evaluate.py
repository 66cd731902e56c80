"""The interpreter: runs any kernel, spec or scheduled, over a domain of values.

Loops whose iterations may run side by side (`kir.interpret.affine`), the axes of definitions and
of reductions become axes of NumPy arrays, in chunks that keep temporaries within the domain's
budget. All other loops run in order. Conditions are masks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from kir.dtypes import DType, bool_, i64
from kir.errors import EvaluationError
from kir.interpret.affine import affine, recurrences
from kir.interpret.contract import Product
from kir.interpret.domain import Array, Domain, Value
from kir.interpret.memory import (
    Index,
    Lane,
    Strided,
    Tensor,
    bind,
    bordered,
    distinct,
    greatest,
    in_order,
    inside,
    lanes,
    layout,
    outside_of,
    places,
    view,
)
from kir.interpret.program import Program
from kir.interpret.updates import accumulated
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
    Loop,
    Node,
    Op,
    Read,
    Reduce,
    Stmt,
    Store,
    Var,
    walk,
)
from kir.ops import identity


class Evaluator:
    """One run of a program."""

    def __init__(self, domain: Domain, program: Program, inputs: Mapping[str, Value]) -> None:
        kernel = program.kernel
        self.domain = domain
        self.kernel = kernel
        self.outputs = program.plan.outputs
        self.plan = program.plan
        self.frame: list[int] = []
        self.env: dict[str, Index] = {}
        self.masks: list[Value | None] = [None]
        """The condition on each lane; on top of it, one more inside each reduction."""
        self.tensors: dict[str, Tensor] = {}
        self.sizes = program.sizes(domain.contracts)
        self.forms = program.forms
        self.slots = program.slots
        self.borders: dict[tuple[object, ...], Tensor] = {}
        self.lost = False
        """Whether the extent of a loop was in doubt, so that nothing can be said any more."""
        for p in kernel.inputs:
            planes = inputs[p.name]
            self.tensors[p.name] = Tensor(p.name, p.type, planes[0].shape, (), planes, True)
        for p in kernel.outputs:
            shape = tuple(greatest(self.extent(e))[0] for e in p.shape)
            self.new(p.name, p.type, shape)

    def run(self) -> dict[str, Value]:
        with np.errstate(all="ignore"):
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
        for define, extents in recurrences(s):
            if define.name not in self.outputs:
                self.allocate(define, extents)
        extent = self.extent(s.axis.extent)
        count, varies = greatest(extent)
        count = self.reach(s, extent, count)
        if self.plan.side_by_side(s):
            cost = self.sizes.cost_of_block(s)
            self.nest([s.axis], cost, lambda: self.guarded(s.where, s.body), count)
            return
        for n in range(count):
            before = self.masks[-1]
            self.env[s.axis.name] = n
            going = self.domain.lift(np.asarray(n < extent), bool_)
            if not varies or self.restrict(going):
                self.guarded(s.where, s.body)
            self.masks[-1] = before
        self.env.pop(s.axis.name, None)

    def reach(self, s: Loop, extent: int | Array, count: int) -> int:
        """How many iterations there are up to the last that `where` lets through on some lane."""
        if not s.where or count < 2 or count * math.prod(self.frame) > self.domain.budget:
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

        self.nest(s.axes, self.sizes.cost(s.value), body)

    def allocate(self, s: Define, extents: Mapping[str, Expr]) -> None:
        shape = [d.extent if isinstance(d, Axis) else extents[d.name] for d in s.dims]
        self.new(s.name, s.value.dtype, tuple(greatest(self.extent(e))[0] for e in shape))

    def buffer(self, s: Buffer) -> None:
        tensor = self.new(s.name, s.type, tuple(greatest(self.extent(e))[0] for e in s.shape))
        if s.init is not None:
            depth = len(self.frame)
            init = self.domain.stored(self.eval(s.init), s.type)
            for plane, value in zip(tensor.planes, init, strict=True):
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
        bound = self.bound_indices(indices)
        if bound is not None and inside(bound, target.shape, self.frame):
            place = layout(target, bound)
            free = [p for p, n in enumerate(self.frame) if n > 1 and p not in place.steps]
            if distinct(place, self.frame) and not (free and op is None):
                self.write_view(target, place, free, value, op)
                return
        result = self.domain.stored(self.eval(value), target.dtype)
        self.write_scattered(target, indices, result, op, s)

    def write_view(
        self, target: Tensor, place: Strided, free: list[int], e: Expr, op: str | None
    ) -> None:
        memory = tuple(view(p, place, self.frame) for p in target.planes)
        mask, dtype = self.masks[-1], target.dtype
        if op is not None and free:
            value = accumulated(self, op, memory, free, e, dtype)
        else:
            value = self.domain.stored(self.eval(e), dtype)
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

    def write_scattered(
        self, target: Tensor, indices: Sequence[Expr], value: Value, op: str | None, s: Stmt
    ) -> None:
        found, doubt = self.index_arrays(indices)
        outside = outside_of(found, target.shape)
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
        self,
        axes: Sequence[Axis],
        cost: int,
        body: Callable[[], None],
        most: int | None = None,
        around: int | None = None,
    ) -> None:
        """Run `body` with the axes as array axes, in chunks; `cost` elements in it per lane.

        `most` cuts the extent of a single axis short. `around` is how many lanes there are
        already, as far as they matter: all of the frame's unless it is given.

        The last axis is pushed first, so that arrays of a definition are laid out as it is;
        axes whose extent depends on another are pushed in their own order.
        """
        names = {a.name for a in axes}
        tied = any(isinstance(n, Var) and n.name in names for a in axes for n in walk(a.extent))
        if tied and len(axes) > 1:
            rest = cost * math.prod(self.sizes.upper(a.extent) for a in axes[1:])
            self.nest(axes[:1], rest, lambda: self.nest(axes[1:], cost, body), around=around)
            return
        extents = [self.extent(a.extent) for a in axes]
        counts = [greatest(e)[0] if most is None else most for e in extents]
        around = math.prod(self.frame) if around is None else around
        room = max(1, self.domain.budget // max(1, around * cost))
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
        op, dtype = REDUCTIONS[e.name], e.body.dtype
        count = self.terms(e)
        pair = self.sizes.product(e)
        self.masks.append(None)
        done, total = False, None
        if pair is not None:
            cost = max(self.sizes.cost(pair.left), self.sizes.cost(pair.right))
            done, total = self.parts(
                e, cost, lambda depth: self.contracted(e, pair, depth, count), self.spread(pair)
            )
        if not done:
            cost = self.sizes.cost(e.body)
            _, total = self.parts(e, cost, lambda depth: self.combined(e, depth, count))
        self.masks.pop()
        return self.domain.constant(identity(op, dtype).value, dtype) if total is None else total

    def parts(
        self,
        e: Reduce,
        cost: int,
        part: Callable[[int], Value | None],
        around: int | None = None,
    ) -> tuple[bool, Value | None]:
        """A reduction chunk by chunk: whether `part` could do them all, and their total.

        `part` is given the depth of the frame around the reduction.
        """
        op, dtype, depth = REDUCTIONS[e.name], e.body.dtype, len(self.frame)
        total: list[Value] = []
        failed = False

        def body() -> None:
            nonlocal failed
            if failed or not all(self.restrict(self.eval(c)) for c in e.where):
                return
            found = part(depth)
            failed = found is None
            if found is None:
                return
            if total:
                found = self.domain.op(op, [total.pop(), found], [dtype, dtype], dtype)
            total.append(found)

        self.nest(e.axes, cost, body, around=around)
        return not failed, total[0] if total and not failed else None

    def combined(self, e: Reduce, depth: int, count: int) -> Value:
        """One chunk of a reduction, term by term."""
        op, dtype = REDUCTIONS[e.name], e.body.dtype
        value = self.eval(e.body)
        if self.masks[-1] is not None:
            neutral = self.domain.constant(identity(op, dtype).value, dtype)
            value = self.domain.select(self.masks[-1], value, neutral, dtype)
        added = len(self.frame) - depth
        first = self.whole(value[0]) if added else value[0]
        lead = tuple(reversed(self.frame[depth:]))
        first = np.broadcast_to(first, lead + first.shape[added:])
        return self.domain.reduce(op, (first, *value[1:]), added, count, dtype)

    def contracted(self, e: Reduce, pair: Product, depth: int, count: int) -> Value | None:
        """One chunk of a sum of products, by the domain's contraction; None where it declines."""
        factors = [self.eval(pair.left), self.eval(pair.right)]
        mask = self.masks[-1]
        if mask is not None:
            sizes = [math.prod(np.broadcast_shapes(mask[0].shape, f[0].shape)) for f in factors]
            k = sizes.index(min(sizes))
            if sizes[k] > max(self.domain.budget, factors[k][0].size):
                return None
            zero = self.domain.constant(0.0, pair.made)
            factors[k] = self.domain.select(mask, factors[k], zero, pair.made)
        left, right = (tuple(self.whole(p) for p in f) for f in factors)
        lead = tuple(reversed(self.frame))[: len(self.frame) - depth]
        return self.domain.contract(left, right, lead, count, pair.made, e.body.dtype)

    def spread(self, pair: Product) -> int:
        """How many lanes of the frame the larger factor of a product has, or its mask."""
        frames: list[set[int]] = []
        for names, factor in zip(pair.names, (pair.left, pair.right, None), strict=True):
            bound = [self.env[n] for n in names if n in self.env]
            used = {b.position for b in bound if isinstance(b, Lane)}
            reads = (n for n in walk(factor) if isinstance(n, Read)) if factor else ()
            for r in reads:
                private = reversed(self.tensors[r.tensor].private)
                used |= {p for p, n in enumerate(private) if n > 1}
            frames.append(used)
        return max(math.prod(self.frame[p] for p in used) for used in frames)

    def terms(self, e: Reduce) -> int:
        """How many terms a reduction has at most."""
        names = {a.name for a in e.axes}
        if any(isinstance(n, Var) and n.name in names for a in e.axes for n in walk(a.extent)):
            return math.prod(self.sizes.upper(a.extent) for a in e.axes)
        return math.prod(greatest(self.extent(a.extent))[0] for a in e.axes)

    def arg_reduce(self, e: Reduce) -> Value:
        (axis,) = e.axes
        extent = self.extent(axis.extent)
        count, _ = greatest(extent)
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
            if inside(bound, tensor.shape, self.frame):
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
            self.refuse(outside_of(arrays, tensor.shape), arrays, tensor, e)
            fill = self.domain.identity("or", bool_)
            fill = self.domain.cast(fill, bool_, e.type)
        else:
            fill = self.eval(e.fill)
        fill = self.domain.stored(fill, e.type)
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
        outside = outside_of(found, tensor.shape)
        if e.fill is None:
            self.refuse(outside, found, tensor, e)
        if math.prod(tensor.shape):
            safe = [np.clip(i, 0, n - 1) for i, n in zip(found, tensor.shape, strict=True)]
            flat = places(tensor, safe, self.frame)
            value: Value = tuple(p.reshape(-1)[flat] if p.ndim else p for p in tensor.planes)
        else:
            value = self.domain.cast(self.domain.constant(False, bool_), bool_, e.type)
        if e.fill is not None:
            within = self.domain.lift(~outside, bool_)
            value = self.domain.select(within, value, self.eval(e.fill), e.type)
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
