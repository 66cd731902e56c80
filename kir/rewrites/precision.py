"""Rewrites of precision: `narrow_storage`, `accumulate_in`. (`fast` is in `kir.rewrites.fast`.)"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from kir.dtypes import DTYPES, FLOATS, DType, f8e4m3
from kir.interpret.contract import widens
from kir.ir import (
    REDUCTIONS,
    Buffer,
    Cast,
    Const,
    Define,
    Expr,
    Kernel,
    Node,
    Op,
    Read,
    Reduce,
    Store,
    transform,
    walk,
)
from kir.ops import GREATEST_F8E4M3, identity
from kir.rewrites.base import (
    Choice,
    Effect,
    Move,
    Rewrite,
    buffers_of,
    find_buffer,
    refuse,
    statements,
)
from kir.rewrites.places import Valued, find_define, name_of, valued


def dtype_named(kernel: Kernel, name: str) -> DType:
    if name not in DTYPES:
        refuse(kernel, f"`{name}` is no dtype", hint=", ".join(DTYPES))
    return DTYPES[name]


def converted(value: Expr, dtype: DType) -> Expr:
    """`dtype(value)`, without an exact conversion that came before it."""
    if value.dtype == dtype:
        return value
    if isinstance(value, Cast):
        inner = value.value.dtype
        if inner == dtype and widens(inner, value.type):
            return value.value
        if widens(inner, value.type) and widens(inner, dtype):
            return Cast(value.value, dtype)
    return Cast(value, dtype)


def rounded(value: Const, dtype: DType) -> Const | None:
    """A constant in another float type; None where it would become infinite or NaN there."""
    with np.errstate(all="ignore"):
        found = float(np.asarray(value.value, value.type.numpy).astype(dtype.numpy))
    kept = np.isfinite(found) == np.isfinite(value.value) and np.isnan(found) == np.isnan(
        value.value
    )
    return Const(found, dtype) if kept else None


@dataclass(frozen=True)
class NarrowStorage(Rewrite):
    """`narrow_storage(t, dtype)`: a temporary is stored in a narrower float; what is stored is
    rounded, what is read is cast back.

    Before::

        t[i: N] = exp(x[i])
        y[i: N] = t[i] * 2

    After `narrow_storage(t, bf16)`::

        t[i: N] = bf16(exp(x[i]))
        y[i: N] = f32(t[i]) * 2

    `t` is a definition that is no output, or a buffer; one that sums or multiplies is refused
    (`accumulate_in` changes the type of an accumulator), and so is a narrower type that does not
    hold a buffer's first value. Exact where all that is stored was cast from the narrower type.
    """

    name: ClassVar[str] = "narrow_storage"
    effect: ClassVar[Effect] = "approximates"
    tensor: str
    dtype: str

    @property
    def keeps_range(self) -> bool:
        return False

    def edit(self, kernel: Kernel) -> Kernel:
        dtype = dtype_named(kernel, self.dtype)
        old = self._old(kernel)
        wide = old.type if isinstance(old, Buffer) else old.value.dtype
        if not narrows(wide, dtype):
            refuse(
                kernel,
                f"`{self.tensor}` is {wide}, and {dtype} is no narrower float",
                node=old,
                hint=", ".join(t.name for t in FLOATS if narrows(wide, t)) or None,
            )
        for s in statements(kernel.body):
            if isinstance(s, Store) and s.target == self.tensor and s.op in ("add", "mul"):
                refuse(
                    kernel,
                    f"`{self.tensor}` accumulates here",
                    node=s,
                    hint=f"`accumulate_in({self.tensor}, {dtype})` does it in {dtype}",
                )
        _check_matches(kernel, self.tensor, dtype)
        init = None
        if isinstance(old, Buffer) and old.init is not None:
            init = self._first(kernel, old, dtype)

        def visit(n: Node) -> Node | None:
            match n:
                case Read(tensor, _, _, fill) if tensor == self.tensor:
                    return Cast(replace(n, type=dtype, fill=_fill(fill, dtype)), wide)
                case Store(target, _, value) if target == self.tensor:
                    return replace(n, value=converted(value, dtype))
                case Define(name, _, value) if name == self.tensor:
                    return replace(n, value=converted(value, dtype))
                case Buffer(name) if name == self.tensor:
                    return replace(n, type=dtype, init=init)
            return None

        return replace(kernel, body=tuple(transform(s, visit) for s in kernel.body))

    def _old(self, kernel: Kernel) -> Buffer | Define:
        if any(p.name == self.tensor for p in kernel.params):
            what = "input" if any(p.name == self.tensor for p in kernel.inputs) else "output"
            refuse(kernel, f"`{self.tensor}` is an {what}: its dtype is given")
        if any(b.name == self.tensor for b in buffers_of(kernel.body)):
            return find_buffer(kernel, self.tensor)
        return find_define(kernel, self.tensor)

    def _first(self, kernel: Kernel, old: Buffer, dtype: DType) -> Expr:
        assert old.init is not None
        if not isinstance(old.init, Const):
            return converted(old.init, dtype)
        found = rounded(old.init, dtype)
        if found is None:
            refuse(kernel, f"{dtype} does not hold the first value of `{old.name}`", node=old)
        return found

    @classmethod
    def candidates(cls, kernel: Kernel) -> Iterator[Move]:
        given = {p.name for p in kernel.params}
        summed = {
            s.target
            for s in statements(kernel.body)
            if isinstance(s, Store) and s.op in ("add", "mul")
        }
        for s in statements(kernel.body):
            if isinstance(s, Define) and s.name not in given:
                dtype, first = s.value.dtype, None
            elif isinstance(s, Buffer) and s.name not in summed:
                dtype, first = s.type, s.init
            else:
                continue
            held = [t for t in FLOATS if narrows(dtype, t) and _holds(first, t)]
            if held:
                domain = Choice(tuple(t.name for t in held))
                yield Move(cls.name, (("tensor", s.name),), (("dtype", domain),))

    def effect_on(self, kernel: Kernel) -> Effect:
        dtype = dtype_named(kernel, self.dtype)
        stored = [s.value for s, _ in valued(kernel) if name_of(s) == self.tensor]
        old = self._old(kernel)
        if isinstance(old, Buffer) and old.init is not None:
            stored.append(old.init)
        reads = (n for s in kernel.body for n in walk(s) if isinstance(n, Read))
        stored += [n.fill for n in reads if n.tensor == self.tensor and n.fill is not None]
        return "exact" if all(_is_held(e, dtype) for e in stored) else "approximates"

    def in_ring(self, kernel: Kernel) -> bool:
        return _greatest_stays(kernel, self.tensor, dtype_named(kernel, self.dtype))

    def bound(self) -> str:
        dtype = DTYPES[self.dtype]
        return (
            f"one rounding to {dtype} on each element of `{self.tensor}`: relative "
            f"2^-{dtype.mantissa} within the range of {dtype}, no bound beyond it"
        )


def narrows(wide: DType, dtype: DType) -> bool:
    return wide.is_float and dtype.is_float and dtype.bits < wide.bits


def _fill(fill: Expr | None, dtype: DType) -> Expr | None:
    if isinstance(fill, Const):
        return rounded(fill, dtype) or Cast(fill, dtype)
    return None if fill is None else converted(fill, dtype)


def _holds(first: Expr | None, dtype: DType) -> bool:
    return not isinstance(first, Const) or rounded(first, dtype) is not None


def _is_held(e: Expr, dtype: DType) -> bool:
    """Whether a value is one of `dtype`, whatever its operands."""
    if isinstance(e, Const):
        found = rounded(e, dtype)
        return found is not None and (found.value == e.value or e.value != e.value)
    return isinstance(e, Cast) and (e.value.dtype == dtype or widens(e.value.dtype, dtype))


@dataclass(frozen=True)
class AccumulateIn(Rewrite):
    """`accumulate_in(target, dtype)`: a reduction, or a buffer that accumulates, does so in another
    type; its result is cast back.

    Before::

        s[i: M] = sum(j: N) x[i, j]

    After `accumulate_in(s, f64)`::

        s[i: M] = f32(sum(j: N) f64(x[i, j]))

    Before::

        buffer acc: f32 in reg = 0
        for j: N { acc += x[j] }
        y = acc

    After `accumulate_in(acc, f64)`::

        buffer acc: f64 in reg = 0
        for j: N { acc += f64(x[j]) }
        y = f32(acc)

    Of a definition (or a store) all reductions of its own type change. Floats may go to any float
    type, integers to wider ones of their kind, where wrapping on the way back gives the same (not
    where a sum is compared on its way). A
    wider sum still differs from the old one, so it approximates; extremes in a wider type are
    exact.
    """

    name: ClassVar[str] = "accumulate_in"
    effect: ClassVar[Effect] = "approximates"
    target: str
    dtype: str

    @property
    def keeps_range(self) -> bool:
        return False

    def edit(self, kernel: Kernel) -> Kernel:
        dtype = dtype_named(kernel, self.dtype)
        if any(b.name == self.target for b in buffers_of(kernel.body)):
            return self._buffer(kernel, find_buffer(kernel, self.target), dtype)
        known = [s for s, _ in valued(kernel) if name_of(s) == self.target]
        if not known:
            find_define(kernel, self.target)
        found = [r for s in known for r in _reductions(s)]
        if not found:
            refuse(kernel, f"`{self.target}` is no reduction", node=known[0])
        for r in found:
            self._converts(kernel, r.body.dtype, dtype, r)
            if not _keeps_identity(REDUCTIONS[r.name], r.body.dtype, dtype):
                refuse(
                    kernel,
                    f"a `{r.name}` over nothing would not be the same in {dtype}",
                    node=r,
                )

        def visit(n: Node) -> Node | None:
            if isinstance(n, Reduce) and n.name in REDUCTIONS and not n.body.dtype.is_bool:
                wide = n.body.dtype
                return Cast(replace(n, body=converted(n.body, dtype)), wide)
            return None

        def change(n: Node) -> Node | None:
            here = isinstance(n, Define | Store) and name_of(n) == self.target
            return transform(n, visit) if here else None

        return replace(kernel, body=tuple(transform(s, change) for s in kernel.body))

    def _converts(self, kernel: Kernel, old: DType, new: DType, node: Node) -> None:
        if not allows(old, new):
            refuse(
                kernel,
                f"what is accumulated in {old} cannot be accumulated in {new}",
                node=node,
                hint="floats may go to other floats, integers to wider ones of their kind",
            )

    def _buffer(self, kernel: Kernel, acc: Buffer, dtype: DType) -> Kernel:
        updates = _updates(kernel, self.target)
        if not updates:
            refuse(
                kernel,
                f"nothing is accumulated in `{self.target}`",
                node=acc,
                hint=f"`narrow_storage({self.target}, {dtype})` changes how it is stored",
            )
        self._converts(kernel, acc.type, dtype, acc)
        if acc.type.is_integer and len({s.op in ("max", "min") for s in updates}) > 1:
            refuse(
                kernel,
                f"`{self.target}` wraps, and is compared as it is then",
                node=next(s for s in updates if s.op in ("max", "min")),
            )
        if acc.type.is_float and not widens(acc.type, dtype):
            _check_matches(kernel, self.target, dtype)
        init = _start(acc, updates[0].op or "", dtype)
        if acc.init is not None and init is None:
            refuse(kernel, f"{dtype} does not hold the first value of `{self.target}`", node=acc)

        def visit(n: Node) -> Node | None:
            match n:
                case Read(tensor, _, _, fill) if tensor == self.target:
                    there = None if fill is None else converted(fill, dtype)
                    return Cast(replace(n, type=dtype, fill=there), acc.type)
                case Store(target, _, value) if target == self.target:
                    return replace(n, value=converted(value, dtype))
                case Buffer(name) if name == self.target:
                    return replace(n, type=dtype, init=init)
            return None

        return replace(kernel, body=tuple(transform(s, visit) for s in kernel.body))

    @classmethod
    def candidates(cls, kernel: Kernel) -> Iterator[Move]:
        for b in buffers_of(kernel.body):
            updates = _updates(kernel, b.name)
            if updates:
                yield from cls._move(
                    b.name,
                    b.type,
                    lambda t, b=b, u=updates: (  # type: ignore[misc]
                        b.init is None or _start(b, u[0].op or "", t) is not None
                    ),
                )
        seen: dict[str, list[tuple[str, DType]]] = {}
        for s, _ in valued(kernel):
            found = ((REDUCTIONS[r.name], r.body.dtype) for r in _reductions(s))
            seen.setdefault(name_of(s), []).extend(found)
        for name, kinds in seen.items():
            if len({old for _, old in kinds}) == 1:
                yield from cls._move(
                    name,
                    kinds[0][1],
                    lambda t, kinds=kinds: all(  # type: ignore[misc]
                        _keeps_identity(update, old, t) for update, old in kinds
                    ),
                )

    @classmethod
    def _move(cls, name: str, old: DType, holds: Callable[[DType], bool]) -> Iterator[Move]:
        open_to = tuple(t.name for t in DTYPES.values() if allows(old, t) and holds(t))
        if open_to:
            yield Move(cls.name, (("target", name),), (("dtype", Choice(open_to)),))

    def effect_on(self, kernel: Kernel) -> Effect:
        dtype = dtype_named(kernel, self.dtype)
        exact = all(
            old.is_integer or (op in ("max", "min") and widens(old, dtype))
            for op, old in self._accumulated(kernel)
        )
        return "exact" if exact else "approximates"

    def in_ring(self, kernel: Kernel) -> bool:
        """Not where 448, the greatest f8e4m3, stands for an infinity, and is a number after."""
        if any(op in ("max", "min") and old == f8e4m3 for op, old in self._accumulated(kernel)):
            return False
        return _greatest_stays(kernel, self.target, dtype_named(kernel, self.dtype))

    def _accumulated(self, kernel: Kernel) -> list[tuple[str, DType]]:
        """What the target is accumulated by, and in."""
        found: list[tuple[str, DType]] = []
        for b in buffers_of(kernel.body):
            if b.name == self.target:
                found += [(s.op or "", b.type) for s in _updates(kernel, b.name)]
        if not found:
            known = [s for s, _ in valued(kernel) if name_of(s) == self.target]
            found = [(REDUCTIONS[r.name], r.body.dtype) for s in known for r in _reductions(s)]
        return found

    def bound(self) -> str:
        dtype = DTYPES[self.dtype]
        return (
            f"of `{self.target}`: ((1 + 2^-{dtype.mantissa})^n - 1) times the sum of the "
            f"magnitudes of its n terms (of a product: its magnitude), and one rounding of the "
            f"result; no bound beyond the range of {dtype}"
        )


def allows(old: DType, new: DType) -> bool:
    """Whether what is accumulated in `old` may be accumulated in `new`."""
    if old.is_float:
        return new.is_float and new != old
    return old.is_integer and new.kind == old.kind and new.bits > old.bits


def _reductions(stmt: Valued) -> list[Reduce]:
    return [
        n
        for n in walk(stmt.value)
        if isinstance(n, Reduce) and n.name in REDUCTIONS and not n.body.dtype.is_bool
    ]


def _updates(kernel: Kernel, name: str) -> list[Store]:
    return [
        s for s in statements(kernel.body) if isinstance(s, Store) and s.target == name and s.op
    ]


def _greatest_stays(kernel: Kernel, tensor: str, dtype: DType) -> bool:
    """Whether no first value or fill of `tensor` is the greatest f8e4m3 before and not in `dtype`,
    or the other way about: the ring takes it for an infinity."""
    given = [b.init for b in buffers_of(kernel.body) if b.name == tensor]
    nodes = (n for s in kernel.body for n in walk(s))
    given += [n.fill for n in nodes if isinstance(n, Read) and n.tensor == tensor]

    def is_greatest(c: Const, t: DType) -> bool:
        return t == f8e4m3 and abs(float(np.asarray(c.value).astype(t.numpy))) == GREATEST_F8E4M3

    return all(
        is_greatest(c, c.type) == is_greatest(c, dtype) for c in given if isinstance(c, Const)
    )


def _start(acc: Buffer, update: str, dtype: DType) -> Expr | None:
    """The first value of an accumulator in another type, None where that does not hold it."""
    if acc.init is None or not isinstance(acc.init, Const):
        return None if acc.init is None else converted(acc.init, dtype)
    if acc.type.is_integer:
        return Const(acc.init.value, dtype)
    if acc.init == identity(update, acc.type) and _keeps_identity(update, acc.type, dtype):
        return identity(update, dtype)
    return rounded(acc.init, dtype)


def _check_matches(kernel: Kernel, tensor: str, dtype: DType) -> None:
    """Refuse a narrower type for what is looked for among other values, as an `argmax` does."""
    for s in kernel.body:
        for n in walk(s):
            if isinstance(n, Op) and n.name in ("eq", "ne") and _matches(n, tensor):
                refuse(
                    kernel,
                    f"`{tensor}` is looked for among other values here, and would not be found "
                    f"once rounded to {dtype}",
                    node=n,
                )


def _matches(test: Op, tensor: str) -> bool:
    """Whether a comparison has the tensor on one side, and no constant on the other."""
    reads = any(isinstance(n, Read) and n.tensor == tensor for a in test.args for n in walk(a))
    return reads and not any(isinstance(a, Const) for a in test.args)


def _keeps_identity(update: str, old: DType, new: DType) -> bool:
    """Whether an empty reduction in `new`, converted back, is that in `old`: the least integer of
    a wider type is not, nor what stands for an infinity in f8e4m3."""
    if update not in ("max", "min"):
        return True
    return old.is_float and (old == f8e4m3) == (new == f8e4m3)
