"""Detect objects in the pictures of a folder and write annotated copies."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageShow
from tqdm import tqdm

from atss_core.cli.common import add_config_arguments
from atss_core.data import read_image
from atss_core.data.pictures import SUFFIXES
from atss_core.engine import Predictor
from atss_core.engine.inference import now
from atss_core.utils.download import is_url, locate
from atss_core.utils.imagenet import is_imagenet_body
from atss_core.utils.visualize import draw_boxes, readable_scale, save_image

RELEASES = "https://github.com/sfzhang15/ATSS"

EXAMPLE = """example:
  python demo/atss_demo.py --weights ATSS_R_50_FPN_1x.pth --images-dir my_pictures"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with command-line words, by default those of this process."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--weights",
        metavar="FILE",
        default="ATSS_R_50_FPN_1x.pth",
        help="checkpoint or its URL (default %(default)s)",
    )
    parser.add_argument(
        "--images-dir", metavar="DIR", default="demo/images", help="folder of pictures (default %(default)s)"
    )
    parser.add_argument(
        "--output-dir", metavar="DIR", default="demo/output", help="annotated copies (default %(default)s)"
    )
    parser.add_argument(
        "--min-image-size", type=int, metavar="PX", help="short side of the network input (default: config)"
    )
    parser.add_argument(
        "--score-threshold", type=float, default=0.5, metavar="S", help="draw from this score (default 0.5)"
    )
    parser.add_argument("--show", action="store_true", help="also open a window for each picture")
    add_config_arguments(parser, default="configs/atss/atss_R_50_FPN_1x.yaml")
    arguments = parser.parse_args(argv)
    is_named = is_url(arguments.weights) or is_imagenet_body(arguments.weights)  # Predictor sees to those
    if not is_named and not locate(arguments.weights).is_file():
        raise FileNotFoundError(
            f"no weights at {arguments.weights}: get {Path(arguments.weights).name} from {RELEASES} (model "
            f"table) or train your own, and point to it with --weights FILE"
        )
    opts = list(arguments.opts)
    if arguments.min_image_size:
        opts += ["INPUT.MIN_SIZE_TEST", str(arguments.min_image_size)]
    pictures = find_pictures(Path(arguments.images_dir))
    predictor = Predictor.from_config(arguments.config_file, arguments.weights, opts)
    annotate(
        predictor,
        pictures,
        Path(arguments.output_dir),
        threshold=arguments.score_threshold,
        show=arguments.show,
    )


def find_pictures(folder: Path) -> list[Path]:
    """Return the pictures of a folder by name.

    Raises:
        ValueError: if there are none.
    """
    pictures = sorted(p for p in folder.glob("*") if p.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    if not pictures:
        raise ValueError(
            f"no pictures in {folder}: expected files such as *.jpg or *.png; use --images-dir DIR"
        )
    return pictures


def annotate(
    predictor: Predictor, pictures: Sequence[Path], folder: Path, *, threshold: float, show: bool
) -> None:
    """Detect, draw and save, and print how long detection took.

    Args:
        predictor: the detector.
        pictures: files to read.
        folder: receives annotated copies under the same names.
        threshold: detections below this score are not drawn.
        show: open a window for each picture.
    """
    predictor(read_image(pictures[0], apply_exif=True))  # the first run warms up and does not count
    milliseconds = []
    for path in tqdm(pictures, desc="demo", unit="picture", disable=None):
        image = read_image(path, apply_exif=True)
        start = now(predictor.device)
        result = predictor(image)
        milliseconds.append(1000 * (now(predictor.device) - start))
        assert result.scores is not None
        num_drawn = int(torch.count_nonzero(result.scores >= threshold))
        tqdm.write(f"{path.name}: {num_drawn} objects, {milliseconds[-1]:.0f} ms")
        drawn = draw_boxes(
            image, result, predictor.class_names, threshold, scale=readable_scale((image.height, image.width))
        )
        save_image(drawn, folder / path.name)
        if show:
            show_window(drawn)
    print(
        f"{statistics.median(milliseconds):.0f} ms a picture (median of {len(pictures)}, resizing included, "
        f"without loading and warm-up); annotated pictures are in {folder}"
    )


def show_window(image: Image.Image) -> None:
    """Open a picture in the desktop's viewer.

    Raises:
        ValueError: if there is no viewer to open it.
    """
    if not ImageShow._viewers:
        raise ValueError("--show needs a desktop; without it the pictures are written all the same")
    image.show()
