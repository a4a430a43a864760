"""Finds the dictionary of tensors inside whatever a weight file holds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from d2proj.checkpoint.files import WeightFile
from d2proj.errors import InputError

# Where training scripts put the weights: Detectron2 and torchvision, Lightning and mmdet, pycls.
_MODEL_KEYS = ("model", "state_dict", "model_state", "model_state_dict", "blobs")
_EMA_KEYS = ("ema", "ema_state", "model_ema")
_EMA_INNER_KEYS = ("state_dict", "model", "shadow", "state", "params", "module")
# What DistributedDataParallel, torch.compile and Lightning put before every name.
_WRAPPERS = ("module.", "_orig_mod.", "model.")

_T = TypeVar("_T")


@dataclass(frozen=True)
class FileState:
    """The named tensors of a weight file.

    Attributes:
        tensors: name to tensor, wrapper prefixes removed.
        author: the file's ``__author__`` (Detectron2 .pkl files have one), or "".
        training: whether the file also holds training state (optimizer or iteration).
        used_ema: how many tensors came from the moving average instead of the raw weights.
    """

    tensors: dict[str, torch.Tensor]
    author: str
    training: bool
    used_ema: int


def extract_state(file: WeightFile, prefer_ema: bool) -> FileState:
    """Find the model's tensors in a file, with moving averages laid over them if asked for.

    Raises:
        InputError: the file holds no tensors, or some hold NaN or infinity.
    """
    content = file.content
    if not isinstance(content, Mapping):
        raise InputError(
            f"{file.path} is not a checkpoint: it holds a {type(content).__name__}, expected a "
            "dictionary of tensors"
        )
    inner = next((content[k] for k in _MODEL_KEYS if isinstance(content.get(k), Mapping)), content)
    tensors = strip_wrappers(_tensors_in(inner))
    used_ema = 0
    if prefer_ema:
        averages = strip_wrappers(_find_ema(content))
        known = {name: t for name, t in averages.items() if name in tensors or not tensors}
        tensors.update(known)
        used_ema = len(known)
    if not tensors:
        keys = ", ".join(str(key) for key in list(content)[:5]) or "none"
        raise InputError(f"{file.path} is not a checkpoint: it holds no tensors (its keys: {keys})")
    _require_finite(file, tensors)
    author = content.get("__author__", "")
    training = "optimizer" in content or "iteration" in content
    return FileState(tensors, author if isinstance(author, str) else "", training, used_ema)


def strip_wrappers(tensors: Mapping[str, _T]) -> dict[str, _T]:
    """Remove ``module.`` and the like where every name has it."""
    names = dict(tensors)
    while names:
        prefix = next((w for w in _WRAPPERS if all(n.startswith(w) for n in names)), None)
        if prefix is None:
            break
        names = {name.removeprefix(prefix): tensor for name, tensor in names.items()}
    return names


def _find_ema(content: Mapping[Any, Any]) -> dict[str, torch.Tensor]:
    for key in _EMA_KEYS:
        node = content.get(key)
        if not isinstance(node, Mapping):
            continue
        inner = (node[k] for k in _EMA_INNER_KEYS if isinstance(node.get(k), Mapping))
        return _tensors_in(next(inner, node))
    return {}


def _tensors_in(node: Mapping[Any, Any]) -> dict[str, torch.Tensor]:
    """Take the tensors and arrays of one level; optimiser leftovers of Caffe2 are dropped."""
    found: dict[str, torch.Tensor] = {}
    for name, value in node.items():
        if not isinstance(name, str) or name.endswith("_momentum"):
            continue
        if isinstance(value, torch.Tensor):
            found[name] = value.detach()
        elif isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf":
            native = np.ascontiguousarray(value).reshape(value.shape)
            native = native.astype(native.dtype.newbyteorder("="), copy=True)
            found[name] = torch.from_numpy(np.asarray(native))
    return found


def _require_finite(file: WeightFile, tensors: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{file.path}: the weights {name} hold NaN or infinity")
