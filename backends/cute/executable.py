"""What runs an artifact: the PTX emulator anywhere, the CUDA driver where there is a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kir.backend import Arrays, Artifact, Executable
from kir.backends.cute import ptx
from kir.backends.cute.driver import Driver
from kir.backends.cute.launch import Call, NDArray, prepare


@dataclass(frozen=True)
class EmulatedExecutable(Executable):
    """An artifact's PTX under the emulator of `ptx.py`: slow, exact about races and bounds."""

    artifact: Artifact

    def __call__(
        self,
        inputs: Arrays,
        dims: Mapping[str, int] | None = None,
        outputs: Arrays | None = None,
    ) -> dict[str, NDArray]:
        call = prepare(self.artifact, inputs, dims, outputs)
        text = self.artifact.stages["ptx"]
        assert isinstance(text, str)
        functions = ptx.parse(text)
        memory = ptx.Memory()
        placed = {p.name: _writable(call.tensors[p.name]) for p in self.artifact.kernel.inputs}
        arrays = {**call.tensors, **placed}
        addresses = {name: memory.add(array) for name, array in arrays.items()}
        for kernel in self.artifact.launch["kernels"]:
            arguments = [_argument(a, addresses, call) for a in kernel["args"]]
            for block in range(call.grid(kernel)):
                ptx.Cta(
                    functions[kernel["entry"]], arguments, kernel["block"][0], kernel["shared"],
                    block, memory,
                ).run()  # fmt: skip
        return {p.name: call.tensors[p.name] for p in self.artifact.kernel.outputs}


def _writable(array: NDArray) -> NDArray:
    """A private copy, so that a kernel that writes its input is no harm to the caller's."""
    return np.array(array, order="C")


def _argument(argument: Mapping[str, str], addresses: Mapping[str, int], call: Call) -> int:
    if "tensor" in argument:
        return addresses[argument["tensor"]]
    return call.dims[argument["dim"]]


class GpuExecutable(Executable):
    """An artifact's cubin on this machine's GPU, through the CUDA driver.

    MissingHardwareError where there is none. Written to the driver's documentation; no GPU was at
    hand to try it on.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.driver = Driver(artifact.arch)
        cubin = artifact.stages["cubin"]
        assert isinstance(cubin, bytes)
        self.functions = self.driver.load(
            cubin, {k["entry"]: k["shared"] for k in artifact.launch["kernels"]}
        )

    def __call__(
        self,
        inputs: Arrays,
        dims: Mapping[str, int] | None = None,
        outputs: Arrays | None = None,
    ) -> dict[str, NDArray]:
        call = prepare(self.artifact, inputs, dims, outputs)
        addresses: dict[str, int] = {}
        try:
            for name, array in call.tensors.items():
                addresses[name] = self.driver.allocate(array.nbytes)
                self.driver.to_device(addresses[name], array)
            for kernel in self.artifact.launch["kernels"]:
                blocks = call.grid(kernel)
                if blocks:
                    self.driver.launch(
                        self.functions[kernel["entry"]],
                        blocks,
                        kernel["block"][0],
                        kernel["shared"],
                        [_argument(a, addresses, call) for a in kernel["args"]],
                    )
            self.driver.synchronise()
            result: dict[str, Any] = {}
            for p in self.artifact.kernel.outputs:
                self.driver.to_host(call.tensors[p.name], addresses[p.name])
                result[p.name] = call.tensors[p.name]
            return result
        finally:
            for address in addresses.values():
                self.driver.free(address)
