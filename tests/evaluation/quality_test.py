"""Small networks drawn, judged, resumed and plotted: quality_test.py TOOL EVALUATION_FOLDER SCRATCH_FOLDER

With a data set of noise, a classifier of random weights, and a pair of random networks, so that nothing is learned from
the figures but that they are there, are the same again, and are those of the pictures. Exits with 77 where numpy or
Pillow is missing.
"""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

try:
    import numpy as np
    import torch
    from PIL import Image
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

tool, evaluation, scratch = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
sys.path[:0] = [str(evaluation), str(evaluation.parent / "export")]
from classifier import Classifier  # noqa: E402
from dit import DiT, DiTConfig  # noqa: E402

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
shutil.rmtree(scratch, ignore_errors=True)
scratch.mkdir(parents=True)
torch.manual_seed(0)
generator = np.random.default_rng(0)

data = {"classes": np.array(CLASSES)}
for split, count in (("train", 60), ("test", 20)):
    files = []
    for _ in range(count):
        buffer = io.BytesIO()
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(buffer, "JPEG")
        files.append(buffer.getvalue())
    data[f"{split}_jpeg"] = np.frombuffer(b"".join(files), np.uint8)
    data[f"{split}_offsets"] = np.cumsum([0, *map(len, files)])
    data[f"{split}_labels"] = np.arange(count) % 10
np.savez(scratch / "data.npz", **data)
torch.save(Classifier(10).state_dict(), scratch / "classifier.pt")

models = []
for name in ("small", "large"):
    network = DiT(DiTConfig(size=32, width=16, depth=1, heads=1, patch=8, num_classes=10)).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    values = {
        "format": 1, "name": name, "input_channels": 3, "input_height": 32, "input_width": 32, "prediction": "epsilon",
        "variance": "learned_range", "num_classes": 10, "null_class": 10, "class_names": "\n".join(CLASSES),
        "timestep_type": "int64", "noise_schedule": "linear", "num_train_timesteps": 1000, "beta_start": 1e-4,
        "beta_end": 0.02, "decoding": "pixels", "guidance_scale": 2.0,
    }  # fmt: skip
    keys = {f"tstitch/{key}": str(value) for key, value in values.items()}
    torch.jit.save(torch.jit.script(network), str(scratch / f"{name}.pt"), _extra_files=keys)
    models += ["--model", str(scratch / f"{name}.pt")]

judge = ["--data", str(scratch / "data.npz"), "--classifier", str(scratch / "classifier.pt")]
report = scratch / "report.json"


def measure(*arguments: str, program: str = "measure_quality.py") -> subprocess.CompletedProcess:
    command = [sys.executable, str(evaluation / program), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def drawn(*arguments: str) -> list[dict]:
    work = ["--work", str(scratch / "work"), "--keep", "--devices", "cpu", "--pictures", "10"]
    done = measure(tool, report, *models, *judge, *work, *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(report.read_text())["cells"]


cells = drawn("--experiment", "routings")
assert [cell["routing"] for cell in cells] == ["stitch", "large-first", "interleaved", "falling"]
for cell in cells:
    assert (cell["sampler"], cell["steps"], cell["ratio"], cell["pictures"]) == ("ddim", 50, 0.5, 10), cell
    assert cell["frechet_distance_in_classifier_features"] > 0 and cell["images_per_second"] > 0
    assert 0 <= cell["precision"] <= 1 and 0 <= cell["recall"] <= 1 and 0 <= cell["agreement"] <= 100
distances = {cell["frechet_distance_in_classifier_features"] for cell in cells}
assert len(distances) == 4, "the routings draw different pictures"

# A set whose drawing was stopped has a report, too, and is drawn again.
import measure_quality  # noqa: E402

piece = measure_quality.Piece(measure_quality.Run("ddim", 10, "0:1:0.5", 20), scratch / "stopped", 0, 20)
assert not piece.is_drawn()
piece.folder.mkdir()
for finished, whole in (([20, 20, 20], True), ([20, 20, 13], False), ([20, 20], False), ([], False)):
    piece.report.write_text(json.dumps({"ratios": [{"finished_images": count} for count in finished]}))
    assert piece.is_drawn() == whole, finished
for finished, whole in ((20, True), (13, False)):
    piece.report.write_text(json.dumps({"finished_images": finished}))
    assert piece.is_drawn() == whole, finished

# What is measured is not measured again, and the same pictures give the same figures.
before = report.stat().st_mtime_ns
assert drawn("--experiment", "routings") == cells and report.stat().st_mtime_ns == before
report.write_text(json.dumps({"cells": cells[:3]}))
assert drawn("--experiment", "routings") == cells, "one set was gone, and is judged from its pictures"
folder = scratch / "work/ddim-50-falling-10-at-0.5/0/ratio-0.5"
done = measure(folder, *judge, "--report", scratch / "judged.json", program="evaluate.py")
assert done.returncode == 0, done.stderr
[judged] = json.loads((scratch / "judged.json").read_text())["folders"].values()
assert judged == {key: cells[3][key] for key in judged}, (judged, cells[3])

# A sweep: the ratios of the tool, each with pictures of its own.
cells = drawn("--experiment", "ratios")[4:]
assert [cell["ratio"] for cell in cells] == [i / 10 for i in range(11)]
assert len({cell["frechet_distance_in_classifier_features"] for cell in cells}) == 11

# Forecasts, which the plot leaves out.
forecasts = drawn("--experiment", "forecasts")[15:]
assert [(cell["sampler"], cell["steps"]) for cell in forecasts[::4]] == [("ddim", 50), ("dpm-solver++", 30), ("ddim", 100)]
ways = [(cell.get("forecast"), cell.get("forecast_guidance")) for cell in forecasts[4:8]]
assert ways == [(None, None), (None, "every:2"), ("every:2,2", None), ("every:2,2", "every:2")], ways
# The twelfth is among the ratios.
assert len({cell["frechet_distance_in_classifier_features"] for cell in forecasts}) == len(forecasts) == 11
both = scratch / "work/ddim-50-stitch-10-at-0.4-forecast-every-2-guidance-every-2/0/report.json"
assert json.loads(both.read_text())["ratios"][0]["forecast_calls"] == [0, 13]
assert drawn("--experiment", "forecasts")[15:] == forecasts

# The front: all is there but DDIM at 20 steps, whose forecasts are compared with the pictures without.
sys.argv = ["measure_quality.py"]
import measure_quality as measuring  # noqa: E402

front = measuring.runs_of("front", 10)
assert all((measuring.unforecast(run, front) is None) == (run.way[3:] == ("none", "none")) for run in front)
fresh = [run for run in front if (run.sampler, run.steps) == ("ddim", 20)]
told = [
    {"sampler": run.sampler, "steps": run.steps, "routing": "stitch", "ratio": ratio, "guidance": 1.5, "pictures": 10,
     "forecast": run.forecast, "forecast_guidance": run.forecast_guidance}
    for run in front if run not in fresh for ratio in run.ratios
]  # fmt: skip
report.write_text(json.dumps({"cells": told}))
measured = drawn("--experiment", "front")[len(told):]
assert len(measured) == sum(len(run.ratios) for run in fresh) == 17
for cell in measured:
    changed = cell.get("change_in_8_bit_levels")
    assert (changed is None) == ("forecast" not in cell and "forecast_guidance" not in cell), cell
    assert changed is None or 0 < changed < 100, cell
[calibrated] = [cell for cell in measured if cell.get("forecast") == "calibrated"]
assert calibrated["ratio"] == 0.4 and calibrated["steps"] == 20
table = scratch / "work/ddim-20-stitch-10-at-0.4-forecast-calibrated/0/table.txt"
[drawn_with] = json.loads((table.parent / "report.json").read_text())["ratios"]
assert drawn_with["forecast_calls"] == [0, 6] and drawn_with["calls"] == [8, 6], drawn_with

# As a table for budgets: all but the calibrated one, the best first.
done = measure(report, scratch / "quality.txt", "--pictures", "10", "--networks", "small", "large", program="quality_table.py")
assert done.returncode == 1 and "must be a report of measure_quality.py" in done.stderr, done.stderr  # no figures of the told
report.write_text(json.dumps({"cells": measured}))
done = measure(report, scratch / "quality.txt", "--pictures", "10", "--networks", "small", "large", program="quality_table.py")
assert done.returncode == 0, done.stderr
head, rows = (scratch / "quality.txt").read_text().splitlines()[:4], (scratch / "quality.txt").read_text().splitlines()[4:]
assert head[:3] == ["tstitch quality table 1", "networks\tsmall\tlarge", "guidance\t1.5"] and len(rows) == 16
found = [float(row.split("\t")[0]) for row in rows]
assert found == sorted(found) and "ddim\t20\t0.4,0.6\tevery:2\tevery:2" in {row.split("\t", 1)[1] for row in rows}

fronts = measured
report.write_text(json.dumps({"cells": cells[:4] + forecasts}))
try:
    import matplotlib  # noqa: F401
except ImportError as error:
    print(f"the plot was not drawn: {error}")
else:
    done = measure(report, scratch / "plot.png", program="plot_quality.py")
    assert done.returncode == 0, done.stderr
    plot = np.asarray(Image.open(scratch / "plot.png").convert("RGB"))
    assert plot.shape[0] > 400 and len(np.unique(plot.reshape(-1, 3), axis=0)) > 50, "curves and words"

    (scratch / "front.json").write_text(json.dumps({"cells": fronts}))
    done = measure(scratch / "front.json", scratch / "front.png", "--front", program="plot_quality.py")
    assert done.returncode == 0, done.stderr
    assert len(np.unique(np.asarray(Image.open(scratch / "front.png").convert("RGB")).reshape(-1, 3), axis=0)) > 50

# What is wrong is said in one line.
for arguments, words in (
    (["nowhere", report], "nowhere: must be the program tstitch_sample, got no file"),
    ([tool, report, "--pictures", "12"], "--pictures: must be a multiple of the 10 classes, got 12"),
    ([tool, scratch / "data.npz"], "data.npz: must be a report of this program"),
    ([tool, scratch / "new.json", *models, "--data", "nowhere"], "nowhere: must be the data set"),
    ([tool, scratch / "new.json", "--model", scratch / "data.npz", *judge, "--devices", "cpu", "--experiment",
      "routings", "--work", scratch / "other"], "data.npz"),
):  # fmt: skip
    done = measure(*arguments)
    assert done.returncode == 1 and words in done.stderr.splitlines()[-1], (arguments, done.stderr)
    assert not (scratch / "new.json").exists()
(scratch / "code.pth").write_bytes(b"\x80\x02cos\nsystem\n.")
done = measure(folder, *judge, "--inception", scratch / "code.pth", program="evaluate.py")
assert done.returncode == 1 and ("code.pth: must be the Inception weights" in done.stderr or "torch-fidelity" in done.stderr)
print("drawn, judged, resumed and plotted")
