"""When the elements of a temporary are alive, by integer sets: for `contract`, `reuse`, `fold`.

Accesses are compared in time: of two in one program, the one in an earlier iteration of the
outermost loop where they differ comes first, and in one iteration the one that stands first.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from kir.analysis import model_of
from kir.analysis.depend import resolve
from kir.analysis.model import Access, AxisFrame, Decl, Frames, Model
from kir.analysis.sets import Env, Text, Undecided, difference, sample, solve
from kir.ir import Buffer, If, Kernel, Loop, Node
from kir.rewrites.window import Window

Position = tuple[int, ...]


def accesses_of(kernel: Kernel, buffer: Buffer) -> tuple[Model, list[Access]]:
    """The model of `kernel`, and the accesses to `buffer` (found by identity)."""
    model = model_of(kernel)
    return model, [a for a in model.accesses if a.decl.node is buffer]


def unfilled(kernel: Kernel, buffer: Buffer, path: Sequence[Loop | If]) -> Access | None:
    """A read of `buffer` that may use what another iteration of the loops in `path` stored (they
    stand around all uses); None where each iteration reads what it stored itself before."""
    model, found = accesses_of(kernel, buffer)
    writes = [a for a in found if a.kind == "write"]
    depth = sum(1 + len(s.where) if isinstance(s, Loop) else 1 for s in path)
    for a in found:
        if a.kind != "write" and not _stored_before(model, a, writes, len(a.decl.frames) + depth):
            return a
    return None


def unstored(kernel: Kernel, loop: Loop, tensor: str, windows: Sequence[Window]) -> Node | None:
    """Where one iteration of `loop` may use an element of `tensor` before it stored it, or may
    leave one of the windows (within the tensor's bounds) without a value; None where neither."""
    model = model_of(kernel)
    axis, _ = resolve(model, loop)
    return _unstored(model, axis, tensor, tuple(windows))


@lru_cache(maxsize=64)
def _unstored(
    model: Model, axis: AxisFrame, tensor: str, windows: tuple[Window, ...]
) -> Node | None:
    assert axis.loop is not None
    found = [a for a in model.accesses if a.decl.name == tensor and axis in a.frames]
    writes = [a for a in found if a.kind == "write"]
    if not writes:
        return found[0].node
    depth = writes[0].frames.index(axis) + 1 + len(axis.loop.where)
    for a in found:
        if a.kind != "write" and not _stored_before(model, a, writes, depth):
            return a.node
    return None if _all_stored(model, writes, depth, windows) else writes[0].node


def _all_stored(model: Model, writes: list[Access], depth: int, windows: Sequence[Window]) -> bool:
    """Whether the writes together reach every element of the windows within the bounds."""
    shared = writes[0].frames[:depth]
    text, keep = _box(model, writes[0], shared, windows)
    try:
        stored = []
        for w in writes:
            if w.frames[:depth] != shared:
                return False
            other, _ = _box(model, writes[0], shared, windows)
            other.exact = True
            env = other.enter(w.frames, "b", shared)
            for d, index in enumerate(w.indices):
                other.where.append(f"e{d} = {other.expr(index, env)}")
            if other.exact:
                stored.append(solve(other.set(keep=keep)))
        return sample(difference(solve(text.set()), stored)) is None
    except Undecided:
        return False


def _box(
    model: Model, access: Access, shared: Frames, windows: Sequence[Window]
) -> tuple[Text, list[str]]:
    """The elements of the windows that are within the tensor, in one iteration of `shared`."""
    text = Text(model)
    env = text.enter(shared, "a", shared)
    elements = text.elements(len(windows))
    for e, w, extent in zip(elements, windows, access.decl.shape, strict=True):
        base = text.expr(w.base, env)
        text.where.append(f"{base} <= {e} < {base} + {text.expr(w.size, env)}")
        text.where.append(f"0 <= {e} < {text.expr(extent, env)}")
    return text, list(text.dims)


def _stored_before(model: Model, access: Access, writes: list[Access], depth: int) -> bool:
    """Whether every element of `access` was stored before, its first `depth` frames fixed."""
    shared = access.frames[:depth]
    reader, _ = _elements(model, access, shared)
    keep = list(reader.dims)
    try:
        stored = []
        for w in reversed(writes):
            if w.frames[:depth] != shared:
                return False
            text, env = _elements(model, access, shared)
            text.exact = True
            other = text.enter(w.frames, "b", shared)
            for d, index in enumerate(w.indices):
                text.where.append(f"e{d} = {text.expr(index, other)}")
            if text.exact:
                stored.append(solve(text.set([earlier(w, other, access, env, shared)], keep)))
        return sample(difference(solve(reader.set()), stored)) is None
    except Undecided:
        return False


def _elements(model: Model, access: Access, shared: Frames) -> tuple[Text, Env]:
    """The elements within the tensor that an access touches, together with its iterations."""
    text = Text(model)
    env = text.enter(access.frames, "a", shared)
    rank = len(access.indices)
    for e, index, extent in zip(
        text.elements(rank), access.indices, access.decl.shape, strict=True
    ):
        text.where.append(f"{e} = {text.expr(index, env)}")
        text.where.append(f"0 <= {e} < {text.expr(extent, env)}")
    return text, env


def earlier(
    a: Access, first: Env, b: Access, second: Env, shared: Frames, *, together: bool = False
) -> str:
    """The condition that an instance of `a` comes before one of `b`, `shared` being equal. With
    `together`, different iterations of a grid or a tile are in no order, so each comes before."""
    orders: list[str] = []
    equal: list[str] = []
    for x, y in zip(_unshared(a, shared), _unshared(b, shared), strict=False):
        if x is not y:
            break
        p, q = first.names[x.name], second.names[y.name]
        parallel = together and x.loop is not None and x.loop.kind in ("grid", "tile")
        orders.append(" and ".join([*equal, f"{p} != {q}" if parallel else f"{p} < {q}"]))
        equal.append(f"{p} = {q}")
    if a.position < b.position:
        orders.append(" and ".join(equal) or "true")
    return " or ".join(f"({o})" for o in orders) or "false"


def overtaken(kernel: Kernel, buffer: Buffer, other: Buffer) -> tuple[Access, Access] | None:
    """A store to `buffer` and an access to `other`, of one and the same element, where the store
    may come first: then the two cannot share their storage. None where there is none."""
    model = model_of(kernel)
    stores = [a for a in model.accesses if a.decl.node is buffer and a.kind != "read"]
    others = [a for a in model.accesses if a.decl.node is other]
    for a in stores:
        for b in others:
            if _meet_in_order(model, a, b):
                return a, b
    return None


def _meet_in_order(model: Model, a: Access, b: Access) -> bool:
    """Whether `a` may touch an element before `b` touches the one at the same place of its own
    tensor, in one instance of that tensor."""
    shared = b.decl.frames
    text = Text(model)
    first, second = text.enter(a.frames, "a", shared), text.enter(b.frames, "b", shared)
    order = earlier(a, first, b, second, shared, together=True)
    if order == "false":
        return False
    for i, j in zip(a.indices, b.indices, strict=True):
        text.where.append(f"{text.expr(i, first)} = {text.expr(j, second)}")
    _bound(text, a, first)
    _bound(text, b, second)
    try:
        return text.find([order]) is not None
    except Undecided:
        return True


def _bound(text: Text, a: Access, env: Env) -> None:
    """The access is within the tensor: what lies beyond is for the check of bounds, or a fill."""
    for i, extent in zip(a.indices, a.decl.shape, strict=True):
        text.where.append(f"0 <= {text.expr(i, env)} < {text.expr(extent, env)}")


def collides(kernel: Kernel, buffer: Buffer, dim: int, size: int) -> tuple[Access, Access] | None:
    """A read and a store of elements of `buffer` that fall together where only `size` slices of
    `dim` are kept, the store coming between the read and the last store of what it reads."""
    model = model_of(kernel)
    found = [a for a in model.accesses if a.decl.node is buffer]
    stores = [a for a in found if a.kind != "read"]
    for a in found:
        for b in stores:
            if _collide(model, a, b, stores, dim, size):
                return a, b
    return None


def _collide(
    model: Model, read: Access, other: Access, stores: list[Access], dim: int, size: int
) -> bool:
    shared = read.decl.frames
    text, late, early = _pair(model, read, other, dim, size)
    keep = list(text.dims)
    apart = _unsynchronised(read, late, other, early, shared)
    order = earlier(other, early, read, late, shared)
    try:
        if apart != "false" and text.find([apart]) is not None:
            return True
        if read.kind == "write" or order == "false" or text.find([order]) is None:
            return False
        whole = solve(text.set([order]))
        between = []
        for w in stores:
            if w.kind != "write":
                continue
            triple, late, early = _pair(model, read, other, dim, size)
            triple.exact = True
            env = triple.enter(w.frames, "c", shared)
            for i, j in zip(w.indices, read.indices, strict=True):
                triple.where.append(f"{triple.expr(i, env)} = {triple.expr(j, late)}")
            if triple.exact:
                since = earlier(other, early, w, env, shared)
                before = earlier(w, env, read, late, shared)
                between.append(solve(triple.set([order, since, before], keep)))
        return sample(difference(whole, between)) is not None
    except Undecided:
        return True


def _pair(model: Model, read: Access, other: Access, dim: int, size: int) -> tuple[Text, Env, Env]:
    """Instances of two accesses at different elements that fall together modulo `size`."""
    shared = read.decl.frames
    text = Text(model)
    late, early = text.enter(read.frames, "a", shared), text.enter(other.frames, "b", shared)
    for d, (i, j) in enumerate(zip(read.indices, other.indices, strict=True)):
        one, two = text.expr(i, late), text.expr(j, early)
        if d == dim:
            text.where += [f"{one} != {two}", f"(({one}) - ({two})) mod {size} = 0"]
        else:
            text.where.append(f"{one} = {two}")
    _bound(text, read, late)
    _bound(text, other, early)
    return text, late, early


def _unsynchronised(a: Access, first: Env, b: Access, second: Env, shared: Frames) -> str:
    """The condition that two instances are in different iterations of one grid or tile."""
    differ: list[str] = []
    for x, y in zip(_unshared(a, shared), _unshared(b, shared), strict=False):
        if x is not y:
            break
        if x.loop is not None and x.loop.kind in ("grid", "tile"):
            differ.append(f"{first.names[x.name]} != {second.names[y.name]}")
    return " or ".join(f"({c})" for c in differ) or "false"


def _unshared(access: Access, shared: Frames) -> list[AxisFrame]:
    return [f for f in access.axes if f.loop is not None and f not in shared]


__all__ = ["Decl", "accesses_of", "collides", "earlier", "overtaken", "unfilled", "unstored"]
