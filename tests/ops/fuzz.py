"""Calls ops with drawn arguments until the time is over; `make sanitize` runs it.

    python -m tests.ops.fuzz --minutes 10 [--ops nms,roi_align] [--seed 0]

Writes the op and the seed to a file before the call (--log), so that a crash can be repeated and
kept as a test (FINDINGS in tests/ops/test_every_op.py).
"""

import argparse
import time
from pathlib import Path

from tests.ops import test_every_op


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--ops", default=",".join(test_every_op.CALLS))
    parser.add_argument("--seed", type=int, default=0, help="the first")
    parser.add_argument("--log", type=Path, default=Path("/tmp/d2proj_fuzz.log"))
    options = parser.parse_args()
    names = options.ops.split(",")
    deadline = time.monotonic() + 60 * options.minutes
    seed, count = options.seed, 0
    while time.monotonic() < deadline:
        for name in names:
            options.log.write_text(f"{name} {seed}\n")
            test_every_op.attempt(name, seed)
            count += 1
        seed += 1
    print(f"{count} calls of {len(names)} ops, seeds {options.seed} to {seed - 1}: nothing found")


if __name__ == "__main__":
    main()
