"""Darknet's files: ``python -m d2proj.darknet convert|info``."""

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch

from d2proj.checkpoint.atomic import write_atomically
from d2proj.checkpoint.darknet import (
    Header,
    load_darknet_weights,
    partial_layers,
    save_darknet_weights,
)
from d2proj.checkpoint.files import file_kind, read_file
from d2proj.darknet.network import DarknetNetwork
from d2proj.darknet.plan import plan_network
from d2proj.engine.exits import run_and_exit
from d2proj.errors import InputError

#: Where the network stands in a DarknetDetector.
_PREFIX = "backbone.network."


def argument_parser() -> argparse.ArgumentParser:
    """The arguments of ``python -m d2proj.darknet``."""
    parser = argparse.ArgumentParser(prog="python -m d2proj.darknet", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    convert = commands.add_parser(
        "convert",
        help="weights to a torch checkpoint, or back",
        description="Convert darknet weights to a torch checkpoint, or such a checkpoint back to "
        "the same bytes; which of the two is told from the input file.",
    )
    convert.add_argument("cfg", type=Path, metavar="X.cfg")
    convert.add_argument("source", type=Path, metavar="X.weights|X.pth")
    convert.add_argument("target", type=Path, metavar="OUT")
    convert.add_argument("--layers", type=int, metavar="N", help="only the first N layers")
    convert.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    info = commands.add_parser("info", help="the layers, shapes and weights of a cfg file")
    info.add_argument("cfg", type=Path, metavar="X.cfg")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    args = argument_parser().parse_args(argv)
    run_and_exit(lambda: convert(args) if args.command == "convert" else info(args))


def convert(args: argparse.Namespace) -> None:
    """Write ``args.target``.

    Raises:
        InputError: a file is missing, damaged or of another network, the target exists, or there
            are fewer layers than asked for.
    """
    if args.target.exists() and not args.overwrite:
        raise InputError(f"{args.target} exists: replace it with --overwrite or name another file")
    network = DarknetNetwork(plan_network(args.cfg))
    if args.layers is not None and not 1 <= args.layers <= len(network.layers):
        raise InputError(f"--layers must be 1 to {len(network.layers)}, got {args.layers}")
    try:
        if file_kind(args.source) == "darknet":
            _to_torch(network, args)
        else:
            _to_darknet(network, args)
    except OSError as error:
        raise InputError(f"{args.target} cannot be written: {error.strerror or error}") from None
    print(f"written: {args.target} ({args.target.stat().st_size} bytes)")


def _to_torch(network: DarknetNetwork, args: argparse.Namespace) -> None:
    layers = partial_layers(args.source) if args.layers is None else args.layers
    header = load_darknet_weights(network, args.source, layers=layers)
    kept = {k: v for k, v in network.state_dict().items() if _within(k, layers)}
    content = {
        "model": {_PREFIX + name: tensor for name, tensor in kept.items()},
        "darknet": dataclasses.asdict(header),
        "cfg": args.cfg.read_text(errors="replace"),
    }
    write_atomically(args.target, lambda file: torch.save(content, cast(Any, file)))


def _to_darknet(network: DarknetNetwork, args: argparse.Namespace) -> None:
    content = read_file(args.source).content
    tensors = content.get("model") if isinstance(content, Mapping) else None
    if not isinstance(tensors, Mapping):
        raise InputError(f"{args.source} is no checkpoint of this project: it has no 'model'")
    own = {k.removeprefix(_PREFIX): v for k, v in tensors.items() if k.startswith(_PREFIX)}
    layers = partial_layers(args.target) if args.layers is None else args.layers
    wanted = {k: v for k, v in network.state_dict().items() if _within(k, layers)}
    for name, tensor in wanted.items():
        found = own.get(name)
        if found is None or found.shape != tensor.shape:
            shape = "is missing" if found is None else f"has the shape {tuple(found.shape)}"
            raise InputError(
                f"{args.source} is not of {args.cfg}: {_PREFIX}{name} {shape}, expected "
                f"{tuple(tensor.shape)}"
            )
    network.load_state_dict({k: v for k, v in own.items() if k in wanted}, strict=False)
    save_darknet_weights(network, args.target, _header(content.get("darknet")), layers=layers)


def _within(name: str, layers: int | None) -> bool:
    """Whether ``layers.<i>.*`` is one of the first so many layers."""
    return layers is None or int(name.split(".")[1]) < layers


def _header(recorded: Any) -> Header:
    """What the checkpoint was converted from began with; darknet's present version otherwise."""
    names = {field.name for field in dataclasses.fields(Header)}
    if isinstance(recorded, Mapping) and set(recorded) == names:
        return Header(**{name: int(value) for name, value in recorded.items()})
    return Header()


def info(args: argparse.Namespace) -> None:
    """Print the network's layers."""
    plan = plan_network(args.cfg)
    print(f"{'layer':>5}  {'kind':<16}{'from':<16}{'channels x height x width':<28}{'weights':>12}")
    for layer in plan.layers:
        sources = ",".join("image" if i < 0 else str(i) for i in layer.sources)
        shape = " x ".join(map(str, layer.output))
        print(f"{layer.index:>5}  {layer.kind:<16}{sources:<16}{shape:<28}{layer.floats:>12}")
    print(f"{plan.floats} values in a weights file; {len(plan.heads)} layers predict boxes")


if __name__ == "__main__":
    main()
