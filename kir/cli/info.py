"""kir targets, doctor: what is here, what is missing, and how to get it."""

from __future__ import annotations

import ctypes.util
import importlib.metadata
import importlib.util
import os
import platform
import shutil
from dataclasses import asdict, dataclass
from typing import Any

import typer

from kir.cli.common import Json, emit_json, table
from kir.errors import MissingExtraError


def register(app: typer.Typer) -> None:
    app.command("targets")(list_targets)
    app.command()(doctor)


def list_targets(as_json: Json = False) -> None:
    """The targets, the roads to each, their chips and stages."""
    from kir.backend import get_backend, targets

    rows: list[dict[str, Any]] = []
    for target, via in targets():
        row: dict[str, Any] = {"target": target, "via": via, "archs": [], "stages": []}
        row["missing"] = None
        try:
            manifest = get_backend(target, via).manifest
        except MissingExtraError as error:
            row["missing"] = error.hint or error.message
        else:
            row["archs"] = list(manifest.archs[target])
            row["stages"] = list(manifest.stages[target])
        rows.append(row)
    if as_json:
        emit_json(rows)
        return
    shown = [
        (
            row["target"],
            row["via"],
            " ".join(row["archs"]) or f"needs {row['missing']}",
            " ".join(row["stages"]),
        )
        for row in rows
    ]
    table(shown, ("target", "via", "archs", "--emit"))


@dataclass(frozen=True)
class Finding:
    what: str
    ok: bool
    found: str
    remedy: str


def doctor(as_json: Json = False) -> None:
    """What this machine has for KIR, and how to get what it lacks."""
    findings = [*_packages(), *_tools(), *_hardware()]
    if as_json:
        emit_json([asdict(f) for f in findings])
        return
    rows = [(f.what, "yes" if f.ok else "no", f.found if f.ok else f.remedy) for f in findings]
    table(rows, ("what", "here", "version, or how to get it"))


def _packages() -> list[Finding]:
    needed = {
        "lark": "kir", "numpy": "kir", "ml_dtypes": "kir", "islpy": "kir", "llvmlite": "kir",
        "hypothesis": "kir", "triton": "kir[triton]", "torch": "kir[torch]",
        "nvidia-cutlass-dsl": "kir[cute]", "sqlalchemy": "kir[agent]",
    }  # fmt: skip
    found = [Finding("python", True, platform.python_version(), "")]
    for name, extra in needed.items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found.append(Finding(name, False, "", f"pip install '{extra}'"))
        else:
            found.append(Finding(name, True, version, ""))
    return found


def _tools() -> list[Finding]:
    tools = {
        "cc": "a C compiler, for `--emit so`: apt-get install gcc",
        "qemu-riscv64": "runs accel code: apt-get install qemu-user",
    }
    found = []
    for name, remedy in tools.items():
        path = shutil.which(name)
        found.append(Finding(name, path is not None, path or "", remedy))
    openmp = ctypes.util.find_library("gomp")
    remedy = "spreads `grid` over cores: apt-get install libgomp1"
    found.append(Finding("OpenMP (libgomp)", bool(openmp), openmp or "", remedy))
    return found


def _hardware() -> list[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    nvidia = os.path.exists("/dev/nvidia0")  # noqa: PTH110
    amd = os.path.exists("/dev/kfd")  # noqa: PTH110
    without = "not needed to compile; Triton's interpreter runs and verifies the kernels"
    return [
        Finding("cpu", True, f"{platform.machine()}, {cores} cores usable", ""),
        Finding("NVIDIA GPU", nvidia, "/dev/nvidia0", without),
        Finding("AMD GPU", amd, "/dev/kfd", without),
    ]
