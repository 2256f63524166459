"""Videos that are written and read again, cameras, windows, and their errors."""

import subprocess
import sys
import weakref

import cv2
import numpy as np
import pytest
from PIL import Image

from atss_core.visualization import video
from atss_core.visualization.video import UnreadableVideoError, VideoReader, VideoWriter, Window
from tests.golden import ROOT


def write(file, num_frames=8, size=(64, 48), times=None):
    with VideoWriter(file) as writer:
        for i in range(num_frames):
            shade = 255 * i // num_frames
            writer.write(Image.new("RGB", size, (shade, 0, 255 - shade)), times[i] if times else i / 10)
    return file


def read(file):
    with VideoReader(file) as reader:
        return list(reader)


def test_frames_come_back_in_order_and_in_time(tmp_path):
    times = [0, 0.04, 0.1, 0.5, 0.52, 1.2, 1.2, 3]  # two at once, as clumsy clocks have it
    frames = read(write(tmp_path / "new" / "a.mp4", times=times))
    assert [frame.seconds for frame in frames] == pytest.approx(times, abs=1e-4)
    for i, frame in enumerate(frames):
        assert frame.image.size == (64, 48)
        assert frame.image.mode == "RGB"
        shade = 255 * i // 8
        assert np.abs(np.asarray(frame.image, int) - (shade, 0, 255 - shade)).max() < 12
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["a.mp4"], "no intermediate file is left"


def test_players_see_the_rate_of_the_frames(tmp_path):
    """The decoding times, by which players seek, agree with the times of the frames."""
    capture = cv2.VideoCapture(
        str(write(tmp_path / "a.mp4", num_frames=101, times=[i / 50 for i in range(101)]))
    )
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(50, abs=1)
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 101


def test_times_count_from_the_first_frame(tmp_path):
    frames = read(write(tmp_path / "a.mp4", num_frames=2, times=[5, 6]))
    assert [frame.seconds for frame in frames] == pytest.approx([0, 1], abs=1e-4)


def test_odd_sides_are_continued_by_a_pixel(tmp_path):
    (frame, *_) = read(write(tmp_path / "a.mp4", size=(33, 21)))
    assert frame.image.size == (34, 22)
    pixels = np.asarray(frame.image, int)
    assert np.abs(pixels[:, -1] - pixels[:, -2]).max() < 12
    assert np.abs(pixels[-1] - pixels[-2]).max() < 12


@pytest.mark.parametrize("name", ["a.mkv", "a.avi"])
def test_number_and_times_of_frames_of_other_formats(tmp_path, name):
    encoder = cv2.VideoWriter(
        str(tmp_path / name), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"mp4v"), 10, (64, 48)
    )
    for i in range(20):
        encoder.write(np.full((48, 64, 3), 12 * i, np.uint8))
    encoder.release()
    with VideoReader(tmp_path / name) as reader:
        assert reader.num_frames == pytest.approx(20, abs=1)
        seconds = [frame.seconds for frame in reader]
    assert seconds == pytest.approx([i / 10 for i in range(20)], abs=1e-3)


def test_frames_without_times_follow_at_the_average_rate(tmp_path, monkeypatch):
    file = write(tmp_path / "a.mp4")
    monkeypatch.setattr(cv2, "CAP_PROP_POS_MSEC", -1)  # get() returns 0 for unknown properties
    step = 1 / cv2.VideoCapture(str(file)).get(cv2.CAP_PROP_FPS)
    assert [frame.seconds for frame in read(file)] == pytest.approx([i * step for i in range(8)])


def test_few_frames_are_in_memory(tmp_path):
    write(tmp_path / "a.mp4", num_frames=200)
    alive, most = weakref.WeakSet(), 0
    with VideoReader(tmp_path / "a.mp4") as reader:
        for image, _ in reader:
            alive.add(Holder.of(image))
            del image
            most = max(most, len(alive))
    assert most <= 2


class Holder:
    """A weakly referable companion that lives as long as an image."""

    @classmethod
    def of(cls, image):
        image.info["holder"] = holder = cls()
        return holder


def test_videos_are_turned_as_the_camera_was_held(tmp_path):
    stored = Image.new("RGB", (64, 32), "black")
    stored.paste("white", (0, 0, 16, 32))
    with VideoWriter(tmp_path / "a.mp4") as writer:
        writer.write(stored, 0)
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    # The matrix of the track header: 16.16 fixed point but for the last column. A phone held upright stores
    # the top of the scene at the left, and asks for a quarter turn clockwise.
    matrix = content.index(b"tkhd") + 4 + 40
    turned = [0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30]
    assert int.from_bytes(content[matrix : matrix + 4], "big") == 1 << 16
    content[matrix : matrix + 36] = b"".join(number.to_bytes(4, "big", signed=True) for number in turned)
    (tmp_path / "a.mp4").write_bytes(content)
    (frame,) = read(tmp_path / "a.mp4")
    assert frame.image.size == (32, 64)
    assert min(frame.image.getpixel((16, 5))) > 240
    assert max(frame.image.getpixel((16, 50))) < 15


def test_faulty_files_are_explained(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no video file .*no\.mp4"):
        VideoReader(tmp_path / "no.mp4")
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(ValueError, match=r"text\.mp4 cannot be opened as a video"):
        read(tmp_path / "text.mp4")
    # A video renamed to a sound track: its handler is no longer "vide".
    file = write(tmp_path / "sound.mp4")
    file.write_bytes(file.read_bytes().replace(b"vide", b"soun"))
    with pytest.raises(ValueError, match=r"sound\.mp4 cannot be opened as a video.*images in it"):
        read(file)


def read_until_error(reader):
    frames = []
    with pytest.raises(UnreadableVideoError) as info:  # noqa: PT012, the frames before it count
        for frame in reader:
            frames.append(frame)
    return frames, str(info.value)


def damage(file, start, end):
    """Overwrite a part of the encoded frames, given as fractions."""
    content = bytearray(file.read_bytes())
    index = content.index(b"moov") - 4
    start, end = (48 + int((index - 48) * fraction) for fraction in (start, end))
    content[start:end] = bytes(end - start)
    file.write_bytes(content)


@pytest.mark.parametrize(("start", "end"), [(0.5, 1), (0.4, 0.5)])
def test_damage_is_distinguished_from_the_end(tmp_path, start, end):
    with VideoWriter(tmp_path / "a.mp4") as writer:
        noise = np.random.default_rng(0)
        for i in range(60):
            writer.write(Image.fromarray(noise.integers(0, 256, (64, 64, 3), dtype=np.uint8)), i / 10)
    assert len(read(tmp_path / "a.mp4")) == 60
    damage(tmp_path / "a.mp4", start, end)
    with VideoReader(tmp_path / "a.mp4") as reader:
        frames, error = read_until_error(reader)
    assert 5 < len(frames) < 60
    assert f"a.mp4 is damaged after {frames[-1].seconds:.1f} s: " in error


def test_a_wrong_number_of_frames_in_the_header_is_no_damage(tmp_path):
    with VideoReader(write(tmp_path / "a.mp4")) as reader:
        reader.num_frames = 10**15  # as an estimate by a wrong rate can be
        assert len(list(reader)) == 8


@pytest.mark.parametrize("reason", ["libGL.so.1: cannot open shared object file", "No module named 'cv2'"])
def test_missing_opencv_or_system_library_is_explained(tmp_path, monkeypatch, reason):
    file = write(tmp_path / "a.mp4")

    def fail(name):
        raise ImportError(reason)

    monkeypatch.setattr(video.importlib, "import_module", fail)
    for use in (lambda: read(file), lambda: write(tmp_path / "b.mp4"), lambda: Window("test")):
        with pytest.raises(
            ValueError, match=r"apt install libgl1.*pip install opencv-python-headless"
        ) as info:
            use()
        assert reason in str(info.value)


def test_opencv_is_imported_only_for_videos_and_windows():
    code = (
        "import sys, atss_core.cli.demo, atss_core.cli.train, atss_core.cli.evaluate;"
        "assert 'cv2' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_an_opencv_without_encoders_is_explained(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "CODEC", "none")
    with pytest.raises(ValueError, match=r"a\.mp4: expected an OpenCV that encodes none.*pip install opencv"):
        write(tmp_path / "a.mp4")


def test_an_incomplete_file_is_an_error(tmp_path):
    writer = VideoWriter(tmp_path / "a.mp4")
    writer.write(Image.new("RGB", (64, 48)), 0)
    writer._ticks.append(9)  # a frame that the disk had no room for
    with pytest.raises(OSError, match=r"a\.mp4: expected 2 frames, got 1\. Is the disk full"), writer:
        pass


class FakeCapture:
    """A camera that gives three images, and then is unplugged."""

    def __init__(self, number, backend):
        assert number == 1
        self.images = [np.full((48, 64, 3), (255, 0, 0), np.uint8)] * 3  # blue, in BGR

    def isOpened(self):  # noqa: N802
        return True

    def get(self, name):
        return -1.0

    def read(self):
        return (True, self.images.pop()) if self.images else (False, None)

    def set(self, name, value):
        return False

    def release(self):
        pass


def test_cameras_are_opened_by_their_number(monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture)
    monkeypatch.setattr(video.time, "monotonic", iter([7.0, 7.5, 9.0]).__next__)
    with VideoReader(1) as camera:
        assert camera.num_frames is None
        frames, error = read_until_error(camera)
    assert error.startswith("camera 1 stopped after 2.0 s")
    assert [frame.seconds for frame in frames] == [0, 0.5, 2]
    assert frames[0].image.getpixel((0, 0)) == (0, 0, 255)


def test_cameras_that_are_not_there():
    with pytest.raises(ValueError, match=r"camera 97 cannot be opened as a video"):
        VideoReader(97)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is always a display")
def test_windows_need_a_display(monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(ValueError, match=r"--show needs a desktop"):
        Window("test")


def test_windows_need_an_opencv_that_has_them(monkeypatch):
    def fail(*args):
        raise cv2.error("The function is not implemented")

    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(cv2, "namedWindow", fail)
    with pytest.raises(
        ValueError, match=r"opencv-python-headless lacks: .*pip install --force-reinstall opencv-python"
    ):
        Window("test")


def test_a_window_shows_images_until_it_is_closed(monkeypatch):
    monkeypatch.setenv("DISPLAY", ":0")
    shown, keys = [], []
    monkeypatch.setattr(cv2, "namedWindow", lambda title, flags: None)
    monkeypatch.setattr(cv2, "imshow", lambda title, pixels: shown.append(pixels[0, 0].tolist()))
    monkeypatch.setattr(cv2, "waitKey", lambda milliseconds: keys.pop(0))
    monkeypatch.setattr(cv2, "getWindowProperty", lambda title, name: float(keys != ["closed"]))
    window = Window("test")
    for pressed, wait, is_open in (
        ([-1, "next"], False, True),  # a video goes on without a key
        ([-1, -1, 32, "next"], True, True),
        ([27, "next"], False, False),
        ([ord("q"), "next"], True, False),
        ([-1, "closed"], True, False),
    ):
        keys[:] = pressed
        window.show(Image.new("RGB", (8, 8), (255, 128, 0)), wait)
        assert len(keys) == 1
        assert window.is_open == is_open
    assert shown == [[0, 128, 255]] * 5


def test_errors_leave_a_complete_file(tmp_path):
    def fail():
        with VideoWriter(tmp_path / "a.mp4") as writer:
            for i in range(5):
                writer.write(Image.new("RGB", (32, 32)), i / 10)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert len(read(tmp_path / "a.mp4")) == 5
    with VideoWriter(tmp_path / "none.mp4"):
        pass
    assert not (tmp_path / "none.mp4").exists(), "a video without frames is no file"


def test_frames_of_another_size_are_refused_and_the_file_is_complete(tmp_path):
    with VideoWriter(tmp_path / "a.mp4") as writer:
        writer.write(Image.new("RGB", (64, 48)), 0.0)
        with pytest.raises(
            ValueError, match=r"a\.mp4: expected frames of \(width, height\) \(64, 48\), .* \(32, 48\)"
        ):
            writer.write(Image.new("RGB", (32, 48)), 0.1)
        writer.write(Image.new("RGB", (64, 48)), 0.2)
    with VideoReader(tmp_path / "a.mp4") as reader:
        assert [frame.image.size for frame in reader] == [(64, 48)] * 2
