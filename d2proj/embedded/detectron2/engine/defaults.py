"""The usual setup of a training: command line, logging, writers, data parallelism."""

import argparse
import os
import sys
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from detectron2.config import LazyConfig
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
)
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger

__all__ = [
    "create_ddp_model",
    "default_argument_parser",
    "default_setup",
    "default_writers",
]

# Ports for which no service is registered begin here.
_FIRST_FREE_PORT = 2**15 + 2**14


def create_ddp_model(
    model: nn.Module, *, fp16_compression: bool = False, **kwargs: Any
) -> nn.Module:
    """Wrap a model in DistributedDataParallel if there is more than one process.

    Args:
        model: The model, on its device.
        fp16_compression: Exchange gradients in half precision.
        **kwargs: For DistributedDataParallel.
    """
    if comm.get_world_size() == 1:
        return model
    on_gpu = any(p.is_cuda for p in model.parameters())
    if "device_ids" not in kwargs and on_gpu:
        kwargs["device_ids"] = [comm.get_local_rank()]
    wrapped = DistributedDataParallel(model, **kwargs)
    if fp16_compression:
        from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

        wrapped.register_comm_hook(state=None, hook=default_hooks.fp16_compress_hook)
    return wrapped


def default_argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """The command line that Detectron2's users know.

    Args:
        epilog: Text below the help; by default, examples.
    """
    program = sys.argv[0]
    parser = argparse.ArgumentParser(
        epilog=epilog
        or f"""
examples:
  one machine:       {program} --num-gpus 8 --config-file config.py
  with changes:      {program} --config-file config.py model.num_classes=3 train.seed=1
  several machines:  {program} --machine-rank 0 --num-machines 2 --dist-url <URL> [others]
                     {program} --machine-rank 1 --num-machines 2 --dist-url <URL> [others]
""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", default="", metavar="FILE", help="path to config file")
    parser.add_argument(
        "--resume", action="store_true", help="continue from the output directory's last checkpoint"
    )
    parser.add_argument("--eval-only", action="store_true", help="evaluate, do not train")
    parser.add_argument("--num-gpus", type=int, default=1, help="number of GPUs *per machine*")
    parser.add_argument("--num-machines", type=int, default=1, help="number of machines")
    parser.add_argument("--machine-rank", type=int, default=0, help="this machine's number, from 0")
    # A port per user, so that two users of a machine do not meet.
    user = 1 if sys.platform == "win32" else os.getuid()
    port = _FIRST_FREE_PORT + user % 2**14
    parser.add_argument(
        "--dist-url",
        default=f"tcp://127.0.0.1:{port}",
        help="where the processes meet; `auto` takes a free port of this machine",
    )
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        default=[],
        help="changes of the configuration, path.key=value, at the end of the command",
    )
    return parser


def _first_of(cfg: DictConfig, *keys: str, default: Any = None) -> Any:
    """The value of the first of these dotted keys that the configuration has."""
    for key in keys:
        value = OmegaConf.select(cfg, key, default=None)
        if value is not None:
            return value
    return default


def default_setup(cfg: DictConfig, args: argparse.Namespace | dict) -> None:
    """Prepare a job: logging, its record, ``config.yaml``, seeds.

    Of the configuration it reads ``train.output_dir`` (or ``output_dir``), ``train.seed`` (or
    ``seed``; negative or absent: drawn), ``train.cudnn_benchmark`` and ``train.float32_precision``.

    Args:
        cfg: The whole configuration.
        args: The command line.
    """
    output_dir = _first_of(cfg, "OUTPUT_DIR", "output_dir", "train.output_dir")
    if comm.is_main_process() and output_dir:
        PathManager.mkdirs(output_dir)
    rank = comm.get_rank()
    setup_logger(output_dir, distributed_rank=rank, name="fvcore")
    logger = setup_logger(output_dir, distributed_rank=rank)
    logger.info(f"Rank of current process: {rank}. World size: {comm.get_world_size()}")
    logger.info(f"Python {sys.version.split()[0]}, torch {torch.__version__}")
    logger.info(f"Command line arguments: {args}")
    config_file = getattr(args, "config_file", "")
    if config_file:
        with PathManager.open(config_file, "r") as file:
            logger.info(f"Contents of args.config_file={config_file}:\n{file.read()}")
    if comm.is_main_process() and output_dir:
        path = os.path.join(output_dir, "config.yaml")
        LazyConfig.save(cfg, path)
        logger.info(f"Full config saved to {path}")

    seed = _first_of(cfg, "SEED", "seed", "train.seed", default=-1)
    # Each process its own, since they draw for different images.
    seed_all_rng(None if seed < 0 else seed + rank)
    # Not in an evaluation, where every image has another size to be tried out.
    if not getattr(args, "eval_only", False):
        torch.backends.cudnn.benchmark = _first_of(
            cfg, "CUDNN_BENCHMARK", "train.cudnn_benchmark", default=False
        )
    precision = _first_of(cfg, "FLOAT32_PRECISION", "train.float32_precision", default="")
    if precision:
        logger.info(f"Set torch.float32_matmul_precision to {precision}")
        torch.set_float32_matmul_precision(precision)


def default_writers(output_dir: str, max_iter: int | None = None) -> list[EventWriter]:
    """The usual writers: the log, ``metrics.json`` and TensorBoard.

    Args:
        output_dir: Where the files go; made if absent.
        max_iter: Number of iterations, for the time left.
    """
    PathManager.mkdirs(output_dir)
    return [
        CommonMetricPrinter(max_iter),
        JSONWriter(os.path.join(output_dir, "metrics.json")),
        TensorboardXWriter(output_dir),
    ]
