"""Windows: which box of a tensor the statements of a block touch, and what is written when.

A window is, per dim, an offset that the block does not change and a size; `stage`, `contract` and
`compute_at` all move such a window into a buffer of its own. What structure does not show is put
to the integer sets of `kir.analysis`, relative to one iteration of the block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from kir.ir import (
    TRUE,
    Axis,
    Buffer,
    Const,
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
    const,
    kept,
    rebuild,
    walk,
)
from kir.ops import op
from kir.rewrites.base import Block, buffers_of, path_to, var_names
from kir.rewrites.legality import Access
from kir.simplify import Interval, Linear, interval, linear, simplify


@dataclass(frozen=True)
class Window:
    """Of one dim: the first index of the window, and how many there are."""

    base: Expr
    size: Expr


@dataclass(frozen=True)
class Use:
    """An access, and the loops and guards of the block around it, outermost first."""

    access: Access
    around: tuple[Loop | If, ...]

    @property
    def loops(self) -> tuple[Loop, ...]:
        return tuple(s for s in self.around if isinstance(s, Loop))

    @property
    def padded(self) -> bool:
        return isinstance(self.access.node, Read) and self.access.node.fill is not None


def uses_of(tensor: str, body: Iterable[Stmt]) -> list[Use]:
    """Every access to the `tensor` that is declared outside of `body`, in the order of the text."""
    found: list[Use] = []
    _collect(tensor, body, (), found)
    return found


def _collect(
    tensor: str, body: Iterable[Stmt], around: tuple[Loop | If, ...], found: list[Use]
) -> None:
    for s in body:
        if isinstance(s, Buffer) and s.name == tensor:
            return
        if tensor not in touched(s):
            continue
        if isinstance(s, Loop):
            _reads(tensor, s.axis.extent, around, found)
            for c in s.where:
                _reads(tensor, c, (*around, s), found)
            _collect(tensor, s.body, (*around, s), found)
        elif isinstance(s, If):
            _reads(tensor, s.condition, around, found)
            _collect(tensor, s.body, (*around, s), found)
        else:
            for child in children(s):
                _reads(tensor, child, around, found)
            if isinstance(s, Store) and s.target == tensor:
                found.append(Use(Access(tensor, s.indices, s.op or "write", s), around))


def _reads(tensor: str, expr: Node, around: tuple[Loop | If, ...], found: list[Use]) -> None:
    if tensor not in touched(expr):
        return
    if isinstance(expr, Read) and expr.tensor == tensor:
        found.append(Use(Access(tensor, expr.indices, "read", expr), around))
    for child in children(expr):
        _reads(tensor, child, around, found)


@kept
def touched(node: Node) -> frozenset[str]:
    """The tensors declared outside that are read or stored to below."""
    below = frozenset[str]().union(*(touched(c) for c in children(node)))
    if isinstance(node, Loop | If):
        return below.difference(s.name for s in node.body if isinstance(s, Buffer))
    if isinstance(node, Read):
        return below | {node.tensor}
    return below | {node.target} if isinstance(node, Store) else below


@kept
def stored(stmt: Stmt) -> frozenset[str]:
    """The tensors declared outside that a statement stores to."""
    if isinstance(stmt, Loop | If):
        below = frozenset[str]().union(*(stored(s) for s in stmt.body))
        return below.difference(s.name for s in stmt.body if isinstance(s, Buffer))
    return frozenset((stmt.target,)) if isinstance(stmt, Store) else frozenset()


def written_in(body: Iterable[Stmt]) -> set[str]:
    """The tensors that a block stores to."""
    return {name for s in body for name in stored(s)}


def changing_in(body: Block) -> set[str]:
    """The tensors that are not the same all the while a block runs, or not known before it."""
    return written_in(body) | {b.name for b in buffers_of(body)}


def mentions(stmt: Stmt, tensor: str) -> bool:
    """Whether a statement reads or stores to `tensor`."""
    return tensor in touched(stmt)


def redirect(stmt: Stmt, tensor: str, visit: Callable[[Read | Store], Node]) -> Stmt:
    """The statement with `visit` applied to each access of `tensor`, inner ones first."""

    def go(n: Node) -> Node:
        if tensor not in touched(n):
            return n
        n = rebuild(n, go)
        mine = (isinstance(n, Read) and n.tensor == tensor) or (
            isinstance(n, Store) and n.target == tensor
        )
        return visit(n) if mine else n  # type: ignore[arg-type]

    done = go(stmt)
    assert isinstance(done, Stmt)
    return done


# --- windows ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class NoWindow:
    """Why some uses have no window, and which one shows it."""

    reason: str
    node: Node


def window(uses: Sequence[Use], dim: int, changing: set[str] | None = None) -> Window | NoWindow:
    """The interval that the indices of `uses` in one dim go through while the loops around them
    run. Indices may be read from tensors that are not in `changing`; None: from no tensor.
    """
    total: _Form | None = None
    for use in uses:
        form = _form(use, use.access.indices[dim], changing)
        joined = form if total is None or isinstance(form, str) else total.join(form)
        if isinstance(joined, str):
            return NoWindow(joined, use.access.node)
        total = joined
    assert total is not None
    base = Linear(dict(total.offset.terms))
    base.add(total.low)
    size = Linear(dict(total.high.terms), total.high.constant + 1)
    size.add(total.low, -1)
    inner = {x.axis.name for use in uses for x in use.loops}
    found = Window(base.cleaned().build(), size.cleaned().build())
    if (var_names(found.size) | var_names(found.base)) & inner:
        return NoWindow("the extent of the window changes inside the loop", uses[0].access.node)
    return found


@dataclass
class _Form:
    """An index as `offset + v`, where `low <= v <= high`."""

    offset: Linear
    low: Linear
    high: Linear

    def join(self, other: _Form) -> _Form | str:
        if self.offset.terms != other.offset.terms:
            return "the accesses go through windows that move apart"
        low, high = self.low, self.high
        if low.terms != other.low.terms or high.terms != other.high.terms:
            return "the accesses go through windows of different size"
        return _Form(
            self.offset,
            Linear(low.terms, min(low.constant, other.low.constant)),
            Linear(high.terms, max(high.constant, other.high.constant)),
        )


def _form(use: Use, index: Expr, changing: set[str] | None) -> _Form | str:
    ranges: dict[str, Interval] = {}
    extents: dict[str, Expr] = {}
    for loop in use.loops:
        high = interval(loop.axis.extent, ranges)[1]
        ranges[loop.axis.name] = (0, None if high is None else max(high - 1, 0))
        extents[loop.axis.name] = loop.axis.extent
    form = linear(index)
    offset, low, top = Linear(), Linear(constant=form.constant), Linear(constant=form.constant)
    unbounded: list[tuple[Linear, int]] = []
    for atom, c in form.terms.items():
        reads = {n.tensor for n in walk(atom) if isinstance(n, Read)}
        if reads and (changing is None or reads & changing or var_names(atom) & set(extents)):
            return "an index read from a tensor has no window"
        if not var_names(atom) & set(extents):
            offset.add(Linear({atom: c}))
            continue
        least, most = interval(atom, ranges)
        if isinstance(atom, Var) and most is None:
            unbounded.append((linear(extents[atom.name]), c))
        elif least is None or most is None:
            return "the window has no bound"
        else:
            low.constant += min(c * least, c * most)
            top.constant += max(c * least, c * most)
    # an index of extent E goes to c * (E - 1): at most c * E, less what keeps the size from
    # being negative where E is 0
    spare = top.constant - low.constant + 1
    for extent, c in unbounded:
        less = min(abs(c), spare)
        spare -= less
        (top if c > 0 else low).add(extent, c)
        (top if c > 0 else low).constant -= less if c > 0 else -less
    return _Form(offset.cleaned(), low.cleaned(), top.cleaned())


# --- what always holds -------------------------------------------------------------------------


def always(kernel: Kernel, around: Sequence[Stmt], condition: Expr) -> bool:
    """Whether a condition holds wherever the loops and guards `around` are: by index algebra."""
    value: Expr = condition
    for s in reversed(around):
        axes = (s.axis,) if isinstance(s, Loop) else (Axis("_", const(1)),)
        where = s.where if isinstance(s, Loop) else (s.condition,) if isinstance(s, If) else ()
        value = Reduce("all", axes, where, value)
    ranges: dict[str, Interval] = {
        d.name: (None, None) for d in kernel.dims if d.default is not None
    }
    done = simplify(value, ranges)
    while isinstance(done, Reduce):
        done = done.body
    return done == TRUE


def between(index: Expr, extent: Expr) -> tuple[Expr, Expr]:
    """`0 <= index` and `index < extent`, as conditions."""
    return op("ge", index, const(0)), op("lt", index, extent)


def in_bounds(kernel: Kernel, around: Sequence[Stmt], index: Expr, extent: Expr) -> bool:
    """Whether an index stays in a dim, by index algebra: cheap, and not complete."""
    return all(always(kernel, around, c) for c in between(index, extent))


def surroundings(kernel: Kernel, stmt: Stmt) -> tuple[Stmt, ...]:
    """The loops and guards around `stmt`, and `stmt` itself."""
    return (*(path_to(kernel.body, stmt) or ()), stmt)


# --- iterations that share nothing -------------------------------------------------------------


def determines(indices: Sequence[Expr], loops: Sequence[Loop]) -> bool:
    """Whether different iterations of `loops` give different `indices`: each loop's index can be
    told from them (`i`, or `i_o*8 + i` with i < 8)."""
    return told_apart(indices, {x.axis.name: x.axis.extent for x in loops})


def disjoint(windows: Iterable[Window], loops: Sequence[Loop]) -> bool:
    """Whether the boxes of different iterations of `loops` have no element in common."""
    unknown = {x.axis.name: x.axis.extent for x in loops}
    indices = []
    for d, w in enumerate(windows):
        lane = f" {d}"  # no name of a program begins with a space
        unknown[lane] = w.size
        indices.append(op("add", w.base, Var(lane)))
    left = set(unknown) - {f" {d}" for d in range(len(indices))}
    return told_apart(indices, unknown, left)


def told_apart(
    indices: Sequence[Expr], extents: Mapping[str, Expr], wanted: set[str] | None = None
) -> bool:
    """Whether the values of `wanted` (all of `extents`) follow from those of `indices`."""
    unknown = {n: e for n, e in extents.items() if e != const(1)}
    changed = True
    while unknown and changed:
        changed = False
        for e in indices:
            form = linear(e)
            mine = {a.name: c for a, c in form.terms.items() if isinstance(a, Var)}
            mine = {n: c for n, c in mine.items() if n in unknown}
            others = [a for a in form.terms if not isinstance(a, Var)]
            if not mine or any(var_names(a) & set(unknown) for a in others):
                continue
            if _mixed_radix(mine, unknown):
                for n in mine:
                    del unknown[n]
                changed = True
    return not (unknown if wanted is None else set(unknown) & wanted)


def _mixed_radix(coefficients: dict[str, int], extents: dict[str, Expr]) -> bool:
    reach = 0
    ordered = sorted(coefficients.items(), key=lambda t: (abs(t[1]), t[0]))
    for k, (name, c) in enumerate(ordered):
        extent = extents[name]
        if abs(c) <= reach:
            return False
        if isinstance(extent, Const):
            reach += abs(c) * (int(extent.value) - 1)
        elif k < len(ordered) - 1:
            return False
    return True


# --- filled before it is read ------------------------------------------------------------------


def fills_windows(
    stmt: Stmt,
    name: str,
    windows: Mapping[int, Window],
    shape: Sequence[Expr],
    loops: tuple[Loop, ...] = (),
) -> bool:
    """Whether `stmt` stores every element of `windows` (by dim) that lies within `shape`, before
    it reads any."""
    if isinstance(stmt, Store):
        if stmt.target != name or stmt.op is not None:
            return False
        reads = any(isinstance(n, Read) and n.tensor == name for n in walk(stmt))
        return not reads and _covers(stmt, windows, shape, loops)
    if isinstance(stmt, Loop) and stmt.kind != "grid":
        first = next((s for s in stmt.body if mentions(s, name)), None)
        if first is None or not fills_windows(first, name, windows, shape, (*loops, stmt)):
            return False
        # what else stands in these loops runs before the last element is stored
        found = [u.access.indices for u in uses_of(name, stmt.body)]
        return all(at[d] == found[0][d] for at in found for d in windows)
    return False


def _covers(
    store: Store, windows: Mapping[int, Window], shape: Sequence[Expr], loops: tuple[Loop, ...]
) -> bool:
    """Whether the loops around a store take its indices through all of the windows."""
    left = {x.axis.name: x.axis.extent for x in loops}
    allowed: set[Expr] = set()
    for d, w in windows.items():
        form = linear(op("sub", store.indices[d], w.base))
        terms = sorted(((c, a) for a, c in form.terms.items()), key=lambda t: t[0])
        reach = 1
        for k, (c, atom) in enumerate(terms):
            if not isinstance(atom, Var) or atom.name not in left or c != reach:
                return False
            size = left.pop(atom.name)
            if k == len(terms) - 1:
                whole = simplify(op("cdiv", w.size, const(reach)))
                exact = simplify(op("mul", size, const(reach))) == simplify(w.size)
                if size != whole and not exact:
                    return False
                reach = 0
            elif isinstance(size, Const):
                reach *= int(size.value)
            else:
                return False
        if form.constant or (not terms and w.size != const(1)):
            return False
        allowed.update(simplify(c) for c in between(store.indices[d], shape[d]))
        allowed.add(simplify(op("lt", store.indices[d], op("add", w.base, w.size))))
    if any(not isinstance(e, Const) or int(e.value) < 1 for e in left.values()):
        return False
    masks = [c for x in loops for c in x.where]
    return all(simplify(c) in allowed for c in masks)


def loops_in(path: Sequence[Stmt]) -> list[Loop]:
    return [s for s in path if isinstance(s, Loop)]


def after(block: Block, stmt: Stmt) -> Block:
    """What follows `stmt` (found by identity) in its block."""
    at = next((k for k, s in enumerate(block) if s is stmt), -1)
    return block[at + 1 :]


def block_of(body: Block, stmt: Stmt) -> Block:
    """The block that holds `stmt`."""
    around = path_to(body, stmt)
    assert around is not None
    if not around:
        return body
    last = around[-1]
    assert isinstance(last, Loop | If)
    return last.body
