"""Reading kernel files: apart from the parser, which a kernel in the cache does not need."""

from __future__ import annotations

from pathlib import Path

from kir.errors import FileError, LimitError, Source

MAX_BYTES = 1 << 20
"""A kernel file is some kilobytes; a megabyte is somebody's mistake or attack."""


def load(path: str | Path) -> Source:
    """Read a file as a Source; FileError or LimitError where that cannot be."""
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise LimitError(
                f"{path} has {path.stat().st_size:,} bytes; the limit is {MAX_BYTES:,}",
                hint="a KIR file holds a few kernels; tensors belong in .npy files",
            )
        data = path.read_bytes()
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}", hint="check the path") from None
    try:
        return Source(str(path), data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise FileError(
            f"{path} is not UTF-8 text: byte {error.start} is 0x{data[error.start]:02x}",
            hint="save the file as UTF-8",
        ) from None
