"""Dispatch by shape: the best derivation that a store holds for a kernel at given dims.

A kernel is fast at the shapes that it was tuned for; elsewhere the default schedule is the safe
choice. So the table holds exactly the dims that were tuned, and outside of it there is nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kir.agent.store import RunRow, Store
from kir.agent.variant import parse_derivation
from kir.derivation import kernel_hash
from kir.errors import KirError
from kir.ir import Kernel, Module, Step
from kir.pipeline import schedule
from kir.specialise import infer_dims, specialise
from kir.syntax import format_module


@dataclass(frozen=True)
class Entry:
    """A row: for these dims this node of this run, `speedup` times the default when re-timed."""

    dims: Mapping[str, int]
    run: int
    node: int
    speedup: float
    derivation: str
    ir_hash: str


def table(store: Store, kernel: Kernel, target: str, arch: str | None = None) -> list[Entry]:
    """The best finished search for each dims of this very kernel (its text) on a target. One that
    found nothing faster than the default has no row."""
    source = format_module(Module((kernel,)))
    best: dict[tuple[tuple[str, int], ...], Entry] = {}
    for run in store.runs():
        if (run.source, run.target) != (source, target) or arch not in (None, run.arch):
            continue
        entry = _entry(store, run)
        key = tuple(sorted(run.dims.items()))
        if entry is not None and (key not in best or entry.speedup > best[key].speedup):
            best[key] = entry
    return [best[key] for key in sorted(best)]


def _entry(store: Store, run: RunRow) -> Entry | None:
    node, speedup = run.result.get("node"), run.result.get("speedup")
    if not isinstance(node, int) or not isinstance(speedup, int | float) or speedup <= 1:
        return None
    row = store.node(node)
    return Entry(run.dims, run.id, node, float(speedup), row.derivation, row.ir_hash)


def steps_for(
    url: str, kernel: Kernel, dims: Mapping[str, int], target: str, arch: str | None = None
) -> tuple[Step, ...] | None:
    """The steps to use for a kernel at dims; None where the store has none for just these, or
    where they no longer give the IR that was verified. StoreError where there is no store."""
    store = Store(url, create=False)
    try:
        bound = infer_dims(kernel, {}, dims)
        for entry in table(store, kernel, target, arch):
            if dict(entry.dims) == dict(bound):
                return _checked(kernel, bound, entry)
    finally:
        store.close()
    return None


def _checked(kernel: Kernel, dims: Mapping[str, int], entry: Entry) -> tuple[Step, ...] | None:
    steps = parse_derivation(entry.derivation)
    try:
        found = kernel_hash(schedule(specialise(kernel, dims), steps))
    except KirError:
        return None
    return steps if found == entry.ir_hash else None
