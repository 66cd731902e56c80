"""`stage`: the part of a tensor that a loop's body reads is copied to a buffer first."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from kir.dtypes import DType
from kir.ir import (
    TRUE,
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
    transform,
    walk,
)
from kir.ops import identity, op
from kir.rewrites.base import (
    Effect,
    Rewrite,
    buffers_of,
    extent_of,
    find_loop,
    fresh,
    loops_of,
    names_in,
    path_to,
    refuse,
    replace_stmt,
    require_loops,
    var_names,
)
from kir.rewrites.legality import accesses
from kir.rewrites.memory import check_space
from kir.simplify import Linear, interval, linear, simplify


@dataclass(frozen=True)
class _Window:
    """Of one dim: the first index of the window, how many there are, all within the tensor?"""

    base: Expr
    size: Expr
    inside: bool


@dataclass(frozen=True)
class Stage(Rewrite):
    """`stage(tensor, loop, space, order = (1, 0), name = packed)`: copies a window of `tensor`.

    Before::

        for k_o: cdiv(K, 64) {
          for i: 8 { for k: 64 where k_o*64 + k < K { acc[i] += b[k_o*64 + k, i] } }
        }

    After `stage(b, k_o, local, order = (1, 0))`::

        for k_o: cdiv(K, 64) {
          buffer b_local: f32[8, 64] in local
          for b_local_0: 64 {
            for b_local_1: 8 {
              b_local[b_local_1, b_local_0] = b[k_o*64 + b_local_0, b_local_1] else 0.0
            }
          }
          for i: 8 { for k: 64 where k_o*64 + k < K { acc[i] += b_local[i, k] } }
        }

    The window is the box that the loops inside `loop` go through: per dim, an offset affine in
    the indices outside, and an extent. It is filled with zeros where it may pass the tensor's
    bounds. `order` lists the tensor's dims as the buffer is to have them, outermost first; dims
    of which only one index is read are left out. Refused where `tensor` is written inside, or
    read through indices that are not affine.
    """

    name: ClassVar[str] = "stage"
    effect: ClassVar[Effect] = "exact"
    tensor: str
    loop: str
    space: str = "local"
    order: tuple[int, ...] | None = None
    buffer: str | None = None

    def edit(self, kernel: Kernel) -> Kernel:
        loop = find_loop(kernel, self.loop)
        space = check_space(kernel, self.space, loop)
        require_loops(kernel, (loop,))
        dtype, shape = self._declared(kernel, loop)
        reads = self._reads(kernel, loop)
        windows = [
            self._window(kernel, loop, [r.indices[d] for r in reads], shape[d], reads[0])
            for d in range(len(shape))
        ]
        order = self.order if self.order is not None else tuple(range(len(shape)))
        if sorted(order) != list(range(len(shape))):
            refuse(kernel, f"`order` is no permutation of the {len(shape)} dims", node=loop)
        kept = [d for d in order if windows[d].size != const(1)]
        used = names_in(kernel)
        if self.buffer is not None and self.buffer in used:
            refuse(kernel, f"the name `{self.buffer}` is taken", node=loop)
        name = fresh(self.buffer or f"{self.tensor}_{self.space}", used)
        made = Buffer(name, dtype, tuple(windows[d].size for d in kept), space)
        copy = self._copy(name, dtype, windows, kept, reads[0], used)

        def visit(n: Node) -> Node | None:
            if isinstance(n, Read) and n.tensor == self.tensor:
                at = tuple(op("sub", n.indices[d], windows[d].base) for d in kept)
                return Read(name, at, dtype, span=n.span)
            return None

        body = tuple(transform(s, visit) for s in loop.body)
        return replace_stmt(kernel, loop, (replace(loop, body=(made, copy, *body)),))

    def _declared(self, kernel: Kernel, loop: Loop) -> tuple[DType, tuple[Expr, ...]]:
        for p in kernel.params:
            if p.name == self.tensor:
                return p.type, p.shape
        inside = {id(b) for b in buffers_of((loop,))}
        for b in buffers_of(kernel.body):
            if b.name == self.tensor:
                if id(b) in inside:
                    refuse(kernel, f"`{self.tensor}` lives inside `{self.loop}`", node=b)
                return b.type, b.shape
        return refuse(kernel, f"`{kernel.name}` has no tensor `{self.tensor}`", node=loop)

    def _reads(self, kernel: Kernel, loop: Loop) -> list[Read]:
        found = [a for a in accesses(loop.body) if a.tensor == self.tensor]
        for a in found:
            if a.op != "read":
                refuse(kernel, f"`{self.tensor}` is written inside `{self.loop}`", node=a.node)
        reads = [a.node for a in found if isinstance(a.node, Read)]
        if not reads:
            refuse(kernel, f"`{self.tensor}` is not read inside `{self.loop}`", node=loop)
        for r in reads:
            if r.fill != reads[0].fill or not isinstance(r.fill, Const | None):
                refuse(
                    kernel, "reads with different fills, or computed ones, share no copy", node=r
                )
        return reads

    def _window(
        self, kernel: Kernel, loop: Loop, indices: list[Expr], shape: Expr, read: Read
    ) -> _Window:
        """The box around `indices`, in one dim of extent `shape`."""
        inner = {x.axis.name: x.axis.extent for x in loops_of(loop.body)}
        ranges = {
            name: (0, int(e.value) - 1 if isinstance(e, Const) else None)
            for name, e in inner.items()
        }
        offset: Linear | None = None
        low: int | None = None
        high = Linear()
        for index in indices:
            form, rest = linear(index), Linear()
            least, most = form.constant, Linear(constant=form.constant)
            for atom, c in form.terms.items():
                if any(isinstance(n, Read) for n in walk(atom)):
                    refuse(kernel, "an index read from a tensor has no window", node=read)
                if not var_names(atom) & set(inner):
                    rest.add(Linear({atom: c}))
                    continue
                below, above = interval(atom, ranges)
                if isinstance(atom, Var) and above is None and c > 0:
                    # c * extent, and 1 less for one of them: at most as far as c * (extent - 1),
                    # and a size that is never negative
                    most.constant -= 0 if most.terms else 1
                    most.add(linear(inner[atom.name]), c)
                    continue
                if below is None or above is None:
                    refuse(kernel, "the window has no bound", node=read)
                least += min(c * below, c * above)
                most.constant += max(c * below, c * above)
            rest, most = rest.cleaned(), most.cleaned()
            if offset is not None and rest.terms != offset.terms:
                refuse(kernel, "the reads go through windows that move apart", node=read)
            if low is not None and most.terms != high.terms:
                refuse(kernel, "the reads go through windows of different size", node=read)
            high = Linear(
                most.terms, most.constant if low is None else max(most.constant, high.constant)
            )
            low = least if low is None else min(low, least)
            offset = rest
        assert offset is not None and low is not None
        base = Linear(dict(offset.terms), low).build()
        size = Linear(dict(high.terms), high.constant - low + 1).build()
        if var_names(size) & set(inner):
            refuse(kernel, "the extent of the window changes inside the loop", node=read)
        return _Window(base, size, self._inside(kernel, loop, base, size, shape))

    def _inside(self, kernel: Kernel, loop: Loop, base: Expr, size: Expr, shape: Expr) -> bool:
        if base == const(0) and simplify(op("le", size, shape)) == TRUE:
            return True
        around = [s for s in (*(path_to(kernel.body, loop) or ()), loop) if isinstance(s, Loop)]
        ranges = {}
        for x in around:
            extent = extent_of(x)
            ranges[x.axis.name] = (0, None if extent is None else extent - 1)
        low, _ = interval(base, ranges)
        fits = simplify(op("le", op("add", base, size), shape), ranges) == TRUE
        return low is not None and low >= 0 and fits

    def _copy(
        self,
        name: str,
        dtype: DType,
        windows: list[_Window],
        kept: list[int],
        read: Read,
        used: set[str],
    ) -> Stmt:
        at = {d: fresh(f"{name}_{d}", used) for d in sorted(kept)}
        source = tuple(
            op("add", w.base, Var(at[d])) if d in at else w.base for d, w in enumerate(windows)
        )
        fill = read.fill
        if fill is None and not all(w.inside for w in windows):
            fill = identity("or" if dtype.is_bool else "add", dtype)
        value = Read(self.tensor, source, dtype, fill)
        stmt: Stmt = Store(name, tuple(Var(at[d]) for d in kept), value)
        for d in sorted(kept, reverse=True):
            stmt = Loop("for", Axis(at[d], windows[d].size), (), (stmt,))
        return stmt
