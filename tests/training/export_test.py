"""What the training scripts export is what the library reads: export_test.py TOOL TRAINING_FOLDER SCRATCH_FOLDER

Exports a DiT with random weights, twice, and has tstitch_sample plan and draw with it.
"""

import dataclasses
import subprocess
import sys
from pathlib import Path

import torch

tool, training, scratch = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
sys.path.insert(0, str(training.parent / "export"))
from dit import DiT, DiTConfig  # noqa: E402

scratch.mkdir(parents=True, exist_ok=True)
torch.manual_seed(0)
config = DiTConfig(size=16, width=32, depth=2, heads=2, num_classes=3)
network = DiT(config)
for parameter in network.parameters():  # the gates and the last layer begin at zero, which would hide everything
    torch.nn.init.normal_(parameter, std=0.2)
checkpoint = {
    "config": dataclasses.asdict(config),
    "class_names": ["one", "two", "three"],
    "noise_schedule": {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02},
    "images_seen": 7,
    "ema": network.state_dict(),
}
torch.save(checkpoint, scratch / "checkpoint.pt")

for name in ("a.pt", "b.pt"):
    export = [sys.executable, str(training / "export.py"), str(scratch / "checkpoint.pt"), str(scratch / name)]
    subprocess.run([*export, "--name", "tiny", "--guidance-scale", "1.25"], check=True)
first, second = (scratch / "a.pt").read_bytes(), (scratch / "b.pt").read_bytes()
assert first == second, "the same checkpoint must give the same bytes"
assert str(training).encode() not in first, "no paths of this machine inside"

models = ["--model", str(scratch / "a.pt"), "--model", str(scratch / "b.pt"), "--device", "cpu", "--steps", "4"]
plan = subprocess.run([tool, *models, "--plan"], check=True, capture_output=True, text=True).stdout
assert "network 0 takes 2, network 1 takes 2" in plan and "1.25" in plan, plan

# And draws.
grid = scratch / "grid.png"
subprocess.run([tool, *models, "--class", "two", "--grid", str(grid), "--scale", "1", "--quiet"], check=True)
assert grid.read_bytes()[16:24] == bytes([0, 0, 0, 16, 0, 0, 0, 16]), "16x16 pixels"
print("exported, planned and drawn")
