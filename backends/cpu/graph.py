"""A graph as one native function: its kernels' functions called in order, on one block of memory
for the temporaries, which is kept from call to call (see `kir.backends.llvm.scratch`).
"""

from __future__ import annotations

from kir.backends.cpu.entries import body_symbol
from kir.backends.llvm import Machine, scratch, symbol_of
from kir.backends.llvm.builder import COLD, Builder, Module, V
from kir.backends.llvm.emit import Code, KernelEmitter
from kir.backends.llvm.scope import Scope
from kir.errors import UnsupportedError
from kir.graph_plan import GraphPlan
from kir.ir import Const


def emit_graph(plan: GraphPlan, machine: Machine, module: Module) -> int:
    """Write the body of a graph's function, and all that it calls, into a module. Gives the number
    of parallel regions."""
    symbols, regions = [], 0
    for number, kernel in enumerate(plan.kernels):
        symbol = f"{symbol_of(plan.signature)}.{number}.{kernel.name}"
        try:
            regions += KernelEmitter(kernel, machine, module=module, symbol=symbol).run().regions
        except UnsupportedError as error:
            raise error.at(kernel=kernel) from None
        symbols.append(symbol)
    _entry(plan, machine, module, symbols)
    return regions


def _entry(plan: GraphPlan, machine: Machine, module: Module, symbols: list[str]) -> None:
    b, scope, signature = Builder(module), Scope(), plan.signature
    tensors = {p.name: f"ptr %p.{p.name}" for p in signature.params}
    scope.values = {d.name: V(f"%d.{d.name}", "i64") for d in signature.dims}
    arguments = [*tensors.values(), *map(str, scope.values.values()), "i32 %threads"]
    # a stand-in for a kernel's emitter, whose expressions over dims are used alone
    code = Code(KernelEmitter(signature, machine, module=module), b, scope, top=True)
    empty = isinstance(plan.size, Const) and plan.size.value == 0
    if plan.temporaries and not empty:
        slot, block = scratch.take(b, code.access.uniform(plan.size), threads=False)
    else:
        slot = block = V("null", "ptr")
    for t in plan.temporaries:
        tensors[t.param.name] = str(b.gep(block, "i8", code.access.uniform(t.offset)))
    for call in plan.calls:
        listed = [tensors[name] for name in call.tensors]
        listed += [str(code.access.uniform(e)) for e in call.dims]
        b.line(f"call i32 @{symbols[call.kernel]}({', '.join([*listed, 'i32 %threads'])})")
    if plan.temporaries and not empty:
        b.lines.append(scratch.give(slot, block))
    head = f"define internal i32 @{body_symbol(signature)}({', '.join(arguments)})"
    b.define(head, COLD, "ret i32 0")
