import pytest
import torch

from atss_core.utils.dist import choose_gpu


def test_each_process_gets_its_own_gpu(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert choose_gpu(3, 8) == torch.device("cuda", 3)
    with pytest.raises(ValueError, match="process 2 of this machine needs a GPU of its own, but there are 1"):
        choose_gpu(1, 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")  # as clusters do, one for each process
    assert choose_gpu(1, 1) == torch.device("cuda", 0)
    with pytest.raises(ValueError, match="at most 2 with --nproc_per_node"):
        choose_gpu(2, 2)
