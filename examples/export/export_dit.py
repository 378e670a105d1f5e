"""Writes a DiT (arXiv 2212.09748) or SiT (arXiv 2401.08740) as a file that tstitch loads: TorchScript, or compiled.

With --format in-place, for a DiT in a .safetensors file, it writes a text that describes the network and leaves the file
where it is; nothing but its header is read then, unless --calibrate lets the network draw.

CHECKPOINT is a .pt or .safetensors file in the layout of the official checkpoints: the tensors alone, or a training
checkpoint with "model" and "ema". Or it is a folder of diffusers: a DiTPipeline, or its transformer/ with config.json
and weights, in one file or in shards. diffusers is not needed; where it is installed a folder's network is checked
beside it.

A SiT is a DiT trained by flow matching. Its tensors are named and shaped like those of a DiT, so that --kind sit has to
say that it is one. It must have been trained on the straight path to predict the velocity, as the published ones were:
x is t data + (1 - t) noise, the network is told t, from 0 to 1, and gives data - noise; or the other way round,
x is (1 - t) data + t noise and it gives noise - data (--time noise). What it answers near both ends is compared with
that. The written network has the conventions of tstitch: it is told 1000 where x is noise and 0 where it is data, and
gives noise - data, for which weights of its last or first layer are changed; the second half of its output, which means
nothing, is left out. "tstitch_sample --sampler ddim --steps 50" is Euler's
method in 50 even steps then, and --sampler heun that of Heun.

The shape is read from the tensors or from config.json. No code of the file is run, and nothing is written unless all of
it makes sense and the written network computes what its source computes.
"""

import argparse
import functools
import dataclasses
import importlib.util
import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import packages

packages.require(__file__, "torch", beside=("safetensors",))
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from aot_inductor import add_form, form_of  # noqa: E402
from calibrate import Calibration, calibrate  # noqa: E402
from common import (  # noqa: E402
    TOLERANCE,
    Config,
    ask,
    component,
    fail,
    fill,
    find_diffusers,
    first_line,
    load_weights,
    require_place,
    require_tensors,
    say,
    shape_of_x,
    some,
    write,
)
from dit import LAST, DiT, DiTConfig, make_dit, random_inputs, sin_cos_position_embedding  # noqa: E402
from in_place import InPlace, describe, files_of, headers, require_description  # noqa: E402
from options import add_calibration, add_variant, finite_real, positive_real  # noqa: E402
from pipeline import sampler_of  # noqa: E402

# The tensors do not tell the heads of the official networks S, B, L and XL; their width does.
HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
OFFICIAL_ROWS = 1001  # of the table of labels: the classes of ImageNet, and the one that means no class
NO_CLASS = "none"  # what --null-class says where no label means that
GUIDANCE = 4.0  # of its makers
OFFICIAL_SCALE = 0.18215  # of latents of 4 channels: of Stable Diffusion's autoencoder

FLOW_SCHEDULE = {"prediction": "flow", "noise_schedule": "flow", "num_train_timesteps": 1000}

# Modules in the official layout, and where diffusers keeps them; * is the number of a block. Several are parts of one.
DIFFUSERS_NAMES = {
    "x_embedder.proj": ["pos_embed.proj"],
    "t_embedder.mlp.0": ["transformer_blocks.0.norm1.emb.timestep_embedder.linear_1"],
    "t_embedder.mlp.2": ["transformer_blocks.0.norm1.emb.timestep_embedder.linear_2"],
    "y_embedder.embedding_table": ["transformer_blocks.0.norm1.emb.class_embedder.embedding_table"],
    "blocks.*.adaLN_modulation.1": ["transformer_blocks.*.norm1.linear"],
    "blocks.*.attn.qkv": [f"transformer_blocks.*.attn1.to_{part}" for part in "qkv"],
    "blocks.*.attn.proj": ["transformer_blocks.*.attn1.to_out.0"],
    "blocks.*.mlp.fc1": ["transformer_blocks.*.ff.net.0.proj"],
    "blocks.*.mlp.fc2": ["transformer_blocks.*.ff.net.2"],
    "final_layer.adaLN_modulation.1": ["proj_out_1"],
    "final_layer.linear": ["proj_out_2"],
}

# diffusers repeats the embeddings of timestep and class in every block.
REPEATED = re.compile(r"transformer_blocks\.\d+\.(norm1\.emb\..+)")

DEFAULT_SCHEDULE = {
    "prediction": "epsilon",
    "noise_schedule": "linear",
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
}


# ------------------------------------------------------------------------------------------------ official layout


def dimensions_of(path: Path, weights: Mapping[str, Tensor], kind: str, name: str, rule: str, count: int) -> list[int]:
    """The sizes of a tensor, which are @count and as @rule says. @kind: of network that has it."""
    if name not in weights:
        fail(f"{path}: must be {kind}, which has {name}, got {some(sorted(weights))}")
    shape = list(weights[name].shape)
    if len(shape) != count or min(shape) < 1:
        fail(f"{path}: {name} must be {rule}, got {shape}")
    return shape


def read_patches(path: Path, weights: Mapping[str, Tensor], kind: str, name: str) -> tuple[int, int, int]:
    """Width, channels and the side of the patches that this convolution embeds."""
    width, channels, patch, across = dimensions_of(path, weights, kind, name, "[width, channels, patch, patch]", 4)
    if patch != across:
        fail(f"{path}: {name} must have square patches, got {[width, channels, patch, across]}")
    return width, channels, patch


def read_shape(path: Path, weights: Mapping[str, Tensor], args: argparse.Namespace) -> DiTConfig:
    """The shape that the tensors of the official layout tell, with the options for what they do not."""
    if any(name.startswith("transformer_blocks.") for name in weights):
        fail(f"{path}: must be in the official layout, got diffusers' names: give their folder with its config.json")

    dimensions = functools.partial(dimensions_of, path, weights, "a DiT")
    width, channels, patch = read_patches(path, weights, "a DiT", "x_embedder.proj.weight")
    if width % 4:
        fail(f"{path}: the width must be a multiple of 4, got {width}")
    rows = dimensions("y_embedder.embedding_table.weight", "[classes + 1, width]", 2)[0]
    hidden = dimensions("blocks.0.mlp.fc1.weight", "[hidden, width]", 2)[0]
    outputs = dimensions("final_layer.linear.weight", "[patch * patch * channels, width]", 2)[0]
    learned_variance = read_learned_variance(path, channels, outputs, patch)
    questions: dict[str, str] = {}
    heads = read_heads(args.heads, width, questions)
    size = read_size(path, weights.get("pos_embed"), patch, args.size, questions)
    num_classes, null_class = read_classes(args, rows, questions)
    read_space(args, channels, None, questions)
    ask(path, questions)
    return DiTConfig(
        channels=channels,
        size=size,
        patch=patch,
        width=width,
        depth=count_blocks(path, weights),
        heads=heads,
        mlp_ratio=hidden / width,
        num_classes=num_classes,
        learned_variance=learned_variance,
        null_class=null_class,
    )


def read_size(path: Path, table: Tensor | None, patch: int, size: int | None, questions: dict[str, str]) -> int:
    """Height and width of x, from the table of positions [1, tokens, width] or from --size."""
    if size is not None and (size < 1 or size % patch):
        fail(f"--size: must be a multiple of the patch size {patch}, got {size}")
    if table is None:
        if size is None:
            questions["--size"] = "no pos_embed to tell the height of x"
        return size or 0
    tokens = table.shape[1] if table.ndim == 3 else 0
    grid = math.isqrt(tokens)
    if not tokens or grid * grid != tokens:
        fail(f"{path}: pos_embed must be [1, tokens, width] with the tokens of a square, got {list(table.shape)}")
    if size is not None and size != grid * patch:
        fail(f"--size: must be {grid * patch}, the size that pos_embed in {path} tells, got {size}")
    return grid * patch


def read_heads(heads: int | None, width: int, questions: dict[str, str], known: Mapping[int, int] = HEADS) -> int:
    """@known: those of published networks by their width."""
    if heads is None and width not in known:
        questions["--heads"] = f"a width of {width}, where {', '.join(map(str, known))} would tell"
        return 0
    heads = known[width] if heads is None else heads
    if heads < 1 or width % heads:
        fail(f"--heads: must divide the width {width}, got {heads}")
    return heads


def read_classes(args: argparse.Namespace, rows: int, questions: dict[str, str]) -> tuple[int, int | None]:
    """How many can be asked for, and which label means none; of a table of so many @rows."""
    null = args.null_class
    if rows == 1 and null in (None, NO_CLASS, 0):
        return 0, None
    if null is None:
        names = len(args.class_names or [])
        if rows == OFFICIAL_ROWS or rows == names + 1:
            null = rows - 1
        elif rows == names:
            null = NO_CLASS
        else:
            questions["--null-class"] = (
                f"{rows} rows of labels, which are {rows} classes (--null-class none) or {rows - 1} and one for no class "
                f"(--null-class {rows - 1})"
            )
            return 0, None
    if null == NO_CLASS:
        return rows, None
    if not null < rows:
        fail(f"--null-class: must be a row of the network's table of {rows}, or none, got {null}")
    return (rows - 1, LAST) if null == rows - 1 else (rows, null)


def read_space(
    args: argparse.Namespace, channels: int, scale: float | None, questions: dict[str, str]
) -> dict[str, object]:
    """Whether x is a picture, and else the scale of latents. @scale: what a pipeline tells."""
    if args.decoding == "pixels":
        if args.latent_scale is not None:
            fail(f"--latent-scale: must not be given for --decoding pixels, got {args.latent_scale:g}")
        return {"decoding": "pixels"}
    scale = args.latent_scale or scale or (OFFICIAL_SCALE if channels == 4 else None)
    if scale is None:
        ways = "pixels (--decoding pixels) or latents (--latent-scale S)" if args.decoding is None else "latents"
        questions["--latent-scale" if args.decoding else "--decoding"] = f"{channels} channels, which may be {ways}"
    return {"decoding": "none", "latent_scale": scale}


def read_learned_variance(place: Path, channels: int, outputs: int, patch: int) -> bool:
    """@outputs values come out for each patch."""
    if outputs not in (patch * patch * channels, 2 * patch * patch * channels):
        fail(
            f"{place}: for each patch {patch * patch * channels} values must come out, or twice as many with learned "
            f"variance, got {outputs}"
        )
    return outputs == 2 * patch * patch * channels


def count_blocks(path: Path, weights: Mapping[str, Tensor]) -> int:
    numbers = sorted({int(match[1]) for name in weights if (match := re.match(r"blocks\.(\d{1,6})\.", name))})
    for expected, number in enumerate(numbers):
        if number != expected:
            fail(f"{path}: must hold the blocks from 0 on without a gap, got no block {expected} before block {number}")
    return len(numbers)


# ------------------------------------------------------------------------------------------------ diffusers


def read_config(config: Config) -> DiTConfig:
    """The shape that config.json of a transformer tells."""
    # DiT was a Transformer2DModel before it had a class of its own.
    config.kind("DiTTransformer2DModel", "Transformer2DModel")
    config.only("norm_type", "ada_norm_zero")
    config.only("activation_fn", "gelu-approximate")
    config.only("attention_bias", True)
    config.only("norm_elementwise_affine", False)
    config.only("attention_type", "default")
    heads, head_width = config.integer("num_attention_heads", 16), config.integer("attention_head_dim", 72)
    channels, patch = config.integer("in_channels", 4), config.integer("patch_size", 2)
    size = config.integer("sample_size", 32)
    if size % patch:
        config.refuse("sample_size", f"must be a multiple of patch_size {patch}", size)
    if heads * head_width % 4:
        config.refuse("attention_head_dim", f"times {heads} heads must be a multiple of 4", head_width)
    norm_eps = config.real("norm_eps", 1e-5)
    if not norm_eps > 0:
        config.refuse("norm_eps", "must be above 0", norm_eps)
    outputs = config.integer("out_channels", channels)
    if outputs not in (channels, 2 * channels):
        config.refuse("out_channels", f"must be in_channels {channels}, or twice that with learned variance", outputs)
    shape = DiTConfig(
        channels=channels,
        size=size,
        patch=patch,
        width=heads * head_width,
        depth=config.integer("num_layers", 28),
        heads=heads,
        num_classes=config.integer("num_embeds_ada_norm", 1000, least=1),
        learned_variance=outputs == 2 * channels,
        frequency_steps=127,
        mlp_norm_eps=norm_eps,
    )
    # Said of training, of number formats and of other kinds of this class.
    config.finish("dropout", "norm_num_groups", "upcast_attention")
    return shape


def parts_of(name: str) -> list[str]:
    """The tensors of diffusers that make up one of the official layout, one after another along the first axis."""
    if name == "pos_embed":
        return ["pos_embed.pos_embed"]
    module, kind = name.rsplit(".", 1)
    number = re.match(r"blocks\.(\d+)\.", module)
    block = number[1] if number else ""
    parts = DIFFUSERS_NAMES[f"blocks.*.{module[number.end():]}" if number else module]
    return [f"{part.replace('*', block)}.{kind}" for part in parts]


def official_names(place: Path, weights: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The tensors of diffusers' network under the names of the official layout; each must be there and be used."""
    require_repeats(place, weights)
    wanted = {
        part: [tensor.shape[0] // len(parts), *tensor.shape[1:]]
        for name, tensor in network.state_dict().items()
        for parts in [parts_of(name)]
        for part in parts
    }
    absent = sorted(set(wanted) - set(weights) - set(parts_of("pos_embed")))  # which is computed
    extra = sorted(name for name in set(weights) - set(wanted) if not REPEATED.fullmatch(name))
    if absent:
        fail(f"{place}: must hold every tensor of the network, got none called {some(absent)}")
    if extra:
        fail(f"{place}: must hold the tensors of this network only, got also {some(extra)}")
    for part, shape in wanted.items():
        if part in weights and list(weights[part].shape) != shape:
            fail(f"{place}: {part} must be {shape}, got {list(weights[part].shape)}")
    return {
        name: weights[parts[0]] if len(parts) == 1 else torch.cat([weights[part] for part in parts])
        for name in network.state_dict()
        for parts in [parts_of(name)]
        if parts[0] in weights
    }


def require_repeats(place: Path, weights: Mapping[str, Tensor]) -> None:
    """One embedding serves the whole network, so that the copies in all blocks must be the same."""
    for name, tensor in weights.items():
        if not (match := REPEATED.fullmatch(name)):
            continue
        first = f"transformer_blocks.0.{match[1]}"
        if first in weights and not torch.equal(tensor, weights[first]):
            fail(f"{place}: {name} must be equal to {first}, got other numbers")


def read_schedule(path: Path) -> dict[str, object]:
    """The noise schedule and prediction type of a scheduler_config.json. How it samples is not the network's matter."""
    config = Config(path)
    for key, off in (("trained_betas", None), ("rescale_betas_zero_snr", False)):
        config.only(key, off)  # on, it is another schedule than the numbers below say
    return {
        "prediction": choice(config, "prediction_type", "epsilon", "v_prediction", "sample"),
        "noise_schedule": choice(config, "beta_schedule", "linear", "scaled_linear"),
        "num_train_timesteps": config.integer("num_train_timesteps", least=2),
        "beta_start": beta(config, "beta_start"),
        "beta_end": beta(config, "beta_end"),
    }


def choice(config: Config, key: str, *allowed: str) -> str:
    value = config.get(key, allowed[0])
    if value not in allowed:
        config.refuse(key, f"must be {', '.join(allowed[:-1])} or {allowed[-1]}", value)
    return value


def beta(config: Config, key: str) -> float:
    value = config.real(key)
    if not 0 < value < 1:
        config.refuse(key, "must be in (0, 1)", value)
    return value


def read_latent_scale(path: Path) -> float:
    """What the pipeline multiplies latents with, from the config.json of its autoencoder."""
    config = Config(path)
    scale = config.real("scaling_factor", 0.18215)
    if not scale > 0:
        config.refuse("scaling_factor", "must be above 0", scale)
    return scale


def read_labels(path: Path, num_classes: int) -> list[str]:
    """Names of the classes from a pipeline's model_index.json, or none.

    A label is a list of synonyms: "tench, Tinca tinca".
    """
    labels = Config(path).get("id2label")
    if labels is None:
        return []
    if not isinstance(labels, dict) or set(labels) != {str(i) for i in range(num_classes)}:
        got = f"{len(labels)} entries" if isinstance(labels, dict) else type(labels).__name__
        fail(f"{path}: id2label must have a name for each of 0 to {num_classes - 1}, got {got}")
    return [" ".join(str(labels[str(i)]).split()) for i in range(num_classes)]


class Peer(nn.Module):
    """diffusers' DiT with the arguments of ours."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.model(x, timestep=t, class_labels=y).sample


def peer(config: Config, weights: Mapping[str, Tensor], shape: DiTConfig) -> nn.Module | None:
    """diffusers' network of the same weights, which computes in the way that @shape says; None without diffusers."""
    diffusers = find_diffusers()
    if diffusers is None:
        return None
    with torch.device("meta"):
        model = diffusers.DiTTransformer2DModel.from_config(config.values)
    positions = sin_cos_position_embedding(shape.width, shape.size // shape.patch)
    model.pos_embed.register_buffer("pos_embed", positions, persistent=False)
    ours = {name: tensor.float() for name, tensor in weights.items() if name != "pos_embed.pos_embed"}
    for name in model.state_dict():  # embeddings that the file gives once
        if match := REPEATED.fullmatch(name):
            ours[name] = ours[f"transformer_blocks.0.{match[1]}"]
    model.load_state_dict(ours, assign=True)
    for block in model.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 128 - shape.frequency_steps
        block.norm3.eps = shape.mlp_norm_eps
    return Peer(model)


# ------------------------------------------------------------------------------------------------ both


@dataclasses.dataclass
class Source:
    """A network on its way: its shape, its tensors in the official layout, and what its folder says of it."""

    place: Path
    shape: DiTConfig
    network: DiT
    weights: dict[str, Tensor]
    schedule: dict[str, object] = dataclasses.field(default_factory=lambda: DEFAULT_SCHEDULE)
    latent_scale: float | None = None  # of a pipeline
    class_names: list[str] = dataclasses.field(default_factory=list)
    sampler: dict[str, object] = dataclasses.field(default_factory=dict)
    calibration: Calibration = dataclasses.field(default_factory=Calibration)
    peer: nn.Module | None = None


def describe_file(args: argparse.Namespace) -> None:
    """Writes the text of --format in-place."""
    given = (("--kind", args.kind, "dit"), ("--weights", args.weights, None))
    for option, value, off in given:
        if value != off:
            fail(f"{option}: must not be given for --format in-place, which leaves weights as they are, got {value}")
    if args.checkpoint.is_dir():
        fail(f"{args.checkpoint}: must be a .safetensors file in the official layout for --format in-place, got a folder")
    require_description(args.output)
    files = files_of(args.checkpoint, args.variant)
    found = headers(files)
    shape = dataclasses.replace(read_shape(args.checkpoint, found, args), any_size=args.interpolate)
    if not shape.num_classes:
        fail(f"{args.checkpoint}: must have classes for --format in-place, which the native engine runs, got none")
    if args.arithmetic == "diffusers":
        shape = dataclasses.replace(shape, frequency_steps=127, mlp_norm_eps=1e-5)
    source = Source(args.checkpoint, shape, without_weights(shape), found)
    take_class_names(source, args)
    if args.calibrate:
        whole = open_file(args)
        give_positions(whole)
        fill(whole.network, whole.weights, whole.place)
        whole.weights.clear()
        source.calibration = calibrate(
            whole.network, shape, source.schedule, guidance_of(args, shape.null_label, GUIDANCE), args.calibrate, weights=False
        )  # fmt: skip
    describe(args.output, source.network, found, files, metadata(source, args), args.dtype)


def without_weights(shape: DiTConfig) -> DiT:
    """On no device: memory and random numbers would be for nothing, the weights come from the file."""
    with torch.device("meta"):
        return make_dit(shape)


def open_file(args: argparse.Namespace) -> Source:
    if args.kind == "sit" and args.arithmetic == "diffusers":
        fail("--arithmetic: must be official for SiT, which diffusers does not have, got diffusers")
    say(f"reading {args.checkpoint}")
    weights = load_weights(args.checkpoint, args.variant, args.weights, anchor="x_embedder.proj.weight")
    require_tensors(args.checkpoint, weights)
    shape = dataclasses.replace(read_shape(args.checkpoint, weights, args), any_size=args.interpolate)
    if args.arithmetic == "diffusers":
        shape = dataclasses.replace(shape, frequency_steps=127, mlp_norm_eps=1e-5)
    return Source(args.checkpoint, shape, without_weights(shape), weights)


def open_folder(args: argparse.Namespace) -> Source:
    if args.kind == "sit":
        fail(f"--kind: must be dit for a folder of diffusers, which does not have SiT, got sit for {args.checkpoint}")
    for option, value in (("--weights", args.weights), ("--null-class", args.null_class)):
        if value is not None:
            fail(f"{option}: must not be given for a folder of diffusers, which tells it, got {value}")
    folder = component(args.checkpoint, "transformer")
    config = Config(folder / "config.json")
    shape = dataclasses.replace(read_config(config), any_size=args.interpolate)
    for option, value, own in (("--size", args.size, shape.size), ("--heads", args.heads, shape.heads)):
        if value not in (None, own):
            fail(f"{option}: must be {own}, which {config.path} tells, got {value}")
    if args.arithmetic == "official":
        shape = dataclasses.replace(
            shape, frequency_steps=DiTConfig.frequency_steps, mlp_norm_eps=DiTConfig.mlp_norm_eps
        )
    else:
        say(
            "timestep frequencies as diffusers computes them; for weights that the official code trained "
            "--arithmetic official is nearer to their training"
        )
    say(f"reading {folder}")
    weights = load_weights(folder, args.variant)
    require_tensors(folder, weights)
    network = without_weights(shape)
    renamed = official_names(folder, weights, network)
    source = Source(folder, shape, network, renamed, peer=peer(config, weights, shape))
    read_pipeline(source, args.checkpoint if folder != args.checkpoint else folder.resolve().parent)
    questions: dict[str, str] = {}
    read_space(args, shape.channels, source.latent_scale, questions)
    ask(folder, questions)
    return source


class PublishedSiT(nn.Module):
    """A SiT as it was trained, with the arguments and the result of ours.

    @noise_last: it is told 1 where x is noise, and gives noise - data.
    """

    def __init__(self, network: DiT, channels: int, noise_last: bool):
        super().__init__()
        self.network, self.channels, self.noise_last = network, channels, noise_last

    def forward(self, x: Tensor, t: Tensor, *y: Tensor) -> Tensor:
        told = t / 1000 if self.noise_last else 1 - t / 1000
        velocity = self.network(x, told, *y)[:, : self.channels]
        return velocity if self.noise_last else -velocity


def to_flow(source: Source, noise_last: bool) -> None:
    """The network that was read as a DiT is a SiT."""
    published, channels = source.network, source.shape.channels
    weights = published.state_dict()
    for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
        pixels = weights[name].unflatten(0, (-1, published.out_channels))[:, :channels].flatten(0, 1)  # of a patch
        weights[name] = pixels.clone() if noise_last else -pixels
    if noise_last:
        weights["t_embedder.mlp.0.weight"] = reversed_in_time(weights["t_embedder.mlp.0.weight"])
    source.shape = dataclasses.replace(source.shape, learned_variance=False, flow=True)
    source.network = without_weights(source.shape)
    source.network.load_state_dict(weights, assign=True)
    source.peer = PublishedSiT(published, channels, noise_last)
    source.schedule = FLOW_SCHEDULE


def reversed_in_time(weight: Tensor) -> Tensor:
    """What makes of the waves of 1 - u what @weight [width, 256] makes of those of u: [cosines, sines] of w u."""
    w = 10000.0 ** (-torch.arange(128, dtype=torch.float64) / DiTConfig.frequency_steps)
    cosines, sines = weight.double().chunk(2, dim=1)
    turned = torch.cat([cosines * w.cos() + sines * w.sin(), cosines * w.sin() - sines * w.cos()], dim=1)
    return turned.to(weight.dtype)


@torch.no_grad()
def check_time(place: Path, published: nn.Module, shape: DiTConfig, noise_last: bool) -> None:
    """Refuses a --time that the network's answers contradict.

    Where x is nearly noise, a network that predicts data - noise or noise - data can say little else than -x or x. Near
    the other end it answers noise, which is no picture, with something else.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, shape.channels, shape.size, shape.size, generator=generator)
    labels = [torch.arange(4) % shape.label_rows] if shape.num_classes else []
    off = {}
    for told in (0.05, 0.95):
        answer = published(x, torch.full((4,), told), *labels)[:, : shape.channels]
        off |= {(told, sign): ((answer - sign * x).square().mean() / x.square().mean()).item() for sign in (-1, 1)}
    told, sign = min(off, key=lambda key: off[key] if math.isfinite(off[key]) else math.inf)
    other = min(value for (time, _), value in off.items() if time != told)
    given = "noise" if noise_last else "data"
    if not off[told, sign] < 0.5 or not other > 3 * off[told, sign]:
        say(f"{place}: the network's answers do not tell whether t = 1 is noise or data; taking --time {given}")
        return
    found = {(0.05, -1): "data", (0.95, 1): "noise"}.get((told, sign))
    if found is None:
        predicted = "noise - data" if sign > 0 else "data - noise"
        fail(f"{place}: must predict dx / dt along its own t, got {predicted} with noise at t = {round(told)}")
    if found != given:
        fail(f"--time: must be {found}, as the network answers noise at t = {round(told)}, got {given}")


def read_pipeline(source: Source, folder: Path) -> None:
    """What stands beside the transformer in a pipeline's folder: scheduler, autoencoder, names of the classes."""
    index, scheduler = folder / "model_index.json", folder / "scheduler/scheduler_config.json"
    if not index.is_file() and not scheduler.is_file():
        return  # a transformer on its own
    if scheduler.is_file():
        source.schedule, source.sampler = read_schedule(scheduler), sampler_of(folder)
    if (vae := folder / "vae/config.json").is_file():
        source.latent_scale = read_latent_scale(vae)
    if index.is_file():
        source.class_names = read_labels(index, source.shape.num_classes)


def give_positions(source: Source) -> None:
    """The table of positions is computed; one in the file must be the same, but for the rounding of its type."""
    computed = sin_cos_position_embedding(source.shape.width, source.shape.size // source.shape.patch)
    found = source.weights.get("pos_embed")
    if found is not None:
        if found.shape != computed.shape:
            fail(f"{source.place}: pos_embed must be {list(computed.shape)}, got {list(found.shape)}")
        difference = (found.float() - computed).abs().max().item()
        if not difference <= 1e-4 + torch.finfo(found.dtype).eps / 2:
            fail(f"{source.place}: pos_embed must be the sine-cosine table of its grid, got one {difference:.2g} off")
    source.weights["pos_embed"] = computed


def take_class_names(source: Source, args: argparse.Namespace) -> None:
    """Those of --class-names, where they are given."""
    if not args.names_file:
        return
    source.class_names, count = args.class_names, source.shape.num_classes
    if len(source.class_names) != count:
        lines = len(source.class_names)
        fail(f"{args.names_file}: must have one line for each of the {count} classes, got {lines} lines")


def imagenet_names() -> list[str]:
    """Of its 1000 classes, with synonyms: "tench, Tinca tinca". From a package's files, which need none of its code."""
    spec = importlib.util.find_spec("timm")
    if spec is None:
        fail(f"--class-names: imagenet needs the Python package timm, got none: {sys.executable} -m pip install --no-deps timm")
    folder = Path(spec.origin).parent / "data/_info"
    try:
        synsets = (folder / "imagenet_synsets.txt").read_text().split()
        lines = (folder / "imagenet_synset_to_lemma.txt").read_text().splitlines()
        names = dict(line.split("\t", 1) for line in lines if "\t" in line)
        return [", ".join(name.strip() for name in names[synset].split(",")) for synset in synsets]
    except (OSError, KeyError) as error:
        fail(f"{folder}: must hold ImageNet's names, as timm 1.0 does, got '{first_line(error)}'")


def read_class_names(path: Path) -> list[str]:
    if str(path) == "imagenet":
        return imagenet_names()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{path}: must be a text file, got '{error}'")
    empty = [str(number) for number, line in enumerate(lines, 1) if not line.strip()]
    if empty:
        fail(f"{path}: must have a name in each line, got none in line {some(empty)}")
    return [line.strip() for line in lines]


def metadata(source: Source, args: argparse.Namespace) -> dict[str, object]:
    """The `tstitch/` keys and their values."""
    shape = source.shape
    official = (shape.frequency_steps, shape.mlp_norm_eps) == (DiTConfig.frequency_steps, DiTConfig.mlp_norm_eps)
    values = {
        "format": 1,
        "name": args.name or args.output.stem,
        **shape_of_x(shape.channels, *(2 * [None if shape.any_size else shape.size])),
        "variance": "learned_range" if shape.learned_variance else "fixed",
        "num_classes": shape.num_classes,
        "null_class": "none" if shape.null_label is None else shape.null_label,
        "timestep_type": "float32" if shape.flow else "int64",
        **source.schedule,
        **source.sampler,
        **read_space(args, shape.channels, source.latent_scale, {}),
        "guidance_scale": guidance_of(args, shape.null_label, GUIDANCE),
        # Engines that bring their own network know the official ones by this word.
        "architecture": ("sit" if shape.flow else "dit" if official else "dit_diffusers")
        + ("" if shape.num_classes else "_unconditional"),
        "width": shape.width,
        "depth": shape.depth,
        "heads": shape.heads,
        "patch_size": shape.patch,
        "mlp_ratio": shape.mlp_ratio,
    }
    words = {
        "class_names": "\n".join(source.class_names),
        "training_data": args.training_data,
        "license": args.license,
    }
    return values | {key: text for key, text in words.items() if text} | source.calibration.keys()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = " (default: %(default)s)"
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a file, or a folder of diffusers")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="the .pt, .pt2 or .txt file to write")
    parser.add_argument(
        "--kind", choices=["dit", "sit"], default="dit", help="which network it is; the file does not tell" + default
    )
    add_variant(parser)
    parser.add_argument("--name", help="name of the network (default: the output's file name)")
    parser.add_argument(
        "--weights",
        choices=["ema", "plain"],
        help="which set of a training checkpoint, averaged or plain (default: ema, where the file has it)",
    )
    parser.add_argument("--dtype", choices=sorted(TOLERANCE), default="float32", help="stored precision" + default)
    parser.add_argument(
        "--guidance-scale", type=finite_real, help=f"the default that a sampler should use (default: {GUIDANCE})"
    )
    parser.add_argument("--size", type=int, help="height of x, where the file does not tell it: 32 for 256 pixels")
    parser.add_argument(
        "--interpolate",
        action="store_true",
        help="leave height and width of x open, for multiples of the network's patches: its positions are scaled to the "
        "extent that they had in training",
    )
    parser.add_argument("--heads", type=int, help="attention heads (default: as the official network of this width)")
    parser.add_argument(
        "--arithmetic",
        choices=["official", "diffusers"],
        help="timestep frequencies and the constant of a norm, which the two compute differently "
        "(default: as the program computes that CHECKPOINT is for)",
    )
    parser.add_argument(
        "--null-class",
        type=label,
        metavar="N",
        help="the label that means no class, or none (default: the last of 1001 rows, of a folder the last of all)",
    )
    parser.add_argument(
        "--decoding",
        choices=["pixels", "none"],
        help="pixels where x is a picture in [-1, 1], none where it is latents (default: none for 4 channels)",
    )
    parser.add_argument(
        "--latent-scale",
        type=positive_real,
        metavar="S",
        help=f"what latents were multiplied with (default: a pipeline's own, {OFFICIAL_SCALE} for 4 channels)",
    )
    parser.add_argument(
        "--time",
        choices=["data", "noise"],
        help="SiT: what x is where the network is told t = 1; noise for REPA and its kin (default: data)",
    )
    parser.add_argument(
        "--class-names",
        type=Path,
        metavar="FILE",
        help="names of the classes, one a line with synonyms between commas; imagenet for those of ImageNet's 1000, from "
        "the Python package timm",
    )
    parser.add_argument("--training-data", default="", help="what the network was trained on")
    parser.add_argument("--license", default="", help="licence of the weights")
    add_calibration(parser)
    add_form(parser, parts=True, in_place=True)
    args = parser.parse_args()
    if args.time and args.kind != "sit":
        fail(f"--time: is for --kind sit, got {args.time} for a DiT")
    require_place(args.output, args.checkpoint)
    args.names_file = args.class_names
    args.class_names = read_class_names(args.class_names) if args.class_names else []
    return args


def guidance_of(args: argparse.Namespace, null: int | None, usual: float) -> float:
    """The scale that the file recommends, @usual where nothing is said. @null: the label that means no class."""
    if null is not None:
        return usual if args.guidance_scale is None else args.guidance_scale
    if args.guidance_scale is not None:
        fail(f"--guidance-scale: must be for a network that has a label for no class, got {args.guidance_scale}")
    return 1.0


def label(text: str) -> int | str:
    """Of a class, or none."""
    if text != NO_CLASS and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a label or none, got '{text}'")
    return text if text == NO_CLASS else int(text)


def main() -> None:
    args = parse_arguments()
    form = form_of(args)
    if args.interpolate and form.whole_size:
        fail("--interpolate: must not be given for --format aot-inductor, which compiles for one size, got both")
    if isinstance(form, InPlace):
        describe_file(args)
        return
    source = open_folder(args) if args.checkpoint.is_dir() else open_file(args)
    take_class_names(source, args)
    give_positions(source)
    fill(source.network, source.weights, source.place)
    source.weights.clear()  # where they were of another type, a copy of them is in the network
    if args.kind == "sit":
        check_time(source.place, source.network.eval(), source.shape, args.time == "noise")
        to_flow(source, args.time == "noise")
    shape = source.shape
    say(f"{shape.flops() / 1e9:.2f} GFLOP an image")
    if args.calibrate:
        source.calibration = calibrate(
            source.network,
            shape,
            source.schedule,
            guidance_of(args, shape.null_label, GUIDANCE),
            args.calibrate,
            weights=not form.whole_size,  # compiled networks bring their own
        )
    say(f"{'compiling' if form.whole_size else 'scripting'} as {args.dtype}, checking and writing {args.output}")
    write(args.output, source.network, metadata(source, args), random_inputs(shape), args.dtype, source.peer, form)


if __name__ == "__main__":
    main()
