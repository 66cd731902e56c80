"""Plant each bug in a copy of the tree and see whether, where and how soon it is found.

    python -m tests.planted.run [--only TEXT] [--seconds 60] [--jobs 2] [--json FILE]

`make planted-bugs` runs them all. Exit code 1 where a bug survives that is not marked `survives`
with its reason, or the tree without any bug is found wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import Progress

ROOT = Path(__file__).parent.parent.parent
BUGS = Path(__file__).parent / "bugs"
COPIED = ("kir", "backends", "agent", "frontends", "examples", "tests/rewrites", "tests/planted")


@dataclass(frozen=True)
class Bug:
    """`find` stands once in `file`; `corpora` are the programs to look at, likely ones first."""

    name: str
    kind: str
    file: str
    find: str
    replace: str
    corpora: tuple[str, ...]
    first: str = ""
    """Programs whose names begin so are looked at before the others of a corpus."""
    survives: str = ""
    """Why it is known not to be found; empty where it must be."""


@dataclass
class Result:
    bug: Bug
    caught: bool
    rung: str = ""
    seconds: float = 0.0
    detail: dict[str, Any] = field(default_factory=dict)


def bugs() -> list[Bug]:
    """All bugs, by file and order in it."""
    found = []
    for path in sorted(BUGS.glob("*.toml")):
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        for entry in data["bug"]:
            corpora = tuple(entry.pop("corpora", data["corpora"]))
            file = entry.pop("file", data.get("file", ""))
            found.append(Bug(corpora=corpora, file=file, **entry))
    return found


def planted(text: str, bug: Bug) -> str:
    """The text of a file with the bug in it; ValueError where the place is not unique."""
    if text.count(bug.find) != 1:
        raise ValueError(f"{bug.name}: its text stands {text.count(bug.find)} times in {bug.file}")
    return text.replace(bug.find, bug.replace)


def copy_tree(folder: Path) -> None:
    """A copy of all that the probe needs; links among the packages stay links."""
    for name in COPIED:
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=skip)
    (folder / "tests" / "__init__.py").touch()


def probe(
    folder: Path, corpora: tuple[str, ...], seconds: float, seed: int, first: str = ""
) -> dict[str, Any]:
    """What the probe finds in a tree; a process that dies or hangs is a finding too."""
    command = [
        sys.executable,
        "-m",
        "tests.planted.probe",
        ",".join(corpora),
        str(seconds),
        str(seed),
        first,
    ]
    env = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "KIR_CACHE_DIR": "",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    try:
        done = subprocess.run(
            command, cwd=folder, env=env, capture_output=True, text=True, timeout=seconds * 4 + 60
        )
    except subprocess.TimeoutExpired:
        return {"caught": True, "rung": "hang", "seconds": seconds * 4 + 60}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        if last.startswith(("ImportError", "SyntaxError")):
            raise RuntimeError(f"the probe itself does not run: {last}")
        return {"caught": True, "rung": "crash", "message": last, "seconds": 0.0}
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def try_bug(bug: Bug, seconds: float, seed: int) -> Result:
    with tempfile.TemporaryDirectory(prefix="kir-planted-") as name:
        folder = Path(name)
        copy_tree(folder)
        target = folder / bug.file
        target.write_text(planted(target.read_text(encoding="utf-8"), bug), encoding="utf-8")
        found = probe(folder, bug.corpora, seconds, seed, bug.first)
    return Result(bug, found["caught"], found.get("rung", ""), found["seconds"], found)


def clean(seconds: float, seed: int, corpora: set[str]) -> dict[str, Any]:
    """The probe on the tree as it is: it must find nothing, or it proves nothing."""
    with tempfile.TemporaryDirectory(prefix="kir-planted-") as name:
        copy_tree(Path(name))
        return probe(Path(name), tuple(sorted(corpora)), seconds, seed)


def summary(results: list[Result]) -> str:
    """The share caught, by rung and by time."""
    caught = [r for r in results if r.caught]
    lines = [f"{len(caught)} of {len(results)} planted bugs caught"]
    rungs = Counter(r.rung for r in caught)
    lines += [f"  {count:4} by the rung {rung}" for rung, count in rungs.most_common()]
    for limit in (1, 5, 15, 60):
        share = sum(r.seconds <= limit for r in caught)
        lines.append(f"  {share:4} within {limit} s")
    kinds = Counter(r.bug.kind for r in results)
    missed = Counter(r.bug.kind for r in results if not r.caught)
    lines += [
        f"  {n - missed[kind]:4} of {n} of the kind: {kind}" for kind, n in kinds.most_common()
    ]
    for r in results:
        if not r.caught:
            why = f": {r.bug.survives}" if r.bug.survives else ""
            lines.append(f"  SURVIVES {r.bug.name} ({r.bug.file}){why}")
    return "\n".join(lines)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--only", default="", help="bugs whose name or file holds this text")
    options.add_argument("--seconds", type=float, default=60.0, help="to look for each bug")
    options.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--json", type=Path, help="write the results here")
    given = options.parse_args()
    chosen = [b for b in bugs() if given.only in b.name or given.only in b.file]
    corpora = {c for b in chosen for c in b.corpora}
    sound = clean(given.seconds, given.seed, corpora)
    if sound["caught"]:
        print(f"the tree without a bug is found wrong: {sound}", file=sys.stderr)
        return 1
    results: list[Result] = []
    with Progress() as progress, ThreadPoolExecutor(given.jobs) as pool:
        task = progress.add_task("planting", total=len(chosen))
        for result in pool.map(lambda b: try_bug(b, given.seconds, given.seed), chosen):
            results.append(result)
            how = f"{result.rung}, {result.seconds:.1f} s" if result.caught else "SURVIVES"
            progress.console.print(f"{result.bug.name}: {how}", highlight=False)
            progress.advance(task)
    print(summary(results))
    if given.json:
        given.json.write_text(json.dumps([asdict(r) for r in results], indent=1), encoding="utf-8")
    return int(any(not r.caught and not r.bug.survives for r in results))


if __name__ == "__main__":
    sys.exit(main())
