"""Machine code in this process: loading objects, and the libraries that they call."""

from __future__ import annotations

import ctypes
import os
import platform
import threading
import weakref
from functools import lru_cache
from typing import Any

from kir.backends.cpu.image import Image, Mapped
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
        ctypes.CDLL("libgomp.so.1", ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    finally:
        if not chosen:
            del os.environ["GOMP_SPINCOUNT"]
    return True


@lru_cache(maxsize=1)
def _libraries() -> tuple[ctypes.CDLL, ...]:
    """Where code finds the functions that it calls: this process with libgomp, and C's library."""
    has_openmp()
    found = [ctypes.CDLL(None)]
    for name in ("libm.so.6", "libgomp.so.1"):
        try:
            found.append(ctypes.CDLL(name, ctypes.RTLD_GLOBAL))
        except OSError:  # not glibc: the process has C's functions already; or no OpenMP
            continue
    return tuple(found)


@lru_cache(maxsize=256)
def address_of(name: str) -> int:
    """Of a function of C's library or libgomp; CompileError where there is none."""
    for library in _libraries():
        try:
            function = getattr(library, name)
        except AttributeError:
            continue
        return ctypes.cast(function, ctypes.c_void_p).value or 0
    raise CompileError(
        f"compiled code calls `{name}`, which this system has not",
        hint="libgomp.so.1 comes with GCC's run-time libraries",
    )


class Code:
    """Machine code in memory for as long as this object lives: functions' addresses by name.
    `image` is None where LLVM's loader keeps the code."""

    def __init__(self, engine: Any, image: Image | None = None) -> None:
        self.engine, self.image = engine, image

    def address(self, symbol: str) -> int:
        """CompileError where there is no such function."""
        if self.image is not None:
            found: int = self.engine.symbols.get(symbol, 0)
        else:
            found = self.engine.get_function_address(symbol)
        if not found:
            raise CompileError(f"the object has no function `{symbol}`")
        return found


def load_image(image: Image) -> Code:
    """CompileError where a function that it calls is missing."""
    mapped = Mapped(image, address_of)
    code = Code(mapped, image)
    if "kir.release" in mapped.symbols:  # it keeps memory from call to call
        release = ctypes.CFUNCTYPE(None)(mapped.symbols["kir.release"])
        weakref.finalize(code, _run, release, mapped).atexit = False
    return code


def _run(release: Any, mapped: Mapped) -> None:
    """The last thing that code does; `mapped` is held until then."""
    release()
    assert mapped.symbols


def load_code(obj: bytes) -> Code:
    """Link an object into this process; CompileError where a symbol is missing."""
    from kir.backends.cpu.link import is_linkable, link

    if is_linkable(obj) and platform.machine() in ("x86_64", "AMD64"):
        return load_image(link(obj))
    return Code(_engine(obj))


def _engine(obj: bytes) -> Any:
    """LLVM's own loader, for machines whose relocations `image` does not know."""
    import llvmlite.binding as llvm

    from kir.backends.cpu.archs import machine_of
    from kir.backends.llvm.compile import target_machine

    _libraries()
    with _lock:
        engine = llvm.create_mcjit_compiler(
            llvm.parse_assembly(""), target_machine(machine_of("native"))
        )
        engine.add_object_file(llvm.ObjectFileRef.from_data(obj))
        engine.finalize_object()
    return engine


class Loaded:
    """A function of a loaded object; the engine owns its memory."""

    def __init__(self, address: int, engine: Any) -> None:
        self.address, self.engine = address, engine


def load_object(obj: bytes, symbol: str) -> Loaded:
    """Link an object into this process; CompileError where a symbol is missing."""
    code = load_code(obj)
    return Loaded(code.address(symbol), code)


def as_function(loaded: Loaded, pointers: int, integers: int) -> Any:
    """The entry as a callable of `pointers` addresses, `integers` dims and the thread count."""
    kinds = [ctypes.c_void_p] * pointers + [ctypes.c_int64] * integers + [ctypes.c_int32]
    return ctypes.CFUNCTYPE(ctypes.c_int32, *kinds)(loaded.address)
