"""A graph's calls, resolved: which kernel, with which dims, for given dims of the graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kir.ir import Call, Graph, Kernel, Module
from kir.specialise import evaluate, infer_dims, input_shapes, output_shapes

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ResolvedCall:
    """One call with its kernel and the kernel's dims (parameters included)."""

    call: Call
    kernel: Kernel
    dims: Mapping[str, int]


def resolve(module: Module, graph: Graph, dims: Mapping[str, int]) -> list[ResolvedCall]:
    """The calls of `graph` in order; InputDataError or ConstraintError where shapes clash."""
    kernels = module.kernels()
    shapes: dict[str, Shape] = dict(input_shapes(graph, dims))
    resolved = []
    for call in graph.calls:
        kernel = kernels[call.kernel]
        given = {p.name: shapes[a] for p, a in zip(kernel.inputs, call.args)}
        bound = {name: int(evaluate(value, dims)) for name, value in call.dims}
        inner = infer_dims(kernel, given, bound)
        made = output_shapes(kernel, inner)
        shapes |= {r: made[p.name] for r, p in zip(call.results, kernel.outputs)}
        resolved.append(ResolvedCall(call, kernel, inner))
    return resolved
