"""Prompts of all kinds, in files that Python wrote, name and describe the pictures: prompts_test.py TOOL MODELS FOLDER

MODELS is what tool_models wrote.
"""

import itertools
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import torch

tool, models, scratch = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
shutil.rmtree(scratch, ignore_errors=True)
scratch.mkdir(parents=True)
os.chdir(scratch)


def draw(name: str, rows: int, **more: object) -> subprocess.CompletedProcess:
    """Draws with a condition of so many rows into a folder of this name; the grid and the report stand beside it."""
    torch.manual_seed(rows)
    tensors = {"text_embedding": torch.randn(rows, 2, 3), "text_embedding.null": torch.zeros(1, 2, 3)}
    torch.save(tensors | more, f"{name}.pt")
    command = [tool, "--device", "cpu", "--steps", "1", "--model", models / "latent.pt"]
    command += ["--decoder", models / "decoder.pt", "--condition", f"{name}.pt"]
    command += ["--output", name, "--grid", f"{name}.png", "--report", f"{name}.json"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def chunks(path: Path) -> list[tuple[bytes, bytes]]:
    """Kind and content of each chunk of a PNG."""
    data, found, at = path.read_bytes(), [], 8
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        found.append((kind, data[at + 8 : at + 8 + size]))
        at += size + 12
    return found


def pixels(path: Path) -> list[bytes]:
    found = [body for kind, body in chunks(path) if kind == b"IDAT"]
    assert found, path
    return found


def parameters(path: Path) -> dict[str, object]:
    texts = [body for kind, body in chunks(path) if kind == b"iTXt" and body.startswith(b"parameters\0")]
    assert len(texts) == 1, path
    return json.loads(texts[0][len("parameters") + 5 :])


LONG = "word " * 2000
kinds = {
    "empty": ([""], [""]),
    "lines": (["a\nb"], ["a_b-"]),
    "path": (["/etc/../passwd", "..", "."], ["prompt0-etc_passwd-", "prompt1-", "prompt2-"]),
    "quotes": (["\"'`$(rm -r *)\\"], ["rm_r-"]),
    "emoji": (["\N{FOX FACE}", "\u72d0 fox"], ["prompt0-", "prompt1-fox-"]),
    "long": ([LONG, "x" * 10000], [f"prompt0-{'_'.join(['word'] * 8)}-", f"prompt1-{'x' * 40}-"]),
    "same": (["A cat."] * 2, ["prompt0-A_cat-", "prompt1-A_cat-"]),
    "control": (["a\0b\x1b[31m\x7f\x9b"], ["a_b_31m-"]),
    "longest": (["\u00e9" * 32768], [""]),
    "many": ([f"number {i}" for i in range(20)], [f"prompt{i}-number_{i}-" for i in range(20)]),
}
for name, (prompts, words) in kinds.items():
    done = draw(name, len(prompts), prompts=prompts)
    assert done.returncode == 0 and not done.stderr.count("Error"), (name, done)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", done.stdout), done.stdout
    assert done.stdout.startswith("drawing ") and all(len(line) < 400 for line in done.stdout.splitlines()), done.stdout
    files = [f"{i:06}-{each}seed{i}.png" for i, each in enumerate(words)]
    assert sorted(os.listdir(name)) == files, (name, os.listdir(name))
    report = json.loads(Path(f"{name}.json").read_text())
    assert report["prompts"] == prompts and [picture["file"] for picture in report["pictures"]] == files, name
    assert parameters(Path(f"{name}.png"))["prompts"] == prompts, name
    for i, file in enumerate(files):
        made_with = parameters(Path(name) / file)
        assert made_with["prompt_text"] == prompts[i] and "prompts" not in made_with, (name, file)

# Without the texts all is as it was: names, and what files say, and the pictures are the same.
for name, rows in (("same", 2), ("many", 20)):
    done = draw("plain", rows)
    assert done.returncode == 0 and done.stdout.startswith(f"drawing {rows} pictures of {rows} prompts, 1 step"), done
    files = [f"{i:06}-prompt{i}-seed{i}.png" for i in range(rows)]
    assert sorted(os.listdir("plain")) == files, os.listdir("plain")
    report = json.loads(Path("plain.json").read_text())
    assert "prompts" not in report and "prompts" not in parameters(Path("plain.png"))
    for file, named in zip(files, sorted(os.listdir(name)), strict=True):
        assert "prompt_text" not in parameters(Path("plain") / file)
        assert pixels(Path("plain") / file) == pixels(Path(name) / named), (file, named)
    shutil.rmtree("plain")

refused = {
    "few": (["a"], "prompts must be one for each of the tensors' rows, got 1 for 2"),
    "more": (["a", "b", "c"], "prompts must be one for each of the tensors' rows, got 3 for 2"),
    "numbers": ([1, 2], "prompts must be texts, got Int"),
    "nested": ([["a"], ["b"]], "prompts must be texts, got GenericList"),
    "surrogate": (["\ud83d", "b"], "prompts must be UTF-8, got"),
    "long": (["x" * 65537, ""], "prompts must be at most 65536 bytes each, got 65537"),
    "text": ("ab", "got an entry 'prompts' of String"),
    "tuple": (("a", "b"), "got an entry 'prompts' of Tuple"),
    "dict": ({"a": 1}, "got an entry 'prompts' of GenericDict"),
    "bytes": ([b"a", b"b"], "data.pkl must hold tensors, got"),
}
for name, (prompts, words) in refused.items():
    done = draw(f"refused_{name}", 2, prompts=prompts)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and words in done.stderr, (name, done)
    assert not done.stdout and not Path(f"refused_{name}").exists(), name
# By --prompt: what its encoder makes of the texts, which is a number for their length, as a file of these would have it.
encoder = models / "latent_text_encoder.pt"
base = [tool, "--device", "cpu", "--steps", "2", "--model", models / "latent.pt", "--decoder", models / "decoder.pt"]


def by_prompt(name: str, *more: object, encoders: int = 1) -> subprocess.CompletedProcess:
    command = [*base, *["--text-encoder", encoder] * encoders, "--output", name, "--latents", f"{name}.npy", "--report", f"{name}.json"]
    return subprocess.run([*command, *more], capture_output=True, text=True, check=False)


for negative, count, batch in itertools.product((None, "blurry"), (1, 2), (1, 16)):
    texts = ["a fox", "two", "a much longer text"]
    said = [word for text in texts for word in ("--prompt", text)]
    more = ["--count", str(count), "--batch", str(batch), "--guidance", "2"]
    done = by_prompt("said", *said, *([] if negative is None else ["--negative", negative]), *more)
    assert done.returncode == 0, done.stderr
    assert "--prompt: 'a much longer text' is cut: there is no room for 9 of its tokens" in done.stderr, done.stderr
    assert "'a fox'" not in done.stderr, done.stderr
    rows = torch.stack([torch.full((2, 3), 0.25 * len(text)) for text in texts])
    null = torch.full((1, 2, 3), 0.25 * len(negative or ""))
    torch.save({"text_embedding": rows, "text_embedding.null": null, "prompts": texts}, "given.pt")
    given = [*base, "--condition", "given.pt", "--output", "given", "--latents", "given.npy", "--report", "given.json"]
    subprocess.run([*given, *more], capture_output=True, check=True)
    assert Path("said.npy").read_bytes() == Path("given.npy").read_bytes(), (negative, count, batch)
    assert sorted(os.listdir("said")) == sorted(os.listdir("given")), os.listdir("said")
    report, other = (json.loads(Path(f"{name}.json").read_text()) for name in ("said", "given"))
    assert report["prompts"] == other["prompts"] == texts and report.get("negative") == negative, report
    assert report["text_encoders"] == [str(encoder)], report
    # Kept in a folder, and taken from there.
    for _ in range(2):
        done = by_prompt("kept", *said, *([] if negative is None else ["--negative", negative]), *more, "--prompt-cache", "texts/kept")
        assert done.returncode == 0 and "--prompt-cache" not in done.stderr, done.stderr
        assert "there is no room for 9 of its tokens" in done.stderr, done.stderr
        assert Path("kept.npy").read_bytes() == Path("given.npy").read_bytes(), (negative, count, batch)
        report = json.loads(Path("kept.json").read_text())
        assert report["prompt_cache"] == "texts/kept" and report["prompts"] == texts, report
        shutil.rmtree("kept")
    assert len(os.listdir("texts/kept")) == (4 if negative is None else 5), os.listdir("texts/kept")
    for folder in ("said", "given"):
        shutil.rmtree(folder)
# A damaged entry is said.
for entry in Path("texts/kept").iterdir():
    entry.write_bytes(entry.read_bytes()[:-5])
done = by_prompt("kept", "--prompt", "a fox", "--prompt-cache", "texts/kept")
assert done.returncode == 0 and done.stderr.count("cannot be used, and its text is encoded anew") == 2, done.stderr
Path("a_file").write_text("")
for words, code, arguments, encoders in (
    ("--prompt: must come with --text-encoder", 2, ["--prompt", "a"], 0),
    ("--text-encoder: must come with --prompt", 2, [], 1),
    ("--prompt-cache: must come with --text-encoder", 2, ["--prompt-cache", "texts"], 0),
    ("'a_file': must be a folder", 1, ["--prompt", "a", "--prompt-cache", "a_file"], 1),
    ("--negative: must come with --prompt", 2, ["--negative", "a"], 0),
    ("'text_embedding' must be [n, 2, 3] for 'latent'", 2, ["--prompt", "a"], 2),  # which stand side by side
    ("--prompt: must not be empty", 2, ["--prompt", ""], 1),
    ("text 0 must be UTF-8", 2, ["--prompt", b"\xff"], 1),
    ("text 1 must have at most 65536 bytes, got 65537", 2, ["--prompt", "a", "--negative", "x" * 65537], 1),
    ("each must have other names, got 'text_embedding' again in 'given.pt'", 2, ["--prompt", "a", "--condition", "given.pt"], 1),
    ("kind must be text_encoder", 1, ["--prompt", "a", "--text-encoder", models / "decoder.pt"], 0),
):
    done = by_prompt("refused_prompt", *arguments, encoders=encoders)
    assert done.returncode == code and words in done.stderr, (words, done)
    assert not Path("refused_prompt").exists() and not Path("refused_prompt.npy").exists(), words
print("pictures say what their prompts were")
