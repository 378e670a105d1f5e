"""Builds the pages and the reference: build.py OUTPUT_FOLDER

The pages are examples/docs, by MkDocs; the reference is made of the comments in the headers, by Doxygen, with an example for
each class (examples.py). A warning of either is an error. Exits with 77 where one of them is missing.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as xml
from pathlib import Path

import examples

site_folder = Path(__file__).resolve().parent
repository = site_folder.parent.parent
# What a browser would fetch to show a page. Links that a reader follows are others.
FETCHES = re.compile(
    r"""<(?:script|link|img|iframe)\b[^>]*?\s(?:src|href)=["']?(?:https?:)?//|@import|url\(["']?(?:https?:)?//"""
)


def stop(message: str, code: int = 1) -> None:
    print(message, file=sys.stderr if code != 77 else sys.stdout)
    sys.exit(code)


def documented_examples() -> str:
    """For Doxygen, which adds it to what the headers say of the classes."""
    text = ""
    for name, example in examples.examples_of(repository).items():
        place = f"{example.path.relative_to(repository)}:{example.line}"
        code = "\n".join(f"/// {line}" for line in example.text.splitlines())
        text += f"/// @class tstitch::{name}\n/// @par Example\n/// From {place}\n/// @code{{.cpp}}\n{code}\n/// @endcode\n\n"
    return text


def require_examples(folder: Path) -> None:
    """Each class of the headers has its page, and on it what examples.py says."""
    pages = {each.findtext("name", "").split("<")[0].strip(): each.findtext("filename", "")
             for each in xml.parse(folder / "tags").getroot() if each.get("kind") in ("class", "struct")}
    found = examples.examples_of(repository)
    for name in examples.classes_of(repository / "include/tstitch"):
        page = folder / "html" / pages.get(f"tstitch::{name}", "none")
        if not page.is_file():
            stop(f"Doxygen: tstitch::{name} must have a page, got none")
        place = f"From {found[name].path.relative_to(repository)}:{found[name].line}" if name in found else ""
        if place not in page.read_text().replace("<wbr/>", ""):
            stop(f"Doxygen: the page of tstitch::{name} must have its example, '{place}', got none")


def reference(folder: Path) -> None:
    """Writes the reference to folder/html, and folder/tags, which says where each header is in it."""
    if wrong := examples.complaints(repository):
        stop("\n".join(wrong))
    (folder / "examples.dox").write_text(documented_examples())
    moved = [path for path in (repository / "include").rglob("*.hpp") if "\n#pragma message(" in path.read_text()]
    # All of stb.hpp is inside, and what it includes is another project's.
    left_out = [*moved, repository / "include/tstitch/output/stb.hpp"]
    settings = (site_folder / "Doxyfile").read_text() + (
        f'OUTPUT_DIRECTORY = "{folder}"\nINPUT += "{folder}/examples.dox"\nGENERATE_TAGFILE = "{folder}/tags"\nEXCLUDE = '
        + " ".join(f'"{path.relative_to(repository)}"' for path in left_out) + "\n")
    run = subprocess.run(["doxygen", "-"], input=settings, text=True, cwd=repository, stderr=subprocess.PIPE,
                         stdout=subprocess.PIPE)
    if run.returncode or run.stderr.strip():
        stop(f"Doxygen:\n{run.stderr}")
    require_examples(folder)


def pages(output: Path, reference_folder: Path) -> None:
    environment = os.environ | {"TSTITCH_REFERENCE": str(reference_folder)}
    run = subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "--clean", "--config-file",
                          site_folder / "mkdocs.yml", "--site-dir", output], env=environment, text=True,
                         stderr=subprocess.STDOUT, stdout=subprocess.PIPE)
    if run.returncode or "WARNING" in run.stdout:
        stop(f"MkDocs:\n{run.stdout}")


def main() -> None:
    if len(sys.argv) != 2:
        stop("usage: build.py OUTPUT_FOLDER", 2)
    output = Path(sys.argv[1]).resolve()
    made = repository / "build/site-venv/bin/python"  # by build.sh
    for package in ("mkdocs", "l2m4m", "pygments"):
        if not importlib.util.find_spec(package):
            if made.exists() and Path(sys.prefix) != made.parent.parent:
                os.execv(made, [made, *sys.argv])
            stop(f"skipped: the Python package {package} is not there; bash examples/site/build.sh installs it", 77)
    if not shutil.which("doxygen"):
        stop("skipped: doxygen is not there; bash examples/site/build.sh installs it", 77)
    with tempfile.TemporaryDirectory() as folder:
        reference(Path(folder))
        pages(output, Path(folder))
    for path in [*output.rglob("*.html"), *output.rglob("*.css")]:
        if found := FETCHES.search(path.read_text(errors="replace")):
            stop(f"{path}: must be shown without a network, got {found.group()}")
    print(f"{len(list(output.glob('*.html')))} pages, {len(list(output.glob('api/*.html')))} of the reference")


main()
