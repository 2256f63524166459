import pytest
import torch

from atss_core.layers import FrozenBatchNorm2d, Scale, group_norm


def test_frozen_batch_norm_adds_no_epsilon():
    layer = FrozenBatchNorm2d(2)
    layer.weight[:] = torch.tensor([1.0, 2.0])
    layer.running_var[:] = torch.tensor([1e-10, 4.0])
    layer.running_mean[:] = 3.0
    layer.bias[:] = 1.0
    out = layer(torch.full((1, 2, 1, 1), 5.0)).flatten()
    assert out.tolist() == pytest.approx([2e5 + 1, 3.0], rel=1e-5)
    assert not list(layer.parameters())


def test_group_norm_by_groups_or_channels():
    assert group_norm(64).num_groups == 32
    assert group_norm(64, num_groups=-1, channels_per_group=16).num_groups == 4
    with pytest.raises(ValueError, match="48 channels cannot be split into 32"):
        group_norm(48)
    with pytest.raises(ValueError, match=r"either .*NUM_GROUPS or DIM_PER_GP"):
        group_norm(64, channels_per_group=4)


def test_scale_has_the_published_key():
    layer = Scale(3.0)
    assert {k: v.shape for k, v in layer.state_dict().items()} == {"scale": torch.Size([1])}
    assert layer(torch.tensor([2.0])).item() == 6
