"""What is in scope while a program is generated, and facts about index expressions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from kir.backends.triton.values import Value
from kir.dtypes import DType, i64
from kir.ir import Const, Expr, Node, Op, Read, Var, substitute, walk
from kir.simplify import simplify


@dataclass(frozen=True)
class Lane:
    """An axis of a `tile` in scope: its Python name and its extent, a power of two."""

    name: str
    extent: int


@dataclass(frozen=True)
class ValueBuffer:
    """A buffer held in registers as one block. Its dimensions are the lanes around its
    declaration (it is private to each) and then its own, each addressed by one lane."""

    name: str
    type: DType
    private: tuple[Lane, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class MemoryBuffer:
    """A tensor in global memory behind a pointer argument. `base` is an offset added to every
    access (a scratch buffer has one slice for each program and lane), over the lanes `private`."""

    pointer: str
    type: DType
    shape: tuple[Expr, ...]
    base: Value | None = None


@dataclass(frozen=True)
class Condition:
    """A mask in force: its IR and its value, which varies along at least one lane."""

    expr: Expr
    value: Value


def conjuncts(conditions: Iterable[Expr]) -> Iterator[Expr]:
    for c in conditions:
        if isinstance(c, Op) and c.name == "and":
            yield from conjuncts(c.args)
        else:
            yield c


def names_in(node: Node) -> set[str]:
    """The indices and dims that occur in an expression."""
    return {n.name for n in walk(node) if isinstance(n, Var)}


def nonnegative(e: Expr) -> bool:
    """Whether an index expression is shown to be at least 0 by its form."""
    match e:
        case Var():
            return True
        case Const(value, _):
            return value >= 0
        case Op("add" | "mul" | "floordiv" | "tdiv" | "cdiv" | "min" | "trem", args, _):
            return e.dtype == i64 and all(nonnegative(a) for a in args)
        case Op("max", args, _):
            return e.dtype == i64 and any(nonnegative(a) for a in args)
        case Op("mod", (_, Const(value, _)), _):
            return e.dtype == i64 and value > 0
    return False


Affine = dict[Expr | None, int]
"""Coefficients by atom (a Var, or an expression that is no sum); None is the constant."""


def affine(e: Expr) -> Affine:
    """An i64 expression as a sum of atoms with integer coefficients."""
    match e:
        case Const(value, _):
            return {None: int(value)}
        case Op("add", (a, b), _):
            return _plus(affine(a), affine(b), 1)
        case Op("sub", (a, b), _):
            return _plus(affine(a), affine(b), -1)
        case Op("neg", (a,), _):
            return _plus({}, affine(a), -1)
        case Op("mul", (a, Const(value, _)), _) | Op("mul", (Const(value, _), a), _):
            return _plus({}, affine(a), int(value))
    return {e: 1}


def _plus(a: Affine, b: Affine, factor: int) -> Affine:
    total = dict(a)
    for atom, c in b.items():
        total[atom] = total.get(atom, 0) + factor * c
    return {atom: c for atom, c in total.items() if c}


def at_first_lane(condition: Expr, lane: str) -> Expr | None:
    """`condition` with lane 0, where that says whether it holds for any lane of `lane`: an upper
    bound whose left side grows with the lane. None where it is of another form."""
    match condition:
        case Op("lt" | "le", (low, high), _) | Op("gt" | "ge", (high, low), _):
            difference = _plus(affine(low), affine(high), -1)
        case _:
            return None
    if low.dtype != i64:
        return None
    for atom, c in difference.items():
        if atom is None or lane not in names_in(atom):
            continue
        if not (isinstance(atom, Var) and c > 0):
            return None
    return simplify(substitute(condition, {lane: Const(0, i64)}))


def always(condition: Expr, extents: Mapping[str, Expr]) -> bool:
    """Whether a condition holds by what is known of the loops around: `v*c < n` under a loop
    `v: cdiv(n, c)`, or `v < n` under `v: n`."""
    match condition:
        case Const(True, _):
            return True
        case Op("lt", (low, high), _):
            form = affine(low)
            if len(form) != 1:
                return form == {} and isinstance(high, Const) and high.value > 0
            ((atom, c),) = form.items()
            if not isinstance(atom, Var) or atom.name not in extents or c < 1:
                return False
            extent = extents[atom.name]
            if c == 1 and extent == high:
                return True
            if isinstance(extent, Const) and isinstance(high, Const):
                return (int(extent.value) - 1) * c < int(high.value)
            return extent == Op("cdiv", (high, Const(c, i64)), i64)
    return False


def injective(indices: Sequence[Expr], extents: Mapping[str, Expr], wanted: set[str]) -> bool:
    """Whether different values of the loops `wanted` are shown to address different elements,
    whatever the other loops (`extents` has all of them) do.

    True where each of them occurs in an index that is a mixed-radix number in the loops
    (`jo*128 + j` with j: 128), other terms of which are fixed.
    """
    covered: set[str] = set()
    for index in indices:
        covered |= _radix(index, extents)
    return wanted <= covered


def _radix(index: Expr, extents: Mapping[str, Expr]) -> set[str]:
    """The loops of an index that is a mixed-radix number in them; else none."""
    terms: list[tuple[int, str]] = []
    for atom, c in affine(index).items():
        if isinstance(atom, Var):
            if atom.name in extents:
                terms.append((abs(c), atom.name))
        elif atom is not None and (names_in(atom) & set(extents) or _reads(atom)):
            return set()
    reach: int | None = 0
    for c, name in sorted(terms):
        if reach is None or c <= reach:
            return set()
        extent = extents[name]
        reach = reach + c * (int(extent.value) - 1) if isinstance(extent, Const) else None
    return {name for _, name in terms}


def _reads(e: Expr) -> bool:
    return any(isinstance(n, Read) for n in walk(e))
