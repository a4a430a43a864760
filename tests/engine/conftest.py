"""What the engine's tests share: the toy run, in this process or in one of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from d2proj.engine import command_line

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TOY = HERE / "toy_config.py"
sys.path.insert(0, str(HERE))

Run = Callable[..., int]


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the generated data, made once."""
    return tmp_path_factory.mktemp("digits")


@pytest.fixture
def toy(digits: Path, tmp_path: Path) -> Run:
    """Run train_net.py on the toy config in this process; gives the exit status."""
    threads = torch.get_num_threads()

    def run(*args: str, out: str = "run", config: Path = TOY) -> int:
        common = [f"dataset.root={digits}", f"train.output_dir={tmp_path / out}"]
        torch.set_num_threads(1)  # as toy_process: sums over two threads round otherwise
        try:
            command_line.main(["--config-file", str(config), *common, *args])
        except SystemExit as stop:
            return int(stop.code or 0)
        finally:
            torch.set_num_threads(threads)
        return 0

    return run


@pytest.fixture
def toy_process(digits: Path, tmp_path: Path) -> Callable[..., "subprocess.Popen[str]"]:
    """Start train_net.py on the toy config as a process of its own."""

    def start(
        *args: str, out: str = "run", before: tuple[str, ...] = ()
    ) -> "subprocess.Popen[str]":
        path = os.pathsep.join([str(ROOT), str(HERE), os.environ.get("PYTHONPATH", "")])
        command = [
            *(before or (sys.executable,)),
            str(ROOT / "train_net.py"),
            f"--config-file={TOY}",
            f"dataset.root={digits}",
            f"train.output_dir={tmp_path / out}",
            *args,
        ]
        return subprocess.Popen(
            command,
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


@pytest.fixture
def losses(tmp_path: Path) -> Callable[[str], dict[int, float]]:
    """The losses in a run's metrics.json by iteration; an iteration that is there twice fails."""

    def read(out: str = "run") -> dict[int, float]:
        lines = (tmp_path / out / "metrics.json").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        found = {row["iteration"]: row["total_loss"] for row in rows}
        assert len(found) == len(rows)
        return found

    return read
