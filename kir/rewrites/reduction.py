"""Rewrites of reductions: `rfactor`, `contract_fma`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from kir.ir import (
    Axis,
    Buffer,
    Expr,
    If,
    Kernel,
    Loop,
    Op,
    Read,
    Stmt,
    Store,
    Var,
    walk,
)
from kir.ops import identity, op
from kir.rewrites.base import (
    Block,
    Effect,
    Rewrite,
    edit_block,
    extent_of,
    find_buffer,
    find_loop,
    fresh,
    names_in,
    path_to,
    refuse,
    reindex,
    require_loops,
)
from kir.rewrites.legality import accesses


@dataclass(frozen=True)
class RFactor(Rewrite):
    """`rfactor(acc, i)`: each iteration of the loop `i` accumulates on its own; then they combine.

    Before::

        buffer acc: f32 in reg = 0
        for i_o: cdiv(N, 16) { for i: 16 where i_o*16 + i < N { acc += x[i_o*16 + i] } }

    After::

        buffer acc: f32 in reg = 0
        buffer acc_i: f32[16] in reg = 0
        for i_o: cdiv(N, 16) { for i: 16 where i_o*16 + i < N { acc_i[i] += x[i_o*16 + i] } }
        for i_2: 16 { acc += acc_i[i_2] }

    The combining loop follows the statement of `acc`'s block that accumulates. The loop `i` has a
    constant extent, `acc` is indexed by none of the loops between, and is only updated by one op
    there. The combining loop is of the kind of `i`.
    """

    name: ClassVar[str] = "rfactor"
    effect: ClassVar[Effect] = "reassociates"
    acc: str
    loop: str
    partial: str | None = None

    def edit(self, kernel: Kernel) -> Kernel:
        acc, loop = find_buffer(kernel, self.acc), find_loop(kernel, self.loop)
        extent = extent_of(loop)
        if extent is None:
            refuse(
                kernel,
                f"the extent of `{self.loop}` is not constant",
                node=loop,
                hint=f"`split({self.loop}, 16)` first",
            )
        if acc.shape:
            refuse(kernel, f"`{self.acc}` is not a scalar", node=acc)
        require_loops(kernel, (loop,))
        update = self._update(kernel, acc, loop)
        used = names_in(kernel)
        if self.partial is not None and self.partial in used:
            refuse(kernel, f"the name `{self.partial}` is taken", node=acc)
        partial = fresh(self.partial or f"{self.acc}_{self.loop}", used)
        again = fresh(self.loop, used)
        start = identity(update, acc.type)
        made = Buffer(partial, acc.type, (loop.axis.extent,), acc.space, start)
        value = Read(partial, (Var(again),), acc.type)
        body = (Store(self.acc, (), value, update),)
        combine = Loop(loop.kind, Axis(again, loop.axis.extent), (), body)

        def index(_: tuple[Expr, ...]) -> tuple[Expr, ...]:
            return (Var(self.loop),)

        def within(stmt: Stmt) -> Stmt:
            if stmt is loop:
                return reindex(stmt, self.acc, index, partial)
            if isinstance(stmt, Loop | If):
                return replace(stmt, body=tuple(within(s) for s in stmt.body))
            return stmt

        def edit(block: Block, _: int) -> Block:
            at = next(k for k, s in enumerate(block) if self._holds(s, loop))
            return (*block[:at], made, within(block[at]), combine, *block[at + 1 :])

        return edit_block(kernel, acc, edit)

    def _holds(self, stmt: Stmt, loop: Loop) -> bool:
        return any(n is loop for n in walk(stmt))

    def _update(self, kernel: Kernel, acc: Buffer, loop: Loop) -> str:
        """The op by which everything inside the accumulating statement updates `acc`."""
        outer, inner = path_to(kernel.body, acc) or (), path_to(kernel.body, loop) or ()
        if inner[: len(outer)] != outer or len(inner) < len(outer):
            refuse(kernel, f"`{self.loop}` is not in the scope of `{self.acc}`", node=loop)
        top = inner[len(outer)] if len(inner) > len(outer) else loop
        uses = [a for a in accesses((top,)) if a.tensor == self.acc]
        if not any(a.tensor == self.acc for a in accesses((loop,))):
            refuse(kernel, f"`{self.loop}` does not accumulate into `{self.acc}`", node=loop)
        for a in uses:
            if a.op in ("read", "write") or a.op != uses[0].op:
                refuse(kernel, f"`{self.acc}` is not only accumulated here", node=a.node)
        return uses[0].op


@dataclass(frozen=True)
class ContractFma(Rewrite):
    """`contract_fma()`: `acc += a * b` on floats becomes `acc = fma(a, b, acc)`, one rounding.

    Before::

        acc += x[i] * y[i]

    After::

        acc = fma(x[i], y[i], acc)

    All such updates in f32 and f64 are changed, but for those in which lanes of a `tile` or
    iterations of a `grid` share the target: these stay reductions.
    """

    name: ClassVar[str] = "contract_fma"
    effect: ClassVar[Effect] = "approximates"

    def edit(self, kernel: Kernel) -> Kernel:
        done = replace(kernel, body=self._block(kernel.body, frozenset(), {}))
        if done == kernel:
            refuse(kernel, "there is no `acc += a * b` on f32 or f64 here")
        return done

    def _block(
        self, body: Block, lanes: frozenset[str], born: Mapping[str, frozenset[str]]
    ) -> Block:
        """`lanes`: the grid and tile indices in scope; `born`: those around each buffer."""
        born = {**born, **{s.name: lanes for s in body if isinstance(s, Buffer)}}
        return tuple(self._stmt(s, lanes, born) for s in body)

    def _stmt(self, stmt: Stmt, lanes: frozenset[str], born: Mapping[str, frozenset[str]]) -> Stmt:
        if isinstance(stmt, Loop):
            inner = lanes | {stmt.axis.name} if stmt.kind in ("tile", "grid") else lanes
            return replace(stmt, body=self._block(stmt.body, inner, born))
        if isinstance(stmt, If):
            return replace(stmt, body=self._block(stmt.body, lanes, born))
        if isinstance(stmt, Store) and stmt.op == "add":
            plain = {e.name for e in stmt.indices if isinstance(e, Var)}
            shared = lanes - born.get(stmt.target, frozenset()) - plain
            match stmt.value:
                case Op("mul", (a, b), type) if not shared and type.name in ("f32", "f64"):
                    old = Read(stmt.target, stmt.indices, type)
                    return replace(stmt, op=None, value=op("fma", a, b, old))
        return stmt
