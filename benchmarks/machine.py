"""What figures depend on, besides the code: this machine and the versions."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from kir.backends.cpu.archs import machine_of
from kir.backends.llvm.compile import versions

ROOT = Path(__file__).resolve().parent.parent


def description() -> dict[str, Any]:
    """What figures depend on: CPU, cores, load, versions, commit."""
    name = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = [
            x.split(":")[1].strip() for x in info.read_text().splitlines() if "model name" in x
        ]
        name = found[0] if found else name
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True,
                            cwd=ROOT, check=False).stdout.strip()  # fmt: skip
    return {"cpu": name, "llvm_cpu": machine_of("native").cpu, "cores": os.cpu_count(),
            "load": round(os.getloadavg()[0], 2), "commit": commit, "numpy": np.__version__,
            **versions()}  # fmt: skip
