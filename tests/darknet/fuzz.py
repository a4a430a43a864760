"""Damages cfg and weights files until the time is over: each builds, or is one InputError.

    python -m tests.darknet.fuzz --minutes 10 [--seed 0]

Everything follows from a seed, which stands in a file before its attempt (--log), so that what is
found can be repeated and kept as a test.
"""

import argparse
import math
import random
import resource
import struct
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from d2proj.checkpoint.darknet import Header, load_darknet_weights
from d2proj.darknet import DarknetNetwork, plan_network
from d2proj.darknet.detector import DarknetDetector
from d2proj.darknet.schedule import DarknetSchedule
from d2proj.errors import InputError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "darknet"
# What one attempt may take: seconds of this process, and bytes above what it had.
SECONDS = 1.0
BYTES = 1 << 30
# Networks up to this size are built with memory and run; larger ones on the meta device.
_MOST_FLOATS, _MOST_VALUES = 600_000, 3_000_000

#: Every kind of section, small enough to be run.
SMALL = """[net]
batch=4
width=32
height=32
channels=3
learning_rate=0.001
burn_in=10
max_batches=100
policy=steps
steps=50,80
scales=.1,.1
[convolutional]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=leaky
[convolutional]
filters=8
groups=4
size=3
dilation=2
pad=1
activation=mish
[shortcut]
from=-2
activation=linear
weights_type=per_feature
weights_normalization=softmax
[maxpool]
size=2
stride=1
[local_avgpool]
size=3
stride=1
[route]
layers=-1,-3
[reorg3d]
stride=2
[upsample]
stride=2
[route]
layers=-1
groups=2
group_id=1
[avgpool]
[scale_channels]
from=-2
scale_wh=0
activation=linear
[sam]
from=-1
[dropout]
probability=.2
dropblock=1
[activation]
activation=swish
[local]
filters=4
size=3
pad=1
activation=leaky
[convolutional]
filters=14
activation=linear
[yolo]
mask=0,1
classes=2
num=3
anchors=4,5,8,9,12,20
iou_loss=ciou
iou_thresh=.2
scale_x_y=1.1
nms_kind=greedynms
[route]
layers=0
[convolutional]
filters=22
activation=linear
[Gaussian_yolo]
classes=2
num=2
anchors=4,5,8,9
[route]
layers=0
[reorg]
stride=2
[convolutional]
filters=14
activation=linear
[region]
classes=2
num=2
anchors=1,2,3,4
softmax=1
[connected]
output=108
activation=linear
[detection]
classes=2
coords=4
side=3
num=2
"""
_VALUES = (
    "-1 0 1 2 3 7 13 255 256 32768 1e9 -1e9 1e400 -0 +5 .5 -.5 1. 99999999999999999999 nan inf -inf"
    " 2147483647 -2147483649 0x10 1e1e1 ٣ ½ , ,, 1,2 -1,-2,-3 0,0,0 1,,2 a linear leaky mish yolo"
    " = == [net] # ; \\x00 1;2 1#2 true null ${x} %s %n ../../x"
)
_KEYS = (
    "width height channels batch filters size stride stride_x stride_y pad padding groups group_id"
    " layers from activation batch_normalize dilation mask anchors classes num coords side output"
    " weights_type weights_normalization scale_x_y new_coords iou_loss iou_thresh nms_kind beta_nms"
    " probability dropblock dropblock_size_abs dropblock_size_rel steps scales policy burn_in power"
    " max_batches learning_rate gamma step sgdr_cycle sgdr_mult tree map letter_box temperature"
    " reverse scale scale_wh jitter xnor antialiasing maxpool_depth softmax sqrt unheard_of"
)
_SECTIONS = (
    "net network convolutional conv local connected maxpool max local_avgpool avgpool activation"
    " dropout cost empty softmax route shortcut scale_channels sam upsample reorg reorg3d yolo"
    " Gaussian_yolo region detection crnn lstm gru rnn normalization batchnorm crop deconvolutional"
    " implicit history contrastive"
)
VALUES, KEYS, SECTIONS = _VALUES.split(), _KEYS.split(), _SECTIONS.split()


def published() -> list[str]:
    """Texts to begin with; of the published files what is on this machine."""
    files = sorted([*SHARED.glob("cfg/*.cfg"), *SHARED.glob("weights/*.cfg")])
    return [file.read_text() for file in files]


def draw_text(draw: random.Random, texts: list[str]) -> str:
    """A cfg file's text with one to eight things wrong."""
    lines = draw.choice([SMALL, SMALL, *texts]).splitlines()
    for _ in range(draw.choice([1, 1, 1, 2, 3, 8])):
        _damage(draw, lines)
        lines = lines or [""]
    return "\n".join(lines) + "\n"


def _damage(draw: random.Random, lines: list[str]) -> None:
    at = draw.randrange(len(lines))
    options = [i for i, line in enumerate(lines) if "=" in line] or [at]
    kind = draw.randrange(16)
    if kind == 0:
        del lines[at : at + draw.choice([1, 1, 3, 20])]
    elif kind == 1:
        lines[at:at] = lines[at : at + draw.choice([1, 4, 30])]
    elif kind == 2:
        other = draw.randrange(len(lines))
        lines[at], lines[other] = lines[other], lines[at]
    elif kind in (3, 4, 5, 6):
        i = draw.choice(options)
        lines[i] = lines[i].split("=")[0] + "=" + draw.choice(VALUES)
    elif kind == 7:
        i = draw.choice(options)
        key, _, value = lines[i].partition("=")
        lines[i] = f"{key}={value.strip()}{draw.randrange(10)}"
    elif kind == 8:
        lines.insert(at, f"{draw.choice(KEYS)}={draw.choice(VALUES)}")
    elif kind == 9:
        lines.insert(at, f"[{draw.choice(SECTIONS)}]")
    elif kind == 10:
        lines[at] = lines[at][: draw.randint(0, len(lines[at]))]
    elif kind == 11:
        lines[at] = "".join(chr(draw.randrange(1, 1 << draw.choice([7, 8, 15]))) for _ in range(40))
    elif kind == 12:  # routes of routes, which double each time or not
        layers = draw.choice(["-1", "-1,-1", "-1,-2", "0", "1,-1", str(draw.randint(-200, 200))])
        lines[at:at] = ["[route]", f"layers={layers}"] * draw.choice([1, 10, 60, 1500])
    elif kind == 13:  # the same to and fro: references ahead, to itself, to what it makes
        lines[at:at] = ["[shortcut]", f"from={draw.randint(-30, 150)}", "activation=linear"]
    elif kind == 14:
        value = ",".join([draw.choice(["1", "-1", "0", "99999"])] * draw.choice([5, 300, 20_000]))
        lines.insert(at, f"{draw.choice(['layers', 'from', 'anchors', 'mask', 'steps'])}={value}")
    else:
        sides = [i for i in options if lines[i].replace(" ", "").startswith(("width=", "height="))]
        for i in sides:
            side = draw.choice(["1", "2", "31", "33", "4096", "32768", "32769", "0", "-32"])
            lines[i] = lines[i].split("=")[0] + "=" + side


def attempt_cfg(seed: int, texts: list[str], folder: Path) -> bool:
    """Build what a damaged file says, and run it if it is small; gives whether it was refused."""
    draw = random.Random(seed)
    path = folder / "damaged.cfg"
    path.write_text(draw_text(draw, texts), encoding="utf-8", errors="replace")
    try:
        plan = plan_network(path)
        schedule = DarknetSchedule(cfg_file=path)
        for i in (0, 1, 5, 50, 99):
            assert math.isfinite(schedule.factor(i, 100))
        values = sum(math.prod(layer.output) for layer in plan.layers)
        small = plan.floats < _MOST_FLOATS and values < _MOST_VALUES
        torch.manual_seed(0)
        with torch.device("cpu" if small else "meta"):
            network = DarknetDetector(cfg_file=path).eval() if plan.heads else None
            backbone = network.backbone.network if network else DarknetNetwork(plan).eval()
        count = sum(t.numel() for t in backbone.state_dict().values() if t.is_floating_point())
        assert count == plan.floats
        if small:
            _run(plan, backbone, network)
    except InputError as error:
        _check(str(error), path)
        return True
    return False


def _check(message: str, path: Path) -> None:
    """A refusal is a sentence that names the file."""
    assert "\n" not in message, message
    assert len(message) < 1000, message[:2000]
    assert path.name in message, message


@torch.no_grad()
def _run(plan, backbone: DarknetNetwork, detector: DarknetDetector | None) -> None:
    shapes = []
    for module in backbone.layers:
        module.register_forward_hook(lambda _m, _i, out: shapes.append(tuple(out.shape[1:])))
    backbone(torch.rand(1, *plan.input))
    assert shapes == [layer.output for layer in plan.layers]
    if detector is not None and not detector.letter_box:
        _, height, width = plan.input
        found = detector([{"image": torch.zeros(3, height, width, dtype=torch.uint8)}])
        assert found[0]["instances"].pred_boxes.tensor.isfinite().all()


def attempt_weights(seed: int, folder: Path) -> bool:
    """Load a damaged weights file; a network that refuses it is as it was before."""
    draw = random.Random(seed)
    network = DarknetNetwork(SMALL)
    values = np.random.default_rng(seed).normal(size=network.plan.floats).astype("<f4")
    header = Header(
        draw.choice([0, 0, 1, 1001]), draw.choice([1, 2, 1001]), 5, draw.randrange(9999)
    )
    data = bytearray(header.pack() + values.tobytes())
    for _ in range(draw.choice([0, 1, 1, 2])):
        kind = draw.randrange(7)
        at = draw.randrange(max(1, len(data)))
        if kind == 0:
            del data[draw.choice([at, len(data) - 4, len(data) - 1, 20, 12, 3]) :]
        elif kind == 1:
            data += bytes(draw.choice([1, 3, 4, 8, 4000]))
        elif kind == 2:
            word = draw.choice([float("nan"), float("inf"), -float("inf"), 1e38])
            at = len(header.pack()) + at // 4 * 4
            data[at : at + 4] = struct.pack("<f", word)
        elif kind == 3:
            at = draw.choice([0, 4, 8, 12, 16])
            data[at : at + 4] = struct.pack("<i", draw.choice([-1, 1 << 30, 2, 7, 100]))
        elif kind == 4:
            del data[at : at + 4]
        elif kind == 5:
            data[:20] = draw.choice([b"PK\x03\x04", b"<html>", b"\x89HDF", bytes(20), b"\xff" * 20])
        else:
            data[at : at + 8] = draw.randbytes(8)
    path = folder / f"damaged{draw.choice(['.weights', '.weights', '.5', '.conv.3', '.0', '.999'])}"
    path.write_bytes(bytes(data))
    before = {name: t.clone() for name, t in network.state_dict().items()}
    try:
        load_darknet_weights(network, path)
    except InputError as error:
        _check(str(error), path)
        after = network.state_dict()
        assert all(torch.equal(t, after[name]) for name, t in before.items())
        return True
    assert all(t.isfinite().all() for t in network.state_dict().values())
    return False


def attempt(seed: int, texts: list[str], folder: Path) -> bool:
    """One damaged file, cfg or weights, within its time."""
    begin = time.process_time()
    refused = attempt_weights(seed, folder) if seed % 8 == 7 else attempt_cfg(seed, texts, folder)
    seconds = time.process_time() - begin
    assert seconds < SECONDS, f"{seconds:.2f} s"
    return refused


def main() -> None:
    """Attempt seed after seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0, help="the first")
    parser.add_argument("--log", type=Path, default=Path("/tmp/d2proj_darknet_fuzz.log"))
    options = parser.parse_args()
    texts = published()
    deadline = time.monotonic() + 60 * options.minutes
    seed = options.seed
    refused = 0
    with tempfile.TemporaryDirectory() as name:
        attempt(seed, texts, Path(name))  # whatever is loaded at first use
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        while time.monotonic() < deadline:
            options.log.write_text(f"{seed}\n")
            refused += attempt(seed, texts, Path(name))
            seed += 1
    print(f"seeds {options.seed} to {seed - 1}: {refused} refused, the others built; nothing found")


if __name__ == "__main__":
    main()
