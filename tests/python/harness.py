"""What the tests of the Python package share: the package where there is one, checks, refusals."""

import re
import sys
import traceback
from typing import Dict, List, Tuple  # TorchScript's own words

try:
    import torch
    import tstitch
except ImportError as error:
    print(f"skipped: the package is not built here: {error}")
    sys.exit(77)

__all__ = [
    "Decodes", "Encodes", "Latents", "check", "equal", "has", "main", "refuses", "require", "save_module", "save_pipeline", "torch",
    "tstitch",
]  # fmt: skip


def require(*packages):
    """Ends the test as skipped where a package is missing."""
    for name in packages:
        try:
            __import__(name)
        except ImportError as error:
            print(f"skipped: needs {name}: {error}")
            sys.exit(77)


def has(*packages):
    """Whether the packages are there; says which part of a test is left out where one is missing."""
    for name in packages:
        try:
            __import__(name)
        except ImportError as error:
            print(f"left out: a part that needs {name}: {error}")
            return False
    return True


def check(truth, what):
    if not truth:
        raise AssertionError(what)


def equal(a, b, what):
    """The same bits."""
    check(a.shape == b.shape and a.dtype == b.dtype, f"{what}: {a.dtype} {list(a.shape)} and {b.dtype} {list(b.shape)}")
    check(torch.equal(a, b), f"{what}: differ by up to {(a - b).abs().max()}")


def refuses(kind, pattern, call, *args, **keywords):
    """The call raises exactly this, with a message that matches."""
    try:
        returned = call(*args, **keywords)
    except kind as error:
        check(type(error) is kind, f"{type(error).__name__} is not {kind.__name__}: {error}")
        check(re.search(pattern, str(error)), f"{str(error)!r} does not match {pattern!r}")
        return error
    raise AssertionError(f"was not refused with {pattern!r}: {returned!r}")


NETWORK = dict(input_channels=4, input_height=24, input_width=20, prediction="epsilon", timestep_type="int64",
               noise_schedule="linear", num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02)  # fmt: skip


def save_module(folder, name, module, **values):
    """A TorchScript file with metadata, of a network unless its kind is said; returns its path."""
    path = folder / f"{name}.pt"
    values = {"format": 1, "name": name, **({} if "kind" in values else NETWORK), **values}
    extra = {f"tstitch/{key}": str(value) for key, value in values.items()}
    torch.jit.save(torch.jit.script(module.eval()), str(path), _extra_files=extra)
    return path


class Latents(torch.nn.Module):
    """A network of 4 channels, 24 x 20."""

    def forward(self, x, t):
        return x.tanh() * 0.5


class Decodes(torch.nn.Module):
    """A decoder of 4 channels to twice the size."""

    def __init__(self, channels):
        super().__init__()
        torch.manual_seed(channels)
        self.conv = torch.nn.ConvTranspose2d(4, channels, 4, stride=2, padding=1)

    def forward(self, x):
        return self.conv(x)


class Encodes(torch.nn.Module):
    """An encoder of colours to 4 channels of half the size."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 2, stride=2)

    def forward(self, x):
        return self.conv(x)


class Texts(torch.nn.Module):
    """A text encoder: the bytes of a text, three tokens of two channels."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor([0.01]))

    def forward(self, texts: List[str]) -> Dict[str, torch.Tensor]:
        rows: List[torch.Tensor] = []
        for text in texts:
            rows.append(torch.full([3, 2], float(len(text))) * self.scale)
        return {"text_embedding": torch.stack(rows)}

    @torch.jit.export
    def tokenize(self, texts: List[str]) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        ids = torch.full([len(texts), 3], 7)
        return ids, torch.ones_like(ids), torch.zeros([len(texts)], dtype=torch.int64)


class Told(torch.nn.Module):
    """A network of latents that sees a text."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor([factor]))

    def forward(self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return (x * self.factor).tanh() + text.mean([1, 2]).view(-1, 1, 1, 1)


def save_pipeline(folder):
    """A folder as of export_pipeline.py: two networks of latents of any size, a text encoder and a decoder."""
    folder.mkdir(parents=True, exist_ok=True)
    network = {key: value for key, value in NETWORK.items() if not key.startswith("input_")}
    network |= dict(kind="network", input_shape="4 * *", conditions="text_embedding float 3 2", guidance_scale=3, latent_scale=0.5)
    for name, factor in (("small", 0.5), ("large", 0.7)):
        save_module(folder, name, Told(factor), **network)
    save_module(folder, "texts", Texts(), kind="text_encoder", text_tokens=3, outputs="text_embedding float 3 2")
    save_module(folder, "decoder", Decodes(3), kind="decoder", latent_channels=4, upsampling=2, latent_scale=0.5)
    lines = ["tstitch pipeline 1", "name tiny", "network small.pt", "network large.pt", "text_encoder texts.pt", "decoder decoder.pt",
             "shape 4 8 12", "profile diffusers-ddim", "steps 5", "guidance 2.5", "ratio 0.4", "negative blurry", "license CC0"]  # fmt: skip
    (folder / "pipeline.txt").write_text("\n".join(lines) + "\n")
    return folder


def main(module):
    """Runs all functions whose names begin with test_; their docstrings say what is expected."""
    failed = 0
    tests = {name: test for name, test in vars(module).items() if name.startswith("test_")}
    for name, test in tests.items():
        try:
            test()
        except Exception:
            failed += 1
            print(f"{name} failed:")
            traceback.print_exc()
    print(f"{len(tests) - failed} of {len(tests)} passed")
    sys.exit(1 if failed else 0)
