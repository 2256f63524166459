"""Export a detector as ONNX, OpenVINO or torch.export file, and verify that the file detects the same.

Images go through the detector and through the file; unless the detections are equal the command fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from atss_core.apps.export import SUFFIXES, choose_images, export_detector
from atss_core.cli.common import add_config_arguments
from atss_core.cli.parser import CommandParser, did_you_mean, expanded_path
from atss_core.config import load_cfg
from atss_core.export import TARGETS, check_exportable
from atss_core.utils.extras import require

EXAMPLE = """
atss export --config-file atss_R_50_FPN_1x --weights ATSS_R_50_FPN_1x.pth \\
    --format onnx,openvino --output exported
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with command-line arguments, by default those of this process."""
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
        help="images of the parity check, the first 8 count (default: the first dataset of DATASETS.TEST, or "
        "else demo/images)",
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
    inputs = [arguments.config_file]
    export_detector(cfg, arguments.weights, formats, output, images, nms=arguments.nms, inputs=inputs)


def choose_formats(names: str | None, output: Path) -> list[str]:
    """Return the formats that ``--format`` names, by default that of the output file, or else ONNX.

    Raises:
        ValueError: for a format that does not exist, or that does not fit ``--output``.
    """
    of_file = SUFFIXES.get(output.suffix)
    formats = [name.strip() for name in (names or of_file or "onnx").split(",") if name.strip()]
    unknown = [name for name in formats if name not in TARGETS]
    if unknown:
        raise ValueError(
            f"--format must be {', '.join(TARGETS)}, or several with commas, got {unknown[0]!r}"
            f"{did_you_mean(unknown[0], list(TARGETS))}"
        )
    if of_file is None and output.suffix and not output.is_dir():
        raise ValueError(
            f"--output must be a folder or end in {', '.join(SUFFIXES)}, got {output}; the formats are "
            f"{', '.join(TARGETS)}"
        )
    if of_file is not None and formats != [of_file]:
        raise ValueError(
            f"--output {output} is a file of format {of_file}, but --format is {','.join(formats)}; name a "
            f"folder"
        )
    return formats
