"""`transpose`: the dims of a temporary definition in another order."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from kir.ir import Define, Kernel, Read
from kir.rewrites.base import Choice, Effect, Move, Rewrite, refuse, replace_stmt, statements
from kir.rewrites.places import find_define, replace_reads

LISTED = 5
"""Of definitions with more dims, only swaps of neighbours are offered; they make all orders."""


@dataclass(frozen=True)
class Transpose(Rewrite):
    """`transpose(def, order)`: the layout of a temporary: new dim `n` is the old dim `order[n]`.

    Before::

        t[i: M, j: N] = x[i, j] * 2.0
        y[i: M] = sum(j: N) t[i, j]

    After `transpose(t, (1, 0))`::

        t[j: N, i: M] = x[i, j] * 2.0
        y[i: M] = sum(j: N) t[j, i]

    Refused for outputs, and where `order` is not each dim once.
    """

    name: ClassVar[str] = "transpose"
    effect: ClassVar[Effect] = "exact"
    definition: str
    order: tuple[int, ...]

    def edit(self, kernel: Kernel) -> Kernel:
        target = find_define(kernel, self.definition)
        if any(p.name == self.definition for p in kernel.outputs):
            refuse(kernel, f"`{self.definition}` is an output, whose layout is given", node=target)
        rank = len(target.dims)
        if sorted(self.order) != list(range(rank)):
            refuse(
                kernel,
                f"{self.order} is no order of the {rank} dims of `{self.definition}`",
                node=target,
                hint=f"name each of {', '.join(map(str, range(rank))) or 'none'} once",
            )
        if self.order == tuple(range(rank)):
            refuse(kernel, "this is the order they have", node=target)

        def new(read: Read) -> Read:
            return replace(read, indices=tuple(read.indices[k] for k in self.order))

        dims = tuple(target.dims[k] for k in self.order)
        turned = replace_stmt(kernel, target, (replace(target, dims=dims),))
        body = tuple(replace_reads(s, self.definition, new) for s in turned.body)
        return replace(kernel, body=body)

    @classmethod
    def candidates(cls, kernel: Kernel) -> Iterator[Move]:
        outputs = {p.name for p in kernel.outputs}
        for s in statements(kernel.body):
            if isinstance(s, Define) and s.name not in outputs and len(s.dims) > 1:
                orders = Choice(tuple(_orders(len(s.dims))))
                yield Move(cls.name, (("definition", s.name),), (("order", orders),))


def _orders(rank: int) -> Iterator[tuple[int, ...]]:
    same = tuple(range(rank))
    if rank <= LISTED:
        yield from (p for p in itertools.permutations(same) if p != same)
        return
    for k in range(rank - 1):
        yield (*same[:k], k + 1, k, *same[k + 2 :])
