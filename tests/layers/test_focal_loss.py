import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atss_core.layers import portable_operators, sigmoid_focal_loss
from tests import golden
from tests.devices import compiled_devices, devices, needs_compiled
from tests.layers import oracles


@devices
def test_golden(device):
    expected = golden.arrays("focal")
    logits = torch.from_numpy(expected["logits"]).to(device).requires_grad_()
    loss = sigmoid_focal_loss(logits, torch.from_numpy(expected["labels"]).long().to(device))
    loss.backward()
    assert loss.item() == pytest.approx(float(expected["loss_cuda_formula"]), rel=1e-5)
    assert np.allclose(logits.grad.cpu().numpy(), expected["grad_cpu_path"], rtol=1e-4, atol=1e-5)


@devices
@pytest.mark.parametrize(("case", "label"), [("pos", 1), ("neg", 0), ("ign", -1)])
def test_golden_of_extreme_logits(case, label, device):
    expected = golden.arrays("focal")
    for value, loss, gradient in zip(
        expected["extreme/logits"],
        expected[f"extreme/{case}/cuda"],
        expected[f"extreme/{case}/cuda_grad"],
        strict=True,
    ):
        # Beyond that the published kernel clamps the logarithm at the smallest float; ours stays exact.
        if abs(value) > 80:
            continue
        logit = torch.tensor([[float(value)]], device=device, requires_grad=True)
        output = sigmoid_focal_loss(logit, torch.tensor([label], device=device))
        output.backward()
        assert output.item() == pytest.approx(float(loss), rel=1e-4, abs=1e-6)
        assert logit.grad.item() == pytest.approx(float(gradient), rel=1e-4, abs=1e-6)


@devices
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 3.0])
def test_logits_up_to_a_hundred_are_exact(gamma, device):
    for logit in torch.linspace(-100, 100, 401).tolist():
        for label in (0, 1):
            x = torch.tensor([[logit]], device=device, requires_grad=True)
            loss = sigmoid_focal_loss(x, torch.tensor([label], device=device), gamma=gamma)
            loss.backward()
            expected = oracles.focal_loss(
                torch.tensor([[logit]], dtype=torch.float64), torch.tensor([label]), gamma, 0.25
            )
            assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-30)
            assert math.isfinite(x.grad.item())


@given(
    st.integers(0, 7),
    st.integers(1, 9),
    st.sampled_from([0.0, 1.5, 2.0]),
    st.sampled_from([0.0, 0.25, 1.0]),
    st.data(),
)
@settings(max_examples=100, deadline=None)
def test_equals_a_loop(rows, num_classes, gamma, alpha, data):
    numbers = st.floats(-30, 30, width=32)
    values = data.draw(st.lists(numbers, min_size=rows * num_classes, max_size=rows * num_classes))
    logits = torch.tensor(values).reshape(rows, num_classes)
    labels = data.draw(st.lists(st.integers(-1, num_classes), min_size=rows, max_size=rows))
    labels = torch.tensor(labels, dtype=torch.int64)
    expected = oracles.focal_loss(logits.double(), labels, gamma, alpha)
    assert sigmoid_focal_loss(logits, labels, gamma, alpha).item() == pytest.approx(
        expected, rel=1e-5, abs=1e-12
    )


@devices
@pytest.mark.parametrize("num_classes", [1, 3, 80, 1500])
def test_sums_over_blocks_of_any_shape(num_classes, device):
    random = torch.Generator().manual_seed(num_classes)
    logits = torch.randn(333, num_classes, generator=random) * 4
    labels = torch.randint(-1, num_classes + 1, (333,), generator=random)
    expected = oracles.focal_loss(logits.double(), labels, 2.0, 0.25)
    assert sigmoid_focal_loss(logits.to(device), labels.to(device)).item() == pytest.approx(
        expected, rel=1e-5
    )


@devices
@pytest.mark.parametrize("gamma", [0.0, 2.0, 2.5])
def test_gradient(gamma, device):
    random = torch.Generator().manual_seed(1)
    logits = (torch.randn(6, 5, generator=random, dtype=torch.float64) * 3).to(device).requires_grad_()
    labels = torch.tensor([-1, 0, 1, 3, 5, 2], device=device)
    assert torch.autograd.gradcheck(lambda x: sigmoid_focal_loss(x, labels, gamma), (logits,))
    in_float = logits.detach().float().requires_grad_()
    for x in (logits, in_float):
        (3 * sigmoid_focal_loss(x, labels, gamma)).backward()
    torch.testing.assert_close(in_float.grad, logits.grad.float(), rtol=1e-5, atol=1e-6)
    assert (logits.grad[0] == 0).all()


@devices
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_summed_in_float32(dtype, device):
    logits = torch.randn(500, 80, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    labels = torch.arange(500, device=device) % 82 - 1
    exact = logits.float().requires_grad_()
    logits.requires_grad_()
    expected, output = sigmoid_focal_loss(exact, labels), sigmoid_focal_loss(logits, labels)
    assert output.dtype == torch.float32
    assert output.item() == pytest.approx(expected.item(), rel=1e-6)
    expected.backward()
    output.backward()
    assert logits.grad.dtype == dtype
    torch.testing.assert_close(logits.grad.float(), exact.grad, rtol=1e-2, atol=1e-5)


@devices
def test_empty_input_is_zero_and_ignored_logits_may_be_anything(device):
    for shape in [(0, 5), (3, 0)]:
        logits = torch.zeros(shape, device=device, requires_grad=True)
        loss = sigmoid_focal_loss(logits, torch.zeros(shape[0], dtype=torch.int64, device=device))
        assert loss.item() == 0
        loss.backward()
        assert logits.grad.shape == shape
    logits = torch.tensor([[float("inf"), float("nan")], [0.0, 0.0]], device=device, requires_grad=True)
    loss = sigmoid_focal_loss(logits, torch.tensor([-1, 0], device=device))
    assert math.isfinite(loss.item())
    loss.backward()
    assert (logits.grad[0] == 0).all()


@devices
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 3.0])
def test_huge_logits_have_a_constant_gradient(gamma, device):
    for value in (1e3, 1e20, 1.5e38, 3.4e38):
        for label, sign, weight in [(0, 1, 0.75), (1, -1, 0.25)]:
            for wrong in (True, False):
                x = torch.tensor([[value * sign * (1 if wrong else -1)]], device=device, requires_grad=True)
                loss = sigmoid_focal_loss(x, torch.tensor([label], device=device), gamma=gamma)
                loss.backward()
                assert loss.item() == pytest.approx(weight * value if wrong else 0, rel=1e-6)
                assert x.grad.item() == (weight * sign if wrong else 0)


@devices
@pytest.mark.parametrize("alpha", [0.1, 0.25, 1.0])
def test_doubles_are_exact(alpha, device):
    logits = torch.tensor([[0.3, -2.0], [100.0, 4.0]], dtype=torch.float64)
    expected = oracles.focal_loss(logits, torch.tensor([2, 0]), 2.0, alpha)
    output = sigmoid_focal_loss(logits.to(device), torch.tensor([2, 0], device=device), alpha=alpha)
    assert output.item() == pytest.approx(expected, rel=1e-14)


@compiled_devices
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_fallback_equals_the_compiled_operator_on_hard_logits(dtype, gamma, device):
    numbers = [0.0, 1e-30, 1.0, 20.0, 60.0, 86.0, 88.0, 89.0, 104.0, 1e4, 3e37]
    row = torch.tensor([*numbers, *(-x for x in numbers)], dtype=torch.float64).to(device, dtype)
    row = row[row.isfinite()]
    labels = torch.tensor([0, *range(1, len(row) + 1), -1], device=device)
    logits = row.repeat(len(labels), 1)
    logits[-1] = float("nan")

    def run():
        leaf = logits.clone().requires_grad_()
        loss = sigmoid_focal_loss(leaf, labels, gamma, 0.1)
        loss.backward()
        return loss.detach(), leaf.grad

    expected = run()
    with portable_operators():
        # Half types round the gradient to 3 digits; below 1e-37 the compiled exp gives zero.
        torch.testing.assert_close(
            run(), expected, rtol=1e-5 if dtype != torch.float64 else 1e-12, atol=1e-36
        )


@devices
def test_memory_layout_does_not_matter(device):
    logits = torch.randn(40, 7, generator=torch.Generator().manual_seed(0)).to(device)
    labels = (torch.arange(80, device=device) % 8)[::2]
    strided = logits.t().contiguous().t()
    assert sigmoid_focal_loss(strided, labels) == sigmoid_focal_loss(logits, labels.contiguous())


@needs_compiled
def test_the_sum_does_not_depend_on_the_threads():
    logits = torch.randn(20000, 80, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(20000) % 81
    before = torch.get_num_threads()
    sums = set()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        sums.add(sigmoid_focal_loss(logits, labels).item())
    torch.set_num_threads(before)
    assert len(sums) == 1


def test_errors_name_the_argument():
    logits, labels = torch.zeros(2, 3), torch.tensor([0, 4])
    with pytest.raises(ValueError, match="a class up to 3, got 4"):
        sigmoid_focal_loss(logits, labels)
    with pytest.raises(ValueError, match=r"labels must be int64 of shape \(2,\), got (Float|torch\.float32)"):
        sigmoid_focal_loss(logits, labels.float())
    with pytest.raises(ValueError, match="alpha must be from 0 to 1, got -1"):
        sigmoid_focal_loss(logits, labels, alpha=-1.0)
    with pytest.raises(ValueError, match="gamma must be 0 or more, got -1"):
        sigmoid_focal_loss(logits, labels, gamma=-1.0)


@needs_compiled
def test_second_derivative_is_refused():
    logits = torch.zeros(2, 3, requires_grad=True)
    loss = sigmoid_focal_loss(logits, torch.tensor([0, 2]))
    (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        gradient.sum().backward()


def test_logits_of_minus_infinity_add_no_loss():
    logits = torch.tensor([[-torch.inf, 0.0]])
    for gamma in (0.0, 1.5, 2.0):
        expected = sigmoid_focal_loss(logits[:, 1:], torch.tensor([0]), gamma=gamma)
        torch.testing.assert_close(sigmoid_focal_loss(logits, torch.tensor([0]), gamma=gamma), expected)


@devices
def test_compile_without_graph_breaks_and_export(device):
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
    labels = torch.tensor([-1, 0, 1, 2, 3], device=device)
    compiled = torch.compile(sigmoid_focal_loss, fullgraph=True, backend="aot_eager")(logits, labels)
    compiled.backward()
    gradient, logits.grad = logits.grad, None
    expected = sigmoid_focal_loss(logits, labels)
    expected.backward()
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(gradient, logits.grad)

    class Wrapper(torch.nn.Module):
        def forward(self, logits, labels):
            return sigmoid_focal_loss(logits, labels)

    torch.testing.assert_close(
        torch.export.export(Wrapper(), (logits, labels)).module()(logits, labels), expected
    )


@compiled_devices
def test_opcheck(device):
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
    labels = torch.tensor([-1, 0, 1, 2, 3], device=device)
    torch.library.opcheck(torch.ops.atss.sigmoid_focal_loss.default, (logits, labels, 2.0, 0.25))
