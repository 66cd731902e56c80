"""Several workers on one store, on SQLite and, where there is a server, on PostgreSQL."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy", reason="the extra `agent` is not installed")

from test_agent_store import RUN, node

from kir.agent.store import Store, Transcript, this_worker
from kir.agent.transfer import export, load
from kir.errors import StoreError

ROOT = str(Path(__file__).resolve().parents[1])
USER = "nobody"
"""Who runs the database server, which refuses to run as root."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an empty database of a PostgreSQL server of our own, on a socket only."""
    found = [*Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    tool = shutil.which("initdb") or (str(found[-1]) if found else "")
    if not tool:
        pytest.skip("no PostgreSQL server is installed here")
    pytest.importorskip("psycopg", reason="the extra `postgres` is not installed")
    as_root = os.geteuid() == 0
    if as_root and shutil.which("runuser") is None:
        pytest.skip("PostgreSQL does not run as root, and there is no `runuser`")
    folder = Path(tempfile.mkdtemp(prefix="kir-pg-"))  # a socket's path must be short
    prefix = ["runuser", "-u", USER, "--"] if as_root else []
    if as_root:
        shutil.chown(folder, USER)

    def call(*command: str) -> None:
        subprocess.run([*prefix, *command], check=True, capture_output=True, cwd=folder)

    control = str(Path(tool).with_name("pg_ctl"))
    data = str(folder / "data")
    call(tool, "-D", data, "-U", "kir", "--auth=trust", "--no-sync")
    options = f"-k {folder} -c listen_addresses= -c fsync=off"
    call(control, "-D", data, "-w", "-l", str(folder / "log"), "-o", options, "start")
    try:
        yield f"postgresql+psycopg://kir@/postgres?host={folder}"
    finally:
        call(control, "-D", data, "-w", "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/t.db"
    return str(request.getfixturevalue("server"))


def test_a_variant_is_claimed_once_and_seen_when_it_is_evaluated(url: str) -> None:
    store, other = Store(url), Store(url)
    run = store.add_run(RUN)
    mine = store.claim(node(run), "me", 60)
    assert mine is not None
    assert other.claim(node(run), "you", 60) is None
    assert other.nodes(run) == [] and other.count_claims(run) == 1
    done = node(run, id=mine, fitness=2.0, log="x" * 30_000, resources={"cpu_s": 1.0})
    assert not other.finish(done, "you")
    assert store.finish(done, "me")
    assert not store.finish(done, "me")
    (found,) = other.nodes(run)
    assert (found.id, found.fitness, found.resources) == (mine, 2.0, {"cpu_s": 1.0})
    assert len(found.log) == 20_000
    assert other.nodes(run, beside=[mine]) == []


def test_a_claim_that_ran_out_is_taken_over_by_one(url: str) -> None:
    now = [1000.0]
    store = Store(url, clock=lambda: now[0])
    run = store.add_run(RUN)
    first = store.claim(node(run, parents=()), "elsewhere:1:2", 60)
    assert store.take_over(run, "me", 60) is None
    now[0] += 61
    taken = store.take_over(run, "me", 60)
    assert taken is not None and taken.id == first
    assert store.take_over(run, "you", 60) is None
    late = node(run, id=taken.id)
    assert not store.finish(late, "elsewhere:1:2") and store.finish(late, "me")


def test_a_claim_of_a_process_that_is_gone_is_free_at_once(url: str) -> None:
    store = Store(url)
    run = store.add_run(RUN)
    store.claim(node(run), this_worker(), 60)
    assert store.take_over(run, "other", 60) is None
    gone = this_worker().rpartition(":")[0] + ":1"  # our id, but begun at another time
    store.claim(node(run, "b" * 64), gone, 60)
    taken = store.take_over(run, "other", 60)
    assert taken is not None and taken.ir_hash == "b" * 64
    store.claim(node(run, "c" * 64), "far:1:2", 60)
    store.abandon("far:1:2")
    taken = store.take_over(run, "other", 60)
    assert taken is not None and taken.ir_hash == "c" * 64


WORKER = """
import sys
from kir.agent.store import NodeRow, Store, this_worker
url, run, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
from random import Random
draw, store, me = Random(seed), Store(url), this_worker()
print("ready", flush=True)
while True:
    row = NodeRow(run, (), "schedule s of k { }", f"{draw.randrange(1000):064d}")
    claimed = store.claim(row, me, 60)
    if claimed is not None:
        done = NodeRow(run, (), row.derivation, row.ir_hash, "ok", 1.0, id=claimed)
        assert store.finish(done, me)
        print(claimed, flush=True)
"""


def test_killed_workers_lose_nothing_that_was_committed(url: str) -> None:
    store = Store(url)
    run = store.add_run(RUN)
    said: set[int] = set()
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, url, str(run), str(k)],
            env=os.environ | {"PYTHONPATH": ROOT},
            stdout=subprocess.PIPE,
            text=True,
        )
        for k in range(2)
    ]
    for child in pair:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        for _ in range(5):
            said.add(int(child.stdout.readline()))
    for child in pair:
        child.send_signal(signal.SIGKILL)
        assert child.stdout is not None
        said |= {int(line) for line in child.stdout if line.endswith("\n")}
        child.wait()
    rows = store.nodes(run)
    assert said <= {r.id for r in rows}
    assert len({r.ir_hash for r in rows}) == len(rows)
    while store.take_over(run, "heir", 60):
        pass
    assert store.count_claims(run) <= 2  # one for each that was killed, at the most


def test_a_store_goes_through_json_lines(url: str, tmp_path: Path) -> None:
    store = Store(url)
    run = store.add_run(RUN)
    first = store.add_node(node(run, kind="root", features={"lanes": 3.0}))
    second = store.add_node(node(run, "b" * 64, parents=(first,), status="wrong", error="é"))
    store.add_transcript(Transcript(run, second, "openai", "m", ({"role": "user"},), 7, 0.5, "ok"))
    store.claim(node(run, "c" * 64), "me", 60)
    lines = list(export(store))
    other = Store(f"sqlite:///{tmp_path}/other.db")
    other.add_run(RUN)  # so that ids differ
    runs, nodes = load(other, lines)
    assert runs >= 1 and nodes >= 2
    latest = other.runs()[-1].id
    a, b = other.nodes(latest)
    assert (a.kind, a.features, b.parents, b.error) == ("root", {"lanes": 3.0}, (a.id,), "é")
    (talk,) = other.transcripts(latest)
    assert (talk.node, talk.messages, talk.dollars) == (b.id, ({"role": "user"},), 0.5)


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "[]",
        '{"record": "elephant"}',
        '{"record": "run"}',
        '{"record": "transcript", "run": 5}',
        "[" * 100_000,
    ],
)
def test_lines_of_something_else_are_refused(line: str, tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/t.db")
    with pytest.raises(StoreError, match="line 2"):
        load(store, ['{"format": "kir-store-2"}', line])
    with pytest.raises(StoreError, match="line 1"):
        load(store, [line])
