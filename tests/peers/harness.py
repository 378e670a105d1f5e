"""What the scripts share."""

import argparse
import gc
import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

EXPORTERS = Path(__file__).resolve().parents[2] / "examples/export"


def parse_arguments(doc: str, sizes: tuple[str, ...] = ()) -> argparse.Namespace:
    """Makes the folder, and has products of matrices computed in float32. @sizes: the values of --size, if it has any."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool")
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--device", default="cpu")
    if sizes:
        parser.add_argument("--size", choices=sorted(sizes), default="tiny")
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    args.scratch.mkdir(parents=True, exist_ok=True)
    return args


def lies_here(module: ModuleType) -> bool:
    return Path(getattr(module, "__file__", None) or "").parent == Path(__file__).parent


def export(program: str, source: Path, file: Path, *options: str) -> None:
    """By the exporter's main(), in this process, for a new one would spend most of its time on importing torch."""
    gc.freeze()  # exporters look for garbage, which takes long among all that is imported
    arguments, path = sys.argv, sys.path
    # The scripts here have names of modules there.
    here = {name: module for name, module in sys.modules.items() if name != "__main__" and lies_here(module)}
    for name in here:
        del sys.modules[name]
    sys.argv = list(map(str, (EXPORTERS / program, source, file, *options)))
    sys.path = [str(EXPORTERS), *path]
    try:
        importlib.import_module(Path(program).stem).main()
    finally:
        sys.argv, sys.path = arguments, path
        sys.modules.update(here)


class Latents:
    """Those of the tool beside those of the peer."""

    def __init__(self) -> None:
        self.failed = False

    def compare(self, what: str, file: Path, expected: torch.Tensor, bound: float) -> None:
        """@bound: of the largest difference, in standard deviations."""
        peer = expected.cpu().numpy()
        difference = np.abs(np.load(file) - peer).max() / peer.std()
        good = difference <= bound  # not so of nan
        self.failed |= not good
        print(
            f"{what}: largest difference {difference:.1e} of the standard deviation {peer.std():.3g}"
            f"{'' if good else '  more than it may'}",
            flush=True,
        )

    def finish(self) -> None:
        if self.failed:
            sys.exit(1)
        print("all latents are those of the peer")
