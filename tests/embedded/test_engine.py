"""The training loop, its hooks, and starting several processes."""

import json
import math

import pytest
import torch
import torch.distributed as dist
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import (
    AMPTrainer,
    HookBase,
    SimpleTrainer,
    create_ddp_model,
    default_argument_parser,
    default_setup,
    default_writers,
    hooks,
    launch,
)
from detectron2.utils import comm
from fvcore.common.param_scheduler import MultiStepParamScheduler
from omegaconf import OmegaConf
from torch import nn

from d2proj import _detectron2


class Net(nn.Module):
    def __init__(self, factor=1.0):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.factor = factor

    def forward(self, x):
        y = self.linear(x)
        return {"loss_a": (y**2).mean() * self.factor, "loss_b": y.abs().mean()}


def batches(seed=0):
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.rand(4, 3, generator=generator)


def make_trainer(model=None, **kwargs):
    torch.manual_seed(0)
    model = model or Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    return SimpleTrainer(model, batches(), optimizer, **kwargs)


class Recorder(HookBase):
    def __init__(self):
        self.calls = []

    def before_train(self):
        self.calls.append("before_train")

    def after_train(self):
        self.calls.append(("after_train", self.trainer.iter))

    def before_step(self):
        self.calls.append("before_step")

    def after_backward(self):
        self.calls.append("after_backward")

    def after_step(self):
        assert self.trainer.storage.iter == self.trainer.iter
        self.calls.append("after_step")

    def state_dict(self):
        return {"calls": len(self.calls)}

    def load_state_dict(self, state):
        self.loaded = state


def test_order_of_the_hooks():
    trainer, recorder = make_trainer(), Recorder()
    trainer.register_hooks([None, recorder])
    trainer.train(3, 5)
    step = ["before_step", "after_backward", "after_step"]
    assert recorder.calls == ["before_train", *step, *step, ("after_train", 5)]


def test_training_is_plain_sgd():
    trainer = make_trainer()
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    trainer.train(0, 5)
    for data, _ in zip(batches(), range(5), strict=False):
        optimizer.zero_grad()
        sum(model(data).values()).backward()
        optimizer.step()
    assert torch.equal(trainer.model.linear.weight, model.linear.weight)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_infinite_loss_stops(asynchronous):
    trainer = make_trainer(Net(math.nan), async_write_metrics=asynchronous)
    recorder = Recorder()
    trainer.register_hooks([recorder])
    if asynchronous and not _detectron2.is_embedded():
        pytest.skip("the installed Detectron2 only logs it and goes on")
    with pytest.raises(FloatingPointError, match="loss_a"):
        trainer.train(0, 20)
    assert recorder.calls[-1][0] == "after_train"


def test_eval_mode_is_noticed():
    trainer = make_trainer()
    trainer.model.eval()
    with pytest.raises(AssertionError, match="eval mode"):
        trainer.train(0, 1)


def test_writers_and_evaluation(tmp_path):
    trainer = make_trainer()
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=MultiStepParamScheduler([1, 0.1], milestones=[6, 10])),
            hooks.EvalHook(4, lambda: {"bbox": {"AP": 3.0, "by": {"x": 2}}}),
            hooks.PeriodicWriter(default_writers(str(tmp_path), 10), period=4),
            hooks.TorchMemoryStats(),
        ]
    )
    trainer.train(0, 10)
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [3, 7, 9, 10]
    assert {"total_loss", "loss_a", "loss_b", "data_time", "lr", "bbox/AP"} <= set(lines[0])
    assert [line["lr"] for line in lines[:3]] == pytest.approx([0.1, 0.01, 0.01])
    assert lines[-1] == {"iteration": 10, "bbox/AP": 3.0, "bbox/by/x": 2.0}
    assert len(trainer.storage.history("time").values()) == 8
    assert any(p.name.startswith("events.out.tfevents") for p in tmp_path.iterdir())


def test_metrics_are_gathered_now_and_then():
    trainer = make_trainer(gather_metric_period=3)
    trainer.train(0, 7)
    assert [i for _, i in trainer.storage.history("total_loss").values()] == [2, 5]


def test_resumed_training_is_the_same(tmp_path):
    def run(folder, start, stop, data):
        folder.mkdir(exist_ok=True)
        torch.manual_seed(0)
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        trainer = SimpleTrainer(model, data, optimizer)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
        saver = DetectionCheckpointer(model, str(folder), trainer=trainer)
        trainer.register_hooks(
            [hooks.LRScheduler(scheduler=scheduler), hooks.PeriodicCheckpointer(saver, 100)]
        )
        saver.resume_or_load("", resume=True)
        assert trainer.iter == max(start - 1, 0)
        trainer.train(start, stop)
        return trainer

    data = batches()
    run(tmp_path / "a", 0, 4, data)
    resumed = run(tmp_path / "a", 4, 8, data)
    whole = run(tmp_path / "b", 0, 8, batches())
    assert torch.equal(resumed.model.linear.weight, whole.model.linear.weight)
    state = torch.load(tmp_path / "a" / "model_final.pth", weights_only=True)
    assert state["iteration"] == state["trainer"]["iteration"] == 7
    assert set(state["trainer"]) == {"iteration", "hooks", "optimizer"}


@pytest.mark.parametrize(
    ("mode", "scores", "saves"), [("max", [3, 4, 2, 5], 3), ("min", [math.nan, 3, 4, 2], 2)]
)
def test_best_checkpoint(tmp_path, mode, scores, saves):
    trainer = make_trainer()
    saved = []
    saver = DetectionCheckpointer(trainer.model, str(tmp_path))
    saver.save = lambda name, **extra: saved.append((name, extra))
    values = iter(scores)
    trainer.register_hooks(
        [
            hooks.EvalHook(2, lambda: {"score": next(values)}),
            hooks.BestCheckpointer(2, saver, "score", mode=mode),
        ]
    )
    trainer.train(0, 8)
    assert len(saved) == saves
    assert saved[0][0] == "model_best"


def test_hook_state_is_kept():
    trainer, recorder = make_trainer(), Recorder()
    trainer.register_hooks([recorder])
    trainer.train(0, 1)
    state = trainer.state_dict()
    assert state["hooks"] == {"Recorder": {"calls": 5}}
    trainer.load_state_dict(state)
    assert recorder.loaded == {"calls": 5}


def test_results_must_be_numbers():
    for result, error in (({"a": "text"}, ValueError), ([1], AssertionError)):
        trainer = make_trainer()
        trainer.register_hooks([hooks.EvalHook(1, lambda result=result: result)])
        with pytest.raises(error):
            trainer.train(0, 2)


def test_mixed_precision_needs_cuda():
    model = Net()
    trainer = AMPTrainer(model, batches(), torch.optim.SGD(model.parameters(), 0.1))
    assert "grad_scaler" in trainer.state_dict()
    if not torch.cuda.is_available():
        with pytest.raises(AssertionError, match="CUDA"):
            trainer.train(0, 1)


def test_command_line():
    parser = default_argument_parser()
    args = parser.parse_args([])
    assert (args.config_file, args.num_gpus, args.resume, args.opts) == ("", 1, False, [])
    args = parser.parse_args(
        ["--config-file", "a.py", "--num-gpus", "2", "--eval-only", "a.b=1", "c=2"]
    )
    assert args.config_file == "a.py"
    assert args.eval_only
    assert args.opts == ["a.b=1", "c=2"]


def test_default_setup(tmp_path):
    config = OmegaConf.create({"train": {"output_dir": str(tmp_path / "out"), "seed": 3}})
    draws = []
    for _ in range(2):
        default_setup(config, default_argument_parser().parse_args([]))
        draws.append(torch.rand(1).item())
    assert draws[0] == draws[1]
    assert OmegaConf.load(tmp_path / "out" / "config.yaml") == config
    assert (tmp_path / "out" / "log.txt").stat().st_size > 0


def _worker(folder):
    torch.manual_seed(comm.get_rank())
    model = create_ddp_model(Net(), broadcast_buffers=False, device_ids=None)
    trainer = SimpleTrainer(
        model, batches(comm.get_rank()), torch.optim.SGD(model.parameters(), 0.1)
    )
    trainer.train(0, 3)
    total = trainer.storage.history("total_loss").values() if comm.is_main_process() else None
    weights = model.module.linear.weight.detach()
    torch.save(
        (comm.get_world_size(), comm.get_local_rank(), weights, total),
        f"{folder}/{comm.get_rank()}.pth",
    )
    assert dist.get_backend() == "gloo"


@pytest.mark.skipif(torch.cuda.is_available(), reason="the processes would want a GPU each")
def test_two_processes(tmp_path):
    launch(_worker, 2, dist_url="auto", args=(str(tmp_path),))
    first, second = (torch.load(tmp_path / f"{r}.pth", weights_only=False) for r in (0, 1))
    assert (first[0], first[1], second[1]) == (2, 0, 1)
    assert torch.equal(first[2], second[2])
    assert len(first[3]) == 3
    seen = []
    launch(seen.append, 1, args=(7,))
    assert seen == [7]
