"""A worker whose jobs misbehave as the derivation, here a word, says. Started by the tests."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
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
    os.fork()
    while True:
        time.sleep(1)


def leave_a_daemon() -> Any:
    """A grandchild in a session of its own, which a signal to the group does not reach."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            while True:
                time.sleep(1)
        os._exit(0)
    return timed(2.0)


def fork_without_end() -> NoReturn:
    while True:
        with contextlib.suppress(OSError):
            os.fork()
            time.sleep(0.01)


def tell_environment() -> Any:
    return {"status": "wrong", "error": repr(dict(os.environ)) + "|" + str(Path.cwd())}


def write_outside() -> Any:
    """Tries to leave something in other folders; says where it could."""
    done = []
    for folder in ("..", "/tmp", "/var/tmp", "/dev/shm", str(Path.home().parent), "/root"):
        with contextlib.suppress(OSError):
            Path(folder, "kir-was-here").write_text("x")
            done.append(folder)
    return {"status": "wrong", "error": f"wrote in {done}"}


def tamper() -> Any:
    """Tries to change what is expected of all candidates."""
    for path in Path("..").glob("expected-*"):
        path.write_bytes(b"0")
    return timed(2.0)


def call_home() -> Any:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.sendto(b"x", ("192.0.2.1", 53))
    return timed(2.0)


def read_others() -> Any:
    return {"status": "wrong", "error": f"saw {[*Path('/root').iterdir()]}"}


def grow() -> NoReturn:
    kept = []
    while True:
        kept.append(bytearray(1 << 26))


def recurse() -> Any:
    sys.setrecursionlimit(1 << 30)

    def down(n: int) -> int:
        return down(n + 1) + 1

    return {"status": "wrong", "error": str(down(0))}


def kill_server() -> NoReturn:
    os.kill(os.getppid(), signal.SIGKILL)
    os.kill(int(Path("/proc/self/stat").read_text().split()[3]), signal.SIGKILL)
    sys.exit(1)


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
    "daemon": leave_a_daemon,
    "fork bomb": fork_without_end,
    "write outside": write_outside,
    "tamper": tamper,
    "call home": call_home,
    "read others": read_others,
    "grow": grow,
    "recurse": recurse,
}
"""What a derivation, here a word, has the worker do."""
HARMLESS = ("good", "daemon")
"""Those that reply with a time that is to be believed: the harm is beside it."""


def handle(request: worker.Request) -> worker.Reply:
    if request["action"] == "prepare":
        Path(request["expected"]).touch()
        return {"status": "ok"}
    if request["action"] == "contest":
        replies = [DEEDS[word]() for word in request["derivations"]]
        return {**timed(1.0), "report": {"ratios": [r["ratio"] for r in replies]}}
    done: worker.Reply = DEEDS[request["derivation"]]()
    return done


if __name__ == "__main__":
    worker.serve(handle)
