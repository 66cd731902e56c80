"""Kernels that differ in their names alone become one: the layers of a network repeat."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from kir.ir import (
    Axis,
    Buffer,
    Call,
    Define,
    Graph,
    Kernel,
    Module,
    Node,
    Param,
    Read,
    Store,
    Var,
    transform,
    walk,
)
from kir.syntax import format_kernel


def shared(module: Module) -> Module:
    """The module of kernels without dims, each once, and graphs that call these. In a kernel inputs
    are named x0, x1, ..., outputs y0, ..., what it keeps t0, ..., indices a0, ...; a kernel's own
    name is a hash of its text, so that a schedule of it fits wherever it occurs."""
    made: dict[Kernel, str] = {}
    names: dict[str, str] = {}
    for kernel in module.kernels().values():
        plain = replace(_canonical(kernel), name="k")
        if plain not in made:
            made[plain] = f"k_{hashlib.sha256(format_kernel(plain).encode()).hexdigest()[:8]}"
        names[kernel.name] = made[plain]
    graphs = [
        replace(g, calls=tuple(_called(c, names[c.kernel]) for c in g.calls))
        for g in module.graphs().values()
    ]
    return Module((*(replace(k, name=n) for k, n in made.items()), *graphs))


def _called(call: Call, kernel: str) -> Call:
    return replace(call, kernel=kernel)


def renamed_graph(graph: Graph, name: str, names: dict[str, str]) -> Graph:
    """The graph under another name, and its tensors under those that `names` gives them."""

    def all_of(found: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(names.get(n, n) for n in found)

    def params(found: tuple[Param, ...]) -> tuple[Param, ...]:
        return tuple(replace(p, name=names.get(p.name, p.name)) for p in found)

    calls = tuple(replace(c, results=all_of(c.results), args=all_of(c.args)) for c in graph.calls)
    return replace(graph, name=name, inputs=params(graph.inputs), outputs=params(graph.outputs),
                   calls=calls)  # fmt: skip


def _canonical(kernel: Kernel) -> Kernel:
    names = {p.name: f"x{k}" for k, p in enumerate(kernel.inputs)}
    names |= {p.name: f"y{k}" for k, p in enumerate(kernel.outputs)}
    kept = indices = 0
    for node in walk(kernel):
        if isinstance(node, Define | Buffer) and node.name not in names:
            names[node.name] = f"t{kept}"
            kept += 1
        elif isinstance(node, Axis) and node.name not in names:
            names[node.name] = f"a{indices}"
            indices += 1

    def visit(node: Node) -> Node | None:
        if isinstance(node, Define | Buffer | Axis | Var | Param):
            return replace(node, name=names[node.name])
        if isinstance(node, Read):
            return replace(node, tensor=names[node.tensor])
        if isinstance(node, Store):
            return replace(node, target=names[node.target])
        return None

    return transform(kernel, visit)
