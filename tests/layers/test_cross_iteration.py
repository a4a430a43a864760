"""CBN against a numpy transcription of the paper's equations."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from d2proj.layers import CBNConv2d


def patches(x: np.ndarray, size: int) -> np.ndarray:
    """(N, C, H, W) -> (N, H', W', C, size, size)."""
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(2, 3))
    return windows.transpose(0, 2, 3, 1, 4, 5)


def statistics(x: np.ndarray, w: np.ndarray) -> dict:
    """E[x], E[x²] of each filter's output, and their gradients by hand: the output is linear."""
    p = patches(x, w.shape[2])
    y = np.einsum("nhwcij,ocij->nohw", p, w)
    n = y[:, 0].size
    return {
        "y": y,
        "w": w.copy(),
        "mean": y.mean((0, 2, 3)),
        "square": (y**2).mean((0, 2, 3)),
        "d_mean": np.broadcast_to(p.mean((0, 1, 2)), w.shape),
        "d_square": 2 * np.einsum("nohw,nhwcij->ocij", y, p) / n,
    }


def normalise(history: list[dict], window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    now = history[-1]
    means, squares, negative = [], [], False
    for past in history[-window:]:
        step = now["w"] - past["w"]
        mean = past["mean"] + (past["d_mean"] * step).sum((1, 2, 3))
        square = past["square"] + (past["d_square"] * step).sum((1, 2, 3))
        means.append(mean)
        negative |= bool((square < mean**2).any())
        squares.append(np.maximum(square, mean**2))
    mean = np.mean(means, 0)
    var = np.mean(squares, 0) - mean**2
    y = (now["y"] - mean[:, None, None]) / np.sqrt(var[:, None, None] + 1e-5)
    return y, mean, var, negative


def test_cbn_is_the_papers() -> None:
    torch.manual_seed(0)
    conv = CBNConv2d(3, 4, 3, window=3).double()
    running = [np.zeros(4), np.ones(4)]
    history: list[dict] = []
    far_from_ordinary, some_negative = 0.0, False
    for step in range(6):
        x = torch.randn(2, 3, 6, 7).double() * (1 + step) + step
        found = conv(x)
        history.append(statistics(x.numpy(), conv.weight.detach().numpy()))
        expected, mean, var, negative = normalise(history, window=3)
        some_negative |= negative
        torch.testing.assert_close(found.detach(), torch.from_numpy(expected))
        ordinary = nn.functional.batch_norm(
            torch.from_numpy(history[-1]["y"]), None, None, training=True
        )
        far_from_ordinary = max(far_from_ordinary, float((found.detach() - ordinary).abs().max()))
        running = [0.9 * r + 0.1 * v for r, v in zip(running, (mean, var), strict=True)]
        with torch.no_grad():
            conv.weight.add_(torch.randn_like(conv.weight), alpha=0.2)
    assert far_from_ordinary > 0.1
    assert some_negative  # the maximum is in use
    for ours, expected in zip(
        (conv.norm.running_mean, conv.norm.running_var), running, strict=True
    ):
        torch.testing.assert_close(ours, torch.from_numpy(expected))


def test_gradients_with_the_past_as_a_constant() -> None:
    torch.manual_seed(0)
    conv = CBNConv2d(2, 3, 3, window=3).double()
    for _ in range(2):
        conv(torch.randn(2, 2, 5, 5).double())
        conv.weight.data.add_(0.01)
    x = torch.randn(2, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: copy.deepcopy(conv)(t), x)


def test_moving_predicts_statistics_of_the_present_weights() -> None:
    """The point of the paper: E[x] is linear in the weights, so that it is moved exactly."""
    torch.manual_seed(0)
    conv = CBNConv2d(2, 3, 3, window=2)
    x = torch.randn(4, 2, 8, 8) + 1
    conv(x)
    conv.weight.data.add_(torch.randn_like(conv.weight) * 0.3)
    expected = conv._conv_forward(x, conv.weight, None).mean((0, 2, 3))
    torch.testing.assert_close(conv._moved()[0], expected, atol=1e-5, rtol=1e-5)


def test_a_resumed_training_continues_as_it_was() -> None:
    torch.manual_seed(0)
    conv, other = (CBNConv2d(2, 3, 3, window=4) for _ in range(2))
    inputs = torch.randn(8, 2, 2, 8, 8)
    for x in inputs[:5]:
        conv(x)
        conv.weight.data.mul_(1.01)
    other.load_state_dict(conv.state_dict())
    for x in inputs[5:]:
        assert torch.equal(conv(x), other(x))


def test_burn_in_and_evaluation_are_ordinary_batch_norm() -> None:
    torch.manual_seed(0)
    conv = CBNConv2d(2, 3, 3, window=4, burn_in=0.5)
    norm = nn.BatchNorm2d(3)
    conv.set_progress(0.4)
    for _ in range(3):
        x = torch.randn(2, 2, 8, 8)
        y = conv._conv_forward(x, conv.weight, None)
        torch.testing.assert_close(conv(x), norm(y), atol=1e-5, rtol=1e-5)
    assert not conv.past_valid.any()
    conv.eval()
    norm.eval()
    with torch.no_grad():
        torch.testing.assert_close(conv(x), norm(y), atol=1e-5, rtol=1e-5)
    conv.train().set_progress(0.5)
    conv(x)
    assert conv.past_valid.sum() == 1


def test_errors() -> None:
    with pytest.raises(ValueError, match="window must be at least 2"):
        CBNConv2d(2, 3, 3, window=1)
