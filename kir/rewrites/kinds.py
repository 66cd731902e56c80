"""What a loop is: `bind`, `unroll`, `hint`."""

from __future__ import annotations

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
    walk,
)
from kir.rewrites.base import (
    Effect,
    Rewrite,
    buffers_of,
    copy_with_fresh_names,
    extent_of,
    find_loop,
    guarded,
    names_in,
    path_to,
    refuse,
    replace_stmt,
    require_loops,
)
from kir.rewrites.legality import (
    accesses,
    parallel_conflict,
)

UNROLL_LIMIT = 4096
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
    under a `for` of the host.
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
        if self.kind == "grid":
            self._check_grid(kernel, loop)
        return replace_stmt(kernel, loop, (replace(loop, kind=self.kind),))

    def _check_grid(self, kernel: Kernel, loop: Loop) -> None:
        around = [s for s in path_to(kernel.body, loop) or () if isinstance(s, Loop)]
        kinds = [s.kind for s in around]
        inner = next((k for k, kind in enumerate(kinds) if kind == "grid"), len(kinds))
        if any(k in ("tile", "unroll") for k in kinds) or "for" in kinds[inner:]:
            refuse(kernel, f"a grid cannot stand inside a {kinds[-1]}", node=loop)
        held = {b.name: b for b in buffers_of(kernel.body) if b.space != "global"}
        for access in accesses((loop,)):
            if access.tensor in held:
                refuse(
                    kernel,
                    f"`{access.tensor}` is in {held[access.tensor].space}, outside of the grid",
                    node=held[access.tensor],
                    hint="`contract` moves a buffer into the loops that use it",
                )


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
        size = sum(isinstance(n, Stmt) for n in walk(loop)) - 1
        if extent * size > UNROLL_LIMIT:
            refuse(kernel, f"unrolling would make {extent * size} statements", node=loop)
        used = names_in(kernel)
        made: list[Stmt] = []
        for k in range(extent):
            body = loop.body if k == 0 else copy_with_fresh_names(loop.body, used)
            here: dict[str, Expr] = {self.loop: const(k)}
            where = tuple(substitute(c, here) for c in loop.where)
            made.extend(guarded(where, tuple(substitute(s, here) for s in body)))
        return replace_stmt(kernel, loop, made)


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
        hints = {**dict(loop.hints), self.key: self.value}
        return replace_stmt(kernel, loop, (replace(loop, hints=tuple(hints.items())),))
