"""Selection: which variant of the graph to expand next."""

from __future__ import annotations

from random import Random
from typing import Protocol

from kir.agent.graph import Graph, Variant
from kir.errors import UsageError


class Policy(Protocol):
    """A policy must be deterministic in the graph and `random`."""

    name: str

    def select(self, graph: Graph, random: Random) -> Variant | None:
        """An open variant of `graph`; None when none is left."""


class Greedy:
    """The fittest variant that still has proposals: a hill climb that falls back to the next
    best when it is stuck."""

    name = "greedy"

    def select(self, graph: Graph, random: Random) -> Variant | None:
        return max(graph.expandable(), key=lambda v: (v.fitness, -v.id), default=None)


POLICIES: dict[str, type[Policy]] = {"greedy": Greedy}


def make_policy(name: str) -> Policy:
    if name not in POLICIES:
        raise UsageError(f"unknown policy `{name}`", hint=f"there are: {', '.join(POLICIES)}")
    return POLICIES[name]()
