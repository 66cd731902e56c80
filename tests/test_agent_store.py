"""The store: what goes in comes out, committed at once, and its failures are StoreErrors."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kir.errors import StoreError

pytest.importorskip("sqlalchemy", reason="the extra `agent` is not installed")

from kir.agent.store import NodeRow, RunRow, Store

RUN = RunRow(
    id=0,
    fingerprint="f" * 64,
    kernel="softmax",
    source="kernel softmax ...",
    dims={"M": 3, "N": 5},
    target="cpu",
    arch="host",
    baseline="schedule tuned of softmax { }",
    seed=7,
    status="running",
    settings={"policy": "greedy"},
    provenance={"python": "3"},
    result={},
)


def node(run: int, ir_hash: str = "a" * 64, **fields: Any) -> NodeRow:
    values: dict[str, Any] = {"derivation": "schedule s of k { }", "status": "ok", "parents": ()}
    return NodeRow(run=run, ir_hash=ir_hash, **(values | fields))


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/t.db"


def test_runs_and_nodes_come_back_as_they_went_in(url: str) -> None:
    store = Store(url)
    run = store.add_run(RUN)
    first = node(run, fitness=1.25, seconds=1e-3, baseline_seconds=1.25e-3, error="é\n")
    first_id = store.add_node(first)
    second = node(run, "b" * 64, parents=(first_id,), status="wrong", provenance={"x": [1, 2.5]})
    second_id = store.add_node(second)
    store.finish_run(run, "done", {"node": first_id})
    store.close()

    again = Store(url, create=False)
    found = again.run(run)
    assert (found.dims, found.seed, found.status) == (RUN.dims, 7, "done")
    assert found.result == {"node": first_id}
    assert [n.id for n in again.nodes(run)] == [first_id, second_id]
    stored = again.node(first_id)
    assert (stored.fitness, stored.seconds, stored.error) == (1.25, 1e-3, "é\n")
    assert again.node(second_id).parents == (first_id,)
    assert again.node(second_id).provenance == {"x": [1, 2.5]}


def test_a_node_is_seen_by_another_reader_at_once(url: str, tmp_path: Path) -> None:
    store = Store(url)
    store.add_node(node(store.add_run(RUN)))
    with sqlite3.connect(tmp_path / "t.db") as reader:
        assert reader.execute("select count(*) from kir_nodes").fetchone() == (1,)
        assert reader.execute("pragma journal_mode").fetchone() == ("wal",)


def test_the_same_ir_is_stored_once_in_a_run(url: str) -> None:
    store = Store(url)
    run, other = store.add_run(RUN), store.add_run(RUN)
    store.add_node(node(run))
    store.add_node(node(other))
    with pytest.raises(StoreError):
        store.add_node(node(run))
    assert len(store.nodes(run)) == 1


def test_the_latest_run_that_asked_for_the_same_is_found(url: str) -> None:
    store = Store(url)
    assert store.find_run(RUN.fingerprint) is None
    store.add_run(RUN)
    latest = store.add_run(RUN)
    found = store.find_run(RUN.fingerprint)
    assert found is not None and found.id == latest


def test_what_is_not_there_is_a_store_error(url: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no store"):
        Store(url, create=False)
    store = Store(url)
    with pytest.raises(StoreError, match="no node 5"):
        store.node(5)
    with pytest.raises(StoreError, match="no run 5"):
        store.run(5)
    (tmp_path / "text.db").write_text("this is not a database " * 100)
    with pytest.raises(StoreError):
        Store(f"sqlite:///{tmp_path}/text.db")
    with pytest.raises(StoreError):
        Store(f"sqlite:///{tmp_path}/missing/folder/t.db")
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("create table t (x)")
    with pytest.raises(StoreError, match="holds no searches"):
        Store(f"sqlite:///{tmp_path}/other.db", create=False)


@pytest.mark.parametrize("bad", ["nonsense", "nosuch://x/y", "sqlite://", ""])
def test_a_bad_url_is_a_store_error(bad: str) -> None:
    with pytest.raises(StoreError):
        Store(bad)


def test_a_password_is_not_shown() -> None:
    with pytest.raises(StoreError) as caught:
        Store("nosuch://user:secret@host/db")
    assert "secret" not in caught.value.message


def test_a_later_schema_is_refused(url: str, tmp_path: Path) -> None:
    Store(url).close()
    with sqlite3.connect(tmp_path / "t.db") as other:
        other.execute("update kir_meta set value = '999'")
    with pytest.raises(StoreError, match="schema 999"):
        Store(url)


FIRST_SCHEMA = """
create table kir_meta (key varchar(64) primary key, value text not null);
create table kir_runs (id integer primary key, made varchar(40) not null,
  fingerprint varchar(64) not null, kernel text not null, source text not null,
  dims text not null, target varchar(64) not null, arch varchar(64) not null,
  baseline text not null, seed bigint not null, status varchar(16) not null,
  settings text not null, provenance text not null, result text not null);
create table kir_nodes (id integer primary key, made varchar(40) not null,
  run integer not null references kir_runs (id), parents text not null,
  derivation text not null, ir_hash varchar(64) not null, status varchar(16) not null,
  fitness float not null, seconds float, baseline_seconds float, error text not null,
  provenance text not null, unique (run, ir_hash));
insert into kir_meta values ('schema', '1');
insert into kir_runs values (1, '', 'f', 'softmax', 'text', '{"M": 3}', 'cpu', 'host', 'b', 0,
  'done', '{}', '{}', '{}');
insert into kir_nodes values (1, '', 1, '[]', 'd', 'a', 'ok', 1.0, 2.0, 2.0, '', '{}');
insert into kir_nodes values (2, '', 1, '[1]', 'e', 'b', 'ok', 2.0, 1.0, 2.0, '', '{"x": 1}');
"""


def test_a_store_of_the_first_schema_is_migrated(url: str, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "t.db") as old:
        old.executescript(FIRST_SCHEMA)
    for _ in range(2):  # the second time there is nothing to do
        store = Store(url)
        first, second = store.nodes(1)
        assert (first.kind, first.parents, second.kind, second.parents) == (
            "root",
            (),
            "step",
            (1,),
        )
        assert (second.fitness, second.provenance) == (2.0, {"x": 1})
        store.close()
    store = Store(url)
    assert store.add_node(node(1, "c", parents=(1, 2))) == 3
    assert store.node(3).parents == (1, 2)


def test_without_sqlalchemy_the_extra_is_named() -> None:
    program = """
import sys
sys.modules["sqlalchemy"] = None
from kir.errors import MissingExtraError
try:
    import kir.agent.tune
except MissingExtraError as error:
    assert "kir[agent]" in error.hint
    print("named")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "named\n", done.stderr
