"""Exported text encoders give what transformers and diffusers give, in Python and in C++:
text_encoder_test.py TEXT_ENCODER_CALLS EXPORT_FOLDER SCRATCH_FOLDER

Builds small random CLIP, T5, UMT5 and Gemma text encoders with tokenizers of a few words, exports them, and runs the files.
"""

import importlib.util
import inspect
import io
import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import harness

program = Path(sys.argv.pop(1))
export, scratch = harness.set_up("diffusers", "tokenizers", "transformers")
import diffusers  # noqa: E402
import tokenizers  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

import export_text_encoder  # noqa: E402
import text_encoder as ours  # noqa: E402
from harness import relative, require_refusal  # noqa: E402

torch.manual_seed(0)
torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
stderr = io.StringIO()
START, END, LENGTH = "<|startoftext|>", "<|endoftext|>", 16
letters = "abcdefghijklmnopqrstuvwxyz"


def run(*arguments: object) -> str:
    stderr.truncate(0)
    return harness.run(export_text_encoder, *arguments, stderr=stderr)


# ---------------------------------------------------------------------------------------- the networks

tokens = torch.randint(3, 90, (3, 12))
tokens[:, 9:] = 91
tokens[0, 5] = 91
mask = torch.ones(3, 12, dtype=torch.int64)
mask[:, 10:] = 0
mask[0, 6:] = 0


def random(model: torch.nn.Module) -> torch.nn.Module:
    for parameter in model.parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def near(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert relative(got, expected) < 1e-5, relative(got, expected)


differ = []
for activation, end, masked, projected in itertools.product(("quick_gelu", "gelu"), (2, 91, 7), (False, True), (0, 10)):
    shape = transformers.CLIPTextConfig(
        vocab_size=92, hidden_size=16, intermediate_size=20, num_hidden_layers=3, num_attention_heads=2,
        projection_dim=10, max_position_embeddings=12, eos_token_id=end, hidden_act=activation, pad_token_id=1,
        bos_token_id=0,
    )  # fmt: skip
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    model = random(kind(shape))
    weights = export_text_encoder.clip_names(model.state_dict(), scratch)
    expected = model(tokens, attention_mask=mask if masked else None, output_hidden_states=True)
    for penultimate in (False, True):
        config = ours.ClipConfig(
            92, 16, 20, 3, 2, 12, activation, 1e-5, projected, end, masked, penultimate, True, True
        )
        network = ours.Clip(config)
        network.load_state_dict(weights)
        got = torch.jit.script(network.eval())(tokens, mask)
        near(got["text_embedding"], expected.hidden_states[-2] if penultimate else expected.last_hidden_state)
        near(got["pooled_embedding"], expected.text_embeds if projected else expected.pooler_output)
        differ.append(got["pooled_embedding"])
assert not torch.equal(differ[0], differ[8]), "where a text ends must count"

for kind, feed_forward, masked, depth in itertools.product(
    ("T5", "UMT5"), ("gated-gelu", "relu"), (False, True), (1, 3)
):
    shape = getattr(transformers, f"{kind}Config")(
        vocab_size=92, d_model=16, d_kv=6, d_ff=20, num_layers=depth, num_heads=2, feed_forward_proj=feed_forward,
        relative_attention_num_buckets=8, relative_attention_max_distance=10, is_encoder_decoder=False,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = random(getattr(transformers, f"{kind}EncoderModel")(shape))
    gated = feed_forward != "relu"
    config = ours.T5Config(92, 16, 6, 20, depth, 2, gated, shape.dense_act_fn, 1e-6, 8, 10, kind == "UMT5", masked)
    network = ours.T5(config)
    network.load_state_dict({k: v for k, v in model.state_dict().items() if k != "encoder.embed_tokens.weight"})
    got = torch.jit.script(network.eval())(tokens, mask)
    near(got["text_embedding"], model(tokens, attention_mask=mask if masked else None).last_hidden_state)
    assert torch.equal(got["text_mask"], mask)
    # What is added up stays float32 in float16, and only there.
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        network.to(dtype)
        types = {name: p.dtype for name, p in network.named_parameters()}
        wide = {name for name, kept in types.items() if kept == torch.float32}
        assert dtype == torch.float32 or wide == (
            {n for n in types if ".wo." in n} if dtype == torch.float16 else set()
        )
        assert network(tokens, mask)["text_embedding"].dtype == dtype

for cap, window, heads, key_heads, depth in itertools.product((None, 5.0), (3, 5, 4096), (4,), (1, 2, 4), (1, 4)):
    shape = transformers.Gemma2Config(
        vocab_size=92, hidden_size=16, intermediate_size=20, num_hidden_layers=depth, num_attention_heads=heads,
        num_key_value_heads=key_heads, head_dim=6, query_pre_attn_scalar=10, sliding_window=window,
        attn_logit_softcapping=cap, max_position_embeddings=64,
    )  # fmt: skip
    model = random(transformers.Gemma2Model(shape))
    config = ours.GemmaConfig(
        92, 16, 20, depth, heads, key_heads, 6, "gelu_pytorch_tanh", 1e-6, 10000.0, 10.0, cap or 0.0, window,
        (True, False, True, False)[:depth],
    )  # fmt: skip
    network = ours.Gemma(config)
    network.load_state_dict(model.state_dict())
    network = torch.jit.script(network.eval())
    for given in (mask, torch.ones_like(mask)):
        # All places, those of the padding too, some of which see nothing where the window is small.
        got, expected = network(tokens, given), model(tokens, attention_mask=given).last_hidden_state
        near(got["text_embedding"], expected)
        assert torch.equal(got["text_mask"], given)
    exact = got["text_embedding"]
    network.to(torch.bfloat16)
    got = network(tokens, given)["text_embedding"]
    peer = model.to(torch.bfloat16)(tokens, attention_mask=given).last_hidden_state
    assert got.dtype == torch.bfloat16 and relative(got.float(), exact) < 1.5 * relative(peer.float(), exact) + 1e-3

# ---------------------------------------------------------------------------------------- small pipelines

bytes_of = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
merges = [("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>"), ("Ã", "©</w>")]
pieces = [*bytes_of, *(b + "</w>" for b in bytes_of), *(a + b for a, b in merges), START, END]
vocabulary = {piece: i for i, piece in enumerate(pieces)}
WORDS = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -4.0) for letter in letters)]
WORDS += [("▁cat", -1.0), ("▁dog", -1.5), (".", -3.0), ("é", -5.0)]


def clip_tokenizer(folder: Path, pad: str) -> None:
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(f"{a} {b}" for a, b in merges), ""]))
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH}
    (folder / "tokenizer_config.json").write_text(json.dumps(special | settings))


def clip(folder: Path, width: int, projected: bool, act: str = "quick_gelu") -> torch.nn.Module:
    shape = transformers.CLIPTextConfig(
        vocab_size=len(vocabulary), hidden_size=width, intermediate_size=20, num_hidden_layers=3,
        num_attention_heads=2, projection_dim=10, max_position_embeddings=LENGTH, bos_token_id=vocabulary[START],
        eos_token_id=vocabulary[END], pad_token_id=vocabulary[END], hidden_act=act,
    )  # fmt: skip
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    model = random(kind(shape))
    model.save_pretrained(folder)
    return model


def unigram_tokenizer(folder: Path, kind: str) -> None:
    folder.mkdir(parents=True)
    fast = tokenizers.Tokenizer(tokenizers.models.Unigram(WORDS, unk_id=2))
    space = tokenizers.pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    fast.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([tokenizers.pre_tokenizers.WhitespaceSplit(), space])
    fast.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast.save(str(folder / "tokenizer.json"))
    special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    settings = {"tokenizer_class": kind, "model_max_length": 512, "extra_ids": 0}
    (folder / "tokenizer_config.json").write_text(json.dumps(special | settings))


def t5(folder: Path, kind: str = "T5") -> torch.nn.Module:
    shape = getattr(transformers, f"{kind}Config")(
        vocab_size=len(WORDS) + 3, d_model=16, d_kv=6, d_ff=20, num_layers=2, num_heads=2,
        feed_forward_proj="gated-gelu", is_encoder_decoder=False, tie_word_embeddings=False,
    )  # fmt: skip
    model = random(getattr(transformers, f"{kind}EncoderModel")(shape))
    model.save_pretrained(folder)
    return model


def pipeline(name: str, kind: str, **notes: object) -> Path:
    folder = scratch / name
    folder.mkdir()
    (folder / "model_index.json").write_text(json.dumps({"_class_name": kind} | notes))
    return folder


sd = pipeline("sd", "StableDiffusionPipeline")
clip_tokenizer(sd / "tokenizer", END)
sd_model = clip(sd / "text_encoder", 16, False)
xl = pipeline("xl", "StableDiffusionXLPipeline", force_zeros_for_empty_prompt=True)
clip_tokenizer(xl / "tokenizer", END)
clip_tokenizer(xl / "tokenizer_2", "!")
xl_models = [clip(xl / "text_encoder", 16, False), clip(xl / "text_encoder_2", 24, True, "gelu")]
alpha = pipeline("alpha", "PixArtAlphaPipeline")
unigram_tokenizer(alpha / "tokenizer", "T5Tokenizer")
alpha_model = t5(alpha / "text_encoder")
sd3 = pipeline("sd3", "StableDiffusion3Pipeline")
unigram_tokenizer(sd3 / "tokenizer_3", "T5Tokenizer")
sd3_model = t5(sd3 / "text_encoder_3")
umt5 = pipeline("umt5", "SomePipeline")
unigram_tokenizer(umt5 / "tokenizer", "PreTrainedTokenizerFast")
umt5_model = t5(umt5 / "text_encoder", "UMT5")
wan = pipeline("wan", "WanPipeline")
for part in ("tokenizer", "text_encoder"):
    shutil.copytree(umt5 / part, wan / part)
sana = pipeline("sana", "SanaPipeline")
sana_model = harness.small_gemma(sana)

# ---------------------------------------------------------------------------------------- the same, in C++

PROMPTS = [
    "a cat",
    "Two DOGS, in a hat, and more words than there is room for  ",
    "",
    "é 猫 🦊 cat's",
    "\n a\t\u00a0b ",
]
# What a file gives: type and sizes, by name.
Outputs = dict[str, tuple[torch.dtype, list[int]]]


def called(path: Path, outputs: Outputs, negative: str | None = None) -> dict[str, torch.Tensor]:
    """What C++ gets of the file, with "NAME.null", and the tokens."""
    texts, out = scratch / "texts", scratch / "called"
    texts.write_bytes(b"".join(prompt.encode() + b"\0" for prompt in PROMPTS))
    arguments = [program, path, texts, out, *([] if negative is None else [negative])]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    data = out.read_bytes()
    found = {}

    def take(name: str, dtype: torch.dtype, sizes: list[int]) -> None:
        nonlocal data
        count = torch.empty(sizes, dtype=dtype, device="meta").nbytes
        found[name] = torch.frombuffer(bytearray(data[:count]), dtype=dtype).reshape(sizes)
        data = data[count:]

    n = len(PROMPTS)
    for name, (dtype, sizes) in outputs.items():
        line, data = data.split(b"\n", 1)
        assert line.decode() == name
        take(name, dtype, [n, *sizes])
        take(f"{name}.null", dtype, [1, *sizes])
    length = int(harness.metadata(path, ("text_tokens",))["text_tokens"])
    assert data[:7] == b"tokens\n"
    data = data[7:]
    for name, sizes in (("ids", [n, length]), ("mask", [n, length]), ("cut", [n])):
        take(name, torch.int64, sizes)
    assert not data
    return found


def same(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert got.shape == expected.shape, (got.shape, expected.shape)
    assert torch.allclose(got, expected, rtol=1e-5, atol=1e-5), (got - expected).abs().max()


def exported(folder: Path, *arguments: object, name: str = "out") -> Path:
    path = scratch / f"{name}.pt"
    message = run(folder, path, *arguments)
    assert not message, message
    return path


KEYS = ("format", "kind", "name", "architecture", "outputs", "text_tokens", "no_text", "license")
floats = torch.float32
path = exported(sd, "--license", "mine")
assert harness.metadata(path, KEYS) == {
    "format": "1", "kind": "text_encoder", "name": "out", "architecture": "CLIPTextModel",
    "outputs": f"text_embedding float {LENGTH} 16", "text_tokens": str(LENGTH), "no_text": "encoded", "license": "mine",
}  # fmt: skip
words = transformers.CLIPTokenizer.from_pretrained(sd / "tokenizer")
pipe = diffusers.StableDiffusionPipeline(
    vae=None, text_encoder=sd_model, tokenizer=words, unet=None, scheduler=None, safety_checker=None,
    feature_extractor=None, requires_safety_checker=False,
)  # fmt: skip
for negative in (None, "dog", ""):
    got = called(path, {"text_embedding": (floats, [LENGTH, 16])}, negative)
    expected, null = pipe.encode_prompt(
        PROMPTS, "cpu", 1, True, None if negative is None else [negative] * len(PROMPTS)
    )
    same(got["text_embedding"], expected)
    same(got["text_embedding.null"], null[:1])
rows = words(PROMPTS, max_length=LENGTH, truncation=True, padding="max_length", return_tensors="pt")
assert torch.equal(got["ids"], rows.input_ids) and torch.equal(got["mask"], rows.attention_mask)
whole = [len(words(prompt).input_ids) for prompt in PROMPTS]
assert got["cut"].tolist() == [max(0, count - LENGTH) for count in whole] and max(whole) > LENGTH

for forced in (True, False):
    (xl / "model_index.json").write_text(
        json.dumps({"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": forced})
    )
    files = [exported(xl, "--part", part, name=part) for part in ("text_encoder", "text_encoder_2")]
    tables = [transformers.CLIPTokenizer.from_pretrained(xl / part) for part in ("tokenizer", "tokenizer_2")]
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=None, text_encoder=xl_models[0], text_encoder_2=xl_models[1], tokenizer=tables[0], tokenizer_2=tables[1],
        unet=None, scheduler=None, force_zeros_for_empty_prompt=forced, add_watermarker=False,
    )  # fmt: skip
    for negative in (None, "dog"):
        first = called(files[0], {"text_embedding": (floats, [LENGTH, 16])}, negative)
        second = called(
            files[1], {"text_embedding": (floats, [LENGTH, 24]), "pooled_embedding": (floats, [10])}, negative
        )
        negatives = None if negative is None else [negative] * len(PROMPTS)
        results = pipe.encode_prompt(PROMPTS, device="cpu", negative_prompt=negatives)
        same(torch.cat([first["text_embedding"], second["text_embedding"]], 2), results[0])
        same(torch.cat([first["text_embedding.null"], second["text_embedding.null"]], 2), results[1][:1])
        same(second["pooled_embedding"], results[2])
        same(second["pooled_embedding.null"], results[3][:1])
        assert (first["text_embedding.null"] == 0).all() == (forced and negative is None)

path = exported(alpha)
parts = {"vae": None, "transformer": None, "scheduler": None}
t5_words = transformers.T5Tokenizer.from_pretrained(alpha / "tokenizer")
pipe = diffusers.PixArtAlphaPipeline(text_encoder=alpha_model, tokenizer=t5_words, **parts)
for negative in (None, "Dog "):
    got = called(path, {"text_embedding": (floats, [120, 16]), "text_mask": (torch.int64, [120])}, negative)
    expected, mask, null, null_mask = pipe.encode_prompt(
        PROMPTS, True, negative or "", device="cpu", clean_caption=False
    )
    same(got["text_embedding"], expected)
    same(got["text_embedding.null"], null[:1])
    assert torch.equal(got["text_mask"], mask) and torch.equal(got["text_mask.null"], null_mask[:1])

# Stable Diffusion 3 looks at the padding, too, and texts keep their case.
path = exported(sd3, "--part", "text_encoder_3", "--text-tokens", "20")
got = called(path, {"text_embedding": (floats, [20, 16])})
sd3_words = transformers.T5Tokenizer.from_pretrained(sd3 / "tokenizer_3")
rows = sd3_words(PROMPTS, max_length=20, truncation=True, padding="max_length", return_tensors="pt")
same(got["text_embedding"], sd3_model(rows.input_ids).last_hidden_state)

path = exported(umt5, "--text-tokens", "20")
got = called(path, {"text_embedding": (floats, [20, 16]), "text_mask": (torch.int64, [20])})
rows = sd3_words(PROMPTS, max_length=20, truncation=True, padding="max_length", return_tensors="pt")
same(got["text_embedding"], umt5_model(rows.input_ids, attention_mask=rows.attention_mask).last_hidden_state)

# Wan: less white space, and zeros behind the text.
path = exported(wan)
wan_words = transformers.AutoTokenizer.from_pretrained(wan / "tokenizer")
pipe = diffusers.WanPipeline(wan_words, umt5_model, vae=None, scheduler=None)
for negative in (None, "Dog \n "):
    got = called(path, {"text_embedding": (floats, [512, 16])}, negative)
    expected, null = pipe.encode_prompt(PROMPTS, negative, device="cpu", max_sequence_length=512)
    same(got["text_embedding"], expected)
    same(got["text_embedding.null"], null[:1])
assert (got["text_embedding"][2, 1:] == 0).all() and not (got["text_embedding"][2, 0] == 0).all()

# Sana: an instruction before prompts, and none before what guidance leads away from.
(scratch / "instruction").write_text("Say it twice.\n\n- cat: a dog\nPrompt: \n")
call = inspect.signature(diffusers.SanaPipeline.__call__).parameters["complex_human_instruction"].default
sana_words = transformers.GemmaTokenizer.from_pretrained(sana / "tokenizer")
pipe = diffusers.SanaPipeline(sana_words, sana_model, **parts)
outputs = {"text_embedding": (floats, [300, 16]), "text_mask": (torch.int64, [300])}
instructions = {
    None: call, "none": None, scratch / "instruction": ["Say it twice.", "", "- cat: a dog", "Prompt: "],
}  # fmt: skip
PROMPTS.append("a cat " * 400)  # cut, with an instruction and without
for given, lines in instructions.items():
    path = exported(sana, *(() if given is None else ("--instruction", given)))
    values = harness.metadata(path, ("instruction", "architecture")) if lines else {"instruction": ""}
    assert values["instruction"] == "\n".join(lines or [])
    for negative in (None, "Dog \n "):
        got = called(path, outputs, negative)
        expected, mask, null, null_mask = pipe.encode_prompt(
            PROMPTS, True, negative or "", device="cpu", complex_human_instruction=lines
        )
        same(got["text_embedding"], expected)
        same(got["text_embedding.null"], null[:1])
        assert torch.equal(got["text_mask"], mask) and torch.equal(got["text_mask.null"], null_mask[:1])
        assert torch.equal(got["mask"], mask) and got["cut"][-1] > 0 and (got["cut"][:-1] == 0).all()
PROMPTS.pop()

# ---------------------------------------------------------------------------------------- a cache on the disk

# Several processes at once, of two encoders, and then from the disk alone.
sana_path, wan_path = exported(sana, name="sana"), exported(wan, name="wan")
cache, texts = scratch / "cache", scratch / "texts"
texts.write_bytes(b"".join(prompt.encode() + b"\0" for prompt in PROMPTS * 2))
for round in range(2):
    running = []
    for k in range(4):
        path = (sana_path, wan_path)[k % 2]
        arguments = [program, path, texts, scratch / f"cached{k}", "blurry", cache]
        running.append(subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    for each in running:
        _, said = each.communicate()
        assert each.returncode == 0 and not said, said
    found = [(scratch / f"cached{k}").read_bytes() for k in range(4)]
    assert found[0] == found[2] and found[1] == found[3]
    first = found if round == 0 else first
    assert found == first
entries = [torch.load(file, weights_only=True) for file in cache.glob("*.pt")]
assert len(list(cache.iterdir())) == len(entries) == 2 * len(PROMPTS) + 2
for path, length in ((sana_path, 300), (wan_path, 512)):
    encoder = torch.jit.load(path)
    mine = [entry for entry in entries if entry["text_embedding"].shape[1] == length]
    assert sorted(entry["prompts"][0] for entry in mine) == sorted([*PROMPTS, "blurry"])
    for entry in mine:
        negative = path == sana_path and entry["prompts"] == ["blurry"]
        expected = encoder.encode_negative(entry["prompts"]) if negative else encoder(entry["prompts"])
        for name, value in expected.items():
            assert (torch.equal if name == "text_mask" else torch.allclose)(entry[name], value), name
        if not negative:
            ids, mask, cut = encoder.tokenize(entry["prompts"])
            assert torch.equal(entry["tokens.ids"], ids) and torch.equal(entry["tokens.mask"], mask)
            assert torch.equal(entry["tokens.cut"], cut)

# ---------------------------------------------------------------------------------------- types, bytes, options

for folder in (sd, alpha, sana):
    plain = exported(folder, "--name", "x").read_bytes()
    assert exported(folder, "--name", "x", name="again").read_bytes() == plain, (
        "the same weights must give the same bytes"
    )
    exact = torch.jit.load(scratch / "out.pt")(PROMPTS)["text_embedding"]
    for dtype, most in (("float16", 2e-2), ("bfloat16", 1e-1)):
        file = torch.jit.load(exported(folder, "--dtype", dtype))
        got = file(PROMPTS)["text_embedding"]
        assert str(got.dtype) == f"torch.{dtype}" and 0 < relative(got, exact) < most, relative(got, exact)
    # Older and newer files name their tensors differently.
    older = scratch / f"{folder.name}_older"
    shutil.copytree(folder, older)
    (older / "text_encoder/model.safetensors").unlink()
    model = {sd: sd_model, alpha: alpha_model, sana: sana_model}[folder]
    if folder == sd:
        tensors = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in model.state_dict().items()}
        tensors["text_model.embeddings.position_ids"] = torch.arange(LENGTH)[None]
    elif folder == alpha:
        tensors = {k: v.clone() for k, v in model.state_dict().items() if k != "shared.weight"}
    else:
        tensors = {f"model.{k}": v.clone() for k, v in model.state_dict().items()}
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    torch.save(tensors, older / "text_encoder/pytorch_model.bin")
    assert exported(older, "--name", "x").read_bytes() == plain
states = torch.jit.load(exported(sd, "--states", "penultimate"))(PROMPTS)["text_embedding"]
rows = words(PROMPTS, max_length=LENGTH, truncation=True, padding="max_length", return_tensors="pt")
same(states, sd_model(rows.input_ids, output_hidden_states=True).hidden_states[-2])
assert torch.jit.load(exported(sd, "--text-tokens", 8))(PROMPTS)["text_embedding"].shape == (len(PROMPTS), 8, 16)

# ---------------------------------------------------------------------------------------- what is refused


def must_refuse(folder: Path, *arguments: object, words: tuple[str, ...]) -> None:
    require_refusal(run(folder, scratch / "refused.pt", *arguments), words, scratch)


def changed(source: Path, path: str, **changes: object) -> Path:
    shutil.rmtree(scratch / "bad", ignore_errors=True)
    shutil.copytree(source, scratch / "bad")
    values = json.loads((scratch / "bad" / path).read_text())
    (scratch / "bad" / path).write_text(json.dumps(values | changes))
    return scratch / "bad"


config = "text_encoder/config.json"
must_refuse(scratch / "nowhere", words=("nowhere", "must be a folder"))
must_refuse(sd, "--part", "text_encoder_2", words=("must hold text_encoder_2",))
must_refuse(umt5, words=("model_index.json", "--text-tokens"))
must_refuse(changed(sd, "model_index.json", _class_name="Own"), words=("model_index.json", "--states"))
must_refuse(changed(sd, config, architectures=["BertModel"]), words=("architectures", "BertModel"))
must_refuse(changed(sd, config, hidden_act="silu"), words=("hidden_act", "silu"))
must_refuse(changed(sd, config, num_hidden_layers=4), words=("got none called",))
must_refuse(changed(sd, config, num_hidden_layers=2), words=("got also",))
must_refuse(changed(sd, config, num_attention_heads=3), words=("config.json", "must be the shape of a CLIPTextModel"))
must_refuse(changed(sd, config, vocab_size=9), words=("must have at most 9 words",))
must_refuse(sd, "--text-tokens", "17", words=("max_position_embeddings", "17"))
must_refuse(sd, "--text-tokens", "2", words=("must have more than 2 tokens",))
must_refuse(
    changed(alpha, config, feed_forward_proj="gated-silu", dense_act_fn="silu"), words=("feed_forward_proj", "silu")
)
file = "tokenizer/tokenizer.json"
values = json.loads((umt5 / file).read_text())
first = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}
must_refuse(changed(umt5, file, pre_tokenizer=first), "--text-tokens", 20, words=("pre_tokenizer", "first"))
must_refuse(
    changed(umt5, file, normalizer={"type": "StripAccents"}), "--text-tokens", 20, words=("normalizer", "StripAccents")
)
must_refuse(sd, "--instruction", "none", words=("--instruction", "CLIPTextModel"))
must_refuse(sana, "--instruction", scratch / "nowhere", words=("nowhere", "must be a file of UTF-8"))
must_refuse(changed(sana, "model_index.json", _class_name="Own"), words=("model_index.json", "--text-tokens"))
must_refuse(changed(sana, config, attention_bias=True), words=("attention_bias", "true"))
must_refuse(changed(sana, config, use_bidirectional_attention=True), words=("use_bidirectional_attention", "true"))
must_refuse(changed(sana, config, hidden_activation="silu"), words=("hidden_activation", "silu"))
yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}
must_refuse(changed(sana, config, rope_parameters=yarn), words=("rope_parameters", "yarn"))
values = json.loads((sana / "tokenizer/tokenizer.json").read_text())
values["model"]["vocab"]["other"] = values["model"]["vocab"].pop("<0xC3>")
must_refuse(changed(sana, "tokenizer/tokenizer.json", model=values["model"]), words=("byte_fallback", "<0xC3>"))
shutil.rmtree(changed(sd, config) / "tokenizer")
must_refuse(scratch / "bad", words=("tokenizer", "must be a folder"))
if importlib.util.find_spec("sentencepiece") is None:
    folder = changed(alpha, config)
    (folder / "tokenizer/tokenizer.json").rename(folder / "tokenizer/spiece.model")
    must_refuse(folder, words=("spiece.model", "sentencepiece", "requirements.txt"))
message = run(sd, scratch / "no_such_folder/out.pt")
assert "must be in a folder that exists" in message, message
large = changed(alpha, config)
tensors = {k: v.clone() for k, v in alpha_model.state_dict().items()}
tensors["encoder.block.0.layer.0.SelfAttention.q.weight"][0, 0] = 1e6
(large / "text_encoder/model.safetensors").unlink()
torch.save(tensors, large / "text_encoder/pytorch_model.bin")
must_refuse(large, "--dtype", "float16", words=("q.weight must be at most 65504",))
print("every text is transformers'")
