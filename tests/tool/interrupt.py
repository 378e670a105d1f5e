"""Interrupts tstitch_sample once it has written a picture, and looks at what it left: interrupt.py TOOL MODEL FOLDER"""

import glob
import json
import os
import shutil
import signal
import subprocess
import sys
import time

tool, model, folder = sys.argv[1:]
shutil.rmtree(folder, ignore_errors=True)
run = subprocess.Popen(
    [tool, "--model", model, "--device", "cpu", "--steps", "5", "--count", "10000", "--batch", "1", "--quiet"]
    + ["--output", folder, "--report", folder + "/report.json"]
)
deadline = time.time() + 120
while not glob.glob(folder + "/*.png") and run.poll() is None and time.time() < deadline:
    time.sleep(0.1)
run.send_signal(signal.SIGINT)
code = run.wait(timeout=120)

pictures = glob.glob(folder + "/*.png")
whole = [path for path in pictures if open(path, "rb").read()[-8:-4] == b"IEND"]
others = [name for name in os.listdir(folder) if not name.endswith(".png") and name != "report.json"]
finished = json.load(open(folder + "/report.json"))["finished_images"]
print(f"exit code {code}, {len(pictures)} pictures, {len(whole)} whole, {finished} reported, beside them {others}")
sys.exit(not (code == 130 and 0 < len(whole) == len(pictures) == finished and not others))
