"""``train_net.py``'s arguments, and the processes that it starts."""

import argparse
import logging
import multiprocessing
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path
from types import FrameType

import torch
from detectron2.engine import launch
from detectron2.utils import comm
from torch import distributed
from torch.multiprocessing import ProcessExitedException

import d2proj
from d2proj import _detectron2
from d2proj.engine import run, setup
from d2proj.engine.config import load_config
from d2proj.engine.exits import one_voice, run_and_exit
from d2proj.engine.logs import RunLog
from d2proj.engine.output_dir import check_output_dir, resolve_output_dir
from d2proj.errors import InputError

logger = logging.getLogger(__name__)
_TIMEOUT = timedelta(minutes=30)


def argument_parser() -> argparse.ArgumentParser:
    """The arguments, as Detectron2's users know them."""
    parser = argparse.ArgumentParser(
        prog="train_net.py",
        description="Train or evaluate a detector.",
        epilog="A LazyConfig file is Python and runs as you: use only files that you would run. "
        "docs/command_line.md explains every key.",
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help=".py or config.yaml")
    parser.add_argument("--resume", action="store_true", help="continue the run in the output dir")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the run in the output dir"
    )
    parser.add_argument("--eval-only", action="store_true", help="evaluate, do not train")
    parser.add_argument(
        "--num-gpus",
        "--num-processes",
        dest="num_processes",
        type=int,
        default=1,
        metavar="N",
        help="processes on this machine: one for each GPU, or CPU processes where there is none",
    )
    parser.add_argument("--num-machines", type=int, default=1, metavar="M")
    parser.add_argument("--machine-rank", type=int, default=0, metavar="R")
    parser.add_argument(
        "--dist-url",
        default="auto",
        metavar="URL",
        help="tcp://HOST:PORT of the first machine; auto: one machine, a free port",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run ``train_net.py`` in one process, in several, or as one of torchrun's."""
    parser = argument_parser()
    args = parser.parse_intermixed_args(argv)
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        rank = int(os.environ["RANK"])
        run_and_exit(lambda: _under_torchrun(args), rank=rank)
        return
    run_and_exit(lambda: _check(args))
    if args.num_processes * args.num_machines == 1:
        run_and_exit(lambda: _work(args))
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _pass_on)
    # What torch says about ending the other processes would follow the error's sentence.
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    try:
        with one_voice():
            launch(
                _in_process,
                args.num_processes,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(args,),
                timeout=_TIMEOUT,
            )
    except ProcessExitedException as error:
        # The process has said why.
        sys.exit(error.exit_code if error.exit_code > 0 else 1)


def _check(args: argparse.Namespace) -> None:
    """What can be found wrong before processes are started."""
    if args.num_processes < 1 or args.num_machines < 1:
        raise InputError("--num-gpus and --num-machines must be at least 1.")
    if not 0 <= args.machine_rank < args.num_machines:
        raise InputError(
            f"--machine-rank must be between 0 and {args.num_machines - 1}, "
            f"not {args.machine_rank}."
        )
    if args.num_machines > 1 and args.dist_url == "auto":
        raise InputError("Several machines need --dist-url tcp://HOST:PORT of the first.")
    gpus = torch.cuda.device_count()
    if gpus and args.num_processes > gpus:
        raise InputError(
            f"--num-gpus {args.num_processes} was asked for, but there are {gpus} here "
            "(CUDA_VISIBLE_DEVICES= makes them CPU processes)."
        )


def _pass_on(number: int, frame: FrameType | None) -> None:
    """The starting process waits; its children save and stop."""
    for child in multiprocessing.active_children():
        if child.pid is not None:
            os.kill(child.pid, number)


def _in_process(args: argparse.Namespace) -> None:
    run_and_exit(lambda: _work(args), rank=comm.get_rank())


def _under_torchrun(args: argparse.Namespace) -> None:
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    use_gpu = torch.cuda.is_available()
    if use_gpu and local_rank >= torch.cuda.device_count():
        raise InputError(
            f"torchrun started {local_size} processes here, but there are "
            f"{torch.cuda.device_count()} GPUs."
        )
    if use_gpu:
        torch.cuda.set_device(local_rank)
    distributed.init_process_group("nccl" if use_gpu else "gloo", timeout=_TIMEOUT)
    comm.create_local_process_group(local_size)
    try:
        _work(args)
    finally:
        distributed.destroy_process_group()


def _work(args: argparse.Namespace) -> None:
    """One process's share of the command."""
    cfg = load_config(args.config_file, args.overrides)
    output_dir = resolve_output_dir(cfg, Path(args.config_file))
    overwrite = args.overwrite or cfg.train.fast_dev_run
    setup.apply_fast_dev_run(cfg)
    check_output_dir(output_dir, resume=args.resume, overwrite=overwrite, evaluate=args.eval_only)
    comm.synchronize()  # all have looked before the first writes
    log = RunLog()
    try:
        _print_environment(cfg.train.device)
        if args.eval_only:
            run.evaluate_only(cfg, output_dir, overwrite=overwrite, log=log)
        else:
            run.train(cfg, output_dir, resume=args.resume, overwrite=overwrite, log=log)
    finally:
        log.close()


def _print_environment(device: str) -> None:
    found = setup.resolve_device(device)
    described = str(found)
    if found.type == "cuda":
        described += f" ({torch.cuda.get_device_name(found)})"
    which = "embedded" if _detectron2.is_embedded() else "installed"
    logger.info(
        f"d2proj {d2proj.__version__}, {which} Detectron2, torch {torch.__version__}, "
        f"{comm.get_world_size()} process{'es' if comm.get_world_size() > 1 else ''} on {described}"
    )
