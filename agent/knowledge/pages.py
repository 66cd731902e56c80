"""Pages: TOML between lines of `+++`, then Markdown.

    +++
    title = "Several accumulators for one sum"
    kind = "guidance"
    targets = ["any"]
    features = ["sum"]                 # of the kernels for which the page matters; may be empty
    diagnoses = ["latency"]            # which bottlenecks it answers; may be empty
    rewrites = ["rfactor", "split"]    # which rewrites it tells of; may be empty
    sources = ["D. Author, Title, 2020, section 3"]
    +++

All keys but `draft` are required, and there are no others. A page with `draft = true` has not been
reviewed by a person and is not loaded unless asked for.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kir.agent.knowledge.vocabulary import DIAGNOSES, FEATURES, KINDS, TARGETS
from kir.errors import FileError, KirError, LimitError, ParseError, Source
from kir.ir import Span
from kir.rewrites import REWRITES

BUILT_IN = Path(__file__).parent
FENCE = "+++"
MAX_BYTES = 64 << 10
"""Of a page: it goes into prompts."""
WORDS = {
    "targets": frozenset(TARGETS),
    "features": frozenset(FEATURES),
    "diagnoses": frozenset(DIAGNOSES),
    "rewrites": frozenset(REWRITES),
}
REQUIRED = ("title", "kind", *WORDS, "sources")


@dataclass(frozen=True)
class Page:
    """`id` is the path below its folder without `.md`; the tuples hold words of the vocabulary."""

    id: str
    title: str
    kind: str
    targets: tuple[str, ...]
    features: tuple[str, ...]
    diagnoses: tuple[str, ...]
    rewrites: tuple[str, ...]
    sources: tuple[str, ...]
    body: str
    draft: bool = False


def load_pages(folders: Iterable[Path] = (), *, drafts: bool = False) -> tuple[Page, ...]:
    """The built-in pages and those of `folders`, by id; a page replaces one of the same id in an
    earlier folder. FileError, ParseError or LimitError, with file and line, for a bad page."""
    pages = {}
    for folder in (BUILT_IN, *folders):
        if not folder.is_dir():
            raise FileError(f"{folder}: no such folder", hint="give a folder of Markdown pages")
        for path in sorted(folder.rglob("*.md")):
            name = path.relative_to(folder).with_suffix("").as_posix()
            page = parse_page(_read(path), name)
            if drafts or not page.draft:
                pages[name] = page
    return tuple(pages[name] for name in sorted(pages))


def _read(path: Path) -> Source:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        text = data.decode()
    except UnicodeDecodeError:
        raise FileError(f"{path} is not UTF-8", hint="save it as UTF-8") from None
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}", hint="is it a file you may read?") from None
    if len(data) > MAX_BYTES:
        raise LimitError(f"{path} has more than {MAX_BYTES} bytes", hint="make two pages of it")
    return Source(str(path), text.replace("\r\n", "\n"))


def parse_page(source: Source, name: str) -> Page:
    """The page in a text; ParseError where the front matter is not as the module's head says."""
    lines = source.text.split("\n")
    if lines[0].rstrip() != FENCE:
        raise _bad(source, 1, "a page begins with front matter", f"begin with a line `{FENCE}`")
    ends = [k for k, line in enumerate(lines[1:], start=1) if line.rstrip() == FENCE]
    if not ends:
        raise _bad(source, 1, "the front matter has no end", f"end it with a line `{FENCE}`")
    head, body = "\n".join(lines[1 : ends[0]]), "\n".join(lines[ends[0] + 1 :]).strip() + "\n"
    try:
        found = tomllib.loads(head)
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"line (\d+)", str(error))
        line = int(place[1]) + 1 if place else ends[0] + 1
        raise _bad(source, line, f"bad front matter: {error}", "it is TOML") from None
    words = {key: _words(source, found, key) for key in WORDS}
    _unknown_keys(source, found)
    kind, title = _string(source, found, "kind"), _string(source, found, "title")
    if kind not in KINDS:
        raise _bad(source, _line(source, "kind"), f"no kind `{kind}`", _there_is(KINDS))
    if not words["targets"]:
        raise _bad(source, _line(source, "targets"), "no target", _there_is(TARGETS))
    sources = _strings(source, found, "sources")
    if not sources:
        raise _bad(source, _line(source, "sources"), "no source", "say where its facts come from")
    if not body.strip():
        raise _bad(source, ends[0] + 1, "the page is empty", "write it below the front matter")
    draft = found.get("draft", False)
    if not isinstance(draft, bool):
        raise _bad(source, _line(source, "draft"), "`draft` is no bool", "true or false")
    return Page(name, title, kind, **words, sources=sources, body=body, draft=draft)


def _unknown_keys(source: Source, found: dict[str, Any]) -> None:
    for key in found:
        if key not in (*REQUIRED, "draft"):
            hint = "there are: " + ", ".join((*REQUIRED, "draft"))
            raise _bad(source, _line(source, key), f"no key `{key}` in front matter", hint)


def _words(source: Source, found: dict[str, Any], key: str) -> tuple[str, ...]:
    words = _strings(source, found, key)
    for word in words:
        if word not in WORDS[key]:
            hint = _there_is(sorted(WORDS[key]))
            raise _bad(source, _line(source, key), f"`{word}` is none of the {key}", hint)
    return words


def _strings(source: Source, found: dict[str, Any], key: str) -> tuple[str, ...]:
    value = _given(source, found, key)
    if not isinstance(value, list) or not all(isinstance(x, str) and x.strip() for x in value):
        raise _bad(source, _line(source, key), f"`{key}` is no list of strings", f'{key} = ["..."]')
    return tuple(value)


def _string(source: Source, found: dict[str, Any], key: str) -> str:
    value = _given(source, found, key)
    if not isinstance(value, str) or not value.strip():
        raise _bad(source, _line(source, key), f"`{key}` is no string", f'{key} = "..."')
    return value


def _given(source: Source, found: dict[str, Any], key: str) -> Any:
    if key not in found:
        raise _bad(source, 1, f"the front matter has no `{key}`", "keys: " + ", ".join(REQUIRED))
    return found[key]


def _there_is(words: Iterable[str]) -> str:
    return "there are: " + ", ".join(words)


def _line(source: Source, key: str) -> int:
    found = re.search(rf"^\s*{re.escape(key)}\s*=", source.text, re.MULTILINE)
    return source.text.count("\n", 0, found.start() + len(found[0])) + 1 if found else 1


def _bad(source: Source, line: int, message: str, hint: str) -> KirError:
    end = len(source.text.split("\n")[line - 1]) + 1
    return ParseError(message, hint=hint, source=source, span=Span(line, 1, line, max(2, end)))
