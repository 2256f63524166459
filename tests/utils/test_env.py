from pathlib import Path

import pytest
import torch

from atss_core.utils.env import choose_device, environment_report, peak_memory, seed_everything


def test_auto_selects_the_best_available_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("cuda")


def test_a_missing_device_is_an_error_with_a_remedy(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"MODEL.DEVICE is 'cuda', but .* use MODEL.DEVICE auto or cpu"):
        choose_device("cuda")
    with pytest.raises(ValueError, match="must be auto, cpu, cuda, cuda:N or mps, got 'gpu'"):
        choose_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="'cuda:2', but there are 2 CUDA devices"):
        choose_device("cuda:2")


def test_equal_seeds_give_equal_numbers():
    seed_everything(5)
    first = torch.rand(3)
    seed_everything(5)
    assert torch.equal(torch.rand(3), first)


def test_report_names_versions_and_device():
    report = environment_report(torch.device("cpu"))
    assert torch.__version__ in report
    assert "device: cpu" in report


def test_peak_memory_of_a_process_is_plausible():
    if not Path("/proc/self/status").is_file():
        pytest.skip("needs Linux")
    before = peak_memory(torch.device("cpu"))
    held = torch.ones(100 * 2**20, dtype=torch.uint8)
    assert peak_memory(torch.device("cpu")) >= before > 10
    assert len(held) == 100 * 2**20
