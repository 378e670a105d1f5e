"""torch.load reads what save_trajectory wrote, as data alone: trajectory_test.py FILE"""

import sys

import torch

file = torch.load(sys.argv[1], weights_only=True)
assert (file["format"], file["version"], file["networks"]) == ("tstitch trajectory file", 1, ["small", "large"]), file
run = file["run"]
assert (run["next"], run["count"], run["first"]) == (3, 4, 1), run
assert run["x"].shape == (2, 2, 3, 3) and run["x"].isfinite().all() and run["x"].std() > 0
assert run["seeds"] == [7, -1]  # 2^64 - 1
assert run["guidance"]["scale"] == [2.0] and run["guidance"]["guide_network"] is None
assert run["inpainting"]["mask"].shape == (1, 1, 3, 3)
assert [each["index"] for each in run["history"]] == [2]
assert file["notes"]["text"] == "of a program" and file["notes"]["tensors"][0]["name"] == "kept"
print("a file of save_trajectory by torch.load: as it was written")
