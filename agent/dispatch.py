"""Dispatch by shape: the best derivation that a store holds for a kernel at given dims.

A kernel is fast at the shapes that it was tuned for; elsewhere the default schedule is the safe
choice. So the table holds exactly the dims that were tuned, and outside of it there is nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from kir.agent.store import RunRow, Store
from kir.agent.variant import parse_derivation
from kir.derivation import kernel_hash
from kir.errors import KirError
from kir.ir import Item, Kernel, Module, Step
from kir.pipeline import schedule
from kir.specialise import infer_dims, specialise
from kir.syntax import format_module, parse


@dataclass(frozen=True)
class Entry:
    """A row: for these dims this node of this run, `speedup` times the default when re-timed."""

    kernel: str
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
    return Entry(run.kernel, run.dims, run.id, node, float(speedup), row.derivation, row.ir_hash)


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


def tuned(module: Module, url: str, target: str, arch: str | None = None) -> Module:
    """The module with each kernel that has no dims (their values are in it), and for which the
    store has something faster than the default, scheduled so; whatever its name. StoreError where
    there is no store."""
    store = Store(url, create=False)
    try:
        best: dict[str, Entry] = {}
        for run in store.runs():
            entry = (
                _entry(store, run) if run.target == target and arch in (None, run.arch) else None
            )
            spec = parse(run.source, "<store>").kernels().get(run.kernel)
            if entry is None or spec is None:
                continue
            key = _nameless(specialise(spec, run.dims))
            if key not in best or entry.speedup > best[key].speedup:
                best[key] = entry
    finally:
        store.close()
    return replace(module, items=tuple(_replaced(item, best) for item in module.items))


def _replaced(item: Item, best: Mapping[str, Entry]) -> Item:
    entry = best.get(_nameless(item)) if isinstance(item, Kernel) and not item.dims else None
    if entry is None or not isinstance(item, Kernel):
        return item
    try:
        found = schedule(item, parse_derivation(entry.derivation))
    except KirError:  # its rewrites have changed since
        return item
    return found if kernel_hash(replace(found, name=entry.kernel)) == entry.ir_hash else item


def _nameless(kernel: Kernel) -> str:
    return kernel_hash(replace(kernel, name="k"))


def _checked(kernel: Kernel, dims: Mapping[str, int], entry: Entry) -> tuple[Step, ...] | None:
    steps = parse_derivation(entry.derivation)
    try:
        found = kernel_hash(schedule(specialise(kernel, dims), steps))
    except KirError:
        return None
    return steps if found == entry.ir_hash else None
