"""Detect objects in images, videos and camera streams, and write annotated copies."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from tqdm import tqdm

from atss_core.data import UnreadableImageError, read_image
from atss_core.engine import Predictor
from atss_core.engine.inference import now
from atss_core.utils.text import printable
from atss_core.visualization.boxes import readable_scale, save_image
from atss_core.visualization.video import (
    UnreadableVideoError,
    VideoReader,
    VideoWriter,
    Window,
    import_cv2,
    video_file,
)


def video_outputs(videos: Sequence[str], camera: int | None, folder: Path) -> dict[Path | int, Path]:
    """Map videos, or a camera, to the files to write; a camera gets a new file at each start.

    Raises:
        FileNotFoundError: if there is no such video.
        ValueError: if two videos would be written to the same file, or OpenCV is missing.
    """
    import_cv2()
    if camera is not None:
        return {camera: folder / f"camera{camera}_{datetime.now():%Y-%m-%d_%H-%M-%S}.mp4"}
    files = [folder / f"{Path(video).stem}.mp4" for video in videos]
    for file in files:
        if files.count(file) > 1:
            raise ValueError(f"two videos would be written to {file}; give each an --output-dir of its own")
    return dict(zip(map(video_file, videos), files, strict=True))


def annotate_images(
    predictor: Predictor, outputs: Mapping[Path, Path], *, threshold: float, show: bool
) -> int:
    """Detect, draw and save, and print how long detection took.

    Args:
        predictor: the detector.
        outputs: image -> annotated copy.
        threshold: detections with a lower score are not drawn.
        show: show each image in a window until a key is pressed; Escape, q or closing it end that.

    Returns:
        The number of unreadable files.
    """
    window = Window("atss demo") if show else None
    milliseconds: list[float] = []
    num_skipped = 0
    for path, file in tqdm(outputs.items(), desc="demo", unit="image", disable=None):
        try:
            image = read_image(path, True, predictor.max_pixels, predictor.grey_bits)
        except UnreadableImageError as error:
            num_skipped += _skip(error, len(outputs))
            continue
        if not milliseconds:
            predictor(image)  # the first run warms up and does not count
        start = now(predictor.device)
        detections = predictor(image)
        milliseconds.append(1000 * (now(predictor.device) - start))
        tqdm.write(f"{path.name}: {detections.above(threshold)}, {milliseconds[-1]:.0f} ms")
        drawn = detections.draw(image, threshold, readable_scale(detections.image_size))
        save_image(drawn, file)
        if window is not None and window.is_open:
            window.show(drawn, wait=True)
    if milliseconds:
        print(
            f"{statistics.median(milliseconds):.0f} ms per image (median of {len(milliseconds)}, resizing "
            f"included, without loading and warm-up); annotated images are in {file.parent}"
        )
    return num_skipped


def annotate_videos(
    predictor: Predictor, outputs: Mapping[Path | int, Path], *, threshold: float, show: bool
) -> int:
    """Annotate each video, or a camera stream; see ``annotate_images``.

    Ctrl+C, or closing the window, ends a video, and its file is completed.
    """
    num_skipped = 0
    for source, file in outputs.items():
        try:
            _annotate_video(predictor, source, file, threshold, show)
        except UnreadableVideoError as error:
            num_skipped += _skip(error, len(outputs))
    return num_skipped


def _skip(error: ValueError, total: int) -> int:
    """Report one of ``total`` unreadable files, and count it; the only one is an error."""
    if total == 1:
        raise error
    tqdm.write(f"skipped: {printable(str(error))}", file=sys.stderr)
    return 1


def _annotate_video(
    predictor: Predictor, source: Path | int, file: Path, threshold: float, show: bool
) -> None:
    """Detect, draw and write frame by frame, and print how long each step took."""
    window = Window("atss demo") if show else None
    times: list[tuple[float, float, float]] = []
    stopped = ""
    with (
        VideoReader(source) as reader,
        tqdm(total=reader.num_frames, desc=printable(reader.name), unit="frame", disable=None) as bar,
        VideoWriter(file) as writer,
    ):
        start = time.perf_counter()
        try:
            for frame in reader:
                read = time.perf_counter()
                detections = predictor(frame.image)
                detected = now(predictor.device)
                drawn = detections.draw(frame.image, threshold, readable_scale(detections.image_size))
                writer.write(drawn, frame.seconds)
                if window is not None:
                    window.show(drawn)
                end = time.perf_counter()
                times.append((read - start, detected - read, end - detected))
                start = end
                bar.update()
                if window is not None and not window.is_open:
                    break
        except KeyboardInterrupt:
            stopped = "stopped after "
    reading = "waiting for the camera" if reader.is_camera else "decoding"
    print(f"{stopped}{_summarize(times, reading)}; the annotated video is {file}")


def _summarize(times: Sequence[tuple[float, float, float]], reading: str) -> str:
    """Describe the seconds of (reading, detecting, drawing) per frame, without the first, which warms up."""
    count = f"{len(times)} frame{'' if len(times) == 1 else 's'}"
    if not times:
        return count
    measured = times[1:] or times
    read, detect, draw = (1000 * statistics.median(step) for step in zip(*measured, strict=True))
    rate = len(measured) / sum(map(sum, measured))
    warm_up = "without the first frame" if len(times) > 1 else "warm-up included"
    return (
        f"{count}: {reading} {read:.1f} ms, detecting {detect:.1f} ms, drawing and encoding {draw:.1f} ms "
        f"(medians, {warm_up}); {rate:.1f} frames per second in all"
    )
