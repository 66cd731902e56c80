"""How much work a statement is, as code that computes it: a rough count that tells a loop worth a
team of threads from one that is not.

The unit is what a vector unit of 256 bits does to one f32 in 1/32 of a cycle's time: an operation
on a lane is 2, a read or a store of memory 1. Constant extents fold, so that the answer for known
shapes is a constant.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kir.backends.llvm.affine import conjuncts, product, reads_memory
from kir.backends.llvm.builder import V, integer
from kir.ir import Buffer, Expr, If, Loop, Op, Read, Stmt, Store, walk

if TYPE_CHECKING:
    from kir.backends.llvm.emit import Code

HEAVY = frozenset({
    "exp", "exp2", "expm1", "log", "log2", "log1p", "pow", "sin", "cos", "tan", "asin", "acos",
    "atan", "atan2", "sinh", "cosh", "tanh", "erf", "sigmoid", "philox", "rand",
})  # fmt: skip
MEDIUM = frozenset(("div", "sqrt", "rsqrt", "recip", "floordiv", "mod", "cdiv", "tdiv", "trem"))
LANES = 8
"""Times as long as on a lane of a vector an operation takes that stands alone."""
UNKNOWN = 32
"""Trips of a loop whose extent is read from memory."""


class Work:
    """Counts at the current place of `code`; loops' indices stand at the middle of their range."""

    def __init__(self, code: Code) -> None:
        self.code, self.b = code, code.b

    def nest(self, nest: Sequence[Loop]) -> V:
        """The work of one iteration of the nest's innermost body, on the average."""
        loop, *inner = nest
        with self._middle(loop):
            return self.nest(inner) if inner else self._block(loop.body, LANES)

    def _block(self, body: Sequence[Stmt], scale: int) -> V:
        total = integer(0)
        for s in body:
            total = self.b.op("add", total, self._statement(s, scale))
        return total

    def _statement(self, s: Stmt, scale: int) -> V:
        if isinstance(s, Loop):
            return self._loop(s, scale)
        if isinstance(s, If):
            return self.b.op("add", integer(2 * scale), self._block(s.body, scale))
        if isinstance(s, Store):
            return integer(scale * (self._expression(s.value) + (2 if s.op else 1)))
        if isinstance(s, Buffer) and s.init is not None and not any(map(reads_memory, s.shape)):
            return self.code.access.uniform(product(list(s.shape)))
        return integer(0)

    def _loop(self, s: Loop, scale: int) -> V:
        with self._middle(s) as extent:
            once = self._block(s.body, 1 if s.kind == "tile" else scale)
        if s.kind == "for":
            once = self.b.op("add", once, integer(LANES))
        return self.b.op("mul", extent, once)

    @contextmanager
    def _middle(self, s: Loop) -> Iterator[V]:
        """The loop's extent; meanwhile its index stands for half of that."""
        known = not reads_memory(s.axis.extent)
        extent = self.code.access.uniform(s.axis.extent) if known else integer(UNKNOWN)
        for c in (c for e in s.where for c in conjuncts(e) if s.kind != "tile"):
            limit = self.code.limit(s, c)
            if limit is not None:
                within = self.b.intrinsic("llvm.smin", extent, limit)
                extent = self.b.intrinsic("llvm.smax", within, integer(0))
        constant = extent.constant
        if constant is not None:
            half = integer(constant // 2)
        else:
            half = self.b.op("lshr", extent, integer(1))
        values, name = self.code.scope.values, s.axis.name
        values[name] = half
        try:
            yield extent
        finally:
            del values[name]

    def _expression(self, e: Expr) -> int:
        total = 0
        for n in walk(e):
            if isinstance(n, Read):
                total += 1
            elif isinstance(n, Op):
                total += 40 if n.name in HEAVY else 16 if n.name in MEDIUM else 2
        return total
