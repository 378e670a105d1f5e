"""From a prompt to a picture: folders of export_pipeline.py, loaded whole."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from . import _core
from .arguments import is_list, listed, real, reals, shown, whole, wholes
from .autoencoders import Decoder
from .networks import Network, _backends_of, _device_of, label_of
from .plans import Plan
from .sampling import Callback, Samples

_MOST_PIXELS = 1 << 20


@dataclass(frozen=True, eq=False)
class PipelineSamples(Samples):
    """What a pipeline drew."""

    #: The prompt of each row; empty for pipelines that draw without a text.
    prompts: list[str] = field(default_factory=list)
    #: What was drawn and how: pipeline, networks, sampler, steps, guidance, ratio, negative_prompt, shape of x, license.
    metadata: dict[str, Any] = field(default_factory=dict)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name}: must be a str, got {shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name}: must be UTF-8, got {value[:60]!a}") from None
    return value


def _texts(name: str, value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, str):
        return [_text(name, value)]
    texts = [_text(f"{name}[{i}]", each) for i, each in enumerate(listed(name, value))]
    if not texts:
        raise ValueError(f"{name}: must be a str or a list of at least one, got an empty list")
    return texts


class Pipeline:
    """Networks, text encoders and a decoder that belong together. Made by `load_pipeline`; threads may use one at the same
    time, and copies share everything."""

    def __init__(self, pipeline: _core.Pipeline, tile: int, overlap: int) -> None:
        self._pipeline = pipeline
        self._networks: list[_core.Network] = pipeline.networks
        self._decoder = None if pipeline.decoder is None else Decoder(pipeline.decoder, tile, overlap)

    @property
    def name(self) -> str:
        return self._pipeline.stated["name"]

    @property
    def stated(self) -> dict[str, Any]:
        """What the folder says: name, networks, profile, steps, guidance, ratio, routing, negative, license, measured; empty, 0
        or None where it says nothing and the last network's file counts."""
        return self._pipeline.stated

    @property
    def networks(self) -> list[Network]:
        """In the order of use."""
        return [Network._of(each) for each in self._networks]

    @property
    def decoder(self) -> Decoder | None:
        return self._decoder

    @property
    def device(self) -> torch.device:
        return self._networks[-1].device

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        negative_prompt: str | None = None,
        labels: int | str | Sequence[int | str] | torch.Tensor | None = None,
        count: int = 1,
        height: int | None = None,
        width: int | None = None,
        frames: int | None = None,
        steps: int | None = None,
        guidance_scale: float | Sequence[float] | None = None,
        ratio: float | None = None,
        profile: str | None = None,
        seeds: int | Sequence[int] = 0,
        batch_size: int | None = None,
        callback: Callback | None = None,
    ) -> PipelineSamples:
        """Draws. What is not said is as the folder says, and then as the last network's file recommends.

        Args:
            prompt: one, or a list; none for pipelines that draw without a text.
            negative_prompt: what guidance leads away from.
            labels: classes by number, name or synonym, for networks that have them.
            count: pictures of each prompt or class; picture i is of prompt i modulo their number.
            height: of the picture in pixels, where the networks leave it open.
            width: likewise.
            frames: of a video, likewise.
            steps: from 1 on.
            guidance_scale: of classifier-free guidance, 1 is off; or one for each network.
            ratio: share of the steps for the first of two networks, in [0, 1].
            profile: the sampler by another program's name, of `tstitch.profiles()`.
            seeds: of the first picture, those after it have one more each; or a list with one for each picture.
            batch_size: pictures that a network sees at once; without, all.
            callback: called with a `StepReport` after each step; returns nothing, or False to stop the run.

        Returns:
            PipelineSamples: `pictures` [n, C, H, W] in [-1, 1], of videos [n, C, F, H, W]; `images`, what the networks made;
                `prompts`, `seeds` and `metadata`. After a stop, what exists then.

        Raises:
            ValueError, TypeError: naming the argument, or what is wrong with the request.
            RuntimeError: for files, and for networks whose values are no finite numbers. Ctrl-C comes as KeyboardInterrupt.
        """
        if callback is not None and not callable(callback):
            raise TypeError(f"callback: must be callable, got {shown(callback)}")
        prompts = _texts("prompt", prompt)
        numbers = self._labels(labels)
        guidance = None
        if guidance_scale is not None:
            guidance = reals("guidance_scale", guidance_scale) if is_list(guidance_scale) else [real("guidance_scale", guidance_scale)]
            if len(guidance) not in (1, len(self._networks)):
                raise ValueError(f"guidance_scale: must be one, or one for each of the {len(self._networks)} networks, got {len(guidance)}")
        if ratio is not None and len(self._networks) != 2:
            raise ValueError(f"ratio: is for two networks, got {shown(ratio)} for {len(self._networks)}")
        if profile is not None and profile not in dict(_core.profiles):
            raise ValueError(f"profile: must be one of {', '.join(dict(_core.profiles))}, got {shown(profile)}")
        sizes = {
            name: 0 if value is None else whole(name, value, 1, _MOST_PIXELS)
            for name, value in (("height", height), ("width", width), ("frames", frames))
        }
        wanted = _core.PipelineRequest(
            prompts=prompts,
            labels=numbers,
            count=whole("count", count, 1, 1 << 24),
            negative=None if negative_prompt is None else _text("negative_prompt", negative_prompt),
            ratio=None if ratio is None else real("ratio", ratio),
            steps=None if steps is None else whole("steps", steps, 1, 1 << 20),
            guidance=guidance,
            profile=profile or "",
            **sizes,
        )
        # Numbers are looked at before texts are encoded.
        listed_seeds = wholes("seeds", seeds, 0, 2**64 - 1) if is_list(seeds) else None
        images = whole("count", count) * max(1, len(prompts), len(numbers))
        if listed_seeds is not None and len(listed_seeds) != images:
            raise ValueError(f"seeds: must be an int, or one for each of the {images} pictures, got {len(listed_seeds)}")
        first = 0 if listed_seeds is not None else whole("seeds", seeds, 0, 2**64 - images)
        batch = 0 if batch_size is None else whole("batch_size", batch_size, 1)
        sampler = self._pipeline.sampler(wanted)
        request = self._pipeline.request(wanted)
        request.batch_size = batch
        if listed_seeds is None:
            request.seed = first
        else:
            request.seeds = listed_seeds
        guide = request.guidance
        plan = Plan(sampler.plan(guide), len(self._networks))
        drawn, of_rows, finished_images, finished = sampler.sample(self._networks, request, callback)
        if drawn is None:  # stopped before anything was predicted
            drawn = torch.empty([0, *(request.shape or [0])])
        rows = len(of_rows)
        names = next((each.info.class_names for each in reversed(self._networks) if each.info.class_names), [])
        labels_of_rows = list(request.labels)[:rows]
        stated = self._pipeline.stated
        metadata = {
            "pipeline": stated["name"],
            "networks": [each.info.name for each in self._networks],
            "sampler": plan.sampler,
            "steps": len(plan),
            "guidance": guidance or list(stated["guidance"]) or [self._networks[-1].info.guidance_scale],
            "ratio": (stated["ratio"] if ratio is None else float(ratio)) if len(self._networks) == 2 else None,
            "negative_prompt": stated["negative"] if negative_prompt is None else negative_prompt,
            "shape": list(request.shape),
            "license": stated["license"],
        }
        return PipelineSamples(
            drawn,
            of_rows,
            labels_of_rows,
            [names[label] if 0 <= label < len(names) else "" for label in labels_of_rows] if names else [],
            finished_images,
            finished,
            plan,
            self._decoder,
            [prompts[i % len(prompts)] for i in range(rows)] if prompts else [],
            metadata,
        )

    def _labels(self, labels: Any) -> list[int]:
        if labels is None:
            return []
        info = next((each.info for each in reversed(self._networks) if each.info.num_classes), None)
        if info is None:
            raise ValueError(f"labels: are for networks with classes, got {shown(labels)}")
        given = listed("labels", labels) if is_list(labels) else [labels]
        if not given:
            raise ValueError("labels: must be at least one, got an empty list")
        return [label_of("labels" if not is_list(labels) else f"labels[{i}]", each, info) for i, each in enumerate(given)]

    def __repr__(self) -> str:
        names = ", ".join(repr(each.info.name) for each in self._networks)
        return f"Pipeline({self.name!r}, [{names}], device={self.device})"


def load_pipeline(
    path: str | os.PathLike,
    *,
    device: torch.device | str | None = None,
    dtype: str = "auto",
    backend: str = "auto",
    keep_text_encoders: bool = True,
    prompt_cache: str | os.PathLike | None = None,
    tile: int = 0,
    overlap: int = 16,
) -> Pipeline:
    """A folder of `export_pipeline.py`: networks, text encoders and a decoder. Files are programs: load what you trust.

    Args:
        path: the folder. Its networks are in files; those that `--weights-in-place` left where they are are for C++.
        device: of all; without, the first GPU where there is one.
        dtype: of the networks: "auto" (float32 on the CPU, else the file's own), "float32", "float16" or "bfloat16".
        backend: as `load_networks` takes it.
        keep_text_encoders: whether they stay in memory; else each is loaded when prompts are encoded, and dropped after.
        prompt_cache: a folder that keeps what prompts were encoded to.
        tile: decode in tiles of so many pixels of the latent a side, which bounds memory; 0 for whole pictures.
        overlap: by how many of them tiles go over into each other.

    Raises:
        RuntimeError: names the folder or file and what is wrong with it.
    """
    if dtype not in ("auto", "float32", "float16", "bfloat16"):
        raise ValueError(f"dtype: must be 'auto', 'float32', 'float16' or 'bfloat16', got {dtype!r}")
    tile, overlap = whole("tile", tile, 0), whole("overlap", overlap, 0)
    if tile and overlap >= tile:
        raise ValueError(f"overlap: must be below tile, {tile}, got {overlap}")
    if not isinstance(backend, str):
        raise TypeError(f"backend: must be a str, got {shown(backend)}")
    (chosen,) = _backends_of(backend, 1)
    cache = "" if prompt_cache is None else os.fspath(prompt_cache)
    made = _core.Pipeline.load(os.fspath(path), _device_of(device), dtype, chosen, bool(keep_text_encoders), cache)
    return Pipeline(made, tile, overlap)
