"""Events, logging, registries, seeding, files, pickling and the processes of a job."""

import json
import logging
import pickle
import random
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventStorage,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
    has_event_storage,
)
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import (
    create_small_table,
    log_every_n,
    log_every_n_seconds,
    log_first_n,
    setup_logger,
)
from detectron2.utils.registry import Registry, locate
from detectron2.utils.serialize import PicklableWrapper


def test_the_current_storage_is_the_innermost() -> None:
    assert not has_event_storage()
    with EventStorage(3) as outer:
        with EventStorage() as inner:
            assert get_event_storage() is inner
        assert get_event_storage() is outer
        assert outer.iter == 3
    with pytest.raises(AssertionError):
        get_event_storage()


def test_scalars_and_their_medians() -> None:
    with EventStorage() as storage:
        for i in range(8):
            storage.put_scalar("noisy", torch.tensor(float(i * i)))
            storage.put_scalars(exact=i, smoothing_hint=False)
            storage.step()
        assert storage.latest() == {"noisy": (49.0, 7), "exact": (7.0, 7)}
        assert storage.latest_with_smoothing_hint(3) == {"noisy": (36.0, 7), "exact": (7.0, 7)}
        assert storage.count_samples("noisy", 3) == 3
        assert storage.count_samples("noisy", 20) == 8
        storage.iter = 100
        assert storage.count_samples("noisy", 3) == 3  # counted back from its own last value
        storage.put_scalar("exact", 1, smoothing_hint=False, cur_iter=50)
        assert storage.latest()["exact"] == (1.0, 50)
        with storage.name_scope("val"):
            storage.put_scalar("loss", 2)
        assert storage.history("val/loss").latest() == 2
        with pytest.raises(AssertionError):
            storage.put_scalar("exact", 1)
        with pytest.raises(KeyError):
            storage.history("nothing")


def test_metrics_json(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    with EventStorage() as storage:
        writer = JSONWriter(str(path))
        for i in range(6):
            storage.put_scalar("loss", i)
            if i % 2 == 0:
                storage.put_scalar("lr", i / 10, smoothing_hint=False)
            if i % 3 == 2:
                writer.write()
            storage.step()
        writer.write()
        writer.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [
        {"iteration": 2, "loss": 1.0, "lr": 0.2},
        {"iteration": 5, "loss": 2.5},
        {"iteration": 4, "lr": 0.4},
    ]
    assert list(lines[0]) == sorted(lines[0])


def test_tensorboard_files_appear_with_the_first_event(tmp_path: Path) -> None:
    with EventStorage() as storage:
        writer = TensorboardXWriter(str(tmp_path))
        writer.close()
        assert not list(tmp_path.iterdir())
        writer = TensorboardXWriter(str(tmp_path))
        storage.put_scalar("loss", 1)
        storage.put_image("picture", torch.zeros(3, 4, 4))
        storage.put_histogram("values", torch.arange(10.0), bins=5)
        writer.write()
        writer.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.value for event in events.Scalars("loss")] == [1.0]
    assert events.Tags()["images"] == ["picture"]
    assert [event.histogram_value.num for event in events.Histograms("values")] == [10]


@pytest.fixture
def printed(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    logger = logging.getLogger("detectron2")
    propagate, logger.propagate = logger.propagate, True
    with caplog.at_level(logging.INFO, logger="detectron2"):
        yield caplog
    logger.propagate = propagate


def test_the_metric_line(printed: pytest.LogCaptureFixture) -> None:
    with EventStorage() as storage:
        for i in range(25):
            storage.put_scalars(loss_cls=i, time=0.5, data_time=i / 100)
            storage.put_scalar("lr", 0.02, smoothing_hint=False)
            storage.step()
        CommonMetricPrinter(3000).write()
        assert storage.latest()["eta_seconds"][0] == 0.5 * (3000 - 25 - 1)
        storage.iter = 3000
        CommonMetricPrinter(3000).write()  # over: nothing is left to announce
        CommonMetricPrinter().write()
    first, second = printed.messages
    assert re.sub(" +", " ", re.sub("max_mem.*", "", first)).strip() == (
        "eta: 0:24:47 iter: 25 loss_cls: 14.5 time: 0.5000 last_time: 0.5000 "
        "data_time: 0.1450 last_data_time: 0.2400 lr: 0.02"
    )
    assert "eta" not in second


def test_logger_writes_to_the_terminal_and_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path / "run")
    for _ in range(2):
        logger = setup_logger(folder, name="d2proj_test_a", abbrev_name="a", color=False)
    logging.getLogger("d2proj_test_a.part").debug("one")
    logger.warning("two")
    lines = (tmp_path / "run" / "log.txt").read_text().splitlines()
    stamp = r"\[\d\d/\d\d \d\d:\d\d:\d\d\] "
    assert re.fullmatch(stamp + r"d2proj_test_a\.part DEBUG: one", lines[0])
    assert re.fullmatch(stamp + "d2proj_test_a WARNING: two", lines[1])
    assert len(lines) == 2
    assert capsys.readouterr().out.splitlines() == lines


def test_other_ranks_log_to_their_own_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = setup_logger(str(tmp_path / "x.txt"), distributed_rank=2, name="d2proj_test_b")
    logger.info("hello")
    assert "hello" in (tmp_path / "x.txt.rank2").read_text()
    assert capsys.readouterr().out == ""


def test_logs_that_do_not_flood(printed: pytest.LogCaptureFixture) -> None:
    name = "detectron2.test"
    for i in range(5):
        log_first_n(logging.INFO, f"first {i}", 2, name=name)
        log_first_n(logging.INFO, f"message {i % 2}", name=name, key="message")
        log_every_n(logging.INFO, f"every {i}", 2, name=name)
        log_every_n_seconds(logging.INFO, f"seconds {i}", 100, name=name)
    assert sorted(printed.messages) == [
        "every 0", "every 2", "every 4", "first 0", "first 1", "message 0", "message 1",
        "seconds 0",
    ]  # fmt: skip


def test_small_table() -> None:
    table = create_small_table({"AP": 12.3456, "AP50": float("nan"), "n": 3})
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert cells[0] == ["AP", "AP50", "n"]
    assert cells[2] == ["12.346", "nan", "3"]


class Outer:
    class Inner:
        pass


def test_locate() -> None:
    assert locate("torch.optim.SGD") is torch.optim.SGD
    assert locate("builtins.len") is len
    assert locate(f"{__name__}.Outer.Inner") is Outer.Inner
    for missing in ("no_such_module", "no_such_module.x", "torch.nn.Nope", "torch.nn.ReLU.nope"):
        with pytest.raises(ImportError):
            locate(missing)
    registry = Registry("TEST")
    registry.register(Outer)
    assert registry.get("Outer") is Outer


def test_seeding_covers_all_generators() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(1))  # noqa: NPY002

    seed_all_rng(7)
    first = draw()
    seed_all_rng(7)
    assert draw() == first
    seed_all_rng()
    assert draw() != first


def test_paths(tmp_path: Path) -> None:
    path = str(tmp_path / "a" / "b.txt")
    PathManager.mkdirs(str(tmp_path / "a"))
    with PathManager.open(path, "w") as file:
        file.write("x")
    assert PathManager.isfile(path)
    assert PathManager.get_local_path(path) == path


def test_closures_pickle() -> None:
    offset = 3
    wrapped = PicklableWrapper(lambda value: value + offset)
    assert wrapped(1) == 4
    assert pickle.loads(pickle.dumps(wrapped))(1) == 4
    assert PicklableWrapper(wrapped)._obj is wrapped._obj
    assert wrapped.__name__ == "<lambda>"


def test_comm_without_a_job() -> None:
    assert (comm.get_world_size(), comm.get_rank()) == (1, 0)
    assert (comm.get_local_size(), comm.get_local_rank()) == (1, 0)
    assert comm.is_main_process()
    comm.synchronize()
    assert comm.all_gather("x") == comm.gather("x") == ["x"]
    losses = {"a": torch.tensor(1.0)}
    assert comm.reduce_dict(losses) is losses
    seed_all_rng(1)
    seed = comm.shared_random_seed()
    seed_all_rng(1)
    assert comm.shared_random_seed() == seed
    with pytest.raises(AssertionError):
        comm.get_local_process_group()


# One interpreter forks the ranks: importing torch four times would be most of the test.
JOB = """
    import json, os, sys
    import d2proj, torch, numpy as np
    import torch.distributed as dist
    from detectron2.utils import comm

    folder, world = sys.argv[1], 4
    rank = next((r for r in range(world - 1) if os.fork() == 0), world - 1)
    dist.init_process_group("gloo", f"file://{folder}/init", rank=rank, world_size=world)
    comm.create_local_process_group(2)
    np.random.seed(rank)
    mean = comm.reduce_dict({"b": torch.tensor(2.0 * rank), "a": torch.tensor(1.0)})
    total = comm.reduce_dict({"a": torch.tensor(float(rank))}, average=False)
    result = {
        "rank": [comm.get_rank(), comm.get_world_size()],
        "local": [comm.get_local_rank(), comm.get_local_size()],
        "main": comm.is_main_process(),
        "all": comm.all_gather({"r": rank}),
        "machine": comm.all_gather(rank, group=comm.get_local_process_group()),
        "gather": comm.gather("x" * rank, dst=1),
        "seed": comm.shared_random_seed(),
        "mean": {k: float(v) for k, v in mean.items()},
        "total": float(total["a"]),
    }
    comm.synchronize()
    with open(f"{folder}/{rank}.json", "w") as file:
        json.dump(result, file)
    comm.synchronize()
    dist.destroy_process_group()
    if rank < world - 1:
        os._exit(0)
    for _ in range(world - 1):
        os.wait()
"""


def test_comm_in_a_job_of_two_machines(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(JOB), str(tmp_path)], check=True, timeout=120
    )
    results: list[dict[str, Any]] = [
        json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(4)
    ]
    for rank, result in enumerate(results):
        assert result["rank"] == [rank, 4]
        assert result["local"] == [rank % 2, 2]
        assert result["main"] == (rank == 0)
        assert result["all"] == [{"r": r} for r in range(4)]
        assert result["machine"] == ([0, 1] if rank < 2 else [2, 3])
        assert result["gather"] == (["", "x", "xx", "xxx"] if rank == 1 else [])
        assert result["seed"] == results[0]["seed"]
    assert results[0]["mean"] == {"a": 1.0, "b": 3.0}
    assert results[0]["total"] == 6.0
