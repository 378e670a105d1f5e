"""The examples run and say what they found: examples_test.py EXAMPLES SCRATCH"""

import os
import re
import subprocess
import sys
from pathlib import Path

from harness import check, main, require, tstitch

examples, scratch = Path(sys.argv[1]), Path(sys.argv[2])
scratch.mkdir(parents=True, exist_ok=True)


def run(name, *arguments):
    ran = subprocess.run([sys.executable, str(examples / name), *map(str, arguments)], capture_output=True, text=True, cwd=scratch,
                         env={**os.environ, "PYTHONPATH": str(Path(tstitch.__file__).parent.parent)})  # fmt: skip
    return ran.returncode, ran.stdout + ran.stderr


def test_sweep():
    require("matplotlib")
    code, text = run("sweep.py", "--ratios", 2, "--steps", 2, "--metric", "contrast", "--out", "contrast.png")
    check(
        code == 0 and re.search(r"ratio 1.00: Plan.*ratio 1.00: contrast \d.*figure: contrast.png", text, re.DOTALL),
        text,
    )
    check((scratch / "contrast.png").stat().st_size > 10000, "an empty figure")


def test_adaptive():
    code, text = run("adaptive.py", "--steps", 8, "--tolerance", 100)
    check(code == 0 and "6 of 8 steps by the small network" in text, text)
    code, text = run("adaptive.py", "--steps", 4, "--tolerance", 0)
    check(code == 0 and "0 of 4 steps by the small network, 0.0000 from" in text, text)


def test_host_cost():
    """That it is fast enough is measured on a quiet machine, by optimised code; here both loops end in the same x."""
    require("diffusers")
    _, text = run("host_cost.py", 1)
    check(re.search(r"DDIM +\d.*\nDPM-Solver\+\+ 2M +\d", text), text)


if __name__ == "__main__":
    main(sys.modules[__name__])
