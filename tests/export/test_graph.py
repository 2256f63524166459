import pytest
import torch

from atss_core.data import read_image
from atss_core.data.transforms import Normalize, to_pixels
from atss_core.export.graph import DetectorGraph, best, clip
from atss_core.layers import batched_nms_mask, batched_nms_padded
from atss_core.structures import ImageList
from atss_core.structures import boxes as box_ops
from atss_core.structures.pixel_format import CAFFE2_PIXELS, TORCHVISION_PIXELS
from tests.export.conftest import IMAGES


@pytest.mark.parametrize("pixels", [CAFFE2_PIXELS, TORCHVISION_PIXELS], ids=["bgr", "rgb"])
def test_pixels_are_normalised_bit_for_bit_as_the_data_loader_does(tiny_model, pixels):
    graph = DetectorGraph(tiny_model.detector, pixels=pixels, size_divisibility=32, suppress=None)
    normalize = Normalize(pixels.mean, pixels.std, pixels.is_bgr255)
    images = [read_image(path, apply_exif=True) for path in IMAGES]
    expected = ImageList.from_tensors([normalize(p) for p in images], size_divisibility=32)
    padded = torch.full(
        (2, 3, *(max(p.size[axis] for p in images) for axis in (1, 0))), 99, dtype=torch.uint8
    )
    for place, image in zip(padded, images, strict=True):
        place[:, : image.height, : image.width] = to_pixels(image)
    found = graph.normalize(padded, torch.tensor([[p.height, p.width] for p in images]))
    assert torch.equal(found, expected.tensors)


def test_boxes_are_clipped_as_everywhere():
    boxes = torch.randn(2, 50, 4) * 100
    sizes = [(40, 70), (90, 30)]
    expected = torch.stack([box_ops.clip(b, size) for b, size in zip(boxes, sizes, strict=True)])
    assert torch.equal(clip(boxes, torch.tensor(sizes)), expected)


@pytest.mark.parametrize("seed", range(5))
def test_mask_keeps_what_padded_nms_keeps(seed):
    rng = torch.Generator().manual_seed(seed)
    corner = torch.rand(3, 200, 2, generator=rng) * 120
    boxes = torch.cat([corner, corner + torch.rand(3, 200, 2, generator=rng) * 60], dim=2)
    scores = torch.rand(3, 200, generator=rng)
    scores[0, 150:] = -1.0
    scores[2] = -1.0  # an image without any
    labels = torch.randint(1, 4, (3, 200), generator=rng)
    keep, counts = batched_nms_padded(boxes, scores, labels, 0.4)
    expected = torch.zeros(3, 200, dtype=torch.bool)
    for i, count in enumerate(counts):
        expected[i, keep[i, :count]] = True
    mask = batched_nms_mask(boxes, scores, labels, 0.4)
    assert torch.equal(mask, expected)
    assert 0 < mask.sum() < (scores >= 0).sum()


def test_best_are_sorted_and_padded_with_zeros():
    boxes = torch.arange(12.0).view(1, 3, 4)
    scores, labels = torch.tensor([[0.3, -1.0, 0.8]]), torch.tensor([[4, 5, 6]])
    found, best_scores, best_labels, counts = best(boxes, scores, labels, 4)
    assert counts.tolist() == [2]
    assert best_labels.tolist() == [[6, 4, 0, 0]]
    torch.testing.assert_close(best_scores, torch.tensor([[0.8, 0.3, 0.0, 0.0]]))
    assert torch.equal(found[0, :2], boxes[0, [2, 0]])
    assert not found[0, 2:].any()
    assert best(boxes, scores, labels, 1)[2].tolist() == [[6]]
    assert best(boxes, scores, labels, 0)[2].tolist() == [[6, 4, 0]]


def test_graph_detects_what_the_detector_detects(tiny_model):
    graph = tiny_model.graph()
    graph.suppress = batched_nms_mask
    images, arrays = tiny_model.prover().read(IMAGES)
    with torch.inference_mode():
        expected = tiny_model.detector(images)
        boxes, scores, labels, counts = graph(*map(torch.from_numpy, arrays))
    for i, result in enumerate(expected):
        count = min(len(result), 100)  # the detector keeps ties with the last one
        assert counts[i] == count > 0
        assert torch.equal(boxes[i, :count], result.boxes[:count])
        assert torch.equal(scores[i, :count], result.scores[:count])
        assert torch.equal(labels[i, :count], result.labels[:count])
