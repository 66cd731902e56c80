"""Graphs and schedules to IR: calls checked against the kernels' signatures, steps as data."""

from __future__ import annotations

import difflib

from kir.dtypes import DType
from kir.errors import DTypeError, DuplicateNameError, ScopeError, ShapeError, UnknownNameError
from kir.ir import Call, Expr, Graph, Item, Kernel, Module, Param, Schedule, Step, StepArg
from kir.syntax.elaborate import KernelElaborator
from kir.syntax.scope import Node, span_of


def elaborate_module(tree: Node) -> Module:
    """Type a `module` tree. Raises the first error found, with its span."""
    items: list[Item] = []
    kernels: dict[str, Kernel] = {}
    seen: set[str] = set()
    pending: list[Node] = []
    for child in tree.children:
        name = str(child.children[0])
        if name in seen:
            raise DuplicateNameError(
                f"`{name}` is defined twice in this file",
                span=span_of(child.children[0]),
                hint="give it another name",
            )
        seen.add(name)
        if child.data == "kernel":
            kernels[name] = KernelElaborator().kernel(child)
        pending.append(child)
    for child in pending:
        if child.data == "kernel":
            items.append(kernels[str(child.children[0])])
        elif child.data == "graph":
            items.append(graph(child, kernels))
        else:
            items.append(schedule(child))
    return Module(tuple(items))


def elaborate_steps(tree: Node) -> tuple[Step, ...]:
    return tuple(step(child) for child in tree.children)


def graph(tree: Node, kernels: dict[str, Kernel]) -> Graph:
    walker = KernelElaborator()
    name, dims, inputs, outputs, constraints = walker.signature(tree)
    tensors = {p.name: (p.type, len(p.shape)) for p in inputs}
    wanted = {p.name: (p.type, len(p.shape)) for p in outputs}
    calls = []
    for call_tree in tree.children[5:]:
        call = _call(call_tree, walker)
        kernel = kernels.get(call.kernel)
        if kernel is None:
            near = difflib.get_close_matches(call.kernel, kernels, 2)
            hint = f"did you mean {' or '.join(near)}?" if near else "define it in the same file"
            raise UnknownNameError(f"there is no kernel `{call.kernel}`", span=call.span, hint=hint)
        _check_call(call, kernel, tensors, wanted)
        calls.append(call)
    for output in outputs:
        if output.name not in tensors:
            raise ScopeError(
                f"output `{output.name}` is never computed",
                span=output.span,
                hint=f"end with `{output.name} = kernel(...)`",
            )
    return Graph(
        name, dims, inputs, outputs, constraints, tuple(calls), span=span_of(tree.children[0])
    )


def _call(tree: Node, walker: KernelElaborator) -> Call:
    results, kernel, args = tree.children[0], tree.children[1], tree.children[-1]
    dims: tuple[tuple[str, Expr], ...] = ()
    if len(tree.children) == 4:
        dims = tuple(
            (str(b.children[0]), walker.index(b.children[1], "a dim"))
            for b in tree.children[2].children
        )
    names = [tuple(str(n) for n in x.children) for x in (results, args)]
    return Call(names[0], str(kernel), dims, names[1], span=span_of(tree))


Known = dict[str, tuple[DType, int]]


def _check_call(call: Call, kernel: Kernel, tensors: Known, outputs: Known) -> None:
    counts = ((call.args, kernel.inputs, "inputs"), (call.results, kernel.outputs, "outputs"))
    for given, params, what in counts:
        if len(given) != len(params):
            raise ShapeError(
                f"`{kernel.name}` has {len(params)} {what}, and {len(given)} are given",
                span=call.span,
                hint="they are: " + ", ".join(p.name for p in params),
            )
    names = {d.name for d in kernel.dims}
    for dim, _ in call.dims:
        if dim not in names:
            raise UnknownNameError(
                f"`{kernel.name}` has no dim `{dim}`", span=call.span, hint=", ".join(sorted(names))
            )
    for arg, param in zip(call.args, kernel.inputs):
        if arg not in tensors:
            near = difflib.get_close_matches(arg, tensors, 2)
            hint = f"did you mean {' or '.join(near)}?" if near else None
            raise UnknownNameError(f"there is no tensor `{arg}` yet", span=call.span, hint=hint)
        _same_type(call, arg, tensors[arg], param)
    for result, param in zip(call.results, kernel.outputs):
        if result in tensors:
            raise DuplicateNameError(
                f"`{result}` is already computed", span=call.span, hint="choose another name"
            )
        if result in outputs:
            _same_type(call, result, outputs[result], param)
        tensors[result] = (param.type, len(param.shape))


def _same_type(call: Call, name: str, known: tuple[DType, int], param: Param) -> None:
    dtype, rank = known
    if dtype != param.type:
        raise DTypeError(
            f"`{name}` is {dtype}, and `{param.name}` is {param.type}",
            span=call.span,
            hint="convert it in a kernel of its own",
        )
    if rank != len(param.shape):
        raise ShapeError(
            f"`{name}` has {rank} dims, and `{param.name}` has {len(param.shape)}", span=call.span
        )


def schedule(tree: Node) -> Schedule:
    name, kernel, *steps = tree.children
    return Schedule(str(name), str(kernel), tuple(step(s) for s in steps), span=span_of(name))


def step(tree: Node) -> Step:
    name, *rest = tree.children
    args = tuple(_argument(a) for a in rest if a.data != "option")
    options = tuple(
        (str(o.children[0]), _argument(o.children[1])) for o in rest if o.data == "option"
    )
    return Step(str(name), args, options, span=span_of(tree))


def _argument(tree: Node) -> StepArg:
    if tree.data == "group":
        return tuple(_argument(a) for a in tree.children)
    token = str(tree.children[0])
    if tree.data == "word":
        return token
    return int(token) if tree.data == "integer" else float(token)
