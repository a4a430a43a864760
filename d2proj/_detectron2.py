"""Which Detectron2 is used: the installed one, or else the part of its API embedded here."""

import importlib.util
import sys
from pathlib import Path

EMBEDDED_ROOT = Path(__file__).resolve().parent / "embedded"


def ensure() -> None:
    """Make ``import detectron2`` work.

    An installed Detectron2 always wins: the embedded root goes to the *end* of ``sys.path`` and
    only when no ``detectron2`` can be found. Forked workers inherit the path; spawned ones import
    d2proj, and so come through here, when they unpickle their first d2proj object.
    """
    spec = importlib.util.find_spec("detectron2")
    # A mere folder of that name, a checkout in the working directory say, is found as a namespace
    # package without an origin; a package further down the path takes precedence over it.
    if spec is None or spec.origin is None:
        sys.path.append(str(EMBEDDED_ROOT))


def is_embedded() -> bool:
    """Whether ``import detectron2`` gives the embedded part."""
    spec = importlib.util.find_spec("detectron2")
    return bool(spec and spec.origin and Path(spec.origin).is_relative_to(EMBEDDED_ROOT))
