"""No guard of the Python programs lets nan or infinity pass: guards_test.py EXPORT_FOLDER SCRATCH_FOLDER

Every comparison with nan is false, so that a refusal must be what happens where a comparison does not hold.
"""

import math
import shutil
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

export, scratch = Path(sys.argv[1]), Path(sys.argv[2])
sys.path.insert(0, str(export))
import calibrate  # noqa: E402
import common  # noqa: E402
import export_dit  # noqa: E402
import harness  # noqa: E402
from dit import DiT, DiTConfig  # noqa: E402

shutil.rmtree(scratch, ignore_errors=True)
scratch.mkdir(parents=True)
torch.set_grad_enabled(False)
NAN, INF = math.nan, math.inf
TINY = DiTConfig(channels=4, size=4, width=16, depth=1, heads=2, num_classes=3)


def refusal(function: object, *arguments: object, **named: object) -> str:
    """The line with which it ended; an empty string where it did not."""
    try:
        function(*arguments, **named)
    except SystemExit as stop:
        return str(stop)
    return ""


# ------------------------------------------------------------------------------------------------ the check


def difference(got: list[float], expected: list[float]) -> float:
    case = ((torch.zeros(1, 2),), torch.tensor([expected]))
    return common.largest_difference([(9, lambda x: torch.tensor([got]))], torch.float32, "cpu", [case])


def check_largest_difference() -> None:
    assert abs(difference([1.0, 2.5], [1.0, 2.0]) - 0.5 / math.sqrt(2.5)) < 1e-6
    for bad in (NAN, INF, -INF):
        assert not difference([1.0, bad], [1.0, 2.0]) <= 1e9, bad
        assert not difference([1.0, 2.0], [1.0, bad]) <= 1e-4, bad
    assert math.isnan(difference([INF, 1.0], [INF, 1.0]))
    # Squares that float32 cannot hold made a difference of 0 of everything.
    assert abs(difference([3e30, 0.0], [2e30, 0.0]) - math.sqrt(0.5)) < 1e-6
    # In whatever order: a nan that comes first or last.
    case = ((torch.zeros(1, 1),), torch.ones(1, 1))
    answers = {"good": lambda x: torch.ones(1, 1), "off": lambda x: torch.full((1, 1), 1.5), "nan": lambda x: x * NAN}
    for order in (("nan", "good"), ("good", "nan"), ("off", "nan", "good")):
        functions = [(9, answers[name]) for name in order]
        assert math.isnan(common.largest_difference(functions, torch.float32, "cpu", [case])), order
    assert common.largest_difference([(9, answers["off"]), (9, answers["good"])], torch.float32, "cpu", [case]) == 0.5
    assert math.isnan(common.largest_difference([(0, answers["good"])], torch.float32, "cpu", [case])), "none compared"


class Scale(nn.Module):
    def __init__(self, weight: float, bias: float = 0.0):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.tensor([weight])), nn.Parameter(torch.tensor([bias]))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight * self.weight + self.bias


def check_write() -> None:
    """Of a network that is too large for the type in its weights, or only on the way."""
    output = scratch / "refused.pt"

    def says(network: nn.Module, dtype: str) -> str:
        message = refusal(common.write, output, network, {"format": 1}, lambda n: (torch.ones(n, 2),), dtype)
        assert not list(scratch.glob("*refused*")), "what is refused must write nothing"
        return message

    rule = "must be at most 65504 in float16, got 70000; --dtype float32 or bfloat16 holds it"
    assert says(Scale(1.0, 7e4), "float16") == f"{output}: not written: bias {rule}"
    assert "it differs from its source by inf" in says(Scale(300.0), "float16"), "300 * 300 is more than float16 has"
    assert "its source must give finite numbers" in says(Scale(1e20), "float32")
    assert "its source must give finite numbers" in says(Scale(NAN), "float32")
    for dtype in ("float32", "bfloat16"):
        common.write(scratch / "good.pt", Scale(1.0, 7e4), {"format": 1}, lambda n: (torch.ones(n, 2),), dtype)


def weights_of(**changes: Tensor) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    network = DiT(TINY)
    weights = {name: torch.randn(t.shape, generator=generator) * 0.1 for name, t in network.state_dict().items()}
    return weights | {"pos_embed": network.pos_embed} | changes


def check_exporter() -> None:
    for value, dtype, words in (
        (NAN, "float32", "must hold finite numbers"), (INF, "float32", "must hold finite numbers"),
        (7e4, "float16", "must be at most 65504 in float16, got 70000"),
    ):  # fmt: skip
        changed = weights_of(**{"final_layer.linear.bias": torch.full((32,), value)})
        torch.save(changed, scratch / "weights.pt")
        arguments = (scratch / "weights.pt", scratch / "refused.pt", "--heads", 2, "--null-class", 3, "--dtype", dtype)
        harness.require_refusal(harness.run(export_dit, *arguments), (words,), scratch)
    # A double that float32 does not have is infinite in it.
    changed = weights_of(**{"final_layer.linear.bias": torch.full((32,), 1e300, dtype=torch.float64)})
    torch.save(changed, scratch / "weights.pt")
    message = harness.run(export_dit, scratch / "weights.pt", scratch / "refused.pt", "--heads", 2, "--null-class", 3)
    harness.require_refusal(message, ("must hold finite numbers",), scratch)


# ------------------------------------------------------------------------------------------------ calibrate.py


def check_calibration() -> None:
    weight = torch.eye(4, dtype=torch.float64)
    for bad in (NAN, INF):
        hessian = torch.full((4, 4), bad, dtype=torch.float64)
        assert not calibrate.output_error(weight * 0.1, weight, hessian) <= 1, bad
    assert calibrate.output_error(weight * 0.1, weight, weight) == 0.1
    assert calibrate.output_error(weight, weight, weight * 0) == 0, "no inputs, no error"
    network = DiT(TINY).eval()
    network.load_state_dict(weights_of())
    schedule = export_dit.DEFAULT_SCHEDULE
    assert not refusal(calibrate.calibrate, network, TINY, schedule, 1.0, 1, steps=1)
    # Inputs whose squares are infinite, though they are not.
    network.blocks[0].mlp.fc1.bias.fill_(1e25)
    message = refusal(calibrate.calibrate, network, TINY, schedule, 1.0, 1, steps=1)
    assert "inputs must be finite, and so must be their squares" in message, message


check_largest_difference()
check_write()
check_exporter()
check_calibration()
print("nan and infinity are refused")
