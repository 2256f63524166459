import itertools
import random

import numpy as np
import pytest
import torch
from PIL import Image

from atss_core.config import get_cfg
from atss_core.config.catalog import DatasetEntry
from atss_core.data import DetectionDataset, build_transform, resize_size
from atss_core.data.transforms import Compose, Normalize, RandomHorizontalFlip, Resize
from atss_core.structures import BoxList
from tests.golden import SHARED, arrays, needs_coco_tiny

GOLDEN_IMAGES = (51712, 125952, 417285, 5001)


def noise(height, width):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(("min_size", "max_size"), [(800, 1333), (640, 1333), (320, 1333), (1400, 3000)])
def test_sizes_are_as_published(min_size, max_size):
    golden = arrays("preprocess_sizes")
    sizes = [resize_size((int(h), int(w)), min_size, max_size) for w, h in golden["sizes/in_wh"]]
    assert np.array_equal(sizes, golden[f"sizes/{min_size}_{max_size}/out_hw"])


def test_sides_of_extreme_ratios():
    assert resize_size((1, 5000), 800, 1333) == (1, 1349)
    assert resize_size((5000, 1), 800, 1333) == (1349, 1)


@pytest.mark.parametrize(("min_size", "max_size"), [(800, 1333), (1, 1), (3000, 10), (48, 64)])
def test_sides_are_at_least_1_and_at_most_their_cap(min_size, max_size):
    sides = (1, 2, 3, 7, 15, 1000, 4000, 100_000)
    for image_size in itertools.product(sides, sides):
        size = resize_size(image_size, min_size, max_size)
        assert 1 <= min(size) <= max(min_size, 1)
        assert max(size) <= max_size + 16


def test_square_keeps_its_shape_under_any_cap():
    assert resize_size((7, 7), 3000, 10) == (10, 10)


@pytest.fixture(scope="module")
def coco_tiny():
    root = SHARED / "coco_tiny"
    entry = DatasetEntry("tiny", root / "val2017", root / "annotations" / "instances_val2017.json")
    return DetectionDataset(entry, transform=build_transform(get_cfg(), training=False), training=True)


@needs_coco_tiny
def test_training_images_are_as_published(coco_tiny):
    assert coco_tiny.image_ids == arrays("preprocess_images")["train_ids"].tolist()
    mapping = arrays("preprocess_images")["category_map_json_to_contiguous"]
    assert coco_tiny.category_ids == mapping[:, 0].tolist()
    assert list(range(1, 81)) == mapping[:, 1].tolist()


@needs_coco_tiny
@pytest.mark.parametrize("image_id", GOLDEN_IMAGES)
def test_annotations_are_read_as_published(coco_tiny, image_id):
    golden = arrays("preprocess_images")
    target = coco_tiny.target(coco_tiny.image_ids.index(image_id))
    assert np.array_equal(target.boxes, golden[f"{image_id}/boxes_dataset"])
    assert np.array_equal(target.labels, golden[f"{image_id}/labels"])


@needs_coco_tiny
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("image_id", GOLDEN_IMAGES)
def test_transform_is_as_published(coco_tiny, image_id, flip):
    golden = arrays("preprocess_images")
    cfg = get_cfg()
    cfg.INPUT.HORIZONTAL_FLIP_PROB_TRAIN = 1.0
    index = coco_tiny.image_ids.index(image_id)
    transform = build_transform(cfg, training=flip)
    image, target = transform(coco_tiny.load_image(index), coco_tiny.target(index), random.Random(0))
    key = f"{image_id}/{'flip' if flip else 'test'}"
    assert list(image.shape) == golden[f"{key}/chw"].tolist()
    np.testing.assert_allclose(target.boxes, golden[f"{key}/boxes"], atol=1e-3, rtol=0)
    # One grey level: decoders of JPEG differ in rounding.
    values = image.flatten().numpy()[golden[f"{key}/idx"]]
    np.testing.assert_allclose(values, golden[f"{key}/values"], atol=1.01, rtol=0)
    np.testing.assert_allclose(image.mean((1, 2)), golden[f"{key}/mean"], atol=0.05)


def test_flip_moves_pixels_and_boxes_together():
    image = Image.new("RGB", (20, 10))
    image.putpixel((3, 4), (255, 255, 255))
    target = BoxList(torch.tensor([[3.0, 4.0, 3.0, 4.0]]), (10, 20))
    image, target = RandomHorizontalFlip(1.0)(image, target, random.Random(0))
    x, y = target.boxes[0, :2].int().tolist()
    assert image.getpixel((x, y)) == (255, 255, 255)
    assert target.boxes.tolist() == [[16, 4, 16, 4]]


def test_flip_probability():
    image = noise(2, 3)
    flip = RandomHorizontalFlip(0.3)
    # Consecutive seeds, as from the sampler.
    count = sum(flip(image, None, random.Random(seed))[0] is not image for seed in range(2000))
    assert 500 < count < 700


def test_resize_chooses_among_all_sizes():
    resize = Resize(range(10, 14), 100)
    heights = {resize(noise(8, 8), None, random.Random(seed))[0].height for seed in range(100)}
    assert heights == {10, 11, 12, 13}


def test_resize_scales_each_axis_by_its_own_ratio():
    target = BoxList(torch.tensor([[0.0, 0.0, 30.0, 40.0]]), (50, 33))
    image, target = Resize([66], 1000)(noise(50, 33), target, random.Random(0))
    assert image.size == (66, 100)
    assert target.boxes.tolist() == [[0, 0, 60, 80]]
    assert target.image_size == (100, 66)


def test_normalize_bgr255_is_exact():
    image = noise(5, 7)
    result = Normalize([1.5, 20, 100], [1, 1, 1], to_bgr255=True)(image)
    expected = np.asarray(image, dtype=np.float32)[..., ::-1].transpose(2, 0, 1) - np.float32(
        [[[1.5]], [[20]], [[100]]]
    )
    assert result.dtype == torch.float32
    assert result.is_contiguous()
    assert np.array_equal(result, expected)


def test_normalize_rgb01():
    image = noise(5, 7)
    mean, std = np.array([0.4, 0.5, 0.6]), np.array([0.2, 0.25, 0.3])
    expected = ((np.asarray(image) / 255.0 - mean) / std).transpose(2, 0, 1)
    np.testing.assert_allclose(Normalize(mean, std, to_bgr255=False)(image), expected, atol=1e-5)


def test_compose_without_target():
    tensor, target = Compose([Resize([8], 16)], Normalize([0, 0, 0], [1, 1, 1], True))(
        noise(4, 4), None, random.Random(0)
    )
    assert tensor.shape == (3, 8, 8)
    assert target is None


@pytest.mark.parametrize(
    "build",
    [
        lambda: Resize([], 10),
        lambda: Resize([0], 10),
        lambda: RandomHorizontalFlip(1.5),
        lambda: Normalize([0, 0], [1, 1, 1], True),
        lambda: Normalize([0, 0, 0], [1, 0, 1], True),
    ],
)
def test_invalid_settings_are_errors(build):
    with pytest.raises(ValueError, match="got"):
        build()
