"""Stores with what is around them, and small questions about nests: for `online`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from kir.ir import Const, Expr, If, Loop, Op, Read, Stmt, Store, Var, substitute, walk
from kir.ops import op
from kir.rewrites.base import Block, statements, var_names
from kir.simplify import linear, simplify


@dataclass(frozen=True)
class Place:
    """A statement with the loops around it (from the loop at hand inwards) and all conditions."""

    stmt: Store
    loops: tuple[Loop, ...]
    conditions: tuple[Expr, ...]


def places(loop: Loop) -> Iterator[Place]:
    def go(body: Block, loops: tuple[Loop, ...], where: tuple[Expr, ...]) -> Iterator[Place]:
        for s in body:
            if isinstance(s, Store):
                yield Place(s, loops, where)
            elif isinstance(s, Loop):
                yield from go(s.body, (*loops, s), (*where, *s.where))
            elif isinstance(s, If):
                yield from go(s.body, loops, (*where, s.condition))

    yield from go(loop.body, (loop,), loop.where)


def is_zero(e: Expr) -> bool:
    return isinstance(e, Const) and not e.dtype.is_bool and e.value == 0


def uses(body: Iterable[Stmt]) -> dict[str, list[tuple[Expr, ...]]]:
    """By tensor, the indices of every access."""
    found: dict[str, list[tuple[Expr, ...]]] = {}
    for s in body:
        for n in walk(s):
            match n:
                case Read(tensor, at) | Store(tensor, at):
                    found.setdefault(tensor, []).append(at)
    return found


def stored(body: Iterable[Stmt]) -> set[str]:
    """The tensors that are stored to."""
    return {s.target for s in statements(body) if isinstance(s, Store)}


def renamings(second: tuple[Loop, ...], first: tuple[Loop, ...]) -> Iterator[dict[str, Expr]]:
    """Ways to call loops of `second` what those of `first` are called: in order, the outermost
    ones alike, extents equal."""

    def go(k: int, start: int, here: dict[str, Expr]) -> Iterator[dict[str, Expr]]:
        if k == len(first):
            yield here
            return
        for n in range(start, len(second) if k else 1):
            extent = substitute(second[n].axis.extent, here)
            if extent == first[k].axis.extent:
                name = second[n].axis.name
                yield from go(k + 1, n + 1, {**here, name: Var(first[k].axis.name)})

    yield from go(0, 0, {})


def grows(condition: Expr, names: set[str]) -> bool:
    """Whether a condition that holds for some indices holds where they are 0: an upper bound on
    a sum of them."""
    match condition:
        case Op("and", (a, b), _):
            return all(grows(c, names) or not var_names(c) & names for c in (a, b))
        case Op("lt" | "le", (low, high), _) | Op("gt" | "ge", (high, low), _):
            if low.dtype != high.dtype or var_names(high) & names:
                return False
            form = linear(low)
            moving = {t: c for t, c in form.terms.items() if var_names(t) & names}
            return all(isinstance(t, Var) and c > 0 for t, c in moving.items())
    return False


def counted(extent: Expr) -> Expr:
    """What is positive just when `extent` is."""
    match extent:
        case Op("cdiv", (whole, Const(c)), _) if c > 0:
            return whole
    return extent


def iterations(place: Place, loops: Sequence[Loop]) -> Expr | None:
    """How often a statement runs in these loops, as an integer; None where that is not plain.

    A loop split in two, the inner one masked at the end, counts as the whole one.
    """
    inside = {x.axis.name for x in loops}
    masks = [c for c in place.conditions if var_names(c) & inside]
    total: Expr = Const(1, loops[0].axis.extent.dtype)
    k = 0
    while k < len(loops):
        extent = loops[k].axis.extent
        if var_names(extent) & inside:
            return None
        match extent:
            case Op("cdiv", (whole, Const(c)), _) if k + 1 < len(loops) and masks:
                outer, inner = Var(loops[k].axis.name), Var(loops[k + 1].axis.name)
                index = op("add", op("mul", outer, Const(c, extent.dtype)), inner)
                mask = op("lt", index, whole)
                if mask in masks and loops[k + 1].axis.extent == Const(c, extent.dtype):
                    masks.remove(mask)
                    extent, k = whole, k + 1
        total, k = op("mul", total, extent), k + 1
    return None if masks else simplify(total)
