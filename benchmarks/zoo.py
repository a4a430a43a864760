"""Trains the tiny configuration of every system on bccd, at the same budget, into one table.

    python -m benchmarks.zoo [--systems NAME ...] [--iterations 300] [--jobs 2] [--threads 1]

Each system keeps its own model, optimiser and learning rate; images, input size, augmentations,
batch and number of iterations are the same for all. A system is a process of its own
(``train_net.py``). Results go to ``benchmarks/results/zoo_bccd.json`` as they come; a system that
is there with the same configuration is not trained again (``--again`` does). In the end the
table in ``docs/zoo.md`` is written. Networks and their cost: GFLOPs are those of one image in
evaluation, convolutions and matrix products, a multiply-add counted as two.
"""

import argparse
import hashlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import bccd
from d2proj.errors import InputError

PAGE = bccd.ROOT / "docs" / "zoo.md"
OUTPUT = bccd.RESULTS / "zoo_bccd.json"
HEIGHT, WIDTH = 224, 224
BATCH = 8
# Images and batches that the cost is measured on, of which the first are warm-up.
COST_IMAGES = 24
COST_STEPS = 9
COST_WARMUP = 3


@dataclass(frozen=True)
class System:
    """One row: a configuration and what it needs besides the common settings."""

    title: str
    config: str
    overrides: list[str] = field(default_factory=list)


# Of the training boxes, as the paper has it (``python -m d2proj.anchors --num 5 --size 224``).
YOLOV2_ANCHORS = "model.anchors=" + str(
    [[0.448, 0.58], [1.108, 1.222], [1.056, 1.538], [1.31, 1.614], [2.329, 2.823]]
)
SYSTEMS = {
    "faster_rcnn": System("Faster R-CNN", "configs/faster_rcnn/faster_rcnn_tiny.py"),
    "retinanet": System("RetinaNet", "configs/retinanet/retinanet_tiny.py"),
    "retinanet_pan": System("RetinaNet, PAN", "configs/retinanet/retinanet_tiny_pan.py"),
    "retinanet_asff": System("RetinaNet, ASFF", "configs/retinanet/retinanet_tiny_asff.py"),
    "retinanet_sfam": System("RetinaNet, SFAM", "configs/retinanet/retinanet_tiny_sfam.py"),
    "retinanet_cbam": System("RetinaNet, CBAM", "configs/retinanet/retinanet_tiny_cbam.py"),
    "retinanet_rfb": System("RetinaNet, RFB", "configs/retinanet/retinanet_tiny_rfb.py"),
    "yolov1": System("YOLOv1", "configs/yolov1/yolov1_tiny_scratch.py"),
    "ssd": System("SSD", "configs/ssd/ssd_tiny.py"),
    "rfb": System("RFBNet", "configs/rfb/rfb_tiny.py"),
    "yolov2": System("YOLOv2", "configs/yolov2/yolov2_tiny_scratch.py", [YOLOV2_ANCHORS]),
    "yolov3": System("YOLOv3", "configs/yolov3/yolov3_tiny_scratch.py"),
    "gaussian_yolov3": System("Gaussian YOLOv3", "configs/gaussian_yolov3/gaussian_yolov3_tiny.py"),
    "yolov4": System("YOLOv4", "configs/yolov4/yolov4_tiny_scratch.py"),
}


def main() -> None:
    """Train what is missing, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    parser.add_argument("--threads", type=int, default=1, help="of each training")
    parser.add_argument("--limit", type=float, default=900, help="seconds for each training")
    parser.add_argument("--float32", action="store_true", help="train in float32, not bfloat16")
    parser.add_argument("--again", action="store_true", help="train even what is there")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--work", type=Path, default=bccd.ROOT / "output" / "zoo")
    parser.add_argument("--cost", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cost:
        print(json.dumps(cost(args.cost, args.threads)))
        return
    report = json.loads(args.output.read_text()) if args.output.is_file() else {}
    # Rows of another budget do not stand in one table with these.
    same = report.get("settings") == settings(args)
    rows: dict[str, Any] = report["rows"] if same else {}
    failed: dict[str, str] = {}

    def write() -> None:
        ordered = {name: rows[name] for name in SYSTEMS if name in rows}
        what = {"settings": settings(args), "machine": bccd.machine()}
        bccd.save({**what, "rows": ordered, "failed": failed}, args.output)

    with ThreadPoolExecutor(args.jobs) as pool:
        waiting = {}
        for name in args.systems:
            system = SYSTEMS[name]
            if not (bccd.ROOT / system.config).is_file():
                failed[name] = f"{system.config} does not exist"
                continue
            overrides = common_overrides(args) + system.overrides
            try:
                key = fingerprint(system.config, overrides)
            except InputError as error:
                failed[name] = str(error)
                continue
            if not args.again and rows.get(name, {}).get("fingerprint") == key:
                print(f"{name}: there already", flush=True)
                continue
            waiting[pool.submit(train, name, overrides, key, args)] = name
        for future in as_completed(waiting):
            name = waiting[future]
            try:
                rows[name] = future.result()
                print(f"{name}: AP50 {rows[name]['AP50']}, {rows[name]['seconds']} s", flush=True)
            except bccd.RunFailed as error:
                failed[name] = str(error)
                rows.pop(name, None)
            write()
    for name, row in rows.items():
        if "inference_images_per_second" not in row and (args.work / name).is_dir():
            try:
                row.update(measured_cost(args.work / name, args.threads, args.limit))
            except bccd.RunFailed as error:
                failed[name] = f"measuring it: {error}"
            write()
    write()
    if args.output == OUTPUT:
        bccd.write_between(PAGE, "zoo", table(json.loads(OUTPUT.read_text())))
    for name, reason in failed.items():
        print(f"{name} failed: {reason}", file=sys.stderr)
    sys.exit(1 if failed else 0)


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """What all rows have in common."""
    return {
        "input": [HEIGHT, WIDTH],
        "batch": BATCH,
        "iterations": args.iterations,
        "precision": "float32" if args.float32 else "bfloat16 autocast (evaluated in float32)",
        "trained_on": "train (205 images)",
        "evaluated_on": "val (87 images)",
        "jobs": args.jobs,
        "threads": args.threads,
    }


def common_overrides(args: argparse.Namespace) -> list[str]:
    """Keys that are the same for every system."""
    return [
        *bccd.data_overrides(),
        *bccd.resize_and_flip(HEIGHT, WIDTH),
        f"data.batch_size={BATCH}",
        "train.lr_batch_size=0",  # its own learning rate, as it stands
        "data.workers=1",
        "data.aspect_ratio_grouping=false",
        f"train.max_iter={args.iterations}",
        f"train.amp.enabled={str(not args.float32).lower()}",
        "train.checkpoint.period_epochs=0",
        "train.tensorboard=false",
        "eval.period_epochs=0",
        "eval.batch_size=8",
    ]


def fingerprint(config: str, overrides: list[str]) -> str:
    """Of the configuration that is trained; a change of a recipe shows here."""
    from omegaconf import OmegaConf

    from d2proj.engine.config import load_config

    plain = OmegaConf.to_container(load_config(bccd.ROOT / config, overrides), resolve=True)
    # Classes and functions by name: their text has an address.
    text = json.dumps(plain, sort_keys=True, default=lambda x: f"{x.__module__}.{x.__qualname__}")
    text = text.replace(str(bccd.ROOT), "")
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def train(name: str, overrides: list[str], key: str, args: argparse.Namespace) -> dict[str, Any]:
    """A row."""
    system = SYSTEMS[name]
    result = bccd.train(
        system.config, overrides, args.work / name, threads=args.threads, limit=args.limit
    )
    extra = {"overrides": system.overrides} if system.overrides else {}
    head = {"title": system.title, "config": system.config, **extra}
    return {**head, **result, "iterations": args.iterations, "fingerprint": key}


def measured_cost(output: Path, threads: int, limit: float) -> dict[str, Any]:
    """:func:`cost` in a process of its own."""
    log = output.with_suffix(".cost.txt")
    command = [sys.executable, "-m", "benchmarks.zoo", "--cost", str(output)]
    bccd.run_logged([*command, "--threads", str(threads)], log, threads, limit)
    found: dict[str, Any] = json.loads(log.read_text().splitlines()[-1])
    return found


def cost(output: Path, threads: int) -> dict[str, Any]:
    """Parameters, arithmetic and speed of a trained model.

    Speeds are images per second of CPU time (of all threads), which other work on the machine
    hardly changes: training steps of a batch, in the run's precision; inference image by image,
    float32. Loading and resizing are not in it.
    """
    import torch
    from detectron2.utils.events import EventStorage
    from torch.utils.flop_counter import FlopCounterMode

    from d2proj.data import build_train_loader, build_val_loader, load_dataset
    from d2proj.engine import setup
    from d2proj.engine.config import build

    torch.set_num_threads(threads)
    cfg = bccd.config_of(output)
    model = setup.build_model(cfg, torch.device("cpu"), seed=0)
    setup.initialize_weights(model, str(output / "model_final.pth"), strict_classes=True)
    form = cfg.data.image_format
    train_loader = build_train_loader(
        load_dataset(cfg.dataset, "train"),
        batch_size=BATCH,
        workers=0,
        augmentations=build(cfg, "data.train_augmentations"),
        seed=0,
        image_format=form,
    )
    val_loader = build_val_loader(
        load_dataset(cfg.dataset, "val"),
        workers=0,
        augmentations=build(cfg, "data.val_augmentations"),
        image_format=form,
    )
    images = [batch for batch, _ in zip(val_loader, range(COST_IMAGES), strict=False)]
    batches = [batch for batch, _ in zip(train_loader, range(COST_STEPS), strict=False)]

    model.eval()
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(images[0])
    with torch.inference_mode():
        inference = [_cpu_seconds(lambda batch=batch: model(batch)) for batch in images]

    model.train()
    optimizer = setup.build_optimizer(cfg, model)

    def step(batch: list[dict[str, Any]]) -> None:
        with EventStorage(), torch.autocast("cpu", torch.bfloat16, cfg.train.amp.enabled):
            losses = model(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()

    training = [_cpu_seconds(lambda batch=batch: step(batch)) for batch in batches]
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "gflops": round(counter.get_total_flops() / 1e9, 3),
        "train_images_per_second": round(BATCH / statistics.median(training[COST_WARMUP:]), 1),
        "inference_images_per_second": round(1 / statistics.median(inference[COST_WARMUP:]), 1),
    }


def _cpu_seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def table(report: Mapping[str, Any]) -> str:
    """The rows in Markdown, and under what conditions they were measured."""
    what, machine = report["settings"], report["machine"]
    head = ["system", "AP", "AP50", "AP75", "Platelets", "RBC", "WBC"]
    head += ["M parameters", "GFLOPs", "training images/s", "inference images/s"]
    lines = [
        f"{what['iterations']} iterations of {what['batch']} images of "
        f"{what['input'][1]}x{what['input'][0]} pixels, {what['precision']}; trained on "
        f"{what['trained_on']}, evaluated on {what['evaluated_on']}. "
        f"{machine['cpu']}, torch {machine['torch']}; images per second of CPU time, training in "
        "batches, inference image by image in float32.",
        "",
        "| " + " | ".join(head) + " |",
        "|---" * len(head) + "|",
    ]
    for row in report["rows"].values():
        cells = [f"[{row['title']}](../{row['config']})"]
        cells += [f"{row[name]:.1f}" for name in bccd.METRICS]
        if "gflops" in row:
            cells += [f"{row['parameters'] / 1e6:.2f}", f"{row['gflops']:.2f}"]
            cells += [f"{row['train_images_per_second']:.0f}"]
            cells += [f"{row['inference_images_per_second']:.0f}"]
        else:
            cells += ["", "", "", ""]  # not measured yet
        lines.append("| " + " | ".join(cells) + " |")
    lines += [f"\n{name} failed: {reason}." for name, reason in report["failed"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
