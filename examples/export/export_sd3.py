"""Writes a transformer of Stable Diffusion 3 or 3.5 as a file that tstitch loads: TorchScript, compiled, or a text that
describes it and leaves its .safetensors files where they are (--format in-place), which takes a second and no memory
unless --calibrate lets the network draw.

FOLDER is a pipeline of diffusers, or its transformer/: config.json and weights of an SD3Transformer2DModel (SD3 medium,
SD3.5 medium, large and large turbo). diffusers is not needed; where it is installed the file is checked beside it.

A pipeline says in its scheduler how far its timesteps are shifted; --flow-shift says it for a network without, and is
believed where both do.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import packages

packages.require(__file__, "torch", beside=("safetensors",))
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from aot_inductor import add_form, form_of, require_sizes  # noqa: E402
from calibrate import Blocks, Calibration, Look, Product, draw, initial_noise, measure, processor  # noqa: E402
from common import (  # noqa: E402
    IGNORED,
    Config,
    Inputs,
    TorchScript,
    component,
    fail,
    in_diffusers,
    is_integer,
    read_file,
    read_network,
    require_place,
    say,
    write,
)
from in_place import InPlace, describe, files_of, headers, require_description  # noqa: E402
from options import add_calibration, folder_parser, open_sides  # noqa: E402
from pipeline import add_flow, flow_values, latents  # noqa: E402
from sd3 import SD3, SD3Config, conditions  # noqa: E402

GUIDANCE, GUIDANCE_OF_3_5 = 7.0, 4.5  # of the model cards
STEPS = 28  # of diffusers' pipeline


# ------------------------------------------------------------------------------------------------ the network


def read_config(config: Config) -> SD3Config:
    config.kind("SD3Transformer2DModel")
    patch, size, depth = config.integer("patch_size", 2), config.integer("sample_size", 128), config.integer("num_layers", 18)
    heads, head_width = config.integer("num_attention_heads", 18), config.integer("attention_head_dim", 64)
    width = heads * head_width
    if (text_width := config.integer("caption_projection_dim", 1152)) != width:
        config.refuse("caption_projection_dim", f"must be {width}, num_attention_heads times attention_head_dim", text_width)
    if size % patch:
        config.refuse("patch_size", f"must divide sample_size {size}", patch)
    grid = config.integer("pos_embed_max_size", 96)
    if size // patch > grid:
        config.refuse("pos_embed_max_size", f"must be at least {size // patch}, sample_size by patch_size", grid)
    channels = config.integer("in_channels", 16)
    # null is not the same as a key that is missing.
    absent = "out_channels" in config.values and config.get("out_channels") is None
    out_channels = channels if absent else config.integer("out_channels", 16)
    if out_channels != channels:
        config.refuse("out_channels", f"must be in_channels = {channels}", out_channels)
    dual = config.get("dual_attention_layers", [])
    if not isinstance(dual, list) or not all(is_integer(i) and 0 <= i < depth for i in dual):
        config.refuse("dual_attention_layers", f"must be a list of integers in [0, {depth - 1}]", dual)
    shape = SD3Config(
        channels=channels,
        out_channels=out_channels,
        size=size,
        patch=patch,
        width=width,
        depth=depth,
        heads=heads,
        text_width=config.integer("joint_attention_dim", 4096),
        pooled_width=config.integer("pooled_projection_dim", 2048),
        grid=grid,
        dual_attention=tuple(dual),
        qk_norm=config.only("qk_norm", None, "rms_norm") is not None,
    )
    config.finish(*IGNORED)
    return shape


# ------------------------------------------------------------------------------------------------ 8 bits

TOKENS = 333  # of random texts: 77 of CLIP and 256 of T5, as in diffusers' pipeline


def products_of(network: SD3) -> Blocks:
    """In the order of `NetworkInfo::Architecture::e4m3_inputs` of C++: of each block the picture's, those of its dual
    attention, the text's."""

    def product(*layers: nn.Linear, seen: int = 0) -> Product:
        return Product(tuple(layer.weight for layer in layers), layers[seen].weight)

    def of_block(block: nn.Module) -> list[Product]:
        attn, dual, ff, text_ff = block.attn, block.attn2, block.ff, block.ff_context
        found = [product(attn.to_q, attn.to_k, attn.to_v), product(attn.to_out[0])]
        found += [product(ff.net[0].proj), product(ff.net[2])]
        if dual is not None:
            found += [product(dual.to_q, dual.to_k, dual.to_v), product(dual.to_out[0])]
        # In the last block the text is only attended to: nobody computes its queries.
        found.append(product(attn.add_q_proj, attn.add_k_proj, attn.add_v_proj, seen=1))
        if text_ff is not None:
            found += [product(attn.to_add_out), product(text_ff.net[0].proj), product(text_ff.net[2])]
        return found

    return [of_block(block) for block in network.transformer_blocks]


def read_texts(path: Path, shape: SD3Config, tokens: int | None) -> list[tuple[Tensor, Tensor]]:
    """Text and pooled text of a file of encode_prompt.py [n, ...]; then, where it has them, those of no text [1, ...]."""
    if not path.is_file():
        fail(f"{path}: must be a file of conditions, got {'a folder' if path.is_dir() else 'none'}")
    found = read_file(path)
    wanted = {name: sizes for name, _, sizes in conditions(shape, tokens)}

    def read(ending: str) -> tuple[Tensor, ...]:
        both = []
        for name, sizes in wanted.items():
            tensor = found.get(name + ending)
            got = list(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__ if tensor is not None else "none"
            rule = f"[{'1' if ending else 'n'}, {', '.join('tokens' if size is None else str(size) for size in sizes)}]"
            if (
                not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.ndim != 1 + len(sizes)
                or tensor.numel() == 0 or any(size not in (None, real) for size, real in zip(sizes, tensor.shape[1:]))
                or (ending and len(tensor) != 1) or len(tensor) != len(both[0] if both else tensor)
            ):  # fmt: skip
                fail(f"{path}: {name}{ending} must be {rule}, as many of each, got {got}")
            if not tensor.isfinite().all():
                fail(f"{path}: {name}{ending} must be finite, got nan or infinity")
            both.append(tensor.float())
        return tuple(both)

    return [read(ending) for ending in ("", ".null") if not ending or any(name + ending in found for name in wanted)]


def random_texts(shape: SD3Config, tokens: int | None, count: int) -> list[tuple[Tensor, Tensor]]:
    """Likewise, with those of no text."""
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(rows, tokens or TOKENS, shape.text_width, generator=generator),
            torch.randn(rows, shape.pooled_width, generator=generator),
        )
        for rows in (count, 1)
    ]


def calibrate(
    network: SD3,
    shape: SD3Config,
    schedule: dict[str, object],
    guidance: float,
    texts: list[tuple[Tensor, Tensor]],
    images: int,
    size: tuple[int, int],
    weights: bool,
    steps: int = 20,
) -> Calibration:
    """Of a float32 network, along trajectories of so many pictures of the texts in turn, guided where there are two pairs.

    @texts: as `read_texts` gives them. @size: of x. @weights: whether they are rounded, too.
    """
    device = processor()
    network.to(device)
    (text, pooled), *null = [tuple(each.to(device) for each in pair) for pair in texts]

    def evaluate_one(x: Tensor, t: float, which: int) -> Tensor:
        pairs = [(text[which : which + 1], pooled[which : which + 1]), *null]
        outputs = [network(x, x.new_full((1,), t), *pair) for pair in pairs]
        return outputs[-1] + guidance * (outputs[0] - outputs[-1])

    def evaluate(x: Tensor, t: float) -> Tensor:
        # One by one: a picture of 1024 x 1024 pixels has 4096 tokens, and texts may be of other lengths than no text.
        return torch.cat([evaluate_one(x[i : i + 1], t, i % len(text)) for i in range(images)])

    noise = initial_noise(images, shape.channels, *size).to(device)

    def draw_them(products: Sequence[Product | None], look: Look) -> None:
        draw(evaluate, noise, schedule, steps, products, look)

    found = measure(products_of(network), draw_them, weights, "--calibrate")
    network.cpu()
    return found


# ------------------------------------------------------------------------------------------------ the check


class Peer(nn.Module):
    """diffusers' network with the arguments of ours."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, t: Tensor, text: Tensor, pooled: Tensor) -> Tensor:
        return self.model(x, text, pooled, t).sample


def check_inputs(shape: SD3Config, size: tuple[int | None, int | None], tokens: int, whole: bool) -> Inputs:
    """@size: None for any. @whole: of the network's own size; else any will do, and small ones are quick."""
    generator = torch.Generator().manual_seed(0)

    def inputs(rows: int) -> tuple[Tensor, ...]:
        small = (min(side or math.inf, patches * shape.patch, shape.grid * shape.patch) for side, patches in zip(size, (4, 6)))
        height, width = size if whole else small
        if None in size:  # another for each number of rows, so that a size that is stuck shows
            width = min(3 + rows, shape.grid) * shape.patch
        return (
            torch.randn(rows, shape.channels, height, width, generator=generator),
            1000 * torch.rand(rows, generator=generator),
            torch.randn(rows, tokens, shape.text_width, generator=generator),
            torch.randn(rows, shape.pooled_width, generator=generator),
        )

    return inputs


# ------------------------------------------------------------------------------------------------ the program


def parse_arguments() -> argparse.Namespace:
    parser = folder_parser(__doc__, "transformer", ".pt, .pt2 or .txt", "bfloat16")
    parser.add_argument(
        "--size",
        type=open_sides,
        metavar="N",
        help="height and width of x, N or HxW, * for any that are multiples of the network's patches and that its table "
        "of positions covers (default: config.json's sample_size)",
    )
    add_flow(parser, None, f"{GUIDANCE_OF_3_5} for SD3.5, {GUIDANCE} for SD3")
    add_calibration(parser, texts=True)
    add_form(parser, parts=True, in_place=True)
    args = parser.parse_args()
    if args.condition is not None and args.calibrate is None:
        fail(f"--condition: is for --calibrate, got {args.condition} without")
    return args


def main() -> None:
    args = parse_arguments()
    form = form_of(args)
    folder = component(args.folder, "transformer")
    config = Config(folder / "config.json")
    shape = read_config(config)
    size = args.size or (shape.size, shape.size)
    most = shape.patch * shape.grid
    if any(side is not None and (side % shape.patch or side > most) for side in size):
        fail(f"--size: must be multiples of the network's patches of {shape.patch} up to {most}, got {size[0]} and {size[1]}")
    require_sizes(form, args.text_tokens, size)
    if args.guidance_scale is None:
        args.guidance_scale = GUIDANCE_OF_3_5 if shape.qk_norm else GUIDANCE
    values = {
        **flow_values(args, "sd3", STEPS, shape.channels, size, conditions(shape, args.text_tokens)),
        "width": shape.width,
        "depth": shape.depth,
        "heads": shape.heads,
        "patch_size": shape.patch,
        "mlp_ratio": 4.0,
        **latents(args.folder),
    }

    if isinstance(form, InPlace):
        require_place(args.output, args.weights)
        require_description(args.output)
        files = files_of(args.weights or folder, args.variant)
        tensors = headers(files)
    if args.calibrate and args.condition is not None:
        texts = read_texts(args.condition, shape, args.text_tokens)
        if args.calibrate < (count := len(texts[0][0])):
            say(f"{args.condition}: the first {args.calibrate} of {count} texts are drawn, --calibrate {count} draws all")
    elif args.calibrate:
        texts = random_texts(shape, args.text_tokens, args.calibrate)
        say("calibrating with random numbers for texts; --condition FILE of encode_prompt.py is nearer to use")
    network = None
    if args.calibrate or not isinstance(form, InPlace):
        network = read_network(lambda: SD3(shape), folder, args, "pos_embed.proj.weight")
    if args.calibrate:
        of_x = tuple(side or shape.size for side in size)
        rounded = isinstance(form, TorchScript)  # others have no place for weights
        found = calibrate(network, shape, values, args.guidance_scale, texts, args.calibrate, of_x, rounded)
        values |= found.keys()
    if isinstance(form, InPlace):
        with torch.device("meta"):
            described = SD3(shape)
        describe(args.output, described, tensors, files, values, args.dtype)
        return
    inputs = check_inputs(shape, size, args.text_tokens if form.whole_size else 20, form.whole_size)
    peer = in_diffusers(config, network)
    write(args.output, network, values, inputs, args.dtype, Peer(peer) if peer is not None else None, form)


if __name__ == "__main__":
    main()
