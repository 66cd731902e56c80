"""Machine code in this process: loading objects, and the libraries that they call."""

from __future__ import annotations

import ctypes
import os
import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import llvmlite.binding as llvm

from kir.backends.cpu.archs import machine_of
from kir.backends.llvm.compile import target_machine
from kir.errors import CompileError

_lock = threading.Lock()


SPINS = "300"
"""Turns of libgomp's waiting loop before a thread sleeps: some 20 microseconds, which bridges the
gap between calls in a row. Its default is milliseconds, which suits a machine with nothing else to
do: on a busy one a thread that waits keeps the core from the thread that it waits for."""


@lru_cache(maxsize=1)
def has_openmp() -> bool:
    """Whether libgomp is here; loads it for generated code to find."""
    # libgomp reads its settings once, when it is loaded. Where it is already (PyTorch brings one
    # of the same name, which then serves both) it keeps what it has. The setting is taken back, so
    # that child processes do not inherit it.
    chosen = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys()
    if not chosen:
        os.environ["GOMP_SPINCOUNT"] = SPINS
    try:
        llvm.load_library_permanently("libgomp.so.1")
    except RuntimeError:
        return False
    finally:
        if not chosen:
            del os.environ["GOMP_SPINCOUNT"]
    return True


@lru_cache(maxsize=1)
def _load_libm() -> None:
    try:
        llvm.load_library_permanently("libm.so.6")
    except RuntimeError:  # not glibc: C's functions are in the process already
        return


@dataclass(frozen=True)
class Loaded:
    """A function of a loaded object; the engine owns its memory."""

    address: int
    engine: Any


def load_object(obj: bytes, symbol: str) -> Loaded:
    """Link an object into this process; CompileError where a symbol is missing."""
    _load_libm()
    has_openmp()
    with _lock:
        engine = llvm.create_mcjit_compiler(
            llvm.parse_assembly(""), target_machine(machine_of("native"))
        )
        engine.add_object_file(llvm.ObjectFileRef.from_data(obj))
        engine.finalize_object()
        address = engine.get_function_address(symbol)
    if not address:
        raise CompileError(f"the object has no function `{symbol}`")
    return Loaded(address, engine)


def as_function(loaded: Loaded, pointers: int, integers: int) -> Any:
    """The entry as a callable of `pointers` addresses, `integers` dims and the thread count."""
    kinds = [ctypes.c_void_p] * pointers + [ctypes.c_int64] * integers + [ctypes.c_int32]
    return ctypes.CFUNCTYPE(ctypes.c_int32, *kinds)(loaded.address)
