"""`flush`: products of bf16 may be added in pairs by an instruction that knows no subnormals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from kir.dtypes import bf16, f32
from kir.ir import Cast, Kernel, Loop, Op, Read, Store
from kir.rewrites.base import (
    Effect,
    Move,
    Rewrite,
    extent_of,
    find_loop,
    loops_of,
    refuse,
    replace_stmt,
)

PAIR = 2
FLUSH = "flush"
"""The hint that the loop gets; `hint` itself refuses to set it."""


@dataclass(frozen=True)
class Flush(Rewrite):
    """`flush(k)`: the pairs of bf16 products that the `tile` loop `k` adds to f32 may be added by
    an instruction (x86's `vdpbf16ps`) that takes subnormal operands for 0 and gives 0 for
    subnormal sums.

    Before::

        tile i: 6, j: 16, k: 2 { acc[i, j] += f32(a[k_o, i, k]) * f32(b[k_o, j, k]) }

    After `flush(k)`::

        tile i: 6, j: 16 {
          tile k: 2 hint(flush = 1) { acc[i, j] += f32(a[k_o, i, k]) * f32(b[k_o, j, k]) }
        }

    An operand below 2**-126 in magnitude may count as 0, and so may each partial sum. Normal
    numbers are added with one rounding each, the second product of a pair first. Chips without
    such an instruction compute as written. Refused for any other loop.
    """

    name: ClassVar[str] = "flush"
    effect: ClassVar[Effect] = "approximates"
    loop: str

    def edit(self, kernel: Kernel) -> Kernel:
        loop = find_loop(kernel, self.loop)
        if not is_pair(loop):
            refuse(
                kernel,
                f"`{self.loop}` adds no pairs of bf16 products to f32",
                node=loop,
                hint=f"`tile {self.loop}: 2 {{ acc[i, j] += f32(a[i, {self.loop}]) * "
                f"f32(b[j, {self.loop}]) }}`, of bf16 operands, does",
            )
        if (FLUSH, 1) in loop.hints:
            refuse(kernel, f"`{self.loop}` may flush already", node=loop)
        hints = (*loop.hints, (FLUSH, 1))
        return replace_stmt(kernel, loop, (replace(loop, hints=hints),))

    def bound(self) -> str:
        return (
            "of each product 2**-126 times the greater of 1 and its factors' magnitudes, of each "
            "sum 2**-126"
        )

    @classmethod
    def candidates(cls, kernel: Kernel) -> Iterator[Move]:
        """Every such loop that has not got it yet."""
        for loop in loops_of(kernel.body):
            if is_pair(loop) and (FLUSH, 1) not in loop.hints:
                yield Move(cls.name, (("loop", loop.axis.name),))


def is_pair(loop: Loop) -> bool:
    """Whether a loop is a tile of two lanes around one update by a product of two bf16 elements."""
    if loop.kind != "tile" or extent_of(loop) != PAIR or len(loop.body) != 1:
        return False
    match loop.body[0]:
        case Store(op="add", value=Op("mul", (Cast(Read() as a, to), Cast(Read() as b, other)))):
            return a.type == b.type == bf16 and to == other == f32
    return False


__all__ = ["FLUSH", "Flush"]
