"""Time of our detectors against the real Detectron2's same models, on this machine's CPU.

    python -m benchmarks.models [--models faster_rcnn ...] [--threads 2] [--rounds 7]

Both run in this process on the same weights and images, in turns, so that whatever else the
machine does falls on both; the ratio is the median over rounds of Detectron2's time / ours.
Inference is one call on the batch; a training step is forward, backward and SGD. Without the real
Detectron2 only our times are printed. Results go to benchmarks/results/models_cpu.json.
"""

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from detectron2.config import LazyConfig, instantiate
from torch import nn

import d2proj
from benchmarks import detectron2_models
from d2proj import _detectron2
from tests.parity.detection_batches import calibrate_batch_norms, make_batch

ROOT = Path(__file__).resolve().parents[1]
NUM_CLASSES = 10
# Images in a batch and their size.
CASES = {
    "faster_rcnn_tiny": (8, (256, 320)),
    "retinanet_tiny": (8, (256, 320)),
    "faster_rcnn": (1, (480, 640)),
    "retinanet": (1, (480, 640)),
}


def build_pair(name: str) -> tuple[nn.Module, nn.Module | None]:
    """Our model and Detectron2's, with the same weights (random, statistics calibrated)."""
    torch.manual_seed(0)
    config = LazyConfig.load(str(ROOT / "configs" / "common" / "models" / f"{name}.py")).model
    config.num_classes = NUM_CLASSES
    ours = instantiate(config)
    bottom_up = config.backbone.bottom_up
    bottom_up.stem.norm = bottom_up.stages.norm = "BN"
    bottom_up.freeze_at = 0
    twin = instantiate(config)
    batch = make_batch([(256, 256)] * 2, num_classes=NUM_CLASSES)
    calibrate_batch_norms(twin.backbone, twin.preprocess_image(batch).tensor)
    own_names = ours.state_dict().keys()
    weights = {k: v for k, v in twin.state_dict().items() if k in own_names}
    ours.load_state_dict(weights)
    ours = ours.to(memory_format=torch.channels_last)
    if _detectron2.is_embedded():
        return ours, None
    weights.pop("loss_normalizer", None)
    theirs = detectron2_models.build(name, NUM_CLASSES)
    theirs.load_state_dict(weights)
    return ours, theirs


def inference(model: nn.Module, batch: list[dict]) -> Callable[[], None]:
    """One forward pass in evaluation."""
    model = copy.deepcopy(model).eval()

    def run() -> None:
        with torch.inference_mode():
            model(batch)

    return run


def training_step(model: nn.Module, batch: list[dict]) -> Callable[[], None]:
    """Forward, backward and optimiser step."""
    from detectron2.utils.events import EventStorage

    model = copy.deepcopy(model).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-5, momentum=0.9)

    def run() -> None:
        with EventStorage():
            losses = model(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()

    return run


def seconds(run: Callable[[], None]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compare(name: str, rounds: int) -> list[dict]:
    """Rows of the table: one per phase."""
    count, size = CASES[name]
    batch = make_batch([size] * count, num_classes=NUM_CLASSES)
    rows = []
    models = [model for model in build_pair(name) if model is not None]
    for phase, prepare in (("inference", inference), ("training step", training_step)):
        runs = [prepare(model, batch) for model in models]
        for run in runs:
            run()
            run()
        times = [[seconds(run) for run in runs] for _ in range(rounds)]
        row = {
            "model": name,
            "phase": phase,
            "images": count,
            "size": list(size),
            "ours_ms": 1e3 * statistics.median(t[0] for t in times),
            "ours_min_ms": 1e3 * min(t[0] for t in times),
        }
        if len(runs) == 2:
            row["detectron2_ms"] = 1e3 * statistics.median(t[1] for t in times)
            row["detectron2_min_ms"] = 1e3 * min(t[1] for t in times)
            row["ratio"] = statistics.median(t[1] / t[0] for t in times)
        rows.append(row)
        print_row(row)
    return rows


def print_row(row: dict) -> None:
    """One line of the table."""
    text = (
        f"{row['model']:18} {row['phase']:14} {row['images']} x {row['size'][0]}x{row['size'][1]}"
    )
    text += f"  ours {row['ours_ms']:8.1f} ms"
    if "ratio" in row:
        text += f"  Detectron2 {row['detectron2_ms']:8.1f} ms  ratio {row['ratio']:.2f}"
    print(text, flush=True)


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--output", default=ROOT / "benchmarks" / "results" / "models_cpu.json", type=Path
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if _detectron2.is_embedded():
        print("The real Detectron2 is not installed: our times alone (see CONTRIBUTING.md).")
    rows = [row for name in args.models for row in compare(name, args.rounds)]
    result = {
        "d2proj": d2proj.__version__,
        "torch": torch.__version__,
        "cpu": platform.processor() or platform.machine(),
        "threads": args.threads,
        "rows": rows,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {args.output}")


if __name__ == "__main__":
    main()
