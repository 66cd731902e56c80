"""Stores as JSON lines: one line for the format, then each run followed by its nodes and what was
said to models about them. Ids are those of the store that was written; reading gives new ones."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, fields, replace
from typing import Any, TypeVar

from kir.agent.store import NodeRow, RunRow, Store, Transcript
from kir.errors import StoreError

FORMAT = "kir-store-2"
T = TypeVar("T", RunRow, NodeRow, Transcript)


def export(store: Store) -> Iterator[str]:
    """The lines (without ends) that hold all of a store but claims that were not evaluated."""
    yield json.dumps({"format": FORMAT})
    for run in store.runs():
        yield _line("run", run)
        for node in store.nodes(run.id):
            yield _line("node", node)
        for talk in store.transcripts(run.id):
            yield _line("transcript", talk)


def _line(kind: str, row: RunRow | NodeRow | Transcript) -> str:
    return json.dumps({"record": kind, **asdict(row)}, sort_keys=True)


def load(store: Store, lines: Iterable[str]) -> tuple[int, int]:
    """Add the runs and nodes in `lines` to a store; gives how many of each.

    StoreError, naming the line, where one is not what `export` writes. Lines before it are kept.
    """
    runs: dict[int, int] = {}
    nodes: dict[int, int] = {}
    for number, line in enumerate(lines, 1):
        try:
            data = json.loads(line)
            if not isinstance(data, dict):
                raise ValueError("it is no object")
            if number == 1:
                if data.get("format") != FORMAT:
                    raise ValueError(f'it does not begin with "format": "{FORMAT}"')
                continue
            kind = data.pop("record", None)
            if kind == "run":
                run = _read(RunRow, data)
                runs[run.id] = store.add_run(run)
            elif kind == "node":
                node = _read(NodeRow, data)
                parents = tuple(nodes[p] for p in node.parents)
                nodes[node.id] = store.add_node(replace(node, run=runs[node.run], parents=parents))
            elif kind == "transcript":
                talk = _read(Transcript, data)
                store.add_transcript(replace(talk, run=runs[talk.run], node=nodes[talk.node]))
            else:
                raise ValueError(f"there is no record {kind!r}")
        except (ValueError, KeyError, RecursionError) as error:
            missing = isinstance(error, KeyError)
            what = f"it names {error}, which no line before it has" if missing else error
            raise StoreError(
                f"line {number} is not of an exported store: {what}",
                hint="`kir store export` writes what can be imported",
            ) from None
    return len(runs), len(nodes)


_TYPES: Mapping[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "float | None": (int, float, type(None)),
    "tuple[int, ...]": (list,),
    "tuple[Json, ...]": (list,),
    "Mapping[str, Json]": (dict,),
    "Mapping[str, int]": (dict,),
    "Mapping[str, float]": (dict,),
}
"""What JSON may hold in a field of such an annotation, as `tables.py` writes it."""


def _read(kind: type[T], data: Mapping[str, Any]) -> T:
    """A row out of plain data; ValueError unless each field is there and of its type."""
    values: dict[str, Any] = {}
    for field in fields(kind):
        value, wanted = data.get(field.name), _TYPES[str(field.type)]
        if field.name not in data or not isinstance(value, wanted) or isinstance(value, bool):
            raise ValueError(f"`{field.name}` of a {kind.__name__} is missing or of another type")
        values[field.name] = tuple(value) if isinstance(value, list) else value
    for parent in values.get("parents", ()):
        if not isinstance(parent, int):
            raise ValueError("a parent is no id")
    return kind(**values)
