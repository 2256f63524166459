"""Weights of detectors in each format that MODEL.WEIGHT takes, in files written here."""

import json
import logging
import re

import pytest
import torch
from safetensors.torch import save_file

from atss_core.checkpoint.backbones import is_imagenet_backbone
from atss_core.checkpoint.checkpointer import read_checkpoint
from atss_core.checkpoint.weights import load_initial_weights, load_trained, read_detector, weights_of
from atss_core.config import load_cfg
from atss_core.modeling import build_detector
from tests.checkpoint.backbones import Model, assert_same, randomise_norms
from tests.conftest import QUICK, TINY


def make_detector(seed, *opts):
    torch.manual_seed(seed)
    return randomise_norms(build_detector(load_cfg(QUICK, [*TINY, *opts]))).eval()


@torch.inference_mode()
def outputs(detector):
    actual = detector.rpn.head(detector.backbone(torch.linspace(-2, 2, 3 * 64 * 96).reshape(1, 3, 64, 96)))
    return [t for field in vars(actual).values() if isinstance(field, (list, tuple)) for t in field]


# ---- Whole detectors


def write_published(weights, path):
    model = {f"module.{key}": value for key, value in weights.items()}
    torch.save({"model": model, "optimizer": {"state": {}}, "scheduler": {"last_epoch": 3}}, path)


DETECTOR_FORMATS = {
    "published.pth": write_published,
    "wrapped.pth": lambda weights, path: torch.save({"model": weights}, path),
    "bare.pth": torch.save,
    "legacy.pth": lambda weights, path: torch.save(weights, path, _use_new_zipfile_serialization=False),
    "ours.pth": lambda weights, path: torch.save(
        {"model": weights, "optimizer": {}, "iteration": 3, "class_names": ["a"]}, path
    ),
    "ema.pth": lambda weights, path: torch.save(
        {"model": {k: v * 2 for k, v in weights.items()}, "ema": {"model": weights}}, path
    ),
    "plain.safetensors": save_file,
    "prefixed.safetensors": lambda w, path: save_file({f"module.{k}": v for k, v in w.items()}, path),
}


@pytest.fixture(scope="module")
def source():
    return make_detector(0)


@pytest.mark.parametrize("name", DETECTOR_FORMATS)
def test_every_format_of_a_detector_gives_its_outputs(name, source, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    DETECTOR_FORMATS[name](source.state_dict(), tmp_path / name)
    detector = make_detector(1)
    assert not torch.equal(outputs(detector)[0], outputs(source)[0])
    load_initial_weights(detector, str(tmp_path / name))
    assert_same(outputs(detector), outputs(source))
    number = len(source.state_dict())
    assert f"Loaded {tmp_path / name}\n  loaded {number:>26}  backbone." in caplog.text
    assert "left fresh" not in caplog.text


def forged(**entry):
    header = json.dumps({"w": {"dtype": "F32", **entry}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(4)


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v / 0, "with NaN or infinite values"),
        (lambda v: v.int(), "of type int32 instead of float32"),
    ],
)
def test_weights_of_other_types_or_not_finite_are_refused(change, message, name, partial, source, tmp_path):
    key = "backbone.fpn.fpn_inner2.weight"
    weights = source.state_dict() | {key: change(source.state_dict()[key])}
    (save_file if name.endswith("s") else torch.save)(weights, tmp_path / name)
    detector = make_detector(1)
    before = [value.clone() for value in detector.state_dict().values()]
    with pytest.raises(ValueError, match=rf"{name}: expected finite weights .* first {key} {message}"):
        load_initial_weights(detector, str(tmp_path / name), partial=partial)
    assert_same(list(detector.state_dict().values()), before)


def test_ema_weights_come_first():
    assert weights_of({"model": {"w": 1}, "ema": {"model": {"w": 2}}}) == {"w": 2}
    assert weights_of({"model": {"w": 1}, "ema": None}) == {"w": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as a checkpoint .*truncated"),
        (b"no header", "is no checkpoint"),
        (b"\x08\0\0\0\0\0\0\0{}      cut", "cannot be read as a checkpoint"),
        (b"\x80\0\0\0\0\0\0\0{", "cannot be read as a checkpoint .*truncated"),
        (b"\0\0\0\x80\0\0\0\0{", "cannot be read as a checkpoint"),  # a header of 2 GB
        (forged(shape=[10**9], data_offsets=[0, 4]), "cannot be read as a checkpoint"),
        (forged(shape=[10**9], data_offsets=[0, 4 * 10**9]), "cannot be read as a checkpoint"),
        (forged(shape=[1], data_offsets=[-4, 0]), "cannot be read as a checkpoint"),
    ],
)
def test_broken_safetensors_is_explained(tmp_path, content, message):
    (tmp_path / "broken.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=rf"broken.safetensors {message}"):
        read_checkpoint(tmp_path / "broken.safetensors")


@pytest.mark.parametrize("names", ["not JSON", '"cat"', "[1, 2]", '{"cat": 1}', "[]"])
def test_foreign_metadata_is_ignored(tmp_path, names):
    save_file({"w": torch.rand(2)}, tmp_path / "other.safetensors", {"class_names": names})
    assert read_checkpoint(tmp_path / "other.safetensors").keys() == {"model"}


def test_format_is_detected_by_content(source, tmp_path):
    save_file(source.state_dict(), tmp_path / "safetensors.pth")
    torch.save(source.state_dict(), tmp_path / "torch.safetensors")
    for name in ("safetensors.pth", "torch.safetensors"):
        actual = read_checkpoint(tmp_path / name)["model"]
        assert actual.keys() == source.state_dict().keys()
        assert all(torch.equal(actual[key], value) for key, value in source.state_dict().items())


def test_head_of_other_classes_needs_partial_loading(source, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    torch.save({**source.state_dict(), "rpn.head.extra": torch.zeros(2)}, tmp_path / "six.pth")
    detector = make_detector(1, "MODEL.ATSS.NUM_CLASSES", "4")
    fresh = {key: value.clone() for key, value in detector.state_dict().items()}
    with pytest.raises(
        ValueError,
        match=r"of another shape .*cls_logits.weight 6x64x3x3 -> 3x.* or set MODEL.WEIGHT_PARTIAL True to",
    ):
        load_initial_weights(detector, str(tmp_path / "six.pth"))
    assert_same(list(detector.state_dict().values()), list(fresh.values()))
    load_initial_weights(detector, str(tmp_path / "six.pth"), partial=True)
    for key, value in detector.state_dict().items():
        assert torch.equal(value, (fresh if ".cls_logits." in key else source.state_dict())[key]), key
    table = caplog.messages[-1].splitlines()[1:]
    assert [line[2:29].strip() for line in table] == ["loaded", "left fresh: other shape", "not used"]
    assert [int(line[29:36]) for line in table] == [len(fresh) - 2, 2, 1]
    assert "rpn.head.cls_logits.weight 6x64x3x3 -> 3x64x3x3" in table[1]
    assert all(len(line) <= 100 for line in table)


def test_partial_weights_keep_the_anchors_and_report_what_is_missing(source, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    weights = {k: v for k, v in source.state_dict().items() if not k.startswith("backbone.fpn.")}
    torch.save(weights, tmp_path / "headless.pth")
    detector = make_detector(1, "MODEL.ATSS.ANCHOR_SIZES", "(16, 32, 64, 128, 256)")
    anchors = [a.clone() for a in detector.rpn.anchor_generator.cell_anchors]
    assert not torch.equal(anchors[0], next(iter(source.rpn.anchor_generator.cell_anchors)))
    load_initial_weights(detector, str(tmp_path / "headless.pth"), partial=True)
    assert_same(list(detector.rpn.anchor_generator.cell_anchors), anchors)
    assert "left fresh: not in the file" in caplog.text
    assert "backbone.fpn." in caplog.text


SMALL_ANCHORS = ("MODEL.ATSS.ANCHOR_SIZES", "(16, 32, 64, 128, 256)")
# Of the first level: file -> configuration.
BOTH_ANCHORS = r"cell_anchors.0 \[\[-11.5, -11.5, 19.5, 19.5\]\] -> \[\[-3.5, -3.5, 11.5, 11.5\]\]"


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("regression", ["BOX", "POINT"])
def test_training_keeps_the_configured_anchors_with_a_warning(regression, partial, source, tmp_path, caplog):
    torch.save(source.state_dict(), tmp_path / "a.pth")
    detector = make_detector(1, *SMALL_ANCHORS, "MODEL.ATSS.REGRESSION_TYPE", regression)
    anchors = [a.clone() for a in detector.rpn.anchor_generator.cell_anchors]
    load_initial_weights(detector, str(tmp_path / "a.pth"), partial=partial)
    assert_same(list(detector.rpn.anchor_generator.cell_anchors), anchors)
    assert_same(outputs(detector)[:5], outputs(source)[:5])  # the logits: all that is learned is loaded
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert re.search(f"other anchors; those of the configuration stay: .*{BOTH_ANCHORS}", record.getMessage())


def test_trained_detector_must_have_the_configured_anchors(source):
    detector = make_detector(1, *SMALL_ANCHORS)
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    with pytest.raises(ValueError, match=f"a.pth does not fit .*other anchors .*{BOTH_ANCHORS}"):
        load_trained(detector, {"model": source.state_dict()}, "a.pth")
    assert_same(list(detector.state_dict().values()), list(before.values()))


@pytest.mark.parametrize(
    ("change", "fits"),
    [
        (lambda anchors: anchors * (1 + 1e-7), True),
        (lambda anchors: anchors.double() + 1e-7, True),
        (lambda anchors: anchors.half(), True),
        (lambda anchors: anchors.bfloat16(), True),
        (lambda anchors: (anchors * 65 / 64).bfloat16(), False),
        (lambda anchors: anchors + 0.01, False),
        (lambda anchors: torch.full_like(anchors, torch.nan), False),
    ],
)
def test_anchors_may_differ_by_rounding(change, fits, source, caplog):
    weights = {k: change(v) if "cell_anchors" in k else v for k, v in source.state_dict().items()}
    detector = make_detector(1)
    before = [anchors.clone() for anchors in detector.rpn.anchor_generator.cell_anchors]
    if fits:
        load_trained(detector, {"model": weights}, "a.pth")
        assert_same(list(detector.rpn.anchor_generator.cell_anchors), before)
    else:
        with pytest.raises(
            ValueError, match=r"a.pth.* cell_anchors.0|a.pth.*rpn.anchor_generator.cell_anchors.0"
        ):
            load_trained(detector, {"model": weights}, "a.pth")


def test_partial_loading_of_nothing_is_an_error(source, tmp_path):
    torch.save({"other.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"none of the 1 tensors of .*other.pth fits"):
        load_initial_weights(source, str(tmp_path / "other.pth"), partial=True)


def test_no_weights_and_missing_weights():
    model = Model(18)
    before = model.backbone.body.stem.conv1.weight.clone()
    load_initial_weights(model, "")
    assert torch.equal(model.backbone.body.stem.conv1.weight, before)
    with pytest.raises(FileNotFoundError, match=r"no weights at none.pth; set MODEL.WEIGHT"):
        load_initial_weights(model, "none.pth")


@pytest.mark.parametrize(
    ("name", "is_backbone"),
    [
        ("catalog://ImageNetPretrained/MSRA/R-50", True),
        ("torchvision://resnet50", True),
        ("timm://resnet50.a1_in1k", True),
        ("R-50.pkl", True),
        ("https://example.org/R-50.pkl#sha256=00", True),
        ("https://example.org/ATSS_R_50.pth", False),
        ("model.safetensors", False),
        ("", False),
    ],
)
def test_names_of_backbones(name, is_backbone):
    assert is_imagenet_backbone(name) == is_backbone


@pytest.mark.parametrize("source", ["torchvision://resnet50", "catalog://R-50", "some/R-50.pkl"])
def test_backbone_name_is_refused_as_a_detector(source):
    with pytest.raises(
        ValueError, match=rf"{source} names an ImageNet backbone, not a detector; give the .pth"
    ):
        read_detector(source)


def test_classifier_is_refused_as_a_detector_and_tilde_is_expanded(resnet18, source, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save(resnet18.state_dict(), tmp_path / "classifier.pth")
    with pytest.raises(ValueError, match=r"~/classifier.pth names an ImageNet backbone"):
        read_detector("~/classifier.pth")
    torch.save(source.state_dict(), tmp_path / "detector.pth")
    name, checkpoint = read_detector("~/detector.pth")
    assert name == "~/detector.pth"
    assert checkpoint["model"].keys() == source.state_dict().keys()
