"""Time and memory of a data set of COCO's size: 120 000 images, 860 000 boxes, 4 workers.

    python benchmarks/data_memory.py [--images N] [--boxes N] [--workers N]

A COCO json and as many (hard-linked, tiny) pictures are generated in a temporary folder. A fresh
process loads them, checks that every picture exists, and trains nothing but reads batches through
the workers. Memory is PSS (proportional set size: a page shared by k processes counts 1/k in each)
summed over that process and its workers, sampled from outside every 0.1 s for the peak.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

RESULTS = Path(__file__).parent / "results" / "data_memory.json"
WIDTH, HEIGHT = 64, 48
BATCHES = 150
BATCH_SIZE = 16


def main() -> None:
    """Generate, measure in a fresh process, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=120_000)
    parser.add_argument("--boxes", type=int, default=860_000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.workers)))
        return
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder), options.images, options.boxes)
        result = watch(Path(folder), options.workers)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    if result["load_s"] > 60 or result["pss_all_mb"] > 1200 or result["peak_pss_all_mb"] > 1200:
        sys.exit("above the limits: 60 s, 1200 MB")


def generate(folder: Path, images: int, boxes: int) -> None:
    """Write ``instances.json``, spaced and with the keys as in COCO's own, and the pictures."""
    rng = random.Random(0)
    pictures = folder / "images"
    pictures.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    for i in range(images):
        if i % 20_000 == 0:  # file systems limit the number of links to a file
            source = folder / f"{i}.jpg"
            Image.fromarray(pixels).save(source)
        os.link(source, pictures / f"{i:012d}.jpg")
    with (folder / "instances.json").open("w") as stream:
        categories = [{"supercategory": "thing", "id": c, "name": f"class {c}"} for c in range(80)]
        stream.write(f'{{"categories": {json.dumps(categories)}, "images": [')
        for i in range(images):
            entry = {
                "license": 1,
                "file_name": f"{i:012d}.jpg",
                "height": HEIGHT,
                "width": WIDTH,
                "date_captured": "2013-11-14 11:18:45",
                "id": i,
            }
            stream.write((", " if i else "") + json.dumps(entry))
        stream.write('], "annotations": [')
        for i in range(boxes):
            x, y = round(rng.uniform(0, WIDTH - 9), 2), round(rng.uniform(0, HEIGHT - 9), 2)
            width, height = round(rng.uniform(1, 8), 2), round(rng.uniform(1, 8), 2)
            corners = [x, y, x + width, y, x + width, y + height, x, y + height]
            annotation = {
                "segmentation": [[round(value, 2) for value in corners]],
                "area": round(width * height, 4),
                "iscrowd": 0,
                "image_id": rng.randrange(images),
                "bbox": [x, y, width, height],
                "category_id": rng.randrange(80),
                "id": i + 1,
            }
            stream.write((", " if i else "") + json.dumps(annotation))
        stream.write("]}")


def watch(folder: Path, workers: int) -> dict[str, Any]:
    """Run the measurement in a fresh process, sampling the memory of it and its children."""
    command = [sys.executable, __file__, "--measure", str(folder), "--workers", str(workers)]
    root = Path(__file__).resolve().parent.parent
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(root)]))
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}
    )
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, sum(tree_pss_mb(process.pid)))
        time.sleep(0.1)
    output = process.communicate()[0]
    if process.returncode:
        sys.exit(f"the measurement failed with status {process.returncode}")
    result: dict[str, Any] = json.loads(output)
    json_mb = (folder / "instances.json").stat().st_size / 1e6
    return {"json_mb": round(json_mb, 1), **result, "peak_pss_all_mb": round(peak, 1)}


def measure(folder: Path, workers: int) -> dict[str, Any]:
    """Load the data set and read batches; times in seconds, memory in 10^6 bytes."""
    import d2proj.data as data  # here: the generating process must not hold torch's memory

    imported_mb = sum(tree_pss_mb(os.getpid()))
    node = {
        "format": "coco",
        "train": {"json": str(folder / "instances.json"), "images": str(folder / "images")},
    }
    start = time.perf_counter()
    dataset = data.load_dataset(node, "train")
    load_s = time.perf_counter() - start
    loaded_mb = sum(tree_pss_mb(os.getpid()))
    loader = data.build_train_loader(
        dataset, batch_size=BATCH_SIZE, workers=workers, augmentations=[], seed=0
    )
    start = time.perf_counter()
    batches = iter(loader)  # held: the workers live as long as it
    for _ in islice(batches, BATCHES):
        pass
    read_s = time.perf_counter() - start
    each = tree_pss_mb(os.getpid())
    if len(each) != workers + 1:
        raise RuntimeError(f"{workers} workers were to be measured, {len(each) - 1} were there")
    return {
        "images": len(dataset),
        "boxes": dataset.report.boxes,
        "workers": workers,
        "load_s": round(load_s, 2),
        "images_per_s": round(BATCHES * BATCH_SIZE / read_s, 1),
        "pss_after_import_mb": round(imported_mb, 1),
        "pss_after_load_mb": round(loaded_mb, 1),
        "pss_all_mb": round(sum(each), 1),
        "pss_each_mb": [round(value, 1) for value in each],
    }


def tree_pss_mb(pid: int) -> list[float]:
    """PSS of a process and of each of its descendants, in 10^6 bytes."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has just ended
        return []
    kib = next((line.split()[1] for line in rollup.splitlines() if line.startswith("Pss:")), 0)
    result = [int(kib) * 1024 / 1e6]
    for child in children:
        result += tree_pss_mb(int(child))
    return result


if __name__ == "__main__":
    main()
