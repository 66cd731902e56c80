"""A top-level `grid` nest as a parallel region: a function of a range of its iterations."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from kir.backends.llvm import team
from kir.backends.llvm.affine import mentions, product, reads_memory
from kir.backends.llvm.builder import Builder, V, integer
from kir.backends.llvm.memory import LEAST_STREAMED
from kir.backends.llvm.scope import Scope
from kir.backends.llvm.work import Work
from kir.ir import Expr, Loop, Param, const, walk

if TYPE_CHECKING:
    from kir.backends.llvm.emit import Code


class Region:
    """A top-level `grid` nest: a function of a range of its iterations, and the call of it."""

    def __init__(self, code: Code, s: Loop) -> None:
        self.code, self.owner, self.b = code, code.owner, code.b
        nest = [s]
        while len(nest[-1].body) == 1 and self._continues(nest):
            nest.append(nest[-1].body[0])  # type: ignore[arg-type]
        self.nest = nest
        self.tensors = dict(code.scope.tensors)
        self.values = {n: v for n, v in code.scope.values.items() if v.constant is None}
        self.name = f"{self.owner.symbol}.grid{self.owner.regions}"
        self.owner.regions += 1

    def _continues(self, nest: list[Loop]) -> bool:
        inner = nest[-1].body[0]
        return (
            isinstance(inner, Loop)
            and inner.kind == "grid"
            and not any(mentions(inner.axis.extent, s.axis.name) for s in nest)
            and not reads_memory(inner.axis.extent)
        )

    def write(self) -> None:
        code, b = self.code, self.b
        total = code.access.uniform(product([s.axis.extent for s in self.nest]))
        streams = self._may_stream()
        gomp = self.owner.machine.grid == "gomp"
        work = b.op("mul", total, Work(code).nest(self.nest)) if gomp else total
        self._function(self.name, stream=0)
        large = None
        if streams:
            align = self._alignment()
            self._function(self.name + ".stream", stream=align)
            large = self._streaming(align)
        self._launch(total, work, large)

    def _may_stream(self) -> bool:
        limit = self.owner.machine.stream_bytes
        hinted = any(("stream", 1) in n.hints for s in self.nest for n in walk(s)
                     if isinstance(n, Loop))  # fmt: skip
        size = self._moved().constant if limit and hinted else 0
        return size is None or (size > 0 and size >= limit)

    def _moved(self) -> V:
        """Bytes of all inputs and outputs, but at most four times those of the outputs."""
        size, written = integer(0), integer(0)
        for p in self.owner.kernel.params:
            more = self.code.access.uniform(_bytes(p))
            size = self.b.op("add", size, more)
            if p in self.owner.kernel.outputs:
                written = self.b.op("add", written, more)
        most = self.b.op("mul", written, integer(4))
        return self.b.select(self.b.icmp("slt", size, most), size, most)

    def _alignment(self) -> int:
        """Bytes that streaming stores are aligned to: whole vectors, fewer where rows are known to
        be aligned to fewer, 16 where their lengths are unknown."""
        align = max(LEAST_STREAMED, self.owner.machine.vector_bits // 8)
        for p in self.owner.kernel.outputs:
            row = self.code.access.uniform(p.shape[-1]).constant if len(p.shape) > 1 else 0
            while align > LEAST_STREAMED and (row is None or row * p.type.bytes % align):
                align //= 2
        return align

    def _streaming(self, align: int) -> V:
        """Whether the outputs are aligned for streaming stores and, with the inputs, fill the
        cache."""
        code, b = self.code, self.b
        size = self._moved()
        aligned: list[V] = []
        for p in self.owner.kernel.outputs:
            t = code.scope.tensors[p.name]
            places = [b.emit(f"ptrtoint {t.pointer} to i64", "i64")]
            if len(p.shape) > 1:
                row = code.access.uniform(p.shape[-1])
                places.append(b.op("mul", row, integer(p.type.bytes)))
            for place in places:
                low = b.op("and", place, integer(align - 1))
                aligned.append(b.icmp("eq", low, integer(0)))
        limit = integer(self.owner.machine.stream_bytes)
        test = b.logical_and([b.icmp("sge", size, limit), *aligned])
        return test if test is not None else integer(1, "i1")

    # --- the function of a range

    def _arguments(self) -> list[str]:
        pointers = [f"ptr noalias %p.{n}" for n in self.tensors]
        return pointers + [f"i64 %d.{n}" for n in self.values]

    def _function(self, name: str, stream: int) -> None:
        """Runs [begin, end), then what else the team hands out (to none: nothing)."""
        outside = self.code.scope
        b = Builder(self.owner.module)
        scope = Scope(stream=stream)
        scope.values = {n: v for n, v in outside.values.items() if v.constant is not None}
        scope.values.update({n: V(f"%d.{n}", "i64") for n in self.values})
        scope.tensors = {
            n: replace(t, pointer=V(f"%p.{n}", "ptr"), outer=True) for n, t in self.tensors.items()
        }
        scope.grid = tuple(s.axis.name for s in self.nest)
        inside = self.code.inside(b, scope)
        with team.ranges(b, self.owner.machine) as (begin, end), b.loop(begin, end) as flat:
            self._iteration(inside, flat, len(self.nest) - 1)
        if stream and self.owner.machine.stream_fence:
            b.call(self.owner.machine.stream_fence, "void", 0)
        arguments = ", ".join([*self._arguments(), *team.ARGUMENTS[self.owner.machine.grid]])
        b.define(f"define internal void @{name}({arguments})", "nounwind noinline")

    def _iteration(self, code: Code, flat: V, level: int) -> None:
        """Recover the axes' indices, innermost first, then run the body under all conditions."""
        s, b = self.nest[level], code.b
        if level == 0:
            indices = [flat]
        else:
            extent = code.access.uniform(s.axis.extent)
            index = b.op("urem", flat, extent)
            flat = b.op("udiv", flat, extent)
            indices = [index]
        with code.bound(s, indices[0]):
            if level:
                self._iteration(code, flat, level - 1)
            else:
                with code.where([c for n in self.nest for c in n.where]):
                    code.block(self.nest[-1].body)

    # --- the call

    def _launch(self, total: V, work: V, large: V | None) -> None:
        """Run all iterations: by the function that streams where `large` holds."""
        b, grid = self.b, self.owner.machine.grid
        listed = [*self.tensors.values()]
        values = [*(t.pointer for t in listed), *self.values.values()]
        kinds = ["ptr"] * len(listed) + ["i64"] * len(self.values)
        region = V(f"@{self.name}", "ptr")
        if grid == "range":
            team.hand_out(b, self.name, values, kinds, total)
            return
        if large is not None:
            region = b.select(large, V(f"@{self.name}.stream", "ptr"), region)
        if grid != "gomp":
            b.line(f"call void {region.ref}({', '.join(map(str, [*values, integer(0), total]))})")
            return
        member = team.member(b.module, self.name, kinds)
        if large is not None:
            streaming = team.member(b.module, f"{self.name}.stream", kinds)
            member = b.select(large, streaming, member)
        team.launch(b, region, member, values, total, work)


def _bytes(p: Param) -> Expr:
    return product([const(p.type.bytes), *p.shape])
