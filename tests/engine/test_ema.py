"""The moving average against its recursion written out."""

import pytest
import torch
from torch import nn

from d2proj.engine.ema import ModelEma


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def test_recursion_and_buffers():
    model = small_model()
    ema = ModelEma(model, decay=0.9, warmup_iters=5)
    expected = model[0].weight.detach().clone()
    for n in range(1, 60):
        with torch.no_grad():
            model[0].weight += torch.randn(2, 3)
            model[1].running_mean += 1
        ema.update()
        decay = min(0.9, (1 + n) / (5 + n))
        expected = decay * expected + (1 - decay) * model[0].weight.detach()
    state = ema.state_dict()["state_dict"]
    torch.testing.assert_close(state["0.weight"], expected)
    assert state["1.running_mean"].tolist() == [59, 59]
    assert state.keys() == model.state_dict().keys()


def test_applied_gives_back_the_very_same_weights():
    model = small_model()
    ema = ModelEma(model, decay=0.5, warmup_iters=0)
    with torch.no_grad():
        model[0].weight.mul_(3)
    before = model[0].weight.detach().clone()
    with ema.applied():
        assert torch.equal(model[0].weight * 3, before)
    assert torch.equal(model[0].weight, before)


def test_state_round_trip():
    model = small_model()
    ema = ModelEma(model, decay=0.9, warmup_iters=3)
    with torch.no_grad():
        model[0].weight.mul_(2)
    ema.update()
    other = ModelEma(small_model(), decay=0.9, warmup_iters=3)
    other.load_state_dict(ema.state_dict())
    assert other.updates == 1
    assert torch.equal(other.state_dict()["state_dict"]["0.weight"], ema._shadow[0])


def test_bad_decay():
    with pytest.raises(ValueError, match="decay"):
        ModelEma(small_model(), decay=1.0, warmup_iters=0)
