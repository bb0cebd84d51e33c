"""Deterministic inputs (numpy only): images, text vectors, guest features, small maps."""

import hashlib

import numpy as np

# name -> (height, width) in pixels; patch 16
SIZES = {"native": (224, 224), "wide": (224, 336), "large": (288, 288)}


def _rng(name):
    seed = int.from_bytes(hashlib.sha256(name.encode("utf-8")).digest()[:16], "little")
    return np.random.Generator(np.random.PCG64(seed))


def image(size, key="image"):
    """Already normalised RGB, float32 1x3xHxW: smooth waves, a few coloured discs and boxes, fine noise."""
    height, width = SIZES[size] if isinstance(size, str) else size
    rng = _rng("%s %dx%d" % (key, height, width))
    y, x = np.meshgrid((np.arange(height) + 0.5) / 224.0, (np.arange(width) + 0.5) / 224.0, indexing="ij")
    out = np.zeros((3, height, width))
    for c in range(3):
        for _ in range(3):
            fy, fx, phase = rng.uniform(-3, 3), rng.uniform(-3, 3), rng.uniform(0, 2 * np.pi)
            out[c] += 0.35 * np.sin(2 * np.pi * (fy * y + fx * x) + phase)
    for shape in range(8):
        cy, cx, r = rng.uniform(0, height / 224.0), rng.uniform(0, width / 224.0), rng.uniform(0.08, 0.25)
        if shape % 2:
            inside = (y - cy) ** 2 + (x - cx) ** 2 < r * r
        else:
            inside = np.maximum(np.abs(y - cy), np.abs(x - cx)) < r
        for c, value in enumerate(rng.uniform(-2, 2, 3)):
            out[c][inside] = 0.3 * out[c][inside] + value
    out += 0.15 * rng.standard_normal(out.shape)
    return out[None].astype(np.float32)


def text(count=10, width=64):
    """Unit rows, float32 count x width."""
    rows = _rng("text %d %d" % (count, width)).standard_normal((count, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def guest(height, width, channels=48):
    """Feature map of another vision model, float32 1 x channels x height x width."""
    rng = _rng("guest %dx%dx%d" % (height, width, channels))
    y, x = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
    out = np.zeros((channels, height, width))
    for c in range(channels):
        fy, fx, phase = rng.uniform(-2, 2), rng.uniform(-2, 2), rng.uniform(0, 2 * np.pi)
        out[c] = np.sin(2 * np.pi * (fy * y + fx * x) + phase) + 0.3
    out += 0.3 * rng.standard_normal(out.shape)
    return out[None].astype(np.float32)


def logit_map(classes, height, width):
    """Small map of cosine-like logits, float32 1 x classes x height x width."""
    rng = _rng("logits %dx%dx%d" % (classes, height, width))
    coarse = rng.standard_normal((classes, height // 8 + 1, width // 8 + 1))
    yy, xx = np.arange(height) // 8, np.arange(width) // 8
    out = 0.1 * coarse[:, yy][:, :, xx] + 0.02 * rng.standard_normal((classes, height, width))
    return out[None].astype(np.float32)


def samples(name, size, count=400):
    """Flat (C order) positions at which an array called `name` with `size` elements is sampled."""
    if size <= count:
        return np.arange(size)
    return np.sort(_rng("samples " + name).choice(size, count, replace=False))
