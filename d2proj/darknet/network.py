"""The network of a cfg file as a torch module."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2proj.darknet.plan import ConvOptions, Layer, Plan, PoolOptions, activation_of, plan_network
from d2proj.layers import Conv2d

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
            if layer in self.plan.heads:
                heads.append(result)
            for i in layer.sources:
                if self._last_use[i] == layer.index:
                    outputs.pop(i, None)
        return heads or [outputs[len(self.layers) - 1].flatten(1)]


def _relu6(x: Tensor) -> Tensor:
    return F.relu6(x)


def _hard_mish(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.where(x > -2, x * x / 2 + x, torch.zeros_like(x)))


ACTIVATION_FUNCTIONS: dict[str, Callable[[Tensor], Tensor] | None] = {
    "linear": None,
    "logistic": torch.sigmoid,
    "leaky": lambda x: F.leaky_relu(x, 0.1),
    "relu": F.relu,
    "relu6": _relu6,
    "mish": F.mish,
    "swish": F.silu,
    "hard_mish": _hard_mish,
    "tanh": torch.tanh,
    "elu": F.elu,
    "selu": F.selu,
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "ramp": lambda x: F.relu(x) + 0.1 * x,
    "loggy": lambda x: 2 * torch.sigmoid(x) - 1,
}


class _Activated(nn.Module):
    """Base of layers that end in an activation."""

    def __init__(self, layer: Layer, default: str) -> None:
        super().__init__()
        self.activation = activation_of(layer.section, default)

    def activate(self, x: Tensor) -> Tensor:
        """The activation, applied."""
        function = ACTIVATION_FUNCTIONS[self.activation]
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
        activation=ACTIVATION_FUNCTIONS[options.activation],
    )


class Local(_Activated):
    """``[local]``: a convolution with kernels of its own for every cell.

    ``weight`` is (cells, filters, inputs), ``bias`` (filters, height, width): darknet's order.
    """

    def __init__(self, layer: Layer, _bn_eps: float) -> None:
        super().__init__(layer, "logistic")
        section = layer.section
        self.size = section.integer("size", 1, low=1, high=255)
        self.stride = section.integer("stride", 1, low=1, high=255)
        self.padding = int(section.flag("pad"))
        filters, height, width = layer.output
        inputs = layer.inputs[0][0] * self.size**2
        bound = (2.0 / inputs) ** 0.5
        self.weight = nn.Parameter(torch.empty(height * width, filters, inputs))
        self.bias = nn.Parameter(torch.zeros(filters, height, width))
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, filters, H', W')."""
        columns = F.unfold(x, self.size, padding=self.padding, stride=self.stride)
        result = torch.einsum("lfk,nkl->nfl", self.weight, columns)
        return self.activate(result.reshape(len(x), *self.bias.shape) + self.bias)


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
    """``[softmax]`` over all values, or over ``groups`` equal parts of them."""

    def __init__(self, layer: Layer, _bn_eps: float) -> None:
        super().__init__()
        self.groups = layer.section.integer("groups", 1, low=1, high=1 << 20)
        self.temperature = layer.section.number("temperature", 1.0)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        parts = x.reshape(len(x), self.groups, -1) / self.temperature
        return parts.softmax(2).reshape(x.shape)


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
    """``[shortcut]``: a sum of layers, weighted if the file says so.

    Of a layer with more channels than the first only as many are added; one with fewer adds to the
    first of them. Weights (MiWRC of the YOLOv4 paper; BiFPN's fusion) are one a layer
    (``per_feature``) or one a layer and channel (``per_channel``), after a ReLU over their sum plus
    1e-4, or a softmax.
    """

    def __init__(self, layer: Layer, _bn_eps: float) -> None:
        super().__init__(layer, "linear")
        self.rule = layer.section.text("weights_normalization", "none").removeprefix("avg_")
        count = len(layer.sources)
        channels = layer.floats // count
        self.weight = (
            nn.Parameter(torch.full((count, channels), 1.0 if self.rule == "none" else 1.0 / count))
            if layer.floats
            else None
        )

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        """(N, C, H, W), ... -> (N, C, H, W)."""
        shares = self._shares()
        result = first if shares is None else first * shares[0].view(-1, 1, 1)
        for i, other in enumerate(others, start=1):
            common = min(first.shape[1], other.shape[1])
            added = other[:, :common]
            if shares is not None:
                share = shares[i].view(-1, 1, 1)
                added = added * (share if len(share) == 1 else share[:common])
            if common < first.shape[1]:
                added = F.pad(added, (0, 0, 0, 0, 0, first.shape[1] - common))
            result = result + added
        return self.activate(result)

    def _shares(self) -> Tensor | None:
        if self.weight is None or self.rule == "none":
            return self.weight
        positive = self.weight.relu() if self.rule == "relu" else self._exponentials(self.weight)
        return positive / (positive.sum(0, keepdim=True) + 1e-4)

    @staticmethod
    def _exponentials(weight: Tensor) -> Tensor:
        return (weight - weight.max(0, keepdim=True).values).exp()


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


class Reorg(nn.Module):
    """``[reorg]`` and ``[reorg3d]``: cells of ``stride`` x ``stride`` become channels.

    ``reorg3d`` is space-to-depth with the offset (row, column) before the channel. ``reorg``, which
    YOLOv2 has, first takes the map's memory for one of C / stride² channels and stride times the
    sides, does the same to that, and takes the result's memory for the map that it should be.
    """

    def __init__(self, layer: Layer, _bn_eps: float) -> None:
        super().__init__()
        self.stride = layer.section.integer("stride", 1, low=1, high=255)
        self.original = layer.kind == "reorg"

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C * stride², H / stride, W / stride)."""
        n, c, h, w = x.shape
        s = self.stride
        if self.original:
            x = x.reshape(n, c // s**2, h * s, w * s)
        deep = x.unflatten(3, (-1, s)).unflatten(2, (-1, s))  # N, C, H, sh, W, sw
        deep = deep.permute(0, 3, 5, 1, 2, 4)
        return deep.reshape(n, c * s**2, h // s, w // s)


class Dropout(_Activated):
    """``[dropout]``, or DropBlock (Ghiasi et al. 2018) with ``dropblock=1``."""

    def __init__(self, layer: Layer, _bn_eps: float) -> None:
        nn.Module.__init__(self)
        section = layer.section
        self.activation = "linear"
        self.probability = section.number("probability", 0.2)
        if not 0 <= self.probability < 1:
            section.fail(f"probability must be in [0, 1), got {self.probability:g}", "probability")
        self.block = 0
        if section.flag("dropblock"):
            side = max(layer.output[1:])
            relative = section.number("dropblock_size_rel", 0.0)
            absolute = section.integer("dropblock_size_abs", 0, low=0, high=1 << 15)
            self.block = min(side, absolute or int(relative * side) or 7)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; in training some values are zero and the others larger."""
        if not self.training or self.probability == 0:
            return x
        if not self.block:
            return F.dropout(x, self.probability)
        h, w = x.shape[2:]
        block = min(self.block, h, w)
        seeds = self.probability * h * w / (block**2 * (h - block + 1) * (w - block + 1))
        mask = torch.zeros_like(x)
        inner = mask[:, :, block // 2 : h - (block - 1) // 2, block // 2 : w - (block - 1) // 2]
        inner.bernoulli_(min(seeds, 1.0))
        dropped = F.max_pool2d(F.pad(mask, ((block - 1) // 2, block // 2) * 2), block, stride=1)
        kept = 1 - dropped
        return x * kept * (kept.numel() / kept.sum().clamp(min=1))


class Pass(nn.Module):
    """Layers that change nothing: ``[cost]``, ``[empty]``, and what predicts boxes."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return x


def _without_options(module: type[nn.Module]) -> Callable[[Layer, float], nn.Module]:
    return lambda _layer, _bn_eps: module()


_MAKERS: dict[str, Callable[[Layer, float], nn.Module]] = {
    "convolutional": _convolutional,
    "local": Local,
    "connected": Connected,
    "maxpool": Pool,
    "local_avgpool": Pool,
    "avgpool": _without_options(AveragePool),
    "activation": lambda layer, _bn_eps: Activation(layer, "linear"),
    "dropout": Dropout,
    "cost": _without_options(Pass),
    "empty": _without_options(Pass),
    "softmax": Softmax,
    "route": Route,
    "shortcut": Shortcut,
    "scale_channels": Gate,
    "sam": Gate,
    "upsample": Upsample,
    "reorg": Reorg,
    "reorg3d": Reorg,
    "yolo": _without_options(Pass),
    "Gaussian_yolo": _without_options(Pass),
    "region": _without_options(Pass),
    "detection": _without_options(Pass),
}
