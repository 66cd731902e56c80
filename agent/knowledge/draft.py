"""A page from what a search found, for a person to review.

All of it comes from the IR, the steps and the measurements; nothing that a model wrote goes in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path

from kir.agent.knowledge.features import kernel_features
from kir.agent.knowledge.pages import FENCE, Page, parse_page
from kir.agent.knowledge.vocabulary import DIAGNOSES, FEATURES
from kir.errors import OutputError, Source, UsageError
from kir.ir import Kernel, Step
from kir.syntax.format import format_step

MAX_LINES = 40
"""Of the list of steps that a draft shows."""


@dataclass(frozen=True)
class Finding:
    """What a search knows of its winner.

    `before` are the steps of the default schedule, `after` those found; `speedup` is the default's
    time over the winner's, re-timed, with its quartiles in `spread`. `source` names the store, the
    run and the node. `failed` are steps that were tried and what became of them, most telling
    first.
    """

    kernel: Kernel
    dims: tuple[tuple[str, int], ...]
    target: str
    machine: str
    before: tuple[Step, ...]
    after: tuple[Step, ...]
    speedup: float
    spread: tuple[float, float]
    evaluations: int
    source: str
    diagnosis: str | None = None
    failed: tuple[tuple[str, str], ...] = ()


def draft_page(found: Finding) -> str:
    """The text of a page with `draft = true`, which parses; UsageError for an unknown diagnosis."""
    if found.diagnosis is not None and found.diagnosis not in DIAGNOSES:
        hint = "there are: " + ", ".join(DIAGNOSES)
        raise UsageError(f"no diagnosis `{found.diagnosis}`", hint=hint)
    dims = dict(found.dims)
    features = kernel_features(found.kernel, dims)
    shape = ", ".join(f"{name}={size}" for name, size in found.dims)
    new = [s for s in found.after if s not in found.before]
    head = {
        "title": f"{found.kernel.name} on {found.target}: {found.speedup:.2f} of the default",
        "kind": "guidance" if found.target == "any" else "hardware",
        "targets": [found.target],
        "features": [word for word in FEATURES if word in features],
        "diagnoses": [found.diagnosis] if found.diagnosis else [],
        "rewrites": sorted({s.rewrite for s in new}),
        "sources": [found.source],
    }
    lines = [
        FENCE,
        *(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in head.items()),
        "draft = true   # remove this line once a person has checked what the page says",
        FENCE,
        "",
        f"Measured, not explained: `{found.kernel.name}` at {shape or 'no dims'} on "
        f"{_plain(found.machine)} took 1/{found.speedup:.2f} of the default schedule's time "
        f"(quartiles {found.spread[0]:.2f} to {found.spread[1]:.2f}), found in "
        f"{found.evaluations} evaluations.",
        "",
        "The steps, against those of the default schedule:",
        "",
        "```diff",
        *_diff(found.before, found.after),
        "```",
    ]
    if found.failed:
        lines += ["", "Tried on the way:", ""]
        lines += [f"- `{_plain(step)}`: {_plain(what)}" for step, what in found.failed[:8]]
    lines += [
        "",
        "To review: does it hold on other shapes and machines, and why is it faster? Write the",
        "reason here, delete what is noise, and widen or narrow `features` and `targets`.",
    ]
    text = "\n".join(lines) + "\n"
    parse_page(Source("draft", text), "draft")
    return text


def write_draft(folder: Path, found: Finding) -> tuple[Path, Page]:
    """Write the draft to a new file of `folder`; OutputError where that cannot be done."""
    text = draft_page(found)
    stem = re.sub(r"[^a-z0-9]+", "-", f"{found.kernel.name} {found.target}".lower()).strip("-")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = _create(folder, stem, text)
    except OSError as error:
        hint = "choose a folder that you may write to"
        raise OutputError(f"{folder}: {error.strerror}", hint=hint) from None
    return path, parse_page(Source(str(path), text), path.stem)


def _create(folder: Path, stem: str, text: str) -> Path:
    """A file that was not there before: drafts of other searches stay."""
    number = 1
    while True:
        path = folder / f"{stem}-{number}.md"
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            number += 1
            continue
        return path


def _diff(before: Iterable[Step], after: Iterable[Step]) -> list[str]:
    old, new = ([format_step(s) for s in steps] for steps in (before, after))
    lines = list(unified_diff(old, new, n=1, lineterm=""))[2:]
    shown = [line for line in lines if not line.startswith("@@")]
    if len(shown) > MAX_LINES:
        return [*shown[:MAX_LINES], f" ... {len(shown) - MAX_LINES} more"]
    return shown or [" (the same steps)"]


def _plain(text: str) -> str:
    """One short line without backticks: what comes from logs must not end a code span."""
    return re.sub(r"\s+", " ", text).replace("`", "'").strip()[:200]
