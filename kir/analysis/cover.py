"""Elements: whether every access is in bounds, every output written, nothing read too early."""

from __future__ import annotations

from dataclasses import dataclass, field

from kir.analysis.boxes import filled_before, fills
from kir.analysis.model import Access, AxisFrame, Decl, Frames, Model
from kir.analysis.sets import Env, Text, Undecided, difference, sample, solve
from kir.ir import Const, Expr, Read, walk
from kir.simplify import interval


@dataclass(frozen=True)
class Escape:
    """An index that may be out of bounds, at `values` for example (none where isl gave up).

    `affine` tells whether the index itself is; `certain` whether all that guards it is, too.
    """

    access: Access
    dim: int
    affine: bool = False
    certain: bool = False
    values: dict[str, int] = field(default_factory=dict)
    index: int | None = None
    extent: int | None = None


@dataclass(frozen=True)
class Gap:
    """An element that a program reads too early, or leaves unwritten."""

    element: tuple[int, ...]
    values: dict[str, int]


def escape(model: Model, access: Access) -> Escape | None:
    """An index of `access` that leaves its tensor; None where all are shown to stay inside."""
    if access.padded:
        return None
    for dim in range(len(access.indices)):
        try:
            found = _violation(model, access, dim)
        except Undecided:
            return Escape(access, dim)
        if found is not None:
            return found
    return None


def _violation(model: Model, access: Access, dim: int) -> Escape | None:
    if _within(model, access, dim):
        return None
    text = Text(model)
    env = text.enter(access.frames)
    certain, text.exact = text.exact, True
    text.dims += ["e", "s"]
    text.where.append(f"e = {text.expr(access.indices[dim], env)}")
    text.where.append(f"s = {text.expr(access.decl.shape[dim], env)}")
    found = text.find(["e < 0 or e >= s"])
    if found is None:
        return None
    values = dict(found)
    certain = certain and text.exact
    return Escape(access, dim, text.exact, certain, _named(text, found), values["e"], values["s"])


def _within(model: Model, access: Access, dim: int) -> bool:
    """Quickly, with no set: whether the bounds of all indices alone keep one in its extent."""
    extent = model.prepare(access.decl.shape[dim])
    if not isinstance(extent, Const):
        return False
    low, high = interval(model.prepare(access.indices[dim]), model.ranges(access.axes))
    return low is not None and low >= 0 and high is not None and high < int(extent.value)


def _named(text: Text, found: tuple[tuple[str, int], ...]) -> dict[str, int]:
    """The dims and indices of a point under their names in the program."""
    return {text.labels[n]: v for n, v in found if n in text.labels}


def reads_data(e: Expr) -> bool:
    """Whether an index depends on what is read from a tensor."""
    return any(isinstance(n, Read) for n in walk(e))


def negative(model: Model, extent: Expr, frames: Frames) -> dict[str, int] | None:
    """Dims and indices for which `extent` is less than 0; None where none is found."""
    try:
        return _below_zero(model, extent, frames)
    except Undecided:
        return None


def at_least_zero(model: Model, extent: Expr, frames: Frames) -> bool:
    """Whether `extent` is shown never to be negative."""
    try:
        return _below_zero(model, extent, frames) is None
    except Undecided:
        return False


def _below_zero(model: Model, extent: Expr, frames: Frames) -> dict[str, int] | None:
    text = Text(model)
    env = text.enter(frames)
    low = text.expr(extent, env)
    found = text.find([f"{low} < 0"])
    return None if found is None else _named(text, found)


def differs(model: Model, one: Expr, other: Expr, frames: Frames) -> dict[str, int] | None:
    """Dims for which two extents differ; None where they are equal (or that is too hard)."""
    a, b = model.prepare(one), model.prepare(other)
    if a == b:
        return None
    text = Text(model)
    env = text.enter(frames)
    try:
        found = text.find([f"{text.affine(a, env)} != {text.affine(b, env)}"])
    except Undecided:
        return None
    return None if found is None else _named(text, found)


# --- what is written -----------------------------------------------------------------------------


def unwritten(model: Model, output: Decl) -> tuple[Gap | None, bool]:
    """An element of `output` that no store is shown to write, and whether all stores were exact.

    Raises Undecided where isl gives up.
    """
    if fills(model, output):
        return None, True
    rank = len(output.shape)
    outer = Env({}, {}, "", frozenset())
    text = Text(model)
    for e, extent in zip(text.elements(rank), output.shape, strict=True):
        text.where.append(f"0 <= {e} < {text.expr(extent, outer)}")
    written, exact = [], True
    for a in model.accesses:
        if a.decl is not output or a.kind != "write":
            continue
        store = Text(model)
        elements = store.elements(rank)
        env = store.enter(a.frames)
        for e, index in zip(elements, a.indices, strict=True):
            store.where.append(f"{e} = {store.expr(index, env)}")
        whole = store.set(keep=elements)
        if store.exact:
            written.append(solve(whole))
        exact = exact and store.exact
    missing = difference(solve(text.set()), written)
    found = sample(missing)
    if found is None:
        return None, exact
    values = dict(found)
    element = tuple(values[f"e{d}"] for d in range(rank))
    return Gap(element, {n[2:]: v for n, v in found if n.startswith("d_")}), exact


def read_too_early(model: Model, access: Access) -> Gap | None:
    """An element that `access` reads (or updates) before any store wrote it, where that can be
    decided; None otherwise. Raises Undecided where isl gives up."""
    if filled_before(model, access):
        return None
    writers = [a for a in model.accesses if a.decl is access.decl and a.kind == "write"]
    reader, env = _reader(model, access)
    if not reader.exact:
        return None
    whole = solve(reader.set())
    written, exact = [], True
    for w in reversed(writers):
        text, env = _reader(model, access)
        keep = list(text.dims)
        before = _before(text, env, access, w)
        if text.exact:
            written.append(solve(text.set([before], keep)))
        exact = exact and text.exact
    if not exact:
        return None
    found = sample(difference(whole, written))
    if found is None:
        return None
    values = dict(found)
    element = tuple(values[f"e{d}"] for d in range(len(access.indices)))
    return Gap(element, _named(reader, found))


def _reader(model: Model, access: Access) -> tuple[Text, Env]:
    """The elements that a read touches, together with its iterations."""
    text = Text(model)
    env = text.enter(access.frames, "a")
    elements = text.elements(len(access.indices))
    for e, index, extent in zip(elements, access.indices, access.decl.shape, strict=True):
        text.where.append(f"{e} = {text.expr(index, env)}")
        if access.padded:
            text.where.append(f"0 <= {e} < {text.expr(extent, env)}")
    return text, env


def _before(text: Text, env: Env, access: Access, writer: Access) -> str:
    """Add the iterations of `writer` to the set; gives the condition that one comes before the
    read's. Within one definition nothing comes before anything."""
    shared = access.decl.frames
    here = _unshared(access, shared)
    there = _unshared(writer, shared)
    names: dict[AxisFrame, tuple[str, str]] = {}
    other = text.enter(writer.frames, "b")
    for f in access.decl.frames:
        if isinstance(f, AxisFrame):
            text.where.append(f"{env.names[f.name]} = {other.names[f.name]}")
    for d, index in enumerate(writer.indices):
        text.where.append(f"e{d} = {text.expr(index, other)}")
    orders: list[str] = []
    equal: list[str] = []
    for x, y in zip(here, there, strict=False):
        if x is not y:
            break
        names[x] = (env.names[x.name], other.names[x.name])
        r, w = names[x]
        orders.append(" and ".join([*equal, f"{w} < {r}"]))
        equal.append(f"{w} = {r}")
    if writer.position < access.position:
        orders.append(" and ".join(equal) or "true")
    return " or ".join(f"({o})" for o in orders) or "false"


def _unshared(access: Access, shared: Frames) -> list[AxisFrame]:
    return [f for f in access.axes if f.loop is not None and f not in shared]
