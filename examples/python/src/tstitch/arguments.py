"""Checks of arguments: each message names the argument, the rule and what was given."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch


def shown(value: Any, most: int = 80) -> str:
    """What a message shows of a value."""
    if isinstance(value, torch.Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of {list(value.shape)}"
    text = repr(value)
    return text if len(text) <= most else text[: most - 3] + "..."


def whole(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """An int, also of NumPy or of a tensor with one element; never a bool or a fraction."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: must be an int, got {shown(value)}") from None
    if least is not None and number < least:
        raise ValueError(f"{name}: must be at least {least}, got {number}")
    if most is not None and number > most:
        raise ValueError(f"{name}: must be at most {most}, got {number}")
    return number


def real(name: str, value: Any) -> float:
    """A finite float."""
    if isinstance(value, torch.Tensor) and value.numel() == 1 and not value.is_complex():
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: must be a number, got {shown(value)}")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name}: must be a finite number, got {number}")
    return number


def is_list(value: Any) -> bool:
    """Whether it is several values: a sequence, a range, an array or a tensor, and no text."""
    if isinstance(value, torch.Tensor):
        return value.dim() > 0
    if isinstance(value, (str, bytes)):
        return False
    return isinstance(value, (Sequence, range)) or hasattr(value, "__array__") and getattr(value, "ndim", 0) > 0


def listed(name: str, value: Iterable) -> list:
    """The values of a sequence, array or tensor as a list."""
    if isinstance(value, torch.Tensor) or hasattr(value, "tolist"):
        value = value.tolist()
    try:
        return list(value)
    except TypeError:
        raise TypeError(f"{name}: must be a list, got {shown(value)}") from None


def wholes(name: str, value: Any, least: int | None = None, most: int | None = None) -> list[int]:
    return [whole(f"{name}[{i}]", each, least, most) for i, each in enumerate(listed(name, value))]


def reals(name: str, value: Any) -> list[float]:
    return [real(f"{name}[{i}]", each) for i, each in enumerate(listed(name, value))]


def only(name: str, given: dict[str, Any]) -> None:
    """Refuses arguments that `name` leaves no choice of."""
    for other, value in given.items():
        if value is not None:
            raise ValueError(f"{other}: must not be given with {name}, got {shown(value)}")


def tensor(name: str, value: Any) -> torch.Tensor:
    """A tensor, from one, from an array, or from what has DLPack (torch.from_dlpack, without a copy)."""
    if isinstance(value, torch.Tensor):
        return value.detach()
    if hasattr(value, "__dlpack__"):
        try:
            return torch.from_dlpack(value)
        except (BufferError, TypeError, RuntimeError) as error:
            # NumPy lends no arrays that may not be written to; a copy may be.
            if not hasattr(value, "__array__"):
                raise ValueError(f"{name}: torch.from_dlpack refused it: {error}") from error
    if hasattr(value, "__array__"):
        import numpy

        try:
            return torch.from_numpy(numpy.array(value, copy=True))
        except TypeError as error:
            raise TypeError(f"{name}: {error}") from None
    raise TypeError(f"{name}: must be a tensor, an array or an object with DLPack, got {shown(value)}")
