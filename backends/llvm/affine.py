"""What the emitter asks of an index expression: coefficients, corners, divisibility."""

from __future__ import annotations

from collections.abc import Mapping

from kir.ir import Const, Expr, Node, Op, Read, Var, const, substitute, walk
from kir.ops import op


def mentions(node: Node, name: str) -> bool:
    """Whether the index `name` occurs in an expression or statement."""
    return any(isinstance(n, Var) and n.name == name for n in walk(node))


def names(node: Node) -> set[str]:
    return {n.name for n in walk(node) if isinstance(n, Var)}


def coefficient(e: Expr, name: str) -> int | None:
    """c where e = c * name + (what does not mention it); None where e has no such form."""
    if isinstance(e, Var):
        return int(e.name == name)
    if isinstance(e, Const):
        return 0
    if isinstance(e, Op) and e.name in ("add", "sub", "neg"):
        parts = [coefficient(a, name) for a in e.args]
        if None in parts:
            return None
        first = parts[0] or 0
        if e.name == "neg":
            return -first
        second = parts[1] or 0
        return first + second if e.name == "add" else first - second
    if isinstance(e, Op) and e.name == "mul":
        a, b = e.args
        if isinstance(a, Const):
            a, b = b, a
        if isinstance(b, Const):
            inner = coefficient(a, name)
            return None if inner is None else inner * int(b.value)
    return None if mentions(e, name) else 0


def multiple_of(e: Expr, factor: int, known: Mapping[str, int]) -> bool:
    """Whether an index is certainly a multiple of `factor`; `known` gives factors of indices."""
    if isinstance(e, Const):
        return int(e.value) % factor == 0
    if isinstance(e, Var):
        return known.get(e.name, 1) % factor == 0
    if isinstance(e, Op) and e.name in ("add", "sub"):
        return all(multiple_of(a, factor, known) for a in e.args)
    if isinstance(e, Op) and e.name == "mul":
        return any(multiple_of(a, factor, known) for a in e.args)
    return False


def worst_case(condition: Expr, extents: Mapping[str, int]) -> Expr | None:
    """The comparison at the corner of the box 0 <= v < extents[v] where it is hardest to meet.

    It holds there only if it holds in all of the box. None for what is no affine comparison.
    """
    if not (isinstance(condition, Op) and condition.name in ("lt", "le", "gt", "ge")):
        return None
    a, b = condition.args
    rises = condition.name in ("lt", "le")
    corner: dict[str, Expr] = {}
    for name, extent in extents.items():
        left, right = coefficient(a, name), coefficient(b, name)
        if left is None or right is None:
            return None
        corner[name] = const(extent - 1 if (left > right) == rises else 0)
    return substitute(condition, corner)


def conjuncts(condition: Expr) -> list[Expr]:
    if isinstance(condition, Op) and condition.name == "and":
        return [c for a in condition.args for c in conjuncts(a)]
    return [condition]


def reads_memory(e: Expr) -> bool:
    return any(isinstance(n, Read) for n in walk(e))


def product(extents: list[Expr]) -> Expr:
    result: Expr = const(1)
    for e in extents:
        result = e if isinstance(result, Const) and result.value == 1 else op("mul", result, e)
    return result


def same_floats(condition: Expr) -> tuple[Expr, Expr] | None:
    """x and y of `x == y or isnan(x) and isnan(y)` on floats; None for other conditions."""
    match condition:
        case Op("or", (Op("eq", (x, y)), Op("and", (Op("isnan", (a,)), Op("isnan", (c,)))))):
            return (x, y) if (x, y) == (a, c) and x.dtype.is_float else None
    return None
