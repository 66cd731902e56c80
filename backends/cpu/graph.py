"""A graph as one native function: its kernels' functions called in order, on one block of memory
for the temporaries, which is kept from call to call.

A call takes the block with an atomic exchange and puts it back in the end; a second call at the
same time finds none, makes its own, and leaves one of the two behind.
"""

from __future__ import annotations

from kir.backends.llvm import Machine, symbol_of
from kir.backends.llvm.builder import Builder, Module, V
from kir.backends.llvm.emit import Code, KernelEmitter
from kir.backends.llvm.memory import Scope
from kir.errors import UnsupportedError
from kir.graph_plan import GraphPlan
from kir.ir import Const

# `kir.release` frees what is kept: when a library is unloaded, or by `native` for code in memory
ARENA = """@kir.kept = internal global ptr null, align 8
define internal noalias ptr @kir.take(i64 %size) nounwind noinline {
  %had = atomicrmw xchg ptr @kir.kept, ptr null acquire
  %none = icmp eq ptr %had, null
  br i1 %none, label %make, label %look
look:
  %capacity = load i64, ptr %had
  %fits = icmp uge i64 %capacity, %size
  br i1 %fits, label %good, label %drop
drop:
  call void @free(ptr %had)
  br label %make
make:
  %more = add i64 %size, 127
  %total = and i64 %more, -64
  %new = call noalias ptr @aligned_alloc(i64 64, i64 %total)
  %failed = icmp eq ptr %new, null
  br i1 %failed, label %stop, label %fresh
stop:
  call void @abort()
  unreachable
fresh:
  store i64 %size, ptr %new
  br label %good
good:
  %block = phi ptr [ %had, %look ], [ %new, %fresh ]
  %usable = getelementptr i8, ptr %block, i64 64
  ret ptr %usable
}
define internal void @kir.give(ptr %usable) nounwind noinline {
  %block = getelementptr i8, ptr %usable, i64 -64
  %other = atomicrmw xchg ptr @kir.kept, ptr %block acq_rel
  call void @free(ptr %other)
  ret void
}
@llvm.global_dtors = appending global [1 x { i32, ptr, ptr }]
  [{ i32, ptr, ptr } { i32 65535, ptr @kir.release, ptr null }]
define hidden void @kir.release() nounwind {
  %block = atomicrmw xchg ptr @kir.kept, ptr null acq_rel
  call void @free(ptr %block)
  ret void
}
"""


def emit_graph(plan: GraphPlan, machine: Machine) -> str:
    """LLVM IR of `i32 kir_<graph>(inputs, outputs, dims, threads)` and all that it calls."""
    module, symbols = Module(machine.triple), []
    for number, kernel in enumerate(plan.kernels):
        symbol = f"{symbol_of(plan.signature)}.{number}.{kernel.name}"
        try:
            KernelEmitter(kernel, machine, module=module, symbol=symbol).run()
        except UnsupportedError as error:
            raise error.at(kernel=kernel) from None
        symbols.append(symbol)
    _entry(plan, machine, module, symbols)
    return module.text()


def _entry(plan: GraphPlan, machine: Machine, module: Module, symbols: list[str]) -> None:
    b, scope, signature = Builder(module), Scope(), plan.signature
    tensors = {p.name: f"ptr %p.{p.name}" for p in signature.params}
    scope.values = {d.name: V(f"%d.{d.name}", "i64") for d in signature.dims}
    arguments = [*tensors.values(), *map(str, scope.values.values()), "i32 %threads"]
    # a stand-in for a kernel's emitter, whose expressions over dims are used alone
    code = Code(KernelEmitter(signature, machine, module=module), b, scope, top=True)
    empty = isinstance(plan.size, Const) and plan.size.value == 0
    if plan.temporaries and not empty:
        module.functions.append(ARENA)
        for name, result, kinds in (("aligned_alloc", "noalias ptr", ["i64", "i64"]),
                                    ("free", "void", ["ptr"]), ("abort", "void", [])):  # fmt: skip
            module.declare(name, result, kinds, "nounwind")
        block = b.emit(f"call ptr @kir.take({code.access.uniform(plan.size)})", "ptr")
    else:
        block = V("null", "ptr")
    for t in plan.temporaries:
        tensors[t.param.name] = str(b.gep(block, "i8", code.access.uniform(t.offset)))
    for call in plan.calls:
        listed = [tensors[name] for name in call.tensors]
        listed += [str(code.access.uniform(e)) for e in call.dims]
        b.line(f"call i32 @{symbols[call.kernel]}({', '.join([*listed, 'i32 %threads'])})")
    if plan.temporaries and not empty:
        b.line(f"call void @kir.give({block})")
    b.define(f"define i32 @{symbol_of(signature)}({', '.join(arguments)})", "nounwind", "ret i32 0")
