"""A store as one page of HTML that asks for nothing from outside.

The page is `report.html` with the data as JSON in it. All texts in it (kernels, errors, what models
said) are untrusted: they go in as JSON with `<` escaped, and the page shows them as text only.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Mapping
from importlib import resources
from typing import Any

from kir.agent.dispatch import table
from kir.agent.store import NodeRow, RunRow, Store
from kir.agent.variant import parse_derivation
from kir.cost import cost
from kir.errors import KirError
from kir.ir import Kernel
from kir.pipeline import schedule
from kir.specialise import specialise
from kir.syntax import format_kernel, parse

RESULT = ("node", "speedup", "seconds", "modelled", "rungs")
"""What is shown of a run's result."""
MAX_NODES = 2000
"""Of a run: the picture shows no more; the rest are counted."""
PEAK, BANDWIDTH = 100.0, 20.0
"""GFLOP/s and GB/s of the roof where nothing was measured: two cores of a server."""


def report(store: Store) -> str:
    """The page. Runs whose spec no longer parses are shown without IR."""
    runs = store.runs()
    data = {"runs": [_run(store, r) for r in runs], "dispatch": _dispatch(store, runs)}
    page = resources.files("kir.agent").joinpath("report.html").read_text(encoding="utf-8")
    return page.replace("/*DATA*/", json.dumps(data).replace("<", "\\u003c"))


def _run(store: Store, run: RunRow) -> dict[str, Any]:
    nodes = store.nodes(run.id)
    best = max(nodes, key=lambda n: (n.fitness, -n.id), default=None)
    spec = _spec(run)
    texts: dict[int, str] = {}
    return {
        "id": run.id,
        "kernel": run.kernel,
        "dims": _shape(run.dims),
        "target": run.target,
        "arch": run.arch,
        "status": run.status,
        "seed": run.seed,
        "policy": run.settings.get("policy", ""),
        "proposer": run.settings.get("proposer", ""),
        "confinement": str(run.provenance.get("confinement", "")),
        "result": {k: run.result.get(k) for k in RESULT},
        "best": best.id if best else None,
        "nodes": [_node(n, spec, texts) for n in nodes[:MAX_NODES]],
        "causes": _causes(nodes),
        "time": _time(nodes),
        "roofline": _roofline(run, spec),
    }


def _node(n: NodeRow, spec: Kernel | None, texts: dict[int, str]) -> dict[str, Any]:
    text = texts[n.id] = _ir(n, spec)
    before = texts.get(n.parents[0], "") if n.parents else ""
    return {
        "id": n.id,
        "parents": list(n.parents),
        "kind": n.kind,
        "status": n.status,
        "fitness": n.fitness,
        "seconds": n.seconds,
        "error": n.error,
        "log": n.log,
        "derivation": n.derivation,
        "diff": _diff(before, text) if before else text,
        "resources": dict(n.resources),
        "proposer": str(n.provenance.get("proposer", "")),
        "move": str(n.provenance.get("move", "")),
        "reason": str(n.provenance.get("reason", "")),
    }


def _diff(before: str, after: str) -> str:
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=3)
    return "\n".join([*lines][2:]) or "(the same)"


def _ir(n: NodeRow, spec: Kernel | None) -> str:
    if spec is None:
        return "(the spec no longer parses)"
    try:
        return format_kernel(schedule(spec, parse_derivation(n.derivation)))
    except KirError as error:
        return f"(the derivation no longer replays: {error.message})"


def _spec(run: RunRow) -> Kernel | None:
    try:
        return specialise(parse(run.source, "<store>").kernels()[run.kernel], run.dims)
    except (KirError, KeyError):
        return None


def _causes(nodes: list[NodeRow]) -> list[tuple[str, int]]:
    """Verdicts, failures with the first line of why; the most frequent first."""
    counted: Counter[str] = Counter()
    for n in nodes:
        lines = n.error.strip().splitlines()
        why = "".join(c for c in lines[0] if not c.isdigit())[:90] if lines else ""
        counted[n.status + (f": {why}" if n.status != "ok" and why else "")] += 1
    return counted.most_common(20)


def _time(nodes: list[NodeRow]) -> list[tuple[str, float, float]]:
    """Seconds by part of an evaluation: in all, and for each that had it."""
    found: dict[str, list[float]] = {}
    for n in nodes:
        for part, value in n.resources.items():
            if part.endswith("_s") and isinstance(value, int | float):
                found.setdefault(part[:-2], []).append(float(value))
    return [(part, sum(v), sum(v) / len(v)) for part, v in found.items()]


def _roofline(run: RunRow, spec: Kernel | None) -> dict[str, Any]:
    """Operations and bytes of the spec, and the chip's roof: measured where the run says so."""
    least = cost(spec, {}) if spec else None
    roof = run.provenance.get("roof")
    known = roof if isinstance(roof, dict) else {}
    return {
        "operations": least.operations if least else 0,
        "bytes": max(1, least.bytes) if least else 1,
        "peak": known.get("gflops", PEAK),
        "bandwidth": known.get("gbs", BANDWIDTH),
        "source": "measured" if known else "assumed, not measured",
    }


def _dispatch(store: Store, runs: list[RunRow]) -> list[dict[str, Any]]:
    found = []
    for source, name, target in dict.fromkeys((r.source, r.kernel, r.target) for r in runs):
        try:
            kernel = parse(source, "<store>").kernels()[name]
        except (KirError, KeyError):
            continue
        for entry in table(store, kernel, target):
            shown = {"dims": _shape(entry.dims), "speedup": entry.speedup, "node": entry.node}
            found.append({"kernel": name, "target": target, **shown})
    return found


def _shape(dims: Mapping[str, int]) -> str:
    return ", ".join(f"{k}={v}" for k, v in dims.items())
