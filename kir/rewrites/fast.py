"""`fast`: functions by cheaper ones, with stated bounds.

The forms are in `FORMS`. Their bounds hold over the whole range of the argument where each op they
are made of is as good as `kir.interpret.rules.ROUNDINGS` says; the tests compare every form with
float64 over all exponents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from kir.dtypes import DType, f32, f64, u32
from kir.interpret.bounded import float_limits
from kir.interpret.rules import OpError
from kir.ir import (
    Bitcast,
    Buffer,
    Cast,
    Const,
    Define,
    Expr,
    Kernel,
    Node,
    Op,
    Read,
    Reduce,
    Stmt,
    Var,
    rebuild,
    walk,
)
from kir.ops import op
from kir.rewrites.base import (
    Effect,
    Move,
    Rewrite,
    fresh,
    names_in,
    refuse,
    replace_stmt,
)
from kir.rewrites.places import Valued, find_valued, name_of, valued

Let = Callable[[Expr], Expr]
"""Gives an expression a name, so that it may be used several times."""
Build = Callable[..., Expr]


@dataclass(frozen=True)
class Form:
    """One way to write a function: `build` takes a `Let` and the operands. `error` is all that the
    result may be off, for operands in `domain`."""

    function: str
    name: str
    build: Build
    error: Callable[[DType], OpError]
    bound: str
    domain: str = "everywhere"
    dtypes: tuple[DType, ...] = (f32, f64)
    lawful: bool = False
    """Equal in the reals by laws that hold in the ring, too; the oracle of the new kernel then
    knows the error."""


def _c(value: float, like: Expr) -> Const:
    """A literal of the dtype of `like`, rounded to it, as the parser would."""
    return Const(float(np.asarray(value, like.dtype.numpy)), like.dtype)


def _polynomial(z: Expr, coefficients: tuple[float, ...]) -> Expr:
    """Horner's rule, constant term first."""
    found: Expr = _c(coefficients[-1], z)
    for c in reversed(coefficients[:-1]):
        found = op("add", op("mul", found, z), _c(c, z))
    return found


def _exp_exp2(let: Let, x: Expr) -> Expr:
    return op("exp2", op("mul", x, _c(math.log2(math.e), x)))


def _log_log2(let: Let, x: Expr) -> Expr:
    return op("mul", op("log2", x), _c(math.log(2.0), x))


def _sigmoid_exp(let: Let, x: Expr) -> Expr:
    return op("recip", op("add", _c(1.0, x), op("exp", op("neg", x))))


def _sigmoid_tanh(let: Let, x: Expr) -> Expr:
    half = _c(0.5, x)
    return op("add", op("mul", half, op("tanh", op("mul", half, x))), half)


def _tanh_exp(let: Let, x: Expr) -> Expr:
    one, two = _c(1.0, x), _c(2.0, x)
    inverse = op("recip", op("add", op("exp", op("mul", two, x)), one))
    return op("sub", one, op("mul", two, inverse))


_TANH_RANGE = 9.02
"""tanh rounds to 1 in f32 from here on."""
_TANH_P = (0.9999999797, 0.1337965404, 0.003493952279, 2.058190744e-5, 1.331654931e-8)
_TANH_Q = (1.0, 0.4671296958, 0.02587077632, 0.0003282948306, 7.761055645e-7)
"""tanh(x) is nearly x P(x^2) / Q(x^2) up to there, 2.2e-8 of it off before rounding: fitted by
Lawson's reweighted least squares."""


def _tanh_rational(let: Let, x: Expr) -> Expr:
    inside = let(op("min", op("max", x, _c(-_TANH_RANGE, x)), _c(_TANH_RANGE, x)))
    z = let(op("mul", inside, inside))
    return op("div", op("mul", inside, _polynomial(z, _TANH_P)), _polynomial(z, _TANH_Q))


def _erf_tanh(let: Let, x: Expr) -> Expr:
    """The form of GELU "by tanh" (Hendrycks and Gimpel 2016), written for erf."""
    slope, x = 2 / math.sqrt(math.pi), let(x)
    z = op("mul", x, x)
    inner = op("add", _c(slope, x), op("mul", _c(slope * 2 * 0.044715, x), z))
    return op("tanh", op("mul", x, inner))


_ERF_P = 0.3275911
_ERF = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)


def _erf_rational(let: Let, x: Expr) -> Expr:
    """Abramowitz and Stegun, 7.1.26."""
    one, x = _c(1.0, x), let(x)
    t = let(op("recip", op("add", one, op("mul", _c(_ERF_P, x), op("abs", x)))))
    rest = op("mul", _polynomial(t, _ERF), t)
    bell = op("exp", op("neg", op("mul", x, x)))
    return op("mul", op("sign", x), op("sub", one, op("mul", rest, bell)))


def _rsqrt_sqrt(let: Let, x: Expr) -> Expr:
    return op("recip", op("sqrt", x))


def _rsqrt_newton(let: Let, x: Expr) -> Expr:
    """A first guess from the bits (Lomont 2003), then three steps of Newton's iteration. Subnormal
    numbers are scaled up for it; zeros, infinities and what has no root are told apart after it."""
    least, up, zero, x = _c(2.0**-126, x), _c(2.0**24, x), _c(0.0, x), let(x)
    tiny = op("lt", x, least)
    scaled = let(op("select", tiny, op("mul", x, up), x))
    guess = op("sub", Const(0x5F3759DF, u32), op("shr", Bitcast(scaled, u32), Const(1, u32)))
    y: Expr = Bitcast(guess, x.dtype)
    half = let(op("mul", _c(0.5, x), scaled))
    for _ in range(3):
        y = let(y)
        y = op("mul", y, op("sub", _c(1.5, x), op("mul", op("mul", half, y), y)))
    y = op("select", tiny, op("mul", y, _c(2.0**12, x)), y)
    inside = op("and", op("gt", x, zero), op("lt", x, _c(math.inf, x)))
    edge = op("select", op("gt", x, zero), zero, _c(math.nan, x))
    edge = op("select", op("eq", x, zero), op("div", _c(1.0, x), x), edge)
    return op("select", inside, y, edge)


def _sqrt_rsqrt(let: Let, x: Expr) -> Expr:
    x = let(x)
    still = op("or", op("eq", x, _c(0.0, x)), op("eq", x, _c(math.inf, x)))
    return op("select", still, x, op("mul", x, op("rsqrt", x)))


def _div_recip(let: Let, a: Expr, b: Expr) -> Expr:
    return op("mul", a, op("recip", b))


def _relative(roundoffs: float, argument: float = 0.0) -> Callable[[DType], OpError]:
    return lambda dtype: OpError(roundoffs, argument)


def _absolute(units: float = 0.0, fixed: float = 0.0) -> Callable[[DType], OpError]:
    return lambda dtype: OpError(absolute=units * dtype.unit_roundoff + fixed)


def _sigmoid_error(dtype: DType) -> OpError:
    """Where exp overflows the result is 0, not what is left below the normal numbers."""
    return OpError(18.0, 2.0, 2.0 / float_limits(dtype)[0])


_ALL = (
    Form("exp", "exp2", _exp_exp2, _relative(8.0, 3.5), "relative (8 + 3.5 |x|) u"),
    Form("log", "log2", _log_log2, _relative(12.0), "relative 12 u"),
    Form("sigmoid", "exp", _sigmoid_exp, _sigmoid_error,
         "relative (18 + 2 |x|) u, absolute 2 / the greatest float"),
    Form("sigmoid", "tanh", _sigmoid_tanh, _absolute(12.0), "absolute 12 u"),
    Form("tanh", "exp", _tanh_exp, _absolute(32.0), "absolute 32 u"),
    Form("tanh", "rational", _tanh_rational, _relative(12.0), "relative 12 u",
         dtypes=(f32,)),
    Form("erf", "tanh", _erf_tanh, _absolute(32.0, 3.7e-4), "absolute 3.7e-4 + 32 u"),
    Form("erf", "rational", _erf_rational, _absolute(16.0, 1.5e-7), "absolute 1.5e-7 + 16 u",
         dtypes=(f32,)),
    Form("rsqrt", "sqrt", _rsqrt_sqrt, _relative(10.0), "relative 10 u", lawful=True),
    Form("rsqrt", "newton", _rsqrt_newton, _relative(6.0), "relative 6 u",
         dtypes=(f32,)),
    Form("sqrt", "rsqrt", _sqrt_rsqrt, _relative(12.0), "relative 12 u"),
    Form("div", "recip", _div_recip, _relative(10.0), "relative 10 u",
         domain="where the divisor and its reciprocal are normal", lawful=True),
)  # fmt: skip
FORMS: dict[str, dict[str, Form]] = {}
"""By function and name; the first form of a function is its default."""
for _form in _ALL:
    FORMS.setdefault(_form.function, {})[_form.name] = _form


@dataclass(frozen=True)
class Fast(Rewrite):
    """`fast(function, place, form = name, nth = 0)`: in a statement, a function is computed by
    cheaper ones, near enough.

    Before::

        y[i: N] = exp(x[i])

    After `fast(exp, y)`::

        y[i: N] = exp2(x[i] * 1.442695)

    `place` is what the statement defines or stores to, `nth` which of the statements that do. All
    its occurrences there in a dtype that the form is made for are changed. What a form needs
    several times is computed once, ahead of the statement; refused where that is inside a
    reduction. The forms (u is the unit roundoff, 2^-24 in f32):
    """

    name: ClassVar[str] = "fast"
    effect: ClassVar[Effect] = "approximates"
    function: str
    place: str
    form: str | None = None
    nth: int = 0

    @property
    def keeps_range(self) -> bool:
        return False

    def edit(self, kernel: Kernel) -> Kernel:
        form = self._form(kernel)
        stmt = find_valued(kernel, self.place, self.nth)
        work = _Work(kernel, stmt, form, names_in(kernel))
        done = rebuild(stmt, lambda n: work.expr(n, ()))
        if not work.count:
            held = ", ".join(t.name for t in form.dtypes)
            refuse(kernel, f"there is no `{self.function}` in {held} in `{self.place}`", node=stmt)
        return replace_stmt(kernel, stmt, (*work.ahead, done))

    def _form(self, kernel: Kernel) -> Form:
        forms = FORMS.get(self.function)
        if forms is None:
            refuse(kernel, f"there is no fast form of `{self.function}`", hint=", ".join(FORMS))
        name = self.form or next(iter(forms))
        if name not in forms:
            refuse(kernel, f"`{name}` is no form of `{self.function}`", hint=", ".join(forms))
        return forms[name]

    @classmethod
    def candidates(cls, kernel: Kernel) -> Iterator[Move]:
        """Every function that has forms in every statement, by each form."""
        for s, nth in valued(kernel):
            used = {n.name: None for n in walk(s.value) if isinstance(n, Op) and n.name in FORMS}
            for function in used:
                for form in FORMS[function]:
                    fixed = (("function", function), ("place", name_of(s)))
                    yield Move(cls.name, (*fixed, ("form", form), ("nth", nth)))

    def bound(self) -> str:
        forms = FORMS.get(self.function, {})
        form = forms.get(self.form or next(iter(forms), ""))
        if form is None:
            return ""
        return f"each `{self.function}` of `{self.place}`: {form.bound}, {form.domain}"

    def errors(self, kernel: Kernel) -> Mapping[str, OpError]:
        form = self._form(kernel)
        if form.lawful:
            return {}
        stmt = find_valued(kernel, self.place, self.nth)
        found = [
            form.error(n.type)
            for n in walk(stmt.value)
            if isinstance(n, Op) and n.name == self.function and n.type in form.dtypes
        ]
        worst = max(found, key=lambda e: e.absolute, default=OpError())
        return {self.function: worst}


def _table() -> str:
    rows = [f"    {f.function} by {f.name}: {f.bound}, {f.domain}" for f in _ALL]
    return "\n".join(rows)


Fast.__doc__ = (Fast.__doc__ or "").rstrip() + "\n\n" + _table() + "\n"


@dataclass
class _Work:
    """One statement on its way: what goes ahead of it, and how many places were changed."""

    kernel: Kernel
    stmt: Valued
    form: Form
    used: set[str]
    ahead: tuple[Stmt, ...] = ()
    count: int = 0

    def expr(self, n: Node, around: tuple[Reduce, ...]) -> Node:
        inner = (*around, n) if isinstance(n, Reduce) else around
        done = rebuild(n, lambda c: self.expr(c, inner))
        form = self.form
        if not isinstance(done, Op) or done.name != form.function or done.type not in form.dtypes:
            return done
        self.count += 1
        return form.build(lambda e: self.held(e, n, around), *done.args)

    def held(self, e: Expr, at: Node, around: tuple[Reduce, ...]) -> Expr:
        """A read of a temporary that is given the value ahead of the statement."""
        if _atomic(e):
            return e
        if around:
            refuse(
                self.kernel,
                f"the form `{self.form.name}` needs temporaries, here inside a reduction",
                node=at,
                hint=f"`outline` gives the `{self.form.function}` a definition of its own",
            )
        name = fresh(f"{name_of(self.stmt)}_{self.form.function}", self.used)
        if any(isinstance(n, Read) and n.tensor == name_of(self.stmt) for n in walk(e)):
            refuse(self.kernel, "the operand reads what the statement gives", node=self.stmt)
        if isinstance(self.stmt, Define):
            self.ahead += (Define(name, self.stmt.dims, e),)
            return Read(name, tuple(Var(d.name) for d in self.stmt.dims), e.dtype)
        self.ahead += (Buffer(name, e.dtype, (), "reg", e),)
        return Read(name, (), e.dtype)


def _atomic(e: Expr) -> bool:
    if isinstance(e, Cast):
        return _atomic(e.value)
    return isinstance(e, Var | Const) or (
        isinstance(e, Read) and not any(isinstance(n, Read) for i in e.indices for n in walk(i))
    )
