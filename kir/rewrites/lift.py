"""`lift`: what fills a temporary leaves a loop that it does not depend on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from kir.ir import Buffer, Expr, Kernel, Loop, Read, Stmt, const, vars_of, walk
from kir.ops import op
from kir.rewrites.base import (
    Block,
    Effect,
    Move,
    Rewrite,
    buffers_of,
    find_buffer,
    guarded,
    path_to,
    refuse,
    replace_stmt,
    require_loops,
)
from kir.rewrites.legality import stored_in
from kir.rewrites.memory import check_grid
from kir.rewrites.window import in_bounds, mentions, stored, touched, uses_of, written_in


@dataclass(frozen=True)
class Lift(Rewrite):
    """`lift(buffer)`: a temporary and what fills it move out of the loop around them, in which
    they are the same in every iteration.

    Before::

        for i: M {
          buffer t: f32[N] in local
          for j: N { t[j] = exp(w[j]) }
          for k: N { y[i, k] = t[k] * x[i, k] }
        }

    After `lift(t)`::

        buffer t: f32[N] in local
        if 0 < M { for j: N { t[j] = exp(w[j]) } }
        for i: M { for k: N { y[i, k] = t[k] * x[i, k] } }

    It is the way back from a `stage` or `compute_at` that went too far in. Refused where the
    loop's index or something that its body stores takes part, and at a `grid`.
    """

    name: ClassVar[str] = "lift"
    effect: ClassVar[Effect] = "exact"
    buffer: str

    def edit(self, kernel: Kernel) -> Kernel:
        buffer = find_buffer(kernel, self.buffer)
        around = path_to(kernel.body, buffer) or ()
        loop = around[-1] if around else None
        if not isinstance(loop, Loop):
            refuse(kernel, f"`{self.buffer}` is not declared in a loop's body", node=buffer)
        require_loops(kernel, (loop,))
        if loop.kind == "grid":
            refuse(
                kernel,
                f"`{self.buffer}` belongs to one program of the grid `{loop.axis.name}`",
                node=loop,
            )
        fills = tuple(s for s in loop.body if self.buffer in stored(s))
        self._check_fills(kernel, loop, buffer, fills)
        for s in fills:
            self._check_bounds(kernel, around[:-1], loop, s)
        rest = tuple(s for s in loop.body if s is not buffer and not any(s is f for f in fills))
        some = op("lt", const(0), loop.axis.extent)
        guards = (some, *(c for c in loop.where if loop.axis.name not in vars_of(c)))
        if stored_in(guards, loop.body):
            refuse(kernel, f"the mask of `{loop.axis.name}` reads what its body stores", node=loop)
        made: Block = (buffer, *(guarded(guards, fills) if fills else ()), replace(loop, body=rest))
        check_grid(kernel, buffer, buffer.space, made)
        return replace_stmt(kernel, loop, made)

    @classmethod
    def candidates(cls, kernel: Kernel) -> Iterator[Move]:
        for b in buffers_of(kernel.body):
            around = path_to(kernel.body, b)
            if around and isinstance(around[-1], Loop) and around[-1].kind != "grid":
                yield Move(cls.name, (("buffer", b.name),))

    def _check_fills(
        self, kernel: Kernel, loop: Loop, buffer: Buffer, fills: Sequence[Stmt]
    ) -> None:
        """They are alike in every iteration, and come before all that reads the buffer."""
        if buffer.init is not None and any(isinstance(n, Read) for n in walk(buffer.init)):
            refuse(kernel, f"`{self.buffer}` is set from a tensor where it stands", node=buffer)
        index = loop.axis.name
        others = [s for s in loop.body if s is not buffer and not any(s is f for f in fills)]
        changed = written_in(others) | {b.name for b in others if isinstance(b, Buffer)}
        for s in (buffer, *fills):
            if index in vars_of(s):
                refuse(kernel, f"`{self.buffer}` depends on `{index}` here", node=s)
            taken = touched(s) & changed
            if taken:
                refuse(
                    kernel,
                    f"`{self.buffer}` is made of `{min(taken)}`, which `{index}` changes",
                    node=s,
                )
            more = stored(s) - {self.buffer}
            if more:
                refuse(kernel, f"`{min(more)}` is stored here, too", node=s)
        if not fills:
            return
        for s in loop.body:
            if s is fills[-1]:
                break
            if not any(s is f for f in fills) and mentions(s, self.buffer):
                refuse(kernel, f"`{self.buffer}` is read before it is filled", node=s)

    def _check_bounds(
        self, kernel: Kernel, outside: Sequence[Stmt], loop: Loop, fill: Stmt
    ) -> None:
        """Without the masks that mention the loop's index, all is in bounds."""
        if not any(loop.axis.name in vars_of(c) for c in loop.where):
            return
        shapes: dict[str, tuple[Expr, ...]] = {p.name: p.shape for p in kernel.params}
        shapes.update({b.name: b.shape for b in buffers_of(kernel.body)})
        for tensor in sorted(touched(fill)):
            for use in uses_of(tensor, (fill,)):
                at = zip(use.access.indices, shapes[tensor], strict=True)
                if not use.padded and not all(
                    in_bounds(kernel, (*outside, *use.around), i, e) for i, e in at
                ):
                    refuse(
                        kernel,
                        f"`{tensor}` is in bounds only under the mask of `{loop.axis.name}`",
                        node=use.access.node,
                    )
