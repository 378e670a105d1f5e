"""Networks whose weights stay where they are draw what their exported files draw, to the bit:

    in_place_test.py TSTITCH_SAMPLE EXPORT_FOLDER SCRATCH_FOLDER

Small random transformers of Stable Diffusion 3 and DiTs, in one file and in shards; then what is refused.
"""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import harness

export, scratch = harness.set_up("safetensors")
import numpy  # noqa: E402
import safetensors.torch  # noqa: E402
import torch  # noqa: E402

import common  # noqa: E402
import dit  # noqa: E402
import export_dit  # noqa: E402
import export_sd3  # noqa: E402
import sd3  # noqa: E402

tool = str(Path(sys.argv[1]).absolute())
IN_PLACE = ("--format", "in-place")


def draw(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [tool, "--device", "cpu", "--steps", "3", *map(str, arguments)], capture_output=True, text=True, check=False, cwd=scratch
    )


def latents(*arguments: object) -> torch.Tensor:
    done = draw(*arguments, "--latents", "drawn.npy")
    assert done.returncode == 0, done.stderr
    return torch.from_numpy(numpy.load(scratch / "drawn.npy"))


def fill(network: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.1 * torch.randn(tensor.shape, generator=generator) for name, tensor in network.state_dict().items()}


def save_shards(tensors: dict[str, torch.Tensor], folder: Path, stem: str) -> None:
    """In three files with an index."""
    names, index = sorted(tensors), {}
    for k in range(3):
        file = f"{stem}-0000{k + 1}-of-00003.safetensors"
        safetensors.torch.save_file({name: tensors[name] for name in names[k::3]}, folder / file)
        index |= dict.fromkeys(names[k::3], file)
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": index}))


def same(first: object, second: object, *arguments: object) -> None:
    for dtype in ("float32", "bfloat16"):
        expected, got = (latents("--model", path, "--dtype", dtype, *arguments) for path in (first, second))
        assert torch.equal(got, expected), (second, dtype)


# ---------------------------------------------------------------------------------------- Stable Diffusion 3

small = {
    "_class_name": "SD3Transformer2DModel", "sample_size": 8, "patch_size": 2, "in_channels": 16, "out_channels": 16,
    "num_layers": 3, "attention_head_dim": 16, "num_attention_heads": 3, "joint_attention_dim": 32,
    "caption_projection_dim": 48, "pooled_projection_dim": 16, "pos_embed_max_size": 12, "qk_norm": "rms_norm",
    "dual_attention_layers": [0],
}  # fmt: skip
STEM = "diffusion_pytorch_model"
folder = scratch / "sd3"
folder.mkdir()
(folder / "config.json").write_text(json.dumps(small))
of_sd3 = fill(sd3.SD3(export_sd3.read_config(common.Config(folder / "config.json"))), 1)
sharded = scratch / "sharded"
shutil.copytree(folder, sharded)
safetensors.torch.save_file(of_sd3, folder / f"{STEM}.safetensors")
save_shards(of_sd3, sharded, STEM)
torch.save({"text_embedding": torch.randn(1, 7, 32), "pooled_embedding": torch.randn(1, 16)}, scratch / "prompt.pt")
condition = ("--condition", "prompt.pt", "--guidance", "1")
flow = ("--flow-shift", 3, "--dtype", "float32")


def export_both(program: object, source: Path, name: str, *options: object) -> None:
    for ending, way in (("pt", ()), ("txt", IN_PLACE)):
        message = harness.run(program, source, scratch / f"{name}.{ending}", "--name", name, *options, *way)
        assert not message, message


for name, source in (("one", folder), ("shards", sharded)):
    export_both(export_sd3, source, name, *flow)
    same(f"{name}.pt", f"{name}.txt", *condition)
assert not harness.run(export_sd3, folder, scratch / "open.txt", *flow, *IN_PLACE, "--size", "*")
index = sharded / f"{STEM}.safetensors.index.json"
assert not harness.run(export_sd3, folder, scratch / "named.txt", *flow, *IN_PLACE, "--weights", index)
pair = ("--model", "one.txt", "--model", "shards.pt", "--ratio", "0.5", "--dtype", "float32", *condition)
assert torch.equal(latents(*pair), latents("--model", "one.pt", "--dtype", "float32", *condition))
text = (scratch / "shards.txt").read_text()
assert text.startswith("tstitch network 1\nweights sharded/") and text.count("weights ") == 3, text
assert "\nconditions text_embedding float * 32\nconditions pooled_embedding float 16\n" in text, text
# The same again takes the place of the first.
export_both(export_sd3, sharded, "shards", *flow)
assert (scratch / "shards.txt").read_text() == text

# In 8 bits, by what the exporter saw of these texts: the description says the same of the inputs as the file.
prompt_file = scratch / "prompt.pt"
calibrating = ("--calibrate", 2, "--condition", prompt_file, "--guidance-scale", 1)
export_both(export_sd3, folder, "calibrated", *flow, *calibrating)
stated = harness.metadata(scratch / "calibrated.pt", ("e4m3_inputs", "e4m3_weight_scales"))
described = [line.split(" ", 1)[1] for line in (scratch / "calibrated.txt").read_text().splitlines() if line.startswith("e4m3_")]
assert "\n".join(described) == stated["e4m3_inputs"] and "e4m3_weight_scales" in stated, (described, stated)
exact = latents("--model", "one.pt", "--backend", "native", *condition)
off = {
    name: ((latents("--model", name, "--backend", "native-e4m3", *condition) - exact).norm() / exact.norm()).item()
    for name in ("calibrated.pt", "calibrated.txt")
}
assert all(1e-4 < each < 0.05 for each in off.values()), off
done = draw("--model", "one.txt", "--backend", "native-e4m3", *condition, "--latents", "drawn.npy")
assert done.returncode == 1 and "must state e4m3_inputs to compute in 8 bits, got none" in done.stderr, done
# Random texts do for a try.
assert not harness.run(export_sd3, folder, scratch / "random.txt", *flow, *IN_PLACE, "--calibrate", 1)
assert (scratch / "random.txt").read_text().count("e4m3_inputs ") == len(described)

# ---------------------------------------------------------------------------------------- DiTs

shape = dit.DiTConfig(channels=4, size=8, width=48, depth=2, heads=3, num_classes=10, learned_variance=True)
of_dit = fill(dit.DiT(shape), 2) | {"pos_embed": dit.sin_cos_position_embedding(48, 4)}
checkpoint = scratch / "dit.safetensors"
safetensors.torch.save_file(of_dit, checkpoint)
(scratch / "dits").mkdir()
save_shards(of_dit, scratch / "dits", "dit")
(scratch / "names.txt").write_text("\n".join(f"class {i}" for i in range(10)))
known = ("--heads", 3, "--null-class", 10)
label = ("--class", "3", "--sampler", "ddim")
for name, source in (("dit", checkpoint), ("dit_shards", scratch / "dits/dit.safetensors.index.json")):
    export_both(export_dit, source, name, *known, "--class-names", scratch / "names.txt")
    same(f"{name}.pt", f"{name}.txt", *label)
export_both(export_dit, checkpoint, "diffusers", *known, "--arithmetic", "diffusers")
same("diffusers.pt", "diffusers.txt", *label)
assert not torch.equal(*(latents("--model", f"{name}.txt", "--dtype", "float32", *label) for name in ("dit", "diffusers")))
assert "\nclass_names class 0\nclass_names class 1\n" in (scratch / "dit.txt").read_text()

# In 8 bits: the description says of the inputs what the file says.
export_both(export_dit, checkpoint, "dit8", *known, "--calibrate", 2)
stated = harness.metadata(scratch / "dit8.pt", ("e4m3_inputs",))["e4m3_inputs"]
described = [line.split(" ", 1)[1] for line in (scratch / "dit8.txt").read_text().splitlines() if line.startswith("e4m3_")]
assert "\n".join(described) == stated, (described, stated)
exact, eighth = (latents("--model", "dit8.txt", *label, "--backend", name) for name in ("native", "native-e4m3"))
assert 1e-4 < (eighth - exact).norm() / exact.norm() < 0.1

# Of any size, from the table of the size that they were trained with.
export_both(export_dit, checkpoint, "any_size", *known, "--interpolate")
same("any_size.pt", "any_size.txt", *label, "--size", "4x12")
size_of_training = latents("--model", "any_size.txt", "--dtype", "float32", *label, "--size", "8")
assert torch.equal(size_of_training, latents("--model", "dit.txt", "--dtype", "float32", *label))

# ---------------------------------------------------------------------------------------- what is refused


def refused(program: object, *arguments: object, words: tuple[str, ...]) -> None:
    harness.must_refuse(program, scratch, *arguments, *IN_PLACE, words=words)


def changed(name: str, source: dict[str, torch.Tensor], **tensors: torch.Tensor | None) -> Path:
    """A file of these tensors but for changes; __ stands for a dot."""
    changes = {key.replace("__", "."): tensor for key, tensor in tensors.items()}
    path = scratch / f"{name}.safetensors"
    safetensors.torch.save_file({k: t for k, t in (source | changes).items() if t is not None}, path)
    return path


def sd3_of(**tensors: torch.Tensor | None) -> tuple[object, ...]:
    return folder, *flow, "--weights", changed("odd", of_sd3, **tensors)


refused(export_sd3, *sd3_of(proj_out__bias=None), words=("odd.safetensors: must hold every tensor", "none called proj_out.bias"))
refused(export_sd3, *sd3_of(lora=torch.zeros(1)), words=("odd.safetensors: must hold the tensors of this network only", "lora"))
refused(export_sd3, *sd3_of(proj_out__bias=torch.zeros(7)), words=("proj_out.bias must be [64], got [7]",))
eighth = torch.zeros(64).to(torch.float8_e4m3fn)
refused(export_sd3, *sd3_of(proj_out__bias=eighth), words=("proj_out.bias must be F64, F32, F16, BF16, got F8_E4M3",))
texts = torch.load(prompt_file)
for changes, words in (
    ({"pooled_embedding": None}, "pooled_embedding must be [n, 16], as many of each, got none"),
    ({"text_embedding": torch.zeros(1, 7, 31)}, "text_embedding must be [n, tokens, 32], as many of each, got [1, 7, 31]"),
    ({"text_embedding": torch.zeros(1, 0, 32)}, "text_embedding must be [n, tokens, 32], as many of each, got [1, 0, 32]"),
    ({"pooled_embedding": torch.zeros(2, 16)}, "pooled_embedding must be [n, 16], as many of each, got [2, 16]"),
    ({"pooled_embedding": torch.zeros(1, 16).long()}, "pooled_embedding must be [n, 16]"),
    ({"text_embedding": torch.full((1, 7, 32), torch.nan)}, "text_embedding must be finite, got nan or infinity"),
    ({"text_embedding.null": torch.zeros(1, 7, 32)}, "pooled_embedding.null must be [1, 16], as many of each, got none"),
):
    torch.save({key: tensor for key, tensor in (texts | changes).items() if tensor is not None}, scratch / "odd.pt")
    refused(export_sd3, folder, *flow, "--calibrate", 1, "--condition", scratch / "odd.pt", words=("odd.pt: " + words,))
refused(export_sd3, folder, *flow, "--calibrate", 1, "--condition", scratch / "none.pt", words=("none.pt: must be a file of conditions, got none",))
refused(export_sd3, folder, *flow, "--condition", prompt_file, words=("--condition: is for --calibrate, got",))
# Before anything is drawn, which takes long.
torch.save(of_sd3, scratch / "odd.bin")
(scratch / "mine.txt").write_text("mine")
with mock.patch.object(export_sd3, "calibrate", None), mock.patch.object(export_dit, "calibrate", None):
    refused(export_sd3, folder, *flow, "--calibrate", 1, "--weights", scratch / "odd.bin", words=("odd.bin: must be a .safetensors file",))
    for program, arguments in ((export_sd3, (folder, scratch / "mine.txt", *flow)), (export_dit, (checkpoint, scratch / "mine.txt", *known))):
        message = harness.run(program, *arguments, *IN_PLACE, "--calibrate", 1)
        assert "mine.txt: must be a new file, or the description of a network, got another file" in message, message
assert (scratch / "mine.txt").read_text() == "mine"
# Fewer pictures than texts.
torch.save({key: tensor if key.endswith(".null") else tensor.repeat(3, *[1] * (tensor.ndim - 1)) for key, tensor in texts.items()}, scratch / "three.pt")
stderr = io.StringIO()
assert not harness.run(export_sd3, folder, scratch / "fewer.txt", *flow, *IN_PLACE, "--calibrate", 1, "--condition", scratch / "three.pt", stderr=stderr)
assert f"three.pt: the first 1 of {3 * len(texts['pooled_embedding'])} texts are drawn" in stderr.getvalue(), stderr.getvalue()
refused(export_sd3, folder, *flow, "--calibrate", 0, words=("must be a number in [1, 65536], got '0'",))
refused(
    export_sd3, folder, *flow, "--calibrate", 1, "--condition", prompt_file, "--text-tokens", 9,
    words=("text_embedding must be [n, 9, 32], as many of each, got [1, 7, 32]",),
)  # fmt: skip
learnt = changed("learnt", of_dit, pos_embed=torch.zeros(1, 16, 48))
assert not harness.run(export_dit, learnt, scratch / "learnt.txt", *known, *IN_PLACE, "--interpolate")
done = draw("--model", "learnt.txt", *label, "--size", "8", "--latents", "drawn.npy")
assert done.returncode == 1 and "must have the sine-cosine table of its grid as pos_embed where x has any size, got one 1 off" in done.stderr, done
(scratch / "cut.safetensors").write_bytes((folder / f"{STEM}.safetensors").read_bytes()[:-1])
cut = scratch / "cut.safetensors"
refused(export_sd3, folder, *flow, "--weights", cut, words=("cut.safetensors: must be a safetensors file",))
torch.save(of_sd3, scratch / "old.bin")
old = scratch / "old.bin"
refused(export_sd3, folder, *flow, "--weights", old, words=("old.bin: must be a .safetensors file for --format in-place, got .bin",))
refused(export_sd3, folder, *flow, "--weights", scratch / "none.safetensors", words=("must be a file of weights, got none",))
refused(export_sd3, folder, *flow, "--device", "cpu", words=("--device: is for --format aot-inductor, got in-place",))
shutil.copytree(sharded, scratch / "lacking")
(scratch / f"lacking/{STEM}-00002-of-00003.safetensors").unlink()
refused(export_sd3, scratch / "lacking", *flow, words=("every shard must be there", "00002-of-00003"))
before = (folder / f"{STEM}.safetensors").read_bytes()
message = harness.run(export_sd3, folder, folder / f"{STEM}.safetensors", *flow, *IN_PLACE)
assert "must be a new file, or the description of a network" in message, message
assert (folder / f"{STEM}.safetensors").read_bytes() == before

refused(export_dit, checkpoint, *known, "--kind", "sit", words=("--kind: must not be given for --format in-place",))
refused(export_dit, folder, words=("must be a .safetensors file in the official layout", "got a folder"))
refused(export_dit, changed("bare", of_dit, pos_embed=None), *known, "--size", 8, words=("none called pos_embed",))
plain = changed("plain", of_dit, y_embedder__embedding_table__weight=torch.zeros(1, 48))
refused(export_dit, plain, "--heads", 3, words=("must have classes for --format in-place",))

# What has changed since the text was written, and other backends.
def fails(words: str, *arguments: object) -> None:
    done = draw(*arguments, "--latents", "none.npy")
    assert done.returncode == 1 and words in done.stderr, (words, done.returncode, done.stderr)


for words, backend in (
    ("whose weights lie elsewhere: the native engine runs it", "torchscript"),
    ("whose weights lie elsewhere: the native engine runs it", "aot-inductor"),
    ("must state e4m3_inputs to compute in 8 bits", "native-e4m3"),
):
    fails(words, "--model", "one.txt", "--backend", backend, *condition)
changed("moved", of_dit)
(scratch / "moved.txt").write_text((scratch / "dit.txt").read_text().replace("weights dit.", "weights moved."))
same("dit.txt", "moved.txt", *label)
changed("moved", of_dit, final_layer__linear__bias=torch.zeros(5))
fails("must hold final_layer.linear.bias of shape [32], got [5]", "--model", "moved.txt", *label)
(scratch / "moved.safetensors").unlink()
fails("moved.safetensors': must be a file that can be read, got none", "--model", "moved.txt", *label)
print("in place: the same bits")
