"""What MkDocs does not do by itself: links from the pages to the rest of the repository.

Pages link to files as a code host shows them, `../quickstart.cpp`. In the site such a file is a page of its own, a
picture is copied, and a header is its page in the reference. TSTITCH_REFERENCE names the folder that build.py had
Doxygen write.
"""

import os
import posixpath
import re
import xml.etree.ElementTree as xml
from pathlib import Path

from mkdocs.structure.files import File, InclusionLevel

repository = Path(__file__).resolve().parent.parent.parent
LINK = re.compile(r"\]\(([^)\s#]+)((?:#[^)\s]*)?)\)")
LANGUAGES = {".cpp": "cpp", ".hpp": "cpp", ".py": "python", ".sh": "bash"}
# Pages that are no files of docs/, by their name in the site, and their path in the repository.
origins: dict[str, str] = {}


def in_repository(page: str, link: str) -> str:
    """The path in the repository of what a page links to."""
    origin = origins.get(page, f"examples/docs/{page}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(origin), link))


def headers() -> dict[str, str]:
    """The page of each header in the reference."""
    found = {}
    for compound in xml.parse(Path(os.environ["TSTITCH_REFERENCE"]) / "tags").getroot():
        if compound.get("kind") == "file":
            path = Path(compound.findtext("path", ""), compound.findtext("name", ""))  # absolute, in Doxygen 1.9
            path = path.relative_to(repository) if path.is_absolute() else Path("include") / path
            found[str(path)] = compound.findtext("filename", "")
    return found


def in_site(path: str) -> str:
    """What a path of the repository is called in the site."""
    if path == "README.md":
        return "index.md"
    if path.startswith("examples/docs/"):
        return path.removeprefix("examples/docs/")
    if path in of_headers:
        return f"api/{of_headers[path]}"
    suffix = Path(path).suffix
    return f"repository/{path}" + ("" if suffix in (".md", ".png", ".json") else ".md")


def links(markdown: str):
    """The parts of a text: what is in fences as it is, and the other lines, which may have links."""
    fenced = False
    for line in markdown.splitlines(keepends=True):
        fence = line.lstrip().startswith("```")
        yield line, fenced or fence
        fenced ^= fence


def on_files(files, config):
    global of_headers
    of_headers = headers()
    reference = Path(os.environ["TSTITCH_REFERENCE"]) / "html"
    for path in sorted(reference.rglob("*")):
        if path.is_file():
            files.append(File.generated(config, f"api/{path.relative_to(reference)}", abs_src_path=str(path),
                                        inclusion=InclusionLevel.INCLUDED))
    waiting = [(file.src_uri, file.content_string) for file in files if file.is_documentation_page()]
    while waiting:
        page, text = waiting.pop()
        for line, fenced in links(text):
            for match in [] if fenced else LINK.finditer(line):
                path = in_repository(page, match.group(1))
                source, name = repository / path, in_site(path)
                if not source.is_file() or files.get_file_from_path(name) or path.startswith("examples/docs/"):
                    continue
                suffix = source.suffix
                if suffix in (".png", ".json"):
                    files.append(File.generated(config, name, abs_src_path=str(source)))
                    continue
                content = source.read_text()
                if suffix != ".md":
                    content = f"# {path}\n\n```{LANGUAGES.get(suffix, 'text')}\n{content}\n```\n"
                origins[name] = path
                files.append(File.generated(config, name, content=content, inclusion=InclusionLevel.NOT_IN_NAV))
                if suffix == ".md":
                    waiting.append((name, content))
    return files


def on_page_markdown(markdown, page, config, files):
    uri = page.file.src_uri

    def rewrite(match):
        path = in_repository(uri, match.group(1))
        if not (repository / path).is_file():
            return match.group()
        return f"]({posixpath.relpath(in_site(path), posixpath.dirname(uri) or '.')}{match.group(2)})"

    return "".join(line if fenced else LINK.sub(rewrite, line) for line, fenced in links(markdown))
