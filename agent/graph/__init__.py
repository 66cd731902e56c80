"""The graph of variants that a search has seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from kir.ir import Step


@dataclass(frozen=True)
class Variant:
    """A node: a derivation, how it fared, and where it came from. `features` are the IR's."""

    id: int
    parents: tuple[int, ...]
    steps: tuple[Step, ...]
    ir_hash: str
    status: str
    fitness: float
    kind: str = "step"
    seconds: float | None = None
    error: str = ""
    features: Mapping[str, float] = field(default_factory=dict, compare=False, hash=False)


@dataclass
class Graph:
    """Variants by id, in the order of their making; `open` are those with proposals left."""

    variants: dict[int, Variant] = field(default_factory=dict)
    open: set[int] = field(default_factory=set)
    seen: set[str] = field(default_factory=set)
    children: dict[int, list[int]] = field(default_factory=dict)

    def add(self, variant: Variant) -> None:
        """Take in an evaluated variant; one that failed is never expanded."""
        self.variants[variant.id] = variant
        self.seen.add(variant.ir_hash)
        for parent in variant.parents:
            self.children.setdefault(parent, []).append(variant.id)
        if variant.status == "ok":
            self.open.add(variant.id)

    def expandable(self) -> Iterator[Variant]:
        return (v for v in self.variants.values() if v.id in self.open)

    def good(self) -> Iterator[Variant]:
        return (v for v in self.variants.values() if v.status == "ok")

    def best(self) -> Variant | None:
        """The fittest variant that verified; the earlier one of equals."""
        return max(self.good(), key=lambda v: (v.fitness, -v.id), default=None)

    def roots(self) -> list[Variant]:
        return [v for v in self.variants.values() if not v.parents]

    def ancestors(self, variant: Variant) -> list[Variant]:
        """The line of first parents, from the nearest to a root."""
        found: list[Variant] = []
        while variant.parents and variant.parents[0] in self.variants:
            variant = self.variants[variant.parents[0]]
            found.append(variant)
        return found

    def offspring(self, variant: Variant) -> list[Variant]:
        return [self.variants[c] for c in self.children.get(variant.id, ())]

    def siblings(self, variant: Variant) -> list[Variant]:
        """Other children of its first parent."""
        parent = self.variants.get(variant.parents[0]) if variant.parents else None
        return [v for v in self.offspring(parent) if v.id != variant.id] if parent else []
