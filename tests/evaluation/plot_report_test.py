"""Reports of the tools are drawn: plot_report_test.py INSPECT BENCHMARK PLOT_REPORT FOLDER. Exits with 77 without matplotlib."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
import forked  # noqa: E402

try:
    import numpy as np
    from matplotlib.image import imread
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

inspect, benchmark, plot, scratch = map(Path, sys.argv[1:])
shutil.rmtree(scratch, ignore_errors=True)
scratch.mkdir(parents=True)
report, picture = scratch / "report.json", scratch / "plot.png"


def draw() -> subprocess.CompletedProcess:
    return forked.run(plot, report, picture)


for tool, *words in (
    (inspect, "--steps", 4, "--count", 1, "--rows", 1),
    (benchmark, "--steps", 2, "--batch", "1,2", "--ratio", "0,0.5,1", "--repeats", 1, "--no-first-picture"),
):
    command = [tool, "--device", "cpu", *words, "--json", report]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    done = draw()
    assert done.returncode == 0 and done.stdout == f"plot: {picture}\n", done
    pixels = (255 * imread(picture)).astype(int).reshape(-1, imread(picture).shape[-1])
    # White, both first colours of matplotlib's curves, and words.
    for color in ([255, 255, 255], [31, 119, 180], [255, 127, 14]):
        assert (np.abs(pixels[:, :3] - color).max(axis=1) < 3).sum() > 30, (tool, color)
    picture.unlink()

for text in ("", "[]", "{}", '{"cells": []}', '{"cells": [{"ratio": 1}]}', json.dumps({"networks": []})):
    report.write_text(text)
    done = draw()
    assert done.returncode == 1 and "must be a report of tstitch_inspect" in done.stderr, (text, done)
    assert done.stderr.count("\n") == 1 and not picture.exists(), (text, done)
print("drawn")
