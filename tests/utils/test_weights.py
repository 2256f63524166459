import os
import pickle

import numpy as np
import pytest
import torch

from atss_core.layers import FrozenBatchNorm2d
from atss_core.modeling.resnet import ResNet
from atss_core.utils.weights import body_key, fetch, load_initial_weights


class Model(torch.nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.backbone = torch.nn.Module()
        self.backbone.body = ResNet(50, norm=FrozenBatchNorm2d, **options)


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


def blobs(model):
    random = np.random.default_rng(0)
    keys = [
        k
        for k in model.backbone.body.state_dict()
        if k.endswith((".weight", ".bias")) and ".offset." not in k
    ]
    return {
        blob_name(k.replace(".conv2.conv.", ".conv2.")): random.normal(
            size=model.backbone.body.state_dict()[k].shape
        ).astype(np.float32)
        for k in keys
    }


@pytest.mark.parametrize(("blob", "key"), BLOBS.items())
def test_caffe2_names(blob, key):
    assert body_key(blob, ResNet(50, norm=FrozenBatchNorm2d)) == key


@pytest.mark.parametrize("deformable", [(False, False, False, False), (False, True, True, True)])
@pytest.mark.parametrize("nested", [True, False])
def test_imagenet_body_is_loaded_whole(tmp_path, nested, deformable):
    model = Model(deformable=deformable)
    content = blobs(model)
    content["fc1000_w"] = np.zeros((2, 2), dtype=np.float32)
    with open(tmp_path / "R-50.pkl", "wb") as file:
        pickle.dump({"blobs": content} if nested else content, file, protocol=2)
    load_initial_weights(model, str(tmp_path / "R-50.pkl"))
    loaded = model.backbone.body.state_dict()
    for key, value in loaded.items():
        if key.endswith((".weight", ".bias")) and ".offset." not in key:
            assert np.array_equal(value, content[blob_name(key.replace(".conv2.conv.", ".conv2."))]), key
    assert loaded["stem.bn1.running_var"].eq(1).all()


def test_body_of_another_depth_is_refused(tmp_path):
    model = Model()
    content = blobs(model)
    del content["res5_2_branch2c_w"]
    content["conv1_w"] = content["conv1_w"][:32]
    with open(tmp_path / "odd.pkl", "wb") as file:
        pickle.dump(content, file)
    with pytest.raises(ValueError, match=r"1 weights missing \(layer4.2.conv3.weight\), 1 of another shape"):
        load_initial_weights(model, str(tmp_path / "odd.pkl"))


def test_hostile_pickle_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path}/executed",))

    with open(tmp_path / "evil.pkl", "wb") as file:
        pickle.dump({"conv1_w": Evil()}, file)
    with pytest.raises(ValueError, match=r"cannot be read as Caffe2 weights: it refers to .*system"):
        load_initial_weights(Model(), str(tmp_path / "evil.pkl"))
    assert not (tmp_path / "executed").exists()


def test_download_is_cached_and_failure_is_explained(tmp_path, monkeypatch):
    monkeypatch.setenv("ATSS_CACHE", str(tmp_path))
    calls = []

    def download(url, path):
        calls.append(url)
        if "broken" in url:
            raise OSError("no route to host")
        with open(path, "wb") as file:
            file.write(b"content")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        assert fetch("https://example.org/R-50.pkl").read_bytes() == b"content"
    assert calls == ["https://example.org/R-50.pkl"]
    with pytest.raises(
        ValueError, match=r"cannot download .*no route to host.* put the file at .*broken.pkl"
    ):
        fetch("https://example.org/broken.pkl")


def test_no_weights_and_missing_weights():
    model = Model()
    before = model.backbone.body.stem.conv1.weight.clone()
    load_initial_weights(model, "")
    assert torch.equal(model.backbone.body.stem.conv1.weight, before)
    with pytest.raises(FileNotFoundError, match=r"no weights at none.pth; set MODEL.WEIGHT"):
        load_initial_weights(model, "none.pth")
