"""Images of every kind and weights of every source through the Python API, its page and its script."""

import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from atss_core.config import load_cfg
from atss_core.data import to_rgb
from atss_core.engine import Predictor
from atss_core.modeling import build_detector
from atss_core.structures import BoxList
from atss_core.visualization.video import VideoWriter
from tests.conftest import QUICK, TINY
from tests.golden import ROOT

OPTS = [*TINY, "MODEL.ATSS.INFERENCE_TH", "0.0"]
MULTI_SCALE = [
    "TEST.BBOX_AUG.ENABLED",
    "True",
    "TEST.BBOX_AUG.H_FLIP",
    "True",
    "TEST.BBOX_AUG.SCALES",
    "(48,)",
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "detector.pth"
    torch.save({"model": build_detector(load_cfg(QUICK, TINY)).state_dict()}, file)
    return file


@pytest.fixture(scope="module", params=[[], MULTI_SCALE], ids=["one size", "many sizes"])
def predictor(request, weights):
    return Predictor.from_config(QUICK, weights, [*OPTS, *request.param])


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "P", "1", "RGBA", "CMYK", "YCbCr", "I", "I;16", "F"])
def test_images_of_every_mode(predictor, mode):
    image = Image.linear_gradient("L").resize((80, 60))
    if mode == "I;16":
        image = image.convert("I").point(lambda x: x * 256)
    image = image.convert(mode)
    if mode == "F":
        image = image.point(lambda x: x * (1 / 255) + 0)
    detections, expected = predictor(image), predictor(to_rgb(image))
    assert len(detections) > 0
    assert detections.image_size == (60, 80)
    assert torch.equal(detections.boxes, expected.boxes)
    assert torch.equal(detections.scores, expected.scores)


def test_limit_of_pixels(weights, tmp_path):
    limited = Predictor.from_config(QUICK, weights, [*OPTS, "INPUT.MAX_PIXELS", "4800"])
    for name, size in (("a.png", (80, 60)), ("b.png", (80, 61))):
        Image.new("RGB", size, "red").save(tmp_path / name)
    assert limited(tmp_path / "a.png").image_size == (60, 80)
    with pytest.raises(ValueError, match=r"b\.png: expected at most 4800 pixels .* got 80x61"):
        limited(tmp_path / "b.png")


def test_grey_bits_are_those_of_the_configuration(weights, tmp_path, caplog):
    values = np.linspace(0, 4095, 4800).astype(np.uint16).reshape(60, 80)
    Image.fromarray(values).save(tmp_path / "a.tif")
    expected = Image.fromarray((values >> 4).astype(np.uint8)).convert("RGB")
    right = Predictor.from_config(QUICK, weights, [*OPTS, "INPUT.GREY_BITS", "12"])
    sources = (tmp_path / "a.tif", (tmp_path / "a.tif").read_bytes(), Image.open(tmp_path / "a.tif"))
    for source, (image, found) in zip(sources, right.stream(sources), strict=True):
        assert np.array_equal(image, expected), source
        assert torch.equal(found.boxes, right(expected).boxes)
    assert np.array_equal(right(tmp_path / "a.tif").above(2).draw(), expected)
    assert "GREY_BITS" not in caplog.text
    wrong = Predictor.from_config(QUICK, weights, OPTS)
    for _ in range(2):
        assert np.asarray(next(wrong.stream(tmp_path / "a.tif"))[0]).max() == 15
    (message,) = (record.getMessage() for record in caplog.records if "GREY_BITS" in record.getMessage())
    assert message.startswith(f"{tmp_path / 'a.tif'}: grey values of 16 bits use 12")


def test_detections_that_are_not_finite_are_dropped_with_one_warning(weights, monkeypatch, caplog):
    broken = Predictor.from_config(QUICK, weights, OPTS)
    boxes = torch.tensor([[1.0, 2, 3, 4], [1, torch.nan, 3, 4]])
    found = BoxList(boxes, (48, 64), torch.tensor([1, 1]), torch.tensor([0.9, 0.8]))
    monkeypatch.setattr(broken.inference, "detect", lambda outputs, sizes: [found for _ in sizes])
    for _ in range(2):
        assert broken(Image.new("RGB", (64, 48))).boxes.tolist() == [[1, 2, 3, 4]]
    assert caplog.text.count("dropped 1 detections: expected finite boxes and scores, got NaN") == 1


def test_names_of_backbones_are_explained():
    with pytest.raises(
        ValueError, match=r"torchvision://resnet18 names an ImageNet backbone, not a detector"
    ):
        Predictor.from_config(QUICK, "torchvision://resnet18", TINY)


def test_weights_in_the_home_folder(weights, monkeypatch):
    monkeypatch.setenv("HOME", str(weights.parent))
    assert Predictor.from_config(QUICK, f"~/{weights.name}", TINY).class_names


def test_data_needs_no_classifiers():
    code = "import sys, atss_core.data; assert 'torchvision.models' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.fixture(scope="module")
def plain(weights):
    return Predictor.from_config(QUICK, weights, OPTS)


def noise(height, width, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def assert_same(detections, expected, tolerance=0.0):
    assert len(detections) == len(expected) > 0
    assert detections.image_size == expected.image_size
    # Boxes whose scores are equal up to rounding may swap.
    assert torch.allclose(detections.scores, expected.scores, atol=tolerance, rtol=0)
    boxes = [d.boxes[torch.argsort(d.boxes.sum(1) + 1e4 * d.labels)] for d in (detections, expected)]
    assert torch.allclose(*boxes, atol=100 * tolerance, rtol=0)


def test_arrays_and_tensors_are_the_images_they_hold(plain, tmp_path):
    image = noise(40, 60)
    image.save(tmp_path / "a.png")
    rgb = np.asarray(image)
    bgr = rgb[:, :, ::-1]
    tensor = torch.from_numpy(rgb.copy()).permute(2, 0, 1)
    alpha = np.dstack([bgr, np.zeros((40, 60), np.uint8)])
    expected = plain(image)
    assert len(plain(np.asarray(noise(40, 60, 1)))) > 0
    same = (
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        bgr,
        alpha,
        tensor,
        tensor / 255,
        tensor.half() / 255,
        (content := (tmp_path / "a.png").read_bytes()),
        bytearray(content),
        io.BytesIO(content),
    )
    with open(tmp_path / "a.png", "rb") as file:
        assert_same(plain(file), expected)
    both = plain([content, io.BytesIO(content)])
    assert [result.path for result in both] == [None, None]
    assert_same(both[1], expected)
    for source in same:
        assert_same(plain(source), expected)
    assert not torch.equal(plain(rgb).scores, expected.scores), "arrays are BGR"
    grey = np.asarray(image.convert("L"))
    for source in (grey, grey[:, :, None]):
        assert_same(plain(source), plain(image.convert("L")))


WRONG = {
    "floats": (np.zeros((4, 4, 3), np.float32), r"an array must be uint8 .* got float32"),
    "stack": (np.zeros((2, 4, 4, 3), np.uint8), r"an array must be uint8 .* shape \(2, 4, 4, 3\)"),
    "no pixels": (np.zeros((0, 4, 3), np.uint8), r"needs pixels, got \(height, width\) \(0, 4\)"),
    "channels last": (torch.zeros(4, 4, 3), r"shape \(3, H, W\) in RGB, got \(4, 4, 3\)"),
    "batch": (torch.zeros(2, 3, 4, 4), r"got \(2, 3, 4, 4\); pass a batch as a list"),
    "0..255": (torch.full((3, 4, 4), 200.0), r"floats must be in 0..1, RGB, got 200..200; divide"),
    "normalised": (torch.linspace(-1, 1, 48).view(3, 4, 4), r"must be in 0..1, RGB, got -1..1"),
    "nan": (torch.full((3, 4, 4), torch.nan), r"must be in 0..1, RGB, got nan"),
    "whole numbers": (torch.zeros(3, 4, 4, dtype=torch.int64), r"must be uint8 or floats .* torch.int64"),
    "nothing": (None, r"expected a path, encoded bytes, .* or a tensor, got NoneType"),
    "mapping": ({"image": "a.jpg"}, r"expected a path, encoded bytes, .* got dict$"),
    "numbers": ([1, 2], r"expected a path, encoded bytes, .* got int$"),
    "address": ("https://a.org/b.jpg", r"got the URL or data 'https://a.org/b.jpg'. Download or decode it"),
    "data": (
        "data:image/png;base64," + 9999 * "A",
        r"got the URL or data 'data:.{1,120}'. Download or decode",
    ),
    "text": (io.StringIO("a"), r"got a file opened as text. Open it with 'rb'"),
    "nothing left": (io.BytesIO(), r"got no bytes. .* seek\(0\)"),
    "other bytes": (b"GIF?", r"cannot be read as an image"),
    "no such file": ("nowhere.jpg", r"there is no image nowhere.jpg"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_images_are_explained(plain, name):
    source, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        plain(source)


def test_lists_and_folders_give_lists(plain, images):
    (images / "notes.txt").write_text("no image")
    (images / "._a.jpg").write_bytes(b"of macOS")
    detections = plain(images)
    assert [result.path for result in detections] == [images / "a.jpg", images / "b.png"]
    listed = plain([images / "a.jpg", Image.open(images / "b.png")])
    assert [result.path for result in listed] == [images / "a.jpg", None]
    for result, expected in zip(listed, detections, strict=True):
        assert_same(result, expected)
    assert plain([]) == []
    (images / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no images in .*empty"):
        plain(images / "empty")
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        plain([], batch_size=0)


def test_bytes_are_turned_upright_as_files_are(plain, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    noise(40, 60).save(tmp_path / "a.jpg", exif=exif)
    detections = plain((tmp_path / "a.jpg").read_bytes())
    assert detections.image_size == (60, 40)
    assert_same(detections, plain(tmp_path / "a.jpg"))


def test_unreadable_files_of_a_folder_are_skipped_and_named(plain, images, caplog):
    expected = plain(images)
    (images / "aa.png").write_bytes((images / "b.png").read_bytes()[:60])
    (images / "c.jpg").write_text("no image")
    detections = plain(images, batch_size=2)
    assert [result.path for result in detections] == [images / "a.jpg", images / "b.png"]
    for result, same in zip(detections, expected, strict=True):
        assert_same(result, same)
    assert [str(error).split(" ")[0] for error in plain.skipped] == [
        str(images / "aa.png"),
        str(images / "c.jpg"),
    ]
    assert [record.getMessage().split(" ")[1] for record in caplog.records] == [
        str(images / "aa.png"),
        str(images / "c.jpg"),
    ]
    assert len(plain([images / "a.jpg"])) == 1
    assert plain.skipped == []


def test_unreadable_files_of_a_list_raise_unless_they_are_to_be_skipped(plain, weights, images):
    (images / "aa.png").write_text("no image")
    files = sorted(images.iterdir())
    with pytest.raises(ValueError, match=r"aa.png cannot be read"):
        plain(files)
    lenient = Predictor.from_config(QUICK, weights, [*OPTS, "DATALOADER.SKIP_CORRUPT", "True"])
    detections = [result.path for _, result in lenient.stream(iter(files), batch_size=3)]
    assert detections == [images / "a.jpg", images / "b.png"]
    assert len(lenient.skipped) == 1
    with pytest.raises(ValueError, match=r"aa.png cannot be read"):
        lenient(images / "aa.png")


@pytest.mark.parametrize("batch_size", [2, 5, 8])
def test_batches_change_nothing_but_rounding(predictor, batch_size):
    sizes = [(40, 60), (200, 50), (40, 60), (64, 64), (50, 200), (60, 40), (41, 60)]
    images = [noise(*size, seed) for seed, size in enumerate(sizes)]
    together = predictor(images, batch_size=batch_size)
    for detections, image in zip(together, images, strict=True):
        assert_same(detections, predictor(image), tolerance=1e-5)


def test_streams_are_read_one_batch_at_a_time(plain):
    taken = []

    def endless():
        while True:
            taken.append(noise(20, 20, len(taken)))
            yield taken[-1]

    stream = plain.stream(endless(), batch_size=3)
    assert not taken
    image, detections = next(stream)
    assert len(taken) == 3
    assert image == taken[0]
    assert detections.class_names == plain.class_names
    for _ in range(3):
        next(stream)
    assert len(taken) == 6


def test_device_is_chosen_by_name(weights):
    assert Predictor.from_config("atss_R_18_shapes", weights, OPTS, device="cpu").device.type == "cpu"
    with pytest.raises(ValueError, match=r"MODEL.DEVICE must be auto, cpu"):
        Predictor.from_config(QUICK, weights, OPTS, device="toaster")


def test_the_page_about_python_is_true(plain, tmp_path, monkeypatch):
    """Run the page from top to bottom, with a small detector instead of that of the quick start."""
    pytest.importorskip("supervision")
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "python.md").read_text(), re.M | re.S)
    assert len(blocks) >= 6
    video = tmp_path / "clip.mp4"
    with VideoWriter(video) as writer:
        for i in range(3):
            writer.write(noise(48, 64, i), i / 10)
    monkeypatch.chdir(ROOT)
    asked = []
    monkeypatch.setattr(Predictor, "from_config", lambda *given, **flags: asked.append(given) or plain)
    names = {"output_dir": tmp_path, "video": video}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    assert asked == [("atss_R_18_shapes",)]
    written = {path.name for path in tmp_path.iterdir()}
    assert written >= {"drawn.mp4", "results.json", "shapes_14.png"}


def test_the_script_runs(weights, tmp_path):
    arguments = ["--weights", str(weights), "--output-dir", str(tmp_path), *OPTS]
    process = subprocess.run(
        [sys.executable, "demo/predict.py", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    assert "classes: class 1, class 2" in process.stdout
    assert {path.name for path in Path(tmp_path).iterdir()} == {"predict.png", "predict.json"}
