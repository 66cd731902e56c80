"""What the rewrites of graphs share: the base class, finding calls, new names.

A graph rewrite takes a module and the name of a graph in it, and gives a module in which that
graph computes the same by other kernels. Kernels that are called no more stay in the module.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NoReturn

from kir.errors import RewriteError
from kir.ir import (
    Axis,
    Buffer,
    Call,
    Define,
    Dim,
    Graph,
    Kernel,
    Module,
    Node,
    Param,
    Read,
    Store,
    Var,
    transform,
)
from kir.rewrites.base import Effect, Move, fresh


@dataclass(frozen=True)
class GraphRewrite(ABC):
    """One move on a graph. `effect` is as that of `kir.rewrites.Rewrite`."""

    name: ClassVar[str]
    effect: ClassVar[Effect]

    @abstractmethod
    def apply(self, module: Module, graph: str) -> Module:
        """The module with the graph rewritten; RewriteError where it is refused."""

    @classmethod
    def candidates(cls, module: Module, graph: str) -> Iterator[Move]:
        """Moves that may be legal on the graph: every legal one is among them."""
        return iter(())

    def effect_on(self, module: Module, graph: str) -> Effect:
        return self.effect

    def bound(self) -> str:
        return ""


def refuse(
    graph: Graph, message: str, *, node: Node | None = None, hint: str | None = None
) -> NoReturn:
    raise RewriteError(message, kernel=graph, node=node, hint=hint)


def find_call(graph: Graph, result: str) -> tuple[int, Call]:
    """The call that gives `result`, and its place; RewriteError naming near ones."""
    for k, call in enumerate(graph.calls):
        if result in call.results:
            return k, call
    known = [r for call in graph.calls for r in call.results]
    near = difflib.get_close_matches(result, known, n=3)
    listed = ", ".join(f"`{n}`" for n in near or known)
    hint = f"did you mean {listed}?" if near else f"its calls give {listed}"
    refuse(graph, f"no call of `{graph.name}` gives `{result}`", hint=hint)


def find_graph(module: Module, name: str) -> Graph:
    graphs = module.graphs()
    if name not in graphs:
        known = ", ".join(f"`{n}`" for n in graphs) or "none"
        raise RewriteError(f"there is no graph `{name}`", hint=f"the graphs are {known}")
    return graphs[name]


def put(module: Module, graph: Graph, kernels: Sequence[Kernel]) -> Module:
    """The module with a graph of that name replaced, and new kernels before it."""
    at = next(k for k, x in enumerate(module.items) if x.name == graph.name)
    return Module((*module.items[:at], *kernels, graph, *module.items[at + 1 :]))


def new_name(module: Module, graph: Graph, wanted: str | None, base: str, call: Call) -> str:
    used = {x.name for x in module.items}
    if wanted is not None and wanted in used:
        refuse(graph, f"the name `{wanted}` is taken in this file", node=call)
    return fresh(wanted or base, used)


def renamed(kernel: Kernel, names: dict[str, str]) -> Kernel:
    """The kernel with everything in it called as `names` says: dims, tensors and indices."""

    def visit(n: Node) -> Node | None:
        match n:
            case Read(tensor) if tensor in names:
                return replace(n, tensor=names[tensor])
            case Store(target) if target in names:
                return replace(n, target=names[target])
            case Var(name) | Axis(name) | Define(name) | Buffer(name) | Param(name) | Dim(name) if (
                name in names
            ):
                return replace(n, name=names[name])
        return None

    return transform(kernel, visit)


def determined(graph: Graph, call: Call, kernel: Kernel, given: set[str]) -> None:
    """Refuse where no input's shape tells a dim of a new kernel, and the call does not either."""
    told = {e.name for p in kernel.inputs for e in p.shape if isinstance(e, Var)} | given
    for d in kernel.dims:
        if d.name not in told and d.default is None:
            refuse(
                graph,
                f"no input of the new kernel would tell its dim `{d.name}`",
                node=call,
                hint=f"give it in the call: `{call.kernel}[{d.name} = ...]`",
            )
