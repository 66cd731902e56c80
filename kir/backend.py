"""What a backend is: a manifest, a default schedule, `lower`, and `load` where it can run.

Built-in backends stand in the table below; third parties add theirs under the entry-point group
`kir.backends` (name = target, value = `module:OBJECT`).
"""

from __future__ import annotations

import importlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any

import numpy as np

from kir.dtypes import DType
from kir.errors import UsageError
from kir.graph_plan import GraphPlan
from kir.ir import Kernel, Step

Arrays = Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Manifest:
    """What a backend has. `archs[0]` is the default where the machine has none of them;
    `stages` are the names `--emit` takes, in the order in which they are made. `graphs`: whole
    graphs become one artifact (`lower_graph`); else their kernels are called one by one."""

    name: str
    targets: tuple[str, ...]
    archs: Mapping[str, tuple[str, ...]]
    stages: Mapping[str, tuple[str, ...]]
    dtypes: Mapping[str, tuple[DType, ...]]
    graphs: bool = False


@dataclass(frozen=True)
class Artifact:
    """A compiled kernel: every stage as text or bytes, how to launch it, what was reported.

    `launch` is plain JSON data, enough to run the artifact with no compiler at hand; `report` is
    what the compiler said (registers, spills, shared memory in bytes...), also plain JSON.
    """

    kernel: Kernel
    target: str
    arch: str
    stages: Mapping[str, str | bytes]
    launch: Mapping[str, Any] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)

    def describe(self) -> str:
        return json.dumps({"launch": dict(self.launch), "report": dict(self.report)}, indent=2)


class Executable(ABC):
    """A loaded artifact. Call it with inputs by name; it gives the outputs by name."""

    @abstractmethod
    def __call__(
        self,
        inputs: Arrays,
        dims: Mapping[str, int] | None = None,
        outputs: Arrays | None = None,
    ) -> dict[str, np.ndarray[Any, Any]]:
        """Run on row-major arrays of exactly the declared dtypes and shapes.

        `dims` gives the dims that no input's shape determines. `outputs`, where given, are
        written in place (preallocated by the caller); else fresh arrays are made.
        """


class Backend(ABC):
    manifest: Manifest

    @abstractmethod
    def default_schedule(self, kernel: Kernel, target: str, arch: str) -> tuple[Step, ...]:
        """The derivation that takes the spec `kernel` to what this backend runs well."""

    @abstractmethod
    def lower(self, kernel: Kernel, target: str, arch: str, stage: str | None = None) -> Artifact:
        """Compile scheduled IR; up to `stage` where given, else all stages."""

    def lower_graph(
        self, plan: GraphPlan, target: str, arch: str, stage: str | None = None
    ) -> Artifact:
        """Compile a graph as one; the artifact's kernel is the graph's signature."""
        raise UsageError(f"the road `{self.manifest.name}` compiles kernels, not graphs")

    def debug(self) -> Backend:
        """The same road with run-time checks of indices that are read from tensors: executables
        raise EvaluationError. UsageError where the road has no such builds."""
        raise UsageError(
            f"the road `{self.manifest.name}` has no debug builds",
            hint="use `--target cpu`, or `kir.interpret`",
        )

    @abstractmethod
    def load(self, artifact: Artifact) -> Executable:
        """Make it runnable in this process; MissingHardwareError where it cannot be."""

    def with_threads(self, artifact: Artifact, threads: int) -> Executable:
        """As `load`, with a number of threads; UsageError where the road has no say in it."""
        raise UsageError(
            f"the road `{self.manifest.name}` takes no number of threads",
            hint="leave out `threads`, or use the target cpu",
        )


# (target, via) -> where the backend object lives; the first row of a target is its default road
BUILTIN: dict[tuple[str, str], str] = {
    ("cpu", "llvm"): "kir.backends.cpu:BACKEND",
    ("nvidia", "triton"): "kir.backends.triton:BACKEND",
    ("nvidia", "cute"): "kir.backends.cute:BACKEND",
    ("amd", "triton"): "kir.backends.triton:BACKEND",
    ("accel", "llvm"): "kir.backends.accel:BACKEND",
}


def targets() -> dict[tuple[str, str], str]:
    """All (target, via) pairs known here, third-party entry points included."""
    table = dict(BUILTIN)
    for point in entry_points(group="kir.backends"):
        table.setdefault((point.name, point.value.split(":")[0]), point.value)
    return table


def get_backend(target: str, via: str | None = None) -> Backend:
    """The backend for a target; UsageError where there is none, MissingExtraError on import."""

    def roads_of(known: dict[tuple[str, str], str]) -> list[tuple[str, str]]:
        return [key for key in known if key[0] == target and via in (None, key[1])]

    table = BUILTIN  # the first rows: entry points, which are slow to find, only add to them
    rows = roads_of(table)
    if not rows:
        table = targets()
        rows = roads_of(table)
    if not rows:
        known = ", ".join(dict.fromkeys(t for t, _ in table))
        roads = ", ".join(v for t, v in table if t == target)
        if roads:
            raise UsageError(f"target `{target}` has no road `{via}`", hint=f"it has: {roads}")
        raise UsageError(f"unknown target `{target}`", hint=f"the targets are: {known}")
    module, name = table[rows[0]].split(":")
    found: Backend = getattr(importlib.import_module(module), name)
    return found
