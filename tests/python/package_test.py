"""The package is built and installed as people do, and imports: package_test.py SOURCE SCRATCH [CXXFLAGS]

pip builds in isolation against the torch of this Python, and installs into SCRATCH/site, where the other tests find it.
CXXFLAGS are those of the C++ programs that the other tests compare bits with.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

source, scratch = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
flags = sys.argv[3] if len(sys.argv) > 3 else "-O1 -DNDEBUG"
site = scratch / "site"


def skip(reason):
    print(f"skipped: {reason}")
    sys.exit(77)


def python(code, **environment):
    """Runs code in a fresh Python that sees the package."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=scratch,
                          env={**os.environ, "PYTHONPATH": str(site), **environment})  # fmt: skip


def must(run, pattern=""):
    assert run.returncode == 0 and re.search(pattern, run.stdout + run.stderr), (
        f"{pattern}: {run.returncode}\n{run.stdout}\n{run.stderr}"
    )
    return run.stdout


def install():
    shutil.rmtree(site, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-deps", "--target", str(site),
               "--config-settings", f"cmake.define.CMAKE_CXX_FLAGS_RELEASE={flags}", str(source)]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, cwd=scratch, env={**os.environ, "PYTHONPATH": ""})
    output = run.stdout + run.stderr
    if run.returncode == 0:
        return
    shutil.rmtree(site, ignore_errors=True)
    if re.search(
        r"No module named pip|No matching distribution found for (scikit-build-core|ninja|cmake)|NewConnectionError|ConnectTimeout",
        output,
    ):
        skip(
            "pip cannot fetch the build backend: "
            + next(line for line in reversed(output.splitlines()) if line.strip())
        )
    if re.search(r"No CMAKE_CXX_COMPILER could be found|missing: .*Development.Module", output):
        skip("there is no C++ compiler or no Python.h")
    sys.exit(output)


def main():
    scratch.mkdir(parents=True, exist_ok=True)
    install()
    info = must(python("import tstitch; print(tstitch.build_info)"), "'version': ")
    print(info.strip())
    has_cuda = must(python("import torch; print(torch.version.cuda)")).strip() != "None"
    assert ("'with_cuda': True" in info) == has_cuda or "'without_cuda_because': '" in info, info

    # What importing costs beside torch, the best of several, because the machine may be busy.
    seconds = min(
        float(
            must(python("import torch, time; t = time.perf_counter(); import tstitch; print(time.perf_counter() - t)"))
        )
        for _ in range(3)
    )
    print(f"import: {seconds:.3f} s beside torch's")
    assert seconds <= 0.3, seconds

    # Another torch is refused before its libraries are called.
    other = python("import torch; torch.__version__ = '2.99.1+cpu'; import tstitch")
    assert other.returncode == 1 and re.search(
        r"ImportError: tstitch was built for torch 2\.\d+.*, and torch here is 2.99.1\+cpu. Build it again",
        other.stderr,
    ), other.stderr
    patch = python("import torch; v = torch.__version__.split('+'); a, b, c = v[0].split('.')[:3]\n"
                   "torch.__version__ = f'{a}.{b}.99' + (f'+{v[1]}' if v[1:] else ''); import tstitch")  # fmt: skip
    must(patch)

    # Without torch the build says what is missing.
    bare = scratch / "bare"
    if not bare.exists():
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    cmake = shutil.which("cmake")
    if cmake:
        run = subprocess.run([cmake, "-S", str(source), "-B", str(scratch / "without"), f"-DPython_EXECUTABLE={bare}/bin/python"],
                             capture_output=True, text=True)  # fmt: skip
        text = " ".join(run.stderr.split())
        assert run.returncode and "there is no torch for" in text and "pip install torch" in text, run.stderr

    # Examples stand beside the package's source and find the installed one.
    must(
        python(
            f"import sys; sys.path.insert(0, {str(source)!r}); import tstitch; assert tstitch.__file__.startswith({str(site)!r}), tstitch"
        )
    )
    typed = {path.name for path in (site / "tstitch").iterdir()}
    assert {"py.typed", "_core.pyi"} <= typed, typed


if __name__ == "__main__":
    main()
