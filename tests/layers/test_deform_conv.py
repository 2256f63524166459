import numpy as np
import pytest
import torch
from torchvision import ops

from atss_core.layers import DeformConv2d, deform_conv2d, portable_operators
from tests import golden
from tests.devices import compiled_devices, devices, needs_compiled, on_compiled_cuda
from tests.layers import oracles

# name: channels in, out, groups, offset groups, kernel, stride, padding, dilation, modulated
GEOMETRIES = {
    "plain": (3, 4, 1, 1, (3, 3), (1, 1), (1, 1), (1, 1), True),
    "DCNv1": (4, 3, 1, 1, (3, 3), (1, 1), (1, 1), (1, 1), False),
    "groups": (8, 4, 2, 4, (3, 3), (1, 1), (1, 1), (1, 1), True),
    "offset groups across groups": (12, 8, 4, 3, (3, 3), (1, 1), (1, 1), (1, 1), True),
    "odd": (6, 6, 3, 2, (2, 3), (2, 1), (0, 2), (1, 2), True),
    "wide": (2, 2, 1, 2, (1, 5), (1, 3), (2, 0), (2, 1), False),
    "point": (16, 8, 1, 1, (1, 1), (1, 1), (0, 0), (1, 1), True),
    "many taps": (2, 2, 1, 1, (6, 6), (1, 1), (3, 3), (1, 1), True),
}
geometries = pytest.mark.parametrize("geometry", GEOMETRIES)


def inputs(geometry, *, num=2, size=(5, 7), dtype=torch.float64, device="cpu", seed=0):
    """Return input, offset, weight, bias, mask (or None), and stride, padding, dilation."""
    c_in, c_out, groups, offset_groups, kernel, stride, padding, dilation, modulated = GEOMETRIES[geometry]
    random = torch.Generator().manual_seed(seed)
    out = [(size[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in range(2)]
    taps = kernel[0] * kernel[1]

    def draw(*shape):
        return torch.randn(*shape, generator=random, dtype=torch.float64).to(device, dtype).requires_grad_()

    x, offset = draw(num, c_in, *size), draw(num, offset_groups * 2 * taps, *out)
    weight, bias = draw(c_out, c_in // groups, *kernel), draw(c_out)
    mask = draw(num, offset_groups * taps, *out) if modulated else None
    return (x, offset, weight, bias, mask), (stride, padding, dilation)


def call(values, shape):
    x, offset, weight, bias, mask = values
    return deform_conv2d(x, offset, weight, bias, *shape, mask)


@devices
@geometries
def test_equals_a_loop(geometry, device):
    values, shape = inputs(geometry, size=(4, 5), device=device)
    x, offset, weight, bias, mask = (v if v is None else v.detach().cpu() for v in values)
    expected = oracles.deform_conv2d(x, offset, weight, bias, *shape, mask)
    torch.testing.assert_close(call(values, shape).detach().cpu(), expected, rtol=1e-9, atol=1e-9)


@devices
@geometries
def test_output_and_all_gradients_equal_torchvision(geometry, device):
    values, shape = inputs(geometry, device=device)
    x, offset, weight, bias, mask = (v if v is None else v.detach().cpu().requires_grad_() for v in values)
    expected = ops.deform_conv2d(x, offset, weight, bias, *shape, mask)
    gradient = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected.backward(gradient)
    output = call(values, shape)
    output.backward(gradient.to(device))
    torch.testing.assert_close(output.cpu(), expected, rtol=1e-9, atol=1e-9)
    for ours, theirs in zip(values, (x, offset, weight, bias, mask), strict=True):
        if ours is not None:
            torch.testing.assert_close(ours.grad.cpu(), theirs.grad, rtol=1e-9, atol=1e-9)


@devices
@pytest.mark.parametrize("geometry", ["plain", "DCNv1", "offset groups across groups", "odd"])
def test_gradcheck(geometry, device):
    values, shape = inputs(geometry, num=1, size=(3, 4), device=device)
    inputs_with_gradient = [v for v in values if v is not None]

    def function(*tensors):
        return call([*tensors, None] if len(tensors) == 4 else tensors, shape)

    # On CUDA the gradient of the input is summed in any order.
    assert torch.autograd.gradcheck(
        function, inputs_with_gradient, nondet_tol=1e-9 if device == "cuda" else 0.0, fast_mode=True
    )


@devices
@pytest.mark.parametrize("case", [0, 1])
def test_golden(case, device):
    expected = golden.arrays("deform_conv")
    value = {
        k: torch.from_numpy(expected[f"{case}/{k}"]).to(device)
        for k in ("x", "offset", "mask", "weight", "bias", "grad_out")
    }
    stride, _, groups = expected[f"{case}/stride_pad_groups"].tolist()
    out_channels, in_channels = value["weight"].shape[0], value["x"].shape[1]
    layer = DeformConv2d(in_channels, out_channels, stride=stride, groups=groups, bias=True)
    layer.conv.weight.data, layer.conv.bias.data = value["weight"], value["bias"]
    # Replace the layer's predicted offsets and mask logits.
    mask = value["mask"]
    predicted = torch.cat([value["offset"], torch.logit(mask.double()).float()], dim=1).requires_grad_()
    layer.offset = torch.nn.Identity()
    layer.offset.forward = lambda x: predicted
    x = value["x"].clone().requires_grad_()
    out = layer(x)
    out.backward(value["grad_out"])

    def close(actual, name, tolerance):
        return np.allclose(actual.detach().cpu(), expected[f"{case}/{name}"], atol=tolerance)

    assert close(out, "out", 1e-4)
    assert close(x.grad, "grad_x", 1e-4)
    grad_offset, grad_logits = predicted.grad.split([mask.shape[1] * 2, mask.shape[1]], dim=1)
    assert close(grad_offset, "grad_offset", 1e-3)
    assert close(grad_logits / (mask * (1 - mask)), "grad_mask", 1e-3)
    assert close(layer.conv.weight.grad, "grad_weight", 1e-3)


@devices
def test_more_rows_than_a_band(device):
    # A row of 9 * 256 columns has 9216 bytes: a band holds 1820 rows on the CPU (16 MiB) and 29127 on CUDA
    # (256 MiB).
    size = 32 if device == "cpu" else 128
    random = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=random)  # noqa: E731
    values = [draw(3, 256, size, size), draw(3, 18, size, size), draw(16, 256, 3, 3) / 48]
    values.append(draw(3, 9, size, size).sigmoid())
    gradient = draw(3, 16, size, size) / size

    def run(function, device):
        x, offset, weight, mask = leaves = [v.clone().to(device).requires_grad_() for v in values]
        out = function(x, offset, weight, padding=1, mask=mask)
        out.backward(gradient.to(device))
        return [out.detach().cpu(), *(leaf.grad.cpu() for leaf in leaves)]

    expected = run(ops.deform_conv2d, "cpu")
    torch.testing.assert_close(run(deform_conv2d, device), expected, rtol=1e-3, atol=1e-4)


@devices
def test_zero_offsets_are_a_convolution(device):
    x, weight = torch.randn(2, 4, 9, 8, device=device), torch.randn(6, 2, 3, 3, device=device)
    output = deform_conv2d(x, torch.zeros(2, 18, 5, 4, device=device), weight, stride=2, padding=1)
    expected = torch.nn.functional.conv2d(x, weight, stride=2, padding=1, groups=2)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)


@devices
def test_samples_beyond_the_input_are_zero(device):
    x = torch.ones(1, 1, 3, 3, device=device, requires_grad=True)
    weight = torch.ones(1, 1, 1, 1, device=device)
    for moved, value in [
        ((0, 0), 1),
        ((-0.5, 0), 0.5),
        ((-1, 0), 0),
        ((2.5, 2.5), 0.25),
        ((3, 0), 0),
        ((1e9, 0), 0),
    ]:
        offset = torch.zeros(1, 2, 3, 3, device=device)
        offset[0, :, 0, 0] = torch.tensor(moved)
        assert deform_conv2d(x, offset, weight)[0, 0, 0, 0].item() == value


@devices
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -1e30, 1e10])
def test_offsets_that_are_not_finite_sample_zero(value, device):
    x = torch.ones(1, 1, 2, 2, device=device, requires_grad=True)
    offset = torch.full((1, 2, 2, 2), value, device=device, requires_grad=True)
    out = deform_conv2d(x, offset, torch.ones(1, 1, 1, 1, device=device))
    out.sum().backward()
    for zero in (out, offset.grad, x.grad):
        assert (zero == 0).all()


@devices
@pytest.mark.parametrize("axis", [0, 1])
def test_offset_gradient_is_zero_from_one_pixel_outside(axis, device):
    # On the last and the first pixel, half a pixel outside, and on the border: -1 before, 3 behind.
    for position, slope in [(2, -6.0), (0, 2.0), (-0.5, 4.0), (2.5, -6.0), (-1, 0.0), (3, 0.0)]:
        ramp = torch.tensor([4.0, 6.0, 6.0], device=device)
        x = (ramp[:, None] if axis == 0 else ramp).expand(1, 1, 3, 3)
        offset = torch.zeros(1, 2, 3, 3, device=device)
        offset[0, axis] = position - torch.arange(3.0, device=device).view(-1, *[1] * (1 - axis))
        offset.requires_grad_()
        deform_conv2d(x, offset, torch.ones(1, 1, 1, 1, device=device)).sum().backward()
        assert (offset.grad[0, axis] == slope).all()
        assert (offset.grad[0, 1 - axis, 1:-1, 1:-1] == 0).all()


@compiled_devices
@geometries
def test_fallback_equals_the_compiled_operator_outside_the_input(geometry, device):
    # Whole and half offsets put many samples exactly on the border, -1 and the size of the input.
    values, shape = inputs(geometry, device=device)
    offset = (values[1].detach() * 4).round() / 2
    offset.flatten()[::7] = float("nan")

    def run():
        leaves = [v if v is None else v.detach().requires_grad_() for v in (values[0], offset, *values[2:])]
        out = call(leaves, shape)
        out.square().sum().backward()
        return [out.detach(), *(leaf.grad for leaf in leaves if leaf is not None)]

    expected = run()
    with portable_operators():
        torch.testing.assert_close(run(), expected, rtol=1e-9, atol=1e-9)


@devices
def test_new_layer_has_no_offset_gradient_outside_the_border(device):
    # Outside taps are at exactly -1 or at the size of the input.
    torch.manual_seed(0)
    layer = DeformConv2d(4, 4, modulated=False).to(device)
    x = torch.randn(1, 4, 5, 6, device=device)
    predicted = layer.offset(x)
    predicted.retain_grad()
    deform_conv2d(x, predicted, layer.conv.weight, padding=1).sum().backward()
    gradient = predicted.grad.view(3, 3, 2, 5, 6)
    assert (gradient[0, :, :, 0] == 0).all()
    assert (gradient[2, :, :, -1] == 0).all()
    assert (gradient[:, 0, :, :, 0] == 0).all()
    assert (gradient[:, 2, :, :, -1] == 0).all()
    assert (gradient[1, 1] != 0).all()


@devices
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(dtype, device):
    values, shape = inputs("groups", dtype=torch.float32)
    half = [v.detach().to(device, dtype).requires_grad_() for v in values]
    exact = [v.detach().float().cpu().requires_grad_() for v in half]
    output, expected = call(half, shape), call(exact, shape)
    assert output.dtype == dtype
    tolerance = {"rtol": 2e-2, "atol": 0.15 if dtype == torch.bfloat16 else 0.03}
    torch.testing.assert_close(output.float().cpu(), expected, **tolerance)
    output.sum().backward()
    expected.sum().backward()
    for ours, theirs in zip(half, exact, strict=True):
        torch.testing.assert_close(ours.grad.float().cpu(), theirs.grad, **tolerance)


@compiled_devices
def test_memory_format_of_the_input_is_preserved(device):
    values, shape = inputs("plain", device=device)
    last = [v.detach().to(memory_format=torch.channels_last) if v.dim() == 4 else v for v in values]
    output = call(last, shape)
    assert output.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(output, call(values, shape))


@devices
def test_no_images(device):
    values, shape = inputs("plain", num=0, device=device)
    out = call(values, shape)
    assert out.shape == (0, 4, 5, 7)
    out.sum().backward()
    assert (values[2].grad == 0).all()


@needs_compiled
@pytest.mark.parametrize("geometry", ["plain", "groups", "offset groups across groups"])
def test_gradients_of_samples_do_not_depend_on_the_threads(geometry):
    # The other gradients come from PyTorch's convolution, which does not guarantee this.
    values, shape = inputs(geometry, size=(40, 40), dtype=torch.float32)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        leaves = [v.detach().requires_grad_() for v in values]
        call(leaves, shape).sum().backward()
        results.append([leaves[0].grad, leaves[1].grad, leaves[4].grad])
    torch.set_num_threads(before)
    for other in results[1:]:
        for ours, theirs in zip(other, results[0], strict=True):
            assert torch.equal(ours, theirs)


@needs_compiled
def test_errors_name_the_argument():
    (x, offset, weight, bias, mask), shape = inputs("plain")
    with pytest.raises(ValueError, match=r"offset must have 2 \* 9 channels for each group .*, got 17"):
        deform_conv2d(x, offset[:, :17], weight, bias, *shape, mask)
    with pytest.raises(ValueError, match=r"offset must be \[2, 18, 5, 7\], got \[2, 18, 4, 7\]"):
        deform_conv2d(x, offset[:, :, :4], weight, bias, *shape, mask)
    with pytest.raises(ValueError, match=r"mask must be \[2, 9, 5, 7\], got \[2, 8, 5, 7\]"):
        deform_conv2d(x, offset, weight, bias, *shape, mask[:, :8])
    with pytest.raises(ValueError, match="do not divide into groups"):
        deform_conv2d(x, offset, weight[:, :2], bias, *shape, mask)
    with pytest.raises(ValueError, match="one floating type and device, got Double on cpu and Float on cpu"):
        deform_conv2d(x, offset, weight.float(), bias, *shape, mask)
    with pytest.raises(ValueError, match="one floating type and device, got Double on cpu and Float on cpu"):
        deform_conv2d(x, offset, weight, bias.float(), *shape, mask)
    with pytest.raises(ValueError, match=r"bias must be \[4\], got \[3\]"):
        deform_conv2d(x, offset, weight, bias[:3], *shape, mask)
    with pytest.raises(ValueError, match="do not divide into groups"):
        deform_conv2d(x[:, :0], offset, weight[:, :1], bias, *shape, mask)
    with pytest.raises(ValueError, match=r"must be \(vertical, horizontal\), got \[1\]"):
        deform_conv2d(x, offset, weight, bias, (1,), *shape[1:], mask)
    with pytest.raises(ValueError, match=r"an input of \[2, 3, 2, 2\] with padding \[0, 0\] is too small"):
        deform_conv2d(x[:, :, :2, :2], offset, weight, bias, (2, 2), (0, 0), (1, 1), mask)


@devices
@pytest.mark.parametrize("index", range(5))
def test_one_gradient_alone(index, device):
    values, shape = inputs("groups", device=device)
    call(values, shape).sum().backward()
    alone = [v.detach().requires_grad_(i == index) for i, v in enumerate(values)]
    call(alone, shape).sum().backward()
    for i, value in enumerate(alone):
        assert (value.grad is None) == (i != index)
    torch.testing.assert_close(alone[index].grad, values[index].grad)


@needs_compiled
def test_second_derivative_is_refused():
    values, shape = inputs("plain")
    (gradient,) = torch.autograd.grad(call(values, shape).sum(), values[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        gradient.sum().backward()


@needs_compiled
def test_layer_infers_shapes_on_the_meta_device():
    with torch.device("meta"):
        layer = DeformConv2d(8, 4, stride=2)
        assert layer(torch.zeros(2, 8, 9, 7)).shape == (2, 4, 5, 4)


@devices
def test_storage_may_start_anywhere(device):
    values, shape = inputs("point", dtype=torch.float32, device=device)
    x = values[0].detach()
    room = torch.zeros(x.numel() + 1, device=device)
    shifted = room[1:].view(2, 5, 7, 16).permute(0, 3, 1, 2)
    shifted.copy_(x)
    torch.testing.assert_close(call([shifted, *values[1:]], shape), call(values, shape))


@devices
def test_autocast_computes_in_the_autocast_type(device):
    values, shape = inputs("plain", dtype=torch.float32, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        output = call([values[0].bfloat16(), values[1].bfloat16(), *values[2:]], shape)
    torch.testing.assert_close(output.float(), call(values, shape), rtol=5e-2, atol=0.2)
    output.float().sum().backward()
    assert values[2].grad.dtype == torch.float32


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=on_compiled_cuda)])
def test_deterministic_mode_refuses_the_backward_pass(device):
    values, shape = inputs("plain", device=device)
    loss = call(values, shape).sum()
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(
            RuntimeError, match="deform_conv2d_backward on CUDA does not have a deterministic"
        ):
            loss.backward()
    finally:
        torch.use_deterministic_algorithms(False)


@compiled_devices
@pytest.mark.parametrize("geometry", ["groups", "DCNv1"])
def test_opcheck_compile_and_export(geometry, device):
    values, shape = inputs(geometry, device=device, dtype=torch.float32)
    x, offset, weight, bias, mask = values
    torch.library.opcheck(torch.ops.atss.deform_conv2d.default, (x, offset, weight, bias, mask, *shape))

    class Wrapper(torch.nn.Module):
        def forward(self, *values):
            return call(values, shape)

    expected = call(values, shape)
    compiled = torch.compile(Wrapper(), fullgraph=True, backend="aot_eager")(*values)
    compiled.sum().backward()
    gradient, x.grad = x.grad, None
    expected.sum().backward()
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(gradient, x.grad)
    torch.testing.assert_close(torch.export.export(Wrapper(), values).module()(*values), expected)


@pytest.mark.parametrize("modulated", [True, False])
def test_layer_starts_as_a_convolution(modulated):
    layer = DeformConv2d(8, 4, modulated=modulated, offset_groups=2, stride=2)
    assert layer.offset.out_channels == (54 if modulated else 36)
    x = torch.randn(2, 8, 9, 7)
    plain = torch.nn.functional.conv2d(x, layer.conv.weight, stride=2, padding=1)
    assert torch.allclose(layer(x), plain * (0.5 if modulated else 1), atol=1e-5)


def test_layer_splits_offsets_of_all_groups_before_masks():
    layer = DeformConv2d(4, 4, offset_groups=2)
    layer.offset.bias.data[36 + 9 :] = -100.0  # the masks of the second group
    x = torch.randn(1, 4, 5, 5)
    x_first = x.clone()
    x_first[:, 2:] = 0
    assert torch.allclose(layer(x), layer(x_first), atol=1e-6)
