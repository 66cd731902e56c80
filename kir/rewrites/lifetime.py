"""When the elements of a temporary are alive, by integer sets: for `contract`, `reuse`, `fold`.

Accesses are compared in time: of two in one program, the one in an earlier iteration of the
outermost loop where they differ comes first, and in one iteration the one that stands first.
"""

from __future__ import annotations

from collections.abc import Sequence

from kir.analysis import model_of
from kir.analysis.model import Access, AxisFrame, Decl, Frames, Model
from kir.analysis.sets import Env, Text, Undecided, difference, sample, solve
from kir.ir import Buffer, If, Kernel, Loop

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
    a: Access,
    first: Env,
    b: Access,
    second: Env,
    shared: Frames,
    places: tuple[Position, Position] | None = None,
) -> str:
    """The condition that an instance of `a` comes before one of `b`, `shared` being equal."""
    orders: list[str] = []
    equal: list[str] = []
    for x, y in zip(_unshared(a, shared), _unshared(b, shared), strict=False):
        if x is not y:
            break
        p, q = first.names[x.name], second.names[y.name]
        orders.append(" and ".join([*equal, f"{p} < {q}"]))
        equal.append(f"{p} = {q}")
    one, two = places or (a.position, b.position)
    if one < two:
        orders.append(" and ".join(equal) or "true")
    return " or ".join(f"({o})" for o in orders) or "false"


def _unshared(access: Access, shared: Frames) -> list[AxisFrame]:
    return [f for f in access.axes if f.loop is not None and f not in shared]


__all__ = ["Decl", "accesses_of", "earlier", "unfilled"]
