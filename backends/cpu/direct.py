"""Calls from Python without ctypes' price: a built-in function made of machine code that checks its
array arguments against one plan, releases the interpreter's lock and calls the kernel.

It does what a C extension would that is compiled against the headers of CPython and NumPy, whose
structures (`PyObject`, `PyArrayObject_fields`) are part of their binary interfaces. They are looked
at once before they are relied on; where they differ, calls go through ctypes.

The function takes the inputs and outputs in the plan's order. It gives False, having done nothing,
where an argument is not an array of exactly the plan's dtype, shape and layout, an output is
read-only, or an output shares memory with another argument; else it runs the kernel and gives True.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from kir.backends.cpu import cache, host
from kir.backends.cpu.call import Spec
from kir.backends.cpu.native import Loaded, load_object

NDArray = np.ndarray[Any, Any]
C_CONTIGUOUS, ALIGNED, WRITEABLE = 0x1, 0x100, 0x400
FASTCALL = 0x80

DISPATCH = """
declare ptr @PyBool_FromLong(i64)
declare ptr @PyEval_SaveThread()
declare void @PyEval_RestoreThread(ptr)

define ptr @kir_dispatch(ptr %self, ptr %args, i64 %given) nounwind {
entry:
  %plan.at = getelementptr i8, ptr %self, i64 16
  %plan = load ptr, ptr %plan.at
  %count.at = getelementptr i64, ptr %plan, i64 1
  %count = load i64, ptr %count.at
  %total.at = getelementptr i64, ptr %plan, i64 2
  %total = load i64, ptr %total.at
  %type.at = getelementptr i64, ptr %plan, i64 3
  %type = load ptr, ptr %type.at
  %records = getelementptr i64, ptr %plan, i64 4
  %fits = icmp eq i64 %given, %count
  br i1 %fits, label %start, label %refuse
start:
  %slots = alloca i64, i64 %total, align 16
  %ends = alloca i64, i64 %total, align 16
  br label %array
array:
  %k = phi i64 [ 0, %start ], [ %k.next, %good ]
  %at = phi ptr [ %records, %start ], [ %at.next, %good ]
  %more = icmp slt i64 %k, %count
  br i1 %more, label %look, label %rest
look:
  %arg.at = getelementptr ptr, ptr %args, i64 %k
  %arg = load ptr, ptr %arg.at
  %arg.type.at = getelementptr i8, ptr %arg, i64 8
  %arg.type = load ptr, ptr %arg.type.at
  %is.array = icmp eq ptr %arg.type, %type
  br i1 %is.array, label %fields, label %refuse
fields:
  %data.at = getelementptr i8, ptr %arg, i64 16
  %data = load i64, ptr %data.at
  %nd.at = getelementptr i8, ptr %arg, i64 24
  %nd32 = load i32, ptr %nd.at
  %nd = sext i32 %nd32 to i64
  %dims.at = getelementptr i8, ptr %arg, i64 32
  %dims = load ptr, ptr %dims.at
  %descr.at = getelementptr i8, ptr %arg, i64 56
  %descr = load i64, ptr %descr.at
  %flags.at = getelementptr i8, ptr %arg, i64 64
  %flags32 = load i32, ptr %flags.at
  %flags = sext i32 %flags32 to i64
  %want.descr = load i64, ptr %at
  %want.flags.at = getelementptr i64, ptr %at, i64 1
  %want.flags = load i64, ptr %want.flags.at
  %size.at = getelementptr i64, ptr %at, i64 2
  %size = load i64, ptr %size.at
  %want.nd.at = getelementptr i64, ptr %at, i64 3
  %want.nd = load i64, ptr %want.nd.at
  %shape = getelementptr i64, ptr %at, i64 4
  %same.descr = icmp eq i64 %descr, %want.descr
  %same.nd = icmp eq i64 %nd, %want.nd
  %has = and i64 %flags, %want.flags
  %same.flags = icmp eq i64 %has, %want.flags
  %both = and i1 %same.descr, %same.nd
  %all = and i1 %both, %same.flags
  br i1 %all, label %axis, label %refuse
axis:
  %d = phi i64 [ 0, %fields ], [ %d.next, %equal ]
  %axes = icmp slt i64 %d, %nd
  br i1 %axes, label %compare, label %keep
compare:
  %n.at = getelementptr i64, ptr %dims, i64 %d
  %n = load i64, ptr %n.at
  %want.n.at = getelementptr i64, ptr %shape, i64 %d
  %want.n = load i64, ptr %want.n.at
  %d.next = add i64 %d, 1
  %same.n = icmp eq i64 %n, %want.n
  br i1 %same.n, label %equal, label %refuse
equal:
  br label %axis
keep:
  %slot = getelementptr i64, ptr %slots, i64 %k
  store i64 %data, ptr %slot
  %end = add i64 %data, %size
  %end.at = getelementptr i64, ptr %ends, i64 %k
  store i64 %end, ptr %end.at
  %written = and i64 %want.flags, 1024
  %output = icmp ne i64 %written, 0
  br i1 %output, label %other, label %good
other:
  %j = phi i64 [ 0, %keep ], [ %j.next, %apart ]
  %before = icmp slt i64 %j, %k
  br i1 %before, label %overlap, label %good
overlap:
  %j.slot = getelementptr i64, ptr %slots, i64 %j
  %j.begin = load i64, ptr %j.slot
  %j.end.at = getelementptr i64, ptr %ends, i64 %j
  %j.end = load i64, ptr %j.end.at
  %starts = icmp ult i64 %data, %j.end
  %stops = icmp ult i64 %j.begin, %end
  %meet = and i1 %starts, %stops
  %j.next = add i64 %j, 1
  br i1 %meet, label %refuse, label %apart
apart:
  br label %other
good:
  %k.next = add i64 %k, 1
  %at.next = getelementptr i64, ptr %shape, i64 %nd
  br label %array
rest:
  %r = phi i64 [ %k, %array ], [ %r.next, %copy ]
  %r.at = phi ptr [ %at, %array ], [ %r.at.next, %copy ]
  %r.more = icmp slt i64 %r, %total
  br i1 %r.more, label %copy, label %call
copy:
  %value = load i64, ptr %r.at
  %r.slot = getelementptr i64, ptr %slots, i64 %r
  store i64 %value, ptr %r.slot
  %r.next = add i64 %r, 1
  %r.at.next = getelementptr i64, ptr %r.at, i64 1
  br label %rest
call:
  %kernel = load ptr, ptr %plan
  %state = call ptr @PyEval_SaveThread()
  %done = call i32 %kernel(ptr %slots)
  call void @PyEval_RestoreThread(ptr %state)
  %true = call ptr @PyBool_FromLong(i64 1)
  ret ptr %true
refuse:
  %false = call ptr @PyBool_FromLong(i64 0)
  ret ptr %false
}
"""
"""The plan, which is the data of an int64 array, the function's `self`: the kernel's packed entry,
the number of arrays, the number of its slots, the array type; for each array its dtype's address,
its flags, its size in bytes, its rank and its shape; then the slots after the arrays."""


class _Method(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


@dataclass(frozen=True)
class _Dispatcher:
    loaded: Loaded
    method: _Method


@lru_cache(maxsize=1)
def _dispatcher() -> _Dispatcher | None:
    """The compiled function; None where this interpreter's structures are not as expected."""
    if not _as_expected():
        return None
    key = cache.key_of(
        {"dispatch": DISPATCH, "machine": host.identity(), "compiler": cache.compiler_identity()}
    )
    found = cache.load(key)
    if found is None or "obj" not in found:
        from kir.backends.cpu.archs import machine_of
        from kir.backends.llvm.compile import compile_object

        found = {"obj": compile_object(DISPATCH, machine_of("native"))}
        cache.save(key, found)
    loaded = load_object(found["obj"], "kir_dispatch")
    return _Dispatcher(loaded, _Method(b"kir_kernel", loaded.address, FASTCALL, None))


def _as_expected() -> bool:
    if sys.implementation.name != "cpython" or (hasattr(sys, "abiflags") and "t" in sys.abiflags):
        return False
    probe = np.zeros((2, 3, 5), np.float32)

    def word(at: int, kind: Any = ctypes.c_size_t) -> int:
        value: int = kind.from_address(id(probe) + at).value
        return value

    if (word(8), word(16), word(24, ctypes.c_int)) != (id(np.ndarray), probe.ctypes.data, 3):
        return False
    if (word(56), word(64, ctypes.c_int)) != (id(probe.dtype), probe.flags.num):
        return False
    return tuple((ctypes.c_ssize_t * 3).from_address(word(32))) == probe.shape


def direct(entry: int, arrays: Sequence[Spec], rest: Sequence[int]) -> Callable[..., bool] | None:
    """The built-in function for one plan: `entry` is the address of a packed entry, `rest` its
    slots after the arrays. None where this interpreter allows none. The caller keeps the kernel's
    code alive."""
    found = _dispatcher()
    if found is None:
        return None
    words = [entry, len(arrays), len(arrays) + len(rest), id(np.ndarray)]
    for a in arrays:
        flags = C_CONTIGUOUS | ALIGNED | (WRITEABLE if a.output else 0)
        size = int(np.prod(a.shape, dtype=np.int64)) * a.dtype.itemsize
        words += [id(a.dtype), flags, size, len(a.shape), *a.shape]
    plan = np.array([*words, *rest], np.int64)
    make = ctypes.pythonapi.PyCFunction_NewEx
    make.restype, make.argtypes = (
        ctypes.py_object,
        (ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p),
    )
    function: Callable[..., bool] = make(ctypes.addressof(found.method), plan, None)
    return function
