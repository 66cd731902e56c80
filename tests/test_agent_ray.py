"""The Ray executor on a local cluster, with a worker killed in the middle."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy", reason="the extra `agent` is not installed")
pytest.importorskip("ray", reason="the extra `ray` is not installed")

from test_agent_search import SPEC, start_run

from kir.agent.evaluate import Limits, Problem
from kir.agent.graph.policy import Greedy
from kir.agent.ray import RayExecutor
from kir.agent.rules import Rules, drafts
from kir.agent.search import Budget, Search
from kir.agent.search import drafts as roots
from kir.agent.store import Store
from kir.agent.variant import derivation_text
from kir.errors import UsageError
from kir.ir import Module
from kir.pipeline import LOOPS
from kir.syntax import format_module

PROBLEM = Problem(
    format_module(Module((SPEC,))), SPEC.name, {}, "cpu", None, "native",
    derivation_text(SPEC.name, LOOPS), 0,
)  # fmt: skip


@pytest.mark.slow
def test_a_search_goes_on_where_a_worker_is_killed(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/t.db")
    executor = RayExecutor(PROBLEM, Limits(), 2)
    try:
        run = start_run(store)
        killed: list[int] = []

        def kill(event: object) -> None:
            if len(store.nodes(run)) == 2 and not killed:
                killed.append(1)
                executor.kill_one()

        one = Search(run, SPEC, store, executor, Greedy(), Rules(), 0, on_event=kill)
        one.go(roots((LOOPS, *drafts(SPEC, 2))), Budget(evaluations=6))
        assert killed
        found = store.nodes(run)
        assert len(found) == 6 and store.count_claims(run) == 0
        assert all(n.status == "ok" for n in found[:3])
        assert len(executor.contest([n.derivation for n in found[:2]], 1)) == 2
    finally:
        executor.close()


def test_there_is_at_least_one_worker() -> None:
    with pytest.raises(UsageError, match="0 workers"):
        RayExecutor(PROBLEM, None, 0)
