"""Dependences: whether loops are parallel, and whether they may be fused, split apart, reordered.

Every question comes down to one: do two accesses of a tensor, one of them a write, meet in an
element at iterations that stand in a given relation? If the set of such meetings is empty, they
never do. What is not affine may meet anywhere in its known range.

Two updates by the same op commute (up to the rounding of floats), so they are no dependence
unless `ordered=True` asks for results equal to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations_with_replacement

from kir.analysis.model import Access, AxisFrame, Frames, Model, model_of
from kir.analysis.sets import Env, Text, Undecided
from kir.dtypes import DType
from kir.errors import UnknownNameError
from kir.ir import Const, Define, Expr, Kernel, Loop, Node, Read, Reduce, Store, Var, walk
from kir.simplify import Interval, Linear, interval, linear

LoopRef = str | Loop | AxisFrame


@dataclass(frozen=True)
class Conflict:
    """Two accesses that meet in one element, with an example where there is one."""

    first: Access
    second: Access
    example: dict[str, int] = field(default_factory=dict)
    iterations: tuple[tuple[str, int, int], ...] = ()
    """(loop, iteration of the first access, iteration of the second)."""
    element: tuple[int, ...] = ()
    decided: bool = True

    def __str__(self) -> str:
        one, two = describe(self.first), describe(self.second)
        name = self.first.decl.name
        if self.first is self.second:
            text = f"{one} may touch one element of `{name}` in two iterations"
        else:
            text = f"{one} and {two} may touch one element of `{name}`"
        if not self.decided:
            return f"{text} (too hard to decide)"
        where = ", ".join(f"`{n}` = {a} and `{n}` = {b}" for n, a, b in self.iterations)
        element = ", ".join(map(str, self.element))
        given = "".join(f", {n} = {v}" for n, v in self.example.items())
        return f"{text}: `{name}[{element}]` at {where}{given}"


@dataclass(frozen=True)
class Parallel:
    """Whether a loop's iterations are independent; true where they are, reductions aside."""

    loop: Loop
    conflict: Conflict | None
    reductions: tuple[Access, ...] = ()
    """Updates whose target iterations share: to be combined, or done atomically."""

    def __bool__(self) -> bool:
        return self.conflict is None

    @property
    def reason(self) -> str | None:
        return None if self.conflict is None else str(self.conflict)


def describe(a: Access) -> str:
    """An access in words: "the write `y[i + 1]`"."""
    from kir.syntax import format_expr  # the parser and printer use nothing of this package

    verb = {"read": "the read", "write": "the write", "update": "the update"}[a.kind]
    return f"{verb} `{format_expr(Read(a.decl.name, a.indices, _dtype(a.node)))}`"


def _dtype(node: Node) -> DType:
    assert isinstance(node, Read | Store | Define)
    return node.dtype if isinstance(node, Read) else node.value.dtype


# --- questions -----------------------------------------------------------------------------------


def parallel(kernel: Kernel, loop: LoopRef, *, ordered: bool = False) -> Parallel:
    """Whether `loop` carries no dependence: its iterations may run in any order, or at once."""
    model = model_of(kernel)
    axis, around = resolve(model, loop)
    assert axis.loop is not None
    inside = _inside(model, axis)
    written = _written(inside)
    reductions: list[Access] = []
    for a, b in combinations_with_replacement(inside, 2):
        if not _may_clash(a, b, axis, True):
            continue
        commute = _commute(a, b)
        if commute and a is not b and not ordered:
            continue
        found = meeting(model, a, b, around, written, [(axis, axis, "<" if a is b else "!=")])
        if found is None:
            continue
        if commute and not ordered:
            reductions.append(a)
        else:
            return Parallel(axis.loop, found)
    return Parallel(axis.loop, None, tuple(reductions))


def fusion_legal(
    kernel: Kernel, first: LoopRef, second: LoopRef, *, ordered: bool = False
) -> str | None:
    """None where two loops, `first` before `second` in one block, may run iteration by iteration
    together; else why not."""
    model = model_of(kernel)
    (a, around), (b, beside) = resolve(model, first), resolve(model, second)
    if len(around) != len(beside) or any(x is not y for x, y in zip(around, beside, strict=True)):
        return f"`{a.name}` and `{b.name}` stand in different blocks"
    if not _equal_extents(model, a, b, around):
        return f"the extents of `{a.name}` and `{b.name}` are not known to be equal"
    one, two = _inside(model, a), _inside(model, b)
    written = _written([*one, *two])
    for x, y in ((x, y) for x in one for y in two):
        if _may_clash(x, y, None, ordered):
            found = meeting(model, x, y, around, written, [(a, b, ">")])
            if found:
                return f"{found}, and fused the later one would come first"
    return None


def fission_legal(kernel: Kernel, loop: LoopRef, at: int, *, ordered: bool = False) -> str | None:
    """None where `loop` may be split into one loop over `body[:at]` and one over `body[at:]`
    (buffers of its body getting an element for each iteration); else why not."""
    model = model_of(kernel)
    axis, around = resolve(model, loop)
    inside = _inside(model, axis)
    depth = _depth(model, axis)
    one = [a for a in inside if a.position[depth:] and a.position[depth] < at]
    two = [a for a in inside if a.position[depth:] and a.position[depth] >= at]
    written = _written(inside)
    reason = _steers([a for a in inside if not a.position[depth:]], written)
    if reason:
        return reason
    for x, y in ((x, y) for x in one for y in two):
        if _may_clash(x, y, axis, ordered):
            found = meeting(model, x, y, around, written, [(axis, axis, ">")])
            if found:
                return f"{found}, and apart the later one would come first"
    return None


def reorder_legal(
    kernel: Kernel,
    loops: Sequence[LoopRef],
    order: Sequence[LoopRef],
    *,
    ordered: bool = False,
) -> str | None:
    """None where the nest `loops` (outermost first) may be nested as `order` says; else why not."""
    model = model_of(kernel)
    resolved = [resolve(model, x) for x in loops]
    axes = [axis for axis, _ in resolved]
    wanted = [resolve(model, x)[0] for x in order]
    around = resolved[0][1]
    for k, axis in enumerate(wanted):
        for inner in wanted[k + 1 :]:
            if inner.name in _names(axis):
                return f"the extent of `{axis.name}` depends on `{inner.name}`"
    inside = _inside(model, axes[-1])
    written = _written(inside)
    nest = _inside(model, axes[0])
    reason = _steers([a for a in nest if a not in inside], written)
    if reason:
        return reason
    for a, b in ((a, b) for a in inside for b in inside):
        if not _may_clash(a, b, axes[0], ordered):
            continue
        for relation in _reversed_pairs(axes, wanted):
            found = meeting(model, a, b, around, written, relation)
            if found:
                return f"{found}, and reordered the later one would come first"
    return None


def _reversed_pairs(
    axes: list[AxisFrame], wanted: list[AxisFrame]
) -> Iterator[list[tuple[AxisFrame, AxisFrame, str]]]:
    """Relations of two iterations, the first earlier in the old order and later in the new."""
    for p, early in enumerate(axes):
        for late in wanted[: wanted.index(early)]:
            if late in axes[:p]:
                continue
            signs = dict.fromkeys([*axes[:p], *wanted[: wanted.index(late)]], "=")
            if early in signs or late in signs:
                continue
            yield [(x, x, s) for x, s in {**signs, early: "<", late: ">"}.items()]


# --- the one primitive ---------------------------------------------------------------------------


def meeting(
    model: Model,
    a: Access,
    b: Access,
    shared: Frames,
    written: frozenset[str],
    relation: Sequence[tuple[AxisFrame, AxisFrame, str]],
) -> Conflict | None:
    """An element that `a` and `b` both touch in iterations where every (axis of a, axis of b,
    comparison) of `relation` holds, the axes in `shared` being equal. None where there is none."""
    if _told_apart(model, a, b, shared, relation):
        return None
    text = Text(model, written)
    first = text.enter(a.frames, "a", shared)
    second = text.enter(b.frames, "b", shared)
    elements = text.elements(len(a.indices))
    for access, env in ((a, first), (b, second)):
        for e, index in zip(elements, access.indices, strict=True):
            text.where.append(f"{e} = {text.expr(index, env)}")
    inside(text, a, elements)
    extra = [f"{first.names[x.name]} {sign} {second.names[y.name]}" for x, y, sign in relation]
    try:
        found = text.find(extra)
    except Undecided:
        return Conflict(a, b, decided=False)
    if found is None:
        return None
    values = dict(found)
    return Conflict(
        a,
        b,
        {text.labels[n]: v for n, v in found if n.startswith("d_")},
        tuple(
            (x.name, values[first.names[x.name]], values[second.names[y.name]])
            for x, y, _ in relation
        ),
        tuple(values[e] for e in elements),
    )


def inside(text: Text, a: Access, elements: Sequence[str]) -> None:
    """Elements lie within the tensor: what out-of-bounds accesses touch is for `bounds` to say."""
    outer = Env({}, {}, "", frozenset())
    names = {d.name for d in text.model.kernel.dims}
    for e, extent in zip(elements, a.decl.shape, strict=True):
        text.where.append(f"{e} >= 0")
        if names >= {n.name for n in _vars(extent)}:
            text.where.append(f"{e} < {text.expr(extent, outer)}")


def _vars(e: Node) -> list[Var]:
    return [n for n in walk(e) if isinstance(n, Var)]


def _told_apart(
    model: Model,
    a: Access,
    b: Access,
    shared: Frames,
    relation: Sequence[tuple[AxisFrame, AxisFrame, str]],
) -> bool:
    """Quickly, with no set: in some dim the indices are `c*i + r` and `c*j + s` for the different
    iterations i and j, and r and s are closer together than c."""
    if len(relation) != 1 or relation[0][2] == "=":
        return False
    x, y, _ = relation[0]
    common = {f.name for f in shared if isinstance(f, AxisFrame)}
    common |= {d.name for d in model.kernel.dims}
    for i, j in zip(a.indices, b.indices, strict=True):
        one, two = linear(model.prepare(i)), linear(model.prepare(j))
        step = one.terms.pop(Var(x.name), 0)
        if not step or step != two.terms.pop(Var(y.name), 0):
            continue
        for atom in list(one.terms):  # what both share cancels
            if atom in two.terms and one.terms[atom] == two.terms[atom] and _fixed(atom, common):
                del one.terms[atom], two.terms[atom]
        low, high = _bounds(model, one, a)
        least, most = _bounds(model, two, b)
        if None in (low, high, least, most):
            continue
        if high - least < abs(step) and most - low < abs(step):  # type: ignore[operator]
            return True
    return False


def _fixed(atom: Expr, common: set[str]) -> bool:
    """Whether an atom is made of dims and shared indices alone."""
    return not any(isinstance(n, Read | Reduce) for n in walk(atom)) and all(
        v.name in common for v in _vars(atom)
    )


def _bounds(model: Model, form: Linear, a: Access) -> Interval:
    ranges: dict[str, Interval] = {}
    for f in a.axes:
        extent = model.prepare(f.extent)
        ranges[f.name] = (0, int(extent.value) - 1 if isinstance(extent, Const) else None)
    return interval(form.build(), ranges)


def _may_clash(a: Access, b: Access, private_to: AxisFrame | None, ordered: bool) -> bool:
    if a.decl is not b.decl or (a.kind == "read" and b.kind == "read"):
        return False
    if private_to is not None and private_to in a.decl.frames:
        return False
    return ordered or not _commute(a, b)


def _commute(a: Access, b: Access) -> bool:
    return a.kind == "update" and b.kind == "update" and a.op == b.op


def _inside(model: Model, axis: AxisFrame) -> list[Access]:
    return [a for a in model.accesses if axis in a.frames]


def _written(accesses: Sequence[Access]) -> frozenset[str]:
    return frozenset(a.decl.name for a in accesses if a.kind != "read")


def _depth(model: Model, axis: AxisFrame) -> int:
    """How many statements enclose the body of a loop: the place of its index in positions."""
    return model.depths[axis]


def _steers(heads: list[Access], written: frozenset[str]) -> str | None:
    """Why loops whose extents and masks read `heads` cannot move: their bodies write there."""
    for a in heads:
        if a.decl.name in written:
            return f"{describe(a)} steers the loop, and its body writes `{a.decl.name}`"
    return None


def _names(axis: AxisFrame) -> set[str]:
    return {v.name for v in _vars(axis.extent)}


def _equal_extents(model: Model, a: AxisFrame, b: AxisFrame, around: Frames) -> bool:
    if any(isinstance(n, Read) for n in (*walk(a.extent), *walk(b.extent))):
        return False
    if model.prepare(a.extent) == model.prepare(b.extent):
        return True
    text = Text(model)
    env = text.enter(around)
    one, two = text.expr(a.extent, env), text.expr(b.extent, env)
    try:
        return text.exact and text.find([f"{one} != {two}"]) is None
    except Undecided:
        return False


def resolve(model: Model, loop: LoopRef) -> tuple[AxisFrame, Frames]:
    """A loop by name, node or frame, and what is around it; UnknownNameError if there is none."""
    for axis, around in model.loops:
        if loop is axis or loop is axis.loop:
            return axis, around
    for axis, around in model.loops:
        if loop == axis.name or loop == axis.loop:
            return axis, around
    name = loop if isinstance(loop, str) else "it"
    raise UnknownNameError(f"there is no loop `{name}`", kernel=model.kernel)


__all__ = [
    "Conflict",
    "Parallel",
    "describe",
    "fission_legal",
    "fusion_legal",
    "meeting",
    "parallel",
    "reorder_legal",
]
