"""Gives a DiT what engines need that compute its linear layers in 8 bits (e4m3): writes a copy of MODEL as OUTPUT.

MODEL is a TorchScript file that export_dit.py or ../training/export.py wrote. The copy says besides how large the
inputs of the layers become, and has their weights rounded to 8 bits so that the errors cancel out; all else in it is
the same. OUTPUT may be MODEL. "export_dit.py --calibrate" does this while it exports; for networks of Stable Diffusion 3
"export_sd3.py --calibrate" does, which alone knows texts for them.

The layers are qkv, fc1 and fc2 of every block, and proj where that is faster: of networks with heads of 64 or 72
channels and up to 256 tokens, whose attention rounds for it. Others stay as they are, and so do those that --keep
names. With "--keep proj" pictures are a little nearer to those of more bits, and take a little longer.

The weights are rounded as in GPTQ (Frantar et al. 2022, arXiv 2210.17323): one input of a layer after another, and what
rounding it changes in the layer's outputs is made up for by the weights of the inputs that are still to come. How the
inputs go together is seen while the network draws pictures, on the GPU where there is one. It needs memory for the
weights in float32 and as much again.
"""

import argparse
import bisect
import ctypes
import dataclasses
import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import packages

packages.require(__file__, "torch")
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402

from common import (  # noqa: E402
    INPUT_KEYS,
    TOLERANCE,
    fail,
    fill,
    first_line,
    largest_difference,
    make_canonical,
    outputs,
    replacing,
    require_place,
    reserve,
    say,
)
from dit import DiT, DiTConfig, random_inputs  # noqa: E402
from options import finite_real, positive  # noqa: E402

LAYERS = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}

LARGEST = 448.0  # number of e4m3
ROWS = 1024  # of a layer's inputs that are looked at when it is computed, at most
COLUMNS = 128  # of a weight that are rounded before the others are told


@dataclasses.dataclass(frozen=True)
class Product:
    """What engines compute as one: the weights [out, in] below one another times an input."""

    weights: tuple[Tensor, ...]
    seen: Tensor  # the one of them by whose product the input is known


Blocks = Sequence[Sequence[Product | None]]  # of a network, in the engine's order; None stays as it is
Look = Callable[[int, int, Tensor], None]  # is told the number of a product, that of a step, and the input [rows, in]


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What is known of each product, block by block; 0 for what stays as it is."""

    largest_inputs: list[float] = dataclasses.field(default_factory=list)  # absolute values
    weight_scales: list[float] = dataclasses.field(default_factory=list)  # float32; a weight is its code times this
    weights: bytes = b""  # codes of e4m3 of each weight [out, in] whose scale is not 0, row by row

    def keys(self) -> dict[str, str | bytes]:
        """The `tstitch/` keys and their values, for `common.metadata`; without those that are empty."""
        values = {
            "e4m3_inputs": "\n".join(f"{value:.6g}" for value in self.largest_inputs),
            "e4m3_weight_scales": "\n".join(f"{value:.9g}" for value in self.weight_scales),
            "e4m3_weights": self.weights,
        }
        return {key: value for key, value in values.items() if value}


# ------------------------------------------------------------------------------------------------ trajectories


def alphas_cumprod(schedule: Mapping[str, object]) -> Tensor:
    """Of the keys of a file's noise schedule; float64 [num_train_timesteps]."""
    kind, count = schedule["noise_schedule"], int(schedule.get("num_train_timesteps", 0))
    if kind == "alphas_cumprod":
        return torch.tensor([float(line) for line in str(schedule[kind]).splitlines()], dtype=torch.float64)
    if kind == "cosine":
        bar = torch.cos((torch.arange(count + 1, dtype=torch.float64) / count + 0.008) / 1.008 * math.pi / 2) ** 2
        return (1 - (1 - bar[1:] / bar[:-1]).clamp(max=0.999)).cumprod(0)
    root = 0.5 if kind == "scaled_linear" else 1.0
    ends = float(schedule["beta_start"]) ** root, float(schedule["beta_end"]) ** root
    return (1 - torch.linspace(*ends, count, dtype=torch.float64) ** (1 / root)).cumprod(0)


def trajectory(schedule: Mapping[str, object], steps: int) -> list[tuple[float, float, float]]:
    """Timestep, alpha and sigma of x = alpha x_0 + sigma noise, from noise to picture."""
    if schedule["noise_schedule"] == "flow":
        # Esser et al. 2024, Eq. 23
        shift = float(schedule.get("flow_shift", 1))
        sigmas = [shift * s / (1 + (shift - 1) * s) for s in torch.linspace(1, 0, steps + 1)[:-1].tolist()]
        return [(1000 * s, 1 - s, s) for s in sigmas]
    table = alphas_cumprod(schedule)
    times = torch.linspace(len(table) - 1, 0, steps).round().long().tolist()
    return [(t, table[t].item() ** 0.5, (1 - table[t].item()) ** 0.5) for t in times]


def slow_in_8_bits(shape: DiTConfig) -> list[str]:
    """Which of LAYERS 8 bits would not make faster: proj, where its inputs are rounded in a pass of their own."""
    return [] if shape.width // shape.heads in (64, 72) and (shape.size // shape.patch) ** 2 <= 256 else ["proj"]


def products_of(network: DiT, keep: Collection[str]) -> Blocks:
    """LAYERS of each block, without those to @keep."""

    def product(block: nn.Module, name: str) -> Product | None:
        weight = block.get_submodule(LAYERS[name]).weight
        return None if name in keep else Product((weight,), weight)

    return [[product(block, name) for name in LAYERS] for block in network.blocks]


class WatchProducts(TorchFunctionMode):
    """Shows the input [..., in] and the weight of each F.linear before it is computed."""

    def __init__(self, look: Callable[[Tensor, Tensor], None]):
        super().__init__()
        self.look = look

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        if function is F.linear:
            self.look(*arguments[:2])
        return function(*arguments, **(keywords or {}))


def draw(
    evaluate: Callable[[Tensor, float], Tensor],
    x: Tensor,
    schedule: Mapping[str, object],
    steps: int,
    products: Sequence[Product | None],
    look: Look,
) -> None:
    """DDIM goes from the noise @x to pictures. @evaluate: what the network gives for x at a timestep, after guidance."""
    numbers = {id(product.seen): number for number, product in enumerate(products) if product is not None}
    step = 0

    def look_at(x: Tensor, weight: Tensor) -> None:
        if id(weight) in numbers:
            look(numbers[id(weight)], step, x.flatten(0, -2))

    points = trajectory(schedule, steps)
    for step, (t, alpha, sigma) in enumerate(points):
        say(f"calibrating: step {step + 1} of {steps} on {x.device.type}")
        with WatchProducts(look_at):
            output = evaluate(x, t)
        if schedule["noise_schedule"] == "flow":  # eps - x_0
            picture, eps = x - sigma * output, x + alpha * output
        else:
            picture, eps = (x - sigma * output) / alpha, output
        _, alpha, sigma = points[step + 1] if step + 1 < steps else (0, 1.0, 0.0)
        x = alpha * picture + sigma * eps


def initial_noise(*shape: int) -> Tensor:
    """Of so many pictures, the same in every run."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def some_rows(x: Tensor, step: int) -> Tensor:
    """At most ROWS of x [rows, in], evenly spread; in each step others.

    The stride is odd, because pictures have an even number of tokens: an even one would see the same few places of all.
    """
    stride = -(-len(x) // ROWS) | 1
    return x[step % stride :: stride]


# ------------------------------------------------------------------------------------------------ rounding


def nearest(values: Tensor) -> Tensor:
    """As numbers of e4m3, which has no infinity: what is too large becomes the largest."""
    return values.clamp(-LARGEST, LARGEST).float().to(torch.float8_e4m3fn)


def inverse_root(hessian: Tensor) -> Tensor | None:
    """Upper triangular U [in, in] with U^T U the inverse of the Hessian, float64; None where there is none.

    The Hessian of few rows, or of inputs that depend on each other, has no inverse, and nearly having none is as bad:
    something is added to its diagonal, a hundredth of the mean as GPTQ does, or more if it must be.
    """
    for damping in (0.01, 0.1, 1.0):
        damped = hessian.clone()
        damped.diagonal().add_(damping * hessian.diagonal().mean())
        # From the last row and column to the first: the factor of H is upper triangular then, and its inverse is U.
        lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if failed:
            continue
        identity = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
        root = torch.linalg.solve_triangular(lower, identity, upper=False).flip(0, 1)
        if root.isfinite().all():
            return root
    return None


def compensated(weight: Tensor, scale: float, hessian: Tensor) -> Tensor | None:
    """Numbers of e4m3 [out, in] that times @scale compute what @weight computes; None where the Hessian does not help.

    @weight [out, in], @hessian [in, in], both float64 on one device.
    """
    # The inputs that weigh most come first, while there are many others to make up for them.
    order = hessian.diagonal().argsort(descending=True, stable=True)
    root = inverse_root(hessian[order][:, order])
    if root is None:
        return None
    # The largest weight stays the largest number, whatever the others have handed to it.
    largest = (weight.abs() == weight.abs().max())[:, order]
    left = weight[:, order] / scale
    codes = torch.empty_like(left, dtype=torch.uint8)
    for begin in range(0, left.shape[1], COLUMNS):
        end = min(begin + COLUMNS, left.shape[1])
        block, errors = left[:, begin:end].T.contiguous(), []  # whose rows are together in memory
        factors = root[begin:end, begin:end]
        for i, column in enumerate(block):
            near = nearest(torch.where(largest[:, begin + i], column.sign() * LARGEST, column))
            codes[:, begin + i] = near.view(torch.uint8)
            errors.append((column - near.double()) / factors[i, i])
            block[i + 1 :].addr_(factors[i, i + 1 :], errors[-1], alpha=-1)
        left[:, end:] -= torch.stack(errors, dim=1) @ root[begin:end, end:]
    return codes[:, order.argsort()].view(torch.float8_e4m3fn)


def output_error(error: Tensor, weight: Tensor, hessian: Tensor) -> float:
    """RMS of what an error of the weight makes of the inputs, relative to that of the weight's own outputs."""
    first, second = (((w @ hessian) * w).sum().item() for w in (error, weight))
    if second <= 0:
        return 0.0
    return math.sqrt(max(first, 0.0) / second) if math.isfinite(second) else math.nan


def round_weight(weight: Tensor, hessian: Tensor) -> tuple[Tensor, float, float, float]:
    """In e4m3: the codes uint8 [out, in], the scale, the error of the outputs, and that of rounding to the nearest.

    @weight float32 [out, in]. @hessian [in, in]: the mean of x x^T over inputs x of the layer.
    """
    scale = torch.tensor(weight.abs().max().item() / LARGEST, dtype=torch.float32).item() or 1.0
    weight, hessian = weight.double(), hessian.double()
    best = nearest(weight / scale)
    plain = error = output_error(best.double() * scale - weight, weight, hessian)
    other = compensated(weight, scale, hessian)
    if other is not None and (less := output_error(other.double() * scale - weight, weight, hessian)) < error:
        best, error = other, less
    return best.view(torch.uint8), scale, error, plain


def processor() -> torch.device:
    """Where networks draw."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@torch.no_grad()
def measure(blocks: Blocks, draw_them: Callable[[Sequence[Product | None], Look], None], weights: bool, place: str) -> Calibration:
    """Of products whose weights are float32, on one device.

    @draw_them: lets the network draw pictures and shows what the products see. @weights: whether they are rounded, too.
    @place: how messages begin.
    """
    products = [product for block in blocks for product in block]
    chosen = {number: product for number, product in enumerate(products) if product is not None}
    device = next(iter(chosen.values())).seen.device
    largest = {number: torch.zeros((), device=device) for number in chosen}
    # float32, because those of DiT-XL/2 together are as large as its weights.
    hessians = {n: torch.zeros(each.seen.shape[1], each.seen.shape[1], device=device) for n, each in chosen.items() if weights}
    rows = dict.fromkeys(chosen, 0)

    def look(number: int, step: int, x: Tensor) -> None:
        largest[number] = torch.maximum(largest[number], x.abs().max())
        if weights:
            some = some_rows(x, step)
            hessians[number].addmm_(some.T, some)
            rows[number] += len(some)

    draw_them(products, look)
    found = {number: value.item() for number, value in largest.items()}
    if wrong := [value for value in found.values() if not math.isfinite(value)]:
        fail(f"{place}: inputs must be finite, got {wrong[0]}; a smaller --guidance-scale may help")
    for number, hessian in hessians.items():
        if not hessian.isfinite().all():
            fail(f"{place}: inputs must be finite, and so must be their squares, got {found[number]:.3g}")
    codes, scales, errors = [], {}, []
    ends = list(itertools.accumulate(map(len, blocks)))
    said = -1
    for number in hessians:
        if (block := bisect.bisect(ends, number)) != said:
            said = block
            say(f"rounding: block {block + 1} of {len(blocks)} on {device.type}")
        weight = torch.cat(chosen[number].weights)
        code, scales[number], *both = round_weight(weight, hessians[number] / rows[number])
        hessians[number] = torch.empty(0)
        host = code.cpu().contiguous()
        codes.append(ctypes.string_at(host.data_ptr(), host.numel()))  # numpy may not be there
        errors.append(both)
    if weights:
        ours, plain = (sum(each) / len(errors) for each in zip(*errors, strict=True))
        say(f"rounded: outputs of a layer are {ours:.2%} off in the mean, rounded to the nearest {plain:.2%}")

    def of_all(values: Mapping[int, float]) -> list[float]:
        return [values.get(number, 0.0) for number in range(len(products))]

    return Calibration(of_all(found), of_all(scales) if weights else [], b"".join(codes))


@torch.no_grad()
def calibrate(
    network: DiT,
    shape: DiTConfig,
    schedule: Mapping[str, object],
    guidance: float,
    images: int,
    steps: int = 20,
    weights: bool = True,
    keep: Collection[str] = (),
    place: str = "--calibrate",
) -> Calibration:
    """Of a float32 DiT, along trajectories of so many pictures of classes 0, 1, 2 ..., guided where it has a null class.

    @weights: whether they are rounded, too. @keep: those of LAYERS that stay as they are, beside what is slow.
    @place: how messages begin.
    """
    keep = {*keep, *slow_in_8_bits(shape)}
    if (prediction := schedule.get("prediction", "epsilon")) not in ("epsilon", "flow"):
        fail(f"{place}: must be for a network that predicts epsilon or flow, got {prediction}")
    if not shape.num_classes:
        fail(f"{place}: must be for a network with classes, which the native engine runs, got none")
    if not set(LAYERS) - keep:
        fail(f"{place}: must leave one of {', '.join(LAYERS)} to 8 bits, got {', '.join(sorted(keep))} to keep")
    device = processor()
    network.to(device)
    labels = torch.arange(images, device=device) % shape.num_classes
    halves = 1 if shape.null_label is None else 2
    if halves == 2:
        labels = torch.cat([labels, torch.full_like(labels, shape.null_label)])

    def evaluate(x: Tensor, t: float) -> Tensor:
        time = torch.full_like(labels, t, dtype=torch.float32 if shape.flow else torch.int64)
        outputs = network(torch.cat([x] * halves), time, labels)[:, : shape.channels].chunk(halves)
        return outputs[-1] + guidance * (outputs[0] - outputs[-1]) if halves == 2 else outputs[0]

    noise = initial_noise(images, shape.channels, shape.size, shape.size).to(device)

    def draw_them(products: Sequence[Product | None], look: Look) -> None:
        draw(evaluate, noise, schedule, steps, products, look)

    found = measure(products_of(network, keep), draw_them, weights, place)
    network.cpu()
    return found


# ------------------------------------------------------------------------------------------------ files


class Metadata:
    """The `tstitch/` keys of a TorchScript file that are text; every failure names the file, the key and the value."""

    def __init__(self, path: Path):
        self.path = path
        if not path.is_file():
            fail(f"{path}: must be a TorchScript file, got {'a folder' if path.is_dir() else 'none'}")
        try:
            reader = torch._C.PyTorchFileReader(str(path))
            records, folder = reader.get_all_records(), "extra/tstitch/"
            names = [name for name in records if name.startswith(folder) and name != folder + "e4m3_weights"]
            texts = {name: reader.get_record(name) for name in names}
        except RuntimeError as error:
            fail(f"{path}: must be a TorchScript file, got '{first_line(error)}'")
        if "constants.pkl" not in records:
            package = "archive_format" in records
            fail(f"{path}: must be a TorchScript file, got {'a compiled package' if package else 'another archive'}")
        self.values = {name.removeprefix(folder): text.decode(errors="replace") for name, text in texts.items()}

    def refuse(self, key: str, rule: str, got: str) -> None:
        fail(f"{self.path}: tstitch/{key} {rule}, got {got}")

    def only(self, key: str, *allowed: str) -> str:
        value = self.values.get(key)
        if value not in allowed:
            words = " or ".join(filter(None, (", ".join(allowed[:-1]), allowed[-1])))
            self.refuse(key, f"must be {words}", "nothing" if value is None else f"'{value}'")
        return value

    def integer(self, key: str) -> int:
        value = self.values.get(key, "")
        if not value.isdecimal() or not 1 <= int(value) <= 1_000_000:
            self.refuse(key, "must be an integer in [1, 1000000]", f"'{value}'")
        return int(value)

    def real(self, key: str, otherwise: str = "") -> float:
        text = self.values.get(key, otherwise)
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            self.refuse(key, "must be a number", f"'{text}'")
        return value


def read_shape(file: Metadata) -> DiTConfig:
    """What the metadata tells of it."""
    file.only("format", "1")
    file.only("architecture", "dit", "dit_diffusers", "sit")
    if (whole := file.values.get("input_shape")) is not None:
        sizes = dict(zip(INPUT_KEYS, whole.split(" ")))
        if len(whole.split(" ")) != 3 or "*" in whole:
            file.refuse("input_shape", "must be the channels, height and width of x", f"'{whole}'")
        for key, text in sizes.items():
            if file.values.setdefault(key, text) != text:
                file.refuse(key, f"must be what tstitch/input_shape says, '{whole}'", f"'{file.values[key]}'")
    size, patch = file.integer("input_height"), file.integer("patch_size")
    width, heads, ratio = file.integer("width"), file.integer("heads"), file.real("mlp_ratio")
    classes = file.integer("num_classes")
    file.only("input_width", str(size))
    null = file.values.get("null_class", "none")
    if null != "none" and not (null.isdecimal() and int(null) <= classes):
        file.refuse("null_class", f"must be in [0, {classes}] or none", f"'{null}'")
    if size % patch:
        file.refuse("input_height", f"must be a multiple of patch_size {patch}", str(size))
    if width % 4 or width % heads:
        file.refuse("width", f"must be a multiple of 4 and of heads {heads}", str(width))
    if not 1 <= width * ratio <= 1_000_000:
        file.refuse("mlp_ratio", f"times the width {width} must be in [1, 1000000]", str(ratio))
    return DiTConfig(
        channels=file.integer("input_channels"),
        size=size,
        patch=patch,
        width=width,
        depth=file.integer("depth"),
        heads=heads,
        mlp_ratio=ratio,
        num_classes=classes,
        learned_variance=file.values.get("variance") == "learned_range",
        null_class=None if null == "none" else int(null),
    )


def read_schedule(file: Metadata) -> dict[str, object]:
    """The noise schedule and prediction type, for `trajectory`."""
    kind = file.only("noise_schedule", "linear", "scaled_linear", "cosine", "flow", "alphas_cumprod")
    if kind == "alphas_cumprod":
        values = file.values.get(kind, "").splitlines()
        try:
            sensible = len(values) > 1 and all(0 < float(line) <= 1 for line in values)
        except ValueError:
            sensible = False
        if not sensible:
            file.refuse(kind, "must be numbers in (0, 1], one a line", f"{len(values)} lines")
    else:
        file.integer("num_train_timesteps")
    for key in ("beta_start", "beta_end") if "linear" in kind else ():
        if not 0 < file.real(key) < 1:
            file.refuse(key, "must be in (0, 1)", file.values[key])
    prediction = file.only("prediction", "epsilon", "flow")
    if (kind == "flow") != (prediction == "flow"):
        file.refuse("noise_schedule", "must be flow where the prediction is, and only there", f"'{kind}'")
    return dict(file.values)


def open_network(file: Metadata, shape: DiTConfig) -> tuple[DiT, DiTConfig]:
    """As float32, after a check that the file's own network computes the same; its shape with the file's constants."""
    try:
        module = torch.jit.load(file.path, map_location="cpu").eval().float()
    except RuntimeError as error:
        fail(f"{file.path}: must be a TorchScript file, got '{first_line(error)}'")
    # Constants that older files lack; the first block's stand for all.
    embedder = getattr(module, "t_embedder", None)
    block = dict(module.blocks.named_children()).get("0") if hasattr(module, "blocks") else None
    shape = dataclasses.replace(
        shape,
        frequency_steps=getattr(embedder, "frequency_steps", DiTConfig.frequency_steps),
        flow=getattr(embedder, "flow", DiTConfig.flow),
        mlp_norm_eps=getattr(getattr(block, "norm2", None), "eps", DiTConfig.mlp_norm_eps),
    )
    if (prediction := file.values["prediction"]) != (own := "flow" if shape.flow else "epsilon"):
        file.refuse("prediction", f"must be {own} as the network's", f"'{prediction}'")
    with torch.device("meta"):
        network = DiT(shape).eval()
    fill(network, module.state_dict(), file.path)
    arguments = random_inputs(shape)(1)
    difference = largest_difference([(1, module)], torch.float32, "cpu", [(arguments, outputs(network, arguments))])
    if not difference <= TOLERANCE["float32"]:
        rule = "must compute what a DiT of its weights computes"
        fail(f"{file.path}: {rule}, got {difference:.2e} of the output's RMS beside it")
    return network, shape


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a TorchScript file of a DiT or SiT")
    parser.add_argument("output", type=Path, help="the .pt file to write")
    parser.add_argument("--images", type=positive, default=16, help="how many are drawn (default: %(default)s)")
    parser.add_argument(
        "--guidance-scale", type=finite_real, help="with which they are drawn (default: what the file recommends)"
    )
    parser.add_argument(
        "--keep",
        action="append",
        choices=[*LAYERS],
        default=[],
        metavar="LAYER",
        help="of qkv, proj, fc1 and fc2, one that stays as it is; again for another one",
    )
    args = parser.parse_args()
    require_place(args.output)
    return args


def main() -> None:
    args = parse_arguments()
    file = Metadata(args.model)
    shape, schedule = read_shape(file), read_schedule(file)
    guidance = file.real("guidance_scale", "1") if args.guidance_scale is None else args.guidance_scale
    say(f"reading {args.model}")
    network, shape = open_network(file, shape)
    found = calibrate(network, shape, schedule, guidance, args.images, keep=args.keep, place=str(args.model))
    with replacing(args.output) as temporary:
        reserve(temporary, args.model.stat().st_size + len(found.weights))
        make_canonical(args.model, temporary, found.keys())
        size = temporary.stat().st_size
    layers = sum(scale > 0 for scale in found.weight_scales)
    print(f"{args.output}: {size:,} bytes, {layers} layers in 8 bits beside the others")


if __name__ == "__main__":
    main()
