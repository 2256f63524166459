"""Export a detector as ONNX, OpenVINO or torch.export file, and prove that the file detects the same.

Images go through the detector and through the file; unless they find the same the command fails.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

from yacs.config import CfgNode

from atss_core.cli.common import add_config_arguments
from atss_core.cli.datasets import open_dataset
from atss_core.cli.parser import CommandParser, did_you_mean, expanded_path
from atss_core.config import load_cfg
from atss_core.data import UnreadableImageError, pixel_limit, read_image
from atss_core.engine import load_detector
from atss_core.engine.sources import find_images
from atss_core.export import (
    TARGETS,
    build_description,
    build_graph,
    build_parity_check,
    check_exportable,
    files_of,
)
from atss_core.modeling import Detector
from atss_core.utils.extras import require
from atss_core.utils.files import atomic_write, refuse_overwriting
from atss_core.utils.text import printable

EXAMPLE = """
atss export --config-file atss_R_50_FPN_1x --weights ATSS_R_50_FPN_1x.pth \\
    --format onnx,openvino --output exported
"""

# That the proof takes of a folder.
MAX_IMAGES = 8
# Of the working folder, and of the checkout of this package.
DEMO_IMAGES = (Path("demo/images"), Path(__file__).resolve().parents[2] / "demo" / "images")

SUFFIXES = {target.suffix: name for name, target in TARGETS.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with command-line words, by default those of this process."""
    parser = CommandParser("atss export", __doc__, EXAMPLE)
    parser.add_argument("--weights", metavar="FILE", help="checkpoint (default: the last one of OUTPUT_DIR)")
    parser.add_argument(
        "--format", metavar="F,F", help="onnx, openvino, torch (default: onnx, or what --output ends in)"
    )
    parser.add_argument(
        "--nms", choices=("inside", "outside"), default="inside", help="in the file, or left to you"
    )
    parser.add_argument(
        "--output", metavar="PATH", type=expanded_path, help="folder or file (default: OUTPUT_DIR/export)"
    )
    parser.add_argument(
        "--images",
        metavar="DIR",
        help="images of the proof, the first 8 count (default: the first data set of DATASETS.TEST, or else "
        "demo/images)",
    )
    add_config_arguments(parser)
    arguments = parser.parse_args(argv)
    cfg = load_cfg(arguments.config_file, [word for word in arguments.opts if word != "--"])
    check_exportable(cfg)
    output = arguments.output or Path(cfg.OUTPUT_DIR) / "export"
    formats = choose_formats(arguments.format, output)
    images = choose_images(cfg, arguments.images)
    for package in dict.fromkeys(package for name in formats for package in TARGETS[name].packages):
        require(package)
    cfg, detector, class_names, source = load_detector(cfg, arguments.weights)
    stem = Path(str(source).split("?")[0]).stem
    paths = [output if output.suffix in SUFFIXES else output / f"{stem}{TARGETS[n].suffix}" for n in formats]
    outputs = [file for path in paths for file in (*files_of(path), report_of(path))]
    refuse_overwriting(outputs, [source, arguments.config_file, *images], "Give another --output.")
    for name, path in zip(formats, paths, strict=True):
        export(cfg, detector, class_names, name, path, images, nms=arguments.nms)


def choose_formats(words: str | None, output: Path) -> list[str]:
    """Return the formats that ``--format`` names, by default that of a file, or else ONNX.

    Raises:
        ValueError: for a format that does not exist, or that does not fit ``--output``.
    """
    by_suffix = SUFFIXES.get(output.suffix)
    formats = [word.strip() for word in (words or by_suffix or "onnx").split(",") if word.strip()]
    for name in formats:
        if name not in TARGETS:
            raise ValueError(
                f"--format must be {', '.join(TARGETS)}, or several with commas, got {name!r}"
                f"{did_you_mean(name, list(TARGETS))}"
            )
    if by_suffix is None and output.suffix and not output.is_dir():
        raise ValueError(
            f"--output must be a folder or end in {', '.join(SUFFIXES)}, got {output}; the formats are "
            f"{', '.join(TARGETS)}"
        )
    if by_suffix is not None and formats != [by_suffix]:
        raise ValueError(
            f"--output {output} is a file of format {by_suffix}, but --format is {','.join(formats)}; name a "
            f"folder"
        )
    return formats


def choose_images(cfg: CfgNode, folder: str | None) -> list[Path]:
    """Return the images of the proof: of a folder, or else of the test set, or else those of the demo.

    Raises:
        ValueError: if none can be read.
    """
    files = test_set_images(cfg) if folder is None else find_images(folder)
    demo = next((each for each in DEMO_IMAGES if each.is_dir()), None)
    if not files and demo:
        files = find_images(demo)
    found = list(islice(readable(files, pixel_limit(cfg)), MAX_IMAGES))
    if not found:
        raise ValueError(
            f"--images: expected images for the proof, got none that can be read in "
            f"{folder or f'DATASETS.TEST {tuple(cfg.DATASETS.TEST)}'}. Give the folder of some."
        )
    return found


def test_set_images(cfg: CfgNode) -> list[Path]:
    """Return images with objects of the first test set, none if it is not there or cannot be opened."""
    try:
        dataset = open_dataset(cfg, cfg.DATASETS.TEST[0])
    except (IndexError, FileNotFoundError):
        return []
    except (OSError, ValueError) as error:
        print(f"images of the demo instead of the test set: {printable(str(error))}", file=sys.stderr)
        return []
    with_objects = (dataset.image_path(i) for i in range(len(dataset)) if len(dataset.target(i)))
    return list(islice(with_objects, 2 * MAX_IMAGES))


def readable(files: Iterable[Path], max_pixels: int) -> Iterator[Path]:
    """Yield images that can be read, and tell about others."""
    for file in files:
        try:
            read_image(file, apply_exif=True, max_pixels=max_pixels)
        except UnreadableImageError as error:
            print(f"skipped: {printable(str(error))}", file=sys.stderr)
        else:
            yield file


def export(
    cfg: CfgNode,
    detector: Detector,
    class_names: Sequence[str],
    name: str,
    path: Path,
    images: Sequence[Path],
    *,
    nms: str,
) -> None:
    """Write one file, compare it with the detector, print the report and save it beside the file.

    Files of an earlier export stay as they are until the new ones are verified.

    Raises:
        ValueError: if the file does not detect the same; its name then ends in ``.failed``.
    """
    target = TARGETS[name]
    print(f"writing {path} ...", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A folder, because the files of a model refer to each other by name.
    with TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        draft = Path(folder) / path.name
        description = build_description(cfg, class_names, nms)
        target.write(build_graph(cfg, detector), nms == "inside", draft, description)
        report = build_parity_check(cfg, detector, images)(draft)
        with atomic_write(report_of(draft), "w") as file:
            json.dump(report.to_dict(), file, indent=1)
        print(report.table(), flush=True)
        written = publish(draft, path.with_name(f"{path.name}.failed") if report.failure else path)
    if report.failure:
        raise ValueError(f"{path.name} is not proven: {report.failure}; it is now {written}")
    size = sum(file.stat().st_size for file in files_of(path)) / 1e6
    print(
        f"{path}: {size:.1f} MB, {target.title}, NMS {nms}; equal. Figures in {report_of(path)}", flush=True
    )


def report_of(path: Path) -> Path:
    """Return where the figures of an exported file are."""
    return path.with_name(f"{path.name}.parity.json")


def publish(draft: Path, path: Path) -> Path:
    """Move all files of a model and its report to ``path``; files beside the main one get its ending."""
    ending = path.name.removeprefix(draft.name)
    report_of(path).unlink(missing_ok=True)  # no report may stand beside files that it does not describe
    for file in set(draft.parent.iterdir()) - {report_of(draft)}:
        file.replace(path.with_name(file.name + ending))
    report_of(draft).replace(report_of(path))
    return path
