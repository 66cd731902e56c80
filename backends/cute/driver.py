"""The few calls of the CUDA driver that launch a cubin, through ctypes. Untested: no GPU here.

Signatures are those of the CUDA Driver API; `_v2` names are what cuda.h maps the plain ones to.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kir.errors import EvaluationError, MissingHardwareError

NDArray = np.ndarray[Any, Any]
COMPUTE_MAJOR, COMPUTE_MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
STATIC_SHARED_LIMIT = 48 * 1024
HINT = "the artifact is compiled; `interpret` runs its PTX in the emulator"


class Driver:
    """The first GPU and its primary context; MissingHardwareError where `arch` cannot run."""

    def __init__(self, arch: str) -> None:
        try:
            self.cuda = ctypes.CDLL("libcuda.so.1")
        except OSError:
            raise MissingHardwareError("this machine has no NVIDIA driver", hint=HINT) from None
        count = ctypes.c_int()
        if (
            self.cuda.cuInit(0)
            or self.cuda.cuDeviceGetCount(ctypes.byref(count))
            or not count.value
        ):
            raise MissingHardwareError("this machine has no NVIDIA GPU", hint=HINT)
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self._check("cuDeviceGet", ctypes.byref(device), 0)
        self._require(device, arch)
        self._check("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._check("cuCtxSetCurrent", context)

    def _require(self, device: ctypes.c_int, arch: str) -> None:
        """A cubin runs on its own major version, at its minor or later; an `a` one on its own."""
        values = []
        for attribute in (COMPUTE_MAJOR, COMPUTE_MINOR):
            value = ctypes.c_int()
            self._check("cuDeviceGetAttribute", ctypes.byref(value), attribute, device)
            values.append(value.value)
        digits = re.sub(r"\D", "", arch)
        major, minor = int(digits[:-1]), int(digits[-1])
        exact = arch.endswith("a")
        if values[0] != major or values[1] < minor or (exact and values[1] != minor):
            raise MissingHardwareError(
                f"the GPU here is sm_{values[0]}{values[1]}, the artifact is for {arch}", hint=HINT
            )

    def _check(self, name: str, *arguments: Any) -> None:
        status = getattr(self.cuda, name)(*arguments)
        if status:
            text = ctypes.c_char_p()
            self.cuda.cuGetErrorString(status, ctypes.byref(text))
            said = text.value.decode() if text.value else "no text"
            raise EvaluationError(f"the CUDA driver's {name} failed: {said} ({status})")

    def load(self, cubin: bytes, shared: Mapping[str, int]) -> dict[str, ctypes.c_void_p]:
        """The entries of a cubin, each allowed the dynamic shared memory it is launched with."""
        module = ctypes.c_void_p()
        self._check("cuModuleLoadData", ctypes.byref(module), cubin)
        found: dict[str, ctypes.c_void_p] = {}
        for entry, size in shared.items():
            function = ctypes.c_void_p()
            self._check("cuModuleGetFunction", ctypes.byref(function), module, entry.encode())
            if size > STATIC_SHARED_LIMIT:
                self._check("cuFuncSetAttribute", function, MAX_DYNAMIC_SHARED, size)
            found[entry] = function
        return found

    def allocate(self, size: int) -> int:
        address = ctypes.c_uint64()
        self._check("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(size, 1)))
        return address.value

    def free(self, address: int) -> None:
        self.cuda.cuMemFree_v2(ctypes.c_uint64(address))

    def to_device(self, address: int, array: NDArray) -> None:
        if array.nbytes:
            source = ctypes.c_void_p(array.ctypes.data)
            size = ctypes.c_size_t(array.nbytes)
            self._check("cuMemcpyHtoD_v2", ctypes.c_uint64(address), source, size)

    def to_host(self, array: NDArray, address: int) -> None:
        if array.nbytes:
            target = ctypes.c_void_p(array.ctypes.data)
            size = ctypes.c_size_t(array.nbytes)
            self._check("cuMemcpyDtoH_v2", target, ctypes.c_uint64(address), size)

    def launch(
        self,
        function: ctypes.c_void_p,
        blocks: int,
        threads: int,
        shared: int,
        arguments: Sequence[int],
    ) -> None:
        """Every argument of these kernels is 8 bytes: an address or an i64."""
        cells = [ctypes.c_int64(a) for a in arguments]
        pointers = (ctypes.c_void_p * len(cells))(*(ctypes.addressof(c) for c in cells))
        self._check(
            "cuLaunchKernel", function, blocks, 1, 1, threads, 1, 1, shared, None, pointers, None
        )

    def synchronise(self) -> None:
        self._check("cuCtxSynchronize")
