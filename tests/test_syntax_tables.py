"""The parser's tables that are kept in the package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lark import Lark

from kir.syntax import tables

ROOT = Path(__file__).parent.parent
TEXTS = sorted(p for p in (ROOT / "examples").rglob("*.kir") if p.is_file())


def test_the_tables_are_of_this_grammar(update_goldens: bool) -> None:
    if update_goldens:
        tables.write()
    stored = json.loads((ROOT / "kir" / "syntax" / "tables.json").read_text())
    assert stored["key"] == tables.key(), "make goldens"


def test_stored_and_built_parsers_agree() -> None:
    stored, built = tables.parser("module"), tables.build("module")
    assert isinstance(stored, Lark) and TEXTS
    for path in TEXTS:
        text = path.read_text(encoding="utf-8")
        assert stored.parse(text) == built.parse(text)


def test_another_grammar_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "key", lambda: "another")
    tables.parser.cache_clear()
    try:
        step = tables.parser("steps").parse("loops()")
        assert step == tables.build("steps").parse("loops()")
    finally:
        tables.parser.cache_clear()
