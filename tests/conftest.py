"""Fixtures that every test may use."""

from pathlib import Path

import pytest

import d2proj  # before any test imports detectron2: it makes the embedded one importable
from d2proj._detectron2 import is_embedded

REPO_ROOT = Path(__file__).resolve().parent.parent


def pytest_report_header() -> str:
    """Say which Detectron2 the tests run on."""
    which = "embedded" if is_embedded() else "real"
    return f"d2proj {d2proj.__version__} on the {which} Detectron2"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout (``../shared/data``), or a skip."""
    root = REPO_ROOT.parent / "shared" / "data"
    if not root.is_dir():
        pytest.skip(f"real data not found at {root}: it is not part of the repository")
    return root
