"""Steps that may be legal on a kernel as it stands, and are worth an evaluation.

Each rewrite lists its own candidates (`kir.rewrites.base.Rewrite.candidates`); what is illegal is
refused when it is applied. Left out here is what never makes a kernel faster by itself.
"""

from __future__ import annotations

from collections.abc import Iterator

from kir.ir import Const, Kernel, Loop, Step, walk
from kir.rewrites import REWRITES, canonical

MAX_UNROLL = 8
MAX_TILE = 4096
"""Lanes of a `tile` worth trying: each is a register's worth of code on a CPU."""
IDLE = frozenset({"set_space", "layout", "reuse"})
"""Rewrites that only another one, or a machine that is not measured here, makes worth while."""


HINTS = {
    "cpu": frozenset({"stream", "ahead"}),
    "nvidia": frozenset({"num_warps", "num_stages"}),
    "amd": frozenset({"num_warps", "num_stages"}),
}
"""Hints that a target's backend heeds."""


def legal_looking(kernel: Kernel, target: str = "cpu") -> Iterator[Step]:
    """Candidate steps, by rewrite and in the order of the code; most, but not all, will apply."""
    extents = {
        n.axis.name: int(n.axis.extent.value) if isinstance(n.axis.extent, Const) else None
        for n in walk(kernel)
        if isinstance(n, Loop)
    }
    for name, rewrite in REWRITES.items():
        if name in IDLE or (rewrite.effect == "approximates" and name != "contract_fma"):
            continue
        for move in rewrite.candidates(kernel):
            for step in move.steps():
                if _promising(step, extents, target):
                    yield canonical(step)


def _promising(step: Step, extents: dict[str, int | None], target: str) -> bool:
    """Whether a step makes code of a sensible size."""
    given = dict(step.options)
    if step.rewrite == "hint":
        return given.get("key") in HINTS.get(target, ())
    extent = extents.get(str(given.get("loop")))
    if step.rewrite == "unroll":
        return extent is not None and extent <= MAX_UNROLL
    if step.rewrite == "bind" and given["kind"] == "tile":
        return extent is not None and 1 < extent <= MAX_TILE
    return True
