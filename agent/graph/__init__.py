"""The graph of variants that a search has seen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from kir.ir import Step


@dataclass(frozen=True)
class Variant:
    """A node: a derivation, how it fared, and where it came from."""

    id: int
    parents: tuple[int, ...]
    steps: tuple[Step, ...]
    ir_hash: str
    status: str
    fitness: float


@dataclass
class Graph:
    """Variants by id, in the order of their making; `open` are those with proposals left."""

    variants: dict[int, Variant] = field(default_factory=dict)
    open: set[int] = field(default_factory=set)
    seen: set[str] = field(default_factory=set)

    def add(self, variant: Variant) -> None:
        """Take in an evaluated variant; one that failed is never expanded."""
        self.variants[variant.id] = variant
        self.seen.add(variant.ir_hash)
        if variant.status == "ok":
            self.open.add(variant.id)

    def expandable(self) -> Iterator[Variant]:
        return (v for v in self.variants.values() if v.id in self.open)

    def best(self) -> Variant | None:
        """The fittest variant that verified; the earlier one of equals."""
        good = [v for v in self.variants.values() if v.status == "ok"]
        return max(good, key=lambda v: (v.fitness, -v.id), default=None)
