"""Integer expressions as linear forms, and how large they can get.

Sums are exact modulo 2**64. Bounds are those of the mathematical integers: index arithmetic is
assumed not to overflow, data read from tensors is not (`Bounds.wild`).
"""

from __future__ import annotations

from collections.abc import Mapping

from kir.dtypes import DType, i64
from kir.ir import Bitcast, Cast, Const, Expr, Op, Read, Reduce, Var, children, const, walk
from kir.memo import kept
from kir.ops import op

Interval = tuple[int | None, int | None]
"""Least and greatest value, inclusive; None where there is no bound."""

FREE: Interval = (None, None)
SAFE = 1 << 62


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
        terms = {a: w for a, c in self.terms.items() if (w := _wrap(c))}
        return Linear(terms, _wrap(self.constant))

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
    if isinstance(expr, Const):
        return Linear(None, _wrap(int(expr.value)))
    if not isinstance(expr, Op) or expr.name not in ("add", "sub", "neg", "mul"):
        return Linear({expr: 1})  # not kept: the node would refer to itself
    known = _linear(expr)
    return Linear(dict(known.terms), known.constant)


@kept
def _linear(expr: Expr) -> Linear:
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


def _wrap(value: int) -> int:
    """`value` modulo 2**64, as an i64."""
    return value if -SAFE < value < SAFE else wrap(value, i64)


def wrap(value: int, dtype: DType) -> int:
    low, high = dtype.limits()
    return value if low <= value <= high else (value - low) % (high - low + 1) + low


def size(e: Expr) -> int:
    if isinstance(e, Var | Const):
        return 1
    return 1 + sum(size(c) for c in children(e) if isinstance(c, Expr))


def split_divmod(form: Linear) -> Linear:
    """`a*(x // a) + x % a` is x, for every a (x % 0 is 0, so a must not be 0: constants only)."""
    for atom, coefficient in list(form.terms.items()):
        if not (isinstance(atom, Op) and atom.name == "mod" and positive(atom.args[1])):
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


def positive(e: Expr) -> bool:
    return isinstance(e, Const) and e.dtype.is_integer and e.value > 0


def is_product(e: Expr) -> bool:
    return isinstance(e, Op) and e.name == "mul"


def floor_div(a: int, b: int) -> int:
    return a // b


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def trunc_div(a: int, b: int) -> int:
    return a // b if a >= 0 else -(-a // b)


class Bounds:
    """Bounds of expressions. `ranges` and `extents` describe the variables in scope."""

    def __init__(self, ranges: dict[str, Interval]) -> None:
        self.ranges = ranges
        self.extents: dict[str, Expr] = {}

    def interval(self, e: Expr) -> Interval:
        """Bounds of an integer expression over the mathematical integers."""
        if isinstance(e, Const):
            return (int(e.value), int(e.value)) if e.dtype.is_integer else FREE
        if isinstance(e, Var):
            low, high = self.ranges.get(e.name, (0, None))
            return low, high
        if isinstance(e, Op) and e.dtype == i64:
            if e.name in ("add", "sub", "neg", "mul"):
                form = linear(e)
                atoms = {a: self.atom(a) for a in form.terms}
                return FREE if self.wild(form, atoms) else self.bound(form, atoms)
            return self.op_interval(e)
        if isinstance(e, Cast) and e.dtype == i64 and e.value.dtype.is_integer:
            low, high = e.value.dtype.limits()
            return (low, high) if e.value.dtype.bits < 64 else FREE
        return FREE

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
                else FREE
            )
        if e.name in ("floordiv", "cdiv", "tdiv") and positive(e.args[1]):
            assert isinstance(e.args[1], Const)
            d = int(e.args[1].value)
            divide = {"floordiv": floor_div, "cdiv": ceil_div, "tdiv": trunc_div}[e.name]
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
        return FREE

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
        return FREE

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
            known = low is not None and high is not None and low > -SAFE and high < SAFE
            if not known and any(isinstance(n, Read | Cast | Bitcast | Reduce) for n in walk(atom)):
                return True
        return False
