"""Windows (convolution, pooling): lanes along the contiguous parallel axis, which walk the inner
loops together."""

from __future__ import annotations

from kir.plan.common import Draft, chain, contiguous_score, innermost_loops
from kir.plan.cpu.loops import spread, tile


def lanes_outside(draft: Draft, name: str) -> bool:
    """Whether the last parallel axis is walked element by element, and the loops inside not."""
    loop = draft.loop(name)
    inner = [contiguous_score(x) for x in innermost_loops(loop)]
    return contiguous_score(loop) > max(inner, default=0)


def windows(draft: Draft, prefix: list[str], width: int) -> None:
    tile(draft, prefix[-1], width)
    around = [n for n in draft.loop_names() if n not in prefix]
    outer = prefix[:-1]
    if draft.loop(prefix[-1]).kind == "tile":
        path = [x.axis.name for x in chain(draft.loop(outer[0] if outer else around[0]))]
        outer = path[: path.index(prefix[-1])] if prefix[-1] in path else outer
    spread(draft, outer)
