"""The loop with a made-up evaluator: deterministic, resumable, bounded, and ended in good order."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

pytest.importorskip("sqlalchemy", reason="the extra `agent` is not installed")

from example_cases import EXAMPLES

from kir.agent.evaluate import Problem, Verdict
from kir.agent.executor import LocalExecutor
from kir.agent.features import analyse
from kir.agent.graph import Graph, Variant
from kir.agent.graph.policy import POLICIES, Greedy, make_policy
from kir.agent.model import CostModel
from kir.agent.moves import legal_looking
from kir.agent.proposer import Ask
from kir.agent.rules import Rules, drafts
from kir.agent.search import Budget, Event, Search
from kir.agent.search import drafts as roots
from kir.agent.store import RunRow, Store, this_worker
from kir.agent.tune import make_proposer
from kir.agent.variant import derivation_text
from kir.derivation import kernel_hash
from kir.errors import KirError, UsageError, VerificationError
from kir.ir import Step
from kir.pipeline import LOOPS, Target, choose_steps, schedule
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


START = roots((LOOPS,))


class MadeUp:
    """Verdicts drawn from the derivation's text: one in four fails."""

    workers = 1

    def __init__(self) -> None:
        self.asked: list[str] = []

    def submit(
        self, derivation: str, seed: int | None = None, incumbent: float = 0.0
    ) -> Future[Verdict]:
        done: Future[Verdict] = Future()
        done.set_result(self.evaluate(derivation))
        return done

    def evaluate(self, derivation: str, seed: int | None = None, incumbent: float = 0.0) -> Verdict:
        self.asked.append(derivation)
        draw = hashlib.sha256(derivation.encode()).digest()[0]
        if derivation != derivation_text("softmax", LOOPS) and draw < 64:
            return Verdict("crashed", error="made up")
        return Verdict("ok", draw / 128, 128 / max(draw, 1), 1.0)

    def contest(self, derivations: Sequence[str], seed: int) -> list[float | None]:
        return [self.evaluate(d).fitness for d in derivations]

    def close(self) -> None:
        pass


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
        "executor": MadeUp(),
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
        one.go(START, Budget(evaluations=8))
    assert len(visited(runs[0])) == 8
    assert visited(runs[0]) == visited(runs[1]) != visited(runs[2])


def test_every_node_is_stored_with_its_parent(store: Store) -> None:
    one = search(store, start_run(store))
    one.go(START, Budget(evaluations=6))
    rows = store.nodes(one.run)
    assert [r.ir_hash for r in rows] == visited(one)
    assert rows[0].parents == ()
    ids = {r.id: r for r in rows}
    for row in rows[1:]:
        (parent,) = row.parents
        assert ids[parent].status == "ok"  # what failed is never expanded
        assert row.kind == "step" and row.features["cycles"] > 0 and row.provenance["move"]
    assert all(r.fitness == 0 for r in rows if r.status != "ok")
    best = one.graph.best()
    assert best is not None and best.fitness == max(r.fitness for r in rows)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_resumed_search_is_the_search_uninterrupted(policy: str, store: Store) -> None:
    begun = roots((LOOPS, *drafts(SPEC, 2)))
    whole = search(store, start_run(store), policy=make_policy(policy))
    whole.go(begun, Budget(evaluations=12))

    run = start_run(store)
    first = search(store, run, policy=make_policy(policy))
    first.go(begun, Budget(evaluations=7))
    events: list[Event] = []
    second = search(store, run, policy=make_policy(policy), on_event=events.append)
    second.go(begun, Budget(evaluations=12))
    assert visited(second) == visited(whole)
    assert [e.reused for e in events] == [True] * 7 + [False] * 5
    assert isinstance(second.executor, MadeUp) and len(second.executor.asked) == 5


def test_what_a_dead_worker_claimed_is_evaluated(store: Store) -> None:
    run = start_run(store)
    first = search(store, run)
    first.go(START, Budget(evaluations=2))
    lost = replace(store.nodes(run)[0], ir_hash="lost", parents=())
    store.claim(lost, this_worker().rpartition(":")[0] + ":1", 1e9)
    second = search(store, run)
    second.go(START, Budget(evaluations=3))
    assert "lost" in visited(second) and store.count_claims(run) == 0


def test_several_workers_share_a_pool(store: Store) -> None:
    class Slow(MadeUp):
        def __init__(self, *_: object, **__: object) -> None:
            super().__init__()

        def evaluate(
            self, derivation: str, seed: int | None = None, incumbent: float = 0.0
        ) -> Verdict:
            time.sleep(0.05)
            return super().evaluate(derivation)

    problem = Problem("", "softmax", {}, "cpu", None, "", "", 0)
    pool = LocalExecutor(problem, None, 3, make=Slow)
    one = search(store, start_run(store), executor=pool)
    one.go(roots((LOOPS, *drafts(SPEC, 3))), Budget(evaluations=10))
    pool.close()
    assert len(visited(one)) == len(set(visited(one))) == 10
    with pytest.raises(UsageError):
        LocalExecutor(problem, None, 0)


def test_a_search_ends_at_a_fitness_and_where_it_stalls(store: Store) -> None:
    one = search(store, start_run(store))
    one.go(START, Budget(evaluations=30, fitness=0.5))
    assert len(visited(one)) < 30 and one.graph.best() is not None
    two = search(store, start_run(store))
    two.go(START, Budget(evaluations=60, stall=4))
    fitness = [v.fitness for v in two.graph.variants.values()]
    assert len(fitness) < 60 and max(fitness) == max(fitness[:-4])


def small_graph() -> Graph:
    """A root, two children of it that are right and one that is not, and a grandchild."""
    graph = Graph()
    for id, parents, fitness in ((1, (), 1.0), (2, (1,), 1.5), (3, (1,), 0.0), (4, (1,), 1.2),
                                 (5, (2,), 1.4)):  # fmt: skip
        status = "ok" if fitness else "wrong"
        graph.add(Variant(id, parents, (), str(id), status, fitness, features={"lanes": id}))
    return graph


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_selects_open_variants_only(name: str) -> None:
    graph = small_graph()
    graph.open.discard(2)
    policy = make_policy(name)
    for seed in range(40):
        chosen = policy.select(graph, Random(seed))
        assert chosen and chosen[0].id in graph.open
        assert chosen == policy.select(graph, Random(seed))
        assert len({v.id for v in chosen}) == len(chosen)
        assert all(v.status == "ok" for v in chosen)
    graph.open.clear()
    assert policy.select(graph, Random(0)) == ()


def test_what_the_policies_are_after() -> None:
    graph = small_graph()
    pick = {n: [make_policy(n).select(graph, Random(s)) for s in range(60)] for n in POLICIES}
    assert {v.id for (v,) in pick["greedy"]} == {2}
    assert {v.id for (v,) in pick["random"]} == {1, 2, 4, 5}
    assert {v.id for (v,) in pick["beam"]} == {4}  # the fittest ones that have no children
    assert any(len(found) == 2 for found in pick["evolutionary"])
    for number in range(6, 30):  # the best is tried to no avail: the search turns elsewhere
        graph.add(Variant(number, (2,), (), str(number), "wrong", 0.0))
    assert make_policy("mcts").select(graph, Random(0))[0].id != 2


def test_the_clock_ends_a_search(store: Store) -> None:
    ticks = iter(range(1000))
    one = search(store, start_run(store), clock=lambda: float(next(ticks)))
    one.go(START, Budget(seconds=20.0))
    assert 1 < len(one.graph.variants) <= 20


def test_an_interrupt_ends_a_search_in_good_order(store: Store) -> None:
    class Interrupted(MadeUp):
        def evaluate(
            self, derivation: str, seed: int | None = None, incumbent: float = 0.0
        ) -> Verdict:
            if len(self.asked) == 3:
                raise KeyboardInterrupt
            return super().evaluate(derivation)

    one = search(store, start_run(store), executor=Interrupted())
    one.go(START, Budget(evaluations=50))
    assert one.interrupted
    assert len(store.nodes(one.run)) == len(one.graph.variants) == 3


def test_a_root_that_fails_ends_the_search(store: Store) -> None:
    class Failing(MadeUp):
        def evaluate(
            self, derivation: str, seed: int | None = None, incumbent: float = 0.0
        ) -> Verdict:
            return Verdict("wrong", error="`y` is off")

    one = search(store, start_run(store), executor=Failing())
    with pytest.raises(VerificationError, match="wrong"):
        one.go(START, Budget(evaluations=5))


def variant(steps: tuple[Step, ...], id: int = 1) -> Variant:
    return Variant(id, (), steps, kernel_hash(schedule(SPEC, steps)), "ok", 1.0)


def test_proposals_apply_and_differ_from_their_parent() -> None:
    parent = variant((*LOOPS, Step("split", ("j", 64))))
    graph = Graph()
    graph.add(parent)
    found = list(Rules().propose(Ask(1, SPEC, (parent,), graph, 0)))
    assert len(found) > 4
    for proposal in found:
        assert kernel_hash(schedule(SPEC, proposal.steps)) != parent.ir_hash
    assert [p.steps for p in Rules().propose(Ask(1, SPEC, (parent,), graph, 0))] == [
        p.steps for p in found
    ]


def test_crossing_keeps_the_first_steps_of_one_and_what_applies_of_the_other() -> None:
    a = variant((*LOOPS, Step("split", ("j", 64)), Step("bind", ("j", "tile"))))
    b = variant((*LOOPS, Step("bind", ("i", "grid")), Step("split", ("j", 32))), 2)
    graph = Graph()
    graph.add(a)
    graph.add(b)
    found = list(Rules().propose(Ask(1, SPEC, (a, b), graph, 0)))
    assert found and all(p.kind == "crossover" for p in found)
    assert any({"grid", "tile"} <= {x for s in p.steps for x in s.args} for p in found)


def test_the_model_learns_what_the_analytic_one_gets_wrong() -> None:
    def sample(n: int) -> tuple[dict[str, float], float]:
        slow = n % 2
        return {"cycles": float(n % 5), "lanes": float(slow)}, 2.0 ** (n % 5) * (8.0 if slow else 1)

    few, many = CostModel([sample(0)]), CostModel([sample(n) for n in range(60)])
    fast, slow = {"cycles": 3.0, "lanes": 0.0}, {"cycles": 2.0, "lanes": 1.0}
    assert few.predict(fast) > few.predict(slow)
    assert many.predict(fast) < many.predict(slow)
    again = CostModel([sample(n) for n in range(60)])
    assert again.predict(fast) == many.predict(fast)


@pytest.mark.parametrize("name", ["softmax", "matmul", "conv2d"])
def test_drafts_from_canonical_loops_are_modelled_to_be_near_the_default(name: str) -> None:
    dims = {
        "softmax": {"M": 512, "N": 1024},
        "matmul": {"M": 512, "N": 512, "K": 512},
        "conv2d": {"N": 1, "C": 32, "O": 32, "H": 56, "W": 56, "R": 3, "S": 3, "pad": 1},
    }
    kernel = parse_kernel((EXAMPLES / f"{name}.kir").read_text(encoding="utf-8"))
    spec = specialise(kernel, dims[name])
    plain = analyse(schedule(spec, LOOPS)).total
    default = analyse(schedule(spec, choose_steps(spec, Target("cpu")))).total
    best = min(analyse(schedule(spec, d)).total for d in drafts(spec))
    assert default < plain / 5 and best < 2.5 * default


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


def test_unknown_names_are_usage_errors(store: Store) -> None:
    with pytest.raises(UsageError, match="greedy"):
        make_policy("clever")
    with pytest.raises(UsageError, match="rules"):
        make_proposer("clever", store, start_run(store))
