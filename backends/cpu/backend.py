"""The backend of the target `cpu`: LLVM through llvmlite, just in time and ahead of time."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kir.backend import Artifact, Backend, Executable, Manifest
from kir.backends.cpu import cache, library
from kir.backends.cpu.archs import ARCHS, chip_of, machine_of, require_host
from kir.backends.cpu.executable import CpuExecutable
from kir.backends.cpu.native import has_openmp
from kir.backends.cpu.packed import packed_entry, packed_symbol
from kir.backends.llvm import Machine, emit
from kir.backends.llvm.compile import compile_text, versions
from kir.backends.llvm.memory import CELL
from kir.dtypes import DTYPES
from kir.errors import UsageError
from kir.ir import Kernel, Step
from kir.syntax import format_kernel

STAGES = ("llvm", "asm", "obj", "header", "so")
FORMAT = 1
"""Of the emitter's output: raised with every change that cached code must not outlive."""


@dataclass(frozen=True)
class CpuBackend(Backend):
    """The manifest and the road; see `archs` for the machines, `executable` for calls.

    With `checked`, code compares every index that is read from a tensor with its extent, and a
    call raises EvaluationError for the first that is outside.
    """

    checked: bool = False

    manifest = Manifest(
        name="llvm",
        targets=("cpu",),
        archs={"cpu": ARCHS},
        stages={"cpu": STAGES},
        dtypes={"cpu": tuple(DTYPES.values())},
    )

    def default_schedule(self, kernel: Kernel, target: str, arch: str) -> tuple[Step, ...]:
        from kir.plan.cpu import plan

        return plan(kernel, chip_of(arch))

    def lower(self, kernel: Kernel, target: str, arch: str, stage: str | None = None) -> Artifact:
        """Compile scheduled IR. Without `stage`: LLVM IR and object. Assembly is made on request,
        since it takes LLVM as long as the object, and so are a shared library, which needs the
        system's C compiler, and its header."""
        if stage is not None and stage not in STAGES:
            raise UsageError(f"cpu has no stage `{stage}`", hint="it has: " + ", ".join(STAGES))
        if self.checked and stage in ("header", "so"):
            raise UsageError(f"a debug build has no stage `{stage}`", hint="leave out `--debug`")
        parallel = has_openmp()
        machine = machine_of(arch, parallel)
        emitted = emit(kernel, machine, self.checked)
        stages: dict[str, str | bytes] = {}
        text = emitted.text + packed_entry(kernel, self.checked)
        for name, data in self._compiled(kernel, machine, text, stage == "asm").items():
            stages[name] = data if name == "obj" else data.decode()
        if stage == "header":
            stages["header"] = library.header(kernel)
        if stage == "so":
            obj = stages["obj"]
            assert isinstance(obj, bytes)
            stages["so"] = library.shared_library(obj, parallel and b"GOMP_parallel" in obj)
        threads = "libgomp" if parallel else "none: libgomp.so.1 is missing, grids run in order"
        launch = {
            "symbol": emitted.symbol,
            "packed": packed_symbol(kernel),
            "arguments": [
                *(p.name for p in kernel.params),
                *([CELL] if self.checked else []),
                *(d.name for d in kernel.dims),
            ],
            "triple": machine.triple,
            "cpu": machine.cpu,
            "checked": self.checked,
        }
        report = {
            "regions": emitted.regions,
            "threads": threads,
            "vector_bits": machine.vector_bits,
        }
        return Artifact(kernel, target, arch, stages, launch, report)

    def _compiled(self, kernel: Kernel, machine: Machine, text: str, asm: bool) -> dict[str, bytes]:
        """llvm, obj and where wanted asm, from the cache where they are there.

        A checked build needs no word in the key: its text differs."""
        parts = {
            "format": FORMAT,
            "kernel": format_kernel(kernel),
            "text": text,
            "asm": asm,
            "machine": repr(machine),
            "versions": versions(),
            "compiler": cache.compiler_identity(),
        }
        key = cache.key_of(parts)
        found = cache.load(key)
        if found is not None:
            return found
        made = compile_text(text, machine, asm)
        stages = {"llvm": made.llvm.encode(), "obj": made.obj}
        if asm:
            stages["asm"] = made.asm.encode()
        cache.save(key, stages)
        return stages

    def debug(self) -> Backend:
        return replace(self, checked=True)

    def load(self, artifact: Artifact) -> Executable:
        """Link the object into this process; MissingHardwareError for a foreign arch."""
        require_host(artifact.arch)
        return CpuExecutable(artifact)

    def with_threads(self, artifact: Artifact, threads: int) -> Executable:
        """As `load`, with a fixed number of threads."""
        require_host(artifact.arch)
        return CpuExecutable(artifact, threads)


BACKEND = CpuBackend()
