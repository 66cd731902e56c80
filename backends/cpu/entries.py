"""The ways into a kernel's code, all to an internal function `kir_<kernel>.body`:

- `i32 kir_<kernel>(tensors, dims, threads)`, which libraries export. It gives 1, having done
  nothing, where a dim is below 0 or the dims break a constraint of the kernel.
- `i32 kir_<kernel>.packed(ptr slots)`, for calls from Python, where the dims were checked before:
  it finds all arguments in one array of 8-byte slots.
"""

from __future__ import annotations

from kir.backends.llvm import Machine, symbol_of
from kir.backends.llvm.builder import COLD, Builder, Module, V, integer
from kir.backends.llvm.emit import Code, KernelEmitter
from kir.backends.llvm.scope import Scope
from kir.ir import Kernel


def packed_symbol(kernel: Kernel) -> str:
    return f"{symbol_of(kernel)}.packed"


def body_symbol(kernel: Kernel) -> str:
    return f"{symbol_of(kernel)}.body"


def write_entries(module: Module, kernel: Kernel, machine: Machine, checked: bool) -> None:
    """Both, for a body that is in the module; `checked` as the body is."""
    kinds = ["ptr"] * (len(kernel.params) + checked) + ["i64"] * len(kernel.dims) + ["i32"]
    _write_packed(module, kernel, kinds)
    b, scope = Builder(module), Scope()
    values = [V(f"%a{k}", ty) for k, ty in enumerate(kinds)]
    dims = values[len(kernel.params) + checked : -1]
    scope.values = {d.name: v for d, v in zip(kernel.dims, dims, strict=True)}
    # a stand-in for a kernel's emitter, whose expressions over dims are used alone
    code = Code(KernelEmitter(kernel, machine, module=module), b, scope, top=True)
    good = [b.icmp("sge", v, integer(0)) for v, d in zip(dims, kernel.dims) if d.default is None]
    good += [code.access.value(c) for c in kernel.constraints]
    listed = ", ".join(map(str, values))
    result = b.alloca("i32", 1, 4)
    b.store(integer(1, "i32"), result, 4)
    with b.when(b.logical_and(good)):
        b.store(b.emit(f"call i32 @{body_symbol(kernel)}({listed})", "i32"), result, 4)
    last = b.load(result, "i32", 0, 4)
    b.define(f"define i32 @{symbol_of(kernel)}({listed})", COLD, f"ret {last}")


def _write_packed(module: Module, kernel: Kernel, kinds: list[str]) -> None:
    b, slots = Builder(module), V("%slots", "ptr")
    values = [b.load(b.gep(slots, "i64", integer(k)), ty, 0, 8) for k, ty in enumerate(kinds)]
    done = b.emit(f"call i32 @{body_symbol(kernel)}({', '.join(map(str, values))})", "i32")
    b.define(f"define hidden i32 @{packed_symbol(kernel)}(ptr %slots)", COLD, f"ret {done}")
