"""Read videos and cameras frame by frame, and write MP4 files; by PyAV, an optional package."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from atss_core.utils.extras import require

# Players know the first everywhere; builds of FFmpeg under the LGPL have only the others.
ENCODERS = ("libx264", "libopenh264", "mpeg4")
# Ticks a second of what is written: whole numbers for the usual rates, 30000/1001 among them, and below the
# 65,536 that MPEG-4 can count.
CLOCK = 60_000
# Counterclockwise degrees, as FFmpeg gives them for how the camera was held.
TURNS = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_270,
}


class UnreadableVideoError(ValueError):
    """A video or camera cannot be opened, or is damaged."""


class Frame(NamedTuple):
    """An image of a video.

    Attributes:
        image: upright, RGB.
        seconds: since the first frame.
    """

    image: Image.Image
    seconds: float


class Source(NamedTuple):
    """What FFmpeg opens.

    Attributes:
        name: shown to the user.
        address: file, or device in the words of ``driver``.
        driver: FFmpeg's input format; None for files, where it is found out.
        options: of the driver.
    """

    name: str
    address: str
    driver: str | None = None
    options: dict[str, str] | None = None


def file_source(file: str | Path) -> Source:
    """Return a video file as a source.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    if not os.path.isfile(os.path.expanduser(file)):
        raise FileNotFoundError(f"there is no video file {file}")
    return Source(str(file), os.path.expanduser(file))


def camera_source(number: int, system: str = sys.platform) -> Source:
    """Return a camera as a source.

    Args:
        number: of the camera, from 0.
        system: as ``sys.platform`` names it.

    Raises:
        ValueError: if Windows has no such camera; elsewhere opening it tells.
    """
    name = f"camera {number}"
    if system == "darwin":
        return Source(name, str(number), "avfoundation", {"framerate": "30"})
    if system != "win32":
        return Source(name, f"/dev/video{number}", "v4l2")
    devices = require("av").enumerate_input_devices("dshow")
    cameras = [device.name for device in devices if "video" in device.media_types]
    if number >= len(cameras):
        raise ValueError(f"there is no {name}, but {len(cameras)}: {', '.join(cameras) or 'none'}")
    return Source(name, f"video={cameras[number]}", "dshow")


class VideoReader:
    """Read a video in a ``with`` block, frame by frame, so that its length needs no memory.

    Args:
        source: ``file_source`` or ``camera_source``.

    Attributes:
        num_frames: how many there are; an estimate where the file only tells its duration, None for a camera.

    Raises:
        UnreadableVideoError: if it cannot be opened or has no images.
        ValueError: if PyAV is not installed.
    """

    def __init__(self, source: Source) -> None:
        self._av = require("av")
        self.source = source
        try:
            self._container = self._av.open(
                source.address, format=source.driver, options=source.options or {}
            )
        except (self._av.FFmpegError, ValueError) as error:
            raise UnreadableVideoError(f"{source.name} cannot be opened as a video: {error}") from error
        streams = self._container.streams.video
        if not streams:
            self._container.close()
            raise UnreadableVideoError(f"{source.name} has no images in it; give a video")
        self._stream = streams[0]
        self._stream.thread_type = "AUTO"
        self.num_frames = self._stream.frames or self._estimate()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self._container.close()

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames from where the last one was.

        Raises:
            UnreadableVideoError: if the file is damaged there.
        """
        first: float | None = None
        seconds, step = 0.0, float(1 / (self._stream.average_rate or 25))
        try:
            for number, frame in enumerate(self._container.decode(self._stream)):
                # Frames without a time follow one another at the average rate.
                now = frame.time if frame.time is not None else (first or 0) + seconds + step * (number > 0)
                first = now if first is None else first
                seconds = now - first
                yield Frame(upright(frame), seconds)
        except self._av.FFmpegError as error:
            raise UnreadableVideoError(
                f"{self.source.name} is damaged after {seconds:.1f} s: {error}"
            ) from error

    def _estimate(self) -> int | None:
        """Return the number of frames by the duration of the file, None if it has none."""
        rate, length = self._stream.average_rate, self._container.duration  # in FFmpeg's microseconds
        return round(float(rate) * length / 1e6) if rate and length else None


def upright(frame: Any) -> Image.Image:
    """Return a decoded frame as an RGB image, turned as the camera was held."""
    image: Image.Image = frame.to_image()
    turn = TURNS.get(round(frame.rotation) % 360)
    return image if turn is None else image.transpose(turn)


class VideoWriter:
    """Write an MP4 file in a ``with`` block; leaving it, even by an error, completes the file.

    The first frame makes the file and decides the size. Frames keep their times, at whatever intervals they
    come. There is no sound.

    Args:
        file: to write; its folder is made.

    Raises:
        ValueError: if PyAV is not installed.
    """

    def __init__(self, file: Path) -> None:
        self._av = require("av")
        self.file = file
        self._container: Any = None
        self._stream: Any = None
        self._last = -1

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._container is not None:
            self._container.mux(self._stream.encode())
            self._container.close()

    def write(self, image: Image.Image, seconds: float) -> None:
        """Add a frame.

        Args:
            image: RGB; odd sides are continued by one pixel, because the format has even ones.
            seconds: when it is shown; a frame that is not later than the one before is shown a tick after it.
        """
        frame = self._av.VideoFrame.from_ndarray(with_even_sides(np.asarray(image)), format="rgb24")
        if self._container is None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._container = self._av.open(str(self.file), "w", format="mp4")
            self._stream = self._add_stream(frame.width, frame.height)
        frame.pts = self._last = max(round(seconds * CLOCK), self._last + 1)
        frame.time_base = Fraction(1, CLOCK)
        self._container.mux(self._stream.encode(frame))

    def _add_stream(self, width: int, height: int) -> Any:
        encoder = next(name for name in ENCODERS if name in self._av.codecs_available)
        stream = self._container.add_stream(encoder, rate=Fraction(30))  # a hint: times decide
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, CLOCK)
        if encoder == "libx264":
            stream.options = {"crf": "20", "preset": "veryfast"}
        else:
            stream.bit_rate = 4 * width * height
        return stream


def with_even_sides(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Repeat the last row and column of pixels (H, W, 3) where a side is odd."""
    height, width = pixels.shape[:2]
    return np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
