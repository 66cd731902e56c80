"""The backend of the target `cpu`: LLVM through llvmlite, just in time and ahead of time."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kir.backend import Artifact, Backend, Executable, Manifest
from kir.backends.cpu import cache, library
from kir.backends.cpu.archs import ARCHS, chip_of, machine_of, require_host
from kir.backends.cpu.entries import body_symbol, packed_symbol, write_entries
from kir.backends.cpu.executable import CpuExecutable
from kir.backends.cpu.graph import emit_graph
from kir.backends.cpu.native import has_openmp
from kir.backends.llvm import Machine, emit, scratch, symbol_of
from kir.backends.llvm.builder import Module
from kir.backends.llvm.compile import compile_text, versions
from kir.backends.llvm.memory import CELL
from kir.dtypes import DTYPES
from kir.errors import UsageError
from kir.graph_plan import GraphPlan
from kir.ir import Kernel, Step

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
        graphs=True,
    )

    def default_schedule(self, kernel: Kernel, target: str, arch: str) -> tuple[Step, ...]:
        from kir.plan.cpu import plan

        return plan(kernel, chip_of(arch))

    def lower(self, kernel: Kernel, target: str, arch: str, stage: str | None = None) -> Artifact:
        """Compile scheduled IR. Without `stage`: LLVM IR and object. Assembly is made on request,
        since it takes LLVM as long as the object, and so are a shared library, which needs a C
        compiler to link it, and its header."""
        self._require(stage)
        machine = machine_of(arch, has_openmp())
        module = Module(machine.triple)
        made = emit(kernel, machine, self.checked, module, body_symbol(kernel))
        return self._artifact(module, kernel, made.regions, machine, (target, arch, stage))

    def lower_graph(
        self, plan: GraphPlan, target: str, arch: str, stage: str | None = None
    ) -> Artifact:
        """As `lower`; one function for the graph. UsageError for a debug build."""
        self._require(stage)
        if self.checked:
            raise UsageError("a graph has no debug build as one", hint="compile its kernels")
        machine = machine_of(arch, has_openmp())
        module = Module(machine.triple)
        regions = emit_graph(plan, machine, module)
        return self._artifact(module, plan.signature, regions, machine, (target, arch, stage))

    def _require(self, stage: str | None) -> None:
        if stage is not None and stage not in STAGES:
            raise UsageError(f"cpu has no stage `{stage}`", hint="it has: " + ", ".join(STAGES))
        if self.checked and stage in ("header", "so"):
            raise UsageError(f"a debug build has no stage `{stage}`", hint="leave out `--debug`")

    def _artifact(
        self,
        module: Module,
        kernel: Kernel,
        regions: int,
        machine: Machine,
        goal: tuple[str, str, str | None],
    ) -> Artifact:
        target, arch, stage = goal
        write_entries(module, kernel, machine, self.checked)
        scratch.finish(module)
        text = module.text() + library.information(kernel, machine)
        stages: dict[str, str | bytes] = {}
        for name, data in self._compiled(text, machine, stage == "asm").items():
            stages[name] = data if name == "obj" else data.decode()
        parallel = machine.grid == "gomp"
        if stage in ("header", "so"):
            stages["header"] = library.header(kernel, machine)
        if stage == "so":
            obj = stages["obj"]
            assert isinstance(obj, bytes)
            teams = parallel and b"GOMP_parallel" in obj
            stages["so"] = library.shared_library(obj, kernel, machine, teams)
        threads = "libgomp" if parallel else "none: libgomp.so.1 is missing, grids run in order"
        launch = {
            "symbol": symbol_of(kernel),
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
        report = {"regions": regions, "threads": threads, "vector_bits": machine.vector_bits}
        return Artifact(kernel, target, arch, stages, launch, report)

    def _compiled(self, text: str, machine: Machine, asm: bool) -> dict[str, bytes]:
        """llvm, obj and where wanted asm, from the cache where they are there.

        A checked build needs no word in the key: its text differs."""
        parts = {
            "format": FORMAT,
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
