"""Records to learn from: (spec, reasoning and steps, resulting IR, speed), out of stores.

Kept is what the ConCuR paper curates by: short derivations, fast results, and no two of a kind. A
datasheet (after Gebru et al., 2018) says where the records come from and what was left out.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from kir.agent.store import NodeRow, RunRow, Store
from kir.agent.variant import parse_derivation
from kir.derivation import kernel_hash, step_record
from kir.errors import KirError
from kir.ir import Kernel
from kir.pipeline import schedule
from kir.specialise import specialise
from kir.syntax import format_kernel, format_step, parse

FORMAT = "kir-dataset-1"


@dataclass(frozen=True)
class Filter:
    """`fitness`: the least; `steps`: the most; `each`: how many of a kernel at given dims;
    `alike`: of two derivations that share this much of their steps, one is kept."""

    fitness: float = 1.0
    steps: int = 48
    each: int = 5
    alike: float = 0.9


@dataclass
class Summary:
    """How many nodes were looked at, kept, and left out for which reason."""

    seen: int = 0
    kept: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    kernels: Counter[str] = field(default_factory=Counter)


def records(store: Store, chosen: Filter, summary: Summary) -> Iterator[dict[str, Any]]:
    """The records, run by run, the fastest first; `summary` is filled on the way."""
    for run in store.runs():
        specs = _spec(run)
        good: list[NodeRow] = []
        for node in store.nodes(run.id):
            summary.seen += 1
            if node.status != "ok":
                summary.left_out[node.status] += 1
            elif node.fitness < chosen.fitness:
                summary.left_out["slow"] += 1
            elif specs is None:
                summary.left_out["of a spec that does not parse"] += 1
            else:
                good.append(node)
        kept: list[set[str]] = []
        for node in sorted(good, key=lambda n: (-n.fitness, n.id)):
            why = _left_out(node, kept, chosen)
            record = None if why or specs is None else _record(run, specs, node)
            if record is None:
                summary.left_out[why or "no longer replays"] += 1
                continue
            kept.append(_words(node))
            summary.kept += 1
            summary.kernels[run.kernel] += 1
            yield record


def _left_out(node: NodeRow, kept: list[set[str]], chosen: Filter) -> str:
    words = _words(node)
    if len(parse_derivation(node.derivation)) > chosen.steps:
        return "long"
    if len(kept) >= chosen.each:
        return "enough of the kernel"
    if any(len(words & other) / max(1, len(words | other)) > chosen.alike for other in kept):
        return "alike"
    return ""


def _words(node: NodeRow) -> set[str]:
    return {format_step(s) for s in parse_derivation(node.derivation)}


def _spec(run: RunRow) -> Kernel | None:
    try:
        return specialise(parse(run.source, "<store>").kernels()[run.kernel], run.dims)
    except (KirError, KeyError):
        return None


def _record(run: RunRow, spec: Kernel, node: NodeRow) -> dict[str, Any] | None:
    """None where the derivation no longer gives the IR that was verified."""
    steps = parse_derivation(node.derivation)
    try:
        kernel = schedule(spec, steps)
    except KirError:
        return None
    if kernel_hash(kernel) != node.ir_hash:
        return None
    return {
        "spec": format_kernel(spec),
        "target": run.target,
        "arch": run.arch,
        "dims": dict(run.dims),
        "reasoning": str(node.provenance.get("reason", "")),
        "derivation": node.derivation,
        "steps": [step_record(s) for s in steps],
        "ir": format_kernel(kernel),
        "speedup": node.fitness,
        "seconds": node.seconds,
        "proposer": node.provenance.get("proposer", ""),
    }


@dataclass(frozen=True)
class Dataset:
    """`lines` are JSON lines, `datasheet` is Markdown."""

    lines: str
    datasheet: str
    summary: Summary


def dataset(store: Store, chosen: Filter | None = None) -> Dataset:
    chosen, summary = chosen or Filter(), Summary()
    made = records(store, chosen, summary)
    lines = "".join(json.dumps({"format": FORMAT, **r}, sort_keys=True) + "\n" for r in made)
    return Dataset(lines, _datasheet(summary, chosen), summary)


def _datasheet(s: Summary, chosen: Filter) -> str:
    left = "\n".join(f"- {why}: {n}" for why, n in sorted(s.left_out.items())) or "- nothing"
    kernels = "\n".join(f"- {name}: {n}" for name, n in sorted(s.kernels.items())) or "- none"
    return f"""# Datasheet

**What.** {s.kept} records of {s.seen} variants that searches evaluated. Each is a spec at given
dims, a derivation (text and JSON), the reasoning given for its last steps where a language model
proposed them, the resulting IR, and its speed over the default schedule of its target.

**How it was made.** `kir export-dataset` replayed each derivation and kept those that give the very
IR that was verified and measured. Speeds are of single measurements during searches: the fastest
are partly the luckiest.

**What was kept.** At least {chosen.fitness:g} times the default's speed, at most {chosen.steps}
steps, at most {chosen.each} of a run, no two that share over {chosen.alike:.0%} of their steps.

**What was left out.**
{left}

**Kernels.**
{kernels}

**What it does not show.** Shapes, targets and machines other than those that were searched. Nothing
in it is of persons.
"""
