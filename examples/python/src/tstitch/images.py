"""Pictures from and to what people have: PIL, NumPy and tensors."""

from __future__ import annotations

from typing import Any

import torch

from . import _core
from .arguments import is_list, shown, tensor


def _is_pil(value: Any) -> bool:
    return type(value).__module__.startswith("PIL.") and hasattr(value, "convert")


def image_tensor(name: str, value: Any, pixels: bool, grey: bool = False) -> torch.Tensor:
    """[n, C, ...] in the networks' space.

    PIL pictures and uint8 arrays are [H, W], [H, W, C] or [n, H, W, C] in 0..255; uint8 tensors [C, H, W] or [n, C, H, W] in
    0..255; both become [-1, 1]. Floating arrays and tensors are [C, ...] or [n, C, ...] as the networks know them, for
    pictures in [-1, 1].

    Args:
        pixels: whether the networks say that x_0 is a picture, whose values are then checked.
        grey: whether they have one channel.
    """
    if _is_pil(value):
        import numpy

        value = numpy.asarray(value.convert("L" if grey else "RGB"))
    elif isinstance(value, (list, tuple)) and value:
        made = [image_tensor(f"{name}[{i}]", each, pixels, grey) for i, each in enumerate(value)]
        if len({each.shape[1:] for each in made}) > 1:
            raise ValueError(f"{name}: must have one size, got {[list(each.shape) for each in made]}")
        return torch.cat(made)
    from_array = not isinstance(value, torch.Tensor)
    image = tensor(name, value)
    if image.dtype == torch.uint8:
        if from_array:
            if image.dim() == 2:
                image = image[..., None]
            if image.dim() not in (3, 4) or image.shape[-1] not in (1, 3):
                raise ValueError(
                    f"{name}: a uint8 array must be [H, W], [H, W, C] or [n, H, W, C] with 1 or 3 channels, got {list(image.shape)}"
                )
            image = image.movedim(-1, -3)
        if image.dim() == 3:
            image = image[None]
        return image.to(torch.float32).div(127.5).sub(1).contiguous()
    if image.dtype in (torch.float16, torch.bfloat16):
        image = image.float()
    if image.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name}: must be uint8 in 0..255 or floating, got {shown(image)}")
    if image.dim() in (2, 3):
        image = image[None]
    if pixels:
        low, high = image.min().item(), image.max().item()
        if not (low >= -1.001 and high <= 1.001):
            raise ValueError(
                f"{name}: floating pictures must be in [-1, 1] (uint8 ones in 0..255), got values from {low:.4g} to {high:.4g}"
            )
    return image


def mask_tensor(name: str, value: Any) -> torch.Tensor:
    """[1 or n, 1 or C, ...], 1 where the picture is drawn; PIL masks and uint8 are 0 or 255, as programs have them."""
    if _is_pil(value):
        import numpy

        value = numpy.asarray(value.convert("L"))
    mask = (
        torch.stack([tensor(name, each) for each in value])
        if isinstance(value, (list, tuple)) and is_list(value)
        else tensor(name, value)
    )
    if mask.dtype == torch.uint8:
        if ((mask != 0) & (mask != 255)).any():
            raise ValueError(f"{name}: uint8 masks must be 0 or 255; give others as floating values in [0, 1]")
        mask = mask == 255
    while mask.dim() in (2, 3):
        mask = mask[None]
    return mask


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """[n, H, W, C] in 0..255 from [n, C, H, W] in [-1, 1], on the CPU, as the library writes them into files.

    Of videos [n, F, H, W, C] from [n, C, F, H, W].
    """
    if images.dim() not in (4, 5) or images.shape[1] not in (1, 3):
        raise ValueError(
            f"images: must be pictures, [n, 1 or 3, H, W], got {list(images.shape)}; say decoder=... for networks that make latents"
        )
    return _core.to_bytes(images).cpu()
