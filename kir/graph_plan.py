"""A graph as one program: its kernels scheduled, its temporaries laid out in one block of memory.

A temporary lives from the call that makes it to the last that reads it; those whose lives do not
meet share memory. Where sizes are known they are placed by "greedy by size" of Pisarchyk & Lee,
"Efficient Memory Management for Deep Neural Net Inference" (2020), section 5: the largest first,
each into the smallest gap that is large enough between those it lives together with. Of symbolic
sizes it is not known which is larger: there temporaries share slots, as large as their largest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from kir.errors import UnsupportedError
from kir.graphs import call_dims, resolve
from kir.ir import Call, Const, Expr, Graph, Kernel, Module, Param, const, substitute
from kir.ops import op
from kir.simplify import simplify
from kir.specialise import bind_defaults, specialise

ALIGN = 64
"""Temporaries start on cache lines."""


@dataclass(frozen=True)
class PlannedCall:
    """`kernel` is an index among the plan's kernels; `tensors` names the graph's tensor for each of
    its parameters, inputs first; `dims` are the values of its dims in order."""

    kernel: int
    tensors: tuple[str, ...]
    dims: tuple[Expr, ...]


@dataclass(frozen=True)
class Temporary:
    """`first` and `last` are the calls between which it must keep its values, `size` its bytes
    and `offset` its place in the block."""

    param: Param
    first: int
    last: int
    size: Expr
    offset: Expr


@dataclass(frozen=True)
class GraphPlan:
    """`signature` is the graph's, as a kernel without a body; `kernels` are scheduled, each once;
    `size` is that of the block for the temporaries, in bytes."""

    signature: Kernel
    kernels: tuple[Kernel, ...]
    calls: tuple[PlannedCall, ...]
    temporaries: tuple[Temporary, ...]
    size: Expr


def plan_graph(
    module: Module, graph: Graph, dims: Mapping[str, int], prepare: Callable[[Kernel], Kernel]
) -> GraphPlan:
    """The plan for the dims that are given; the others stay symbolic. `prepare` schedules a kernel.

    UnsupportedError where the dims of a call cannot be told while the graph's are symbolic.
    """
    empty = Kernel(graph.name, graph.dims, graph.inputs, graph.outputs, graph.constraints, ())
    values = bind_defaults(empty, dims)
    signature = specialise(empty, dims)
    shapes = {p.name: p for p in signature.params}
    kernels: dict[tuple[str, tuple[tuple[str, int], ...]], tuple[int, Kernel, Kernel]] = {}
    calls: list[PlannedCall] = []
    made: dict[str, Param] = {}
    for call, bound in zip(graph.calls, _bound(module, graph, values), strict=True):
        kernel = module.kernels()[call.kernel]
        fixed = _constants(kernel, call, bound, symbolic=bool(signature.dims))
        key = call.kernel, tuple(sorted(fixed.items()))
        if key not in kernels:
            spec = specialise(kernel, fixed)
            kernels[key] = len(kernels), spec, prepare(spec)
        number, spec, _ = kernels[key]
        inner = {d.name: bound[d.name] for d in spec.dims}
        for result, p in zip(call.results, spec.outputs, strict=True):
            shape = tuple(simplify(substitute(e, inner)) for e in p.shape)
            made[result] = Param(result, p.type, shape)
        calls.append(PlannedCall(number, call.args + call.results, tuple(inner.values())))
    temporaries, size = _placed([made[n] for n in made if n not in shapes], calls)
    scheduled = tuple(k for _, _, k in kernels.values())
    return GraphPlan(signature, scheduled, tuple(calls), temporaries, size)


def _bound(module: Module, graph: Graph, values: Mapping[str, int]) -> list[dict[str, Expr]]:
    """For each call the values of its kernel's dims, over the graph's dims that stay symbolic."""
    if all(d.name in values for d in graph.dims):
        known = resolve(module, graph, values)
        return [{n: const(v) for n, v in c.dims.items()} for c in known]
    constants: dict[str, Expr] = {n: const(v) for n, v in values.items()}
    return [
        {n: simplify(substitute(e, constants)) for n, e in found.items()}
        for found in call_dims(module, graph)
    ]


def _constants(
    kernel: Kernel, call: Call, bound: Mapping[str, Expr], symbolic: bool
) -> dict[str, int]:
    """The dims that a kernel is specialised on: in a symbolic graph its parameters alone, so that
    calls share code."""
    fixed: dict[str, int] = {}
    for d in kernel.dims:
        value = bound.get(d.name)
        if value is None or (d.default is not None and not isinstance(value, Const)):
            raise UnsupportedError(
                f"what `{d.name}` of `{kernel.name}` is in this call cannot be told before the "
                "graph's dims are known",
                hint="give the dims of the graph, or compile for the shapes of a call",
                node=call,
            )
        if isinstance(value, Const) and (d.default is not None or not symbolic):
            fixed[d.name] = int(value.value)
    return fixed


# --- temporaries -------------------------------------------------------------------------------


def _placed(
    params: Sequence[Param], calls: Sequence[PlannedCall]
) -> tuple[tuple[Temporary, ...], Expr]:
    """The temporaries in the order of their making, and the size of the block."""
    lives: list[Temporary] = []
    for p in params:
        used = [k for k, c in enumerate(calls) if p.name in c.tensors]
        lives.append(Temporary(p, used[0], used[-1], _size(p), const(0)))
    if all(isinstance(t.size, Const) for t in lives):
        return _packed(lives)
    return _slotted(lives)


def _size(p: Param) -> Expr:
    """Bytes, rounded up to whole lines."""
    total: Expr = const(p.type.bytes)
    for e in p.shape:
        total = op("mul", total, e)
    lines = op("floordiv", op("add", total, const(ALIGN - 1)), const(ALIGN))
    return simplify(op("mul", lines, const(ALIGN)))


def _meet(a: Temporary, b: Temporary) -> bool:
    return a.first <= b.last and b.first <= a.last


def _packed(lives: list[Temporary]) -> tuple[tuple[Temporary, ...], Expr]:
    def bytes_of(t: Temporary) -> int:
        return int(t.size.value) if isinstance(t.size, Const) else 0

    places: dict[str, int] = {}
    for t in sorted(lives, key=bytes_of, reverse=True):
        taken = sorted(
            (places[o.param.name], places[o.param.name] + bytes_of(o))
            for o in lives
            if o.param.name in places and _meet(t, o)
        )
        best, gap, end = None, 0, 0
        for start, stop in taken:
            room = start - end
            if room >= bytes_of(t) and (best is None or room < gap):
                best, gap = end, room
            end = max(end, stop)
        places[t.param.name] = end if best is None else best
    size = max((places[t.param.name] + bytes_of(t) for t in lives), default=0)
    return tuple(replace(t, offset=const(places[t.param.name])) for t in lives), const(size)


def _slotted(lives: list[Temporary]) -> tuple[tuple[Temporary, ...], Expr]:
    slots: list[list[Temporary]] = []
    for t in lives:
        free = [s for s in slots if not any(_meet(t, o) for o in s)]
        same = [s for s in free if any(o.size == t.size for o in s)]
        if free:
            (same or free)[0].append(t)
        else:
            slots.append([t])
    sizes = [_largest([t.size for t in s]) for s in slots]
    starts: list[Expr] = [const(0)]
    for size in sizes:
        starts.append(op("add", starts[-1], size))
    where = {t.param.name: starts[k] for k, s in enumerate(slots) for t in s}
    return tuple(replace(t, offset=where[t.param.name]) for t in lives), starts[-1]


def _largest(sizes: Sequence[Expr]) -> Expr:
    unique = list(dict.fromkeys(sizes))
    result = unique[0]
    for e in unique[1:]:
        result = op("max", result, e)
    return result
