"""The loop: select a variant, propose from it, evaluate, commit; until the budget is spent.

Deterministic under a seed, given the verdicts: every choice is drawn from generators seeded by the
run's seed and the variant's IR. That is also how a search resumes: the loop runs again from the
start, and takes the verdicts of the variants that the store holds instead of measuring them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from random import Random

from kir.agent.evaluate import Evaluator, Verdict
from kir.agent.graph import Graph, Variant
from kir.agent.graph.policy import Policy
from kir.agent.proposer import Derivation, Proposer
from kir.agent.store import NodeRow, Store
from kir.derivation import kernel_hash
from kir.errors import KirError, VerificationError
from kir.ir import Kernel, Module, Schedule
from kir.pipeline import schedule
from kir.syntax import format_module

Clock = Callable[[], float]


@dataclass(frozen=True)
class Budget:
    """When to stop: after so many seconds, or evaluations (the store's count as well)."""

    seconds: float | None = None
    evaluations: int | None = None


@dataclass(frozen=True)
class Event:
    """What `on_event` gets after each node: the variant, its verdict, and the best so far.

    `reused` is whether the verdict came from the store.
    """

    variant: Variant
    verdict: Verdict
    best: Variant | None
    evaluated: int
    elapsed: float
    reused: bool


@dataclass
class Search:
    """One search of one run. `spec` is specialised to the dims that are tuned for.

    The IR of hash `baseline_hash` is the yardstick: its fitness is 1, whatever the noise says.
    """

    run: int
    spec: Kernel
    store: Store
    evaluator: Evaluator
    policy: Policy
    proposer: Proposer
    seed: int
    baseline_hash: str = ""
    provenance: Mapping[str, object] = field(default_factory=dict)
    clock: Clock = time.monotonic
    on_event: Callable[[Event], None] | None = None
    graph: Graph = field(default_factory=Graph)
    counts: Counter[str] = field(default_factory=Counter)
    interrupted: bool = False

    def __post_init__(self) -> None:
        self._known = {node.ir_hash: node for node in self.store.nodes(self.run)}
        self._proposals: dict[int, Iterator[Derivation]] = {}
        self._started = self.clock()

    def go(self, roots: tuple[Derivation, ...], budget: Budget) -> None:
        """Evaluate the roots, then expand until the budget is spent or nothing is left.

        The first root must verify (VerificationError). Ctrl-C ends the search in good order.
        """
        try:
            for at, root in enumerate(roots):
                found = self._visit(root, ())
                if at == 0 and found is not None and found[0].status != "ok":
                    raise VerificationError(
                        f"the default schedule of `{self.spec.name}` is {found[0].status}: "
                        f"{found[1].error}",
                        kernel=self.spec,
                    )
            random = Random(self.seed)
            while self._within(budget):
                chosen = self.policy.select(self.graph, random)
                if chosen is None:
                    break
                self._expand(chosen)
        except KeyboardInterrupt:
            self.interrupted = True

    def _within(self, budget: Budget) -> bool:
        elapsed = self.clock() - self._started
        return (budget.seconds is None or elapsed < budget.seconds) and (
            budget.evaluations is None or len(self.graph.variants) < budget.evaluations
        )

    def _expand(self, chosen: Variant) -> None:
        """Take one proposal from `chosen`, or close it where it has none left."""
        if chosen.id not in self._proposals:
            random = Random(f"{self.seed}:{chosen.ir_hash}")
            self._proposals[chosen.id] = self.proposer.propose(self.spec, chosen.steps, random)
        proposal = next(self._proposals[chosen.id], None)
        if proposal is None:
            self.graph.open.discard(chosen.id)
        else:
            self._visit(proposal, (chosen.id,))

    def _visit(self, steps: Derivation, parents: tuple[int, ...]) -> tuple[Variant, Verdict] | None:
        """Evaluate and commit a derivation; None where its IR was seen or it does not apply."""
        try:
            ir = schedule(self.spec, steps)
        except KirError:
            self.counts["inapplicable"] += 1
            return None
        ir_hash = kernel_hash(ir)
        if ir_hash in self.graph.seen:
            self.counts["duplicate"] += 1
            return None
        node = self._known.get(ir_hash)
        reused = node is not None
        if node is None:
            node = self._evaluate(steps, ir_hash, parents)
        verdict = Verdict(
            node.status, node.fitness, node.seconds, node.baseline_seconds, node.error
        )
        variant = Variant(node.id, node.parents, steps, ir_hash, node.status, node.fitness)
        self.graph.add(variant)
        self.counts[node.status] += 1
        if self.on_event is not None:
            count, elapsed = len(self.graph.variants), self.clock() - self._started
            best = self.graph.best()
            self.on_event(Event(variant, verdict, best, count, elapsed, reused))
        return variant, verdict

    def _evaluate(self, steps: Derivation, ir_hash: str, parents: tuple[int, ...]) -> NodeRow:
        derivation = derivation_text(self.spec.name, steps)
        verdict = self.evaluator.evaluate(derivation)
        if verdict.status == "ok" and ir_hash == self.baseline_hash:
            verdict = replace(verdict, fitness=1.0)
        row = NodeRow(
            run=self.run,
            parents=parents,
            derivation=derivation,
            ir_hash=ir_hash,
            status=verdict.status,
            fitness=verdict.fitness,
            seconds=verdict.seconds,
            baseline_seconds=verdict.baseline_seconds,
            error=verdict.error,
            provenance={
                **self.provenance,
                "proposer": self.proposer.name,
                "policy": self.policy.name,
                "report": dict(verdict.report),
            },
        )
        return replace(row, id=self.store.add_node(row))


def derivation_text(kernel: str, steps: Derivation) -> str:
    """`schedule tuned of kernel { steps }`."""
    return format_module(Module((Schedule("tuned", kernel, steps),)))
