"""Classes of a checkpoint in another order, other classes, and none."""

import logging

import pytest
import torch

from atss_core.checkpoint.weights import load_initial_weights, load_trained
from atss_core.config import load_cfg
from atss_core.config.catalog import COCO_CLASSES
from atss_core.modeling import build_detector
from tests.conftest import QUICK, TINY

SAVED = ["cat", "dog", "cow", "owl"]
KEYS = ("rpn.head.cls_logits.weight", "rpn.head.cls_logits.bias")


def make_detector(seed, num_classes=4, num_anchors=1):
    torch.manual_seed(seed)
    scales = [
        "MODEL.ATSS.NUM_CLASSES",
        str(num_classes + 1),
        "MODEL.ATSS.SCALES_PER_OCTAVE",
        str(num_anchors),
    ]
    detector = build_detector(load_cfg(QUICK, [*TINY, *scales]))
    detector.rpn.head.cls_logits.bias.data.normal_()  # fresh biases are all alike
    return detector


def save(detector, path, class_names):
    named = {"class_names": class_names} if class_names else {}
    torch.save({"model": detector.state_dict(), **named}, path)
    return str(path)


def rows(detector, class_names):
    """What the classifier has for each class: all anchors' weights and biases."""
    state = detector.state_dict()
    values = [state[key].reshape(-1, len(class_names), *state[key].shape[1:]) for key in KEYS]
    return {name: [value[:, i].clone() for value in values] for i, name in enumerate(class_names)}


def assert_rows(actual, expected):
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("num_anchors", [1, 2])
@pytest.mark.parametrize("mode", ["exact", "partial", "evaluation"])
def test_other_order_is_matched_by_name(num_anchors, mode, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    source, detector = make_detector(0, num_anchors=num_anchors), make_detector(1, num_anchors=num_anchors)
    path, names = save(source, tmp_path / "a.pth", SAVED), ["dog", "owl", "cat", "cow"]
    if mode == "evaluation":
        checkpoint = torch.load(path, weights_only=True)
        load_trained(detector, checkpoint, path, names)
    else:
        load_initial_weights(detector, path, partial=mode == "partial", class_names=names)
    expected, actual = rows(source, SAVED), rows(detector, names)
    for name in names:
        assert_rows(actual[name], expected[name])
    features = torch.rand(1, 64, 3, 4)
    logits = [d.rpn.head.cls_logits(features).unflatten(1, (num_anchors, 4)) for d in (source, detector)]
    torch.testing.assert_close(logits[1], logits[0][:, :, [SAVED.index(name) for name in names]])
    others = [key for key in source.state_dict() if key not in KEYS]
    assert all(torch.equal(source.state_dict()[key], detector.state_dict()[key]) for key in others)
    assert "matched by name: loaded for 4 (dog, owl, cat, cow)" in caplog.text


@pytest.mark.parametrize("num_anchors", [1, 2])
@pytest.mark.parametrize("names", [["owl", "bat", "dog"], ["owl", "bat", "dog", "elk"]])
def test_partial_weights_keep_the_classes_that_both_have(num_anchors, names, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    source = make_detector(0, num_anchors=num_anchors)
    detector = make_detector(1, len(names), num_anchors)
    path, fresh = save(source, tmp_path / "a.pth", SAVED), rows(detector, names)
    with pytest.raises(
        ValueError, match=r"got 4 \(cat, dog, cow, owl\).* MODEL.WEIGHT_PARTIAL True"
    ) as error:
        load_initial_weights(detector, path, class_names=names)
    assert f"expected the classes of the data, {len(names)} ({', '.join(names)})" in str(error.value)
    load_initial_weights(detector, path, partial=True, class_names=names)
    expected, actual = rows(source, SAVED), rows(detector, names)
    for name in names:
        assert_rows(actual[name], expected[name] if name in SAVED else fresh[name])
    unknown = [name for name in names if name not in SAVED]
    assert "loaded for 2 (owl, dog)" in caplog.text
    assert f"fresh for {len(unknown)} ({', '.join(unknown)}); not used of 2 (cat, cow)" in caplog.text


def test_rows_of_other_classes_stay_fresh_even_if_shapes_agree(tmp_path):
    source, detector = make_detector(0, 3, num_anchors=2), make_detector(1, 2, num_anchors=3)
    names = ["dog", "cat"]
    path, fresh = save(source, tmp_path / "a.pth", ["cat", "dog", "cow"]), rows(detector, names)
    load_initial_weights(detector, path, partial=True, class_names=names)
    for name in names:
        assert_rows(rows(detector, names)[name], fresh[name])
    path = save(make_detector(0, 2), tmp_path / "b.pth", ["bat", "elk"])
    detector = make_detector(1, 2)
    fresh = rows(detector, names)
    load_initial_weights(detector, path, partial=True, class_names=names)
    for name in names:
        assert_rows(rows(detector, names)[name], fresh[name])


def test_evaluated_detector_must_have_the_classes_of_the_data(tmp_path):
    detector = make_detector(1)
    checkpoint = {"model": make_detector(0).state_dict(), "class_names": SAVED}
    before = rows(detector, SAVED)
    with pytest.raises(ValueError, match=r"a.pth: expected .* 4 \(cat, dog, cow, elk\), got 4 .*cow, owl\)"):
        load_trained(detector, checkpoint, "a.pth", ["cat", "dog", "cow", "elk"])
    assert_rows(rows(detector, SAVED)["cat"], before["cat"])
    with pytest.raises(ValueError, match=r"a.pth: expected 4 class names.*got 1 \(cat\)"):
        load_trained(detector, {**checkpoint, "class_names": ["cat"]}, "a.pth")
    load_trained(detector, checkpoint, "a.pth")


def test_checkpoint_without_class_names_warns_unless_it_is_coco(tmp_path, caplog):
    path = save(make_detector(0), tmp_path / "a.pth", None)
    detector = make_detector(1)
    load_initial_weights(detector, path, class_names=SAVED)
    assert "holds no class names; its classifier is taken to be for the classes of the" in caplog.text
    assert "4 (cat, dog, cow, owl)" in caplog.text
    caplog.clear()
    path, coco = save(make_detector(0, 80), tmp_path / "coco.pth", None), list(COCO_CLASSES)
    load_initial_weights(make_detector(1, 80), path, class_names=coco)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    load_initial_weights(make_detector(1, 80), path, class_names=coco[::-1])
    assert "(COCO's order is 80 (person, bicycle" in caplog.text
    assert "80 (toothbrush, hair drier" in caplog.text
