"""Registries, and objects found by their dotted names."""

import importlib
import pydoc
from types import ModuleType
from typing import Any

from fvcore.common.registry import Registry

__all__ = ["Registry", "locate"]


def locate(name: str) -> Any:
    """The object of a dotted name such as ``torch.nn.Conv2d`` or ``module.Class.Inner``.

    Modules are imported as needed.

    Raises:
        ImportError: no such object; the message says which part is missing.
    """
    parts = name.split(".")
    if not all(parts):
        raise ImportError(f"cannot locate {name!r}: it is not a dotted name")
    found: Any = None
    for count, part in enumerate(parts, start=1):
        prefix = ".".join(parts[:count])
        if count > 1 and hasattr(found, part):
            found = getattr(found, part)
        elif count == 1 or isinstance(found, ModuleType):
            found = _import(prefix, name)
        else:
            raise ImportError(f"cannot locate {name!r}: {found!r} has no attribute {part!r}")
    return found


def _import(module: str, wanted: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name != module:  # the module is there; something that it imports is not
            raise ImportError(f"cannot locate {wanted!r}: {module} fails with {error}") from error
        parent, _, child = module.rpartition(".")
        where = f"module {parent!r} has no {child!r}" if parent else f"no module {child!r}"
        raise ImportError(f"cannot locate {wanted!r}: {where}") from error


def _convert_target_to_string(target: Any) -> str:
    """The shortest public dotted name of a class or function.

    A package often re-exports what its private modules define; the name through the package is
    the stable one, so ``torch.nn.modules.conv.Conv2d`` becomes ``torch.nn.Conv2d``.
    """
    parts = target.__module__.split(".")
    for count in range(1, len(parts)):
        candidate = ".".join([*parts[:count], target.__qualname__])
        # pydoc's finder never raises for a missing name, and most candidates are missing.
        if pydoc.locate(candidate) is target:
            return candidate
    return f"{target.__module__}.{target.__qualname__}"
