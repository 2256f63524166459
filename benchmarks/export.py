"""Parity and latency of exported files on the architectures of the ten published configurations.

Weights are the random ones of tests/golden.py, which keep activations in range and detect a great deal; so
the comparison is harder than with trained weights, where few boxes compete. Each model is written as ONNX,
OpenVINO and torch.export file with NMS inside, and compared with the detector on two images of different
sizes and on both as one padded batch, all of which one file takes. Latency is that of the first image.

    python benchmarks/export.py [--side 256] [--repeats 5] [CONFIG ...]
"""

import argparse
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for the weights

from atss_core.config import load_cfg  # noqa: E402
from atss_core.export import TARGETS, build_description, build_graph, build_parity_check, files_of  # noqa: E402
from tests.golden import detector  # noqa: E402

CONFIGS = sorted(path.stem for path in (ROOT / "configs" / "atss").glob("*.yaml"))
IMAGES = [ROOT / "demo" / "images" / name for name in ("shapes_14.jpg", "shapes_19.jpg")]
HEAD = (
    "| model | file | equal | detections | stable | matched | extra | box px | score | MB | export s "
    "| detector ms | file ms | ratio |"
)


def row(config, model, name, side, repeats, folder):
    """Write a file, compare it, and print what came out."""
    cfg = load_cfg(
        ROOT / "configs" / "atss" / f"{config}.yaml",
        ["INPUT.MIN_SIZE_TEST", str(side), "INPUT.MAX_SIZE_TEST", str(side * 1333 // 800)],
    )
    path = Path(folder) / f"{config}{TARGETS[name].suffix}"
    names = [str(label) for label in range(1, model.rpn.head.num_classes + 1)]
    start = time.perf_counter()
    TARGETS[name].write(build_graph(cfg, model), True, path, build_description(cfg, names, "inside"))
    seconds = time.perf_counter() - start
    report = build_parity_check(cfg, model, IMAGES, repeats=repeats)(path)
    sums = [sum(getattr(c, key) for c in report.comparisons) for key in ("detections", "stable", "matched")]
    extra = sum(c.extra for c in report.comparisons)
    worst = [max(getattr(c, f"{key}_difference") for c in report.comparisons) for key in ("box", "score")]
    size = sum(file.stat().st_size for file in files_of(path)) / 1e6
    cells = [
        *(config, TARGETS[name].title, report.failure or "yes", *map(str, sums), str(extra)),
        *(f"{worst[0]:.1e}", f"{worst[1]:.1e}", f"{size:.0f}", f"{seconds:.0f}"),
        *(f"{report.detector_ms:.0f}", f"{report.exported_ms:.0f}"),
        f"{report.detector_ms / report.exported_ms:.2f}",
    ]
    print("| " + " | ".join(cells) + " |", flush=True)
    for file in files_of(path):
        file.unlink()


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="*", metavar="CONFIG")
    parser.add_argument("--side", type=int, default=256, help="short side of the images")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # of the tracer
    torch.set_num_threads(2)
    print(HEAD + "\n|" + "---|" * (HEAD.count("|") - 1), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for config in arguments.configs or CONFIGS:
            model = detector(config)
            for name in TARGETS:
                row(config, model, name, arguments.side, arguments.repeats, folder)


if __name__ == "__main__":
    main()
