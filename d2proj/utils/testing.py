"""What the tests of the ops share: devices, dtypes, random boxes and maps."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

#: Absolute tolerance per dtype for values of order one that were accumulated in float32 (float64).
TOLERANCE = {
    torch.float16: 2e-3,
    torch.bfloat16: 2e-2,
    torch.float32: 1e-5,
    torch.float64: 1e-12,
}


def devices() -> list[str]:
    """``cpu``, and ``cuda`` where there is one; touches no device when imported."""
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def random_rois(
    count: int,
    images: int,
    size: float,
    *,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """(count, 5) boxes of many shapes, some of them partly or wholly outside a ``size`` square."""
    corner = torch.rand(count, 2, generator=generator) * size * 1.4 - 0.2 * size
    side = torch.rand(count, 2, generator=generator) ** 2 * size
    index = torch.randint(max(images, 1), (count, 1), generator=generator)
    return torch.cat([index, corner, corner + side], dim=1).to(dtype)


def in_layout(tensor: Tensor, layout: str) -> Tensor:
    """The same values in another memory layout.

    Args:
        tensor: (N, C, H, W).
        layout: ``nchw``, ``nhwc`` (channels-last), ``sliced`` (every second column of a wider map,
            so neither contiguous nor dense) or ``permuted`` (W before H in memory).
    """
    if layout == "nchw":
        return tensor.contiguous()
    if layout == "nhwc":
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":
        wide = tensor.new_zeros(*tensor.shape[:-1], tensor.shape[-1] * 2)
        wide[..., ::2] = tensor
        return wide[..., ::2]
    if layout == "permuted":
        return tensor.transpose(2, 3).contiguous().transpose(2, 3)
    raise ValueError(f"layout must be nchw, nhwc, sliced or permuted, got {layout}")


def run_python(code: str, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter, from the checkout's root, with these variables added."""
    root = Path(__file__).resolve().parents[2]
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path, **env},
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
