from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from d2proj.darknet.network import Connected, DarknetNetwork
from d2proj.layers import Conv2d, LocallyConnected2d

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(scope="session")
def data() -> Path:
    """The published cfg files, weights and pictures."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not on this machine")
    return SHARED / "darknet"


@pytest.fixture(scope="session")
def coco_val74() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not on this machine")
    return SHARED / "coco_val74"


@torch.no_grad()
def _randomise(network: DarknetNetwork, seed: int = 0) -> None:
    g = torch.Generator().manual_seed(seed)

    def norm(module: nn.Module | None) -> None:
        if module is not None:
            module.weight.uniform_(0.5, 1.5, generator=g)
            module.bias.normal_(0, 0.1, generator=g)
            module.running_mean.normal_(0, 0.1, generator=g)
            module.running_var.uniform_(0.5, 1.5, generator=g)

    for module in network.modules():
        if isinstance(module, Conv2d | Connected | LocallyConnected2d):
            layer = module.linear if isinstance(module, Connected) else module
            fan_in = (
                layer.weight[0].numel() if not isinstance(module, LocallyConnected2d) else 9 * 16
            )
            layer.weight.normal_(0, (0.7 / fan_in) ** 0.5, generator=g)
            if layer.bias is not None:
                layer.bias.normal_(0, 0.1, generator=g)
            norm(getattr(module, "norm", None))


@pytest.fixture
def randomise() -> Callable[..., None]:
    """Weights that keep the values of deep networks of order one."""
    return _randomise


@pytest.fixture
def no_initial_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that fill all weights themselves: drawing 60 M of them first takes seconds."""
    monkeypatch.setattr(nn.Conv2d, "reset_parameters", lambda self: None)
