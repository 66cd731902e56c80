"""What the planner must know about a CPU, as data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """One core's vector unit and caches, and how many cores share the last cache.

    `vector_bits` is the width of a vector register, of which there are `registers`; cache sizes
    are in bytes: `l1` and `l2` of a core, `l3` shared by `cores`. `dots` are the types of which it
    adds groups of products in one instruction (see `kir.plan.cpu.pairs`).
    """

    vector_bits: int = 256
    registers: int = 16
    l1: int = 32 << 10
    l2: int = 512 << 10
    l3: int = 16 << 20
    cores: int = 2
    dots: tuple[str, ...] = ()

    @property
    def lanes(self) -> int:
        """Elements of 32 bits in a vector."""
        return self.vector_bits // 32
