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
from fractions import Fraction
from typing import TypeVar

import numpy as np

from kir.dtypes import DType, bool_, i64
from kir.ir import (
    TRUE,
    Axis,
    Bitcast,
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
    children,
    const,
    rebuild,
    walk,
)
from kir.ops import OPS, compute, op

N = TypeVar("N", bound=Node)
Interval = tuple[int | None, int | None]
"""Least and greatest value, inclusive; None where there is no bound."""

FALSE = Const(False, bool_)
_FREE: Interval = (None, None)
_SAFE = 1 << 62


def simplify(node: N, ranges: Mapping[str, tuple[int | None, int | None]] | None = None) -> N:
    """`node` with constants folded, index algebra done, conditions that always hold dropped.

    `ranges` gives inclusive bounds of free variables (indices and dims); None is no bound.
    """
    return _Simplifier(dict(ranges or {})).node(node)


def interval(expr: Expr, ranges: Mapping[str, tuple[int | None, int | None]]) -> Interval:
    """Inclusive bounds of an integer expression, given bounds of its variables."""
    return _Simplifier(dict(ranges)).interval(expr)


# --- linear forms ------------------------------------------------------------------------------


class Linear:
    """`constant + sum(coefficient * atom)`; atoms in order of first appearance."""

    __slots__ = ("constant", "terms")

    def __init__(self, terms: dict[Expr, int] | None = None, constant: int = 0) -> None:
        self.terms = terms or {}
        self.constant = constant

    def add(self, other: Linear, factor: int = 1) -> None:
        self.constant += factor * other.constant
        for atom, coefficient in other.terms.items():
            self.terms[atom] = self.terms.get(atom, 0) + factor * coefficient

    def cleaned(self) -> Linear:
        terms = {a: w for a, c in self.terms.items() if (w := _wrap(c, i64))}
        return Linear(terms, _wrap(self.constant, i64))

    def build(self) -> Expr:
        result: Expr | None = None
        for atom, coefficient in sorted(self.terms.items(), key=lambda t: t[1] < 0):
            term = atom if abs(coefficient) == 1 else op("mul", atom, const(abs(coefficient)))
            if result is None:
                result = term if coefficient > 0 else op("mul", atom, const(coefficient))
                if coefficient == -1:
                    result = op("neg", atom)
            else:
                result = op("add" if coefficient > 0 else "sub", result, term)
        if result is None:
            return const(self.constant)
        if self.constant:
            sign = "add" if self.constant > 0 or self.constant == -(1 << 63) else "sub"
            result = op(sign, result, const(self.constant if sign == "add" else -self.constant))
        return result


def linear(expr: Expr) -> Linear:
    """An i64 expression as a linear form over its non-linear parts; exact modulo 2**64."""
    form = Linear()
    _collect(expr, 1, form)
    return form.cleaned()


def _collect(e: Expr, factor: int, into: Linear) -> None:
    if isinstance(e, Const):
        into.constant += factor * int(e.value)
        return
    if isinstance(e, Op):
        if e.name == "add" or e.name == "sub":
            _collect(e.args[0], factor, into)
            _collect(e.args[1], factor if e.name == "add" else -factor, into)
            return
        if e.name == "neg":
            _collect(e.args[0], -factor, into)
            return
        if e.name == "mul":
            left, right = linear(e.args[0]), linear(e.args[1])
            if not right.terms or not left.terms:
                scale, rest = (right.constant, left) if not right.terms else (left.constant, right)
                into.add(rest, factor * scale)
                return
            if len(left.terms) == len(right.terms) == 1 and not left.constant | right.constant:
                ((a, p),), ((b, q),) = left.terms.items(), right.terms.items()
                if p != 1 or q != 1:
                    into.add(Linear({op("mul", a, b): 1}), factor * p * q)
                    return
    into.terms[e] = into.terms.get(e, 0) + factor


def _wrap(value: int, dtype: DType) -> int:
    low, high = dtype.limits()
    return value if low <= value <= high else (value - low) % (high - low + 1) + low


def _size(e: Expr) -> int:
    if isinstance(e, Var | Const):
        return 1
    return 1 + sum(_size(c) for c in children(e) if isinstance(c, Expr))


def _split_divmod(form: Linear) -> Linear:
    """`a*(x // a) + x % a` is x, for every a (x % 0 is 0, so a must not be 0: constants only)."""
    for atom, coefficient in list(form.terms.items()):
        if not (isinstance(atom, Op) and atom.name == "mod" and _positive(atom.args[1])):
            continue
        x, divisor = atom.args
        assert isinstance(divisor, Const)
        quotient = Op("floordiv", (x, divisor), i64)
        if form.terms.get(quotient) == coefficient * int(divisor.value):
            form = Linear(dict(form.terms), form.constant)
            del form.terms[quotient], form.terms[atom]
            form.add(linear(x), coefficient)
            form = form.cleaned()
    return form


def _positive(e: Expr) -> bool:
    return isinstance(e, Const) and e.dtype.is_integer and e.value > 0


# --- the rules ---------------------------------------------------------------------------------


class _Simplifier:
    """One walk. `ranges` and `extents` describe the variables in scope, `facts` what holds."""

    def __init__(self, ranges: dict[str, Interval]) -> None:
        self.ranges = ranges
        self.extents: dict[str, Expr] = {}
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
                self.ranges.setdefault(d.name, _FREE)
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
                low, high = self.ranges.get(e.name, _FREE)
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
            return _cast(e)
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
        best = _split_divmod(linear(kept)).build()
        return best if _size(best) < _size(kept) else kept

    def leaves(self, e: Expr) -> Expr:
        if isinstance(e, Op) and e.dtype == i64 and e.name in ("add", "sub", "neg", "mul"):
            return rebuild(e, self.leaves)  # type: ignore[arg-type]
        return self.expr(e)

    def op(self, e: Op) -> Expr:
        if all(isinstance(a, Const) for a in e.args):
            folded = _fold(e)
            if folded is not None:
                return folded
        rule = _RULES.get(e.name)
        return e if rule is None else rule(self, e) or e

    # ranges

    def interval(self, e: Expr) -> Interval:
        """Bounds of an integer expression over the mathematical integers."""
        if isinstance(e, Const):
            return (int(e.value), int(e.value)) if e.dtype.is_integer else _FREE
        if isinstance(e, Var):
            low, high = self.ranges.get(e.name, (0, None))
            return low, high
        if isinstance(e, Op) and e.dtype == i64:
            if e.name in ("add", "sub", "neg", "mul"):
                form = linear(e)
                atoms = {a: self.atom(a) for a in form.terms}
                return _FREE if self.wild(form, atoms) else self.bound(form, atoms)
            return self.op_interval(e)
        if isinstance(e, Cast) and e.dtype == i64 and e.value.dtype.is_integer:
            low, high = e.value.dtype.limits()
            return (low, high) if e.value.dtype.bits < 64 else _FREE
        return _FREE

    def op_interval(self, e: Op) -> Interval:
        if e.name == "mod" and isinstance(e.args[1], Const):
            divisor = int(e.args[1].value)
            low, high = self.interval(e.args[0])
            if low is not None and low >= 0 and high is not None and high < divisor:
                return low, high
            return (0, divisor - 1) if divisor > 0 else (min(divisor + 1, 0), 0)
        if e.name == "mod":  # in [0, divisor) for a positive divisor, 0 for 0
            low, high = self.interval(e.args[1])
            return (
                (0, None if high is None else max(high - 1, 0))
                if low is not None and low >= 0
                else _FREE
            )
        if e.name in ("floordiv", "cdiv", "tdiv") and _positive(e.args[1]):
            assert isinstance(e.args[1], Const)
            d = int(e.args[1].value)
            divide = {"floordiv": _floor, "cdiv": _ceil, "tdiv": _trunc}[e.name]
            below, above = self.interval(e.args[0])
            return (
                None if below is None else divide(below, d),
                None if above is None else divide(above, d),
            )
        if e.name in ("floordiv", "cdiv", "tdiv"):  # a symbolic divisor that is at least 0
            below, above = self.interval(e.args[0])
            floor = self.interval(e.args[1])[0]
            if below is not None and below >= 0 and floor is not None and floor >= 0:
                return 0, above
        if e.name in ("max", "min", "select"):
            a, b = self.interval(e.args[-2])
            least, most = self.interval(e.args[-1])
            lows = [x for x in (a, least) if x is not None]
            highs = [x for x in (b, most) if x is not None]
            if e.name == "max":
                return max(lows, default=None), max(highs) if len(highs) == 2 else None
            if e.name == "min":
                return min(lows) if len(lows) == 2 else None, min(highs, default=None)
            return (
                min(lows) if len(lows) == 2 else None,
                max(highs) if len(highs) == 2 else None,
            )
        return _FREE

    def bound(self, form: Linear, atoms: Mapping[Expr, Interval] | None = None) -> Interval:
        low: int | None = form.constant
        high: int | None = form.constant
        for atom, c in form.terms.items():
            a, b = atoms[atom] if atoms else self.atom(atom)
            if c < 0:
                a, b = b, a
            low = None if low is None or a is None else low + c * a
            high = None if high is None or b is None else high + c * b
        return low, high

    def atom(self, e: Expr) -> Interval:
        if not (isinstance(e, Op) and e.name == "mul"):
            return self.interval(e)
        (a, b), (c, d) = self.interval(e.args[0]), self.interval(e.args[1])
        if None not in (a, b, c, d):
            corners = [x * y for x in (a, b) for y in (c, d)]  # type: ignore[operator]
            return min(corners), max(corners)
        if a is not None and a >= 0 and c is not None and c >= 0:
            return a * c, None if b is None or d is None else b * d
        return _FREE

    def greatest(self, form: Linear) -> int | None:
        """An upper bound that uses `index <= extent - 1` for symbolic extents as well."""
        for name, extent in reversed(self.extents.items()):
            c = form.terms.get(Var(name), 0)
            if c > 0 and not isinstance(extent, Const):
                form = Linear(dict(form.terms), form.constant - c)
                form.add(linear(extent), c)
                form.add(Linear({Var(name): c}), -1)
                form = form.cleaned()
        return self.bound(form)[1]

    def least(self, form: Linear) -> int | None:
        negated = Linear()
        negated.add(form, -1)
        high = self.greatest(negated)
        return None if high is None else -high

    def wild(self, form: Linear, atoms: Mapping[Expr, Interval] | None = None) -> bool:
        """Whether a linear form may wrap: it holds data read from a tensor, of unknown size."""
        for atom in form.terms:
            low, high = atoms[atom] if atoms else self.atom(atom)
            known = low is not None and high is not None and low > -_SAFE and high < _SAFE
            if not known and any(isinstance(n, Read | Cast | Bitcast | Reduce) for n in walk(atom)):
                return True
        return False

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
            elif _is_product(atom) and divisor in atom.args:  # type: ignore[attr-defined]
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


def _is_product(e: Expr) -> bool:
    return isinstance(e, Op) and e.name == "mul"


def _same(old: tuple[N, ...], new: tuple[N, ...]) -> tuple[N, ...]:
    same = len(old) == len(new) and all(a is b for a, b in zip(old, new, strict=True))
    return old if same else new


def _floor(a: int, b: int) -> int:
    return a // b


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _trunc(a: int, b: int) -> int:
    return a // b if a >= 0 else -(-a // b)


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
        if isinstance(x, Op) and x.name == "floordiv" and _positive(x.args[1]):
            assert isinstance(x.args[1], Const)
            product = int(x.args[1].value) * int(d.value)
            if product < _SAFE:
                return s.op(op("floordiv", x.args[0], const(product)))
    if first.terms or first.constant:
        better = Linear(dict(first.terms), first.constant)
        better.add(linear(s.op(op("floordiv", rest.build(), d))))
        built = better.build()
        return built if _size(built) < _size(e) else None
    return None


def _mod(s: _Simplifier, e: Op) -> Expr | None:
    x, d = e.args
    if d in (Const(1, e.dtype), Const(0, e.dtype)) or x == Const(0, e.dtype):
        return Const(0, e.dtype)
    if isinstance(x, Op) and x.name == "mod" and _positive(d) and _positive(x.args[1]):
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
    return s.op(built) if _size(built) < _size(e) else None


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
            and _ceil(low, int(d.value)) == _ceil(high, int(d.value))
        ):
            return Linear(first.terms, first.constant + _ceil(low, int(d.value))).build()
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


# --- constants -----------------------------------------------------------------------------------

_EXACT_ON_FLOATS = {"neg", "abs", "sign", "max", "min", "floor", "ceil", "round", "trunc", "select",
                    "eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf"}  # fmt: skip
_FRACTIONS: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
}


def _fold(e: Op) -> Const | None:
    """An op on constants as a constant; None where a float would be rounded."""
    consts = [a for a in e.args if isinstance(a, Const)]
    if e.name not in OPS:
        return None
    arrays = [np.asarray(c.value).astype(c.dtype.numpy) for c in consts]
    floats = e.dtype.is_float or any(c.dtype.is_float for c in consts)
    if floats and e.name not in _EXACT_ON_FLOATS and not _is_exact(e, consts, arrays):
        return None
    return _literal(compute(e.name, arrays, e.dtype), e.dtype)


def _is_exact(e: Op, consts: list[Const], arrays: list[np.ndarray]) -> bool:
    if e.name not in _FRACTIONS or not all(math.isfinite(c.value) for c in consts):
        return False
    result = float(compute(e.name, arrays, e.dtype))
    a, b = (Fraction(c.value) for c in consts)
    if not math.isfinite(result) or (e.name == "div" and b == 0):
        return False
    return _FRACTIONS[e.name](a, b) == Fraction(result)


def _literal(value: np.ndarray, dtype: DType) -> Const:
    if dtype.is_bool:
        return Const(bool(value), dtype)
    return Const(float(value) if dtype.is_float else int(value), dtype)


def _cast(e: Cast) -> Expr:
    v = e.value
    if v.dtype == e.dtype:
        return v
    if not isinstance(v, Const):
        return e
    if e.dtype.is_bool:
        return Const(bool(v.value != 0), bool_)
    if e.dtype.is_integer and not v.dtype.is_float:
        return Const(_wrap(int(v.value), e.dtype), e.dtype)
    if e.dtype.is_integer or not math.isfinite(v.value):
        return e
    with np.errstate(all="ignore"):
        result = float(np.asarray(float(v.value)).astype(e.dtype.numpy))
    exact = math.isfinite(result) and Fraction(result) == Fraction(v.value)
    return Const(result, e.dtype) if exact else e
