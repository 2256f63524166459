"""Export a detector to files, and keep each only if it detects the same as the detector."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from yacs.config import CfgNode

from atss_core.config import override
from atss_core.data import (
    UnreadableImageError,
    build_datasets,
    grey_bits,
    pixel_limit,
    read_image,
)
from atss_core.engine.build import load_detector
from atss_core.engine.sources import find_images
from atss_core.export import TARGETS, build_description, build_graph, build_parity_check, files_of
from atss_core.utils.files import atomic_write, draft_folder, refuse_overwriting, remove_leftovers
from atss_core.utils.text import printable

MAX_IMAGES = 8  # of the parity check
# Of the working folder, and of the checkout of this package.
DEMO_IMAGES = (Path("demo/images"), Path(__file__).resolve().parents[2] / "demo" / "images")
SUFFIXES = {target.suffix: name for name, target in TARGETS.items()}


def export_detector(
    cfg: CfgNode,
    weights: str | Path | None,
    formats: Sequence[str],
    output: Path,
    images: Sequence[Path],
    *,
    nms: str,
    inputs: Sequence[str | Path] = (),
) -> None:
    """Write a detector in some formats and verify each file against it.

    Args:
        cfg: the configuration.
        weights: file or URL; None as for ``load_detector``.
        formats: names of ``TARGETS``.
        output: folder, or the file of a single format.
        images: of the parity check.
        nms: "inside" or "outside" the file.
        inputs: more files that must not be overwritten.

    Raises:
        ValueError: if a file does not detect the same; its name then ends in ``.failed``.
    """
    cfg, detector, class_names, source = load_detector(cfg, weights)
    stem = Path(source.split("?")[0]).stem
    paths = [output if output.suffix in SUFFIXES else output / f"{stem}{TARGETS[n].suffix}" for n in formats]
    outputs = [file for path in paths for file in (*files_of(path), report_of(path))]
    refuse_overwriting(outputs, [source, *inputs, *images], "Give another --output.")
    for path, target in zip(paths, (TARGETS[name] for name in formats), strict=True):
        print(f"writing {path} ...", flush=True)
        remove_leftovers(path.parent, is_locked=False)
        # A folder, because the files of a model refer to each other by name. Files of an earlier export stay
        # as they are until the new ones are verified.
        with draft_folder(path) as folder:
            draft = folder / path.name
            description = build_description(cfg, class_names, nms)
            target.write(build_graph(cfg, detector), nms == "inside", draft, description)
            report = build_parity_check(cfg, detector, images)(draft)
            with atomic_write(report_of(draft), "w") as file:
                json.dump(report.to_dict(), file, indent=1)
            print(report.table(), flush=True)
            written = publish(draft, path.with_name(f"{path.name}.failed") if report.failure else path)
        if report.failure:
            raise ValueError(f"{path.name} fails the parity check: {report.failure}; it is now {written}")
        size = f"{sum(file.stat().st_size for file in files_of(path)) / 1e6:.1f} MB"
        print(f"{path}: {size}, {target.title}, NMS {nms}; equal. Report: {report_of(path)}", flush=True)


def choose_images(cfg: CfgNode, folder: str | None) -> list[Path]:
    """Return the images of the parity check: of a folder, or else of the test set, or else of the demo.

    Raises:
        ValueError: if none can be read.
    """
    files = _test_set_images(cfg) if folder is None else find_images(folder)
    demo = next((each for each in DEMO_IMAGES if each.is_dir()), None)
    if not files and demo:
        files = find_images(demo)
    images = list(islice(_readable(cfg, files), MAX_IMAGES))
    if not images:
        raise ValueError(
            f"--images: expected images for the parity check, got none that can be read in "
            f"{folder or f'DATASETS.TEST {tuple(cfg.DATASETS.TEST)}'}. Give the folder of some."
        )
    return images


def _test_set_images(cfg: CfgNode) -> list[Path]:
    """Return images with objects of the first test set, none if it is not there or cannot be opened."""
    if not cfg.DATASETS.TEST:
        return []
    try:
        first = override(cfg, "DATASETS.TEST", cfg.DATASETS.TEST[:1])
        (dataset,) = build_datasets(first, training=False)
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        print(f"images of the demo instead of the test set: {printable(str(error))}", file=sys.stderr)
        return []
    with_objects = (dataset.image_path(i) for i in range(len(dataset)) if len(dataset.target(i)))
    return list(islice(with_objects, 2 * MAX_IMAGES))


def _readable(cfg: CfgNode, files: Sequence[Path]) -> Iterator[Path]:
    """Yield images that can be read, and report the others."""
    for file in files:
        try:
            read_image(file, True, pixel_limit(cfg), grey_bits(cfg))
        except UnreadableImageError as error:
            print(f"skipped: {printable(str(error))}", file=sys.stderr)
        else:
            yield file


def report_of(path: Path) -> Path:
    """Return the file with the figures of an exported file."""
    return path.with_name(f"{path.name}.parity.json")


def publish(draft: Path, path: Path) -> Path:
    """Move all files of a model and its report to ``path``; files beside the main one get its ending."""
    ending = path.name.removeprefix(draft.name)
    report_of(path).unlink(missing_ok=True)  # no report may stand beside files that it does not describe
    for file in set(draft.parent.iterdir()) - {report_of(draft)}:
        file.replace(path.with_name(file.name + ending))
    report_of(draft).replace(report_of(path))
    return path
