"""Inputs as people bring them, written by ``../shared/cases/make_cases.py``, through the commands.

The docstrings there give the expected behaviour, which other tests check without that folder.
"""

import io
import os
import subprocess
import sys
from contextlib import suppress

import pytest
import torch
from PIL import Image

from atss_core.cli import check, demo, train
from atss_core.cli.common import run
from atss_core.cli.datasets import open_dataset
from atss_core.config import load_cfg
from atss_core.engine import Predictor
from atss_core.modeling import build_detector
from tests.conftest import TINY
from tests.golden import ROOT

SCRIPT = ROOT.parent / "shared" / "cases" / "make_cases.py"
CONFIG = str(ROOT / "configs" / "quick" / "atss_R_18_own_data.yaml")
BRIEF = [
    *(*TINY, "SOLVER.MAX_ITER", "1", "SOLVER.STEPS", "(1,)", "INPUT.MIN_SIZE_RANGE_TRAIN", "(48, 48)"),
    *("INPUT.MIN_SIZE_TEST", "48", "SOLVER.IMS_PER_BATCH", "2"),
]

pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="needs ../shared/cases/make_cases.py")


@pytest.fixture
def case(request, tmp_path, monkeypatch):
    """The folder of the case that a test is named after, as the current folder."""
    name = request.node.name.removeprefix("test_").split("[")[0].replace("image", "picture")  # as named there
    subprocess.run([sys.executable, str(SCRIPT), str(tmp_path), name], check=True, capture_output=True)
    with suppress(FileNotFoundError):
        (tmp_path / name / "pictures").rename(tmp_path / name / "images")
    monkeypatch.chdir(tmp_path / name)
    return tmp_path / name


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """The flags of a detector that has learned nothing and sees objects everywhere."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "detector.pth"
    cfg = load_cfg(CONFIG, [*TINY, "MODEL.ATSS.NUM_CLASSES", "3"])
    torch.save({"model": build_detector(cfg).state_dict(), "class_names": ["écrou", "螺栓"]}, file)
    return file


def checked(capsys, path, *more):
    """What the check of a dataset prints."""
    check.main(["--config-file", CONFIG, "--output-dir", "checked", path, *more])
    return capsys.readouterr().out


def open_case(path):
    return open_dataset(load_cfg(CONFIG), path)


def train_on(*paths):
    opts = ["DATASETS.TRAIN", paths[0], "DATASETS.TEST", paths[-1], "OUTPUT_DIR", "run"]
    train.main(["--config-file", CONFIG, *BRIEF, *opts])


@pytest.mark.parametrize("output", ["images", "images/../images", "link"])
def test_drawn_over_originals(case, detector, output, capsys):
    os.symlink("images", "link")
    before = (case / "images" / "p1.png").read_bytes()
    flags = ["--config-file", CONFIG, "--weights", str(detector), "--images-dir", "images"]
    with pytest.raises(SystemExit) as stop:
        run(demo.main, [*flags, "--output-dir", output, *TINY])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "--output-dir" in line
    assert (case / "images" / "p1.png").read_bytes() == before
    assert os.listdir(case / "images") == ["p1.png"]


def test_voc_difficult_unspecified(case, capsys):
    printed = checked(capsys, "voc")
    assert "8 objects of 2 class(es)" in printed
    assert "0 difficult" in printed
    dataset = open_case("voc")
    assert [dataset.target(i).labels.tolist() for i in range(4)] == [[1, 2]] * 4


def test_exif_upside_down(case, capsys):
    dataset = open_case("train.json@images")
    for index in range(4):
        red, green, blue = dataset.load_image(index).getpixel((40, 50))
        assert red > 180 > 100 > max(green, blue)
    assert "nothing wrong was found" not in checked(capsys, "train.json@images")


def test_section_given_twice(case, capsys):
    with pytest.raises(SystemExit) as stop:
        run(train.main, ["--config-file", "my.yaml"])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "my.yaml" in line
    assert "SOLVER" in line
    assert "2" in line  # the lines of both
    assert "7" in line


def test_ignored_regions(case, capsys):
    dataset = open_case("train.json@images")
    assert [len(dataset.target(index)) for index in range(4)] == [1, 1, 1, 1]
    assert "1 crowd" in checked(capsys, "train.json@images")


def test_area_null(case):
    train_on("train.json@images")
    (report,) = (case / "run" / "inference").glob("*/report.html")
    assert report.stat().st_size


def test_linked_camera_folder(case, capsys):
    assert "5 images" in checked(capsys, "yolo@train")
    assert sum(len(open_case("yolo@train").target(i)) for i in range(5)) == 5


def test_twelve_bits(case, capsys):
    printed = checked(capsys, "train.json@images")
    red, _, _ = open_case("train.json@images").load_image(0).getpixel((100, 100))
    assert red > 60 or "set INPUT.GREY_BITS 12" in printed
    train_on("train.json@images")
    assert capsys.readouterr().out.count("set INPUT.GREY_BITS 12") == 2  # of both sets
    cfg = load_cfg(CONFIG, ["INPUT.GREY_BITS", "12"])
    assert open_dataset(cfg, "train.json@images").load_image(0).getpixel((100, 100))[0] > 60


def test_home_in_output_dir(case, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    opts = ["DATASETS.TRAIN", "train.json@images", "DATASETS.TEST", "train.json@images"]
    (case / "mine.yaml").write_text(f"_BASE_: {CONFIG}\n" + (case / "my.yaml").read_text())
    train.main(["--skip-test", "--config-file", "mine.yaml", *BRIEF, *opts])
    assert (tmp_path / "home" / "runs" / "a" / "model_final.pth").is_file()
    assert not (case / "~").exists()


def test_large_image(case, capsys, recwarn):
    try:
        printed = checked(capsys, "train.json@images")
    except ValueError as error:
        printed = capsys.readouterr().out + str(error)
    assert "bomb" not in printed
    assert "20000" in printed
    assert not [
        warning for warning in recwarn if issubclass(warning.category, Image.DecompressionBombWarning)
    ]


def test_image_in_memory(case, detector):
    predictor = Predictor.from_config(CONFIG, str(detector), [*TINY, "MODEL.ATSS.INFERENCE_TH", "0.0"])
    expected = predictor("p1.jpg")
    result = predictor(io.BytesIO((case / "p1.jpg").read_bytes()))
    assert len(result) == len(expected) > 0
    torch.testing.assert_close(result.boxes, expected.boxes, rtol=0, atol=0)


def test_accented_class_names(case, capsys, recwarn):
    checked(capsys, "train.json@images")
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]
    assert (case / "checked").is_dir()
