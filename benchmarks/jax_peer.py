"""JAX as a peer: a worker process with an interpreter that has it, one for each thread count."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.suite import Case
from kir.ir import Param
from kir.peers import Peer

WORKER = Path(__file__).with_name("jax_worker.py")


@dataclass
class Jax:
    """Workers of `python`, started when first needed. Its times are the workers' own."""

    python: str = sys.executable
    cpu_time: bool = False
    _workers: dict[int, subprocess.Popen[str]] = field(default_factory=dict)

    def missing(self) -> str:
        """Why there is no JAX; empty where there is one."""
        done = subprocess.run([self.python, "-c", "import jax"], capture_output=True, check=False)
        return "" if done.returncode == 0 else f"jax is not installed for {self.python}"

    def peer(self, case: Case, threads: int, arrays: Mapping[str, Any], want: list[Any]) -> Peer:
        """The case in JAX; its results are compared with `want` by the sum of absolute values."""
        kernel = case.kernel()
        with tempfile.TemporaryDirectory() as folder:
            inputs = [self._saved(Path(folder), p, arrays[p.name]) for p in kernel.inputs]
            answer = self._ask(threads, {
                "function": case.function.__name__, "dims": dict(case.dims),
                "kernel": case.kernel_name, "inputs": inputs,
            })  # fmt: skip
        if answer is None:
            return Peer(None, why="the worker failed")
        for got, wanted in zip(answer["sums"], want, strict=True):
            total = float(np.abs(wanted).sum())
            if not abs(got - total) <= 0.02 * (1 + total):
                return Peer(None, why=f"another result: {got} for {total}")
        return Peer(_Timed(self, threads), answer["seconds"])

    def _saved(self, folder: Path, p: Param, array: Any) -> list[str]:
        path = folder / f"{p.name}.npy"
        np.save(path, array.view(np.uint16) if p.type.name == "bf16" else array)
        return [str(path), p.type.name]

    def _ask(self, threads: int, request: dict[str, Any]) -> dict[str, Any] | None:
        worker = self._workers.get(threads)
        if worker is None or worker.poll() is not None:
            worker = self._workers[threads] = subprocess.Popen(
                [self.python, str(WORKER), str(threads)], text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        assert worker.stdin is not None and worker.stdout is not None
        try:
            worker.stdin.write(json.dumps(request) + "\n")
            worker.stdin.flush()
        except BrokenPipeError:
            return None
        line = worker.stdout.readline()
        found: dict[str, Any] | None = json.loads(line) if line else None
        return found

    def close(self) -> None:
        for worker in self._workers.values():
            worker.kill()
            worker.communicate()


@dataclass(frozen=True)
class _Timed:
    """A function that is timed elsewhere: see `kir.timing.interleaved`."""

    jax: Jax
    threads: int

    def __call__(self) -> object:
        return self.seconds(1)

    def seconds(self, count: int) -> float:
        answer = self.jax._ask(self.threads, {"count": count, "cpu_time": self.jax.cpu_time})
        return float("nan") if answer is None else float(answer["seconds"])
