"""`compute_at`: what produces a temporary moves to where it is used, window by window."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from kir.ir import (
    Axis,
    Buffer,
    Const,
    Expr,
    If,
    Kernel,
    Loop,
    Node,
    Read,
    Stmt,
    Var,
    const,
    substitute,
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
    find_loop,
    fresh,
    guarded,
    loops_of,
    names_in,
    path_to,
    refuse,
    rename,
    require_loops,
)
from kir.rewrites.legality import accesses
from kir.rewrites.memory import check_inside, check_space, shifted
from kir.rewrites.split import reads_tensors
from kir.rewrites.window import (
    NoWindow,
    Use,
    Window,
    between,
    block_of,
    in_bounds,
    mentions,
    uses_of,
    window,
    written_in,
)


@dataclass(frozen=True)
class ComputeAt(Rewrite):
    """`compute_at(buffer, loop, space)`: the nests that produce a temporary move into `loop`,
    before its first use there, and compute the window that one iteration of `loop` reads.

    Before::

        buffer t: f32[N] in global
        for i: N { t[i] = exp(x[i]) }
        for j_o: cdiv(N, 64) {
          for j: 64 where j_o*64 + j < N {
            y[j_o*64 + j] = t[j_o*64 + j] + (t[j_o*64 + j - 1] else 0)
          }
        }

    After `compute_at(t, j_o, local)`::

        for j_o: cdiv(N, 64) {
          buffer t: f32[65] in local = 0
          for i: 65 where j_o*64 + i >= 1 and j_o*64 + i - 1 < N { t[i] = exp(x[j_o*64 + i - 1]) }
          for j: 64 where j_o*64 + j < N { y[j_o*64 + j] = t[j + 1] + t[j] }
        }

    Elements that several iterations read are computed by each of them. A loop of the producer
    whose index is the element's in some dim runs over the window; the others (of a reduction)
    run whole. Refused where the temporary is used elsewhere too, where what it is made of may
    change before it is used, and where the window has no bound.
    """

    name: ClassVar[str] = "compute_at"
    effect: ClassVar[Effect] = "exact"
    buffer: str
    loop: str
    space: str = "local"

    def edit(self, kernel: Kernel) -> Kernel:
        buffer, loop = find_buffer(kernel, self.buffer), find_loop(kernel, self.loop)
        space = check_space(kernel, self.space, buffer)
        block = block_of(kernel.body, buffer)
        require_loops(kernel, block)
        consumer = self._consumer(kernel, buffer, loop, block)
        self._check_uses(kernel, block, consumer, loop)
        producers = [s for s in block if mentions(s, self.buffer) and s is not consumer]
        self._check_producers(kernel, buffer, block, producers, consumer)
        windows, whole, init = self._windows(kernel, buffer, loop)
        kept = _kept(windows, whole)
        shape = tuple(w.size for w in kept.values())
        made = replace(buffer, shape=shape, space=space, init=init)
        moved = [
            self._restricted(kernel, buffer, p, windows, whole)
            for p in self._renamed(kernel, producers)
        ]
        padded = bool(whole & set(kept))
        body = [shifted(s, self.buffer, kept, padded=padded) for s in loop.body]
        at = next(k for k, s in enumerate(loop.body) if mentions(s, self.buffer))
        inside = (*body[:at], made, *moved, *body[at:])
        check_inside(kernel, loop, inside, made, space)

        def edit(here: Block, _: int) -> Sequence[Stmt]:
            gone = {id(buffer), *map(id, producers)}
            return [
                _with_body(s, loop, tuple(inside)) if s is consumer else s
                for s in here
                if id(s) not in gone
            ]

        return edit_block(kernel, buffer, edit)

    @classmethod
    def candidates(cls, kernel: Kernel) -> Iterator[Move]:
        """Temporaries with each loop that a statement which follows holds and that reads them."""
        for b in buffers_of(kernel.body):
            block = block_of(kernel.body, b)
            users = [s for s in block if mentions(s, b.name)]
            if len(users) < 2:
                continue
            for loop in loops_of(users[-1:]):
                if mentions(loop, b.name):
                    yield Move(cls.name, (("buffer", b.name), ("loop", loop.axis.name)))

    # --- what must hold

    def _consumer(self, kernel: Kernel, buffer: Buffer, loop: Loop, block: Block) -> Stmt:
        """The statement of the buffer's block that holds `loop`."""
        found = next((s for s in block if s is loop or path_to((s,), loop) is not None), None)
        if found is None:
            refuse(
                kernel,
                f"`{self.loop}` is not in the block of `{self.buffer}`",
                node=loop,
                hint=f"`contract({self.buffer}, {buffer.space})` moves the buffer to its uses",
            )
        if not mentions(found, self.buffer):
            refuse(kernel, f"`{self.buffer}` is not used inside `{self.loop}`", node=loop)
        return found

    def _check_uses(self, kernel: Kernel, block: Block, consumer: Stmt, loop: Loop) -> None:
        """All reads are in the body of `loop`, and nothing is stored there."""
        inside = uses_of(self.buffer, loop.body)
        if not inside:
            refuse(kernel, f"`{self.buffer}` is not used inside `{self.loop}`", node=loop)
        here = Counter(id(u.access.node) for u in inside)  # copies of code may share their nodes
        for use in uses_of(self.buffer, (consumer,)):
            node = use.access.node
            if use.access.op != "read":
                refuse(
                    kernel,
                    f"`{self.buffer}` is stored to where it is used, too",
                    node=node,
                    hint="`fission` takes what stores it out of the loops that use it",
                )
            here[id(node)] -= 1
            if here[id(node)] < 0:
                refuse(
                    kernel,
                    f"`{self.buffer}` is read outside of `{self.loop}`, too",
                    node=node,
                    hint="compute it at a loop that holds all its reads",
                )
        at = next(k for k, s in enumerate(block) if s is consumer)
        for s in block[at + 1 :]:
            if mentions(s, self.buffer):
                refuse(kernel, f"`{self.buffer}` is used after `{self.loop}`, too", node=s)

    def _check_producers(
        self,
        kernel: Kernel,
        buffer: Buffer,
        block: Block,
        producers: list[Stmt],
        consumer: Stmt,
    ) -> None:
        """They store to the buffer alone, and what they read is the same where they go to."""
        if not producers:
            refuse(kernel, f"nothing before `{self.loop}` stores `{self.buffer}`", node=buffer)
        if buffer.init is not None and any(isinstance(n, Read) for n in walk(buffer.init)):
            refuse(kernel, f"`{self.buffer}` is set from a tensor where it stands", node=buffer)
        for k, p in enumerate(producers):
            if self.buffer not in written_in((p,)):
                refuse(kernel, f"`{self.buffer}` is read here, too", node=p)
            for a in accesses((p,)):
                if a.op != "read" and a.tensor != self.buffer:
                    refuse(
                        kernel,
                        f"what stores `{self.buffer}` stores `{a.tensor}`, too",
                        node=a.node,
                        hint="`fission` takes them apart",
                    )
            reads = {a.tensor for a in accesses((p,))} - {self.buffer}
            start = next(n for n, s in enumerate(block) if s is p)
            end = next(n for n, s in enumerate(block) if s is consumer)
            for s in block[start + 1 : end + 1]:
                if any(s is q for q in producers[k + 1 :]):
                    continue
                for a in accesses((s,)):
                    if a.op != "read" and a.tensor in reads:
                        refuse(
                            kernel,
                            f"`{a.tensor}`, which `{self.buffer}` is made of, is changed here "
                            f"before `{self.buffer}` would be computed",
                            node=a.node,
                        )

    # --- the window

    def _windows(
        self, kernel: Kernel, buffer: Buffer, loop: Loop
    ) -> tuple[list[Window], set[int], Expr | None]:
        """The window of each dim, those that are whole, and what the buffer starts from."""
        uses = uses_of(self.buffer, loop.body)
        windows: list[Window] = []
        whole: set[int] = set()
        for d, extent in enumerate(buffer.shape):
            found = window(uses, d)
            if isinstance(found, NoWindow):
                refuse(kernel, f"{found.reason}, in dim {d} of `{self.buffer}`", node=found.node)
            if found.base == const(0) and not _less(found.size, extent):
                whole.add(d)
                found = Window(const(0), extent)
            windows.append(found)
        around = (*(path_to(kernel.body, loop) or ()), loop)
        fills = {
            u.access.node.fill: u
            for u in uses
            if isinstance(u.access.node, Read)
            and u.access.node.fill is not None
            and not self._inside(kernel, buffer, u, around, whole)
        }
        init = buffer.init
        for fill, use in fills.items():
            if not isinstance(fill, Const) or len(fills) > 1 or init not in (None, fill):
                refuse(
                    kernel,
                    f"the window of `{self.buffer}` can hold one constant beyond the bounds",
                    node=use.access.node,
                )
            init = fill
        return windows, whole, init

    def _inside(
        self, kernel: Kernel, buffer: Buffer, use: Use, around: Sequence[Stmt], whole: set[int]
    ) -> bool:
        return all(
            d in whole
            or in_bounds(kernel, (*around, *use.around), use.access.indices[d], buffer.shape[d])
            for d in range(len(buffer.shape))
        )

    # --- the producers

    def _restricted(
        self,
        kernel: Kernel,
        buffer: Buffer,
        producer: Stmt,
        windows: list[Window],
        whole: set[int],
    ) -> Stmt:
        """The nest whose loops over elements run over the window only."""
        over: dict[str, int] = {}
        held: dict[str, Loop] = {x.axis.name: x for x in loops_of((producer,))}
        for use in uses_of(self.buffer, (producer,)):
            for d, w in enumerate(windows):
                index = use.access.indices[d]
                if d in whole:
                    continue
                if isinstance(index, Var) and index.name in held:
                    if over.setdefault(index.name, d) != d:
                        self._refuse_index(kernel, buffer, d, use.access.node)
                elif w.size == const(1) and index == w.base:
                    continue
                else:
                    self._refuse_index(kernel, buffer, d, use.access.node)
        for name, d in over.items():
            self._check_element(kernel, held[name], d)
        made = self._narrowed(buffer, producer, over, windows)
        # an element made of others, of a dim kept whole, may find the fill where there is none
        kept = _kept(windows, whole)
        return shifted(made, self.buffer, kept, padded=bool(whole & set(kept)))

    def _renamed(self, kernel: Kernel, producers: list[Stmt]) -> list[Stmt]:
        """The producers with names that nothing else in the kernel has."""
        counts = Counter(x.axis.name for x in loops_of(kernel.body))
        counts.update(b.name for b in buffers_of(kernel.body))
        used = names_in(kernel)
        done: list[Stmt] = []
        for p in producers:
            loops = {x.axis.name for x in loops_of((p,))}
            buffers = {b.name for b in buffers_of((p,))}
            indices = {n: fresh(n, used) for n in sorted(loops) if counts[n] > 1}
            tensors = {n: fresh(n, used) for n in sorted(buffers) if counts[n] > 1}
            done.append(rename(p, indices, tensors))
        return done

    def _refuse_index(self, kernel: Kernel, buffer: Buffer, d: int, node: Node) -> None:
        refuse(
            kernel,
            f"dim {d} of `{self.buffer}` is not indexed by a loop of its own where it is made",
            node=node,
            hint="compute it at the loop before its producer is split or fused",
        )

    def _check_element(self, kernel: Kernel, loop: Loop, d: int) -> None:
        """An iteration of `loop` makes the elements with its index in dim `d`, and leaves
        nothing else behind."""
        name = loop.axis.name
        for a in accesses((loop,)):
            if a.tensor == self.buffer:
                if a.indices[d] != Var(name):
                    refuse(
                        kernel,
                        f"`{self.buffer}` is made of other elements of itself",
                        node=a.node,
                    )
            elif a.op != "read":
                refuse(
                    kernel,
                    f"`{name}` leaves `{a.tensor}` behind, too: all its iterations must run",
                    node=a.node,
                )

    def _narrowed(
        self, buffer: Buffer, stmt: Stmt, over: dict[str, int], windows: list[Window]
    ) -> Stmt:
        """`stmt` with the index of each loop in `over` counted from the window's base."""
        if isinstance(stmt, If):
            return replace(stmt, body=self._all(buffer, stmt.body, over, windows))
        if not isinstance(stmt, Loop):
            return stmt
        if stmt.kind == "grid":
            stmt = replace(stmt, kind="for")  # it is part of one program now
        body = self._all(buffer, stmt.body, over, windows)
        name = stmt.axis.name
        if name not in over:
            return replace(stmt, body=body)
        d = over[name]
        w = windows[d]
        kind = stmt.kind
        if kind in ("tile", "unroll") and not isinstance(w.size, Const):
            kind = "for"
        index = op("add", w.base, Var(name))
        here: dict[str, Expr] = {name: index}
        where = tuple(substitute(c, here) for c in stmt.where)
        # `shifted` takes the base off again where the buffer itself is indexed
        inside = tuple(substitute(s, here) for s in body)
        if w.size == const(1):  # simplify takes the guards away that always hold
            single: dict[str, Expr] = {name: const(0)}
            masks = (*between(index, stmt.axis.extent), *where)
            guards = tuple(substitute(c, single) for c in masks)
            return guarded(guards, tuple(substitute(s, single) for s in inside))[0]
        if reads_tensors(where):  # these reads may be in bounds under the mask only
            where, inside = (), guarded(where, inside)
        where = (*between(index, stmt.axis.extent), *where)
        axis = Axis(name, w.size, span=stmt.axis.span)
        return replace(stmt, kind=kind, axis=axis, where=where, body=inside)

    def _all(
        self, buffer: Buffer, body: Block, over: dict[str, int], windows: list[Window]
    ) -> Block:
        return tuple(self._narrowed(buffer, s, over, windows) for s in body)


def _less(size: Expr, extent: Expr) -> bool:
    """Whether a window is a constant part of a dim."""
    if not isinstance(size, Const):
        return False
    return not isinstance(extent, Const) or int(size.value) < int(extent.value)


def _kept(windows: Sequence[Window], whole: set[int]) -> dict[int, Window]:
    return {d: w for d, w in enumerate(windows) if d in whole or w.size != const(1)}


def _with_body(stmt: Stmt, loop: Loop, body: Block) -> Stmt:
    """`stmt` in which `loop`, found by identity, has another body."""
    if stmt is loop:
        return replace(loop, body=body)
    if isinstance(stmt, Loop | If):
        return replace(stmt, body=tuple(_with_body(s, loop, body) for s in stmt.body))
    return stmt
