"""Products that a chip adds in groups before they reach the accumulator: `vpmaddwd` (pairs of i16),
which with VNNI takes the accumulator too (`vpdpwssd`), `vpdpbusd` (fours of u8 by i8) and
`vdpbf16ps` (pairs of bf16).

They are what a nest of tiles around one update says, where the innermost axis is the group:

    tile i: 6, j: 16, k: 2 { acc[i, j] += i32(a[..., i, k]) * i32(b[..., j, k]) }

with both operands' groups side by side in memory, and `b`'s groups side by side along `j`. Sums of
integers wrap, so that any order gives the same. `vdpbf16ps` takes subnormal numbers for 0: it is
used where the rewrite `flush` allows that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kir.backends.llvm.affine import coefficient, reads_memory
from kir.backends.llvm.builder import V, integer
from kir.backends.llvm.machine import Machine
from kir.backends.llvm.scalars import memory
from kir.backends.llvm.scope import Tensor
from kir.dtypes import DType, bf16, f32, i8, i16, i32, u8
from kir.ir import Cast, Const, Expr, Loop, Op, Read, Store

if TYPE_CHECKING:
    from kir.backends.llvm.emit import Code

LIMIT = 64
"""Copies of the instruction that one nest may become."""


@dataclass(frozen=True)
class Dot:
    """An instruction: which types it multiplies into which, how many at a time, what the chip must
    have for it, and its name by the bits of a vector. `one` is uniform along the lanes."""

    feature: str
    one: DType
    many: DType
    total: DType
    group: int
    names: dict[int, str]
    adds: bool
    """Whether it takes the accumulator."""


DOTS = (
    Dot("bf16", bf16, bf16, f32, 2, {512: "llvm.x86.avx512bf16.dpbf16ps.512",
                                    256: "llvm.x86.avx512bf16.dpbf16ps.256"}, True),
    Dot("u8i8", u8, i8, i32, 4, {512: "llvm.x86.avx512.vpdpbusd.512",
                                 256: "llvm.x86.avx512.vpdpbusd.256"}, True),
    Dot("i16", i16, i16, i32, 2, {512: "llvm.x86.avx512.pmaddw.d.512",
                                  256: "llvm.x86.avx2.pmadd.wd"}, False),
)  # fmt: skip


@dataclass(frozen=True)
class Match:
    """A nest that is such an update: its axes but the group's, the lanes' among them."""

    dot: Dot
    store: Store
    one: Read
    many: Read
    outer: tuple[Loop, ...]
    lanes: Loop
    group: str


def write(code: Code, nest: Sequence[Loop]) -> bool:
    """Write a nest by such an instruction, if it is one for the machine; else nothing."""
    found = match(code, nest)
    if found is None:
        return False
    _rows(code, found, 0)
    return True


# --- recognition -----------------------------------------------------------------------------


def match(code: Code, nest: Sequence[Loop]) -> Match | None:
    machine = code.machine
    if not machine.dots or len(nest) < 2 or any(n.where for n in nest):
        return None
    *outer, last = nest
    if len(last.body) != 1 or not isinstance(last.body[0], Store):
        return None
    store = last.body[0]
    factors = _factors(store)
    if factors is None or any(reads_memory(i) for i in store.indices):
        return None
    for dot in DOTS:
        if dot.feature not in machine.dots or _size(last) != dot.group or store.op != "add":
            continue
        if dot.one == bf16 and ("flush", 1) not in last.hints:
            continue  # it knows no subnormals, which must be asked for
        for one, many in (factors, factors[::-1]):
            for lanes in outer:
                rest = tuple(n for n in outer if n is not lanes)
                found = Match(dot, store, one, many, rest, lanes, last.axis.name)
                if _fits(code, found):
                    return found
    return None


def _factors(s: Store) -> tuple[Read, Read] | None:
    """The elements of `acc += T(a) * T(b)`."""
    match s.value:
        case Op("mul", (Cast(Read() as a, to), Cast(Read() as b, other))) if to == other:
            plain = not any(reads_memory(i) for r in (a, b) for i in r.indices)
            return (a, b) if plain and a.fill is None and b.fill is None else None
    return None


def _size(s: Loop) -> int:
    return int(s.axis.extent.value) if isinstance(s.axis.extent, Const) else 0


def _fits(code: Code, m: Match) -> bool:
    """Whether types, lanes and the places of elements are as the instruction wants them."""
    j, k = m.lanes.axis.name, m.group
    tensors = code.scope.tensors
    target, one, many = (tensors[n] for n in (m.store.target, m.one.tensor, m.many.tensor))
    if (one.type, many.type, target.type) != (m.dot.one, m.dot.many, m.dot.total):
        return False
    if target.lanes or one.lanes or many.lanes or target.outer:
        return False
    width = lanes_of(code.machine)
    copies = _size(m.lanes) // width
    for n in m.outer:
        copies *= _size(n)
    if not _size(m.lanes) or _size(m.lanes) % width or not 0 < copies <= LIMIT:
        return False
    last = many.shape[-1] if len(many.shape) > 1 else None
    return (
        _steps(m.store.indices, j) == _unit(len(target.shape), -1)
        and not any(_steps(m.store.indices, k))
        and not any(_steps(m.one.indices, j))
        and _steps(m.one.indices, k) == _unit(len(one.shape), -1)
        and isinstance(last, Const)
        and last.value == m.dot.group
        and _steps(m.many.indices, k) == _unit(len(many.shape), -1)
        and _steps(m.many.indices, j) == _unit(len(many.shape), -2)
    )


def _steps(indices: Sequence[Expr], name: str) -> list[int | None]:
    return [coefficient(i, name) for i in indices]


def _unit(rank: int, place: int) -> list[int]:
    """1 at a place, 0 at all others; too short to equal anything where there is no such place."""
    if rank < -place:
        return []
    return [int(d == rank + place) for d in range(rank)]


def lanes_of(machine: Machine) -> int:
    """Accumulators of 32 bits in a vector."""
    return machine.vector_bits // 32


# --- code ------------------------------------------------------------------------------------


def _rows(code: Code, m: Match, level: int) -> None:
    if level == len(m.outer):
        _row(code, m)
        return
    loop = m.outer[level]
    for i in range(_size(loop)):
        with code.bound(loop, integer(i)):
            _rows(code, m, level + 1)


def _row(code: Code, m: Match) -> None:
    """One row of accumulators: the group of `one` for all lanes, by the groups of `many`."""
    b, dot, width = code.b, m.dot, lanes_of(code.machine)
    tensors = code.scope.tensors
    target, one, many = (tensors[n] for n in (m.store.target, m.one.tensor, m.many.tensor))
    group = b.load(_place(code, m, one, m.one.indices, 0), "i32", 0, one.type.bytes)
    same = b.splat(group, width)
    total = "float" if dot.total == f32 else "i32"
    for start in range(0, _size(m.lanes), width):
        ty, lanes = _operand(dot, width)
        factors = _place(code, m, many, m.many.indices, start)
        right = b.load(factors, ty, lanes, many.type.bytes)
        left = b.emit(f"bitcast {same} to <{lanes} x {ty}>", ty, lanes)
        place = _place(code, m, target, m.store.indices, start)
        acc = b.load(place, total, width, target.type.bytes)
        name = dot.names[code.machine.vector_bits]
        if dot.adds:
            made = b.call(name, total, width, acc, left, right)
        else:
            made = b.op("add", acc, b.call(name, total, width, left, right))
        b.store(made, place, target.type.bytes)


def _operand(dot: Dot, width: int) -> tuple[str, int]:
    """The type of the elements of a vector operand, and their number."""
    if dot.one == bf16:
        return "bfloat", width * dot.group
    return memory(dot.many), width * dot.group


def _place(code: Code, m: Match, t: Tensor, indices: Sequence[Expr], start: int) -> V:
    """Where an element lies for the lane `start` and the group's first."""
    values = code.scope.values
    values[m.lanes.axis.name], values[m.group] = integer(start), integer(0)
    try:
        return code.access.element(t, code.access.offset(t, indices))
    finally:
        del values[m.lanes.axis.name], values[m.group]
