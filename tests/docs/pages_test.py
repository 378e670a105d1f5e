"""The pages say what is so: pages_test.py REPOSITORY TOOLS SCRATCH_FOLDER [--page NAME]

Every block of code of README.md and examples/docs:

- C++ is a verbatim cut of a program in examples/ that CTest builds and runs with its output checked.
- Shell is run, page by page, in a folder with small checkpoints of the names that the page uses. A block of text
  behind it is in its output, where ... stands for anything in a line.
- Links lead to files and headings that are there.
- Each class of the headers has an example in these programs, which the reference shows (examples/site/examples.py).
- Python is run, and CMake configures a project with the library as the page on building installed it.

To be quick, tools draw on the CPU in one step, and by the small network where the page does not say which: what they
are given beside is as on the page. TOOLS is the folder of tstitch_sample. Exits with 77 where a page could not be run
for want of a package, after all others.
"""

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import checkpoints
import python_server

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples/site"))
import examples  # noqa: E402

# Blocks of these are checked elsewhere.
ELSEWHERE = {
    "python.md": "tests/python",
    "CHANGELOG.md": "it says what was",
    "moving_to_0.2.md": "it says what was",
}
# Lines that are not run, each with the reason.
NOT_RUN = (
    (r"bash examples/quickstart\.sh( +#.*)?", "installs and builds; arguments behind it are run by tstitch_sample"),
    (r"bash tests/run\.sh( +#.*)?", "this test is part of it"),
    (r"bash tests/consumer/matrix\.sh", "takes minutes; the compiler of the tests is tried by tests/consumer"),
    (r"bash examples/site/build\.sh", "installs; docs.site does what is behind it"),
    (r"source \.venv/bin/activate && pip install -r \S+/requirements\.txt", "installs"),
    (r"cmake --build build/tests --target .*", "builds what is built"),
    (r"cmake --build build/quickstart --target .*", "builds what is built"),
    (r"ctest --test-dir build/tests -R .*", "this test is part of it"),
    (r"python examples/python/sweep\.py .*", "wants the Python package; tests/python runs it"),
    (r"python examples/benchmark/benchmark_peers\.py .*", "takes minutes of a GPU"),
    (r"python examples/evaluation/measure_quality\.py .*", "takes hours; evaluation.quality runs a small one"),
    (r"python examples/evaluation/quality_table\.py .*", "of what that writes; evaluation.quality runs it"),
    (r"tstitch_sample (--model \S+ )*--budget .*", "what fits depends on the machine; tests/tool has budgets"),
    (r"(torchrun|mpirun|srun|MASTER_ADDR=\S+) .*tstitch_generate .*", "tests/tool/generate_test.py runs such lines"),
    (r"tstitch_generate --pipeline .*", "of a folder that export.pipeline makes"),
    (r"tstitch_serve .*", "draws until it is stopped; tests/tool/serve_test.py asks it"),
    (r"curl .*", "asks that"),
    ("-" if shutil.which("pkg-config") else r"(export PKG|g\+\+ app.cpp \$\(pkg-config).*", "pkg-config is not here"),
    (r"build/tests/examples/tstitch_sample --plan --sampler midpoint", "of a sampler that the reader is to write"),
)
# Nor these on the pages of pairs; that of pipelines runs such lines for one of them.
NOT_RUN_OF_PAIRS = (
    (r"python examples/export/export_pipeline\.py .*", "export.pipeline and export.single_file export such pairs"),
    (r"tstitch_sample --pipeline .*", "of what that writes; export.pipeline draws by it"),
)
# These go on with the other's files.
SAME_FOLDER = {"pair_sit.md": "pair_dit.md", "forecasting.md": "pair_stable_diffusion.md"}
IMPORTED = ("torch", "safetensors.torch", "transformers", "diffusers")  # by exporters
PIPELINES = ("diffusers", "transformers", "tokenizers")  # what make_pipelines wants
NEEDS = {"editing.md": ("PIL",), "gallery.md": ("PIL",), "prompts.md": PIPELINES, "pipelines.md": PIPELINES} | {
    f"pair_{name}.md": PIPELINES for name in ("dit", "sit", "latent_diffusion", "pixart", "stable_diffusion", "sdxl", "stable_diffusion_3", "sana", "wan")
} | dict.fromkeys(("pair_stable_diffusion.md", "forecasting.md"), (*PIPELINES, "PIL"))
FLAGS = {"tool.md": "tstitch_sample", "data_sets.md": "tstitch_generate", "serve.md": "tstitch_serve"}  # whose table has those of --help
CHEAPER = """#!{python}
import os, sys
words, tool = sys.argv[1:], {tool!r}
def has(*flags): return any(word.split("=")[0] in flags for word in words)
def value(flag, change):
    if flag in words: words[words.index(flag) + 1] = change(words[words.index(flag) + 1])
if tool.endswith(("tstitch_sample", "tstitch_generate")) and not has("--help", "--version", "--plan"):
    few = "4" if has("--invert", "--strength") else "1"
    value("--steps", lambda steps: few)
    if not has("--steps", "--preset", "--timesteps", "--sigmas"): words += ["--steps", few]
    if not has("--ratio", "--fractions", "--sweep", "--preset", "--routing") and words.count("--model") in (0, 2):
        words += ["--ratio", "1"]
    if has("--preset") and not has("--class", "--model"): words += ["--class", "3"]
value("--device", lambda device: "cpu")
value("--images", lambda images: "10")
if not has("--device", "--help", "--version"): words += ["--device", "cpu"]
os.execv(tool, [tool, *words])
"""
PROJECT = "cmake_minimum_required(VERSION 3.24)\nproject(app LANGUAGES CXX)\nadd_executable(app app.cpp)\n"


@dataclass
class Block:
    page: Path
    line: int
    language: str
    text: str

    def fail(self, message: str) -> None:
        sys.exit(f"{self.page}:{self.line}: {message}\n{self.text}")


def blocks_of(page: Path) -> list[Block]:
    found: list[Block] = []
    begin, language = 0, ""
    lines = page.read_text().splitlines()
    for i, line in enumerate(lines, 1):
        if not line.startswith("```"):
            indented = not begin and line.startswith("    ") and i > 1 and not lines[i - 2].strip()
            if indented and not line.lstrip().startswith(("-", "|")):
                sys.exit(f"{page}:{i}: code must be in fences, got '{line}'")
        elif not begin:
            begin, language = i, line[3:].strip()
        else:
            found.append(Block(page, begin, language, "\n".join(lines[begin : i - 1])))
            begin = 0
    if begin:
        sys.exit(f"{page}:{begin}: this fence has no end")
    return found


class Pages:
    def __init__(self, repository: Path, tools: Path, scratch: Path) -> None:
        self.repository, self.tools, self.scratch = repository, tools, scratch
        shutil.rmtree(scratch, ignore_errors=True)
        self.bin, self.home, self.checkpoints = scratch / "bin", scratch / "home", scratch / "checkpoints"
        for folder in (self.bin, self.home, self.checkpoints):
            folder.mkdir(parents=True)
        for tool in ("tstitch_sample", "tstitch_inspect", "tstitch_benchmark", "tstitch_generate", "tstitch_serve"):
            self.program(tool, CHEAPER.format(python=sys.executable, tool=str(tools / tool)))
        modules = [module for module in IMPORTED if importlib.util.find_spec(module)]
        self.server = python_server.Server(modules)
        for name in ("python", "python3"):
            self.server.command(self.bin / name)
        self.environment = os.environ | {"PATH": f"{self.bin}:{os.environ['PATH']}", "HOME": str(self.home),
                                         "XDG_CACHE_HOME": str(self.home / ".cache")}  # fmt: skip
        self.programs = {path: path.read_text() for path in examples.programs_of(repository)}
        for name in ("small", "base", "large"):
            source = repository / f"examples/models/cifar10_dit_{'large' if name == 'large' else 'small'}.pt"
            (self.checkpoints / f"{name}.pt").symlink_to(source)
        checkpoints.make_dits(self.checkpoints, repository / "examples/export")
        checkpoints.make_uvit(self.checkpoints, repository / "examples/export")
        if all(map(importlib.util.find_spec, PIPELINES)):
            checkpoints.make_pipelines(self.checkpoints)
        self.skipped: list[str] = []

    def program(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def folder(self, page: str) -> Path:
        """Where a page's commands run: the repository's root as far as they need it, and what they shall find."""
        folder = self.scratch / SAME_FOLDER.get(page, page)
        if not folder.exists():
            folder.mkdir()
            for name in ("CMakeLists.txt", "include", "examples", "tests", ".cmake"):
                (folder / name).symlink_to(self.repository / name)
            for path in self.checkpoints.iterdir():
                (folder / path.name).symlink_to(path)
            shutil.copy(self.repository / "tests/consumer/main.cpp", folder / "app.cpp")
            if page != "building.md":  # which makes it
                (folder / "build/quickstart").mkdir(parents=True)
                (folder / "build/quickstart/examples").symlink_to(self.tools)
        return folder

    def check(self, page: Path) -> None:
        self.links(page)
        blocks = blocks_of(page)
        runs = [block for block in blocks if block.language != "cpp"]
        missing = [package for package in NEEDS.get(page.name, ()) if not importlib.util.find_spec(package)]
        if runs and missing:
            self.skipped.append(f"{page.name} wants {', '.join(missing)}")
            runs = []
        for block in blocks:
            if block.language == "cpp" and not any(f"\n{block.text}\n" in text for text in self.programs.values()):
                block.fail(f"is no cut of {', '.join(path.name for path in self.programs)}")
        if page.name in FLAGS and (self.tools / FLAGS[page.name]).exists():  # that of serve.md may be left out
            self.flags(page)
        output, code = None, 0
        for block, after in zip(runs, [*runs[1:], None]):
            match block.language:
                case "sh":
                    output, code = self.shell(block)
                    if code and not (after and after.language == "text" and after.text.startswith("tstitch_")):
                        block.fail(f"ended with {code}\n{output}")
                case "text":
                    if output is None:
                        block.fail("stands behind no command")
                    pattern = re.escape(block.text).replace(r"\.\.\.", ".*")
                    if not re.search(f"^{pattern}", output, re.M):
                        block.fail(f"is not what is printed:\n{output}\n")
                case "python":
                    self.python(block)
                case "cmake":
                    self.cmake(block)
                case other:
                    block.fail(f"the language must be cpp, sh, text, python or cmake, got '{other}'")

    def links(self, page: Path) -> None:
        """Links to files and headings lead there, as a code host shows the page."""
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
        for path, heading in re.findall(r"\]\(([^)\s#:]*)(#[^)\s]+)?\)", text):
            target = (page.parent / path).resolve() if path else page
            if "api/index.html" in path:  # which the site alone has
                continue
            if not target.exists():
                sys.exit(f"{page}: links to {path}, which is not there")
            titles = re.findall(r"^#+ (.*)$", target.read_text(), re.M) if heading else []
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            if heading and heading[1:] not in anchors:
                sys.exit(f"{page}: links to {path}{heading}, a heading that is not there")

    def flags(self, page: Path) -> None:
        """The table of flags has those that there are."""
        asked = [self.bin / FLAGS[page.name], "--help"]
        help_text = subprocess.run(asked, text=True, capture_output=True, check=True).stdout
        there = set(re.findall(r"^  (?:-h,)?(--[a-z-]+)", help_text, re.M)) - {"--help"}
        listed = {flag for row in re.findall(r"^\| (`--.*?) \|", page.read_text(), re.M)
                  for flag in re.findall(r"`(--[a-z-]+)", row)}  # fmt: skip
        if not there or there - listed or listed - there:
            sys.exit(f"{page}: must list the flags of --help, lacks {there - listed}, has {listed - there} besides")

    def shell(self, block: Block) -> tuple[str, int]:
        lines = []
        for line in re.sub(r" *\\\n *", " ", block.text).splitlines():
            left = (*NOT_RUN, *(NOT_RUN_OF_PAIRS if block.page.name.startswith("pair_") else ()))
            if any(re.fullmatch(pattern, line) for pattern, _ in left):
                for name in re.findall(r"(?<=bash )\S+|(?<=python )(?<!-python )\S+|\S+/requirements\.txt|\w+(?=_tests\b)", line):
                    if not (self.repository / (name if "/" in name else f"tests/{name}")).exists():
                        block.fail(f"{name} is not there")
                continue
            lines.append(re.sub(r"^bash examples/quickstart\.sh (?=-)", "tstitch_sample ", line))
        return self.run(block, ["bash", "-ec", "\n".join(lines)])

    def run(self, block: Block, command: list[str]) -> tuple[str, int]:
        done = subprocess.run(command, cwd=self.folder(block.page.name), env=self.environment, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)  # fmt: skip
        return done.stdout, done.returncode

    def python(self, block: Block) -> None:
        network = ("import torch\n\nclass MyNetwork(torch.nn.Module):\n    def forward(self, x, t):\n"
                   "        return x * 0.5\n\n")  # fmt: skip
        path = self.folder(block.page.name) / "block.py"  # TorchScript reads the source
        path.write_text(network + block.text + "\n")
        output, code = self.run(block, [sys.executable, path.name])
        if code:
            block.fail(f"ended with {code}\n{output}")

    def cmake(self, block: Block) -> None:
        folder = self.folder(block.page.name) / "app"
        folder.mkdir(exist_ok=True)
        shutil.copy(self.repository / "tests/consumer/main.cpp", folder / "app.cpp")
        (folder / "CMakeLists.txt").write_text(("" if "project(" in block.text else PROJECT) + block.text + "\n")
        torch = subprocess.run([sys.executable, "-c", "import torch; print(torch.utils.cmake_prefix_path)"], text=True,
                               capture_output=True, check=True).stdout.strip()  # fmt: skip
        output, code = self.run(block, ["cmake", "-S", "app", "-B", "app/build",
                                        f"-DCMAKE_PREFIX_PATH={torch};{self.home}/.local"])  # fmt: skip
        if code:
            block.fail(f"ended with {code}\n{output}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("repository", type=Path)
    parser.add_argument("tools", type=Path)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--page", action="append")
    arguments = parser.parse_args()
    if wrong := examples.complaints(arguments.repository.resolve()):
        sys.exit("\n".join(wrong))
    pages = Pages(arguments.repository.resolve(), arguments.tools.resolve(), arguments.scratch.resolve())
    # The page on building comes first: others use what it installs. Those that go on with the files of others come last.
    for page in sorted([pages.repository / "README.md", *pages.repository.glob("examples/docs/*.md")],
                       key=lambda path: (path.name != "building.md", path.name in SAME_FOLDER, path.name)):  # fmt: skip
        if page.name in ELSEWHERE or (arguments.page and page.name not in arguments.page):
            continue
        print(page.name, flush=True)
        pages.check(page)
    shutil.rmtree(pages.scratch)  # 0.5 GB; what failed stays to be looked at
    if pages.skipped:
        print(f"skipped: {'; '.join(pages.skipped)}")
        sys.exit(77)


main()
