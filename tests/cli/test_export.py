import json
import shutil
import subprocess
import sys

import pytest
import torch

from atss_core.apps import export as app
from atss_core.apps.export import choose_images, publish, report_of
from atss_core.cli import export
from atss_core.cli.common import run
from atss_core.config import load_cfg
from atss_core.export import TARGETS
from atss_core.utils import extras, files
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


def arguments(weights, *more):
    return ["--config-file", str(QUICK), "--weights", str(weights), "--images", IMAGES, *more, *TINY, *SIZES]


@pytest.fixture(scope="module")
def package(weights, tmp_path_factory):
    """A package with NMS outside that the command has written."""
    folder = tmp_path_factory.mktemp("exported")
    export.main(arguments(weights, "--format", "torch", "--nms", "outside", "--output", str(folder / "out")))
    return folder / "out" / "tiny.pt2"


def test_package_is_verified_and_described(package):
    report = json.loads(package.with_name("tiny.pt2.parity.json").read_text())
    assert report["is_equal"]
    names = [comparison["name"] for comparison in report["comparisons"]]
    assert len(names) == 5
    assert names[-1] == "shapes_14.jpg + shapes_19.jpg"
    assert min(comparison["stable"] for comparison in report["comparisons"]) >= 80
    extra = {"atss": ""}
    torch.export.load(package, extra_files=extra)
    description = json.loads(extra["atss"])
    assert description["class_names"][0] == "circle"
    assert (description["min_size"], description["nms"]) == (136, "outside")


@pytest.mark.parametrize("is_same", [True, False])
def test_file_must_detect_the_same_to_replace_the_earlier_one(
    package, weights, tmp_path, monkeypatch, capsys, is_same
):
    def copy(graph, is_nms_inside, path, description):
        shutil.copy(package, path)

    monkeypatch.setitem(TARGETS, "torch", TARGETS["torch"]._replace(write=copy))
    checkpoint = torch.load(weights)
    checkpoint["model"]["rpn.head.scales.0.scale"] *= 1.0 if is_same else 1.02
    torch.save(checkpoint, tmp_path / "other.pth")
    output = tmp_path / "out" / "net.pt2"
    output.parent.mkdir()
    earlier = {"net.pt2": b"earlier", "net.pt2.parity.json": b"its report"}
    for name, content in earlier.items():
        (output.parent / name).write_bytes(content)
    command = arguments(tmp_path / "other.pth", "--output", str(output), "--nms", "outside")
    if is_same:
        run(export.main, command)
        printed = capsys.readouterr().out
        assert "torch.export, NMS outside; equal" in printed
        assert "shapes_31.jpg" in printed
        assert sorted(p.name for p in output.parent.iterdir()) == sorted(earlier)
        assert output.read_bytes() == package.read_bytes()
        assert json.loads((output.parent / "net.pt2.parity.json").read_text())["is_equal"]
        return
    with pytest.raises(SystemExit) as stop:
        run(export.main, command)
    assert stop.value.code == 2
    assert "error: net.pt2 fails the parity check: it does not detect" in capsys.readouterr().err
    written = {p.name: p.read_bytes() for p in output.parent.iterdir()}
    assert earlier.items() <= written.items(), "a verified export stays with its report"
    assert written.keys() - earlier.keys() == {"net.pt2.failed", "net.pt2.failed.parity.json"}
    assert written["net.pt2.failed"] == package.read_bytes()
    assert not json.loads(written["net.pt2.failed.parity.json"])["is_equal"]


def test_an_export_that_breaks_off_leaves_the_earlier_one_alone(package, weights, tmp_path, monkeypatch):
    def break_off(graph, is_nms_inside, path, description):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setitem(TARGETS, "torch", TARGETS["torch"]._replace(write=break_off))
    output = tmp_path / "net.pt2"
    output.write_bytes(b"earlier")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f".other.xml.{files._host()}.{dead.pid}.0123abcd.tmp").mkdir()  # of a killed export
    with pytest.raises(KeyboardInterrupt):
        export.main(arguments(weights, "--output", str(output)))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"net.pt2": b"earlier"}


@pytest.mark.parametrize("ending", ["", ".failed"])
def test_files_beside_the_main_one_move_with_it(tmp_path, ending):
    names = ("net.xml", "net.bin", "net.data")
    (tmp_path / "draft").mkdir()
    for name in names:
        (tmp_path / "draft" / name).write_text("new")
        (tmp_path / f"{name}{ending}").write_text("old")
    report_of(tmp_path / "draft" / "net.xml").write_text("new")
    main_file = tmp_path / f"net.xml{ending}"
    assert publish(tmp_path / "draft" / "net.xml", main_file) == main_file
    written = {p.name: p.read_text() for p in tmp_path.iterdir() if p.is_file()}
    expected = [*(f"{name}{ending}" for name in names), f"net.xml{ending}.parity.json"]
    assert written == dict.fromkeys(expected, "new")
    assert not any((tmp_path / "draft").iterdir())


def test_weights_are_never_written_over(weights, tmp_path):
    file = tmp_path / "net.pt2"
    shutil.copy(weights, file)
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match=r"net.pt2 would be overwritten: .* Give another --output"):
        export.main(arguments(file, "--output", str(tmp_path / "link" / "net.pt2")))
    assert file.read_bytes() == weights.read_bytes()


def test_images_are_by_default_those_of_the_test_set_or_the_demo(shapes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # away from the checkout
    cfg = load_cfg(QUICK, [*TINY, "DATASETS.DATA_DIR", str(shapes)])
    images = choose_images(cfg, None)
    assert images == sorted((shapes / "shapes" / "val").glob("*.jpg"))[:8]
    cfg = load_cfg(QUICK, [*TINY, "DATASETS.DATA_DIR", str(tmp_path)])
    assert choose_images(cfg, None)[0].name == "shapes_14.jpg"
    monkeypatch.setattr(app, "DEMO_IMAGES", ())
    with pytest.raises(ValueError, match=r"--images: expected images .* DATASETS.TEST \('shapes_val',\)"):
        choose_images(cfg, None)
    shutil.copy(images[0], tmp_path / "b.jpg")
    (tmp_path / "a.jpg").write_text("no image")
    assert choose_images(cfg, str(tmp_path)) == [tmp_path / "b.jpg"]
    assert capsys.readouterr().err.startswith(f"skipped: {tmp_path / 'a.jpg'} cannot be read")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--format", "onx"], "--format must be onnx, openvino, torch.* got 'onx'; did you mean onnx"),
        (["--format", "onnx,torch", "--output", "a.onnx"], "is a file of format onnx"),
        (["--output", "a.engine"], "must be a folder or end in .onnx, .xml, .pt2, got a.engine"),
        (["--images", "nowhere"], "no images in nowhere"),
        (["TEST.BBOX_AUG.ENABLED", "True"], "TEST.BBOX_AUG.ENABLED: expected False, got True"),
    ],
)
def test_mistakes_are_explained_before_anything_is_loaded(more, message):
    with pytest.raises(ValueError, match=message):
        export.main(arguments("missing.pth", *more))


def test_missing_packages_are_named_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr(extras, "has", lambda module: module != "openvino")
    with pytest.raises(ValueError, match=r"needs openvino.*pip install"):
        export.main(arguments("missing.pth", "--format", "openvino"))


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
