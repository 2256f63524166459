"""Detect objects in images, videos or what a camera sees, and write annotated copies.

Files that cannot be read are skipped; the exit status is then 1, or 0 with DATALOADER.SKIP_CORRUPT True.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageShow
from tqdm import tqdm

from atss_core.checkpoint.backbones import is_imagenet_backbone
from atss_core.checkpoint.download import is_url, locate
from atss_core.cli.common import add_config_arguments
from atss_core.cli.demo_video import annotate_video, camera_file, video_files
from atss_core.cli.parser import CommandParser, expanded_path
from atss_core.data import UnreadableImageError, read_image
from atss_core.engine import Predictor
from atss_core.engine.inference import now
from atss_core.engine.sources import find_images
from atss_core.utils.extras import require
from atss_core.utils.files import refuse_overwriting
from atss_core.utils.text import printable
from atss_core.visualization.boxes import readable_scale, save_image
from atss_core.visualization.video import Source, UnreadableVideoError, camera_source, file_source

RELEASES = "https://github.com/sfzhang15/ATSS"

EXAMPLE = """
atss demo --weights ATSS_R_50_FPN_1x.pth --images-dir my_images
atss demo --weights ATSS_R_50_FPN_1x.pth --video street.mp4
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with command-line words, by default those of this process."""
    arguments = build_parser().parse_args(argv)
    is_named = is_url(arguments.weights) or is_imagenet_backbone(arguments.weights)  # Predictor sees to those
    if not is_named and not locate(arguments.weights).is_file():
        raise FileNotFoundError(
            f"no weights at {arguments.weights}: get {Path(arguments.weights).name} from {RELEASES} (model "
            f"table) or train your own, and point to it with --weights FILE"
        )
    opts = list(arguments.opts)
    if arguments.min_image_size:
        opts += ["INPUT.MIN_SIZE_TEST", str(arguments.min_image_size)]
    folder = arguments.output_dir
    videos = find_videos(arguments, folder)
    images = [] if videos else find_images(arguments.images_dir)
    outputs = [file for _, file in videos] + [folder / path.name for path in images]
    inputs = [*images, *arguments.video, arguments.weights]
    refuse_overwriting(outputs, inputs, "Give another --output-dir.")
    predictor = Predictor.from_config(arguments.config_file, arguments.weights, opts)
    num_skipped = 0
    for source, file in videos:
        try:
            annotate_video(predictor, source, file, threshold=arguments.score_threshold, show=arguments.show)
        except UnreadableVideoError as error:
            num_skipped += skip(error, len(videos))
    if images:
        num_skipped += annotate(
            predictor, images, folder, threshold=arguments.score_threshold, show=arguments.show
        )
    if num_skipped == len(outputs):
        raise ValueError(f"none of the {num_skipped} files can be read; give --images-dir or --video others")
    if num_skipped:
        print(f"{num_skipped} of {len(outputs)} files cannot be read and are skipped", file=sys.stderr)
        sys.exit(0 if predictor.skip_unreadable else 1)


def skip(error: ValueError, total: int) -> int:
    """Tell about one of ``total`` files that cannot be read, and count it; the only one is an error."""
    if total == 1:
        raise error
    tqdm.write(f"skipped: {printable(str(error))}", file=sys.stderr)
    return 1


def build_parser() -> CommandParser:
    """Build what reads the words of the command."""
    parser = CommandParser("atss demo", __doc__, EXAMPLE)
    parser.add_argument(
        "--weights",
        metavar="FILE",
        default="ATSS_R_50_FPN_1x.pth",
        help="checkpoint or its URL (default %(default)s)",
    )
    sources = parser.add_mutually_exclusive_group()
    sources.add_argument(
        "--images-dir", metavar="DIR", default="demo/images", help="folder of images (default %(default)s)"
    )
    sources.add_argument(
        "--video", metavar="FILE", action="append", default=[], help="video file; may be given several times"
    )
    sources.add_argument(
        "--webcam",
        type=camera_number,
        nargs="?",
        const=0,
        metavar="N",
        help="camera, 0 is the first; Ctrl+C ends it",
    )
    parser.add_argument(
        "--output-dir",
        metavar="DIR",
        type=expanded_path,
        default="demo/output",
        help="annotated copies (default %(default)s)",
    )
    parser.add_argument(
        "--min-image-size", type=int, metavar="PX", help="short side of the network input (default: config)"
    )
    parser.add_argument(
        "--score-threshold", type=float, default=0.5, metavar="S", help="draw from this score (default 0.5)"
    )
    parser.add_argument("--show", action="store_true", help="also open a window for what is drawn")
    add_config_arguments(parser, default="configs/atss/atss_R_50_FPN_1x.yaml")
    return parser


def camera_number(text: str) -> int:
    """Read the number of a camera."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a number from 0, got {text!r}; --webcam=0 is the first")
    return int(text)


def find_videos(arguments: argparse.Namespace, folder: Path) -> list[tuple[Source, Path]]:
    """Return the videos or the camera that the arguments name, with the files to write for them."""
    if arguments.video or arguments.webcam is not None:
        require("av")  # before the weights are loaded
    if arguments.webcam is not None:
        return [(camera_source(arguments.webcam), camera_file(folder, arguments.webcam))]
    files = video_files(arguments.video, folder)
    return [(file_source(video), file) for video, file in zip(arguments.video, files, strict=True)]


def annotate(
    predictor: Predictor, images: Sequence[Path], folder: Path, *, threshold: float, show: bool
) -> int:
    """Detect, draw and save, and print how long detection took.

    Args:
        predictor: the detector.
        images: files to read.
        folder: receives annotated copies under the same names.
        threshold: detections below this score are not drawn.
        show: open a window for each image.

    Returns:
        How many files cannot be read.
    """
    milliseconds: list[float] = []
    num_skipped = 0
    for path in tqdm(images, desc="demo", unit="image", disable=None):
        try:
            image = read_image(path, True, predictor.max_pixels, predictor.grey_bits)
        except UnreadableImageError as error:
            num_skipped += skip(error, len(images))
            continue
        if not milliseconds:
            predictor(image)  # the first run warms up and does not count
        start = now(predictor.device)
        result = predictor(image)
        milliseconds.append(1000 * (now(predictor.device) - start))
        tqdm.write(f"{path.name}: {result.above(threshold)}, {milliseconds[-1]:.0f} ms")
        drawn = result.draw(image, threshold, readable_scale(result.image_size))
        save_image(drawn, folder / path.name)
        if show:
            show_window(drawn)
    if milliseconds:
        print(
            f"{statistics.median(milliseconds):.0f} ms per image (median of {len(milliseconds)}, resizing "
            f"included, without loading and warm-up); annotated images are in {folder}"
        )
    return num_skipped


def show_window(image: Image.Image) -> None:
    """Open an image in the desktop's viewer.

    Raises:
        ValueError: if there is no viewer to open it.
    """
    if not ImageShow._viewers:
        raise ValueError("--show needs a desktop; without it the images are written all the same")
    image.show()
