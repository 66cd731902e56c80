"""The targets `nvidia` and `amd`, through Triton."""

from __future__ import annotations

from kir.backend import Artifact, Backend, Executable, Manifest
from kir.backends.triton.compile import ARCHS, SHARED_BYTES, STAGES, compile_all
from kir.backends.triton.host import generate
from kir.backends.triton.runtime import GpuExecutable, InterpretedExecutable
from kir.dtypes import DTYPES
from kir.errors import UnsupportedError, UsageError
from kir.ir import Kernel, Step


class TritonBackend(Backend):
    """Scheduled IR to readable Triton, compiled for NVIDIA and AMD chips with none present."""

    manifest = Manifest(
        name="triton",
        targets=("nvidia", "amd"),
        archs=ARCHS,
        stages=STAGES,
        dtypes={arch: tuple(DTYPES.values()) for archs in ARCHS.values() for arch in archs},
    )

    def default_schedule(self, kernel: Kernel, target: str, arch: str) -> tuple[Step, ...]:
        """Tiles where they have a form here; else atomic-free, else programs of scalars."""
        from kir.pipeline import schedule
        from kir.plan.gpu import STYLES, plan

        for style in STYLES:
            steps = plan(kernel, arch, style)
            try:
                generate(schedule(kernel, steps))
            except UnsupportedError:
                if style == STYLES[-1]:
                    raise
            else:
                return steps
        raise AssertionError("the last style returns or raises")

    def lower(self, kernel: Kernel, target: str, arch: str, stage: str | None = None) -> Artifact:
        """Generate Triton, and compile it unless only `source` is asked for.

        UnsupportedError where a construct has no form in Triton or a chip too little memory,
        CompileError where Triton refuses what was generated.
        """
        if arch not in ARCHS[target]:
            raise UsageError(
                f"`{target}` has no arch `{arch}`", hint="it has: " + ", ".join(ARCHS[target])
            )
        if stage is not None and stage not in STAGES[target]:
            raise UsageError(
                f"`{target}` has no stage `{stage}`", hint="it has: " + ", ".join(STAGES[target])
            )
        generated = generate(kernel)
        if stage == "source":
            return Artifact(kernel, target, arch, {"source": generated.source}, generated.plan)
        compiled = compile_all(generated, target, arch)
        for name, found in compiled.report["functions"].items():
            if found["shared_bytes"] > SHARED_BYTES[arch]:
                raise UnsupportedError(
                    f"`{name}` needs {found['shared_bytes']} bytes of shared memory; "
                    f"{arch} has {SHARED_BYTES[arch]}",
                    kernel=kernel,
                    hint="use smaller tiles, or fewer num_stages",
                )
        launch = {**generated.plan, "functions": compiled.functions}
        return Artifact(kernel, target, arch, compiled.stages, launch, compiled.report)

    def load(self, artifact: Artifact, interpret: bool = False) -> Executable:
        """On this machine's GPU, or with `interpret` under Triton's interpreter on the CPU.

        MissingHardwareError where there is no GPU of that vendor.
        """
        return InterpretedExecutable(artifact) if interpret else GpuExecutable(artifact)


BACKEND = TritonBackend()
