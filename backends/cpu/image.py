"""Machine code that runs wherever it is mapped (see `link`): loading it takes no LLVM, and a
fraction of a millisecond."""

from __future__ import annotations

import ctypes
import json
import mmap
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kir.errors import CompileError

PAGE = 4096


class Image:
    """`code` is mapped read-only and executable, `data` and `zeros` bytes after it are writable;
    both start on a page. `slots` are places of 8 bytes for the addresses of functions outside,
    `bases` such for the image's own address plus a number. `symbols` are offsets.

    (Making a dataclass takes longer than loading an image; so do not.)
    """

    def __init__(
        self,
        code: bytes,
        data: bytes,
        zeros: int,
        slots: Sequence[tuple[int, str]],
        bases: Sequence[tuple[int, int]],
        symbols: Mapping[str, int],
    ) -> None:
        self.code, self.data, self.zeros = code, data, zeros
        self.slots, self.bases, self.symbols = slots, bases, symbols

    def encode(self) -> bytes:
        head = {
            "code": len(self.code), "data": len(self.data), "zeros": self.zeros,
            "slots": self.slots, "bases": self.bases, "symbols": dict(self.symbols),
        }  # fmt: skip
        return json.dumps(head).encode() + b"\n" + self.code + self.data

    @staticmethod
    def decode(raw: bytes) -> Image:
        """The inverse of `encode`, on bytes whose checksum was right."""
        head, rest = raw.split(b"\n", 1)
        d = json.loads(head)
        code, data = rest[: d["code"]], rest[d["code"] : d["code"] + d["data"]]
        return Image(code, data, d["zeros"], d["slots"], d["bases"], d["symbols"])


class Mapped:
    """An image in memory, for as long as this object lives."""

    def __init__(self, image: Image, find: Callable[[str], int]) -> None:
        """`find` gives the address of a function outside; CompileError where memory cannot be
        made executable."""
        code = len(image.code)
        self._memory = mmap.mmap(
            -1, max(PAGE, code + len(image.data) + image.zeros),
            flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ | mmap.PROT_WRITE,
        )  # fmt: skip
        self._hold = ctypes.c_char.from_buffer(self._memory)
        self.address = ctypes.addressof(self._hold)
        self._memory[: code + len(image.data)] = image.code + image.data
        for at, name in image.slots:
            struct.pack_into("<Q", self._memory, at, find(name))
        for at, offset in image.bases:
            struct.pack_into("<Q", self._memory, at, self.address + offset)
        if code and _mprotect(self.address, code, mmap.PROT_READ | mmap.PROT_EXEC):
            raise CompileError(
                "the system lets no process run code that it has made",
                hint="use `kir lower --emit so`, and link or load the library",
            )
        self.symbols = {name: self.address + at for name, at in image.symbols.items()}


def _mprotect(address: int, size: int, protection: int) -> int:
    function: Any = ctypes.CDLL(None, use_errno=True).mprotect
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    result: int = function(address, size, protection)
    return result
