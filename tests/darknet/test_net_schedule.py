"""[net]'s learning rate against a transcription of darknet's get_current_rate; SGD's numbers."""

import math
import re
from pathlib import Path

import pytest
import torch

from d2proj.darknet.cfg import read_cfg
from d2proj.darknet.schedule import DarknetSchedule, DarknetSGD
from d2proj.errors import InputError

HEAD = "[net]\nwidth=32\nheight=32\nbatch=64\nlearning_rate=0.002\n"
TAIL = "[convolutional]\n"
POLICIES = {
    "constant": "burn_in=10\npolicy=constant\nmax_batches=200\n",
    "default": "max_batches=200\n",
    "step": "policy=step\nstep=30\nscale=.5\nmax_batches=200\n",
    "steps": "burn_in=20\npower=2\npolicy=steps\nsteps=50,100,150\nscales=.1,10,.5\n"
    "max_batches=200\n",
    "exp": "policy=exp\ngamma=.99\nmax_batches=200\n",
    "poly": "policy=poly\npower=3\nburn_in=15\nmax_batches=200\n",
    "sigmoid": "policy=sigmoid\ngamma=.05\nstep=90\nmax_batches=200\n",
    "sgdr": "policy=sgdr\nsgdr_cycle=20\nlearning_rate_min=.0001\nmax_batches=200\n",
    "sgdr of equal cycles": "policy=sgdr\nsgdr_cycle=30\nsgdr_mult=1\nmax_batches=200\n",
    "sgdr once": "policy=sgdr\nburn_in=12\nmax_batches=200\n",
}


def write(folder: Path, options: str) -> Path:
    path = folder / "x.cfg"
    path.write_text(HEAD + options + TAIL)
    return path


def darknet_rate(text: str, batch_num: int) -> float:
    """get_current_rate; batch_num is seen / batch, which counts the batch that is learnt from."""
    options = dict(re.findall(r"^(\w+)\s*=\s*(\S+)", text, re.MULTILINE)[::-1])
    rate = float(options.get("learning_rate", 0.001))
    power = float(options.get("power", 4))
    burn_in = int(options.get("burn_in", 0))
    if batch_num < burn_in:
        return rate * (batch_num / burn_in) ** power
    policy = options.get("policy", "constant")
    if policy == "step":
        return rate * float(options["scale"]) ** (batch_num // int(options["step"]))
    if policy == "steps":
        steps, scales = options["steps"].split(","), options["scales"].split(",")
        for step, scale in zip(steps, scales, strict=True):
            if int(step) > batch_num:
                return rate
            rate *= float(scale)
        return rate
    if policy == "exp":
        return rate * float(options["gamma"]) ** batch_num
    if policy == "poly":
        return rate * (1 - batch_num / int(options["max_batches"])) ** power
    if policy == "sigmoid":
        gamma, step = float(options["gamma"]), int(options["step"])
        return rate * (1 / (1 + math.exp(gamma * (batch_num - step))))
    if policy == "sgdr":
        cycle = int(options.get("sgdr_cycle", options["max_batches"]))
        start, lowest = 0, float(options.get("learning_rate_min", 0.00001))
        while start + cycle < batch_num:
            start += cycle
            cycle *= int(options.get("sgdr_mult", 2))
        turn = math.cos((batch_num - start) * 3.14159265 / cycle)
        return lowest + 0.5 * (rate - lowest) * (1 + turn)
    return rate


@pytest.mark.parametrize("name", POLICIES)
def test_rates_are_darknets(name: str, tmp_path: Path) -> None:
    path = write(tmp_path, POLICIES[name])
    schedule = DarknetSchedule(cfg_file=path)
    ours = [0.002 * schedule.factor(i, 200) for i in range(200)]
    theirs = [darknet_rate(path.read_text(), i + 1) for i in range(200)]
    assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-12)
    assert name in ("default",) or len(set(theirs)) > 1


def test_published_files(data) -> None:
    for path in [*data.glob("cfg/*.cfg"), *data.glob("weights/*.cfg")]:
        text = path.read_text().split("[convolutional]")[0].split("[crop]")[0]
        length = int(re.search(r"^\s*max_batches\s*=\s*(\d+)", text, re.MULTILINE)[1])
        schedule = DarknetSchedule(cfg_file=path)
        rate = read_cfg(path)[0].number("learning_rate", 0.001)
        for i in (0, 1, 500, 999, 1000, 39_999, length // 2, length * 85 // 100, length - 1):
            expected = darknet_rate(text, i + 1)
            assert rate * schedule.factor(i, length) == pytest.approx(expected, rel=1e-6), path


def test_a_run_of_another_length_has_the_same_curve(tmp_path: Path) -> None:
    """Steps at the same parts of the run; burn_in counts iterations, of half a run at most."""
    schedule = DarknetSchedule(cfg_file=write(tmp_path, POLICIES["steps"]))
    long = [schedule.factor(i, 2000) for i in range(2000)]
    assert long[9] == pytest.approx((10 / 20) ** 2)
    assert long[20] == long[498] == 1
    assert long[499] == long[998] == pytest.approx(0.1)
    assert long[999] == pytest.approx(1.0)
    assert long[1999] == pytest.approx(0.5)
    short = [schedule.factor(i, 20) for i in range(20)]
    assert short[:5] == pytest.approx([(k / 10) ** 2 for k in range(1, 6)])
    assert short[19] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("policy=cosine\n", "line 6, [net]: policy must be one of constant, step, steps"),
        ("policy=random\n", "policy must be one of"),
        ("policy=steps\nsteps=1,2\nscales=.1\n", "as many scales as steps, got 2 steps and 1"),
        ("policy=poly\n", "policy=poly needs max_batches"),
        ("policy=sgdr\n", "policy=sgdr needs sgdr_cycle or max_batches"),
        ("policy=exp\ngamma=-2\n", "gamma must be at least 0"),
        ("learning_rate_min=-1\n", "learning_rate_min must be at least 0"),
        ("burn_in=-5\n", "burn_in must be a whole number"),
    ],
)
def test_nonsense_is_named(options: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        DarknetSchedule(cfg_file=write(tmp_path, options))
    assert message in str(caught.value)


def test_a_rate_that_explodes_is_named(tmp_path: Path) -> None:
    schedule = DarknetSchedule(cfg_file=write(tmp_path, "policy=exp\ngamma=9\nmax_batches=9999\n"))
    with pytest.raises(InputError, match="learning rate becomes infinite"):
        schedule.factor(9998, 9999)


@pytest.mark.parametrize(("batch_size", "expected"), [(64, 0.002), (8, 0.00025), (256, 0.002)])
def test_sgd_takes_the_files_numbers(tmp_path: Path, batch_size: int, expected: float) -> None:
    path = write(tmp_path, "momentum=.949\ndecay=.0005\n")
    weight = torch.nn.Parameter(torch.zeros(1))
    (group,) = DarknetSGD([weight], cfg_file=path, batch_size=batch_size).param_groups
    assert group["lr"] == pytest.approx(expected)
    assert (group["momentum"], group["weight_decay"]) == (0.949, 0.0005)
    options = {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.0}
    (group,) = DarknetSGD([weight], cfg_file=path, batch_size=8, **options).param_groups
    assert {key: group[key] for key in options} == options


def test_sgd_steps_as_darknet_does(tmp_path: Path) -> None:
    """update_convolutional_layer: updates are sums over the batch of minus the gradient."""
    path = write(tmp_path, "momentum=.9\ndecay=.01\n")
    weight = torch.nn.Parameter(torch.tensor([0.5], dtype=torch.float64))
    optimizer = DarknetSGD([weight], cfg_file=path, batch_size=4)
    rate, batch, w, update = 0.002 * 4 / 64, 4, 0.5, 0.0
    for step in range(5):
        gradients = [math.sin(3 * step + k) for k in range(batch)]
        weight.grad = torch.tensor([sum(gradients) / batch], dtype=torch.float64)
        optimizer.step()
        update -= sum(gradients)
        update -= 0.01 * batch * w
        w += rate / batch * update
        update *= 0.9
        assert weight.item() == pytest.approx(w, rel=1e-12)


def test_adam_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="adam=1 is not taken from the file"):
        DarknetSGD([torch.zeros(1)], cfg_file=write(tmp_path, "adam=1\n"), batch_size=4)
    with pytest.raises(InputError, match=r"model\.cfg_file must be the path"):
        DarknetSchedule(cfg_file=None)
