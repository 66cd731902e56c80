"""`split_kernel`: a call of a graph becomes two."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from kir.graphs import call_dims
from kir.ir import (
    Axis,
    Buffer,
    Call,
    Define,
    Expr,
    Graph,
    If,
    Kernel,
    Loop,
    Module,
    Node,
    Param,
    Read,
    Stmt,
    Store,
    Var,
    transform,
    walk,
)
from kir.rewrites.base import Block, Effect, Move, fresh, statements
from kir.rewrites.graph_base import (
    GraphRewrite,
    determined,
    find_call,
    find_graph,
    new_name,
    put,
    refuse,
)
from kir.specialise import free_dims


@dataclass(frozen=True)
class SplitKernel(GraphRewrite):
    """`split_kernel(y, after, first = name, second = name)`: the call that gives `y` becomes two,
    of a kernel up to the definition `after` and of one with the rest.

    Before::

        kernel norm[M, N](x: f32[M, N]) -> (y: f32[M, N]) {
          s[i: M] = sum(j: N) x[i, j]
          y[i: M, j: N] = x[i, j] / s[i]
        }
        graph g[A, B](a: f32[A, B]) -> (y: f32[A, B]) { y = norm(a) }

    After `split_kernel(y, s)`::

        kernel norm_1[M, N](x: f32[M, N]) -> (s: f32[M]) { s[i: M] = sum(j: N) x[i, j] }
        kernel norm_2[M, N](x: f32[M, N], s: f32[M]) -> (y: f32[M, N]) {
          y[i: M, j: N] = x[i, j] / s[i]
        }
        graph g[A, B](a: f32[A, B]) -> (y: f32[A, B]) {
          s = norm_1(a)
          y = norm_2(a, s)
        }

    `after` is a definition, or an output, at the top of the kernel or in a loop there. Definitions
    that the rest reads become results of the first call; buffers cannot. Refused where one half
    gives nothing, or both store to one output.
    """

    name: ClassVar[str] = "split_kernel"
    effect: ClassVar[Effect] = "exact"
    call: str
    after: str
    first: str | None = None
    second: str | None = None

    def apply(self, module: Module, graph: str) -> Module:
        g = find_graph(module, graph)
        at, call = find_call(g, self.call)
        kernel = module.kernels()[call.kernel]
        cut = self._cut(g, call, kernel)
        halves = kernel.body[:cut], kernel.body[cut:]
        crossing = self._crossing(g, call, kernel, *halves)
        used = {t for c in g.calls for t in c.results} | {p.name for p in g.params}
        results = dict(zip((p.name for p in kernel.outputs), call.results, strict=True))
        args = dict(zip((p.name for p in kernel.inputs), call.args, strict=True))
        written = _written(halves[0])
        early = [p for p in kernel.outputs if p.name in written]
        late = [p for p in kernel.outputs if p.name not in written]
        if not late:
            refuse(g, f"all that `{kernel.name}` gives is there after `{self.after}`", node=call)
        if not early and not crossing:
            refuse(g, f"nothing up to `{self.after}` is used after it", node=call)
        passed = [p for p in early if p.name in _read(halves[1])] + crossing
        tensors = {**args, **results, **{p.name: fresh(p.name, used) for p in crossing}}
        dims = call_dims(module, g)[at]
        made: list[Kernel] = []
        calls: list[Call] = []
        sides = (
            (self.first, halves[0], list(kernel.inputs), early + crossing),
            (self.second, halves[1], list(kernel.inputs) + passed, late),
        )
        for n, (wanted, body, inputs, outputs) in enumerate(sides, 1):
            name = new_name(put(module, g, made), g, wanted, f"{kernel.name}_{n}", call)
            half = _half(kernel, name, body, inputs, outputs)
            bindings = self._bindings(g, call, half, dims)
            made.append(half)
            calls.append(
                Call(
                    tuple(tensors[p.name] for p in outputs),
                    name,
                    bindings,
                    tuple(tensors[p.name] for p in half.inputs),
                )
            )
        new = replace(g, calls=(*g.calls[:at], *calls, *g.calls[at + 1 :]))
        return put(module, new, made)

    def _cut(self, graph: Graph, call: Call, kernel: Kernel) -> int:
        for k, stmt in enumerate(kernel.body):
            if self.after in _written((stmt,)):
                return k + 1
        known = list(dict.fromkeys(n for s in kernel.body for n in sorted(_written((s,)))))
        return refuse(
            graph,
            f"`{kernel.name}` does not define `{self.after}`",
            node=call,
            hint="it defines " + ", ".join(f"`{n}`" for n in known),
        )

    def _crossing(
        self, graph: Graph, call: Call, kernel: Kernel, one: Block, two: Block
    ) -> list[Param]:
        """The temporaries of the first half that the second one reads, as its results."""
        outputs = {p.name for p in kernel.outputs}
        needed, made = _read(two) | _written(two), _written(one)
        both = sorted(made & _written(two))
        if both:
            refuse(graph, f"`{both[0]}` is stored to before and after `{self.after}`", node=call)
        found: dict[str, Param] = {}
        for top in one:
            for s, loops in _with_loops((top,)):
                if isinstance(s, Buffer) and s.name in needed and not loops:
                    refuse(
                        graph,
                        f"the buffer `{s.name}` is used before and after `{self.after}`",
                        node=call,
                    )
                if isinstance(s, Define) and s.name in needed - outputs:
                    extents = {x.axis.name: x.axis.extent for x in loops}
                    shape = tuple(
                        d.extent if isinstance(d, Axis) else extents[d.name] for d in s.dims
                    )
                    if loops and len(s.axes) == len(s.dims):
                        continue  # of one iteration; what is read later has another meaning
                    found[s.name] = Param(s.name, s.value.dtype, shape)
        return list(found.values())

    def _bindings(
        self, graph: Graph, call: Call, half: Kernel, dims: dict[str, Expr]
    ) -> tuple[tuple[str, Expr], ...]:
        """What the call of one half says of its dims: what it said before, and what no input of
        this half tells any more."""
        said = dict(call.dims)
        told = {e.name for p in half.inputs for e in p.shape if isinstance(e, Var)}
        for d in half.dims:
            if d.default is None and d.name not in told and d.name in dims:
                said.setdefault(d.name, dims[d.name])
        given = tuple((d.name, said[d.name]) for d in half.dims if d.name in said)
        determined(graph, call, half, {n for n, _ in given})
        return given

    @classmethod
    def candidates(cls, module: Module, graph: str) -> Iterator[Move]:
        kernels = module.kernels()
        for call in find_graph(module, graph).calls:
            for top in kernels[call.kernel].body[:-1]:
                for name in sorted(_written((top,))):
                    yield Move(cls.name, (("call", call.results[0]), ("after", name)))


def _half(
    kernel: Kernel, name: str, body: Block, inputs: Sequence[Param], outputs: Sequence[Param]
) -> Kernel:
    """The kernel of a part of the body, with the inputs and dims that it needs."""
    reads = _read(body)
    own = tuple(p for p in inputs if p.name in reads)
    dims = {n.name for s in body for n in walk(s) if isinstance(n, Var)}
    dims |= {n for p in (*own, *outputs) for e in p.shape for n in free_dims(e)}
    constraints = kernel.constraints
    grown = True
    while grown:  # a constraint counts with all its dims
        grown = False
        for c in constraints:
            if free_dims(c) & dims and not free_dims(c) <= dims:
                dims |= free_dims(c)
                grown = True
    given = {p.name for p in outputs}
    return Kernel(
        name,
        tuple(d for d in kernel.dims if d.name in dims),
        own,
        tuple(outputs),
        tuple(c for c in constraints if free_dims(c) <= dims),
        tuple(transform(s, lambda n: _stored(n, given)) for s in body),
    )


def _stored(n: Node, outputs: set[str]) -> Node | None:
    """A definition of an output that has no index of its own is written as a store."""
    if not isinstance(n, Define) or n.name not in outputs or n.axes:
        return None
    return Store(n.name, tuple(Var(d.name) for d in n.dims), n.value, span=n.span)


def _written(body: Block) -> set[str]:
    """What definitions and stores in a block give values to; private buffers are left out."""
    private = {s.name for s in statements(body) if isinstance(s, Buffer)}
    private -= {s.name for s in body if isinstance(s, Buffer)}
    found = {s.target for s in statements(body) if isinstance(s, Store)}
    found |= {s.name for s in statements(body) if isinstance(s, Define)}
    return found - private


def _read(body: Block) -> set[str]:
    return {n.tensor for s in body for n in walk(s) if isinstance(n, Read)}


def _with_loops(
    body: Block, around: tuple[Loop, ...] = ()
) -> Iterator[tuple[Stmt, tuple[Loop, ...]]]:
    for s in body:
        yield s, around
        if isinstance(s, Loop | If):
            yield from _with_loops(s.body, (*around, s) if isinstance(s, Loop) else around)
