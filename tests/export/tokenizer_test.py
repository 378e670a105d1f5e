"""Tokenizers of TorchScript give what transformers' give: tokenizer_test.py EXPORT_FOLDER SCRATCH_FOLDER

Makes small vocabularies in the forms of CLIP, T5, UMT5 and Gemma on texts of many languages, and compares all tokens of some
thousand texts: sentences, words of random characters of each script, mixtures, and what is made to be hard.
"""

import collections
import json
import math
import random
import re
import time
import unicodedata
from pathlib import Path
from typing import List, Tuple

import harness

export, scratch = harness.set_up("tokenizers", "transformers")
import tokenizers  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers  # noqa: E402

import tokenizer as ours  # noqa: E402

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
numbers = random.Random(0)
LENGTH = 77

# ---------------------------------------------------------------------------------------- texts

SENTENCES = """
A photograph of an astronaut riding a horse, 35mm, f/1.8; it's what we've got, they'll say I'm DONE and he'd know you're 12.
Le café n'est pas très loin de l'hôtel où j'ai dormi cet été, près de la forêt.
Größere Straßen führen über die Brücke nach Österreich, weiß der ÄLTERE Müller.
El niño comió una manzana en la montaña mientras llovía. ¿Qué pasó después?
O coração não vê o amanhã; a mãe e o irmão já saíram.
Zażółć gęślą jaźń, pchnąć w tę łódź jeża lub ośm skrzyń fig.
Příliš žluťoučký kůň úpěl ďábelské ódy.
Árvíztűrő tükörfúrógép a kertben.
Iğdır'ın yağız şoförü çabucak kaçtı. İSTANBUL ve ISPARTA.
Sự thật là mọi người đều thích cà phê sữa đá ở Hà Nội.
Příští týden půjdeme. Žába leze do bezu. Ľúbim ťa.
Жил-был маленький кот, который любил рыбу. Ёлка и ЁЖ.
Їжак і ґава живуть у лісі. Ўсё добра.
Η γρήγορη αλεπού πηδάει πάνω από τον ΟΔΥΣΣΕΑΣ. Ο ΣΟΦΟΣ.
Արագ շունը վազում է դաշտով։
სწრაფი ყავისფერი მელა ხტება.
השועל החום המהיר קופץ מעל הכלב העצלן. שָׁלוֹם
الثعلب البني السريع يقفز فوق الكلب الكسول. مُحَمَّد
روباه قهوه‌ای سریع از روی سگ تنبل می‌پرد. پنجره
تیز بھورا لومڑی سست کتے پر چھلانگ لگاتی ہے۔
तेज़ भूरी लोमड़ी आलसी कुत्ते के ऊपर कूदती है। क़लम १२३
দ্রুত বাদামী শিয়াল অলস কুকুরের উপর লাফ দেয়।
ਤੇਜ਼ ਭੂਰੀ ਲੂੰਬੜੀ ਆਲਸੀ ਕੁੱਤੇ ਉੱਤੇ ਛਾਲ ਮਾਰਦੀ ਹੈ।
ઝડપી કથ્થઈ શિયાળ આળસુ કૂતરા પર કૂદે છે.
வேகமான பழுப்பு நரி சோம்பேறி நாய் மீது பாய்கிறது.
వేగవంతమైన గోధుమ నక్క సోమరి కుక్కపై దూకుతుంది.
ವೇಗದ ಕಂದು ನರಿ ಸೋಮಾರಿ ನಾಯಿಯ ಮೇಲೆ ಹಾರುತ್ತದೆ.
വേഗതയുള്ള തവിട്ട് കുറുക്കൻ മടിയനായ നായയുടെ മുകളിലൂടെ ചാടുന്നു.
ඉක්මන් දුඹුරු නරියා කම්මැලි බල්ලා මතින් පනියි.
สุนัขจิ้งจอกสีน้ำตาลกระโดดข้ามสุนัขขี้เกียจ น้ำ
ໝາຈອກສີນ້ຳຕານໂດດຂ້າມໝາຂີ້ຄ້ານ
မြန်ဆန်သော အညိုရောင်မြေခွေးသည် ပျင်းရိသောခွေးကို ခုန်ကျော်သည်။
កញ្ជ្រោងពណ៌ត្នោតរហ័សលោតពីលើឆ្កែខ្ជិល
ཝ་སྨུག་པོ་མྱུར་པོ་ཞིག་ཁྱི་ལེ་ལོ་ཅན་གྱི་སྟེང་ནས་མཆོངས།
敏捷的棕色狐狸跳过了懒狗。一只猫坐在垫子上，看着窗外。
素早い茶色の狐がのろまな犬を飛び越える。ｶﾀｶﾅ カタカナ ガ
빠른 갈색 여우가 게으른 개를 뛰어넘는다. 안녕하세요 ㄱㄴㄷ
ፈጣን ቡናማ ቀበሮ ሰነፍ ውሻ ላይ ዘለለ።
Хурдан хүрэн үнэг залхуу нохойн дээгүүр харайв. ᠮᠣᠩᠭᠣᠯ
ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ, ꮳꮃꭹ; ⵜⴰⵎⴰⵣⵉⵖⵜ; ߒߞߏ; ᐃᓄᒃᑎᑐᑦ
""".strip().splitlines()

# First and last code point.
SCRIPTS = [
    (0x21, 0x7E), (0xA1, 0xFF), (0x100, 0x17F), (0x180, 0x24F), (0x250, 0x2FF), (0x370, 0x3FF), (0x400, 0x52F),
    (0x531, 0x58A), (0x591, 0x5F4), (0x600, 0x6FF), (0x700, 0x74F), (0x780, 0x7B1), (0x7C0, 0x7FA), (0x8A0, 0x8FF),
    (0x900, 0x97F), (0x980, 0x9FB), (0xA01, 0xA76), (0xA81, 0xAF1), (0xB01, 0xB77), (0xB82, 0xBFA), (0xC00, 0xC7F),
    (0xC80, 0xCF2), (0xD00, 0xD7F), (0xD82, 0xDF4), (0xE01, 0xE5B), (0xE81, 0xEDF), (0xF00, 0xFDA), (0x1000, 0x109F),
    (0x10A0, 0x10FF), (0x1100, 0x11FF), (0x1200, 0x137C), (0x13A0, 0x13FD), (0x1400, 0x167F), (0x1680, 0x16F8),
    (0x1780, 0x17F9), (0x1800, 0x18AA), (0x1900, 0x1AAD), (0x1B00, 0x1BFF), (0x1C00, 0x1CFF), (0x1D00, 0x1DBF),
    (0x1E00, 0x1EFF), (0x1F00, 0x1FFE), (0x2000, 0x206F), (0x2070, 0x20BF), (0x2100, 0x218B), (0x2190, 0x23FF),
    (0x2460, 0x24FF), (0x2500, 0x27BF), (0x2C00, 0x2D7F), (0x3000, 0x303F), (0x3041, 0x30FF), (0x3105, 0x318E),
    (0x3200, 0x33FF), (0x4E00, 0x9FFF), (0xA000, 0xA4C6), (0xA640, 0xA7FF), (0xA900, 0xABF9), (0xAC00, 0xD7A3),
    (0xD7B0, 0xD7FB), (0xE000, 0xE0FF), (0xF900, 0xFAD9), (0xFB00, 0xFDFF), (0xFE00, 0xFE6F), (0xFE70, 0xFFEE),
    (0x10000, 0x100FA), (0x10300, 0x103D5), (0x10400, 0x104FB), (0x10900, 0x10939), (0x11000, 0x1107F),
    (0x11080, 0x111DF), (0x12000, 0x12399), (0x13000, 0x1342E), (0x16A00, 0x16AFF), (0x1B000, 0x1B0FF),
    (0x1D100, 0x1D1E8), (0x1D400, 0x1D7FF), (0x1E900, 0x1E95F), (0x1EE00, 0x1EEF1), (0x1F100, 0x1F1FF),
    (0x1F300, 0x1F64F), (0x1F900, 0x1F9FF), (0x20000, 0x2A6DF), (0x2F800, 0x2FA1D), (0xE0001, 0xE007F), (0xE0100, 0xE01EF),
]  # fmt: skip
MARKS = [*map(chr, [*range(0x300, 0x370), *range(0x483, 0x488), *range(0x1AB0, 0x1ABF), *range(0x20D0, 0x20F1)]), "\u093c", "\u094d", "\u05bc", "\u3099", "\u309a", "\u200d", "\ufe0f"]  # fmt: skip
SPACES = [
    " ",
    " ",
    " ",
    "  ",
    "\t",
    "\n",
    "\r\n",
    "\u00a0",
    "\u2003",
    "\u3000",
    "\u200b",
    "\u2028",
    "\u0085",
    "\x1c",
    "\ufeff",
]
HARD = [
    "", " ", "   \n\t ", "a", "\0", "a\0b", "\x01\x02\x1f\x7f\x80\x9f", "\r\n", "\n\r", "a\r\nb", "\u00ad", "\ufffd", "\uffff",
    "👩‍👩‍👧‍👦", "👍🏽 ok", "🏳️‍🌈", "🇩🇪🇫🇷🇯", "©\u200d©", "™\u200d™\u0301", "ℹ\u0301", "❤\u200dℹ\u0301", "1️⃣ #️⃣", "☺️☺", "🫠🪿🫨",
    "e\u0301", "e\u0301\u0301", "e\u0323\u0301", "e\u0301\u0323", "A\u030a\u0301", "\u0301e", "\u0301", "q\u0307\u0323",
    "\u1100\u1161\u11a8", "\uac00\u11a8", "\u1100\u1161\u0301", "\u1161\u11a8", "각", "ｶﾞ", "か\u3099", "ﬁ\u0301", "ﬃ", "ß ẞ ſ",
    "\u0600e\u0301", "\u0890e\u0301", "\u0958\u0301", "क\u094dक़\u0301", "क\u094d\u0958\u0301", "\u0915\u093c", "\u2126 \u212b \u1f71",
    "ΑΣ ΑΣΑ Σ ΣΑ Α.Σ Α'Σ ΑΣ. Α\u0301Σ Α\u00adΣ", "İıIi ŞşĞğ", "Ǆǅǆ ŉ ǰ", "\u0149 \u1e9e", "½ ² ① Ⅷ ㋿ ㍿",
    "it's IT'S 'tis 'll ''s 's's !'s ' 're've'd'm", "don’t can´t", "a'b 'a ''", "--- ... !!! ?!?! <<>>", "<|startoftext|>",
    "a<|endoftext|>b", "<|EndOfText|>\x1c!<|STARTOFTEXT|><|StartOfText|>!", " <|endoftext|> ", "<|ENDOFTEXT|>", "<|endoftext", "<|<|endoftext|>|>", "a </s> b", "</s>", "<pad><unk>",
    "<extra_id_0> <extra_id_1>x", "<0x41>", "<bos>a<eos>", "<start_of_turn>user\nhi<end_of_turn>\n", "<start_of_turn", "\n\n\n\n\n", "a\n\nb \n c",
    "a  b   c    d", "▁▁▁▁▁", "<b>x</b></b", "<unused0> <unused1>", "\t\t\t", "▁", "▁▁a▁", "a▁b ▁c", "!", "hello! world!!", "a !b", "x" * 300, "ab" * 1000, "a b " * 300,
    "é" * 500, "\u0301" * 400, "e" + "\u0301\u0323" * 200, "🦊" * 300, "猫" * 300, "1234567890" * 30, "!?" * 300, " " * 500, "'s" * 200,
]  # fmt: skip


def word() -> str:
    first, last = numbers.choice(SCRIPTS)
    letters = [chr(numbers.randint(first, last)) for _ in range(numbers.randint(1, 9))]
    if numbers.random() < 0.3:
        letters.insert(numbers.randint(0, len(letters)), numbers.choice(MARKS))
    if numbers.random() < 0.05:
        letters.insert(numbers.randint(0, len(letters)), chr(numbers.randint(0, 0x2FF)))
    return "".join(letters)


def mixture() -> str:
    parts = []
    for _ in range(numbers.randint(1, 8)):
        kind = numbers.random()
        if kind < 0.5:
            parts.append(word())
        elif kind < 0.8:
            parts.append(numbers.choice(numbers.choice(SENTENCES).split()))
        elif kind < 0.9:
            parts.append(numbers.choice(HARD)[:40])
        else:
            form = numbers.choice(["NFC", "NFD", "NFKC", "NFKD"])
            parts.append(unicodedata.normalize(form, numbers.choice(SENTENCES))[:60])
        parts.append(numbers.choice(SPACES) if numbers.random() < 0.8 else "")
    return "".join(parts)


TEXTS = [*HARD, *SENTENCES, *(s.upper() for s in SENTENCES), *(unicodedata.normalize("NFD", s) for s in SENTENCES)]
# Every character once, in words of their own and side by side.
assigned = [c for c in ours.CHARACTERS if ord(c) < 0x3500 or (0xA640 < ord(c) < 0xAC40 or 0xD7B0 < ord(c) < 0x12000)]
for begin in range(0, len(assigned), 40):
    TEXTS += [" ".join(assigned[begin : begin + 40]), "".join(assigned[begin : begin + 40])]
for first, last in SCRIPTS:
    TEXTS += ["".join(chr(numbers.randint(first, last)) for _ in range(40)) for _ in range(5)]
TEXTS += [mixture() for _ in range(3500)]
assert len(TEXTS) > 5000
CORPUS = SENTENCES * 3 + [Path(__file__).read_text(), (Path(export) / "README.md").read_text()]

# ---------------------------------------------------------------------------------------- vocabularies


def clip(folder: Path, pad: str) -> object:
    """As CLIP has it: the alphabet of bytes twice, the merges in their order, the beginning and the end."""
    start, end = "<|startoftext|>", "<|endoftext|>"
    shape = transformers.CLIPTokenizer(vocab={start: 0, end: 1}, merges=[]).backend_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trained = tokenizers.Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.normalizer, trained.pre_tokenizer = shape.normalizer, shape.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=2500, end_of_word_suffix="</w>", initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator(CORPUS, trainer)
    merges = json.loads(trained.to_str())["model"]["merges"]
    words = dict.fromkeys(
        [*alphabet, *(letter + "</w>" for letter in alphabet), *(a + b for a, b in merges), start, end]
    )
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(words)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(f"{a} {b}" for a, b in merges), ""]))
    special = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": pad}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH}
    (folder / "tokenizer_config.json").write_text(json.dumps(special | settings))
    return transformers.CLIPTokenizer.from_pretrained(folder)


def compatibility_map() -> bytes:
    """What nmt_nfkc of SentencePiece is in the main: compatibility forms, composed letters, controls and spaces."""
    table = {}
    for c in ours.CHARACTERS:
        form = unicodedata.normalize("NFKC", c)
        if form != c:
            table[c] = form
        parts = unicodedata.normalize("NFD", c)
        if parts != form and 1 < len(parts) < 4 and unicodedata.normalize("NFC", parts) == c:
            table[parts] = form
    table |= {c: "" for c in map(chr, [*range(1, 9), 0xB, *range(0xE, 0x20), 0x7F, 0x8F, 0x9F])}
    table |= dict.fromkeys("\t\n\f\r\u1680\u200b\u200e\u200f\u2028\u2029\u2581\ufeff\ufffd", " ")
    return ours.character_map({key.encode(): text for key, text in table.items()})


def unigram(folder: Path, byte_fallback: bool, extra: int) -> tokenizers.Tokenizer:
    """A tokenizer.json of SentencePiece's kind."""
    map_of_characters = normalizers.Precompiled(compatibility_map())
    space = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    trained = tokenizers.Tokenizer(models.Unigram())
    if byte_fallback:  # as converted from sentencepiece
        shorter = [normalizers.Strip(left=False, right=True), normalizers.Replace(tokenizers.Regex(" {2,}"), "▁")]
        trained.normalizer, trained.pre_tokenizer = normalizers.Sequence([map_of_characters, *shorter]), space
    else:
        trained.normalizer = map_of_characters
        trained.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), space])
    # The trainer of the package takes minutes; what counts here are pieces of all lengths and scores that compete.
    counts: collections.Counter[str] = collections.Counter()
    for text in CORPUS:
        for word, _ in trained.pre_tokenizer.pre_tokenize_str(trained.normalizer.normalize_str(text)):
            counts.update(word[i:j] for i in range(len(word)) for j in range(i + 1, min(len(word), i + 12) + 1))
    kept = [p for p in counts if len(p) == 1 and counts[p] > 2]
    kept += sorted((p for p in counts if len(p) > 1), key=lambda p: (-counts[p] * len(p), p))[:2500]
    pieces = [["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0]]
    pieces += [[p, math.log(counts[p] / counts.total())] for p in kept]
    values = json.loads(trained.to_str())
    pieces[3:3] = [[f"<0x{b:02X}>", 0.0] for b in range(256)] if byte_fallback else []
    pieces += [[f"<extra_id_{i}>", 0.0] for i in range(extra - 1, -1, -1)]
    values["model"] |= {"vocab": pieces, "byte_fallback": byte_fallback, "unk_id": 2}
    fast = tokenizers.Tokenizer.from_str(json.dumps(values))
    fast.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    folder.mkdir()
    fast.save(str(folder / "tokenizer.json"))
    special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "extra_ids": extra}
    kind = {"tokenizer_class": "PreTrainedTokenizerFast" if byte_fallback else "T5Tokenizer", "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(special | kind))
    return fast


def gemma(folder: Path) -> object:
    """As Gemma has it: BPE over whole texts whose spaces are visible, bytes for the rest, and many added tokens, among
    them runs of line feeds and of spaces."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    runs = ["\n" * n for n in range(1, 5)] + ["▁" * n for n in range(2, 5)] + ["\t" * n for n in range(1, 3)]
    added = [*special, "<unused0>", "<unused1>", "<start_of_turn>", "<end_of_turn>", *runs, "<b>", "</b>"]
    bytes_of = [f"<0x{b:02X}>" for b in range(256)]
    trained = tokenizers.Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    # On words; merges of a space and what is behind it come about all the same.
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=2500, initial_alphabet=["▁"], limit_alphabet=400, show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    model = json.loads(trained.to_str())["model"]
    pieces = dict.fromkeys([*added, *bytes_of, *sorted(model["vocab"], key=model["vocab"].get), "▁▁▁▁▁▁"])
    merges = [*model["merges"], ["▁", "▁"], ["▁▁", "▁"], ["▁▁", "▁▁"], ["▁▁▁", "▁▁▁"]]
    model |= {"vocab": {piece: i for i, piece in enumerate(pieces)}, "merges": merges, "unk_token": "<unk>"}
    model |= {"byte_fallback": True, "fuse_unk": True}
    token = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    values = {
        "version": "1.0", "truncation": None, "padding": None, "model": model,
        "added_tokens": [{"id": i, "content": c, "special": c in special} | token for i, c in enumerate(added)],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
        "post_processor": {
            "type": "TemplateProcessing", "pair": [],
            "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}},
        },
        "decoder": None,
    }  # fmt: skip
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(values))
    names = {f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk")}
    (folder / "tokenizer_config.json").write_text(json.dumps(names | {"tokenizer_class": "GemmaTokenizer"}))
    return transformers.GemmaTokenizer.from_pretrained(folder, padding_side="right")


unigram(scratch / "t5", False, 100)
unigram(scratch / "umt5", True, 0)
PREPARED = {None: lambda text: text, "caption": lambda text: text.lower().strip(), "clean": lambda text: re.sub(r"\s+", " ", text).strip()}
peers = {
    "clip": (clip(scratch / "clip", "<|endoftext|>"), None),
    "clip_g": (clip(scratch / "clip_g", "!"), None),
    "t5": (transformers.T5Tokenizer.from_pretrained(scratch / "t5"), None),
    "caption": (transformers.T5Tokenizer.from_pretrained(scratch / "t5"), "caption"),
    "umt5": (transformers.PreTrainedTokenizerFast.from_pretrained(scratch / "umt5"), None),
    "clean": (transformers.PreTrainedTokenizerFast.from_pretrained(scratch / "umt5"), "clean"),
    "gemma": (gemma(scratch / "gemma"), None),
}

# What differs from another by little is tried with fewer texts.
EVERY = {"clip_g": 5, "caption": 5, "clean": 5}

# ---------------------------------------------------------------------------------------- the same tokens

scripted = {}
for name, (peer, preparation) in peers.items():
    prepare = PREPARED[preparation]
    start = time.perf_counter()
    made = ours.make_tokenizer(scratch / name, peer, LENGTH, preparation)
    path = scratch / f"{name}.pt"
    torch.jit.save(torch.jit.script(made), path)
    loaded = scripted[name] = torch.jit.load(path)
    made_in = time.perf_counter() - start
    texts = TEXTS[:: EVERY.get(name, 1)]
    expected = [peer(prepare(text)).input_ids for text in texts]
    start = time.perf_counter()
    wrong = []
    longest = 0
    for text, ids in zip(texts, expected):
        got = loaded.before + loaded.tokens(text) + loaded.behind
        longest = max(longest, len(got))
        if got != ids:
            wrong.append((text, got, ids))
    took = time.perf_counter() - start
    for text, got, ids in wrong[:8]:
        k = next((k for k, (a, b) in enumerate(zip(got, ids)) if a != b), min(len(got), len(ids)))
        print(
            f"{ascii(text[:60])}: at {k}: {got[k : k + 8]} for {ids[k : k + 8]} {peer.convert_ids_to_tokens(ids[k : k + 8])}"
        )
    assert not wrong, f"{name}: {len(wrong)} of {len(texts)} texts have other tokens"
    unknown = sum(peer.unk_token_id in ids[:-1] for ids in expected)
    print(f"{name}: {len(texts)} texts the same; made in {made_in:.1f} s, {1e3 * took / len(texts):.2f} ms a text, up to {longest} tokens, "
          f"{unknown} texts with unknown ones, {path.stat().st_size:,} bytes", flush=True)  # fmt: skip

    # Cut and padded rows, with their mask.
    some = [*HARD, *TEXTS[-300:]]
    ids, mask, cut = loaded(some)
    prepared = [prepare(text) for text in some]
    rows = peer(prepared, max_length=LENGTH, truncation=True, padding="max_length", return_tensors="pt")
    assert torch.equal(ids, rows.input_ids) and torch.equal(mask, rows.attention_mask), name
    assert ids.dtype == mask.dtype == cut.dtype == torch.int64
    whole = [len(peer(text).input_ids) for text in prepared]
    assert cut.tolist() == [max(0, n - LENGTH) for n in whole] and max(whole) > LENGTH > min(whole), name
    # With an instruction before the text, which is not prepared, and room for both.
    instruction = 'Given a "Prompt":  \n- Evaluate it.\n 1'
    for room in (LENGTH, 40):
        ids_of_both, mask_of_both, _ = loaded.rows(some, instruction, room)
        rows = peer([instruction + text for text in prepared], max_length=room, truncation=True, padding="max_length", return_tensors="pt")
        assert torch.equal(ids_of_both, rows.input_ids) and torch.equal(mask_of_both, rows.attention_mask), name
    # The same again, alone and behind others: no list may outlive its call.
    assert torch.equal(loaded(some)[0], ids) and torch.equal(loaded(some[40:41])[0], ids[40:41]), name

# ---------------------------------------------------------------------------------------- what is refused


@torch.jit.script
def of_bytes(values: List[int]) -> str:
    parts: List[str] = []
    for value in values:
        parts.append(chr(value))
    return "".join(parts)


class Raw(torch.nn.Module):
    """Strings of Python are UTF-8 always; those of C++ are what they are."""

    def __init__(self, tokenizer: torch.nn.Module):
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, values: List[int]) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.tokenizer(["", of_bytes(values)])


def refusal(call: object, *arguments: object) -> str:
    try:
        call(*arguments)
    except Exception as error:
        return str(error).splitlines()[-1]
    return ""


def first_wrong(data: bytes) -> int:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.start
    return -1


for first in range(256):
    for second in (0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0):
        for count in (1, 2, 3, 4):
            data = bytes([first, second, 0x80, 0x80][:count])
            assert ours.invalid_at([chr(byte) for byte in data]) == first_wrong(data), data

for name in ("clip", "umt5"):
    raw = torch.jit.script(Raw(scripted[name]))
    text = "aé猫🦊"
    assert torch.equal(raw(list(text.encode()))[0][1], scripted[name]([text])[0][0])
    for wrong in (
        b"\xff",
        b"a\x80",
        b"a\xc3",
        b"\xc0\x80",
        b"\xe0\x80\x80",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xf0\x9f\xa6",
        b"\xe2\x82a",
    ):
        message = refusal(raw, list(wrong))
        place = 1 if wrong[:1] == b"a" else 0
        assert message.endswith(f"text 1 must be UTF-8, got other bytes at {place}"), (wrong, message)
    start = time.perf_counter()
    longest = ("ab" * ours.LONGEST_TEXT)[: ours.LONGEST_TEXT]
    cut = scripted[name](["a", longest])[2]
    print(f"{name}: {ours.LONGEST_TEXT} bytes in one word take {time.perf_counter() - start:.1f} s", flush=True)
    assert cut[0] == 0 and cut[1] > 1000
    message = refusal(scripted[name], ["a", longest + "a"])
    assert message.endswith("text 1 must have at most 65536 bytes, got 65537"), message
    start = time.perf_counter()
    assert "got 10485760" in refusal(scripted[name], ["a" * 10 * 2**20]) and time.perf_counter() - start < 2
    assert "texts must be at least one" in refusal(scripted[name], [])
