"""`cast_storage`: a conversion is made where a temporary is stored, once, not where it is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from kir.dtypes import DType
from kir.ir import Buffer, Cast, Expr, Kernel, Node, Read, Store, children, rebuild, walk
from kir.rewrites.base import Effect, Move, Rewrite, buffers_of, find_buffer, refuse, statements
from kir.rewrites.precision import dtype_named


@dataclass(frozen=True)
class CastStorage(Rewrite):
    """`cast_storage(t, dtype)`: a buffer that is read only as `dtype(t[i])` holds these values:
    the conversion is made where it is stored.

    Before::

        buffer t: bf16[64] in local
        for k: 64 { t[k] = b[k, j] }
        for i: M { for l: 64 { c[i, j] += f32(a[i, l]) * f32(t[l]) } }

    After `cast_storage(t, f32)`::

        buffer t: f32[64] in local
        for k: 64 { t[k] = f32(b[k, j]) }
        for i: M { for l: 64 { c[i, j] += f32(a[i, l]) * t[l] } }

    Every bit stays: a conversion of equal values gives equal values. An integer type that has all
    values of the old one may also stand between: `i32(t[i])` of an i8 is the same of an i16.
    Refused where a read stands under no such conversion, and where the buffer is updated.
    """

    name: ClassVar[str] = "cast_storage"
    effect: ClassVar[Effect] = "exact"
    buffer: str
    dtype: str

    def edit(self, kernel: Kernel) -> Kernel:
        dtype = dtype_named(kernel, self.dtype)
        old = find_buffer(kernel, self.buffer)
        if old.type == dtype:
            refuse(kernel, f"`{self.buffer}` is {dtype} already", node=old)
        for s in statements(kernel.body):
            if isinstance(s, Store) and s.target == self.buffer and s.op is not None:
                refuse(kernel, f"`{self.buffer}` is updated here, in {old.type}", node=s)
        bare = _bare_read(kernel, old, dtype)
        if bare is not None:
            refuse(kernel, f"this reads `{self.buffer}` otherwise than as {dtype}", node=bare)

        def visit(n: Node) -> Node:
            match n:
                case Cast(Read(tensor, _, _, fill) as read, to) if tensor == self.buffer:
                    held = None if fill is None else Cast(visited(fill), to)
                    at = tuple(visited(i) for i in read.indices)
                    if to != dtype and held is not None:
                        held = Cast(held.value, dtype)
                    made_read = replace(read, indices=at, type=dtype, fill=held)
                    return made_read if to == dtype else replace(n, value=made_read)
                case Store(target, _, value) if target == self.buffer:
                    made = rebuild(n, visit)
                    assert isinstance(made, Store)
                    return replace(made, value=Cast(made.value, dtype, span=value.span))
                case Buffer(name, _, _, _, init) if name == self.buffer:
                    start = None if init is None else Cast(visited(init), dtype)
                    return replace(n, type=dtype, init=start)
            return rebuild(n, visit)

        def visited(e: Expr) -> Expr:
            made = visit(e)
            assert isinstance(made, Expr)
            return made

        return rebuild(kernel, visit)

    @classmethod
    def candidates(cls, kernel: Kernel) -> Iterator[Move]:
        """Every buffer that some read takes under a cast."""
        found = dict.fromkeys(
            (n.value.tensor, n.type.name)
            for s in kernel.body
            for n in walk(s)
            if isinstance(n, Cast) and isinstance(n.value, Read)
        )
        buffers = {b.name for b in buffers_of(kernel.body)}
        for tensor, dtype in found:
            if tensor in buffers:
                yield Move(cls.name, (("buffer", tensor), ("dtype", dtype)))


def _bare_read(kernel: Kernel, buffer: Buffer, dtype: DType) -> Read | None:
    """A read of the buffer that is not the operand of a conversion to `dtype`, nor, where `dtype`
    has all values of the buffer's, to another integer type."""
    between = buffer.type.is_integer and dtype.is_integer and _has_all(dtype, buffer.type)

    def bare(n: Node) -> Read | None:
        if isinstance(n, Cast) and (n.type == dtype or (between and n.type.is_integer)):
            inner = n.value
            if isinstance(inner, Read) and inner.tensor == buffer.name:
                return first(children(inner))
        if isinstance(n, Read) and n.tensor == buffer.name:
            return n
        return first(children(n))

    def first(nodes: Iterable[Node]) -> Read | None:
        return next((found for n in nodes if (found := bare(n)) is not None), None)

    return first(kernel.body)


def _has_all(wide: DType, narrow: DType) -> bool:
    """Whether an integer type has every value of another one."""
    if wide.kind == narrow.kind:
        return wide.bits >= narrow.bits
    return narrow.kind == "uint" and wide.bits > narrow.bits
