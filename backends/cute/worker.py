"""Compiles generated CuTe DSL source in a process of its own: `python -m kir.backends.cute.worker`.

The DSL reads its architecture from the environment once, when it is imported, so each arch needs
a fresh process. Request and answer are JSON: {source, module, host, signature, arch} in the file
of the first argument; {ptx, cubin (base64)} or {error} to the second.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any


def compile_request(request: dict[str, Any], folder: Path) -> dict[str, str]:
    """PTX and cubin of one source file; whatever the DSL raises passes through."""
    os.environ["CUTE_DSL_ARCH"] = request["arch"]
    os.environ["CUTE_DSL_DUMP_DIR"] = str(folder)
    os.environ["CUTE_DSL_DISABLE_FILE_CACHING"] = "1"
    os.environ["CUTE_DSL_CACHE_DIR"] = str(folder)
    path = folder / "generated.py"
    path.write_text(request["source"])

    import cutlass
    import cutlass.cute as cute
    from cutlass.cute.runtime import make_ptr

    spec = importlib.util.spec_from_file_location("generated", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["generated"] = module
    spec.loader.exec_module(module)
    arguments: list[Any] = []
    for _, kind, is_pointer in request["signature"]:
        element = getattr(cutlass, kind)
        if is_pointer:
            size = element.width // 8
            arguments.append(make_ptr(element, 0, cute.AddressSpace.gmem, assumed_align=size))
        else:
            arguments.append(element(1))
    host = getattr(module, request["host"])
    compiled = cute.compile(host, *arguments, options="--keep-ptx --keep-cubin")
    cubin = base64.b64encode(compiled.__cubin__).decode()
    return {"ptx": compiled.__ptx__.rstrip("\0"), "cubin": cubin}


def main(arguments: list[str]) -> int:
    request_path, answer_path = Path(arguments[0]), Path(arguments[1])
    answer = compile_request(json.loads(request_path.read_text()), request_path.parent)
    answer_path.write_text(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
