"""U-Nets in parts: deep_feature_test.py EXPORT_FOLDER SCRATCH_FOLDER

Exports small random U-Nets of diffusers with and without --deep-feature, and looks at the parts: one after another they
are `forward`, and with the feature of an earlier step they are what the package DeepCache computes in a step that it
skips, at the same x, along trajectories. Without that package this last is left out, with a reason.
"""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import harness

export, scratch = harness.set_up("diffusers", "safetensors")
import diffusers  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import export_unet  # noqa: E402
from harness import relative, shaken  # noqa: E402

run = functools.partial(harness.run, export_unet)
PARTS = ("forecast_embed", "forecast_blocks", "forecast_head")
SCHEDULE = ["--prediction", "epsilon", "--noise-schedule", "scaled_linear", "--beta-start", 0.00085, "--beta-end", 0.012,
            "--decoding", "none"]  # fmt: skip
ROUNDING = 3e-5  # of float32, relative to the RMS

# ---------------------------------------------------------------------------------------- networks

small = {
    "sample_size": 8,
    "block_out_channels": [8, 16],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 2,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "cross_attention_dim": 12,
}
xl = small | {
    "block_out_channels": [8, 16, 16],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
    "attention_head_dim": [1, 2, 4],
    "transformer_layers_per_block": [1, 2, 3],
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 6,
    "projection_class_embeddings_input_dim": 10 + 36,
}
bk_tiny = small | {
    "layers_per_block": 1,
    "mid_block_type": None,
    "down_block_types": ["CrossAttnDownBlock2D"] * 2,
    "up_block_types": ["CrossAttnUpBlock2D"] * 2,
}
one_level = small | {
    "block_out_channels": [8],
    "down_block_types": ["CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D"],
    "layers_per_block": 1,
}
ddpm = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [8, 16, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
    "attention_head_dim": 8,
    "downsample_padding": 0,
}
text = {"text_embedding": (77, 12)}
texts = text | {"pooled_embedding": (10,), "size_ids": (6,)}
painting = {"mask": (1, 8, 8), "masked_latents": (4, 8, 8)}
# Name, diffusers' class, its config, and sizes of what it takes after x and t; labels are of that many classes.
NETWORKS = [
    ("sd", "UNet2DConditionModel", small, text),
    ("layers", "UNet2DConditionModel", small | {"layers_per_block": [1, 3]}, text),
    ("xl", "UNet2DConditionModel", xl, texts),
    ("bk_tiny", "UNet2DConditionModel", bk_tiny, text),
    ("one_level", "UNet2DConditionModel", one_level, text),
    ("lcm", "UNet2DConditionModel", small | {"time_cond_proj_dim": 14}, text | {"guidance_embedding": (14,)}),
    ("lcm_xl", "UNet2DConditionModel", xl | {"time_cond_proj_dim": 14}, texts | {"guidance_embedding": (14,)}),
    ("inpainting", "UNet2DConditionModel", small | {"in_channels": 9}, text | painting),
    ("inpainting_xl", "UNet2DConditionModel", xl | {"in_channels": 9}, texts | painting),
    ("ddpm", "UNet2DModel", ddpm, {}),
    ("classes", "UNet2DModel", ddpm | {"num_class_embeds": 5}, {"labels": (5,)}),
]


def draw(name: str, shape: tuple[int, ...], rows: int) -> Tensor:
    if name == "labels":
        return torch.randint(shape[0], (rows,))
    return torch.randint(2048, (rows, *shape)).float() if name == "size_ids" else torch.randn(rows, *shape)


def caller(model: nn.Module) -> Callable[..., Tensor]:
    """diffusers' network with the arguments of ours, the first two by position, as pipelines and DeepCache have them."""

    def call(x: Tensor, t: Tensor, named: dict[str, Tensor]) -> Tensor:
        if isinstance(model, diffusers.UNet2DModel):
            return model(x, t, class_labels=named.get("labels")).sample
        if "mask" in named:
            x = torch.cat([x, named["mask"], named["masked_latents"]], dim=1)
        added = {"text_embeds": named.get("pooled_embedding"), "time_ids": named.get("size_ids")}
        return model(
            x, t, encoder_hidden_states=named["text_embedding"], timestep_cond=named.get("guidance_embedding"),
            added_cond_kwargs=added,
        ).sample  # fmt: skip

    return call


# ---------------------------------------------------------------------------------------- one after another


def exported(name: str, *options: object) -> Path:
    path = scratch / f"{name}{''.join(str(o).strip('-').replace('*', 'any') for o in options)}.pt"
    message = run(scratch / name, path, "--name", "tiny", *SCHEDULE, *options)
    assert not message, message
    return path


def metadata(path: Path) -> dict[str, str]:
    return harness.metadata(path, ("format", "name", "input_shape", "conditions", "forecast", "architecture"))


def whole_by_parts(network: torch.jit.ScriptModule, *arguments: Tensor) -> Tensor:
    embedded = network.forecast_embed(*arguments)
    return network.forecast_head(embedded, network.forecast_blocks(embedded))


def look_at_parts(name: str, channels: int, sizes: dict[str, tuple[int, ...]], *options: str) -> None:
    plain, split = exported(name, *options), exported(name, "--deep-feature", *options)
    assert metadata(split) == metadata(plain) | {"forecast": "feature"}, (metadata(split), metadata(plain))
    ours, whole = torch.jit.load(split).eval(), torch.jit.load(plain).eval()
    assert all(hasattr(ours, part) and not hasattr(whole, part) for part in PARTS)
    weights = whole.state_dict()
    assert weights.keys() == ours.state_dict().keys()
    assert all(torch.equal(value, weights[key]) for key, value in ours.state_dict().items())
    kind = next(whole.parameters()).dtype
    for rows, (height, width) in ((1, (8, 8)), (3, (12, 20) if "*" in options else (8, 8))):
        named = {each: draw(each, shape, rows) for each, shape in sizes.items()}
        values = (torch.randn(rows, channels, height, width), torch.randint(1000, (rows,)), *named.values())
        arguments = [v.to(kind) if v.is_floating_point() else v for v in values]
        expected = whole(*arguments)
        assert torch.equal(ours(*arguments), expected), f"{split}: forward must be that of {plain}"
        assert torch.equal(whole_by_parts(ours, *arguments), expected), f"{split}: the parts must be forward"
        # What is forecast matters, and so does what is not.
        embedded = ours.forecast_embed(*arguments)
        feature = ours.forecast_blocks(embedded)
        assert feature.shape == embedded[0].shape, (feature.shape, embedded[0].shape)
        arguments[1] = (arguments[1] + 500) % 1000
        later = ours.forecast_embed(arguments[0].flip(0, 2), *arguments[1:])
        repeated = ours.forecast_head(later, feature)
        assert relative(repeated, expected.float()) > 1e-3
        assert relative(repeated, ours.forecast_head(later, ours.forecast_blocks(later)).float()) > 1e-3


    if name in ("sd", "ddpm") and not options[2:]:  # as the library runs them
        with torch.jit.optimized_execution(True):
            frozen, frozen_whole = torch.jit.freeze(ours, list(PARTS)), torch.jit.freeze(whole)
            for _ in range(3):  # profiled, optimised, and as it stays
                expected = frozen_whole(*arguments)
                assert torch.equal(frozen(*arguments), expected), f"{split}, frozen: forward must be that of {plain}"
                assert relative(whole_by_parts(frozen, *arguments), expected.float()) <= ROUNDING


# ---------------------------------------------------------------------------------------- DeepCache


def beside_deepcache(name: str, model: nn.Module, sizes: dict[str, tuple[int, ...]], scheduler, interval: int) -> None:
    """At every x of its trajectory."""
    ours = torch.jit.load(scratch / f"{name}deep-featuredtypefloat32.pt").eval()
    helper = DeepCacheSDHelper(SimpleNamespace(unet=model, scheduler=scheduler))
    helper.set_params(cache_interval=interval, cache_branch_id=0)
    helper.enable()
    computed = []
    hook = model.mid_block.resnets[0].register_forward_hook(lambda *_: computed.append(True))
    call, named = caller(model), {each: draw(each, shape, 2) for each, shape in sizes.items()}
    x = torch.randn(2, model.config.out_channels, 8, 8)
    feature, whole, repeated = None, 0, 0
    for t in scheduler.timesteps:
        computed.clear()
        expected = call(x, t, named)
        arguments = (x, t.expand(2), *named.values())
        embedded = ours.forecast_embed(*arguments)
        if computed:
            feature, whole = ours.forecast_blocks(embedded), whole + 1
        else:
            repeated += 1
            assert relative(ours(*arguments), expected) > 100 * ROUNDING, "what is skipped must matter"
        difference = relative(ours.forecast_head(embedded, feature), expected)
        assert difference <= ROUNDING, f"{name}, t {t}, {'whole' if computed else 'skipped'}: {difference}"
        x = scheduler.step(expected, t, x).prev_sample
    hook.remove()
    helper.disable()
    assert whole > 1 and repeated > whole, (whole, repeated)


try:
    from DeepCache import DeepCacheSDHelper
except ImportError as error:
    DeepCacheSDHelper = None
    print(f"left out, the comparison with DeepCache: {error}")

# TorchScript would optimise each of these networks for each shape, for seconds.
torch._C._set_graph_executor_optimize(False)
for name, kind, config, sizes in NETWORKS:
    torch.manual_seed(0)
    model = shaken(getattr(diffusers, kind)(**config))
    model.save_pretrained(scratch / name)
    look_at_parts(name, model.config.out_channels, sizes, "--dtype", "float32")
    if name == "sd":
        look_at_parts(name, 4, sizes, "--dtype", "float16")
        look_at_parts(name, 4, sizes, "--size", "*")
    if DeepCacheSDHelper is not None and model.mid_block is not None:  # it cannot be without
        ends = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
        ddim = diffusers.DDIMScheduler(**ends, clip_sample=False)
        ddim.set_timesteps(10)
        beside_deepcache(name, model, sizes, ddim, 3)
    if DeepCacheSDHelper is not None and name == "sd":
        # Which evaluates its first step twice; to DeepCache both are one.
        pndm = diffusers.PNDMScheduler(**ends, skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False)
        pndm.set_timesteps(10)
        beside_deepcache(name, model, sizes, pndm, 2)
print("the parts are the network" + (", and forecasts what DeepCache skips" if DeepCacheSDHelper else ""))
