"""Constant folding and index algebra: `simplify(node)` on an expression, statement or kernel.

Every rule is exact. Integer sums are normalised in the ring of their dtype (wrapping is part of
it). The rules for division, comparison, `max` and `min` reason over the mathematical integers;
they apply to index arithmetic (i64 expressions of indices, dims and constants), which KIR assumes
not to overflow, and never to values read from tensors unless their range is known. Every `Var` is
an index or a dim, so at least 0. Floats are folded only where no rounding happens.

A node that no rule improves comes back as the same object, so a simplified IR simplifies fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeVar

from kir.algebra import (
    FREE,
    SAFE,
    Bounds,
    Interval,
    Linear,
    ceil_div,
    is_product,
    linear,
    positive,
    size,
    split_divmod,
)
from kir.dtypes import bool_, i64
from kir.fold import cast, fold
from kir.ir import (
    TRUE,
    Axis,
    Cast,
    Const,
    Define,
    Expr,
    If,
    Kernel,
    Loop,
    Node,
    Op,
    Param,
    Read,
    Reduce,
    Stmt,
    Var,
    const,
    rebuild,
    walk,
)
from kir.memo import vars_of
from kir.ops import op

__all__ = ["FALSE", "Interval", "Linear", "interval", "linear", "simplify"]

N = TypeVar("N", bound=Node)
FALSE = Const(False, bool_)


def simplify(node: N, ranges: Mapping[str, tuple[int | None, int | None]] | None = None) -> N:
    """`node` with constants folded, index algebra done, conditions that always hold dropped.

    `ranges` gives inclusive bounds of free variables (indices and dims); None is no bound.
    """
    return _Simplifier(dict(ranges or {})).node(node)


def interval(expr: Expr, ranges: Mapping[str, tuple[int | None, int | None]]) -> Interval:
    """Inclusive bounds of an integer expression, given bounds of its variables."""
    return Bounds(dict(ranges)).interval(expr)


# --- the walk


class _Simplifier(Bounds):
    """One walk. `facts` counts the conditions that hold in scope."""

    def __init__(self, ranges: dict[str, Interval]) -> None:
        super().__init__(ranges)
        self.facts: dict[Expr, int] = {}

    # statements and kernels

    def node(self, node: N) -> N:
        result: Node
        if isinstance(node, Expr):
            result = self.expr(node)
        elif isinstance(node, Stmt):
            done = self.stmt(node)
            result = done[0] if len(done) == 1 else If(TRUE, done)
        elif isinstance(node, Kernel):
            result = self.kernel(node)
        else:
            result = rebuild(node, self.node)
        return result  # type: ignore[return-value]

    def kernel(self, k: Kernel) -> Kernel:
        for d in k.dims:  # a parameter may be negative
            if d.default is not None:
                self.ranges.setdefault(d.name, FREE)
        constraints = self.conditions(k.constraints)
        held = self.assume(constraints)
        body = self.block(k.body)
        self.release(held)
        inputs, outputs = self.params(k.inputs), self.params(k.outputs)
        same = constraints is k.constraints and body is k.body
        if same and inputs is k.inputs and outputs is k.outputs:
            return k
        return Kernel(k.name, k.dims, inputs, outputs, constraints, body, span=k.span)

    def params(self, params: tuple[Param, ...]) -> tuple[Param, ...]:
        return _same(params, tuple(rebuild(p, self.node) for p in params))

    def block(self, body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
        return _same(body, tuple(s for stmt in body for s in self.stmt(stmt)))

    def stmt(self, s: Stmt) -> tuple[Stmt, ...]:
        """The statement simplified, from memory where it was in the same context before."""
        key = self.context(s)
        known: tuple[object, tuple[Stmt, ...] | None] | None = s.__dict__.get("_simplified")
        if known is not None and known[0] == key:
            return (s,) if known[1] is None else known[1]
        done = self.fresh_stmt(s)
        same = len(done) == 1 and done[0] is s
        s.__dict__["_simplified"] = (key, None if same else done)  # no node refers to itself
        return done

    def context(self, s: Stmt) -> tuple[object, ...]:
        """All that the result may depend on beside the statement itself: what is known of the
        variables in it, and of those in their extents."""
        names = set(vars_of(s))
        facts = tuple(c for c in self.facts if vars_of(c) <= names)
        todo = list(names)
        while todo:
            extent = self.extents.get(todo.pop())
            if extent is not None:
                more = vars_of(extent) - names
                names |= more
                todo += more
        known = (n for n in sorted(names) if n in self.ranges or n in self.extents)
        return (facts, *((n, self.ranges.get(n), self.extents.get(n)) for n in known))

    def fresh_stmt(self, s: Stmt) -> tuple[Stmt, ...]:
        if isinstance(s, Loop):
            return (self.loop(s),)
        if isinstance(s, If):
            return self.guard(s)
        if isinstance(s, Define):
            extents = [rebuild(d, self.node) for d in s.dims]
            saved = self.enter(*(d for d in extents if isinstance(d, Axis)))
            value = self.expr(s.value)
            self.leave(saved)
            dims = _same(s.dims, tuple(extents))
            if dims is s.dims and value is s.value:
                return (s,)
            return (Define(s.name, dims, value, span=s.span),)
        return (rebuild(s, self.node),)

    def loop(self, s: Loop) -> Loop:
        axis = rebuild(s.axis, self.node)
        saved = self.enter(axis)
        where = self.conditions(s.where)
        held = self.assume(where)
        body = self.block(s.body)
        self.release(held)
        self.leave(saved)
        if axis is s.axis and where is s.where and body is s.body:
            return s
        return Loop(s.kind, axis, where, body, s.hints, span=s.span)

    def guard(self, s: If) -> tuple[Stmt, ...]:
        conditions = self.conditions((s.condition,))
        if conditions == (FALSE,):
            return ()
        held = self.assume(conditions)
        body = self.block(s.body)
        self.release(held)
        if not conditions:
            return body
        if conditions[0] is s.condition and body is s.body:
            return (s,)
        return (If(conditions[0], body, span=s.span),)

    def conditions(self, conditions: tuple[Expr, ...]) -> tuple[Expr, ...]:
        """The conditions that do not always hold; `(false,)` where one never does."""
        done: list[Expr] = []
        for c in conditions:
            new = self.expr(c)
            if new == FALSE:
                return _same(conditions, (new,))
            if new != TRUE and new not in self.facts and new not in done:
                done.append(new)
        return _same(conditions, tuple(done))

    def assume(self, conditions: tuple[Expr, ...]) -> list[Expr]:
        held = [c for c in conditions if not any(isinstance(n, Read) for n in walk(c))]
        for c in held:
            self.facts[c] = self.facts.get(c, 0) + 1
        return held

    def release(self, held: list[Expr]) -> None:
        for c in held:
            self.facts[c] -= 1
            if not self.facts[c]:
                del self.facts[c]

    def enter(self, *axes: Axis) -> list[tuple[str, Interval | None, Expr | None]]:
        """Bring axes into scope. An extent that is a lone dim is at least 1 inside."""
        saved: list[tuple[str, Interval | None, Expr | None]] = []
        for a in axes:
            saved.append((a.name, self.ranges.get(a.name), self.extents.get(a.name)))
            high = self.interval(a.extent)[1]
            self.ranges[a.name] = (0, None if high is None else max(high - 1, 0))
            self.extents[a.name] = a.extent
            if isinstance(a.extent, Var) and a.extent.name != a.name:
                name = a.extent.name
                saved.append((name, self.ranges.get(name), self.extents.get(name)))
                low, high = self.ranges.get(name, (0, None))
                self.ranges[name] = (max(low or 0, 1), high)
        return saved

    def leave(self, saved: list[tuple[str, Interval | None, Expr | None]]) -> None:
        for name, interval, extent in reversed(saved):
            if interval is None:
                self.ranges.pop(name, None)
            else:
                self.ranges[name] = interval
            if extent is None:
                self.extents.pop(name, None)
            else:
                self.extents[name] = extent

    # expressions

    def expr(self, e: Expr) -> Expr:
        if isinstance(e, Var | Const):
            if isinstance(e, Var):
                low, high = self.ranges.get(e.name, FREE)
                if low is not None and low == high:
                    return const(low)
            return e
        if isinstance(e, Reduce):
            return self.reduce(e)
        if isinstance(e, Op) and e.dtype == i64 and e.name in ("add", "sub", "neg", "mul"):
            return self.sum(e)
        e = rebuild(e, self.node)
        if isinstance(e, Op):
            return self.op(e)
        if isinstance(e, Cast):
            return cast(e)
        return e

    def reduce(self, e: Reduce) -> Expr:
        axes = _same(e.axes, tuple(rebuild(a, self.node) for a in e.axes))
        saved = self.enter(*axes)
        where = self.conditions(e.where)
        held = self.assume(where)
        body = self.expr(e.body)
        self.release(held)
        self.leave(saved)
        if axes is e.axes and where is e.where and body is e.body:
            return e
        return Reduce(e.name, axes, where, body, span=e.span)

    def sum(self, e: Op) -> Expr:
        """Normalise a whole tree of + - * over its simplified leaves; keep it unless smaller."""
        kept = self.leaves(e)
        best = split_divmod(linear(kept)).build()
        return best if size(best) < size(kept) else kept

    def leaves(self, e: Expr) -> Expr:
        if isinstance(e, Op) and e.dtype == i64 and e.name in ("add", "sub", "neg", "mul"):
            return rebuild(e, self.leaves)  # type: ignore[arg-type]
        return self.expr(e)

    def op(self, e: Op) -> Expr:
        if all(isinstance(a, Const) for a in e.args):
            folded = fold(e)
            if folded is not None:
                return folded
        rule = _RULES.get(e.name)
        return e if rule is None else rule(self, e) or e

    def divide(self, e: Op) -> tuple[Linear, Linear] | None:
        """`e`'s dividend as divisor * first + second, or None; the divisor is positive then."""
        if e.dtype != i64:
            return None
        form = linear(e.args[0])
        divisor = e.args[1]
        if self.wild(form):
            return None
        first, second = Linear(), Linear()
        if isinstance(divisor, Const):
            d = int(divisor.value)
            if d <= 0:
                return None
            for atom, c in form.terms.items():
                (first if c % d == 0 else second).terms[atom] = c // d if c % d == 0 else c
            first.constant, second.constant = divmod(form.constant, d)
            return first, second
        low = self.interval(divisor)[0]
        if low is None or low < 1:
            return None
        for atom, c in form.terms.items():
            if atom == divisor:
                first.constant += c
            elif is_product(atom) and divisor in atom.args:  # type: ignore[attr-defined]
                a, b = atom.args  # type: ignore[attr-defined]
                first.add(linear(b if a == divisor else a), c)
            else:
                second.terms[atom] = c
        second.constant = form.constant
        return first.cleaned(), second

    def remainder_fits(self, rest: Linear, divisor: Expr) -> bool:
        """Whether 0 <= rest < divisor."""
        low = self.bound(rest)[0]
        if low is None or low < 0:
            return False
        gap = Linear(dict(rest.terms), rest.constant)
        gap.add(linear(divisor), -1)
        high = self.greatest(gap.cleaned())
        return high is not None and high < 0


def _same(old: tuple[N, ...], new: tuple[N, ...]) -> tuple[N, ...]:
    same = len(old) == len(new) and all(a is b for a, b in zip(old, new, strict=True))
    return old if same else new


# --- rules by op: each gives the better expression, or None --------------------------------------

Rule = Callable[[_Simplifier, Op], Expr | None]


def _floordiv(s: _Simplifier, e: Op) -> Expr | None:
    x, d = e.args
    if d == Const(1, e.dtype):
        return x
    if d == Const(0, e.dtype) or x == Const(0, e.dtype):
        return Const(0, e.dtype)
    parts = s.divide(e)
    if parts is None:
        return None
    first, rest = parts
    if s.remainder_fits(rest, d):
        return first.build()
    if isinstance(d, Const):
        low, high = s.bound(rest)
        if low is not None and high is not None and low // int(d.value) == high // int(d.value):
            return Linear(first.terms, first.constant + low // int(d.value)).build()
        if isinstance(x, Op) and x.name == "floordiv" and positive(x.args[1]):
            assert isinstance(x.args[1], Const)
            product = int(x.args[1].value) * int(d.value)
            if product < SAFE:
                return s.op(op("floordiv", x.args[0], const(product)))
    if first.terms or first.constant:
        better = Linear(dict(first.terms), first.constant)
        better.add(linear(s.op(op("floordiv", rest.build(), d))))
        built = better.build()
        return built if size(built) < size(e) else None
    return None


def _mod(s: _Simplifier, e: Op) -> Expr | None:
    x, d = e.args
    if d in (Const(1, e.dtype), Const(0, e.dtype)) or x == Const(0, e.dtype):
        return Const(0, e.dtype)
    if isinstance(x, Op) and x.name == "mod" and positive(d) and positive(x.args[1]):
        assert isinstance(d, Const) and isinstance(x.args[1], Const)
        if int(x.args[1].value) % int(d.value) == 0:
            return s.op(op("mod", x.args[0], d))
    parts = s.divide(e)
    if parts is None:
        return None
    rest = parts[1]
    if s.remainder_fits(rest, d):
        return rest.build()
    if isinstance(d, Const):
        low, high = s.bound(rest)
        if low is not None and high is not None and low // int(d.value) == high // int(d.value):
            return Linear(rest.terms, rest.constant - low // int(d.value) * int(d.value)).build()
    built = op("mod", rest.build(), d)
    return s.op(built) if size(built) < size(e) else None


def _cdiv(s: _Simplifier, e: Op) -> Expr | None:
    x, d = e.args
    if d == Const(1, e.dtype):
        return x
    if d == Const(0, e.dtype) or x == Const(0, e.dtype):
        return Const(0, e.dtype)
    parts = s.divide(e)
    if parts is None:
        return None
    first, rest = parts
    if not rest.terms and not rest.constant:
        return first.build()
    if isinstance(d, Const):
        low, high = s.bound(rest)
        if (
            low is not None
            and high is not None
            and ceil_div(low, int(d.value)) == ceil_div(high, int(d.value))
        ):
            return Linear(first.terms, first.constant + ceil_div(low, int(d.value))).build()
    return None


def _tdiv(s: _Simplifier, e: Op) -> Expr | None:
    low, least = s.interval(e.args[0])[0], s.interval(e.args[1])[0]
    if e.dtype == i64 and low is not None and low >= 0 and least is not None and least >= 0:
        return s.op(op("floordiv" if e.name == "tdiv" else "mod", *e.args))
    return None


def _extremum(s: _Simplifier, e: Op) -> Expr | None:
    a, b = e.args
    if a == b and not a.dtype.is_float:
        return a
    if e.dtype != i64:
        return None
    if s.wild(linear(a)) or s.wild(linear(b)):
        return None
    gap = linear(op("sub", a, b))
    low, high = s.least(gap), s.greatest(gap)
    if low is not None and low >= 0:
        return a if e.name == "max" else b
    if high is not None and high <= 0:
        return b if e.name == "max" else a
    return None


_MIRROR = {"gt": "lt", "ge": "le"}


def _compare(s: _Simplifier, e: Op) -> Expr | None:
    a, b = e.args
    if a.dtype.is_bool:
        if isinstance(b, Const):
            return a if (e.name == "eq") == b.value else s.op(op("not", a))
        return None
    if not a.dtype.is_integer:
        return None
    if a == b:
        return Const(e.name in ("eq", "le", "ge"), bool_)
    if a.dtype != i64:
        return None
    name = _MIRROR.get(e.name, e.name)
    if s.wild(linear(a)) or s.wild(linear(b)):
        return None
    gap = linear(op("sub", b, a) if e.name in _MIRROR else op("sub", a, b))
    low, high = s.least(gap), s.greatest(gap)
    if name in ("lt", "le"):
        limit = -1 if name == "lt" else 0
        if high is not None and high <= limit:
            return TRUE
        return FALSE if low is not None and low > limit else None
    if low == high == 0:
        return Const(name == "eq", bool_)
    if (low is not None and low > 0) or (high is not None and high < 0):
        return Const(name == "ne", bool_)
    common = math.gcd(*gap.terms.values()) if gap.terms else 1
    return Const(name == "ne", bool_) if gap.constant % common else None


def _logic(s: _Simplifier, e: Op) -> Expr | None:
    a, b = e.args
    neutral, absorbing = (TRUE, FALSE) if e.name == "and" else (FALSE, TRUE)
    if absorbing in (a, b):
        return absorbing
    if a in (neutral, b):
        return b
    return a if b == neutral else None


_NEGATED = {"lt": "ge", "ge": "lt", "le": "gt", "gt": "le", "eq": "ne", "ne": "eq"}


def _not(s: _Simplifier, e: Op) -> Expr | None:
    (a,) = e.args
    if isinstance(a, Op) and a.name == "not":
        return a.args[0]
    if isinstance(a, Op) and a.name in _NEGATED and not a.args[0].dtype.is_float:
        return op(_NEGATED[a.name], *a.args)
    return None


def _select(s: _Simplifier, e: Op) -> Expr | None:
    c, a, b = e.args
    if isinstance(c, Const):
        return a if c.value else b
    return a if a == b else None


def _neutral(s: _Simplifier, e: Op) -> Expr | None:
    """`x + 0`, `x * 1`, `x * 0`, `x - 0`, `x / 1` beyond i64; for floats only what is exact."""
    a, b = e.args
    t = e.dtype
    if e.name == "mul" and not t.is_float and Const(0, t) in (a, b):
        return Const(0, t)
    zero = Const((-0.0 if e.name == "add" else 0.0) if t.is_float else 0, t)
    unit = zero if e.name in ("add", "sub") else Const(1.0 if t.is_float else 1, t)
    if b == unit:
        return a
    return b if a == unit and e.name in ("add", "mul") else None


_RULES: dict[str, Rule] = {
    "floordiv": _floordiv,
    "mod": _mod,
    "cdiv": _cdiv,
    "tdiv": _tdiv,
    "trem": _tdiv,
    "max": _extremum,
    "min": _extremum,
    **dict.fromkeys(("eq", "ne", "lt", "le", "gt", "ge"), _compare),
    "and": _logic,
    "or": _logic,
    "not": _not,
    "select": _select,
    **dict.fromkeys(("add", "sub", "mul", "div"), _neutral),
}
