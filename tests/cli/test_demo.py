"""The demo on videos and cameras; its images are in test_commands.py."""

import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from atss_core.apps import demo as workflow
from atss_core.cli import demo
from atss_core.cli.common import run
from atss_core.config import load_cfg
from atss_core.data import write_shapes
from atss_core.modeling import build_detector
from atss_core.visualization.video import VideoReader, VideoWriter
from tests.conftest import QUICK, TINY
from tests.golden import ROOT

SIZE = (101, 75)  # odd, as (width, height)
TIMES = [0, 0.1, 0.15, 0.4, 0.5, 1.5]


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """The arguments for a detector that detects objects everywhere."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "detector.pth"
    torch.save({"model": build_detector(load_cfg(QUICK, TINY)).state_dict()}, file)
    return ["--config-file", str(QUICK), "--weights", str(file), "--score-threshold", "0"]


OPTS = [*TINY, "MODEL.ATSS.INFERENCE_TH", "0.0"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A video of shapes, with frames at uneven times."""
    folder = tmp_path_factory.mktemp("clip")
    write_shapes(folder / "shapes", num_train=len(TIMES), num_val=1, progress=False)
    images = sorted((folder / "shapes" / "train").glob("*.jpg"))
    with VideoWriter(folder / "clip.mp4") as writer:
        for path, seconds in zip(images, TIMES, strict=True):
            writer.write(Image.open(path).convert("RGB").resize(SIZE), seconds)
    return folder / "clip.mp4"


def read(file):
    with VideoReader(file) as reader:
        return list(reader)


def test_video_is_annotated_frame_by_frame(detector, clip, tmp_path, capsys):
    demo.main([*detector, "--video", str(clip), "--output-dir", str(tmp_path), *OPTS])
    drawn, frames = read(tmp_path / "clip.mp4"), read(clip)
    assert [frame.seconds for frame in drawn] == pytest.approx(TIMES, abs=1e-3)
    for frame, original in zip(drawn, frames, strict=True):
        scale = 6  # of readable_scale for 76 pixels
        assert frame.image.size == (scale * 102, scale * 76)
        small = np.asarray(frame.image.resize(original.image.size), int)
        changed = np.abs(small - np.asarray(original.image, int)).max(axis=2) > 40
        assert 0.02 < changed.mean() < 0.98, "boxes on the image that was there"
    output = capsys.readouterr().out
    pattern = r"6 frames: decoding [\d.]+ ms, detecting [\d.]+ ms, drawing and encoding [\d.]+ ms \(medians, "
    assert re.search(pattern + r"without the first frame\); [\d.]+ frames per second", output)


def test_several_videos(detector, clip, tmp_path):
    (tmp_path / "other.mp4").write_bytes(clip.read_bytes())
    videos = ["--video", str(clip), "--video", str(tmp_path / "other.mp4")]
    demo.main([*detector, *videos, "--output-dir", str(tmp_path / "out"), *OPTS])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"clip.mp4", "other.mp4"}


def test_a_video_that_cannot_be_read_does_not_end_the_others(detector, clip, tmp_path, capsys):
    (tmp_path / "bad.mp4").write_text("not a video")
    videos = ["--video", str(tmp_path / "bad.mp4"), "--video", str(clip)]
    with pytest.raises(SystemExit) as stop:
        demo.main([*detector, *videos, "--output-dir", str(tmp_path / "out"), *OPTS])
    assert stop.value.code == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["clip.mp4"]
    error = capsys.readouterr().err
    assert re.search(r"skipped: .*bad\.mp4 cannot be opened as a video", error)
    assert error.endswith("1 of 2 files cannot be read and are skipped\n")


class FakeCamera(VideoReader):
    """A file plays the camera, and the user presses Ctrl+C after its last frame: there is no camera here."""

    asked, file = [], None

    def __init__(self, source):
        super().__init__(self.file)
        self.asked.append(source)
        self.is_camera = True

    def __iter__(self):
        yield from VideoReader(self.file)
        signal.raise_signal(signal.SIGINT)


def test_camera(detector, clip, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(FakeCamera, "file", clip)
    monkeypatch.setattr(workflow, "VideoReader", FakeCamera)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background ignores it
    demo.main([*detector, "--webcam", "2", "--output-dir", str(tmp_path), *OPTS])
    demo.main([*detector, "--output-dir", str(tmp_path), "--webcam", "--min-image-size", "64", *OPTS])
    signal.signal(signal.SIGINT, before)
    assert FakeCamera.asked == [2, 0]
    files = sorted(path.name for path in tmp_path.iterdir())
    assert [re.sub(r"\d{4}-\S+", "", name) for name in files] == ["camera0_", "camera2_"]
    assert len(read(tmp_path / files[1])) == len(TIMES)
    assert "stopped after 6 frames: waiting for the camera" in capsys.readouterr().out


def error_of(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        run(demo.main, arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return next(line for line in error.splitlines() if line.startswith("error: "))


def test_faults_end_in_one_line(detector, clip, tmp_path, capsys, monkeypatch):
    (tmp_path / "text.mp4").write_text("not a video")
    out = ["--output-dir", str(tmp_path / "out")]
    for arguments, message in (
        (["--video", str(tmp_path / "text.mp4")], "text.mp4 cannot be opened as a video"),
        (["--video", "nowhere.mp4"], "there is no video file nowhere.mp4"),
        (["--webcam", "97"], "camera 97 cannot be opened"),
        (["--webcam=-1"], "expected a number from 0, got '-1'"),
        (["--webcam"], "expected a number from 0, got 'MODEL.DEVICE'; --webcam=0 is"),
        (["--video", str(clip), "--video", "b/clip.mp4"], "two videos would be written to"),
        (["--video", str(clip), "--webcam", "0"], "not allowed with argument --video"),
        (["--vidoe", str(clip)], "did you mean --video?"),
    ):
        assert message in error_of([*detector, *out, *arguments, *OPTS], capsys)
    arguments = [*detector, "--video", str(clip), "--output-dir", str(clip.parent), *OPTS]
    assert "clip.mp4 would be overwritten" in error_of(arguments, capsys)
    assert not (tmp_path / "out").exists()
    monkeypatch.delenv("DISPLAY", raising=False)
    assert "--show needs" in error_of([*detector, *out, "--video", str(clip), "--show", *OPTS], capsys)
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert "pip install opencv-python-headless" in error_of([*detector, "--video", str(clip)], capsys)


def test_a_damaged_video_leaves_what_came_before(detector, clip, tmp_path, capsys):
    with VideoWriter(tmp_path / "long.mp4") as writer:
        noise = np.random.default_rng(0)
        for i in range(60):
            pixels = noise.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            writer.write(Image.fromarray(pixels), i / 10)
    content = (tmp_path / "long.mp4").read_bytes()
    index = content.index(b"moov") - 4
    # A recording whose index is at the front, of which only a part was copied.
    half = 48 + (index - 48) // 2
    damaged = bytearray(content)
    damaged[half:index] = bytes(index - half)
    (tmp_path / "long.mp4").write_bytes(damaged)
    arguments = [
        *detector,
        "--video",
        str(tmp_path / "long.mp4"),
        "--output-dir",
        str(tmp_path / "out"),
        *OPTS,
    ]
    assert re.search(r"long\.mp4 is damaged after \d\.\d s: ", error_of(arguments, capsys))
    assert 5 < len(read(tmp_path / "out" / "long.mp4")) < 60


def test_closing_the_window_ends_a_video(detector, clip, tmp_path, monkeypatch):
    shown = []

    class Fake:
        def __init__(self, title):
            self.is_open = True

        def show(self, image, wait=False):
            shown.append((image.size, wait))
            self.is_open = len(shown) < 3

    monkeypatch.setattr(workflow, "Window", Fake)
    demo.main([*detector, "--video", str(clip), "--show", "--output-dir", str(tmp_path), *OPTS])
    assert shown == [((612, 456), False)] * 3
    assert len(read(tmp_path / "clip.mp4")) == 3
    for i in range(5):
        Image.new("RGB", SIZE).save(tmp_path / f"{i}.png")
    shown.clear()
    arguments = ["--images-dir", str(tmp_path), "--output-dir", str(tmp_path / "out"), "--show"]
    demo.main([*detector, *arguments, *OPTS])
    assert [wait for _, wait in shown] == [True] * 3
    assert len(list((tmp_path / "out").iterdir())) == 5, "images are written without the window as well"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signal between processes")
def test_ctrl_c_completes_the_file(detector, tmp_path):
    with VideoWriter(tmp_path / "long.mp4") as writer:
        for i in range(3000):
            writer.write(Image.new("RGB", (64, 48)), i / 100)
    arguments = ["--video", str(tmp_path / "long.mp4"), "--output-dir", str(tmp_path / "out"), *OPTS]
    process = subprocess.Popen(
        [sys.executable, "demo/atss_demo.py", *detector, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell in the background makes its processes ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    folder = tmp_path / "out"
    while (
        not (folder.exists() and any(folder.iterdir())) and process.poll() is None
    ):  # till a frame is written
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, error = process.communicate(timeout=600)
    assert process.returncode == 0, error
    assert "Traceback" not in error
    count = int(re.search(r"stopped after (\d+) frame", output)[1])
    assert 0 < count < 3000
    assert len(read(folder / "long.mp4")) == count
    assert [path.name for path in folder.iterdir()] == ["long.mp4"]
