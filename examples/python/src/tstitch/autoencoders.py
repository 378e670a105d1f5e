"""Autoencoders: latents to pictures and back, for networks that make latents."""

from __future__ import annotations

import os
import warnings
from typing import Any, Union

import torch

from . import _core
from .arguments import shown, tensor, whole
from .images import image_tensor
from .networks import _device_of


def _each(number: float | list[float], channels: int) -> list[float]:
    return list(number) if isinstance(number, list) else [number] * channels


class _Half:
    """What decoders and encoders have in common."""

    def __init__(self, half: Any, tile: int, overlap: int) -> None:
        self._half = half
        self._tiling = (tile, overlap)

    @property
    def name(self) -> str:
        return self._half.name

    @property
    def latent_channels(self) -> int:
        return self._half.latent_channels

    @property
    def picture_channels(self) -> int:
        return self._half.picture_channels

    @property
    def upsampling(self) -> int:
        """Pixels of a picture for one of a latent, each way."""
        return self._half.upsampling

    @property
    def latent_scale(self) -> float | list[float]:
        """Networks know latent_scale (latent - latent_shift): a number, or one for each channel."""
        return self._half.latent_scale

    @property
    def latent_shift(self) -> float | list[float]:
        return self._half.latent_shift

    @property
    def device(self) -> torch.device:
        return self._half.device


class Decoder(_Half):
    """Latents to pictures, or to videos. Made by `load_decoder`."""

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures [n, picture_channels, H, W] in [-1, 1] from latents [n, latent_channels, h, w] as networks know them.

        Of videos [n, picture_channels, temporal_upsampling (F - 1) + 1, H, W] from [n, latent_channels, F, h, w].
        """
        latents = tensor("latents", latents).to(self.device)
        return self._half(latents, 1, *self._tiling)

    @property
    def temporal_upsampling(self) -> int:
        """Frames of a video for one of a latent after the first; 0 for decoders of pictures."""
        return self._half.temporal_upsampling

    def _require(self, info: _core.NetworkInfo) -> None:
        """Refuses networks whose x_0 it does not decode."""
        half = self._half
        if info.decoding == "pixels":
            raise ValueError(f"decoder: is for networks that make latents, got {half.name!r} for {info.name!r}")
        shape = list(info.full_shape)
        if shape and shape[0] not in (0, half.latent_channels):
            raise ValueError(
                f"decoder: must take the {shape[0]} channels of {info.name!r}, {half.name!r} takes {half.latent_channels}"
            )
        if shape and (half.temporal_upsampling > 0) != (len(shape) == 4):
            raise ValueError(
                f"decoder: must be of {'videos' if len(shape) == 4 else 'pictures'} for {info.name!r}, whose x is "
                f"{shape}, {half.name!r} is not"
            )
        theirs, its = (
            [_each(number, half.latent_channels) for number in (of.latent_scale, of.latent_shift)] for of in (info, half)
        )
        if not any(theirs[0]) or theirs == its:
            return
        # The first channel in which they differ.
        k = next(i for i, (a, b) in enumerate(zip(zip(*theirs), zip(*its))) if a != b)
        where = f" in channel {k}" if len({*zip(*theirs), *zip(*its)}) > 2 else ""
        if any(scale != 1 or shift != 0 for scale, shift in zip(*its)):
            raise ValueError(
                f"decoder: must have latents of scale {theirs[0][k]:g} and shift {theirs[1][k]:g}{where} for "
                f"{info.name!r}, {half.name!r} has {its[0][k]:g} and {its[1][k]:g}"
            )
        # Tiny autoencoders are trained on latents as diffusion networks know them, and say a scale of 1.
        if not half.scaled_latents:
            warnings.warn(
                f"decoder: {half.name!r} has latents of scale 1, so it is given what {info.name!r} makes as it is, of "
                f"scale {theirs[0][k]:g} and shift {theirs[1][k]:g}{where}",
                stacklevel=4,
            )

    def __repr__(self) -> str:
        return (
            f"Decoder({self.name!r}, {self.latent_channels} to {self.picture_channels} channels, {self.upsampling} times "
            f"the size, device={self.device})"
        )


class Encoder(_Half):
    """Pictures to latents: the mean of what the encoder predicts. Made by `load_encoder`."""

    def __call__(self, pictures: Any) -> torch.Tensor:
        """Latents [n, latent_channels, h, w] as networks know them, for initial_image.

        Args:
            pictures: PIL, uint8 in 0..255, or floating [n, picture_channels, H, W] in [-1, 1]; H and W multiples of
                `upsampling`.
        """
        made = image_tensor("pictures", pictures, True, self._half.picture_channels == 1).to(self.device)
        return self._half(made, 1, *self._tiling)

    def __repr__(self) -> str:
        return (
            f"Encoder({self.name!r}, {self.picture_channels} to {self.latent_channels} channels, device={self.device})"
        )


DecoderLike = Union[Decoder, str, os.PathLike]


def _load(half: Any, path: Any, device: Any, dtype: str, tile: int, overlap: int) -> Any:
    if dtype not in ("auto", "float32", "float16", "bfloat16"):
        raise ValueError(f"dtype: must be 'auto', 'float32', 'float16' or 'bfloat16', got {dtype!r}")
    tile, overlap = whole("tile", tile, 0), whole("overlap", overlap, 0)
    if tile and overlap >= tile:
        raise ValueError(f"overlap: must be below tile, {tile}, got {overlap}")
    return half.load(os.fspath(path), _device_of(device), dtype), tile, overlap


def load_decoder(
    path: str | os.PathLike,
    *,
    device: torch.device | str | None = None,
    dtype: str = "auto",
    tile: int = 0,
    overlap: int = 16,
) -> Decoder:
    """The decoder of an autoencoder from a file of `export_autoencoder.py`. Files are programs: load what you trust.

    Args:
        path: a TorchScript file with metadata.
        device: without, the first GPU where there is one.
        dtype: "auto" (float32 on the CPU, else the file's own), "float32", "float16" or "bfloat16".
        tile: decode in tiles of so many pixels of the latent a side, which bounds memory; 0 for whole pictures.
        overlap: by how many of them tiles go over into each other.

    Raises:
        RuntimeError: names the file and what is wrong with it.
    """
    return Decoder(*_load(_core.Decoder, path, device, dtype, tile, overlap))


def load_encoder(
    path: str | os.PathLike,
    *,
    device: torch.device | str | None = None,
    dtype: str = "auto",
    tile: int = 0,
    overlap: int = 16,
) -> Encoder:
    """The encoder of an autoencoder; see `load_decoder`."""
    return Encoder(*_load(_core.Encoder, path, device, dtype, tile, overlap))


def decoder_of(value: DecoderLike, device: torch.device) -> Decoder:
    if isinstance(value, Decoder):
        return value
    if isinstance(value, (str, os.PathLike)):
        return load_decoder(value, device=device)
    raise TypeError(f"decoder: must be a Decoder or the path of one, got {shown(value)}")
