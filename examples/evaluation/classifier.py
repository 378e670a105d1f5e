"""The CIFAR-10 classifier whose features and opinions judge generated pictures."""

import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metrics import require_finite

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "export"))
from common import replacing  # noqa: E402


class ConvBlock(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, pool: bool = False):
        layers = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        super().__init__(*layers, *([nn.MaxPool2d(2)] if pool else []))


class Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(ConvBlock(width, width), ConvBlock(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Classifier(nn.Module):
    """A ResNet-9 with one more residual block: pictures [n, 3, 32, 32] in [-1, 1] -> logits [n, num_classes]."""

    def __init__(self, num_classes: int, width: int = 128):
        super().__init__()
        self.body = nn.Sequential(
            ConvBlock(3, width),
            ConvBlock(width, 2 * width, pool=True),
            Residual(2 * width),
            ConvBlock(2 * width, 4 * width, pool=True),
            Residual(4 * width),
            ConvBlock(4 * width, 8 * width, pool=True),
            Residual(8 * width),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(8 * width, num_classes, bias=False)

    def features(self, x: Tensor) -> Tensor:
        """[n, 3, 32, 32] -> [n, 8 * width]."""
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        # Max-pooled features are large; an eighth of their product is where cross-entropy likes its logits to begin.
        return self.head(self.features(x)) / 8


def augment(x: Tensor) -> Tensor:
    """Mirrors at random and shifts by up to 4 pixels; each picture [3, 32, 32] of the batch for itself."""
    n, _, height, width = x.shape
    x = torch.where(torch.rand(n, 1, 1, 1, device=x.device) < 0.5, x.flip(3), x)
    padded = F.pad(x, (4, 4, 4, 4), mode="reflect").permute(0, 2, 3, 1)
    rows = torch.randint(9, (n, 1), device=x.device) + torch.arange(height, device=x.device)
    columns = torch.randint(9, (n, 1), device=x.device) + torch.arange(width, device=x.device)
    return padded[torch.arange(n, device=x.device)[:, None, None], rows[:, :, None], columns[:, None, :]].permute(
        0, 3, 1, 2
    )


def cutmix(x: Tensor, labels: Tensor, generator: np.random.Generator) -> tuple[Tensor, Tensor, float]:
    """Pastes a box of each picture's neighbour into it (arXiv 1905.04899).

    Returns the pictures, the neighbours' labels, and the box's share of the area.
    """
    height, width = x.shape[2:]
    side = math.sqrt(generator.uniform())
    y, x_centre = generator.integers(height), generator.integers(width)
    top, bottom = max(0, int(y - side * height / 2)), min(height, int(y + side * height / 2))
    left, right = max(0, int(x_centre - side * width / 2)), min(width, int(x_centre + side * width / 2))
    x = x.clone()
    x[:, :, top:bottom, left:right] = x.roll(1, 0)[:, :, top:bottom, left:right]
    return x, labels.roll(1), (bottom - top) * (right - left) / (height * width)


def to_network(pictures: Tensor) -> Tensor:
    """uint8 [n, 3, 32, 32] -> float32 in [-1, 1]."""
    return pictures.float() / 127.5 - 1


def train_classifier(pictures: Tensor, labels: Tensor, num_classes: int, epochs: int, batch: int = 512) -> Classifier:
    """SGD with a one-cycle learning rate. Pictures uint8 [n, 3, 32, 32] and labels [n], on the device to train on."""
    device = pictures.device
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    network = Classifier(num_classes).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.4, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = len(pictures) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.4, total_steps=epochs * steps, pct_start=0.2)
    begun = time.monotonic()
    for epoch in range(1, epochs + 1):
        order = torch.randperm(len(pictures), device=device)
        total = torch.zeros((), device=device)
        for indices in order[: steps * batch].view(steps, batch):
            x, y = augment(to_network(pictures[indices])), labels[indices]
            other, share = y, 0.0
            if generator.uniform() < 0.5:
                x, other, share = cutmix(x, y, generator)
            with torch.autocast(device.type, torch.bfloat16):
                logits = network(x.contiguous(memory_format=torch.channels_last))
                loss = (1 - share) * F.cross_entropy(logits, y, label_smoothing=0.1)
                if share > 0:
                    loss = loss + share * F.cross_entropy(logits, other, label_smoothing=0.1)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
            total += loss.detach()
        if epoch % 10 == 0:
            print(
                f"classifier: epoch {epoch}, loss {total.item() / steps:.4f}, {time.monotonic() - begun:.0f} s",
                file=sys.stderr,
                flush=True,
            )
    return network.eval()


@torch.no_grad()
def features_of(network: Classifier, pictures: Tensor, batch: int = 500) -> Tensor:
    """uint8 [n, 3, 32, 32] -> features float32 [n, f], on the network's device."""
    device = network.head.weight.device
    return require_finite(torch.cat([network.features(to_network(piece.to(device))) for piece in pictures.split(batch)]))


@torch.no_grad()
def classify(network: Classifier, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """uint8 [n, 3, 32, 32] -> features [n, f] and classes [n]; a class is judged with the mirror image's help."""
    features = features_of(network, pictures)
    classes = (network.head(features) + network.head(features_of(network, pictures.flip(3)))).argmax(1)
    return features, classes.cpu()


def load_or_train(
    path: Path, pictures: Tensor, labels: Tensor, num_classes: int, epochs: int, device: torch.device
) -> Classifier:
    if not path.exists():
        network = train_classifier(pictures.to(device), labels.to(device), num_classes, epochs)
        # Half precision for the matrices; the variances of a batch norm can leave its range.
        state = {
            name: (value.half() if value.ndim > 1 else value).cpu() for name, value in network.state_dict().items()
        }
        if wrong := [name for name, value in state.items() if not value.isfinite().all()]:
            sys.exit(f"{path}: not written: weights must be finite in half precision, got nan or infinity in {wrong[0]}")
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            torch.save(state, temporary)
    # What was trained a moment ago is loaded back as well, so that every run judges with the very same weights.
    network = Classifier(num_classes)
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.to(device, memory_format=torch.channels_last).eval()
