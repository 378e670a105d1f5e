"""Tells which Python packages a program lacks, all at once. Imports none of them."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def advice(missing: list[str], requirements: Path) -> str:
    """What is missing, and what installs it."""
    environment = ROOT / ".venv/bin/python"  # where examples/quickstart.sh puts torch
    python = Path(sys.executable)
    other = environment.is_file() and environment.parent != python.parent
    names = " and ".join(filter(None, (", ".join(missing[:-1]), missing[-1])))
    return (
        f"needs the Python package{'s' if len(missing) > 1 else ''} {names}, got none in {python}: "
        f"{environment if other else python} -m pip install -r {requirements}"
        + (f", and run it with {environment}" if other else "")
    )


def missing_of(*names: str) -> list[str]:
    """Of these modules, as their packages are called."""
    packages = {"PIL": "pillow", "google.protobuf": "protobuf"}
    return [packages.get(name, name) for name in names if not is_there(name)]


def is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of what it is in
        return False


def require(program: str, *names: str, beside: tuple[str, ...] = ()) -> None:
    """Ends a program with one line that names all packages that are missing, if one of @names is.

    @program: its __file__. @beside: what only some of its inputs need; named with the others, and not required.
    """
    if missing_of(*names):
        requirements = Path(program).resolve().parent / "requirements.txt"
        sys.exit(f"{Path(program).name}: {advice(missing_of(*names, *beside), requirements)}")
