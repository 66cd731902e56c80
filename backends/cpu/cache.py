"""Compiled code on disk, under a key of everything that went into it.

The folder is `$KIR_CACHE_DIR`, else `~/.cache/kir`; `KIR_CACHE_DIR=` (empty) turns the cache off.
An entry is written whole to a temporary file and renamed, so that readers in other processes see
all of it or nothing; it carries its own checksum, and one that fails it is made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MAGIC = b"KIRCACHE1\n"


def folder() -> Path | None:
    """Where entries stand; None where the cache is off."""
    chosen = os.environ.get("KIR_CACHE_DIR")
    if chosen is not None:
        return Path(chosen) / "cpu" if chosen else None
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "kir" / "cpu"


def key_of(parts: Mapping[str, Any]) -> str:
    """The sha256 of JSON data, keys sorted."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def load(key: str) -> dict[str, bytes] | None:
    """The named parts of an entry; None where there is none or it is damaged."""
    place = folder()
    if place is None:
        return None
    try:
        data = (place / key[:2] / key).read_bytes()
    except OSError:
        return None
    return _decode(data, key)


def save(key: str, parts: Mapping[str, bytes]) -> None:
    """Keep an entry. A folder that cannot be written loses the entry, not the compilation."""
    place = folder()
    if place is None:
        return
    target = place / key[:2] / key
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".new-")
    except OSError:
        return
    try:
        with os.fdopen(handle, "wb") as f:
            f.write(_encode(key, parts))
        Path(temporary).replace(target)
    except OSError:
        Path(temporary).unlink(missing_ok=True)


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
