"""What the strategies share: grids over threads, and tiles of lanes."""

from __future__ import annotations

from kir.ir import Read, Store, walk
from kir.plan.common import Draft, constant_extent

REGISTERS = 4
"""Vectors of f32 that a tile of lanes fills: independent chains to hide latencies."""


def spread(draft: Draft, names: list[str]) -> None:
    """Make loops a grid, as many as allow it, and let large outputs bypass the cache."""
    bound = [name for name in names if draft.attempt("bind", name, "grid")]
    if bound and _writes_once(draft, bound[0]):
        draft.attempt("hint", bound[0], "stream", 1)


def _writes_once(draft: Draft, name: str) -> bool:
    """Whether the nest writes an output that nothing in the kernel reads or updates."""
    outputs = {p.name for p in draft.kernel.outputs}
    used = {n.tensor for s in draft.kernel.body for n in walk(s) if isinstance(n, Read)}
    stores = [n for s in draft.kernel.body for n in walk(s) if isinstance(n, Store)]
    used |= {s.target for s in stores if s.op is not None}
    mine = {n.target for n in walk(draft.loop(name)) if isinstance(n, Store)} & outputs
    return bool(mine) and not mine & used


def tile(draft: Draft, name: str, width: int) -> None:
    """Cut a parallel loop into tiles of at most `width` lanes."""
    extent = constant_extent(draft, name)
    if extent is None or extent > width:
        draft.attempt("split", name, width)
    draft.attempt("bind", name, "tile")
