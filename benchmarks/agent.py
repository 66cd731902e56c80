"""What a search finds, on an idle machine: `python -m benchmarks.agent loops|default|policies`.

- `loops`: from canonical loops, matmul 512, a 3x3 convolution and softmax: the share of the default
  schedule's speed that is reached (wanted: 0.9).
- `default`: from the default schedule, twelve kernels: the geometric mean of what is gained, timed
  again on fresh inputs (wanted: 1.1).
- `policies`: every policy on one kernel, the same budget, several seeds: the median and spread.

Each prints a table and, with --json, writes the figures beside the machine's description. The
figures of a search are those re-timed after it; evaluations per second and where the time went are
told with them.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.machine import description
from kir.agent.graph.policy import POLICIES
from kir.agent.store import Store
from kir.agent.tune import provenance, tune
from kir.syntax import parse_kernel

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
Case = tuple[str, dict[str, int]]
LOOPS: tuple[Case, ...] = (
    ("matmul", {"M": 512, "N": 512, "K": 512}),
    ("conv2d", {"N": 1, "C": 64, "O": 64, "H": 56, "W": 56, "R": 3, "S": 3, "pad": 1}),
    ("softmax", {"M": 1024, "N": 1024}),
)
DEFAULT: tuple[Case, ...] = (
    *LOOPS,
    ("layer_norm", {"M": 1024, "N": 768}),
    ("rms_norm", {"M": 1024, "N": 1024}),
    ("gelu", {"M": 1024, "N": 1024}),
    ("log_softmax", {"M": 512, "N": 4096}),
    ("batched_matmul", {"B": 16, "M": 128, "N": 128, "K": 64}),
    ("max_pool", {"N": 1, "C": 64, "H": 56, "W": 56}),
    ("cross_entropy", {"M": 512, "N": 1024}),
    ("argmax", {"M": 1024, "N": 1024}),
    ("cumsum", {"M": 1024, "N": 1024}),
)


def searched(case: Case, folder: Path, **options: Any) -> dict[str, Any]:
    """One search with a store of its own."""
    name, wanted = case
    kernel = parse_kernel((EXAMPLES / f"{name}.kir").read_text(encoding="utf-8"))
    rest = {d.name: 64 for d in kernel.dims if d.default is None}
    dims = rest | {k: v for k, v in wanted.items() if any(d.name == k for d in kernel.dims)}
    label = "-".join(str(v) for v in options.values())
    url = f"sqlite:///{folder}/{name}-{label}.db"
    found = tune(kernel, dims, store=url, **options)
    store = Store(url, create=False)
    parts: dict[str, float] = {}
    for node in store.nodes(found.run):
        for part, value in node.resources.items():
            if part.endswith("_s"):
                parts[part] = parts.get(part, 0.0) + value
    store.close()
    return {
        "kernel": name,
        "dims": dims,
        **options,
        "speedup": found.speedup,
        "seconds": found.seconds,
        "evaluations": found.evaluations,
        "rate": found.evaluations / found.elapsed,
        "statuses": dict(found.statuses),
        "time": {k: round(v, 2) for k, v in parts.items()},
        "derivation": found.derivation,
    }


def geometric(values: Iterable[float]) -> float:
    known = [math.log(v) for v in values]
    return math.exp(sum(known) / len(known))


def show(rows: list[dict[str, Any]]) -> None:
    print(
        f"{'kernel':18}{'policy':14}{'seed':>5}{'over default':>14}"
        f"{'evaluated':>11}{'a second':>10}"
    )
    for r in rows:
        print(
            f"{r['kernel']:18}{r['policy']:14}{r['seed']:5}{r['speedup']:14.3f}"
            f"{r['evaluations']:11}{r['rate']:10.2f}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("loops", "default", "policies"))
    parser.add_argument("--budget", type=float, default=600.0, help="seconds of each search")
    parser.add_argument("--policy", default="mcts", choices=tuple(POLICIES))
    parser.add_argument("--seeds", type=int, default=3, help="of `policies`")
    parser.add_argument("--only", nargs="*", help="kernels")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="kir-agent-"))
    cases = DEFAULT if given.what == "default" else LOOPS
    chosen = [c for c in cases if not given.only or c[0] in given.only]
    rows: list[dict[str, Any]] = []
    if given.what == "policies":
        for policy in POLICIES:
            for seed in range(given.seeds):
                options = {"policy": policy, "seed": seed, "start": "loops"}
                rows.append(searched(chosen[0], folder, budget_s=given.budget, **options))
                print(f"{policy} {seed}: {rows[-1]['speedup']:.3f}", file=sys.stderr)
    else:
        for case in chosen:
            options = {"policy": given.policy, "seed": 0, "start": given.what}
            rows.append(searched(case, folder, budget_s=given.budget, **options))
            print(f"{case[0]}: {rows[-1]['speedup']:.3f}", file=sys.stderr)
    show(rows)
    summary: dict[str, Any] = {"geometric mean": geometric(r["speedup"] for r in rows)}
    if given.what == "policies":
        for policy in POLICIES:
            found = [r["speedup"] for r in rows if r["policy"] == policy]
            summary[policy] = {"median": statistics.median(found), "least": min(found),
                               "most": max(found)}  # fmt: skip
    print(json.dumps(summary, indent=2))
    if given.json:
        machine = {**provenance(), **description()}
        record = {"what": given.what, "budget": given.budget, "machine": machine,
                  "summary": summary, "rows": rows}  # fmt: skip
        given.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
