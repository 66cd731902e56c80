"""What a search found, as a page of knowledge for a person to review."""

from __future__ import annotations

from pathlib import Path

from kir.agent.evaluate import MODELLED
from kir.agent.gpu_features import analyser
from kir.agent.knowledge import Finding, write_draft
from kir.agent.store import NodeRow, Store
from kir.agent.tune import Result
from kir.agent.variant import parse_derivation
from kir.errors import KirError
from kir.ir import Kernel
from kir.pipeline import schedule
from kir.specialise import specialise
from kir.syntax import format_step

FAILURES = 5


def learn(url: str, kernel: Kernel, found: Result, folder: Path) -> Path:
    """Write a draft page on a finished search to `folder`; gives its path. The words in it are of
    KIR's own: nothing that a model wrote."""
    store = Store(url, create=False)
    try:
        run, nodes = store.run(found.run), store.nodes(found.run)
    finally:
        store.close()
    spec = specialise(kernel, run.dims)
    before, after = parse_derivation(run.baseline), parse_derivation(found.derivation)
    page = Finding(
        kernel=spec,
        dims=tuple(run.dims.items()),
        target=run.target,
        machine=f"a model of {run.arch}, not measured"
        if run.target in MODELLED
        else str(run.provenance.get("processor", "")),
        before=before,
        after=after,
        speedup=found.speedup,
        spread=found.spread,
        evaluations=found.evaluations,
        source=f"run {found.run}, node {found.node} of {store.shown}",
        diagnosis=analyser(run.target, run.arch)(schedule(spec, before)).bottleneck,
        failed=_failures(nodes),
    )
    path, _ = write_draft(folder, page)
    return path


def _failures(nodes: list[NodeRow]) -> tuple[tuple[str, str], ...]:
    """The last step of variants that failed, and how: each sort of step once."""
    found: dict[str, tuple[str, str]] = {}
    for n in nodes:
        if n.status == "ok":
            continue
        try:
            steps = parse_derivation(n.derivation)
        except KirError:
            continue
        if steps:
            found.setdefault(steps[-1].rewrite, (format_step(steps[-1]), n.status))
    return tuple(found.values())[:FAILURES]
