"""Schedules and parameter groups."""

import math

import pytest
import torch
from detectron2.solver import LRMultiplier, WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params, reduce_param_groups
from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler
from torch import nn


def sgd(lr: float) -> torch.optim.Optimizer:
    groups = [{"params": [nn.Parameter(torch.zeros(1))]}]
    groups.append({"params": [nn.Parameter(torch.zeros(1))], "lr": lr / 10})
    return torch.optim.SGD(groups, lr=lr)


def rates(scheduler: LRMultiplier, steps: int) -> list[float]:
    seen = scheduler.get_last_lr()[:1]
    for _ in range(steps):
        scheduler.optimizer.step()
        scheduler.step()
        seen.append(scheduler.get_last_lr()[0])
    return seen


def test_linear_warmup_then_steps() -> None:
    steps = MultiStepParamScheduler([1, 0.1], milestones=[10], num_updates=20)
    schedule = WarmupParamScheduler(steps, warmup_factor=0.2, warmup_length=4 / 20)
    seen = rates(LRMultiplier(sgd(5.0), schedule, max_iter=20), 19)
    assert seen == pytest.approx([1, 2, 3, 4] + [5] * 6 + [0.5] * 10)


def test_constant_warmup_hides_the_beginning_of_a_cosine() -> None:
    schedule = WarmupParamScheduler(CosineParamScheduler(1, 0), 0.1, 0.25, "constant")
    optimizer = sgd(2.0)
    seen = rates(LRMultiplier(optimizer, schedule, max_iter=8), 7)
    cosine = [1 + math.cos(math.pi * i / 8) for i in range(8)]
    assert seen == pytest.approx([0.2, 0.2, *cosine[2:]])
    assert optimizer.param_groups[1]["lr"] == pytest.approx(cosine[7] / 10)


def test_rescaled_schedules_begin_after_the_warmup() -> None:
    schedule = WarmupParamScheduler(CosineParamScheduler(1, 0), 0.5, 0.5, rescale_interval=True)
    expected = [0.5, 0.75, 1.0, 0.5 + 0.5 * math.cos(math.pi / 2)]
    assert [schedule(i / 4) for i in range(4)] == pytest.approx(expected)


def test_the_schedule_resumes() -> None:
    schedule = CosineParamScheduler(1, 0)
    first = LRMultiplier(sgd(1.0), schedule, max_iter=10)
    rates(first, 4)
    state = first.state_dict()
    assert state == {"base_lrs": [1.0, 0.1], "last_epoch": 4}
    second = LRMultiplier(sgd(1.0), schedule, max_iter=10)
    second.load_state_dict(state)
    assert rates(second, 3)[1:] == rates(first, 3)[1:]


def test_schedules_reject_nonsense() -> None:
    with pytest.raises(ValueError, match="ParamScheduler"):
        LRMultiplier(sgd(1.0), lambda progress: progress, max_iter=10)
    with pytest.raises(ValueError, match="warmup"):
        WarmupParamScheduler(CosineParamScheduler(1, 0), 0.1, 0.1, "quadratic")


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        self.norm = nn.GroupNorm(1, 2)
        self.head = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        self.twice = self.conv
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def groups(**options: object) -> list[tuple[dict[str, float], list[str]]]:
    model = Model()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    result = []
    for group in get_default_optimizer_params(model, **options):
        settings = {key: value for key, value in group.items() if key != "params"}
        result.append((settings, [names[id(parameter)] for parameter in group["params"]]))
    return result


CONV = ["conv.weight", "conv.bias"]
NORM = ["norm.weight", "norm.bias"]
LINEAR = ["head.0.weight", "head.0.bias"]
BATCH_NORM = ["head.1.weight", "head.1.bias"]


def test_groups_without_options_hold_every_trainable_parameter_once() -> None:
    assert groups() == [({}, CONV + NORM + LINEAR + BATCH_NORM)]


def test_norms_have_their_own_weight_decay() -> None:
    assert groups(base_lr=1.0, weight_decay=0.1, weight_decay_norm=0.0) == [
        ({"lr": 1.0, "weight_decay": 0.1}, CONV + LINEAR),
        ({"lr": 1.0, "weight_decay": 0.0}, NORM + BATCH_NORM),
    ]


def test_biases_and_names_have_their_own_settings() -> None:
    biases = ["conv.bias", "norm.bias", "head.0.bias", "head.1.bias"]
    weights = ["conv.weight", "norm.weight", "head.0.weight", "head.1.weight"]
    assert groups(base_lr=1.0, bias_lr_factor=2.0, weight_decay_bias=0.5) == [
        ({"lr": 1.0}, weights),
        ({"lr": 2.0, "weight_decay": 0.5}, biases),
    ]
    assert groups(overrides={"bias": {"lr": 9.0}}) == [({}, weights), ({"lr": 9.0}, biases)]
    scaled = groups(base_lr=1.0, lr_factor_func=lambda name: 0.5 if "head" in name else 1.0)
    assert scaled == [({"lr": 1.0}, CONV + NORM), ({"lr": 0.5}, LINEAR + BATCH_NORM)]


@pytest.mark.parametrize(
    "options",
    [
        {"bias_lr_factor": 2.0},
        {"lr_factor_func": len},
        {"weight_decay_bias": 0.1, "overrides": {"bias": {"lr": 1.0}}},
    ],
)
def test_contradictory_settings(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"base_lr|bias"):
        groups(**options)


def test_groups_are_merged() -> None:
    given = [
        {"params": [1, 2], "lr": 1},
        {"params": [3]},
        {"params": [4], "lr": 1},
        {"params": [1], "lr": 3},
    ]
    assert reduce_param_groups(given) == [
        {"lr": 3, "params": [1]},
        {"lr": 1, "params": [2, 4]},
        {"params": [3]},
    ]
