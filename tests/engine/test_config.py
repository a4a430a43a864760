"""Configuration files and overrides: what is taken, and the sentence for what is not."""

import builtins
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from d2proj.engine.config import build, load_config, save_config, set_num_classes
from d2proj.engine.overrides import parse_value
from d2proj.errors import InputError

TOY = Path(__file__).parent / "toy_config.py"


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.max_iter=1e3", "train.max_iter", 1000),
        ("train.epochs=3", "train.epochs", 3),
        ("train.epochs=null", "train.epochs", None),
        ("train.amp={enabled: true, dtype: fp16}", "train.amp.dtype", "fp16"),
        ("train.output_dir=2024", "train.output_dir", "2024"),
        ("train.output_dir='a: b # c'", "train.output_dir", "a: b # c"),
        ("train.output_dir=a=b", "train.output_dir", "a=b"),
        ("train.output_dir=C:\\x: y", "train.output_dir", "C:\\x: y"),
        ("optimizer.lr=1e-3", "optimizer.lr", 1e-3),
        ("optimizer.lr=1", "optimizer.lr", 1),
        ("optimizer.nesterov=true", "optimizer.nesterov", True),  # SGD takes it, the file is silent
        ("schedule.milestones=[0.5]", "schedule.milestones", [0.5]),
        ("schedule.milestones=(0.5, 0.75)", "schedule.milestones", [0.5, 0.75]),
        ("schedule.milestones[1]=0.95", "schedule.milestones[1]", 0.95),
        ("schedule.milestones.1=0.95", "schedule.milestones[1]", 0.95),
        ("dataset.class_names=[a, 'b c']", "dataset.class_names", ["a", "b c"]),
        ("dataset.train.json=/data/x.json", "dataset.train.json", "/data/x.json"),
        ("train.seed=${data.batch_size}", "train.seed", 4),
        ("optimizer._target_=torch.optim.Adam", "optimizer._target_", "torch.optim.Adam"),
    ],
)
def test_override(override, key, value):
    assert OmegaConf.select(load_config(TOY, [override]), key) == value


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.amp.enalbed=True", "did you mean train.amp.enabled?"),
        ("trian.max_iter=3", "did you mean train.max_iter?"),
        ("lr=0.1", "did you mean optimizer.lr?"),
        ("schedule.milestones[2]=1", "no key 'schedule.milestones[2]'"),
        ("train.seed.x=1", "'train.seed' is a value"),
        ("train.max_iter=many", "train.max_iter must be a whole number >= 1 or null, not 'many'"),
        ("train.max_iter=0", "a whole number >= 1"),
        ("train.max_iter=2.5", "a whole number"),
        ("train.amp.enabled=1", "true or false"),
        ("train.amp.enabled=null", "true or false"),
        ("train.amp.dtype=fp8", "bf16 | fp16"),
        ("train.amp={enalbed: true}", "did you mean train.amp.enabled?"),
        ("train.amp=3", "a set of keys"),
        ("optimizer.lr=fast", "optimizer.lr must be a number, not 'fast'"),
        ("optimizer.lr=true", "a number"),
        ("schedule.milestones=0.5", "a list"),
        ("schedule.milestones=[a]", "'a' is none"),
        ("schedule.milestones=[0.5", "cannot be read"),
        ("train.output_dir=[a]", "a string"),
        ("train.max_iter", "not of the form key=value"),
        ("=3", "not of the form key=value"),
        ("data.on_bad_image=ignore", "raise | skip"),
    ],
)
def test_bad_override(override, words):
    with pytest.raises(InputError) as error:
        load_config(TOY, [override])
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_values():
    assert [parse_value(t) for t in ("1", "1.5", "true", "x y", "")] == [1, 1.5, True, "x y", ""]
    assert parse_value("null") is parse_value("None") is None
    assert parse_value("1e-3") == 1e-3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train = dict(\n  a=1\n", "line 1"),
        ("x = 1\nimport no_such_module\n", "line 2: ModuleNotFoundError"),
        ("x = 1\n\n1 / 0\n", "line 3: ZeroDivisionError"),
        ("from .absent import model\n", "absent"),
        ("train = dict(epochs=1)\n", "has no 'model'"),
    ],
)
def test_bad_file(tmp_path, text, words):
    file = tmp_path / "broken.py"
    file.write_text(text)
    with pytest.raises(InputError) as error:
        load_config(file)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert builtins.__import__.__module__ == "builtins"


@pytest.mark.parametrize("name", ["absent.py", "config.txt", "."])
def test_missing_file(tmp_path, name):
    with pytest.raises(InputError):
        load_config(tmp_path / name)


def test_bad_yaml(tmp_path):
    (tmp_path / "config.yaml").write_text("train: [1\nmodel: {")
    with pytest.raises(InputError, match="no YAML"):
        load_config(tmp_path / "config.yaml")


def test_a_key_that_a_file_misspells_is_found(tmp_path):
    file = TOY.with_name("misspelt_config.py")
    try:
        file.write_text(TOY.read_text() + "\ntrain.log_perod = 3\n")
        with pytest.raises(InputError, match="log_perod"):
            load_config(file)
    finally:
        file.unlink()


def test_saved_config_is_the_same_again(tmp_path):
    cfg = load_config(TOY, ["train.seed=7", "dataset.class_names=[a, b]"])
    save_config(cfg, tmp_path / "config.yaml")
    again = load_config(tmp_path / "config.yaml", ["train.log_period=5"])
    assert again.train.seed == 7
    assert list(again.dataset.class_names) == ["a", "b"]
    assert build(again, "schedule").milestones == build(cfg, "schedule").milestones
    assert type(build(again, "model", num_classes=2)).__name__ == "ToyDetector"


def test_num_classes_must_be_the_data_sets():
    cfg = load_config(TOY)
    set_num_classes(cfg, ["a", "b"])
    assert cfg.model.num_classes == 2
    with pytest.raises(InputError, match=r"model.num_classes is 2, but the data set has 3 classes"):
        set_num_classes(cfg, ["a", "b", "c"])


@pytest.mark.parametrize(
    ("override", "node"),
    [("optimizer._target_=torch.optim.Adam", "optimizer"), ("schedule.gamma='x'", "schedule")],
)
def test_what_cannot_be_built(override, node):
    if node == "optimizer":
        cfg = load_config(TOY, [override])  # Adam has no momentum
        with pytest.raises(
            InputError, match=r"'optimizer' of the config cannot be built: .*momentum"
        ):
            build(cfg, node, **{"params.model": torch.nn.Linear(1, 1)})
    else:
        with pytest.raises(InputError):
            load_config(TOY, [override])
