"""`stage`, `stage_out`: a window of a tensor goes through a buffer while a loop's body runs."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from kir.dtypes import DType
from kir.ir import (
    Axis,
    Buffer,
    Const,
    Expr,
    Kernel,
    Loop,
    Node,
    Read,
    Space,
    Stmt,
    Store,
    Var,
    const,
    transform,
    walk,
)
from kir.ops import identity, op
from kir.rewrites.base import (
    Choice,
    Effect,
    Move,
    Rewrite,
    buffers_of,
    find_loop,
    fresh,
    guarded,
    loops_of,
    names_in,
    refuse,
    replace_stmt,
    require_loops,
)
from kir.rewrites.layout import Layout, make_layout
from kir.rewrites.memory import check_inside, check_space
from kir.rewrites.window import (
    NoWindow,
    Use,
    Window,
    always,
    between,
    changing_in,
    fills_windows,
    in_bounds,
    mentions,
    redirect,
    surroundings,
    uses_of,
    window,
    written_in,
)


@dataclass(frozen=True)
class _Staged:
    """The buffer that a window of a tensor goes through, and where its elements are in it."""

    buffer: Buffer
    windows: tuple[Window, ...]
    inside: tuple[bool, ...]
    """By dim: whether all of the window is known to be within the tensor."""
    layout: Layout
    names: tuple[str, ...]
    """By dim: the index of the copy's loop."""
    panel: str
    """The index of the loop over panels."""

    @property
    def kept(self) -> list[int]:
        return sorted(self.layout.order)

    def at(self, indices: Sequence[Expr]) -> tuple[Expr, ...]:
        """Where the element `indices` of the tensor is."""
        return self.layout.index(
            {d: op("sub", indices[d], self.windows[d].base) for d in self.kept}
        )

    def redirected(self, stmt: Stmt, tensor: str) -> Stmt:
        """The statement with every access of `tensor` to the buffer instead."""

        def visit(n: Read | Store) -> Node:
            if isinstance(n, Read):
                return Read(self.buffer.name, self.at(n.indices), n.type, span=n.span)
            return replace(n, target=self.buffer.name, indices=self.at(n.indices))

        return redirect(stmt, tensor, visit)

    def element(self) -> tuple[dict[int, Expr], tuple[Expr, ...]]:
        """The element that the copy's loops are at: in the window, and in the tensor."""
        here: dict[int, Expr] = {}
        for d in self.kept:
            here[d] = Var(self.names[d])
            if self.layout.pack is not None and self.layout.pack[0] == d:
                width = const(self.layout.pack[1])
                here[d] = op("add", op("mul", Var(self.panel), width), here[d])
        source = tuple(
            op("add", w.base, here[d]) if d in here else w.base for d, w in enumerate(self.windows)
        )
        return here, source

    def nest(self, body: Stmt, masks: dict[int, tuple[Expr, ...]]) -> Stmt:
        """Loops over the window, or over whole panels, in the order of the tensor's dims."""
        stmt = body
        for d in reversed(self.kept):
            where = masks.get(d, ())
            if self.layout.pack is not None and self.layout.pack[0] == d:
                width = const(self.layout.pack[1])
                stmt = Loop("for", Axis(self.names[d], width), where, (stmt,))
                panels = op("cdiv", self.windows[d].size, width)
                stmt = Loop("for", Axis(self.panel, panels), (), (stmt,))
            else:
                stmt = Loop("for", Axis(self.names[d], self.windows[d].size), where, (stmt,))
        return stmt


@dataclass(frozen=True)
class Stage(Rewrite):
    """`stage(tensor, loop, space, order = (1, 0), buffer = packed, pad = (1,), pack = (1, 16))`:
    copies the window of `tensor` that an iteration of `loop` reads.

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
    the indices outside (or read from a tensor that does not change), and an extent. Beyond the
    tensor's bounds it holds the fill of the reads, zeros where they have none. `order` lists the
    tensor's dims as the buffer is to have them, outermost first; dims of which only one index is
    read are left out. `pack` makes panels of a dim, the last one filled up, so that they can be
    read whole; `pad` adds elements to the buffer's last dims. Refused where `tensor` is written
    inside, where its window has no bound, or where that holds elements of a buffer that are never
    written.
    """

    name: ClassVar[str] = "stage"
    effect: ClassVar[Effect] = "exact"
    tensor: str
    loop: str
    space: str = "local"
    order: tuple[int, ...] | None = None
    buffer: str | None = None
    pad: tuple[int, ...] | None = None
    pack: tuple[int, ...] | None = None

    def edit(self, kernel: Kernel) -> Kernel:
        loop = find_loop(kernel, self.loop)
        space = check_space(kernel, self.space, loop)
        require_loops(kernel, (loop,))
        uses = uses_of(self.tensor, loop.body)
        for u in uses:
            if u.access.op != "read":
                refuse(
                    kernel,
                    f"`{self.tensor}` is written inside `{self.loop}`",
                    node=u.access.node,
                    hint=f"`stage_out({self.tensor}, {self.loop})` stages what is written",
                )
        dtype, shape = declared(kernel, self.tensor, loop)
        if not uses:
            refuse(kernel, f"`{self.tensor}` is not read inside `{self.loop}`", node=loop)
        fill = self._fill(kernel, loop, uses, shape)
        asked = _Asked(self.tensor, space, self.order, self.buffer, self.pad, self.pack)
        staged = asked.staged(kernel, loop, uses, dtype, shape)
        here, source = staged.element()
        if fill is None and not all(staged.inside):
            fill = identity("or" if dtype.is_bool else "add", dtype)
        source = tuple(_safe(kernel, loop, e) for e in source)
        value = Read(self.tensor, source, dtype, fill)
        copy = staged.nest(Store(staged.buffer.name, staged.layout.index(here), value), {})
        body = tuple(staged.redirected(s, self.tensor) for s in loop.body)
        done = replace(loop, body=(staged.buffer, copy, *body))
        check_inside(kernel, loop, done.body, staged.buffer, space)
        made = replace_stmt(kernel, loop, (done,))
        _check_written(kernel, made, self.tensor, value, loop)
        return made

    @classmethod
    def candidates(cls, kernel: Kernel) -> Iterator[Move]:
        for loop in loops_of(kernel.body):
            written = written_in(loop.body)
            inside = {b.name for b in buffers_of((loop,))}
            reads = {n.tensor: len(n.indices) for s in loop.body for n in walk(s)
                     if isinstance(n, Read)}  # fmt: skip
            for tensor, rank in reads.items():
                if tensor not in written | inside:
                    yield from moves(cls.name, tensor, loop.axis.name, rank)

    def _fill(
        self, kernel: Kernel, loop: Loop, uses: Sequence[Use], shape: Sequence[Expr]
    ) -> Expr | None:
        """What the reads find beyond the bounds: one constant for all that may be there."""
        found: Expr | None = None
        around = surroundings(kernel, loop)
        for use in uses:
            node = use.access.node
            if not isinstance(node, Read) or node.fill is None or node.fill == found:
                continue
            at = zip(node.indices, shape, strict=True)
            if all(in_bounds(kernel, (*around, *use.around), i, e) for i, e in at):
                continue
            if found is not None or not isinstance(node.fill, Const):
                refuse(
                    kernel, "reads with different fills, or computed ones, share no copy", node=node
                )
            found = node.fill
        return found


@dataclass(frozen=True)
class StageOut(Rewrite):
    """`stage_out(tensor, loop, space, ...)`: what an iteration of `loop` writes to a window of
    `tensor` goes to a buffer first, and from there to the tensor at the iteration's end.

    Before::

        for j_o: cdiv(N, 8) {
          for k: K { for j: 8 where j_o*8 + j < N { y[j_o*8 + j] += a[k, j_o*8 + j] } }
        }

    After `stage_out(y, j_o, reg)`::

        for j_o: cdiv(N, 8) {
          buffer y_reg: f32[8] in reg = 0.0
          for k: K { for j: 8 where j_o*8 + j < N { y_reg[j] += a[k, j_o*8 + j] } }
          for y_reg_0: 8 where j_o*8 + y_reg_0 < N { y[j_o*8 + y_reg_0] += y_reg[y_reg_0] }
        }

    Where there are only updates by one operator, the buffer starts from its neutral element and
    is combined into the tensor: that reassociates. Where elements are stored, each element of the
    window must be stored in every iteration before it is read or updated, and the buffer
    replaces the window. `order`, `buffer`, `pad` and `pack` are those of `stage`.
    """

    name: ClassVar[str] = "stage_out"
    effect: ClassVar[Effect] = "reassociates"
    tensor: str
    loop: str
    space: str = "local"
    order: tuple[int, ...] | None = None
    buffer: str | None = None
    pad: tuple[int, ...] | None = None
    pack: tuple[int, ...] | None = None

    def edit(self, kernel: Kernel) -> Kernel:
        loop = find_loop(kernel, self.loop)
        space = check_space(kernel, self.space, loop)
        require_loops(kernel, (loop,))
        uses = uses_of(self.tensor, loop.body)
        dtype, shape = declared(kernel, self.tensor, loop)
        if all(u.access.op == "read" for u in uses):
            what = "only read" if uses else "not used"
            refuse(kernel, f"`{self.tensor}` is {what} inside `{self.loop}`", node=loop)
        asked = _Asked(self.tensor, space, self.order, self.buffer, self.pad, self.pack)
        staged = asked.staged(kernel, loop, uses, dtype, shape)
        update = _one_update(uses)
        if update is None:
            self._check_stored(kernel, loop, uses, staged, shape)
        here, target = staged.element()
        target = tuple(_safe(kernel, loop, e) for e in target)
        value = Read(staged.buffer.name, staged.layout.index(here), dtype)
        masks: dict[int, tuple[Expr, ...]] = {}
        guards: list[Expr] = []
        for d in range(len(shape)):
            bounds = () if staged.inside[d] else between(target[d], shape[d])
            if d not in staged.kept:
                guards.extend(bounds)
                continue
            panels = staged.layout.pack is not None and staged.layout.pack[0] == d
            over = (op("lt", here[d], staged.windows[d].size),) if panels else ()
            masks[d] = (*over, *bounds)
        copy = staged.nest(Store(self.tensor, target, value, update), masks)
        init = identity(update, dtype) if update is not None else None
        made = replace(staged.buffer, init=init)
        body = tuple(staged.redirected(s, self.tensor) for s in loop.body)
        done = replace(loop, body=(made, *body, *guarded(guards, (copy,))))
        check_inside(kernel, loop, done.body, made, space)
        return replace_stmt(kernel, loop, (done,))

    @classmethod
    def candidates(cls, kernel: Kernel) -> Iterator[Move]:
        for loop in loops_of(kernel.body):
            inside = {b.name for b in buffers_of((loop,))}
            stores = {n.target: len(n.indices) for s in loop.body for n in walk(s)
                      if isinstance(n, Store)}  # fmt: skip
            for tensor, rank in stores.items():
                if tensor not in inside:
                    yield from moves(cls.name, tensor, loop.axis.name, rank)

    def effect_on(self, kernel: Kernel) -> Effect:
        """Exact where elements are stored, and where the order of the updates does not matter."""
        loop = find_loop(kernel, self.loop)
        update = _one_update(uses_of(self.tensor, loop.body))
        dtype, _ = declared(kernel, self.tensor, loop)
        return "reassociates" if update is not None and dtype.is_float else "exact"

    def _check_stored(
        self,
        kernel: Kernel,
        loop: Loop,
        uses: Sequence[Use],
        staged: _Staged,
        shape: Sequence[Expr],
    ) -> None:
        """Each element of the window is stored in an iteration, before anything else uses it."""
        for use in uses:
            if use.padded and not all(
                in_bounds(kernel, (*surroundings(kernel, loop), *use.around), i, e)
                for i, e in zip(use.access.indices, shape, strict=True)
            ):
                refuse(
                    kernel,
                    f"a read with a fill may be out of the bounds of `{self.tensor}`",
                    node=use.access.node,
                )
        first = next(s for s in loop.body if mentions(s, self.tensor))
        windows = dict(enumerate(staged.windows))
        if fills_windows(first, self.tensor, windows, shape):
            return
        from kir.rewrites.lifetime import unstored  # integer sets: seldom needed

        found = unstored(kernel, loop, self.tensor, staged.windows)
        if found is not None:
            refuse(
                kernel,
                f"not all of the window of `{self.tensor}` is known to be stored by one "
                f"iteration of `{self.loop}` before it is used",
                node=found,
            )


@dataclass(frozen=True)
class _Asked:
    """The arguments that `stage` and `stage_out` share."""

    tensor: str
    space: Space
    order: tuple[int, ...] | None
    buffer: str | None
    pad: tuple[int, ...] | None
    pack: tuple[int, ...] | None

    def staged(
        self,
        kernel: Kernel,
        loop: Loop,
        uses: Sequence[Use],
        dtype: DType,
        shape: Sequence[Expr],
    ) -> _Staged:
        """The buffer for the window of `uses`; RewriteError where it has no bound."""
        windows: list[Window] = []
        changing = changing_in(loop.body)
        for d in range(len(shape)):
            found = window(uses, d, changing)
            if isinstance(found, NoWindow):
                refuse(kernel, found.reason, node=found.node)
            windows.append(found)
        kept = [d for d, w in enumerate(windows) if w.size != const(1)]
        layout = make_layout(kernel, loop, len(shape), kept, self.order, self.pack, self.pad)
        used = names_in(kernel)
        if self.buffer is not None and self.buffer in used:
            refuse(kernel, f"the name `{self.buffer}` is taken", node=loop)
        name = fresh(self.buffer or f"{self.tensor}_{self.space}", used)
        names = []
        for d in range(len(shape)):
            names.append(fresh(f"{name}_{d}", used) if d in kept else "")
        panel = "" if layout.pack is None else fresh(f"{name}_{layout.pack[0]}_o", used)
        around = surroundings(kernel, loop)
        inside = tuple(
            self._inside(kernel, around, layout, d, w, shape[d]) for d, w in enumerate(windows)
        )
        sizes = {d: w.size for d, w in enumerate(windows)}
        buffer = Buffer(name, dtype, layout.shape(sizes), self.space)
        return _Staged(buffer, tuple(windows), inside, layout, tuple(names), panel)

    def _inside(
        self,
        kernel: Kernel,
        around: Sequence[Stmt],
        layout: Layout,
        d: int,
        w: Window,
        extent: Expr,
    ) -> bool:
        """Whether all that the copy reads in one dim is within the tensor."""
        size = w.size
        if layout.pack is not None and layout.pack[0] == d:
            width = const(layout.pack[1])
            size = op("mul", op("cdiv", size, width), width)
        end = op("add", w.base, size)
        low, high = op("ge", w.base, const(0)), op("le", end, extent)
        return always(kernel, around, low) and always(kernel, around, high)


def declared(kernel: Kernel, tensor: str, loop: Loop) -> tuple[DType, tuple[Expr, ...]]:
    """dtype and shape of a tensor that is declared outside of `loop`; RewriteError otherwise."""
    for p in kernel.params:
        if p.name == tensor:
            return p.type, p.shape
    inside = {id(b) for b in buffers_of((loop,))}
    for b in buffers_of(kernel.body):
        if b.name == tensor:
            if id(b) in inside:
                refuse(kernel, f"`{tensor}` lives inside `{loop.axis.name}`", node=b)
            return b.type, b.shape
    known = [p.name for p in kernel.params] + [b.name for b in buffers_of(kernel.body)]
    near = difflib.get_close_matches(tensor, known, n=3) or known
    listed = ", ".join(f"`{n}`" for n in dict.fromkeys(near))
    return refuse(
        kernel,
        f"`{kernel.name}` has no tensor `{tensor}`",
        node=loop,
        hint=f"did you mean {listed}?" if near is not known else f"its tensors are {listed}",
    )


def moves(name: str, tensor: str, loop: str, rank: int) -> Iterator[Move]:
    """The moves of `stage` or `stage_out` for one tensor and loop."""
    fixed = (("tensor", tensor), ("loop", loop))
    spaces = ("space", Choice(("local", "reg")))
    if 2 <= rank <= 4:
        orders = tuple(itertools.permutations(range(rank)))
        yield Move(name, fixed, (spaces, ("order", Choice(orders))))
    else:
        yield Move(name, fixed, (spaces,))
    if rank:
        yield Move(name, fixed, (spaces, ("pad", Choice(((1,), (4,), (8,))))))
    for d in range(rank):
        yield Move(name, fixed, (spaces, ("pack", Choice(((d, 8), (d, 16), (d, 32))))))


def _check_written(before: Kernel, after: Kernel, tensor: str, copied: Read, loop: Loop) -> None:
    """Refuse a copy of elements that a buffer without a value has not yet got: a window may hold
    more than is read."""
    if not any(b.name == tensor and b.init is None for b in buffers_of(before.body)):
        return
    from kir.analysis import model_of  # integer sets: not needed by most
    from kir.analysis.cover import read_too_early
    from kir.analysis.sets import Undecided

    for access in model_of(after).accesses:
        if access.node is not copied:
            continue
        try:
            gap = read_too_early(model_of(after), access)
        except Undecided:  # as in the checker, which then says nothing of it either
            continue
        if gap is not None:
            element = ", ".join(map(str, gap.element))
            refuse(
                before,
                f"the window of `{tensor}` holds `{tensor}[{element}]`, which may not be written",
                node=loop,
                hint=f"give the buffer a value: `buffer {tensor}: ... = 0`",
            )


def _one_update(uses: Sequence[Use]) -> str | None:
    """The operator that all accesses update by, where there is one."""
    ops = {u.access.op for u in uses}
    found = next(iter(ops)) if len(ops) == 1 else None
    return None if found in ("read", "write") else found


def _safe(kernel: Kernel, loop: Loop, index: Expr) -> Expr:
    """An index of the copy: what it reads from tensors was perhaps read under a mask only, so
    that it is 0 where it may be out of bounds."""
    around = surroundings(kernel, loop)
    shapes = {p.name: p.shape for p in kernel.params}
    shapes.update({b.name: b.shape for b in buffers_of(kernel.body)})

    def visit(n: Node) -> Node | None:
        if not isinstance(n, Read) or n.fill is not None:
            return None
        at = zip(n.indices, shapes[n.tensor], strict=True)
        if all(in_bounds(kernel, around, i, e) for i, e in at):
            return None
        return replace(n, fill=identity("add", n.type))

    return transform(index, visit)


__all__ = ["Stage", "StageOut", "declared"]
