"""The whole road on the CPU: search, verify, measure, store, kill, resume, replay."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy", reason="the extra `agent` is not installed")

from example_cases import EXAMPLES

from kir.agent.dispatch import steps_for
from kir.agent.search import Event
from kir.agent.store import Store
from kir.agent.tune import Result, replay, tune, tune_shapes
from kir.derivation import kernel_hash
from kir.errors import StoreError, UsageError
from kir.ir import Kernel
from kir.pipeline import schedule
from kir.specialise import specialise
from kir.syntax import parse, parse_kernel

SOFTMAX_DIMS = {"M": 33, "N": 65}


def example(name: str) -> Kernel:
    return parse_kernel((EXAMPLES / f"{name}.kir").read_text(encoding="utf-8"))


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/t.db"


@dataclass(frozen=True)
class Search:
    """A finished search of three variants of softmax, from canonical loops."""

    url: str
    result: Result
    events: list[Event]


@pytest.fixture(scope="module")
def softmax_search(tmp_path_factory: pytest.TempPathFactory) -> Search:
    url = f"sqlite:///{tmp_path_factory.mktemp('store')}/t.db"
    events: list[Event] = []
    result = tune(
        example("softmax"),
        SOFTMAX_DIMS,
        budget_s=None,
        evaluations=3,
        store=url,
        start="loops",
        on_event=events.append,
    )
    return Search(url, result, events)


def test_a_search_reports_and_stores_what_it_found(softmax_search: Search) -> None:
    found = softmax_search.result
    assert found.evaluations == len(softmax_search.events) == sum(found.statuses.values()) == 3
    assert found.statuses["ok"] >= 1 and not found.interrupted
    assert found.seconds > 0 and found.baseline_seconds > 0 and found.speedup > 0

    store = Store(softmax_search.url, create=False)
    assert store.run(found.run).status == "done"
    assert len(store.nodes(found.run)) == 3
    stored = store.node(found.node)
    assert stored.derivation == found.derivation
    assert stored.status == "ok" and stored.fitness > 0
    assert stored.provenance["packages"]["numpy"]

    (derivation,) = parse(found.derivation).schedules().values()
    assert derivation.kernel == "softmax"
    ir = schedule(specialise(example("softmax"), SOFTMAX_DIMS), derivation.steps)
    assert kernel_hash(ir) == stored.ir_hash


def test_a_search_is_written_up_for_review(softmax_search: Search, tmp_path: Path) -> None:
    from kir.agent.knowledge import load_pages
    from kir.agent.learn import learn

    path = learn(softmax_search.url, example("softmax"), softmax_search.result, tmp_path / "new")
    (page,) = [p for p in load_pages([path.parent], drafts=True) if p.draft]
    assert "softmax" in page.title and f"node {softmax_search.result.node}" in path.read_text()


def test_a_node_is_rebuilt_and_verified_again(softmax_search: Search) -> None:
    again = replay(softmax_search.url, softmax_search.result.node)
    assert kernel_hash(again.kernel) == again.node.ir_hash
    assert again.verdict.status == "ok"


def test_a_changed_derivation_is_not_replayed(softmax_search: Search, tmp_path: Path) -> None:
    original = softmax_search.url.removeprefix("sqlite:///")
    with sqlite3.connect(original) as source, sqlite3.connect(tmp_path / "t.db") as copy:
        source.backup(copy)
        text = "schedule s of softmax { loops() split(i, 2) split(i, 2, outer = k) }"
        copy.execute("update kir_nodes set derivation = ?", (text,))
    with pytest.raises(StoreError, match="no longer"):
        replay(f"sqlite:///{tmp_path}/t.db", softmax_search.result.node)
    with pytest.raises(StoreError, match="no node 99"):
        replay(softmax_search.url, 99)


def test_the_default_schedule_is_a_start_too(url: str) -> None:
    dims = {"M": 33, "N": 48, "K": 17}
    found = tune(example("matmul"), dims, budget_s=None, evaluations=2, store=url)
    first = Store(url).nodes(found.run)[0]
    assert first.derivation == Store(url).run(found.run).baseline
    assert first.status == "ok"
    assert first.fitness == 1.0


def test_resume_wants_the_same_search(url: str) -> None:
    softmax = example("softmax")
    with pytest.raises(UsageError, match="no such search"):
        tune(softmax, SOFTMAX_DIMS, store=url, resume=True)
    with pytest.raises(UsageError, match="default"):
        tune(softmax, SOFTMAX_DIMS, store=url, start="anywhere")


def test_a_killed_search_resumes(url: str, tmp_path: Path) -> None:
    script = tmp_path / "search.py"
    script.write_text(
        "import sys\n"
        "from kir.agent.tune import tune\n"
        "from kir.syntax import parse_kernel\n"
        f"text = open({str(EXAMPLES / 'softmax.kir')!r}).read()\n"
        f"tune(parse_kernel(text), {SOFTMAX_DIMS}, budget_s=60.0, workers=2, store={url!r})\n"
    )
    root = str(EXAMPLES.parent)
    child = subprocess.Popen([sys.executable, str(script)], env=os.environ | {"PYTHONPATH": root})
    deadline = time.monotonic() + 120
    while stored(tmp_path) < 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    before = Store(url, create=False).nodes(1)
    assert len(before) >= 1

    events: list[Event] = []
    found = tune(
        example("softmax"),
        SOFTMAX_DIMS,
        budget_s=None,
        evaluations=len(before) + 1,
        store=url,
        resume=True,
        on_event=events.append,
    )
    assert found.run == 1
    assert [e.reused for e in events] == [True] * len(before) + [False]
    after = Store(url, create=False).nodes(1)
    assert [n for n in after if n in before] == before  # those claimed when it died come between
    assert len(after) == len(before) + 1


def stored(folder: Path) -> int:
    if not (folder / "t.db").exists():
        return 0
    with sqlite3.connect(folder / "t.db") as database:
        try:
            query = "select count(*) from kir_nodes where status <> 'claimed'"
            (count,) = database.execute(query).fetchone()
        except sqlite3.OperationalError:  # the tables are not made yet
            return 0
    return int(count)


def test_shapes_take_turns_and_share_what_they_find(url: str) -> None:
    softmax = example("softmax")
    shapes = [{"M": 4, "N": 33}, {"M": 2, "N": 65}, {"N": 33, "M": 4}]
    events: list[Event] = []
    found = tune_shapes(
        softmax, shapes, budget_s=None, evaluations=4, store=url, on_event=events.append
    )
    assert [dict(one.dims) for one in found] == shapes[:2] and found[0].run != found[1].run
    assert sum(one.evaluations for one in found) == 4
    seen = [tuple(e.shape.values()) for e in events]
    assert seen == [(4, 33), (2, 65)] * 2
    for one in found:
        assert any(r.startswith("ring") for r in one.rungs)
        steps = steps_for(url, softmax, one.dims, "cpu")
        assert (steps is not None) == (one.speedup > 1)
