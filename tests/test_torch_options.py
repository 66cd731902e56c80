"""Options of the backend: which schedules the kernels of a model get."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed (the extra kir[torch])")

from kir.errors import KirError  # noqa: E402
from kir.syntax import load, parse  # noqa: E402


def _run(**options: Any) -> Any:
    torch._dynamo.reset()
    x = torch.arange(40.0).view(4, 10)
    run = torch.compile(lambda x: (x * 2 + 1).sum(1), backend="kir",
                        options={"strict": True, **options}, dynamic=False)  # fmt: skip
    torch.testing.assert_close(run(x), (x * 2 + 1).sum(1))


def test_a_graph_is_saved_and_a_schedule_of_its_kernel_is_used(tmp_path: Path) -> None:
    _run(save=str(tmp_path))
    (path,) = tmp_path.glob("graph_*.kir")
    module = parse(load(path))
    (name,) = module.kernels()
    assert name.startswith("k_") and "main" in module.graphs()
    wanted = tmp_path / "mine.kir"
    wanted.write_text(f"schedule mine of {name} {{ loops() }}\n")
    _run(schedule=str(wanted), save=str(tmp_path))
    wanted.write_text(f"schedule mine of {name} {{ loops() split(nowhere, 4) }}\n")
    with pytest.raises(Exception, match="nowhere"):
        _run(schedule=str(wanted))


def test_canonical_loops_and_what_is_not_there(tmp_path: Path) -> None:
    _run(schedule="none")
    for options in (
        {"schedule": str(tmp_path / "no.kir")},
        {"store": f"sqlite:///{tmp_path}/no.db"},
    ):
        with pytest.raises(Exception) as raised:
            _run(**options)
        found: BaseException | None = raised.value
        while found is not None and not isinstance(found, KirError):
            found = found.__cause__ or getattr(found, "inner_exception", None)
        assert isinstance(found, KirError)
