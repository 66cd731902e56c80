"""Contractions: register blocks of a few rows by two vectors, over operands staged into cache and
padded, so that the innermost loop has no mask."""

from __future__ import annotations

from kir.ir import Read, walk
from kir.plan.common import Contraction, Draft, contiguous_score, tile_contraction
from kir.plan.cpu.chip import Chip
from kir.plan.cpu.loops import spread, tile
from kir.plan.cpu.products import product

BLOCK_ROWS = {128: 4, 256: 6, 512: 14}
"""Rows of a register block of two vectors, by the width of vectors in bits."""
PANEL = 4
"""Register blocks that share a staged panel of the right operand."""


def contraction(draft: Draft, found: Contraction, chip: Chip) -> bool:
    """Register blocks: `for k { tile rows, columns { acc += left * right } }`."""
    if product(draft, found, chip):
        return True
    trial = draft.fork()
    rows, columns = BLOCK_ROWS.get(chip.vector_bits, 6), 2 * chip.lanes
    blocks = tile_contraction(trial, found, rows, columns, None)
    if blocks is None:
        return False
    *others, i_o, j_o = blocks.grid
    panel = _panel(trial, i_o, j_o)
    grid = [*others, panel] if panel else [*others, i_o, j_o]
    if panel:
        _stage(trial, found, panel, i_o)
    for name in (blocks.rows, blocks.columns):
        trial.attempt("unmask", name)
    inside = [blocks.rows, blocks.columns]
    for name in (*inside, *(n for pair in blocks.epilogue for n in pair)):
        trial.attempt("bind", name, "tile")
    spread(trial, grid)
    draft.adopt(trial)
    return True


def _panel(draft: Draft, i_o: str, j_o: str) -> str | None:
    """Group column blocks into panels, outside of the rows: its name."""
    trial, before = draft.fork(), set(draft.loop_names())
    if not trial.attempt("split", j_o, PANEL):
        return None
    (panel,) = set(trial.loop_names()) - before
    if not trial.attempt("reorder", (panel, i_o, j_o)):
        return None
    draft.adopt(trial)
    return panel


def _stage(draft: Draft, found: Contraction, panel: str, i_o: str) -> None:
    """Copy the right operand's panel once, and the left one's rows for each panel, into cache."""
    for operand, loop in ((found.right, panel), (found.left, i_o)):
        tensors = {n.tensor for n in walk(operand) if isinstance(n, Read)}
        for tensor in sorted(tensors):
            before = set(draft.loop_names())
            if draft.attempt("stage", tensor, loop, "local"):
                made = [n for n in draft.loop_names() if n not in before]
                for name in made[-1:]:
                    if contiguous_score(draft.loop(name)) > 0:
                        tile(draft, name, 32)
