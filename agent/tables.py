"""The tables of a store, and what a row of each is in Python.

    runs 1--n nodes 1--n edges (child, parent)
                    1--n transcripts (what was asked of a model, and what it answered)
    meta: the version of the schema (`migrations.py`)

Structured fields are JSON text: every database has it, and a person can read it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kir.errors import MissingExtraError

try:
    import sqlalchemy as sa
    from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
except ImportError as error:
    raise MissingExtraError(
        "the search keeps its nodes in a database through SQLAlchemy, which is not installed",
        hint="pip install 'kir[agent]'",
    ) from error

Json = Any
CLAIMED = "claimed"
"""Status of a node that a worker is evaluating; all others are a verdict's."""


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
    """One variant. `status` is a verdict's; `fitness` is baseline time / its time, 0 on failure,
    for the run's dims.

    `parents` are node ids of the same run, `kind` how it was made of them (root, draft, step,
    crossover). `seconds` and `baseline_seconds` are medians measured interleaved in one process.
    `features` are the IR's (`kir.agent.features`), `resources` what the evaluation took, `log` the
    end of what it printed. `id` is 0 until the store gives one.
    """

    run: int
    parents: tuple[int, ...]
    derivation: str
    ir_hash: str
    status: str = CLAIMED
    fitness: float = 0.0
    seconds: float | None = None
    baseline_seconds: float | None = None
    error: str = ""
    kind: str = "step"
    log: str = ""
    features: Mapping[str, float] = field(default_factory=dict)
    resources: Mapping[str, Json] = field(default_factory=dict)
    provenance: Mapping[str, Json] = field(default_factory=dict)
    made: str = ""
    id: int = 0


@dataclass(frozen=True)
class Transcript:
    """One conversation with a model: what was proposed in it, and what it cost. `messages` holds
    what was sent and received, without headers or keys; `node` is what it expanded."""

    run: int
    node: int
    proposer: str
    model: str
    messages: tuple[Json, ...]
    tokens: int
    dollars: float
    outcome: str
    id: int = 0


class Base(DeclarativeBase):
    pass


class Meta(Base):
    __tablename__ = "kir_meta"
    key: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    value: Mapped[str] = mapped_column(sa.Text)


class Run(Base):
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


class Node(Base):
    __tablename__ = "kir_nodes"
    __table_args__ = (sa.UniqueConstraint("run", "ir_hash"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    made: Mapped[str] = mapped_column(sa.String(40))
    run: Mapped[int] = mapped_column(sa.ForeignKey("kir_runs.id"), index=True)
    derivation: Mapped[str] = mapped_column(sa.Text)
    ir_hash: Mapped[str] = mapped_column(sa.String(64))
    status: Mapped[str] = mapped_column(sa.String(16))
    fitness: Mapped[float]
    seconds: Mapped[float | None]
    baseline_seconds: Mapped[float | None]
    error: Mapped[str] = mapped_column(sa.Text)
    provenance: Mapped[str] = mapped_column(sa.Text)
    kind: Mapped[str] = mapped_column(sa.String(16), server_default="step")
    log: Mapped[str] = mapped_column(sa.Text, server_default="")
    features: Mapped[str] = mapped_column(sa.Text, server_default="{}")
    resources: Mapped[str] = mapped_column(sa.Text, server_default="{}")
    owner: Mapped[str] = mapped_column(sa.String(128), server_default="")
    lease: Mapped[float] = mapped_column(sa.Float(53), server_default="0")


class Edge(Base):
    __tablename__ = "kir_edges"
    child: Mapped[int] = mapped_column(sa.ForeignKey("kir_nodes.id"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    parent: Mapped[int] = mapped_column(sa.ForeignKey("kir_nodes.id"), index=True)


class Talk(Base):
    __tablename__ = "kir_transcripts"
    id: Mapped[int] = mapped_column(primary_key=True)
    made: Mapped[str] = mapped_column(sa.String(40))
    run: Mapped[int] = mapped_column(sa.ForeignKey("kir_runs.id"), index=True)
    node: Mapped[int] = mapped_column(sa.ForeignKey("kir_nodes.id"), index=True)
    proposer: Mapped[str] = mapped_column(sa.String(32))
    model: Mapped[str] = mapped_column(sa.Text)
    messages: Mapped[str] = mapped_column(sa.Text)
    tokens: Mapped[int]
    dollars: Mapped[float]
    outcome: Mapped[str] = mapped_column(sa.Text)


def dumped(value: Mapping[str, Json] | tuple[Json, ...]) -> str:
    return json.dumps(dict(value) if isinstance(value, Mapping) else list(value), sort_keys=True)


def run_row(row: Run) -> RunRow:
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


def node_row(row: Node, parents: tuple[int, ...]) -> NodeRow:
    return NodeRow(
        id=row.id,
        run=row.run,
        parents=parents,
        derivation=row.derivation,
        ir_hash=row.ir_hash,
        status=row.status,
        fitness=row.fitness,
        seconds=row.seconds,
        baseline_seconds=row.baseline_seconds,
        error=row.error,
        kind=row.kind,
        log=row.log,
        features=json.loads(row.features),
        resources=json.loads(row.resources),
        provenance=json.loads(row.provenance),
        made=row.made,
    )


def transcript(row: Talk) -> Transcript:
    messages = tuple(json.loads(row.messages))
    return Transcript(
        row.run, row.node, row.proposer, row.model, messages, row.tokens, row.dollars,
        row.outcome, row.id,
    )  # fmt: skip
