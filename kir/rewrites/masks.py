"""`unmask`: a mask whose lanes nobody looks at is dropped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from kir.ir import Buffer, Expr, Kernel, Loop, Read, Stmt, Store, Var, substitute, walk
from kir.rewrites.base import (
    Effect,
    Move,
    Rewrite,
    buffers_of,
    find_loop,
    loops_of,
    path_to,
    refuse,
    replace_stmt,
    statements,
    var_names,
)
from kir.rewrites.legality import accesses
from kir.simplify import simplify


@dataclass(frozen=True)
class Unmask(Rewrite):
    """`unmask(i)`: the loop `i` runs unmasked, where the elements it then adds are never read.

    Before::

        buffer acc: f32[8] in reg = 0.0
        for k: K { tile i: 8 where i_o*8 + i < M { acc[i] += a_local[k, i] } }
        tile i_2: 8 where i_o*8 + i_2 < M { y[i_o*8 + i_2] = acc[i_2] }

    After::

        buffer acc: f32[8] in reg = 0.0
        for k: K { tile i: 8 { acc[i] += a_local[k, i] } }
        tile i_2: 8 where i_o*8 + i_2 < M { y[i_o*8 + i_2] = acc[i_2] }

    The body may only store to buffers, at the index `i` itself; whoever reads these does so at
    an index under the same mask. Every access must be in bounds without the mask.
    """

    name: ClassVar[str] = "unmask"
    effect: ClassVar[Effect] = "exact"
    loop: str

    def edit(self, kernel: Kernel) -> Kernel:
        loop = find_loop(kernel, self.loop)
        if not loop.where:
            refuse(kernel, f"`{self.loop}` has no mask", node=loop)
        private = {b.name for b in buffers_of((loop,))}
        shared = {b.name: b for b in buffers_of(kernel.body) if b.name not in private}
        for s in statements(loop.body):
            if isinstance(s, Store) and s.target not in private:
                if s.target not in shared:
                    refuse(kernel, f"`{s.target}` is an output", node=s)
                self._check_readers(kernel, loop, shared[s.target])
        done = replace(loop, where=())
        made = replace_stmt(kernel, loop, (done,))
        self._check_bounds(kernel, made, done)
        return made

    @classmethod
    def candidates(cls, kernel: Kernel) -> Iterator[Move]:
        """Every masked loop."""
        for loop in loops_of(kernel.body):
            if loop.where:
                yield Move("unmask", (("loop", loop.axis.name),))

    def _check_readers(self, kernel: Kernel, loop: Loop, buffer: Buffer) -> None:
        """In some dim every access of `buffer` has an index that is masked as `loop` is now."""
        around = [x for x in path_to(kernel.body, buffer) or () if isinstance(x, Loop)]
        fixed = {x.axis.name for x in around} | {x.name for x in kernel.dims} | {loop.axis.name}
        for c in loop.where:
            if var_names(c) - fixed:
                refuse(kernel, f"the mask changes while `{buffer.name}` lives", node=buffer)
        for d in range(len(buffer.shape)):
            if self._unmasked(kernel, loop, buffer, d) is None:
                return
        bad = self._unmasked(kernel, loop, buffer, 0) if buffer.shape else None
        refuse(
            kernel,
            f"what `{buffer.name}` would then hold beyond the mask may be read",
            node=bad or buffer,
        )

    def _unmasked(self, kernel: Kernel, loop: Loop, buffer: Buffer, d: int) -> Stmt | None:
        """A statement that accesses `buffer` in dim `d` at an index without the mask."""
        for s in statements(kernel.body):
            heads: list[Expr] = []
            if isinstance(s, Loop):
                heads = [*s.where, s.axis.extent]
            elif not isinstance(s, Buffer):
                heads = [e for e in (getattr(s, "condition", None),) if e is not None]
            found = [n for e in heads for n in walk(e) if isinstance(n, Read)]
            if any(n.tensor == buffer.name for n in found):
                return s
            if not isinstance(s, Store | Buffer):
                continue
            around = [x for x in path_to(kernel.body, s) or () if isinstance(x, Loop)]
            for a in accesses((s,)):
                if a.tensor == buffer.name and not self._masked(a.indices[d], loop, around):
                    return s
        return None

    def _masked(self, index: Expr, loop: Loop, around: list[Loop]) -> bool:
        if not isinstance(index, Var):
            return False
        mine = {c for x in around for c in x.where}
        here: dict[str, Expr] = {loop.axis.name: index}
        return all(simplify(substitute(c, here)) in mine for c in loop.where)

    def _check_bounds(self, kernel: Kernel, made: Kernel, loop: Loop) -> None:
        from kir.analysis import model_of  # integer sets: not needed by most rewrites
        from kir.analysis.cover import escape

        model = model_of(made)
        inside = {id(n) for n in walk(loop)}
        for access in model.accesses:
            if id(access.node) in inside and escape(model, access) is not None:
                name = access.decl.name
                refuse(kernel, f"`{name}` is in bounds only under the mask", node=access.node)
