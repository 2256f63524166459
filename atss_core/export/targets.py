"""Export formats: how a detector is written as ONNX, OpenVINO or torch.export file, described and run."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torchvision  # noqa: F401  (registers the operators of torch.export files)
from torch import Tensor
from torch.export import Dim, ExportedProgram

from atss_core.export.graph import CANDIDATES, DETECTIONS, INPUTS, DetectorGraph, nms_node
from atss_core.layers import batched_nms_mask, portable_operators
from atss_core.structures import boxes as box_ops
from atss_core.utils.extras import require
from atss_core.utils.files import atomic_write

# Metadata key of the description in each format.
KEY = "atss"
# Tracing specialises a level of one cell, so the last level (stride 128) needs two in each direction.
SMALLEST_SIDE = 129
OPSET = 21
_INT32 = 6  # onnx.TensorProto.INT32

Arrays = list[np.ndarray]
# Maps images (N, 3, H, W) and image_sizes (N, 2) to the outputs in their order.
Runner = Callable[[np.ndarray, np.ndarray], Arrays]


@dataclass(frozen=True)
class Description:
    """How to feed an exported file and read its outputs; stored in the file as JSON."""

    class_names: Sequence[str]  # the name of label i at i - 1
    min_size: int  # short side in pixels that images are resized to
    max_size: int  # cap of their long side
    nms: str  # "inside" or "outside"
    nms_threshold: float  # IoU above which boxes of the same class are suppressed
    score_threshold: float  # minimum class probability (exclusive), before centerness
    max_detections: int  # per image, 0 for all
    size_divisibility: int  # the file pads sides to multiples of this
    pixel_mean: Sequence[float]  # subtracted in the file, in its channel order and range
    pixel_std: Sequence[float]  # divided by, likewise
    pixel_order: str  # channel order and range of the network; ``images`` are always RGB in 0..255
    version: str  # of the package that wrote the file
    boxes: str = "x1, y1, x2, y2 in pixels of images, x2 and y2 inclusive: a width is x2 - x1 + 1"
    smallest_side: int = SMALLEST_SIDE  # of ``images`` in pixels; applies to torch files
    grey_bits: int = 0  # of grey values of more than 8 bits, of which ``images`` hold 8; 0: as in the file

    def to_json(self) -> str:
        """Return the description as a JSON object."""
        return json.dumps(asdict(self))


def _trace(graph: DetectorGraph) -> ExportedProgram:
    """Trace a graph for any number of images of any size, without source lines, which contain local paths."""
    images = torch.zeros(2, 3, 3 * SMALLEST_SIDE, 4 * SMALLEST_SIDE, dtype=torch.uint8)
    image_sizes = torch.tensor([list(images.shape[2:])] * 2)
    batch = Dim("batch", min=1)
    height, width = Dim("height", min=SMALLEST_SIDE), Dim("width", min=SMALLEST_SIDE)
    with torch.no_grad(), portable_operators():
        program = torch.export.export(
            graph.eval(),
            (images, image_sizes),
            dynamic_shapes=({0: batch, 2: height, 3: width}, {0: batch}),
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def _write_torch(graph: DetectorGraph, is_nms_inside: bool, path: Path, description: Description) -> None:
    """Write a torch.export package, which needs torch and torchvision only."""
    graph.nms = batched_nms_mask if is_nms_inside else None
    program = _trace(graph)
    with atomic_write(path) as file:
        torch.export.save(program, file, extra_files={KEY: description.to_json()})


def _write_onnx(graph: DetectorGraph, is_nms_inside: bool, path: Path, description: Description) -> None:
    """Write one ONNX file that contains the weights."""
    onnx = require("onnx")
    num_classes = graph.detector.rpn.head.num_classes

    def nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
        return nms_node(box_ops.to_exclusive(boxes), scores, labels, iou_threshold, num_classes)

    graph.nms = nms if is_nms_inside else None
    program = torch.onnx.export(
        _trace(graph),
        input_names=INPUTS,
        output_names=DETECTIONS if is_nms_inside else CANDIDATES,
        opset_version=OPSET,
        custom_translation_table={torch.ops.atss_export.nms_mask.default: _onnx_nms()},
        external_data=False,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    for item in (model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        del item.metadata_props[:]  # written by the tracer; a third of a small file
    onnx.helper.set_model_props(model, {KEY: description.to_json()})
    with atomic_write(path) as file:
        file.write(model.SerializeToString())


def _onnx_nms() -> Callable[..., Any]:
    """Return the ONNX translation of ``nms_node``.

    ONNX's NonMaxSuppression handles images and classes itself, so boxes need no offsets and stay in float32.
    It takes scores as one row per class, here with padding in place of the boxes of other classes.
    """
    op = getattr(require("onnxscript"), f"opset{OPSET}")

    def nms_mask(boxes: Any, scores: Any, labels: Any, iou_threshold: float, num_classes: int) -> Any:
        one = op.Constant(value_ints=[1])
        classes = op.Unsqueeze(op.Constant(value_ints=list(range(1, num_classes + 1))), one)  # (C, 1)
        has_class = op.Equal(op.Unsqueeze(labels, one), classes)  # (N, C, M)
        padding = op.Constant(value_float=-1.0)
        kept = op.NonMaxSuppression(  # rows of (image, class, box)
            boxes,
            op.Where(has_class, op.Unsqueeze(scores, one), padding),
            op.Shape(scores, start=1, end=2),
            op.Constant(value_floats=[iou_threshold]),
            op.Constant(value_floats=[-0.5]),
        )
        kept = op.Gather(kept, op.Constant(value_ints=[0, 2]), axis=1)
        # All runtimes can scatter int32.
        zero = op.Cast(op.Constant(value_ints=[0]), to=_INT32)
        marks = op.Expand(op.Cast(one, to=_INT32), op.Shape(kept, start=0, end=1))
        return op.Greater(op.ScatterND(op.Expand(zero, op.Shape(scores)), kept, marks), zero)

    return nms_mask


def _write_openvino(graph: DetectorGraph, is_nms_inside: bool, path: Path, description: Description) -> None:
    """Write OpenVINO's .xml and .bin files, converted from ONNX."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        _write_onnx(graph, is_nms_inside, file, description)
        convert_to_openvino(file, path, description)


def convert_to_openvino(onnx_file: Path, path: Path, description: Description) -> None:
    """Convert an ONNX file to OpenVINO's .xml and .bin files, with weights in float32."""
    openvino = require("openvino")
    deform_conv = require("openvino.frontend.onnx").ConversionExtension("DeformConv", "", read_deform_conv)
    model = openvino.convert_model(onnx_file, extension=[deform_conv])
    model.set_rt_info(description.to_json(), [KEY])
    path.parent.mkdir(parents=True, exist_ok=True)
    openvino.save_model(model, path, compress_to_fp16=False)


def read_deform_conv(node: Any) -> list[Any]:
    """Translate ONNX's DeformConv, an operator that OpenVINO has but does not read from ONNX."""
    operators = require("openvino.opset8")
    inputs = [node.get_input(i) for i in range(node.get_input_size())]
    images, weight, offset, bias = inputs[:4]
    pads = node.get_attribute("pads")
    convolved = operators.deformable_convolution(
        images,
        offset,
        weight,
        strides=node.get_attribute("strides"),
        pads_begin=pads[:2],
        pads_end=pads[2:],
        dilations=node.get_attribute("dilations"),
        mask=inputs[4] if len(inputs) > 4 else None,
        group=node.get_attribute("group"),
        deformable_group=node.get_attribute("offset_group"),
        bilinear_interpolation_pad=True,  # interpolates with zeros outside the image, as torchvision
    )
    by_channel = operators.reshape(bias, operators.constant([1, -1, 1, 1]), special_zero=False)
    return [operators.add(convolved, by_channel).output(0)]


def _load_onnx(path: Path, num_threads: int) -> tuple[Runner, Description]:
    onnxruntime = require("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(*arrays: np.ndarray) -> Arrays:
        return session.run(None, dict(zip(INPUTS, arrays, strict=True)))

    return run, _description(path, session.get_modelmeta().custom_metadata_map.get(KEY))


def _load_openvino(path: Path, num_threads: int) -> tuple[Runner, Description]:
    core = require("openvino").Core()
    model = core.read_model(path)
    text = model.get_rt_info([KEY]).value if model.has_rt_info([KEY]) else None
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": num_threads}
    compiled = core.compile_model(model, "CPU", settings)

    def run(*arrays: np.ndarray) -> Arrays:
        return list(compiled(dict(zip(INPUTS, arrays, strict=True))).to_tuple())

    return run, _description(path, text)


def _load_torch(path: Path, num_threads: int) -> tuple[Runner, Description]:
    extra = {KEY: ""}
    module = torch.export.load(path, extra_files=extra).module()

    def run(*arrays: np.ndarray) -> Arrays:
        with torch.inference_mode():
            return [tensor.numpy() for tensor in module(*map(torch.from_numpy, arrays))]

    return run, _description(path, extra[KEY])


def _description(path: Path, text: str | None) -> Description:
    if not text:
        raise ValueError(f"{path} was not written by atss export: it has no description {KEY!r}")
    return Description(**json.loads(text))


class Target(NamedTuple):
    """A format, with the function that writes a file and the one that loads it on the CPU in float32.

    ``write`` takes the graph (it sets its NMS), whether NMS is inside, the file and its description. ``load``
    takes the file and the number of threads.
    """

    title: str  # the runtime
    suffix: str  # of the main file
    packages: tuple[str, ...]  # needed for writing and running, besides torch
    write: Callable[[DetectorGraph, bool, Path, Description], None]
    load: Callable[[Path, int], tuple[Runner, Description]]


TARGETS = {
    "onnx": Target("ONNX Runtime", ".onnx", ("onnx", "onnxscript", "onnxruntime"), _write_onnx, _load_onnx),
    "openvino": Target(
        "OpenVINO", ".xml", ("onnx", "onnxscript", "openvino"), _write_openvino, _load_openvino
    ),
    "torch": Target("torch.export", ".pt2", (), _write_torch, _load_torch),
}


def target_of(path: Path) -> Target:
    """Return the format of an existing exported file."""
    by_suffix = {target.suffix: target for target in TARGETS.values()}
    if path.suffix not in by_suffix:
        raise ValueError(f"expected a file that ends in {', '.join(by_suffix)}, got {path}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no exported model {path}")
    return by_suffix[path.suffix]


def files_of(path: Path) -> list[Path]:
    """Return all files of an exported model, given its main file."""
    return [path, path.with_suffix(".bin")] if path.suffix == TARGETS["openvino"].suffix else [path]
