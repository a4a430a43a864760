"""Three recipes for bccd on two cores: YOLOv4-tiny and SSD-tiny from scratch, and a transfer.

    python -m benchmarks.bccd_recipes [--recipes NAME ...] [--threads 2]

Trained on ``train``, evaluated on ``val`` and ``test`` with the last weights (nothing is chosen by
its score). ``seconds`` is the wall time of the whole command ``train_net.py``, from its start to
its end, the evaluation on ``val`` included; ``cpu_seconds`` are those of all its threads. Writes
``benchmarks/results/bccd_recipes.json`` and the table in ``docs/zoo.md``. The fourth run,
``nano_scratch``, is the transfer's network and schedule without the weights that it starts from.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import bccd
from benchmarks.darknet_cfg import adapt_cfg

PAGE = bccd.ROOT / "docs" / "zoo.md"
OUTPUT = bccd.RESULTS / "bccd_recipes.json"
WORK = bccd.ROOT / "output" / "bccd_recipes"
WEIGHTS = bccd.SHARED / "darknet" / "weights"
LIMIT = 50 * 60.0  # beside other work


@dataclass(frozen=True)
class Recipe:
    """A run: what the table calls it, its configuration, and what it sets besides the data."""

    title: str
    config: str
    overrides: list[str] = field(default_factory=list)


NANO_CFG = WORK / "mobilenetv2_nano.cfg"
NANO_SIZE = (256, 320)
# Coarse level first, as in the file; cells at half their size in the 640x480 pictures.
NANO_LEVELS = (
    ((53, 55), (72, 70), (105, 102)),
    ((15, 16), (20, 20), (42, 44)),
)
NANO = [
    f"model.cfg_file={NANO_CFG}",
    "optimizer={_target_: torch.optim.AdamW, params: {_target_: "
    "detectron2.solver.build.get_default_optimizer_params, weight_decay_norm: 0.0}, lr: 1e-3, "
    "weight_decay: 0.05}",
    "schedule={_target_: d2proj.engine.schedule.CosineSchedule, final_factor: 0.01, "
    "warmup_iters: 50}",
    *bccd.resize_and_flip(*NANO_SIZE),
    "data.batch_size=8",
    "train.lr_batch_size=8",
    "data.workers=1",
    "train.max_iter=300",
    "train.clip_grad.max_norm=35",
]

RECIPES = {
    "yolov4_tiny": Recipe(
        "YOLOv4-tiny", "configs/yolov4/yolov4_tiny_scratch.py", ["train.epochs=12"]
    ),
    # Its crops and colours need more passes than flips do.
    "ssd_tiny": Recipe("SSD-tiny", "configs/ssd/ssd_tiny.py", ["train.epochs=40"]),
    "nano_transfer": Recipe(
        "MobileNetV2-YOLOv3-Nano from ImageNet (`MobileNetV2-Nano.57`)",
        "configs/darknet/from_cfg.py",
        [*NANO, f"train.init_checkpoint={WEIGHTS / 'MobileNetV2-Nano.57'}"],
    ),
    "nano_scratch": Recipe("the same without those weights", "configs/darknet/from_cfg.py", NANO),
}


def main() -> None:
    """Train, evaluate, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    args = parser.parse_args()
    adapt_cfg(
        WEIGHTS / "MobileNetV2-YOLOv3-Nano-coco.cfg",
        NANO_CFG,
        num_classes=3,
        size=NANO_SIZE,
        levels=NANO_LEVELS,
    )
    report = json.loads(args.output.read_text()) if args.output.is_file() else {}
    rows: dict[str, Any] = report.get("rows", {})
    failed = 0
    for name in args.recipes:
        try:
            rows[name] = run(RECIPES[name], WORK / name, args.threads)
        except bccd.RunFailed as error:
            print(f"{name} failed: {error}", file=sys.stderr)
            failed += 1
            continue
        print(name, json.dumps(rows[name]), flush=True)
        ordered = {key: rows[key] for key in RECIPES if key in rows}
        bccd.save({"machine": bccd.machine(), "rows": ordered}, args.output)
    if args.output == OUTPUT and OUTPUT.is_file():
        bccd.write_between(PAGE, "recipes", table(json.loads(OUTPUT.read_text())))
    sys.exit(1 if failed else 0)


def run(recipe: Recipe, output: Path, threads: int) -> dict[str, Any]:
    """One row: metrics on ``val`` and ``test``, and how long it took."""
    overrides = [
        *bccd.data_overrides(),
        "eval.period_epochs=0",
        "train.checkpoint.period_epochs=0",
        "train.amp.enabled=true",
        *recipe.overrides,
    ]
    found = bccd.train(recipe.config, overrides, output, threads=threads, limit=LIMIT)
    cfg = bccd.config_of(output)
    return {
        "title": recipe.title,
        "config": recipe.config,
        "val": {name: found.pop(name) for name in bccd.METRICS},
        "test": bccd.evaluate(output, "test", threads=threads, limit=LIMIT),
        **found,
        "threads": threads,
        "precision": cfg.train.amp.dtype if cfg.train.amp.enabled else "float32",
    }


def table(report: Mapping[str, Any]) -> str:
    """The rows in Markdown."""
    head = ["recipe", "threads", "CPU minutes", "minutes", "load average"]
    head += ["AP50 val", "AP50 test", "AP val", "AP test"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in report["rows"].values():
        cells = [
            row["title"],
            str(row["threads"]),
            f"{row['cpu_seconds'] / 60:.1f}",
            f"{row['seconds'] / 60:.1f}",
        ]
        cells.append(f"{(row['load_before'] + row['load_after']) / 2:.0f}")
        for metric in ("AP50", "AP"):
            cells += [f"{row[split][metric]:.1f}" for split in ("val", "test")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
