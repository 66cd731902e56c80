"""Confinement of a job to its folder: what the operating system offers, and which of it was had.

On Linux a job loses, without privileges and in this order: its share of machine (rlimits), its
network and the sight of other processes (new user, network and process namespaces), the file system
but for reading what it runs on and writing in its folder, and TCP and signals to the outside
(Landlock; kernel's Documentation/userspace-api/landlock.rst). Each is tried; `Confinement` says
which hold, and a search keeps that with its run. Elsewhere there are rlimits alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
# Landlock's system calls have the same numbers on all architectures
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION = 1
_PATH_BENEATH = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_READING = _EXECUTE | _READ_FILE | _READ_DIR
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1}
"""All rights on files by Landlock's version; from 5 on also ioctl on devices, which we allow."""
_TCP = 0b11
_SCOPED = 0b11  # abstract UNIX sockets, signals
SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/sbin", "/etc", "/proc", "/sys", "/opt")
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")


@dataclass(frozen=True)
class Confinement:
    """What holds a job back. `rlimits` always do, where the system has them."""

    files: bool
    network: bool
    processes: bool
    landlock: int

    def text(self) -> str:
        """One line for a person, naming what is missing too."""
        parts = {
            "files (Landlock)": self.files,
            "network (namespace)": self.network,
            "processes (namespace)": self.processes,
        }
        had = ["memory, CPU time, file size (rlimits)", *(p for p, ok in parts.items() if ok)]
        lacking = [p for p, ok in parts.items() if not ok]
        return "confines " + ", ".join(had) + (f"; NOT {', '.join(lacking)}" if lacking else "")


def landlock_version() -> int:
    """0 where the kernel has no Landlock or does not allow it."""
    if sys.platform != "linux":
        return 0
    return max(0, _system_call(_CREATE_RULESET, None, 0, _VERSION))


def available() -> Confinement:
    """What a job would be held by here, found out in a child that tries it."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        spaces = enter_namespaces()
        locked = lock_files([], [])
        os.write(writer, bytes([spaces, spaces, locked]))
        os._exit(0)
    os.close(writer)
    said = os.read(reader, 3)
    os.close(reader)
    os.waitpid(child, 0)
    network, processes, files = (bool(x) for x in said) if len(said) == 3 else (False,) * 3
    return Confinement(files, network, processes, landlock_version())


def die_with(parent: int) -> None:
    """Have this process killed when its parent ends (on Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the call
            os.kill(os.getpid(), signal.SIGKILL)


def limit(limits: Mapping[str, Any]) -> None:
    """Limit this process's memory (bytes of address space), CPU time (seconds) and files."""
    bounds = {
        resource.RLIMIT_AS: limits["memory"],
        resource.RLIMIT_CPU: limits["cpu_seconds"],
        resource.RLIMIT_FSIZE: limits["file"],
        resource.RLIMIT_CORE: 0,
    }
    for which, value in bounds.items():
        _, hard = resource.getrlimit(which)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        # the kernel names the limit on CPU time (SIGXCPU) only below the hard one
        grace = 1 if which == resource.RLIMIT_CPU and hard == resource.RLIM_INFINITY else 0
        resource.setrlimit(which, (value, value + grace))


def enter_namespaces() -> bool:
    """Leave the network behind, and have the next child be the first of its own processes: all
    below it die with it. False where the system does not allow that."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.unshare(_CLONE_NEWUSER | _CLONE_NEWPID | _CLONE_NEWNET) == 0)


def lock_files(readable: Sequence[Path | str], writable: Sequence[Path | str]) -> bool:
    """Allow this process and its children nothing but to read below `readable`, and to do as they
    like below `writable`; no TCP, no signals outside. False where there is no Landlock."""
    version = landlock_version()
    if version == 0:
        return False
    rights = _FILE_RIGHTS.get(version, _FILE_RIGHTS[3])
    attributes = struct.pack("QQQ", rights, _TCP if version >= 4 else 0, _SCOPED)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = _system_call(_CREATE_RULESET, attributes, size, 0)
    if ruleset < 0:
        return False
    try:
        for paths, allowed in ((readable, _READING), (writable, rights)):
            for path in paths:
                _allow(ruleset, path, allowed)
        for device in DEVICES:
            _allow(ruleset, device, _READ_FILE | _WRITE_FILE)
        ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        return _system_call(_RESTRICT_SELF, ruleset, 0) == 0
    finally:
        os.close(ruleset)


def runtime_paths() -> list[str]:
    """What a job must read: the system, this Python, its packages and KIR itself."""
    import kir

    own = Path(kir.__file__).resolve().parent.parent
    return [*SYSTEM, sys.prefix, sys.base_prefix, sys.exec_prefix, *sys.path[1:], str(own)]


def _allow(ruleset: int, path: Path | str, rights: int) -> None:
    """A rule for a path; none where there is no such path."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            if not Path(path).is_dir():
                rights &= _EXECUTE | _WRITE_FILE | _READ_FILE | (1 << 14)
            _system_call(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", rights, handle), 0)
        finally:
            os.close(handle)


def _system_call(number: int, *args: Any) -> int:
    return int(ctypes.CDLL(None, use_errno=True).syscall(number, *args))
