"""Networks of diffusers and transformers under the names of Stable Diffusion's makers.

An oracle for examples/export/single_file.py: written from the layout, and not from a conversion to diffusers.
"""

import re

import diffusers
import torch

Weights = dict[str, torch.Tensor]
UNET, VAE = "model.diffusion_model.", "first_stage_model."


def renamed(name: str, rules: dict[str, str]) -> str:
    for old, new in rules.items():
        name = re.sub(old, new, name)
    return name


BLOCK = {
    r"\bnorm1\.(?=\w+$)": "in_layers.0.", r"\bconv1\.": "in_layers.2.", r"\btime_emb_proj\.": "emb_layers.1.",
    r"\bnorm2\.(?=\w+$)": "out_layers.0.", r"\bconv2\.": "out_layers.3.", r"\bconv_shortcut\.": "skip_connection.",
}  # fmt: skip
ENDS = {
    "time_embedding.linear_1.": "time_embed.0.", "time_embedding.linear_2.": "time_embed.2.",
    "add_embedding.linear_1.": "label_emb.0.0.", "add_embedding.linear_2.": "label_emb.0.2.",
    "conv_in.": "input_blocks.0.0.", "conv_norm_out.": "out.0.", "conv_out.": "out.2.",
}  # fmt: skip


def unet_of_makers(model: diffusers.UNet2DConditionModel) -> Weights:
    """Blocks are counted through all levels; what makes a level smaller or larger is a block, or the last of one."""
    layers, found = model.config.layers_per_block, {}
    for name, tensor in model.state_dict().items():
        if match := re.match(r"down_blocks\.(\d+)\.(resnets|attentions|downsamplers)\.(\d+)\.(.*)", name):
            level, kind, k, rest = int(match[1]), match[2], int(match[3]), match[4]
            i = 1 + level * (layers + 1) + (layers if kind == "downsamplers" else k)
            rest = rest.replace("conv.", "op.") if kind == "downsamplers" else rest
            new = f"input_blocks.{i}.{1 if kind == 'attentions' else 0}."
        elif match := re.match(r"up_blocks\.(\d+)\.(resnets|attentions|upsamplers)\.(\d+)\.(.*)", name):
            level, kind, k, rest = int(match[1]), match[2], int(match[3]), match[4]
            i = level * (layers + 1) + (layers if kind == "upsamplers" else k)
            has_attention = "CrossAttn" in model.config.up_block_types[level]
            new = f"output_blocks.{i}.{ {'resnets': 0, 'attentions': 1, 'upsamplers': 1 + has_attention}[kind] }."
        elif match := re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)", name):
            kind, k, rest = match[1], int(match[2]), match[3]
            new = f"middle_block.{1 if kind == 'attentions' else 2 * k}."
        else:
            [(old, new)] = [(old, new) for old, new in ENDS.items() if name.startswith(old)]
            kind, rest = "", name.removeprefix(old)
        found[UNET + new + (renamed(rest, BLOCK) if kind == "resnets" else rest)] = tensor
    return found


ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", r"to_out\.0": "proj_out"}


def vae_of_makers(model: diffusers.AutoencoderKL) -> Weights:
    """Levels of the decoder are counted from the full resolution; attention is by convolutions over one place."""
    last, found = len(model.config.block_out_channels) - 1, {}
    for name, tensor in model.state_dict().items():
        new = re.sub(r"up_blocks\.(\d+)", lambda match: f"up.{last - int(match[1])}", name)
        new = renamed(new, {
            r"down_blocks\.": "down.", r"mid_block\.resnets\.0": "mid.block_1", r"mid_block\.resnets\.1": "mid.block_2",
            r"\bresnets\.": "block.", r"(down|up)samplers\.0": r"\1sample", "conv_shortcut": "nin_shortcut", "conv_norm_out": "norm_out",
        })  # fmt: skip
        if "attentions.0." in new:
            new = renamed(new.replace("mid_block.attentions.0", "mid.attn_1"), ATTENTION)
            tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
        found[VAE + new] = tensor
    return found


def clip_of_makers(model: torch.nn.Module, prefix: str) -> Weights:
    names = {name: name if name.startswith("text_model.") else f"text_model.{name}" for name in model.state_dict()}
    found = {prefix + names[name]: tensor for name, tensor in model.state_dict().items()}
    return found | {f"{prefix}text_model.embeddings.position_ids": torch.arange(77)[None]}


def open_clip_of_makers(model: torch.nn.Module, prefix: str, more_layers: int = 0) -> Weights:
    """@more_layers: that are in the file and not in the folder."""
    weights = {name.removeprefix("text_model."): tensor for name, tensor in model.state_dict().items()}
    width = weights["final_layer_norm.weight"].numel()
    found = {
        "positional_embedding": weights["embeddings.position_embedding.weight"],
        "token_embedding.weight": weights["embeddings.token_embedding.weight"],
        "ln_final.weight": weights["final_layer_norm.weight"], "ln_final.bias": weights["final_layer_norm.bias"],
        "text_projection": weights["text_projection.weight"].T if "text_projection.weight" in weights else torch.randn(width, width),
        "logit_scale": torch.tensor(4.6),
    }  # fmt: skip
    count = model.config.num_hidden_layers
    for i in range(count + more_layers):
        old, new = f"encoder.layers.{min(i, count - 1)}.", f"transformer.resblocks.{i}."
        for kind in ("weight", "bias"):
            found[f"{new}attn.in_proj_{kind}"] = torch.cat([weights[f"{old}self_attn.{p}_proj.{kind}"] for p in "qkv"])
            for theirs, ours in (("attn.out_proj", "self_attn.out_proj"), ("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"),
                                 ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2")):  # fmt: skip
                found[f"{new}{theirs}.{kind}"] = weights[f"{old}{ours}.{kind}"]
    return {prefix + name: tensor for name, tensor in found.items()}
