"""Schedules for the kernels of a model: from a file, or as a search found them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kir.derivation import from_json
from kir.errors import FileError, OutputError
from kir.ir import Item, Kernel, Module, Step
from kir.pipeline import expand, schedule
from kir.stores import tuned
from kir.syntax import format_module, load, parse

if TYPE_CHECKING:
    from kir.frontends.torch.dynamo import Options


def save(module: Module, folder: str) -> None:
    """Write a graph's file, named by a hash of it, for `kir tune FILE --kernel NAME`.

    OutputError where that cannot be.
    """
    text = format_module(module)
    path = Path(folder) / f"graph_{hashlib.sha256(text.encode()).hexdigest()[:8]}.kir"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}", hint="choose another folder") from None


def scheduled(module: Module, options: Options) -> Module:
    """The module with those kernels scheduled for which the options have a schedule: one that the
    file gives comes before one that the store holds. The others keep their default.

    RewriteError where a schedule does not apply, StoreError where there is no store.
    """
    if options.schedule not in (None, "none"):
        given = _of_file(options.schedule)
        module = replace(module, items=tuple(_by(given, item) for item in module.items))
    if options.store is not None:
        module = tuned(module, options.store, options.target)
    return module


def _by(given: Mapping[str, tuple[Step, ...]], item: Item) -> Item:
    if isinstance(item, Kernel) and item.name in given:
        return schedule(item, given[item.name])
    return item


def _of_file(path: str | None) -> dict[str, tuple[Step, ...]]:
    """The steps for each kernel that a file of schedules, or a derivation in JSON, is of."""
    assert path is not None
    if not Path(path).is_file():
        raise FileError(f"there is no schedule {path}", hint="give a file, or `none`")
    if path.endswith(".json"):
        derivation = from_json(load(path).text)
        return {derivation.kernel: derivation.steps}
    known = parse(load(path)).schedules()
    return {s.kernel: expand(s, known) for s in known.values()}
