"""Export a detector as ONNX, OpenVINO or torch.export file, and prove that the file detects the same.

Pictures go through the detector and through the file; unless they find the same the command fails.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from yacs.config import CfgNode

from atss_core.cli.common import add_config_arguments
from atss_core.cli.parser import CommandParser, did_you_mean
from atss_core.cli.test import find_weights_to_test
from atss_core.config import load_cfg
from atss_core.data import fill_num_classes
from atss_core.engine.predictor import default_class_names
from atss_core.engine.sources import find_pictures
from atss_core.export import (
    TARGETS,
    build_description,
    build_graph,
    build_prover,
    check_exportable,
    files_of,
)
from atss_core.modeling import Detector, build_detector
from atss_core.utils.extras import require
from atss_core.utils.files import atomic_write
from atss_core.utils.weights import load_trained, read_detector

EXAMPLE = """
atss export --config-file atss_R_50_FPN_1x --weights ATSS_R_50_FPN_1x.pth \\
    --format onnx,openvino --output exported
"""

# That the proof takes of a folder.
MAX_PICTURES = 8

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
    parser.add_argument("--output", metavar="PATH", help="folder or file (default: OUTPUT_DIR/export)")
    parser.add_argument(
        "--images",
        metavar="DIR",
        default="demo/images",
        help="pictures of the proof, the first 8 count (default %(default)s)",
    )
    add_config_arguments(parser)
    arguments = parser.parse_args(argv)
    cfg = load_cfg(arguments.config_file, [word for word in arguments.opts if word != "--"])
    check_exportable(cfg)
    output = Path(arguments.output) if arguments.output else Path(cfg.OUTPUT_DIR) / "export"
    formats = choose_formats(arguments.format, output)
    pictures = find_pictures(arguments.images)[:MAX_PICTURES]
    for package in dict.fromkeys(package for name in formats for package in TARGETS[name].packages):
        require(package)
    cfg, detector, class_names, source = load_detector(cfg, arguments.weights)
    stem = Path(str(source).split("?")[0]).stem
    for name in formats:
        path = output if output.suffix in SUFFIXES else output / f"{stem}{TARGETS[name].suffix}"
        export(cfg, detector, class_names, name, path, pictures, nms=arguments.nms)


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


def load_detector(cfg: CfgNode, weights: str | None) -> tuple[CfgNode, Detector, list[str], str | Path]:
    """Return the configuration with the number of classes, the detector on the CPU, class names and file."""
    source, checkpoint = read_detector(weights or find_weights_to_test(cfg))
    learned = checkpoint.get("class_names")
    if learned:
        cfg = fill_num_classes(cfg, learned)
    detector = build_detector(cfg)
    load_trained(detector, checkpoint, source)
    return cfg, detector, learned or default_class_names(detector.rpn.head.num_classes), source


def export(
    cfg: CfgNode,
    detector: Detector,
    class_names: Sequence[str],
    name: str,
    path: Path,
    pictures: Sequence[Path],
    *,
    nms: str,
) -> None:
    """Write one file, compare it with the detector, print the report and save it beside the file.

    Raises:
        ValueError: if the file does not detect the same; it is then renamed to end in ``.failed``.
    """
    target = TARGETS[name]
    print(f"writing {path} ...", flush=True)
    target.write(build_graph(cfg, detector), nms == "inside", path, build_description(cfg, class_names, nms))
    report = build_prover(cfg, detector, pictures)(path)
    report_file = path.with_name(f"{path.name}.parity.json")
    with atomic_write(report_file, "w") as file:
        json.dump(report.to_dict(), file, indent=1)
    print(report.table(), flush=True)
    if report.failure:
        failed = [file.rename(file.with_name(f"{file.name}.failed")) for file in files_of(path)]
        raise ValueError(f"{path.name} is not proven: {report.failure}; it is now {failed[0]}")
    size = sum(file.stat().st_size for file in files_of(path)) / 1e6
    print(f"{path}: {size:.1f} MB, {target.title}, NMS {nms}; equal. Figures in {report_file}", flush=True)
