"""`fuse_kernels`: two calls of a graph become one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from kir.ir import (
    TRUE,
    Buffer,
    Call,
    Const,
    Define,
    Expr,
    Graph,
    Kernel,
    Module,
    Read,
    Stmt,
    Store,
    Var,
    const,
    substitute,
    walk,
)
from kir.ops import op
from kir.rewrites.base import Effect, Move, fresh, names_in, statements
from kir.rewrites.graph_base import (
    GraphRewrite,
    determined,
    find_call,
    find_graph,
    new_name,
    put,
    refuse,
    renamed,
)
from kir.rewrites.lower import Loops
from kir.simplify import FALSE, linear, simplify
from kir.specialise import free_dims


@dataclass(frozen=True)
class FuseKernels(GraphRewrite):
    """`fuse_kernels(t, y, kernel = name)`: the call that gives `t` and the one that gives `y`, and
    takes what the first one gives, become a call of one kernel.

    Before::

        kernel double[N](x: f32[N]) -> (d: f32[N]) { d[i: N] = x[i] * 2.0 }
        kernel plus[N](x: f32[N], w: f32[N]) -> (y: f32[N]) { y[i: N] = x[i] + w[i] }
        graph g[N](a: f32[N], b: f32[N]) -> (y: f32[N]) {
          t = double(a)
          y = plus(t, b)
        }

    After `fuse_kernels(t, y)`::

        kernel double_plus[N](x: f32[N], w: f32[N]) -> (y: f32[N]) {
          d[i: N] = x[i] * 2.0
          y[i_2: N] = d[i_2] + w[i_2]
        }
        graph g[N](a: f32[N], b: f32[N]) -> (y: f32[N]) { y = double_plus(a, b) }

    What the first kernel gives stays an output where the graph gives it, or another call takes it;
    else it becomes a definition, or a buffer where it is stored to. Dims of the second kernel
    follow from the first one's where the shapes say so; equalities that the graph implies become
    constraints. Parameters take the values of the calls. Refused where a call between the two
    needs the first one's results to give the second one's arguments.
    """

    name: ClassVar[str] = "fuse_kernels"
    effect: ClassVar[Effect] = "exact"
    first: str
    second: str
    kernel: str | None = None

    def apply(self, module: Module, graph: str) -> Module:
        g = find_graph(module, graph)
        (i, one), (j, two) = find_call(g, self.first), find_call(g, self.second)
        if i >= j or not set(one.results) & set(two.args):
            refuse(g, f"`{self.second}` is not made from `{self.first}`", node=two)
        at = self._place(g, i, j)
        name = new_name(module, g, self.kernel, f"{one.kernel}_{two.kernel}", two)
        kernels = module.kernels()
        wanted = {p.name for p in g.outputs}
        wanted |= {a for k, c in enumerate(g.calls) if k not in (i, j) for a in c.args}
        made, call = _Fusion(g, one, two, kernels[one.kernel], kernels[two.kernel], wanted).build(
            name
        )
        calls = list(g.calls)
        calls[at] = call
        del calls[j if at == i else i]
        return put(module, replace(g, calls=tuple(calls)), (made,))

    def _place(self, graph: Graph, i: int, j: int) -> int:
        """Where the fused call stands: where the second one is, unless a call between needs the
        first one's results; then where the first one is."""
        one, two, between = graph.calls[i], graph.calls[j], graph.calls[i + 1 : j]
        takers = [c for c in between if set(c.args) & set(one.results)]
        givers = [c for c in between if set(c.results) & set(two.args)]
        if takers and givers:
            refuse(
                graph,
                f"`{takers[0].results[0]}` stands between the two calls",
                node=takers[0],
                hint="fuse it with one of them first",
            )
        return i if takers else j

    @classmethod
    def candidates(cls, module: Module, graph: str) -> Iterator[Move]:
        calls = find_graph(module, graph).calls
        for k, two in enumerate(calls):
            for one in calls[:k]:
                if set(one.results) & set(two.args):
                    yield Move(cls.name, (("first", one.results[0]), ("second", two.results[0])))


@dataclass
class _Fusion:
    """Two calls on their way into one. `wanted`: results that others than the second call take."""

    graph: Graph
    one: Call
    two: Call
    a: Kernel
    b: Kernel
    wanted: set[str]

    def build(self, name: str) -> tuple[Kernel, Call]:
        a, given_a = bound(self.graph, self.a, self.one)
        b, given_b = bound(self.graph, self.b, self.two)
        kept = [(p, r) for p, r in zip(a.outputs, self.one.results, strict=True)
                if r in self.wanted]  # fmt: skip
        a = self._hidden(a, {p.name for p, _ in kept})
        b, names, own = self._apart(a, b)
        given_b = tuple((names[n], e) for n, e in given_b)
        b, more = self._unified(a, b, {n for n, _ in given_b})
        both = zip(b.inputs, self.two.args, strict=True)
        new = {p.name: (p, t) for p, t in both if p.name in own}
        outputs = [*kept, *zip(b.outputs, self.two.results, strict=True)]
        dims = a.dims + b.dims
        kernel = Kernel(
            name,
            dims,
            a.inputs + tuple(p for p, _ in new.values()),
            tuple(p for p, _ in outputs),
            tuple(dict.fromkeys((*a.constraints, *b.constraints, *more))),
            a.body + b.body,
        )
        given = tuple((n, e) for n, e in (*given_a, *given_b) if n in {d.name for d in dims})
        determined(self.graph, self.two, kernel, {n for n, _ in given})
        args = self.one.args + tuple(t for _, t in new.values())
        return simplify(kernel), Call(tuple(r for _, r in outputs), name, given, args)

    def _hidden(self, a: Kernel, kept: set[str]) -> Kernel:
        """The first kernel, fit to have its other outputs as temporaries: a definition may be one
        as it is, what is stored to becomes a buffer."""
        gone = [p for p in a.outputs if p.name not in kept]
        a = replace(a, body=tuple(_defined(s, a, {p.name for p in gone}) for s in a.body))
        stored = {s.target for s in statements(a.body) if isinstance(s, Store)}
        nested = {
            d.name
            for top in a.body
            for d in walk(top)
            if isinstance(d, Define) and d is not top and len(d.axes) == len(d.dims)
        }
        made = [p for p in gone if p.name in stored | nested]
        if not made:
            return a
        a = Loops().apply(a)
        buffers = tuple(Buffer(p.name, p.type, p.shape, "global") for p in made)
        return replace(a, body=buffers + a.body)

    def _apart(self, a: Kernel, b: Kernel) -> tuple[Kernel, dict[str, str], set[str]]:
        """The second kernel with names of its own, but for the tensors that both have; what its
        names became; and the inputs that the first one does not have."""
        used = names_in(a)
        place = dict(zip(self.one.results, (p.name for p in a.outputs), strict=True))
        for p, t in zip(a.inputs, self.one.args, strict=True):
            place.setdefault(t, p.name)
        names: dict[str, str] = {}
        new: set[str] = set()
        for p, t in zip(b.inputs, self.two.args, strict=True):
            if t not in place:
                place[t] = fresh(p.name, used)
                new.add(place[t])
            names[p.name] = place[t]
        for n in sorted(names_in(b) - set(names)):
            names[n] = fresh(n, used)
        return renamed(b, names), names, new

    def _unified(self, a: Kernel, b: Kernel, given: set[str]) -> tuple[Kernel, tuple[Expr, ...]]:
        """The second kernel with its dims in terms of the first one's where a shared tensor says
        so, and the constraints that this implies."""
        known = {p.name: p.shape for p in a.params}
        mine = {d.name for d in b.dims if d.name not in given}
        pairs: list[tuple[Expr, Expr]] = []
        for p in b.inputs:
            pairs += zip(p.shape, known.setdefault(p.name, p.shape), strict=True)
        pairs.sort(key=lambda pair: not isinstance(pair[0], Var))
        solved: dict[str, Expr] = {}
        constraints: list[Expr] = []
        for left, right in pairs:
            e = simplify(op("sub", substitute(left, solved), substitute(right, solved)))
            found = _solution(e, mine - set(solved))
            if found is not None:
                name, value = found
                solved = {n: simplify(substitute(x, {name: value})) for n, x in solved.items()}
                solved[name] = value
                if not isinstance(value, Var):
                    constraints.append(op("ge", value, const(0)))
            elif e != const(0):
                constraints.append(op("eq", substitute(left, solved), substitute(right, solved)))
        b = replace(b, dims=tuple(d for d in b.dims if d.name not in solved))
        return substitute(b, solved), tuple(substitute(c, solved) for c in constraints)


def _defined(s: Stmt, kernel: Kernel, gone: set[str]) -> Stmt:
    """The one store to an output without dims, as the definition that it is of a temporary."""
    if not isinstance(s, Store) or s.target not in gone or s.indices or s.op is not None:
        return s
    others = [x for x in statements(kernel.body) if isinstance(x, Store) and x.target == s.target]
    reads = any(isinstance(n, Read) and n.tensor == s.target for n in walk(s.value))
    return s if len(others) > 1 or reads else Define(s.target, (), s.value, span=s.span)


def _solution(e: Expr, unknown: set[str]) -> tuple[str, Expr] | None:
    """A dim of `unknown` and what it is where `e` is 0, if that follows."""
    form = linear(e)
    for atom, c in form.terms.items():
        if isinstance(atom, Var) and atom.name in unknown and abs(c) == 1:
            rest = linear(op("mul", op("sub", e, op("mul", const(c), atom)), const(-c)))
            value = simplify(rest.build())
            if atom.name not in free_dims(value):
                return atom.name, value
    return None


def bound(graph: Graph, kernel: Kernel, call: Call) -> tuple[Kernel, tuple[tuple[str, Expr], ...]]:
    """The kernel with the constant parameters of a call in their places, and what is left of the
    call's dims. Refused where a constraint does not hold."""
    given = dict(call.dims)
    values: dict[str, Expr] = {}
    for d in kernel.dims:
        value = given.get(d.name, None if d.default is None else const(d.default))
        if d.default is not None and isinstance(value, Const):
            values[d.name] = value
    left = replace(kernel, dims=tuple(d for d in kernel.dims if d.name not in values))
    done = simplify(substitute(left, values)) if values else kernel
    if FALSE in done.constraints:
        refuse(graph, f"a constraint of `{kernel.name}` does not hold", node=call)
    done = replace(done, constraints=tuple(c for c in done.constraints if c != TRUE))
    return done, tuple((n, e) for n, e in call.dims if n not in values)
