"""Reads that stride along the lanes of a tile but are contiguous along the tile's other axis: whole
blocks are loaded the other way and turned in registers, by blocks of 8 x 8.

    tile j: 16, i: 16 { y[j, i] = x[i, j] }

with lanes along `i` loads rows of `x`, and gives each `j` its column of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kir.backends.llvm.affine import coefficient, names, reads_memory
from kir.backends.llvm.builder import Builder, V, bits_of, integer
from kir.backends.llvm.scalars import memory
from kir.ir import Const, Expr, Loop, Read, Stmt, Store, const, substitute, walk

if TYPE_CHECKING:
    from kir.backends.llvm.emit import Code

SIDE = 8
"""Rows and columns of a block that is turned in registers."""

LEAST = 4
"""Rows from which on turning is worth it: a block of fewer than 8 is filled up with anything."""

INTERLEAVE = ((0, 8, 1, 9, 2, 10, 3, 11), (4, 12, 5, 13, 6, 14, 7, 15))
"""The masks that make of rows k and k + 4 the rows 2k and 2k + 1; three times, and it is done."""
HALVES = (
    (1, ((0, 8, 1, 9, 4, 12, 5, 13), (2, 10, 3, 11, 6, 14, 7, 15))),
    (2, ((0, 1, 8, 9, 4, 5, 12, 13), (2, 3, 10, 11, 6, 7, 14, 15))),
    (4, ((0, 1, 2, 3, 8, 9, 10, 11), (4, 5, 6, 7, 12, 13, 14, 15))),
)
"""For rows of 256 bits, whose halves mix only in the last step: what rows k and k + distance, the
first number, become."""


@contextmanager
def turned(code: Code, lane: Loop, other: Loop, body: Sequence[Stmt]) -> Iterator[None]:
    """Code for all copies of `body`, one for each value of `other`, the lanes along `lane`: reads
    of both axes come from blocks that are loaded and turned here, before the first copy."""
    found = _reads(code, lane, other, body)
    for e in found:
        code.scope.turned[e] = (other.axis.name, _block(code, e, lane, other))
    yield
    for e in found:
        del code.scope.turned[e]


def _extent(s: Loop) -> int:
    return int(s.axis.extent.value) if isinstance(s.axis.extent, Const) else 0


def _reads(code: Code, lane: Loop, other: Loop, body: Sequence[Stmt]) -> list[Read]:
    if not all(isinstance(s, Store) for s in body) or code.scope.mask is not None:
        return []
    if _extent(lane) < LEAST or _extent(other) % SIDE or not _extent(other):
        return []
    stored = {s.target for s in body if isinstance(s, Store)}
    known = {*code.scope.values, lane.axis.name, other.axis.name}
    reads = dict.fromkeys(n for s in body for n in walk(s) if isinstance(n, Read))
    return [
        e for e in reads
        if e.tensor not in stored and e.fill is None and names(e) <= known
        and _fits(code, e, lane.axis.name, other.axis.name)
    ]  # fmt: skip


def _fits(code: Code, e: Read, lane: str, other: str) -> bool:
    """Whether `other` walks the last index by ones, and `lane` the others by any steps."""
    if code.scope.tensors[e.tensor].lanes or any(reads_memory(i) for i in e.indices):
        return False
    steps = [(coefficient(i, lane), coefficient(i, other)) for i in e.indices]
    if not steps or steps[-1] != (0, 1) or any(o != 0 or s is None for s, o in steps[:-1]):
        return False
    return any(s for s, _ in steps)


def _block(code: Code, e: Read, lane: Loop, other: Loop) -> list[V]:
    """For each value of `other` the vector along `lane`, as it lies in memory."""
    access, b = code.access, code.b
    t = access.scope.tensors[e.tensor]
    rows, columns = _extent(lane), _extent(other)
    origin: dict[str, Expr] = {lane.axis.name: const(0), other.axis.name: const(0)}
    first = access.element(t, access.offset(t, [substitute(i, origin) for i in e.indices]))
    steps = [const(coefficient(i, lane.axis.name) or 0) for i in e.indices]
    stride, ty = access.offset(t, steps), memory(t.type)
    parts: list[list[V]] = [[] for _ in range(columns)]
    for row in range(0, rows, SIDE):
        starts = [
            b.gep(first, ty, b.op("mul nsw", stride, integer(row + k)))
            for k in range(min(SIDE, rows - row))
        ]
        if access.scope.ahead and t.outer:
            for p in starts:
                access.prefetch(t, e, p, columns * t.type.bytes)
        for column in range(0, columns, SIDE):
            loaded = [b.load(b.gep(p, ty, integer(column)), ty, SIDE, t.type.bytes) for p in starts]
            loaded += [V("poison", ty, SIDE)] * (SIDE - len(loaded))
            for k, v in enumerate(_turn(b, loaded)):
                parts[column + k].append(v)
    whole = [_joined(b, vectors) for vectors in parts]
    return whole if rows % SIDE == 0 else [_shuffle(b, v, v, range(rows)) for v in whole]


def _turn(b: Builder, rows: list[V]) -> list[V]:
    """Eight vectors of eight lanes, transposed."""
    if SIDE * bits_of(rows[0].ty) <= 128:
        for _ in range(3):
            pairs = [(rows[k], rows[k + 4], mask) for k in range(4) for mask in INTERLEAVE]
            rows = [_shuffle(b, *p) for p in pairs]
        return rows
    for distance, masks in HALVES:
        made = dict(enumerate(rows))
        for k in (k for k in range(SIDE) if not k & distance):
            for place, mask in zip((k, k + distance), masks, strict=True):
                made[place] = _shuffle(b, rows[k], rows[k + distance], mask)
        rows = [made[k] for k in range(SIDE)]
    return [rows[k] for k in (0, 2, 1, 3, 4, 6, 5, 7)]


def _joined(b: Builder, parts: list[V]) -> V:
    """Vectors one after another, as one."""
    vector, *rest = parts
    for other in rest:
        lanes, more = vector.lanes, other.lanes
        if more < lanes:  # both operands of a shuffle have the same lanes
            other = _shuffle(b, other, other, [*range(more), *([0] * (lanes - more))])
        vector = _shuffle(b, vector, other, range(lanes + more))
    return vector


def _shuffle(b: Builder, x: V, y: V, mask: Iterable[int]) -> V:
    places = [f"i32 {k}" for k in mask]
    text = f"shufflevector {x}, {y}, <{len(places)} x i32> <{', '.join(places)}>"
    return b.emit(text, x.ty, len(places))
