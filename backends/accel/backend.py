"""The target `accel`: scheduled IR to assembly and objects for a machine file's cores.

`load` runs an artifact in the simulator: the same LLVM IR, compiled for this computer, over the
reference implementation of the run-time interface.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kir.backend import Arrays, Artifact, Backend, Executable, Manifest
from kir.backends.accel import emit, simulator, toolchain
from kir.backends.accel.machine import Machine, find, known
from kir.backends.accel.program import Program, program
from kir.derivation import replay
from kir.dtypes import DTYPES
from kir.errors import InputDataError, MissingHardwareError, UnsupportedError, UsageError
from kir.ir import Kernel, Param, Step
from kir.plan.accel import Chip, plain, plan
from kir.specialise import evaluate, infer_dims
from kir.syntax import format_expr

TARGET = "accel"
STAGES = ("llvm", "asm", "obj")
Array = np.ndarray[Any, Any]


class AccelBackend(Backend):
    """`arch` is the name of a machine that comes with KIR, or the path of a machine file."""

    manifest = Manifest(
        name="accel",
        targets=(TARGET,),
        archs={TARGET: known()},
        stages={TARGET: STAGES},
        dtypes={TARGET: tuple(DTYPES.values())},
    )

    def default_schedule(self, kernel: Kernel, target: str, arch: str) -> tuple[Step, ...]:
        machine = find(arch)
        steps = plan(kernel, chip(machine))
        try:
            program(replay(kernel, steps)[-1][1], machine)
        except UnsupportedError:
            return plain(kernel)
        return steps

    def lower(self, kernel: Kernel, target: str, arch: str, stage: str | None = None) -> Artifact:
        if stage is not None and stage not in STAGES:
            raise UsageError(f"no stage `{stage}`", hint=f"`accel` has {', '.join(STAGES)}")
        machine = find(arch)
        made = program(kernel, machine)
        text = emit.emit(made)
        stages: dict[str, str | bytes] = {"llvm": text}
        if stage != "llvm":
            _, asm, obj = toolchain.compiled(text, machine)
            stages |= {"asm": asm, "obj": obj}
        if stage is not None:
            stages = {name: stages[name] for name in STAGES[: STAGES.index(stage) + 1]}
        return Artifact(kernel, target, arch, stages, _launch(made), _report(made))

    def load(self, artifact: Artifact) -> Executable:
        return Simulation(artifact)


def chip(machine: Machine) -> Chip:
    """What the default schedule has to know of a machine."""
    return Chip(
        engines=tuple((x.a.name, x.b.name, x.acc.name, x.m, x.n, x.k) for x in machine.matrix),
        local_bytes=machine.local.bytes,
        alignment=machine.dma.alignment,
        lanes=max(8, machine.core.vector_bits // 8),
    )


def _launch(made: Program) -> dict[str, Any]:
    def tensor(p: Param) -> dict[str, Any]:
        return {"name": p.name, "dtype": p.type.name, "shape": [format_expr(e) for e in p.shape]}

    kernel = made.kernel
    return {
        "entry": emit.ENTRY,
        "inputs": [tensor(p) for p in kernel.inputs],
        "outputs": [tensor(p) for p in kernel.outputs],
        "temporaries": [tensor(p) for p in made.temporaries],
        "dims": [d.name for d in kernel.dims],
        "phases": len(made.phases),
        "pe_count": made.machine.pe_count,
        "local_bytes": made.local_bytes,
    }


def _report(made: Program) -> dict[str, Any]:
    return {
        "machine": made.machine.name,
        "scratchpad_bytes": made.local_bytes,
        "scratchpad_capacity": made.machine.local.bytes,
        "dma_copies": made.counts.dma,
        "core_copies": made.counts.core_copies,
        "matrix_products": made.counts.mma,
        "core_products": made.counts.core_products,
    }


class Simulation(Executable):
    """A loaded artifact. `counters` are those of the last call, over all PEs."""

    def __init__(self, artifact: Artifact) -> None:
        text = artifact.stages.get("llvm")
        if not isinstance(text, str):
            raise MissingHardwareError(
                "the simulator needs the artifact's stage `llvm`", hint="lower it with all stages"
            )
        self.artifact = artifact
        self.machine = find(artifact.arch)
        self.text = text
        self.temporaries = program(artifact.kernel, self.machine).temporaries
        self.counters: simulator.Counters | None = None
        self._host: simulator.HostProgram | None = None

    def __call__(
        self,
        inputs: Arrays,
        dims: Mapping[str, int] | None = None,
        outputs: Arrays | None = None,
    ) -> dict[str, Array]:
        if self._host is None:
            self._host = simulator.HostProgram(self.text)
        job, made = self.job(inputs, dims, outputs)
        self.counters = self._host.run(job)
        return made

    def under_qemu(
        self, inputs: Arrays, dims: Mapping[str, int] | None = None, timeout: float = 60.0
    ) -> dict[str, Array]:
        """Run the machine's own instructions under `qemu-riscv64`; errors as
        `simulator.run_under_qemu`."""
        job, made = self.job(inputs, dims, None)
        self.counters = simulator.run_under_qemu(self.text, job, timeout)
        return made

    def job(
        self, inputs: Arrays, dims: Mapping[str, int] | None, outputs: Arrays | None
    ) -> tuple[simulator.Job, dict[str, Array]]:
        """What one run works on, and the outputs by name, which it writes."""
        kernel = self.artifact.kernel
        _check(inputs, kernel.inputs)
        names = {d.name for d in kernel.dims}
        given = {n: v for n, v in (dims or {}).items() if n in names}  # others are constants here
        values = infer_dims(kernel, {n: a.shape for n, a in inputs.items()}, given)
        made = {p.name: _poisoned(p.type.name, _shape(p, values)) for p in kernel.outputs}
        if outputs is not None:
            _check(outputs, kernel.outputs)
            for name, fresh in made.items():
                if outputs[name].shape != fresh.shape:
                    raise InputDataError(
                        f"the output `{name}` has the shape {outputs[name].shape},"
                        f" not {fresh.shape}"
                    )
            made = {name: outputs[name] for name in made}
        symbolic = {d.name: values[d.name] for d in kernel.dims}
        launch = self.artifact.launch
        job = simulator.Job(
            machine=self.machine,
            tensors=(
                *(np.array(inputs[p.name], copy=True) for p in kernel.inputs),
                *made.values(),
                *(_poisoned(t.type.name, _shape(t, symbolic)) for t in self.temporaries),
            ),
            dims=tuple(symbolic.values()),
            phases=int(launch["phases"]),
            local_bytes=int(launch["local_bytes"]),
        )
        return job, made


def _shape(p: Param, dims: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(int(evaluate(e, dims)) for e in p.shape)


def _poisoned(dtype: str, shape: tuple[int, ...]) -> Array:
    array = np.empty(shape, DTYPES[dtype].numpy)
    array.reshape(-1).view(np.uint8)[:] = simulator.POISON
    return array


def _check(arrays: Arrays, params: tuple[Param, ...]) -> None:
    for p in params:
        if p.name not in arrays:
            raise InputDataError(f"`{p.name}` is not given", node=p)
        given = arrays[p.name]
        if given.dtype != p.type.numpy or given.ndim != len(p.shape):
            raise InputDataError(
                f"`{p.name}` is {given.dtype} with {given.ndim} axes,"
                f" not {p.type} with {len(p.shape)}",
                node=p,
            )


BACKEND = AccelBackend()
