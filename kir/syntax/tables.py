"""The parser, from tables made beforehand: making them from the grammar takes Lark most of the
time that a first parse takes.

`tables.json` holds them for one text of the grammar and one version of Lark. Where either differs
the grammar is compiled as usual; `make goldens` writes the file anew (`write`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import lark
from lark import Lark
from lark.grammar import Rule
from lark.lexer import TerminalDef

STARTS = ("module", "steps")


@cache
def grammar() -> str:
    return files("kir.syntax").joinpath("grammar.lark").read_text(encoding="utf-8")


def key() -> str:
    """Of what the tables are made from."""
    return hashlib.sha256(f"{lark.__version__}\n{grammar()}".encode()).hexdigest()


def build(start: str) -> Lark:
    """The parser compiled from the grammar."""
    return Lark(
        grammar(),
        start=start,
        parser="lalr",
        lexer="contextual",
        propagate_positions=True,
        maybe_placeholders=False,
    )


@cache
def _stored() -> dict[str, Any]:
    place = files("kir.syntax").joinpath("tables.json")
    found: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
    return found


@cache
def parser(start: str) -> Lark:
    """The parser for a start symbol."""
    stored = _stored()
    if stored["key"] != key():
        return build(start)
    data, memo = stored[start]["data"], _by_number(stored[start]["memo"])
    table = data["parser"]["parser"]
    table["tokens"] = _by_number(table["tokens"])
    table["states"] = {
        int(state): {int(token): (action, argument) for token, (action, argument) in row.items()}
        for state, row in table["states"].items()
    }
    load: Callable[..., Lark] = Lark._load_from_dict
    return load(data, memo, propagate_positions=True)


def _by_number(table: dict[str, Any]) -> dict[int, Any]:
    return {int(k): v for k, v in table.items()}


def write() -> None:
    """Make `tables.json` anew, in the source tree."""
    found: dict[str, Any] = {"key": key()}
    for start in STARTS:
        data, memo = build(start).memo_serialize([TerminalDef, Rule])
        found[start] = {"data": data, "memo": memo}
    text = json.dumps(found, separators=(",", ":")) + "\n"
    (Path(__file__).parent / "tables.json").write_text(text, encoding="utf-8")
