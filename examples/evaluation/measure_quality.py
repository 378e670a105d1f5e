"""Draws pictures with tstitch_sample over switch ratios, samplers, steps and routings, and judges them.

Experiments, all with classifier-free guidance:

    ratios    DDIM, 100 steps, ratios 0, 0.1 ... 1, 50,000 pictures each (figure 1 of T-Stitch, arXiv 2402.14167)
    samplers  DDPM, DDIM and DPM-Solver++ at 10, 20, 50 and 100 steps, ratios 0, 0.2 ... 1, 10,000 pictures each
              (its figures 8, 9 and 15)
    routings  DDIM, 50 steps, ratio 0.5, and every way to share the steps, 10,000 pictures each (its table 7)
    forecasts DDIM at 50 and 100 steps and DPM-Solver++ at 30, ratio 0.4, with every second step of the large network
              forecast, with guidance forecast in every second step, with both and with neither, 50,000 pictures each
    front     DDIM, DPM-Solver++ and the recommended profile at 10 to 100 steps and ratios up to 0.6, each with every
              second and every third step forecast, with a calibrated table, with guidance forecast and without any,
              10,000 pictures each: what is the best for a time

Every set of pictures begins with the same noise. The report is written after each set: a run that was stopped goes on
where it was. plot_quality.py draws it, evaluate.py says what the figures mean.
"""

import argparse
import dataclasses
import json
import multiprocessing
import multiprocessing.pool
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "export"))
import packages  # noqa: E402

packages.require(__file__, "numpy", "PIL", "torch")
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from common import replacing  # noqa: E402
from evaluate import Judge, add_arguments, load_data, make_judge, read_pictures, say  # noqa: E402

# Of larger sets the first pictures are judged by themselves too: distances of different numbers are not comparable.
COMMON = 10_000
# Larger sets are drawn in pieces of so many, by all devices side by side.
PIECE = 5_000

EXPERIMENTS = ["ratios", "samplers", "routings", "forecasts", "front"]
ROUTINGS = ("stitch", "large-first", "interleaved", "falling")


@dataclass(frozen=True)
class Run:
    """Pictures drawn in the same way but for the ratio."""

    sampler: str  # of tstitch_sample, or "recommended", the profile
    steps: int
    sweep: str  # FROM:TO:STEP, as tstitch_sample reads it; or one ratio
    pictures: int
    routing: str = "stitch"
    forecast: str = "none"  # as tstitch_sample reads it, or "calibrated", by a table that is measured first
    forecast_guidance: str = "none"

    @property
    def name(self) -> str:
        forecasts = {"forecast": self.forecast, "guidance": self.forecast_guidance}
        more = "".join(f"-{what}-{each.replace(':', '-')}" for what, each in forecasts.items() if each != "none")
        at = "" if ":" in self.sweep else f"-at-{self.sweep}"
        return f"{self.sampler}-{self.steps}-{self.routing}-{self.pictures}{at}{more}"

    @property
    def way(self) -> tuple[object, ...]:
        """What its cells share but for the ratio and the number of pictures."""
        return self.sampler, self.steps, self.routing, self.forecast, self.forecast_guidance

    @property
    def ratios(self) -> list[float]:
        if ":" not in self.sweep:
            return [float(self.sweep)]
        first, last, step = map(float, self.sweep.split(":"))
        return [round(first + i * step, 6) for i in range(round((last - first) / step) + 1)]

    def covers(self, other: "Run") -> bool:
        """Whether the other's pictures are among these."""
        same = self.way == other.way
        enough = self.pictures == other.pictures or self.pictures > other.pictures == COMMON
        return same and enough and set(other.ratios) <= set(self.ratios)


FRONT = {
    "recommended": (10, 12, 15, 20, 25, 30, 40, 50),
    "dpm-solver++": (10, 15, 20, 30, 50),
    "ddim": (10, 15, 20, 30, 50, 100),
}


def front_runs(sampler: str, steps: int, pictures: int) -> list[Run]:
    """One way to step, with and without forecasts; left out is what other steps have shown to teach nothing."""
    order = "" if sampler == "ddim" else ",2"
    second, third = f"every:2{order}", f"every:3{order}"
    forecasts = [("none", "every:2"), (second, "none"), (second, "every:2")]
    runs = [Run(sampler, steps, "0:0.6:0.2", pictures)]
    # Small and large networks take the same steps at 0 and 0.2 without a difference that is seen.
    sweep = "0.2:0.6:0.2" if steps < 100 else "0.4"
    if 20 <= steps < 100:
        forecasts.append((third, "none"))
        # Of the other two the table for as many computed steps is that of every third step, picture for picture.
        if sampler == "ddim":
            runs.append(Run(sampler, steps, "0.4", pictures, forecast="calibrated"))
    return runs + [Run(sampler, steps, sweep, pictures, forecast=a, forecast_guidance=b) for a, b in forecasts]


def runs_of(experiment: str, pictures: int | None) -> list[Run]:
    if experiment == "ratios":
        return [Run("ddim", 100, "0:1:0.1", pictures or 50_000)]
    if experiment == "samplers":
        return [
            Run(sampler, steps, "0:1:0.2", pictures or 10_000)
            for steps in (10, 20, 50, 100)
            for sampler in ("ddim", "ddpm", "dpm-solver++")
        ]
    if experiment == "routings":
        return [Run("ddim", 50, "0.5", pictures or 10_000, routing) for routing in ROUTINGS]
    if experiment == "front":
        return [run for sampler, steps in FRONT.items() for each in steps for run in front_runs(sampler, each, pictures or 10_000)]
    return [
        Run(sampler, steps, "0.4", pictures or 50_000, forecast=forecast, forecast_guidance=of_guidance)
        for sampler, steps, every in (("ddim", 50, "every:2"), ("dpm-solver++", 30, "every:2,2"), ("ddim", 100, "every:2"))
        for forecast in ("none", every)
        for of_guidance in ("none", "every:2")
    ]


@dataclass
class Piece:
    """So many pictures of a run, and where they are."""

    run: Run
    folder: Path
    seed: int
    pictures: int

    @property
    def report(self) -> Path:
        return self.folder / "report.json"  # the tool writes it last

    def is_drawn(self) -> bool:
        """A tool that was stopped has reported, too, what it had drawn."""
        if not self.report.is_file():
            return False
        report = json.loads(self.report.read_text())
        sets = report.get("ratios", [report])
        wanted = len(self.run.ratios) if "ratios" in report else 1
        return len(sets) == wanted and all(each["finished_images"] == self.pictures for each in sets)

    @property
    def table(self) -> Path:
        return self.folder / "table.txt"

    def calibration(self, args: argparse.Namespace) -> list[str]:
        """The command that measures which steps are best forecast: as many are computed as by every third."""
        run = self.run
        of_large = run.steps - round(float(run.sweep) * run.steps)
        # Three to begin with, one of three after that, and the last.
        computed = len({i for i in range(of_large) if i < 3 or i % 3 == 2 or i == of_large - 1})
        sampler = ["--profile", run.sampler] if run.sampler == "recommended" else ["--sampler", run.sampler]
        return [
            str(args.tool.with_name("tstitch_inspect")), *map(str, args.model), "--no-probe", "--rows", "1",
            "--forecast", str(self.table), *sampler, "--steps", str(run.steps), "--ratio", run.sweep,
            "--computed", str(computed), "--order", "1" if run.sampler == "ddim" else "2", "--dtype", args.dtype,
        ]  # fmt: skip

    def command(self, args: argparse.Namespace, classes: int) -> list[str]:
        run = self.run
        if run.routing == "stitch":  # of one ratio, too, for it times the drawing without the writing of pictures
            draw = ["--sweep", run.sweep if ":" in run.sweep else f"{run.sweep}:{run.sweep}:1"]
            output = self.folder
        else:
            draw = ["--ratio", run.sweep, "--routing", run.routing]
            output = self.folder / f"ratio-{float(run.sweep):g}"
        model = [word for path in args.model for word in ("--model", str(path))]
        sampler = ["--profile", run.sampler] if run.sampler == "recommended" else ["--sampler", run.sampler]
        forecast = str(self.table) if run.forecast == "calibrated" else run.forecast
        return [
            str(args.tool), *model, *draw, *sampler, "--steps", str(run.steps),
            "--forecast", forecast, "--forecast-guidance", run.forecast_guidance,
            "--guidance", str(args.guidance), "--count", str(self.pictures // classes), "--seed", str(self.seed),
            "--batch", str(args.batch), "--output", str(output), "--report", str(self.report), "--quiet",
            "--backend", args.backend, "--dtype", args.dtype,
        ]  # fmt: skip

    def images_per_second(self) -> list[float]:
        """One figure for each ratio; of a sweep its fastest batch, without the writing of pictures."""
        report = json.loads(self.report.read_text())
        if "ratios" not in report:
            return [report["images_per_second"]]
        # All batches are whole but for the last.
        batch, whole = report["batch"], max(1, self.pictures // report["batch"])
        return [batch / min(each["seconds_by_batch"][:whole]) for each in report["ratios"]]


class Turn:
    """One at a time, and who asks first is next, so that neither the drawing nor the judge waits for ever."""

    def __init__(self):
        self.door, self.room = threading.Lock(), threading.Lock()

    def __enter__(self) -> None:
        with self.door:
            self.room.acquire()

    def __exit__(self, *_: object) -> None:
        self.room.release()


class Drawing:
    """Draws pieces on all devices, one at a time on each, in threads of its own.

    `quiet` keeps the first device free, for who would else disturb the times that are measured there.
    """

    def __init__(self, pieces: list[Piece], args: argparse.Namespace, classes: int):
        self.args, self.classes = args, classes
        self.waiting: queue.Queue[Piece] = queue.Queue()
        self.finished: queue.Queue[tuple[Piece, str]] = queue.Queue()
        self.programs: list[subprocess.Popen] = []
        self.turns = {device: Turn() for device in args.devices}
        self.quiet = self.turns[args.devices[0]]
        for piece in pieces:
            self.waiting.put(piece)

    def start(self) -> None:
        for device in self.args.devices:
            threading.Thread(target=self.work, args=(device,), daemon=True).start()

    def work(self, device: str) -> None:
        while True:
            with self.turns[device]:
                try:
                    piece = self.waiting.get_nowait()
                except queue.Empty:
                    return
                error = "" if piece.is_drawn() else self.draw(piece, device)
            self.finished.put((piece, error))

    def draw(self, piece: Piece, device: str) -> str:
        """What went wrong, or an empty string."""
        commands = [piece.command(self.args, self.classes)]
        if piece.run.forecast == "calibrated":
            piece.folder.mkdir(parents=True, exist_ok=True)
            commands.insert(0, piece.calibration(self.args))
        for command in commands:
            command += ["--device", device]
            program = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            self.programs.append(program)
            _, errors = program.communicate()
            if program.returncode:
                return f"{' '.join(command)}: {errors.strip()}"
        return ""

    def all_finished(self) -> Iterator[tuple[Piece, str]]:
        """What is finished by now, one piece at least, and of each what went wrong."""
        yield self.finished.get()
        while not self.finished.empty():
            yield self.finished.get()

    def stop(self) -> None:
        for program in self.programs:
            program.terminate()


def pieces_of(run: Run, folder: Path) -> list[Piece]:
    size = PIECE if run.pictures > COMMON else run.pictures
    return [
        Piece(run, folder / run.name / str(begin), begin, min(size, run.pictures - begin))
        for begin in range(0, run.pictures, size)
    ]


def unforecast(run: Run, runs: Iterable[Run]) -> Run | None:
    """The run of the same pictures without forecasts."""
    plain = dataclasses.replace(run, forecast="none", forecast_guidance="none")
    return next((other for other in runs if other != run and other.covers(plain)), None)


class Change:
    """By how much forecasts change the first pictures of a set, in 8-bit levels, root mean square."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __call__(self, run: Run, ratio: float, pictures: Tensor) -> float | None:
        """Keeps the pictures of a run without forecasts; None for these, and where there are none of these."""
        plain = dataclasses.replace(run, forecast="none", forecast_guidance="none", sweep=f"{ratio:g}", pictures=COMMON)
        file = self.folder / f"{plain.name}.pt"
        first = pictures[:COMMON]
        if plain.way == run.way:
            self.folder.mkdir(parents=True, exist_ok=True)
            torch.save(first, file)
            return None
        if not file.is_file() or len(before := torch.load(file, weights_only=True)) < len(first):
            return None
        return (first.float() - before[: len(first)].float()).square().mean().sqrt().item()


def judge_run(
    pieces: list[Piece], judge: Judge, guidance: float, change: Change, pool: multiprocessing.pool.Pool
) -> list[dict]:
    """One cell of the report for each ratio."""
    run, cells = pieces[0].run, []
    speeds = [max(each) for each in zip(*(piece.images_per_second() for piece in pieces), strict=True)]
    for ratio, speed in zip(run.ratios, speeds, strict=True):
        folders = [piece.folder / f"ratio-{ratio:g}" for piece in pieces]
        pictures, asked = read_pictures(folders, judge.class_names, pool)
        if len(pictures) != run.pictures:
            sys.exit(f"{folders[0].parent.parent}: must hold {run.pictures} pictures, got {len(pictures)}")
        result = judge(pictures, asked)
        say(f"{run.name}, ratio {ratio:g}", result)
        cell = {
            "sampler": run.sampler,
            "steps": run.steps,
            "routing": run.routing,
            "ratio": ratio,
            "guidance": guidance,
            "images_per_second": speed,
            **result,
        }
        for key in ("forecast", "forecast_guidance"):
            if getattr(run, key) != "none":
                cell[key] = getattr(run, key)
        if (changed := change(run, ratio, pictures)) is not None:
            cell["change_in_8_bit_levels"] = changed
        if run.pictures > COMMON:
            cell["first"] = judge(pictures[:COMMON], asked[:COMMON])
        cells.append(cell)
    return cells


def read_report(path: Path) -> dict:
    if not path.is_file():
        return {"cells": []}
    try:
        report = json.loads(path.read_text())
        assert isinstance(report["cells"], list)
        return report
    except (ValueError, KeyError, TypeError, AssertionError):
        sys.exit(f"{path}: must be a report of this program, got something else")


def write_report(path: Path, report: dict) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")


def way_of(cell: dict) -> tuple[object, ...]:
    """Run.way of the run that a cell is of."""
    forecasts = (cell.get(key, "none") for key in ("forecast", "forecast_guidance"))
    return cell["sampler"], cell["steps"], cell["routing"], *forecasts


def is_done(run: Run, guidance: float, cells: list[dict]) -> bool:
    done = {
        (*way_of(cell), cell["ratio"], cell["guidance"], pictures)
        for cell in cells
        for pictures in (cell["pictures"], *([COMMON] if "first" in cell else []))
    }
    return all((*run.way, ratio, guidance, run.pictures) in done for ratio in run.ratios)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = " (default: %(default)s)"
    parser.add_argument("tool", type=Path, metavar="TSTITCH_SAMPLE", help="the program that draws")
    parser.add_argument("report", type=Path, metavar="REPORT", help="the .json file to write, or to go on with")
    parser.add_argument(
        "--experiment",
        nargs="+",
        choices=EXPERIMENTS,
        default=EXPERIMENTS,
        help="what to measure (default: all)",
    )
    parser.add_argument("--pictures", type=int, metavar="N", help="in each set (default: as each experiment says)")
    parser.add_argument(
        "--model", type=Path, action="append", default=[], metavar="FILE", help="small, then large [the bundled pair]"
    )
    parser.add_argument("--guidance", type=float, default=1.5, help="classifier-free guidance scale" + default)
    parser.add_argument("--batch", type=int, default=1000, help="pictures at once" + default)
    for option, what in (("--backend", "how networks are run"), ("--dtype", "number format of the networks")):
        parser.add_argument(option, default="auto", help=f"{what}, as tstitch_sample knows it{default}")
    parser.add_argument("--devices", nargs="+", metavar="DEVICE", help="cpu, cuda:0 ... (default: all GPUs)")
    parser.add_argument(
        "--work", type=Path, default=Path("samples/quality"), help="where pictures are until judged" + default
    )
    parser.add_argument("--keep", action="store_true", help="keep the pictures")
    add_arguments(parser)
    args = parser.parse_args()
    if not args.tool.is_file():
        sys.exit(f"{args.tool}: must be the program tstitch_sample, got no file")
    if args.pictures is not None and (args.pictures < 10 or args.pictures % 10):
        sys.exit(f"--pictures: must be a multiple of the 10 classes, got {args.pictures}")
    if not args.devices:  # counting does not start the GPU's driver in this process
        args.devices = [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cpu"]
    return args


def main() -> None:
    args = parse_arguments()
    report = read_report(args.report)
    runs: list[Run] = []
    for run in (run for experiment in args.experiment for run in runs_of(experiment, args.pictures)):
        if not is_done(run, args.guidance, report["cells"]) and not any(other.covers(run) for other in runs):
            runs.append(run)
    if not runs:
        print(f"{args.report}: holds all of it")
        return
    pieces = {run: pieces_of(run, args.work) for run in runs}
    left = {run: len(pieces[run]) for run in runs}
    with multiprocessing.get_context("fork").Pool() as pool:
        data = load_data(args)
        drawing = Drawing([piece for run in runs for piece in pieces[run]], args, classes=len(data.class_names))
        try:
            with drawing.quiet:
                drawing.start()
                judge, report["classifier_accuracy"] = make_judge(args, data)
            report["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
            change, waiting = Change(args.work / "unforecast"), list(runs)
            while waiting:
                for piece, error in drawing.all_finished():
                    if error:
                        sys.exit(error)
                    left[piece.run] -= 1
                # All that are ready in one turn. Those without forecasts come first, for the others are compared with
                # them.
                with drawing.quiet:
                    while run := next((r for r in waiting if not left[r] and unforecast(r, waiting) is None), None):
                        waiting.remove(run)
                        report["cells"] += judge_run(pieces[run], judge, args.guidance, change, pool)
                        write_report(args.report, report)
                        if not args.keep:
                            shutil.rmtree(args.work / run.name)
            if not args.keep:
                shutil.rmtree(change.folder, ignore_errors=True)
        finally:
            drawing.stop()


if __name__ == "__main__":
    main()
