"""Groups of parameters with their own learning rates and weight decays."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

__all__ = ["get_default_optimizer_params", "reduce_param_groups"]

_NORMS = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm)

Group = dict[str, Any]


def get_default_optimizer_params(
    model: nn.Module,
    base_lr: float | None = None,
    weight_decay: float | None = None,
    weight_decay_norm: float | None = None,
    bias_lr_factor: float | None = 1.0,
    weight_decay_bias: float | None = None,
    lr_factor_func: Callable[[str], float] | None = None,
    overrides: Mapping[str, Mapping[str, float]] | None = None,
) -> list[Group]:
    """The trainable parameters of a model, in groups of equal settings, for a torch optimizer.

    Args:
        model: every parameter is taken once, shared or not.
        base_lr: learning rate; None: the optimizer's.
        weight_decay: weight decay; None: the optimizer's.
        weight_decay_norm: weight decay in normalisation layers; None: as elsewhere.
        bias_lr_factor: factor on the learning rate of biases; needs ``base_lr``.
        weight_decay_bias: weight decay of biases; None: as elsewhere.
        lr_factor_func: factor on the learning rate by a parameter's full name; needs ``base_lr``.
        overrides: settings by a parameter's own name (the last part, ``"bias"`` for example),
            which come before everything else.

    Raises:
        ValueError: ``base_lr`` is missing, or biases are also in ``overrides``.
    """
    for name, given in (
        ("bias_lr_factor", bias_lr_factor not in (None, 1.0)),
        ("lr_factor_func", lr_factor_func is not None),
    ):
        if given and base_lr is None:
            raise ValueError(f"{name} needs base_lr")
    by_name = dict(overrides or {})
    for_bias: dict[str, float] = {}
    if base_lr is not None and bias_lr_factor not in (None, 1.0):
        for_bias["lr"] = base_lr * bias_lr_factor
    if weight_decay_bias is not None:
        for_bias["weight_decay"] = weight_decay_bias
    if for_bias:
        if "bias" in by_name:
            raise ValueError("the settings of 'bias' are given twice, once in overrides")
        by_name["bias"] = for_bias

    groups = []
    for module, full_name, parameter in _trainable(model):
        group: Group = {}
        if base_lr is not None:
            group["lr"] = base_lr * lr_factor_func(full_name) if lr_factor_func else base_lr
        decay = weight_decay
        if isinstance(module, _NORMS) and weight_decay_norm is not None:
            decay = weight_decay_norm
        if decay is not None:
            group["weight_decay"] = decay
        group.update(by_name.get(full_name.rpartition(".")[2], {}))
        groups.append({"params": [parameter], **group})
    return reduce_param_groups(groups)


def _trainable(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    seen: set[nn.Parameter] = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                yield module, f"{prefix}.{name}" if prefix else name, parameter


def _expand_param_groups(params: Sequence[Mapping[str, Any]]) -> list[Group]:
    """One group per parameter; of a parameter's several groups the later settings count."""
    expanded: dict[Any, Group] = {}
    for group in params:
        settings = {key: value for key, value in group.items() if key != "params"}
        for parameter in group["params"]:
            expanded.setdefault(parameter, {"params": [parameter]}).update(settings)
    return list(expanded.values())


def reduce_param_groups(params: Sequence[Mapping[str, Any]]) -> list[Group]:
    """As few groups as there are different settings, in the order of their first parameters.

    Multi-tensor optimizers run over one group at a time, so few large groups are fast.

    Args:
        params: groups with ``"params"`` and settings, as torch optimizers take them.
    """
    reduced: dict[Any, Group] = {}
    for group in _expand_param_groups(params):
        parameters = group.pop("params")
        same = reduced.setdefault(frozenset(group.items()), {**group, "params": []})
        same["params"].extend(parameters)
    return list(reduced.values())
