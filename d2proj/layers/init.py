"""Initial values of convolutions and fully connected layers; biases start at 0."""

from torch import nn

Layer = nn.Conv2d | nn.Linear


def init_msra(layer: Layer) -> None:
    """Normal, variance 2 / fan-out (He et al. 2015): for what a ReLU follows."""
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    _zero_bias(layer)


def init_xavier(layer: Layer) -> None:
    """Uniform, variance 1 / fan-in (Caffe2's "Xavier"): for what nothing non-linear follows."""
    nn.init.kaiming_uniform_(layer.weight, a=1)
    _zero_bias(layer)


def init_normal(layer: Layer, std: float) -> None:
    """Normal of the given standard deviation: for predictors and the layers before them."""
    nn.init.normal_(layer.weight, std=std)
    _zero_bias(layer)


def _zero_bias(layer: Layer) -> None:
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
