"""ImageNet backbones in the Caffe2 format, and hostile pickles."""

import contextlib
import logging
import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from atss_core.checkpoint.backbones import backbone_key
from atss_core.checkpoint.formats import read_caffe2
from atss_core.checkpoint.weights import load_initial_weights
from atss_core.layers import group_norm
from atss_core.structures.pixel_format import CAFFE2_PIXELS, TORCHVISION_PIXELS, PixelFormat
from tests.checkpoint.backbones import THIN, Model, assert_same, randomise_norms

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
    """The Caffe2 name of a weight of the backbone."""
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
    """The weights of a backbone as Caffe2 files have them: the statistics are folded into scale and shift."""
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
    assert backbone_key(blob) == key


@pytest.mark.parametrize("deformable", [(False, False, False, False), (False, True, True, True)])
@pytest.mark.parametrize("nested", [True, False])
def test_caffe2_backbone_gives_the_outputs_of_its_source(tmp_path, nested, deformable, caplog):
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
        for actual, expected in zip(model(images), source(images), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    else:
        assert_same(model(images), source(images))
    assert f"  not used {3:>24}  fc1000.weight, stem.conv1.bias, layer1.0.conv1.bias" in caplog.text


def test_caffe2_batch_norms_load_into_trainable_ones(tmp_path):
    source, model = randomise_norms(Model(**THIN)), Model(**THIN, norm=nn.BatchNorm2d)
    load_initial_weights(model, dump(folded_blobs(source), tmp_path / "R-50.pkl"))
    images = torch.rand(1, 3, 64, 96)
    for actual, expected in zip(model(images), source(images), strict=True):
        # They add 1e-5 to a variance of one.
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


def test_backbone_of_another_width_or_depth_is_refused(tmp_path):
    blobs = folded_blobs(Model(**THIN))
    odd = dict(blobs)
    del odd["res5_2_branch2c_w"]
    odd["conv1_w"] = odd["conv1_w"][:4]
    message = r"missing layer4.2.conv3.weight \(1\); of another shape stem.conv1.weight 4x"
    with pytest.raises(ValueError, match=message):
        load_initial_weights(Model(**THIN), dump(odd, tmp_path / "odd.pkl"))
    deeper = blobs | {name.replace("res4_5", "res4_6"): value for name, value in blobs.items()}
    with pytest.raises(ValueError, match=r"unexpected layer3.6.conv1.weight"):
        load_initial_weights(Model(**THIN), dump(deeper, tmp_path / "deeper.pkl"))


def test_other_norms_are_refused_even_if_names_and_shapes_agree(tmp_path):
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


def test_hostile_names_and_sizes_stay_short(tmp_path):
    # PickledBuffer of a number, where bytes(number) would be as many bytes of memory.
    numbers = b"cnumpy.core.numeric\n_frombuffer\n(I4000000000\ncnumpy\ndtype\n(Vf4\ntR(I1000000000\ntVC\ntR."
    long_name = b"c" + b"a" * 5000 + b"\x1b[31m\nb\n."
    for content, message in (
        (numbers, "it has a int for the numbers of an array"),
        (long_name, "refers to aaa"),
    ):
        (tmp_path / "evil.pkl").write_bytes(content)
        with pytest.raises(ValueError, match=rf"cannot be read as Caffe2 weights: .*{message}") as error:
            read_caffe2(tmp_path / "evil.pkl")
        assert str(error.value).isprintable()
        assert len(str(error.value)) < 600


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(value, tmp_path):
    blobs = folded_blobs(Model(**THIN))
    blobs["conv1_w"] = np.full_like(blobs["conv1_w"], value)
    model = Model(**THIN)
    before = model.backbone.body.layer1[0].conv1.weight.clone()
    with pytest.raises(ValueError, match=r"odd.pkl: expected finite .* first stem.conv1.weight with NaN or"):
        load_initial_weights(model, dump(blobs, tmp_path / "odd.pkl"))
    assert torch.equal(model.backbone.body.layer1[0].conv1.weight, before)


def test_published_mean_suits_all_caffe2_backbones_and_others_do_not(tmp_path):
    path = dump(folded_blobs(Model(**THIN)), tmp_path / "R-50.pkl")
    load_initial_weights(Model(**THIN), path, pixels=PixelFormat((103.53, 116.28, 123.675), (1.0,) * 3, True))
    for mean, std in (((103.0, 116.0, 123.0), (57.0,) * 3), ((0.4, 0.45, 0.48), (1.0,) * 3)):
        with pytest.raises(ValueError, match=r"add INPUT.TO_BGR255 True INPUT.PIXEL_MEAN ..102.9801"):
            load_initial_weights(Model(**THIN), path, pixels=PixelFormat(mean, std, is_bgr255=True))


def test_bias_that_is_not_zero_is_refused(tmp_path):
    blobs = folded_blobs(Model(**THIN))
    rounding = {**blobs, "conv1_b": np.full(8, 1e-6, dtype=np.float32)}
    load_initial_weights(Model(**THIN), dump(rounding, tmp_path / "rounding.pkl"))
    biased = {**blobs, "conv1_b": np.ones(8, dtype=np.float32)}
    with pytest.raises(ValueError, match=r"unexpected stem.conv1.bias \(1\)"):
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
    actual = read_caffe2(Path(dump({"blobs": {**ARRAYS, **others}}, tmp_path / "a.pkl", protocol)))
    assert actual.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert actual[name].dtype == torch.from_numpy(array.astype(array.dtype.newbyteorder("="))).dtype
        assert np.array_equal(actual[name], array)


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
        (
            b"\x80\x02cnumpy.core.multiarray\nscalar\n}U\x01aK\x01sb.",
            "changes an object that is not an array",
        ),
        (b"\x80\x02cnumpy\nndarray\n}U\x01aK\x01sb.", "changes an object that is not an array"),
        (b"", "cannot be read as Caffe2 weights: EOFError"),
    ],
)
def test_forged_arrays_are_refused(tmp_path, content, message):
    (tmp_path / "forged.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_caffe2(tmp_path / "forged.pkl")
    assert "\n" not in str(error.value)


def test_flags_of_a_pickled_dtype_are_ignored(tmp_path):
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


def test_catalog_name_and_its_input_format(cache, tmp_path):
    source, model = randomise_norms(Model(**THIN)), Model(**THIN)
    url = "https://dl.fbaipublicfiles.com/detectron/ImageNetPretrained/MSRA/R-50.pkl"
    dump({"blobs": folded_blobs(source)}, cache(url))
    load_initial_weights(model, "catalog://ImageNetPretrained/MSRA/R-50", pixels=CAFFE2_PIXELS)
    images = torch.rand(1, 3, 64, 96)
    assert_same(model(images), source(images))
    with pytest.raises(ValueError, match=r"BGR pixels in 0..255.* add INPUT.TO_BGR255 True INPUT.PIXEL_MEAN"):
        load_initial_weights(model, "catalog://ImageNetPretrained/MSRA/R-50", pixels=TORCHVISION_PIXELS)
