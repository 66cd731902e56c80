"""When loops may be moved: a quick test of dependences first, integer sets where it fails.

The quick test is structural: two accesses to one tensor never meet at different iterations if
the difference of their indices, in some dimension, cannot make up for a step of the loop. What
it cannot prove is put to `kir.analysis`, which is exact on affine indices and much slower.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from kir.ir import (
    Axis,
    Buffer,
    Const,
    Define,
    Expr,
    If,
    Kernel,
    Loop,
    Node,
    Read,
    Reduce,
    Stmt,
    Store,
    Var,
    children,
    walk,
)
from kir.memo import kept, reads_of, vars_of
from kir.rewrites.base import (
    Block,
    Effect,
    buffers_of,
    edit_block,
    find_loop,
    loops_of,
    path_to,
    refuse,
    reindex,
)
from kir.simplify import Linear, interval, linear

Ranges = dict[str, tuple[int | None, int | None]]
Relation = Literal["later", "different"]


@dataclass(frozen=True)
class Access:
    """A read (`op` is "read"), a store ("write") or an update (its op) of `tensor[indices]`."""

    tensor: str
    indices: tuple[Expr, ...]
    op: str
    node: Node


@dataclass(frozen=True)
class Conflict:
    """Two accesses of one tensor that may meet, at least one of them a write."""

    first: Access
    second: Access

    def __str__(self) -> str:
        verbs = {"read": "read", "write": "written"}
        a, b = (verbs.get(x.op, "updated") for x in (self.first, self.second))
        return f"`{self.first.tensor}` is {a} in one iteration and {b} in another"


def accesses(body: Iterable[Stmt]) -> Iterator[Access]:
    """Every access to a tensor that is declared outside of `body`."""
    private: set[str] = set()
    for stmt in body:
        for a in _accesses(stmt):
            if a.tensor not in private:
                yield a
        if isinstance(stmt, Buffer):
            private.add(stmt.name)


def _accesses(node: Node) -> Iterable[Access]:
    """The accesses below to what is declared above, in the order of the text."""
    return _inside(node) if isinstance(node, (Loop, If)) else _of_leaf(node)


def _of_leaf(node: Node) -> Iterator[Access]:
    for n in walk(node):
        match n:
            case Read(tensor, indices):
                yield Access(tensor, indices, "read", n)
            case Store(target, indices, _, op):
                yield Access(target, indices, op or "write", n)
            case Define(name, dims):
                yield Access(name, tuple(Var(d.name) for d in dims), "write", n)


@kept
def _inside(node: Loop | If) -> tuple[Access, ...]:
    """Of a statement with a body: kept, as accesses refer to nodes below it only."""
    heads = (node.condition,) if isinstance(node, If) else (node.axis.extent, *node.where)
    return (*(a for e in heads for a in _of_leaf(e)), *accesses(node.body))


def conflict(first: Block, second: Block) -> Conflict | None:
    """What keeps two runs of statements from changing places; by tensor, indices aside."""
    one, two = list(accesses(first)), list(accesses(second))
    for a in one:
        for b in two:
            if a.tensor == b.tensor and _clash(a, b):
                return Conflict(a, b)
    declared = {b.name: b for b in buffers_of(first)}
    for b in two:
        if b.tensor in declared:
            return Conflict(Access(b.tensor, (), "write", declared[b.tensor]), b)
    return None


def carried(loop: Loop, *, reductions: bool = True) -> Conflict | None:
    """A dependence between two iterations of `loop`, the loops around it held fixed.

    Updates by one op are no dependence (a recognised reduction) unless `reductions` is False.
    """
    if isinstance(loop.axis.extent, Const) and int(loop.axis.extent.value) <= 1:
        return None
    found = list(accesses((loop,)))
    return _meeting(found, found, loop, loop, "different", _clash if reductions else _ordered)


def crossing(first: Loop, second: Loop) -> Conflict | None:
    """A dependence between an iteration of `first` and an *earlier* one of `second`: what keeps
    the two from running in lockstep (fusion), or apart if they do so now (fission)."""
    return _meeting(
        list(accesses((first,))), list(accesses((second,))), first, second, "later", _clash
    )


def order_of_updates(loop: Loop) -> Effect:
    """What another order of the iterations of `loop` does to float results: `exact` where no two
    iterations update one element."""
    found = list(accesses((loop,)))
    meet = _meeting(found, found, loop, loop, "different", _float_updates)
    return "exact" if meet is None else "reassociates"


def order_across(first: Loop, second: Loop) -> Effect:
    """What it does to float results that two loops run in lockstep, not one after the other."""
    one, two = list(accesses((first,))), list(accesses((second,)))
    meet = _meeting(one, two, first, second, "later", _float_updates)
    return "exact" if meet is None else "reassociates"


def order_of_blocks(first: Block, second: Block) -> Effect:
    """What it does to float results that two runs of statements change places."""
    one, two = list(accesses(first)), list(accesses(second))
    meet = any(a.tensor == b.tensor and _float_updates(a, b) for a in one for b in two)
    return "reassociates" if meet else "exact"


def parallel_conflict(kernel: Kernel, loop: Loop) -> str | None:
    """Why the iterations of `loop` are not independent (recognised reductions aside), or None."""
    if carried(loop) is None:
        return None
    from kir.analysis import parallel  # integer sets: not needed by most rewrites

    return parallel(kernel, loop).reason


def check_around(before: Kernel, after: Kernel, node: Stmt, reads: Collection[str]) -> None:
    """RewriteError where, in `after`, a grid or tile around what replaced `node` carries a
    dependence by elements of `reads`, now read in iterations that a condition excluded."""
    for loop in path_to(before.body, node) or ():
        if not isinstance(loop, Loop) or loop.kind not in ("grid", "tile"):
            continue
        if not any(a.op != "read" and a.tensor in reads for a in accesses(loop.body)):
            continue
        found = parallel_conflict(after, find_loop(after, loop.axis.name))
        if found:
            refuse(
                before,
                f"it would be computed in iterations of the {loop.kind} `{loop.axis.name}` that "
                f"must not wait for one another: {found}",
                node=loop,
            )


def fusion_conflict(kernel: Kernel, first: Loop, second: Loop) -> str | None:
    """Why two loops of a block, one after the other, cannot run in lockstep, or None."""
    if crossing(first, second) is None:
        return None
    from kir.analysis import fusion_legal

    return fusion_legal(kernel, first, second)


def fission_conflict(kernel: Kernel, loop: Loop, at: int) -> str | None:
    """Why `loop` cannot be cut before `body[at]`, by integer sets, or None."""
    from kir.analysis import fission_legal

    return fission_legal(kernel, loop, at)


def ahead_conflict(kernel: Kernel, loop: Loop, early: Block, rest: Block) -> str | None:
    """Why the statements `early` of the body of `loop`, which come first or may, cannot run
    before the `rest` of the body in earlier iterations, or None."""
    declared = tuple(s for s in loop.body if isinstance(s, Buffer))
    one, two = early, rest
    for b in declared:  # each iteration has its own
        one, two = (tuple(_per_iteration(s, b.name, loop) for s in x) for x in (one, two))
    if crossing(replace(loop, body=one), replace(loop, body=two)) is None:
        return None
    from kir.analysis import fission_legal

    others = tuple(s for s in rest if not isinstance(s, Buffer))
    made = replace(loop, body=(*declared, *early, *others))
    moved = edit_block(kernel, loop, lambda b, k: (*b[:k], made, *b[k + 1 :]))
    return fission_legal(moved, made, len(declared) + len(early))


def _per_iteration(stmt: Stmt, buffer: str, loop: Loop) -> Stmt:
    return reindex(stmt, buffer, lambda at: (Var(loop.axis.name), *at), buffer)


def reorder_conflict(kernel: Kernel, nest: Sequence[Loop], order: Sequence[Loop]) -> str | None:
    """Why a perfect nest cannot be nested as `order` says, by integer sets, or None."""
    from kir.analysis import reorder_legal

    return reorder_legal(kernel, nest, order)


def check_grids(kernel: Kernel, old: Loop, new: Loop) -> None:
    """RewriteError where `new` in the place of `old` would put a grid where none can be: its
    programs start from the host, so it stands under grids, these under `for`s alone, and uses no
    `local` or `reg` buffer from outside."""
    around = [s.kind for s in path_to(kernel.body, old) or () if isinstance(s, Loop)]
    if new.kind != "grid" and not any(x.kind == "grid" for x in loops_of(new.body)):
        return
    held = {b.name: b for b in buffers_of(kernel.body) if b.space != "global"}
    for grid, kinds in _grids((new,), around):
        node = old if grid is new else grid
        inner = kinds.index("grid") if "grid" in kinds else len(kinds)
        bad = [
            k for n, k in enumerate(kinds) if k in ("tile", "unroll") or (n > inner and k == "for")
        ]
        if bad:
            what = "a grid" if grid is new else f"the grid `{grid.axis.name}`"
            article = "an" if bad[-1] == "unroll" else "a"
            refuse(kernel, f"{what} cannot stand inside {article} {bad[-1]}", node=node)
        for access in accesses((grid,)):
            if access.tensor in held:
                refuse(
                    kernel,
                    f"`{access.tensor}` is in {held[access.tensor].space}, outside of the grid",
                    node=held[access.tensor],
                    hint="`contract` moves a buffer into the loops that use it",
                )


def _grids(body: Block, kinds: Sequence[str]) -> Iterator[tuple[Loop, Sequence[str]]]:
    """The grids in a block, each with the kinds of the loops around it, outermost first."""
    for s in body:
        if isinstance(s, Loop):
            if s.kind == "grid":
                yield s, kinds
            yield from _grids(s.body, [*kinds, s.kind])
        elif isinstance(s, If):
            yield from _grids(s.body, kinds)


def stored_in(conditions: Iterable[Expr], body: Block) -> bool:
    """Whether a condition reads a tensor that `body` stores to: then it matters when it is
    evaluated."""
    reads = {t for c in conditions for t in reads_of(c)}
    return bool(reads) and any(a.op != "read" and a.tensor in reads for a in accesses(body))


def _clash(a: Access, b: Access) -> bool:
    return not (a.op == b.op == "read") and not (a.op == b.op != "write")


def _ordered(a: Access, b: Access) -> bool:
    return not (a.op == b.op == "read")


def _float_updates(a: Access, b: Access) -> bool:
    """Whether the order of the two matters to the last bit, though they commute (`max` and `min`
    may differ in the sign of a zero)."""
    both = a.op == b.op and a.op not in ("read", "write")
    return both and isinstance(a.node, Store) and a.node.value.dtype.is_float


def _meeting(
    one: list[Access],
    two: list[Access],
    i: Loop,
    j: Loop,
    relation: Relation,
    clash: Callable[[Access, Access], bool],
) -> Conflict | None:
    ranges = {**_ranges(i), **_ranges(j)}
    written = {a.tensor for a in one if a.op != "read"} | {b.tensor for b in two if b.op != "read"}
    for a in one:
        if a.tensor not in written:
            continue
        for b in two:
            if a.tensor != b.tensor or not clash(a, b):
                continue
            if not _apart(a, b, i, j, ranges, relation, written):
                return Conflict(a, b)
    return None


@kept
def _ranges(node: Node) -> Ranges:
    """Bounds of the indices inside `node`, its own included."""
    found: Ranges = {}
    axes: tuple[Axis, ...] = ()
    if isinstance(node, Loop):
        axes = (node.axis,)
    elif isinstance(node, Reduce | Define):
        axes = node.axes
    for axis in axes:
        extent = axis.extent
        found[axis.name] = (0, extent.value - 1 if isinstance(extent, Const) else None)  # type: ignore[assignment]
    for below in children(node):
        found.update(_ranges(below))
    return found


def _apart(
    a: Access, b: Access, i: Loop, j: Loop, ranges: Ranges, relation: Relation, written: set[str]
) -> bool:
    """Whether some dimension keeps `a` at iteration i and `b` at iteration j from meeting, for
    all i > j ("later") or all i != j ("different")."""
    extents = [r[1] for r in (ranges[i.axis.name], ranges[j.axis.name])]
    reach = None if None in extents else max(x for x in extents if x is not None)
    for left, right in zip(a.indices, b.indices, strict=True):
        one, two = linear(left), linear(right)
        step = one.terms.pop(Var(i.axis.name), 0)
        if step != two.terms.pop(Var(j.axis.name), 0):
            continue
        low, high, unit = _difference(one, two, ranges, written)
        if step == 0:
            if (low is not None and low > 0) or (high is not None and high < 0):
                return True
            continue
        above = high is not None and high < abs(step)
        below = low is not None and low > -abs(step)
        strides = unit is not None and reach is not None and unit > abs(step) * reach
        if strides or (above and below):
            return True
        if relation == "later" and (above if step > 0 else below):
            return True
    return False


def _difference(
    one: Linear, two: Linear, ranges: Ranges, written: set[str]
) -> tuple[int | None, int | None, int | None]:
    """Bounds of `two - one`, and what it is a multiple of (None: nothing known). Terms that only
    hold what both iterations share cancel; others vary apart, even under one name."""
    total = Linear(constant=two.constant - one.constant)
    low: int | None = 0
    high: int | None = 0
    unit = abs(total.constant)
    for form, sign in ((one, -1), (two, 1)):
        for atom, coefficient in form.terms.items():
            c = sign * coefficient
            if vars_of(atom).isdisjoint(ranges) and written.isdisjoint(reads_of(atom)):
                total.add(Linear({atom: c}))
                continue
            least, most = interval(atom, ranges)
            least, most = (least, most) if c > 0 else (most, least)
            low = None if low is None or least is None else low + c * least
            high = None if high is None or most is None else high + c * most
            unit = math.gcd(unit, c)
    total = total.cleaned()
    for c in total.terms.values():
        unit = math.gcd(unit, c)
    shared = interval(total.build(), {})
    low = None if low is None or shared[0] is None else low + shared[0]
    high = None if high is None or shared[1] is None else high + shared[1]
    return low, high, unit if unit and not total.constant else None
