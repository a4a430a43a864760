"""The commands and the Python in README and docs: files exist, keys are known, code runs."""

import re
import shlex
from pathlib import Path

import pytest

from d2proj.engine.config import load_config

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]


def commands() -> list[tuple[str, list[str]]]:
    """Every `train_net.py` or `d2proj.predict` command with a config of the repository."""
    found = []
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        for line in re.findall(
            r"(?:train_net\.py|d2proj\.predict) --config-file configs/[^`\n]*", text
        ):
            _, _, config, *rest = shlex.split(line, comments=True)
            found.append((config, [word for word in rest if re.match(r"[a-z_.0-9\[\]]+=", word)]))
    return found


def test_commands_are_found() -> None:
    assert len(commands()) > 8


@pytest.mark.parametrize(("config", "overrides"), commands())
def test_command(config: str, overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    load_config(config, overrides)  # an unknown key or a wrong type raises


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]*)", page.read_text()):
        assert not target or (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.S):
        exec(compile(block, page.name, "exec"), names)
