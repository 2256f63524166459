"""Write a detector as ONNX, OpenVINO or torch.export file."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.export import Dim, ExportedProgram

from atss_core.export.description import KEY, SMALLEST_SIDE, Description
from atss_core.export.graph import CANDIDATES, DETECTIONS, INPUTS, DetectorGraph
from atss_core.export.onnx_nms import OPSET, OnnxNms, translation_table
from atss_core.layers import batched_nms_mask, portable_operators
from atss_core.utils.extras import require
from atss_core.utils.files import atomic_write


class Target(NamedTuple):
    """A format.

    Attributes:
        title: what runs it.
        suffix: of its file; OpenVINO has another, ``.bin``, beside it.
        packages: what writing and running it needs besides torch.
        write: takes the graph without a suppression of its own choice, whether NMS is inside, file and
            description.
    """

    title: str
    suffix: str
    packages: tuple[str, ...]
    write: Callable[[DetectorGraph, bool, Path, Description], None]


def trace(graph: DetectorGraph) -> ExportedProgram:
    """Trace a graph for any number of images of any size.

    Source lines, which would put the paths of this machine into the file, are left out.
    """
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


def write_torch(graph: DetectorGraph, is_nms_inside: bool, path: Path, description: Description) -> None:
    """Write a package that torch and torchvision run by themselves."""
    graph.suppress = batched_nms_mask if is_nms_inside else None
    program = trace(graph)
    with atomic_write(path) as file:
        torch.export.save(program, file, extra_files={KEY: description.to_json()})


def write_onnx(graph: DetectorGraph, is_nms_inside: bool, path: Path, description: Description) -> None:
    """Write one ONNX file with its weights in it."""
    onnx = require("onnx")
    graph.suppress = OnnxNms(graph.detector.rpn.head.num_classes) if is_nms_inside else None
    program = torch.onnx.export(
        trace(graph),
        input_names=INPUTS,
        output_names=DETECTIONS if is_nms_inside else CANDIDATES,
        opset_version=OPSET,
        custom_translation_table=translation_table(),
        external_data=False,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    for item in (model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        del item.metadata_props[:]  # of the tracer; a third of a small file
    onnx.helper.set_model_props(model, {KEY: description.to_json()})
    with atomic_write(path) as file:
        file.write(model.SerializeToString())


def write_openvino(graph: DetectorGraph, is_nms_inside: bool, path: Path, description: Description) -> None:
    """Write OpenVINO's pair of .xml and .bin by way of ONNX."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        write_onnx(graph, is_nms_inside, file, description)
        convert_to_openvino(file, path, description)


def convert_to_openvino(onnx_file: Path, path: Path, description: Description) -> None:
    """Write an ONNX file as OpenVINO's pair, with weights in float32."""
    openvino = require("openvino")
    deform_conv = require("openvino.frontend.onnx").ConversionExtension("DeformConv", "", read_deform_conv)
    model = openvino.convert_model(onnx_file, extension=[deform_conv])
    model.set_rt_info(description.to_json(), [KEY])
    path.parent.mkdir(parents=True, exist_ok=True)
    openvino.save_model(model, path, compress_to_fp16=False)


def read_deform_conv(node: Any) -> list[Any]:
    """Translate ONNX's DeformConv, which OpenVINO has as an operator but does not read from ONNX."""
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
        bilinear_interpolation_pad=True,  # zeros outside of the image take part, as in torchvision
    )
    by_channel = operators.reshape(bias, operators.constant([1, -1, 1, 1]), special_zero=False)
    return [operators.add(convolved, by_channel).output(0)]


TARGETS = {
    "onnx": Target("ONNX Runtime", ".onnx", ("onnx", "onnxscript", "onnxruntime"), write_onnx),
    "openvino": Target("OpenVINO", ".xml", ("onnx", "onnxscript", "openvino"), write_openvino),
    "torch": Target("torch.export", ".pt2", (), write_torch),
}


def files_of(path: Path) -> list[Path]:
    """Return the files of a model by its main one."""
    return [path, path.with_suffix(".bin")] if path.suffix == TARGETS["openvino"].suffix else [path]
