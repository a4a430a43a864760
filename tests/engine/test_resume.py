"""A run that was interrupted anywhere ends with the losses and weights of one that was not."""

import json
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "model_final.pth", weights_only=True)["model"]


def assert_same_run(tmp_path: Path, losses, first: str, second: str) -> None:
    assert losses(first) == losses(second)
    ours, theirs = weights(tmp_path / first), weights(tmp_path / second)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def wait_for(condition, process, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "the run did not get so far"
        time.sleep(0.002)


@pytest.mark.parametrize("extra", [(), ("train.ema.enabled=true", "train.ema.decay=0.9")])
def test_resume_after_a_stop_is_bitwise_the_same(toy, tmp_path, losses, extra):
    assert toy(*extra, out="whole") == 0
    assert toy(*extra, out="parts") == 0
    # As if killed after iteration 9: the checkpoint of iteration 7 is the last.
    (tmp_path / "parts" / "model_final.pth").unlink()
    (tmp_path / "parts" / "last_checkpoint").write_text("model_0000007.pth")
    assert toy("--resume", "data.workers=1", *extra, out="parts") == 0
    assert_same_run(tmp_path, losses, "whole", "parts")
    assert weights(tmp_path / "parts")["progress"] == pytest.approx(11 / 12)
    if extra:
        ema = torch.load(tmp_path / "parts" / "model_final.pth", weights_only=True)["ema"]
        assert ema["updates"] == 12


@pytest.mark.parametrize("moment", ["training", "writing a checkpoint"])
def test_resume_after_sigkill(toy, toy_process, tmp_path, losses, moment):
    slow = ("train.max_iter=60", "train.checkpoint.period_iters=5")
    assert toy(*slow, out="whole") == 0
    folder = tmp_path / "killed"
    process = toy_process(*slow, out="killed")
    metrics = folder / "metrics.json"
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") > 12, process)
    if moment == "writing a checkpoint":
        wait_for(lambda: any(folder.glob(".*.partial")), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (folder / "model_final.pth").exists()
    assert toy("--resume", *slow, out="killed") == 0
    assert_same_run(tmp_path, losses, "whole", "killed")
    assert not list(folder.glob(".*.partial"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(toy, toy_process, tmp_path, losses, number):
    long = ("train.max_iter=3000", "train.checkpoint.period_epochs=0")
    process = toy_process(*long, "train.checkpoint.period_iters=null", out="stopped")
    metrics = tmp_path / "stopped" / "metrics.json"
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") > 3, process)
    process.send_signal(number)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + number
    assert "--resume" in output
    assert "Traceback" not in output
    done = max(losses("stopped"))
    assert (tmp_path / "stopped" / "last_checkpoint").read_text() == f"model_{done:07d}.pth"
    assert toy("--resume", f"train.max_iter={done + 3}", out="stopped") == 0
    assert sorted(losses("stopped")) == list(range(done + 3))


@pytest.mark.slow
def test_resume_of_two_processes(toy_process, tmp_path, losses):
    run = toy_process("--num-gpus=2", out="whole")
    assert run.wait(120) == 0, run.communicate()[0]
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    (tmp_path / "parts" / "model_final.pth").unlink()
    (tmp_path / "parts" / "last_checkpoint").write_text("model_0000007.pth")
    run = toy_process("--num-gpus=2", "--resume", out="parts")
    assert run.wait(120) == 0, run.communicate()[0]
    assert_same_run(tmp_path, losses, "whole", "parts")


@pytest.mark.slow
def test_a_signal_to_the_process_that_started_two(toy_process, tmp_path, losses):
    process = toy_process("--num-gpus=2", "train.max_iter=100000")
    metrics = tmp_path / "run" / "metrics.json"
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") > 3, process)
    process.terminate()
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + signal.SIGTERM, output
    assert output.count("--resume") == 1
    assert "Traceback" not in output
    last = (tmp_path / "run" / "last_checkpoint").read_text()
    assert last == f"model_{max(losses()):07d}.pth"


def test_a_torn_metrics_line_is_repaired(toy, tmp_path, losses):
    assert toy("train.max_iter=8") == 0
    metrics = tmp_path / "run" / "metrics.json"
    text = metrics.read_text()
    metrics.write_text(text + text.splitlines()[-1] + "\n" + text[:20])
    (tmp_path / "run" / "last_checkpoint").write_text("model_0000003.pth")
    assert toy("--resume", "train.max_iter=8") == 0
    assert sorted(losses()) == list(range(8))


def test_resume_keeps_a_drawn_seed(toy, tmp_path, losses):
    assert toy("train.seed=-1") == 0
    before = losses()
    (tmp_path / "run" / "last_checkpoint").write_text("model_0000003.pth")
    (tmp_path / "run" / "model_final.pth").unlink()
    assert toy("train.seed=-1", "--resume") == 0
    assert losses() == before


def test_resume_of_a_complete_run_changes_nothing(toy, tmp_path, capsys):
    assert toy() == 0
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").glob("*.pth")}
    assert toy("--resume") == 0
    assert "complete" in capsys.readouterr().out
    assert files == {p: p.stat().st_mtime_ns for p in (tmp_path / "run").glob("*.pth")}


def test_nonfinite_loss_saves_the_last_good_state(toy, tmp_path, capsys, losses):
    assert toy("model.nan_at=5", "train.checkpoint.period_iters=100") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "loss_cls = nan" in error
    assert "iteration 5" in error
    report = json.loads((tmp_path / "run" / "nonfinite_0000005.json").read_text())
    assert len(report["processes"][0]["images"]) == 4
    assert all(name in error for name in report["processes"][0]["images"])
    saved = torch.load(tmp_path / "run" / "model_0000004.pth", weights_only=True)
    assert saved["iteration"] == 4
    assert saved["model"]["batches"] == 5
    assert all(bool(value.isfinite().all()) for value in saved["model"].values())
    # Once the cause is mended, the run goes on as if it had not been there.
    assert toy("--resume", "model.nan_at=null") == 0
    assert toy(out="whole") == 0
    assert_same_run(tmp_path, losses, "run", "whole")
