"""Training checkpoints: whole or absent, resumable, readable by Detectron2."""

import contextlib
import io
import os
import pickle
import resource
import signal
import subprocess
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from d2proj.checkpoint import CheckpointWriteError, TrainingCheckpointer, atomic, load_weights
from d2proj.errors import InputError


class Training:
    """A model and an optimizer with some history."""

    def __init__(self, seed: int = 0, width: int = 8) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Linear(width, 2))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.model(torch.arange(12.0).view(3, 4)).square().sum().backward()
        self.optimizer.step()

    def checkpointer(self, folder: Path, **options) -> TrainingCheckpointer:
        return TrainingCheckpointer(self.model, folder, optimizer=self.optimizer, **options)


def assert_same(a: Training, b: Training) -> None:
    for name, tensor in a.model.state_dict().items():
        assert torch.equal(tensor, b.model.state_dict()[name]), name
    theirs = b.optimizer.state_dict()["state"]
    for index, state in a.optimizer.state_dict()["state"].items():
        assert torch.equal(state["momentum_buffer"], theirs[index]["momentum_buffer"])


def test_resume_continues_bitwise(tmp_path):
    whole, first = Training(), Training()
    for _ in range(3):
        whole.step(), first.step()
    first.checkpointer(tmp_path).save("model_0000002", iteration=2, best=np.float64(0.5))
    resumed = Training(seed=1)
    rest = resumed.checkpointer(tmp_path).resume()
    assert rest == {"iteration": 2, "best": 0.5}
    whole.step(), resumed.step()
    assert_same(whole, resumed)


def test_nothing_to_resume(tmp_path):
    checkpointer = Training().checkpointer(tmp_path / "absent")
    assert not checkpointer.has_checkpoint()
    assert checkpointer.resume() is None


def test_keeps_newest_periodic_best_and_final(tmp_path):
    training = Training()
    checkpointer = training.checkpointer(tmp_path, keep=2)
    for i in range(4):
        checkpointer.save(f"model_{i:07d}", iteration=i)
    checkpointer.save("model_final", iteration=3)
    checkpointer.save("model_best", iteration=1)
    names = sorted(p.name for p in tmp_path.glob("*.pth"))
    assert names == ["model_0000002.pth", "model_0000003.pth", "model_best.pth", "model_final.pth"]
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_only_the_main_process_writes(tmp_path):
    (tmp_path / ".model_0000001.pth.1.partial").touch()
    Training().checkpointer(tmp_path, save_to_disk=False).save("model_0000000", iteration=0)
    assert [p.name for p in tmp_path.iterdir()] == [".model_0000001.pth.1.partial"]


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "missing", "code"])
def test_damaged_last_checkpoint_is_passed_over(tmp_path, caplog, damage):
    training = Training()
    checkpointer = training.checkpointer(tmp_path)
    checkpointer.save("model_0000009", iteration=9)
    training.step()
    checkpointer.save("model_0000019", iteration=19)
    expected = {k: v.clone() for k, v in training.model.state_dict().items()}
    os.utime(tmp_path / "model_0000009.pth")  # the iteration decides, not the time
    training.step()
    checkpointer.save("model_0000029", iteration=29)
    spoil(tmp_path / "model_0000029.pth", damage)
    resumed = Training(seed=1)
    with caplog.at_level("WARNING"):
        assert resumed.checkpointer(tmp_path).resume() == {"iteration": 19}
    assert "model_0000019.pth" in caplog.text
    assert "model_0000029.pth" in caplog.text
    for name, tensor in resumed.model.state_dict().items():
        assert torch.equal(tensor, expected[name])


class Evil:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def spoil(path: Path, damage: str) -> None:
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "code":
        torch.save({"model": Evil(f"touch {path}.pwned")}, path)
    elif damage == "flipped":
        path.write_bytes(flip_a_stored_tensor(data))
    else:
        path.write_bytes(data[: len(data) // 2] if damage == "truncated" else b"")


def flip_a_stored_tensor(data: bytes) -> bytes:
    """Change one bit of the largest tensor's bytes, which only the checksum can tell."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        name = max(
            (i for i in archive.infolist() if "/data/" in i.filename), key=lambda i: i.file_size
        )
        content = archive.read(name)
    at = data.index(content)
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_missing_tag_falls_back_to_newest(tmp_path, caplog):
    checkpointer = Training().checkpointer(tmp_path)
    for i in (99, 9):
        checkpointer.save(f"model_{i:07d}", iteration=i)
    (tmp_path / "last_checkpoint").unlink()
    with caplog.at_level("WARNING"):
        assert checkpointer.resume() == {"iteration": 99}
    assert "last_checkpoint is missing" in caplog.text


def test_all_damaged_is_an_error(tmp_path):
    checkpointer = Training().checkpointer(tmp_path)
    checkpointer.save("model_0000000", iteration=0)
    spoil(tmp_path / "model_0000000.pth", "truncated")
    with pytest.raises(InputError, match=r"no checkpoint in .* can be read"):
        checkpointer.resume()


def test_other_model_or_training_is_an_error(tmp_path):
    training = Training()
    training.checkpointer(tmp_path).save("model_final", iteration=1)
    with pytest.raises(InputError, match=r"another model: 0\.weight has shape"):
        Training(width=9).checkpointer(tmp_path).resume()
    with pytest.raises(InputError, match="no scheduler state"):
        training.checkpointer(tmp_path, scheduler=training.optimizer).resume()
    deeper = nn.Sequential(*training.model, nn.Linear(2, 2))
    with pytest.raises(InputError, match=r"only the model has 3\.weight"):
        TrainingCheckpointer(deeper, tmp_path).resume()
    other = torch.optim.SGD(list(training.model.parameters())[:2], lr=0.1, momentum=0.9)
    with pytest.raises(InputError, match=r"the optimizer state in .* does not fit"):
        TrainingCheckpointer(training.model, tmp_path, optimizer=other).resume()


def test_state_that_would_need_pickle_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"checkpoint's extra\['x'\] is a pathlib"):
        Training().checkpointer(tmp_path).save("model_final", extra={"x": Path("a")})
    assert not list(tmp_path.glob("*"))


def test_leftovers_are_removed_at_the_next_start(tmp_path):
    (tmp_path / ".model_0000001.pth.123.partial").write_bytes(b"half")
    (tmp_path / "notes.partial").touch()  # not ours: no leading dot
    Training().checkpointer(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.partial"]


def save_slowly(training: Training, folder: Path, name: str, progress: int) -> None:
    """Save with a pause after every 4 KB, telling the pipe ``progress`` about each."""
    real = atomic._RawWriter.write

    def slow(self, data):
        for start in range(0, len(data), 4096):
            real(self, data[start : start + 4096])
            os.write(progress, b".")
            time.sleep(0.01)
        return len(data)

    atomic._RawWriter.write = slow
    training.checkpointer(folder).save(name, iteration=19)


@pytest.mark.parametrize("name", ["model_0000019", "model_0000009"])
@pytest.mark.parametrize("pieces", [1, 12])
def test_killed_in_the_middle_of_a_write(tmp_path, name, pieces):
    """SIGKILL while a new checkpoint, or the same one again, is half on the disk."""
    training = Training(width=4000)
    training.checkpointer(tmp_path).save("model_0000009", iteration=9)
    before = (tmp_path / "model_0000009.pth").read_bytes()
    training.step()
    told, progress = os.pipe()
    child = os.fork()
    if child == 0:  # the process that dies; it must not return into pytest
        with contextlib.suppress(BaseException):
            save_slowly(training, tmp_path, name, progress)
        os._exit(1)
    for _ in range(pieces):
        assert os.read(told, 1) == b"."
    os.kill(child, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert len(list(tmp_path.glob(".*.partial"))) == 1  # it was in the middle indeed
    assert (tmp_path / "model_0000009.pth").read_bytes() == before
    resumed = Training(width=4000)
    assert resumed.checkpointer(tmp_path).resume() == {"iteration": 9}
    assert not list(tmp_path.glob(".*.partial"))


def assert_full_disk_loses_nothing(folder: Path, big: Training) -> None:
    checkpointer = big.checkpointer(folder)
    with pytest.raises(CheckpointWriteError, match=r"cannot write .*model_0000001\.pth: "):
        checkpointer.save("model_0000001", iteration=1)
    assert sorted(p.name for p in folder.iterdir()) == ["last_checkpoint", "model_0000000.pth"]
    assert Training().checkpointer(folder).resume() == {"iteration": 0}


def test_file_size_limit(tmp_path):
    """A write that fails in the middle (RLIMIT_FSIZE: works without rights)."""
    Training().checkpointer(tmp_path).save("model_0000000", iteration=0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        assert_full_disk_loses_nothing(tmp_path, Training(width=100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB, or a skip where mounting is not allowed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount command")
    if mounted.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_full_disk(small_disk):
    Training().checkpointer(small_disk).save("model_0000000", iteration=0)
    assert_full_disk_loses_nothing(small_disk, Training(width=100_000))


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(file):
        file.write(b"new")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic.write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_read_by_fvcore_and_detectron2(tmp_path):
    checkpointers = pytest.importorskip("detectron2.checkpoint", reason="no detectron2.checkpoint")
    saved = Training()
    saved.step()
    saved.checkpointer(tmp_path).save("model_final", iteration=7)
    read = Training(seed=1)
    theirs = checkpointers.DetectionCheckpointer(
        read.model, str(tmp_path), optimizer=read.optimizer
    )
    assert theirs.has_checkpoint()
    assert theirs.resume_or_load("", resume=True)["iteration"] == 7
    assert_same(saved, read)


def test_reads_detectron2s_files(tmp_path):
    checkpointers = pytest.importorskip("detectron2.checkpoint", reason="no detectron2.checkpoint")
    saved = Training()
    saved.step()
    theirs = checkpointers.DetectionCheckpointer(
        saved.model, str(tmp_path), optimizer=saved.optimizer
    )
    theirs.save("model_0000007", iteration=7)
    read = Training(seed=1)
    assert read.checkpointer(tmp_path).resume()["iteration"] == 7
    assert_same(saved, read)


def test_works_with_fvcores_periodic_checkpointer(tmp_path):
    from fvcore.common.checkpoint import PeriodicCheckpointer

    periodic = PeriodicCheckpointer(Training().checkpointer(tmp_path), period=2, max_iter=5)
    for i in range(5):
        periodic.step(i)
    names = sorted(p.name for p in tmp_path.glob("*.pth"))
    assert names == ["model_0000001.pth", "model_0000003.pth", "model_final.pth"]


def test_weights_of_a_training_checkpoint_prefer_the_average(tmp_path):
    training, average = Training(), Training(seed=5)
    training.checkpointer(tmp_path, ema=average.model).save("model_final", iteration=3)
    for prefer, source in ((True, average), (False, training)):
        target = Training(seed=9).model
        report = load_weights(
            target, tmp_path / "model_final.pth", strict_classes=True, prefer_ema=prefer
        )
        assert torch.equal(target[0].weight, source.model[0].weight)
        assert report.filled == 1
        assert not report.missing
        assert ("moving averages" in report.summary()) is prefer


def test_a_read_checkpoint_never_runs_code(tmp_path):
    flag = tmp_path / "pwned"
    (tmp_path / "model_final.pth").write_bytes(pickle.dumps({"model": Evil(f"touch {flag}")}))
    with pytest.raises(InputError):
        Training().checkpointer(tmp_path).resume()
    time.sleep(0.05)
    assert not flag.exists()
