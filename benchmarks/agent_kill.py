"""Searches killed at random moments, by hand: `python -m benchmarks.agent_kill --kills 50`.

A search with two workers is started, killed with SIGKILL a random time after it claimed something,
and started again with --resume, over and over on one store. Nothing that was evaluated may be lost
or change; the database must stay whole; the last start must end in good order.
"""

from __future__ import annotations

import argparse
import json
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random

from benchmarks.machine import description
from kir.agent.store import NodeRow, Store

ROOT = Path(__file__).resolve().parents[1]


def start(url: str, evaluations: int, resume: bool) -> subprocess.Popen[bytes]:
    command = [
        sys.executable, "-m", "kir", "tune", str(ROOT / "examples" / "softmax.kir"), "--shape",
        "M=64,N=256", "--budget", "1h", "--evaluations", str(evaluations), "--workers", "2",
        "--store", url, "--start", "loops", *(["--resume"] if resume else []),
    ]  # fmt: skip
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def nodes(url: str) -> dict[int, NodeRow]:
    store = Store(url, create=False)
    try:
        return {n.id: n for n in store.nodes(1)}
    finally:
        store.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--most", type=float, default=5.0, help="seconds of work before a kill at most"
    )
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    random = Random(given.seed)
    machine = description()
    place = Path(tempfile.mkdtemp(prefix="kir-kill-")) / "t.db"
    url = f"sqlite:///{place}"
    known: dict[int, NodeRow] = {}
    problems: list[str] = []
    begun = time.monotonic()
    for kill in range(given.kills):
        child = start(url, 100_000, resume=place.exists() and has_run(place))
        deadline, before = time.monotonic() + 120, entered(place)
        while entered(place) == before and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(random.uniform(0.0, given.most))
        child.send_signal(signal.SIGKILL)
        child.wait()
        if not place.exists() or not has_run(place):
            continue
        with sqlite3.connect(place) as database:
            (whole,) = database.execute("pragma integrity_check").fetchone()
        found = nodes(url)
        lost = [i for i, n in known.items() if found.get(i) != n]
        if whole != "ok" or lost:
            problems.append(f"kill {kill}: integrity {whole}, lost or changed {lost}")
        known = found
        print(f"kill {kill + 1}: {len(known)} evaluated", flush=True)
    last = start(url, len(known) + 3, resume=has_run(place))
    code = last.wait()
    after = nodes(url)
    lost = [i for i, n in known.items() if after.get(i) != n]
    hashes = {n.ir_hash for n in after.values()}
    if code != 0 or lost or len(hashes) != len(after) or len(after) < len(known) + 3:
        problems.append(f"the last run: code {code}, lost {lost}, {len(after)} of {len(known) + 3}")
    record = {
        "kills": given.kills,
        "seed": given.seed,
        "machine": machine,
        "evaluated": len(after),
        "seconds": round(time.monotonic() - begun, 1),
        "problems": problems,
    }
    print(json.dumps(record, indent=2))
    if given.json:
        given.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 1 if problems else 0


def entered(place: Path) -> int:
    """How many variants were claimed."""
    if not place.exists() or not has_run(place):
        return 0
    with sqlite3.connect(place) as database:
        (count,) = database.execute("select count(*) from kir_nodes").fetchone()
    return int(count)


def has_run(place: Path) -> bool:
    with sqlite3.connect(place) as database:
        try:
            (count,) = database.execute("select count(*) from kir_runs").fetchone()
        except sqlite3.OperationalError:  # the tables are not made yet
            return False
    return bool(count)


if __name__ == "__main__":
    sys.exit(main())
