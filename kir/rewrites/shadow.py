"""`shadow`: an output that the kernel reads back is kept in a temporary beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from kir.ir import Buffer, Expr, Kernel, Node, Param, Read, Store, transform, walk
from kir.rewrites.base import (
    Block,
    Effect,
    Move,
    Rewrite,
    fresh,
    map_blocks,
    names_in,
    refuse,
    require_loops,
    statements,
)
from kir.rewrites.window import mentions


@dataclass(frozen=True)
class Shadow(Rewrite):
    """`shadow(output, buffer = name)`: an output that the kernel reads back is kept in a temporary
    too, which all reads go to.

    Before::

        for j: N { for i: M { y[i, j] = x[i, j] + (y[i, j - 1] else 0.0) } }

    After `shadow(y)`::

        buffer y_shadow: f32[M, N] in global
        for j: N {
          for i: M {
            y_shadow[i, j] = x[i, j] + (y_shadow[i, j - 1] else 0.0)
            y[i, j] = y_shadow[i, j]
          }
        }

    The output is then only stored, so it can be staged, and the temporary can be contracted, or
    keep its last slice only (`carry`). Refused where the output is updated (`+=`), or an index
    reads it.
    """

    name: ClassVar[str] = "shadow"
    effect: ClassVar[Effect] = "exact"
    output: str
    buffer: str | None = None

    def edit(self, kernel: Kernel) -> Kernel:
        require_loops(kernel, kernel.body)
        param = self._output(kernel)
        stores = [s for s in statements(kernel.body) if isinstance(s, Store)]
        for s in (s for s in stores if s.target == self.output):
            if s.op is not None:
                refuse(kernel, f"`{self.output}` is updated here, not stored", node=s)
            if any(_reads(i, self.output) for i in s.indices):
                refuse(kernel, f"an index of the store reads `{self.output}`", node=s)
        if not _is_read(kernel, self.output):
            refuse(kernel, f"`{self.output}` is not read", node=param)
        used = names_in(kernel)
        if self.buffer is not None and self.buffer in used:
            refuse(kernel, f"the name `{self.buffer}` is taken", node=param)
        name = fresh(self.buffer or f"{self.output}_shadow", used)

        def redirect(n: Node) -> Node | None:
            if isinstance(n, Read) and n.tensor == self.output:
                return replace(n, tensor=name)
            return None

        def double(block: Block) -> Block:
            made: Block = ()
            for s in block:
                if isinstance(s, Store) and s.target == self.output:
                    copy = Read(name, s.indices, param.type)
                    made += (replace(s, target=name), replace(s, value=copy))
                else:
                    made += (s,)
            return made

        body = map_blocks(tuple(transform(s, redirect) for s in kernel.body), double)
        at = next(k for k, s in enumerate(kernel.body) if mentions(s, self.output))
        shape: tuple[Expr, ...] = param.shape
        made = Buffer(name, param.type, shape, "global")
        return replace(kernel, body=(*body[:at], made, *body[at:]))

    @classmethod
    def candidates(cls, kernel: Kernel) -> Iterator[Move]:
        for p in kernel.outputs:
            if _is_read(kernel, p.name):
                yield Move(cls.name, (("output", p.name),))

    def _output(self, kernel: Kernel) -> Param:
        for p in kernel.outputs:
            if p.name == self.output:
                return p
        listed = ", ".join(f"`{p.name}`" for p in kernel.outputs)
        return refuse(
            kernel,
            f"`{kernel.name}` has no output `{self.output}`",
            hint=f"its outputs are {listed}",
        )


def _is_read(kernel: Kernel, tensor: str) -> bool:
    return any(_reads(s, tensor) for s in kernel.body)


def _reads(node: Node, tensor: str) -> bool:
    return any(isinstance(n, Read) and n.tensor == tensor for n in walk(node))
