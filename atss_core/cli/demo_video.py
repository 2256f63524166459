"""Detect objects in videos and in what a camera sees; a part of ``atss demo``."""

from __future__ import annotations

import signal
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from threading import Event
from types import FrameType

from tqdm import tqdm

from atss_core.engine import Predictor
from atss_core.engine.inference import now
from atss_core.utils.text import printable
from atss_core.visualization.boxes import readable_scale
from atss_core.visualization.video import Source, VideoReader, VideoWriter
from atss_core.visualization.window import Window


@dataclass
class FrameTimes:
    """Milliseconds that each frame took; the first one, which warms up, is left out if there are others."""

    reading: list[float] = field(default_factory=list)
    detecting: list[float] = field(default_factory=list)
    drawing: list[float] = field(default_factory=list)

    def add(self, moments: Sequence[float]) -> None:
        """Add the four moments, in seconds, between which a frame was read, looked at, and drawn."""
        for values, start, end in zip(
            (self.reading, self.detecting, self.drawing), moments, moments[1:], strict=False
        ):
            values.append(1000 * (end - start))

    def __len__(self) -> int:
        return len(self.reading)

    def summary(self, reading: str) -> str:
        """Return the medians and the frames per second; ``reading`` says what reading is for this source."""
        count = f"{len(self)} frame{'' if len(self) == 1 else 's'}"
        if not self:
            return count
        first = 1 if len(self) > 1 else 0
        parts = [values[first:] for values in (self.reading, self.detecting, self.drawing)]
        read, detect, draw = map(statistics.median, parts)
        rate = 1000 * len(parts[0]) / sum(map(sum, parts))
        warm_up = "without the first frame" if first else "warm-up included"
        return (
            f"{count}: {reading} {read:.1f} ms, detecting {detect:.1f} ms, drawing and encoding "
            f"{draw:.1f} ms (medians, {warm_up}); {rate:.1f} frames per second in all"
        )


def camera_file(folder: Path, number: int) -> Path:
    """Return where what a camera sees is written: a file of its own for each start."""
    return folder / f"camera{number}_{datetime.now():%Y-%m-%d_%H-%M-%S}.mp4"


def video_files(videos: Sequence[str], folder: Path) -> list[Path]:
    """Return where the annotated copy of each video is written.

    Raises:
        ValueError: if that is the same for two of them.
    """
    files = [folder / f"{Path(video).stem}.mp4" for video in videos]
    for file in files:
        if files.count(file) > 1:
            raise ValueError(f"two videos would be written to {file}; give each an --output-dir of its own")
    return files


def annotate_video(
    predictor: Predictor, source: Source, file: Path, *, threshold: float, show: bool
) -> FrameTimes:
    """Detect, draw and write frame by frame, and print how long each step took.

    Ctrl+C, or closing the window, ends it after the frame at hand, and the file is completed.

    Args:
        predictor: the detector.
        source: a video file or camera.
        file: the annotated video.
        threshold: detections below this score are not drawn.
        show: show the frames in a window as well.
    """
    times = FrameTimes()
    name = printable(source.name)
    with ExitStack() as stack:
        window = stack.enter_context(Window("atss demo")) if show else None
        reader = stack.enter_context(VideoReader(source))
        stop = stack.enter_context(stop_on_interrupt())
        bar = stack.enter_context(tqdm(total=reader.num_frames, desc=name, unit="frame", disable=None))
        writer = stack.enter_context(VideoWriter(file))
        start = time.perf_counter()
        for frame in reader:
            is_read = time.perf_counter()
            found = predictor(frame.image)
            is_found = now(predictor.device)
            drawn = found.draw(frame.image, threshold, readable_scale(found.image_size))
            writer.write(drawn, frame.seconds)
            if window is not None:
                window.show(drawn)
            end = time.perf_counter()
            times.add((start, is_read, is_found, end))
            start = end
            bar.update()
            if stop.is_set() or (window is not None and not window.is_open):
                break
    stopped = "stopped after " if stop.is_set() else ""
    reading = "decoding" if source.driver is None else "waiting for the camera"
    print(f"{stopped}{times.summary(reading)}; the annotated video is {file}")
    return times


@contextmanager
def stop_on_interrupt() -> Iterator[Event]:
    """Let Ctrl+C set an event instead of breaking off anywhere; a second one breaks off."""
    stop = Event()
    before = signal.getsignal(signal.SIGINT)

    def notice(number: int, frame: FrameType | None) -> None:
        stop.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, notice)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
