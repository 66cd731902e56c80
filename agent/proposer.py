"""The operator: which derivations to try from a variant, or from two."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from kir.agent.graph import Graph, Variant
from kir.ir import Kernel, Step

Derivation = tuple[Step, ...]


@dataclass(frozen=True)
class Ask:
    """What a proposer is asked: to go on from `parents`, the first one open; from two, to cross
    them. `spec` is specialised to the dims that are tuned for."""

    run: int
    spec: Kernel
    parents: tuple[Variant, ...]
    graph: Graph
    seed: int


@dataclass(frozen=True)
class Proposal:
    """A derivation to evaluate. `provenance` goes into the store with it."""

    steps: Derivation
    kind: str = "step"
    provenance: Mapping[str, Any] = field(default_factory=dict)


class Proposer(Protocol):
    """Gives derivations near the variants asked about. They need not apply, be right or fast: that
    is found out."""

    name: str

    def propose(self, ask: Ask) -> Iterator[Proposal]:
        """Lazily, best guesses first; the search takes the first that is new. One that gives
        nothing new has nothing more to say about these variants."""

    def spent(self) -> Mapping[str, float]:
        """What it used so far, such as `tokens` and `dollars`."""
