"""Loads the compiled ops, ``d2proj/libd2proj.so``, once.

A library that is missing or does not load must not stop ``import d2proj.ops``: someone may only
want to read a configuration. The reason is kept, and the *use* of an op raises it. With
``D2PROJ_REQUIRE_EXT=1`` (what CI sets) the import raises it.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import torch

#: ``D2PROJ_LIBRARY`` names another library to load instead (a sanitizer build, say).
LIBRARY = Path(
    os.environ.get("D2PROJ_LIBRARY") or Path(__file__).resolve().parent.parent / "libd2proj.so"
)

_BUILD_INFO = re.compile(rb"d2proj-build-info:(\{[^\0]*\})\0")


def build_info() -> dict[str, Any]:
    """What the library was built with: ``torch``, ``compiler``, ``cuda`` (or None), ``archs``.

    It is read from the file's bytes, not by calling into it, so that a library that does not load
    can be told too. Empty if there is no such file or it is not ours.
    """
    if not LIBRARY.is_file():
        return {}
    match = _BUILD_INFO.search(LIBRARY.read_bytes())
    return json.loads(match.group(1)) if match else {}


def _explain(reason: str) -> str:
    info = build_info()
    built = f"built with torch {info['torch']}, CUDA {info['cuda'] or 'none'}" if info else "absent"
    return (
        f"d2proj's compiled ops are not available: {reason} (library: {built}; running: torch "
        f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}; torch >= 2.10 is needed). "
        "Build them with `pip install --no-build-isolation -e .` in the checkout."
    )


def _load() -> str | None:
    """Load the library; the reason if that fails."""
    if not LIBRARY.is_file():
        return _explain(f"{LIBRARY} does not exist")
    try:
        torch.ops.load_library(LIBRARY)
    except (OSError, RuntimeError) as error:
        return _explain(f"{LIBRARY} does not load: {error}")
    return None


ERROR = _load()
AVAILABLE = ERROR is None

if ERROR is not None and os.environ.get("D2PROJ_REQUIRE_EXT", "0") not in ("", "0"):
    raise ImportError(ERROR)


def require() -> None:
    """Raise the reason why there are no compiled ops, if there are none.

    Raises:
        RuntimeError: The library is missing or does not load.
    """
    if not AVAILABLE:
        raise RuntimeError(ERROR)
