"""Selection: which variants of the graph to expand next.

A policy reads the graph and nothing else: a search that is resumed selects as it would have.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import Protocol

from kir.agent.graph import Graph, Variant
from kir.errors import UsageError


class Policy(Protocol):
    """A policy must be deterministic in the graph and `random`."""

    name: str

    def select(self, graph: Graph, random: Random) -> tuple[Variant, ...]:
        """An open variant to expand, or two to cross (the first one open); none when none is
        left."""


class Greedy:
    """The fittest variant that still has proposals: a hill climb that falls back to the next
    best when it is stuck."""

    name = "greedy"

    def select(self, graph: Graph, random: Random) -> tuple[Variant, ...]:
        return _fittest(graph)


class Beam:
    """Of the `width` fittest open variants the one that was expanded the least."""

    name = "beam"
    width = 4

    def select(self, graph: Graph, random: Random) -> tuple[Variant, ...]:
        front = sorted(graph.expandable(), key=lambda v: (-v.fitness, v.id))[: self.width]
        tried = min(front, key=lambda v: (len(graph.children.get(v.id, ())), v.id), default=None)
        return () if tried is None else (tried,)


class Uct:
    """Monte Carlo tree search: from the roots down to the child, or to a new child of the variant
    itself, of the greatest upper confidence bound (UCT: Kocsis and Szepesvari, ECML 2006). A
    subtree's value is the mean of its average and its best fitness over the best of all: what is
    sought is one good variant, not a good average."""

    name = "mcts"
    exploration = 0.5

    def select(self, graph: Graph, random: Random) -> tuple[Variant, ...]:
        size, total, best, has_open = self._subtrees(graph)
        top = max(best.values(), default=0.0) or 1.0

        def bound(value: float, visits: int, parent: int) -> float:
            return value / top + self.exploration * math.sqrt(math.log(parent + 1) / visits)

        def of(v: Variant, parent: int) -> float:
            return bound((total[v.id] / size[v.id] + best[v.id]) / 2, size[v.id], parent)

        level = [v for v in graph.roots() if has_open[v.id]]
        parent = len(graph.variants)
        while level:
            chosen = max(level, key=lambda v: (of(v, parent), -v.id))
            below = graph.offspring(chosen)
            level = [v for v in below if has_open[v.id]]
            parent = size[chosen.id]
            if chosen.id not in graph.open:
                continue
            gains = [v.fitness for v in below]
            mean = sum(gains) / len(gains) if gains else chosen.fitness
            new = bound((mean + max([chosen.fitness, *gains])) / 2, len(below) + 1, parent)
            if all(new >= of(v, parent) for v in level):
                return (chosen,)
        return _fittest(graph)

    def _subtrees(
        self, graph: Graph
    ) -> tuple[dict[int, int], dict[int, float], dict[int, float], dict[int, bool]]:
        """Of each variant and all below it: how many, their fitness summed, the best, any open."""
        size = dict.fromkeys(graph.variants, 1)
        total = {v.id: v.fitness for v in graph.variants.values()}
        best = dict(total)
        has_open = {v: v in graph.open for v in graph.variants}
        for v in sorted(graph.variants.values(), key=lambda v: -v.id):  # children before parents
            if v.parents and v.parents[0] in graph.variants:
                parent = v.parents[0]
                size[parent] += size[v.id]
                total[parent] += total[v.id]
                best[parent] = max(best[parent], best[v.id])
                has_open[parent] |= has_open[v.id]
        return size, total, best, has_open


class Evolutionary:
    """Islands, each with an archive of the fittest of each kind (MAP-Elites: Mouret and Clune,
    2015, over `cell`); they take turns. A variant descended of a root's n-th child lives on island
    n; every few turns two elites are crossed, one of which may come from the next island."""

    name = "evolutionary"
    islands = 4
    crossover = 0.3

    def select(self, graph: Graph, random: Random) -> tuple[Variant, ...]:
        home = self._homes(graph)
        turn = len(graph.variants) % self.islands
        archive = self._elites(graph, home, turn)
        ready = [v for v in archive if v.id in graph.open]
        if not ready:
            return _fittest(graph)
        first = random.choice(ready)
        if random.random() < self.crossover:
            abroad = self._elites(graph, home, (turn + 1) % self.islands)
            mates = [v for v in (*archive, *abroad) if v.id != first.id]
            if mates:
                return first, random.choice(mates)
        return (first,)

    def _homes(self, graph: Graph) -> dict[int, int]:
        """The island of each variant; -1 for roots, which are on all."""
        home: dict[int, int] = {}
        settled = 0
        for v in sorted(graph.variants.values(), key=lambda v: v.id):
            parent = home.get(v.parents[0], -1) if v.parents else None
            if parent is None:
                home[v.id] = -1
            elif parent >= 0:
                home[v.id] = parent
            else:
                home[v.id], settled = settled % self.islands, settled + 1
        return home

    def _elites(self, graph: Graph, home: dict[int, int], island: int) -> list[Variant]:
        found: dict[tuple[int, ...], Variant] = {}
        for v in graph.good():
            if home[v.id] in (-1, island):
                old = found.get(cell(v))
                if old is None or v.fitness > old.fitness:
                    found[cell(v)] = v
        return [found[key] for key in sorted(found)]


CELL = ("lanes", "code", "temporaries", "parallel")
"""The features over which MAP-Elites keeps the fittest, each in powers of four."""


def cell(variant: Variant) -> tuple[int, ...]:
    return tuple(int(variant.features.get(name, 0.0) // 2) for name in CELL)


class Uniform:
    """Any open variant: the baseline that a policy must beat."""

    name = "random"

    def select(self, graph: Graph, random: Random) -> tuple[Variant, ...]:
        ready = list(graph.expandable())
        return (random.choice(ready),) if ready else ()


def _fittest(graph: Graph) -> tuple[Variant, ...]:
    found = max(graph.expandable(), key=lambda v: (v.fitness, -v.id), default=None)
    return () if found is None else (found,)


POLICIES: dict[str, Callable[[], Policy]] = {
    "greedy": Greedy,
    "beam": Beam,
    "mcts": Uct,
    "evolutionary": Evolutionary,
    "random": Uniform,
}


def make_policy(name: str) -> Policy:
    if name not in POLICIES:
        raise UsageError(f"unknown policy `{name}`", hint=f"there are: {', '.join(POLICIES)}")
    return POLICIES[name]()
