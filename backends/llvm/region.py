"""A top-level `grid` nest as a parallel region: a function of a range of its iterations."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from kir.backends.llvm.affine import mentions, product, reads_memory
from kir.backends.llvm.builder import Builder, V, integer
from kir.backends.llvm.memory import Scope
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
        streams = self.owner.machine.stream_bytes > 0 and any(
            ("stream", 1) in n.hints for s in self.nest for n in walk(s) if isinstance(n, Loop)
        )
        self._function(self.name, stream=False)
        if not streams:
            self._launch(self.name, total)
            return
        self._function(self.name + ".stream", stream=True)
        large, small, done = b.fresh("large"), b.fresh("small"), b.fresh("launched")
        b.branch(self._streaming(), large, small)
        b.label(large)
        self._launch(self.name + ".stream", total)
        b.jump(done)
        b.label(small)
        self._launch(self.name, total)
        b.jump(done)
        b.label(done)

    def _streaming(self) -> V:
        """Whether the outputs are aligned for streaming stores and larger than the cache."""
        code, b = self.code, self.b
        size = integer(0)
        aligned: list[V] = []
        for p in self.owner.kernel.outputs:
            t = code.scope.tensors[p.name]
            size = b.op("add", size, code.access.uniform(_bytes(p)))
            places = [b.emit(f"ptrtoint {t.pointer} to i64", "i64")]
            if len(p.shape) > 1:
                row = code.access.uniform(p.shape[-1])
                places.append(b.op("mul", row, integer(p.type.bytes)))
            for place in places:
                low = b.op("and", place, integer(15))
                aligned.append(b.icmp("eq", low, integer(0)))
        limit = integer(self.owner.machine.stream_bytes)
        test = b.logical_and([b.icmp("sge", size, limit), *aligned])
        return test if test is not None else integer(1, "i1")

    # --- the function of a range

    def _arguments(self) -> list[str]:
        pointers = [f"ptr noalias %p.{n}" for n in self.tensors]
        return pointers + [f"i64 %d.{n}" for n in self.values]

    def _function(self, name: str, stream: bool) -> None:
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
        with b.loop(V("%begin", "i64"), V("%end", "i64")) as flat:
            self._iteration(inside, flat, len(self.nest) - 1)
        if stream and self.owner.machine.stream_fence:
            b.call(self.owner.machine.stream_fence, "void", 0)
        arguments = ", ".join([*self._arguments(), "i64 %begin", "i64 %end"])
        b.define(f"define internal void @{name}({arguments})", "nounwind")

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

    def _launch(self, name: str, total: V) -> None:
        if self.owner.machine.grid == "sequential":
            listed = [str(t.pointer) for t in self.tensors.values()]
            listed += [str(v) for v in self.values.values()]
            self.b.line(f"call void @{name}({', '.join([*listed, 'i64 0', str(total)])})")
            return
        context = self._context(total)
        if self.owner.machine.grid == "range":
            self._range_thread(name)
            self.b.call("kir_parallel", "void", 0, V(f"@{name}.thread", "ptr"), context, total)
            return
        self._dynamic_thread(name)
        b = self.b
        one = b.icmp("slt", total, integer(2))
        threads = b.select(one, integer(1, "i32"), V("%threads", "i32"))
        thread = V(f"@{name}.thread", "ptr")
        alone, many, done = b.fresh("alone"), b.fresh("many"), b.fresh("joined")
        b.branch(b.icmp("eq", threads, integer(1, "i32")), alone, many)
        b.label(alone)
        b.line(f"call void @{name}.share({context}, i64 0, {total})")
        b.jump(done)
        b.label(many)
        b.call("GOMP_parallel", "void", 0, thread, context, threads, integer(0, "i32"))
        b.jump(done)
        b.label(done)

    def _context(self, total: V) -> V:
        """What threads share: the next iteration, the number of all, then pointers and values."""
        b = self.b
        context = b.alloca("i64", 2 + len(self.tensors) + len(self.values), 64)
        slots = [integer(0), total, *(t.pointer for t in self.tensors.values())]
        for k, v in enumerate([*slots, *self.values.values()]):
            b.store(v, b.gep(context, "i64", integer(k)), 8)
        return context

    def _share(self, name: str) -> str:
        """A function that runs a range from a context."""
        b = Builder(self.owner.module)
        loaded = []
        kinds = ["ptr"] * len(self.tensors) + ["i64"] * len(self.values)
        for k, ty in enumerate(kinds):
            loaded.append(b.load(b.gep(V("%context", "ptr"), "i64", integer(k + 2)), ty, 0, 8))
        b.line(f"call void @{name}({', '.join([*map(str, loaded), 'i64 %begin', 'i64 %end'])})")
        head = f"define internal void @{name}.share(ptr %context, i64 %begin, i64 %end)"
        b.define(head, "nounwind")
        return f"{name}.share"

    def _range_thread(self, name: str) -> None:
        share = self._share(name)
        b = Builder(self.owner.module)
        b.line(f"call void @{share}(ptr %context, i64 %begin, i64 %end)")
        b.define(f"define void @{name}.thread(ptr %context, i64 %begin, i64 %end)", "nounwind")

    def _dynamic_thread(self, name: str) -> None:
        """What each thread runs: chunks, an eighth of its part each, until none is left."""
        share = self._share(name)
        b = Builder(self.owner.module)
        context = V("%context", "ptr")
        total = b.load(b.gep(context, "i64", integer(1)), "i64", 0, 8)
        threads = b.convert("sext", b.call("omp_get_num_threads", "i32", 0), "i64")
        part = b.op("sdiv", total, b.op("mul", threads, integer(8)))
        chunk = b.intrinsic("llvm.smax", part, integer(1))
        again, work, done = b.fresh("again"), b.fresh("work"), b.fresh("done")
        b.jump(again)
        b.label(again)
        begin = b.emit(f"atomicrmw add {context}, {chunk} monotonic", "i64")
        b.branch(b.icmp("slt", begin, total), work, done)
        b.label(work)
        end = b.intrinsic("llvm.smin", b.op("add", begin, chunk), total)
        b.line(f"call void @{share}({context}, {begin}, {end})")
        b.jump(again)
        b.label(done)
        b.define(f"define internal void @{name}.thread(ptr %context)", "nounwind")


def _bytes(p: Param) -> Expr:
    return product([const(p.type.bytes), *p.shape])
