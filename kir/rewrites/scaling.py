"""How a value scales with a scalar that it reads: the algebra of `online`.

An expression scales with r if it is w * f(c*r) * r**p, where f is exp or exp2, c is a constant (of
the loops at hand) and w reads no r. Sums and selections scale if their parts do so alike. The
value for one r is then that for any other r, times a correction that all such values share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from kir.dtypes import DType
from kir.ir import Cast, Const, Expr, Node, Op, Read, walk
from kir.ops import identity, op

Refuse = Callable[[str, Node], NoReturn]
FUNCTIONS = ("exp", "exp2")


@dataclass(frozen=True)
class Exponent:
    """`function(c * factors * scalar)`; the coefficient c stands beside it in a Scale."""

    scalar: str
    function: str
    type: DType
    factors: tuple[Expr, ...] = ()


@dataclass(frozen=True)
class Scale:
    """The product of f(c*r) and r**p by which a value depends on scalars; none: it does not."""

    exponents: frozenset[tuple[Exponent, float]] = frozenset()
    powers: frozenset[tuple[str, int]] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.exponents or self.powers)

    def times(self, other: Scale, sign: int = 1) -> Scale:
        """The scale of a product, or with `sign` -1 of a quotient."""
        exponents, powers = dict(self.exponents), dict(self.powers)
        for e, c in other.exponents:
            exponents[e] = exponents.get(e, 0.0) + sign * c
        for name, p in other.powers:
            powers[name] = powers.get(name, 0) + sign * p
        return Scale(
            frozenset((e, c) for e, c in exponents.items() if c),
            frozenset((name, p) for name, p in powers.items() if p),
        )

    def ordered(self) -> list[tuple[Exponent, float]]:
        """The exponents in an order that is the same in every run."""
        return sorted(self.exponents, key=lambda t: (t[0].scalar, t[0].function, repr(t[0]), t[1]))


NEUTRAL = Scale()
Part = tuple[str, tuple[Expr, ...]]
"""A scalar, or the values it is the extremum of (`peak` of its name), and what it is times."""


def peak(name: str) -> str:
    return f"peak of {name}"


@dataclass
class _Affine:
    """An exponent: `sum(coefficient * factors * scalar) + rest`."""

    parts: dict[Part, float] = field(default_factory=dict)

    def add(self, other: _Affine, factor: float = 1.0) -> _Affine:
        parts = dict(self.parts)
        for key, c in other.parts.items():
            parts[key] = parts.get(key, 0.0) + factor * c
        return _Affine({k: c for k, c in parts.items() if c})

    def scaled(self, factor: Expr) -> _Affine:
        return _Affine({(name, (*fs, factor)): c for (name, fs), c in self.parts.items()})


@dataclass
class Scaling:
    """Finds the scale of expressions, and rewrites them to hold for running values of scalars.

    In an exponent, a scalar becomes `running(name)`; elsewhere it is left out (taken as 1).
    `scalars` gives the indices of each; `values`, what was computed from them before the loop;
    `scales`, the scales of temporaries; `peaks`, whether an expression is what a scalar is the
    extremum of; `invariant`, whether an expression is the same in all iterations.
    """

    scalars: Mapping[str, tuple[Expr, ...]]
    values: Mapping[str, tuple[tuple[Expr, ...], Expr]]
    running: Callable[[str], Read]
    peaks: Callable[[Expr], str | None]
    invariant: Callable[[Expr], bool]
    refuse: Refuse
    scales: dict[str, Scale] = field(default_factory=dict)
    distances: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Temporaries that hold distances from a mean: the sum that it is of, and the sign."""
    unscaled: set[str] = field(default_factory=set)
    """Tensors that were read as values of no scale."""
    narrowed: bool = False
    """Whether a value that scales is rounded to a narrower dtype before it is used."""

    def depends(self, e: Node) -> bool:
        """Whether an expression reads a scalar, directly or through temporaries."""
        known = (self.scalars, self.values, self.scales, self.distances)
        return any(isinstance(n, Read) and any(n.tensor in k for k in known) for n in walk(e))

    def plain(self, e: Expr, what: str) -> Expr:
        """`e`, which must not depend on a scalar."""
        for n in walk(e):
            if isinstance(n, Read) and self.depends(n):
                self.refuse(f"{what} needs the final value of `{self._origin(n)}`", n)
            if isinstance(n, Read):
                self.unscaled.add(n.tensor)
        return e

    def _origin(self, read: Read) -> str:
        """The scalar that a read depends on, for messages."""
        if read.tensor in self.values:
            for n in walk(self.values[read.tensor][1]):
                if isinstance(n, Read) and self.depends(n):
                    return self._origin(n)
        if read.tensor in self.distances:
            return self.distances[read.tensor][0]
        if read.tensor in self.scales:
            scale = self.scales[read.tensor]
            names = sorted({e.scalar for e, _ in scale.exponents} | {n for n, _ in scale.powers})
            return names[0] if names else read.tensor
        return read.tensor

    # --- products

    def of(self, e: Expr) -> tuple[Scale, Expr]:
        """The scale of `e`, and `e` for the running values. Refuses where `e` has no scale."""
        if not self.depends(e):
            self.unscaled |= {n.tensor for n in walk(e) if isinstance(n, Read)}
            return NEUTRAL, e
        match e:
            case Read():
                return self._read(e)
            case Cast(value, type) if type.is_float and value.dtype.is_float:
                scale, new = self.of(value)
                self.narrowed = self.narrowed or type.bits < value.dtype.bits
                return scale, Cast(new, type, span=e.span)
            case Op("mul" | "div" as name, (a, b), _):
                (one, x), (two, y) = self.of(a), self.of(b)
                return one.times(two, 1 if name == "mul" else -1), op(name, x, y)
            case Op("neg", (a,), _):
                scale, x = self.of(a)
                return scale, op("neg", x)
            case Op("recip", (a,), _):
                scale, x = self.of(a)
                return NEUTRAL.times(scale, -1), op("recip", x)
            case Op("exp" | "exp2", (a,), _):
                return self._exponential(e, a)
            case Op("add" | "sub" as name, (a, b), _):
                return self._alike(e, name, a, b)
            case Op("select", (c, a, b), _):
                self.plain(c, "a condition")
                scale, new = self._alike(e, "add", a, b)
                assert isinstance(new, Op)
                return scale, op("select", c, *new.args)
            case Op("fma", (a, b, c), _):
                (one, x), (two, y), (three, z) = self.of(a), self.of(b), self.of(c)
                if one.times(two) != three:
                    self._mixed(e)
                return three, op("fma", x, y, z)
        blamed = self._blame(e)
        what = f"`{e.name}`" if isinstance(e, Op) else "this conversion"
        return self.refuse(f"{what} of a value that depends on `{blamed}` is no product with it", e)

    def _blame(self, e: Expr) -> str:
        reads = [n for n in walk(e) if isinstance(n, Read) and self.depends(n)]
        return self._origin(reads[0])

    def _mixed(self, e: Expr) -> NoReturn:
        self.refuse(
            f"the parts of this sum depend on `{self._blame(e)}` in different ways, so no one "
            "factor corrects it",
            e,
        )

    def _read(self, e: Read) -> tuple[Scale, Expr]:
        if e.tensor in self.scales:
            return self.scales[e.tensor], e
        if e.tensor in self.distances:
            self.refuse("of distances from a mean, only products of two are corrected", e)
        inner = self._value(e)
        if inner is not None:
            return self.of(inner)
        return Scale(powers=frozenset({(e.tensor, 1)})), identity("mul", e.type)

    def _value(self, e: Read) -> Expr | None:
        """What a read of something that was computed from scalars stands for."""
        known = self.values.get(e.tensor)
        if known is None:
            if e.indices != self.scalars.get(e.tensor) or e.fill is not None:
                self.refuse(f"another element of `{e.tensor}` is read here", e)
            return None
        if e.indices != known[0] or e.fill is not None:
            self.refuse(f"another element of `{e.tensor}` is read here", e)
        return known[1]

    def _alike(self, e: Expr, name: str, a: Expr, b: Expr) -> tuple[Scale, Expr]:
        (one, x), (two, y) = self.of(a), self.of(b)
        if one != two:
            self._mixed(e)
        return one, op(name, x, y)

    # --- exponents

    def _exponential(self, e: Op, argument: Expr) -> tuple[Scale, Expr]:
        form, new = self._affine(argument)
        found: dict[Exponent, float] = {}
        for (name, factors), c in form.parts.items():
            if name in self.scalars:
                if form.parts.get((peak(name), factors)) != -c:
                    self.refuse(
                        f"the exponent is no multiple of the difference between `{name}` and "
                        "the values that it is the extremum of",
                        e,
                    )
                found[Exponent(name, e.name, e.dtype, factors)] = c
        return Scale(exponents=frozenset(found.items())), op(e.name, new)

    def _affine(self, e: Expr) -> tuple[_Affine, Expr]:
        """An exponent as a sum; what depends on no scalar is left out of it."""
        about = self.peaks(e)
        if about is not None:
            return _Affine({(peak(about), ()): 1.0}), e
        if not self.depends(e):
            if isinstance(e, Op) and e.name in ("mul", "div", "add", "sub", "neg"):
                return self._linear(e) or (_Affine(), e)
            return _Affine(), e
        if isinstance(e, Read) and not {e.tensor} & (self.scales.keys() | self.distances.keys()):
            inner = self._value(e)
            if inner is not None:
                return self._affine(inner)
            return _Affine({(e.tensor, ()): 1.0}), self.running(e.tensor)
        done = self._linear(e)
        if done is None:
            self.refuse(f"this exponent is not linear in `{self._blame(e)}`", e)
        return done

    def _linear(self, e: Expr) -> tuple[_Affine, Expr] | None:
        match e:
            case Cast(value, type) if type.is_float and value.dtype.is_float:
                form, x = self._affine(value)
                return form, Cast(x, type, span=e.span)
            case Op("add" | "sub" as name, (a, b), _):
                (one, x), (two, y) = self._affine(a), self._affine(b)
                return one.add(two, 1.0 if name == "add" else -1.0), op(name, x, y)
            case Op("neg", (a,), _):
                form, x = self._affine(a)
                return _Affine().add(form, -1.0), op("neg", x)
            case Op("mul", (a, b), _):
                for value, factor, left in ((a, b, True), (b, a, False)):
                    if not self.depends(factor) and self.invariant(factor):
                        form, x = self._affine(value)
                        both = (x, factor) if left else (factor, x)
                        return self._times(form, factor), op("mul", *both)
            case Op("div", (a, Const(c)), _) if c:
                form, x = self._affine(a)
                return _Affine().add(form, 1.0 / float(c)), op("div", x, e.args[1])
            case Op("div", (a, b), type) if not self.depends(b) and self.invariant(b):
                form, x = self._affine(a)
                return form.scaled(op("div", Const(1.0, type), b)), op("div", x, b)
        return None

    def _times(self, form: _Affine, factor: Expr) -> _Affine:
        if isinstance(factor, Const):
            return _Affine().add(form, float(factor.value))
        return form.scaled(factor)


__all__ = ["FUNCTIONS", "NEUTRAL", "Exponent", "Scale", "Scaling"]
