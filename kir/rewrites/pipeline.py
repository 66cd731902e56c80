"""`pipeline`: the copy that an iteration needs is made some iterations ahead."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from kir.ir import Buffer, Expr, Kernel, Loop, Stmt, Var, const, substitute
from kir.ops import op
from kir.rewrites.base import (
    Block,
    Effect,
    Move,
    Rewrite,
    Whole,
    copy_with_fresh_names,
    edit_block,
    find_loop,
    guarded,
    loops_of,
    names_in,
    refuse,
    reindex,
    require_loops,
    var_names,
)
from kir.rewrites.legality import accesses, ahead_conflict, conflict, stored_in

MAX_STAGES = 8


@dataclass(frozen=True)
class Pipeline(Rewrite):
    """`pipeline(loop, buffer, stages = 2)`: the copy into `buffer` runs `stages - 1` iterations
    ahead of the statements that use it (software pipelining, double buffering).

    Before::

        for k: K {
          buffer t: f32[64] in local
          for c: 64 { t[c] = x[k, c] }
          for c_2: 64 { y[c_2] += t[c_2] }
        }

    After `pipeline(k, t)`::

        buffer t: f32[2, 64] in local
        if 0 < K { for c_3: 64 { t[0, c_3] = x[0, c_3] } }
        for k: K {
          if k + 1 < K { for c: 64 { t[(k + 1) % 2, c] = x[k + 1, c] } }
          for c_2: 64 { y[c_2] += t[k % 2, c_2] }
        }

    The buffer gets one slot for each stage: iteration k reads slot k % stages while the copy for
    iteration k + stages - 1 goes to the slot that iteration k - 1 was done with. The copy is all
    statements of the loop's body that store to the buffer; it may store to nothing else. Refused
    where it depends on what the loop computes.
    """

    name: ClassVar[str] = "pipeline"
    effect: ClassVar[Effect] = "exact"
    loop: str
    buffer: str
    stages: int = 2

    def edit(self, kernel: Kernel) -> Kernel:
        loop = find_loop(kernel, self.loop)
        require_loops(kernel, (loop,))
        buffer = self._buffer(kernel, loop)
        copy, rest = self._parts(kernel, loop, buffer)
        self._check_copy(kernel, loop, buffer, copy, rest)
        index, slots = Var(self.loop), const(self.stages)
        used = names_in(kernel)
        prologue: list[Stmt] = []
        for k in range(self.stages - 1):
            at: dict[str, Expr] = {self.loop: const(k)}
            fresh = copy_with_fresh_names(copy, used)
            made = tuple(substitute(_slotted(s, buffer, const(k)), at) for s in fresh)
            runs = op("lt", const(k), loop.axis.extent)
            where = (substitute(c, at) for c in loop.where)
            prologue += guarded((runs, *where), made)
        ahead = op("add", index, const(self.stages - 1))
        here: dict[str, Expr] = {self.loop: ahead}
        slot = op("mod", ahead, slots)
        made = tuple(_slotted(substitute(s, here), buffer, slot) for s in copy)
        runs = op("lt", ahead, loop.axis.extent)
        where = (substitute(c, here) for c in loop.where)
        next_copy = guarded((runs, *where), made)
        current = tuple(_slotted(s, buffer, op("mod", index, slots)) for s in rest)
        body = (*next_copy, *guarded(loop.where, current))
        held = replace(buffer, shape=(slots, *buffer.shape))
        new = replace(loop, where=(), body=body)
        return edit_block(kernel, loop, lambda b, k: (*b[:k], held, *prologue, new, *b[k + 1 :]))

    @classmethod
    def candidates(cls, kernel: Kernel) -> Iterator[Move]:
        """Every buffer directly in the body of a `for`."""
        for loop in loops_of(kernel.body):
            for s in loop.body:
                if loop.kind == "for" and isinstance(s, Buffer) and s.init is None:
                    fixed = (("loop", loop.axis.name), ("buffer", s.name))
                    yield Move("pipeline", fixed, (("stages", Whole(2, MAX_STAGES, (2, 3, 4))),))

    def _buffer(self, kernel: Kernel, loop: Loop) -> Buffer:
        if not 2 <= self.stages <= MAX_STAGES:
            refuse(kernel, f"a pipeline has 2 to {MAX_STAGES} stages, not {self.stages}", node=loop)
        if loop.kind != "for":
            message = f"`{self.loop}` is a {loop.kind}: its iterations have no order to be ahead of"
            refuse(kernel, message, node=loop, hint=f"`bind({self.loop}, for)`")
        found = [s for s in loop.body if isinstance(s, Buffer) and s.name == self.buffer]
        if not found:
            refuse(
                kernel,
                f"there is no buffer `{self.buffer}` directly in the body of `{self.loop}`",
                node=loop,
                hint="`stage` makes one, with its copy",
            )
        buffer = found[0]
        if buffer.init is not None:
            message = f"`{self.buffer}` is set anew in every iteration, not by a copy alone"
            refuse(kernel, message, node=buffer)
        if any(self.loop in var_names(e) for e in buffer.shape):
            refuse(kernel, f"the shape of `{self.buffer}` depends on `{self.loop}`", node=buffer)
        return buffer

    def _parts(self, kernel: Kernel, loop: Loop, buffer: Buffer) -> tuple[Block, Block]:
        """The statements of the body that store to the buffer, and the others."""
        copy: list[Stmt] = []
        rest: list[Stmt] = []
        for s in loop.body:
            stored = {a.tensor for a in accesses((s,)) if a.op != "read"}
            if s is buffer:
                continue
            (copy if buffer.name in stored else rest).append(s)
            if buffer.name in stored and len(stored) > 1:
                other = min(stored - {buffer.name})
                message = f"what fills `{buffer.name}` stores to `{other}` too"
                refuse(kernel, message, node=s, hint="`fission` takes the two apart")
        if not copy:
            refuse(kernel, f"nothing stores to `{buffer.name}` in `{self.loop}`", node=buffer)
        last = next(k for k, s in enumerate(loop.body) if s is copy[-1])
        for s in loop.body[:last]:
            if any(s is r for r in rest) and any(a.tensor == buffer.name for a in accesses((s,))):
                message = f"`{buffer.name}` is read before its copy is complete"
                refuse(kernel, message, node=s)
        return tuple(copy), tuple(rest)

    def _check_copy(
        self, kernel: Kernel, loop: Loop, buffer: Buffer, copy: Block, rest: Block
    ) -> None:
        """The copy of one iteration may run before the rest of all iterations."""
        if stored_in((*loop.where, loop.axis.extent), loop.body):
            message = f"whether an iteration of `{self.loop}` runs depends on what it computes"
            refuse(kernel, message, node=loop)
        first = next(k for k, s in enumerate(loop.body) if s is copy[0])
        for s in loop.body[:first]:
            found = None if s is buffer else conflict((s,), copy)
            if found:
                message = f"the copy into `{buffer.name}` needs `{found.first.tensor}` from here"
                refuse(kernel, message, node=s)
        used = {a.tensor for a in accesses(copy)}
        for s in rest:
            if isinstance(s, Buffer) and s.name in used:
                message = f"the copy into `{buffer.name}` uses `{s.name}`, of the same iteration"
                refuse(kernel, message, node=s)
        why = ahead_conflict(kernel, loop, copy, rest)
        if why:
            message = f"the copy into `{buffer.name}` depends on what `{self.loop}` computes: {why}"
            refuse(kernel, message, node=copy[0])


def _slotted(stmt: Stmt, buffer: Buffer, slot: Expr) -> Stmt:
    return reindex(stmt, buffer.name, lambda at: (slot, *at), buffer.name)
