"""The planted bugs are well-formed, and the verifier finds a few of them here (all of them by
`make planted-bugs`)."""

from __future__ import annotations

import ast

import pytest
from planted.probe import CORPORA
from planted.run import ROOT, Bug, bugs, clean, planted, summary, try_bug

BUGS = bugs()
QUICK = ("online-loses-the-rescale", "narrow-storage-says-it-is-exact")
"""A lost rescale, and a bound that is said to be smaller than it is."""


def test_there_are_many_and_they_differ() -> None:
    assert len(BUGS) >= 100
    assert len({b.name for b in BUGS}) == len(BUGS)
    assert len({(b.file, b.find, b.replace) for b in BUGS}) == len(BUGS)
    assert len({b.kind for b in BUGS}) >= 15


@pytest.mark.parametrize("bug", BUGS, ids=lambda b: b.name)
def test_each_is_planted_in_one_place(bug: Bug) -> None:
    text = (ROOT / bug.file).read_text(encoding="utf-8")
    changed = planted(text, bug)
    assert changed != text
    ast.parse(changed)
    for corpus in bug.corpora:
        assert corpus in CORPORA or corpus.endswith("random")


@pytest.mark.parametrize("name", QUICK)
def test_the_verifier_finds_it(name: str) -> None:
    (bug,) = (b for b in BUGS if b.name == name)
    found = try_bug(bug, 120.0, 0)
    assert found.caught, summary([found])
    assert found.rung in ("static", "ring", "numerical")


def test_without_a_bug_nothing_is_found() -> None:
    found = clean(4.0, 0, {"rewrites"})
    assert not found["caught"], found
