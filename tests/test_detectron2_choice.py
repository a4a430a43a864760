"""Which Detectron2 ``import d2proj`` chooses, in a fresh interpreter."""

import subprocess
import sys
from pathlib import Path

import pytest

from d2proj._detectron2 import is_embedded

ROOT = Path(__file__).resolve().parent.parent
PRINT_ORIGIN = "import d2proj, detectron2; print(detectron2.__file__)"


def origin(cwd: Path, *path: Path) -> Path:
    """Where detectron2 comes from with ``path`` in front of the project."""
    code = f"import sys; sys.path[:0] = {[str(p) for p in (*path, ROOT)]!r}; {PRINT_ORIGIN}"
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=True,
    )
    return Path(run.stdout.strip())


def test_an_installed_one_wins(tmp_path: Path) -> None:
    package = tmp_path / "site" / "detectron2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    assert origin(tmp_path, tmp_path / "site") == package / "__init__.py"


@pytest.mark.skipif(not is_embedded(), reason="a real Detectron2 is installed here")
def test_a_checkout_in_the_working_directory_is_not_an_installed_one(tmp_path: Path) -> None:
    # A folder without __init__.py imports as a namespace package, and hid the embedded one.
    (tmp_path / "detectron2").mkdir()
    assert origin(tmp_path, tmp_path).is_relative_to(ROOT / "d2proj" / "embedded")
