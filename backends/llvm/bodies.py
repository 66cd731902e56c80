"""What the body of a loop or of a kernel does, as far as the emitter decides by it."""

from __future__ import annotations

from collections.abc import Sequence

from kir.ir import Buffer, Loop, Stmt, Store, walk
from kir.memo import reads_of


def launches(s: Stmt) -> bool:
    """Whether a statement at the top only starts a region or makes room."""
    if isinstance(s, Loop):
        return s.kind == "grid"
    return isinstance(s, Buffer) and s.init is None


def accumulates(s: Loop) -> bool:
    """Whether something that is stored inside a loop takes in what was there."""
    stores = (n for n in walk(s) if isinstance(n, Store))
    return any(n.op is not None or n.target in reads_of(n.value) for n in stores)


def assigns(body: Sequence[Stmt]) -> bool:
    """Whether a block only assigns elements, of tensors that it does not read."""
    stores = [s for s in body if isinstance(s, Store) and s.op is None]
    written = {s.target for s in stores}
    return len(stores) == len(body) and all(written.isdisjoint(reads_of(s)) for s in stores)
