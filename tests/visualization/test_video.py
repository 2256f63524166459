"""Videos that are written and read again, and those that cannot be."""

import sys
import types
import weakref

import numpy as np
import pytest
from PIL import Image

from atss_core.utils import extras
from atss_core.visualization import video
from atss_core.visualization.video import Source, VideoReader, VideoWriter, camera_source, file_source
from atss_core.visualization.window import Window

av = pytest.importorskip("av")


def write(file, num_frames=8, size=(64, 48), times=None):
    with VideoWriter(file) as writer:
        for i in range(num_frames):
            shade = 255 * i // num_frames
            writer.write(Image.new("RGB", size, (shade, 0, 255 - shade)), times[i] if times else i / 10)
    return file


def read(file):
    with VideoReader(file_source(file)) as reader:
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


def test_times_count_from_the_first_frame(tmp_path):
    frames = read(write(tmp_path / "a.mp4", num_frames=2, times=[5, 6]))
    assert [frame.seconds for frame in frames] == pytest.approx([0, 1], abs=1e-4)


def test_odd_sides_are_continued_by_a_pixel(tmp_path):
    (frame, *_) = read(write(tmp_path / "a.mp4", size=(33, 21)))
    assert frame.image.size == (34, 22)
    pixels = np.asarray(frame.image, int)
    assert np.abs(pixels[:, -1] - pixels[:, -2]).max() < 12
    assert np.abs(pixels[-1] - pixels[-2]).max() < 12


def test_number_of_frames_is_known_before(tmp_path):
    with VideoReader(file_source(write(tmp_path / "a.mp4"))) as reader:
        assert reader.num_frames == 8
    with av.open(str(tmp_path / "a.mkv"), "w") as container:  # whose header has the duration alone
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(20):
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with VideoReader(file_source(tmp_path / "a.mkv")) as reader:
        assert reader.num_frames == pytest.approx(20, abs=1)
        assert len(list(reader)) == 20


@pytest.mark.parametrize("encoders", [("libopenh264", "mpeg4"), ("none such", "mpeg4")])
def test_builds_without_x264(tmp_path, monkeypatch, encoders):
    monkeypatch.setattr(video, "ENCODERS", encoders)
    assert len(read(write(tmp_path / "a.mp4"))) == 8


def test_few_frames_are_in_memory(tmp_path):
    write(tmp_path / "a.mp4", num_frames=200)
    alive, most = weakref.WeakSet(), 0
    with VideoReader(file_source(tmp_path / "a.mp4")) as reader:
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


def test_videos_held_upright(tmp_path):
    file = write(tmp_path / "a.mp4", num_frames=1)
    content = bytearray(file.read_bytes())
    # The matrix of the track header: 16.16 fixed point but for the last column.
    matrix = content.index(b"tkhd") + 4 + 40
    turned = [0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30]
    assert int.from_bytes(content[matrix : matrix + 4], "big") == 1 << 16
    content[matrix : matrix + 36] = b"".join(number.to_bytes(4, "big", signed=True) for number in turned)
    file.write_bytes(content)
    assert read(file)[0].image.size == (48, 64)


def test_a_quarter_turns_the_right_way():
    # A phone held upright stores what is at the top of the scene at the left, and says "-90": clockwise.
    stored = Image.new("RGB", (40, 20), "black")
    stored.paste("white", (0, 0, 10, 20))
    frame = types.SimpleNamespace(to_image=lambda: stored, rotation=-90)
    assert video.upright(frame).size == (20, 40)
    assert video.upright(frame).getpixel((5, 2)) == (255, 255, 255)


def test_faulty_files_are_explained(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no video file .*no\.mp4"):
        file_source(tmp_path / "no.mp4")
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(ValueError, match=r"text\.mp4 cannot be opened as a video: .*Invalid data"):
        read(tmp_path / "text.mp4")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        for i in range(8):
            silence = np.zeros((1, 1024), np.float32)
            frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 8000, 1024 * i
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match=r"sound\.mp4 has no images in it"):
        read(tmp_path / "sound.mp4")


def test_missing_pyav_is_explained(tmp_path, monkeypatch):
    file = write(tmp_path / "a.mp4")
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs av, which is not installed: pip install"):
        read(file)


def test_cameras_of_three_systems(monkeypatch):
    assert camera_source(1, "linux") == Source("camera 1", "/dev/video1", "v4l2")
    assert camera_source(0, "darwin")[:3] == ("camera 0", "0", "avfoundation")
    devices = [
        types.SimpleNamespace(name="Microphone", media_types=["audio"]),
        types.SimpleNamespace(name="Integrated Camera", media_types=["video"]),
    ]
    monkeypatch.setattr(av, "enumerate_input_devices", lambda driver: devices)
    assert camera_source(0, "win32").address == "video=Integrated Camera"
    with pytest.raises(ValueError, match=r"there is no camera 1, but 1: Integrated Camera"):
        camera_source(1, "win32")


def test_cameras_that_are_not_there():
    with pytest.raises(ValueError, match=r"camera 97 cannot be opened as a video"):
        VideoReader(camera_source(97))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is always a display")
def test_windows_need_a_display(monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    with pytest.raises(ValueError, match=r"--show needs (a desktop|tkinter)"):
        Window("test")


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
