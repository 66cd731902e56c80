"""A modelled time for GPUs that are not here: a first analytic model over the compiled artifact.

It is a bound by throughput and latency in the manner of Hong and Kim (An Analytical Model for a GPU
Architecture with Memory-level and Thread-level Parallelism Awareness, ISCA 2009) and Volkov
(Understanding Latency Hiding on GPUs, Berkeley 2016), on counts of `ttgir.py`, what the assembler
reports, and the numbers of `chips.py`. For each launch of P programs, of which R fit a core:

- `launch`: its overhead (a few microseconds: Zhang et al., Understanding the Overheads of Launching
  CUDA Kernels, ICPP 2019).
- `matrix`, `vector`, `shared`: what the busiest core, with ceil(P / cores) programs, has for its
  matrix unit, its instruction slots and its shared memory, over their rates.
- `latency`: rounds of R programs on a core, one after the other, each as long as one program alone
  waits: for loads in turn, for reductions across lanes, for products. Loads that a pipeline of n
  stages began before are waited for the n-th part.
- `l2`: bytes between the cores and L2, in whole sectors (CUDA C++ Best Practices Guide, coalesced
  access), over its rate. `spills`: registers in memory, written and read in each iteration of the
  innermost loop, beside them.
- `memory`: bytes of each tensor that is touched, once; what is read again comes from L2 but for the
  share of all that a launch touches that does not fit.

R is the least that registers, shared memory, warps and program slots allow (CUDA C++ Programming
Guide, hardware multithreading; AMD ISA guides, wave limits). The time of a launch is its overhead
and the greatest of the others; a kernel's, their sum. The model knows no bank conflicts, no clock
that gives way, no overlap of launches: it ranks schedules, and it has not met a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kir.agent.chips import Gpu, gpu
from kir.agent.ttgir import Counts, count
from kir.backend import Artifact
from kir.errors import UnsupportedError

SPLIT = "// "
"""What Triton's stages of several functions are told apart by."""


@dataclass(frozen=True)
class Modelled:
    """Seconds by what takes them, of all launches; `seconds` is the kernel's. `facts` is what the
    model worked from: occupancy, registers, shared memory, spills, bytes, operations."""

    seconds: float
    parts: Mapping[str, float]
    facts: Mapping[str, float]

    @property
    def bottleneck(self) -> str:
        return max(self.parts, key=lambda name: self.parts[name])


@dataclass
class _Launches:
    """A device that only notes what is launched on tensors of which size."""

    launched: list[tuple[str, int, list[Any]]] = field(default_factory=list)

    def alloc(self, dtype: str, shape: tuple[int, ...], fill: str | None) -> int:
        from kir.dtypes import DTYPES

        return math.prod(shape) * DTYPES[dtype].bytes

    def launch(self, function: str, grid: int, arguments: list[Any]) -> None:
        self.launched.append((function, grid, arguments))


def modelled(artifact: Artifact) -> Modelled:
    """The model's view of an artifact of Triton's whose dims are all constants.

    UnsupportedError where an artifact was made by another road, or for a chip that is not known.
    """
    chip = gpu(artifact.arch)
    if "ttgir" not in artifact.stages:
        raise UnsupportedError(
            "only what Triton compiled can be modelled", hint="leave out `--via`"
        )
    from kir.backends.triton.execute import run_plan, shape_of

    plan = artifact.launch
    noted = _Launches()
    sizes = {t["name"]: noted.alloc(t["dtype"], shape_of(t, {}), None)
             for t in (*plan["inputs"], *plan["outputs"])}  # fmt: skip
    run_plan(plan, sizes, {}, noted)
    parts = dict.fromkeys(
        ("launch", "matrix", "vector", "shared", "latency", "l2", "spills", "memory"), 0.0
    )
    facts: dict[str, float] = {"launches": len(noted.launched)}
    seconds = 0.0
    known: dict[tuple[str, int], tuple[float, dict[str, float]]] = {}
    texts = _by_function(str(artifact.stages["ttgir"]))
    for function, grid, arguments in noted.launched:
        key = (function, grid)
        if key not in known:
            counts = count(texts[function], grid, chip.warp)[function]
            report = artifact.report["functions"][function]
            names = [a["parameter"] for a in plan["functions"][function]["arguments"]]
            held = dict(zip(names, arguments, strict=True))
            known[key] = _launch(chip, artifact.target, counts, grid, report, held, facts)
        taken, found = known[key]
        seconds += taken
        for name, value in found.items():
            parts[name] += value
    return Modelled(seconds, parts, {k: round(v, 4) for k, v in facts.items()})


def _by_function(text: str) -> dict[str, str]:
    """The stage's text of each function: a module each, one after the other."""
    import re

    modules = re.split(r"(?m)^// (?=\w+$)", text)
    found: dict[str, str] = {}
    for module in modules:
        function = re.search(r"tt\.func public @(\w+)\(", module)
        if function:
            found[function[1]] = module
    return found


def _launch(
    chip: Gpu,
    target: str,
    counts: Counts,
    grid: int,
    report: Mapping[str, Any],
    held: Mapping[str, Any],
    facts: dict[str, float],
) -> tuple[float, dict[str, float]]:
    """Seconds of one launch, and by part; what it is made of is noted in `facts`."""
    warps = int(report["num_warps"])
    resident = occupancy(chip, target, warps, report)
    busiest = math.ceil(grid / chip.cores)
    clock = chip.clock
    lanes = chip.fma / chip.warp
    vector = counts.vector + counts.doubles * (chip.fma / chip.doubles - 1)
    matrix = sum(done / _matrix_rate(chip, bits) for bits, done in counts.matrix.items())
    chain = counts.stalls + counts.waits * chip.latency
    chain += counts.ahead * chip.latency / max(1, int(report.get("num_stages", 1)))
    spilled = spills(report) * warps * chip.warp * 2 * counts.inner * grid
    moved = {name: amount * grid for name, amount in counts.moved.items()}
    parts = {
        "launch": chip.launch,
        "matrix": busiest * matrix * chip.cores,
        "vector": busiest * vector / lanes / clock,
        "shared": busiest * counts.shared / chip.ports / clock,
        "latency": math.ceil(busiest / resident) * chain / clock,
        "l2": sum(moved.values()) / chip.l2_rate,
        "spills": spilled / chip.l2_rate,
        "memory": _from_memory(chip, moved, held) / chip.rate,
    }
    facts |= {
        "occupancy": max(facts.get("occupancy", 0.0), resident * warps / chip.warps),
        "registers": max(facts.get("registers", 0.0), registers(target, report)),
        "shared_bytes": max(facts.get("shared_bytes", 0.0), float(report["shared_bytes"])),
        "spilled_bytes": max(facts.get("spilled_bytes", 0.0), spills(report)),
        "l2_bytes": facts.get("l2_bytes", 0.0) + sum(moved.values()),
        "memory_bytes": facts.get("memory_bytes", 0.0) + _from_memory(chip, moved, held),
        "matrix_operations": facts.get("matrix_operations", 0.0)
        + grid * sum(counts.matrix.values()),
        "vector_instructions": facts.get("vector_instructions", 0.0) + grid * counts.vector,
    }
    busy = {name: value for name, value in parts.items() if name not in ("launch", "l2", "spills")}
    return chip.launch + max(*busy.values(), parts["l2"] + parts["spills"]), parts


def _matrix_rate(chip: Gpu, bits: int) -> float:
    """Operations per second of the matrix unit; of operands it does not take, those of the next
    wider ones."""
    rates = [rate for width, rate in sorted(chip.matrix.items()) if width >= bits]
    return rates[0] if rates else 2.0 * chip.fma * chip.cores * chip.clock


def _from_memory(chip: Gpu, moved: Mapping[str, float], held: Mapping[str, Any]) -> float:
    """Bytes from and to memory: each tensor that is touched once, and of what is touched again the
    share that L2 cannot hold."""
    once = {name: min(amount, float(held.get(name, amount) or amount))
            for name, amount in moved.items()}  # fmt: skip
    touched = sum(once.values())
    lost = max(0.0, 1.0 - chip.l2 / touched) if touched else 0.0
    return touched + lost * (sum(moved.values()) - touched)


def registers(target: str, report: Mapping[str, Any]) -> float:
    """Of a thread, in words."""
    if target == "amd":
        return float(report.get("vgpr_count", 0) + report.get("agpr_count", 0))
    return float(report.get("registers", 0))


def spills(report: Mapping[str, Any]) -> float:
    """Bytes of a thread that lie in memory."""
    known = ("stack_bytes", "local_bytes", "private_segment_fixed_size")
    return float(max((report.get(k, 0) for k in known), default=0))


def occupancy(chip: Gpu, target: str, warps: int, report: Mapping[str, Any]) -> int:
    """Programs that a core holds at once, one at the least."""
    words = max(1.0, registers(target, report))
    words = math.ceil(words / chip.unit) * chip.unit
    shared = int(report["shared_bytes"])
    limits = (
        chip.programs,
        chip.warps // warps,
        int(chip.registers // (words * warps * chip.warp)),
        chip.shared // shared if shared else chip.programs,
    )
    return max(1, min(limits))
