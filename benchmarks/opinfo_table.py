"""What a survey of PyTorch's operators found, as JSON and as a table."""

from __future__ import annotations

import collections
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.machine import description


@dataclass(frozen=True)
class Outcome:
    """Of one sample: `ok`, or why not. `compiled`: whether there was a graph for KIR at all;
    `drawn`: whether chance decides the values; `seconds` of processor time."""

    ok: bool
    reason: str = ""
    compiled: bool = True
    drawn: bool = False
    seconds: float = 0.0


Results = dict[tuple[str, str], list[Outcome]]
"""The outcomes of each (operator and variant, dtype)."""
RANKS = ("failed", "no sample", "drawn", "no work", "ok")
"""An operator has the first of its variants' statuses."""


def summary(outcomes: Sequence[Outcome]) -> tuple[str, str, int]:
    """Status (one of `RANKS`), why, samples that passed."""
    passed = sum(o.ok for o in outcomes)
    if not outcomes:
        return "no sample", "eager takes none of the samples", 0
    if passed < len(outcomes):
        return "failed", next(o.reason for o in outcomes if not o.ok), passed
    if not any(o.compiled for o in outcomes):
        return "no work", "", passed
    return ("drawn" if any(o.drawn for o in outcomes) else "ok"), "", passed


def by_operator(results: Results, dtype: str, operator_of: Callable[[str], str]) -> dict[str, str]:
    """The status of each operator, all variants together: the worst of theirs."""
    found: dict[str, set[str]] = collections.defaultdict(set)
    for (name, kind), outcomes in results.items():
        if kind == dtype:
            found[operator_of(name)].add(summary(outcomes)[0])
    return {name: next(r for r in RANKS if r in mine) for name, mine in found.items()}


def record(
    results: Results, dtypes: Sequence[str], samples: int, commits: Sequence[str],
    operator_of: Callable[[str], str],
) -> dict[str, Any]:  # fmt: skip
    """All that the survey found, and what it depends on; `commits`: those at which it ran."""
    import torch

    counts = {d: collections.Counter(by_operator(results, d, operator_of).values()) for d in dtypes}
    return {
        **description(), "python": platform.python_version(), "torch": torch.__version__,
        "commits": list(commits), "samples": samples, "dtypes": list(dtypes),
        "operators": {d: {r: counts[d][r] for r in reversed(RANKS)} for d in dtypes},
        "results": [_row(name, dtype, found) for (name, dtype), found in sorted(results.items())],
    }  # fmt: skip


def _row(name: str, dtype: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    status, reason, passed = summary(outcomes)
    seconds = round(sum(o.seconds for o in outcomes), 2)
    row = {"name": name, "dtype": dtype, "status": status, "passed": passed,
           "samples": len(outcomes), "seconds": seconds}  # fmt: skip
    return {**row, "reason": reason} if reason else row


def missing(results: Results) -> str:
    """Why what failed did, by how many."""
    found = (summary(outcomes) for outcomes in results.values())
    reasons = collections.Counter(reason for status, reason, _ in found if status == "failed")
    return "\n".join(f"{n:4d} {why}" for why, n in reasons.most_common(60))


def table(made: dict[str, Any]) -> str:
    """Markdown, of what `record` gives."""
    dtypes: list[str] = made["dtypes"]
    lines = [
        "# PyTorch's operators", "",
        f"What `python -m benchmarks.opinfo` found of PyTorch {made['torch']}'s own operator "
        f"database on CPU, under `strict`, with {made['samples']} samples of each operator and "
        "dtype, and an empty, a broadcast and a non-contiguous one where there are such; the head "
        "of that file says what a sample is held to. Of an operator that fails the samples that "
        "pass are given, and the first reason. *drawn*: compiled, of random numbers or memory that "
        "nobody wrote, so that values are not compared. *no work*: gives no tensor that is "
        "computed. *no sample*: eager takes none. An operator counts when all its variants pass.",
        "",
        f"Commit {', '.join(made['commits'])}; PyTorch {made['torch']}, Python {made['python']}, "
        f"NumPy {made['numpy']}; {made['cpu']}.", "",
        "| dtype | operators | ok | no work | drawn | no sample | failed |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for dtype, found in made["operators"].items():
        counts = [sum(found.values()), *(found[r] for r in reversed(RANKS))]
        lines.append(f"| {dtype} | " + " | ".join(str(n) for n in counts) + " |")
    lines += ["", "| operator | " + " | ".join(dtypes) + " | why not |",
              "|---|" + "---|" * (len(dtypes) + 1)]  # fmt: skip
    rows: dict[str, dict[str, Any]] = collections.defaultdict(dict)
    for row in made["results"]:
        rows[row["name"]][row["dtype"]] = row
    lines += [_line(name, rows[name], dtypes) for name in sorted(rows, key=str.lower)]
    return "\n".join(lines) + "\n"


def _line(name: str, rows: dict[str, Any], dtypes: Sequence[str]) -> str:
    cells: list[str] = []
    reasons: dict[str, list[str]] = {}
    for dtype in dtypes:
        row = rows.get(dtype)
        if row is None:
            cells.append("")
            continue
        failed = row["status"] == "failed"
        cells.append(f"{row['passed']}/{row['samples']}" if failed else row["status"])
        if failed:
            reasons.setdefault(row["reason"], []).append(dtype)
    if len(reasons) == 1:
        why = next(iter(reasons))
    else:
        why = "; ".join(f"{', '.join(kinds)}: {reason}" for reason, kinds in reasons.items())
    why = why.replace("|", "\\|").replace("`", "'")
    return f"| {name} | " + " | ".join(cells) + f" | {why} |"
