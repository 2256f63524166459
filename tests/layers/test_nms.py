import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import ops

from atss_core.layers import batched_nms, batched_nms_padded, nms
from atss_core.structures.boxes import to_exclusive
from tests import golden
from tests.devices import compiled_devices, devices, on_compiled_cuda
from tests.layers import oracles
from tests.layers.crowds import THRESHOLDS, crowds


@devices
@pytest.mark.parametrize("threshold", [0.5, 0.6])
@pytest.mark.parametrize("case", ["a", "b"])
def test_golden(case, threshold, device):
    expected = golden.arrays("nms")
    boxes, scores, labels = (
        torch.from_numpy(expected[f"{case}/{k}"]).to(device) for k in ("boxes", "scores", "labels")
    )
    kept = nms(boxes, scores, threshold).tolist()
    assert sorted(kept) == sorted(expected[f"{case}/nms/{threshold}"].tolist())
    kept = batched_nms(boxes, scores, labels, threshold).tolist()
    assert sorted(kept) == sorted(expected[f"{case}/ml_nms/{threshold}"].tolist())


@devices
def test_a_box_exactly_at_the_threshold_stays(device):
    expected = golden.arrays("nms")
    boxes, scores = (torch.from_numpy(expected[f"edge/{k}"]).to(device) for k in ("boxes", "scores"))
    assert sorted(nms(boxes, scores, 0.6).tolist()) == expected["edge/keep_gpu_strict"].tolist()


@given(crowds(), THRESHOLDS)
@settings(max_examples=300, deadline=None)
def test_equals_a_loop_with_ties_everywhere(crowd, threshold):
    boxes, scores, labels = crowd
    assert batched_nms(boxes, scores, labels, threshold).tolist() == oracles.nms(
        boxes, scores, labels, threshold
    )
    one_class = torch.zeros_like(labels)
    assert nms(boxes, scores, threshold).tolist() == oracles.nms(boxes, scores, one_class, threshold)


@given(crowds(), THRESHOLDS, st.integers(0, 12))
@settings(max_examples=100, deadline=None)
def test_padded_equals_a_loop(crowd, threshold, max_detections):
    boxes, scores, labels = crowd
    scores = torch.where(scores == 0.2, -1.0, scores)  # padding, anywhere
    keep, counts = batched_nms_padded(
        torch.stack([boxes, boxes.flip(0)]), torch.stack([scores, scores.flip(0)]),
        torch.stack([labels, labels.flip(0)]), threshold, max_detections,
    )  # fmt: skip
    assert keep.shape == (2, len(boxes))
    for image, (b, s, c) in enumerate(
        [(boxes, scores, labels), (boxes.flip(0), scores.flip(0), labels.flip(0))]
    ):
        is_box = (s >= 0).nonzero().squeeze(1)
        expected = [is_box[i].item() for i in oracles.nms(b[is_box], s[is_box], c[is_box], threshold)]
        if 0 < max_detections < len(expected):
            last = s[expected[max_detections - 1]]
            expected = [i for i in expected if s[i] >= last]
        assert counts[image] == len(expected)
        assert keep[image].tolist() == expected + [-1] * (len(b) - len(expected))


@pytest.mark.parametrize("kind", ["uniform", "clustered", "all sizes", "thin", "one position", "far away"])
@pytest.mark.parametrize("threshold", [0.05, 0.25, 0.6, 0.95])
@devices
def test_many_boxes_equal_torchvision(kind, threshold, device):
    # Enough boxes to enable the search by size and position (csrc/cpu/greedy_nms.cpp).
    random = torch.Generator().manual_seed(3)
    count = 2000
    corner = torch.rand(count, 2, generator=random) * 500
    sizes = torch.rand(count, 2, generator=random) * 60 + 1
    if kind == "clustered":
        corner = corner[:20].repeat(100, 1) + torch.randn(count, 2, generator=random) * 4
        sizes = sizes[:20].repeat(100, 1) * (1 + 0.1 * torch.rand(count, 2, generator=random))
    elif kind == "all sizes":
        sizes = torch.exp(torch.rand(count, 2, generator=random) * 16 - 8)
    elif kind == "thin":
        sizes = torch.exp(torch.rand(count, 1, generator=random) * 4 * torch.tensor([-1.0, 1.0])) * 10
    elif kind == "one position":
        corner = torch.rand(count, 2, generator=random)
    elif kind == "far away":
        corner = corner - 1e6
    boxes = torch.cat([corner, corner + sizes - 1], dim=1)
    scores = torch.rand(count, generator=random)
    expected = ops.nms(to_exclusive(boxes), scores, torch.tensor(threshold).item())
    assert nms(boxes.to(device), scores.to(device), threshold).tolist() == expected.tolist()
    labels = torch.randint(0, 3, (count,), generator=random)
    expected = [ops.nms(to_exclusive(boxes[labels == c]), scores[labels == c], threshold) for c in range(3)]
    expected = torch.cat([(labels == c).nonzero().squeeze(1)[e] for c, e in enumerate(expected)])
    kept = batched_nms(boxes.to(device), scores.to(device), labels.to(device), threshold)
    assert sorted(kept.tolist()) == sorted(expected.tolist())
    assert scores[kept.cpu()].tolist() == sorted(scores[kept.cpu()].tolist(), reverse=True)


@compiled_devices  # torchvision's build may round differently
@pytest.mark.parametrize("padding", [0, 1000])
def test_an_iou_is_rounded_step_by_step(padding, device):
    # With fused multiply-add, which rounds once instead of twice, some of these decisions would change.
    random = torch.Generator().manual_seed(4)
    corner = torch.rand(200, 2, generator=random) * 100
    first = torch.cat([corner, corner + torch.rand(200, 2, generator=random) * 50 + 10], dim=1)
    second = first + torch.randn(200, 4, generator=random) * 2
    far = torch.arange(padding)[:, None] * 100 + torch.tensor([1e4, 1e4, 1e4 + 30, 1e4 + 30])
    scores = torch.linspace(1, 0.5, 2 + padding, device=device)
    for a, b in zip(first, second, strict=True):
        exactly = oracles.iou(a.numpy(), b.numpy())
        boxes = torch.cat([a[None], b[None], far]).to(device)
        assert len(nms(boxes, scores, float(exactly))) == 2 + padding
        below = float(np.nextafter(exactly, np.float32(0)))
        assert len(nms(boxes, scores, below)) == 1 + padding


@devices
def test_a_hundred_thousand_boxes(device):
    random = torch.Generator().manual_seed(0)
    corner = torch.rand(300, 2, generator=random).repeat_interleave(334, dim=0)[:100_000] * 4000
    boxes = torch.cat([corner, corner + 50], dim=1) + torch.randn(100_000, 4, generator=random)
    scores = torch.rand(100_000, generator=random)
    expected = ops.nms(to_exclusive(boxes), scores, 0.6)
    assert torch.equal(nms(boxes.to(device), scores.to(device), 0.6).cpu(), expected)


@devices
def test_no_box_and_one_box(device):
    empty = torch.zeros(0, device=device)
    assert nms(torch.zeros(0, 4, device=device), empty, 0.5).tolist() == []
    assert batched_nms(torch.zeros(0, 4, device=device), empty, empty.long(), 0.5).tolist() == []
    for images, size in [(0, 3), (2, 0), (0, 0)]:
        scores = torch.zeros(images, size, device=device)
        keep, counts = batched_nms_padded(
            torch.zeros(images, size, 4, device=device), scores, scores.long(), 0.5
        )
        assert keep.shape == (images, size)
        assert counts.tolist() == [0] * images
    assert nms(
        torch.tensor([[1.0, 2.0, 3.0, 4.0]], device=device), torch.ones(1, device=device), 0.5
    ).tolist() == [0]


@devices
def test_invalid_boxes_neither_suppress_nor_are_suppressed(device):
    inf, nan = float("inf"), float("nan")
    boxes = [
        *([0, 0, 10, 10], [nan, 0, 10, 10], [0, 0, inf, 10], [0, 0, 10, 10], [-inf, -inf, inf, inf]),
        *([0, 0, 10, nan], [5, 5, 4, 4], [5, 5, 4, 4], [9, 9, 2, 2], [0, 0, 3e38, 3e38], [nan] * 4),
    ]
    boxes = torch.tensor(boxes, device=device)
    scores = torch.linspace(1, 0.1, len(boxes), device=device)
    expected = [i for i in range(len(boxes)) if i != 3]
    assert nms(boxes, scores, 0.5).tolist() == expected
    assert batched_nms(boxes, scores, torch.ones(len(boxes), device=device).int(), 0.5).tolist() == expected
    many = boxes.repeat(100, 1)  # the search by size and position
    kept = nms(many, torch.linspace(1, 0.1, len(many), device=device), 0.5)
    ordinary = many[kept].eq(torch.tensor([0.0, 0.0, 10.0, 10.0], device=device)).all(dim=1)
    assert ordinary.sum() == 1
    assert len(kept) == 9 * 100 + 1


@compiled_devices
def test_nan_scores_rank_first_or_mark_padding(device):
    boxes = torch.tensor([[0.0, 0, 10, 10]], device=device).repeat(3, 1)
    scores = torch.tensor([1.0, float("nan"), 2.0], device=device)
    assert nms(boxes, scores, 0.5).tolist() == [1]
    keep, counts = batched_nms_padded(boxes[None], scores[None], torch.ones(1, 3, device=device).long(), 0.5)
    assert keep[0, : counts[0]].tolist() == [2]  # padding


@devices
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_types_are_compared_in_float32(dtype, device):
    boxes = oracles.random_boxes(200, span=2000, largest=800).to(dtype)  # areas above the range of float16
    scores = torch.rand(200, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = nms(boxes.float(), scores.float(), 0.5).tolist()
    assert nms(boxes.to(device), scores.to(device), 0.5).tolist() == expected
    labels = torch.zeros(200, dtype=torch.int32, device=device)
    assert batched_nms(boxes.to(device), scores.to(device), labels, 0.5).tolist() == expected


@devices
def test_memory_layout_does_not_matter(device):
    boxes = oracles.random_boxes(100).to(device)
    scores = torch.rand(100, generator=torch.Generator().manual_seed(1)).to(device)
    strided = torch.cat([boxes, boxes], dim=1).t().contiguous().t()[:, :4]
    assert not strided.is_contiguous()
    assert torch.equal(nms(strided, torch.stack([scores, scores], dim=1)[:, 0], 0.4), nms(boxes, scores, 0.4))


def test_errors_name_the_argument():
    boxes, scores = torch.zeros(3, 4), torch.zeros(3)
    with pytest.raises(ValueError, match=r"boxes must be \(K, 4\), got \[3, 1, 4\]"):
        nms(boxes[:, None], scores, 0.5)
    with pytest.raises(ValueError, match=r"boxes must be \(N, K, 4\), got \[3, 4\]"):
        batched_nms_padded(boxes, scores, scores.long(), 0.5)
    with pytest.raises(ValueError, match=r"scores must have one value per box, \[3\], got \[2\]"):
        nms(boxes, scores[:2], 0.5)
    with pytest.raises(ValueError, match=r"threshold must be 0 or more, got -0\.1"):
        nms(boxes, scores, -0.1)
    with pytest.raises(ValueError, match=r"labels must be integers, got (Float|torch\.float32)"):
        batched_nms(boxes, scores, scores, 0.5)


def arguments(device, images=None):
    boxes = oracles.random_boxes(30).to(device)
    scores = torch.linspace(1, 0.1, 30, device=device)
    labels = torch.arange(30, device=device) % 3
    if images:
        boxes, scores, labels = (torch.stack([value] * images) for value in (boxes, scores, labels))
    return boxes, scores, labels


@compiled_devices
def test_opcheck(device):
    boxes, scores, labels = arguments(device)
    torch.library.opcheck(torch.ops.atss.nms.default, (boxes, scores, 0.5))
    torch.library.opcheck(torch.ops.atss.batched_nms.default, (boxes, scores, labels, 0.5))
    torch.library.opcheck(torch.ops.atss.batched_nms_padded.default, (*arguments(device, 2), 0.5, 10))


@compiled_devices
@pytest.mark.parametrize("function", [nms, batched_nms, batched_nms_padded])
def test_functions_compile_without_graph_breaks_and_export(function, device):
    class Wrapper(torch.nn.Module):
        def forward(self, boxes, scores, labels):
            return function(boxes, scores, 0.5) if function is nms else function(boxes, scores, labels, 0.5)

    inputs = arguments(device, 2 if function is batched_nms_padded else None)
    expected = Wrapper()(*inputs)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(Wrapper(), fullgraph=True, backend="aot_eager")(*inputs)
    exported = torch.export.export(Wrapper(), inputs).module()(*inputs)
    for kept in (compiled, exported):
        torch.testing.assert_close(kept, expected, rtol=0, atol=0)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=on_compiled_cuda)])
def test_padded_is_captured_in_a_cuda_graph(device):
    boxes = oracles.random_boxes(5000, span=1000).to(device)
    boxes = torch.stack([boxes, boxes.flip(0)])
    scores = torch.rand(2, 5000, generator=torch.Generator().manual_seed(0)).to(device)
    labels = torch.arange(10000, device=device).view(2, 5000) % 7

    def run():
        return batched_nms_padded(boxes, scores, labels, 0.5, 100)

    expected = run()  # also the warm-up
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = run()
    graph.replay()
    torch.testing.assert_close(kept, expected)
    scores.copy_(scores.flip(1))
    graph.replay()
    torch.testing.assert_close(kept, run())
