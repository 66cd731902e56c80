"""The loop: select variants, propose from them, claim, evaluate, commit; until the budget is spent.

What a search does next depends on its store alone: on the variants of its run that were evaluated,
by it or by others, and on its seed. That is how it resumes, and how several workers share a run.
With one worker it is deterministic, given the verdicts: every choice is drawn from a generator
seeded by the run's seed and how much is known.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from random import Random

from kir.agent.evaluate import Verdict
from kir.agent.executor import Executor
from kir.agent.features import Analysis, analyse
from kir.agent.graph import Graph, Variant
from kir.agent.graph.policy import Policy
from kir.agent.proposer import Ask, Derivation, Proposal, Proposer
from kir.agent.store import NodeRow, Store, this_worker
from kir.agent.variant import derivation_text, parse_derivation
from kir.derivation import kernel_hash
from kir.errors import KirError, VerificationError
from kir.ir import Kernel
from kir.pipeline import schedule

Clock = Callable[[], float]
LEASE_SECONDS = 600.0
"""How long a claim holds for a worker on another machine that may have died."""
PATIENCE = 0.5
"""Seconds between looks at what other workers found."""


@dataclass(frozen=True)
class Budget:
    """When to stop: after so many seconds, or evaluations (the store's count as well), or
    evaluations without a new best, or at a fitness."""

    seconds: float | None = None
    evaluations: int | None = None
    stall: int | None = None
    fitness: float | None = None


@dataclass(frozen=True)
class Event:
    """What `on_event` gets after each node: the variant, its verdict, and the best so far; which
    shape it is for, where there are several.

    `reused` is whether the verdict came from the store: from before, or from another worker.
    """

    variant: Variant
    verdict: Verdict
    best: Variant | None
    evaluated: int
    elapsed: float
    reused: bool
    counts: Mapping[str, int] = field(default_factory=dict)
    spent: Mapping[str, float] = field(default_factory=dict)
    shape: Mapping[str, int] = field(default_factory=dict)


@dataclass
class Search:
    """One search of one run. `spec` is specialised to the dims that are tuned for.

    The IR of hash `baseline_hash` is the yardstick: its fitness is 1, whatever the noise says.
    """

    run: int
    spec: Kernel
    store: Store
    executor: Executor
    policy: Policy
    proposer: Proposer
    seed: int
    baseline_hash: str = ""
    provenance: Mapping[str, object] = field(default_factory=dict)
    analyse: Callable[[Kernel], Analysis] = analyse
    shape: Mapping[str, int] = field(default_factory=dict)
    clock: Clock = time.monotonic
    on_event: Callable[[Event], None] | None = None
    graph: Graph = field(default_factory=Graph)
    counts: Counter[str] = field(default_factory=Counter)
    interrupted: bool = False

    def __post_init__(self) -> None:
        self._owner = this_worker()
        self._pending: dict[Future[Verdict], NodeRow] = {}
        self._started: float | None = None
        self._before = 0.0
        self._since_best = 0

    @property
    def elapsed(self) -> float:
        """Seconds that were searched: pauses between calls of `go` do not count."""
        return self._before + (0.0 if self._started is None else self.clock() - self._started)

    def go(self, roots: tuple[Proposal, ...], budget: Budget) -> None:
        """Evaluate the roots, then expand until the budget is spent or nothing is left. It may be
        called again, with a larger budget.

        The first root must verify (VerificationError). Ctrl-C ends the search in good order.
        """
        waiting = deque(roots)
        self._started = self.clock()
        try:
            self._refresh()
            self._first(waiting.popleft())
            while True:
                self._refresh()
                self._fill(waiting, budget)
                if self._pending:
                    done, _ = wait(self._pending, PATIENCE, FIRST_COMPLETED)
                    for future in done:
                        self._commit(self._pending.pop(future), future.result())
                elif self._spent(budget) or not self._others_work():
                    break
        except KeyboardInterrupt:
            self.interrupted = True
        finally:
            self.store.abandon(self._owner)
            self._before, self._started = self.elapsed, None

    def _first(self, root: Proposal) -> None:
        if self._begin(root, ()):
            ((future, row),) = self._pending.items()
            self._pending.clear()
            self._commit(row, future.result())
        start = self.graph.variants[min(self.graph.variants)] if self.graph.variants else None
        if start is not None and start.status != "ok":
            error = self.store.node(start.id).error
            raise VerificationError(
                f"the default schedule of `{self.spec.name}` is {start.status}: {error}",
                kernel=self.spec,
            )

    def _others_work(self) -> bool:
        """Whether another worker is at something, so that there may be more to do soon."""
        if self.store.count_claims(self.run) == 0:
            return False
        time.sleep(PATIENCE)
        return True

    def _fill(self, waiting: deque[Proposal], budget: Budget) -> None:
        """Give the idle workers something to do: what others left undone, the other roots, then
        what the policy and the proposer say."""
        while len(self._pending) < self.executor.workers and not self._spent(budget):
            left = self.store.take_over(self.run, self._owner, LEASE_SECONDS)
            if left is not None:
                self._submit(left)
            elif waiting:
                self._begin(waiting.popleft(), ())
            elif not self._expand():
                break

    def _spent(self, budget: Budget) -> bool:
        best = self.graph.best()
        count = len(self.graph.variants) + len(self._pending)
        return (
            (budget.seconds is not None and self.elapsed >= budget.seconds)
            or (budget.evaluations is not None and count >= budget.evaluations)
            or (budget.stall is not None and self._since_best >= budget.stall)
            or (budget.fitness is not None and best is not None and best.fitness >= budget.fitness)
        )

    def _expand(self) -> bool:
        """Begin one new variant; False where nothing is left to propose from."""
        known = len(self.graph.variants)
        while True:
            chosen = self.policy.select(self.graph, Random(f"{self.seed}:{known}"))
            if not chosen:
                return False
            for parents in dict.fromkeys((chosen, chosen[:1])):
                ask = Ask(self.run, self.spec, parents, self.graph, self.seed)
                for proposal in self.proposer.propose(ask):
                    if self._begin(proposal, tuple(p.id for p in parents)):
                        return True
            self.graph.open.discard(chosen[0].id)

    def _begin(self, proposal: Proposal, parents: tuple[int, ...]) -> bool:
        """Claim and submit a derivation; False where its IR was seen or it does not apply."""
        try:
            ir = schedule(self.spec, proposal.steps)
        except KirError:
            self.counts["inapplicable"] += 1
            return False
        ir_hash = kernel_hash(ir)
        if ir_hash in self.graph.seen:
            self.counts["duplicate"] += 1
            return False
        self.graph.seen.add(ir_hash)
        row = NodeRow(
            run=self.run,
            parents=parents,
            derivation=derivation_text(self.spec.name, proposal.steps),
            ir_hash=ir_hash,
            kind=proposal.kind,
            features=self.analyse(ir).features,
            provenance={
                **self.provenance,
                "proposer": self.proposer.name,
                "policy": self.policy.name,
                **proposal.provenance,
            },
        )
        claimed = self.store.claim(row, self._owner, LEASE_SECONDS)
        if claimed is None:  # another worker has it
            self.counts["duplicate"] += 1
            return False
        self._submit(replace(row, id=claimed))
        return True

    def _submit(self, row: NodeRow) -> None:
        best = self.graph.best()
        incumbent = best.fitness if best is not None else 0.0
        self._pending[self.executor.submit(row.derivation, None, incumbent)] = row

    def _commit(self, row: NodeRow, verdict: Verdict) -> None:
        if verdict.status == "ok" and row.ir_hash == self.baseline_hash:
            verdict = replace(verdict, fitness=1.0)
        row = replace(
            row,
            status=verdict.status,
            fitness=verdict.fitness,
            seconds=verdict.seconds,
            baseline_seconds=verdict.baseline_seconds,
            error=verdict.error,
            log=verdict.log,
            resources=verdict.resources,
            provenance={**row.provenance, "report": dict(verdict.report)},
        )
        if self.store.finish(row, self._owner):
            self._take_in(row, verdict, reused=False)

    def _refresh(self) -> None:
        """Take in what the store holds and we have not seen."""
        for row in self.store.nodes(self.run, beside=self.graph.variants):
            verdict = Verdict(row.status, row.fitness, row.seconds, row.baseline_seconds, row.error)
            self._take_in(row, verdict, reused=True)

    def _take_in(self, row: NodeRow, verdict: Verdict, *, reused: bool) -> None:
        best = self.graph.best()
        steps = parse_derivation(row.derivation)
        variant = Variant(
            row.id, row.parents, steps, row.ir_hash, row.status, row.fitness, row.kind,
            row.seconds, row.error, row.features,
        )  # fmt: skip
        self.graph.add(variant)
        self.counts[row.status] += 1
        better = best is None or variant.fitness > best.fitness
        self._since_best = 0 if better else self._since_best + 1
        if self.on_event is not None:
            count, elapsed = len(self.graph.variants), self.elapsed
            spent = self.proposer.spent()
            found = self.graph.best()
            event = Event(
                variant, verdict, found, count, elapsed, reused, self.counts, spent, self.shape
            )
            self.on_event(event)


def drafts(derivations: tuple[Derivation, ...]) -> tuple[Proposal, ...]:
    """Roots: the first is where a search starts, the others independent drafts."""
    kinds = ("root", *("draft",) * (len(derivations) - 1))
    return tuple(Proposal(d, kind=k) for d, k in zip(derivations, kinds, strict=True))
