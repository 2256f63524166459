"""Videos, cameras and windows, by OpenCV, which is imported at their first use: nothing else needs libGL."""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

# Encoded by OpenCV's own packages on every system; H.264 is not, for its licence.
CODEC = "mp4v"
RATE = 30  # nominal frames per second, for the encoder's bit rate; the file has the true times
# Ticks per second of a written file: whole numbers for the usual rates, 30000/1001 among them.
CLOCK = 60_000


class UnreadableVideoError(ValueError):
    """A video or camera cannot be opened, or is damaged."""


class Frame(NamedTuple):
    """An upright RGB image of a video, and the seconds since the first frame."""

    image: Image.Image
    seconds: float


def import_cv2() -> Any:
    """Import OpenCV, quiet unless its environment variables say otherwise.

    Raises:
        ValueError: if it is not installed, or lacks a system library such as libGL.
    """
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    try:
        cv2 = importlib.import_module("cv2")
        if not hasattr(cv2, "VideoCapture"):  # what pip leaves where two packages of OpenCV were installed
            raise ImportError("a cv2 without contents, `pip install --force-reinstall opencv-python`")
    except ImportError as error:
        raise ValueError(
            f"videos and windows: expected OpenCV (cv2), got: {error}. `apt install libgl1` adds a missing "
            "libGL; a machine without a desktop does without it: `pip install opencv-python-headless`."
        ) from error
    return cv2


def video_file(file: str | Path) -> Path:
    """Return the path of a video, with ~ expanded.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    path = Path(os.path.expanduser(file))
    if not path.is_file():
        raise FileNotFoundError(f"there is no video file {file}")
    return path


class VideoReader:
    """Read a video in a ``with`` block, frame by frame, so that its length needs no memory.

    Args:
        source: a video file, or the number of a camera, 0 for the first.

    Attributes:
        num_frames: by the header, for some formats an estimate; None for a camera.

    Raises:
        FileNotFoundError: if there is no such file.
        UnreadableVideoError: if it cannot be opened or has no images.
    """

    def __init__(self, source: str | Path | int) -> None:
        self._cv2 = cv2 = import_cv2()
        self.is_camera = isinstance(source, int)
        self.name = f"camera {source}" if self.is_camera else str(source)
        # FFmpeg alone for files: others would take a path with digits for a sequence of images.
        self._input = (
            (source, cv2.CAP_ANY) if isinstance(source, int) else (str(video_file(source)), cv2.CAP_FFMPEG)
        )
        self._capture = cv2.VideoCapture(*self._input)
        if not self._capture.isOpened():
            remedy = "Is it connected, and free?" if self.is_camera else "Is it a video, with images in it?"
            raise UnreadableVideoError(f"{self.name} cannot be opened as a video. {remedy}")
        self._capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)  # not the default everywhere
        self.num_frames = max(round(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0) or None

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self._capture.release()

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames from where the last one was, turned as the camera was held.

        Raises:
            UnreadableVideoError: if the file is damaged there, or the camera stops.
        """
        start, seconds, count = 0.0, 0.0, 0
        step = 1 / (self._capture.get(self._cv2.CAP_PROP_FPS) or 25)
        while (result := self._capture.read())[0]:
            now = time.monotonic() if self.is_camera else self._seconds(self._capture)
            if count == 0:
                start = now
            else:  # frames without a time of their own follow one another at the average rate
                seconds = now - start if now - start > seconds else seconds + step
            count += 1
            yield Frame(Image.fromarray(self._cv2.cvtColor(result[1], self._cv2.COLOR_BGR2RGB)), seconds)
        after = f"after {seconds:.1f} s"
        if self.is_camera:
            raise UnreadableVideoError(f"{self.name} stopped {after}. Is it still connected?")
        if self._goes_on(count, start + seconds):
            raise UnreadableVideoError(f"{self.name} is damaged {after}: the next frame cannot be decoded")

    def _seconds(self, capture: Any) -> float:
        return capture.get(self._cv2.CAP_PROP_POS_MSEC) / 1000

    def _goes_on(self, count: int, last: float) -> bool:
        """Tell whether the file has more after ``count`` frames, up to ``last`` seconds.

        OpenCV takes damage for the end, and the header's number of frames is not reliable: it counts those
        that an edit cuts off, or is an estimate. Later frames that decode tell, or encoded frames well after.
        """
        missing = min((self.num_frames or 0) - count, 10_000)  # headers can have any number
        if missing <= 0 or any(self._capture.grab() for _ in range(missing)):
            return missing > 0
        packets, end = self._cv2.VideoCapture(*self._input, [self._cv2.CAP_PROP_FORMAT, -1]), last
        while packets.grab():
            end = max(end, self._seconds(packets))
        return end > last + 0.5


class VideoWriter:
    """Write an MP4 file in a ``with`` block; leaving it, even by an error, completes the file.

    Frames keep their times, at whatever intervals they come. There is no sound. OpenCV encodes at a constant
    rate, so the encoded frames go to a hidden file first, and from there with their times to ``file``.

    Args:
        file: to write; its folder is made with the first frame, which decides the size.

    Raises:
        ValueError: if OpenCV is missing or cannot encode, or a frame has another size than the first.
        OSError: if the file is incomplete, as on a full disk.
    """

    def __init__(self, file: Path) -> None:
        self._cv2 = import_cv2()
        self.file, self._encoded = file, file.with_name(f".{file.stem}.{os.getpid()}.mp4")
        self._encoder: Any = None
        self._size = 0, 0  # (width, height)
        self._ticks: list[int] = []

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._encoder is not None:
            self._encoder.release()
            try:
                self._copy_with_times()
            finally:
                self._encoded.unlink()

    def write(self, image: Image.Image, seconds: float) -> None:
        """Add a frame.

        Args:
            image: RGB; odd sides are continued by one pixel, because the format has even ones.
            seconds: when it is shown; a frame that is not later than the one before is shown a tick after it.
        """
        pixels = np.pad(_to_bgr(image), ((0, image.height % 2), (0, image.width % 2), (0, 0)), mode="edge")
        size = pixels.shape[1], pixels.shape[0]
        if self._encoder is not None and size != self._size:
            raise ValueError(
                f"{self.file}: expected frames of (width, height) {self._size}, as the first, got "
                f"{size}. Resize them."
            )
        if self._encoder is None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._size = size
            self._encoder = self._open(self._encoded, RATE)
        self._encoder.write(pixels)
        self._ticks.append(max(round(seconds * CLOCK), self._ticks[-1] + 1 if self._ticks else 0))

    def _open(self, file: Path, rate: int, *options: int) -> Any:
        cv2 = self._cv2
        codec = cv2.VideoWriter_fourcc(*CODEC)
        writer = cv2.VideoWriter(str(file), cv2.CAP_FFMPEG, codec, rate, self._size, options)
        if not writer.isOpened():
            raise ValueError(
                f"{self.file}: expected an OpenCV that encodes {CODEC} and a folder to write to, got OpenCV "
                f"{cv2.__version__}, which fails there. `pip install opencv-python` brings FFmpeg's encoders."
            )
        return writer

    def _copy_with_times(self) -> None:
        """Copy the encoded frames to the file, with their times."""
        cv2 = self._cv2
        packets = cv2.VideoCapture(str(self._encoded), cv2.CAP_FFMPEG, [cv2.CAP_PROP_FORMAT, -1])
        writer = self._open(self.file, CLOCK, cv2.VIDEOWRITER_PROP_RAW_VIDEO, 1)
        for number, ticks in enumerate(self._ticks):
            is_read, packet = packets.read()
            if not is_read:
                break
            if number == 0:  # the header of the stream, which the packets lack
                header = packets.retrieve(None, int(packets.get(cv2.CAP_PROP_CODEC_EXTRADATA_INDEX)))[1]
                packet = np.hstack([header, packet])
            writer.set(cv2.VIDEOWRITER_PROP_PTS, ticks)
            writer.set(cv2.VIDEOWRITER_PROP_DTS_DELAY, number - ticks)  # decoding times are the same
            writer.set(cv2.VIDEOWRITER_PROP_KEY_FLAG, packets.get(cv2.CAP_PROP_LRF_HAS_KEY_FRAME))
            writer.write(packet)
        writer.release()
        packets.release()
        written = int(cv2.VideoCapture(str(self.file), cv2.CAP_FFMPEG).get(cv2.CAP_PROP_FRAME_COUNT))
        if written != len(self._ticks):
            raise OSError(
                f"{self.file}: expected {len(self._ticks)} frames, got {written}. Is the disk full, "
                "or a pause between frames longer than hours?"
            )


class Window:
    """A window that shows one image after the other.

    Attributes:
        is_open: whether the user has not closed it, nor pressed Escape or q.

    Raises:
        ValueError: if there is no desktop, or this OpenCV has no windows.
    """

    def __init__(self, title: str) -> None:
        self._cv2, self._title, self.is_open = import_cv2(), title, True
        # Where there is no desktop, OpenCV would end the process.
        if sys.platform == "linux" and not (os.getenv("DISPLAY") or os.getenv("WAYLAND_DISPLAY")):
            raise ValueError(
                "--show needs a desktop, and DISPLAY is not set; leave it out to write files alone"
            )
        try:
            self._cv2.namedWindow(title, self._cv2.WINDOW_AUTOSIZE)
        except self._cv2.error as error:
            raise ValueError(
                "--show needs windows, which opencv-python-headless lacks: `pip uninstall "
                "opencv-python-headless && pip install --force-reinstall opencv-python`, or leave it out"
            ) from error

    def show(self, image: Image.Image, wait: bool = False) -> None:
        """Show an RGB image in place of the one before, and, with ``wait``, until a key is pressed."""
        cv2 = self._cv2
        cv2.imshow(self._title, _to_bgr(image))
        key = None
        while key is None or (wait and key < 0 and self.is_open):
            key = cv2.waitKey(20 if wait else 1)
            is_visible = cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) > 0
            self.is_open = is_visible and key not in (27, ord("q"))  # 27 is Escape


def _to_bgr(image: Image.Image) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(np.asarray(image)[:, :, ::-1])
