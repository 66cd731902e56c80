"""The backend object: NVIDIA GPUs through CuTe DSL."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import kir.errors
from kir.backend import Artifact, Backend, Executable, Manifest
from kir.backends.cute.expressions import SCALARS
from kir.backends.cute.generate import Generated, generate
from kir.errors import CompileError, KirError, MissingExtraError, UsageError
from kir.ir import Kernel, Step

ARCHS = ("sm_90a", "sm_80", "sm_100a")
STAGES = ("source", "ptx", "cubin")
COMPILE_SECONDS = 300


class CuteBackend(Backend):
    """Elementwise kernels, row reductions and 16-bit matrix products; the rest is refused."""

    manifest = Manifest(
        name="cute",
        targets=("nvidia",),
        archs={"nvidia": ARCHS},
        stages={"nvidia": STAGES},
        dtypes={"nvidia": tuple(SCALARS)},
    )

    def default_schedule(self, kernel: Kernel, target: str, arch: str) -> tuple[Step, ...]:
        from kir.plan.cute import plan

        return plan(kernel)

    def lower(self, kernel: Kernel, target: str, arch: str, stage: str | None = None) -> Artifact:
        """Source, PTX and cubin. UnsupportedError names what has no form here; CompileError holds
        the DSL's own words; MissingExtraError where `nvidia-cutlass-dsl` is not installed."""
        if arch not in ARCHS:
            raise UsageError(f"unknown arch `{arch}`", hint=f"`cute` knows {', '.join(ARCHS)}")
        if stage is not None and stage not in STAGES:
            raise UsageError(f"unknown stage `{stage}`", hint=f"it has {', '.join(STAGES)}")
        try:
            made = generate(kernel)
        except KirError as error:
            raise error.at(kernel=kernel) from None
        stages: dict[str, str | bytes] = {"source": made.source}
        launch: dict[str, Any] = dict(made.launch)
        report: dict[str, Any] = {}
        if stage != "source":
            ptx, cubin = compile_source(made, arch, kernel)
            stages |= {"ptx": ptx, "cubin": cubin}
            launch["kernels"] = [
                {"entry": entry_of(ptx, k["function"], kernel), **k} for k in launch["kernels"]
            ]
            report = read_report(ptx, cubin, launch)
        return Artifact(kernel, target, arch, stages, launch, report)

    def load(self, artifact: Artifact, interpret: bool = False) -> Executable:
        """On this machine's GPU, or with `interpret` the PTX in the emulator (`ptx.py`).

        MissingHardwareError where there is no GPU that the artifact is for; UsageError where the
        artifact was not compiled.
        """
        from kir.backends.cute.executable import EmulatedExecutable, GpuExecutable

        if "ptx" not in artifact.stages:
            raise UsageError("the artifact holds no PTX", hint="lower it without `--emit source`")
        return EmulatedExecutable(artifact) if interpret else GpuExecutable(artifact)


BACKEND = CuteBackend()


def compile_source(made: Generated, arch: str, kernel: Kernel) -> tuple[str, bytes]:
    """PTX and cubin, from a child process made for this arch."""
    if importlib.util.find_spec("cutlass") is None:
        raise MissingExtraError(
            "target `nvidia` via `cute` needs the package nvidia-cutlass-dsl",
            hint="pip install 'kir[cute]'",
        )
    with tempfile.TemporaryDirectory(prefix="kir-cute-") as folder:
        request, answer = Path(folder) / "request.json", Path(folder) / "answer.json"
        data = {
            "source": made.source,
            "host": made.host,
            "signature": made.signature,
            "arch": arch,
        }
        request.write_text(json.dumps(data))
        command = [sys.executable, "-m", "kir.backends.cute.worker", str(request), str(answer)]
        try:
            done = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, timeout=COMPILE_SECONDS,
                env=_environment(), check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise CompileError(
                f"CuTe DSL took more than {COMPILE_SECONDS} s", kernel=kernel
            ) from None
        if done.returncode or not answer.exists():
            raise CompileError(
                f"CuTe DSL refused the generated source:\n{_tail(done.stderr or done.stdout)}",
                hint="this is a fault of the backend; `--emit source` shows the source",
                kernel=kernel,
            )
        found = json.loads(answer.read_text())
    ptx, cubin = found["ptx"], base64.b64decode(found["cubin"])
    target = re.search(r"^\.target (\w+)", ptx, re.M)
    if target is None or target[1] != arch:
        got = target[1] if target else "nothing"
        raise CompileError(f"CuTe DSL compiled for {got}, not for {arch}", kernel=kernel)
    return ptx, cubin


def _environment() -> dict[str, str]:
    """The parent's environment, with `kir` importable as it is here and no DSL setting of the
    user's (they change the code that comes out)."""
    root = str(Path(kir.errors.__file__).absolute().parent.parent)
    env = {k: v for k, v in os.environ.items() if not k.startswith("CUTE_DSL_")}
    env["PYTHONPATH"] = os.pathsep.join(x for x in (root, env.get("PYTHONPATH", "")) if x)
    return env


def _tail(text: str) -> str:
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    return "\n".join(plain.strip().splitlines()[-12:])


def entry_of(ptx: str, function: str, kernel: Kernel) -> str:
    """The PTX entry that the DSL made of a kernel function: it adds the arguments' types."""
    names: list[str] = re.findall(r"^\.visible \.entry (\w+)\(", ptx, re.M)
    found = [n for n in names if n.startswith(f"kernel_cutlass_{function}_ptr")]
    found = found or [n for n in names if n.startswith(f"kernel_cutlass_{function}_")]
    if len(found) != 1:
        raise CompileError(f"no single PTX entry for `{function}` among {names}", kernel=kernel)
    return found[0]


def read_report(ptx: str, cubin: bytes, launch: dict[str, Any]) -> dict[str, Any]:
    """What can be read off without NVIDIA's tools: sizes, and shared memory as launched."""
    return {
        "status": "compiled",
        "ptx_lines": ptx.count("\n"),
        "cubin_bytes": len(cubin),
        "tensor_core_instructions": len(re.findall(r"^\s+(?:@\S+ )?mma\.sync", ptx, re.M)),
        "kernels": [
            {"entry": k["entry"], "shared_bytes": k["shared"], "threads": k["block"][0]}
            for k in launch["kernels"]
        ],
    }
