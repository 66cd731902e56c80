"""Updates `acc op= value` over loops that run side by side, in whose indices `acc` is the same;
`acc += a * b` is contracted, where the domain can."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from kir.dtypes import DType
from kir.interpret.contract import factors
from kir.interpret.domain import Array, Value
from kir.interpret.memory import kept
from kir.ir import Expr

if TYPE_CHECKING:
    from kir.interpret.evaluate import Evaluator

WORTH = 1 << 14
"""Fewest terms for which a matrix product is worth its preparation."""
GAIN = 4
"""How many times the terms must outnumber the elements of the larger factor."""


def sum_of_products(run: Evaluator, start: Value, free: list[int], value: Expr) -> Value | None:
    """`start` and, over the axes of the frame at positions `free`, all of `value`, a product; None
    where it is none, where little would be gained, and where the domain declines.

    `start` has the frame's other axes, as the result has.
    """
    if not run.domain.contracts or math.prod(run.frame) < WORTH:
        return None
    found = factors(value)
    if found is None:
        return None
    left, right, made = found
    pair = [run.eval(left), run.eval(right)]
    mask = run.masks[-1]
    if mask is not None:
        k = int(pair[0][0].size > pair[1][0].size)
        zero = run.domain.constant(0.0, made)
        pair[k] = run.domain.select(mask, pair[k], zero, made)
    if GAIN * max(p[0].size for p in pair) > math.prod(run.frame):
        return None
    depth = len(run.frame)
    front = [depth - 1 - p for p in free]
    order = front + [a for a in range(depth) if a not in front]

    def moved(plane: Array) -> Array:
        return run.whole(plane).transpose(order)

    a, b = (tuple(moved(p) for p in f) for f in pair)
    lead = tuple(run.frame[p] for p in free)
    return run.domain.contract(a, b, lead, math.prod(lead), made, value.dtype, start)


def accumulated(
    run: Evaluator, op: str, memory: Value, free: list[int], e: Expr, dtype: DType
) -> Value:
    """`memory`, updated by the values of `e` along the axes at positions `free`."""
    start = tuple(kept(run.whole(m), free) for m in memory)
    total = sum_of_products(run, start, free, e) if op == "add" else None
    if total is None:
        value = run.domain.stored(run.eval(e), dtype)
        mask = run.masks[-1]
        if mask is not None:
            value = run.domain.select(mask, value, run.domain.identity(op, dtype), dtype)
        terms = tuple(_terms_first(run, p, free) for p in value)
        total = run.domain.accumulate(op, start, terms, dtype)
    shape = run.whole(memory[0]).shape
    return tuple(np.broadcast_to(t, start[0].shape).reshape(shape) for t in total)


def _terms_first(run: Evaluator, array: Array, free: list[int]) -> Array:
    """Over the whole frame, with the axes at positions `free` joined in order in front."""
    depth = len(run.frame)
    full = np.broadcast_to(array, tuple(reversed(run.frame)))
    front = [depth - 1 - p for p in free]
    back = [a for a in range(depth) if a not in front]
    moved = full.transpose(front + back)
    return moved.reshape(-1, *moved.shape[len(front) :])
