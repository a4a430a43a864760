"""Activations and their names in configs and darknet's cfg files."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Activation = Callable[[Tensor], Tensor]


def leaky(x: Tensor) -> Tensor:
    """Leaky ReLU with darknet's slope, 0.1."""
    return F.leaky_relu(x, 0.1)


def hard_mish(x: Tensor) -> Tensor:
    """x above 0, x² / 2 + x above -2, 0 below (AlexeyAB/darknet)."""
    return torch.where(x > 0, x, torch.where(x > -2, x * x / 2 + x, torch.zeros_like(x)))


def ramp(x: Tensor) -> Tensor:
    """ReLU plus a tenth of x (darknet)."""
    return F.relu(x) + 0.1 * x


def loggy(x: Tensor) -> Tensor:
    """The logistic function from -1 to 1 (darknet)."""
    return 2 * torch.sigmoid(x) - 1


def _gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _relu6(x: Tensor) -> Tensor:
    return F.relu6(x)


#: darknet's names; ``mish`` is x tanh(softplus(x)) (Misra 2019), ``swish`` x sigmoid(x).
ACTIVATIONS: dict[str, Activation | None] = {
    "linear": None,
    "logistic": torch.sigmoid,
    "leaky": leaky,
    "relu": F.relu,
    "relu6": _relu6,
    "mish": F.mish,
    "swish": F.silu,
    "hard_mish": hard_mish,
    "tanh": torch.tanh,
    "elu": F.elu,
    "selu": F.selu,
    "gelu": _gelu,
    "ramp": ramp,
    "loggy": loggy,
}


def get_activation(name: str | Activation | None) -> Activation | None:
    """The activation of a name; None for ``"linear"``, an empty name or None.

    Raises:
        ValueError: for a name that is not in :data:`ACTIVATIONS`.
    """
    if not name:
        return None
    if callable(name):
        return name
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name]
