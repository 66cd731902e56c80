"""Retrieval: pages by the features that they share with a kernel, and SQLite's full-text search.

BM25 serves for words of a question. It does not serve for features: it weighs rare words most and
words of every second page not at all, so that `symbolic` would count and `contraction` would not.
Those are compared as sets instead.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

from kir.agent.knowledge.pages import Page, load_pages
from kir.agent.knowledge.vocabulary import DIAGNOSES, FEATURES, KINDS, TARGETS, TELLING
from kir.errors import MissingExtraError, UsageError

COLUMNS = {"title": 4.0, "features": 4.0, "diagnoses": 4.0, "rewrites": 2.0, "body": 1.0}
"""The columns that are searched, and how much a hit in each counts."""
WEIGHTS = (1.0, 3.0)
"""Of a feature in the comparison: of any, and of one that is `TELLING`."""
MAX_WORDS = 64


@dataclass(frozen=True)
class Hit:
    """A page, whether it answers the diagnosis, how like its features are to those asked for (0 to
    1), and its BM25 score for the words asked for."""

    page: Page
    answers: bool
    likeness: float
    score: float


class Knowledge:
    """All pages, built-in ones and those of a user's `folders`, and an index of them.

    MissingExtraError where Python's SQLite has no FTS5.
    """

    def __init__(self, folders: Iterable[Path] = (), *, drafts: bool = False) -> None:
        self.pages = load_pages(folders, drafts=drafts)
        one_thread = sqlite3.threadsafety < 3  # 3: SQLite takes calls from several threads in turn
        self._connection = sqlite3.connect(":memory:", check_same_thread=one_thread)
        columns = ", ".join(COLUMNS)
        try:
            self._connection.execute(
                f"CREATE VIRTUAL TABLE pages USING fts5({columns},"
                " tokenize = \"porter unicode61 tokenchars '_'\")"
            )
        except sqlite3.OperationalError as error:
            raise MissingExtraError(
                f"Python's SQLite has no full-text search: {error}",
                hint="use a Python whose sqlite3 has FTS5, as those of python.org and Debian do",
            ) from None
        self._connection.executemany(
            f"INSERT INTO pages(rowid, {columns}) VALUES (?, ?, ?, ?, ?, ?)",
            ((number, *_row(page)) for number, page in enumerate(self.pages)),
        )

    def retrieve(
        self,
        features: Iterable[str] = (),
        target: str = "any",
        diagnosis: str | None = None,
        limit: int = 5,
        *,
        query: str = "",
        kinds: tuple[str, ...] = tuple(KINDS),
    ) -> tuple[Hit, ...]:
        """The pages that fit best, at most `limit`. Without a query: first those that answer the
        diagnosis, in each half by likeness of features, then by BM25. With a query: pages that
        have a word of it, by BM25 (of title, front matter and text) before all else.

        Only pages for `target` or for all targets, of the given `kinds`; `any` takes all targets.
        Where features are given, only pages that share one.
        The order depends on the arguments and the pages alone: ties go by id. UsageError for a
        word that is not in the vocabulary.
        """
        wanted = tuple(dict.fromkeys(features))
        _check("features", wanted, FEATURES)
        _check("kinds", kinds, KINDS)
        _check("targets", (target,), TARGETS)
        _check("diagnoses", (diagnosis,) if diagnosis else (), DIAGNOSES)
        allowed, asked = frozenset(kinds), frozenset(wanted)
        words = re.findall(r"\w+", query)[:MAX_WORDS]
        everything = not (words or asked or diagnosis)
        scores = self._scores(_match(words, wanted, diagnosis))
        hits = [
            Hit(page, diagnosis in page.diagnoses, _likeness(asked, page), scores.get(number, 0.0))
            for number, page in enumerate(self.pages)
            if page.kind in allowed
            and (target == "any" or target in page.targets or "any" in page.targets)
            and (everything or number in scores)
            and (not asked or not asked.isdisjoint(page.features))
        ]
        hits.sort(
            key=lambda hit: (
                -hit.score if words else 0,
                not hit.answers,
                -hit.likeness,
                -hit.score,
                hit.page.id,
            )
        )
        return tuple(hits[: max(0, limit)])

    def page(self, name: str) -> Page:
        """The page with an id; UsageError where there is none."""
        for page in self.pages:
            if page.id == name:
                return page
        raise UsageError(f"there is no page `{name}`", hint="`kir knowledge` lists them")

    def _scores(self, match: str) -> dict[int, float]:
        """The score of each page that matches an FTS5 expression, by its number."""
        if not match:
            return {}
        weights = ", ".join(map(str, COLUMNS.values()))
        rows = self._connection.execute(
            f"SELECT rowid, -bm25(pages, {weights}) FROM pages WHERE pages MATCH ?", (match,)
        )
        return {number: round(score, 6) for number, score in rows}


def _check(what: str, words: tuple[str, ...], table: dict[str, str]) -> None:
    for word in words:
        if word not in table:
            hint = "there are: " + ", ".join(table)
            raise UsageError(f"`{word}` is none of the {what}", hint=hint)


def _match(words: list[str], features: tuple[str, ...], diagnosis: str | None) -> str:
    """The words of a question, each quoted, so that nothing in them is an operator; without
    these, the words of the vocabulary, in the columns that hold them."""
    if words:
        return " OR ".join(f'"{word}"' for word in words)
    parts = [f'features : "{word}"' for word in features]
    return " OR ".join([*parts, f'diagnoses : "{diagnosis}"'] if diagnosis else parts)


def _row(page: Page) -> tuple[str, ...]:
    words = (" ".join(x) for x in (page.features, page.diagnoses, page.rewrites))
    return (page.title, *words, page.body)


def _likeness(asked: frozenset[str], page: Page) -> float:
    """The cosine between two sets of features, by weight: a page about few things, all of them
    asked for, is more like a kernel than one about many."""

    def weight(words: Iterable[str]) -> float:
        return sum(WEIGHTS[word in TELLING] for word in words)

    mine = frozenset(page.features)
    if not asked or not mine:
        return 0.0
    return round(weight(asked & mine) / sqrt(weight(asked) * weight(mine)), 6)
