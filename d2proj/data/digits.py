"""``python -m d2proj.data.digits --output DIR``: write the digits data set."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from d2proj.data.datasets.digits import DigitsParameters, generate
from d2proj.errors import InputError


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and write the data set; the exit status."""
    defaults = DigitsParameters()
    parser = argparse.ArgumentParser(prog="python -m d2proj.data.digits", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--train", type=int, default=defaults.train_images, help="pictures")
    parser.add_argument("--val", type=int, default=defaults.val_images, help="pictures")
    parser.add_argument("--size", type=int, default=defaults.image_size, help="of a side, pixels")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    options = parser.parse_args(arguments)
    try:
        parameters = DigitsParameters(options.train, options.val, options.size, options.seed)
        root = generate(options.output, parameters)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{root}: {options.train} pictures to train on, {options.val} for validation")
    return 0


if __name__ == "__main__":
    sys.exit(main())
