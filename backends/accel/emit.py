"""A program as LLVM IR: the shared emitter's code, with the engines as calls of kir_accel.h.

`kir_entry(pe, tensors, dims, phase)` loads the arguments and calls the phase's function, in which
a PE does its contiguous share of the flattened `grid` nest.
"""

from __future__ import annotations

from collections.abc import Sequence

from kir.backends.accel.engines import Dma, Mma, Operand, Wait
from kir.backends.accel.machine import Core
from kir.backends.accel.program import Phase, Placed, Program
from kir.backends.accel.simulator import MODES, Pe
from kir.backends.accel.toolchain import waves_text
from kir.backends.llvm.affine import mentions, product, reads_memory
from kir.backends.llvm.builder import Builder, V, integer
from kir.backends.llvm.emit import Code, KernelEmitter
from kir.backends.llvm.machine import Machine as Facts
from kir.backends.llvm.scope import Scope, Tensor
from kir.errors import UnsupportedError
from kir.ir import Const, Expr, Loop, Param, Stmt

ENTRY = "kir_entry"
NO_LIMIT = 1 << 60


def facts(core: Core) -> Facts:
    """What the shared emitter must know of a core. Nothing may be called but the interface."""
    has = set(core.features)
    riscv = core.triple.startswith("riscv")
    return Facts(
        triple=core.triple,
        cpu=core.cpu,
        features=",".join(core.features),
        vector_bits=core.vector_bits,
        half=riscv and {"+zfhmin", "+zvfhmin"} <= has,
        fma=(riscv and "+d" in has) or "+fma" in has or core.triple.startswith("aarch64"),
        libm=False,
        grid="sequential",
        stack_bytes=NO_LIMIT,
    )


def emit(program: Program) -> str:
    """LLVM IR of a whole program; UnsupportedError where a construct has no lowering."""
    try:
        return _ProgramEmitter(program).text()
    except UnsupportedError as error:
        raise error.at(kernel=program.kernel) from None


class _ProgramEmitter:
    def __init__(self, program: Program) -> None:
        self.program = program
        kernel = program.kernel
        self.tensors: tuple[Param, ...] = (*kernel.params, *program.temporaries)
        self.owner = KernelEmitter(kernel, facts(program.machine.core))
        self.arguments = ["ptr %pe", "ptr %local"]
        self.arguments += [f"ptr noalias %p.{t.name}" for t in self.tensors]
        self.arguments += [f"i64 %d.{d.name}" for d in kernel.dims]

    def text(self) -> str:
        for k, phase in enumerate(self.program.phases):
            self.phase(k, phase)
        self.entry()
        module = self.owner.module
        waves = [module.declarations.pop(x, None) for x in ("kir_sinf", "kir_cosf")]
        return module.text() + (waves_text() if any(waves) else "")

    def entry(self) -> None:
        b = Builder(self.owner.module)
        passed = [V("%pe", "ptr"), b.load(_field(b, "local"), "ptr", 0, 8)]
        for table, count, ty in (
            ("%tensors", len(self.tensors), "ptr"),
            ("%dims", len(self.program.kernel.dims), "i64"),
        ):
            for k in range(count):
                passed.append(b.load(b.gep(V(table, "ptr"), "i64", integer(k)), ty, 0, 8))
        for k in range(len(self.program.phases)):
            with b.when(b.icmp("eq", V("%phase", "i64"), integer(k))):
                b.line(f"call void @kir_phase{k}({', '.join(map(str, passed))})")
        arguments = "ptr %pe, ptr %tensors, ptr %dims, i64 %phase"
        b.define(f"define void @{ENTRY}({arguments})", "nounwind")

    def phase(self, number: int, phase: Phase) -> None:
        kernel = self.program.kernel
        b = Builder(self.owner.module)
        scope = Scope()
        for t in self.tensors:
            pointer, output = V(f"%p.{t.name}", "ptr"), t in kernel.outputs
            scope.tensors[t.name] = Tensor(
                pointer, t.type, t.shape, outer=phase.shared, output=output
            )
        for d in kernel.dims:
            known = d.default is not None
            scope.values[d.name] = integer(d.default or 0) if known else V(f"%d.{d.name}", "i64")
        code = AccelCode(self.owner, b, scope)
        if phase.shared:
            self.shared(code, phase)
        else:
            pe = b.load(_field(b, "pe"), "i64", 0, 8)
            with b.when(b.icmp("eq", pe, integer(0))):
                code.block(phase.body)
        b.define(
            f"define internal void @kir_phase{number}({', '.join(self.arguments)})", "nounwind"
        )

    def shared(self, code: AccelCode, phase: Phase) -> None:
        """The PE's contiguous part of all iterations of the nest."""
        (first,) = phase.body
        assert isinstance(first, Loop)
        nest = _grid_nest(first)
        b = code.b
        pe = b.load(_field(b, "pe"), "i64", 0, 8)
        count = b.load(_field(b, "pe_count"), "i64", 0, 8)
        total = code.access.uniform(product([s.axis.extent for s in nest]))
        begin = b.op("sdiv", b.op("mul", total, pe), count)
        after = b.op("add", pe, integer(1))
        end = b.op("sdiv", b.op("mul", total, after), count)
        code.scope.grid = tuple(s.axis.name for s in nest)
        with b.loop(begin, end) as flat:
            _iteration(code, nest, flat, len(nest) - 1)


def _grid_nest(first: Loop) -> list[Loop]:
    """Perfectly nested `grid` loops whose extents are known before the first."""
    nest = [first]
    while len(nest[-1].body) == 1 and not nest[-1].where:
        inner = nest[-1].body[0]
        if not isinstance(inner, Loop) or inner.kind != "grid":
            break
        extent = inner.axis.extent
        if reads_memory(extent) or any(mentions(extent, s.axis.name) for s in nest):
            break
        nest.append(inner)
    return nest


def _iteration(code: AccelCode, nest: Sequence[Loop], flat: V, level: int) -> None:
    """Recover the indices from the flat one, the innermost first, then run the body."""
    loop, b = nest[level], code.b
    index = flat
    if level:
        extent = code.access.uniform(loop.axis.extent)
        index, flat = b.op("urem", flat, extent), b.op("udiv", flat, extent)
    with code.bound(loop, index):
        if level:
            _iteration(code, nest, flat, level - 1)
        else:
            with code.where(nest[-1].where):
                code.block(nest[-1].body)


class AccelCode(Code):
    """The shared emitter's statements, and the engines'."""

    def __init__(self, owner: KernelEmitter, b: Builder, scope: Scope) -> None:
        super().__init__(owner, b, scope, top=False)

    def statement(self, s: Stmt) -> str | None:
        try:
            if isinstance(s, Placed):
                self._placed(s)
            elif isinstance(s, Dma):
                self._dma(s)
            elif isinstance(s, Wait):
                self.b.call("kir_dma_wait", "void", 0, _PE, attributes="nounwind")
            elif isinstance(s, Mma):
                self._mma(s)
            else:
                return super().statement(s)
        except UnsupportedError as error:
            raise error.at(node=s) from None
        return None

    def _placed(self, s: Placed) -> None:
        """A buffer in the scratchpad; no bytes after it may be read, so it counts as unpadded."""
        pointer = self.b.gep(V("%local", "ptr"), "i8", integer(s.offset))
        tensor = Tensor(pointer, s.type, s.shape)
        self.scope.tensors[s.name] = tensor
        if s.init is not None:
            count = 1
            for extent in s.shape:
                assert isinstance(extent, Const)
                count *= int(extent.value)
            self._initialise(s, tensor, count, 1)

    def _pointer(self, name: str, at: Sequence[Expr]) -> V:
        t = self.scope.tensors[name]
        return self.access.element(t, self.access.offset(t, at))

    def _dma(self, s: Dma) -> None:
        b, size = self.b, integer(s.type.bytes)

        def number(e: Expr, scaled: bool = True) -> V:
            value = self.access.value(e)
            return b.op("mul", value, size) if scaled else value

        local = self._pointer(s.local, s.local_at), number(s.local_stride)
        tensor = self._pointer(s.tensor, s.tensor_at), number(s.tensor_stride)
        (target, target_stride), (source, source_stride) = (
            (local, tensor) if s.load else (tensor, local)
        )
        name = "kir_dma_load" if s.load else "kir_dma_store"
        sizes = (number(s.rows, scaled=False), number(s.row), target_stride, source_stride)
        b.call(name, "void", 0, _PE, target, source, *sizes, attributes="nounwind")

    def _mma(self, s: Mma) -> None:
        value = self.access.value
        mode = MODES.index((s.mode.a.name, s.mode.acc.name))

        def operand(x: Operand) -> tuple[V, V, V]:
            return self._pointer(x.tensor, x.at), value(x.row), value(x.column)

        arguments = (*operand(s.acc), *operand(s.a), *operand(s.b))
        block = (value(s.m), value(s.n), value(s.k))
        self.b.call(
            "kir_matrix_mma", "void", 0, _PE, integer(mode), *arguments, *block,
            attributes="nounwind",
        )  # fmt: skip


_PE = V("%pe", "ptr")


def _field(b: Builder, name: str) -> V:
    """The address of a field of kir_pe."""
    return b.gep(_PE, "i8", integer(getattr(Pe, name).offset))
