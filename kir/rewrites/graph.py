"""The rewrites of graphs: `GRAPH_REWRITES` is the table of them, `apply_graph_step` applies one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kir.errors import RewriteError, ScheduleError
from kir.ir import (
    Kernel,
    Module,
    Step,
)
from kir.rewrites import arguments, make_rewrite, named
from kir.rewrites.base import Effect, Move
from kir.rewrites.graph_base import (
    GraphRewrite,
    find_graph,
    refuse,
)
from kir.rewrites.graph_fuse import FuseKernels
from kir.rewrites.graph_split import SplitKernel


@dataclass(frozen=True)
class Within(GraphRewrite):
    """`within(kernel, rewrite, arguments...)`: a rewrite of one of the kernels that a graph calls.

    Before::

        kernel double[N](x: f32[N]) -> (d: f32[N]) { d[i: N] = x[i] * 2.0 }
        graph g[N](a: f32[N]) -> (y: f32[N]) { y = double(a) }

    After `within(double, loops)`::

        kernel double[N](x: f32[N]) -> (d: f32[N]) { for i: N { d[i] = x[i] * 2.0 } }
        graph g[N](a: f32[N]) -> (y: f32[N]) { y = double(a) }

    The kernel changes for all that call it.
    """

    name: ClassVar[str] = "within"
    effect: ClassVar[Effect] = "approximates"
    kernel: str
    step: Step

    def apply(self, module: Module, graph: str) -> Module:
        old = self._kernel(module, graph)
        new = make_rewrite(self.step).apply(old)
        return Module(tuple(new if x is old else x for x in module.items))

    def _kernel(self, module: Module, graph: str) -> Kernel:
        g = find_graph(module, graph)
        called = {c.kernel for c in g.calls}
        if self.kernel not in called:
            listed = ", ".join(f"`{n}`" for n in sorted(called))
            refuse(g, f"`{graph}` calls no kernel `{self.kernel}`", hint=f"it calls {listed}")
        return module.kernels()[self.kernel]

    def effect_on(self, module: Module, graph: str) -> Effect:
        return make_rewrite(self.step).effect_on(self._kernel(module, graph))

    def bound(self) -> str:
        return make_rewrite(self.step).bound()


GRAPH_REWRITES: dict[str, type[GraphRewrite]] = {
    r.name: r for r in (FuseKernels, SplitKernel, Within)
}


def make_graph_rewrite(step: Step) -> GraphRewrite:
    """The rewrite that a step names, its arguments checked; ScheduleError where they are wrong."""
    made = named(step, GRAPH_REWRITES)
    if made is not Within:
        return made(**arguments(step, made))
    names = step.args[:2]
    if len(names) < 2 or not all(isinstance(n, str) for n in names):
        raise ScheduleError(
            "`within` takes the name of a kernel, then a rewrite with its arguments",
            hint="its form is `within(kernel, split, i, 8)`",
            span=step.span,
        )
    kernel, rewrite = (str(n) for n in names)
    inner = Step(rewrite, step.args[2:], step.options, span=step.span)
    make_rewrite(inner)
    return Within(kernel, inner)


def apply_graph_step(module: Module, graph: str, step: Step) -> Module:
    """The module after one step; ScheduleError for a bad step, RewriteError where refused."""
    return make_graph_rewrite(step).apply(module, graph)


def legal_graph_moves(module: Module, graph: str) -> tuple[Move, ...]:
    """All legal moves on a graph, but for those within its kernels (`legal_moves` lists these)."""
    found = []
    for rewrite in GRAPH_REWRITES.values():
        for move in rewrite.candidates(module, graph):
            try:
                apply_graph_step(module, graph, move.step())
            except RewriteError:
                continue
            found.append(move)
    return tuple(found)


__all__ = [
    "GRAPH_REWRITES",
    "FuseKernels",
    "GraphRewrite",
    "SplitKernel",
    "Within",
    "apply_graph_step",
    "legal_graph_moves",
    "make_graph_rewrite",
]
