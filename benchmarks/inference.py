"""Images per second of YOLO networks on this CPU, against OpenCV's dnn and ONNX Runtime.

    python -m benchmarks.inference [--models yolov3 ...] [--batches 1,8] [--threads 2] [--rounds 7]
                                   [--compile] [--quick]

Every runner gets the same weights and images in this process, and its raw maps must agree with
those of the plain network before anything is timed. Runners are timed in turns, so that whatever
else the machine does falls on all; a time is the median of the rounds, a ratio the median of the
rounds' ratios. Networks are the published cfg files with random weights whose statistics were
calibrated (a forward pass costs the same whatever they are), or published weights. What comes
before and after the network (normalising, decoding, NMS) is timed by itself, on candidates of real
pictures. Writes benchmarks/results/inference_cpu.json and the tables of docs/speed.md.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.speed_pages import duration, fill
from d2proj import info
from d2proj.checkpoint.darknet import load_darknet_weights, save_darknet_weights
from d2proj.darknet.detector import DarknetDetector
from d2proj.darknet.network import DarknetNetwork
from d2proj.darknet.plan import ConvOptions, Plan
from d2proj.evaluation import evaluating
from d2proj.layers import Conv2d

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
OUTPUT = ROOT / "benchmarks" / "results" / "inference_cpu.json"
PAGE = ROOT / "docs" / "speed.md"
#: Network -> its cfg file under shared/data/darknet and the side of its input.
NETWORKS = {
    "yolov3": ("cfg/yolov3.cfg", 608),
    "yolov4": ("cfg/yolov4.cfg", 608),
    "yolov3-tiny": ("cfg/yolov3-tiny.cfg", 416),
    "yolov4-tiny": ("cfg/yolov4-tiny.cfg", 416),
    "yolo-fastest-1.1-xl": ("weights/yolo-fastest-1.1-xl.cfg", 320),
    "MobileNetV2-YOLOv3-Nano": ("weights/MobileNetV2-YOLOv3-Nano-coco.cfg", 320),
}
#: What OpenCV's importer adds to a variance.
BN_EPS = 1e-6
#: How far the maps may be apart, of the largest value of a map.
TOLERANCE = 2e-3
#: Lowest scores: of the detections that an evaluation counts, and of those that one looks at.
THRESHOLDS = {"evaluation": 0.005, "prediction": 0.25}
Runner = Callable[[], Any]
_clock = time.perf_counter


def write_cfg(name: str, folder: Path) -> tuple[Path, Path]:
    """The cfg file at the size that is measured, and where published weights would be."""
    file, side = NETWORKS[name]
    source = DATA / "darknet" / file
    lines = []
    for line in source.read_text().splitlines():
        key = line.replace(" ", "").split("=")[0]
        lines.append(f"{key}={side}" if key in ("width", "height") else line)
    cfg = folder / f"{name}.cfg"
    cfg.write_text("\n".join(lines) + "\n")
    return cfg, source.with_suffix(".weights")


def build(name: str, folder: Path) -> tuple[Path, Path, DarknetNetwork]:
    """The cfg file, its weights, and the network with them."""
    cfg, weights = write_cfg(name, folder)
    side = NETWORKS[name][1]
    torch.manual_seed(0)
    network = DarknetNetwork(cfg, bn_eps=BN_EPS)
    if weights.is_file():
        load_darknet_weights(network, weights)
    else:
        weights = folder / f"{name}.weights"
        calibrate(network, torch.rand(2, 3, side // 64 * 32, side // 64 * 32))
        save_darknet_weights(network, weights)
    return cfg, weights, network.eval()


@torch.no_grad()
def calibrate(network: nn.Module, images: Tensor) -> None:
    """Set the statistics of batch normalisations to those of some images."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    network.train()(images)
    for norm in norms:
        norm.momentum = 0.1


def operations(plan: Plan) -> tuple[float, float]:
    """Floating-point operations of the convolutions on an image: direct, and as ours does them."""
    direct = ours = 0.0
    for layer in plan.layers:
        if layer.kind != "convolutional":
            continue
        options, (filters, height, width) = ConvOptions.of(layer.section), layer.output
        per_value = 2 * filters * layer.inputs[0][0] // options.groups
        own = per_value * options.size**2 * height * width
        direct += own
        small = (options.size, options.stride, options.dilation, options.groups)
        if small == (3, (1, 1), 1, 1) and layer.inputs[0][0] >= 16:
            own = per_value * 36 * -(-height // 4) * -(-width // 4)
        ours += own
    return direct, ours


def peak(dtype: torch.dtype) -> float:
    """Floating-point operations per second: the best that torch reaches here."""
    a, b = torch.randn(2048, 2048, dtype=dtype), torch.randn(2048, 2048, dtype=dtype)
    x = torch.randn(1, 512, 19, 19, dtype=dtype).contiguous(memory_format=torch.channels_last)
    w = torch.randn(1024, 512, 3, 3, dtype=dtype).contiguous(memory_format=torch.channels_last)
    best = 0.0
    with torch.no_grad():
        for _ in range(8):
            for flops, call in (
                (2 * 2048**3, lambda: torch.mm(a, b)),
                (2 * w.numel() * 17 * 17, lambda: F.conv2d(x, w)),
            ):
                best = max(best, flops / seconds(call))
    return best


def seconds(call: Runner) -> float:
    """Time of a call after another of the same runner.

    Threads of the runner before it (ONNX Runtime's wait for work in a loop) have gone to sleep.
    """
    time.sleep(0.05)
    call()
    begin = _clock()
    call()
    return _clock() - begin


def ours(network: nn.Module, images: Tensor, *, fuse: bool = True) -> Runner:
    """The network in evaluation, as ``d2proj.predict`` runs it."""

    def run() -> list[Tensor]:
        with evaluating(network, fuse=fuse):
            result: list[Tensor] = network(images)
        return result

    return run


def opencv(cfg: Path, weights: Path, plan: Plan, images: Tensor) -> Runner:
    """OpenCV's darknet importer; the maps that go into the heads."""
    net = cv2.dnn.readNetFromDarknet(str(cfg), str(weights))
    names = [f"conv_{head.sources[0]}" for head in plan.heads]
    blob = images.numpy()

    def run() -> list[Tensor]:
        net.setInput(blob)
        return [torch.from_numpy(x) for x in net.forward(names)]

    return run


def onnxruntime(network: DarknetNetwork, images: Tensor, folder: Path, threads: int) -> Runner:
    """ONNX Runtime on an export with batch normalisation folded."""
    import onnxruntime as ort

    file = folder / "network.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(folded(network), (images,), str(file), dynamo=False, opset_version=18)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: images.numpy()}
    return lambda: [torch.from_numpy(x) for x in session.run(None, feed)]


@torch.no_grad()
def folded(network: DarknetNetwork) -> nn.Module:
    """A copy whose convolutions have their normalisation in their weights."""
    copy = DarknetNetwork(network.plan, bn_eps=BN_EPS).eval()
    copy.load_state_dict(network.state_dict())
    for module in copy.modules():
        if isinstance(module, Conv2d) and module.norm is not None:
            weight, bias = module._make_fold()
            module.weight, module.bias = nn.Parameter(weight), nn.Parameter(bias)
            module.norm = None
    return copy


def runners(
    network: DarknetNetwork,
    cfg: Path,
    weights: Path,
    images: Tensor,
    options: argparse.Namespace,
    folder: Path,
) -> dict[str, Runner]:
    """Everything that is compared, by name."""
    last = images.contiguous(memory_format=torch.channels_last)

    def copy() -> DarknetNetwork:
        other = DarknetNetwork(network.plan, bn_eps=BN_EPS).eval()
        other.load_state_dict(network.state_dict())
        return other.to(memory_format=torch.channels_last)

    found = {
        "d2proj": ours(copy(), last),
        "d2proj, not fused": ours(copy(), last, fuse=False),
        "d2proj, bfloat16": ours(copy().bfloat16(), last.bfloat16()),
        "OpenCV": opencv(cfg, weights, network.plan, images),
        "ONNX Runtime": onnxruntime(network, images, folder, options.threads),
    }
    if options.compile:
        inductor = {"max_autotune": True, "freezing": True}
        with torch.no_grad():
            compiled = torch.compile(folded(copy()), options=inductor)
        found["torch.compile"] = ours(compiled, last, fuse=False)
    return found


def difference(maps: list[Tensor], reference: list[Tensor]) -> float:
    """The largest difference, of the largest value of its map."""
    return max(
        ((a.float() - b).abs().max() / b.abs().max()).item()
        for a, b in zip(maps, reference, strict=True)
    )


def compare(
    name: str, batch: int, options: argparse.Namespace, peaks: dict[str, float]
) -> list[dict[str, Any]]:
    """A row for each runner of one network."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        cfg, weights, network = build(name, folder)
        side = network.plan.input[1]
        images = torch.rand(batch, 3, side, side)
        with torch.no_grad():
            reference = network(images)
        calls = runners(network, cfg, weights, images, options, folder)
        rows = {}
        for runner, call in calls.items():
            apart = difference(call(), reference)
            if apart > TOLERANCE and "bfloat16" not in runner:
                sys.exit(f"{name}, {runner}: maps differ by {apart:.1e} of their largest value")
            rows[runner] = {"network": name, "side": side, "batch": batch, "runner": runner}
            rows[runner]["difference"] = apart
        times: dict[str, list[float]] = {runner: [] for runner in calls}
        for _ in range(options.rounds):
            for runner, call in calls.items():
                times[runner].append(seconds(call))
    direct, own = (batch * value for value in operations(network.plan))
    for runner, row in rows.items():
        median = statistics.median(times[runner])
        dtype = "bfloat16" if "bfloat16" in runner else "float32"
        row["ms"] = 1e3 * median
        row["images_per_second"] = batch / median
        row["ratio"] = statistics.median(
            theirs / mine for theirs, mine in zip(times[runner], times["d2proj"], strict=True)
        )
        row["gflop"] = (own if runner == "d2proj" else direct) / 1e9
        row["of_floor"] = median * peaks[dtype] / (own if runner == "d2proj" else direct)
        print(
            f"{name:24} {side} x{batch} {runner:18} {row['ms']:9.1f} ms "
            f"{row['images_per_second']:8.2f} images/s, {row['ratio']:5.2f} of ours, "
            f"{row['of_floor']:4.2f} of its floor, differs by {row['difference']:.1e}",
            flush=True,
        )
    return list(rows.values())


def pictures(side: int, count: int) -> list[dict[str, Any]]:
    """Real pictures at the network's size, as a loader gives them."""
    files = sorted((DATA / "coco_val74" / "images").glob("*.jpg"))[:count]
    samples = []
    for file in files:
        image = cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB)
        resized = cv2.resize(image, (side, side))
        tensor = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
        samples.append({"image": tensor, "height": image.shape[0], "width": image.shape[1]})
    return samples


@torch.no_grad()
def real_maps(count: int) -> list[list[Tensor]]:
    """Raw maps of real pictures by real weights, finest last: (255, H, W) each."""
    model = detector("MobileNetV2-YOLOv3-Nano", THRESHOLDS["evaluation"])
    found = []
    for sample in pictures(320, count):
        images = model.preprocess_image([sample])
        found.append([x[0] for x in model.backbone(images.tensor).values()])
    return found


def detector(name: str, score_thresh: float) -> DarknetDetector:
    """The detector of a network, with its published weights where there are some."""
    with tempfile.TemporaryDirectory() as folder:
        cfg, weights = write_cfg(name, Path(folder))
        model = DarknetDetector(cfg_file=cfg, score_thresh=score_thresh).eval()
    if weights.is_file():
        load_darknet_weights(model.backbone.network, weights)
    return model


def around_one(
    model: DarknetDetector, sample: dict[str, Any], maps: list[Tensor]
) -> tuple[float, float, int]:
    """Seconds before and after the network on one picture, and its candidates."""
    height, width = model.plan.input[1:]
    images = model.preprocess_image([sample])
    features = {}
    for index, layer in enumerate(model.plan.heads):
        source = maps[min(index, len(maps) - 1)]
        features[f"layer{layer.index}"] = F.interpolate(source[None], size=layer.output[1:])

    def after() -> None:
        model.to_original_frame(model.detect(images, features), [sample])

    before = min(seconds(lambda: model.preprocess_image([sample])) for _ in range(3))
    raw = [x[0] for x in features.values()]
    count = len(model.decode([], (raw,), (height, width))[0])
    return before, min(seconds(after) for _ in range(3)), count


@torch.no_grad()
def around(name: str, rows: list[dict[str, Any]], options: argparse.Namespace) -> list[dict]:
    """Time of what is before and after the network, of one image, and its share of the whole.

    Maps of a network without published weights are those of MobileNetV2-YOLOv3-Nano on real
    pictures, enlarged to its sizes: as many candidates a cell, in heaps as real ones are.
    """
    side = NETWORKS[name][1]
    samples = pictures(side, options.pictures)
    network_ms = next(
        r["ms"] for r in rows if (r["network"], r["batch"], r["runner"]) == (name, 1, "d2proj")
    )
    maps = real_maps(len(samples))
    found = []
    for use, threshold in THRESHOLDS.items():
        model = detector(name, threshold)
        measured = [
            around_one(model, sample, of_sample)
            for sample, of_sample in zip(samples, maps, strict=True)
        ]
        before, after, counts = zip(*measured, strict=True)
        before_ms, after_ms = (1e3 * statistics.median(x) for x in (before, after))
        whole = network_ms + before_ms + after_ms
        row = {
            "network": name,
            "side": side,
            "use": use,
            "threshold": threshold,
            "candidates": statistics.median(counts),
            "preprocess_ms": before_ms,
            "network_ms": network_ms,
            "postprocess_ms": after_ms,
            "postprocess_share": after_ms / whole,
            "preprocess_share": before_ms / whole,
        }
        found.append(row)
        print(
            f"{name:24} {use:11} {row['candidates']:6.0f} candidates: before {before_ms:.2f} ms "
            f"({row['preprocess_share']:.1%}), after {after_ms:.2f} ms "
            f"({row['postprocess_share']:.1%})",
            flush=True,
        )
    return found


def write_page(report: dict[str, Any]) -> None:
    """The tables of docs/speed.md."""
    lines = [
        "| network | images | runner | time | images/s | times ours | of its floor "
        "| maps differ by |",
        "|---" * 8 + "|",
    ]
    for row in report["rows"]:
        lines.append(
            f"| {row['network']} {row['side']} | {row['batch']} | {row['runner']} | "
            f"{duration(row['ms'])} | {row['images_per_second']:.3g} | {row['ratio']:.2f} | "
            f"{row['of_floor']:.2f} | {row['difference']:.0e} |"
        )
    fill(PAGE, "inference", "\n".join(lines))
    lines = [
        "| network | lowest score | candidates | before | network | after | share of after |",
        "|---" * 7 + "|",
    ]
    for row in report["around"]:
        lines.append(
            f"| {row['network']} {row['side']} | {row['threshold']} ({row['use']}) | "
            f"{row['candidates']:.0f} | {duration(row['preprocess_ms'])} | "
            f"{duration(row['network_ms'])} | {duration(row['postprocess_ms'])} | "
            f"{row['postprocess_share']:.1%} |"
        )
    fill(PAGE, "around", "\n".join(lines))
    machine = report["machine"]
    busy = "" if report["clock"] == "perf_counter" else ", counting the time that it had a core"
    peaks = ", ".join(f"{name} {value / 1e9:.0f}" for name, value in report["peaks"].items())
    fill(
        PAGE,
        "machine",
        f"Measured on {machine['cpu']}, {report['threads']} thread(s){busy}, "
        f"torch {machine['torch']}, OpenCV {machine['opencv']}, "
        f"ONNX Runtime {machine['onnxruntime']}; peak in GFLOP/s: {peaks}.",
    )


def machine() -> dict[str, Any]:
    """What the numbers were measured with."""
    import onnxruntime as ort

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    flags = next(line for line in lines if line.startswith("flags")).split()
    simd = " ".join(name for name in ("avx2", "avx512f", "avx512_bf16") if name in flags)
    versions = {"opencv": cv2.__version__, "onnxruntime": ort.__version__}
    return {**info.versions(), **versions, "cpu": f"{cpu} ({simd})"}


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--batches", default="1,8", help="images in a call, e.g. 1,8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--pictures", type=int, default=16, help="real ones, for the postprocess")
    parser.add_argument("--compile", action="store_true", help="torch.compile too (minutes)")
    parser.add_argument(
        "--busy",
        action="store_true",
        help="on a machine that has other work: one thread, and the time that it had a core",
    )
    parser.add_argument("--quick", action="store_true", help="one round, one image, few pictures")
    parser.add_argument(
        "--output", type=Path, help=f"instead of {OUTPUT} (then no page is written)"
    )
    options = parser.parse_args()
    if not hasattr(cv2.dnn, "readNetFromDarknet"):
        parser.error("OpenCV 5 has no darknet importer: install opencv-python-headless<5")
    if options.quick:
        options.rounds, options.batches, options.pictures = 1, "1", 2
    if options.busy:
        global _clock
        _clock, options.threads = time.thread_time, 1
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    peaks = {str(dtype).split(".")[1]: peak(dtype) for dtype in (torch.float32, torch.bfloat16)}
    rows = [
        row
        for name in options.models
        for batch in map(int, options.batches.split(","))
        for row in compare(name, batch, options, peaks)
    ]
    report = {
        "machine": machine(),
        "threads": options.threads,
        "clock": _clock.__name__,
        "peaks": peaks,
        "rows": rows,
        "around": [row for name in options.models for row in around(name, rows, options)],
    }
    output = options.output or OUTPUT
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n")
    if options.output is None:
        write_page(report)
    print(f"written: {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
