"""`carry`: a recurrence keeps its last slice only, in the place of all of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, NoReturn

from kir.ir import (
    Buffer,
    Const,
    Expr,
    If,
    Kernel,
    Loop,
    Read,
    Store,
    Var,
    const,
    transform,
    walk,
)
from kir.ops import op
from kir.rewrites.base import (
    Block,
    Effect,
    Move,
    Rewrite,
    buffers_of,
    edit_block,
    find_buffer,
    find_loop,
    loops_of,
    refuse,
    require_loops,
)
from kir.rewrites.window import Use, after, block_of, determines, uses_of
from kir.simplify import simplify


@dataclass(frozen=True)
class Carry(Rewrite):
    """`carry(buffer, loop)`: of a recurrence over `loop` only the newest slice is kept, and each
    iteration overwrites it element by element.

    Before::

        buffer h: f32[T, N] in global
        for t: T {
          for i: N { h[t, i] = x[t, i] + (h[t - 1, i] else 0.0) }
          for j: N { y[t, j] = h[t, j] }
        }

    After `carry(h, t)`::

        buffer h: f32[N] in global = 0.0
        for t: T {
          for i: N { h[i] = x[t, i] + h[i] }
          for j: N { y[t, j] = h[j] }
        }

    The slice before the first is what the reads are filled with, a constant. Refused unless one
    store makes the slice, which reads of the last one just the element that it overwrites; what
    reads the new slice must follow it in the loop. An init must be that constant too, and each
    iteration store the same elements. (`fold` keeps several slices.)
    """

    name: ClassVar[str] = "carry"
    effect: ClassVar[Effect] = "exact"
    buffer: str
    loop: str

    def edit(self, kernel: Kernel) -> Kernel:
        buffer, loop = find_buffer(kernel, self.buffer), find_loop(kernel, self.loop)
        block = block_of(kernel.body, buffer)
        require_loops(kernel, block)
        if not any(s is loop for s in after(block, buffer)):
            refuse(
                kernel,
                f"`{self.buffer}` does not stand in the block of the loop `{self.loop}`",
                node=buffer,
                hint=f"`contract({self.buffer}, ...)` moves it in",
            )
        dim, fill = self._checked(kernel, buffer, loop, after(block, buffer))
        shape = (*buffer.shape[:dim], *buffer.shape[dim + 1 :])
        made = replace(buffer, shape=shape, init=fill)

        def edit(here: Block, k: int) -> Block:
            return (*here[:k], made, *(transform(s, lambda n: self._slice(n, dim)) for s in rest))

        rest = after(block, buffer)
        return edit_block(kernel, buffer, edit)

    @classmethod
    def candidates(cls, kernel: Kernel) -> Iterator[Move]:
        """Every buffer that a loop beside it stores to by its index."""
        for b in buffers_of(kernel.body):
            block = after(block_of(kernel.body, b), b)
            for loop in loops_of(s for s in block if isinstance(s, Loop)):
                stores = (u for u in uses_of(b.name, (loop,)) if u.access.op == "write")
                if any(Var(loop.axis.name) in u.access.indices for u in stores):
                    yield Move(cls.name, (("buffer", b.name), ("loop", loop.axis.name)))

    def _checked(
        self, kernel: Kernel, buffer: Buffer, loop: Loop, rest: Block
    ) -> tuple[int, Const | None]:
        """The dim that goes, and what the slice before the first holds."""
        uses = uses_of(self.buffer, rest)
        stores = [u for u in uses if u.access.op != "read"]
        if len(stores) != 1 or stores[0].access.op != "write":
            self._refuse(kernel, buffer, "it is not made by one store")
        store = stores[0]
        dims = [d for d, e in enumerate(store.access.indices) if e == Var(self.loop)]
        if len(dims) != 1 or simplify(buffer.shape[dims[0]]) != simplify(loop.axis.extent):
            self._refuse(
                kernel, store.access.node, f"the store has no slice for each `{self.loop}`"
            )
        dim = dims[0]
        inner = [x for x in store.loops if x is not loop]
        if not determines(_others(store, dim), inner):
            self._refuse(
                kernel, store.access.node, "an element may be stored twice in an iteration"
            )
        fills: list[Expr] = []
        for number, use in enumerate(uses):
            if use is store:
                continue
            if not use.around or use.around[0] is not loop:
                self._refuse(kernel, use.access.node, f"it is used outside of `{self.loop}` too")
            if use.access.indices[dim] == Var(self.loop):
                if number < uses.index(store):
                    self._refuse(kernel, use.access.node, "the new slice is read before it is made")
                continue
            fills.append(self._last(kernel, use, store, dim))
        if any(f != fills[0] for f in fills):
            self._refuse(kernel, buffer, "its first slice has several fills")
        if not fills:
            self._refuse(kernel, buffer, "no iteration reads the slice before; `contract` it")
        assert isinstance(fills[0], Const)
        if buffer.init is not None and (buffer.init != fills[0] or not _steady(store, loop)):
            self._refuse(kernel, buffer, "what its init sets may be read")
        return dim, fills[0]

    def _last(self, kernel: Kernel, use: Use, store: Use, dim: int) -> Const:
        """The constant that fills the read `use`, which must be of the element that `store` then
        overwrites, in the slice before."""
        node = use.access.node
        before = simplify(op("sub", Var(self.loop), const(1)))
        if simplify(use.access.indices[dim]) != before:
            self._refuse(kernel, node, f"this reads another slice than that before `{self.loop}`")
        mine = any(n is node for n in walk(store.access.node))
        if not mine or _others(use, dim) != _others(store, dim):
            self._refuse(kernel, node, "this element of the last slice may be overwritten already")
        if not isinstance(node, Read) or not isinstance(node.fill, Const):
            self._refuse(kernel, node, "the slice before the first is no constant")
        return node.fill

    def _slice(self, node: object, dim: int) -> Read | Store | None:
        if isinstance(node, Read) and node.tensor == self.buffer:
            last = node.indices[dim] != Var(self.loop)
            at = (*node.indices[:dim], *node.indices[dim + 1 :])
            return replace(node, indices=at, fill=None if last or not at else node.fill)
        if isinstance(node, Store) and node.target == self.buffer:
            return replace(node, indices=(*node.indices[:dim], *node.indices[dim + 1 :]))
        return None

    def _refuse(self, kernel: Kernel, node: object, why: str) -> NoReturn:
        assert isinstance(node, Buffer | Store | Read)
        refuse(kernel, f"`{self.buffer}` needs more than its last slice: {why}", node=node)


def _steady(store: Use, loop: Loop) -> bool:
    """Whether each iteration of `loop` stores the same elements: the rest keeps the init."""
    heads: list[Expr] = list(loop.where)
    for s in store.around[1:]:
        heads += [s.condition] if isinstance(s, If) else [s.axis.extent, *s.where]
    return not any(isinstance(n, Read) or n == Var(loop.axis.name) for e in heads for n in walk(e))


def _others(use: Use, dim: int) -> tuple[Expr, ...]:
    return (*use.access.indices[:dim], *use.access.indices[dim + 1 :])


__all__ = ["Carry"]
