"""Noise by address, as include/tstitch/tensor/noise.hpp defines it, in float64."""

import numpy as np


def philox(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Philox 4x32-10 of counters [n, 4]; returns words [n, 4]."""
    c = [counter[:, i].astype(np.uint64) for i in range(4)]
    k0, k1 = key
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        a, b = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [
            (b >> np.uint64(32)) ^ c[1] ^ np.uint64(k0),
            b & low,
            (a >> np.uint64(32)) ^ c[3] ^ np.uint64(k1),
            a & low,
        ]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack(c, axis=1)


def noise(seed: int, step: int, draw: int, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal numbers of an image; step 0 is where its trajectory begins, i + 1 is step i."""
    count = int(np.prod(shape))
    counter = np.zeros(((count + 3) // 4, 4), dtype=np.uint64)
    counter[:, 0] = np.arange(len(counter))
    counter[:, 2], counter[:, 3] = step, draw
    words = philox(counter, (seed & 0xFFFFFFFF, seed >> 32)).astype(np.float64)
    values = np.empty((len(counter), 4))
    for pair in (0, 2):
        radius = np.sqrt(-2 * np.log((words[:, pair] + 0.5) / 2**32))
        angle = 2 * np.pi * (words[:, pair + 1] + 0.5) / 2**32
        values[:, pair], values[:, pair + 1] = radius * np.cos(angle), radius * np.sin(angle)
    return values.reshape(-1)[:count].reshape(shape)
