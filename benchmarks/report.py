"""What the records of a run come to: means by group, floors, tables, plots."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks.suite.case import GROUPS, MEMORY

Record = dict[str, Any]
EAGER = ("eager", "eager-f32")


def geomean(values: Iterable[float]) -> float:
    return statistics.geometric_mean(list(values))


def over(record: Record, *names: str) -> float | None:
    """How many times faster than the fastest of these peers; None where it ran with none."""
    found = [record["peers"][n] for n in names if n in record["peers"]]
    return min(found) / record["ours_s"] if found else None


def _ratios(records: Sequence[Record], *names: str) -> list[tuple[float, Record]]:
    pairs = [(over(r, *names), r) for r in records]
    return [(ratio, r) for ratio, r in pairs if ratio is not None]


def _label(record: Record) -> str:
    return f"{record['case']}, {record['threads']} thread(s)"


def groups_table(records: Sequence[Record]) -> list[str]:
    """A line for each group: geometric mean and worst against each peer, share of the limit."""
    names = list(dict.fromkeys(n for r in records for n in r["peers"]))
    lines = []
    for group in GROUPS:
        mine = [r for r in records if r["group"] == group]
        if not mine:
            continue
        parts = [f"{group:12} {len(mine):4}"]
        for name in names:
            ratios = [ratio for ratio, _ in _ratios(mine, name)]
            if ratios:
                parts.append(f"{name} {geomean(ratios):.2f}x (worst {min(ratios):.2f})")
        parts.append(f"limit {geomean(r['limit_fraction'] for r in mine):.0%}")
        parts.append(f"copy {geomean(r['copy_fraction'] for r in mine):.0%}")
        lines.append("  ".join(parts))
    return lines


def _floor(name: str, value: float | None, least: float, worst: str = "") -> str:
    if value is None:
        return f"{name}: not measured"
    verdict = "met" if value >= least else "MISSED"
    return f"{name}: {value:.2f}, floor {least:g}: {verdict}" + (f" ({worst})" if worst else "")


def floors(records: Sequence[Record]) -> list[str]:
    """The acceptance floors, each met or missed."""
    lines = []

    def ratio_floor(
        title: str, chosen: Sequence[Record], names: tuple[str, ...], mean: float | None,
        least: float | None,
    ) -> None:  # fmt: skip
        ratios = _ratios(chosen, *names)
        if not ratios:
            return
        if mean is not None:
            lines.append(_floor(f"{title}, geometric mean", geomean(x for x, _ in ratios), mean))
        if least is not None:
            worst = min(ratios, key=lambda pair: pair[0])
            lines.append(_floor(f"{title}, worst", worst[0], least, _label(worst[1])))

    def group(test: Callable[[str], bool]) -> list[Record]:
        return [r for r in records if test(r["group"])]

    ratio_floor("f32 products over eager", group(lambda g: g == "matmul f32"), EAGER, 0.95, 0.8)
    ratio_floor("bf16 products over eager", group(lambda g: g == "matmul bf16"), EAGER,
                0.95, 0.8)  # fmt: skip
    ratio_floor("convolutions over eager", group(lambda g: g == "conv"), EAGER, 0.9, 0.6)
    memory = group(lambda g: g in MEMORY)
    if memory:
        worst = min(memory, key=lambda r: float(r["copy_fraction"]))
        lines.append(_floor("memory-bound, share of a copy, worst", worst["copy_fraction"], 0.9,
                            _label(worst)))  # fmt: skip
    ratio_floor("memory-bound over compile", memory, ("compile",), None, 1.0)
    ratio_floor("whole suite over eager", records, EAGER, 1.3, None)
    compiled = [r for r in records if "compile" in r["peers"] or "max-autotune" in r["peers"]]
    best = (*EAGER, "compile", "max-autotune")
    ratio_floor("whole suite over the better of eager and compile", compiled, best, 1.1, None)
    lines += _compile_times(records)
    return lines


def _compile_times(records: Sequence[Record]) -> list[str]:
    def most(title: str, seconds: float, limit: float, worst: str = "") -> str:
        verdict = "met" if seconds <= limit else "MISSED"
        where = f" ({worst})" if worst else ""
        return f"{title}: {seconds:.3f} s, at most {limit:g}: {verdict}{where}"

    if not records:
        return []
    slowest = max(records, key=lambda r: float(r["compile_s"]))
    cached = max(records, key=lambda r: float(r["cached_s"]))
    return [
        most("first result, slowest", slowest["compile_s"], 1.0, slowest["case"]),
        most("first result, median", statistics.median(r["compile_s"] for r in records), 0.3),
        most("first result with the cache, slowest", cached["cached_s"], 0.02, cached["case"]),
        most("first result with the cache, median",
             statistics.median(r["cached_s"] for r in records), 0.02),
    ]  # fmt: skip


def summary(records: Sequence[Record]) -> str:
    """The means by group, and the floors."""
    return "\n".join(["", *groups_table(records), "", *floors(records)])


def markdown(records: Sequence[Record]) -> str:
    """The floors, the means by group, and every case, in Markdown."""
    names = list(dict.fromkeys(n for r in records for n in r["peers"]))
    machines = [r["machine"] for r in records]
    about = machines[-1]
    commits = ", ".join(dict.fromkeys(m["commit"] for m in machines))
    lines = [
        "# The cpu target, case by case",
        "",
        "Made by `make benchmark`; [benchmarks.md](benchmarks.md) says what is measured and how.",
        "",
        f"Machine: {about['cpu']} ({about['llvm_cpu']}), {about['cores']} cores; commit {commits}; "
        f"PyTorch {about['torch']}, LLVM {about['llvm']}, llvmlite {about['llvmlite']}, NumPy "
        f"{about['numpy']}; load {min(m['load'] for m in machines)} to "
        f"{max(m['load'] for m in machines)}. Ratios are the peer's time over KIR's: above 1 KIR "
        "is faster.",
        "",
        *(f"- {x}" for x in floors(records)),
        "",
        _row(["group", "cases", *names, "of the limit", "of a copy"]),
        _rule(len(names) + 4),
    ]
    for group in GROUPS:
        mine = [r for r in records if r["group"] == group]
        if not mine:
            continue
        cells = [group, str(len(mine))]
        for name in names:
            ratios = [ratio for ratio, _ in _ratios(mine, name)]
            cells.append(f"{geomean(ratios):.2f} (worst {min(ratios):.2f})" if ratios else "")
        cells.append(f"{geomean(r['limit_fraction'] for r in mine):.0%}")
        cells.append(f"{geomean(r['copy_fraction'] for r in mine):.0%}")
        lines.append(_row(cells))
    compiles = [f"{n} compiles" for n in _compiling(records)]
    header = ["case", "threads", "KIR", *names, "of the limit", "of a copy", "compile", "cached"]
    lines += [
        "",
        _row([*header, *compiles]),
        _rule(len(names) + 7 + len(_compiling(records))),
        *(_case_row(r, names, _compiling(records)) for r in records),
        "",
    ]
    missing = {n: w for r in records for n, w in r["peers_missing"].items()}
    lines += [f"No {name} in some cases: {why}." for name, why in missing.items()]
    return "\n".join(lines) + "\n"


def _compiling(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(n for r in records for n in r["peers_compile_s"]))


def _case_row(r: Record, names: Sequence[str], compiling: Sequence[str]) -> str:
    ours = r["ours_s"]
    ratios = [f"{r['peers'][n] / ours:.2f}" if n in r["peers"] else "" for n in names]
    compiled = r["peers_compile_s"]
    return _row([
        r["case"], str(r["threads"]), _time(ours), *ratios,
        f"{r['limit_fraction']:.0%} ({r['limit']})", f"{r['copy_fraction']:.0%}",
        _time(r["compile_s"]), _time(r["cached_s"]),
        *(_time(compiled[n]) if n in compiled else "" for n in compiling),
    ])  # fmt: skip


def _time(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _rule(count: int) -> str:
    return "|" + "---|" * count
