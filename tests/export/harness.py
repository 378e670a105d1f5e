"""What the tests of exporters share."""

import contextlib
import functools
import gc
import importlib
import io
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import torch


def set_up(*packages: str) -> tuple[Path, Path]:
    """EXPORT_FOLDER, whose modules can be imported from now on, and SCRATCH_FOLDER, new and empty: the last arguments.

    Ends with 77 where one of the packages is missing.
    """
    try:
        for package in packages:
            importlib.import_module(package)
    except ImportError as error:
        print(f"skipped: {error}")
        sys.exit(77)
    if "diffusers" in packages:
        sys.modules["diffusers"].logging.set_verbosity_error()
    export, scratch = map(Path, sys.argv[-2:])
    sys.path.insert(0, str(export))
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    torch.set_grad_enabled(False)
    return export, scratch


@functools.cache
def freeze_garbage() -> None:
    """Once: exporters look for garbage, which takes long among all that is imported."""
    gc.freeze()


def run(program: ModuleType, *arguments: object, stderr: io.StringIO | None = None) -> str:
    """Runs its main() in this process; an empty string, or the line with which it ended."""
    freeze_garbage()
    sys.argv = [f"{program.__name__}.py", *map(str, arguments)]
    errors = stderr or io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
            program.main()
    except SystemExit as stop:
        return errors.getvalue().splitlines()[-1] if stop.code == 2 else str(stop.code)
    return ""


def require_refusal(message: str, words: tuple[str, ...], scratch: Path) -> None:
    """One line with these words, and nothing written under the name "refused"."""
    assert message and all(word in message for word in words), f"{words} must be in {message!r}"
    assert "\n" not in message, message
    left = [path.name for path in scratch.iterdir() if path.name.startswith("refused")]
    assert not left, f"what is refused must write nothing, got {left}"


def must_refuse(program: ModuleType, scratch: Path, *arguments: object, words: tuple[str, ...]) -> None:
    """With these arguments and a place to write to, with these words."""
    require_refusal(run(program, *arguments, scratch / "refused.pt"), words, scratch)


def metadata(path: Path, keys: tuple[str, ...]) -> dict[str, str]:
    """Those of the keys that the file has."""
    files = {f"tstitch/{key}": "" for key in keys}
    torch.jit.load(path, _extra_files=files)
    text = {key.removeprefix("tstitch/"): v.decode() if isinstance(v, bytes) else v for key, v in files.items()}
    return {key: value for key, value in text.items() if value}


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """Norms begin as 1 and 0, which would hide a mix-up of names."""
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to the RMS of what is expected."""
    assert got.shape == expected.shape, (got.shape, expected.shape)
    return ((got.float() - expected).abs().max() / expected.square().mean().sqrt()).item()


def small_gemma(pipeline: Path) -> torch.nn.Module:
    """Puts tokenizer/ and text_encoder/ into the folder: a tokenizer of letters and bytes with a few words, and a network
    with random weights."""
    import tokenizers
    import transformers

    merges = [("c", "a"), ("ca", "t"), ("▁", "cat"), ("d", "o"), ("do", "g")]
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "\n", "\n\n", *(f"<0x{b:02X}>" for b in range(256)), "▁", ":", "."]
    pieces += [*letters, *letters.upper(), *(a + b for a, b in merges)]
    words = {piece: i for i, piece in enumerate(pieces)}
    fast = tokenizers.Tokenizer(
        tokenizers.models.BPE(words, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    fast.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    fast.pre_tokenizer = tokenizers.pre_tokenizers.Split(" ", "merged_with_previous")
    fast.post_processor = tokenizers.processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    fast.add_tokens([tokenizers.AddedToken(runs, normalized=False) for runs in ("\n", "\n\n")])
    folder = pipeline / "tokenizer"
    folder.mkdir(parents=True)
    fast.save(str(folder / "tokenizer.json"))
    special = {f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk")}
    (folder / "tokenizer_config.json").write_text(json.dumps(special | {"tokenizer_class": "GemmaTokenizer"}))

    shape = transformers.Gemma2Config(
        vocab_size=340, hidden_size=16, intermediate_size=20, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=6, query_pre_attn_scalar=10, sliding_window=7,
    )  # fmt: skip
    model = transformers.Gemma2Model(shape).eval()
    for parameter in model.parameters():
        # With larger ones what bfloat16 rounds would be taken for a fault.
        parameter.copy_(torch.randn_like(parameter) * 0.12)
    model.save_pretrained(pipeline / "text_encoder")
    return model
