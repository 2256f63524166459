import json
import shutil

import pytest
import torch

from atss_core.cli import export
from atss_core.cli.common import run
from atss_core.export import TARGETS
from atss_core.utils import extras
from tests import golden
from tests.conftest import QUICK, TINY
from tests.export.conftest import SIZES, Model

IMAGES = str(golden.ROOT / "demo" / "images")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    names = ["circle", "square", "triangle", "star", "cross", "ring"]
    torch.save({"model": Model(QUICK, TINY).detector.state_dict(), "class_names": names}, path)
    return path


def words(weights, *more):
    return ["--config-file", str(QUICK), "--weights", str(weights), "--images", IMAGES, *more, *TINY, *SIZES]


@pytest.fixture(scope="module")
def package(weights, tmp_path_factory):
    """A package with NMS outside that the command has written."""
    folder = tmp_path_factory.mktemp("exported")
    export.main(words(weights, "--format", "torch", "--nms", "outside", "--output", str(folder / "out")))
    return folder / "out" / "tiny.pt2"


def test_package_is_proven_and_described(package):
    report = json.loads(package.with_name("tiny.pt2.parity.json").read_text())
    assert report["is_equal"]
    names = [comparison["name"] for comparison in report["comparisons"]]
    assert len(names) == 5
    assert names[-1] == "shapes_14.jpg + shapes_19.jpg"
    assert min(comparison["steady"] for comparison in report["comparisons"]) >= 80
    extra = {"atss": ""}
    torch.export.load(package, extra_files=extra)
    description = json.loads(extra["atss"])
    assert description["class_names"][0] == "circle"
    assert (description["min_size"], description["nms"]) == (136, "outside")


@pytest.mark.parametrize("is_same", [True, False])
def test_file_must_detect_the_same_or_is_renamed(package, weights, tmp_path, monkeypatch, capsys, is_same):
    def copy(graph, is_nms_inside, path, description):
        shutil.copy(package, path)

    monkeypatch.setitem(TARGETS, "torch", TARGETS["torch"]._replace(write=copy))
    checkpoint = torch.load(weights)
    checkpoint["model"]["rpn.head.scales.0.scale"] *= 1.0 if is_same else 1.02
    torch.save(checkpoint, tmp_path / "other.pth")
    output = tmp_path / "out" / "net.pt2"
    output.parent.mkdir()
    command = words(tmp_path / "other.pth", "--output", str(output), "--nms", "outside")
    report_file = output.with_name("net.pt2.parity.json")
    if is_same:
        run(export.main, command)
        printed = capsys.readouterr().out
        assert "torch.export, NMS outside; equal" in printed
        assert "shapes_31.jpg" in printed
        assert output.is_file()
        return
    with pytest.raises(SystemExit) as stop:
        run(export.main, command)
    assert stop.value.code == 2
    assert "error: net.pt2 is not proven: it does not detect" in capsys.readouterr().err
    assert sorted(p.name for p in output.parent.iterdir()) == ["net.pt2.failed", "net.pt2.parity.json"]
    assert not json.loads(report_file.read_text())["is_equal"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--format", "onx"], "--format must be onnx, openvino, torch.* got 'onx'; did you mean onnx"),
        (["--format", "onnx,torch", "--output", "a.onnx"], "is a file of format onnx"),
        (["--output", "a.engine"], "must be a folder or end in .onnx, .xml, .pt2, got a.engine"),
        (["--images", "nowhere"], "no pictures in nowhere"),
        (["TEST.BBOX_AUG.ENABLED", "True"], "TEST.BBOX_AUG.ENABLED True looks at a picture in several sizes"),
    ],
)
def test_mistakes_are_explained_before_anything_is_loaded(more, message):
    with pytest.raises(ValueError, match=message):
        export.main(words("missing.pth", *more))


def test_missing_packages_are_named_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr(extras, "has", lambda module: module != "openvino")
    with pytest.raises(ValueError, match=r"needs openvino.*pip install"):
        export.main(words("missing.pth", "--format", "openvino"))


def test_formats_follow_from_the_output(tmp_path):
    assert export.choose_formats(None, tmp_path) == ["onnx"]
    assert export.choose_formats(None, tmp_path / "net.xml") == ["openvino"]
    assert export.choose_formats("torch, onnx", tmp_path / "folder") == ["torch", "onnx"]
    (tmp_path / "v1.2").mkdir()
    assert export.choose_formats(None, tmp_path / "v1.2") == ["onnx"]


def test_weights_are_by_default_the_last_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="has no checkpoint"):
        export.main(
            [
                *("--config-file", str(QUICK), "--images", IMAGES, "--format", "torch"),
                *("OUTPUT_DIR", str(tmp_path)),
            ]
        )


def test_help_fits_a_screen_and_has_an_example(capsys):
    with pytest.raises(SystemExit):
        export.main(["--help"])
    text = capsys.readouterr().out
    assert "atss export --config-file" in text
    assert len(text.splitlines()) <= 40
