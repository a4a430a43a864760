"""What a cfg file describes, layer by layer, with every shape, before any memory is taken.

Semantics are AlexeyAB/darknet's, which holds pjreddie/darknet's: defaults, paddings and sizes as
its parser and layers have them.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from d2proj.darknet.cfg import Section, parse_cfg, read_cfg
from d2proj.layers.activation import ACTIVATIONS

Shape = tuple[int, int, int]  # channels, height, width

_MOST_CHANNELS = 1 << 20
_MOST_SIDE = 1 << 15
_MOST_VALUES = 1 << 31
#: Options that change what a convolution computes, and that no published detector uses.
_REFUSED = (
    "antialiasing",
    "assisted_excitation",
    "coordconv",
    "dot",
    "flipped",
    "reverse",
    "rotate",
    "stretch",
    "stretch_sway",
    "sway",
    "xnor",
    "binary",
    "bin_output",
)
# How darknet writes "no share_index"; 0 is the first layer.
_NOT_SHARED = -1_000_000_000
#: Sections of predictions, in darknet's spelling.
HEADS = ("yolo", "Gaussian_yolo", "region", "detection")


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer.

    Attributes:
        section: what the file says.
        kind: its canonical name (``conv`` is ``convolutional``, ...).
        sources: numbers of the layers that it reads, -1 for the image.
        inputs: shape of each.
        output: its own shape.
        floats: values that it has in a weights file.
    """

    section: Section
    kind: str
    sources: tuple[int, ...]
    inputs: tuple[Shape, ...]
    output: Shape
    floats: int = 0

    @property
    def index(self) -> int:
        """Its number, from 0."""
        return self.section.index


@dataclasses.dataclass(frozen=True)
class Plan:
    """A whole network.

    Attributes:
        net: the ``[net]`` section.
        input: shape of the image.
        layers: in order.
    """

    net: Section
    input: Shape
    layers: tuple[Layer, ...]

    @property
    def floats(self) -> int:
        """Values in a complete weights file, after its header."""
        return sum(layer.floats for layer in self.layers)

    @property
    def heads(self) -> tuple[Layer, ...]:
        """The layers that predict boxes."""
        return tuple(layer for layer in self.layers if layer.kind in HEADS)

    @property
    def num_classes(self) -> int:
        """Classes of the boxes that it predicts.

        Raises:
            InputError: it predicts none.
        """
        if not self.heads:
            self.net.fail(
                "the network predicts no boxes (it has no [yolo], [Gaussian_yolo], [region] or "
                "[detection])"
            )
        return classes_of(self.heads[0])


def classes_of(layer: Layer) -> int:
    """Classes of a layer that predicts boxes."""
    default = 1 if layer.kind == "detection" else 20
    return layer.section.integer("classes", default, low=1, high=_MOST_CHANNELS)


def plan_network(
    cfg: str | Path | Sequence[Section], *, height: int | None = None, width: int | None = None
) -> Plan:
    """Work out every layer of a network.

    Args:
        cfg: a cfg file's path, its text (told by a line break) or its sections.
        height: of the image, instead of the file's.
        width: likewise.

    Raises:
        InputError: the file is malformed or asks for what does not exist; section and line are
            named.
    """
    if isinstance(cfg, str) and "\n" in cfg:
        sections = parse_cfg(cfg)
    else:
        sections = read_cfg(cfg) if isinstance(cfg, str | Path) else list(cfg)
    net = sections[0]
    image = (
        net.integer("channels", 3, low=1, high=_MOST_CHANNELS),
        height or net.integer("height", 0, low=1, high=_MOST_SIDE),
        width or net.integer("width", 0, low=1, high=_MOST_SIDE),
    )
    if not image[1] or not image[2]:
        net.fail("height and width must be given")
    layers: list[Layer] = []
    for section in sections[1:]:
        name = _ALIASES.get(section.name, section.name)
        if name not in _PLANNERS:
            section.fail(f"this section is not supported; known are {', '.join(sorted(_PLANNERS))}")
        layer = _PLANNERS[name](section, _Context(image, layers))
        if math.prod(layer.output) > _MOST_VALUES or layer.floats > _MOST_VALUES:
            section.fail(f"the layer is too large: output {layer.output}, {layer.floats} weights")
        layers.append(layer)
    plan = Plan(net, image, tuple(layers))
    if plan.floats > _MOST_VALUES:
        net.fail(f"the network is too large: {plan.floats} weights")
    return plan


@dataclasses.dataclass(frozen=True)
class _Context:
    image: Shape
    layers: list[Layer]

    def shape(self, index: int) -> Shape:
        return self.image if index < 0 else self.layers[index].output

    def previous(self) -> int:
        return len(self.layers) - 1

    def resolve(self, section: Section, key: str) -> tuple[int, ...]:
        """Layers that an option names: from 0 on, or counted back from this one if negative."""
        here = len(self.layers)
        wanted = section.integers(key)
        if not wanted:
            section.fail(f"{key} must name at least one layer")
        found = []
        for value in wanted:
            index = value if value >= 0 else here + value
            if not 0 <= index < here:
                section.fail(
                    f"{key} must name layers before this one (0 to {here - 1}), got {value}", key
                )
            found.append(index)
        return tuple(found)


def _layer(
    section: Section,
    context: _Context,
    kind: str,
    output: Shape,
    *,
    sources: tuple[int, ...] | None = None,
    floats: int = 0,
) -> Layer:
    if min(output) < 1:
        section.fail(
            f"the input {context.shape(context.previous())} (channels, height, width) is too small"
        )
    sources = (context.previous(),) if sources is None else sources
    return Layer(section, kind, sources, tuple(map(context.shape, sources)), output, floats)


def activation_of(section: Section, default: str) -> str:
    """The section's activation."""
    name = section.text("activation", default)
    if name not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        section.fail(f"activation must be one of {known}, got {name}", "activation")
    return name


@dataclasses.dataclass(frozen=True)
class ConvOptions:
    """Options of a ``[convolutional]`` section; ``padding`` is what is added at each side."""

    filters: int
    size: int
    stride: tuple[int, int]  # y, x
    padding: int
    dilation: int
    groups: int
    batch_normalize: bool
    activation: str

    @classmethod
    def of(cls, section: Section) -> "ConvOptions":
        """Read them."""
        for key in _REFUSED:
            if key in section.options and section.number(key, 0.0):
                section.fail(f"{key} is not supported", key)
        if section.integer("share_index", _NOT_SHARED, low=_NOT_SHARED, high=1 << 20) > _NOT_SHARED:
            section.fail("share_index is not supported", "share_index")
        size = section.integer("size", 1, low=1, high=255)
        stride = section.integer("stride", 1, low=1, high=255)
        # As darknet: one of the two alone is taken, the other is then `stride`.
        stride_x = section.integer("stride_x", stride, low=-1, high=255)
        stride_y = section.integer("stride_y", stride, low=-1, high=255)
        dilation = 1 if size == 1 else section.integer("dilation", 1, low=1, high=255)
        padding = section.integer("padding", 0, low=0, high=255)
        return cls(
            filters=section.integer("filters", 1, low=1, high=_MOST_CHANNELS),
            size=size,
            stride=(stride_y if stride_y > 0 else stride, stride_x if stride_x > 0 else stride),
            padding=(size // 2 if section.flag("pad") else padding) * dilation,
            dilation=dilation,
            groups=section.integer("groups", 1, low=1, high=_MOST_CHANNELS),
            batch_normalize=section.flag("batch_normalize") or section.flag("cbn"),
            activation=activation_of(section, "logistic"),
        )

    def out(self, side: int, stride: int) -> int:
        """Cells along a side of the output."""
        return (side + 2 * self.padding - self.dilation * (self.size - 1) - 1) // stride + 1


def _convolutional(section: Section, context: _Context) -> Layer:
    options = ConvOptions.of(section)
    channels, height, width = context.shape(context.previous())
    for name, count in (("input channels", channels), ("filters", options.filters)):
        if count % options.groups:
            section.fail(f"groups={options.groups} does not divide the {count} {name}", "groups")
    weights = options.filters * (channels // options.groups) * options.size**2
    return _layer(
        section,
        context,
        "convolutional",
        (
            options.filters,
            options.out(height, options.stride[0]),
            options.out(width, options.stride[1]),
        ),
        floats=weights + options.filters * (4 if options.batch_normalize else 1),
    )


def _local(section: Section, context: _Context) -> Layer:
    channels, height, width = context.shape(context.previous())
    filters = section.integer("filters", 1, low=1, high=_MOST_CHANNELS)
    size = section.integer("size", 1, low=1, high=255)
    stride = section.integer("stride", 1, low=1, high=255)
    pad = section.integer("pad", 0, low=0, high=1)
    if pad and size != 3:
        section.fail("pad=1 is defined for size=3 alone", "pad")
    activation_of(section, "logistic")
    # darknet's own rounding (local_layer.c): the window's size counts only without padding.
    out = [(side - (1 if pad else size)) // stride + 1 for side in (height, width)]
    outputs = filters * out[0] * out[1]
    return _layer(
        section,
        context,
        "local",
        (filters, out[0], out[1]),
        floats=outputs + channels * filters * size**2 * out[0] * out[1],
    )


def _connected(section: Section, context: _Context) -> Layer:
    inputs = math.prod(context.shape(context.previous()))
    outputs = section.integer("output", 1, low=1, high=_MOST_CHANNELS)
    activation_of(section, "logistic")
    floats = outputs * inputs + outputs * (4 if section.flag("batch_normalize") else 1)
    return _layer(section, context, "connected", (outputs, 1, 1), floats=floats)


@dataclasses.dataclass(frozen=True)
class PoolOptions:
    """Options of ``[maxpool]`` and ``[local_avgpool]``; ``padding`` is both sides' together."""

    size: int
    stride: tuple[int, int]
    padding: int

    @classmethod
    def of(cls, section: Section) -> "PoolOptions":
        """Read them."""
        for key in ("maxpool_depth", "antialiasing", "maxpool_zero_nonmax"):
            if section.flag(key):
                section.fail(f"{key} is not supported", key)
        stride = section.integer("stride", 1, low=1, high=255)
        size = section.integer("size", stride, low=1, high=255)
        return cls(
            size=size,
            stride=(
                section.integer("stride_y", stride, low=1, high=255),
                section.integer("stride_x", stride, low=1, high=255),
            ),
            padding=section.integer("padding", size - 1, low=0, high=size - 1),
        )


def _pool(section: Section, context: _Context) -> Layer:
    options = PoolOptions.of(section)
    channels, height, width = context.shape(context.previous())
    out = [
        (side + options.padding - options.size) // stride + 1
        for side, stride in zip((height, width), options.stride, strict=True)
    ]
    kind = _ALIASES.get(section.name, section.name)
    return _layer(section, context, kind, (channels, out[0], out[1]))


def _avgpool(section: Section, context: _Context) -> Layer:
    return _layer(section, context, "avgpool", (context.shape(context.previous())[0], 1, 1))


def _same(section: Section, context: _Context) -> Layer:
    kind = _ALIASES.get(section.name, section.name)
    return _layer(section, context, kind, context.shape(context.previous()))


def _softmax(section: Section, context: _Context) -> Layer:
    if section.number("spatial", 0.0):
        section.fail("spatial is not supported", "spatial")
    groups = section.integer("groups", 1, low=1, high=_MOST_CHANNELS)
    inputs = math.prod(context.shape(context.previous()))
    if inputs % groups:
        section.fail(f"groups={groups} does not divide the {inputs} inputs", "groups")
    return _same(section, context)


def _route(section: Section, context: _Context) -> Layer:
    sources = context.resolve(section, "layers")
    shapes = [context.shape(i) for i in sources]
    if any(shape[1:] != shapes[0][1:] for shape in shapes):
        section.fail(f"the layers to concatenate differ in height or width: {shapes}", "layers")
    groups = section.integer("groups", 1, low=1, high=_MOST_CHANNELS)
    group_id = section.integer("group_id", 0, low=0, high=_MOST_CHANNELS)
    if group_id >= groups:
        section.fail(f"group_id must be from 0 to {groups - 1}, got {group_id}", "group_id")
    if any(shape[0] % groups for shape in shapes):
        section.fail(f"groups={groups} does not divide the channels of {shapes}", "groups")
    channels = sum(shape[0] // groups for shape in shapes)
    return _layer(section, context, "route", (channels, *shapes[0][1:]), sources=sources)


def _shortcut(section: Section, context: _Context) -> Layer:
    sources = (context.previous(), *context.resolve(section, "from"))
    own = context.shape(sources[0])
    activation_of(section, "linear")
    for index in sources[1:]:
        if context.shape(index)[1:] != own[1:]:
            section.fail(
                f"layer {index} has the shape {context.shape(index)}, which cannot be added to "
                f"{own}",
                "from",
            )
    kind = section.text("weights_type", "none")
    per = {"none": 0, "per_feature": 1, "per_layer": 1, "per_channel": own[0]}
    if kind not in per:
        section.fail(f"weights_type must be one of {', '.join(per)}, got {kind}", "weights_type")
    rule = section.text("weights_normalization", "none")
    if rule not in ("none", "relu", "avg_relu", "softmax"):
        section.fail(
            f"weights_normalization must be none, relu or softmax, got {rule}",
            "weights_normalization",
        )
    floats = per[kind] * len(sources)
    return _layer(section, context, "shortcut", own, sources=sources, floats=floats)


def _scale_channels(section: Section, context: _Context) -> Layer:
    sources = (context.previous(), *context.resolve(section, "from"))
    if len(sources) != 2:
        section.fail("from must name one layer", "from")
    gate, scaled = (context.shape(i) for i in sources)
    expected = (1, *scaled[1:]) if section.flag("scale_wh") else (scaled[0], 1, 1)
    activation_of(section, "linear")
    if gate != expected:
        section.fail(f"the scale must have the shape {expected}, got {gate}", "from")
    return _layer(section, context, "scale_channels", scaled, sources=sources)


def _sam(section: Section, context: _Context) -> Layer:
    sources = (context.previous(), *context.resolve(section, "from"))
    if len(sources) != 2:
        section.fail("from must name one layer", "from")
    gate, gated = (context.shape(i) for i in sources)
    activation_of(section, "linear")
    if gate != gated:
        section.fail(f"layer {sources[1]} has the shape {gated}, expected {gate}", "from")
    return _layer(section, context, "sam", gate, sources=sources)


def _upsample(section: Section, context: _Context) -> Layer:
    channels, height, width = context.shape(context.previous())
    stride = section.integer("stride", 2, low=1, high=255)
    return _layer(section, context, "upsample", (channels, height * stride, width * stride))


def _reorg(section: Section, context: _Context) -> Layer:
    channels, height, width = context.shape(context.previous())
    stride = section.integer("stride", 1, low=1, high=255)
    if section.flag("reverse"):
        section.fail("reverse is not supported", "reverse")
    if height % stride or width % stride:
        section.fail(f"stride={stride} does not divide the map's {height} x {width}", "stride")
    if section.name == "reorg" and channels % stride**2:
        section.fail(f"stride={stride}: its square does not divide {channels} channels", "stride")
    shape = (channels * stride**2, height // stride, width // stride)
    return _layer(section, context, section.name, shape)


def _yolo(section: Section, context: _Context) -> Layer:
    channels, height, width = context.shape(context.previous())
    classes = section.integer("classes", 20, low=1, high=_MOST_CHANNELS)
    total = section.integer("num", 1, low=1, high=4096)
    mask = section.integers("mask") or list(range(total))
    anchors = section.numbers("anchors")
    if len(anchors) < 2 * total or min(anchors, default=0) <= 0:
        section.fail(f"anchors must be {2 * total} positive numbers, got {len(anchors)}", "anchors")
    if min(mask) < 0 or max(mask) >= total:
        section.fail(f"mask must name anchors from 0 to {total - 1}, got {mask}", "mask")
    values = classes + (9 if section.name == "Gaussian_yolo" else 5)
    if channels != len(mask) * values:
        section.fail(
            f"{len(mask)} anchors of {values} values need {len(mask) * values} channels before "
            f"it (filters=), got {channels}"
        )
    return _layer(section, context, section.name, (channels, height, width))


def _region(section: Section, context: _Context) -> Layer:
    channels, height, width = context.shape(context.previous())
    coords = section.integer("coords", 4, low=4, high=4)
    classes = section.integer("classes", 20, low=1, high=_MOST_CHANNELS)
    total = section.integer("num", 1, low=1, high=4096)
    anchors = section.numbers("anchors")
    if len(anchors) < 2 * total or min(anchors, default=0) <= 0:
        section.fail(f"anchors must be {2 * total} positive numbers, got {len(anchors)}", "anchors")
    if channels != total * (classes + coords + 1):
        section.fail(
            f"{total} anchors of {classes + coords + 1} values need "
            f"{total * (classes + coords + 1)} channels before it (filters=), got {channels}"
        )
    return _layer(section, context, "region", (channels, height, width))


def _detection(section: Section, context: _Context) -> Layer:
    inputs = math.prod(context.shape(context.previous()))
    side = section.integer("side", 7, low=1, high=1024)
    classes = section.integer("classes", 1, low=1, high=_MOST_CHANNELS)
    boxes = section.integer("num", 1, low=1, high=4096)
    section.integer("coords", 1, low=4, high=4)
    wanted = side * side * (classes + boxes * 5)
    if inputs != wanted:
        section.fail(
            f"{side} x {side} cells with {classes} classes and {boxes} boxes need {wanted} inputs "
            f"(output=), got {inputs}"
        )
    return _layer(section, context, "detection", context.shape(context.previous()))


_ALIASES = {
    "conv": "convolutional",
    "conn": "connected",
    "max": "maxpool",
    "local_avg": "local_avgpool",
    "avg": "avgpool",
    "soft": "softmax",
    "silence": "empty",
}
_PLANNERS: dict[str, Callable[[Section, _Context], Layer]] = {
    "convolutional": _convolutional,
    "local": _local,
    "connected": _connected,
    "maxpool": _pool,
    "local_avgpool": _pool,
    "avgpool": _avgpool,
    "activation": _same,
    "dropout": _same,
    "cost": _same,
    "empty": _same,
    "softmax": _softmax,
    "route": _route,
    "shortcut": _shortcut,
    "scale_channels": _scale_channels,
    "sam": _sam,
    "upsample": _upsample,
    "reorg": _reorg,
    "reorg3d": _reorg,
    "yolo": _yolo,
    "Gaussian_yolo": _yolo,
    "region": _region,
    "detection": _detection,
}
