"""Test-time augmentation."""

import random
import weakref
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from atss_core.config import load_cfg
from atss_core.data.transforms import Compose, Normalize, Resize, from_pixels, to_pixels
from atss_core.engine.build import build_inference, build_merge, build_scales
from atss_core.engine.inference import SingleScale
from atss_core.engine.tta import MultiScale, Scale, concat, in_range, nms, top_k, vote
from atss_core.modeling import build_detector
from atss_core.structures import BoxList, ImageList
from tests import golden
from tests.conftest import QUICK, TINY
from tests.devices import devices

CPU = torch.device("cpu")
AUG = [
    *("TEST.BBOX_AUG.ENABLED", "True", "TEST.BBOX_AUG.VOTE", "True", "TEST.BBOX_AUG.H_FLIP", "True"),
    *("TEST.BBOX_AUG.SCALES", "(200, 320)", "TEST.BBOX_AUG.SCALE_H_FLIP", "True"),
    *("TEST.BBOX_AUG.SCALE_RANGES", "((40, 10000), (0, 96))", "INPUT.MIN_SIZE_TEST", "256"),
]


@pytest.fixture(scope="module")
def published_detector():
    return golden.detector("atss_R_50_FPN_1x").eval()


@golden.needs_coco_tiny
@devices
@pytest.mark.parametrize("merge_type", ["vote", "soft-vote", "nms"])
@torch.inference_mode()
def test_whole_pipeline_is_the_published_one(merge_type, published_detector, device):
    expected = golden.arrays("tta")
    opts = [*AUG, "TEST.BBOX_AUG.MERGE_TYPE", merge_type]
    cfg = load_cfg(golden.ROOT / "configs" / "atss" / "atss_R_50_FPN_1x.yaml", opts)
    inference = build_inference(cfg, published_detector.to(device), torch.device(device))
    image = golden.SHARED / "coco_tiny" / "val2017" / str(expected["file_name"])
    images = ImageList.from_tensors([to_pixels(Image.open(image).convert("RGB"))])
    (detections,) = (r.to("cpu") for r in inference.detect(inference.predict(images), images.image_sizes))
    assert detections.image_size == tuple(expected["result_size_wh"].tolist()[::-1])
    boxes, scores, labels = (
        torch.from_numpy(expected[f"{merge_type}/{key}"].astype(kind))
        for key, kind in (("boxes", "float32"), ("scores", "float32"), ("labels", "int64"))
    )
    assert len(detections) == len(boxes)
    distances = (detections.boxes[:, None] - boxes).abs().amax(dim=-1)
    distances[detections.labels[:, None] != labels] = torch.inf
    distances[(detections.scores[:, None] - scores).abs() > 1e-4] = torch.inf
    nearest, partner = distances.min(dim=1)
    assert nearest.max() < 0.05
    assert len(set(partner.tolist())) == len(boxes)


@pytest.mark.parametrize("name", ["96_10000", "64_10000", "0_10000", "0_256", "0_192", "0_96"])
def test_size_ranges_are_the_published_ones(name):
    published = golden.arrays("vote")
    boxes = torch.from_numpy(published["remove/boxes"])
    detections = BoxList(boxes, (4000, 4000), labels=torch.arange(len(boxes)))
    smallest, largest = map(int, name.split("_"))
    kept = in_range(detections, (smallest, largest)).labels
    expected = published[f"remove/keep_{name}"]
    if expected.dtype == bool:
        expected = np.flatnonzero(expected)
    assert sorted(kept.tolist()) == sorted(expected.tolist())


@pytest.mark.parametrize("case", ["merge0", "merge1"])
@pytest.mark.parametrize("merge_type", ["vote", "soft-vote", "nms"])
def test_merges_are_the_published_ones(case, merge_type):
    published = golden.arrays("vote")
    opts = ["TEST.BBOX_AUG.MERGE_TYPE", merge_type, "TEST.BBOX_AUG.VOTE", "True"]
    merge = build_merge(load_cfg(None, opts), 0.6)
    fields = [torch.from_numpy(published[f"{case}/{key}"]) for key in ("boxes", "scores", "labels")]
    detections = merge(BoxList(fields[0], (2000, 2000), scores=fields[1], labels=fields[2].long()))
    expected = {key: published[f"{case}/{merge_type}/{key}"] for key in ("boxes", "scores", "labels")}
    assert len(detections) == len(expected["boxes"])

    def rows(boxes, scores, labels):
        table = np.column_stack([labels, scores, boxes]).astype(np.float64)
        return table[np.lexsort(table.round(3).T)]

    ours = rows(detections.boxes.numpy(), detections.scores.numpy(), detections.labels.numpy())
    assert np.allclose(ours, rows(**expected), atol=2e-3)


def tiny_detector():
    torch.manual_seed(0)
    from_config = load_cfg(QUICK, [*TINY, "MODEL.ATSS.INFERENCE_TH", "0.0"])
    return build_detector(from_config).eval()


def scales(*sizes, is_flipped=False):
    normalize = Normalize([0.0] * 3, [1.0] * 3, to_bgr255=True)
    return [Scale(Compose([Resize([size], 1000)], normalize), is_flipped) for size in sizes]


def image_list(*sizes):
    generator = torch.Generator().manual_seed(1)
    return ImageList.from_tensors(
        [torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes]
    )


def multi_scale(detector, *sizes, is_flipped=False, joint=False):
    merge = partial(nms, threshold=0.6, max_detections=100)
    return MultiScale(
        detector=detector,
        scales=scales(*sizes, is_flipped=is_flipped),
        merge=merge,
        is_nms_joint=joint,
        size_divisibility=32,
        device=CPU,
    )


@pytest.mark.parametrize("joint", [True, False])
@torch.inference_mode()
def test_one_scale_detects_what_plain_testing_detects(joint):
    detector = tiny_detector()
    images = image_list((60, 90))
    inference = multi_scale(detector, 64, joint=joint)
    (detections,) = inference.detect(inference.predict(images), images.image_sizes)
    tensor, _ = scales(64)[0].transform(from_pixels(images.tensors[0]), None, random.Random(0))
    plain = SingleScale(detector, CPU)
    normalised = ImageList.from_tensors([tensor], 32)
    (expected,) = plain.detect(plain.predict(normalised), normalised.image_sizes)
    assert detections.image_size == expected.image_size
    assert len(detections) > 0
    for key in ("boxes", "scores", "labels"):
        assert torch.equal(getattr(detections, key), getattr(expected, key))


@torch.inference_mode()
def test_images_do_not_depend_on_their_neighbours():
    inference = multi_scale(tiny_detector(), 64, 96, is_flipped=True)
    images = image_list((60, 90), (80, 50))
    together = inference.detect(inference.predict(images), images.image_sizes)
    for i, size in enumerate(images.image_sizes):
        alone = ImageList(images.tensors[i : i + 1, :, : size[0], : size[1]], [size])
        (detections,) = inference.detect(inference.predict(alone), alone.image_sizes)
        assert len(detections) > 0
        for key in ("boxes", "scores", "labels"):
            assert torch.equal(getattr(detections, key), getattr(together[i], key))


@torch.inference_mode()
def test_a_flipped_image_has_flipped_detections():
    inference = multi_scale(tiny_detector(), 64, is_flipped=True)
    images = image_list((64, 64))
    flipped = ImageList(images.tensors.flip(-1), images.image_sizes)
    (first,), (second,) = (inference.detect(inference.predict(i), i.image_sizes) for i in (images, flipped))
    assert len(first) == len(second) > 0
    distance = (first.boxes[:, None] - second.flip_horizontal().boxes).abs().amax(-1)
    assert distance.min(dim=1).values.max() < 1e-2


def test_memory_is_that_of_the_largest_scale_not_of_all(monkeypatch):
    """One scale at a time goes through the network, while at most one more is prepared."""
    detector = tiny_detector()
    seen, inputs = [], []
    predict = detector.predict

    def watch(images):
        seen.append((tuple(images.tensors.shape), sum(tensor() is not None for tensor in inputs)))
        return predict(images)

    monkeypatch.setattr(detector, "predict", watch)
    inference = multi_scale(detector, 64, 96, 128, 160, is_flipped=True)
    inference.scales = [
        replace(scale, transform=Watched(scale.transform, inputs)) for scale in inference.scales
    ]
    with torch.inference_mode():
        inference.predict(image_list((60, 60), (60, 60)))
    assert [shape for shape, _ in seen] == [(1, 3, s, s) for s in (64, 64, 96, 96, 128, 128, 160, 160)] * 2
    assert max(alive for _, alive in seen) <= 2
    assert len(inputs) == 8


class Watched:
    """A transform that notes which of its results are still alive."""

    def __init__(self, transform, results):
        self.transform = transform
        self.results = results

    def __call__(self, *arguments):
        image, target = self.transform(*arguments)
        self.results.append(weakref.ref(image))
        return image, target


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (90, 60)])
@pytest.mark.parametrize("merge_type", ["vote", "soft-vote", "nms"])
@pytest.mark.parametrize("threshold", ["0.0", "1.0"])
def test_tiny_images_and_scales_without_detections(size, merge_type, threshold):
    """No probability is above 1, so at that threshold no scale has detections."""
    opts = [*AUG, "TEST.BBOX_AUG.MERGE_TYPE", merge_type, "INPUT.MIN_SIZE_TEST", "64"]
    opts += [
        "TEST.BBOX_AUG.SCALES",
        "(48, 80)",
        "TEST.BBOX_AUG.SCALE_RANGES",
        "((0, 100000), (100000, 1000000))",
    ]
    cfg = load_cfg(QUICK, [*TINY, *opts, "MODEL.ATSS.INFERENCE_TH", threshold])
    torch.manual_seed(0)
    inference = build_inference(cfg, build_detector(cfg).eval(), CPU)
    images = image_list(size)
    with torch.inference_mode():
        (detections,) = inference.detect(inference.predict(images), images.image_sizes)
    assert (len(detections) == 0) == (threshold == "1.0")
    assert detections.boxes.shape == (len(detections), 4)
    assert detections.labels.dtype == torch.int64


def test_detections_of_all_scales_are_in_pixels_of_the_first():
    first = BoxList(torch.tensor([[0.0, 0.0, 10.0, 20.0]]), (40, 20), torch.tensor([1]), torch.tensor([0.5]))
    second = BoxList(torch.tensor([[0.0, 0.0, 10.0, 20.0]]), (80, 60), torch.tensor([2]), torch.tensor([0.7]))
    concatenated = concat([first, second])
    assert concatenated.image_size == (40, 20)
    assert torch.allclose(concatenated.boxes[1], torch.tensor([0.0, 0.0, 10 / 3, 10.0]))
    assert concatenated.labels.tolist() == [1, 2]


def test_ties_with_the_last_detection_stay():
    scores = torch.tensor([0.9, 0.5, 0.5, 0.1])
    detections = BoxList(torch.zeros(4, 4), (9, 9), labels=torch.ones(4), scores=scores)
    assert len(top_k(detections, 2)) == 3
    assert len(top_k(detections, 0)) == len(top_k(detections, 9)) == 4


def test_published_multi_scale_configuration():
    cfg = load_cfg(
        golden.ROOT / "configs" / "atss" / "atss_dcnv2_X_101_64x4d_FPN_2x.yaml",
        ["TEST.BBOX_AUG.ENABLED", "True"],
    )
    built = build_scales(cfg)
    assert len(built) == 13
    assert all(scale.is_flipped for scale in built)
    limits = [scale.transform.steps[0].max_size for scale in built]
    assert limits == [1333] * 6 + [3000] * 7  # the plain scale and those below 800 keep the plain cap
    assert built[0].size_range is None
    assert built[1].size_range == (96, 10000)
    merge = build_merge(cfg, 0.6)
    assert merge.func is vote
    assert merge.keywords == {"threshold": 0.66, "soft": True, "max_detections": 1000}


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["TEST.BBOX_AUG.MERGE_TYPE", "mean"], "one of 'vote', 'soft-vote', 'nms', got 'mean'"),
        (["TEST.BBOX_AUG.VOTE_TH", "66.0"], r"must be in \[0, 1\], got 66.0"),
        (["TEST.BBOX_AUG.SCALES", "(200,)"], "a pair .* for each of the 1 sizes"),
        (["TEST.BBOX_AUG.SCALE_RANGES", "((40, 9), (0, 96))"], "a pair .* for each of the 2 sizes"),
        (["TEST.BBOX_AUG.SCALE_RANGES", "((-1, -1), (0, 96))"], r"must be in \[0, 1e9\], got \(\(-1"),
        (
            ["TEST.BBOX_AUG.SCALE_RANGES", "(('a', 'b'), (0, 96))"],
            r"RANGES\[0\] must be a number, .* got 'a'",
        ),
        (
            ["TEST.BBOX_AUG.SCALES", "('a', 96)"],
            r"SCALES\[0\] must be a whole number, such as 800, got 'a'",
        ),
        (["TEST.BBOX_AUG.SCALES", "(0, 320)"], r"must be in \[1, 100000\], got \(0, 320\)"),
        (["TEST.BBOX_AUG.MAX_SIZE", "0"], r"MAX_SIZE must be in \[1, 100000\], got 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(opts, message):
    with pytest.raises(ValueError, match=message):
        build_inference(load_cfg(QUICK, [*TINY, *AUG, *opts]), tiny_detector(), CPU)


def test_ignored_keys_are_warned_about(caplog):
    opts = ["TEST.BBOX_AUG.VOTE", "False", "TEST.BBOX_AUG.MERGE_TYPE", "soft-vote"]
    build_inference(load_cfg(QUICK, [*TINY, *AUG, *opts]), tiny_detector(), CPU)
    assert "count only with VOTE True" in caplog.text
