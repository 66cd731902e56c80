"""Whole models and chains of operators: eager, torch.compile's inductor and KIR, in one run.

    python -m benchmarks.torch_models --json benchmarks/results/torch.json \\
        --markdown docs/benchmarks-torch.md          (some 25 minutes on two idle cores)
    python -m benchmarks.torch_models --only MLP "linear" --quick

Each case has a process of its own, with empty caches. The first call of what is compiled is its
compile time (of a forward, or of forward and backward); a trivial function was compiled
before, so imports do not count. Then the three are called in turn (A B C A B C ...); a figure is
the median of these rounds. Results are kept case by case: a run goes on where one was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

BACKENDS = ("eager", "inductor", "kir")
THREADS = 2
LONGEST = 240
"""Seconds for a case, after which it counts as failed."""


def _entries() -> dict[str, Any]:
    from benchmarks.torch_chains import CHAINS
    from benchmarks.torch_zoo import MODELS

    return {**MODELS, **CHAINS}


def names(only: Sequence[str], training: bool) -> list[str]:
    """Cases, `model` or `model, training step`; `only`: parts of names."""
    found = []
    for name, entry in _entries().items():
        found.append(name)
        if entry.train and training:
            found.append(f"{name}, training step")
    return [n for n in found if not only or any(o in n for o in only)]


def _compiled(backend: str, module: Any) -> Any:
    import torch

    if backend == "eager":
        return module
    options = {"options": {"strict": True, "threads": THREADS}} if backend == "kir" else {}
    return torch.compile(module, backend=backend, **options)


def _call(run: Any, inputs: Sequence[Any], module: Any, train: bool) -> Callable[[], Any]:
    import torch

    def forward() -> Any:
        with torch.no_grad():
            return run(*inputs)

    def step() -> Any:
        for p in module.parameters():
            p.grad = None
        loss = run(*inputs).float().square().mean()
        loss.backward()
        return loss

    return step if train else forward


def _results(made: Any, module: Any, train: bool) -> list[Any]:
    return [made.detach(), *(p.grad.clone() for p in module.parameters())] if train else [made]


def _trivial(backend: str) -> None:
    import torch

    x = torch.ones(8, requires_grad=True)
    function = _compiled(backend, lambda x: (x * 2).relu().sum())
    function(x).backward()


def _error(found: Sequence[Any], expected: Sequence[Any]) -> float:
    """The greatest difference over one plus the greatest value."""
    worst = 0.0
    for a, b in zip(found, expected, strict=True):
        scale = 1 + float(b.abs().max()) if b.numel() else 1.0
        worst = max(worst, float((a - b).abs().max()) / scale if b.numel() else 0.0)
    return worst


def measure(case: str, budget: float) -> dict[str, Any]:
    """One case in this process: seconds of a call, of compiling, and errors beside eager."""
    import torch

    from kir.timing import interleaved

    torch.set_num_threads(THREADS)
    name, _, kind = case.partition(", ")
    entry, train = _entries()[name], bool(kind)
    calls: dict[str, Callable[[], Any]] = {}
    record: dict[str, Any] = {"case": case, "compile": {}, "error": {}, "why": {}}
    expected: list[Any] = []
    for backend in BACKENDS:
        torch.manual_seed(0)
        module, inputs = entry.build(False), entry.inputs(False)
        module.train(train)
        try:
            _trivial(backend)
            torch._dynamo.reset()
            start = time.perf_counter()
            call = _call(_compiled(backend, module), inputs, module, train)
            made = call()
            record["compile"][backend] = time.perf_counter() - start
        except Exception as error:  # noqa: BLE001 - a backend that fails is a result
            record["why"][backend] = f"{type(error).__name__}: {str(error)[:300]}"
            continue
        results = _results(made, module, train)
        if backend == "eager":
            expected = results
        record["error"][backend] = _error(results, expected)
        calls[backend] = call
    timings = interleaved(calls, budget)
    record["seconds"] = {n: t.median for n, t in timings.items()}
    return record


def run_apart(case: str, budget: float) -> dict[str, Any]:
    """`measure` in a process of its own with empty caches."""
    with tempfile.TemporaryDirectory() as folder:
        space = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "KIR_CACHE_DIR": f"{folder}/kir",
                 "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor"}  # fmt: skip
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.torch_models", "--worker",
                   case, "--budget", str(budget)]  # fmt: skip
        try:
            done = subprocess.run(command, env=space, capture_output=True, text=True,
                                  timeout=LONGEST, check=False)  # fmt: skip
        except subprocess.TimeoutExpired:
            return {"case": case, "why": {"all": f"took longer than {LONGEST} s"}}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return {"case": case, "why": {"all": done.stderr.strip()[-300:]}}
    found: dict[str, Any] = json.loads(lines[-1])
    return found


# --- the report ----------------------------------------------------------------------------------


def _mean(values: Sequence[float]) -> float:
    import math

    return math.exp(sum(map(math.log, values)) / len(values)) if values else float("nan")


def _ratios(records: Sequence[Mapping[str, Any]], peer: str) -> list[float]:
    return [r["seconds"][peer] / r["seconds"]["kir"] for r in records
            if {peer, "kir"} <= r.get("seconds", {}).keys()]  # fmt: skip


def summary(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Geometric means by group, as lines of a table."""
    groups = {
        "models, forward": [r for r in records if _is_model(r) and "step" not in r["case"]],
        "models, training step": [r for r in records if "step" in r["case"]],
        "chains": [r for r in records if not _is_model(r)],
        "all": list(records),
    }
    lines = ["| group | cases | over eager | over inductor | KIR's compile time over inductor's |",
             "|---|---|---|---|---|"]  # fmt: skip
    for name, group in groups.items():
        both = [r["compile"]["kir"] / r["compile"]["inductor"] for r in group
                if {"kir", "inductor"} <= r.get("compile", {}).keys()]  # fmt: skip
        eager, other = _ratios(group, "eager"), _ratios(group, "inductor")
        lines.append(f"| {name} | {len(eager)} of {len(group)} | {_mean(eager):.2f} | "
                     f"{_mean(other):.2f} | {_mean(both):.2f} |")  # fmt: skip
    return lines


def _is_model(record: Mapping[str, Any]) -> bool:
    from benchmarks.torch_zoo import MODELS

    return record["case"].partition(", ")[0] in MODELS


def _row(record: Mapping[str, Any]) -> str:
    seconds, compile_ = record.get("seconds", {}), record.get("compile", {})

    def cell(found: Mapping[str, float], name: str, scale: float) -> str:
        return f"{found[name] * scale:.3g}" if name in found else "-"

    times = [cell(seconds, b, 1e3) for b in BACKENDS]
    ratios = [f"{_ratios([record], p)[0]:.2f}" if _ratios([record], p) else "-"
              for p in ("eager", "inductor")]  # fmt: skip
    made = [cell(compile_, b, 1) for b in ("inductor", "kir")]
    why = "; ".join(f"{b}: {w.splitlines()[0][:80]}" for b, w in record["why"].items())
    error = cell(record.get("error", {}), "kir", 1)
    return "| " + " | ".join([record["case"], *times, *ratios, *made, error, why]) + " |"


def markdown(records: Sequence[Mapping[str, Any]], machine: Mapping[str, Any]) -> str:
    lines = [
        "# PyTorch models: KIR, inductor and eager", "",
        "Written by `python -m benchmarks.torch_models`. float32, " f"{THREADS} threads, "
        f"{machine['cpu']}, {machine['cores']} cores, PyTorch {machine['torch']}, commit "
        f"{machine['commit']}.",
        "Milliseconds of a call, medians of interleaved rounds; ratios above 1: KIR is faster. A",
        "training step is forward, mean of squares and backward. Compile times are seconds of the",
        "first call, with empty caches. `error`: KIR's greatest difference from eager over one",
        "plus the greatest value.", "",
        *summary(records), "",
        "| case | eager | inductor | KIR | over eager | over inductor | compile: inductor | "
        "compile: KIR | error | why not |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(_row(r) for r in records),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _machine() -> dict[str, Any]:
    import torch

    from benchmarks.machine import description

    return {**description(), "torch": torch.__version__}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="*", default=[], help="parts of names of cases")
    parser.add_argument("--quick", action="store_true", help="a tenth of the rounds")
    parser.add_argument("--forward", action="store_true", help="no training steps")
    parser.add_argument("--json", type=Path, help="keep results here, and go on from it")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--budget", type=float, default=2.0, help="seconds of timing for a case")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = _arguments()
    if options.worker:
        print(json.dumps(measure(options.worker, options.budget)))
        return
    done: dict[str, Any] = {}
    if options.json and options.json.exists():
        done = {r["case"]: r for r in json.loads(options.json.read_text())["cases"]}
    wanted = names(options.only, not options.forward)
    for case in wanted:
        if case not in done:
            done[case] = run_apart(case, 0.2 if options.quick else options.budget)
            if options.json:
                kept = {"machine": _machine(), "cases": list(done.values())}
                options.json.write_text(json.dumps(kept, indent=1) + "\n")
        print(_row(done[case]), flush=True)
    records = [done[c] for c in names((), True) if c in done]
    print("\n".join(summary(records)))
    if options.markdown:
        options.markdown.write_text(markdown(records, _machine()))


if __name__ == "__main__":
    main()
