"""The main job on real input, in a few minutes: `make demo`.

Checks, verifies, runs, lowers for every target and tunes; ends in a table of what came out. Each
step is the command that a user would type, and is printed before it runs.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EXAMPLES = Path(__file__).parent
KIR = [sys.executable, "-m", "kir"]


STEPS = (
    ("check, on symbolic shapes", "check {softmax} {matmul}"),
    ("run on the CPU", "run {softmax} --shape M=4096,N=4096"),
    ("verify on the CPU", "verify {softmax} --target cpu"),
    ("verify on Triton's interpreter", "verify {softmax} --target nvidia --examples 5"),
    ("lower to a shared library", "lower {softmax} --emit so -o {out}/softmax.so"),
    ("lower to PTX by Triton", "lower {softmax} --target nvidia --emit ptx -o {out}/softmax.ptx"),
    (
        "lower to PTX by CuTe DSL",
        "lower {softmax} --target nvidia --via cute --arch sm_90a --emit ptx -o {out}/cute.ptx",
    ),
    (
        "lower to an AMD code object",
        "lower {softmax} --target amd --arch gfx942 --emit hsaco -o {out}/softmax.hsaco",
    ),
    ("lower to RISC-V vectors", "lower {softmax} --target accel --emit asm -o {out}/softmax.s"),
    (
        "bf16 matmul to PTX (wgmma)",
        "lower {matmul} --target nvidia --arch sm_90 --emit ptx -o {out}/matmul.ptx",
    ),
    ("tune on the CPU", "tune {softmax} --shape M=1024,N=1024 --budget 60s --store {store} --json"),
    ("replay what it found", "replay {store} {best}"),
)


def main() -> int:
    rows: list[tuple[str, str, str]] = []
    with tempfile.TemporaryDirectory(prefix="kir-demo-") as folder:
        values = {
            "softmax": str(EXAMPLES / "softmax.kir"),
            "matmul": str(EXAMPLES / "matmul_bf16.kir"),
            "out": folder,
            "store": f"sqlite:///{folder}/tune.db",
            "best": "1",
        }
        for what, command in STEPS:
            line = command.format(**values)
            print(f"\n$ kir {line}", flush=True)
            start = time.monotonic()
            done = subprocess.run([*KIR, *shlex.split(line)], stdout=subprocess.PIPE, text=True)
            seconds = time.monotonic() - start
            shown = done.stdout
            if command.startswith("tune") and done.returncode == 0:
                found = json.loads(done.stdout)
                values["best"] = str(found["node"])
                shown = (
                    f"{found['derivation']}\n{found['evaluations']} variants tried; the best runs "
                    f"at {found['speedup']:.2f}x the default schedule, re-timed on fresh inputs\n"
                )
            print(shown, end="")
            outcome = "ok" if done.returncode == 0 else f"FAILED, exit code {done.returncode}"
            rows.append((what, outcome, f"{seconds:.1f} s"))
        files = sorted(Path(folder).iterdir())
        rows += [("made", path.name, f"{path.stat().st_size:,} bytes") for path in files]
    width = max(len(what) for what, _, _ in rows)
    lines = (f"{what:<{width}}  {outcome:<24}  {note}" for what, outcome, note in rows)
    print("\n" + "\n".join(lines))
    return 1 if any(outcome.startswith("FAILED") for _, outcome, _ in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
