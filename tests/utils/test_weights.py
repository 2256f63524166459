"""Weights in each format that MODEL.WEIGHT takes, in files written here from models with known outputs."""

import contextlib
import json
import logging
import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from atss_core.config import load_cfg
from atss_core.config.catalog import TIMM_URL
from atss_core.layers import FrozenBatchNorm2d, group_norm
from atss_core.modeling import build_detector
from atss_core.modeling.resnet import ResNet
from atss_core.utils.caffe2 import body_key, read_caffe2
from atss_core.utils.checkpoint import read_checkpoint
from atss_core.utils.download import cache_path
from atss_core.utils.imagenet import is_imagenet_body
from atss_core.utils.pixels import CAFFE2_PIXELS, TORCHVISION_PIXELS, PixelFormat
from atss_core.utils.weights import load_initial_weights, read_detector, weights_of
from tests.conftest import QUICK, TINY

THIN = {"stem_channels": 8, "width_per_group": 8, "out_channels": 32}


class Model(nn.Module):
    """A body where a detector has it."""

    def __init__(self, depth=50, norm=FrozenBatchNorm2d, **options):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.body = ResNet(depth, norm=norm, **options).eval()

    @torch.inference_mode()
    def forward(self, images):
        return self.backbone.body(images)


def randomise_norms(module):
    """Give norms statistics as training leaves them, so that none is neutral."""
    for norm in module.modules():
        if hasattr(norm, "running_var"):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.01, 2)
            norm.weight.data.uniform_(0.5, 1.5)
            norm.bias.data.normal_(0, 0.1)
    return module


def make_detector(seed, *opts):
    torch.manual_seed(seed)
    return randomise_norms(build_detector(load_cfg(QUICK, [*TINY, *opts]))).eval()


@torch.inference_mode()
def outputs(detector):
    found = detector.rpn.head(detector.backbone(torch.linspace(-2, 2, 3 * 64 * 96).reshape(1, 3, 64, 96)))
    return [t for field in vars(found).values() if isinstance(field, (list, tuple)) for t in field]


def assert_same(first, second):
    assert len(first) == len(second) > 0
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# ---- Whole detectors


def write_published(weights, path):
    model = {f"module.{key}": value for key, value in weights.items()}
    torch.save({"model": model, "optimizer": {"state": {}}, "scheduler": {"last_epoch": 3}}, path)


DETECTOR_FORMATS = {
    "published.pth": write_published,
    "wrapped.pth": lambda weights, path: torch.save({"model": weights}, path),
    "bare.pth": torch.save,
    "legacy.pth": lambda weights, path: torch.save(weights, path, _use_new_zipfile_serialization=False),
    "ours.pth": lambda weights, path: torch.save(
        {"model": weights, "optimizer": {}, "iteration": 3, "class_names": ["a"]}, path
    ),
    "averaged.pth": lambda weights, path: torch.save(
        {"model": {k: v * 2 for k, v in weights.items()}, "ema": {"model": weights}}, path
    ),
    "plain.safetensors": save_file,
    "prefixed.safetensors": lambda w, path: save_file({f"module.{k}": v for k, v in w.items()}, path),
}


@pytest.fixture(scope="module")
def source():
    return make_detector(0)


@pytest.mark.parametrize("name", DETECTOR_FORMATS)
def test_every_format_of_a_detector_gives_its_outputs(name, source, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    DETECTOR_FORMATS[name](source.state_dict(), tmp_path / name)
    detector = make_detector(1)
    assert not torch.equal(outputs(detector)[0], outputs(source)[0])
    load_initial_weights(detector, str(tmp_path / name))
    assert_same(outputs(detector), outputs(source))
    number = len(source.state_dict())
    assert f"Loaded {tmp_path / name}\n  loaded {number:>26}  backbone." in caplog.text
    assert "left fresh" not in caplog.text


def test_averaged_weights_come_first():
    assert weights_of({"model": {"w": 1}, "ema": {"model": {"w": 2}}}) == {"w": 2}
    assert weights_of({"model": {"w": 1}, "ema": None}) == {"w": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as a checkpoint .*truncated"),
        (b"no header", "is no checkpoint"),
        (b"\x08\0\0\0\0\0\0\0{}      cut", "cannot be read as a checkpoint"),
        (b"\x80\0\0\0\0\0\0\0{", "cannot be read as a checkpoint .*truncated"),
    ],
)
def test_broken_safetensors_is_explained(tmp_path, content, message):
    (tmp_path / "broken.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=rf"broken.safetensors {message}"):
        read_checkpoint(tmp_path / "broken.safetensors")


@pytest.mark.parametrize("names", ["not JSON", '"cat"', "[1, 2]", '{"cat": 1}', "[]"])
def test_metadata_of_others_is_no_class_names(tmp_path, names):
    save_file({"w": torch.rand(2)}, tmp_path / "other.safetensors", {"class_names": names})
    assert read_checkpoint(tmp_path / "other.safetensors").keys() == {"model"}


def test_content_tells_the_format(source, tmp_path):
    save_file(source.state_dict(), tmp_path / "safetensors.pth")
    torch.save(source.state_dict(), tmp_path / "torch.safetensors")
    for name in ("safetensors.pth", "torch.safetensors"):
        found = read_checkpoint(tmp_path / name)["model"]
        assert found.keys() == source.state_dict().keys()
        assert all(torch.equal(found[key], value) for key, value in source.state_dict().items())


def test_head_of_other_classes_is_loaded_on_demand_alone(source, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    torch.save({**source.state_dict(), "rpn.head.extra": torch.zeros(2)}, tmp_path / "six.pth")
    detector = make_detector(1, "MODEL.ATSS.NUM_CLASSES", "4")
    fresh = {key: value.clone() for key, value in detector.state_dict().items()}
    with pytest.raises(
        ValueError,
        match=r"of another shape .*cls_logits.weight 6x64x3x3 -> 3x.* or MODEL.WEIGHT_PARTIAL True to",
    ):
        load_initial_weights(detector, str(tmp_path / "six.pth"))
    assert_same(list(detector.state_dict().values()), list(fresh.values()))
    load_initial_weights(detector, str(tmp_path / "six.pth"), partial=True)
    for key, value in detector.state_dict().items():
        assert torch.equal(value, (fresh if ".cls_logits." in key else source.state_dict())[key]), key
    table = caplog.messages[-1].splitlines()[1:]
    assert [line[2:29].strip() for line in table] == ["loaded", "left fresh: other shape", "not used"]
    assert [int(line[29:36]) for line in table] == [len(fresh) - 2 - 5, 2, 1]
    assert "rpn.head.cls_logits.weight 6x64x3x3 -> 3x64x3x3" in table[1]
    assert all(len(line) <= 100 for line in table)


def test_partial_weights_keep_the_anchors_and_report_what_is_missing(source, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    weights = {k: v for k, v in source.state_dict().items() if not k.startswith("backbone.fpn.")}
    torch.save(weights, tmp_path / "headless.pth")
    detector = make_detector(1, "MODEL.ATSS.ANCHOR_SIZES", "(16, 32, 64, 128, 256)")
    anchors = [a.clone() for a in detector.rpn.anchor_generator.cell_anchors]
    assert not torch.equal(anchors[0], next(iter(source.rpn.anchor_generator.cell_anchors)))
    load_initial_weights(detector, str(tmp_path / "headless.pth"), partial=True)
    assert_same(list(detector.rpn.anchor_generator.cell_anchors), anchors)
    assert "left fresh: not in the file" in caplog.text
    assert "backbone.fpn." in caplog.text


def test_nothing_that_fits_is_an_error_even_if_parts_suffice(source, tmp_path):
    torch.save({"other.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"none of the 1 tensors of .*other.pth fits"):
        load_initial_weights(source, str(tmp_path / "other.pth"), partial=True)


def test_no_weights_and_missing_weights():
    model = Model(18)
    before = model.backbone.body.stem.conv1.weight.clone()
    load_initial_weights(model, "")
    assert torch.equal(model.backbone.body.stem.conv1.weight, before)
    with pytest.raises(FileNotFoundError, match=r"no weights at none.pth; set MODEL.WEIGHT"):
        load_initial_weights(model, "none.pth")


@pytest.mark.parametrize(
    ("name", "is_body"),
    [
        ("catalog://ImageNetPretrained/MSRA/R-50", True),
        ("torchvision://resnet50", True),
        ("timm://resnet50.a1_in1k", True),
        ("R-50.pkl", True),
        ("https://example.org/R-50.pkl#sha256=00", True),
        ("https://example.org/ATSS_R_50.pth", False),
        ("model.safetensors", False),
        ("", False),
    ],
)
def test_names_of_bodies(name, is_body):
    assert is_imagenet_body(name) == is_body


@pytest.mark.parametrize("source", ["torchvision://resnet50", "catalog://R-50", "some/R-50.pkl"])
def test_name_of_a_body_is_no_detector(source):
    with pytest.raises(ValueError, match=rf"{source} names an ImageNet body, not a detector; give the .pth"):
        read_detector(source)


def test_classifier_is_no_detector_and_the_home_folder_is_found(resnet18, source, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save(resnet18.state_dict(), tmp_path / "classifier.pth")
    with pytest.raises(ValueError, match=r"~/classifier.pth names an ImageNet body"):
        read_detector("~/classifier.pth")
    torch.save(source.state_dict(), tmp_path / "detector.pth")
    name, checkpoint = read_detector("~/detector.pth")
    assert name == "~/detector.pth"
    assert checkpoint["model"].keys() == source.state_dict().keys()


# ---- Caffe2

BLOBS = {
    "conv1_w": "stem.conv1.weight",
    "res_conv1_bn_s": "stem.bn1.weight",
    "res_conv1_bn_b": "stem.bn1.bias",
    "res2_0_branch1_w": "layer1.0.downsample.0.weight",
    "res2_0_branch1_bn_b": "layer1.0.downsample.1.bias",
    "res4_5_branch2a_w": "layer3.5.conv1.weight",
    "res4_5_branch2b_bn_s": "layer3.5.bn2.weight",
    "res5_2_branch2c_w": "layer4.2.conv3.weight",
}
GROUP_NORM_BLOBS = {
    "conv1_gn_s": "stem.bn1.weight",
    "res2_0_branch1_gn_b": "layer1.0.downsample.1.bias",
    "res4_5_branch2b_gn_s": "layer3.5.bn2.weight",
}


def blob_name(key):
    """The Caffe2 name of a weight of the body."""
    inverse = {value: name for name, value in BLOBS.items()}
    if key in inverse:
        return inverse[key]
    _, block, layer, *kind = key.split(".")
    stage = int(key[5]) + 1
    if layer == "downsample":
        branch, is_norm = "branch1", kind[0] == "1"
    else:
        branch, is_norm = "branch2" + "abc"[int(layer[-1]) - 1], layer.startswith("bn")
    suffix = {"weight": "s" if is_norm else "w", "bias": "b"}[kind[-1]]
    return f"res{stage}_{block}_{branch}_{'bn_' if is_norm else ''}{suffix}"


def folded_blobs(model):
    """The weights of a body as Caffe2 files have them: the statistics are folded into scale and shift."""
    weights = {
        key.replace(".conv2.conv.", ".conv2."): value
        for key, value in model.backbone.body.state_dict().items()
        if ".offset." not in key
    }
    for key in [key for key in weights if key.endswith(".running_var")]:
        norm = key.removesuffix("running_var")
        weights[norm + "weight"] = weights[norm + "weight"] * weights.pop(key).rsqrt()
        shift = weights.pop(norm + "running_mean") * weights[norm + "weight"]
        weights[norm + "bias"] = weights[norm + "bias"] - shift
    blobs = {blob_name(key): value.numpy() for key, value in weights.items()}
    extra = {"fc1000_w": (2, 2), "conv1_b": (8,), "res2_0_branch2a_b": (8,)}
    return blobs | {name: np.zeros(shape, dtype=np.float32) for name, shape in extra.items()}


def dump(content, path, protocol=2):
    with open(path, "wb") as file:
        pickle.dump(content, file, protocol=protocol)
    return str(path)


@pytest.mark.parametrize(("blob", "key"), [*BLOBS.items(), *GROUP_NORM_BLOBS.items()])
def test_caffe2_names(blob, key):
    assert body_key(blob) == key


@pytest.mark.parametrize("deformable", [(False, False, False, False), (False, True, True, True)])
@pytest.mark.parametrize("nested", [True, False])
def test_caffe2_body_gives_the_outputs_of_its_source(tmp_path, nested, deformable, caplog):
    caplog.set_level(logging.INFO)
    source, model = randomise_norms(Model(**THIN)), Model(**THIN, deformable=deformable)
    blobs = folded_blobs(source)
    load_initial_weights(
        model, dump({"blobs": blobs} if nested else blobs, tmp_path / "R-50.pkl"), pixels=CAFFE2_PIXELS
    )
    images = torch.rand(1, 3, 64, 96)
    if any(deformable):
        # Offsets start at zero and masks at one half (DCNv2); with full masks the convolution is a plain one.
        for module in model.modules():
            if hasattr(module, "num_offsets"):
                module.offset.bias.data[module.num_offsets :] = 30.0
        for found, expected in zip(model(images), source(images), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    else:
        assert_same(model(images), source(images))
    assert f"  not used {3:>24}  fc1000.weight, stem.conv1.bias, layer1.0.conv1.bias" in caplog.text


def test_caffe2_batch_norms_load_into_trainable_ones(tmp_path):
    source, model = randomise_norms(Model(**THIN)), Model(**THIN, norm=nn.BatchNorm2d)
    load_initial_weights(model, dump(folded_blobs(source), tmp_path / "R-50.pkl"))
    images = torch.rand(1, 3, 64, 96)
    for found, expected in zip(model(images), source(images), strict=True):
        # They add 1e-5 to a variance of one.
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


def test_body_of_another_width_or_depth_is_refused(tmp_path):
    blobs = folded_blobs(Model(**THIN))
    odd = dict(blobs)
    del odd["res5_2_branch2c_w"]
    odd["conv1_w"] = odd["conv1_w"][:4]
    message = (
        r"1 weights missing \(layer4.2.conv3.weight\), 1 weights of another shape \(stem.conv1.weight 4x"
    )
    with pytest.raises(ValueError, match=message):
        load_initial_weights(Model(**THIN), dump(odd, tmp_path / "odd.pkl"))
    deeper = blobs | {name.replace("res4_5", "res4_6"): value for name, value in blobs.items()}
    with pytest.raises(ValueError, match=r"weights of parts it lacks \(layer3.6.conv1.weight"):
        load_initial_weights(Model(**THIN), dump(deeper, tmp_path / "deeper.pkl"))


def test_other_norms_are_refused_though_names_and_shapes_agree(tmp_path):
    blobs = folded_blobs(Model(**THIN))
    with_groups = Model(**THIN, norm=lambda channels: group_norm(channels, num_groups=2))
    with pytest.raises(
        ValueError, match=r"has batch norms, but .* group norms; add .*BottleneckWithFixedBat"
    ):
        load_initial_weights(with_groups, dump(blobs, tmp_path / "bn.pkl"))
    renamed = {k.replace("res_conv1_bn", "conv1_gn").replace("_bn_", "_gn_"): v for k, v in blobs.items()}
    load_initial_weights(with_groups, dump(renamed, tmp_path / "gn.pkl"))
    assert np.array_equal(with_groups.backbone.body.stem.bn1.weight.detach(), renamed["conv1_gn_s"])
    with pytest.raises(ValueError, match=r"TRANS_FUNC BottleneckWithGN MODEL.RESNETS.STEM_FUNC StemWithGN"):
        load_initial_weights(Model(**THIN), str(tmp_path / "gn.pkl"))


def test_hostile_pickle_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path}/executed",))

    with pytest.raises(ValueError, match=r"cannot be read as Caffe2 weights: it refers to .*system"):
        load_initial_weights(Model(18), dump({"conv1_w": Evil()}, tmp_path / "evil.pkl"))
    assert not (tmp_path / "executed").exists()


def test_published_mean_suits_all_caffe2_bodies_and_others_do_not(tmp_path):
    body = dump(folded_blobs(Model(**THIN)), tmp_path / "R-50.pkl")
    load_initial_weights(Model(**THIN), body, pixels=PixelFormat((103.53, 116.28, 123.675), (1.0,) * 3, True))
    for mean, std in (((103.0, 116.0, 123.0), (57.0,) * 3), ((0.4, 0.45, 0.48), (1.0,) * 3)):
        with pytest.raises(ValueError, match=r"add INPUT.TO_BGR255 True INPUT.PIXEL_MEAN ..102.9801"):
            load_initial_weights(Model(**THIN), body, pixels=PixelFormat(mean, std, is_bgr255=True))


def test_bias_that_is_not_zero_is_refused(tmp_path):
    blobs = folded_blobs(Model(**THIN))
    rounding = {**blobs, "conv1_b": np.full(8, 1e-6, dtype=np.float32)}
    load_initial_weights(Model(**THIN), dump(rounding, tmp_path / "rounding.pkl"))
    biased = {**blobs, "conv1_b": np.ones(8, dtype=np.float32)}
    with pytest.raises(ValueError, match=r"weights of parts it lacks \(stem.conv1.bias\)"):
        load_initial_weights(Model(**THIN), dump(biased, tmp_path / "biased.pkl"))


ARRAYS = {
    "f4": np.arange(6, dtype="<f4").reshape(2, 3),
    "big-endian": np.arange(6, dtype=">f4").reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(24, dtype="f8").reshape(2, 3, 4)),
    "transposed": np.arange(24, dtype="f4").reshape(2, 3, 4).transpose(2, 0, 1),
    "strided": np.arange(10, dtype="f4")[::3],
    "half": np.ones((2, 0), dtype="f2"),
}


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_arrays_of_all_protocols_are_read(tmp_path, protocol):
    others = {"iteration": np.int64(5), "rate": np.float64(0.1), "ids": np.arange(3), "name": "R-50"}
    found = read_caffe2(Path(dump({"blobs": {**ARRAYS, **others}}, tmp_path / "a.pkl", protocol)))
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].dtype == torch.from_numpy(array.astype(array.dtype.newbyteorder("="))).dtype
        assert np.array_equal(found[name], array)


def forged(order=b"|", flags=63, code=b"f4", data=b"A" * 16):
    """A pickle of Python 2 with an array of four numbers and the state that it claims for their type."""
    state = b"(K\x03U\x01" + order + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK" + bytes([flags]) + b"tb"
    dtype = b"cnumpy\ndtype\nU\x02" + code + b"K\x00K\x01\x87R" + state
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    value = b"(K\x01K\x04\x85" + dtype + b"\x89U" + bytes([len(data)]) + data + b"tb"
    return b"\x80\x02}U\x01a" + array + value + b"s."


def test_strings_of_python_2_are_arrays(tmp_path):
    (tmp_path / "old.pkl").write_bytes(forged(order=b"<", data=np.float32([1, -2, 3, 0.1]).tobytes()))
    assert read_caffe2(tmp_path / "old.pkl")["a"].tolist() == pytest.approx([1, -2, 3, 0.1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (forged(code=b"O8"), "numbers of type 'O8'"),
        (forged(code=b"V4"), "numbers of type 'V4'"),
        (forged(order=b"?"), "order '\\?'"),
        (forged(data=b"A" * 15), "15 bytes for an array of shape"),
        (forged(data=b"A" * 17), "17 bytes for an array of shape"),
        (b"\x80\x02N" + b"r\xff\xff\xff\x7f" + b".", "holds no blobs"),  # a large number of a memo
        (b"\x80\x05\x96\0\0\0\0\0\1\0\0.", "cannot be read as Caffe2 weights"),  # of bytes
        (b"\x80\x02}.", "holds no blobs"),
        (b"\x80\x02cnumpy\nndarray\n)\x81.", "holds no blobs"),
        (b"", "cannot be read as Caffe2 weights: EOFError"),
    ],
)
def test_forged_arrays_are_refused(tmp_path, content, message):
    (tmp_path / "forged.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_caffe2(tmp_path / "forged.pkl")
    assert "\n" not in str(error.value)


def test_state_of_a_type_is_not_believed(tmp_path):
    # With these flags NumPy's dtype would take the numbers for addresses.
    (tmp_path / "forged.pkl").write_bytes(forged(flags=63))
    assert read_caffe2(tmp_path / "forged.pkl")["a"].tolist() == np.frombuffer(b"A" * 16, "f4").tolist()


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_damaged_pickles_are_read_or_refused(tmp_path, protocol):
    file = Path(
        dump({"blobs": {"a": np.zeros((2, 3), "f4"), "b": np.float32(1)}}, tmp_path / "a.pkl", protocol)
    )
    good, chance = file.read_bytes(), random.Random(0)
    for _ in range(1000):
        content = bytearray(good)
        for _ in range(chance.randint(1, 3)):
            content[chance.randrange(len(content))] = chance.randrange(256)
        file.write_bytes(content)
        with contextlib.suppress(ValueError):
            read_caffe2(file)


# ---- torchvision and timm


@torch.inference_mode()
def stages(classifier, images):
    """C3 to C5 of a torchvision model."""
    x = classifier.maxpool(classifier.relu(classifier.bn1(classifier.conv1(images))))
    found = [classifier.layer2(classifier.layer1(x))]
    found.append(classifier.layer3(found[-1]))
    found.append(classifier.layer4(found[-1]))
    return found


def make_classifier(name):
    torch.manual_seed(0)
    return randomise_norms(getattr(torchvision.models, name)()).eval()


@pytest.fixture(scope="module")
def resnet18():
    return make_classifier("resnet18")


BODIES = {
    "resnet18": {"depth": 18},
    "resnet50": {"depth": 50, "stride_in_1x1": False},
    "resnext50_32x4d": {"depth": 50, "stride_in_1x1": False, "groups": 32, "width_per_group": 4},
}


@pytest.mark.parametrize("name", BODIES)
def test_body_of_torchvision_gives_its_features(name, tmp_path, caplog):
    classifier = make_classifier(name)
    torch.save(classifier.state_dict(), tmp_path / "classifier.pth")
    images = torch.rand(1, 3, 64, 96)
    trainable = Model(**BODIES[name], norm=nn.BatchNorm2d)
    load_initial_weights(trainable, str(tmp_path / "classifier.pth"), pixels=CAFFE2_PIXELS)
    assert_same(trainable(images), stages(classifier, images))
    assert 'torchvision want INPUT.TO_BGR255 False INPUT.PIXEL_MEAN "[0.485, 0.456, 0.406]"' in caplog.text

    # A fixed batch norm computes the same in another order, which rounds otherwise.
    fixed = Model(**BODIES[name])
    load_initial_weights(fixed, str(tmp_path / "classifier.pth"))
    features = zip(fixed.double()(images.double()), stages(classifier.double(), images.double()), strict=True)
    for found, expected in features:
        # The sum of variance and epsilon is kept in float32.
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())


@pytest.mark.parametrize("shift", [0, 1e-6])
def test_pixels_of_torchvision_need_no_warning(resnet18, tmp_path, caplog, shift):
    save_file(resnet18.state_dict(), tmp_path / "classifier.safetensors")
    rounded = PixelFormat((0.485 + shift, 0.456, 0.406), TORCHVISION_PIXELS.std, is_bgr255=False)
    load_initial_weights(Model(18), str(tmp_path / "classifier.safetensors"), pixels=rounded)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_classifier_wrapped_as_its_training_script_does(resnet18, tmp_path):
    torch.save({"state_dict": resnet18.state_dict(), "epoch": 3}, tmp_path / "wrapped.pth.tar")
    model = Model(18, norm=nn.BatchNorm2d)
    load_initial_weights(model, str(tmp_path / "wrapped.pth.tar"))
    images = torch.rand(1, 3, 64, 96)
    assert_same(model(images), stages(resnet18, images))


def test_deformable_convolution_gets_the_weights_of_the_plain_one(tmp_path):
    classifier = torchvision.models.resnet50()
    torch.save(classifier.state_dict(), tmp_path / "classifier.pth")
    model = Model(stride_in_1x1=False, deformable=(False, False, False, True))
    load_initial_weights(model, str(tmp_path / "classifier.pth"))
    convolution = model.backbone.body.layer4[0].conv2
    assert torch.equal(convolution.conv.weight, classifier.layer4[0].conv2.weight)
    assert not convolution.offset.weight.any()
    with pytest.raises(ValueError, match=r"in the 1x1; add MODEL.RESNETS.STRIDE_IN_1X1 False$"):
        load_initial_weights(Model(), str(tmp_path / "classifier.pth"))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache to put files in by hand, and no network."""
    monkeypatch.setenv("ATSS_CACHE", str(tmp_path))

    def put(url):
        path = cache_path(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    return put


@pytest.mark.parametrize("name", ["resnet18", "resnet18.IMAGENET1K_V1"])
def test_torchvision_name(name, resnet18, cache):
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    torch.save(resnet18.state_dict(), cache(weights.url))
    model = Model(18, norm=nn.BatchNorm2d)
    load_initial_weights(model, f"torchvision://{name}", pixels=TORCHVISION_PIXELS)
    images = torch.rand(1, 3, 64, 96)
    assert_same(model(images), stages(resnet18, images))
    with pytest.raises(ValueError, match=r"trained with RGB pixels in 0..1") as error:
        load_initial_weights(model, f"torchvision://{name}", pixels=CAFFE2_PIXELS)
    assert str(error.value).endswith(
        'add INPUT.TO_BGR255 False INPUT.PIXEL_MEAN "[0.485, 0.456, 0.406]" '
        'INPUT.PIXEL_STD "[0.229, 0.224, 0.225]"'
    )


def test_timm_name(resnet18, cache):
    name = "resnet18.a1_in1k"
    save_file(resnet18.state_dict(), cache(TIMM_URL.format(name=name, file="model.safetensors")))
    description = cache(TIMM_URL.format(name=name, file="config.json"))
    description.write_text(json.dumps({"pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}))
    model = Model(18, norm=nn.BatchNorm2d)
    with pytest.raises(ValueError, match=r'add INPUT.TO_BGR255 False INPUT.PIXEL_MEAN "\[0.5, 0.5, 0.5\]"'):
        load_initial_weights(model, f"timm://{name}", pixels=TORCHVISION_PIXELS)
    load_initial_weights(model, f"timm://{name}", pixels=PixelFormat((0.5,) * 3, (0.5,) * 3, is_bgr255=False))
    images = torch.rand(1, 3, 64, 96)
    assert_same(model(images), stages(resnet18, images))
    description.write_text("{}")
    with pytest.raises(
        ValueError, match=r"under pretrained_cfg in .*config.json; remove .*config.json to download it"
    ):
        load_initial_weights(model, f"timm://{name}")


def test_catalogue_name_and_its_pixels(cache, tmp_path):
    source, model = randomise_norms(Model(**THIN)), Model(**THIN)
    url = "https://dl.fbaipublicfiles.com/detectron/ImageNetPretrained/MSRA/R-50.pkl"
    dump({"blobs": folded_blobs(source)}, cache(url))
    load_initial_weights(model, "catalog://ImageNetPretrained/MSRA/R-50", pixels=CAFFE2_PIXELS)
    images = torch.rand(1, 3, 64, 96)
    assert_same(model(images), source(images))
    with pytest.raises(ValueError, match=r"BGR pixels in 0..255.* add INPUT.TO_BGR255 True INPUT.PIXEL_MEAN"):
        load_initial_weights(model, "catalog://ImageNetPretrained/MSRA/R-50", pixels=TORCHVISION_PIXELS)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "torchvision://resnet51",
            r"expected torchvision://NAME with one of resnet18, .*got torchvision://re",
        ),
        ("torchvision://resnet18.V7", r"no V7 of resnet18; use torchvision://resnet18.IMAGENET1K_V1"),
        ("timm://resnet50", r"such as timm://resnet50.a1_in1k, got timm://resnet50$"),
        ("timm://resnetaa50.a1h_in1k", r"expected timm://NAME.TAG with a plain ResNet"),
        ("catalog://R-50", r"unknown weights catalog://R-50; did you mean"),
    ],
)
def test_unknown_names_are_explained(name, message):
    with pytest.raises(ValueError, match=message):
        load_initial_weights(Model(18), name)
