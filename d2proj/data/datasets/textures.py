"""Procedural backgrounds: gradients, stripes, blotches and grain, from a seeded generator."""

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Plane = npt.NDArray[np.float32]


def draw_texture(rng: np.random.Generator, size: int) -> Plane:
    """A textured background, float32 [size, size, 3], 0 to 1."""
    first, second = (_colour(rng) for _ in range(2))
    mix: npt.NDArray[np.floating[Any]] = _gradient(rng, size)
    kind = rng.integers(4)
    if kind == 1:
        mix = 0.5 * mix + 0.5 * _stripes(rng, size)
    elif kind == 2:
        mix = 0.4 * mix + 0.6 * _blotches(rng, size)
    elif kind == 3:
        mix = (mix + _stripes(rng, size) + _blotches(rng, size)) / 3
    canvas = first + mix[:, :, None] * (second - first)
    grain = rng.standard_normal((size, size), dtype=np.float32) * np.float32(rng.uniform(0, 0.06))
    return np.clip(canvas + grain[:, :, None], 0, 1).astype(np.float32)


def _colour(rng: np.random.Generator) -> Plane:
    """A muted colour: a grey with some tint."""
    colour = rng.uniform(0.05, 0.95) + rng.uniform(-0.15, 0.15, 3)
    return np.clip(colour, 0, 1).astype(np.float32)


def _across(rng: np.random.Generator, size: int) -> Plane:
    """Position along a random direction, -0.5 to 0.5 of the diagonal."""
    angle = rng.uniform(0, 2 * np.pi)
    line = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    x, y = np.float32(np.cos(angle)) * line, np.float32(np.sin(angle)) * line
    return np.asarray((x[None, :] + y[:, None]) / np.float32(np.sqrt(2)), dtype=np.float32)


def _gradient(rng: np.random.Generator, size: int) -> Plane:
    return np.float32(0.5) + _across(rng, size)


def _stripes(rng: np.random.Generator, size: int) -> Plane:
    """Waves of 3 to 16 periods; some of them sharp-edged."""
    wave = np.sin(_across(rng, size) * np.float32(2 * np.pi * rng.uniform(3, 16)))
    sharpness = np.float32(rng.choice([1.0, 6.0]))
    return (np.float32(0.5) + np.clip(wave * sharpness, -1, 1) / 2).astype(np.float32)


def _blotches(rng: np.random.Generator, size: int) -> Plane:
    """Smooth noise with features of a quarter to a sixteenth of the picture."""
    cells = int(rng.choice([4, 8, 16]))
    coarse = Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
    smooth = coarse.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(smooth, dtype=np.float32) / np.float32(255)
