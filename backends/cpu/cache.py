"""Compiled code on disk, under a key of everything that went into it.

The folder is `$KIR_CACHE_DIR`, else `~/.cache/kir`; `KIR_CACHE_DIR=` (empty) turns the cache off.
It keeps at most `$KIR_CACHE_LIMIT` MiB (1024 where not given): what was not used for the longest
time goes first. An entry is written whole to a temporary file and renamed, so that readers in other
processes see all of it or nothing, and a writer that is killed leaves but a temporary file, which
is swept up later; an entry carries its own checksum, and one that fails it is made again. The
folder is made for its owner alone, since what it holds is run; one that others can write to is
refused.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import stat
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from kir.errors import UsageError

MAGIC = b"KIRCACHE1\n"
LIMIT_MIB = 1024
SWEEP_EVERY = 64
"""Entries that a process writes between two looks at the folder's size; it looks at its first."""
KEPT_SHARE = 0.8
"""Of the limit: what is left after a sweep that had to remove something."""
FRESH_SECONDS = 3600
"""An entry's time of use is renewed when it is older; temporary files older than it are garbage."""

_saves = itertools.count()


def folder() -> Path | None:
    """Where entries stand; None where the cache is off."""
    chosen = os.environ.get("KIR_CACHE_DIR")
    if chosen is not None:
        return Path(chosen) / "cpu" if chosen else None
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "kir" / "cpu"


def trusted(place: Path) -> Path:
    """The folder, or where it is to be made; UsageError where another user could put code there:
    where it is not this user's (or root's) or others may write to it, or where they may put another
    in its place."""
    for path, writable in ((place.parent, stat.S_IWOTH), (place, stat.S_IWGRP | stat.S_IWOTH)):
        try:
            found = os.stat(path)  # noqa: PTH116  (a fifth of the time of Path.stat)
        except OSError:
            continue
        own = not hasattr(os, "geteuid") or found.st_uid in (os.geteuid(), 0)
        guarded = path != place and found.st_mode & stat.S_ISVTX  # nobody renames what is not his
        if (own or guarded) and (guarded or not found.st_mode & writable):
            continue
        why = "can be written to by others" if own else "belongs to another user"
        raise UsageError(
            f"the cache folder {path} {why}, and code from it would run here",
            hint=f"`chmod go-w {path}`, or set KIR_CACHE_DIR to a folder of your own (empty: none)",
        )
    return place


def limit() -> int:
    """Bytes that the folder may hold; UsageError for a setting that is no number."""
    text = os.environ.get("KIR_CACHE_LIMIT", "").strip() or str(LIMIT_MIB)
    if not text.isdecimal():
        raise UsageError(f"KIR_CACHE_LIMIT is `{text}`", hint="give a number of MiB, like 1024")
    return int(text) << 20


def key_of(parts: Mapping[str, Any]) -> str:
    """The sha256 of JSON data, keys sorted."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@lru_cache(maxsize=1)
def compiler_identity() -> str:
    """A text that changes with every file of this compiler: names, sizes and times of change.
    Cheaper than reading them, and true of a working tree too."""
    import kir

    found: list[str] = []
    stack = [str(Path(kir.__file__).parent)]
    while stack:
        with os.scandir(stack.pop()) as entries:
            for e in entries:
                if e.is_dir():
                    if e.name != "__pycache__":
                        stack.append(e.path)
                elif e.name.endswith((".py", ".lark")):
                    s = e.stat()
                    found.append(f"{e.path} {s.st_size} {s.st_mtime_ns}")
    return hashlib.sha256("\n".join(sorted(found)).encode()).hexdigest()


def load(key: str) -> dict[str, bytes] | None:
    """The named parts of an entry; None where there is none or it is damaged. UsageError for a
    folder that is not to be trusted, as in `save`."""
    place = folder()
    if place is None:
        return None
    path = trusted(place) / key[:2] / key
    try:
        with path.open("rb") as f:
            data = f.read()
            if time.time() - os.fstat(f.fileno()).st_mtime > FRESH_SECONDS:
                os.utime(path)
    except OSError:
        return None
    return _decode(data, key)


def save(key: str, parts: Mapping[str, bytes]) -> None:
    """Keep an entry. A folder that cannot be written loses the entry, not the compilation."""
    place = folder()
    if place is None:
        return
    import tempfile  # half of what a look-up would import

    allowed = limit()
    target = trusted(place) / key[:2] / key
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        target.parent.mkdir(exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".new-")
    except OSError:
        return
    try:
        with os.fdopen(handle, "wb") as f:
            f.write(_encode(key, parts))
        Path(temporary).replace(target)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
    if next(_saves) % SWEEP_EVERY == 0:
        sweep(place, allowed)


def sweep(place: Path, allowed: int) -> None:
    """Remove what writers that died left behind, then the entries longest unused while all of
    them exceed `allowed` bytes. Other processes may do the same at the same time."""
    entries: list[tuple[float, int, str]] = []
    now = time.time()
    for shelf in _listed(str(place)):
        for path in _listed(shelf):
            try:
                s = os.stat(path)  # noqa: PTH116
            except OSError:
                continue
            if not Path(path).name.startswith(".new-"):
                entries.append((s.st_mtime, s.st_size, path))
            elif now - s.st_mtime > FRESH_SECONDS:
                _remove(path)
    total = sum(size for _, size, _ in entries)
    if total <= allowed:
        return
    for _, size, path in sorted(entries):
        if total <= allowed * KEPT_SHARE:
            return
        _remove(path)
        total -= size


def _listed(path: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [e.path for e in entries]
    except OSError:
        return []


def _remove(path: str) -> None:
    try:
        Path(path).unlink(missing_ok=True)
    except OSError:
        return


def _encode(key: str, parts: Mapping[str, bytes]) -> bytes:
    sizes = json.dumps({name: len(data) for name, data in parts.items()}).encode() + b"\n"
    body = key.encode() + b"\n" + sizes + b"".join(parts.values())
    return MAGIC + hashlib.sha256(body).digest() + body


def _decode(data: bytes, key: str) -> dict[str, bytes] | None:
    start = len(MAGIC) + 32
    body = data[start:]
    if data[: len(MAGIC)] != MAGIC or hashlib.sha256(body).digest() != data[len(MAGIC) : start]:
        return None
    owner, sizes, rest = body.split(b"\n", 2)
    if owner != key.encode():
        return None
    parts, at = {}, 0
    for name, size in json.loads(sizes).items():
        parts[name] = rest[at : at + size]
        at += size
    return parts
