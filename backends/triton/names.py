"""Names of generated Python: every IR name becomes an identifier that clashes with nothing."""

from __future__ import annotations

import builtins
import keyword
from functools import cache

from kir.backends.triton.prelude import HELPERS

RESERVED = (
    frozenset(keyword.kwlist)
    | frozenset(keyword.softkwlist)
    | frozenset(dir(builtins))
    | frozenset({"tl", "triton", "libdevice"})
    | frozenset(HELPERS)
)


class Names:
    """Hands out identifiers, each once. KIR names are ASCII `[A-Za-z_][A-Za-z0-9_]*`."""

    def __init__(self) -> None:
        self.used: set[str] = set()

    def fresh(self, wanted: str) -> str:
        """`wanted` where it is free and harmless, else with a suffix. Leading underscores go:
        Triton's interpreter adds names of its own that have them."""
        if not (wanted.isascii() and wanted.isidentifier()):
            raise ValueError(f"{wanted!r} is no identifier")
        base = wanted.lstrip("_") or "v"
        if base[0].isdigit():
            base = f"v{base}"
        name, count = base, 1
        while name in RESERVED or name in self.used or name in _interpreter_names():
            count += 1
            name = f"{base}_{count}"
        self.used.add(name)
        return name


@cache
def _interpreter_names() -> frozenset[str]:
    """Globals which Triton's interpreter injects into the module of an interpreted function."""
    return frozenset(INJECTED.split())


INJECTED = """
ast textwrap inspect Tuple List Dict Callable TypeVar Optional math np time T dataclasses dataclass
TritonSemantic KernelInterface TensorDescriptor InterpreterError partial TensorHandle
GridExecutor InterpretedFunction FunctionRewriter ASTTransformer ReduceOps ScanOps
InterpreterBuilder InterpreterOptions interpreter_builder interpreter_semantic
ReduceScanOpInterface TensorDescHandle annotations
"""
