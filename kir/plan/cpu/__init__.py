"""The default schedule for CPUs: ordinary rewrite steps, for any kernel.

Every nest of loops goes to the first strategy that takes it; each has a file of its own here.
Temporaries of a row stay in cache (`local`). What a rewrite refuses is left as plain loops, which
always work.
"""

from __future__ import annotations

from kir.check import check_kernel
from kir.errors import BoundsError, ScopeError
from kir.ir import Define, If, Kernel, Loop, Reduce, Step, walk
from kir.plan.common import (
    Draft,
    contract_temporaries,
    contraction_in,
    fuse_nests,
    inline_pointwise,
    nests,
    parallel_prefix,
)
from kir.plan.cpu.attention import attention
from kir.plan.cpu.chip import Chip
from kir.plan.cpu.columns import columns
from kir.plan.cpu.contractions import contraction
from kir.plan.cpu.convolutions import convolution, phases, ungroup
from kir.plan.cpu.elementwise import cheaper, elementwise
from kir.plan.cpu.loops import REGISTERS, spread
from kir.plan.cpu.recurrences import outline_inputs, recurrences
from kir.plan.cpu.rows import fetch_ahead, in_blocks, inner_loops
from kir.plan.cpu.scans import scans
from kir.plan.cpu.totals import totals
from kir.plan.cpu.vectors import matrix_vector
from kir.plan.cpu.windows import lanes_around, lanes_outside, windows

__all__ = ["Chip", "plan"]


def plan(kernel: Kernel, chip: Chip = Chip()) -> tuple[Step, ...]:  # noqa: B008
    """The steps from `kernel` (a spec, or half scheduled) to a schedule for this chip.

    Every kernel gets one: at worst, its canonical loops. Where dims are symbolic the checker may
    be unable to show of windows that they are in bounds; then they are planned as rows.
    """
    draft = _planned(kernel, chip, windowed=True)
    if any(d.default is None for d in kernel.dims) and not _is_sound(draft):
        draft = _planned(kernel, chip, windowed=False)
    return tuple(draft.steps)


def _is_sound(draft: Draft) -> bool:
    try:
        check_kernel(draft.kernel)
    except (BoundsError, ScopeError):
        return False
    return True


def _planned(kernel: Kernel, chip: Chip, windowed: bool) -> Draft:
    draft = Draft(kernel)
    if attention(draft, chip):
        draft.attempt("contract_fma")
        return draft
    if any(isinstance(n, Define | Reduce) for n in walk(kernel)):
        inline_pointwise(draft)
        cheaper(draft)
        inputs = outline_inputs(draft)
        draft.take("loops")
        recurrences(draft, inputs, chip)
        scans(draft, chip)
    fuse_nests(draft, totals=False)
    contract_temporaries(draft, row_space="local")
    for name in [loop.axis.name for loop in nests(draft.kernel) if loop.kind == "for"]:
        for part in phases(draft, name) if windowed else [name]:
            _schedule(draft, part, chip, windowed)
    draft.attempt("contract_fma")
    return draft


def _schedule(draft: Draft, name: str, chip: Chip, windowed: bool) -> None:
    name = ungroup(draft, name)
    nest, lanes = draft.loop(name), chip.lanes
    found = contraction_in(nest)
    if found is not None and (
        (windowed and convolution(draft, found, chip)) or contraction(draft, found, chip)
    ):
        return
    if matrix_vector(draft, nest, chip):
        return
    prefix = [x.axis.name for x in parallel_prefix(nest)]
    if not prefix:
        inner_loops(draft, totals(draft, nest, chip), lanes)
    elif not any(isinstance(s, Loop | If) for s in draft.loop(prefix[-1]).body):
        elementwise(draft, prefix, lanes * REGISTERS, chip)
    elif columns(draft, prefix, chip) or (windowed and windows(draft, nest, chip)):
        return
    elif lanes_outside(draft, prefix[-1]):
        lanes_around(draft, prefix, lanes * 2)
    else:
        inner_loops(draft, draft.loop(prefix[-1]), lanes)
        grid, rows = in_blocks(draft, prefix)
        spread(draft, grid)
        fetch_ahead(draft, rows)
