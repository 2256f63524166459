import runpy
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from atss_core.data import read_image
from atss_core.export import TARGETS
from atss_core.export.parity import detect_perturbed
from atss_core.export.targets import SMALLEST_SIDE, read_deform_conv
from atss_core.layers import DeformConv2d, extension, portable_operators
from tests import golden
from tests.conftest import QUICK, TINY
from tests.export.conftest import IMAGES, Files, Model

# R-50 at an eighth of its width, deformable where the published dcnv2 models are.
NARROW = [
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "32"),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", "8", "MODEL.RESNETS.BACKBONE_OUT_CHANNELS", "64"),
    *("MODEL.ATSS.NUM_CONVS", "2", "MODEL.ATSS.NUM_CLASSES", "7"),
]
DEFORMABLE = golden.ROOT / "configs" / "atss" / "atss_dcnv2_R_50_FPN_1x.yaml"
SCRIPT = golden.ROOT / "demo" / "run_exported.py"


# tests/cli/test_export.py covers torch with NMS outside
@pytest.mark.parametrize(
    ("name", "nms"),
    [*((name, "inside") for name in TARGETS), ("onnx", "outside"), ("openvino", "outside")],
)
def test_file_equals_the_detector(tiny_model, tiny_files, name, nms):
    path = tiny_files(name, nms)
    report = tiny_model.verify(path)
    assert not report.failure
    assert report.runtime == TARGETS[name].title
    assert len(report.comparisons) == 3  # each image, and both as one batch of other sizes
    assert report.comparisons[2].size == (170, 199)
    assert all(c.stable >= 80 for c in report.comparisons)
    assert all(c.box_difference < 5e-3 and c.score_difference < 1e-5 for c in report.comparisons)
    assert TARGETS[name].load(path, 1)[1] == tiny_model.describe(nms)


@pytest.fixture(scope="module")
def deformable_files(tmp_path_factory):
    return Files(Model(DEFORMABLE, NARROW), tmp_path_factory.mktemp("deformable"))


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_deformable_stages_and_tower(deformable_files, name):
    report = deformable_files.model.verify(deformable_files(name))
    assert not report.failure
    assert all(c.stable >= 80 for c in report.comparisons)


@pytest.mark.parametrize(
    ("config", "opts"),
    [
        (DEFORMABLE, [*NARROW, "MODEL.ATSS.REGRESSION_TYPE", "POINT"]),
        (
            QUICK,
            [
                *TINY,
                *("MODEL.ATSS.ASPECT_RATIOS", "(0.5, 1.0)", "MODEL.ATSS.SCALES_PER_OCTAVE", "2"),
                *("MODEL.ATSS.USE_CENTERNESS", "False", "TEST.DETECTIONS_PER_IMG", "0"),
                *("MODEL.ATSS.INFERENCE_TH", "0.2", "DATALOADER.SIZE_DIVISIBILITY", "0"),
                *("INPUT.TO_BGR255", "False", "INPUT.PIXEL_MEAN", "[0.485, 0.456, 0.406]"),
                *("INPUT.PIXEL_STD", "[0.229, 0.224, 0.225]"),
            ],
        ),
    ],
    ids=["deformable-points", "anchors"],
)
def test_other_heads(tmp_path, config, opts):
    model = Model(config, opts)
    assert not model.verify(model.write("torch", tmp_path)).failure


@pytest.mark.parametrize("name", TARGETS)
def test_any_number_of_images_of_any_size(tiny_model, tiny_files, name):
    run, _ = TARGETS[name].load(tiny_files(name), 1)
    generator = np.random.default_rng(0)
    for count, height, width in ((3, SMALLEST_SIDE, 300), (1, 257, SMALLEST_SIDE)):
        images = generator.integers(0, 256, (count, 3, height, width), dtype=np.uint8)
        sizes = np.tile(np.array([[height, width]]), (count, 1))
        boxes, scores, labels, counts = run(images, sizes)
        assert boxes.shape == (count, 100, 4)
        assert scores.shape == labels.shape == (count, 100)
        assert labels.dtype == counts.dtype == np.int64
        assert counts.min() > 0
        assert boxes[..., ::2].max() <= width - 1
        assert boxes[..., 1::2].max() <= height - 1


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_onnx_and_openvino_take_smaller_images_than_torch(tiny_model, tiny_files, name):
    images = np.random.default_rng(0).integers(0, 256, (1, 3, 40, 72), dtype=np.uint8)
    sizes = np.array([[40, 72]])
    outputs = TARGETS[name].load(tiny_files(name), 1)[0](images, sizes)
    with torch.inference_mode():
        graph = tiny_model.graph()
        head_outputs = tiny_model.detector.rpn.head(
            tiny_model.detector.backbone(graph.normalize(torch.from_numpy(images), torch.from_numpy(sizes)))
        )
        (expected,) = tiny_model.detector.postprocess(head_outputs, [(40, 72)])
    assert outputs[3][0] == len(expected) > 0
    torch.testing.assert_close(
        torch.from_numpy(outputs[1][0, : len(expected)].copy()), expected.scores, atol=1e-5, rtol=0
    )


def test_torch_refuses_images_that_are_too_small(tiny_files):
    run, _ = TARGETS["torch"].load(tiny_files("torch"), 1)
    with pytest.raises(Exception, match="129"):
        run(np.zeros((1, 3, 64, 64), np.uint8), np.array([[64, 64]]))


@pytest.mark.parametrize("name", TARGETS)
def test_file_of_other_weights_is_not_equal(tiny_model, tiny_files, name):
    path = tiny_files(name)
    with torch.no_grad():
        tiny_model.detector.rpn.head.scales[0].scale *= 1.02  # moves sides on P3 by at most one pixel
        try:
            report = tiny_model.verify(path)
        finally:
            tiny_model.detector.rpn.head.scales[0].scale /= 1.02
    assert "does not detect what the detector detects in shapes_14.jpg" in report.failure


def test_files_contain_no_paths_and_no_operators_of_this_package(tiny_model, tiny_files):
    program = torch.export.load(tiny_files("torch"))
    used = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert any("torchvision.nms" in target for target in used)
    assert not any("atss" in target for target in used)
    for name in ("torch", "onnx"):
        assert str(golden.ROOT).encode() not in tiny_files(name).read_bytes()


def test_compiled_operators_come_back_after_tracing(tiny_model):
    cpu = torch.device("cpu")
    before = extension.is_compiled(cpu)
    with portable_operators():
        assert not extension.is_compiled(cpu)
    assert extension.is_compiled(cpu) == before


def test_openvino_reads_deformable_convolution_without_masks(tmp_path):
    openvino = pytest.importorskip("openvino", reason="pip install -e '.[export]'")
    pytest.importorskip("onnxscript", reason="pip install -e '.[export]'")
    frontend = pytest.importorskip("openvino.frontend.onnx")
    torch.manual_seed(0)
    layer = DeformConv2d(4, 6, stride=2, groups=2, offset_groups=2, modulated=False, bias=True).eval()
    torch.nn.init.normal_(layer.offset.weight, std=0.5)
    x = torch.randn(2, 4, 9, 8)
    with portable_operators(), torch.no_grad():
        torch.onnx.export(layer, (x,), tmp_path / "layer.onnx", opset_version=21, verbose=False)
        expected = layer(x)
    reader = frontend.ConversionExtension("DeformConv", "", read_deform_conv)
    model = openvino.convert_model(tmp_path / "layer.onnx", extension=[reader])
    output = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(x.numpy())[0]
    torch.testing.assert_close(torch.from_numpy(output), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "values",
    [
        *(np.uint16([[0, 1, 100, largest]]) for largest in (255, 256, 1023, 4095, 16383, 16384, 65535)),
        *(np.float32([[0, 0.3, 0.7, largest]]) for largest in (0.9, 1, 1.0005)),
        np.int32([[0, 1, 70, 255]]),
        np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8),
    ],
)
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_script_reads_images_as_training_does(values, orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(values).save(tmp_path / "a.tif", exif=exif)
    read = runpy.run_path(str(SCRIPT))["read"]
    for bits in (0, 12):
        expected = read_image(tmp_path / "a.tif", apply_exif=True, grey_bits=bits)
        assert np.array_equal(read(str(tmp_path / "a.tif"), bits), expected)


@pytest.mark.parametrize(
    "values", [np.float32([[0, 255, 4095.5, 1e9]]), np.int32([[0, 1, 70000, 2**31 - 1]])]
)
def test_script_asks_for_the_bits_of_values_without_a_range(values, tmp_path):
    Image.fromarray(values).save(tmp_path / "a.tif")
    read = runpy.run_path(str(SCRIPT))["read"]
    with pytest.raises(SystemExit, match=r"a\.tif: expected grey values from 0, floats in 0\.\.1, got 0"):
        read(str(tmp_path / "a.tif"))
    expected = read_image(tmp_path / "a.tif", apply_exif=True, grey_bits=14)
    assert np.array_equal(read(str(tmp_path / "a.tif"), 14), expected)


@pytest.mark.parametrize("is_damaged", [False, True])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_script_orients_images_as_training_does(orientation, is_damaged, tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x011A] = orientation, 72.0
    noise = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg", exif=exif)
    if is_damaged:
        content = bytearray((tmp_path / "a.jpg").read_bytes())
        content[content.index(b"Exif") + 29] = 7  # the type of the resolution: bytes
        (tmp_path / "a.jpg").write_bytes(content)
    read = runpy.run_path(str(SCRIPT))["read"](str(tmp_path / "a.jpg"))
    assert np.array_equal(read, read_image(tmp_path / "a.jpg", apply_exif=True))


@pytest.mark.parametrize("name", TARGETS)
def test_script_runs_without_this_package(tiny_model, tiny_files, tmp_path, name):
    arguments = [str(SCRIPT), str(tiny_files(name)), str(IMAGES[1]), str(tmp_path / "drawn.png")]
    code = (
        "import sys, runpy; sys.modules['atss_core'] = None; sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", "-I", "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    images, _ = tiny_model.parity_check().read_batch([IMAGES[1]])
    (expected,), _ = detect_perturbed(tiny_model.detector, images)
    expected = expected[expected.scores >= 0.5]
    names = [
        f"thing{label} {score:.3f}" for label, score in zip(expected.labels, expected.scores, strict=True)
    ]
    assert len(names) > 0
    assert [line.split(" at ")[0] for line in finished.stdout.splitlines()] == names
    assert (tmp_path / "drawn.png").is_file()


def test_script_does_not_overwrite_its_inputs(tmp_path):
    image = tmp_path / "a.jpg"
    shutil.copy(IMAGES[1], image)
    (tmp_path / "link.jpg").symlink_to(image)
    command = [sys.executable, str(SCRIPT), "net.onnx", str(image), str(tmp_path / "link.jpg")]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 2
    assert finished.stderr.endswith("link.jpg would be overwritten, but it is an input. Give another file.\n")
    assert finished.stderr.count("\n") == 1
    assert image.read_bytes() == IMAGES[1].read_bytes()
