"""Less storage for temporaries: `reuse`, `fold`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from kir.ir import (
    Axis,
    Buffer,
    Const,
    Expr,
    Kernel,
    Loop,
    Node,
    Read,
    Stmt,
    Store,
    Var,
    const,
    rebuild,
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
    fresh,
    loops_of,
    names_in,
    path_to,
    refuse,
    rename,
    require_loops,
)
from kir.rewrites.window import (
    after,
    always,
    between,
    block_of,
    in_bounds,
    loops_in,
    uses_of,
)
from kir.simplify import simplify

if TYPE_CHECKING:
    from kir.analysis import Access


@dataclass(frozen=True)
class Reuse(Rewrite):
    """`reuse(buffer, other)`: a temporary takes the storage of another one, which is not used
    any more.

    Before::

        buffer a: f32[N] in global
        buffer b: f32[N] in global
        for i: N { a[i] = exp(x[i]) }
        for j: N { b[j] = a[j] * a[j] }
        for k: N { y[k] = b[k] }

    After `reuse(b, a)`::

        buffer a: f32[N] in global
        for i: N { a[i] = exp(x[i]) }
        for j: N { a[j] = a[j] * a[j] }
        for k: N { y[k] = a[k] }

    Both are of one dtype, space and rank, and each dim of `other` is at least as long. An element
    may be stored as soon as the other one at its place is used for the last time; refused where
    the store may come before that.
    """

    name: ClassVar[str] = "reuse"
    effect: ClassVar[Effect] = "exact"
    buffer: str
    other: str

    def edit(self, kernel: Kernel) -> Kernel:
        buffer, other = find_buffer(kernel, self.buffer), find_buffer(kernel, self.other)
        if buffer is other:
            refuse(kernel, "a buffer has its own storage already", node=buffer)
        block = block_of(kernel.body, other)
        require_loops(kernel, block)
        if (buffer.type, buffer.space) != (other.type, other.space):
            refuse(
                kernel,
                f"`{self.buffer}` is {buffer.type} in {buffer.space}, `{self.other}` {other.type} "
                f"in {other.space}",
                node=buffer,
            )
        self._check_scope(kernel, buffer, other)
        self._check_shape(kernel, buffer, other)
        shown = kernel
        if buffer.init is not None:
            plain = replace(buffer, init=None)
            kernel = edit_block(
                kernel,
                buffer,
                lambda b, k: (*b[:k], plain, self._init(kernel, buffer), *b[k + 1 :]),
            )
            buffer = plain
        from kir.rewrites.lifetime import overtaken  # integer sets

        found = overtaken(kernel, buffer, other)
        if found is not None:
            from kir.analysis import describe

            store, use = (describe(a) for a in found)
            refuse(
                shown,
                f"`{self.other}` is still in use: {store} may come before {use}, in one place",
                node=found[1].node,
            )

        def edit(here: Block, k: int) -> Block:
            rest = (rename(s, {}, {self.buffer: self.other}) for s in here[k + 1 :])
            return (*here[:k], *rest)

        return edit_block(kernel, buffer, edit)

    @classmethod
    def candidates(cls, kernel: Kernel) -> Iterator[Move]:
        found = [(b, path_to(kernel.body, b) or ()) for b in buffers_of(kernel.body)]
        for b, path in found:
            for other, around in found:
                alike = (b.type, b.space, len(b.shape)) == (
                    other.type,
                    other.space,
                    len(other.shape),
                )
                if b is not other and alike and b.shape and around == path[: len(around)]:
                    yield Move(cls.name, (("buffer", b.name), ("other", other.name)))

    def forward(self, before: Kernel, after: Kernel) -> dict[str, tuple[str, ...]]:
        return {self.buffer: (self.other,)}

    def _check_scope(self, kernel: Kernel, buffer: Buffer, other: Buffer) -> None:
        path, around = path_to(kernel.body, buffer) or (), path_to(kernel.body, other) or ()
        if any(x is not y for x, y in zip(path, around, strict=False)) or len(around) > len(path):
            refuse(kernel, f"`{self.other}` is not known where `{self.buffer}` lives", node=buffer)
        first = path[len(around)] if len(path) > len(around) else buffer
        if not any(s is first for s in after(block_of(kernel.body, other), other)):
            refuse(
                kernel,
                f"`{self.other}` is declared after `{self.buffer}`",
                node=other,
                hint=f"`reuse({self.other}, {self.buffer})` is the other way round",
            )
        for loop in loops_in(path[len(around) :]):
            if loop.kind in ("grid", "tile"):
                refuse(
                    kernel,
                    f"every iteration of `{loop.axis.name}` has its own `{self.buffer}`, "
                    f"and they share `{self.other}`",
                    node=loop,
                )

    def _check_shape(self, kernel: Kernel, buffer: Buffer, other: Buffer) -> None:
        around = path_to(kernel.body, buffer) or ()
        if len(buffer.shape) != len(other.shape):
            refuse(kernel, f"`{self.other}` has another rank", node=buffer)
        for d, (mine, its) in enumerate(zip(buffer.shape, other.shape, strict=True)):
            if simplify(mine) != simplify(its) and not always(kernel, around, op("le", mine, its)):
                refuse(kernel, f"dim {d} of `{self.other}` may be too short", node=buffer)
        if all(simplify(m) == simplify(o) for m, o in zip(buffer.shape, other.shape, strict=True)):
            return
        for use in uses_of(self.buffer, after(block_of(kernel.body, buffer), buffer)):
            if use.padded and not all(
                in_bounds(kernel, (*around, *use.around), i, e)
                for i, e in zip(use.access.indices, buffer.shape, strict=True)
            ):
                refuse(
                    kernel,
                    f"a read with a fill may be out of the bounds of `{self.buffer}`, and within "
                    f"those of `{self.other}`",
                    node=use.access.node,
                )

    def _init(self, kernel: Kernel, buffer: Buffer) -> Stmt:
        """Loops that give every element the value that `buffer` starts with."""
        assert buffer.init is not None
        used = names_in(kernel)
        names = [fresh(f"{buffer.name}_{d}", used) for d in range(len(buffer.shape))]
        stmt: Stmt = Store(buffer.name, tuple(Var(n) for n in names), buffer.init)
        for name, extent in reversed(list(zip(names, buffer.shape, strict=True))):
            stmt = Loop("for", Axis(name, extent), (), (stmt,))
        return stmt


@dataclass(frozen=True)
class Fold(Rewrite):
    """`fold(buffer, dim, size)`: of a dim of a temporary only `size` slices are kept, in turn.

    Before::

        buffer h: f32[T, N] in global
        for t: T {
          for i: N { h[t, i] = x[t, i] + (h[t - 1, i] else 0) }
          for j: N { y[t, j] = h[t, j] }
        }

    After `fold(h, 0, 2)`::

        buffer h: f32[2, N] in global
        for t: T {
          for i: N { h[t % 2, i] = x[t, i] + (h[select(t - 1 >= 0, (t - 1) % 2, -1), i] else 0) }
          for j: N { y[t, j] = h[t % 2, j] }
        }

    Refused where a slice may be used after the one that takes its place was stored.
    """

    name: ClassVar[str] = "fold"
    effect: ClassVar[Effect] = "exact"
    buffer: str
    dim: int
    size: int

    def edit(self, kernel: Kernel) -> Kernel:
        buffer = find_buffer(kernel, self.buffer)
        rank, d = len(buffer.shape), self.dim
        if not 0 <= d < rank:
            refuse(kernel, f"`{self.buffer}` has no dim {d}: it has {rank}", node=buffer)
        extent = buffer.shape[d]
        if self.size < 1 or (isinstance(extent, Const) and self.size >= int(extent.value)):
            refuse(
                kernel, f"dim {d} of `{self.buffer}` cannot be folded to {self.size}", node=buffer
            )
        block = block_of(kernel.body, buffer)
        require_loops(kernel, block)
        rest = after(block, buffer)
        if not _advances(rest, self.buffer, d):
            refuse(
                kernel,
                f"no loop both stores and reads `{self.buffer}` along dim {d}",
                node=buffer,
                hint="fuse the loops that store and read it",
            )
        from kir.rewrites.lifetime import collides  # integer sets

        found = collides(kernel, buffer, d, self.size)
        if found is not None:
            self._refuse(kernel, *found)
        around = path_to(kernel.body, buffer) or ()
        padded = {
            id(u.access.node): self._conditions(
                kernel, (*around, *u.around), u.access.indices[d], extent
            )
            for u in uses_of(self.buffer, rest)
            if u.padded
        }
        made = replace(buffer, shape=(*buffer.shape[:d], const(self.size), *buffer.shape[d + 1 :]))

        def edit(here: Block, k: int) -> Block:
            done = (self._folded(s, padded) for s in here[k + 1 :])
            return (*here[:k], made, *done)

        return edit_block(kernel, buffer, edit)

    @classmethod
    def candidates(cls, kernel: Kernel) -> Iterator[Move]:
        """Two, three and four slices of dims through which accesses go at a distance: where there
        is none, `contract` does better. A larger size is legal where one of these is, mostly."""
        for b in buffers_of(kernel.body):
            rest = after(block_of(kernel.body, b), b)
            for d in range(len(b.shape)):
                apart = len({u.access.indices[d] for u in uses_of(b.name, rest)}) > 1
                if apart and _advances(rest, b.name, d):
                    for size in (2, 3, 4):
                        fixed = (("buffer", b.name), ("dim", d), ("size", size))
                        yield Move(cls.name, fixed)

    def _refuse(self, kernel: Kernel, use: Access, store: Access) -> None:
        from kir.analysis import describe

        refuse(
            kernel,
            f"{self.size} slices of `{self.buffer}` do not do: {describe(store)} may come before "
            f"{describe(use)}, and take its place",
            node=use.node,
        )

    def _conditions(
        self, kernel: Kernel, around: tuple[Stmt, ...], index: Expr, extent: Expr
    ) -> list[Expr]:
        """What must hold for the index of a read with a fill to be in bounds."""
        return [c for c in between(index, extent) if not always(kernel, around, c)]

    def _folded(self, stmt: Stmt, padded: dict[int, list[Expr]]) -> Stmt:
        d = self.dim

        def at(indices: tuple[Expr, ...], conditions: list[Expr]) -> tuple[Expr, ...]:
            index: Expr = op("mod", indices[d], const(self.size))
            for c in conditions:
                index = op("select", c, index, const(-1))  # out of bounds still
            return (*indices[:d], index, *indices[d + 1 :])

        def go(node: Node) -> Node:
            # by hand, since `padded` is keyed by the nodes as they are
            new = rebuild(node, go)
            if isinstance(new, Read) and new.tensor == self.buffer:
                return replace(new, indices=at(new.indices, padded.get(id(node), [])))
            if isinstance(new, Store) and new.target == self.buffer:
                return replace(new, indices=at(new.indices, []))
            return new

        done = go(stmt)
        assert isinstance(done, Stmt)
        return done


def _advances(block: Block, name: str, d: int) -> bool:
    """Whether a loop holds both a store and a read of a buffer, and the store's index in dim `d`
    changes with it: without one, all slices are alive at a time."""
    for loop in loops_of(block):
        uses = uses_of(name, (loop,))
        stores = any(
            u.access.op != "read"
            and any(
                isinstance(n, Var) and n.name == loop.axis.name for n in walk(u.access.indices[d])
            )
            for u in uses
        )
        if stores and any(u.access.op == "read" for u in uses):
            return True
    return False
