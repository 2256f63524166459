import logging
from pathlib import Path

import pytest
import torch

from atss_core.utils.env import choose_device, environment_report, peak_memory, seed_everything
from atss_core.utils.logging import setup_logging


def test_auto_takes_the_best_device_there_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("cuda")


def test_absent_device_names_the_remedy(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"MODEL.DEVICE is 'cuda', but .* use MODEL.DEVICE auto or cpu"):
        choose_device("cuda")
    with pytest.raises(ValueError, match="must be auto, cpu, cuda, cuda:N or mps, got 'gpu'"):
        choose_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="'cuda:2', but there are 2 CUDA devices"):
        choose_device("cuda:2")


def test_seed_repeats():
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
        pytest.skip("only Linux tells")
    before = peak_memory(torch.device("cpu"))
    held = torch.ones(100 * 2**20, dtype=torch.uint8)
    assert peak_memory(torch.device("cpu")) >= before > 10
    assert len(held) == 100 * 2**20


def test_log_goes_to_console_and_file(tmp_path, capsys):
    setup_logging(tmp_path)
    logging.getLogger("atss_core.somewhere").info("hello")
    setup_logging()
    assert "INFO: hello" in capsys.readouterr().out
    assert "INFO: hello" in (tmp_path / "log.txt").read_text()
