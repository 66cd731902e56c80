"""Running artifacts: under Triton's interpreter in a child process, or on a GPU."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from kir.backend import Arrays, Artifact, Executable
from kir.backends.triton.execute import number, run_plan, shape_of
from kir.backends.triton.types import held
from kir.errors import EvaluationError, InputDataError, MissingExtraError, MissingHardwareError
from kir.ir import Param
from kir.specialise import infer_dims

NDArray = np.ndarray[Any, Any]


def storage(array: NDArray, p: Param) -> NDArray:
    """An array as the type it has in memory (bf16 as int16, fp8 as uint8, bool as int8)."""
    name = held(p.type).torch
    return array.view(np.int16 if name == "bfloat16" else np.dtype(name))


def checked(p: Param, array: NDArray | None, artifact: Artifact) -> NDArray:
    """The array, in rows and of the declared dtype; InputDataError otherwise."""
    if array is None:
        raise InputDataError(f"`{p.name}` is not given", node=p, kernel=artifact.kernel)
    if array.dtype != p.type.numpy:
        raise InputDataError(
            f"`{p.name}` is an array of {array.dtype}, not {p.type}", node=p, kernel=artifact.kernel
        )
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)


@dataclass(frozen=True)
class Call:
    """One call, its shapes known: inputs in memory order, outputs to be written."""

    inputs: dict[str, NDArray]
    outputs: dict[str, NDArray]
    dims: dict[str, int]

    @staticmethod
    def of(
        artifact: Artifact, inputs: Arrays, dims: Mapping[str, int] | None, given: Arrays | None
    ) -> Call:
        kernel = artifact.kernel
        arrays = {p.name: checked(p, inputs.get(p.name), artifact) for p in kernel.inputs}
        names = {d.name for d in kernel.dims}
        wanted = {n: v for n, v in (dims or {}).items() if n in names}
        bound = infer_dims(kernel, {n: a.shape for n, a in arrays.items()}, wanted)
        outputs: dict[str, NDArray] = {}
        for p, t in zip(kernel.outputs, artifact.launch["outputs"], strict=True):
            shape = shape_of(t, bound)
            if given is None:
                outputs[p.name] = np.empty(shape, p.type.numpy)
                continue
            array = checked(p, given.get(p.name), artifact)
            if array is not given[p.name] and not np.shares_memory(array, given[p.name]):
                raise InputDataError(f"`{p.name}` is not contiguous in row-major order", node=p)
            if array.shape != shape:
                raise InputDataError(f"`{p.name}` has shape {array.shape}, not {shape}", node=p)
            outputs[p.name] = array
        return Call(arrays, outputs, bound)


class _Worker:
    """A child process with Triton's interpreter in it, started when first needed."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.lock = threading.Lock()

    def start(self) -> subprocess.Popen[str]:
        if self.process is None or self.process.poll() is not None:
            missing = [m for m in ("triton", "torch") if find_spec(m) is None]
            if missing:
                raise MissingExtraError(
                    f"Triton's interpreter needs {' and '.join(missing)}",
                    hint="pip install 'kir[triton]'",
                )
            environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
            path = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
            environment["PYTHONPATH"] = os.pathsep.join(p for p in path if p)
            self.process = subprocess.Popen(
                [sys.executable, "-m", "kir.backends.triton.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=environment,
            )
            atexit.register(self.stop)
        return self.process

    def ask(self, request: Mapping[str, Any]) -> None:
        """Have a request served; EvaluationError where the kernel failed or the process died."""
        with self.lock:
            process = self.start()
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        if not line:
            code = process.wait()
            raise EvaluationError(
                f"Triton's interpreter ended with status {code} while running the kernel",
                hint="an index read from a tensor may be out of range",
            )
        answer = json.loads(line)
        if not answer["ok"]:
            raise EvaluationError(f"Triton's interpreter failed: {answer['error']}")

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            self.process.wait(timeout=10)


_WORKER = _Worker()


@dataclass
class InterpretedExecutable(Executable):
    """An artifact under Triton's interpreter. Needs only its source and its plan."""

    artifact: Artifact
    folder: tempfile.TemporaryDirectory[str] = field(
        default_factory=lambda: tempfile.TemporaryDirectory(prefix="kir-interpret-")
    )

    def __post_init__(self) -> None:
        source = self.artifact.stages["source"]
        assert isinstance(source, str)
        (Path(self.folder.name) / "source.py").write_text(source)

    def __call__(
        self,
        inputs: Arrays,
        dims: Mapping[str, int] | None = None,
        outputs: Arrays | None = None,
    ) -> dict[str, NDArray]:
        call = Call.of(self.artifact, inputs, dims, outputs)
        kernel, folder = self.artifact.kernel, Path(self.folder.name)
        for p in kernel.params:
            array = (call.inputs | call.outputs)[p.name]
            np.save(folder / f"{p.name}.npy", storage(array, p), allow_pickle=False)
        _WORKER.ask({
            "folder": str(folder), "module": str(folder), "plan": dict(self.artifact.launch),
            "dims": call.dims,
        })  # fmt: skip
        for p in kernel.outputs:
            made = np.load(folder / f"{p.name}.npy", allow_pickle=False)
            storage(call.outputs[p.name], p)[...] = made
        return call.outputs


@dataclass
class GpuExecutable(Executable):
    """An artifact on this machine's GPU, through torch's tensors and Triton's launcher."""

    artifact: Artifact

    def __post_init__(self) -> None:
        from kir.backends.triton.compile import ast_source, gpu_target, load_module, options

        triton = _gpu_triton(self.artifact)
        self.folder = tempfile.TemporaryDirectory(prefix="kir-triton-")
        source = self.artifact.stages["source"]
        assert isinstance(source, str)
        module = load_module(source, Path(self.folder.name))
        target = gpu_target(self.artifact.target, self.artifact.arch)
        self.functions = {
            name: triton.compile(
                ast_source(module, name, launch), target=target, options=options(launch)
            )
            for name, launch in self.artifact.launch["functions"].items()
        }

    def __call__(
        self,
        inputs: Arrays,
        dims: Mapping[str, int] | None = None,
        outputs: Arrays | None = None,
    ) -> dict[str, NDArray]:
        import torch

        call = Call.of(self.artifact, inputs, dims, outputs)
        tensors: dict[str, Any] = {}
        for p in self.artifact.kernel.params:
            array = storage((call.inputs | call.outputs)[p.name], p)
            moved = torch.from_numpy(array).to("cuda")
            tensors[p.name] = moved.view(torch.bfloat16) if p.type.name == "bf16" else moved
        run_plan(self.artifact.launch, tensors, call.dims, self)
        torch.cuda.synchronize()
        for p in self.artifact.kernel.outputs:
            made = tensors[p.name]
            made = made.view(torch.int16) if p.type.name == "bf16" else made
            storage(call.outputs[p.name], p)[...] = made.cpu().numpy()
        return call.outputs

    def alloc(self, dtype: str, shape: tuple[int, ...], fill: str | None) -> Any:
        import torch

        from kir.dtypes import DTYPES

        array = np.zeros(shape, DTYPES[dtype].numpy)
        if fill is not None:
            array.fill(number(fill))
        kind = held(DTYPES[dtype]).torch
        moved = torch.from_numpy(array.view(np.int16 if kind == "bfloat16" else np.dtype(kind))).to(
            "cuda"
        )
        return moved.view(torch.bfloat16) if kind == "bfloat16" else moved

    def launch(self, function: str, grid: int, arguments: list[Any]) -> None:
        self.functions[function][(grid, 1, 1)](*arguments)


def _gpu_triton(artifact: Artifact) -> Any:
    """Triton, where this machine has a GPU of the artifact's vendor."""
    try:
        import torch
        import triton
    except ImportError as error:
        raise MissingExtraError(
            "running on a GPU needs torch and triton", hint="pip install 'kir[triton]'"
        ) from error
    vendor = "amd" if torch.version.hip else "nvidia"
    if not torch.cuda.is_available() or vendor != artifact.target:
        raise MissingHardwareError(
            f"this machine has no {artifact.target} GPU that torch can use",
            hint="the artifact is compiled; Triton's interpreter runs it on the CPU "
            "(`kir verify --target " + artifact.target + "`)",
        )
    return triton
