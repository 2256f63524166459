"""Detect objects in images, videos or the stream of a camera, and write annotated copies.

Unreadable files are skipped; the exit status is then 1, or 0 with DATALOADER.SKIP_CORRUPT True.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from atss_core.apps.demo import annotate_images, annotate_videos, video_outputs
from atss_core.checkpoint.backbones import is_imagenet_backbone
from atss_core.checkpoint.download import is_url, locate
from atss_core.cli.common import add_config_arguments
from atss_core.cli.parser import CommandParser, expanded_path
from atss_core.engine import Predictor
from atss_core.engine.sources import find_images
from atss_core.utils.files import refuse_overwriting

RELEASES = "https://github.com/sfzhang15/ATSS"

EXAMPLE = """
atss demo --weights ATSS_R_50_FPN_1x.pth --images-dir my_images
atss demo --weights ATSS_R_50_FPN_1x.pth --video street.mp4
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with command-line arguments, by default those of this process."""
    arguments = build_parser().parse_args(argv)
    weights, folder = arguments.weights, arguments.output_dir
    # The predictor explains URLs and backbones.
    if not (is_url(weights) or is_imagenet_backbone(weights) or locate(weights).is_file()):
        raise FileNotFoundError(
            f"no weights at {weights}: get {Path(weights).name} from {RELEASES} (model table) or train your "
            f"own, and point to it with --weights FILE"
        )
    opts = list(arguments.opts)
    if arguments.min_image_size:
        opts += ["INPUT.MIN_SIZE_TEST", str(arguments.min_image_size)]
    if arguments.video or arguments.webcam is not None:
        videos = video_outputs(arguments.video, arguments.webcam, folder)
        files, inputs, annotate = (
            [*videos.values()],
            [*arguments.video],
            partial(annotate_videos, outputs=videos),
        )
    else:
        images = {path: folder / path.name for path in find_images(arguments.images_dir)}
        files, inputs, annotate = [*images.values()], [*images], partial(annotate_images, outputs=images)
    refuse_overwriting(files, [*inputs, weights], "Give another --output-dir.")
    predictor = Predictor.from_config(arguments.config_file, weights, opts)
    num_skipped = annotate(predictor, threshold=arguments.score_threshold, show=arguments.show)
    if num_skipped == len(files):
        raise ValueError(f"none of the {num_skipped} files can be read; give --images-dir or --video others")
    if num_skipped:
        print(f"{num_skipped} of {len(files)} files cannot be read and are skipped", file=sys.stderr)
        sys.exit(0 if predictor.skip_unreadable else 1)


def build_parser() -> CommandParser:
    """Build the parser of the command's arguments."""
    parser = CommandParser("atss demo", __doc__, EXAMPLE)
    weights = "ATSS_R_50_FPN_1x.pth"
    parser.add_argument(
        "--weights", metavar="FILE", default=weights, help="checkpoint or its URL (default %(default)s)"
    )
    sources = parser.add_mutually_exclusive_group()
    sources.add_argument(
        "--images-dir", metavar="DIR", default="demo/images", help="folder of images (default %(default)s)"
    )
    sources.add_argument(
        "--video", metavar="FILE", action="append", default=[], help="video file; may be given several times"
    )
    camera = "camera, 0 is the first; Ctrl+C ends it"
    sources.add_argument("--webcam", type=_camera_number, nargs="?", const=0, metavar="N", help=camera)
    output, copies = "demo/output", "annotated copies (default %(default)s)"
    parser.add_argument("--output-dir", metavar="DIR", type=expanded_path, default=output, help=copies)
    parser.add_argument(
        "--min-image-size", type=int, metavar="PX", help="short side of the network input (default: config)"
    )
    parser.add_argument(
        "--score-threshold", type=float, default=0.5, metavar="S", help="draw from this score (default 0.5)"
    )
    parser.add_argument(
        "--show", action="store_true", help="also show them in a window; a key goes on to the next image"
    )
    add_config_arguments(parser, default="configs/atss/atss_R_50_FPN_1x.yaml")
    return parser


def _camera_number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a number from 0, got {text!r}; --webcam=0 is the first")
    return int(text)
