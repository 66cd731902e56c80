"""Places inside definitions: a definition's name and a path of child numbers.

`()` is the definition's whole value; `(0, 1)` is child 1 of child 0, numbered as `kir.ir.children`
orders them (of a reduction: its axes, its conditions, then its body).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from kir.ir import (
    TRUE,
    Axis,
    Buffer,
    Define,
    Expr,
    If,
    Kernel,
    Loop,
    Node,
    Param,
    Read,
    Reduce,
    Stmt,
    Store,
    Var,
    children,
    const,
    kept,
    rebuild,
    substitute,
    walk,
)
from kir.ops import op
from kir.rewrites.base import Block, Move, free_vars, path_to, refuse, replace_stmt, statements
from kir.simplify import simplify

Path = tuple[int, ...]
Valued = Define | Store
N = TypeVar("N", bound=Node)


@dataclass(frozen=True)
class Place:
    """The expression at `path` of the value of `stmt`, and the reductions that it is inside of,
    outermost first. `fixed`: inside an index of a read or a condition of a reduction, which stay
    as they are so that they stay affine."""

    stmt: Valued
    path: Path
    expr: Expr
    reductions: tuple[Reduce, ...] = ()
    fixed: bool = False

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The indices in scope here that the statement binds: its own, then the reductions'."""
        own = self.stmt.axes if isinstance(self.stmt, Define) else ()
        return (*own, *(a for r in self.reductions for a in r.axes))


@kept
def tensors_read(node: Node) -> frozenset[str]:
    """The tensors that are read in or below a node."""
    below = frozenset[str]().union(*(tensors_read(c) for c in children(node)))
    return below | {node.tensor} if isinstance(node, Read) else below


def reads_of(node: Node, tensor: str) -> Iterator[Read]:
    """Every read of a tensor, in the order of the text."""
    if tensor in tensors_read(node):
        if isinstance(node, Read) and node.tensor == tensor:
            yield node
        for child in children(node):
            yield from reads_of(child, tensor)


def replace_reads(node: N, tensor: str, new: Callable[[Read], Expr]) -> N:
    """`node` with every read of a tensor replaced, those inside of others first."""

    def go(n: Node) -> Node:
        if tensor not in tensors_read(n):
            return n
        n = rebuild(n, go)
        return new(n) if isinstance(n, Read) and n.tensor == tensor else n

    return go(node)  # type: ignore[return-value]


# --- finding -----------------------------------------------------------------------------------


def find_define(kernel: Kernel, name: str) -> Define:
    """The one definition called `name`; RewriteError naming near ones where there is none."""
    known = [s for s in statements(kernel.body) if isinstance(s, Define)]
    found = [s for s in known if s.name == name]
    if len(found) == 1:
        return found[0]
    if found:
        refuse(kernel, f"`{name}` has {len(found)} definitions", node=found[1])
    _unknown(kernel, name, [s.name for s in known])
    raise AssertionError


def find_valued(kernel: Kernel, name: str, nth: int) -> Valued:
    """The definition called `name`, or number `nth` of the stores to it, from 0 in the order of
    the text; RewriteError naming near names where there is none."""
    known = [s for s in statements(kernel.body) if isinstance(s, Define | Store)]
    found = [s for s in known if name_of(s) == name]
    if 0 <= nth < len(found):
        return found[nth]
    if found:
        what = "statement gives" if len(found) == 1 else "statements give"
        refuse(
            kernel,
            f"{len(found)} {what} `{name}` its values, and `nth` is {nth}",
            node=found[0],
            hint="they are numbered from 0",
        )
    _unknown(kernel, name, [name_of(s) for s in known])
    raise AssertionError


def name_of(stmt: Valued) -> str:
    return stmt.name if isinstance(stmt, Define) else stmt.target


def valued(kernel: Kernel) -> Iterator[tuple[Valued, int]]:
    """Every definition and store, and which one it is of those of its name."""
    seen: dict[str, int] = {}
    for s in statements(kernel.body):
        if isinstance(s, Define | Store):
            name = name_of(s)
            yield s, seen.setdefault(name, 0)
            seen[name] += 1


def moves(rewrite: str, kernel: Kernel, fits: Callable[[Place], bool]) -> Iterator[Move]:
    """The moves at the places of definitions and stores that fit, addressed by name and path."""
    for stmt, nth in valued(kernel):
        chosen = (("nth", nth),) if nth else ()
        for p in places(stmt):
            if fits(p):
                yield Move(rewrite, (("definition", name_of(stmt)), ("path", p.path), *chosen))


def _unknown(kernel: Kernel, name: str, known: Sequence[str]) -> None:
    names = list(dict.fromkeys(known))
    near = difflib.get_close_matches(name, names, n=3)
    listed = ", ".join(f"`{n}`" for n in near or names)
    hint = f"did you mean {listed}?" if near else f"its definitions are {listed}"
    hint = hint if names else "it is in loops already"
    refuse(kernel, f"`{kernel.name}` has no definition `{name}`", hint=hint)


def find_place(kernel: Kernel, stmt: Valued, path: Path) -> Place:
    """The place at `path`; RewriteError where the path leaves the expression."""
    node: Node = stmt.value
    around: list[Reduce] = []
    fixed = False
    for depth, number in enumerate(path):
        below = list(children(node))
        if not 0 <= number < len(below):
            place = f"({', '.join(map(str, path[:depth]))})"
            numbers = "part, number 0" if len(below) == 1 else "parts, numbered from 0"
            parts = f"{len(below)} {numbers}" if below else "no parts"
            refuse(
                kernel,
                f"there is no part {number} at the place {place} of `{name_of(stmt)}`",
                node=node,
                hint=f"this has {parts}",
            )
        if isinstance(node, Reduce):
            around.append(node)
        fixed = fixed or _is_fixed(node, number)
        node = below[number]
    if not isinstance(node, Expr):
        refuse(kernel, "the place is an index with its extent, and no value", node=node)
    return Place(stmt, path, node, tuple(around), fixed)


def _is_fixed(parent: Node, number: int) -> bool:
    if isinstance(parent, Read):
        return number < len(parent.indices)
    return isinstance(parent, Reduce) and number < len(parent.axes) + len(parent.where)


def places(stmt: Valued) -> Iterator[Place]:
    """Every expression inside the value, itself first; extents of indices are left out."""

    def go(e: Expr, path: Path, around: tuple[Reduce, ...], fixed: bool) -> Iterator[Place]:
        yield Place(stmt, path, e, around, fixed)
        inner = (*around, e) if isinstance(e, Reduce) else around
        for n, child in enumerate(children(e)):
            if isinstance(child, Expr):
                yield from go(child, (*path, n), inner, fixed or _is_fixed(e, n))

    return go(stmt.value, (), (), False)


# --- editing -----------------------------------------------------------------------------------


def put(stmt: Valued, path: Path, new: Expr) -> Valued:
    """The statement with `new` at `path`."""

    def go(node: Node, rest: Path) -> Node:
        if not rest:
            return new
        below = list(children(node))
        target = below[rest[0]]
        count = iter(range(len(below)))
        return rebuild(node, lambda n: go(target, rest[1:]) if next(count) == rest[0] else n)

    value = go(stmt.value, path)
    assert isinstance(value, Expr)
    return replace(stmt, value=value)


def replace_at(kernel: Kernel, place: Place, new: Expr, ahead: Block = ()) -> Kernel:
    """The kernel with `new` at a place, and the statements `ahead` before its statement."""
    return replace_stmt(kernel, place.stmt, (*ahead, put(place.stmt, place.path, new)))


# --- what holds at a place ---------------------------------------------------------------------


def always(kernel: Kernel, stmt: Stmt, axes: Sequence[Axis], condition: Expr) -> bool:
    """Whether a condition over `axes`, the loops around `stmt` and the dims is shown to hold
    wherever `stmt` runs; by `kir.simplify`, in which the constraints of the kernel count."""
    low = _least_dims(kernel)
    test: Stmt = Define("?", tuple(axes), condition)
    for around in reversed(path_to(kernel.body, stmt) or ()):
        assert isinstance(around, Loop | If)
        test = replace(around, body=(test,))
    done = simplify(test, low)
    return all(s.value == TRUE for s in statements((done,)) if isinstance(s, Define))


def _least_dims(kernel: Kernel) -> dict[str, tuple[int | None, int | None]]:
    """What constraints of the form `N >= 1`, `N > 0`, `N == 4` say of the dims."""
    ranges: dict[str, tuple[int | None, int | None]] = {
        d.name: (0 if d.default is None else None, None) for d in kernel.dims
    }
    for c in kernel.constraints:
        name, least, most = _limits(c)
        if name in ranges:
            low, high = ranges[name]
            low = least if low is None or (least is not None and least > low) else low
            high = most if high is None or (most is not None and most < high) else high
            ranges[name] = (low, high)
    return ranges


def _limits(c: Expr) -> tuple[str, int | None, int | None]:
    parts = list(children(c))
    if len(parts) != 2 or not isinstance(parts[0], Var):
        return "", None, None
    value = simplify(parts[1])
    number = getattr(value, "value", None)
    if type(number) is not int:
        return "", None, None
    name = parts[0].name
    match getattr(c, "name", ""):
        case "ge":
            return name, number, None
        case "gt":
            return name, number + 1, None
        case "le":
            return name, None, number
        case "lt":
            return name, None, number - 1
        case "eq":
            return name, number, number
    return "", None, None


def never_empty(kernel: Kernel, place: Place, reduction: Reduce) -> bool:
    """Whether the reduction, at a place of its statement, has at least one term wherever it is
    computed. The witness tried is index 0, and each index in scope, for all its axes."""
    for witness in (const(0), *(Var(a.name) for a in place.axes)):
        at: dict[str, Expr] = {a.name: witness for a in reduction.axes}
        conditions: list[Expr] = [
            op("lt", witness, substitute(a.extent, at)) for a in reduction.axes
        ]
        conditions += [substitute(c, at) for c in reduction.where]
        if all(always(kernel, place.stmt, place.axes, c) for c in conditions):
            return True
    return False


def not_empty(axes: Sequence[Axis]) -> Expr:
    """The condition that every extent is at least 1."""
    made: Expr = op("gt", axes[0].extent, const(0))
    for a in axes[1:]:
        made = op("and", made, op("gt", a.extent, const(0)))
    return made


def in_bounds(kernel: Kernel, stmt: Stmt, axes: Sequence[Axis], exprs: Iterable[Expr]) -> bool:
    """Whether every read in `exprs` is shown to be in bounds for all values of `axes`, right
    before `stmt`: by the extents where they are the same, else by integer sets."""
    shapes = shapes_of(kernel)
    extents = {a.name: a.extent for a in axes}
    exprs = tuple(exprs)
    doubtful = [
        n
        for e in exprs
        for n in walk(e)
        if isinstance(n, Read) and n.fill is None and not _plain(n, shapes, extents)
    ]
    if not doubtful:
        return True
    from kir.analysis import model_of  # integer sets: not needed by most places
    from kir.analysis.cover import escape, reads_data

    if any(reads_data(i) for n in doubtful for i in n.indices):
        return False
    dims = {d.name for d in kernel.dims}
    known = {n: s for n, s in shapes.items() if all(free_vars(e) <= dims for e in s)}
    if any(n.tensor not in known for n in doubtful):
        return False
    test: Stmt = If(TRUE, tuple(Define(f"?{k}", tuple(axes), e) for k, e in enumerate(exprs)))
    for around in reversed(path_to(kernel.body, stmt) or ()):
        assert isinstance(around, Loop | If)
        test = replace(around, body=(test,))
    types = {n.tensor: n.type for n in walk(test) if isinstance(n, Read)}
    if any(t not in known for t in types):
        return False
    params = tuple(Param(t, types[t], known[t]) for t in types)
    model = model_of(replace(kernel, inputs=params, outputs=(), body=(test,)))
    return all(
        escape(model, a) is None
        for a in model.accesses
        if a.kind == "read" and any(a.node is n for n in doubtful)
    )


def shapes_of(kernel: Kernel) -> dict[str, tuple[Expr, ...]]:
    """The shape of every tensor; a slice of a recurrence has the index as its extent."""
    shapes = {p.name: p.shape for p in kernel.params}
    for s in statements(kernel.body):
        if isinstance(s, Buffer):
            shapes[s.name] = s.shape
        elif isinstance(s, Define):
            extents = tuple(d.extent if isinstance(d, Axis) else d for d in s.dims)
            shapes.setdefault(s.name, extents)
    return shapes


def _plain(read: Read, shapes: dict[str, tuple[Expr, ...]], extents: dict[str, Expr]) -> bool:
    """Whether each index is a bare one that runs over just the extent of its dimension."""
    shape = shapes.get(read.tensor)
    return shape is not None and all(
        isinstance(i, Var) and extents.get(i.name) == s
        for i, s in zip(read.indices, shape, strict=True)
    )
