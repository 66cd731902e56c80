"""A graph's calls: resolved for given dims, and their shapes checked on symbolic ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kir.errors import ShapeError
from kir.ir import Call, Expr, Graph, Kernel, Module, Param, Var, const, substitute
from kir.ops import op
from kir.simplify import simplify
from kir.specialise import evaluate, free_dims, infer_dims, input_shapes, output_shapes
from kir.syntax.format import format_expr

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


def call_dims(module: Module, graph: Graph) -> list[dict[str, Expr]]:
    """For each call what its kernel's dims are in terms of the graph's, as far as the shapes of the
    arguments and the call itself say."""
    kernels = module.kernels()
    shapes: dict[str, tuple[Expr, ...]] = {p.name: p.shape for p in graph.inputs}
    found = []
    for call in graph.calls:
        kernel = kernels[call.kernel]
        dims: dict[str, Expr] = {
            d.name: const(d.default) for d in kernel.dims if d.default is not None
        }
        dims.update(call.dims)
        for arg, param in zip(call.args, kernel.inputs):
            for mine, theirs in zip(shapes[arg], param.shape):
                if isinstance(theirs, Var):
                    dims.setdefault(theirs.name, mine)
        for result, made in zip(call.results, kernel.outputs):
            shapes[result] = tuple(simplify(substitute(e, dims)) for e in made.shape)
        found.append(dims)
    return found


def shape_errors(module: Module, graph: Graph) -> Iterator[ShapeError]:
    """Calls whose arguments' extents differ from what the kernel declares, on symbolic dims.

    A callee's dim takes the extent of the first argument that has it; the others must be equal.
    An extent that binds no dim (`x: f32[N + 2]` alone) is left to the run, when dims are known.
    """
    kernels = module.kernels()
    shapes: dict[str, tuple[Expr, ...]] = {p.name: p.shape for p in graph.inputs}
    for call in graph.calls:
        kernel = kernels[call.kernel]
        dims: dict[str, Expr] = {
            d.name: const(d.default) for d in kernel.dims if d.default is not None
        }
        dims.update(call.dims)
        pairs = [
            (arg, param, mine, theirs)
            for arg, param in zip(call.args, kernel.inputs)
            for mine, theirs in zip(shapes[arg], param.shape)
        ]
        for _, _, mine, theirs in pairs:
            if isinstance(theirs, Var):
                dims.setdefault(theirs.name, mine)
        for arg, param, mine, theirs in pairs:
            yield from _clash(graph, call, arg, param, mine, theirs, dims)
        for result, made in zip(call.results, kernel.outputs):
            shapes[result] = tuple(simplify(substitute(e, dims)) for e in made.shape)
        for output in graph.outputs:
            for result, made in zip(call.results, kernel.outputs):
                if result == output.name:
                    for mine, theirs in zip(output.shape, made.shape):
                        yield from _clash(graph, call, output.name, made, mine, theirs, dims)


def _clash(
    graph: Graph,
    call: Call,
    name: str,
    param: Param,
    mine: Expr,
    theirs: Expr,
    dims: Mapping[str, Expr],
) -> Iterator[ShapeError]:
    if not free_dims(theirs) <= dims.keys():
        return
    wanted = simplify(substitute(theirs, dict(dims)))
    if simplify(op("sub", wanted, mine)) == const(0):
        return
    yield ShapeError(
        f"`{name}` has an extent of `{format_expr(mine)}` where `{call.kernel}` takes "
        f"`{format_expr(wanted)}` (`{param.name}: {format_expr(theirs)}`)",
        kernel=graph,
        node=call,
        hint="the same dim must have the same extent in every argument",
    )
