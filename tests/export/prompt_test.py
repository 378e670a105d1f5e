"""Encoded prompts are what diffusers' pipelines encode: prompt_test.py EXPORT_FOLDER SCRATCH_FOLDER

Builds small random CLIP, T5, UMT5 and Gemma text encoders and tokenizers of a few words, and compares with the pipelines' methods.
"""

import inspect
import io
import itertools
import json
import shutil
from pathlib import Path

import harness

export, scratch = harness.set_up("diffusers", "tokenizers", "transformers")
import diffusers  # noqa: E402
import tokenizers  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

import encode_prompt  # noqa: E402
from harness import require_refusal  # noqa: E402

torch.manual_seed(0)
stderr = io.StringIO()


def run(*arguments: object) -> str:
    stderr.truncate(0)
    return harness.run(encode_prompt, *arguments, stderr=stderr)


def must_refuse(folder: Path, *arguments: object, words: tuple[str, ...]) -> None:
    require_refusal(run(folder, scratch / "refused.pt", *arguments), words, scratch)


# ---------------------------------------------------------------------------------------- small pipelines

START, END, LENGTH = "<|startoftext|>", "<|endoftext|>", 12
letters = "abcdefghijklmnopqrstuvwxyz"
pieces = [*letters, *(letter + "</w>" for letter in letters), "ca", "cat</w>", "do", "dog</w>"]
vocabulary = {piece: i for i, piece in enumerate([*pieces, START, END, "!"])}
merges = ["c a", "ca t</w>", "d o", "do g</w>"]


def tokenizer(folder: Path, pad: str) -> transformers.CLIPTokenizer:
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH}
    (folder / "tokenizer_config.json").write_text(json.dumps(special | settings))
    return transformers.CLIPTokenizer.from_pretrained(folder)


def encoder(folder: Path, width: int, projected: bool, **saves: object) -> torch.nn.Module:
    config = transformers.CLIPTextConfig(
        vocab_size=len(vocabulary), hidden_size=width, intermediate_size=20, num_hidden_layers=3,
        num_attention_heads=2, projection_dim=10, max_position_embeddings=LENGTH, bos_token_id=vocabulary[START],
        eos_token_id=vocabulary[END], pad_token_id=vocabulary[END], hidden_act="gelu" if projected else "quick_gelu",
    )  # fmt: skip
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    model = kind(config).eval()
    for parameter in model.parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder, **saves)
    return model


sd, xl = scratch / "sd", scratch / "xl"
sd_words, sd_model = tokenizer(sd / "tokenizer", END), encoder(sd / "text_encoder", 16, False)
xl_words = [tokenizer(xl / "tokenizer", END), tokenizer(xl / "tokenizer_2", "!")]
xl_models = [
    encoder(xl / "text_encoder", 16, False),
    encoder(xl / "text_encoder_2", 24, True, max_shard_size="10KB"),
]
(xl / "unet").mkdir()
(xl / "unet/config.json").write_text(json.dumps({"sample_size": 96}))
assert len(list((xl / "text_encoder_2").glob("*.safetensors"))) > 1


T5_WORDS = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), ("▁", -2.0), *((letter, -4.0) for letter in letters)]
T5_WORDS += [("▁cat", -1.0), ("▁dog", -1.5), (".", -3.0)]


def t5_tokenizer(folder: Path, words: list[tuple[str, float]] = T5_WORDS) -> transformers.T5Tokenizer:
    folder.mkdir(parents=True, exist_ok=True)
    words_only = tokenizers.Tokenizer(tokenizers.models.Unigram(words, unk_id=2))
    space = tokenizers.pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    words_only.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([tokenizers.pre_tokenizers.WhitespaceSplit(), space])
    end = {"single": "$A </s>", "special_tokens": [("</s>", 1)]}
    words_only.post_processor = tokenizers.processors.TemplateProcessing(**end)
    words_only.save(str(folder / "tokenizer.json"))
    special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    settings = {"tokenizer_class": "T5Tokenizer", "model_max_length": 512, "extra_ids": 0}
    (folder / "tokenizer_config.json").write_text(json.dumps(special | settings))
    return transformers.T5Tokenizer.from_pretrained(folder)


def pixart(folder: Path, kind: str, transformer: dict[str, object], **saves: object) -> object:
    """A pipeline's folder, and the pipeline with its text encoder and tokenizer."""
    shape = transformers.T5Config(
        vocab_size=len(T5_WORDS) + 3, d_model=16, d_kv=6, d_ff=20, num_layers=2, num_heads=2,
        feed_forward_proj="gated-gelu", is_encoder_decoder=False, tie_word_embeddings=False,
    )  # fmt: skip
    model = transformers.T5EncoderModel(shape).eval()
    for parameter in model.parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder / "text_encoder", **saves)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    (folder / "transformer").mkdir()
    (folder / "transformer/config.json").write_text(json.dumps(transformer))
    parts = {"vae": None, "transformer": None, "scheduler": None}
    return getattr(diffusers, kind)(text_encoder=model, tokenizer=t5_tokenizer(folder / "tokenizer"), **parts)


alpha, sigma = scratch / "alpha", scratch / "sigma"
unsized = {"sample_size": 128, "use_additional_conditions": False}
pixarts = {
    alpha: pixart(alpha, "PixArtAlphaPipeline", {"sample_size": 128}),
    sigma: pixart(sigma, "PixArtSigmaPipeline", unsized, max_shard_size="5KB"),
}
assert len(list((sigma / "text_encoder").glob("*.safetensors"))) > 1

# Stable Diffusion 3 has both CLIP encoders with a projection, and T5, which may be left out.
sd3, clip_only = scratch / "sd3", scratch / "sd3_without_t5"
sd3_words = [tokenizer(sd3 / "tokenizer", END), tokenizer(sd3 / "tokenizer_2", "!")]
sd3_models = [encoder(sd3 / "text_encoder", 16, True), encoder(sd3 / "text_encoder_2", 24, True)]
(sd3 / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusion3Pipeline"}))
(sd3 / "transformer").mkdir()
(sd3 / "transformer/config.json").write_text(json.dumps({"joint_attention_dim": 48}))
shutil.copytree(sd3, clip_only)
sd3_t5 = transformers.T5EncoderModel(
    transformers.T5Config(vocab_size=len(T5_WORDS) + 3, d_model=48, d_kv=6, d_ff=20, num_layers=2, num_heads=2,
                          feed_forward_proj="gated-gelu", is_encoder_decoder=False, tie_word_embeddings=False)
).eval()  # fmt: skip
for parameter in sd3_t5.parameters():
    parameter.copy_(torch.randn_like(parameter) * 0.3)
sd3_t5.save_pretrained(sd3 / "text_encoder_3", max_shard_size="8KB")
sd3_t5_words = t5_tokenizer(sd3 / "tokenizer_3")
sd3_transformer = diffusers.SD3Transformer2DModel(
    sample_size=8, num_layers=1, attention_head_dim=4, num_attention_heads=2, joint_attention_dim=48, caption_projection_dim=8,
    pooled_projection_dim=20, pos_embed_max_size=4,
)  # fmt: skip

# ---------------------------------------------------------------------------------------- what diffusers encodes

prompts = ["a cat", "two dogs in a hat and more words than there is room for", ""]
out = scratch / "out.pt"


def is_prompt(argument: object) -> bool:
    return not str(argument).startswith("--")


def encoded(folder: Path, *arguments: object) -> dict[str, torch.Tensor]:
    message = run(folder, out, *arguments)
    assert not message, message
    tensors = torch.load(out, weights_only=True)
    assert type(tensors) is dict and all(type(name) is str for name in tensors)
    texts = tensors.pop("prompts")
    assert type(texts) is list and texts == list(itertools.takewhile(is_prompt, arguments)), texts
    assert all(len(tensor) == len(texts) for name, tensor in tensors.items() if not name.endswith(".null"))
    for name, tensor in tensors.items():
        kind = torch.int64 if name.startswith("text_mask") else torch.float32
        assert type(tensor) is torch.Tensor and tensor.dtype == kind and tensor.is_contiguous(), name
        assert tensor.untyped_storage().nbytes() == tensor.itemsize * tensor.numel(), f"{name} must bring nothing along"
        assert tensor.shape[0] == 1 or not name.endswith(".null"), name
    return tensors


def same(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert got.shape == expected.shape, (got.shape, expected.shape)
    assert torch.allclose(got, expected, rtol=1e-5, atol=1e-5), (got - expected).abs().max()


pipe = diffusers.StableDiffusionPipeline(
    vae=None, text_encoder=sd_model, tokenizer=sd_words, unet=None, scheduler=None, safety_checker=None,
    feature_extractor=None, requires_safety_checker=False,
)  # fmt: skip
for negative in (None, "dog"):
    got = encoded(sd, *prompts, *(["--negative", negative] if negative else []))
    assert set(got) == {"text_embedding", "text_embedding.null"}, set(got)
    negatives = None if negative is None else [negative] * len(prompts)
    expected, null = pipe.encode_prompt(prompts, "cpu", 1, True, negatives)
    same(got["text_embedding"], expected)
    same(got["text_embedding.null"], null[:1])
assert "cut to the first 12 of" in stderr.getvalue() and "two dogs" in stderr.getvalue(), stderr.getvalue()
assert not (got["text_embedding"][0] == got["text_embedding"][2]).all()

for forced in (True, False):
    (xl / "model_index.json").write_text(json.dumps({"force_zeros_for_empty_prompt": forced}))
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=None, text_encoder=xl_models[0], text_encoder_2=xl_models[1], tokenizer=xl_words[0],
        tokenizer_2=xl_words[1], unet=None, scheduler=None, force_zeros_for_empty_prompt=forced,
        add_watermarker=False,
    )  # fmt: skip
    for negative in (None, "dog"):
        got = encoded(xl, *prompts, *(["--negative", negative] if negative else []))
        names = {"text_embedding", "pooled_embedding", "size_ids"}
        assert set(got) == names | {name + ".null" for name in names}, set(got)
        negatives = None if negative is None else [negative] * len(prompts)
        results = pipe.encode_prompt(prompts, device="cpu", negative_prompt=negatives)
        same(got["text_embedding"], results[0])
        same(got["text_embedding.null"], results[1][:1])
        same(got["pooled_embedding"], results[2])
        same(got["pooled_embedding.null"], results[3][:1])
        assert (got["text_embedding.null"] == 0).all() == (forced and negative is None)
        same(got["size_ids"], torch.tensor([[768.0, 768, 0, 0, 768, 768]] * 3))
        same(got["size_ids.null"], torch.tensor([[768.0, 768, 0, 0, 768, 768]]))
# Texts are kept as they were given, whatever they hold.
encoded(sd, "", "two\nlines", '../"\'\x1b[31m', "\N{FOX FACE}", "cat " * 2500, "a cat", "a cat")
same(encoded(xl, "a", "--size", "512")["size_ids"], torch.tensor([[512.0, 512, 0, 0, 512, 512]]))
same(encoded(xl, "a", "--size", "512x640")["size_ids"], torch.tensor([[512.0, 640, 0, 0, 512, 640]]))

# The refiner has the second encoder only, and is told how pretty the picture is to be.
refiner = scratch / "refiner"
for part in ("text_encoder_2", "tokenizer_2"):
    shutil.copytree(xl / part, refiner / part)
(refiner / "model_index.json").write_text(json.dumps({"requires_aesthetics_score": True}))
refined = encoded(refiner, "a cat")
same(refined["size_ids"], torch.tensor([[1024, 1024, 0, 0, 6]]).float())
same(refined["size_ids.null"], torch.tensor([[1024, 1024, 0, 0, 2.5]]))
same(refined["text_embedding"], encoded(xl, "a cat")["text_embedding"][:, :, 16:])

t5_prompts = ["a cat", "  Two DOGS.\n", "", "many words " * 20]
# Stable Diffusion 3: all three side by side and behind each other; without T5 zeros are in its place.
for folder, t5, t5_words in ((sd3, sd3_t5, sd3_t5_words), (clip_only, None, None)):
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=sd3_transformer, scheduler=None, vae=None, text_encoder=sd3_models[0], tokenizer=sd3_words[0], text_encoder_2=sd3_models[1],
        tokenizer_2=sd3_words[1], text_encoder_3=t5, tokenizer_3=t5_words,
    )  # fmt: skip
    for negative, length in ((None, 256), ("Dog", 9)):
        more = ["--text-tokens", length, "--negative", negative] if negative else []
        got = encoded(folder, *t5_prompts, *more)
        assert set(got) == {f"{name}{end}" for name in ("text_embedding", "pooled_embedding") for end in ("", ".null")}, set(got)
        assert got["text_embedding"].shape == (4, LENGTH + length, 48) and got["pooled_embedding"].shape == (4, 20)
        results = pipe.encode_prompt(t5_prompts, None, None, "cpu", 1, True, negative or "", max_sequence_length=length)
        same(got["text_embedding"], results[0])
        same(got["text_embedding.null"], results[1][:1])
        same(got["pooled_embedding"], results[2])
        same(got["pooled_embedding.null"], results[3][:1])
        assert ("without T5" in stderr.getvalue()) == (t5 is None), stderr.getvalue()

# PixArt: text in lower case and without spaces around it, its mask, and the sizes where the network asks for them.
for folder, pipe in pixarts.items():
    length = {alpha: 120, sigma: 300}[folder]
    for negative in (None, "Dog"):
        got = encoded(folder, *t5_prompts, *(["--negative", negative] if negative else []))
        names = {"text_embedding", "text_mask"} | ({"resolution", "aspect_ratio"} if folder == alpha else set())
        assert set(got) == names | {name + ".null" for name in names}, set(got)
        assert got["text_embedding"].shape == (4, length, 16)
        expected, mask, null, null_mask = pipe.encode_prompt(t5_prompts, True, negative or "", device="cpu")
        same(got["text_embedding"], expected)
        same(got["text_embedding.null"], null[:1])
        assert torch.equal(got["text_mask"], mask) and torch.equal(got["text_mask.null"], null_mask[:1])
        assert got["text_mask"].sum(1).tolist()[2] == 1 and got["text_mask.null"].sum() == (2 if negative else 1)
    # The pipelines' own default is to clean, which is the same where the packages for it are missing.
    assert pipe._text_preprocessing(t5_prompts, clean_caption=False)[1] == "two dogs."
    cut = "cut to the first 120 of" in stderr.getvalue()
    assert cut == (folder == alpha), stderr.getvalue()
for arguments, size in (([], (1024, 1024)), (["--size", "512x768"], (512, 768))):
    got = encoded(alpha, "a", "b", *arguments)
    for end, rows in (("", 2), (".null", 1)):
        same(got["resolution" + end], torch.tensor([size] * rows).float())
        same(got["aspect_ratio" + end], torch.tensor([[size[0] / size[1]]] * rows))
assert encoded(alpha, "a", "--text-tokens", 7)["text_mask"].tolist() == [[1, 1, 1, 0, 0, 0, 0]]

# Wan: white space and &amp; and the like, and zeros behind the text.
wan = scratch / "wan"
umt5_shape = json.loads((alpha / "text_encoder/config.json").read_text()) | {"architectures": ["UMT5EncoderModel"]}
umt5 = transformers.UMT5EncoderModel(transformers.UMT5Config.from_dict(umt5_shape)).eval()
for parameter in umt5.parameters():
    parameter.copy_(torch.randn_like(parameter) * 0.3)
umt5.save_pretrained(wan / "text_encoder")
t5_tokenizer(wan / "tokenizer")
wan_words = transformers.PreTrainedTokenizerFast.from_pretrained(wan / "tokenizer")
pipe = diffusers.WanPipeline(wan_words, umt5, vae=None, scheduler=None)
wan_prompts = [*t5_prompts, " a\t cat &amp;lt;dog&amp;gt;\u00a0\n"]
for negative, length in ((None, 512), ("Dog \n", 9)):
    more = ["--text-tokens", length, "--negative", negative] if negative else []
    got = encoded(wan, *wan_prompts, *more)
    assert set(got) == {"text_embedding", "text_embedding.null"}, set(got)
    expected, null = pipe.encode_prompt(wan_prompts, negative, device="cpu", max_sequence_length=length)
    same(got["text_embedding"], expected)
    same(got["text_embedding.null"], null[:1])
    assert (got["text_embedding"][2, 1:] == 0).all() and length in got["text_embedding"].shape

# Sana: with an instruction before prompts alone.
sana = scratch / "sana"
sana_model = harness.small_gemma(sana)
(sana / "model_index.json").write_text(json.dumps({"_class_name": "SanaPipeline"}))
(scratch / "instruction").write_text("Say it twice.\nPrompt: \n")
sana_words = transformers.GemmaTokenizerFast.from_pretrained(sana / "tokenizer")
pipe = diffusers.SanaPipeline(sana_words, sana_model, vae=None, transformer=None, scheduler=None)
own = inspect.signature(diffusers.SanaPipeline.__call__).parameters["complex_human_instruction"].default
for given, lines in ((None, own), ("none", None), (scratch / "instruction", ["Say it twice.", "Prompt: "])):
    for negative in (None, "Dog"):
        options = [*(["--instruction", given] if given else []), *(["--negative", negative] if negative else [])]
        got = encoded(sana, *t5_prompts, *options)
        assert got["text_embedding"].shape == (4, 300, 16)
        expected, mask, null, null_mask = pipe.encode_prompt(
            t5_prompts, True, negative or "", device="cpu", complex_human_instruction=lines
        )
        same(got["text_embedding"], expected)
        same(got["text_embedding.null"], null[:1])
        assert torch.equal(got["text_mask"], mask) and torch.equal(got["text_mask.null"], null_mask[:1])
must_refuse(sana, "a", "--instruction", scratch / "nowhere", words=("nowhere", "must be a file of UTF-8"))

# ---------------------------------------------------------------------------------------- where weights come from

encoded(sd, "a cat")
plain = out.read_bytes()
encoded(sd, "a cat")
assert out.read_bytes() == plain, "the same weights must give the same bytes"
# Older checkpoints: another prefix, and the positions' numbers among the weights.
older = scratch / "older"
shutil.copytree(sd, older)
(older / "text_encoder/model.safetensors").unlink()
weights = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in sd_model.state_dict().items()}
weights["text_model.embeddings.position_ids"] = torch.arange(LENGTH)[None]
torch.save(weights, older / "text_encoder/pytorch_model.bin")
encoded(older, "a cat")
assert out.read_bytes() == plain

# T5's table of words has two names; a file may have either or both, and other types.
encoded(alpha, "a cat")
plain = out.read_bytes()
t5_weights = {name: value.clone() for name, value in pixarts[alpha].text_encoder.state_dict().items()}
tables = ("shared.weight", "encoder.embed_tokens.weight")
assert all(name in t5_weights for name in tables)
t5_older = scratch / "t5_older"
shutil.copytree(alpha, t5_older)
(t5_older / "text_encoder/model.safetensors").unlink()
for left_out in (None, *tables):
    torch.save({k: v for k, v in t5_weights.items() if k != left_out}, t5_older / "text_encoder/pytorch_model.bin")
    encoded(t5_older, "a cat")
    assert out.read_bytes() == plain, left_out
halves = {name: value.half() for name, value in t5_weights.items()}
torch.save(halves, t5_older / "text_encoder/pytorch_model.fp16.bin")
got = encoded(t5_older, "a cat", "--variant", "fp16")["text_embedding"]
assert out.read_bytes() != plain and (got - encoded(alpha, "a cat")["text_embedding"]).abs().max() < 0.05

# ---------------------------------------------------------------------------------------- what is refused


def copied(source: Path) -> Path:
    shutil.rmtree(scratch / "bad", ignore_errors=True)
    shutil.copytree(source, scratch / "bad")
    return scratch / "bad"


def edited(source: Path, path: str, **changes: object) -> Path:
    folder = copied(source)
    config = json.loads((folder / path).read_text()) | changes
    (folder / path).write_text(json.dumps(config))
    return folder


def without(source: Path, path: str) -> Path:
    folder = copied(source)
    (folder / path).unlink() if (folder / path).is_file() else shutil.rmtree(folder / path)
    return folder


def with_weights(change: object) -> Path:
    folder = copied(older)
    tensors = {key: value.clone() for key, value in weights.items()}
    change(tensors)
    torch.save(tensors, folder / "text_encoder/pytorch_model.bin")
    return folder


config = "text_encoder/config.json"
must_refuse(without(sd3, "text_encoder_2"), "a", words=("must hold text_encoder and text_encoder_2", "text_encoder_3"))
must_refuse(without(sd3, "tokenizer_3"), "a", words=("tokenizer_3", "must be a folder"))
must_refuse(edited(clip_only, "transformer/config.json", joint_attention_dim=39), "a", words=("at most 39 wide", "got 40"))
must_refuse(scratch / "nowhere", "a", words=("nowhere", "must be a folder"))
must_refuse(out, "a", words=("must be a folder", "a file"))
must_refuse(without(sd, "text_encoder"), "a", words=("must hold text_encoder", "got nothing"))
must_refuse(sd, words=("PROMPT",))
must_refuse(sd, "a", "b\udcff", words=("PROMPT: must be UTF-8", r"'b\udcff'"))
must_refuse(sd, "a", "--negative", "\udcff", words=("--negative: must be UTF-8",))
must_refuse(sd, "a" * 65537, words=("PROMPT: must have at most 65536 bytes, got 65537",))
must_refuse(xl, "a", "--size", "big", words=("--size", "'big'"))
must_refuse(without(sd, "tokenizer"), "a", words=("tokenizer", "must be a folder"))
must_refuse(without(sd, "tokenizer/vocab.json"), "a", words=("tokenizer", "vocab.json"))
must_refuse(without(sd, config), "a", words=("config.json", "must be there"))
must_refuse(without(xl, "tokenizer_2"), "a", words=("tokenizer_2", "must be a folder"))
must_refuse(edited(sd, config, architectures=["BertModel"]), "a", words=("architectures", "BertModel"))
must_refuse(edited(sd, config, num_attention_heads=3), "a", words=("config.json", "CLIPTextModel", "got"))
must_refuse(edited(sd, config, hidden_size=32), "a", words=("must be", "got"))
must_refuse(edited(sd, config, num_hidden_layers=4), "a", words=("got none called",))
must_refuse(edited(sd, config, num_hidden_layers=2), "a", words=("got also",))
must_refuse(edited(xl, "unet/config.json", sample_size="big"), "a", words=("sample_size",))
must_refuse(edited(xl, "model_index.json", force_zeros_for_empty_prompt=1), "a", words=("force_zeros",))
must_refuse(with_weights(lambda w: w.update(more=torch.ones(1))), "a", words=("got also more",))
name = "text_model.final_layer_norm.bias"
must_refuse(with_weights(lambda w: w.pop(name)), "a", words=("final_layer_norm.bias",))
must_refuse(with_weights(lambda w: w[name].fill_(torch.nan)), "a", words=("final_layer_norm.bias", "finite"))
folder = copied(sd)
(folder / "tokenizer/vocab.json").write_text("{")
must_refuse(folder, "a", words=("tokenizer", "must hold a CLIP tokenizer"))
folder = copied(sd)
(folder / "tokenizer/vocab.json").write_text(json.dumps(vocabulary | {"more": len(vocabulary)}))
must_refuse(folder, "a", words=("tokenizer", "words"))
folder = copied(xl)
sorted((folder / "text_encoder_2").glob("*.safetensors"))[1].unlink()
must_refuse(folder, "a", words=("every shard must be there",))

other = edited(alpha, "model_index.json", _class_name="IFPipeline")
must_refuse(other, "a", words=("PixArtSigmaPipeline", "--text-tokens"))
must_refuse(without(alpha, "model_index.json"), "a", words=("model_index.json", "--text-tokens", "got neither"))
must_refuse(alpha, "a", "--text-tokens", "0", words=("--text-tokens", "'0'"))
must_refuse(without(alpha, "tokenizer"), "a", words=("tokenizer", "must be a folder"))
must_refuse(without(alpha, "tokenizer/tokenizer.json"), "a", words=("tokenizer", "spiece.model or tokenizer.json"))
must_refuse(edited(alpha, config, architectures=["T5Model"]), "a", words=("architectures", "T5Model"))
must_refuse(edited(alpha, config, num_layers=3), "a", words=("got none called",))
must_refuse(edited(alpha, config, num_layers=1), "a", words=("got also",))
must_refuse(edited(alpha, config, d_ff=24), "a", words=("must be", "got"))
must_refuse(edited(alpha, config, d_model="16"), "a", words=("config.json", "T5EncoderModel"))
must_refuse(edited(alpha, config, vocab_size=20), "a", words=("must be [20, 16]",))
for key, value in {"sample_size": "128", "use_additional_conditions": 1}.items():
    folder = edited(alpha, "transformer/config.json", **{key: value})
    must_refuse(folder, "a", words=("transformer/config.json", key, "got"))
folder = copied(alpha)
(folder / "tokenizer/tokenizer.json").write_text("{")
must_refuse(folder, "a", words=("tokenizer", "must hold a T5 tokenizer"))
t5_tokenizer(copied(alpha) / "tokenizer", [*T5_WORDS, *((f"more{i}", -9.0) for i in range(4))])
must_refuse(folder, "a", words=("tokenizer", "must have at most"))


def with_t5_weights(**changes: torch.Tensor | None) -> Path:
    folder = copied(t5_older)
    tensors = {name: value for name, value in (t5_weights | changes).items() if value is not None}
    torch.save(tensors, folder / "text_encoder/pytorch_model.bin")
    return folder


must_refuse(with_t5_weights(**dict.fromkeys(tables)), "a", words=("got none called shared.weight",))
must_refuse(with_t5_weights(**{tables[1]: t5_weights[tables[0]] + 1}), "a", words=(*tables, "got another"))
must_refuse(with_t5_weights(more=torch.ones(1)), "a", words=("got also more",))
norm = "encoder.final_layer_norm.weight"
must_refuse(with_t5_weights(**{norm: torch.full((16,), torch.nan)}), "a", words=(norm, "finite"))
message = run(sd, scratch / "no_such_folder/out.pt", "a")
assert "must be a file that can be written" in message, message
print("every prompt is diffusers'")
