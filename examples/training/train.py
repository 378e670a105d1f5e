"""Trains a class-conditional DiT on CIFAR-10.

A run has a total budget, of training time (--total-seconds) or of pictures (--total-images). The learning rate follows
the fraction of it that is used up: it rises over the first --warmup, stays, and from --decay-from on falls linearly to
zero. A run may be cut into pieces with --seconds and taken up again with --resume: checkpoint.pt in the output folder
holds all there is to know. A second checkpoint, before_decay.pt, is left where the learning rate begins to fall;
resumed with a larger budget, it continues the run as if the budget had been that large from the start.
"""

import argparse
import copy
import dataclasses
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "export"))
import packages  # noqa: E402

packages.require(__file__, "numpy", "PIL", "torch")
import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import diffusion  # noqa: E402
from cifar10 import load_cifar10  # noqa: E402
from diffusion import LinearSchedule, ddim  # noqa: E402
from muon import Muon  # noqa: E402
from common import replacing  # noqa: E402
from dit import DiT, DiTConfig  # noqa: E402


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = " (default: %(default)s)"
    parser.add_argument(
        "--data", type=Path, default=Path(".data/cifar10_jpeg.npz"), help="the data set" + default
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and sample grids")
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        "--resume",
        type=Path,
        metavar="CHECKPOINT",
        help="continue this run exactly; its options hold unless given anew",
    )
    start.add_argument(
        "--init",
        type=Path,
        metavar="FILE",
        help="start a new run from the weights of a checkpoint or of an exported .pt",
    )

    network = parser.add_argument_group("network")
    network.add_argument("--width", type=int, default=256, help="channels of a token" + default)
    network.add_argument("--depth", type=int, default=12, help="number of blocks" + default)
    network.add_argument("--heads", type=int, default=4, help="attention heads" + default)
    network.add_argument("--patch", type=int, default=2, help="side of a patch in pixels" + default)

    budget = parser.add_argument_group("budget and schedule")
    total = budget.add_mutually_exclusive_group()
    total.add_argument(
        "--total-seconds", type=float, help="budget of the whole run in seconds of training, compilation not counted"
    )
    total.add_argument("--total-images", type=int, help="budget of the whole run in pictures")
    budget.add_argument(
        "--seconds",
        type=float,
        default=float("inf"),
        help="end this piece after so many seconds, compilation not counted" + default,
    )
    budget.add_argument(
        "--warmup", type=float, default=0.02, help="fraction of the budget over which the learning rate rises" + default
    )
    budget.add_argument(
        "--decay-from", type=float, default=0.55, help="fraction of the budget after which it falls to zero" + default
    )

    optimizer = parser.add_argument_group("optimisation")
    optimizer.add_argument("--batch", type=int, default=512, help="pictures a step" + default)
    optimizer.add_argument(
        "--muon-lr", type=float, default=4e-3, help="learning rate of the blocks' matrices" + default
    )
    optimizer.add_argument("--adam-lr", type=float, default=2e-3, help="learning rate of everything else" + default)
    optimizer.add_argument(
        "--ema", type=float, default=0.9995, help="decay of the moving average of the weights" + default
    )
    optimizer.add_argument("--label-dropout", type=float, default=0.1, help="how often the class is withheld" + default)
    optimizer.add_argument("--seed", type=int, default=0, help="seed of weights and data order" + default)

    output = parser.add_argument_group("output")
    output.add_argument("--log-seconds", type=float, default=10, help="interval of progress lines" + default)
    output.add_argument(
        "--sample-seconds", type=float, default=120, help="interval of sample grids and test errors" + default
    )
    output.add_argument("--checkpoint-seconds", type=float, default=60, help="interval of checkpoints" + default)
    args = parser.parse_args()
    if args.resume:
        saved = torch.load(args.resume, map_location="cpu", weights_only=True, mmap=True)["arguments"]
        if args.total_seconds or args.total_images:
            saved = saved | {"total_seconds": None, "total_images": None}
        parser.set_defaults(**saved)
        args = parser.parse_args()
    for name in ("total_seconds", "total_images", "seconds", "batch", "muon_lr", "adam_lr"):
        value = getattr(args, name)
        if value is not None and not value > 0:
            parser.error(f"--{name.replace('_', '-')}: must be above 0, got {value}")
    for name in ("warmup", "decay_from", "ema", "label_dropout"):
        if not 0 <= getattr(args, name) <= 1:
            parser.error(f"--{name.replace('_', '-')}: must be in [0, 1], got {getattr(args, name)}")
    if args.total_seconds is None and args.total_images is None:
        parser.error("a new run needs a budget: --total-seconds or --total-images")
    return args


# What a resumed run takes over from the one it continues.
SAVED_ARGUMENTS = (
    *("width", "depth", "heads", "patch"),
    *("total_seconds", "total_images", "warmup", "decay_from"),
    *("batch", "muon_lr", "adam_lr", "ema", "label_dropout"),
)


@dataclasses.dataclass
class Progress:
    """Where a run stands. `fraction` of the budget decides the learning rate."""

    total_seconds: float | None
    total_images: int | None
    step: int = 0
    images_seen: int = 0
    seconds: float = 0.0  # of training, over all pieces

    def fraction(self) -> float:
        used = self.seconds / self.total_seconds if self.total_seconds else self.images_seen / self.total_images
        return min(1.0, used)


def learning_rate_factor(fraction: float, warmup: float, decay_from: float) -> float:
    """Trapezoid: 0 to 1 over [0, warmup], 1, then to 0 over [decay_from, 1]."""
    rise = fraction / warmup if warmup > 0 else 1.0
    fall = (1 - fraction) / (1 - decay_from) if decay_from < 1 else 1.0
    return max(0.0, min(1.0, rise, fall))


class SpikeGuard:
    """Tells which steps to skip: a gradient norm that is not finite, or over four times its running mean.

    Lives on the device, so that the training loop never waits for an answer.
    """

    LIMIT = 4.0
    SETTLING_STEPS = 100  # the norm falls steeply at first, its mean lags behind

    def __init__(self, device: torch.device):
        self.mean = torch.zeros((), device=device)
        self.steps = torch.zeros((), device=device)
        self.skipped = torch.zeros((), device=device)

    def __call__(self, norm: Tensor) -> Tensor:
        """norm [] -> whether to skip, bool []."""
        finite = norm.isfinite()
        skip = ~finite | ((norm > self.LIMIT * self.mean) & (self.steps > self.SETTLING_STEPS))
        # A spike enters the mean as twice the mean: should the norm really have risen, the guard soon follows.
        seen = torch.where(self.steps > self.SETTLING_STEPS, norm.minimum(2 * self.mean), norm)
        rate = (1 / (self.steps + 1)).clamp_min(0.02)
        self.mean = torch.where(finite, self.mean + rate * (seen - self.mean), self.mean)
        self.steps = self.steps + finite
        self.skipped = self.skipped + skip
        return skip

    def state_dict(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "steps": self.steps, "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.mean, self.steps, self.skipped = (state[key].to(self.mean.device) for key in ("mean", "steps", "skipped"))


def make_optimizers(network: DiT, args: argparse.Namespace) -> tuple[Muon, torch.optim.AdamW]:
    """Muon for the matrices inside the blocks, AdamW for embeddings, modulations, biases and the last layer."""
    muon_weights = []
    for block in network.blocks:
        muon_weights += [
            (block.attn.qkv.weight, 3),
            (block.attn.proj.weight, 1),
            (block.mlp.fc1.weight, 1),
            (block.mlp.fc2.weight, 1),
        ]
    taken = {id(parameter) for parameter, _ in muon_weights}
    others = [parameter for parameter in network.parameters() if id(parameter) not in taken]
    adam = torch.optim.AdamW(others, lr=args.adam_lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    return Muon(muon_weights, lr=args.muon_lr), adam


class Trainer:
    def __init__(
        self, args: argparse.Namespace, pictures: Tensor, labels: Tensor, class_names: list[str], device: torch.device
    ):
        self.args = args
        self.device = device
        self.pictures = pictures.to(device)  # uint8: 154 MB on the GPU, and no data loader
        self.labels = labels.to(device)
        self.class_names = class_names
        self.null_class = len(class_names)

        self.config = DiTConfig(
            width=args.width, depth=args.depth, heads=args.heads, patch=args.patch, num_classes=len(class_names)
        )
        torch.manual_seed(args.seed)
        self.network = DiT(self.config).to(device)
        self.images_before = 0  # seen by the run that --init continues
        if args.init:
            weights, self.images_before = load_weights(args.init)
            self.network.load_state_dict(weights)
        self.ema = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.schedule = LinearSchedule().to(device)
        self.muon, self.adam = make_optimizers(self.network, args)
        self.guard = SpikeGuard(device)
        self.progress = Progress(args.total_seconds, args.total_images)
        if args.resume:
            self.load(torch.load(args.resume, map_location="cpu", weights_only=True))
        self.compiled_losses = torch.compile(self.losses) if device.type == "cuda" else self.losses

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16):
            return self.network(x, t, y)

    def ema_forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16):
            return self.ema(x, t, y)

    def losses(self, x_0: Tensor, t: Tensor, y: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        loss, mse = self.schedule.losses(self.forward, x_0, t, y, noise)
        return loss.mean(), mse.mean()

    def batch(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Pictures x_0 [n, 3, 32, 32] in [-1, 1], half of them mirrored; timesteps, labels, noise."""
        n, device = self.args.batch, self.device
        indices = torch.randint(len(self.pictures), (n,), device=device)
        x_0 = self.pictures[indices].float() / 127.5 - 1
        x_0 = torch.where(torch.rand(n, 1, 1, 1, device=device) < 0.5, x_0.flip(3), x_0)
        y = self.labels[indices].masked_fill_(torch.rand(n, device=device) < self.args.label_dropout, self.null_class)
        return x_0, self.schedule.draw_timesteps(n), y, torch.randn_like(x_0)

    def step(self) -> tuple[Tensor, Tensor]:
        """One step of training; returns loss and epsilon-MSE, [] on the device."""
        factor = learning_rate_factor(self.progress.fraction(), self.args.warmup, self.args.decay_from)
        self.muon.lr = self.args.muon_lr * factor
        self.adam.param_groups[0]["lr"] = self.args.adam_lr * factor

        loss, mse = self.compiled_losses(*self.batch())
        loss.backward()
        skip = self.guard(nn.utils.get_total_norm([p.grad for p in self.network.parameters()]))
        self.muon.step(skip)
        self.adam.found_inf = skip.float()  # how a GradScaler asks the fused AdamW to leave a step out
        self.adam.step()
        self.network.zero_grad(set_to_none=True)

        self.progress.step += 1
        self.progress.images_seen += self.args.batch
        # An average over fewer steps than its horizon would hold on to the initial weights.
        decay = min(self.args.ema, (1 + self.progress.step) / (10 + self.progress.step))
        torch._foreach_lerp_(list(self.ema.parameters()), list(self.network.parameters()), 1 - decay)
        return loss.detach(), mse.detach()

    @torch.no_grad()
    def test_error(self, pictures: Tensor, labels: Tensor) -> float:
        """Epsilon-MSE of the averaged weights: timesteps evenly spread, the same noise every time."""
        n = len(pictures)
        noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0)).to(self.device)
        x_0 = pictures.to(self.device).float() / 127.5 - 1
        t = torch.linspace(0, diffusion.NUM_TRAIN_TIMESTEPS - 1, n, device=self.device).long()
        _, mse = self.schedule.losses(self.ema_forward, x_0, t, labels.to(self.device), noise)
        return mse.mean().item()

    def write_samples(self, path: Path, columns: int = 8) -> None:
        """A grid of DDIM samples of the averaged weights, one class a row, from the same noise every time."""
        classes = torch.arange(len(self.class_names), device=self.device).repeat_interleave(columns)
        noise = torch.randn(
            len(classes), 3, self.config.size, self.config.size, generator=torch.Generator().manual_seed(0)
        )
        x_0 = ddim(self.ema_forward, self.schedule, noise.to(self.device), classes, self.null_class)
        write_grid(path, x_0, columns)

    def checkpoint(self) -> dict:
        return {
            "config": dataclasses.asdict(self.config),
            "class_names": self.class_names,
            "noise_schedule": {
                "num_train_timesteps": diffusion.NUM_TRAIN_TIMESTEPS,
                "beta_start": diffusion.BETA_START,
                "beta_end": diffusion.BETA_END,
            },
            "images_seen": self.images_before + self.progress.images_seen,
            "raw": self.network.state_dict(),
            "ema": self.ema.state_dict(),
            "muon": self.muon.state_dict(),
            "adam": self.adam.state_dict(),
            "guard": self.guard.state_dict(),
            "progress": {name: getattr(self.progress, name) for name in ("step", "images_seen", "seconds")},
            "arguments": {name: getattr(self.args, name) for name in SAVED_ARGUMENTS},
            "cpu_rng": torch.get_rng_state(),
            "device_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else torch.empty(0),
        }

    def load(self, checkpoint: dict) -> None:
        self.network.load_state_dict(checkpoint["raw"])
        self.ema.load_state_dict(checkpoint["ema"])
        self.muon.load_state_dict(checkpoint["muon"])
        self.adam.load_state_dict(checkpoint["adam"])
        self.guard.load_state_dict(checkpoint["guard"])
        for name, value in checkpoint["progress"].items():
            setattr(self.progress, name, value)
        self.images_before = checkpoint["images_seen"] - self.progress.images_seen
        torch.set_rng_state(checkpoint["cpu_rng"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(checkpoint["device_rng"], self.device)


def load_weights(path: Path) -> tuple[dict[str, Tensor], int]:
    """Weights, float32, and pictures seen, from a checkpoint of this program or from a file that export.py wrote."""
    try:
        extra = {"tstitch/images_seen": ""}
        weights = torch.jit.load(path, map_location="cpu", _extra_files=extra).state_dict()
        images_seen = int(extra["tstitch/images_seen"] or 0)
    except RuntimeError:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        weights, images_seen = checkpoint["raw"], checkpoint["images_seen"]
    return {name: weight.float() for name, weight in weights.items()}, images_seen


def write_grid(path: Path, pictures: Tensor, columns: int) -> None:
    """pictures [rows * columns, 3, h, w] in [-1, 1] -> one PNG."""
    levels = ((pictures.clamp(-1, 1) + 1) * 127.5).round().byte().cpu().numpy()
    n, channels, height, width = levels.shape
    grid = levels.reshape(n // columns, columns, channels, height, width).transpose(0, 3, 1, 4, 2)
    Image.fromarray(np.ascontiguousarray(grid.reshape(n // columns * height, columns * width, channels))).save(path)


def save_atomically(checkpoint: dict, path: Path) -> None:
    """A run that is killed while writing leaves the previous checkpoint as it was."""
    if wrong := [name for name, weight in checkpoint["ema"].items() if not weight.isfinite().all()]:
        sys.exit(f"{path}: not written: weights must be finite, got nan or infinity in {wrong[0]}")
    with replacing(path) as temporary:
        torch.save(checkpoint, temporary)


def main() -> None:
    args = parse_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    pictures, labels, class_names = load_cifar10(args.data, "train")
    test_pictures, test_labels, _ = load_cifar10(args.data, "test")
    some = torch.randperm(len(test_pictures), generator=torch.Generator().manual_seed(0))[:1024]
    test_pictures, test_labels = test_pictures[some], test_labels[some]

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    trainer = Trainer(args, pictures, labels, class_names, device)
    progress = trainer.progress
    print(
        f"{sum(p.numel() for p in trainer.network.parameters()):,} parameters, "
        f"{trainer.config.flops() / 1e9:.2f} GFLOP a picture; "
        f"step {progress.step}, {progress.images_seen:,} pictures seen, {progress.fraction():.1%} of the budget used",
        flush=True,
    )

    stop = False

    def request_stop(*_) -> None:
        nonlocal stop
        stop = True

    signal.signal(signal.SIGTERM, request_stop)
    signal.signal(signal.SIGINT, request_stop)

    begun = time.monotonic()
    piece_seconds = 0.0
    total_loss = torch.zeros((), device=device)
    total_mse = torch.zeros((), device=device)
    logged_step, logged_seconds = progress.step, progress.seconds
    next_log, next_sample, next_checkpoint = args.log_seconds, args.sample_seconds, args.checkpoint_seconds
    first_step = True

    def report() -> None:
        nonlocal logged_step, logged_seconds
        steps = progress.step - logged_step
        if steps > 0:
            rate = steps * args.batch / max(1e-9, progress.seconds - logged_seconds)
            print(
                f"step {progress.step}  {progress.images_seen / 1e6:.2f} M pictures  {progress.seconds:.0f} s  "
                f"{progress.fraction():.1%}  {rate:,.0f} images/s  "
                f"loss {total_loss.item() / steps:.5f}  epsilon-MSE {total_mse.item() / steps:.5f}  "
                f"gradient {trainer.guard.mean.item():.3f}  skipped {trainer.guard.skipped.item():.0f}",
                flush=True,
            )
        total_loss.zero_()
        total_mse.zero_()
        logged_step, logged_seconds = progress.step, progress.seconds

    while not stop and progress.fraction() < 1 and piece_seconds < args.seconds:
        before = time.monotonic()
        constant_phase = progress.fraction() < args.decay_from
        loss, mse = trainer.step()
        total_loss += loss
        total_mse += mse
        if first_step:  # compiles: counts as a step, but not as time
            loss.item()
            print(f"first step after {time.monotonic() - begun:.1f} s", flush=True)
            first_step = False
            before = time.monotonic()
        if piece_seconds >= next_log:
            report()  # waits for the device
            next_log = piece_seconds + args.log_seconds
        elapsed = time.monotonic() - before
        piece_seconds += elapsed
        progress.seconds += elapsed

        # The clock stands still for what follows: it would otherwise make the schedule depend on how often one looks.
        if constant_phase and progress.fraction() >= args.decay_from:
            save_atomically(trainer.checkpoint(), args.out / "before_decay.pt")
        if piece_seconds >= next_checkpoint:
            save_atomically(trainer.checkpoint(), args.out / "checkpoint.pt")
            next_checkpoint = piece_seconds + args.checkpoint_seconds
        if piece_seconds >= next_sample:
            print(f"test epsilon-MSE {trainer.test_error(test_pictures, test_labels):.5f}", flush=True)
            trainer.write_samples(args.out / f"samples-{progress.step:06d}.png")
            next_sample = piece_seconds + args.sample_seconds

    report()
    save_atomically(trainer.checkpoint(), args.out / "checkpoint.pt")
    print(f"test epsilon-MSE {trainer.test_error(test_pictures, test_labels):.5f}", flush=True)
    trainer.write_samples(args.out / f"samples-{progress.step:06d}.png")
    print(f"{args.out / 'checkpoint.pt'}: {progress.fraction():.1%} of the budget used", flush=True)


if __name__ == "__main__":
    main()
