"""The store: every run and every node of a search, in a database named by a URL.

SQLite (in WAL mode) by default; nothing here is particular to it but `_prepare_sqlite`. A node is
committed when it is made, so a search killed at any moment loses nothing that was evaluated.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kir.errors import MissingExtraError, StoreError

try:
    import sqlalchemy as sa
    from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
except ImportError as error:
    raise MissingExtraError(
        "the search keeps its nodes in a database through SQLAlchemy, which is not installed",
        hint="pip install 'kir[agent]'",
    ) from error

SCHEMA = 1
"""Version of the tables; a store of another version is refused rather than misread."""

Json = Any


@dataclass(frozen=True)
class RunRow:
    """One search. `source` is the spec's module as text: with a node's derivation it is the whole
    variant. `settings` is what the search was asked for, `result` what it found in the end."""

    id: int
    fingerprint: str
    kernel: str
    source: str
    dims: Mapping[str, int]
    target: str
    arch: str
    baseline: str
    seed: int
    status: str
    settings: Mapping[str, Json]
    provenance: Mapping[str, Json]
    result: Mapping[str, Json]


@dataclass(frozen=True)
class NodeRow:
    """One variant. `status` is a verdict's; `fitness` is baseline time / its time, 0 on failure.

    `parents` are node ids of the same run. `seconds` and `baseline_seconds` are medians measured
    interleaved in one process. `id` is 0 until the store gives one.
    """

    run: int
    parents: tuple[int, ...]
    derivation: str
    ir_hash: str
    status: str
    fitness: float = 0.0
    seconds: float | None = None
    baseline_seconds: float | None = None
    error: str = ""
    provenance: Mapping[str, Json] = field(default_factory=dict)
    id: int = 0


class _Base(DeclarativeBase):
    pass


class _Meta(_Base):
    __tablename__ = "kir_meta"
    key: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    value: Mapped[str] = mapped_column(sa.Text)


class _Run(_Base):
    __tablename__ = "kir_runs"
    id: Mapped[int] = mapped_column(primary_key=True)
    made: Mapped[str] = mapped_column(sa.String(40))
    fingerprint: Mapped[str] = mapped_column(sa.String(64), index=True)
    kernel: Mapped[str] = mapped_column(sa.Text)
    source: Mapped[str] = mapped_column(sa.Text)
    dims: Mapped[str] = mapped_column(sa.Text)
    target: Mapped[str] = mapped_column(sa.String(64))
    arch: Mapped[str] = mapped_column(sa.String(64))
    baseline: Mapped[str] = mapped_column(sa.Text)
    seed: Mapped[int] = mapped_column(sa.BigInteger)
    status: Mapped[str] = mapped_column(sa.String(16))
    settings: Mapped[str] = mapped_column(sa.Text)
    provenance: Mapped[str] = mapped_column(sa.Text)
    result: Mapped[str] = mapped_column(sa.Text, default="{}")


class _Node(_Base):
    __tablename__ = "kir_nodes"
    __table_args__ = (sa.UniqueConstraint("run", "ir_hash"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    made: Mapped[str] = mapped_column(sa.String(40))
    run: Mapped[int] = mapped_column(sa.ForeignKey("kir_runs.id"), index=True)
    parents: Mapped[str] = mapped_column(sa.Text)
    derivation: Mapped[str] = mapped_column(sa.Text)
    ir_hash: Mapped[str] = mapped_column(sa.String(64))
    status: Mapped[str] = mapped_column(sa.String(16))
    fitness: Mapped[float]
    seconds: Mapped[float | None]
    baseline_seconds: Mapped[float | None]
    error: Mapped[str] = mapped_column(sa.Text)
    provenance: Mapped[str] = mapped_column(sa.Text)


class Store:
    """The database behind `url` (`sqlite:///tune.db`, `postgresql://...`).

    Raises StoreError, with the database's own words, where it cannot be opened, read or written,
    and where it was made by another version.
    """

    def __init__(self, url: str, *, create: bool = True) -> None:
        self.url = url
        with _translated(url):
            parsed = sa.make_url(url)
            if parsed.get_backend_name() == "sqlite":
                _check_file(parsed.database, create)
            self._engine = sa.create_engine(parsed)
            if parsed.get_backend_name() == "sqlite":
                _prepare_sqlite(self._engine)
            self._check_schema(create)

    def close(self) -> None:
        self._engine.dispose()

    def _check_schema(self, create: bool) -> None:
        if create:
            _Base.metadata.create_all(self._engine)
        elif not sa.inspect(self._engine).has_table(_Meta.__tablename__):
            raise StoreError(f"`{self.url}` holds no searches")
        with Session(self._engine) as session, session.begin():
            found = session.get(_Meta, "schema")
            if found is None:
                session.add(_Meta(key="schema", value=str(SCHEMA)))
            elif found.value != str(SCHEMA):
                raise StoreError(
                    f"`{self.url}` was made by a version of KIR with schema {found.value}",
                    hint=f"this one reads schema {SCHEMA}; name another store",
                )

    @contextmanager
    def _session(self) -> Iterator[Session]:
        with _translated(self.url), Session(self._engine) as session, session.begin():
            yield session

    def add_run(self, row: RunRow) -> int:
        """Commit a run; gives its id (`row.id` is ignored)."""
        with self._session() as session:
            made = _Run(
                made=_now(),
                fingerprint=row.fingerprint,
                kernel=row.kernel,
                source=row.source,
                dims=json.dumps(dict(row.dims)),
                target=row.target,
                arch=row.arch,
                baseline=row.baseline,
                seed=row.seed,
                status=row.status,
                settings=json.dumps(dict(row.settings)),
                provenance=json.dumps(dict(row.provenance)),
                result=json.dumps(dict(row.result)),
            )
            session.add(made)
            session.flush()
            return made.id

    def finish_run(self, run: int, status: str, result: Mapping[str, Json]) -> None:
        with self._session() as session:
            row = session.get(_Run, run)
            if row is None:
                raise StoreError(f"the store has no run {run}")
            row.status, row.result = status, json.dumps(dict(result))

    def add_node(self, row: NodeRow) -> int:
        """Commit a node; gives its id (`row.id` is ignored)."""
        with self._session() as session:
            made = _Node(
                made=_now(),
                run=row.run,
                parents=json.dumps(row.parents),
                derivation=row.derivation,
                ir_hash=row.ir_hash,
                status=row.status,
                fitness=row.fitness,
                seconds=row.seconds,
                baseline_seconds=row.baseline_seconds,
                error=row.error,
                provenance=json.dumps(dict(row.provenance)),
            )
            session.add(made)
            session.flush()
            return made.id

    def run(self, run: int) -> RunRow:
        with self._session() as session:
            row = session.get(_Run, run)
            if row is None:
                raise StoreError(f"the store has no run {run}")
            return _run_row(row)

    def find_run(self, fingerprint: str) -> RunRow | None:
        """The latest run that asked for just this search."""
        with self._session() as session:
            query = sa.select(_Run).where(_Run.fingerprint == fingerprint).order_by(-_Run.id)
            row = session.scalars(query).first()
            return None if row is None else _run_row(row)

    def node(self, node: int) -> NodeRow:
        with self._session() as session:
            row = session.get(_Node, node)
            if row is None:
                known = session.scalars(sa.select(_Node.id).order_by(-_Node.fitness).limit(5)).all()
                hint = f"the best of it: {', '.join(map(str, known))}" if known else "it is empty"
                raise StoreError(f"the store has no node {node}", hint=hint)
            return _node_row(row)

    def nodes(self, run: int) -> list[NodeRow]:
        """All nodes of a run, in the order in which they were made."""
        with self._session() as session:
            query = sa.select(_Node).where(_Node.run == run).order_by(_Node.id)
            return [_node_row(row) for row in session.scalars(query)]

    def runs(self) -> list[RunRow]:
        with self._session() as session:
            return [_run_row(row) for row in session.scalars(sa.select(_Run).order_by(_Run.id))]


def _run_row(row: _Run) -> RunRow:
    return RunRow(
        id=row.id,
        fingerprint=row.fingerprint,
        kernel=row.kernel,
        source=row.source,
        dims=json.loads(row.dims),
        target=row.target,
        arch=row.arch,
        baseline=row.baseline,
        seed=row.seed,
        status=row.status,
        settings=json.loads(row.settings),
        provenance=json.loads(row.provenance),
        result=json.loads(row.result),
    )


def _node_row(row: _Node) -> NodeRow:
    return NodeRow(
        id=row.id,
        run=row.run,
        parents=tuple(json.loads(row.parents)),
        derivation=row.derivation,
        ir_hash=row.ir_hash,
        status=row.status,
        fitness=row.fitness,
        seconds=row.seconds,
        baseline_seconds=row.baseline_seconds,
        error=row.error,
        provenance=json.loads(row.provenance),
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _check_file(database: str | None, create: bool) -> None:
    if not database or database == ":memory:":
        raise StoreError(
            "a store in memory would be lost with the search", hint="use `sqlite:///tune.db`"
        )
    if not create and not Path(database).exists():
        raise StoreError(f"there is no store `{database}`", hint="`kir tune --store` makes one")


def _prepare_sqlite(engine: sa.Engine) -> None:
    """WAL: readers and one writer at a time, and a commit that survives `kill -9`."""

    @sa.event.listens_for(engine, "connect")
    def connect(connection: Any, _: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA busy_timeout = 30000")
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()


@contextmanager
def _translated(url: str) -> Iterator[None]:
    try:
        yield
    except (sa.exc.SQLAlchemyError, ImportError) as error:  # ImportError: a driver is missing
        words = str(getattr(error, "orig", None) or error).splitlines()[0]
        raise StoreError(
            f"the store `{_without_password(url)}` fails: {words}",
            hint="a store is a database URL, such as `sqlite:///tune.db`",
        ) from error


def _without_password(url: str) -> str:
    try:
        return sa.make_url(url).render_as_string(hide_password=True)
    except sa.exc.ArgumentError:
        return url
