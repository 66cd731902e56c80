"""The store: every run and every node of a search, in a database named by a URL.

Several workers on several machines may share one. A node is entered when a worker claims it, for
a time (its lease), under a constraint that its IR is new in the run; and committed again with its
verdict. A claim whose worker is gone is taken over by another. So a search killed at any moment
loses nothing that was evaluated. Nothing here is particular to SQLite but `_prepare_sqlite`.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kir.agent.tables as tables
from kir.agent.tables import CLAIMED, Json, NodeRow, RunRow, Transcript, dumped
from kir.errors import StoreError

import sqlalchemy as sa  # isort: skip  (`tables` has said which extra is missing)
from sqlalchemy.orm import Session  # isort: skip

from kir.agent.migrations import SCHEMA, bring_up  # isort: skip

__all__ = ["SCHEMA", "NodeRow", "RunRow", "Store", "Transcript", "this_worker"]

LOG_LIMIT = 20_000
"""Characters of a log that are kept: the end of it."""


def this_worker() -> str:
    """`host:pid:start`: who claims. The start tells a process from a later one of the same id."""
    return f"{socket.gethostname()}:{os.getpid()}:{_started(os.getpid())}"


def _started(pid: int) -> str:
    """When a process began, in the kernel's ticks; "" where there is none, or no /proc."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    fields = stat.rsplit(")", 1)[1].split()
    return "" if fields[0] == "Z" else fields[19]


def _is_gone(owner: str) -> bool:
    """Whether the claiming process is known to have ended: it was on this machine."""
    host, _, rest = owner.partition(":")
    pid, _, started = rest.partition(":")
    return host == socket.gethostname() and pid.isdecimal() and _started(int(pid)) != started


class Store:
    """The database behind `url` (`sqlite:///tune.db`, `postgresql://...`).

    Raises StoreError, with the database's own words, where it cannot be opened, read or written,
    and where it was made by a later version.
    """

    def __init__(
        self, url: str, *, create: bool = True, clock: Callable[[], float] = time.time
    ) -> None:
        self.url = url
        self._clock = clock
        with _translated(url):
            parsed = sa.make_url(url)
            sqlite = parsed.get_backend_name() == "sqlite"
            if sqlite:
                _check_file(parsed.database, create)
            self._engine = sa.create_engine(parsed)
            if sqlite:
                _prepare_sqlite(self._engine)
            bring_up(self._engine, create, self.shown)

    @property
    def shown(self) -> str:
        """The URL without its password."""
        return _without_password(self.url)

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def session(self, *, writes: bool = False) -> Iterator[Session]:
        """One transaction; errors of the database come out as StoreErrors."""
        with _translated(self.url):
            engine = self._engine.execution_options(writes=writes)
            with Session(engine) as session, session.begin():
                yield session

    # --- runs ----------------------------------------------------------------------------------

    def add_run(self, row: RunRow) -> int:
        """Commit a run; gives its id (`row.id` is ignored)."""
        with self.session(writes=True) as session:
            made = tables.Run(
                made=_now(),
                fingerprint=row.fingerprint,
                kernel=row.kernel,
                source=row.source,
                dims=dumped(row.dims),
                target=row.target,
                arch=row.arch,
                baseline=row.baseline,
                seed=row.seed,
                status=row.status,
                settings=dumped(row.settings),
                provenance=dumped(row.provenance),
                result=dumped(row.result),
            )
            session.add(made)
            session.flush()
            return made.id

    def finish_run(self, run: int, status: str, result: Mapping[str, Json]) -> None:
        with self.session(writes=True) as session:
            row = session.get(tables.Run, run)
            if row is None:
                raise StoreError(f"the store has no run {run}")
            row.status, row.result = status, dumped(result)

    def run(self, run: int) -> RunRow:
        with self.session() as session:
            row = session.get(tables.Run, run)
            if row is None:
                raise StoreError(f"the store has no run {run}")
            return tables.run_row(row)

    def runs(self) -> list[RunRow]:
        with self.session() as session:
            rows = session.scalars(sa.select(tables.Run).order_by(tables.Run.id))
            return [tables.run_row(row) for row in rows]

    def find_run(self, fingerprint: str) -> RunRow | None:
        """The latest run that asked for just this search."""
        matches = tables.Run.fingerprint == fingerprint
        with self.session() as session:
            row = session.scalars(
                sa.select(tables.Run).where(matches).order_by(-tables.Run.id)
            ).first()
            return None if row is None else tables.run_row(row)

    # --- nodes ---------------------------------------------------------------------------------

    def claim(self, row: NodeRow, owner: str, seconds: float) -> int | None:
        """Enter a variant that `owner` is going to evaluate within `seconds`; gives its id, or None
        where the run has its IR already."""
        seen = (tables.Node.run == row.run, tables.Node.ir_hash == row.ir_hash)
        try:
            with self.session(writes=True) as session:
                if session.scalar(sa.select(tables.Node.id).where(*seen)) is not None:
                    return None
                made = _node(row)
                made.status, made.owner, made.lease = CLAIMED, owner, self._clock() + seconds
                return _enter(session, made, row.parents)
        except _TakenError:  # by another worker, between the look and the entry
            return None

    def finish(self, row: NodeRow, owner: str) -> bool:
        """Commit the verdict on a variant that `owner` claimed; False where the claim was lost to
        another worker, whose verdict stands."""
        mine = (
            tables.Node.id == row.id,
            tables.Node.owner == owner,
            tables.Node.status == CLAIMED,
        )
        values = {
            "status": row.status,
            "fitness": row.fitness,
            "seconds": row.seconds,
            "baseline_seconds": row.baseline_seconds,
            "error": row.error,
            "log": row.log[-LOG_LIMIT:],
            "resources": dumped(row.resources),
            "provenance": dumped(row.provenance),
            "owner": "",
        }
        with self.session(writes=True) as session:
            changed: Any = session.execute(sa.update(tables.Node).where(*mine).values(**values))
            return bool(changed.rowcount == 1)

    def take_over(self, run: int, owner: str, seconds: float) -> NodeRow | None:
        """Claim a variant whose worker let its lease end, or is known to be gone; None where there
        is none."""
        with self.session(writes=True) as session:
            query = sa.select(tables.Node).where(
                tables.Node.run == run, tables.Node.status == CLAIMED
            )
            for row in session.scalars(query.order_by(tables.Node.id)):
                if row.lease > self._clock() and not _is_gone(row.owner):
                    continue
                same = (tables.Node.id == row.id, tables.Node.owner == row.owner,
                        tables.Node.lease == row.lease)  # fmt: skip
                taken: Any = session.execute(
                    sa.update(tables.Node)
                    .where(*same)
                    .values(owner=owner, lease=self._clock() + seconds)
                    .execution_options(synchronize_session=False)
                )
                if taken.rowcount == 1:
                    return tables.node_row(row, _parents(session, [row.id]).get(row.id, ()))
        return None

    def abandon(self, owner: str) -> None:
        """Give up what `owner` claimed and did not finish: another may take it at once."""
        mine = (tables.Node.owner == owner, tables.Node.status == CLAIMED)
        with self.session(writes=True) as session:
            session.execute(sa.update(tables.Node).where(*mine).values(lease=0.0))

    def add_node(self, row: NodeRow) -> int:
        """Commit an evaluated variant as it is; gives its id (`row.id` is ignored). StoreError
        where the run has its IR already."""
        try:
            with self.session(writes=True) as session:
                return _enter(session, _node(row), row.parents)
        except _TakenError:
            raise StoreError(
                f"run {row.run} has this IR already, or the store has no such run or parents",
                hint="a variant is stored once",
            ) from None

    def node(self, node: int) -> NodeRow:
        with self.session() as session:
            row = session.get(tables.Node, node)
            if row is None:
                best = sa.select(tables.Node.id).order_by(-tables.Node.fitness).limit(5)
                known = session.scalars(best).all()
                hint = f"the best of it: {', '.join(map(str, known))}" if known else "it is empty"
                raise StoreError(f"the store has no node {node}", hint=hint)
            return tables.node_row(row, _parents(session, [node]).get(node, ()))

    def nodes(self, run: int, *, beside: Iterable[int] = ()) -> list[NodeRow]:
        """All evaluated nodes of a run but those with an id in `beside`, in the order in which they
        were claimed."""
        known = set(beside)
        done = (tables.Node.run == run, tables.Node.status != CLAIMED)
        with self.session() as session:
            ids = [i for i in session.scalars(sa.select(tables.Node.id).where(*done))
                   if i not in known]  # fmt: skip
            if not ids:
                return []
            parents = _parents(session, ids)
            query = sa.select(tables.Node).where(*done).order_by(tables.Node.id)
            if len(ids) < 500:
                query = query.where(tables.Node.id.in_(ids))
            rows = [row for row in session.scalars(query) if row.id not in known]
            return [tables.node_row(row, parents.get(row.id, ())) for row in rows]

    def best_nodes(self, kernel: str, target: str, limit: int) -> list[tuple[RunRow, NodeRow]]:
        """The fittest nodes of all runs of kernels of a name on a target, with their runs."""
        query = (
            sa.select(tables.Run, tables.Node)
            .join(tables.Node, tables.Node.run == tables.Run.id)
            .where(tables.Run.kernel == kernel, tables.Run.target == target)
            .where(tables.Node.status == "ok")
            .order_by(-tables.Node.fitness, tables.Node.id)
            .limit(limit)
        )
        with self.session() as session:
            found = session.execute(query).all()
            parents = _parents(session, [node.id for _, node in found])
            return [
                (tables.run_row(run), tables.node_row(node, parents.get(node.id, ())))
                for run, node in found
            ]

    def count_claims(self, run: int) -> int:
        """How many variants of a run are being evaluated, or were when their worker died."""
        mine = (tables.Node.run == run, tables.Node.status == CLAIMED)
        with self.session() as session:
            return session.scalar(sa.select(sa.func.count(tables.Node.id)).where(*mine)) or 0

    # --- conversations -------------------------------------------------------------------------

    def add_transcript(self, row: Transcript) -> int:
        with self.session(writes=True) as session:
            made = tables.Talk(
                made=_now(), run=row.run, node=row.node, proposer=row.proposer, model=row.model,
                messages=dumped(row.messages), tokens=row.tokens, dollars=row.dollars,
                outcome=row.outcome,
            )  # fmt: skip
            session.add(made)
            session.flush()
            return made.id

    def transcripts(self, run: int) -> list[Transcript]:
        with self.session() as session:
            query = sa.select(tables.Talk).where(tables.Talk.run == run).order_by(tables.Talk.id)
            return [tables.transcript(row) for row in session.scalars(query)]


class _TakenError(Exception):
    """The run has the IR already."""


def _node(row: NodeRow) -> tables.Node:
    return tables.Node(
        made=row.made or _now(),
        run=row.run,
        derivation=row.derivation,
        ir_hash=row.ir_hash,
        status=row.status,
        fitness=row.fitness,
        seconds=row.seconds,
        baseline_seconds=row.baseline_seconds,
        error=row.error,
        kind=row.kind,
        log=row.log[-LOG_LIMIT:],
        features=dumped(row.features),
        resources=dumped(row.resources),
        provenance=dumped(row.provenance),
        owner="",
        lease=0.0,
    )


def _enter(session: Session, made: tables.Node, parents: tuple[int, ...]) -> int:
    session.add(made)
    try:
        session.flush()
    except sa.exc.IntegrityError as error:
        raise _TakenError from error
    edges = [tables.Edge(child=made.id, position=k, parent=p) for k, p in enumerate(parents)]
    session.add_all(edges)
    return made.id


def _parents(session: Session, nodes: list[int]) -> dict[int, tuple[int, ...]]:
    query = sa.select(tables.Edge).order_by(tables.Edge.child, tables.Edge.position)
    if len(nodes) < 500:
        query = query.where(tables.Edge.child.in_(nodes))
    found: dict[int, tuple[int, ...]] = {}
    for edge in session.scalars(query):
        found[edge.child] = (*found.get(edge.child, ()), edge.parent)
    return found


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
    """WAL: readers beside one writer at a time, and commits that survive `kill -9`. A transaction
    that writes takes the lock as it begins: one that had to wait for it later, having read, would
    be refused."""

    @sa.event.listens_for(engine, "connect")
    def connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # we begin transactions ourselves
        cursor = connection.cursor()
        cursor.execute("PRAGMA busy_timeout = 60000")
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def _translated(url: str) -> Iterator[None]:
    try:
        yield
    except (sa.exc.SQLAlchemyError, ImportError) as error:  # ImportError: a driver is missing
        words = str(getattr(error, "orig", None) or error).splitlines()[0]
        missing = isinstance(error, ImportError)
        raise StoreError(
            f"the store `{_without_password(url)}` fails: {words}",
            hint="pip install 'kir[postgres]'" if missing and url.startswith("postgres")
            else "a store is a database URL, such as `sqlite:///tune.db`",
        ) from error  # fmt: skip


def _without_password(url: str) -> str:
    try:
        return sa.make_url(url).render_as_string(hide_password=True)
    except sa.exc.ArgumentError:
        return url
