import pytest
import torch

from atss_core.data import read_image
from atss_core.data.transforms import Normalize, to_pixels
from atss_core.export.graph import DetectorGraph, clip_boxes, top_k
from atss_core.layers import batched_nms_mask, batched_nms_padded
from atss_core.structures import ImageList
from atss_core.structures import boxes as box_ops
from atss_core.structures.pixel_format import CAFFE2_PIXELS, TORCHVISION_PIXELS
from tests.export.conftest import IMAGES


@pytest.mark.parametrize("pixels", [CAFFE2_PIXELS, TORCHVISION_PIXELS], ids=["bgr", "rgb"])
def test_normalize_equals_the_data_loader_bit_for_bit(tiny_model, pixels):
    graph = DetectorGraph(tiny_model.detector, pixels=pixels, size_divisibility=32)
    normalize = Normalize(pixels.mean, pixels.std, pixels.is_bgr255)
    images = [read_image(path, apply_exif=True) for path in IMAGES]
    expected = ImageList.from_tensors([normalize(p) for p in images], size_divisibility=32)
    padded = torch.full(
        (2, 3, *(max(p.size[axis] for p in images) for axis in (1, 0))), 99, dtype=torch.uint8
    )
    for slot, image in zip(padded, images, strict=True):
        slot[:, : image.height, : image.width] = to_pixels(image)
    normalized = graph.normalize(padded, torch.tensor([[p.height, p.width] for p in images]))
    assert torch.equal(normalized, expected.tensors)


def test_clip_boxes_equals_clip_per_image():
    boxes = torch.randn(2, 50, 4) * 100
    sizes = [(40, 70), (90, 30)]
    expected = torch.stack([box_ops.clip(b, size) for b, size in zip(boxes, sizes, strict=True)])
    assert torch.equal(clip_boxes(boxes, torch.tensor(sizes)), expected)


@pytest.mark.parametrize("seed", range(5))
def test_nms_mask_equals_padded_nms(seed):
    rng = torch.Generator().manual_seed(seed)
    corner = torch.rand(3, 200, 2, generator=rng) * 120
    boxes = torch.cat([corner, corner + torch.rand(3, 200, 2, generator=rng) * 60], dim=2)
    scores = torch.rand(3, 200, generator=rng)
    scores[0, 150:] = -1.0
    scores[2] = -1.0  # an image without boxes
    labels = torch.randint(1, 4, (3, 200), generator=rng)
    keep, counts = batched_nms_padded(boxes, scores, labels, 0.4)
    expected = torch.zeros(3, 200, dtype=torch.bool)
    for i, count in enumerate(counts):
        expected[i, keep[i, :count]] = True
    mask = batched_nms_mask(boxes, scores, labels, 0.4)
    assert torch.equal(mask, expected)
    assert 0 < mask.sum() < (scores >= 0).sum()


def test_top_k_is_sorted_and_padded_with_zeros():
    boxes = torch.arange(12.0).view(1, 3, 4)
    scores, labels = torch.tensor([[0.3, -1.0, 0.8]]), torch.tensor([[4, 5, 6]])
    top_boxes, top_scores, top_labels, counts = top_k(boxes, scores, labels, 4)
    assert counts.tolist() == [2]
    assert top_labels.tolist() == [[6, 4, 0, 0]]
    torch.testing.assert_close(top_scores, torch.tensor([[0.8, 0.3, 0.0, 0.0]]))
    assert torch.equal(top_boxes[0, :2], boxes[0, [2, 0]])
    assert not top_boxes[0, 2:].any()
    assert top_k(boxes, scores, labels, 1)[2].tolist() == [[6]]
    assert top_k(boxes, scores, labels, 0)[2].tolist() == [[6, 4, 0]]


def test_graph_equals_the_detector(tiny_model):
    graph = tiny_model.graph()
    graph.nms = batched_nms_mask
    images, arrays = tiny_model.parity_check().read_batch(IMAGES)
    with torch.inference_mode():
        expected = tiny_model.detector(images)
        boxes, scores, labels, counts = graph(*map(torch.from_numpy, arrays))
    for i, result in enumerate(expected):
        count = min(len(result), 100)  # the detector also keeps boxes that tie with the last one
        assert counts[i] == count > 0
        assert torch.equal(boxes[i, :count], result.boxes[:count])
        assert torch.equal(scores[i, :count], result.scores[:count])
        assert torch.equal(labels[i, :count], result.labels[:count])
