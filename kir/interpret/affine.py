"""Affine index forms, and which loops may run with all their iterations side by side.

`LoopPlan` decides by syntax alone, so it is cheap and errs on the side of running in order. A loop
may become an array axis when, statement by statement over all its iterations, every read sees what
it would have seen in order. That holds for each tensor the body writes if
  * it is private: declared inside the body, so that each iteration has its own; or
  * iterations touch disjoint parts of it: some index, affine in the loop's variable, steps further
    from one iteration to the next than everything else in that index can vary; or
  * the body does nothing to it but one single update or one single store, and never reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from kir.ir import (
    Axis,
    Buffer,
    Const,
    Define,
    Expr,
    If,
    Loop,
    Op,
    Read,
    Reduce,
    Stmt,
    Store,
    Var,
    children,
)


@dataclass(frozen=True)
class Affine:
    """`constant + sum(coefficient * variable)`, no coefficient 0."""

    constant: int
    terms: tuple[tuple[str, int], ...] = ()

    def coefficient(self, name: str) -> int:
        return dict(self.terms).get(name, 0)


def _combine(a: Affine, b: Affine, factor: int) -> Affine:
    terms = dict(a.terms)
    for name, c in b.terms:
        terms[name] = terms.get(name, 0) + factor * c
    kept = tuple(sorted((n, c) for n, c in terms.items() if c))
    return Affine(a.constant + factor * b.constant, kept)


def affine(expr: Expr) -> Affine | None:
    """`expr` as an affine form over index variables, or None."""
    if isinstance(expr, Const) and type(expr.value) is int:
        return Affine(expr.value)
    if isinstance(expr, Var):
        return Affine(0, ((expr.name, 1),))
    if not isinstance(expr, Op) or expr.name not in ("add", "sub", "mul", "neg"):
        return None
    parts = [affine(a) for a in expr.args]
    if any(p is None for p in parts):
        return None
    left, *rest = (p for p in parts if p is not None)
    if expr.name == "neg":
        return _combine(Affine(0), left, -1)
    (right,) = rest
    if expr.name == "mul":
        if left.terms and right.terms:
            return None
        scaled, factor = (right, left.constant) if not left.terms else (left, right.constant)
        return _combine(Affine(0), scaled, factor)
    return _combine(left, right, 1 if expr.name == "add" else -1)


@dataclass(frozen=True)
class Touch:
    """One access: its indices, the extents of the loops between it and the top, and its use."""

    tensor: str
    indices: tuple[Expr, ...]
    extents: Mapping[str, int | None]
    use: str | None
    """None for a read, `=` for a store or definition, else the update's op."""
    statement: int
    in_order: bool = False
    """Whether a loop that runs in order stands between the loop in question and the access."""


@dataclass
class LoopPlan:
    """Remembers, per loop node, whether its iterations may run side by side."""

    outputs: frozenset[str] = frozenset()
    known: dict[int, bool] = field(default_factory=dict)
    nodes: list[Loop] = field(default_factory=list)

    def side_by_side(self, loop: Loop) -> bool:
        if id(loop) not in self.known:
            self.nodes.append(loop)  # keeps the id alive
            self.known[id(loop)] = self._decide(loop)
        return self.known[id(loop)]

    def _decide(self, loop: Loop) -> bool:
        touches: list[Touch] = []
        private: set[str] = set()
        self._collect(loop.body, loop, {}, touches, private, False)
        for expr in loop.where:
            touches.extend(_reads(expr, {}, -1))
        groups: dict[str, list[Touch]] = {}
        for t in touches:
            if t.tensor not in private:
                groups.setdefault(t.tensor, []).append(t)
        return all(
            all(t.use is None for t in group)
            or _disjoint(loop.axis.name, group)
            or _single_write(group)
            for group in groups.values()
        )

    def _collect(
        self,
        body: tuple[Stmt, ...],
        loop: Loop,
        extents: Mapping[str, int | None],
        touches: list[Touch],
        private: set[str],
        in_order: bool,
    ) -> None:
        for s in body:
            if isinstance(s, Buffer):
                private.add(s.name)
                if s.init is not None:
                    touches.extend(_reads(s.init, extents, id(s)))
            elif isinstance(s, Define):
                inner = {**extents, **{a.name: _extent(a) for a in s.axes}}
                names = [d.name for d in s.dims if isinstance(d, Var)]
                if s.name not in self.outputs and set(names) <= extents.keys():
                    private.add(s.name)
                where = tuple(Var(d.name) for d in s.dims)
                touches.append(Touch(s.name, where, inner, "=", id(s), in_order))
                touches.extend(_reads(s.value, inner, id(s)))
            elif isinstance(s, Store):
                touches.append(Touch(s.target, s.indices, extents, s.op or "=", id(s), in_order))
                for e in (*s.indices, s.value):
                    touches.extend(_reads(e, extents, id(s)))
            elif isinstance(s, If):
                touches.extend(_reads(s.condition, extents, id(s)))
                self._collect(s.body, loop, extents, touches, private, in_order)
            elif isinstance(s, Loop):
                inner = {**extents, s.axis.name: _extent(s.axis)}
                for e in (s.axis.extent, *s.where):
                    touches.extend(_reads(e, inner, id(s)))
                below = in_order or not self.side_by_side(s)
                self._collect(s.body, loop, inner, touches, private, below)


def _extent(axis: Axis) -> int | None:
    return int(axis.extent.value) if isinstance(axis.extent, Const) else None


def _reads(expr: Expr, extents: Mapping[str, int | None], statement: int) -> Iterator[Touch]:
    if isinstance(expr, Reduce):
        extents = {**extents, **{a.name: _extent(a) for a in expr.axes}}
    elif isinstance(expr, Read):
        yield Touch(expr.tensor, expr.indices, extents, None, statement)
    for child in children(expr):
        below = child.extent if isinstance(child, Axis) else child
        if isinstance(below, Expr):
            yield from _reads(below, extents, statement)


def _single_write(group: list[Touch]) -> bool:
    """One update or store and nothing else, in an order that side by side can keep."""
    if len(group) != 1:
        return False
    (t,) = group
    return t.use in ("max", "min", "and", "or") or not t.in_order


Key = tuple[object, tuple[tuple[str, int], ...]]
"""Which index it is, and its terms in the loop's variable and in those outside the loop."""


def _disjoint(name: str, group: list[Touch]) -> bool:
    """Whether one index keeps the iterations of loop `name` apart in all accesses alike."""
    common: dict[Key, list[tuple[int, int]]] | None = None
    for t in group:
        found: dict[Key, list[tuple[int, int]]] = {}
        for key, form in _recoverable(t.indices):
            width = 0
            for var, c in form.terms:
                if var != name and var in t.extents:
                    extent = t.extents[var]
                    if extent is None:
                        break
                    width += abs(c) * max(extent - 1, 0)
            else:
                if form.coefficient(name):
                    kept = tuple(x for x in form.terms if x[0] not in t.extents)
                    low = form.constant + sum(
                        min(0, c * ((t.extents[v] or 1) - 1))
                        for v, c in form.terms
                        if v != name and v in t.extents
                    )
                    found[(key, kept)] = [(low, low + width)]
        if common is None:
            common = found
        else:
            common = {k: common[k] + found[k] for k in common.keys() & found.keys()}
    for (_, kept), spans in (common or {}).items():
        step = abs(dict(kept)[name])
        if max(high for _, high in spans) - min(low for low, _ in spans) < step:
            return True
    return False


def _recoverable(indices: tuple[Expr, ...]) -> Iterator[tuple[object, Affine]]:
    """Affine forms that the index tuple fixes: its own, and `e` of a pair `e // c`, `e % c`."""
    known: list[tuple[object, Expr]] = list(enumerate(indices))
    done = False
    while not done:
        done = True
        seen = {key for key, _ in known}
        for key_a, a in list(known):
            for key_b, b in list(known):
                if not (isinstance(a, Op) and a.name == "floordiv"):
                    continue
                if not (isinstance(b, Op) and b.name == "mod" and a.args == b.args):
                    continue
                pair = (key_a, key_b)
                if pair not in seen and isinstance(a.args[1], Const):
                    known.append((pair, a.args[0]))
                    seen.add(pair)
                    done = False
    for key, e in known:
        form = affine(e)
        if form is not None:
            yield key, form


def recurrences(loop: Loop) -> Iterator[tuple[Define, dict[str, Expr]]]:
    """Definitions inside `loop` that have a slice for each of its iterations and for none of a
    loop further out, with the extents of the loops their dims name."""

    def go(
        body: Sequence[Stmt], extents: dict[str, Expr]
    ) -> Iterator[tuple[Define, dict[str, Expr]]]:
        for s in body:
            if isinstance(s, Define):
                names = {d.name for d in s.dims if isinstance(d, Var)}
                if loop.axis.name in names and names <= extents.keys():
                    yield s, extents
            elif isinstance(s, Loop):
                yield from go(s.body, {**extents, s.axis.name: s.axis.extent})
            elif isinstance(s, If):
                yield from go(s.body, extents)

    yield from go(loop.body, {loop.axis.name: loop.axis.extent})
