"""Which example shows which class, for the reference and for the test that each class has one.

A public class or struct is shown by the shortest function, or class, that names it in the programs of examples/ that
CTest builds and runs with their output checked.

    python examples.py     # lists them, and fails where a class has none
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

# Classes that are seen in the example of another one, which does not spell their names.
SEEN_WITH = {
    "DiT": "DiTOptions",
    "MMDiT": "DiTOptions",
    "BatcherFull": "Batcher",
    "BatcherOptions": "Batcher",
    "BatcherProgress": "BatcherTicket",
    "BatcherRequestOptions": "Batcher",
    }
# Classes without an example, with the reason.
WITHOUT = {
    "AOTInductorOptions": "needs a package that was compiled on the machine; examples/export has what compiles one",
    "Ancestral": "a part of the update rules with fresh noise",
    "CaptureOptions": "needs a GPU",
    "CompiledFor": "needs a package that was compiled on the machine",
    "DiTLinear": "load_dit makes it of a file",
    "DiTWeights": "load_dit makes them of a file",
    "MMDiTWeights": "load_dit makes them of a file",
    "NetworkDescription": "load_safetensors reads it",
    "ProbabilityFlow": "a part of Euler's and Heun's rules",
    "Slope": "a part of Euler's and Heun's rules",
    "Term": "a part of WeightedSum",
}
# Of those that many examples name: the function that shows what they are for.
BEST = {
    "AnySampler": "samplers",
    "DDIM": "plan",
    "DPMSolver": "many_pictures",
    "Network": "own_network",
    "NoiseSchedule": "levels",
    "Plan": "plans",
    "PlannedStep": "plan",
    "Request": "requests",
    "Sampler": "own_rules",
    "Samples": "requests",
    "Step": "FirstAndLast",
    "Stitch": "plan",
    "Trajectory": "take_apart",
}


@dataclass(frozen=True)
class Example:
    """A function or a class of a program."""

    path: Path
    line: int
    text: str

    @property
    def name(self) -> str:
        """Of the function or class."""
        head = next(line for line in self.text.splitlines() if not line.startswith(("//", "template")))
        named = re.match(r"(?:struct|class) (\w+)|.*?(\w+)(?:\(| = )", head)
        return (named.group(1) or named.group(2)) if named else ""


def classes_of(include: Path) -> dict[str, Path]:
    """The public classes and structs, without `tstitch::`, with their headers; not those that are members of others."""
    found: dict[str, Path] = {}
    for path in sorted(include.rglob("*.hpp")):
        spaces: list[str] = []
        text = re.sub(r"^namespace \w+ \{\n(?:(?:class|struct) \w+;\n)+\}\n", "", path.read_text(), flags=re.M)
        lines = text.splitlines()
        for line, before in zip(lines, ["", *lines]):
            if opened := re.match(r"(?:inline )?namespace (\S*) ?\{(.*\})?", line):
                if not opened.group(2):
                    spaces.append(opened.group(1))
            elif re.match(r"\}  // namespace", line):
                spaces.pop()
            elif declared := re.match(r"(?:class|struct) (\w+)(?: final)?(?: :.*)? \{", line):
                space = "::".join(spaces)
                if space.split("::")[0] == "tstitch" and "detail" not in space and before != "template <>":
                    found.setdefault(f"{space}::{declared.group(1)}".removeprefix("tstitch::"), path)
    return found


def programs_of(repository: Path) -> list[Path]:
    """The programs whose output CTest checks."""
    listed = (repository / "examples/CMakeLists.txt").read_text()
    return [path for path in sorted((repository / "examples").glob("*.cpp"))
            if re.search(rf"^ *example_test\({path.stem}\b", listed, re.M)]  # fmt: skip


def parts_of(path: Path) -> list[Example]:
    """The functions and classes of a program, with the comments above them."""
    found: list[Example] = []
    begin: int | None = None
    lines = path.read_text().splitlines()
    inside = False
    for i, line in enumerate(lines):
        if inside:
            if re.match(r"\}[;)]*( catch.*)?$", line):
                text = "\n".join(lines[begin : i + 1])
                if not re.search(r"^int main\(", text, re.M):
                    found.append(Example(path, begin + 1, text))
                begin, inside = None, False
        elif re.match(r"(// (?!---)|/// |template |requires)", line):
            begin = i if begin is None else begin
        elif re.match(r"[^\s/#}].*\{$", line) and not line.startswith("namespace"):
            begin, inside = (i if begin is None else begin), True
        else:  # a comment above something else
            begin = None
    return found


def examples_of(repository: Path) -> dict[str, Example]:
    """The example of each class that has one."""
    parts = [part for path in programs_of(repository) for part in parts_of(path)]
    parts.sort(key=lambda part: (part.text.count("\n"), len(part.text)))
    found: dict[str, Example] = {}
    for name in classes_of(repository / "include/tstitch"):
        shown = [part for part in parts if re.search(rf"\btstitch::{name}\b(?!::named)", part.text)]
        best = [part for part in shown if part.name == BEST.get(name)]
        if name in BEST and not best:
            raise SystemExit(f"examples/site/examples.py: {BEST[name]} must be a function that names {name}, got none")
        if shown:
            found[name] = (best or shown)[0]
    for name, other in SEEN_WITH.items():
        found.setdefault(name, found[other])
    return found


def complaints(repository: Path) -> list[str]:
    """What is wrong: classes without an example, and exceptions that are none."""
    classes, found = classes_of(repository / "include/tstitch"), examples_of(repository)
    wrong = [f"{path.relative_to(repository)}: tstitch::{name} must have an example in examples/reference.cpp, got none"
             for name, path in classes.items() if name not in found and name not in WITHOUT]  # fmt: skip
    for name in [*SEEN_WITH, *WITHOUT]:
        if name not in classes:
            wrong.append(f"examples/site/examples.py: {name} must be a class, got none")
        if name in WITHOUT and name in found:
            wrong.append(f"examples/site/examples.py: {name} must have no example, got one")
    return wrong


def main() -> None:
    repository = Path(__file__).resolve().parent.parent.parent
    for name, example in examples_of(repository).items():
        print(f"{name}: {example.path.name}:{example.line}")
    if wrong := complaints(repository):
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
