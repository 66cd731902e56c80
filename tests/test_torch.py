"""torch.compile(backend="kir"): values, gradients, strides, aliases, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed (the extra kir[torch])")
F = torch.nn.functional

STRICT = {"strict": True}


def compiled(f: Any, **options: Any) -> Any:
    torch._dynamo.reset()
    return torch.compile(f, backend="kir", options=options or STRICT, dynamic=False)


def check(f: Any, *args: Any) -> None:
    """Equal to eager in value, dtype, shape and strides, twice."""
    made = compiled(f)
    for _ in range(2):
        want, got = f(*args), made(*args)
        torch.testing.assert_close(got, want, equal_nan=True)
        flat = [(got, want)] if isinstance(want, torch.Tensor) else list(zip(got, want))
        assert [a.stride() for a, _ in flat] == [b.stride() for _, b in flat]
        args = tuple(torch.randn_like(a) if a.is_floating_point() else a for a in args)


def normal(*shape: int, dtype: Any = torch.float32) -> Any:
    generator = torch.Generator().manual_seed(sum(shape) + len(shape))
    return torch.randn(*shape, generator=generator).to(dtype)


CASES: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "pointwise": (lambda x, y: F.gelu(x) * 2 - y / 3 + x.sigmoid(), (normal(4, 5), normal(5))),
    "bf16": (lambda x: F.silu(x) + x.exp(), (normal(4, 33, dtype=torch.bfloat16),)),
    "promotion": (lambda x, n: x + n * 2, (normal(3, 4), torch.arange(4))),
    "comparisons": (lambda x: torch.where(x > 0, x, x - 1).clamp(-1, 1), (normal(17),)),
    "sums": (lambda x: (x.sum(-1), x.mean(0, keepdim=True), x.amax()), (normal(6, 7),)),
    "var": (lambda x: torch.var_mean(x, (0, 2)), (normal(3, 4, 5),)),
    "argmax": (lambda x: (x.argmax(), x.argmin(1)), (normal(6, 7),)),
    "softmax": (lambda x: (x.softmax(-1), x.log_softmax(0)), (normal(6, 37),)),
    "layer_norm": (lambda x, w: F.layer_norm(x, (37,), w), (normal(6, 37), normal(37))),
    "matmul": (lambda a, b: a @ b + 1, (normal(5, 6), normal(6, 7))),
    "batched": (lambda a, b: a @ b.transpose(1, 2), (normal(2, 5, 6), normal(2, 7, 6))),
    "linear": (F.linear, (normal(2, 3, 8), normal(5, 8), normal(5))),
    "views": (lambda x: x.reshape(6, 4).t().reshape(2, 2, 6) * 2, (normal(2, 3, 4),)),
    "heads": (lambda x: x.view(2, 5, 3, 4).transpose(1, 2).exp(), (normal(2, 5, 12),)),
    "across": (lambda x: x.view(3, 2).t().reshape(6).view(3, 2) + 1, (normal(6),)),
    "slices": (lambda x: x[1:, ::2] + x[:-1, 1::2], (normal(4, 8),)),
    "cat": (lambda x, y: torch.cat([x, y * 2], 1).cos(), (normal(3, 2), normal(3, 5))),
    "stack": (lambda x, y: torch.stack([x, y], -1), (normal(3, 2), normal(3, 2))),
    "split": (lambda x: [a * 2 for a in x.chunk(3, -1)], (normal(4, 7),)),
    "embedding": (
        lambda w, i: F.embedding(i, w) * 2, (normal(9, 4), torch.tensor([[1, 8], [0, 3]]))
    ),
    "conv2d": (
        lambda x, w, b: F.conv2d(x, w, b, stride=2, padding=1).relu(),
        (normal(2, 6, 9, 8), normal(4, 6, 3, 3), normal(4)),
    ),
    "depthwise": (
        lambda x, w: F.conv2d(x, w, groups=6, dilation=2, padding=2),
        (normal(1, 6, 9, 8), normal(6, 1, 3, 3)),
    ),
    "conv1d": (lambda x, w: F.conv1d(x, w, padding=2), (normal(2, 3, 17), normal(5, 3, 5))),
    "pools": (
        lambda x: (F.max_pool2d(x, 3, 2, 1), F.avg_pool2d(x, 2), F.adaptive_avg_pool2d(x, 1)),
        (normal(2, 3, 9, 8),),
    ),
    "batch_norm": (
        lambda x, m, v, w: F.batch_norm(x, m, v.exp(), w), (normal(2, 3, 5), *[normal(3)] * 3)
    ),
    "pad": (lambda x: F.pad(x, (1, 2, 0, 3), value=0.5) * 2, (normal(3, 4),)),
    "indices": (
        lambda x, i: (x[i], x[:, i[0]], x.gather(0, i[:2]), x.index_select(1, i[1])),
        (normal(4, 3), torch.tensor([[1, 2, 0], [0, 1, 1], [3, 2, 2]]).clamp(max=2)),
    ),
    "order": (lambda x: (x.flip(0, 1), x.diagonal(1), *x.max(1)), (normal(4, 5),)),
    "strided input": (lambda x: x * 2, (normal(6, 5).t(),)),
    "channels last": (
        lambda x: x.relu(), (normal(2, 3, 4, 5).to(memory_format=torch.channels_last),)
    ),
    "empty": (lambda x: (x + 1, x.sum(0)), (normal(0, 3),)),
    "scalar": (lambda x: x.exp() + 1, (normal(1)[0],)),
    "expanded": (lambda x: (x + 1).expand(4, 3), (normal(3),)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_it_is_as_eager(name: str) -> None:
    f, args = CASES[name]
    check(f, *args)


def test_mutation_and_aliases() -> None:
    def f(x: Any, y: Any) -> Any:
        x.add_(y)
        return x, y.view(-1), x[0]

    x, y = normal(3, 4), normal(3, 4) * 2
    mine, theirs = x.clone(), x.clone()
    got, want = compiled(f)(mine, y), f(theirs, y)
    torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(got, want)
    assert got[0].data_ptr() == mine.data_ptr() and got[1].data_ptr() == y.data_ptr()


def test_a_training_step() -> None:
    def model() -> Any:
        torch.manual_seed(0)
        return torch.nn.Sequential(
            torch.nn.Linear(16, 32), torch.nn.GELU(), torch.nn.LayerNorm(32), torch.nn.Linear(32, 8)
        )

    one, other, x = model(), model(), normal(2, 3, 16)
    compiled(one)(x).square().sum().backward()
    other(x).square().sum().backward()
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_strict_names_what_it_does_not_compile() -> None:
    def f(x: Any) -> Any:
        return torch.linalg.inv(x) + 1

    with pytest.raises(Exception, match=r"does not compile `aten\.\w+.*float32.*File .*line"):
        compiled(f)(normal(3, 3))


def test_without_strict_pytorch_runs_the_rest() -> None:
    def f(x: Any) -> Any:
        return torch.linalg.inv(x * 2 + torch.eye(3)).exp() + 1

    x = normal(3, 3)
    torch.testing.assert_close(compiled(f, strict=False)(x), f(x))


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(Exception, match="no option `speed`"):
        compiled(lambda x: x + 1, speed=1)(normal(3))


SQUARE = "kernel kir_test_square[N](x: f32[N]) -> (y: f32[N]) { y[i: N] = x[i] * x[i] }"
SLOPE = """kernel slope[N](x: f32[N], d_y: f32[N]) -> (d_x: f32[N]) {
  d_x[i: N] = 2.0 * x[i] * d_y[i]
}"""


def test_a_kernel_is_an_operator() -> None:
    """Eager, autograd, fake tensors and torch.compile; torch's own checks of an operator."""
    from kir.frontends.torch import load_op

    square = load_op(SQUARE, backward=SLOPE)
    x = normal(5).requires_grad_()
    torch.library.opcheck(torch.ops.kir.kir_test_square, (x,))
    torch.compile(lambda v: square(v) + 1, backend="eager", fullgraph=True)(x).sum().backward()
    torch.testing.assert_close(x.grad, 2 * x.detach())
    with pytest.raises(Exception, match="float64, and the kernel takes f32"):
        square(normal(5).double())


def test_a_backward_kernel_is_named_by_the_first() -> None:
    from kir.errors import UsageError
    from kir.frontends.torch import load_op

    other = "kernel b[N](z: f32[N]) -> (d_x: f32[N]) { d_x[i: N] = z[i] }"
    with pytest.raises(UsageError, match="takes `z`, which is neither input nor output"):
        load_op(SQUARE.replace("square", "other"), backward=other)


def test_explain_says_who_runs_what() -> None:
    from kir.frontends.torch import explain

    found = explain(lambda x: torch.linalg.inv(x * 2).exp(), normal(3, 3))
    assert found.compiled == {"mul.Tensor": 1, "exp.default": 1}
    assert any("linalg_inv" in why and "float32" in why for why in found.eager)
    assert "PyTorch: KIR does not compile" in str(found)


def test_random_numbers_follow_the_seed() -> None:
    """Eager's distribution, not its numbers; other numbers at each call."""
    f = compiled(lambda x: F.dropout(x, 0.25, True))
    x = torch.ones(64, 64)
    torch.manual_seed(3)
    first, second = f(x), f(x)
    torch.manual_seed(3)
    assert torch.equal(f(x), first) and not torch.equal(first, second)
    torch.testing.assert_close(first.unique(), torch.tensor([0.0, 1 / 0.75]))
    assert abs(float((first == 0).float().mean()) - 0.25) < 0.03


def test_a_window_does_not_read_what_a_slice_leaves_out() -> None:
    check(lambda x: F.pad(x[1:-1], (0, 0, 1, 1)), normal(5, 3))
    check(lambda x: F.avg_pool2d(x[:, :, 1:], 3, 1, 1), normal(1, 2, 5, 4))


def test_an_argmax_over_one_element_is_0() -> None:
    check(lambda x: (x.argmax(1), x.max(1).indices), normal(4, 1))
