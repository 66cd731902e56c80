"""The interpreter of KIR, the float64 oracle that carries error bounds, and exact equivalence.

run(kernel, inputs)            outputs in the dtypes as written, at any stage
oracle(kernel, inputs)         outputs in f64, with what a right computation may give
run_ring(kernel, inputs, ...)  outputs as field elements: equal for equal kernels, bit for bit
run_graph(...) and so on       the same for a graph of kernels
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kir.graphs import resolve
from kir.interpret.arrays import check_inputs
from kir.interpret.bounded import Bounded, WithBounds
from kir.interpret.domain import AsWritten, Domain, Value
from kir.interpret.evaluate import Evaluator
from kir.interpret.exact import (
    Difference,
    Residues,
    difference,
    levels_of,
    run_graph_ring,
    run_ring,
)
from kir.interpret.program import program
from kir.interpret.rules import OpError
from kir.ir import Graph, Kernel, Module, Param
from kir.specialise import infer_dims

__all__ = [
    "Bounded",
    "Difference",
    "Residues",
    "difference",
    "levels_of",
    "oracle",
    "oracle_graph",
    "run",
    "run_graph",
    "run_graph_ring",
    "run_ring",
]

Arrays = Mapping[str, np.ndarray[Any, Any]]
KernelOf = Callable[[Kernel, Mapping[str, int]], Kernel]


def run(
    kernel: Kernel, inputs: Arrays, dims: Mapping[str, int] | None = None
) -> dict[str, np.ndarray[Any, Any]]:
    """The outputs of `kernel`, computed in the dtypes as written; the inputs are not changed.

    `inputs` are arrays of exactly the declared dtypes; `dims` gives what no shape determines.
    Raises InputDataError, ConstraintError, and EvaluationError for an index out of range.
    """
    return {name: planes[0] for name, planes in run_in(AsWritten(), kernel, inputs, dims).items()}


def oracle(
    kernel: Kernel,
    inputs: Arrays,
    dims: Mapping[str, int] | None = None,
    contraction: bool = False,
    errors: Mapping[str, OpError] | None = None,
    loose: bool = False,
    overflows: bool = False,
) -> dict[str, Bounded]:
    """The outputs in f64 from the inputs as they are, each element with its error bound.

    With `contraction` the bounds hold for implementations that fuse products into sums, too;
    with `errors` for those that put something else in the place of an op. With `loose` there are
    none for what leaves the range of a type narrower than f32: one that a rewrite chose. With
    `overflows` there are none for integers made of floats that are not finite: they hide that a
    rewrite overflows where the spec does not.
    Raises what `run` raises.
    """
    found = run_in(WithBounds(contraction, errors or {}, loose, overflows), kernel, inputs, dims)
    return {p.name: _bounded(found[p.name], p) for p in kernel.outputs}


def oracle_graph(
    module: Module,
    graph: Graph,
    inputs: Arrays,
    dims: Mapping[str, int] | None = None,
    contraction: bool = False,
    kernel_of: KernelOf | None = None,
) -> dict[str, Bounded]:
    """The oracle of a graph: bounds pass from call to call. `kernel_of` gives what runs in the
    place of each call's kernel."""
    found = run_graph_in(WithBounds(contraction), module, graph, inputs, dims, kernel_of)
    return {p.name: _bounded(found[p.name], p) for p in graph.outputs}


def _bounded(planes: Value, p: Param) -> Bounded:
    value, bound = planes
    return Bounded(value, np.broadcast_to(bound, value.shape), p.type)


def run_in(
    domain: Domain, kernel: Kernel, inputs: Arrays, dims: Mapping[str, int] | None = None
) -> dict[str, Value]:
    """Run over any domain of values."""
    arrays = check_inputs(kernel, inputs)
    values = infer_dims(kernel, {n: a.shape for n, a in arrays.items()}, dims)
    lifted = {p.name: domain.lift(arrays[p.name], p.type) for p in kernel.inputs}
    return Evaluator(domain, program(kernel, values), lifted).run()


def run_graph(
    module: Module, graph: Graph, inputs: Arrays, dims: Mapping[str, int] | None = None
) -> dict[str, np.ndarray[Any, Any]]:
    """The outputs of `graph`, kernel by kernel, in the dtypes as written."""
    found = run_graph_in(AsWritten(), module, graph, inputs, dims)
    return {name: planes[0] for name, planes in found.items()}


def run_graph_in(
    domain: Domain,
    module: Module,
    graph: Graph,
    inputs: Arrays,
    dims: Mapping[str, int] | None = None,
    kernel_of: KernelOf | None = None,
) -> dict[str, Value]:
    """Run a graph over any domain of values: what one call leaves in doubt, the next inherits."""
    arrays = check_inputs(graph, inputs)
    values = infer_dims(graph, {n: a.shape for n, a in arrays.items()}, dims)
    known = {p.name: domain.lift(arrays[p.name], p.type) for p in graph.inputs}
    for step in resolve(module, graph, values):
        kernel, call = step.kernel, step.call
        given = {p.name: known[a] for p, a in zip(kernel.inputs, call.args, strict=True)}
        running = kernel_of(kernel, step.dims) if kernel_of else kernel
        left = {d.name: step.dims[d.name] for d in running.dims}
        results = Evaluator(domain, program(running, left), given).run()
        for name, p in zip(call.results, kernel.outputs, strict=True):
            known[name] = results[p.name]
    return {p.name: known[p.name] for p in graph.outputs}
