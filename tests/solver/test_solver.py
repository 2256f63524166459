import pytest
import torch

from atss_core.config import load_cfg
from atss_core.modeling import build_detector
from atss_core.solver import build_optimizer, build_scheduler
from tests import golden

OPTIMIZER = golden.numbers("optimizer")
SCHEDULE = golden.numbers("schedule")


@pytest.mark.parametrize("name", OPTIMIZER)
def test_parameter_groups_are_the_published_ones(name):
    cfg = load_cfg(golden.ROOT / "configs" / "atss" / f"{name}.yaml")
    optimizer = build_optimizer(cfg, build_detector(cfg))
    factors = {
        parameter: [group["lr"] / cfg.SOLVER.BASE_LR, group["weight_decay"]]
        for group in optimizer.param_groups
        for parameter in group["names"]
    }
    assert factors == OPTIMIZER[name]["lr_mult_and_weight_decay"]
    assert optimizer.defaults["momentum"] == OPTIMIZER[name]["momentum"]
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(factors)


def test_offsets_have_their_own_factor():
    file = golden.ROOT / "configs" / "atss" / "atss_dcnv2_R_50_FPN_1x.yaml"
    cfg = load_cfg(file, ["SOLVER.DCONV_OFFSETS_LR_FACTOR", "0.1"])
    learning_rates = {
        name: group["lr"]
        for group in build_optimizer(cfg, build_detector(cfg)).param_groups
        for name in group["names"]
    }
    assert learning_rates["rpn.head.cls_tower.9.offset.weight"] == pytest.approx(0.001)
    assert learning_rates["rpn.head.cls_tower.9.offset.bias"] == pytest.approx(0.002)
    assert learning_rates["rpn.head.cls_tower.9.conv.bias"] == pytest.approx(0.02)


@pytest.mark.parametrize("name", SCHEDULE)
def test_schedule_is_the_published_one(name):
    expected = SCHEDULE[name]
    method = name.rsplit("/", 1)[1]
    file = golden.ROOT / "configs" / "atss" / f"{name.split('/')[0]}.yaml"
    cfg = load_cfg(file, ["SOLVER.WARMUP_METHOD", method])
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR)
    factor = build_scheduler(cfg, optimizer).lr_lambdas[0]
    rates = dict(enumerate(expected["first600"]))
    rates |= {100 * i: rate for i, rate in enumerate(expected["every100"])}
    rates |= {int(i): rate for i, rate in expected["around"].items()}
    for iteration, rate in rates.items():
        assert cfg.SOLVER.BASE_LR * factor(iteration) == pytest.approx(rate, rel=1e-12)
    assert expected["max_iter"] == cfg.SOLVER.MAX_ITER


def test_faulty_schedules_are_refused():
    for opts, message in (
        (["SOLVER.STEPS", "(20, 10)"], r"STEPS must be rising, .* got \(20, 10\)"),
        (["SOLVER.WARMUP_METHOD", "cosine"], r"WARMUP_METHOD must be one of .* got 'cosine'"),
    ):
        with pytest.raises(ValueError, match=message):
            load_cfg(None, opts)
