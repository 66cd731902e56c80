"""Calls from the cache: a kernel that was compiled before, for these shapes, runs without being
parsed, planned or compiled again, and without LLVM.

Two kinds of entries stand in the cache: records, which are JSON data under a key of a question (a
text and how it is to be compiled, and for a call the shapes), of this machine and this compiler;
and machine code, under its own hash, which several records may name.
"""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kir.backends.cpu import cache, host
from kir.backends.cpu.call import Call, Spec
from kir.backends.cpu.image import Image
from kir.backends.cpu.native import Code, load_code, load_image

Question = Mapping[str, Any]
_codes: weakref.WeakValueDictionary[str, Code] = weakref.WeakValueDictionary()


def recall(question: Question) -> dict[str, Any] | None:
    """The data kept for a question; None where there is none."""
    found = cache.load(_key(question))
    if found is None or "record" not in found:
        return None
    record: dict[str, Any] = json.loads(found["record"])
    return record


def remember(question: Question, record: Mapping[str, Any]) -> None:
    cache.save(_key(question), {"record": json.dumps(record).encode()})


def recall_call(question: Question, inputs: Sequence[Spec], threads: int) -> Call | None:
    """The call kept for a question, on inputs as `inputs` say."""
    record = recall(question)
    if record is None:
        return None
    code = _codes.get(record["code"])
    if code is None:
        found = cache.load(record["code"])
        if found is None:
            return None
        code = load_image(Image.decode(found["image"])) if "image" in found else None
        code = _codes[record["code"]] = code or load_code(found["obj"])
    outputs = [Spec(dtype_of(name), tuple(shape), True) for name, shape in record["outputs"]]
    return Call(code, record["symbol"], [*inputs, *outputs], record["dims"], threads)


def remember_call(question: Question, call: Call, obj: bytes) -> None:
    """Keep a call and the object that it runs."""
    key = cache.key_of({"code": hashlib.sha256(obj).hexdigest()})
    if key not in _codes:
        image = call.code.image
        cache.save(key, {"image": image.encode()} if image is not None else {"obj": obj})
        _codes[key] = call.code
    record = {
        "code": key,
        "symbol": call.symbol,
        "dims": call.dims,
        "outputs": [(s.dtype.name, s.shape) for s in call.outputs],
    }
    remember(question, record)


def dtype_of(name: str) -> np.dtype[Any]:
    """A dtype by the name that it has in a record: NumPy's, or one of `ml_dtypes`."""
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return found


def _key(question: Question) -> str:
    return cache.key_of({
        **question,
        "machine": host.identity(),
        "cores": host.cores(),
        "caches": host.caches(),
        "compiler": cache.compiler_identity(),
    })  # fmt: skip
