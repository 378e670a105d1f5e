"""Stable Diffusion in one file, in the layout of its makers: 1, 2 and XL with its refiner, and latent diffusion for classes,
.safetensors or .ckpt.

A folder of diffusers says in config.json what its networks are. Here it is read from the shapes of the tensors, and where
these do not tell, it is what all published networks of this layout have: norms of 32 groups, 8 heads or, with linear
projections, heads of 64 channels. What a file has no tensors for is asked for (the prediction of Stable Diffusion 2, the
tokenizer), or said. Tensors get their names of diffusers by its own conversion, which must be installed.

The functions take a folder of diffusers in place of a file, too: exporters call them for either.
"""

import argparse
import functools
import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from torch import Tensor

import packages
from common import Config, component, fail, first_line, load_weights, names_in, say, some

# What files do not tell.
OPEN_SIZE = "a file of Stable Diffusion 2, which was published for 512 and 768 pixels, x of 64 and 96"
OPEN_PREDICTION = "a file of Stable Diffusion 2, which was published with epsilon and with v_prediction and does not say which it has"
UNET, VAE = "model.diffusion_model.", "first_stage_model."
CODES = "quantize.embedding.weight"
TEXT = "transformer_blocks.0.attn2.to_k.weight"
GROUPS, HEADS, HEAD_WIDTH = 32, 8, 64
SIZE_WIDTH = 256  # sinusoids of each of SDXL's sizes
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}
# Relative errors of betas by the precision in which they are stored.
ROUNDED = {torch.float64: 1e-6, torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
PNDM = {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1}
EULER = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading", "steps_offset": 1}


@dataclass(frozen=True)
class Family:
    """What files of one kind have in common. @sample_size: of latents; None: there are several."""

    name: str
    pipeline: str
    encoders: Mapping[str, str]  # from parts of a folder to what their tensors begin with
    latent_scale: float = 0.18215
    sample_size: int | None = 64
    scheduler: Mapping[str, object] = field(default_factory=lambda: PNDM)
    size_ids: int = 0  # numbers that the network takes beside the text
    table: str = ""  # of classes, in the place of text encoders
    betas: Mapping[str, object] = field(default_factory=lambda: BETAS)

    @property
    def marks(self) -> list[str]:
        """What tensors of these files begin with, and others' do not."""
        return [*self.encoders.values(), *([self.table] if self.table else [])]


OPEN_CLIP_LAYERS = 24  # of ViT-H
CLIP, OPEN_CLIP = "cond_stage_model.transformer.", "cond_stage_model.model."
XL = {"latent_scale": 0.13025, "sample_size": 128, "scheduler": EULER}
FAMILIES = {
    "1": Family("Stable Diffusion 1", "StableDiffusionPipeline", {"text_encoder": CLIP}),
    "2": Family("Stable Diffusion 2", "StableDiffusionPipeline", {"text_encoder": OPEN_CLIP}, sample_size=None),
    "XL": Family(
        "SDXL", "StableDiffusionXLPipeline",
        {"text_encoder": "conditioner.embedders.0.transformer.", "text_encoder_2": "conditioner.embedders.1.model."},
        size_ids=6, **XL,
    ),
    "refiner": Family(
        "the refiner of SDXL", "StableDiffusionXLImg2ImgPipeline", {"text_encoder_2": "conditioner.embedders.0.model."},
        size_ids=5, **XL,
    ),
    "classes": Family(
        "latent diffusion for classes", "LatentDiffusion", {}, latent_scale=1.0, table="cond_stage_model.embedding.weight",
        scheduler={}, betas=BETAS | {"beta_start": 0.0015, "beta_end": 0.0195},
    ),
}  # fmt: skip
# Files that are something else, by words in names of tensors.
OTHERS = {
    r"^lora_|\.lora_(up|down|A|B)\b|^(unet|text_encoder)\..*\.lora": "a LoRA, which changes another network: merge it with that first",
    r"(^|\.)(joint_blocks|double_blocks|double_stream_blocks)\.0\.": "a diffusion transformer: give its folder of diffusers",
    r"^(down_blocks|unet\.down_blocks)\.|^(encoder|decoder)\.(up|down)_blocks\.": "the layout of diffusers: give the folder that the file is in",
    r"^(control_model\.|input_hint_block\.)": "a ControlNet",
    r"^edm_mean$": "a network that scales x by the rules of EDM, as Playground 2.5 does",
}  # fmt: skip

WITH_TEXTS = ", or a file of Stable Diffusion 1, 2 or XL in the layout of its makers"  # of help
IN_ONE_FILE = ", or a file of Stable Diffusion 1, 2 or XL or of latent diffusion in the layout of its makers"


# ------------------------------------------------------------------------------------------------ a file


class SingleFile:
    """The parts of a file, by the names of a folder: unet, vae, text_encoder, text_encoder_2."""

    def __init__(self, path: Path):
        self.path = path
        self.weights = read_weights(path)
        self.names = {"unet": UNET if any(name.startswith(UNET) for name in self.weights) else "", "vae": VAE}
        self.unet = self.part("unet") if f"{self.names['unet']}input_blocks.0.0.weight" in self.weights else {}
        # As averaged weights are called beside others.
        averaged = {name: self.weights.get("model_ema.diffusion_model" + name.replace(".", "")) for name in self.unet}
        if any(isinstance(tensor, Tensor) for tensor in averaged.values()):
            if (missing := next((name for name, t in averaged.items() if not isinstance(t, Tensor)), None)) is not None:
                got = f"others, but none called model_ema.diffusion_model{missing.replace('.', '')}"
                fail(f"{path}: must have averaged weights of its whole U-Net or none, got {got}")
            say(f"{path}: has averaged weights of its U-Net and others: taking the averaged ones")
            self.unet = averaged
        self.family = self.family_of()
        self.names |= self.family.encoders
        say(f"{path}: taken for {self.family.name}")

    def family_of(self) -> Family:
        """By the text encoders; of a U-Net alone by what it takes."""
        found = [key for key, family in FAMILIES.items() if all(map(self.has_any, family.marks))]
        if len(found) > 1:
            names = " and of ".join(FAMILIES[key].name for key in found)
            fail(f"{self.path}: must have the text encoders of one model, got those of {names}")
        if not found and not self.unet:
            fail(
                f"{self.path}: must have the tensors of Stable Diffusion in the layout of its makers, such as "
                f"{UNET}input_blocks.0.0.weight, got {some(sorted(self.weights))}"
            )
        added = "label_emb.0.0.weight" in self.unet
        if not found:
            linear = any(name.endswith("1.proj_in.weight") and t.ndim == 2 for name, t in self.unet.items())
            found = [("refiner" if self.takes_a_score() else "XL") if added else "2" if linear else "1"]
        family = FAMILIES[found[0]]
        if self.unet and added != (family.size_ids > 0):
            rule = "must" if family.size_ids else "must not"
            fail(f"{self.path}: {rule} have {UNET}label_emb for {family.name}, got {'one' if added else 'none'}")
        return family

    def takes_a_score(self) -> bool:
        """Whether SDXL's network has the refiner's five sizes beside a pooled text, which is as wide as the only text it takes."""
        attended = self.unet.get(self.attended())
        return self.need(self.unet, "label_emb.0.0.weight", 2)[1] - FAMILIES["refiner"].size_ids * SIZE_WIDTH == attended.shape[-1]

    def attended(self) -> str:
        """The first tensor of the U-Net that a text goes into."""
        name = next((name for name in self.unet if name.endswith(TEXT)), None)
        if name is None:
            fail(f"{self.path}: {UNET} must have attention to a text, got no tensor called *.{TEXT}")
        self.need(self.unet, name, 2)
        return name

    def has_any(self, prefix: str) -> bool:
        return any(name.startswith(prefix) for name in self.weights)

    def has(self, part: str) -> bool:
        return bool(self.unet) if part == "unet" else part in self.names and self.has_any(self.names[part])

    def part(self, part: str) -> dict[str, Tensor]:
        """Its tensors under the names that the file has behind those that all of them begin with."""
        prefix = self.names[part]
        return {name.removeprefix(prefix): t for name, t in self.weights.items() if name.startswith(prefix)}

    # -------------------------------------------------------------------------------------------- what it says

    def config(self, part: str) -> Config:
        """What config.json of a folder's part would say."""
        if not self.has(part):
            fail(f"{self.path}: must have the tensors of a {part}, got none called {self.names.get(part, part)}")
        read = {"unet": self.unet_values, "vae": self.vae_values}.get(part, functools.partial(self.encoder_values, part))
        return Config(self.path, read())

    def need(self, place: Mapping[str, Tensor], name: str, dims: int) -> list[int]:
        """The sizes of a tensor, which must be there."""
        tensor = place.get(name)
        if not isinstance(tensor, Tensor) or tensor.ndim != dims:
            got = list(tensor.shape) if isinstance(tensor, Tensor) else "none"
            fail(f"{self.path}: must have a tensor of {dims} dimensions called {name}, got {got}")
        return list(tensor.shape)

    def unet_values(self) -> dict[str, object]:
        weights = self.unet
        indices = [numbers_in(weights, f"{side}_blocks") for side in ("input", "output")]
        down: list[list[int | None]] = [[]]  # of each level the depths of its blocks; None: a block without attention
        widths: list[int] = []
        for i in range(1, len(indices[0])):
            if f"input_blocks.{i}.0.op.weight" in weights:
                down.append([])
                continue
            width = self.need(weights, f"input_blocks.{i}.0.in_layers.2.weight", 4)[0]
            if not down[-1]:
                widths.append(width)
            down[-1].append(depth_of(weights, f"input_blocks.{i}.1"))
        layers = len(down[0])
        up = [depth_of(weights, f"output_blocks.{i}.1") for i in range(len(indices[1]))]
        if not layers or any(len(level) != layers for level in down) or len(up) != len(down) * (layers + 1):
            counts = f"{[len(level) for level in down]} on the way down and {len(up)} on the way up"
            fail(f"{self.path}: {UNET} must have as many residual blocks on each level, and one more on the way up, got {counts}")
        ups = [up[k : k + layers + 1] for k in range(0, len(up), layers + 1)]
        for levels in (down, ups):
            if any((depth is None) != (level[0] is None) for level in levels for depth in level):
                fail(f"{self.path}: {UNET} must have attention in all residual blocks of a level or in none, got {levels}")
        if not any(level[0] for level in (*down, *ups)):
            fail(f"{self.path}: {UNET} must have attention to a text, got none")

        middle = depth_of(weights, "middle_block.1")
        last = down[-1] if down[-1][0] is not None else [middle or 1] * layers
        has_middle = "middle_block.0.in_layers.2.weight" in weights
        kind = "UNetMidBlock2DCrossAttn" if middle is not None else "UNetMidBlock2D" if has_middle else None
        if middle is not None and middle != last[0]:
            fail(f"{self.path}: {UNET}middle_block must be as deep as the level before it, {last[0]}, got {middle}")
        projections = {t.ndim == 2 for name, t in weights.items() if name.endswith(".1.proj_in.weight")}
        if len(projections) > 1:
            fail(f"{self.path}: {UNET} must have linear projections everywhere or nowhere, got both")
        linear = projections == {True}
        if linear and any(width % HEAD_WIDTH for width in widths):
            fail(f"{self.path}: {UNET} must have widths that are multiples of {HEAD_WIDTH}, the width of a head, got {widths}")
        return {
            "_class_name": "UNet2DConditionModel",
            "sample_size": self.sample_size(),
            "in_channels": self.need(weights, "input_blocks.0.0.weight", 4)[1],
            "out_channels": self.need(weights, "out.2.weight", 4)[0],
            "block_out_channels": widths,
            "down_block_types": ["DownBlock2D" if level[0] is None else "CrossAttnDownBlock2D" for level in down],
            "up_block_types": ["UpBlock2D" if level[0] is None else "CrossAttnUpBlock2D" for level in ups],
            "mid_block_type": kind,
            "layers_per_block": layers,
            "transformer_layers_per_block": [[n or 1 for n in level] for level in (*down[:-1], last)],
            "reverse_transformer_layers_per_block": [[n or 1 for n in level] for level in ups],
            "cross_attention_dim": self.need(weights, self.attended(), 2)[1],
            "attention_head_dim": [width // HEAD_WIDTH for width in widths] if linear else 1 if self.family.table else HEADS,
            "use_linear_projection": linear,
            "norm_num_groups": GROUPS,
            **self.added_values(),
        }

    def sample_size(self) -> int | None:
        """Latent diffusion for classes draws 256 pixels."""
        levels = len(numbers_in(self.part("vae"), "decoder.up")) if self.family.table else 0
        return 256 >> (levels - 1) if levels else self.family.sample_size

    def added_values(self) -> dict[str, object]:
        """Of SDXL. How wide its sizes are is known where the encoder is, whose text stands beside them."""
        count = self.family.size_ids
        if not count:
            return {}
        both, width = self.need(self.unet, "label_emb.0.0.weight", 2)[1], SIZE_WIDTH
        projection = self.weights.get(self.family.encoders["text_encoder_2"] + "text_projection")
        if isinstance(projection, Tensor) and projection.ndim == 2:
            width, left = divmod(both - projection.shape[1], count)
            if left or width < 1:
                rule = f"must have a column for each of {projection.shape[1]} numbers of the text and {count} sizes"
                fail(f"{self.path}: {UNET}label_emb.0.0.weight {rule}, got {both}")
        return {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": width,
            "projection_class_embeddings_input_dim": both,
        }

    def vae_values(self) -> dict[str, object]:
        weights = self.part("vae")
        levels = len(numbers_in(weights, "encoder.down"))
        widths = [self.need(weights, f"encoder.down.{i}.block.0.conv1.weight", 4)[0] for i in range(levels)]
        quantized = {half: f"{half}.weight" in weights for half in ("quant_conv", "post_quant_conv")}
        if CODES in weights:
            if not all(quantized.values()):
                fail(f"{self.path}: {VAE} must have quant_conv and post_quant_conv beside a codebook, got not both")
            kind = {"_class_name": "VQModel", "num_vq_embeddings": self.need(weights, CODES, 2)[0]}
        else:
            kind = {"_class_name": "AutoencoderKL"} | {f"use_{half}": there for half, there in quantized.items()}
        return {
            **kind,
            "in_channels": self.need(weights, "encoder.conv_in.weight", 4)[1],
            "out_channels": self.need(weights, "decoder.conv_out.weight", 4)[0],
            "latent_channels": self.need(weights, "decoder.conv_in.weight", 4)[1],
            "block_out_channels": widths,
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
            "layers_per_block": len(numbers_in(weights, "encoder.down.0.block")),
            "mid_block_add_attention": "decoder.mid.attn_1.q.weight" in weights,
            "norm_num_groups": GROUPS,
            "scaling_factor": self.latent_scale(),
        }

    def latent_scale(self) -> float:
        """Latent diffusion keeps it, where latents were brought to a deviation of 1."""
        scale = self.weights.get("scale_factor") if self.family.table else None
        return scale.item() if isinstance(scale, Tensor) and scale.numel() == 1 else self.family.latent_scale

    def encoder_values(self, part: str) -> dict[str, object]:
        prefix, weights = self.names[part], self.part(part)
        if is_open_clip(prefix):
            words, width = self.need(weights, "token_embedding.weight", 2)
            layers, fc1 = "transformer.resblocks", "transformer.resblocks.0.mlp.c_fc.weight"
            tokens = self.need(weights, "positional_embedding", 2)[0]
        else:
            inner = "text_model." if any(name.startswith("text_model.") for name in weights) else ""
            words, width = self.need(weights, f"{inner}embeddings.token_embedding.weight", 2)
            layers, fc1 = f"{inner}encoder.layers", f"{inner}encoder.layers.0.mlp.fc1.weight"
            tokens = self.need(weights, f"{inner}embeddings.position_embedding.weight", 2)[0]
        if width % HEAD_WIDTH:
            fail(f"{self.path}: {prefix} must be a multiple of {HEAD_WIDTH} wide, the width of a head, got {width}")
        projected = part == "text_encoder_2"
        return {
            "architectures": ["CLIPTextModelWithProjection" if projected else "CLIPTextModel"],
            "vocab_size": words,
            "hidden_size": width,
            "intermediate_size": self.need(weights, fc1, 2)[0],
            "num_hidden_layers": self.used_layers(part, len(numbers_in(weights, layers))),
            "num_attention_heads": width // HEAD_WIDTH,
            "max_position_embeddings": tokens,
            "hidden_act": "gelu" if is_open_clip(prefix) else "quick_gelu",
            "projection_dim": self.need(weights, "text_projection", 2)[1] if projected else width,
            "eos_token_id": 2,  # the end is the token of the highest number
        }

    def used_layers(self, part: str, count: int) -> int:
        """Stable Diffusion 2 takes what comes out of the last layer but one of OpenCLIP; files may have that layer or not."""
        return OPEN_CLIP_LAYERS - 1 if self.names[part] == OPEN_CLIP and count == OPEN_CLIP_LAYERS else count

    def scheduler(self) -> Config:
        """As the folders of diffusers of the same model have it, but for the betas that the file has.

        prediction_type is absent where files of the kind differ in it.
        """
        values = dict(self.family.scheduler) | self.betas()
        if self.family is not FAMILIES["2"]:
            # As files are marked that were trained otherwise than their model.
            values["prediction_type"] = "v_prediction" if "v_pred" in self.weights else "epsilon"
        if "ztsnr" in self.weights:
            values["rescale_betas_zero_snr"] = True
        return Config(self.path, values)

    def betas(self) -> dict[str, object]:
        betas = self.weights.get("betas")
        if not isinstance(betas, Tensor) or betas.ndim != 1 or len(betas) < 2 or betas.dtype not in ROUNDED:
            return dict(self.family.betas)
        most, betas = ROUNDED[betas.dtype], betas.double()
        if not ((betas > 0) & (betas < 1)).all():
            return {"trained_betas": betas.tolist()}  # which are refused where they are needed
        for ends in ([self.family.betas["beta_start"], self.family.betas["beta_end"]], [float(f"{betas[k]:.6g}") for k in (0, -1)]):
            line = torch.linspace(*(end**0.5 for end in ends), len(betas), dtype=torch.float64) ** 2
            if torch.allclose(betas, line, rtol=most, atol=0):
                return BETAS | {"beta_start": ends[0], "beta_end": ends[1], "num_train_timesteps": len(betas)}
        return {"trained_betas": betas.tolist()}

    def index(self) -> Config:
        values = {"_class_name": self.family.pipeline, "requires_aesthetics_score": self.family is FAMILIES["refiner"]}
        return Config(self.path, values)

    # -------------------------------------------------------------------------------------------- its tensors

    def tensors(self, config: Config, part: str) -> dict[str, Tensor]:
        """Under the names of diffusers."""
        try:
            return self.converted(config, part)
        except KeyError as error:
            fail(f"{self.path}: must hold every tensor of the {part}, got none called {error.args[0]}")
        except Exception as error:  # of shapes that no network of the layout has
            fail(f"{self.path}: must have a {part} in the layout of its makers, got '{first_line(error)}'")

    def converted(self, config: Config, part: str) -> dict[str, Tensor]:
        convert, prefix = converters(self.path), self.names[part]
        weights = self.unet if part == "unet" else self.part(part)
        if part == "unet":
            found = convert.convert_ldm_unet_checkpoint({UNET + name: t for name, t in weights.items()}, config.values)
        elif part == "vae":
            kept = {name: t for name, t in weights.items() if not name.startswith(("loss.", "model_ema."))}
            weights = kept
            found = convert.convert_ldm_vae_checkpoint({VAE + name: t for name, t in kept.items()}, config.values)
            found |= {name: t for name, t in kept.items() if name == CODES}
        elif is_open_clip(prefix):
            kept = config.values["num_hidden_layers"]
            weights = {name: t for name, t in weights.items() if not is_layer_from(kept, name) and name != "logit_scale"}
            if part != "text_encoder_2":
                weights.pop("text_projection", None)
            shape = SimpleNamespace(config=SimpleNamespace(hidden_size=config.values["hidden_size"]))
            found = convert.convert_open_clip_checkpoint(shape, {prefix + name: t for name, t in weights.items()}, prefix)
            return found  # some of them copies
        else:
            # Some programs write CLIP's projection, too, which is not used.
            kept = {prefix + name: t for name, t in weights.items() if not name.startswith("text_projection.")}
            return convert.convert_ldm_clip_checkpoint(kept)
        # Of both the same memory under other names.
        used = {tensor.data_ptr() for tensor in found.values() if isinstance(tensor, Tensor)}
        left = sorted(prefix + name for name, t in weights.items() if isinstance(t, Tensor) and t.numel() and t.data_ptr() not in used)
        if left:
            fail(f"{self.path}: must hold the tensors of {self.family.name} only, got also {some(left)}")
        return found


def read_weights(path: Path) -> dict[str, Tensor]:
    """Of the whole file."""
    weights = load_weights(path)
    for words, what in OTHERS.items():
        if name := next((name for name in weights if isinstance(name, str) and re.search(words, name)), None):
            fail(f"{path}: must be Stable Diffusion 1, 2 or XL in the layout of its makers, got {what}, with {name[:100]}")
    return {name: tensor for name, tensor in weights.items() if isinstance(name, str)}


def numbers_in(weights: Mapping[str, Tensor], prefix: str) -> list[int]:
    """That stand behind this in names of tensors."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    return sorted({int(match[1]) for name in weights if (match := pattern.match(name))})


def depth_of(weights: Mapping[str, Tensor], block: str) -> int | None:
    """Of a transformer; None where there is none."""
    return len(numbers_in(weights, f"{block}.transformer_blocks")) if f"{block}.proj_in.weight" in weights else None


def is_open_clip(prefix: str) -> bool:
    return prefix.endswith(".model.")


def is_layer_from(count: int, name: str) -> bool:
    match = re.match(r"transformer\.resblocks\.(\d+)\.", name)
    return match is not None and int(match[1]) >= count


def converters(path: Path) -> ModuleType:
    try:
        return importlib.import_module("diffusers.loaders.single_file_utils")
    except ImportError:
        fail(f"{path}: {packages.advice(['diffusers'], Path(__file__).with_name('requirements.txt'))}")


@functools.cache
def read(path: Path) -> SingleFile:
    return SingleFile(path)


# ------------------------------------------------------------------------------------------------ files or folders


def has(source: Path, part: str) -> bool:
    """Whether a pipeline has a part."""
    return read(source).has(part) if source.is_file() else (source / part).is_dir()


def config_of(source: Path, part: str) -> Config:
    """Of a part of a pipeline; @source may be the part's folder."""
    return read(source).config(part) if source.is_file() else Config(component(source, part) / "config.json")


def weights_of(args: argparse.Namespace, config: Config, part: str) -> dict[str, Tensor] | None:
    """Of a file; None of a folder, which `load_weights` reads."""
    if not args.folder.is_file():
        return None
    for option, value in (("--weights", args.weights), ("--variant", args.variant)):
        if value is not None:
            fail(f"{option}: must be left out for a file that has all weights, got {value} for {args.folder}")
    return read(args.folder).tensors(config, part)


def index_of(source: Path) -> Config | None:
    """What kind of pipeline it is, where that is said."""
    if source.is_file():
        return read(source).index()
    path = source / "model_index.json"
    return Config(path) if path.is_file() else None


def scheduler_of(source: Path) -> Config | None:
    if source.is_file():
        return read(source).scheduler()
    paths = [source / "scheduler" / "scheduler_config.json", source / "scheduler_config.json"]
    return next((Config(path) for path in paths if path.is_file()), None)


def is_padded_by_zero(path: Path, part: str) -> bool:
    """Whether a file's encoder was trained on texts that are filled up with token 0, as OpenCLIP's are, and not with ends."""
    return is_open_clip(read(path).names[part])


def latent_scale_of(path: Path) -> float:
    """Of the model that a file is of."""
    return read(path).latent_scale()


def class_table_of(source: Path) -> Tensor | None:
    """[classes, width] of a file of latent diffusion: what stands in the place of a text."""
    file = read(source) if source.is_file() else None
    if file is None or not file.family.table:
        return None
    file.need(file.weights, file.family.table, 2)
    return file.weights[file.family.table]


def parts_in(source: Path) -> list[str]:
    """For messages."""
    if source.is_file():
        return [part for part in ("unet", "vae", "text_encoder", "text_encoder_2") if has(source, part)]
    return names_in(source)
