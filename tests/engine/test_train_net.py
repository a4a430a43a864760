"""``train_net.py`` on the toy detector: what it writes, several processes, what it refuses."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch

from d2proj.engine.config import load_config

UNSET = [f"dataset.{k}=null" for k in ("root", "train_images", "val_images", "image_size")]


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def snapshot(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*")}


def test_a_run_leaves_what_is_documented(toy, tmp_path, capsys):
    assert toy("eval.visualize=3", "eval.period_iters=6", "train.tensorboard=true") == 0
    folder = tmp_path / "run"
    bbox = results(folder)["bbox"]
    assert {"AP", "AP50", "AP75", "APs", "APm", "APl", "AP-0", "AP-9"} <= bbox.keys()
    assert all(value is None or 0 <= value <= 100 for value in bbox.values())
    assert len(list((folder / "pictures").glob("*.png"))) == 3
    assert list(folder.glob("events.out.tfevents.*"))
    names = {p.name for p in folder.glob("model_*.pth")}
    assert names == {"model_0000003.pth", "model_0000007.pth", "model_best.pth", "model_final.pth"}
    cfg = load_config(folder / "config.yaml")
    assert cfg.model.num_classes == 10
    assert list(cfg.dataset.class_names) == list("0123456789")
    saved = torch.load(folder / "model_final.pth", weights_only=True)
    assert saved["class_names"] == list("0123456789")
    assert saved["iteration"] == 11
    rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == list(range(12))
    assert [row["iteration"] for row in rows if "bbox/AP50" in row] == [5, 11]
    assert rows[-1]["bbox/AP50"] == bbox["AP50"]
    output = capsys.readouterr().out
    assert "eta" in output
    assert "images/s" in output
    assert "AP75" in output
    assert "class" in output


def test_eval_only_gives_the_same_numbers_again(toy, tmp_path):
    assert toy() == 0
    trained = results(tmp_path / "run")
    assert toy("--eval-only") == 0
    assert results(tmp_path / "run") == trained
    weights = tmp_path / "run" / "model_final.pth"
    assert toy("--eval-only", f"train.init_checkpoint={weights}", out="other") == 0
    assert results(tmp_path / "other") == trained
    before = snapshot(tmp_path / "other")
    assert toy("--eval-only", f"train.init_checkpoint={weights}", out="other") == 2
    assert snapshot(tmp_path / "other") == before
    cfg = tmp_path / "run" / "config.yaml"
    assert toy("--eval-only", out="run", config=cfg) == 0
    assert results(tmp_path / "run") == trained


def test_ema_is_what_is_evaluated(toy, tmp_path):
    average = ("train.ema.enabled=true", "train.ema.decay=0.99", "train.ema.warmup_iters=1")
    assert toy(*average) == 0
    trained = results(tmp_path / "run")
    assert toy("--eval-only") == 0
    assert results(tmp_path / "run") == trained


def test_a_model_that_finds_nothing_has_ap_zero(toy, tmp_path):
    assert toy("model.silent=true", "eval.visualize=1") == 0
    assert results(tmp_path / "run")["bbox"]["AP"] == 0.0


def test_fast_dev_run(toy, tmp_path):
    for _ in range(2):  # it may always be replaced
        assert toy("train.fast_dev_run=true", "train.max_iter=1000") == 0
    folder = tmp_path / "run" / "fast_dev_run"
    assert (folder / "model_final.pth").exists()
    assert results(folder)
    assert len(list((folder / "pictures").iterdir())) == 2


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_mixed_precision_and_clipping(toy, losses, dtype):
    assert toy(f"train.amp={{enabled: true, dtype: {dtype}}}", "train.clip_grad.max_norm=0.1") == 0
    assert toy("train.clip_grad.max_norm=0.1", out="plain") == 0
    assert losses("run")[0] != losses("plain")[0]
    assert losses("run") == pytest.approx(losses("plain"), rel=0.05)


def test_learning_rate_follows_the_batch_size(toy, tmp_path):
    assert toy("train.lr_batch_size=8", "train.max_iter=4") == 0
    rows = (tmp_path / "run" / "metrics.json").read_text().splitlines()
    assert json.loads(rows[2])["lr"] == pytest.approx(0.05 * 4 / 8 * 0.1**0)


def test_epochs(toy, losses):
    assert toy("train.max_iter=null", "train.epochs=1.5") == 0
    assert len(losses()) == 9  # 24 images, 4 an iteration


PLAIN = ("model.plain=true", "data.aspect_ratio_grouping=false", "train.max_iter=5")


@pytest.mark.parametrize("launcher", ["--num-gpus", "torchrun"])
def test_two_processes_do_what_one_does(toy, toy_process, tmp_path, losses, launcher):
    assert toy(*PLAIN, out="one") == 0
    if launcher == "torchrun":
        run = ("torch.distributed.run", "--standalone", "--nproc-per-node=2")
        process = toy_process(*PLAIN, out="two", before=(sys.executable, "-m", *run))
    else:
        process = toy_process(*PLAIN, "--num-gpus=2", out="two")
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    # torch sums two halves of a batch in another order.
    assert losses("two") == pytest.approx(losses("one"), rel=1e-5)
    one, two = (results(tmp_path / name)["bbox"] for name in ("one", "two"))
    assert two.keys() == one.keys()
    assert {k: v for k, v in two.items() if v is not None} == pytest.approx(
        {k: v for k, v in one.items() if v is not None}, rel=1e-5
    )


def test_an_error_in_one_of_two_processes_is_one_sentence(toy_process, tmp_path):
    process = toy_process("--num-gpus=2", "data.batch_size=3")
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 2, output
    assert output.count("error:") == 1
    assert "Traceback" not in output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train.amp.enalbed=true"], "did you mean train.amp.enabled?"),
        (["optimizer.lr=high"], "must be a number"),
        (["model.num_classes=3"], "model.num_classes is 3"),
        (["dataset.format=pascal"], "dataset.format must be one of"),
        (["dataset.format=coco", *UNSET, "dataset.train.json=/no/such.json"], "/no/such.json"),
        (["train.init_checkpoint=/no/such.pth"], "/no/such.pth"),
        (["train.checkpoint.best_metric=bbox/APP"], "best_metric"),
        (["train.device=tpu"], "train.device"),
        (["train.device=cuda:99"], "train.device"),
        (["train.epochs=null", "train.max_iter=null"], "train.epochs or train.max_iter"),
        (["--resume", "--overwrite"], "exclude each other"),
        (["--eval-only"], "no weights to evaluate"),
        (["--num-machines=2"], "--dist-url"),
        (["--num-machines=2", "--machine-rank=2"], "--machine-rank"),
        (["optimizer._target_=torch.optim.Adam"], "'optimizer' of the config cannot be built"),
        (["model.nan_at=x", "model._target_=no.such.Class"], "cannot be built"),
    ],
)
def test_bad_input(toy, tmp_path, capsys, arguments, words):
    assert toy(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_missing_config_file(toy, capsys):
    assert toy(config=Path("/no/such/config.py")) == 2
    assert capsys.readouterr().err == "error: The config file /no/such/config.py does not exist.\n"


def test_another_runs_directory_is_left_alone(toy, tmp_path, capsys):
    assert toy() == 0
    before = snapshot(tmp_path / "run")
    assert toy() == 2
    assert "--resume" in capsys.readouterr().err
    # Also when asked to replace it, as long as what shall replace it cannot even start.
    assert toy("--overwrite", "model.num_classes=4") == 2
    assert toy("--overwrite", "train.init_checkpoint=/no/such.pth") == 2
    assert snapshot(tmp_path / "run") == before
    (tmp_path / "run" / "mine.txt").write_text("kept")
    assert toy("--overwrite", "train.max_iter=2") == 0
    assert not (tmp_path / "run" / "model_0000003.pth").exists()
    assert (tmp_path / "run" / "mine.txt").exists()


def test_resume_with_another_model_is_refused(toy, tmp_path, capsys):
    assert toy() == 0
    before = snapshot(tmp_path / "run")
    assert toy("--resume", "model.plain=true", "train.max_iter=20") == 2
    assert "another model" in capsys.readouterr().err
    assert snapshot(tmp_path / "run") == before


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_sentence(toy, tmp_path, capsys, monkeypatch):
    assert toy("train.max_iter=4") == 0

    def full(path, write):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("d2proj.checkpoint.training.write_atomically", full)
    capsys.readouterr()
    assert toy("--resume", "train.max_iter=8") == 2
    error = capsys.readouterr().err
    assert "No space left" in error
    assert error.count("\n") == 1
    monkeypatch.undo()
    assert toy("--resume", "train.max_iter=8") == 0


def test_a_damaged_picture_is_named_or_skipped(toy, tmp_path, digits, capsys):
    assert toy("train.max_iter=1") == 0
    data = tmp_path / "data"
    source = next(Path(digits).rglob("*train*.json"))
    coco = json.loads(source.read_text())
    images = next(p.parent for p in Path(digits).rglob(coco["images"][0]["file_name"]))
    data.mkdir()
    for image in coco["images"]:
        (data / image["file_name"]).write_bytes((images / image["file_name"]).read_bytes())
    broken = data / coco["images"][0]["file_name"]
    broken.write_bytes(broken.read_bytes()[:200])
    paths = [
        f"dataset.{s}.{k}={v}"
        for s in ("train", "val")
        for k, v in (("json", source), ("images", data))
    ]
    arguments = ["dataset.format=coco", *UNSET, *paths, "data.workers=2", "train.max_iter=6"]
    capsys.readouterr()
    assert toy(*arguments, out="raise") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert broken.name in error
    assert "Traceback" not in error
    assert toy(*arguments, "data.on_bad_image=skip", out="skip") == 0
