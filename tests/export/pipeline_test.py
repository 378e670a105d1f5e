"""Folders of export_pipeline.py draw what diffusers' pipelines draw: pipeline_test.py TSTITCH_SAMPLE EXPORT SCRATCH

Builds small random pipelines, exports them, and compares the latents that come of a prompt and of the same noise.
"""

import io
import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import harness

export, scratch = harness.set_up("diffusers", "tokenizers", "transformers")
import diffusers  # noqa: E402
import numpy  # noqa: E402
import safetensors.torch  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

import export_pipeline  # noqa: E402

tool = str(Path(sys.argv[1]).absolute())
sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))
import checkpoints  # noqa: E402

folders = scratch / "folders"
folders.mkdir()
torch.manual_seed(0)
checkpoints.make_pipelines(folders)
stderr = io.StringIO()


def run(*arguments: object) -> str:
    stderr.truncate(0)
    return harness.run(export_pipeline, *arguments, stderr=stderr)


def draw(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [tool, "--device", "cpu", *map(str, arguments)], capture_output=True, text=True, check=False, cwd=scratch
    )


def latents(*arguments: object) -> torch.Tensor:
    done = draw(*arguments, "--latents", "drawn.npy")
    assert done.returncode == 0, done.stderr
    return torch.from_numpy(numpy.load(scratch / "drawn.npy"))


# ---------------------------------------------------------------------------------------- beside diffusers


TOKENIZERS = {"T5EncoderModel": transformers.T5TokenizerFast} | dict.fromkeys(
    ("CLIPTextModel", "CLIPTextModelWithProjection"), transformers.CLIPTokenizer
)


def parts_of(folder: Path) -> dict[str, object]:
    """The parts of a pipeline of diffusers; of text encoders and their tokenizers those that it has."""
    parts = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("tokenizer"):
            encoder = json.loads((folder / path.name.replace("tokenizer", "text_encoder") / "config.json").read_text())
            kind = TOKENIZERS.get(encoder["architectures"][0], transformers.PreTrainedTokenizerFast)
            parts[path.name] = kind.from_pretrained(path)
        elif path.name.startswith("text_encoder"):
            kind = json.loads((path / "config.json").read_text())["architectures"][0]
            parts[path.name] = getattr(transformers, kind).from_pretrained(path).eval()
        elif path.name == "scheduler":
            kind = json.loads((path / "scheduler_config.json").read_text())["_class_name"]
            parts[path.name] = getattr(diffusers, kind).from_pretrained(path)
        elif path.is_dir():
            # Not from_pretrained, which wants another package for Wan.
            config = json.loads((path / "config.json").read_text())
            parts[path.name] = getattr(diffusers, config["_class_name"]).from_config(config).eval()
            parts[path.name].load_state_dict(safetensors.torch.load_file(path / "diffusion_pytorch_model.safetensors"))
    return parts


def pipeline_of(folder: Path, kind: str, **more: object) -> object:
    pipeline = getattr(diffusers, kind)(**parts_of(folder), **more)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


in_full = ["--dtype", "float32", "--text-dtype", "float32"]
PROMPT, NEGATIVE = "a fox in the snow", "blurry"
SD = dict.fromkeys(("safety_checker", "feature_extractor")) | {"requires_safety_checker": False}
without_t5 = folders / "without-t5"
shutil.copytree(folders / "stable-diffusion-3.5-large", without_t5)
for part in ("text_encoder_3", "tokenizer_3"):
    shutil.rmtree(without_t5 / part)
NONE_OF_T5 = dict.fromkeys(("text_encoder_3", "tokenizer_3"))

# A latent consistency model, which is told the guidance scale. In one step it draws no noise of its own.
lcm = folders / "lcm"
shutil.copytree(folders / "stable-diffusion-v1-4", lcm)
shutil.rmtree(lcm / "unet")
config = json.loads((folders / "stable-diffusion-v1-4/unet/config.json").read_text()) | {"time_cond_proj_dim": 10}
diffusers.UNet2DConditionModel.from_config(config).save_pretrained(lcm / "unet")
shutil.rmtree(lcm / "scheduler")
diffusers.LCMScheduler(**checkpoints.BETAS).save_pretrained(lcm / "scheduler")
(lcm / "model_index.json").write_text('{"_class_name": "LatentConsistencyModelPipeline"}')

# The folder of SDXL has keys of other schedulers in its own.
path = folders / "stable-diffusion-xl-base-1.0/scheduler/scheduler_config.json"
left = {"skip_prk_steps": True, "clip_sample": False, "set_alpha_to_one": False, "sample_max_value": 1.0}
path.write_text(json.dumps(json.loads(path.read_text()) | left))

for small, large, kind, steps, more, size in (
    ("stable-diffusion-3.5-medium", "stable-diffusion-3.5-large", "StableDiffusion3Pipeline", 4, {}, (16, 12, 8)),
    ("stable-diffusion-3.5-medium", "without-t5", "StableDiffusion3Pipeline", 4, NONE_OF_T5, (16, 8, 8)),
    ("bk-sdm-tiny", "stable-diffusion-v1-4", "StableDiffusionPipeline", 5, SD, (4, 8, 12)),
    ("lcm", "lcm", "LatentConsistencyModelPipeline", 1, SD, (4, 8, 8)),
    ("ssd-1b", "stable-diffusion-xl-base-1.0", "StableDiffusionXLPipeline", 5, {"add_watermarker": False}, (4, 8, 12)),
    ("PixArt-small", "PixArt-XL-2-512x512", "PixArtAlphaPipeline", 5, {}, (4, 8, 8)),
):
    out = scratch / f"{large}.pipeline"
    message = run(folders / small, folders / large, out, *in_full)
    assert not message, message
    pipeline = pipeline_of(folders / large, kind, **more)
    noise = torch.randn(1, *size, generator=torch.Generator().manual_seed(3))
    numpy.save(scratch / "noise.npy", noise.numpy())
    worst = 0.0
    for negative, guidance in itertools.product((None, NEGATIVE), (1.0, 4.0)):
        own = {"use_resolution_binning": False, "clean_caption": False} if kind.startswith("PixArt") else {}
        said = {} if negative is None else {"negative_prompt": negative}
        if kind.startswith("Latent"):
            if negative is not None:
                continue  # it takes none
            shutil.rmtree(out)
            assert not run(folders / small, folders / large, out, *in_full, "--guidance-scale", guidance)
        expected = pipeline(
            PROMPT, **said, **own, num_inference_steps=steps, guidance_scale=guidance, latents=noise.clone(),
            height=8 * size[1], width=8 * size[2], output_type="latent",
        ).images  # fmt: skip
        # diffusers counts a step of PNDM more, because its first one evaluates twice.
        arguments = ["--pipeline", out, "--prompt", PROMPT, "--steps", steps, "--ratio", 0]
        arguments += [] if kind.startswith("Latent") else ["--guidance", guidance]
        arguments += ["--size", f"{8 * size[1]}x{8 * size[2]}", "--initial-noise", "noise.npy"]
        got = latents(*arguments, *([] if negative is None else ["--negative", negative]))
        worst = max(worst, ((got - expected).abs().max() / expected.std()).item())
    print(f"{large}: {worst:.1e} of the latents' deviation from {kind}")
    assert worst <= 1e-4, (large, worst)

# Sana, and videos of Wan: of two sizes, and of both experts of one folder.
wan, experts = folders / "Wan2.1-T2V-14B-Diffusers", folders / "Wan2.2-T2V-A14B-Diffusers"
for part in ("text_encoder", "tokenizer"):
    shutil.copytree(folders / "Wan2.1-T2V-1.3B-Diffusers" / part, wan / part)
    shutil.copytree(folders / "Sana_600M_1024px_diffusers" / part, folders / "Sana_1600M_1024px_diffusers" / part)
video = {"num_frames": 5, "height": 64, "width": 96}
for sources, kind, more, given, size, sized in (
    (("Sana_600M_1024px_diffusers", "Sana_1600M_1024px_diffusers"), "SanaPipeline", {},
     {"height": 192, "width": 256, "use_resolution_binning": False, "clean_caption": False}, (32, 6, 8), ["--size", "192x256"]),
    (("Wan2.1-T2V-1.3B-Diffusers", "Wan2.1-T2V-14B-Diffusers"), "WanPipeline", {}, video, (16, 2, 8, 12), ["--size", "64x96", "--frames", 5]),
    (("Wan2.2-T2V-A14B-Diffusers",), "WanPipeline", {"boundary_ratio": 0.875}, video | {"guidance_scale_2": 3.0}, (16, 2, 8, 12),
     ["--size", "64x96", "--frames", 5]),
):  # fmt: skip
    out = scratch / f"{sources[-1]}.pipeline"
    message = run(*(folders / name for name in sources), out, *in_full)
    assert not message, message
    pipeline = pipeline_of(folders / sources[-1], kind, **more)
    noise = torch.randn(1, *size, generator=torch.Generator().manual_seed(3))
    numpy.save(scratch / "noise.npy", noise.numpy())
    drawn = pipeline(PROMPT, negative_prompt=NEGATIVE, **given, num_inference_steps=6, guidance_scale=4.0, latents=noise.clone(),
                     output_type="latent")  # fmt: skip
    expected = drawn.frames if kind == "WanPipeline" else drawn.images
    how = ["--ratio", 0, "--guidance", 4] if len(sources) == 2 else ["--guidance", "4,3"]
    got = latents("--pipeline", out, "--prompt", PROMPT, "--negative", NEGATIVE, "--steps", 6, *how, *sized, "--initial-noise", "noise.npy")
    error = ((got - expected).abs().max() / expected.std()).item()
    print(f"{sources[-1]}: {error:.1e} of the latents' deviation from {kind}")
    assert error <= 1e-4, (sources, error)
# A ratio takes the place of the folder's boundary.
for how, steps in (([], "network 0 takes"), (["--ratio", "0.5"], "network 0 takes 5, network 1 takes 5"), (["--sweep", "0:1:1"], "network")):
    done = draw("--pipeline", "Wan2.2-T2V-A14B-Diffusers.pipeline", "--steps", 10, "--plan", *how)
    assert done.returncode == 0 and steps in done.stdout, (how, done)
text = (scratch / "Wan2.2-T2V-A14B-Diffusers.pipeline/pipeline.txt").read_text()
assert "routing timestep:875\n" in text and "guidance 4 3\n" in text and "shape 16 21 60 104\n" in text, text

# SDXL and its refiner, which takes over where a fifth of the noise is left.
refiner = folders / "refiner"
base = folders / "stable-diffusion-xl-base-1.0"
refiner.mkdir()
for part in ("text_encoder_2", "tokenizer_2", "vae", "scheduler"):
    shutil.copytree(base / part, refiner / part)
config = json.loads((base / "unet/config.json").read_text())
config |= {"cross_attention_dim": 24, "projection_class_embeddings_input_dim": 10 + 5 * 6}
diffusers.UNet2DConditionModel.from_config(config).save_pretrained(refiner / "unet")
(refiner / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionXLImg2ImgPipeline", "requires_aesthetics_score": True}))
assert not run(base, refiner, scratch / "refined", *in_full)
first = pipeline_of(base, "StableDiffusionXLPipeline", add_watermarker=False)
second = pipeline_of(
    refiner, "StableDiffusionXLImg2ImgPipeline", text_encoder=None, tokenizer=None, requires_aesthetics_score=True, add_watermarker=False
)
noise = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(3))
numpy.save(scratch / "noise.npy", noise.numpy())
for guidance, negative in itertools.product((1.0, 4.0), (None, NEGATIVE)):
    said = {"prompt": PROMPT, "num_inference_steps": 10, "guidance_scale": guidance, "output_type": "latent"}
    said |= {} if negative is None else {"negative_prompt": negative}
    halfway = first(**said, denoising_end=0.8, height=64, width=96, latents=noise.clone()).images
    sizes = {"original_size": (64, 96), "target_size": (64, 96), "negative_original_size": (64, 96)}
    expected = second(**said, **sizes, denoising_start=0.8, image=halfway).images
    arguments = ["--pipeline", "refined", "--prompt", PROMPT, "--steps", 10, "--guidance", guidance, "--size", "64x96"]
    got = latents(*arguments, "--initial-noise", "noise.npy", *([] if negative is None else ["--negative", negative]))
    error = ((got - expected).abs().max() / expected.std()).item()
    print(f"SDXL and its refiner, guidance {guidance}: {error:.1e}")
    assert error <= 1e-4, (guidance, negative, error)

# ---------------------------------------------------------------------------------------- what is written

out = scratch / "stable-diffusion-3.5-large.pipeline"
text = (out / "pipeline.txt").read_text()
assert "fill text_embedding 333 40\n" in text and "shape 16 8 8\n" in text and "ratio 0.4\n" in text, text
assert "profile diffusers-flow-euler\nsteps 28\nguidance 4.5\n" in text, text
assert text.count("measured ") == 6, text
# The same again, byte for byte, whether files are kept or not.
again = scratch / "again.pipeline"
pair = [folders / "stable-diffusion-3.5-medium", folders / "stable-diffusion-3.5-large"]
assert not run(*pair, again, *in_full, "--name", out.name)
assert (again / "pipeline.txt").read_text() == text
for path in out.iterdir():
    assert path.read_bytes() == (again / path.name).read_bytes(), path
(again / "pipeline.txt").unlink()
(again / "decoder.pt").unlink()
message = run(*pair, again, *in_full)
assert "again.pipeline: must be a new or an empty folder, or come with --keep, got large.pt" in message, message
assert not run(*pair, again, *in_full, "--name", out.name, "--keep", "--ratio", "0.25", "--steps", "7", "--size", "64x96")
changed = (again / "pipeline.txt").read_text()
assert "ratio 0.25\n" in changed and "steps 7\n" in changed and "shape 16 8 12\n" in changed, changed
assert (again / "decoder.pt").read_bytes() == (out / "decoder.pt").read_bytes()
plan = draw("--pipeline", again, "--plan").stdout
assert plan.count("network 0") and len([line for line in plan.splitlines() if line.strip()[:1].isdigit()]) >= 7, plan

# With the networks' weights where they are: the same pictures from the same folder of texts and files.
in_place = scratch / "in_place.pipeline"
assert not run(*pair, in_place, *in_full, "--weights-in-place")
assert sorted(path.name for path in in_place.iterdir() if path.suffix == ".txt") == ["large.txt", "pipeline.txt", "small.txt"]
prompted = ["--prompt", PROMPT, "--steps", 4, "--ratio", "0.5", "--guidance", 3]
assert torch.equal(latents("--pipeline", in_place, *prompted), latents("--pipeline", out, *prompted))
described = (in_place / "pipeline.txt").read_text()
assert "network small.txt " in described and "network large.txt " in described and "shape 16 8 8\n" in described, described
assert not run(*pair, in_place, *in_full, "--weights-in-place", "--keep")
assert (in_place / "pipeline.txt").read_text() == described
weights = in_place / "../folders/stable-diffusion-3.5-large/transformer/diffusion_pytorch_model.safetensors"
kept = weights.read_bytes()
weights.write_bytes(kept[:-4] + bytes(4))
done = draw("--pipeline", in_place, *prompted, "--latents", "other.npy")
weights.write_bytes(kept)
assert done.returncode == 1 and "'large.txt' must have the fingerprint" in done.stderr, done

# For 8 bits: the networks say how large inputs get, and the folder what was found.
calibrated = scratch / "calibrated.pipeline"
assert not run(*pair, calibrated, *in_full, "--weights-in-place", "--calibrate", 1)
measured = (calibrated / "pipeline.txt").read_text()
assert measured.count(" layers for 8 bits up to ") == 2, measured
exact, eighth = (latents("--pipeline", calibrated, *prompted, "--backend", backend) for backend in ("native", "native-e4m3"))
assert 1e-4 < (eighth - exact).norm() / exact.norm() < 0.1, (eighth - exact).norm() / exact.norm()
assert not run(*pair, calibrated, *in_full, "--weights-in-place", "--calibrate", 1, "--keep")
assert (calibrated / "pipeline.txt").read_text() == measured

# A DiT of any size, in the types that engines have.
dit = folders / "dit"
shape = {"num_attention_heads": 3, "attention_head_dim": 16, "in_channels": 4, "out_channels": 8, "num_layers": 2, "sample_size": 8}
model = diffusers.DiTTransformer2DModel(**shape, num_embeds_ada_norm=5)
for block in model.transformer_blocks:
    block.norm1.emb.load_state_dict(model.transformer_blocks[0].norm1.emb.state_dict())
model.save_pretrained(dit / "transformer")
shutil.copytree(folders / "stable-diffusion-v1-4/vae", dit / "vae")
diffusers.DDIMScheduler(beta_start=1e-4, beta_end=0.02, clip_sample=False).save_pretrained(dit / "scheduler")
(dit / "model_index.json").write_text(json.dumps({"_class_name": "DiTPipeline"}))
assert not run(dit, scratch / "any_size", *in_full[:2], "--interpolate", "--calibrate", 1)
of_dit = (scratch / "any_size/pipeline.txt").read_text()
assert "shape 4 8 8\n" in of_dit and of_dit.count(" layers for 8 bits up to ") == 1, of_dit
wide = ["--pipeline", "any_size", "--class", 1, "--steps", 2, "--size", "48x96"]
exact, eighth = (latents(*wide, "--backend", backend) for backend in ("native", "native-e4m3"))
assert exact.shape == (1, 4, 6, 12) and 1e-4 < (eighth - exact).norm() / exact.norm() < 0.1
# Where nobody says how, the tool draws as load_pipeline does, and says so.
assert "\nprofile " not in of_dit, of_dit
done = draw(*wide[:4], "--plan")
assert "says no profile; draws with --profile recommended --steps 20" in done.stderr and "sampler UniPC" in done.stdout, done

# What is read is not written over, and what has no end is not read.
for words, arguments in (
    ("--report: must be another file than that of --pipeline", ["--prompt", "a", "--report", out / "pipeline.txt"]),
    ("--report: must be another file than that of --prompts", ["--prompts", "prompts.txt", "--report", "prompts.txt"]),
    ("'/dev/zero' must be a text with a prompt a line", ["--prompts", "/dev/zero"]),
    ("'empty.txt' must be a text with a prompt a line, at most 65536 and 16 MiB, got none", ["--prompts", "empty.txt"]),
    ("must be multiples of 8, got 64 and 63", ["--prompt", "a", "--size", "64x63"]),
    ("frames are for networks whose x is a video", ["--prompt", "a", "--frames", 5]),
):
    (scratch / "prompts.txt").write_text("a fox\n")
    (scratch / "empty.txt").write_text(" \n\n")
    done = draw("--pipeline", out, "--grid", "refused.png", *arguments)
    assert done.returncode in (1, 2) and words in done.stderr and done.stderr.count("\n") <= 2, (words, done)
    assert not (scratch / "refused.png").exists() and (out / "pipeline.txt").read_text() == text, words

# SDXL is told the size, and its refiner how pretty the picture is to be.
assert not run(folders / "ssd-1b", folders / "stable-diffusion-xl-base-1.0", scratch / "xl")
xl = (scratch / "xl/pipeline.txt").read_text()
assert "profile diffusers-euler\nsteps 50\n" in xl, xl
assert "condition size_ids height width 0 0 height width\n" in xl, xl
assert "text_encoder text_encoder.pt " in xl and "text_encoder text_encoder_2.pt beside " in xl, xl
done = draw("--pipeline", "xl", "--prompt", "a fox", "--steps", 2, "--size", "64x128", "--grid", "xl.png", "--report", "xl.json")
assert done.returncode == 0, done.stderr
report = json.loads((scratch / "xl.json").read_text())
assert report["pipeline"] == "xl" and len(report["fingerprints"]) == 2 and report["prompts"] == ["a fox"], report
for name in report["fingerprints"]:
    assert name in xl, (name, xl)

# ---------------------------------------------------------------------------------------- what is refused


def must_refuse(*arguments: object, words: tuple[str, ...]) -> None:
    place = scratch / "refused"
    message = run(*arguments, place)
    assert message and all(word in message for word in words), f"{words} must be in {message!r}"
    assert not (place / "pipeline.txt").exists(), place
    shutil.rmtree(place, ignore_errors=True)


sd, sd3 = folders / "stable-diffusion-v1-4", folders / "stable-diffusion-3.5-large"
must_refuse(folders / "nowhere", sd, words=("nowhere: must be a folder or a file, got nothing",))
must_refuse(sd, "--weights-in-place", words=("--weights-in-place: must be for a pipeline whose networks", "got StableDiffusion"))
must_refuse(sd, "--calibrate", 1, words=("--calibrate: must be for a pipeline of StableDiffusion3, DiT, got 1 for StableDiffusion",))
must_refuse(sd, "--interpolate", words=("--interpolate: must be for a pipeline of DiT, others leave the size open anyway, got StableDiffusion",))
must_refuse(dit, "--calibrate", 1, "--condition", "a.pt", words=("--condition: must be for a pipeline of StableDiffusion3, got a.pt for DiT",))
must_refuse(sd3, "--condition", "a.pt", words=("--condition: is for --calibrate, got a.pt without",))
must_refuse(sd, sd3, words=("stable-diffusion-v1-4: must be of a StableDiffusion3 as", "got StableDiffusion"))
must_refuse(folders / "sd-vae-ft-ema", words=("must hold model_index.json, got",))
must_refuse(folders / "bk-sdm-tiny", words=("bk-sdm-tiny: must hold text_encoder, got",))
must_refuse(dit, "--negative", "a", words=("--negative: must be for a pipeline that takes texts, got a for DiT",))
must_refuse(dit, "--text-dtype", "float16", words=("--text-dtype: must be for a pipeline that takes texts, got float16 for DiT",))
must_refuse(sd, "--variant", "fp61", words=("--variant: must be of weights that a FOLDER has, got fp61, which none has",))
must_refuse(sd, "--ratio", "2", words=("--ratio: must be in [0, 1], got 2.0",))
must_refuse(sd, "--ratio", "nan", words=("--ratio", "must be a finite number, got 'nan'"))
must_refuse(sd, "--guidance-scale", "-1", words=("--guidance-scale: must be in [0, 1000], got -1.0",))
must_refuse(sd, "--negative", "a\nb", words=("--negative: must be text without control characters, got 'a\\nb'",))
must_refuse(sd, sd, sd, words=("stable-diffusion-v1-4: must be the second folder at most, got 3",))
damaged = scratch / "refused"
damaged.mkdir()
(damaged / "network.pt").write_bytes(b"cut off")
must_refuse(sd, "--keep", words=("network.pt: must be told of in options.json to be kept, got a file of unknown options: remove it",))
cut = scratch / "cut_off"
shutil.copytree(out, cut)
(cut / "large.pt").write_bytes(b"cut off")
message = run(*pair, cut, *in_full, "--keep")
assert "large.pt: must be a file that an exporter wrote, got 'File is not a zip file'" in message, message
message = run(*pair, in_place, *in_full, "--weights-in-place", "--keep", "--calibrate", 1)
assert "small.txt: must be made with the same options to be kept, got --calibrate 1 for a file with no --calibrate: remove it" in message, message
assert (in_place / "pipeline.txt").read_text() == described  # of a folder that is as it was
for options, words in (
    ((*in_full[:1], "bfloat16", *in_full[2:]), "got --dtype bfloat16 for a file with --dtype float32"),
    ((*in_full, "--license", "mine"), "got --license mine for a file with no --license"),
):
    message = run(*pair, out, *options, "--keep")
    assert words in message and (out / "pipeline.txt").read_text() == text, message
message = run(pair[1], pair[1], out, *in_full, "--keep")
assert "small.pt: must be made with the same options to be kept, got FOLDER ../folders/stable-diffusion-3.5-large for a file" in message, message
must_refuse(sd, "--size", "65", words=("--size: must be multiples of 8, got 65 and 65",))


def changed_copy(of: Path, name: str) -> Path:
    copy = folders / name
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(of, copy)
    return copy


broken = changed_copy(sd, "broken")
(broken / "model_index.json").write_text('{"_class_name": "AudioPipeline"}')
must_refuse(broken, words=("_class_name must begin with", "got AudioPipeline"))
broken = changed_copy(sd, "broken")
shutil.rmtree(broken / "vae")
must_refuse(broken, words=("broken: must hold vae, got",))
broken = changed_copy(sd, "broken")
(broken / "controlnet").mkdir()
must_refuse(broken, words=("broken: must come with --controlnet FOLDER for its controlnet/",))
# Before anything is made, which takes long, and while the folder is whole.
broken = changed_copy(sd, "broken")
shutil.rmtree(broken / "tokenizer")
for arguments, words in (
    ((broken,), "tokenizer: must be a folder with the tokenizer of text_encoder, got nothing"),
    ((sd3, "--calibrate", 1, "--condition", "no.pt"), "no.pt: must be a file of conditions, got none"),
    ((sd, "--controlnet", sd3), "config.json"),
):
    must_refuse(*arguments, words=(words,))
    assert "writing" not in stderr.getvalue(), stderr.getvalue()
broken = changed_copy(sd3, "broken")
shutil.rmtree(broken / "text_encoder_2")
must_refuse(broken, words=("broken: must hold text_encoder_2, got",))
broken = changed_copy(sd, "broken")
(broken / "text_encoder/model.safetensors").write_bytes(b"cut off")
must_refuse(broken, words=("model.safetensors: must be a safetensors file",))
assert "refused: not finished; --keep goes on with what is there" in stderr.getvalue(), stderr.getvalue()
# Encoders of another model: what they give is not what the networks take.
mixed = changed_copy(sd3, "mixed")
shutil.rmtree(mixed / "text_encoder_3")
shutil.rmtree(mixed / "tokenizer_3")
checkpoints.t5(mixed, "_3", 64)
assert not run(folders / "stable-diffusion-3.5-medium", mixed, scratch / "mixed")
done = draw("--pipeline", "mixed", "--prompt", "a", "--grid", "mixed.png")
assert done.returncode == 2 and "'text_embedding' must be" in done.stderr and not (scratch / "mixed.png").exists(), done
# Timesteps that are shifted differently.
other = changed_copy(folders / "stable-diffusion-3.5-medium", "other")
path = other / "scheduler/scheduler_config.json"
path.write_text(json.dumps(json.loads(path.read_text()) | {"shift": 1.0}))
must_refuse(other, sd3, words=("flow_shift must be that of small.pt, 1.0, got 3.0",))
# Files that have changed places since.
swapped = scratch / "swapped"
shutil.copytree(out, swapped)
(swapped / "text_encoder.pt").rename(swapped / "kept.pt")
(swapped / "text_encoder_2.pt").rename(swapped / "text_encoder.pt")
(swapped / "kept.pt").rename(swapped / "text_encoder_2.pt")
done = draw("--pipeline", "swapped", "--prompt", "a", "--grid", "swapped.png")
assert done.returncode == 1 and "'text_encoder.pt' must have the fingerprint" in done.stderr, done
assert not (scratch / "swapped.png").exists()
print("folders draw what diffusers' pipelines draw")
