"""Reads and writes darknet's ``.weights`` files.

A file is a header (int32 major, minor, revision; the number of images seen, int64 if major * 10 +
minor >= 2, else int32), then the float32 values of each layer that has any: of a convolution bias,
[scale, mean, variance], weight; of a connected layer bias, weight, [scale, mean, variance]; of a
local layer bias, weight; of a weighted shortcut its weights. Little-endian. Files such as
``darknet53.conv.74`` or ``MobileNetV2-Nano.57`` hold the first layers alone.
"""

import dataclasses
import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from d2proj.checkpoint.atomic import Writable, write_atomically
from d2proj.checkpoint.report import LoadReport
from d2proj.darknet.network import Connected, DarknetNetwork, Shortcut
from d2proj.errors import InputError
from d2proj.layers import Conv2d, LocallyConnected2d, WeightedSum

_PARTIAL = re.compile(r"\.(?:conv\.)?(\d+)$")


@dataclasses.dataclass(frozen=True)
class Header:
    """What a weights file begins with.

    Attributes:
        major, minor, revision: of the program that wrote it.
        seen: images that the network was trained with.
    """

    major: int = 0
    minor: int = 2
    revision: int = 5
    seen: int = 0

    @property
    def wide(self) -> bool:
        """Whether ``seen`` has 64 bits."""
        return self.major * 10 + self.minor >= 2

    @property
    def transposed(self) -> bool:
        """Whether weights of connected layers are stored (inputs, outputs)."""
        return self.major > 1000 or self.minor > 1000

    def pack(self) -> bytes:
        """The header's bytes."""
        seen = struct.pack("<q" if self.wide else "<i", self.seen)
        return struct.pack("<3i", self.major, self.minor, self.revision) + seen

    @classmethod
    def unpack(cls, data: bytes, path: Path) -> tuple["Header", int]:
        """The header and its length.

        Raises:
            InputError: the file is too short, or the numbers are no header's.
        """
        if len(data) < 16:
            raise InputError(f"{path} is no darknet weights file: it has {len(data)} bytes")
        major, minor, revision = struct.unpack_from("<3i", data)
        if not (0 <= major < 2000 and 0 <= minor < 2000 and 0 <= revision < 100_000):
            raise InputError(
                f"{path} is no darknet weights file: its version would be "
                f"{major}.{minor}.{revision}"
            )
        wide = cls(major, minor).wide
        if len(data) < (20 if wide else 16):
            raise InputError(f"{path} is no darknet weights file: it has {len(data)} bytes")
        (seen,) = struct.unpack_from("<q" if wide else "<i", data, 12)
        return cls(major, minor, revision, seen), 20 if wide else 16


def partial_layers(path: str | Path) -> int | None:
    """How many layers a file holds by its name (``.57``, ``.conv.137``); None for all."""
    match = _PARTIAL.search(Path(path).name)
    return int(match.group(1)) if match else None


@runtime_checkable
class DarknetOrdered(Protocol):
    """A hand-written network whose weights darknet has a file for."""

    def darknet_layers(self) -> Iterable[nn.Module]:
        """Its layers with weights, in the file's order."""


@dataclasses.dataclass(frozen=True)
class _Stored:
    """A layer in a file: what errors call it, its tensors, which are a connected layer's weight."""

    name: str
    tensors: tuple[tuple[Tensor, bool], ...]

    @property
    def floats(self) -> int:
        return sum(tensor.numel() for tensor, _ in self.tensors)


@torch.no_grad()
def load_darknet_weights(
    network: DarknetNetwork | DarknetOrdered, path: str | Path, *, layers: int | None = None
) -> Header:
    """Fill a network from a weights file.

    Args:
        network: built from a cfg file, or a hand-written one with ``darknet_layers()``. Changed in
            place, once the whole file has been checked.
        path: the file.
        layers: how many layers it holds; None: as its name says (:func:`partial_layers`), else all.
            Only a cfg file's layers have numbers: a partial file for a hand-written network holds
            as many of its first layers as its length comes to.

    Raises:
        InputError: the file is missing, no weights file, of another network (too short or too
            long), or a value is not finite; the layer is named.
    """
    return _load(network, Path(path), layers)[0]


def _load(
    network: DarknetNetwork | DarknetOrdered, path: Path, layers: int | None
) -> tuple[Header, list[_Stored]]:
    layers = partial_layers(path) if layers is None else layers
    header, values = _read(path)
    stored = _stored_layers(network)
    if layers is not None:
        stored = _first(network, stored, layers, len(values))
    expected = sum(layer.floats for layer in stored)
    if len(values) != expected:
        raise InputError(_length_error(network, stored, path, len(values), layers))
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise InputError(
            f"{path}: value {int(bad[0])} is {values[bad[0]]}, in {_at(stored, int(bad[0])).name}"
        )
    at = 0
    for tensor, is_connected in (pair for layer in stored for pair in layer.tensors):
        part = torch.from_numpy(values[at : at + tensor.numel()].copy())
        at += tensor.numel()
        if is_connected and header.transposed:
            tensor.copy_(part.view(tensor.shape[1], tensor.shape[0]).T)
        else:
            tensor.copy_(part.view(tensor.shape))
    return header, stored


@torch.no_grad()
def load_darknet_checkpoint(model: nn.Module, path: Path, *, whole: bool) -> LoadReport:
    """:func:`load_darknet_weights` into the network inside a model, with the usual report.

    Args:
        model: has a :class:`~d2proj.darknet.network.DarknetNetwork` somewhere, or has
            ``darknet_layers()`` itself.
        path: the file.
        whole: refuse a file of the first layers alone.
    """
    network = _network_of(model)
    if network is None:
        raise InputError(
            f"{path} is a darknet weights file, whose values have no names: only a model that was "
            "built from its cfg file (configs/darknet/from_cfg.py) or one of the YOLO family can "
            "load it"
        )
    layers = partial_layers(path)
    count = len(_stored_layers(network))
    if whole and layers is not None and layers < count:
        raise InputError(
            f"{path} holds the first {layers} of the network's {count} layers: it cannot be "
            "evaluated"
        )
    header, stored = _load(network, path, layers)
    names = {id(t): name for name, t in model.state_dict(keep_vars=True).items()}
    matched = {names[id(tensor)] for layer in stored for tensor, _ in layer.tensors}
    sizes = {n: t.numel() for n, t in model.state_dict().items() if t.is_floating_point()}
    missing = [name for name in sizes if name not in matched]
    return LoadReport(
        file=str(path),
        kind="darknet",
        flavour=f"darknet network of {_name(network)}",
        matched=tuple(name for name in sizes if name in matched),
        missing=tuple(missing),
        filled=sum(sizes[name] for name in matched) / max(1, sum(sizes.values())),
        notes=(f"trained on {header.seen} images",),
    )


@torch.no_grad()
def save_darknet_weights(
    network: DarknetNetwork | DarknetOrdered,
    path: str | Path,
    header: Header | None = None,
    *,
    layers: int | None = None,
) -> None:
    """Write a network's weights as darknet does; the file appears whole or not at all.

    Args:
        network: any dtype; float32 is written. See :func:`load_darknet_weights`.
        path: the file.
        header: what it begins with.
        layers: only so many of the first layers.
    """
    header = header or Header()

    def write(file: Writable) -> None:
        file.write(header.pack())
        for layer in _stored_layers(network)[:layers]:
            for tensor, is_connected in layer.tensors:
                stored = tensor.T if is_connected and header.transposed else tensor
                file.write(stored.contiguous().cpu().float().numpy().astype("<f4").tobytes())

    write_atomically(Path(path), write)


def _read(path: Path) -> tuple[Header, np.ndarray]:
    try:
        with path.open("rb") as file:
            header, length = Header.unpack(file.read(20), path)
        size = path.stat().st_size - length
        if size % 4:
            raise InputError(
                f"{path} is truncated or damaged: after its header come {size} bytes, which is no "
                "number of float32 values"
            )
        if size == 0:
            raise InputError(f"{path} is truncated: nothing follows its header")
        return header, np.memmap(path, dtype="<f4", mode="r", offset=length)
    except OSError as error:
        raise InputError(f"cannot read the weights {path}: {error.strerror or error}") from None


def _network_of(model: nn.Module) -> DarknetNetwork | DarknetOrdered | None:
    built = next((m for m in model.modules() if isinstance(m, DarknetNetwork)), None)
    return built or (model if isinstance(model, DarknetOrdered) else None)


def _name(network: DarknetNetwork | DarknetOrdered) -> str:
    if isinstance(network, DarknetNetwork):
        return network.plan.net.file
    return type(network).__name__


def _stored_layers(network: DarknetNetwork | DarknetOrdered) -> list[_Stored]:
    """A cfg file's layers, those without weights too, or a hand-written network's."""
    if isinstance(network, DarknetNetwork):
        return [
            _Stored(
                f"layer {layer.index} ([{layer.section.name}], line {layer.section.line} of "
                f"{layer.section.file})",
                tuple(_tensors(module)),
            )
            for layer, module in zip(network.plan.layers, network.layers, strict=True)
        ]
    names = {id(m): name for name, m in cast(nn.Module, network).named_modules()}
    return [_Stored(names[id(m)], tuple(_tensors(m))) for m in network.darknet_layers()]


def _first(
    network: DarknetNetwork | DarknetOrdered, stored: list[_Stored], layers: int, values: int
) -> list[_Stored]:
    """The layers that a partial file holds; without numbered layers its length says."""
    if isinstance(network, DarknetNetwork):
        return stored[:layers]
    total = 0
    for count, layer in enumerate(stored, start=1):
        total += layer.floats
        if total >= values:
            return stored[:count]
    return stored


def _tensors(module: nn.Module) -> Iterator[tuple[Tensor, bool]]:
    """A layer's tensors in the file's order, and whether each is a connected layer's weight."""
    if isinstance(module, Conv2d):
        yield from ((t, False) for t in _bias_and_norm(module.bias, module.norm))
        yield module.weight, False
    elif isinstance(module, Connected | nn.Linear):
        linear = module if isinstance(module, nn.Linear) else module.linear
        norm = list(_bias_and_norm(linear.bias, getattr(module, "norm", None)))
        yield norm[0], False
        yield linear.weight, True
        yield from ((t, False) for t in norm[1:])
    elif isinstance(module, LocallyConnected2d):
        yield module.bias, False
        yield module.weight, False
    elif isinstance(module, Shortcut | WeightedSum):
        weighted = module if isinstance(module, WeightedSum) else module.weighted_sum
        if weighted is not None:
            yield weighted.weight, False


def _bias_and_norm(bias: Tensor | None, norm: nn.Module | None) -> Iterator[Tensor]:
    if norm is None:
        yield cast(Tensor, bias)
    else:
        norm = cast(nn.BatchNorm2d, norm)
        yield norm.bias
        yield norm.weight
        yield cast(Tensor, norm.running_mean)
        yield cast(Tensor, norm.running_var)


def _at(stored: list[_Stored], position: int) -> _Stored:
    """The layer that the value of this number belongs to; the last one past the end."""
    for layer in stored:
        position -= layer.floats
        if position < 0:
            break
    return layer


def _length_error(
    network: DarknetNetwork | DarknetOrdered,
    stored: list[_Stored],
    path: Path,
    found: int,
    layers: int | None,
) -> str:
    expected = sum(layer.floats for layer in stored)
    has = f"{_name(network)} has"
    if layers is not None:
        has = f"the first {layers} layers of {_name(network)} have"
    message = f"{path} holds {found} values, but {has} {expected}"
    if found > expected:
        return f"{message}: it belongs to another network"
    return (
        f"{message}: it is truncated or belongs to another network (it ends in "
        f"{_at(stored, found).name})"
    )
