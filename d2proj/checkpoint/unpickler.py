"""A pickle reader that admits arrays, numbers and plain containers, and executes nothing.

Detectron2's model zoo is a set of ``.pkl`` files: a dictionary of numpy arrays, written by Python 2
or 3 in any protocol. ``pickle.load`` would run whatever such a file asks for, so this reader
resolves only the few names below, each to a function of ours or to a plain type.
"""

import io
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import IO, Any

import numpy as np

_SIMPLE_DTYPE = re.compile(r"[<>=|]?([biufcSU]\d*|\?|V2)\Z")


class ForbiddenGlobalError(pickle.UnpicklingError):
    """The pickle asks for a name that weights have no use for; ``name`` says which."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the pickle asks for {name}")
        self.name = name


def load_arrays(file: IO[bytes]) -> Any:
    """Read one pickle of numpy arrays, scalars and plain containers.

    Args:
        file: a binary file, at the start of the pickle. Strings of Python 2 are read as latin1.

    Returns:
        What was pickled.

    Raises:
        ForbiddenGlobalError: the pickle names anything but numpy arrays, scalars, dtypes and plain
            containers. Nothing of it has been imported or called.
        pickle.UnpicklingError, EOFError, ValueError, ...: the pickle is damaged.
    """
    return _ArrayUnpickler(file, encoding="latin1").load()


class _ArrayUnpickler(pickle.Unpickler):
    """Resolves globals from a closed table instead of importing them."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise ForbiddenGlobalError(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        raise ForbiddenGlobalError(f"the persistent object {str(pid)[:60]!r}")


class _NdArray:
    """Stands for ``numpy.ndarray``, which pickles only pass on to ``_reconstruct``."""


def _reconstruct(_subtype: Any, _shape: Any, _code: Any) -> np.ndarray:
    """Give the empty array that ``__setstate__`` then fills, whatever sizes the pickle states."""
    return np.ndarray((0,), dtype=np.int8)


def _dtype(code: Any, *_flags: Any) -> np.dtype:
    """Make a dtype of plain numbers or strings; object arrays could hold anything."""
    text = code.decode("latin1") if isinstance(code, bytes) else code
    if not isinstance(text, str) or not _SIMPLE_DTYPE.match(text):
        raise ForbiddenGlobalError(f"a numpy array of dtype {str(code)[:40]!r}")
    return np.dtype(text, False, True)  # a copy: __setstate__ then sets its byte order


def _scalar(dtype: Any, raw: Any = b"") -> Any:
    """Make a numpy scalar from its bytes."""
    if not isinstance(dtype, np.dtype):
        raise pickle.UnpicklingError("a numpy scalar without a dtype")
    data = raw.encode("latin1") if isinstance(raw, str) else bytes(raw)
    return np.frombuffer(data, dtype=dtype, count=1)[0]


def _frombuffer(buffer: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """Make an array from in-band bytes (how numpy pickles in protocol 5)."""
    if not isinstance(dtype, np.dtype):
        raise pickle.UnpicklingError("a numpy array without a dtype")
    array = np.frombuffer(buffer, dtype=dtype)
    return array.reshape(shape, order="F" if order == "F" else "C")


def _encode(text: Any, encoding: Any = "latin1", *_errors: Any) -> bytes:
    """Turn text into bytes as Python 3 writes bytes in protocols 0 to 2."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "ascii", "utf-8"):
        raise ForbiddenGlobalError(f"_codecs.encode to {str(encoding)[:40]!r}")
    return text.encode(encoding)


def _bytearray(*args: Any) -> bytearray:
    """Make a bytearray from content, never from a length (which could be gigantic)."""
    if args and not isinstance(args[0], bytes | str):
        raise pickle.UnpicklingError("a bytearray that is not made of bytes")
    if args and isinstance(args[0], str):
        return bytearray(args[0].encode("latin1"))
    return bytearray(*args[:1])


def _bytes(*args: Any) -> bytes:
    """Make empty bytes, as Python 3 writes them in protocol 2; numbers would be lengths."""
    if args and not isinstance(args[0], bytes | list | tuple):
        raise pickle.UnpicklingError("bytes that are not made of content")
    return bytes(*args[:1])


def _admitted() -> dict[tuple[str, str], Callable[..., Any]]:
    table: dict[tuple[str, str], Callable[..., Any]] = {
        ("numpy", "ndarray"): _NdArray,
        ("numpy", "dtype"): _dtype,
        ("_codecs", "encode"): _encode,
        ("collections", "OrderedDict"): OrderedDict,
    }
    for package in ("numpy.core", "numpy._core"):
        table[f"{package}.multiarray", "_reconstruct"] = _reconstruct
        table[f"{package}.multiarray", "scalar"] = _scalar
        table[f"{package}.numeric", "_frombuffer"] = _frombuffer
    for builtins in ("builtins", "__builtin__"):
        table[builtins, "bytearray"] = _bytearray
        table[builtins, "bytes"] = _bytes
        table[builtins, "set"] = set
        table[builtins, "frozenset"] = frozenset
    return table


_ADMITTED = _admitted()


def loads_arrays(data: bytes) -> Any:
    """Read a pickle held in memory; see :func:`load_arrays`."""
    return load_arrays(io.BytesIO(data))
