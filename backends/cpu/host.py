"""What this machine is, learnt without LLVM: part of the keys of compiled code, and of plans."""

from __future__ import annotations

import os
import platform
from functools import lru_cache
from pathlib import Path

TELLING = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags", "Features",
           "CPU implementer", "CPU part", "CPU variant")  # fmt: skip


@lru_cache(maxsize=1)
def identity() -> str:
    """A text that differs between processors for which code differs."""
    lines = [platform.machine()]
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as f:
            for line in f:
                if not line.strip():
                    break  # the first core's lines are enough
                if line.split(":")[0].strip() in TELLING:
                    lines.append(line.strip())
    except OSError:
        lines.append(platform.processor())
    return "\n".join(lines)


def cores() -> int:
    """Processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


@lru_cache(maxsize=1)
def caches() -> tuple[tuple[str, int], ...]:
    """(`l1`, bytes), (`l2`, bytes), (`l3`, bytes), where Linux tells them."""
    sizes: dict[str, int] = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            kind = (folder / "type").read_text(encoding="ascii").strip()
            level = int((folder / "level").read_text(encoding="ascii"))
            size = (folder / "size").read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            continue
        if kind != "Instruction" and 1 <= level <= 3 and size.endswith("K"):
            sizes[f"l{level}"] = int(size[:-1]) << 10
    return tuple(sorted(sizes.items()))
