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

    The body may only store to buffers, at the index `i` itself and those others that the mask
    takes; whoever reads these does so at indices under the same mask. Every access must be in
    bounds without the mask.
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
                self._check_readers(kernel, loop, shared[s.target], s)
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

    def _check_readers(self, kernel: Kernel, loop: Loop, buffer: Buffer, stored: Store) -> None:
        """Every access of `buffer` has indices that are masked as those of the store are now."""
        around = [x for x in path_to(kernel.body, buffer) or () if isinstance(x, Loop)]
        fixed = {x.axis.name for x in around} | {x.name for x in kernel.dims}
        dims: dict[str, int] = {}
        for name in sorted({v for c in loop.where for v in var_names(c)} - fixed | {self.loop}):
            found = [d for d, e in enumerate(stored.indices) if e == Var(name)]
            if not found:
                why = f"the mask changes with `{name}` while `{buffer.name}` lives"
                if name == self.loop:
                    why = f"what `{buffer.name}` would then hold beyond the mask may be read"
                refuse(kernel, why, node=buffer)
            dims[name] = found[0]
        bad = self._unmasked(kernel, loop, buffer, dims)
        if bad is not None:
            refuse(
                kernel,
                f"what `{buffer.name}` would then hold beyond the mask may be read",
                node=bad,
            )

    def _unmasked(
        self, kernel: Kernel, loop: Loop, buffer: Buffer, dims: dict[str, int]
    ) -> Stmt | None:
        """A statement that accesses `buffer` where the mask does not hold for its indices; `dims`
        says in which dim each index of the mask goes."""
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
                if a.tensor == buffer.name:
                    here = {name: a.indices[d] for name, d in dims.items()}
                    if not self._masked(here, loop, around):
                        return s
        return None

    def _masked(self, here: dict[str, Expr], loop: Loop, around: list[Loop]) -> bool:
        if not all(isinstance(e, Var) for e in here.values()):
            return False
        mine = {c for x in around for c in x.where}
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
