"""These tests hold on Detectron2 itself and on the embedded part alike."""

import pytest

from d2proj import _detectron2  # makes detectron2 importable before a test file asks for it


@pytest.fixture
def embedded() -> None:
    """Skips where the real package is in use: for what only the embedded part does."""
    if not _detectron2.is_embedded():
        pytest.skip("the installed Detectron2 does not do this")
