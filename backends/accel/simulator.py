"""Running a kernel with no accelerator: its LLVM IR compiled for the host, or for QEMU's RISC-V.

Both work on one *arena*: a block of memory, laid out here, that holds the tables of kir_accel.h,
the tensors and one scratchpad. The PEs run one after another, phase by phase, so they share it.
Between things there are guard zones, which must be untouched afterwards.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numpy as np

from kir.backends.accel import elf, toolchain
from kir.backends.accel.machine import Machine
from kir.errors import EvaluationError, MissingHardwareError, UnsupportedError

Array = np.ndarray[Any, Any]
MODES = (("f32", "f32"), ("bf16", "f32"), ("f16", "f32"), ("i8", "i32"))
"""(operands, accumulator) of the matrix engine's modes, in the order of kir_accel.h."""
QUEUE = 16
FAULTS = {
    1: "a DMA transfer leaves the scratchpad",
    2: "a DMA transfer leaves the tensors",
    3: "a DMA transfer breaks the machine's alignment",
    4: "a DMA transfer has more rows, or longer ones, than the machine takes",
    5: "an operand of the matrix engine is not in the scratchpad",
    6: "a block is larger than the matrix engine's",
    7: "the matrix engine lacks these dtypes",
}
POISON = 0xFF  # a NaN in every float dtype
GUARD = 64
QEMU = "qemu-riscv64"


class _Range(ctypes.Structure):
    _fields_ = (("base", ctypes.c_uint64), ("bytes", ctypes.c_int64))


class _Transfer(ctypes.Structure):
    _fields_ = (
        ("dst", ctypes.c_uint64),
        ("src", ctypes.c_uint64),
        ("rows", ctypes.c_int64),
        ("row_bytes", ctypes.c_int64),
        ("dst_stride", ctypes.c_int64),
        ("src_stride", ctypes.c_int64),
    )


class Pe(ctypes.Structure):
    """`kir_pe` of kir_accel.h; addresses are plain numbers, since they may be another machine's."""

    _fields_ = (
        ("pe", ctypes.c_int64),
        ("pe_count", ctypes.c_int64),
        ("local", ctypes.c_uint64),
        ("local_bytes", ctypes.c_int64),
        ("dma_alignment", ctypes.c_int64),
        ("dma_max_row_bytes", ctypes.c_int64),
        ("dma_max_rows", ctypes.c_int64),
        ("tensors", ctypes.c_uint64),
        ("tensor_count", ctypes.c_int64),
        ("modes", ctypes.c_int64 * (3 * len(MODES))),
        ("fault", ctypes.c_int64),
        ("dma_bytes", ctypes.c_int64),
        ("dma_calls", ctypes.c_int64),
        ("mma_calls", ctypes.c_int64),
        ("mma_macs", ctypes.c_int64),
        ("pending", ctypes.c_int64),
        ("queue", _Transfer * QUEUE),
    )


@dataclass(frozen=True)
class Job:
    """What one run works on: tensors in the order of `kir_entry`, dims, phases, scratchpad bytes.

    `tensors` are inputs, outputs and temporaries; those that are written hold poison.
    """

    machine: Machine
    tensors: tuple[Array, ...]
    dims: tuple[int, ...]
    phases: int
    local_bytes: int


@dataclass(frozen=True)
class Counters:
    """What the run-time interface counted, over all PEs."""

    dma_bytes: int
    dma_calls: int
    mma_calls: int
    mma_macs: int


class Arena:
    """The memory of one run, for a given address of its first byte (a multiple of 4096)."""

    def __init__(self, job: Job, base: int) -> None:
        self.job = job
        self.base = base
        self._end = 40  # the header of start.ll
        self._guards: list[int] = []
        tensors = [self._room(t.nbytes, 64) for t in job.tensors]
        table = self._room(8 * len(tensors), 8)
        dims = self._room(8 * len(job.dims), 8)
        ranges = self._room(ctypes.sizeof(_Range) * len(tensors), 8)
        self.pes = self._room(ctypes.sizeof(Pe) * job.machine.pe_count, 64)
        self.local = self._room(job.local_bytes, max(64, job.machine.local.alignment))
        self.bytes = np.zeros(_up(self._end, 4096), np.uint8)
        for guard in self._guards:
            self.bytes[guard : guard + GUARD] = POISON
        self._put(0, np.array([base + table, base + dims, job.machine.pe_count], np.uint64))
        self._put(24, np.array([base + self.pes, job.phases], np.uint64))
        for at, tensor in zip(tensors, job.tensors, strict=True):
            self._put(at, tensor)
        self._put(table, np.array([base + t for t in tensors], np.uint64))
        self._put(dims, np.array(job.dims, np.int64))
        pairs = [(base + t, x.nbytes) for t, x in zip(tensors, job.tensors, strict=True)]
        self._put(ranges, np.array(pairs, np.uint64))
        self.poison_local()
        for i in range(job.machine.pe_count):
            self._put_pe(i, ranges)
        self.tensors, self.table, self.dims = tensors, table, dims

    def _room(self, size: int, alignment: int) -> int:
        """An offset for `size` bytes, with a guard before it and one after."""
        guard = self._end
        at = _up(guard + GUARD, alignment)
        self._guards.append(at - GUARD)
        self._end = at + size
        self._guards.append(self._end)
        self._end += GUARD
        return at

    def _put(self, at: int, data: Array) -> None:
        raw = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        self.bytes[at : at + raw.size] = raw

    def _put_pe(self, index: int, ranges: int) -> None:
        m = self.job.machine
        pe = Pe(
            pe=index,
            pe_count=m.pe_count,
            local=self.base + self.local,
            local_bytes=self.job.local_bytes,
            dma_alignment=m.dma.alignment,
            dma_max_row_bytes=m.dma.max_row_bytes,
            dma_max_rows=m.dma.max_rows,
            tensors=self.base + ranges,
            tensor_count=len(self.job.tensors),
        )
        for mode, (operand, acc) in enumerate(MODES):
            for x in m.matrix:
                if (x.a.name, x.b.name, x.acc.name) == (operand, operand, acc):
                    pe.modes[3 * mode : 3 * mode + 3] = [x.m, x.n, x.k]
        at = self.pes + ctypes.sizeof(Pe) * index
        self.bytes[at : at + ctypes.sizeof(Pe)] = np.frombuffer(bytes(pe), np.uint8)

    def poison_local(self) -> None:
        """What a PE finds in its scratchpad is nothing to rely on."""
        self.bytes[self.local : self.local + self.job.local_bytes] = POISON

    def pe(self, index: int) -> Pe:
        at = self.pes + ctypes.sizeof(Pe) * index
        return Pe.from_buffer_copy(self.bytes[at : at + ctypes.sizeof(Pe)].tobytes())

    def finish(self) -> Counters:
        """Copy the tensors back; EvaluationError for a fault or a write outside of everything."""
        pes = [self.pe(i) for i in range(self.job.machine.pe_count)]
        for pe in pes:
            if pe.fault:
                raise EvaluationError(f"on PE {pe.pe}, {FAULTS.get(pe.fault, f'fault {pe.fault}')}")
            if pe.pending:
                raise EvaluationError(f"PE {pe.pe} ended without waiting for its DMA transfers")
        for guard in self._guards:
            if (self.bytes[guard : guard + GUARD] != POISON).any():
                raise EvaluationError(
                    "the kernel wrote outside of its tensors and its scratchpad,"
                    f" within {GUARD} bytes of byte {guard} of the arena"
                )
        for at, tensor in zip(self.tensors, self.job.tensors, strict=True):
            raw = self.bytes[at : at + tensor.nbytes]
            tensor[...] = raw.view(tensor.dtype).reshape(tensor.shape)
        names = ("dma_bytes", "dma_calls", "mma_calls", "mma_macs")
        return Counters(**{n: sum(int(getattr(pe, n)) for pe in pes) for n in names})


def _up(value: int, to: int) -> int:
    return -(-value // to) * to


# --- on the host -----------------------------------------------------------------------------


class HostProgram:
    """A kernel's LLVM IR with the run-time interface, compiled for this machine."""

    def __init__(self, kernel_ir: str) -> None:
        module = toolchain.linked(kernel_ir, toolchain.runtime_text())
        host = toolchain.host_machine()
        module.triple = host.triple
        module.data_layout = str(host.target_data)
        toolchain.optimize(module, host)
        self._engine = llvm.create_mcjit_compiler(module, host)
        self._engine.finalize_object()
        address = self._engine.get_function_address("kir_entry")
        kind = ctypes.CFUNCTYPE(
            None, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int64
        )
        self._entry = kind(address)

    def run(self, job: Job) -> Counters:
        """Run all phases on all PEs; the job's tensors are written in place."""
        size = Arena(job, 0).bytes.size
        room = np.zeros(size + 4096, np.uint8)
        base = _up(room.ctypes.data, 4096)
        arena = Arena(job, base)
        start = base - room.ctypes.data
        room[start : start + size] = arena.bytes
        arena.bytes = room[start : start + size]
        stride = ctypes.sizeof(Pe)
        for phase in range(job.phases):
            for i in range(job.machine.pe_count):
                arena.poison_local()
                pe = base + arena.pes + stride * i
                self._entry(pe, base + arena.table, base + arena.dims, phase)
        return arena.finish()


# --- under QEMU ------------------------------------------------------------------------------


def qemu_available() -> bool:
    return shutil.which(QEMU) is not None


def run_under_qemu(kernel_ir: str, job: Job, timeout: float = 60.0) -> Counters:
    """Compile the kernel for the job's machine, and run it under `qemu-riscv64`.

    Raises UnsupportedError where the machine is no RISC-V, MissingHardwareError where QEMU is not
    installed, CompileError where the program cannot be linked, EvaluationError where it fails.
    """
    core = job.machine.core
    if not core.triple.startswith("riscv64"):
        raise UnsupportedError(f"QEMU runs RISC-V here, not `{core.triple}`")
    qemu = shutil.which(QEMU)
    if qemu is None:
        raise MissingHardwareError(
            f"`{QEMU}` is not installed", hint="on Debian: apt-get install qemu-user"
        )
    target = toolchain.target_machine(core)
    module = toolchain.linked(
        kernel_ir, toolchain.runtime_text(), toolchain.start_text(ctypes.sizeof(Pe))
    )
    module.triple = core.triple
    module.data_layout = str(target.target_data)
    toolchain.optimize(module, target)
    arena = Arena(job, elf.ARENA)
    program = elf.link(bytes(target.emit_object(module)), arena.bytes.size)
    cpu = f"rv64,v=true,vlen={core.vector_bits},elen=64,vext_spec=v1.0"
    arena.bytes = _execute([qemu, "-cpu", cpu], program, arena.bytes, timeout)
    return arena.finish()


def _execute(command: Sequence[str], program: bytes, arena: Array, timeout: float) -> Array:
    with tempfile.TemporaryDirectory(prefix="kir-accel-") as folder:
        path = Path(folder) / "program"
        path.write_bytes(program)
        path.chmod(0o700)
        try:
            done = subprocess.run(
                [*command, str(path)],
                input=arena.tobytes(),
                capture_output=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise EvaluationError(f"the program ran longer than {timeout:g} s") from None
    if done.returncode or len(done.stdout) != arena.size:
        said = done.stderr.decode("utf-8", "replace").strip()[:500]
        raise EvaluationError(
            f"the program ended with status {done.returncode} after"
            f" {len(done.stdout)} of {arena.size} bytes{': ' + said if said else ''}"
        )
    return np.frombuffer(done.stdout, np.uint8).copy()


def counters_table(counters: Counters) -> Mapping[str, int]:
    """The counters as plain data, for a report."""
    return dict(vars(counters))
