"""A worker whose jobs misbehave as the derivation, here a word, says. Started by the tests."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from kir.agent import worker
from kir.agent.evaluate import REPLY


def reply_raw(data: bytes) -> NoReturn:
    Path(REPLY).write_bytes(data)
    os._exit(0)


def say_out_of_memory() -> NoReturn:
    sys.stderr.write("LLVM ERROR: out of memory\n")
    os.abort()


def spin() -> NoReturn:
    while True:
        pass


def hang_with_a_child() -> NoReturn:
    if os.fork() == 0:
        Path("../grandchild").write_text(str(os.getpid()))
    while True:
        time.sleep(1)


def tell_environment() -> NoReturn:
    Path("../told").write_text(repr(dict(os.environ)) + "|" + str(Path.cwd()))
    os._exit(1)


def kill_server() -> NoReturn:
    os.kill(os.getppid(), signal.SIGKILL)
    while True:
        time.sleep(1)


def timed(seconds: Any, baseline: Any = 3.0) -> dict[str, Any]:
    return {"status": "ok", "seconds": seconds, "baseline_seconds": baseline, "ratio": 1.5}


DEEDS: dict[str, Callable[[], Any]] = {
    "good": lambda: timed(2.0),
    "wrong": lambda: {"status": "wrong", "error": "off by one"},
    "segfault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "abort": os.abort,
    "exit": lambda: sys.exit(3),
    "raise": lambda: [][0],
    "allocate": lambda: bytearray(1 << 40),
    "out of memory": say_out_of_memory,
    "big file": lambda: Path("big").write_bytes(bytes(8 << 20)),
    "no reply": lambda: os._exit(0),
    "half a reply": lambda: reply_raw(b"{"),
    "deep reply": lambda: reply_raw(b"[" * 100_000),
    "huge reply": lambda: reply_raw(b" " * 2_000_000),
    "binary reply": lambda: reply_raw(bytes([255])),
    "list reply": lambda: reply_raw(b"[]"),
    "unknown status": lambda: {"status": "splendid"},
    "nan time": lambda: timed(float("nan")),
    "no time": lambda: timed(0),
    "bool time": lambda: timed(True),
    "text time": lambda: timed("fast"),
    "spin": spin,
    "hang": hang_with_a_child,
    "tell": tell_environment,
    "kill server": kill_server,
}


def handle(request: worker.Request) -> worker.Reply:
    if request["action"] == "prepare":
        return {"status": "ok"}
    done: worker.Reply = DEEDS[request["derivation"]]()
    return done


if __name__ == "__main__":
    worker.serve(handle)
