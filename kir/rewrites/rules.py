"""`rule`: a scalar law of `kir.rewrites.laws` at a place of a definition or a store."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar

from kir.dtypes import DType, bf16
from kir.ir import Const, Define, Expr, Kernel, Node, Op, Read, Reduce, rebuild
from kir.ops import OPS
from kir.rewrites.base import EFFECTS, Effect, Move, Rewrite, refuse, replace_stmt
from kir.rewrites.laws import BEYOND_THE_RING, CONDITIONS, GROUPS, LAWS, LETS, Law
from kir.rewrites.places import (
    Valued,
    find_place,
    find_valued,
    name_of,
    places,
    replace_at,
    valued,
)
from kir.syntax import parse_kernel

NAMES = ("a", "b", "c", "d", "x", "y", "k", "m")
CONDITION_NAMES = ("p", "q")
Bindings = dict[str, Expr]


@dataclass(frozen=True)
class Rule(Rewrite):
    """`rule(def, law, path = (0), nth = 0)`: one law of the table, at `path` or wherever it fits.

    Before::

        y[i: N] = exp(x[i]) / s[i]

    After `rule(y, exp_to_exp2)` and `rule(y, div_to_recip, path = ())`::

        y[i: N] = exp2(x[i] * 1.4426950216293335) * recip(s[i])

    `kir.rewrites.laws` lists the laws with their effects and bounds. A group of them (`strength`)
    stands for all its laws in turn, each wherever it fits. `nth` says which statement, where
    several store to the name. Indices of reads and conditions of reductions are left as they are:
    they stay affine. Refused where the law does not fit.
    """

    name: ClassVar[str] = "rule"
    effect: ClassVar[Effect] = "approximates"
    definition: str
    law: str
    path: tuple[int, ...] | None = None
    nth: int = 0

    @property
    def keeps_range(self) -> bool:
        return False

    def edit(self, kernel: Kernel) -> Kernel:
        laws = self._laws(kernel)
        stmt = find_valued(kernel, self.definition, self.nth)
        if self.path is None:
            new, used = _everywhere(stmt, laws)
            if not used:
                shown = laws[0].text if len(laws) == 1 else f"any of {self.law}"
                refuse(kernel, f"`{shown}` fits nowhere in `{self.definition}`", node=stmt)
            return replace_stmt(kernel, stmt, (new,))
        place = find_place(kernel, stmt, self.path)
        if place.fixed:
            refuse(kernel, "an index or a condition of a reduction stays as it is", node=place.expr)
        for law in laws:
            made = apply_law(law, place.expr)
            if made is not None:
                return replace_at(kernel, place, made)
        return refuse(
            kernel,
            f"`{laws[0].text}` does not fit here" if len(laws) == 1 else "no law fits here",
            node=place.expr,
            hint=_conditions(laws[0]) if len(laws) == 1 else None,
        )

    def _laws(self, kernel: Kernel) -> tuple[Law, ...]:
        if self.law in GROUPS:
            return tuple(LAWS[n] for n in GROUPS[self.law])
        if self.law not in LAWS:
            near = difflib.get_close_matches(self.law, (*LAWS, *GROUPS), n=3)
            listed = ", ".join(f"`{n}`" for n in near or GROUPS)
            refuse(
                kernel,
                f"there is no law `{self.law}`",
                hint=f"did you mean {listed}?" if near else f"groups of laws are {listed}",
            )
        return (LAWS[self.law],)

    @classmethod
    def candidates(cls, kernel: Kernel) -> Iterator[Move]:
        for stmt, nth in valued(kernel):
            chosen = (("nth", nth),) if nth else ()
            for place in places(stmt):
                if place.fixed:
                    continue
                for law in _fitting(place.expr):
                    at = (("definition", name_of(stmt)), ("law", law.name), ("path", place.path))
                    yield Move(cls.name, (*at, *chosen))

    def effect_on(self, kernel: Kernel) -> Effect:
        effects = [law.effect_for(dtype) for law, dtype in self._used(kernel)]
        return max(effects, key=EFFECTS.index, default="exact")

    def in_ring(self, kernel: Kernel) -> bool:
        return not any(_beyond_the_ring(law, t) for law, t in self._used(kernel))

    def _used(self, kernel: Kernel) -> list[tuple[Law, DType]]:
        """The laws that apply, each with the dtype of the place."""
        stmt = find_valued(kernel, self.definition, self.nth)
        if self.path is None:
            return _everywhere(stmt, self._laws(kernel))[1]
        place = find_place(kernel, stmt, self.path)
        found = next((w for w in self._laws(kernel) if apply_law(w, place.expr)), None)
        return [(found, _dtype(place.expr))] if found else []

    def bound(self) -> str:
        names = GROUPS.get(self.law, (self.law,))
        stated = [LAWS[n].bound() for n in names if n in LAWS]
        return "; ".join(s for s in stated if s)


def _beyond_the_ring(law: Law, dtype: DType) -> bool:
    """Whether the ring lacks a law, or knows its constant no more once it is rounded to 8 bits."""
    change_of_base = law.name in ("exp_to_exp2", "exp2_to_exp", "log_to_log2", "log2_to_log")
    few = dtype.mantissa < bf16.mantissa
    return dtype.is_float and (law.name in BEYOND_THE_RING or (change_of_base and few))


def _conditions(law: Law) -> str | None:
    if not law.when:
        return None
    return "the law asks that " + ", ".join(f"`{n}` is {what}" for n, what in law.when.items())


# --- patterns ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Typed:
    """A law for one dtype: its sides as expressions whose names are 0-d reads."""

    law: Law
    pattern: Expr
    replacement: Expr


@cache
def _typed(law: Law, dtype: DType) -> _Typed:
    """One law about `dtype`."""
    return _parsed((law,), dtype)[0]


@cache
def _by_root(dtype: DType) -> dict[str, tuple[_Typed, ...]]:
    """The laws about `dtype` by the op at the root of their patterns, parsed in one kernel."""
    found: dict[str, list[_Typed]] = {}
    for typed in _parsed(tuple(w for w in LAWS.values() if w.is_about(dtype)), dtype):
        assert isinstance(typed.pattern, Op)
        found.setdefault(typed.pattern.name, []).append(typed)
    return {name: tuple(laws) for name, laws in found.items()}


def _parsed(laws: tuple[Law, ...], dtype: DType) -> list[_Typed]:
    given = ", ".join(f"{n}: {dtype}" for n in NAMES)
    given += "".join(f", {n}: bool" for n in CONDITION_NAMES)
    lines = [f"kernel laws({given}) -> (out: {dtype}) {{"]
    for n, law in enumerate(laws):
        left, right = law.text.split(" -> ")
        lines.append(f"left_{n} = {left}\nright_{n} = {right}")
    kernel = parse_kernel("\n".join([*lines, "out = a", "}"]), "<laws>")
    sides = [s.value for s in kernel.body if isinstance(s, Define)]
    return [_Typed(law, sides[2 * n], sides[2 * n + 1]) for n, law in enumerate(laws)]


def _dtype(e: Expr) -> DType:
    """The dtype that a law at `e` is about: that of the operands, under comparisons and `not`."""
    while isinstance(e, Op) and e.name in _TESTS | {"not"}:
        inner = e.args[0]
        if e.name == "not" and not (isinstance(inner, Op) and inner.name in _TESTS):
            return e.dtype
        e = inner
        if not e.dtype.is_bool:
            return e.dtype
    return e.dtype


_TESTS = {d.name for d in OPS.values() if d.rule in ("compare", "test")}


def _abouts(e: Expr) -> tuple[DType, ...]:
    """Dtypes that a law at `e` may be about: its own, and that of what it compares."""
    return tuple(dict.fromkeys((e.dtype, _dtype(e))))


def _fitting(e: Expr) -> Iterator[Law]:
    if not isinstance(e, Op):
        return
    for dtype in _abouts(e):
        for typed in _by_root(dtype).get(e.name, ()):
            if _instance(typed, e) is not None:
                yield typed.law


def apply_law(law: Law, e: Expr) -> Expr | None:
    """What the law makes of `e`; None where it does not fit."""
    if not isinstance(e, Op):
        return None
    for dtype in _abouts(e):
        if law.is_about(dtype):
            made = _instance(_typed(law, dtype), e)
            if made is not None:
                return made
    return None


def _instance(typed: _Typed, e: Expr) -> Expr | None:
    law = typed.law
    for found in _match(typed.pattern, e, {}):
        if all(CONDITIONS[what](found[n]) for n, what in law.when.items()):
            if law.let:
                k = found["k"]
                assert isinstance(k, Const)
                found["m"] = Const(LETS[law.let](k.value, k.dtype), k.dtype)
            return _filled(typed.replacement, found)
    return None


def _match(pattern: Expr, e: Expr, bound: Bindings) -> Iterator[Bindings]:
    """Every way in which `e` is an instance of `pattern` that agrees with `bound`."""
    if isinstance(pattern, Read):
        name = pattern.tensor
        if name in bound:
            if bound[name] == e:
                yield bound
        elif e.dtype == pattern.dtype and (name != "k" or isinstance(e, Const)):
            yield {**bound, name: e}
        return
    if isinstance(pattern, Const):
        if pattern == e:
            yield bound
        return
    assert isinstance(pattern, Op)
    if not isinstance(e, Op) or e.name != pattern.name or e.type != pattern.type:
        return
    orders = [e.args, e.args[::-1]] if OPS[e.name].commutative and len(e.args) == 2 else [e.args]
    for args in orders:
        yield from _match_all(pattern.args, args, bound)


def _match_all(
    patterns: tuple[Expr, ...], args: tuple[Expr, ...], bound: Bindings
) -> Iterator[Bindings]:
    if not patterns:
        yield bound
        return
    for found in _match(patterns[0], args[0], bound):
        yield from _match_all(patterns[1:], args[1:], found)


def _filled(replacement: Expr, found: Bindings) -> Expr:
    if isinstance(replacement, Read):
        return found[replacement.tensor]
    if isinstance(replacement, Op):
        args = tuple(_filled(a, found) for a in replacement.args)
        return replace(replacement, args=args, span=None)
    return replace(replacement, span=None)


def _everywhere(stmt: Valued, laws: tuple[Law, ...]) -> tuple[Valued, list[tuple[Law, DType]]]:
    """The statement with each law in turn used wherever it fits, inner places first; what a law
    made is not looked at again by the same law."""
    used: list[tuple[Law, DType]] = []

    def go(e: Expr, law: Law) -> Expr:
        def visit(child: Node) -> Node:
            return go(child, law) if isinstance(child, Expr) else child

        if isinstance(e, Read):
            return e if e.fill is None else replace(e, fill=go(e.fill, law))
        if isinstance(e, Reduce):
            return replace(e, body=go(e.body, law))
        done = rebuild(e, visit)
        made = apply_law(law, done)
        if made is not None:
            used.append((law, _dtype(done)))
        return made or done

    value = stmt.value
    for law in laws:
        value = go(value, law)
    return replace(stmt, value=value), used
