"""Normalisation layers and their short names in configs."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2proj.layers.filter_response import frn_tlu
from d2proj.layers.norm_cross import CmBN

NormFactory = Callable[[int], nn.Module]


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation whose statistics and affine parameters are constants.

    ``y = (x - running_mean) / sqrt(running_var + eps) * weight + bias`` with four buffers, named as
    in Detectron2, so that its checkpoints load. Convolutions fold it into their weight
    (:class:`d2proj.layers.Conv2d`); called by itself it is one scale and one shift.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` of shape (N, C, H, W)."""
        scale, shift = scale_and_shift(self)
        return x * scale.to(x.dtype).view(1, -1, 1, 1) + shift.to(x.dtype).view(1, -1, 1, 1)

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"num_features={self.num_features}, eps={self.eps}"

    @classmethod
    def from_batch_norm(cls, norm: nn.BatchNorm2d) -> "FrozenBatchNorm2d":
        """The frozen layer that computes what ``norm`` computes in evaluation."""
        frozen = cls(norm.num_features, norm.eps)
        for name, buffer in frozen.named_buffers():
            buffer.copy_(getattr(norm, name).detach())
        return frozen.to(norm.weight.device)


def scale_and_shift(norm: "FrozenBatchNorm2d | nn.BatchNorm2d") -> tuple[Tensor, Tensor]:
    """The ``(scale, shift)``, each of shape (C,), to which ``norm`` amounts in evaluation."""
    weight, bias, mean, var = norm.weight, norm.bias, norm.running_mean, norm.running_var
    if mean is None or var is None:
        raise ValueError("a batch normalisation without running statistics is no constant")
    scale = weight * torch.rsqrt(var + norm.eps)
    return scale, bias - mean * scale


def freeze(module: nn.Module) -> nn.Module:
    """Stop training ``module``: no gradients, and batch normalisation becomes a constant.

    Returns the module that takes the place of ``module`` (another one only if it is itself a batch
    normalisation).
    """
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return _freeze_batch_norm(module)


def _freeze_batch_norm(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.BatchNorm2d):
        return FrozenBatchNorm2d.from_batch_norm(module)
    for name, child in module.named_children():
        setattr(module, name, _freeze_batch_norm(child))
    return module


class PerLevelBatchNorm2d(nn.ModuleList):
    """Batch normalisation with statistics for each pyramid level and one scale and shift for all.

    For a head whose convolutions all levels share: the levels' statistics differ too much for one
    set. State-dict names are those of Detectron2's ``CycleBatchNormList``.
    """

    def __init__(self, num_levels: int, num_features: int) -> None:
        super().__init__(nn.BatchNorm2d(num_features, affine=False) for _ in range(num_levels))
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))

    def forward(self, x: Tensor, level: int) -> Tensor:
        """Normalise the map ``x`` (N, C, H, W) of pyramid level number ``level``."""
        norm = cast(nn.BatchNorm2d, self[level])
        # One value has no variance; a coarse level of a one-image batch may hold just that.
        training = norm.training and x.shape[0] * x.shape[2] * x.shape[3] > 1
        if training and norm.num_batches_tracked is not None:
            norm.num_batches_tracked += 1
        return F.batch_norm(
            x,
            norm.running_mean,
            norm.running_var,
            self.weight,
            self.bias,
            training=training,
            momentum=0.1 if norm.momentum is None else norm.momentum,
            eps=norm.eps,
        )


_NORMS: dict[str, NormFactory] = {
    "BN": nn.BatchNorm2d,
    "CmBN": CmBN,
    "FRN": frn_tlu,
    "FrozenBN": FrozenBatchNorm2d,
    "SyncBN": nn.SyncBatchNorm,
    "GN": lambda channels: nn.GroupNorm(32, channels),
}


def get_norm(norm: str | NormFactory | None, num_channels: int) -> nn.Module | None:
    """Make a normalisation layer.

    Args:
        norm: ``"BN"``, ``"CmBN"`` (4 mini-batches), ``"FRN"`` (with its TLU), ``"FrozenBN"``,
            ``"GN"`` (32 groups), ``"SyncBN"``, ``""`` or None for none, or a callable that takes
            the number of channels.
        num_channels: channels of the map to normalise.

    Raises:
        ValueError: for a name that is not in the list.
    """
    if not norm:
        return None
    if callable(norm):
        return norm(num_channels)
    if norm not in _NORMS:
        raise ValueError(f"norm must be one of {sorted(_NORMS)} or empty, got {norm!r}")
    return _NORMS[norm](num_channels)
