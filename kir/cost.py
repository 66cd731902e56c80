"""What a kernel must do at the least: bytes in and out, and scalar operations, from its spec."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kir.graphs import resolve
from kir.ir import (
    Axis,
    Bitcast,
    Cast,
    Define,
    Expr,
    Graph,
    If,
    Kernel,
    Loop,
    Module,
    Op,
    Reduce,
    Stmt,
    Store,
)
from kir.specialise import evaluate, input_shapes, output_shapes


@dataclass(frozen=True)
class Cost:
    """`bytes`: inputs read once and outputs written once. `operations`: on floats and integers
    of the tensors, one for each op and each step of a reduction (a multiply-add counts two)."""

    bytes: int
    operations: int


def cost(item: Kernel | Graph, dims: Mapping[str, int], module: Module | None = None) -> Cost:
    """The least work of a spec (or graph of specs) for given dims."""
    shapes = {**input_shapes(item, dims), **output_shapes(item, dims)}
    moved = sum(math.prod(shapes[p.name]) * p.type.bytes for p in item.params)
    if isinstance(item, Kernel):
        return Cost(moved, sum(_statement(s, dict(dims)) for s in item.body))
    assert module is not None
    calls = resolve(module, item, dims)
    return Cost(moved, sum(cost(c.kernel, c.dims).operations for c in calls))


def statements_run(body: Iterable[Stmt], dims: Mapping[str, int]) -> int:
    """How many statements an interpreter that takes the lanes of a `tile` together runs."""
    total, known = 0, dict(dims)
    for s in body:
        if isinstance(s, Loop):
            trips = _trips((s.axis,), known)
            total += (1 if s.kind == "tile" else trips) * statements_run(s.body, known)
        elif isinstance(s, If):
            total += statements_run(s.body, known)
        else:
            total += 1
    return total


def _trips(axes: tuple[Axis, ...], dims: dict[str, int]) -> int:
    total = 1
    for axis in axes:
        extent = max(0, int(evaluate(axis.extent, dims)))
        dims[axis.name] = extent // 2  # a triangular loop counts its mean
        total *= extent
    return total


def _statement(s: Stmt, dims: dict[str, int]) -> int:
    if isinstance(s, Define):
        trips = _trips(s.axes, dims)
        return trips * _expression(s.value, dims)
    if isinstance(s, Store):
        return _expression(s.value, dims) + (s.op is not None)
    if isinstance(s, Loop):
        trips = _trips((s.axis,), dims)
        return trips * sum(_statement(x, dims) for x in s.body)
    if isinstance(s, If):
        return sum(_statement(x, dims) for x in s.body)
    return 0


def _expression(e: Expr, dims: dict[str, int]) -> int:
    if isinstance(e, Reduce):
        trips = _trips(e.axes, dims)
        return trips * (1 + _expression(e.body, dims))
    if isinstance(e, Op):
        return 1 + sum(_expression(a, dims) for a in e.args)
    if isinstance(e, Cast | Bitcast):
        return _expression(e.value, dims)
    return 0  # index arithmetic is not counted
