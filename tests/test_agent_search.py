"""The loop with a made-up evaluator: deterministic, resumable, bounded, and ended in good order."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy", reason="the extra `agent` is not installed")

from kir.agent.evaluate import Verdict
from kir.agent.graph.policy import Greedy, make_policy
from kir.agent.moves import legal_looking
from kir.agent.proposer import Rules, make_proposer
from kir.agent.search import Budget, Event, Search
from kir.agent.store import RunRow, Store
from kir.derivation import kernel_hash
from kir.errors import KirError, UsageError, VerificationError
from kir.ir import Step
from kir.pipeline import LOOPS, schedule
from kir.rewrites import apply_step
from kir.specialise import specialise
from kir.syntax import parse_kernel

SPEC = specialise(
    parse_kernel(
        """kernel softmax[M, N](x: f32[M, N]) -> (y: f32[M, N]) {
             m[i: M] = max(j: N) x[i, j]
             e[i: M, j: N] = exp(x[i, j] - m[i])
             s[i: M] = sum(j: N) e[i, j]
             y[i: M, j: N] = e[i, j] / s[i]
           }"""
    ),
    {"M": 64, "N": 256},
)


class MadeUp:
    """Verdicts drawn from the derivation's text: one in four fails."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def evaluate(self, derivation: str) -> Verdict:
        self.asked.append(derivation)
        draw = hashlib.sha256(derivation.encode()).digest()[0]
        if len(self.asked) > 1 and draw < 64:
            return Verdict("crashed", error="made up")
        return Verdict("ok", draw / 128, 128 / max(draw, 1), 1.0)


def start_run(store: Store) -> int:
    return store.add_run(
        RunRow(
            id=0,
            fingerprint="f",
            kernel="softmax",
            source="",
            dims={},
            target="cpu",
            arch="",
            baseline="",
            seed=0,
            status="running",
            settings={},
            provenance={},
            result={},
        )
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(f"sqlite:///{tmp_path}/t.db")


def search(store: Store, run: int, seed: int = 0, **changes: object) -> Search:
    values: dict[str, object] = {
        "run": run,
        "spec": SPEC,
        "store": store,
        "evaluator": MadeUp(),
        "policy": Greedy(),
        "proposer": Rules(),
        "seed": seed,
    }
    return Search(**(values | changes))  # type: ignore[arg-type]


def visited(found: Search) -> list[str]:
    return [v.ir_hash for v in found.graph.variants.values()]


def test_a_seed_fixes_the_search(store: Store) -> None:
    runs = [search(store, start_run(store), seed) for seed in (1, 1, 2)]
    for one in runs:
        one.go((LOOPS,), Budget(evaluations=8))
    assert len(visited(runs[0])) == 8
    assert visited(runs[0]) == visited(runs[1]) != visited(runs[2])


def test_every_node_is_stored_with_its_parent(store: Store) -> None:
    one = search(store, start_run(store))
    one.go((LOOPS,), Budget(evaluations=6))
    rows = store.nodes(one.run)
    assert [r.ir_hash for r in rows] == visited(one)
    assert rows[0].parents == ()
    ids = {r.id: r for r in rows}
    for row in rows[1:]:
        (parent,) = row.parents
        assert ids[parent].status == "ok"  # what failed is never expanded
    assert all(r.fitness == 0 for r in rows if r.status != "ok")
    best = one.graph.best()
    assert best is not None and best.fitness == max(r.fitness for r in rows)


def test_a_resumed_search_is_the_search_uninterrupted(store: Store) -> None:
    whole = search(store, start_run(store))
    whole.go((LOOPS,), Budget(evaluations=9))

    run = start_run(store)
    first = search(store, run)
    first.go((LOOPS,), Budget(evaluations=4))
    events: list[Event] = []
    second = search(store, run, on_event=events.append)
    second.go((LOOPS,), Budget(evaluations=9))
    assert visited(second) == visited(whole)
    assert [e.reused for e in events] == [True] * 4 + [False] * 5
    assert isinstance(second.evaluator, MadeUp) and len(second.evaluator.asked) == 5


def test_the_clock_ends_a_search(store: Store) -> None:
    ticks = iter(range(1000))
    one = search(store, start_run(store), clock=lambda: float(next(ticks)))
    one.go((LOOPS,), Budget(seconds=20.0))
    assert 1 < len(one.graph.variants) <= 20


def test_an_interrupt_ends_a_search_in_good_order(store: Store) -> None:
    class Interrupted(MadeUp):
        def evaluate(self, derivation: str) -> Verdict:
            if len(self.asked) == 3:
                raise KeyboardInterrupt
            return super().evaluate(derivation)

    one = search(store, start_run(store), evaluator=Interrupted())
    one.go((LOOPS,), Budget(evaluations=50))
    assert one.interrupted
    assert len(store.nodes(one.run)) == len(one.graph.variants) == 3


def test_a_root_that_fails_ends_the_search(store: Store) -> None:
    class Failing:
        def evaluate(self, derivation: str) -> Verdict:
            return Verdict("wrong", error="`y` is off")

    one = search(store, start_run(store), evaluator=Failing())
    with pytest.raises(VerificationError, match="wrong"):
        one.go((LOOPS,), Budget(evaluations=5))


def test_proposals_apply_and_differ_from_their_parent() -> None:
    from random import Random

    steps = (*LOOPS, Step("split", ("j", 64)))
    proposals = Rules().propose(SPEC, steps, Random(0))
    found = [next(proposals) for _ in range(10)]
    assert steps not in found
    for derivation in found:
        schedule(SPEC, derivation)  # raises where it does not apply
    assert (*LOOPS, Step("split", ("j", 32))) in found


def test_moves_that_look_legal_mostly_are() -> None:
    kernel = schedule(SPEC, LOOPS)
    moves = list(legal_looking(kernel))
    kinds = set()
    for step in moves:
        try:
            changed = apply_step(kernel, step)
        except KirError:
            continue
        assert kernel_hash(changed) != kernel_hash(kernel)
        kinds.add(step.rewrite)
    assert {"split", "bind", "reorder", "fuse", "stage", "rfactor"} <= kinds


def test_unknown_names_are_usage_errors() -> None:
    with pytest.raises(UsageError, match="greedy"):
        make_policy("clever")
    with pytest.raises(UsageError, match="rules"):
        make_proposer("clever")
