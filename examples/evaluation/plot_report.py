"""Draws what tstitch_inspect and tstitch_benchmark wrote with --json: plot_report.py REPORT.json PLOT.png

Of tstitch_inspect, how well the first network agrees with the last along the trajectory, and the suggested ratio; of
tstitch_benchmark, seconds a picture by ratio, with the straight line between the ends, and pictures a second by batch size.
The name says the format: .png, .svg, .pdf.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "export"))
import packages  # noqa: E402

packages.require(__file__, "matplotlib")
import matplotlib  # noqa: E402

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


def draw_agreement(agreement: dict, names: list[str]) -> plt.Figure:
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    count = len(agreement["cosines"])
    axes.plot([i / count for i in range(count)], agreement["cosines"], label="cosine of the noise that both predict")
    axes.plot([(i + 1) / count for i in range(count)], agreement["cumulative_shares"], label="share of all difference so far")
    ratio = agreement["suggested_ratio"]
    axes.axvline(ratio, color="grey", linestyle="--", label=f"suggested ratio, {ratio:.2f}")
    axes.set(xlabel="share of the steps", title=f"{names[0]} beside {names[-1]}", xlim=(0, 1))
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    return figure


def groups(cells: list[dict], shared: str) -> list[tuple[str, list[dict]]]:
    """Cells of one backend, number format and @shared, each with its name."""
    key = lambda cell: (cell["backend"], cell["dtype"], cell[shared])  # noqa: E731
    found = itertools.groupby(sorted(cells, key=key), key)
    return [(f"{backend} {dtype}, {shared} {value:g}", list(same)) for (backend, dtype, value), same in found]


def draw_benchmark(report: dict) -> plt.Figure:
    figure, (by_ratio, by_batch) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    setting = f"{report['sampler']}, {report['steps']} steps"
    for name, cells in groups(report["cells"], "batch"):
        cells.sort(key=lambda cell: cell["ratio"])
        (drawn,) = by_ratio.plot([c["ratio"] for c in cells], [c["seconds"] / c["batch"] for c in cells], "o-", ms=3, label=name)
        straight = [c for c in cells if "line_seconds" in c]
        by_ratio.plot([c["ratio"] for c in straight], [c["line_seconds"] / c["batch"] for c in straight], "--",
                      color=drawn.get_color(), lw=0.8)  # fmt: skip
    by_ratio.set(xlabel="share of the steps for the small network (dashed: straight line)", title=f"seconds a picture, {setting}")
    for name, cells in groups(report["cells"], "ratio"):
        cells.sort(key=lambda cell: cell["batch"])
        by_batch.plot([c["batch"] for c in cells], [c["images_per_second"] for c in cells], "o-", ms=3, label=name)
    by_batch.set(xlabel="batch size", title=f"pictures a second, {setting}")
    by_batch.set_xscale("log", base=2)
    for axes in (by_ratio, by_batch):
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=7)
        axes.grid(alpha=0.3)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, metavar="REPORT")
    parser.add_argument("output", type=Path, metavar="OUTPUT")
    args = parser.parse_args()
    try:
        report = json.loads(args.report.read_text())
    except (OSError, ValueError) as error:
        sys.exit(f"{args.report}: must be a report of tstitch_inspect or tstitch_benchmark: {error}")
    if isinstance(report, dict) and "agreement" in report:
        figure = draw_agreement(report["agreement"], [network["name"] for network in report["networks"]])
    elif isinstance(report, dict) and report.get("cells") and "sampler_share" in report["cells"][0]:
        figure = draw_benchmark(report)
    else:
        sys.exit(f"{args.report}: must be a report of tstitch_inspect of several networks, or of tstitch_benchmark")
    figure.savefig(args.output, dpi=120)
    print(f"plot: {args.output}")


if __name__ == "__main__":
    main()
