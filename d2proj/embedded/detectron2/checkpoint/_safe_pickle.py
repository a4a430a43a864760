"""Reading a pickle that may hold numpy arrays and plain containers, and nothing else."""

import collections
import pickle
from typing import IO, Any

import numpy as np

# numpy renamed its core package in version 2; files name either.
_NUMPY_CORES = ("numpy.core", "numpy._core")


def _encode_latin1(text: str, encoding: str) -> bytes:
    """How Python 2 and protocol 2 write bytes; other codecs could decompress or worse."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"the file asks for the codec {encoding}")
    return text.encode("latin1")


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode_latin1,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "bytearray"): bytearray,
    ("builtins", "complex"): complex,
    ("__builtin__", "set"): set,
}


class _ArrayUnpickler(pickle.Unpickler):
    """Refuses every name but those that arrays and plain containers need."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ADMITTED:
            return _ADMITTED[module, name]
        package, _, submodule = module.rpartition(".")
        if package in _NUMPY_CORES and (submodule, name) in _NUMPY_FUNCTIONS:
            return _NUMPY_FUNCTIONS[submodule, name]
        raise pickle.UnpicklingError(
            f"the file asks for {module}.{name}; only arrays and plain containers are loaded"
        )


def _numpy_functions() -> dict[tuple[str, str], Any]:
    """The functions that numpy's own pickles call to rebuild arrays and scalars."""
    # Asked of numpy's objects, since the functions are in a module that is private and has moved.
    found = {}
    for value in (np.zeros(1), np.float32(1)):
        for protocol in (2, 5):
            reduced = value.__reduce_ex__(protocol)
            function: Any = reduced[0]
            found[function.__module__.rpartition(".")[2], function.__name__] = function
    return found


_NUMPY_FUNCTIONS = _numpy_functions()


def load_arrays(file: IO[bytes]) -> Any:
    """Load a pickle of arrays and plain containers without running code of its choosing.

    Raises:
        pickle.UnpicklingError: it holds anything else.
    """
    return _ArrayUnpickler(file, encoding="latin1").load()
