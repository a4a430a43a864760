"""The network of a cfg file as a torch module."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2proj.darknet.plan import ConvOptions, Layer, Plan, PoolOptions, activation_of, plan_network
from d2proj.darknet.trees import section_tree
from d2proj.layers import (
    CmBN,
    Conv2d,
    DropBlock,
    LocallyConnected2d,
    Reorg,
    SpaceToDepth,
    WeightedSum,
    get_activation,
)
from d2proj.layers.weighted_sum import add_maps

#: What AlexeyAB/darknet adds to a variance; OpenCV's importer takes 1e-6.
BN_EPS = 1e-5


class DarknetNetwork(nn.Module):
    """Every layer of a cfg file, in its order; ``layers.<i>`` has the parameters of layer ``i``.

    Convolutions are ``layers.<i>.weight``, ``.bias``, ``.norm.*``. The image's height and width may
    differ from the file's in calls, as long as every layer's sizes still fit.

    Args:
        plan: from :func:`d2proj.darknet.plan_network`, or what that takes.
        bn_eps: added to the variance in batch normalisation.
    """

    def __init__(self, plan: Plan | str | Path, *, bn_eps: float = BN_EPS) -> None:
        super().__init__()
        self.plan = plan if isinstance(plan, Plan) else plan_network(plan)
        layers = self.plan.layers
        self.layers = nn.ModuleList(_MAKERS[layer.kind](layer, bn_eps) for layer in layers)
        self._heads = {layer.index for layer in self.plan.heads}
        subdivisions = self.plan.net.integer("subdivisions", 1, low=1, high=1 << 20)
        for layer, module in zip(layers, self.layers, strict=True):
            if isinstance(module, Conv2d) and layer.section.flag("cbn"):
                module.norm = CmBN(module.out_channels, subdivisions, eps=bn_eps)
        #: After which layer an output is not read any more.
        self._last_use = {i: layer.index for layer in layers for i in layer.sources}

    def forward(self, x: Tensor) -> list[Tensor]:
        """Run the network.

        Args:
            x: (N, C, H, W).

        Returns:
            Of each layer that predicts boxes the raw map that comes into it, in the file's order;
            of a network without one (a classifier) the last layer's output, (N, values).
        """
        outputs: dict[int, Tensor] = {-1: x}
        heads = []
        for layer, module in zip(self.plan.layers, self.layers, strict=True):
            result = module(*[outputs[i] for i in layer.sources])
            outputs[layer.index] = result
            if layer.index in self._heads:
                heads.append(result)
            for i in layer.sources:
                if self._last_use[i] == layer.index:
                    outputs.pop(i, None)
        return heads or [outputs[len(self.layers) - 1].flatten(1)]


class _Activated(nn.Module):
    """Base of layers that end in an activation."""

    def __init__(self, layer: Layer, default: str) -> None:
        super().__init__()
        self.activation = activation_of(layer.section, default)

    def activate(self, x: Tensor) -> Tensor:
        """The activation, applied."""
        function = get_activation(self.activation)
        return x if function is None else function(x)

    def extra_repr(self) -> str:
        """The activation's name."""
        return f"activation={self.activation}"


def _convolutional(layer: Layer, bn_eps: float) -> nn.Module:
    options = ConvOptions.of(layer.section)
    norm = nn.BatchNorm2d(options.filters, eps=bn_eps) if options.batch_normalize else None
    return Conv2d(
        layer.inputs[0][0],
        options.filters,
        options.size,
        stride=options.stride,
        padding=options.padding,
        dilation=options.dilation,
        groups=options.groups,
        bias=norm is None,
        norm=norm,
        activation=get_activation(options.activation),
    )


def _local(layer: Layer, _bn_eps: float) -> nn.Module:
    section = layer.section
    return LocallyConnected2d(
        layer.inputs[0][0],
        layer.output[0],
        section.integer("size", 1, low=1, high=255),
        output_size=layer.output[1:],
        stride=section.integer("stride", 1, low=1, high=255),
        padding=int(section.flag("pad")),
        activation=activation_of(section, "logistic"),
    )


class Connected(_Activated):
    """``[connected]``: a linear layer over all values of the map."""

    def __init__(self, layer: Layer, bn_eps: float) -> None:
        super().__init__(layer, "logistic")
        channels, height, width = layer.inputs[0]
        normalize = layer.section.flag("batch_normalize")
        self.linear = nn.Linear(channels * height * width, layer.output[0], bias=not normalize)
        self.norm = nn.BatchNorm1d(layer.output[0], eps=bn_eps) if normalize else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, outputs, 1, 1)."""
        x = self.linear(x.flatten(1))
        x = x if self.norm is None else self.norm(x)
        return self.activate(x)[:, :, None, None]


class Pool(nn.Module):
    """``[maxpool]`` and ``[local_avgpool]``, half of the padding (rounded down) before the map.

    A cell outside the map counts neither in the maximum nor in the mean.
    """

    def __init__(self, layer: Layer, _bn_eps: float) -> None:
        super().__init__()
        self.options = PoolOptions.of(layer.section)
        self.mean = layer.kind == "local_avgpool"

    def _pad(self, x: Tensor, value: float) -> Tensor:
        before = self.options.padding // 2
        after = self.options.padding - before
        return F.pad(x, (before, after, before, after), value=value)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H', W')."""
        size, stride = self.options.size, self.options.stride
        if self.mean:
            total = F.avg_pool2d(self._pad(x, 0.0), size, stride)
            ones = torch.ones_like(x[:1, :1])
            return total / F.avg_pool2d(self._pad(ones, 0.0), size, stride)
        if self.options.padding % 2 == 0:
            return F.max_pool2d(x, size, stride, self.options.padding // 2)
        return F.max_pool2d(self._pad(x, -torch.inf), size, stride)


class AveragePool(nn.Module):
    """``[avgpool]``: the mean over the map."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, 1, 1)."""
        return x.mean((2, 3), keepdim=True)


class Activation(_Activated):
    """``[activation]``."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return self.activate(x)


class Softmax(nn.Module):
    """``[softmax]`` over all values, or over ``groups`` equal parts of them; no class tree."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.groups = layer.section.integer("groups", 1, low=1, high=1 << 20)
        self.temperature = layer.section.number("temperature", 1.0)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        parts = x.reshape(len(x), self.groups, -1) / self.temperature
        return parts.softmax(2).reshape(x.shape)


class TreeSoftmax(nn.Module):
    """``[softmax]`` over each group of siblings of a class tree (``tree=``)."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.tree = section_tree(layer.section, math.prod(layer.output))
        self.temperature = layer.section.number("temperature", 1.0)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        values = x.flatten(1) / self.temperature
        return self.tree.log_conditional(values).exp().to(x.dtype).view(x.shape)


def _softmax(layer: Layer, _bn_eps: float) -> nn.Module:
    return TreeSoftmax(layer) if "tree" in layer.section.options else Softmax(layer)


class Route(nn.Module):
    """``[route]``: concatenation of layers, or of one of ``groups`` equal parts of each."""

    def __init__(self, layer: Layer, _bn_eps: float) -> None:
        super().__init__()
        self.groups = layer.section.integer("groups", 1, low=1, high=1 << 20)
        self.group_id = layer.section.integer("group_id", 0, low=0, high=1 << 20)

    def forward(self, *sources: Tensor) -> Tensor:
        """(N, C_i, H, W) -> (N, sum of C_i / groups, H, W)."""
        if self.groups > 1:
            sources = tuple(x.chunk(self.groups, dim=1)[self.group_id] for x in sources)
        return sources[0] if len(sources) == 1 else torch.cat(sources, dim=1)


class Shortcut(_Activated):
    """``[shortcut]``: a sum of layers, weighted (``per_feature``, ``per_channel``) if so asked."""

    def __init__(self, layer: Layer, _bn_eps: float) -> None:
        super().__init__(layer, "linear")
        count = len(layer.sources)
        rule = layer.section.text("weights_normalization", "none").removeprefix("avg_")
        self.weighted_sum = (
            WeightedSum(count, channels=layer.floats // count, normalization=rule)
            if layer.floats
            else None
        )

    def forward(self, *maps: Tensor) -> Tensor:
        """(N, C, H, W), ... -> (N, C, H, W)."""
        return self.activate(
            add_maps(maps) if self.weighted_sum is None else self.weighted_sum(*maps)
        )


class Gate(_Activated):
    """``[scale_channels]`` (squeeze and excitation) and ``[sam]``: the product of two layers."""

    def __init__(self, layer: Layer, _bn_eps: float) -> None:
        super().__init__(layer, "linear")

    def forward(self, gate: Tensor, gated: Tensor) -> Tensor:
        """Shapes that broadcast -> that of ``gated``."""
        return self.activate(gate * gated)


class Upsample(nn.Module):
    """``[upsample]``: each value ``stride`` x ``stride`` times, times ``scale``."""

    def __init__(self, layer: Layer, _bn_eps: float) -> None:
        super().__init__()
        self.stride = layer.section.integer("stride", 2, low=1, high=255)
        self.scale = layer.section.number("scale", 1.0)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, stride * H, stride * W)."""
        x = F.interpolate(x, scale_factor=self.stride, mode="nearest")
        return x if self.scale == 1.0 else x * self.scale


def _reorg(layer: Layer, _bn_eps: float) -> nn.Module:
    stride = layer.section.integer("stride", 1, low=1, high=255)
    return Reorg(stride) if layer.kind == "reorg" else SpaceToDepth(stride)


def _dropout(layer: Layer, _bn_eps: float) -> nn.Module:
    section = layer.section
    probability = section.number("probability", 0.2)
    if not 0 <= probability < 1:
        section.fail(f"probability must be in [0, 1), got {probability:g}", "probability")
    if not section.flag("dropblock"):
        return nn.Dropout(probability)
    side = max(layer.output[1:])
    relative = section.number("dropblock_size_rel", 0.0)
    absolute = section.integer("dropblock_size_abs", 0, low=0, high=1 << 15)
    # dropout_layer_kernels.cu: full strength after 85 % of the training.
    block = min(side, absolute or int(relative * side) or 7)
    return DropBlock(probability, block, ramp=0.85)


class Pass(nn.Module):
    """Layers that change nothing: ``[cost]``, ``[empty]``, and what predicts boxes."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return x


def _without_options(module: type[nn.Module]) -> Callable[[Layer, float], nn.Module]:
    return lambda _layer, _bn_eps: module()


_MAKERS: dict[str, Callable[[Layer, float], nn.Module]] = {
    "convolutional": _convolutional,
    "local": _local,
    "connected": Connected,
    "maxpool": Pool,
    "local_avgpool": Pool,
    "avgpool": _without_options(AveragePool),
    "activation": lambda layer, _bn_eps: Activation(layer, "linear"),
    "dropout": _dropout,
    "cost": _without_options(Pass),
    "empty": _without_options(Pass),
    "softmax": _softmax,
    "route": Route,
    "shortcut": Shortcut,
    "scale_channels": Gate,
    "sam": Gate,
    "upsample": Upsample,
    "reorg": _reorg,
    "reorg3d": _reorg,
    "yolo": _without_options(Pass),
    "Gaussian_yolo": _without_options(Pass),
    "region": _without_options(Pass),
    "detection": _without_options(Pass),
}
