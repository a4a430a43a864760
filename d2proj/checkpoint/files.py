"""Reads a weight file of any kind into plain containers of tensors, without executing anything.

The kind is told from the content, never from the ending.
"""

import argparse
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from d2proj.checkpoint.unpickler import ForbiddenGlobalError, load_arrays
from d2proj.errors import InputError

# torch.save's format before 1.6 starts with the pickled integer 0x1950a86a20f9469cfc6c.
_TORCH_LEGACY = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
_LOOKS_LIKE = (
    (b"<!doctype", "an HTML page (the download did not give the file)"),
    (b"<html", "an HTML page (the download did not give the file)"),
    (b"version https://git-lfs", "a Git LFS pointer (fetch the file itself with git lfs pull)"),
    (b"\x89hdf", "an HDF5 file"),
    (b"\x1f\x8b", "a gzip archive (unpack it first)"),
    (b"\x89png", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
)
_DAMAGE = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    OverflowError,
    MemoryError,
    RecursionError,
    RuntimeError,
    struct.error,
    zipfile.BadZipFile,
)


@dataclass(frozen=True)
class WeightFile:
    """The content of a weight file.

    Attributes:
        path: where it was.
        kind: ``"torch"``, ``"torch-legacy"``, ``"safetensors"``, ``"pickle"`` or ``"darknet"``.
        content: plain containers, numbers, strings, tensors and (pickle) numpy arrays.
    """

    path: Path
    kind: str
    content: Any


def read_file(path: str | Path, *, mmap: bool = True) -> WeightFile:
    """Read a weight file, its kind told from the content.

    Args:
        path: a ``torch.save`` file (zip or older), a safetensors file, a pickle of numpy arrays or
            a darknet weights file (whose values have no names: the content is empty).
        mmap: map a torch file's tensors instead of reading them: less memory and time where they
            are copied on, wrong where they are kept while the file may change.

    Returns:
        Its content, with tensors on the CPU.

    Raises:
        InputError: the file is missing, empty, truncated, of an unknown kind or holds pickled code.
    """
    path = Path(path)
    kind = file_kind(path)
    try:
        return WeightFile(path, kind, _READERS[kind](path, mmap))
    except ForbiddenGlobalError as error:
        raise InputError(_refusal(path, error.name)) from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except _DAMAGE as error:
        refused = re.search(r"(?:GLOBAL|class|function|global:?)\s+`?([\w.]+\.\w+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and refused:
            raise InputError(_refusal(path, refused.group(1))) from None
        raise InputError(
            f"{path} starts like a {kind} file but is truncated or damaged "
            f"({_first_line(error) or type(error).__name__})"
        ) from None


def file_kind(path: Path) -> str:
    """Tell how a weight file is stored, from its first bytes.

    Raises:
        InputError: there is no such file, it is empty, or it is no weight file.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a weight file")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(64)
    except FileNotFoundError:
        raise InputError(f"the weight file {path} does not exist") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    if not head:
        raise InputError(f"the weight file {path} is empty")
    if head.startswith(b"PK\x03\x04"):
        return "torch"
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size:
        return "safetensors"
    if head[:1] == b"\x80" and head[2:].startswith(_TORCH_LEGACY):
        return "torch-legacy"
    if (head[:1] == b"\x80" and head[1] <= 5) or head[:1] in b"(c}]":  # protocols 2-5; 0, 1
        return "pickle"
    if len(head) >= 16 and all(0 <= n < 2000 for n in struct.unpack_from("<2i", head)):
        return "darknet"  # its version; any text makes larger numbers
    looks = next((what for start, what in _LOOKS_LIKE if head.lower().startswith(start)), None)
    raise InputError(
        f"{path} is not a checkpoint: expected a torch (.pth), safetensors, Detectron2 .pkl or "
        "darknet file" + (f", it looks like {looks}" if looks else f", it starts with {head[:8]!r}")
    )


def check_integrity(path: Path) -> None:
    """Read the whole of a torch zip file and compare its checksums.

    Raises:
        InputError: the file is missing, of another kind, truncated, or a checksum is wrong.
    """
    if file_kind(path) != "torch":
        raise InputError(f"{path} is not a training checkpoint (a torch zip file)")
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, struct.error) as error:
        raise InputError(f"{path} is truncated or damaged ({_first_line(error)})") from None
    if broken is not None:
        raise InputError(f"{path} is damaged: the checksum of {broken} inside it is wrong")


def harmless_globals() -> list[Any]:
    """What ``weights_only`` refuses by default though it is plain data in real checkpoints.

    numpy numbers (a best metric) and ``argparse.Namespace`` (torchvision's training scripts store
    their arguments); calling any of them has no effect beyond making the object.
    """
    scalar = np.float32(0).__reduce__()[0]
    kinds = (np.bool_, np.int32, np.int64, np.float16, np.float32, np.float64)
    dtypes = [type(np.dtype(kind)) for kind in kinds]
    return [argparse.Namespace, scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, *dtypes]


def _read_torch(path: Path, mmap: bool) -> Any:
    with zipfile.ZipFile(path) as archive:  # a truncated file has no directory: say so early
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            raise InputError(f"{path} is a TorchScript archive (code), not a checkpoint")
    with torch.serialization.safe_globals(harmless_globals()):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def _read_torch_legacy(path: Path, _mmap: bool) -> Any:
    with torch.serialization.safe_globals(harmless_globals()):
        return torch.load(path, map_location="cpu", weights_only=True)


def _read_safetensors(path: Path, _mmap: bool) -> Any:
    try:
        return load_file(path, device="cpu")
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def _read_darknet(path: Path, _mmap: bool) -> Any:
    return {}  # values without names: d2proj.checkpoint.darknet reads them into a network


def _read_pickle(path: Path, _mmap: bool) -> Any:
    with path.open("rb") as file:
        return load_arrays(file)


_READERS: Mapping[str, Callable[[Path, bool], Any]] = {
    "torch": _read_torch,
    "torch-legacy": _read_torch_legacy,
    "safetensors": _read_safetensors,
    "pickle": _read_pickle,
    "darknet": _read_darknet,
}


def _refusal(path: Path, name: str) -> str:
    return (
        f"{path} contains pickled code ({name}); only tensors, arrays and plain containers are "
        "admitted, and nothing of it was executed"
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:160]
