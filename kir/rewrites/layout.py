"""`layout`: the order, padding and packing of a temporary's elements; `Layout` is shared."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from kir.ir import Buffer, Expr, Kernel, Node, Read, Stmt, const
from kir.ops import op
from kir.rewrites.base import (
    Block,
    Choice,
    Effect,
    Move,
    Rewrite,
    buffers_of,
    edit_block,
    find_buffer,
    path_to,
    refuse,
)
from kir.rewrites.window import after, block_of, in_bounds, redirect, uses_of


@dataclass(frozen=True)
class Layout:
    """How a box of some dims lies in a buffer: the dims in `order`, then split into panels, then
    padded.

    With `pack = (d, w)` dim d becomes two: its panels outermost, and w elements of one panel
    innermost. `pad` gives elements to add to the last dims of the buffer, which nobody uses.
    """

    order: tuple[int, ...]
    pack: tuple[int, int] | None = None
    pad: tuple[int, ...] = ()

    @property
    def rank(self) -> int:
        return len(self.order) + (self.pack is not None)

    def shape(self, sizes: Mapping[int, Expr]) -> tuple[Expr, ...]:
        """The buffer's shape for a box of these sizes."""
        if self.pack is None:
            plain = [sizes[d] for d in self.order]
        else:
            d, width = self.pack
            panels = op("cdiv", sizes[d], const(width))
            plain = [panels, *(sizes[x] for x in self.order if x != d), const(width)]
        pads = (0,) * (len(plain) - len(self.pad)) + self.pad
        return tuple(op("add", e, const(p)) if p else e for e, p in zip(plain, pads, strict=True))

    def index(self, at: Mapping[int, Expr]) -> tuple[Expr, ...]:
        """Where the element `at` of the box is."""
        if self.pack is None:
            return tuple(at[d] for d in self.order)
        d, width = self.pack
        panel, lane = op("floordiv", at[d], const(width)), op("mod", at[d], const(width))
        return (panel, *(at[x] for x in self.order if x != d), lane)


def make_layout(
    kernel: Kernel,
    node: Node,
    rank: int,
    kept: Sequence[int],
    order: tuple[int, ...] | None,
    pack: tuple[int, ...] | None,
    pad: tuple[int, ...] | None,
) -> Layout:
    """The layout that a rewrite's arguments ask for, of the dims `kept` of a tensor of `rank`;
    RewriteError where they do not fit."""
    wanted = tuple(range(rank)) if order is None else order
    if sorted(wanted) != list(range(rank)):
        refuse(kernel, f"`order` is no permutation of the {rank} dims", node=node)
    if pack is not None:
        if len(pack) != 2 or pack[0] not in range(rank) or pack[1] < 1:
            refuse(
                kernel,
                f"`pack` takes a dim (0 to {rank - 1}) and the width of its panels",
                node=node,
                hint=f"pack = ({max(rank - 1, 0)}, 16)",
            )
        if pack[0] not in kept:
            refuse(kernel, f"dim {pack[0]} has one element: it makes no panels", node=node)
    panels = None if pack is None else (pack[0], pack[1])
    made = Layout(tuple(d for d in wanted if d in kept), panels)
    if pad is not None:
        if len(pad) > made.rank or any(p < 0 for p in pad):
            refuse(
                kernel,
                f"`pad` takes up to {made.rank} numbers of elements, for the buffer's last dims",
                node=node,
            )
        made = replace(made, pad=pad)
    return made


@dataclass(frozen=True)
class SetLayout(Rewrite):
    """`layout(buffer, order, pad = (0, 1), pack = (1, 16))`: a temporary's elements lie otherwise.

    Before::

        buffer t: f32[64, N] in local
        for i: 64 { for j: N { t[i, j] = x[j, i] } }

    After `layout(t, order = (1, 0), pad = (1,))`::

        buffer t: f32[N, 65] in local
        for i: 64 { for j: N { t[j, i] = x[j, i] } }

    After `layout(t, pack = (1, 16))`::

        buffer t: f32[cdiv(N, 16), 64, 16] in local
        for i: 64 { for j: N { t[j // 16, i, j % 16] = x[j, i] } }

    `order` lists the old dims as the buffer is to have them, outermost first. `pack` splits a dim
    into panels: the panels outermost, the elements of one innermost. `pad` adds elements to the
    last dims, against conflicts of memory banks. Reads with a fill must be in bounds where the
    buffer grows.
    """

    name: ClassVar[str] = "layout"
    effect: ClassVar[Effect] = "exact"
    buffer: str
    order: tuple[int, ...] | None = None
    pad: tuple[int, ...] | None = None
    pack: tuple[int, ...] | None = None

    def edit(self, kernel: Kernel) -> Kernel:
        buffer = find_buffer(kernel, self.buffer)
        rank = len(buffer.shape)
        if self.order is None and not any(self.pad or ()) and self.pack is None:
            refuse(kernel, "`layout` takes an order, a padding or panels", node=buffer)
        made = make_layout(kernel, buffer, rank, range(rank), self.order, self.pack, self.pad)
        if self.pack is not None or any(self.pad or ()):
            self._check_fills(kernel, buffer)

        def at(indices: tuple[Expr, ...]) -> tuple[Expr, ...]:
            return made.index(dict(enumerate(indices)))

        shape = made.shape(dict(enumerate(buffer.shape)))

        def edit(block: Block, k: int) -> Sequence[Stmt]:
            rest = (moved(s, self.buffer, at) for s in block[k + 1 :])
            return (*block[:k], replace(buffer, shape=shape), *rest)

        return edit_block(kernel, buffer, edit)

    @classmethod
    def candidates(cls, kernel: Kernel) -> Iterator[Move]:
        for b in buffers_of(kernel.body):
            rank = len(b.shape)
            if 2 <= rank <= 4:
                orders = tuple(itertools.permutations(range(rank)))[1:]
                yield Move(cls.name, (("buffer", b.name),), (("order", Choice(orders)),))
            if rank:
                pads = Choice(((1,), (4,), (8,)))
                yield Move(cls.name, (("buffer", b.name),), (("pad", pads),))
                panels = Choice(tuple((d, w) for d in range(rank) for w in (8, 16, 32)))
                yield Move(cls.name, (("buffer", b.name),), (("pack", panels),))

    def _check_fills(self, kernel: Kernel, buffer: Buffer) -> None:
        """What a read finds beyond the old bounds it would find in the larger buffer."""
        around = path_to(kernel.body, buffer) or ()
        for use in uses_of(self.buffer, after(block_of(kernel.body, buffer), buffer)):
            node = use.access.node
            if not isinstance(node, Read) or node.fill is None:
                continue
            for index, extent in zip(node.indices, buffer.shape, strict=True):
                if not in_bounds(kernel, (*around, *use.around), index, extent):
                    refuse(
                        kernel,
                        f"a read with a fill may be out of the bounds of `{self.buffer}`",
                        node=node,
                        hint="only `order` may change then",
                    )


def moved(stmt: Stmt, tensor: str, at: Callable[[tuple[Expr, ...]], tuple[Expr, ...]]) -> Stmt:
    """The statement with the indices of each access of `tensor` mapped; fills stay."""

    return redirect(stmt, tensor, lambda n: replace(n, indices=at(n.indices)))
