"""Retrieval: SQLite's full-text search over the pages, in memory, ranked by BM25."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kir.agent.knowledge.pages import Page, load_pages
from kir.agent.knowledge.vocabulary import DIAGNOSES, FEATURES, KINDS, TARGETS
from kir.errors import MissingExtraError, UsageError

COLUMNS = {"title": 4.0, "features": 4.0, "diagnoses": 6.0, "rewrites": 2.0, "body": 1.0}
"""The columns that are searched, and how much a hit in each counts."""
MAX_WORDS = 64


@dataclass(frozen=True)
class Hit:
    """A page, and how well it fits: greater is better, 0 where nothing was asked for."""

    page: Page
    score: float


class Knowledge:
    """All pages, built-in ones and those of a user's `folders`, and an index of them.

    MissingExtraError where Python's SQLite has no FTS5.
    """

    def __init__(self, folders: Iterable[Path] = (), *, drafts: bool = False) -> None:
        self.pages = load_pages(folders, drafts=drafts)
        self._connection = sqlite3.connect(":memory:")
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
        kinds: Iterable[str] = tuple(KINDS),
    ) -> tuple[Hit, ...]:
        """The pages that fit best, at most `limit`: the diagnosis counts most, then the features
        and the title, then the rewrites and the text; `query` is searched for everywhere.

        Only pages for `target` or for all targets, of the given `kinds`; `any` takes all targets.
        The order depends on the arguments and the pages alone: ties go by id. UsageError for a
        word that is not in the vocabulary.
        """
        wanted = tuple(dict.fromkeys(features))
        known = (*wanted, *kinds, target, *((diagnosis,) if diagnosis else ()))
        for word in known:
            if not any(word in table for table in (FEATURES, KINDS, TARGETS, DIAGNOSES)):
                tables = ", ".join((*TARGETS, *DIAGNOSES, *FEATURES))
                raise UsageError(f"the knowledge has no word `{word}`", hint=f"there are: {tables}")
        allowed = frozenset(kinds)
        scores = self._scores(_match(wanted, diagnosis, query))
        hits = [
            Hit(page, scores.get(number, 0.0))
            for number, page in enumerate(self.pages)
            if page.kind in allowed
            and (target == "any" or target in page.targets or "any" in page.targets)
            and (scores is _ALL or number in scores)
        ]
        hits.sort(key=lambda hit: (-hit.score, hit.page.id))
        return tuple(hits[: max(0, limit)])

    def page(self, name: str) -> Page:
        """The page with an id; UsageError where there is none."""
        for page in self.pages:
            if page.id == name:
                return page
        raise UsageError(f"there is no page `{name}`", hint="`kir knowledge` lists them")

    def _scores(self, match: str) -> dict[int, float]:
        if not match:
            return _ALL
        weights = ", ".join(map(str, COLUMNS.values()))
        rows = self._connection.execute(
            f"SELECT rowid, -bm25(pages, {weights}) FROM pages WHERE pages MATCH ?", (match,)
        )
        return {number: round(score, 6) for number, score in rows}


_ALL: dict[int, float] = {}
"""Stands for a search for nothing, which every page meets."""


def _row(page: Page) -> tuple[str, ...]:
    words = (" ".join(x) for x in (page.features, page.diagnoses, page.rewrites))
    return (page.title, *words, page.body)


def _match(features: tuple[str, ...], diagnosis: str | None, query: str) -> str:
    """An FTS5 expression; whatever a user writes goes in as quoted words."""
    parts = [f'features : "{word}"' for word in features]
    if diagnosis:
        parts.append(f'diagnoses : "{diagnosis}"')
    parts += [f'"{word}"' for word in re.findall(r"\w+", query)[:MAX_WORDS]]
    return " OR ".join(parts)
