"""A process that runs generated Triton under Triton's interpreter, on NumPy arrays.

    python -m kir.backends.triton.worker

Requests and answers are JSON, one per line, on standard input and output; arrays travel as `.npy`
files of their storage type. TRITON_INTERPRET=1 must be set before triton is imported, which is
why this is a process of its own.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any, TextIO

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch

from kir.backends.triton.compile import load_module
from kir.backends.triton.execute import number, run_plan
from kir.backends.triton.interpreter import prepare, repair
from kir.backends.triton.types import TYPES


def tensor(array: Any, dtype: str) -> torch.Tensor:
    """A torch tensor on the memory of an array of the storage type."""
    wanted = getattr(torch, TYPES[dtype].torch)
    if wanted is torch.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


class Interpreter:
    """The device of `run_plan`: Triton's interpreter on CPU tensors."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def alloc(self, dtype: str, shape: tuple[int, ...], fill: str | None) -> torch.Tensor:
        from kir.dtypes import DTYPES

        array = np.zeros(shape, DTYPES[dtype].numpy)
        if fill is None:  # poison: what is read before it is written shows
            array.view(np.uint8).fill(0x7F)
            if dtype == "bool":
                array.fill(True)
        else:
            array.fill(number(fill))
        return tensor(storage(array, dtype), dtype)

    def launch(self, function: str, grid: int, arguments: list[Any]) -> None:
        getattr(self.module, function)[(grid,)](*arguments)


def storage(array: Any, dtype: str) -> Any:
    """The array as its storage type (bf16 as int16, fp8 as uint8, bool as int8)."""
    name = TYPES[dtype].torch
    return array.view(np.int16 if name == "bfloat16" else np.dtype(name))


def serve(requests: TextIO, answers: TextIO) -> None:
    repair()
    modules: dict[str, Any] = {}
    for line in requests:
        request = json.loads(line)
        try:
            run(request, modules)
            answer: dict[str, Any] = {"ok": True}
        except Exception as error:  # noqa: BLE001 - the process must outlive a kernel's failure, and report it
            answer = {"ok": False, "error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def run(request: dict[str, Any], modules: dict[str, Any]) -> None:
    folder = Path(request["folder"])
    if request["module"] not in modules:
        source = (folder / "source.py").read_text()
        modules[request["module"]] = prepare(load_module(source, folder))
    plan = request["plan"]
    arrays = {
        t["name"]: np.load(folder / f"{t['name']}.npy", allow_pickle=False)
        for t in (*plan["inputs"], *plan["outputs"])
    }
    tensors = {
        t["name"]: tensor(arrays[t["name"]], t["dtype"])
        for t in (*plan["inputs"], *plan["outputs"])
    }
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        run_plan(plan, tensors, request["dims"], Interpreter(modules[request["module"]]))
    for t in plan["outputs"]:
        np.save(folder / f"{t['name']}.npy", arrays[t["name"]])


if __name__ == "__main__":
    pipe = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what kernels print is no answer
    serve(sys.stdin, pipe)
