"""The schema's version, and the way from each older one to it.

A store says its version in `kir_meta`. Opening one of an older version brings it up step by step,
each step in one transaction with its new version; a newer one is refused rather than misread.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import sqlalchemy as sa

from kir.agent.tables import Base, Edge, Meta, Talk
from kir.errors import StoreError

SCHEMA = 2


def bring_up(engine: sa.Engine, create: bool, shown: str) -> None:
    """Make the tables where there are none (StoreError unless `create`); migrate older ones.

    `shown` is the URL as errors may show it. Several processes may do so at once: on PostgreSQL
    a lock, on SQLite the one writer at a time keeps them apart.
    """
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        if connection.dialect.name == "postgresql":
            connection.execute(sa.text("select pg_advisory_xact_lock(7311943)"))
        if not sa.inspect(connection).has_table(Meta.__tablename__):
            if not create:
                raise StoreError(f"`{shown}` holds no searches")
            Base.metadata.create_all(connection)
            connection.execute(sa.insert(Meta).values(key="schema", value=str(SCHEMA)))
            return
        query = sa.select(Meta.value).where(Meta.key == "schema")
        found = connection.execute(query).scalar_one_or_none()
        if found is None or not found.isdecimal() or not 1 <= int(found) <= SCHEMA:
            raise StoreError(
                f"`{shown}` was made by a version of KIR with schema {found}",
                hint=f"this one reads schemas up to {SCHEMA}; name another store",
            )
        for version in range(int(found), SCHEMA):
            _STEPS[version](connection)
        done = sa.update(Meta).where(Meta.key == "schema").values(value=str(SCHEMA))
        connection.execute(done)


def _edges_claims_transcripts(connection: sa.Connection) -> None:
    """1 to 2: parents become edges; nodes get kind, log, features, resources and claims."""
    text = "text not null default"
    for column, kind in (
        ("kind", "varchar(16) not null default 'step'"),
        ("log", f"{text} ''"),
        ("features", f"{text} '{{}}'"),
        ("resources", f"{text} '{{}}'"),
        ("owner", "varchar(128) not null default ''"),
        ("lease", "double precision not null default 0"),
    ):
        connection.execute(sa.text(f"alter table kir_nodes add column {column} {kind}"))
    Base.metadata.create_all(
        connection, tables=[Base.metadata.tables[t.__tablename__] for t in (Edge, Talk)]
    )
    for child, parents in connection.execute(sa.text("select id, parents from kir_nodes")).all():
        for position, parent in enumerate(json.loads(parents)):
            edge = sa.insert(Edge).values(child=child, position=position, parent=parent)
            connection.execute(edge)
    roots = "update kir_nodes set kind = 'root' where id not in (select child from kir_edges)"
    connection.execute(sa.text(roots))
    connection.execute(sa.text("alter table kir_nodes drop column parents"))


_STEPS: dict[int, Callable[[sa.Connection], None]] = {1: _edges_claims_transcripts}
"""What leads from a version to the next."""
