"""What a loop is: `bind`, `unroll`, `hint`, `vectorise`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from kir.ir import (
    LOOP_KINDS,
    Expr,
    Kernel,
    Loop,
    Stmt,
    const,
    substitute,
)
from kir.rewrites.base import (
    Block,
    Effect,
    Move,
    Rewrite,
    Whole,
    copy_with_fresh_names,
    extent_of,
    find_loop,
    guarded,
    loops_of,
    names_in,
    refuse,
    replace_stmt,
    require_loops,
    statements,
)
from kir.rewrites.flush import FLUSH
from kir.rewrites.legality import (
    check_grids,
    order_of_updates,
    parallel_conflict,
)
from kir.rewrites.split import Split, copied_names

UNROLL_LIMIT = 1024
"""The most statements `unroll` may make."""


@dataclass(frozen=True)
class Bind(Rewrite):
    """`bind(i, kind)`: makes a loop a `for`, `grid`, `tile` or `unroll`.

    Before::

        for i: M { y[i] = x[i] }

    After `bind(i, grid)`::

        grid i: M { y[i] = x[i] }

    The promise is checked: `grid` and `tile` must carry no dependence (recognised reductions
    aside), `tile` and `unroll` have a constant extent, and a `grid` stands under `grid`s, or
    under a `for` of the host, with no buffer of a program around it.
    """

    name: ClassVar[str] = "bind"
    effect: ClassVar[Effect] = "reassociates"
    loop: str
    kind: str

    def edit(self, kernel: Kernel) -> Kernel:
        loop = find_loop(kernel, self.loop)
        if self.kind not in LOOP_KINDS:
            refuse(kernel, f"`{self.kind}` is no kind of loop", hint=", ".join(LOOP_KINDS))
        if self.kind in ("tile", "unroll") and extent_of(loop) is None:
            refuse(
                kernel,
                f"the extent of `{self.loop}` is not constant, as `{self.kind}` needs",
                node=loop,
                hint=f"`split({self.loop}, 64)` gives an inner loop of constant extent",
            )
        if self.kind in ("grid", "tile"):
            found = parallel_conflict(kernel, loop)
            if found:
                refuse(
                    kernel,
                    f"`{self.loop}` carries a dependence: {found}",
                    node=loop,
                    hint="leave it a `for`; bind another loop, or split this one by `fission`",
                )
        new = replace(loop, kind=self.kind)
        check_grids(kernel, loop, new)
        return replace_stmt(kernel, loop, (new,))

    @classmethod
    def candidates(cls, kernel: Kernel) -> Iterator[Move]:
        """Every loop with every other kind."""
        for loop in loops_of(kernel.body):
            for kind in LOOP_KINDS:
                if kind != loop.kind and (kind in ("for", "grid") or extent_of(loop) is not None):
                    yield Move("bind", (("loop", loop.axis.name), ("kind", kind)))

    def effect_on(self, kernel: Kernel) -> Effect:
        """Exact unless iterations that may then run in any order update one element."""
        if self.kind in ("for", "unroll"):
            return "exact"
        return order_of_updates(find_loop(kernel, self.loop))


@dataclass(frozen=True)
class Unroll(Rewrite):
    """`unroll(i)`: a loop of constant extent becomes copies of its body.

    Before::

        for i: 2 { y[i] = x[i] }

    After::

        y[0] = x[0]
        y[1] = x[1]

    Loops and buffers inside get fresh names in all copies but the first.
    """

    name: ClassVar[str] = "unroll"
    effect: ClassVar[Effect] = "exact"
    loop: str

    def edit(self, kernel: Kernel) -> Kernel:
        loop = find_loop(kernel, self.loop)
        extent = extent_of(loop)
        if extent is None:
            refuse(kernel, f"the extent of `{self.loop}` is not constant", node=loop)
        require_loops(kernel, (loop,))
        size = sum(1 for _ in statements(loop.body))
        if extent * size > UNROLL_LIMIT:
            refuse(kernel, f"unrolling would make {extent * size} statements", node=loop)
        made: list[Stmt] = []
        for k, body in enumerate(self._copies(kernel, loop, extent)):
            here: dict[str, Expr] = {self.loop: const(k)}
            made.extend(guarded(tuple(substitute(c, here) for c in loop.where), body))
        return replace_stmt(kernel, loop, made)

    @classmethod
    def candidates(cls, kernel: Kernel) -> Iterator[Move]:
        """Every loop of constant extent."""
        for loop in loops_of(kernel.body):
            if extent_of(loop) is not None:
                yield Move("unroll", (("loop", loop.axis.name),))

    def forward(self, before: Kernel, after: Kernel) -> dict[str, tuple[str, ...]]:
        loop = find_loop(before, self.loop)
        copies = self._copies(before, loop, extent_of(loop) or 0)
        return super().forward(before, after) | copied_names(*copies)

    def _copies(self, kernel: Kernel, loop: Loop, extent: int) -> list[Block]:
        """The body for each iteration, loops and buffers under names of their own."""
        used = names_in(kernel)
        made = [tuple(substitute(s, {self.loop: const(0)}) for s in loop.body)][:extent]
        for k in range(1, extent):
            made.append(copy_with_fresh_names(loop.body, used, {self.loop: const(k)}))
        return made


@dataclass(frozen=True)
class Hint(Rewrite):
    """`hint(i, name, value)`: a hint on a loop; backends may heed it, results never change.

    Before::

        grid i: M { ... }

    After `hint(i, num_warps, 8)`::

        grid i: M hint(num_warps = 8) { ... }
    """

    name: ClassVar[str] = "hint"
    effect: ClassVar[Effect] = "exact"
    loop: str
    key: str
    value: int

    def edit(self, kernel: Kernel) -> Kernel:
        loop = find_loop(kernel, self.loop)
        if self.key == FLUSH:
            refuse(kernel, f"`{FLUSH}` changes results", node=loop, hint=f"`flush({self.loop})`")
        hints = {**dict(loop.hints), self.key: self.value}
        return replace_stmt(kernel, loop, (replace(loop, hints=tuple(hints.items())),))

    @classmethod
    def candidates(cls, kernel: Kernel) -> Iterator[Move]:
        """Every hint that some backend heeds, on the loops it concerns."""
        for loop in loops_of(kernel.body):
            for key, values in HINTS.items():
                if loop.kind == "grid" or (loop.kind == "for" and key in ("num_stages", "ahead")):
                    fixed = (("loop", loop.axis.name), ("key", key))
                    yield Move("hint", fixed, (("value", values),))


HINTS: dict[str, Whole] = {
    "num_warps": Whole(1, 32, (4, 8, 2, 16)),
    "num_stages": Whole(1, 8, (2, 3, 4)),
    "group": Whole(1, None, (8, 4, 16)),
    "stream": Whole(0, 1, (1,)),
    "ahead": Whole(0, 2, (1, 2)),
}
"""Hints that some backend heeds, and their values."""


@dataclass(frozen=True)
class Vectorise(Rewrite):
    """`vectorise(i, width, tail = mask)`: `width` iterations at a time become lanes.

    Before::

        for i: N { y[i] = x[i] }

    After `vectorise(i, 8)`::

        for i_o: cdiv(N, 8) {
          tile i: 8 where i_o*8 + i < N hint(vector = 8) { y[i_o*8 + i] = x[i_o*8 + i] }
        }

    It is `split(i, width)` (whose `tail` it takes) and `bind(i, tile)`, with a hint that backends
    may heed. Refused where the loop carries a dependence; the order of a reduction may change.
    """

    name: ClassVar[str] = "vectorise"
    effect: ClassVar[Effect] = "reassociates"
    loop: str
    width: int
    tail: str = "mask"

    def edit(self, kernel: Kernel) -> Kernel:
        loop = find_loop(kernel, self.loop)
        found = parallel_conflict(kernel, loop)
        if found:
            refuse(
                kernel,
                f"`{self.loop}` carries a dependence: {found}",
                node=loop,
                hint="vectorise another loop, or take this one apart by `fission`",
            )
        made, names = Split(self.loop, self.width, tail=self.tail).split(kernel)
        inner, _, *rest = names[self.loop]
        check_grids(kernel, loop, replace(loop, kind="tile"))
        for name in (inner, *rest):
            lanes = find_loop(made, name)
            hints = (*lanes.hints, ("vector", self.width))
            made = replace_stmt(made, lanes, (replace(lanes, kind="tile", hints=hints),))
        return made

    @classmethod
    def candidates(cls, kernel: Kernel) -> Iterator[Move]:
        """Every loop, as `split` lists them."""
        for move in Split.candidates(kernel):
            tries = tuple(w for w in (8, 16, 4, 32, 2) if w in _factors(move)) or (1,)
            domains = tuple(
                ("width", replace(d, tries=tries)) if isinstance(d, Whole) else (name, d)
                for name, d in move.domains
            )
            yield Move("vectorise", move.fixed, domains)

    def effect_on(self, kernel: Kernel) -> Effect:
        return order_of_updates(find_loop(kernel, self.loop))

    def forward(self, before: Kernel, after: Kernel) -> dict[str, tuple[str, ...]]:
        return Split(self.loop, self.width, tail=self.tail).forward(before, after)


def _factors(move: Move) -> range:
    domain = dict(move.domains)["factor"]
    assert isinstance(domain, Whole)
    return range(domain.low, (domain.high or 1 << 16) + 1)
