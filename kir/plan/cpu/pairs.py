"""Integer products in pairs: operands packed as i16, two steps of the depth side by side, which
chips multiply and add in one instruction (`vpmaddwd`; with VNNI `vpdpwssd`).

    tile i, j, k: 2 { acc[i, j] += i32(a[..., k_o, i, k]) * i32(b[..., k_o, j, k]) }
"""

from __future__ import annotations

from kir.dtypes import i8, i16, i32, u8
from kir.errors import RewriteError
from kir.ir import Read, Store, walk
from kir.plan.common import Draft, constant_extent
from kir.plan.cpu.chip import Chip
from kir.rewrites.base import find_buffer, statements

PAIR = 2


def fits_pairs(draft: Draft, chip: Chip, k: str, tensors: tuple[str, str], unroll: int) -> bool:
    """Whether both operands are bytes (or i16), the depth is of whole steps, and the chip has the
    instruction."""
    extent = constant_extent(draft, k)
    types = {p.type for p in draft.kernel.inputs if p.name in tensors}
    return (
        "i16" in chip.dots
        and types <= {i8, u8, i16}
        and extent is not None
        and unroll % PAIR == 0
        and extent % unroll == 0
    )


def pair(draft: Draft, block: tuple[str, str, str]) -> bool:
    """Rearrange a register block `(i, j, k)` over two packed operands, still in i32 under a cast;
    False, and nothing changed, where a step is refused."""
    i, j, k = block
    trial = draft.fork()
    update = next(
        (s for s in statements((trial.loop(i),)) if isinstance(s, Store) and s.op == "add"), None
    )
    if update is None or update.value.dtype != i32:
        return False
    buffers = {n.tensor for n in walk(update.value) if isinstance(n, Read)}
    try:
        if constant_extent(trial, k) != PAIR:
            before = set(trial.loop_names())
            trial.take("split", k, PAIR)
            for name in set(trial.loop_names()) - before:
                trial.take("bind", name, "unroll")
        trial.take("reorder", (i, j, k))
        for name in sorted(buffers):
            buffer = find_buffer(trial.kernel, name)
            rank = len(buffer.shape)
            depth = rank - 2
            if rank < 2:
                return False
            if buffer.type != i16:
                trial.take("cast_storage", name, "i16")
            trial.take("layout", name, pack=(depth, PAIR))
            order = (*range(1, depth + 1), 0, *range(depth + 1, rank + 1))
            trial.take("layout", name, order=order)
        trial.take("bind", k, "tile")
    except (RewriteError, KeyError):
        return False
    draft.adopt(trial)
    return True
