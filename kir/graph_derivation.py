"""Derivations of graphs: as in `kir.derivation`, of a graph and the kernels that it calls.

schedule fused of mlp {
  fuse_kernels(t, y, kernel = both)
  within(both, loops)
}
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from kir.derivation import Derivation
from kir.errors import RewriteError, ScheduleError
from kir.ir import Module, Step
from kir.rewrites import EFFECTS, Effect
from kir.rewrites.graph import make_graph_rewrite
from kir.rewrites.graph_base import find_graph
from kir.syntax import format_module, format_step


def graph_hash(module: Module, graph: str) -> str:
    """A graph's identity: SHA-256 of its canonical text and that of the kernels it calls."""
    return hashlib.sha256(format_module(only(module, graph)).encode()).hexdigest()


def only(module: Module, graph: str) -> Module:
    """The module of one graph and the kernels that it calls, in the order of the calls."""
    g, kernels = find_graph(module, graph), module.kernels()
    called = dict.fromkeys(c.kernel for c in g.calls)
    return Module((*(kernels[n] for n in called), g))


def replay_graph(module: Module, graph: str, steps: Iterable[Step]) -> list[tuple[Step, Module]]:
    """Each step with the module after it; a refusal says which step it was."""
    done: list[tuple[Step, Module]] = []
    for number, step in enumerate(steps, 1):
        try:
            module = make_graph_rewrite(step).apply(module, graph)
        except RewriteError as error:
            error.message = f"step {number}, `{format_step(step)}`: {error.message}"
            raise
        done.append((step, module))
    return done


def derive_graph(
    module: Module, graph: str, steps: Iterable[Step], name: str = "derived"
) -> Derivation:
    """The derivation that these steps are, applied once to know its hashes."""
    steps = tuple(steps)
    stages = replay_graph(module, graph, steps)
    last = stages[-1][1] if stages else module
    return Derivation(graph, steps, name, graph_hash(module, graph), graph_hash(last, graph))


def replay_derivation(derivation: Derivation, module: Module) -> list[tuple[Step, Module]]:
    """Each step with the module after it; ScheduleError where the result is not the one that the
    derivation claims."""
    stages = replay_graph(module, derivation.kernel, derivation.steps)
    last = stages[-1][1] if stages else module
    if derivation.result not in (None, graph_hash(last, derivation.kernel)):
        raise ScheduleError(
            f"`{derivation.name}` gives another graph than it claims",
            hint="verify the result, and save the derivation anew",
        )
    return stages


def graph_effect(module: Module, graph: str, stages: Iterable[tuple[Step, Module]]) -> Effect:
    """The strongest effect of a replayed derivation, each step judged where it was applied."""
    strongest: Effect = "exact"
    for step, after in stages:
        found = make_graph_rewrite(step).effect_on(module, graph)
        strongest = max(strongest, found, key=EFFECTS.index)
        module = after
    return strongest
