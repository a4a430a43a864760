"""``python -m d2proj.info``: versions, which Detectron2, how the ops were built, their kernels."""

import argparse
import importlib.metadata
import importlib.util
import platform
import sys

import torch
from torch._C import _dispatch_has_kernel_for_dispatch_key as has_kernel

import d2proj
from d2proj import _detectron2
from d2proj.ops import _ext

_PACKAGES = ("torchvision", "numpy", "fvcore", "omegaconf", "pycocotools")
_KERNELS = {"CPU": "CPU", "CUDA": "CUDA", "autograd": "Autograd", "autocast": "AutocastCPU"}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def versions() -> dict[str, str]:
    """What runs: d2proj, Python, torch, the GPU, the packages that matter for results."""
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "d2proj": f"{d2proj.__version__} ({d2proj.__path__[0]})",
        "python": f"{platform.python_version()} ({sys.executable})",
        "torch": f"{torch.__version__} ({cuda}; {torch.get_num_threads()} threads)",
        "GPU": ", ".join(gpus) or "none",
        **{package: _version(package) for package in _PACKAGES},
    }


def detectron2() -> str:
    """Which Detectron2 ``import detectron2`` gives, and where it lies."""
    spec = importlib.util.find_spec("detectron2")
    if spec is None or not spec.submodule_search_locations:
        return "not found"
    kind = "embedded" if _detectron2.is_embedded() else f"installed, {_version('detectron2')}"
    return f"{kind} ({next(iter(spec.submodule_search_locations))})"


def library() -> str:
    """What the compiled library was built with and for."""
    info = _ext.build_info()
    if not info:
        return f"none at {_ext.LIBRARY}"
    cuda = f"CUDA {info['cuda']} for {' '.join(info['archs'])}" if info["cuda"] else "no CUDA"
    return f"{_ext.LIBRARY} (torch {info['torch']}; {cuda}; {info['compiler']})"


#: Ops for a CPU alone: on a GPU torch's own (cuDNN) do the same.
CPU_ONLY = ("_fused_conv2d",)


def kernels() -> dict[str, list[str]]:
    """For each op of the library, the kernels that it has here."""
    table = {}
    for name in sorted(torch._C._dispatch_get_all_op_names()):
        if not name.startswith("d2proj::"):
            continue
        found = [label for label, key in _KERNELS.items() if has_kernel(name, key)]
        if torch._library.simple_registry.singleton.find(name).fake_impl.kernel is not None:
            found.append("fake")
        table[name.removeprefix("d2proj::")] = found
    return table


def main(arguments: list[str] | None = None) -> int:
    """Print it all; the exit code says whether the ops are usable."""
    parser = argparse.ArgumentParser(prog="python -m d2proj.info", description=__doc__)
    parser.add_argument(
        "--require-cuda-kernels",
        action="store_true",
        help="exit with status 1 unless every op has a CUDA kernel too",
    )
    options = parser.parse_args(arguments)
    rows = {**versions(), "detectron2": detectron2(), "compiled ops": library()}
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")
    table = kernels()
    print(f"\n{'op':<24}  kernels")
    for name, found in table.items():
        print(f"{name:<24}  {', '.join(found)}")
    if not _ext.AVAILABLE:
        print(f"\n{_ext.ERROR}", file=sys.stderr)
        return 1
    missing = [
        name for name, found in table.items() if "CUDA" not in found and name not in CPU_ONLY
    ]
    if options.require_cuda_kernels and missing:
        print(f"\nno CUDA kernel: {', '.join(missing)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
