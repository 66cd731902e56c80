"""The whole road on the CPU: search, verify, measure, store, kill, resume, replay."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy", reason="the extra `agent` is not installed")

from example_cases import EXAMPLES

from kir.agent.search import Event, hash_ir
from kir.agent.store import Store
from kir.agent.tune import replay, tune
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


@pytest.mark.parametrize(
    ("name", "dims", "start"),
    [
        ("softmax", SOFTMAX_DIMS, "default"),
        ("softmax", SOFTMAX_DIMS, "loops"),
        ("matmul", {"M": 33, "N": 48, "K": 17}, "default"),
    ],
)
def test_a_small_search(name: str, dims: dict[str, int], start: str, url: str) -> None:
    events: list[Event] = []
    found = tune(
        example(name),
        dims,
        budget_s=None,
        evaluations=4,
        store=url,
        start=start,
        on_event=events.append,
    )
    assert found.evaluations == len(events) == 4
    assert sum(found.statuses.values()) == 4
    assert found.statuses["ok"] >= 1
    assert found.seconds > 0 and found.baseline_seconds > 0 and not found.interrupted

    module = parse(found.derivation)
    (derivation,) = module.schedules().values()
    assert derivation.kernel == name
    store = Store(url, create=False)
    assert store.run(found.run).status == "done"
    rows = store.nodes(found.run)
    assert len(rows) == 4
    stored = store.node(found.node)
    assert stored.derivation == found.derivation
    assert stored.fitness == max(r.fitness for r in rows)
    ir = schedule(specialise(example(name), dims), derivation.steps)
    assert hash_ir(ir) == stored.ir_hash
    assert stored.provenance["packages"]["numpy"]

    again = replay(url, found.node)
    assert again.kernel == ir
    assert again.verdict.status == "ok"


def test_a_changed_derivation_is_not_replayed(url: str, tmp_path: Path) -> None:
    found = tune(example("softmax"), SOFTMAX_DIMS, budget_s=None, evaluations=1, store=url)
    with sqlite3.connect(tmp_path / "t.db") as database:
        database.execute("update kir_nodes set derivation = 'schedule s of softmax { loops() }'")
    with pytest.raises(StoreError, match="no longer"):
        replay(url, found.node)
    with pytest.raises(StoreError, match="no node 99"):
        replay(url, 99)


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
        f"tune(parse_kernel(text), {SOFTMAX_DIMS}, budget_s=60.0, store={url!r})\n"
    )
    root = str(EXAMPLES.parent)
    child = subprocess.Popen([sys.executable, str(script)], env=os.environ | {"PYTHONPATH": root})
    deadline = time.monotonic() + 30
    while stored(tmp_path) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    before = Store(url, create=False).nodes(1)
    assert len(before) >= 2

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
    assert after[: len(before)] == before
    assert len(after) == len(before) + 1


def stored(folder: Path) -> int:
    if not (folder / "t.db").exists():
        return 0
    with sqlite3.connect(folder / "t.db") as database:
        try:
            (count,) = database.execute("select count(*) from kir_nodes").fetchone()
        except sqlite3.OperationalError:  # the tables are not made yet
            return 0
    return int(count)
