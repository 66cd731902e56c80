"""The packed entry of a kernel: `i32 kir_<kernel>.packed(ptr slots)`, which finds all arguments in
one array of 8-byte slots (addresses of the tensors, dims, threads) and calls the entry proper."""

from __future__ import annotations

from kir.backends.llvm import symbol_of
from kir.ir import Kernel


def packed_symbol(kernel: Kernel) -> str:
    return f"{symbol_of(kernel)}.packed"


def packed_entry(kernel: Kernel, checked: bool) -> str:
    """LLVM IR of the entry; it is no part of a library's interface."""
    kinds = ["ptr"] * (len(kernel.params) + checked) + ["i64"] * len(kernel.dims) + ["i32"]
    lines = [f"define hidden i32 @{packed_symbol(kernel)}(ptr %slots) nounwind {{"]
    for k, ty in enumerate(kinds):
        lines.append(f"  %at{k} = getelementptr i64, ptr %slots, i64 {k}")
        lines.append(f"  %v{k} = load {ty}, ptr %at{k}, align 8")
    listed = ", ".join(f"{ty} %v{k}" for k, ty in enumerate(kinds))
    lines.append(f"  %r = tail call i32 @{symbol_of(kernel)}({listed})")
    return "\n".join([*lines, "  ret i32 %r", "}", ""])
