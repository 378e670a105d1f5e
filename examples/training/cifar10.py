"""CIFAR-10 as JPEG files in one .npz.

`train_jpeg` holds all training files end to end, `train_offsets` [n + 1] where each begins and ends, `train_labels`
their classes; `test_*` likewise; `classes` the names.
"""

import io
import itertools
import multiprocessing
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def _decode(files: list[bytes]) -> np.ndarray:
    """JPEG files -> uint8 [n, 3, 32, 32]."""
    pictures = [np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files]
    return np.stack(pictures).transpose(0, 3, 1, 2)


def load_cifar10(path: Path, split: str) -> tuple[Tensor, Tensor, list[str]]:
    """Pictures uint8 [n, 3, 32, 32], labels int64 [n] and the ten class names; `split` is "train" or "test".

    Call it before anything else touches the GPU: the decoding processes are forked, and CUDA does not survive a fork.
    """
    with np.load(path) as archive:
        data = archive[f"{split}_jpeg"].tobytes()
        offsets = archive[f"{split}_offsets"].tolist()
        labels = torch.from_numpy(archive[f"{split}_labels"].astype(np.int64))
        names = [str(name) for name in archive["classes"]]
    files = [data[begin:end] for begin, end in itertools.pairwise(offsets)]
    chunks = [files[i : i + 500] for i in range(0, len(files), 500)]
    with multiprocessing.get_context("fork").Pool() as pool:
        pictures = np.concatenate(pool.map(_decode, chunks))
    return torch.from_numpy(pictures), labels, names
