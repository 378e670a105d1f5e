"""Draws what measure_quality.py measured: REPORT.json to a PNG."""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "export"))
import packages  # noqa: E402

packages.require(__file__, "matplotlib")
import matplotlib  # noqa: E402

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter  # noqa: E402

DISTANCE = "frechet_distance_in_classifier_features"
TITLES = {"ddpm": "DDPM", "ddim": "DDIM", "dpm-solver++": "DPM-Solver++ 2M"}


class Cells:
    """The measured sets of pictures."""

    def __init__(self, path: Path):
        self.all = json.loads(path.read_text())["cells"]

    def largest(self) -> int:
        return max(cell["pictures"] for cell in self.all)

    def curve(self, sampler: str, steps: int, pictures: int) -> list[dict]:
        """Stitched sets of so many pictures by ratio; of larger sets the first so many."""
        found = {}
        for cell in self.all:
            if (cell["sampler"], cell["steps"], cell["routing"]) != (sampler, steps, "stitch"):
                continue
            if not cell.keys().isdisjoint(("forecast", "forecast_guidance")):
                continue
            if cell["pictures"] == pictures:
                found[cell["ratio"]] = cell
            elif cell.get("first", {}).get("pictures") == pictures:
                found.setdefault(cell["ratio"], cell | cell["first"])
        return [found[ratio] for ratio in sorted(found)]

    def steps(self, pictures: int) -> list[int]:
        return sorted({c["steps"] for c in self.all if self.curve(c["sampler"], c["steps"], pictures)})


def line(axes, curve: list[dict], y: str, label: str, **style) -> None:
    if curve:
        axes.plot([c["ratio"] for c in curve], [c[y] for c in curve], marker="o", markersize=3, label=label, **style)


def time_line(axes, curve: list[dict], label: str, **style) -> None:
    times = [1000 / c["images_per_second"] for c in curve]
    axes.plot(times, [c[DISTANCE] for c in curve], markersize=3, label=label, **style)


def finish(axes, title: str, x: str, y: str, legend: bool = True) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    if legend and axes.has_data():
        axes.legend(fontsize=8)


def draw(cells: Cells, output: Path) -> None:
    many = cells.largest()
    few = min(many, 10_000)
    figure, grid = plt.subplots(2, 3, figsize=(13, 7.6), layout="constrained")
    ratio, distance = "share of the steps for the small network", "Frechet distance, classifier features"

    main = next((c for c in (cells.curve("ddim", steps, many) for steps in reversed(cells.steps(many))) if c), [])
    steps = main[0]["steps"] if main else 0
    title = f"DDIM, {steps} steps, {many:,} pictures each"
    line(grid[0, 0], main, DISTANCE, "stitched")
    if main:
        grid[0, 0].axhline(1.05 * main[0][DISTANCE], color="grey", linewidth=1, linestyle="--", label="large alone + 5 %")
    finish(grid[0, 0], title, ratio, distance)
    for y in ("precision", "recall"):
        line(grid[0, 1], main, y, y)
    finish(grid[0, 1], title, ratio, "share")
    line(grid[0, 2], main, "agreement", "")
    finish(grid[0, 2], title, ratio, "% seen as the class that was asked for", legend=False)

    longest = [steps for steps in cells.steps(few) if all(cells.curve(sampler, steps, few) for sampler in TITLES)]
    longest = (longest or cells.steps(few))[-1]
    for sampler, name in TITLES.items():
        line(grid[1, 0], cells.curve(sampler, longest, few), DISTANCE, name)
    finish(grid[1, 0], f"By sampler: {longest} steps, {few:,} pictures each", ratio, distance)
    for steps in cells.steps(few):
        line(grid[1, 1], cells.curve("ddim", steps, few), DISTANCE, f"{steps} steps")
    finish(grid[1, 1], f"By steps: DDIM, {few:,} pictures each", ratio, distance)

    axes, alone = grid[1, 2], []
    for steps in cells.steps(few):
        curve = [c for c in cells.curve("ddim", steps, few) if c["ratio"] <= 0.8 and "images_per_second" in c]
        alone += [c for c in curve if c["ratio"] == 0]
        if curve:
            time_line(axes, curve, f"{steps} steps, r = {curve[0]['ratio']:g} ... {curve[-1]['ratio']:g}", marker="o")
    time_line(axes, alone, "large alone, fewer steps", color="black", linestyle=":")
    for set_scale, axis in ((axes.set_xscale, axes.xaxis), (axes.set_yscale, axes.yaxis)):
        set_scale("log")
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FormatStrFormatter("%g"))
        axis.set_minor_formatter(NullFormatter())
    finish(axes, f"Time against quality: DDIM, {few:,} pictures each", "ms a picture", distance)
    figure.savefig(output, dpi=90)


WAYS = {  # whether steps and guidance are forecast: words and looks
    (False, False): ("nothing forecast", {"color": "black", "marker": "o"}),
    (False, True): ("guidance forecast", {"color": "tab:blue", "marker": "s"}),
    (True, False): ("steps forecast", {"color": "tab:orange", "marker": "^"}),
    (True, True): ("both forecast", {"color": "tab:green", "marker": "D"}),
}


def least(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those of (time, distance) than which none is faster and better."""
    front: list[tuple[float, float]] = []
    for time, distance in sorted(points):
        if not front or distance < front[-1][1]:
            front.append((time, distance))
    return front


def draw_front(cells: Cells, output: Path) -> None:
    """Time against quality of every way to draw, and what is best for a time with forecasts and without."""
    few = min(cells.largest(), 10_000)
    figure, grid = plt.subplots(1, 2, figsize=(13, 5.2), layout="constrained")
    samplers = [name for name in ("recommended", "dpm-solver++", "ddim") if any(c["sampler"] == name for c in cells.all)]
    shown = [c for c in cells.all if c["pictures"] == few and c["routing"] == "stitch" and "images_per_second" in c]

    def point(cell: dict) -> tuple[float, float]:
        return 1000 / cell["images_per_second"], cell[DISTANCE]

    def way(cell: dict) -> tuple[bool, bool]:
        return "forecast" in cell, "forecast_guidance" in cell

    best = min(c[DISTANCE] for c in shown)
    for axes, title, drawn in (
        (grid[0], "All ways to draw", shown),
        (grid[1], "Recommended profile, ratio 0.4", [c for c in shown if c["sampler"] == samplers[0] and c["ratio"] == 0.4]),
    ):
        for key, (words, looks) in WAYS.items():
            chosen = [c for c in drawn if way(c) == key]
            if chosen:
                axes.plot(*zip(*map(point, chosen)), linestyle="", markersize=4, alpha=0.7, label=words, **looks)
        for forecasts, style in ((False, ":"), (True, "-")):
            front = least([point(c) for c in drawn if forecasts or way(c) == (False, False)])
            words = "best with forecasts" if forecasts else "best without"
            axes.plot(*zip(*front), color="tab:red" if forecasts else "black", linestyle=style, linewidth=1, label=words)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(0.97 * best, 1.65 * best)  # what is worse matters to nobody
        finish(axes, f"{title}, {few:,} pictures each", "ms a picture", "Frechet distance, classifier features")
    for cell in (c for c in shown if c["sampler"] == samplers[0] and c["ratio"] == 0.4 and way(c) == (False, False)):
        grid[1].annotate(f"{cell['steps']} steps", point(cell), textcoords="offset points", xytext=(5, 5), fontsize=8)
    figure.savefig(output, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path, metavar="REPORT")
    parser.add_argument("output", type=Path, metavar="OUTPUT")
    parser.add_argument("--front", action="store_true", help="time against quality of every way, from --experiment front")
    args = parser.parse_args()
    try:
        cells = Cells(args.report)
        assert cells.all
    except (OSError, ValueError, KeyError, TypeError, AssertionError):
        sys.exit(f"{args.report}: must be a report of measure_quality.py with results, got something else")
    (draw_front if args.front else draw)(cells, args.output)


if __name__ == "__main__":
    main()
