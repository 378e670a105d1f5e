"""Judges folders of generated CIFAR-10 pictures.

For each folder it prints how often a classifier trained here sees the class that was asked for, and, in the features
before that classifier's last layer, the Frechet distance to the training set, precision and recall. They rank samplers
and networks of this project. The distance is not FID, whose features come from another network; FID is printed too
where --inception names the weights of that network, as torch-fidelity reads them.

A picture's name says what was asked for: 000012-horse-seed12.png.
"""

import argparse
import json
import multiprocessing
import re
import sys
from dataclasses import dataclass
from multiprocessing.pool import Pool
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "export"))
import packages  # noqa: E402

packages.require(__file__, "numpy", "PIL", "torch")
import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from classifier import classify, features_of, load_or_train  # noqa: E402
from metrics import FrechetDistance, PrecisionRecall  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "training"))
from cifar10 import load_cifar10  # noqa: E402

PNG_NAME = re.compile(r"\d+-(?P<class_name>.+)-seed\d+\.png")


def _read_png(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1)


def read_pictures(folders: list[Path], class_names: list[str], pool: Pool) -> tuple[Tensor, Tensor]:
    """All PNGs of the folders, uint8 [n, 3, 32, 32], and the classes that their names ask for, int64 [n]."""
    paths, labels = [], []
    for folder in folders:
        found = sorted(folder.glob("*.png"))
        if not found:
            sys.exit(f"{folder}: must hold pictures, got no .png")
        paths += found
    for path in paths:
        match = PNG_NAME.fullmatch(path.name)
        if not match or match["class_name"] not in class_names:
            sys.exit(
                f"{path}: must have a name like 000012-horse-seed12.png with one of the classes "
                f"{', '.join(class_names)}"
            )
        labels.append(class_names.index(match["class_name"]))
    pictures = torch.from_numpy(np.stack(pool.map(_read_png, paths, chunksize=256)))
    return pictures, torch.tensor(labels)


class Inception:
    """The network of FID: features [n, 2048] of pictures uint8 [n, 3, H, W]."""

    def __init__(self, weights: Path, device: torch.device):
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            sys.exit(f"--inception: needs the Python package torch-fidelity, got '{error}'")
        try:
            # torch-fidelity would run code that the file holds; a file that passes here holds none.
            torch.load(weights, map_location="cpu", weights_only=True)
            network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(weights))
        except Exception as error:
            sys.exit(f"{weights}: must be the Inception weights of torch-fidelity, got '{str(error).split('.')[0]}'")
        self.network, self.device = network.to(device), device

    @torch.no_grad()
    def __call__(self, pictures: Tensor, batch: int = 250) -> Tensor:
        return torch.cat([self.network(piece.to(self.device))[0] for piece in pictures.split(batch)])


class Judge:
    """Compares sets of pictures with the training set, of which it computes everything once."""

    def __init__(self, classifier: nn.Module, real: Tensor, class_names: list[str], inception: Inception | None = None):
        """@real: pictures uint8 [n, 3, 32, 32]."""
        self.classifier, self.class_names, self.inception = classifier, class_names, inception
        features = features_of(classifier, real)
        self.frechet_distance, self.precision_recall = FrechetDistance(features), PrecisionRecall(features)
        self.fid = FrechetDistance(inception(real)) if inception else None

    def __call__(self, pictures: Tensor, asked: Tensor) -> dict[str, object]:
        """Pictures uint8 [m, 3, 32, 32] and the classes that they should be of, int64 [m]."""
        try:
            return self.judge(pictures, asked)
        except ValueError as error:
            sys.exit(f"pictures: cannot be judged: {error}")

    def judge(self, pictures: Tensor, asked: Tensor) -> dict[str, object]:
        features, seen = classify(self.classifier, pictures)
        agrees = 100 * (seen == asked).double()
        precision, recall = self.precision_recall(features)
        result = {
            "pictures": len(pictures),
            "frechet_distance_in_classifier_features": self.frechet_distance(features),
            "precision": precision,
            "recall": recall,
            "agreement": agrees.mean().item(),
            "agreement_per_class": {
                name: agrees[asked == index].mean().item()
                for index, name in enumerate(self.class_names)
                if (asked == index).any()
            },
        }
        if self.inception:
            result["fid"] = self.fid(self.inception(pictures))
        return result


def say(name: str, result: dict[str, object]) -> None:
    fid = f", FID {result['fid']:.3f}" if "fid" in result else ""
    print(
        f"{name}: {result['pictures']:,} pictures, agreement {result['agreement']:.2f} %, Frechet distance in "
        f"classifier features {result['frechet_distance_in_classifier_features']:.3f}, precision "
        f"{result['precision']:.3f}, recall {result['recall']:.3f}{fid}",
        flush=True,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What every program that judges has to know."""
    default = " (default: %(default)s)"
    parser.add_argument("--data", type=Path, default=Path(".data/cifar10_jpeg.npz"), help="the data set" + default)
    parser.add_argument(
        "--classifier",
        type=Path,
        default=Path(".data/classifier.pt"),
        help="its weights; trained and written if not there" + default,
    )
    parser.add_argument(
        "--epochs", type=int, default=60, help="length of the classifier's training, if it is to be trained" + default
    )
    parser.add_argument("--inception", type=Path, metavar="FILE", help="weights of FID's network, for FID as well")


@dataclass
class Data:
    """CIFAR-10: pictures uint8 [n, 3, 32, 32], labels int64 [n]."""

    pictures: Tensor
    labels: Tensor
    test_pictures: Tensor
    test_labels: Tensor
    class_names: list[str]


def load_data(args: argparse.Namespace) -> Data:
    """Before anything else touches the GPU: the processes that decode are forked, and CUDA does not survive a fork."""
    if not args.data.is_file():
        sys.exit(f"{args.data}: must be the data set (see --help), got no file")
    pictures, labels, class_names = load_cifar10(args.data, "train")
    return Data(pictures, labels, *load_cifar10(args.data, "test")[:2], class_names)


def make_judge(args: argparse.Namespace, data: Data) -> tuple[Judge, float]:
    """The judge of these arguments, and how much of the test set its classifier gets right, in percent."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    inception = Inception(args.inception, device) if args.inception else None
    classifier = load_or_train(
        args.classifier, data.pictures, data.labels, len(data.class_names), args.epochs, device
    )
    accuracy = 100 * (classify(classifier, data.test_pictures)[1] == data.test_labels).double().mean().item()
    print(f"classifier: {accuracy:.2f} % of the test set right", flush=True)
    return Judge(classifier, data.pictures, data.class_names, inception), accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folders", type=Path, nargs="*", help="folders of PNGs; without any, only the classifier is trained"
    )
    add_arguments(parser)
    parser.add_argument("--report", type=Path, help="write the figures here too, as JSON")
    args = parser.parse_args()

    with multiprocessing.get_context("fork").Pool() as pool:
        judge, accuracy = make_judge(args, load_data(args))
        report = {"classifier_accuracy": accuracy, "folders": {}}
        for folder in args.folders:
            result = judge(*read_pictures([folder], judge.class_names, pool))
            report["folders"][str(folder)] = result
            say(str(folder), result)
            print("  " + "  ".join(f"{name} {value:.1f}" for name, value in result["agreement_per_class"].items()))
    if args.report:
        args.report.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
