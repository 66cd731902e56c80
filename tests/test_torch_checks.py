"""Indices out of range: torch.compile(backend="kir") raises where eager does, and only there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
F = torch.nn.functional

X = torch.arange(20.0).reshape(4, 5)
WRONG: dict[str, tuple[Callable[..., Any], list[Any]]] = {
    "rows": (lambda x, t: x[t], [1, -5]),
    "rows and columns": (lambda x, t: x[t[:, None], t], [3, 4]),
    "embedding": (lambda x, t: F.embedding(t, x), [0, 4]),
    "a negative row of an embedding": (lambda x, t: F.embedding(t, x), [0, -1]),
    "gather": (lambda x, t: x.gather(1, t[None]), [1, 5]),
    "index_select": (lambda x, t: x.index_select(1, t), [0, 7]),
    "scatter_add": (lambda x, t: x.scatter_add(1, t[None], x[:1, :2]), [2, 7]),
    "index_add": (lambda x, t: x.index_add(0, t, x[:2]), [1, 4]),
    "index_fill": (lambda x, t: x.index_fill(0, t, 1.0), [1, -7]),
    "index_put": (lambda x, t: torch.index_put(x, [t], x[0]), [1, 9]),
    "take": (lambda x, t: x.take(t), [0, 20]),
    "targets": (lambda x, t: F.cross_entropy(x[:2], t), [0, 5]),
}
RIGHT: dict[str, tuple[Callable[..., Any], list[Any]]] = {
    "from the end": (lambda x, t: x[t], [-1, -4]),
    "a class that is ignored": (lambda x, t: F.cross_entropy(x[:2], t), [1, -100]),
    "another": (lambda x, t: F.cross_entropy(x[:2], t, ignore_index=9), [9, 2]),
    "a part that is in range": (lambda x, t: x[t[:1]], [3, 77]),
    "none of them": (lambda x, t: x[t[:0]], [77, 77]),
}


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    torch._dynamo.reset()
    made: Callable[..., Any] = torch.compile(
        function, backend="kir", fullgraph=True, options={"strict": True}
    )
    return made


@pytest.mark.parametrize("name", WRONG)
def test_what_eager_refuses_is_refused(name: str) -> None:
    function, indices = WRONG[name]
    with pytest.raises((IndexError, RuntimeError)) as eager:
        function(X, torch.tensor(indices))
    with pytest.raises(eager.type, match="out of bounds"):
        compiled(function)(X, torch.tensor(indices))


@pytest.mark.parametrize("name", RIGHT)
def test_what_eager_takes_is_taken(name: str) -> None:
    function, indices = RIGHT[name]
    torch.testing.assert_close(
        compiled(function)(X, torch.tensor(indices)), function(X, torch.tensor(indices))
    )
