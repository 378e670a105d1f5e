"""Tokenizers for torch.jit.script: texts to the numbers that transformers' tokenizers give, without Python.

`make_tokenizer` takes a fast tokenizer of transformers and builds the same from its parts: what it does with characters
(normalisers), how it cuts texts into words (pre-tokenisers), how it cuts words into tokens (BPE or Unigram), the tokens
that it looks for first, such as `</s>`, and those that it puts before and behind. A part that is not known here is
refused.

Strings of TorchScript are bytes, and it has neither regular expressions nor Unicode. So each part brings tables, which
are asked of that very part of the tokenizer, character by character, when the tokenizer is made: nothing here was
copied from a version of Unicode.

Lists are emptied by clear(): in TorchScript, `words = []` in a branch inside a loop makes one list for all times.
"""

import base64
import functools
import json
import struct
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Dict, Final, List, Tuple

import torch
from torch import Tensor, nn

from common import fail

# Bytes of a text, as condition_file.hpp has it for prompts. A longer one is refused: the time for 64 KiB is bounded.
LONGEST_TEXT = 64 << 10

# All characters that may have a property: of the other planes Unicode has assigned none.
CHARACTERS = [chr(c) for r in ((0, 0xD800), (0xE000, 0x40000), (0xE0000, 0xE1000)) for c in range(*r)]


# ------------------------------------------------------------------------------------------------ strings as bytes


def invalid_at(bytes: List[str]) -> int:
    """Where these are not UTF-8; -1 where they are."""
    i = 0
    while i < len(bytes):
        first = ord(bytes[i])
        size = 1
        least = 0
        if first >= 0x80:
            if first < 0xC2 or first > 0xF4:
                return i
            size = 2 if first < 0xE0 else (3 if first < 0xF0 else 4)
            if i + size > len(bytes):
                return i
            second = ord(bytes[i + 1])
            least = 0xA0 if first == 0xE0 else (0x90 if first == 0xF0 else 0x80)
            most = 0x9F if first == 0xED else (0x8F if first == 0xF4 else 0xBF)
            if second < least or second > most:
                return i
            for k in range(2, size):
                if ord(bytes[i + k]) < 0x80 or ord(bytes[i + k]) > 0xBF:
                    return i
        i += size
    return -1


def characters(text: str) -> List[str]:
    """Of UTF-8."""
    bytes = list(text)  # slices of a text would each copy all of it
    found: List[str] = []
    i = 0
    while i < len(bytes):
        first = ord(bytes[i])
        if first < 0x80:
            found.append(bytes[i])
            i += 1
        elif first < 0xE0:
            found.append(bytes[i] + bytes[i + 1])
            i += 2
        elif first < 0xF0:
            found.append(bytes[i] + bytes[i + 1] + bytes[i + 2])
            i += 3
        else:
            found.append(bytes[i] + bytes[i + 1] + bytes[i + 2] + bytes[i + 3])
            i += 4
    return found


def code_point(character: str) -> int:
    first = ord(character[0])
    if first < 0x80:
        return first
    if first < 0xE0:
        return (first & 0x1F) << 6 | (ord(character[1]) & 0x3F)
    point = (first & 0x0F) << 12 | (ord(character[1]) & 0x3F) << 6 | (ord(character[2]) & 0x3F)
    if first < 0xF0:
        return point
    return (point & 0x7FFF) << 6 | (ord(character[3]) & 0x3F)


class Classes(nn.Module):
    """A small number for every character, 0 for those that are not named."""

    pages: List[int]  # where in cells the 256 characters of each page begin
    cells: List[int]

    def __init__(self, classes: Mapping[str, int]):
        super().__init__()
        pages: dict[int, list[int]] = {}
        for character, value in classes.items():
            pages.setdefault(ord(character) >> 8, [0] * 256)[ord(character) & 255] = value
        known = {(0,) * 256: 0}
        self.pages = []
        for number in range(0x1100):
            page = tuple(pages.get(number, [0] * 256))
            self.pages.append(known.setdefault(page, 256 * len(known)))
        self.cells = [value for page in known for value in page]

    def forward(self, character: str) -> int:
        point = code_point(character)
        return self.cells[self.pages[point >> 8] + (point & 255)]


# ------------------------------------------------------------------------------------------------ normalisers


class Replace(nn.Module):
    """Each character by a text."""

    table: Dict[str, str]

    def __init__(self, table: Mapping[str, str]):
        super().__init__()
        self.table = dict(table)

    def forward(self, text: str) -> str:
        found: List[str] = []
        for character in characters(text):
            found.append(self.table[character] if character in self.table else character)
        return "".join(found)


class ReplaceRuns(nn.Module):
    """Each run of at least so many of these characters by one text."""

    table: Dict[str, int]

    def __init__(self, of: Iterable[str], least: int, by: str):
        super().__init__()
        self.table = dict.fromkeys(of, 1)
        self.least = least
        self.by = by

    def forward(self, text: str) -> str:
        found: List[str] = []
        run: List[str] = []
        for character in characters(text):
            if character in self.table:
                run.append(character)
                continue
            if len(run) >= self.least:
                found.append(self.by)
            else:
                found.extend(run)
            run.clear()
            found.append(character)
        if len(run) >= self.least:
            found.append(self.by)
        else:
            found.extend(run)
        return "".join(found)


class ReplaceText(nn.Module):
    def __init__(self, old: str, new: str):
        super().__init__()
        self.old = old
        self.new = new

    def forward(self, text: str) -> str:
        return text.replace(self.old, self.new)


class Strip(nn.Module):
    """Drops these characters at the ends."""

    table: Dict[str, int]

    def __init__(self, of: Iterable[str], left: bool, right: bool):
        super().__init__()
        self.table = dict.fromkeys(of, 1)
        self.left = left
        self.right = right

    def forward(self, text: str) -> str:
        found = characters(text)
        begin, end = 0, len(found)
        while self.left and begin < end and found[begin] in self.table:
            begin += 1
        while self.right and end > begin and found[end - 1] in self.table:
            end -= 1
        return "".join(found[begin:end])


class Compose(nn.Module):
    """Unicode's normal form C: what can be one character is one."""

    decompositions: Dict[str, str]  # of all characters that have one
    classes: Dict[str, int]  # the order of what stands over and under letters, where it is not 0
    pairs: Dict[str, str]  # two characters and the one that they become

    def __init__(self, decompose: Callable[[str], str], compose: Callable[[str], str]):
        super().__init__()
        self.decompositions, self.pairs = {}, {}
        for character in CHARACTERS:
            parts = decompose(character)
            if parts == character:
                continue
            self.decompositions[character] = parts
            # The last part joins what the others are together.
            if len(parts) > 1 and compose(character) == character:
                self.pairs[compose(parts[:-1]) + parts[-1]] = character
        # Python may know newer characters than the tokenizer, which then does not move them.
        above, below = (
            "\N{COMBINING GREEK YPOGEGRAMMENI}",
            "\N{COMBINING TILDE OVERLAY}",
        )  # the last and the first class
        self.classes = {
            c: unicodedata.combining(c)
            for c in CHARACTERS
            if unicodedata.combining(c)
            and (decompose("a" + above + c) != decompose("a") + decompose(above) + decompose(c)
                 or decompose("a" + c + below) != decompose("a") + decompose(c) + decompose(below))
        }  # fmt: skip

    def forward(self, text: str) -> str:
        plain = True
        parts: List[str] = []
        for character in characters(text):
            plain = plain and len(character) == 1
            if character in self.decompositions:
                parts.extend(characters(self.decompositions[character]))
            else:
                parts.append(character)
        if plain:
            return text

        order: List[int] = []
        for part in parts:
            order.append(self.classes.get(part, 0))
        begin = 0
        while begin < len(parts):
            end = begin + 1
            if order[begin] != 0:
                while end < len(parts) and order[end] != 0:
                    end += 1
                self.sort(parts, order, begin, end)
            begin = end

        found: List[str] = []
        starter = -1  # where in found the last character is that others may join
        last = 0  # the class of what was put behind it, -1 for nothing
        for i in range(len(parts)):
            joined = ""
            if starter >= 0 and (last == -1 or last < order[i]):
                joined = self.join(found[starter], parts[i])
            if joined != "":
                found[starter] = joined
                continue
            found.append(parts[i])
            last = order[i]
            if order[i] == 0:
                starter = len(found) - 1
                last = -1
        return "".join(found)

    def sort(self, parts: List[str], order: List[int], begin: int, end: int) -> None:
        """By class, those of one class in their order. One list for each class: a text may have thousands in a row."""
        if end - begin == 1:
            return
        by_class: Dict[int, List[int]] = {}
        for i in range(begin, end):
            if order[i] in by_class:
                by_class[order[i]].append(i)
            else:
                by_class[order[i]] = [i]
        sorted_parts: List[str] = []
        sorted_order: List[int] = []
        for value in sorted(by_class.keys()):
            for i in by_class[value]:
                sorted_parts.append(parts[i])
                sorted_order.append(value)
        for i in range(begin, end):
            parts[i] = sorted_parts[i - begin]
            order[i] = sorted_order[i - begin]

    def join(self, first: str, second: str) -> str:
        """The character that both become; empty where there is none."""
        return self.pairs.get(first + second, "")


class CharacterMap(nn.Module):
    """The normaliser of SentencePiece: all of a cluster becomes what its map has for the shortest beginning of it."""

    table: Dict[str, str]

    # What a character is in the rules for clusters (UAX 29); 0 is none of these. The three letters and the two kinds of
    # syllables are of Hangul.
    RETURN: Final[int] = 1
    FEED: Final[int] = 2
    CONTROL: Final[int] = 3
    EXTEND: Final[int] = 4
    JOINER: Final[int] = 5
    SPACING: Final[int] = 6
    PREPEND: Final[int] = 7
    LETTER_L: Final[int] = 8
    LETTER_V: Final[int] = 9
    LETTER_T: Final[int] = 10
    LV: Final[int] = 11
    LVT: Final[int] = 12
    REGIONAL: Final[int] = 13
    PICTURE: Final[int] = 14
    CONSONANT: Final[int] = 15
    LINKER: Final[int] = 16

    def __init__(self, table: Mapping[str, str], clusters: Classes):
        super().__init__()
        self.table = dict(table)
        self.clusters = clusters

    def found(self, bytes: List[str]) -> str:
        """The beginning that the map has; empty where it has none."""
        key = ""
        for byte in bytes:
            if byte == "\0":  # which ends its strings
                return ""
            key = key + byte
            if key in self.table:
                return key
        return ""

    def add(self, cluster: List[str], out: List[str]) -> None:
        whole = "".join(cluster)
        if len(whole) < 6:
            key = self.found(list(whole))
            if key != "":
                out.append(self.table[key])
                return
        for character in cluster:
            key = self.found(list(character))
            out.append(self.table[key] if key != "" else character)

    def forward(self, text: str) -> str:
        out: List[str] = []
        cluster: List[str] = []
        before = -1  # the class of the last character
        regional = False  # whether it is the first of two letters of a flag
        picture = False  # whether what may extend a picture follows one
        linked = 0  # 1 behind a consonant, 2 behind one that is linked to the next
        for character in characters(text):
            now = self.clusters(character)
            joined = self.joins(before, now, regional, picture, linked)
            if not joined and len(cluster) > 0:
                self.add(cluster, out)
                cluster.clear()
            cluster.append(character)
            regional = now == self.REGIONAL and not (joined and regional)
            extends = now == self.EXTEND or now == self.JOINER or now == self.LINKER
            picture = now == self.PICTURE or (picture and extends and before != self.JOINER)
            if now == self.CONSONANT:
                linked = 1
            elif linked > 0 and now == self.LINKER:
                linked = 2
            elif not extends:
                linked = 0
            before = now
        if len(cluster) > 0:
            self.add(cluster, out)
        return "".join(out)

    def joins(self, before: int, now: int, regional: bool, picture: bool, linked: int) -> bool:
        """Whether the next character belongs to the cluster."""
        if before == -1:
            return False
        if before == self.RETURN and now == self.FEED:
            return True
        if (before >= self.RETURN and before <= self.CONTROL) or (now >= self.RETURN and now <= self.CONTROL):
            return False
        if now == self.EXTEND or now == self.JOINER or now == self.SPACING or now == self.LINKER:
            return True
        if before == self.PREPEND:
            return True
        if before == self.LETTER_L and (
            now == self.LETTER_L or now == self.LETTER_V or now == self.LV or now == self.LVT
        ):
            return True
        if (before == self.LETTER_V or before == self.LV) and (now == self.LETTER_V or now == self.LETTER_T):
            return True
        if (before == self.LETTER_T or before == self.LVT) and now == self.LETTER_T:
            return True
        if before == self.REGIONAL and now == self.REGIONAL and regional:
            return True
        if picture and before == self.JOINER and now == self.PICTURE:
            return True
        return linked == 2 and now == self.CONSONANT


class Caption(nn.Module):
    """Lower case and no space at the ends, by Python's rules: what diffusers does with texts for PixArt."""

    lower: Dict[str, str]
    cased: Dict[str, int]
    ignorable: Dict[str, int]

    def __init__(self):
        super().__init__()
        self.lower = {c: c.lower() for c in CHARACTERS if c.lower() != c}
        final, sigma = "\N{GREEK SMALL LETTER FINAL SIGMA}", "\N{GREEK CAPITAL LETTER SIGMA}"
        self.final, self.sigma = final, sigma
        self.cased = {c: 1 for c in CHARACTERS if (c + sigma).lower()[-1] == final}
        rest = (c for c in CHARACTERS if c not in self.cased)
        self.ignorable = {c: 1 for c in rest if ("A" + c + sigma).lower()[-1] == final}
        self.strip = Strip([c for c in CHARACTERS if not c.strip()], True, True)

    def forward(self, text: str) -> str:
        found = characters(text)
        # Of each place, whether the next character on either side that counts has a case.
        before: List[bool] = []
        after: List[bool] = []
        if self.sigma in text:
            state = False
            for character in found:
                before.append(state)
                if character not in self.ignorable:
                    state = character in self.cased
            state = False
            for i in range(len(found)):
                after.append(state)
                character = found[len(found) - 1 - i]
                if character not in self.ignorable:
                    state = character in self.cased
        out: List[str] = []
        for i in range(len(found)):
            character = found[i]
            if character == self.sigma and before[i] and not after[len(found) - 1 - i]:
                out.append(self.final)
            else:
                out.append(self.lower[character] if character in self.lower else character)
        return self.strip("".join(out))


# ------------------------------------------------------------------------------------------------ texts to words


class SplitWords(nn.Module):
    """At these characters, which are dropped."""

    table: Dict[str, int]

    def __init__(self, of: Iterable[str]):
        super().__init__()
        self.table = dict.fromkeys(of, 1)

    def forward(self, texts: List[str]) -> List[str]:
        words: List[str] = []
        word: List[str] = []
        for text in texts:
            for character in characters(text):
                if character not in self.table:
                    word.append(character)
                elif len(word) > 0:
                    words.append("".join(word))
                    word.clear()
            if len(word) > 0:
                words.append("".join(word))
                word.clear()
        return words


class Metaspace(nn.Module):
    """Spaces become a visible character, with which words begin."""

    def __init__(self, space: str, prepend: bool, split: bool):
        super().__init__()
        self.space = space
        self.prepend = prepend
        self.split = split

    def forward(self, texts: List[str]) -> List[str]:
        words: List[str] = []
        word: List[str] = []
        for text in texts:
            all = text.replace(" ", self.space)
            if self.prepend and not all.startswith(self.space):
                all = self.space + all
            if not self.split:
                words.append(all)
                continue
            for character in characters(all):
                if character == self.space and len(word) > 0:
                    words.append("".join(word))
                    word.clear()
                word.append(character)
            if len(word) > 0:
                words.append("".join(word))
                word.clear()
        return words


CLIP_WORDS = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


class ClipWords(nn.Module):
    """Letters in a row, single numerals, other characters in a row, endings such as 's; in the alphabet of bytes."""

    alphabet: List[str]

    def __init__(self, classes: Classes, alphabet: list[str]):
        super().__init__()
        self.classes = classes  # 1 letter, 2 numeral, 3 space
        self.alphabet = alphabet

    def forward(self, texts: List[str]) -> List[str]:
        words: List[str] = []
        word: List[str] = []
        kinds: List[int] = []
        for text in texts:
            found = characters(text)
            kinds.clear()
            for character in found:
                kinds.append(self.classes(character))
            i = 0
            while i < len(found):
                end = i + 1
                if kinds[i] == 3:
                    i = end
                    continue
                if found[i] == "<" and self.named(found, i) > 0:
                    # A token's name in other letters. The alphabet's own expression cuts it once more.
                    end = i + self.named(found, i)
                    words.append("<|")
                    words.append("".join(found[i + 2 : end - 2]))
                    words.append("|>")
                    i = end
                    continue
                if found[i] == "'" and self.ending(found, i) > 0:
                    end = i + self.ending(found, i)
                elif kinds[i] != 2:
                    while end < len(found) and kinds[end] == kinds[i]:
                        end += 1
                word.clear()
                for byte in list("".join(found[i:end])):
                    word.append(self.alphabet[ord(byte)])
                words.append("".join(word))
                i = end
        return words

    def named(self, found: List[str], i: int) -> int:
        """How many characters the name of a token has that stands here; 0 for none."""
        for name in ("<|startoftext|>", "<|endoftext|>"):
            if "".join(found[i : min(i + len(name), len(found))]) == name:
                return len(name)
        return 0

    def ending(self, found: List[str], i: int) -> int:
        """How many characters of an ending stand here; 0 for none."""
        one = found[i + 1] if i + 1 < len(found) else ""
        two = one + found[i + 2] if i + 2 < len(found) else ""
        if one == "s" or one == "t" or one == "m" or one == "d":
            return 2
        if two == "re" or two == "ve" or two == "ll":
            return 3
        return 0


# ------------------------------------------------------------------------------------------------ words to tokens


class Bpe(nn.Module):
    """Merges the pair that comes first in the list of merges, and of it the first in the word, until none is left."""

    vocabulary: Dict[str, int]
    ranks: Dict[str, int]  # by both, with a space between
    bytes: List[str]  # the pieces of the 256 bytes, where the model writes with them what it does not know

    def __init__(
        self,
        vocabulary: Mapping[str, int],
        merges: list[tuple[str, str]],
        suffix: str,
        unknown: int,
        bytes: list[str],
    ):
        super().__init__()
        self.vocabulary = dict(vocabulary)
        self.ranks = {f"{a} {b}": rank for rank, (a, b) in enumerate(merges)}
        self.suffix = suffix
        self.unknown = unknown  # -1: what is not known is left out
        self.bytes = bytes

    def forward(self, word: str) -> List[int]:
        symbols = characters(word)
        symbols[-1] = symbols[-1] + self.suffix
        known: List[str] = []
        for symbol in symbols:
            if symbol in self.vocabulary:
                known.append(symbol)
            elif len(self.bytes) > 0:
                for byte in list(symbol):
                    known.append(self.bytes[ord(byte)])
            elif self.unknown >= 0:
                known.append("")
        count = len(known)
        following: List[int] = []
        previous: List[int] = []
        for i in range(count):
            following.append(i + 1)
            previous.append(i - 1)
        heap: List[int] = []  # rank * 2^20 + place
        for i in range(count - 1):
            self.push(heap, known, i, i + 1)
        merged: List[bool] = [False] * count
        while len(heap) > 0:
            top = self.pop(heap)
            i = top & 0xFFFFF
            if merged[i] or following[i] >= count:
                continue
            j = following[i]
            # Of what has changed since.
            if self.ranks.get(known[i] + " " + known[j], -1) != top >> 20:
                continue
            known[i] = known[i] + known[j]
            merged[j] = True
            following[i] = following[j]
            if following[j] < count:
                previous[following[j]] = i
                self.push(heap, known, i, following[i])
            if previous[i] >= 0:
                self.push(heap, known, previous[i], i)
        ids: List[int] = []
        i = 0
        while i < count:
            ids.append(self.vocabulary[known[i]] if known[i] != "" else self.unknown)
            i = following[i]
        return ids

    def push(self, heap: List[int], known: List[str], i: int, j: int) -> None:
        rank = self.ranks.get(known[i] + " " + known[j], -1)
        if rank < 0:
            return
        value = rank << 20 | i
        heap.append(value)
        k = len(heap) - 1
        while k > 0 and heap[(k - 1) // 2] > value:
            heap[k] = heap[(k - 1) // 2]
            k = (k - 1) // 2
        heap[k] = value

    def pop(self, heap: List[int]) -> int:
        top = heap[0]
        last = heap.pop()
        count = len(heap)
        if count == 0:
            return top
        k = 0
        while 2 * k + 1 < count:
            child = 2 * k + 1
            if child + 1 < count and heap[child + 1] < heap[child]:
                child += 1
            if heap[child] >= last:
                break
            heap[k] = heap[child]
            k = child
        heap[k] = last
        return top


class Unigram(nn.Module):
    """The likeliest pieces that a word can be cut into (Viterbi)."""

    pieces: Dict[str, int]  # and -1 for what only begins a piece
    scores: List[float]
    bytes: List[int]  # the numbers of the 256 bytes, where the model writes with them what it does not know

    def __init__(self, pieces: list[tuple[str, float]], unknown: int, bytes: list[int]):
        super().__init__()
        self.scores = [score for _, score in pieces]
        self.pieces = {piece: i for i, (piece, _) in enumerate(pieces)}
        for piece, _ in pieces:
            for end in range(1, len(piece)):
                self.pieces.setdefault(piece[:end], -1)
        self.unknown = unknown
        self.unknown_score = min(self.scores) - 10.0
        self.bytes = bytes

    def forward(self, word: str) -> List[int]:
        found = characters(word)
        size = len(found)
        best: List[float] = [0.0] * (size + 1)  # of all ways to here
        begins: List[int] = [-1] * (size + 1)  # where the last piece of the best begins
        which: List[int] = [0] * (size + 1)  # and which it is
        for i in range(size):
            here = best[i]
            single = False
            piece = ""
            j = i
            going = True
            while going and j < size:
                piece = piece + found[j]
                j += 1
                id = self.pieces.get(piece, -2)
                if id >= 0:
                    score = here + self.scores[id]
                    if begins[j] < 0 or score > best[j]:
                        best[j] = score
                        begins[j] = i
                        which[j] = id
                    if j == i + 1:
                        single = True
                going = id != -2
            if not single:
                score = here + self.unknown_score
                if begins[i + 1] < 0 or score > best[i + 1]:
                    best[i + 1] = score
                    begins[i + 1] = i
                    which[i + 1] = self.unknown
        # From the end; what is not known in a row is one.
        reversed_ids: List[int] = []
        end = size
        while end > 0:
            begin = begins[end]
            if which[end] != self.unknown:
                reversed_ids.append(which[end])
                end = begin
                continue
            while begin > 0 and which[begin] == self.unknown:
                begin = begins[begin]
            text = "".join(found[begin:end])
            id = self.pieces.get(text, -1)
            if id >= 0:
                reversed_ids.append(id)
            elif len(self.bytes) == 0:
                reversed_ids.append(self.unknown)
            else:
                bytes = list(text)
                for k in range(len(bytes)):
                    reversed_ids.append(self.bytes[ord(bytes[len(bytes) - 1 - k])])
            end = begin
        reversed_ids.reverse()
        return reversed_ids


# ------------------------------------------------------------------------------------------------ the whole


class AddedTokens(nn.Module):
    """Cuts the tokens out of a text that it may hold as such: of those that begin at a place the longest."""

    tokens: Dict[str, int]  # and -1 for what only begins one
    strips: Dict[int, int]  # of a token 1 where it takes the spaces before it, 2 behind it, 3 both
    spaces: Dict[str, int]

    def __init__(self, tokens: Mapping[str, int], strips: Mapping[int, int], spaces: Iterable[str]):
        super().__init__()
        self.tokens = dict(tokens)
        for token in tokens:
            for end in range(1, len(token)):
                self.tokens.setdefault(token[:end], -1)
        self.strips = dict(strips)
        self.spaces = dict.fromkeys(spaces, 1)

    def forward(self, text: str) -> Tuple[List[str], List[int]]:
        """The pieces, and of each the number of the token, -1 for text between tokens."""
        pieces: List[str] = []
        ids: List[int] = []
        found = characters(text)
        begin = 0  # of text that is in no piece yet
        i = 0
        while i < len(found):
            key = ""
            end = i
            id = -1
            j = i
            while j < len(found):
                key = key + found[j]
                j += 1
                value = self.tokens.get(key, -2)
                if value == -2:
                    break
                if value >= 0:
                    id = value
                    end = j
            if id < 0:
                i += 1
                continue
            start = i
            i = end
            strip = self.strips.get(id, 0)
            if strip == 1 or strip == 3:
                while start > begin and found[start - 1] in self.spaces:
                    start -= 1
            if strip >= 2:
                while end < len(found) and found[end] in self.spaces:
                    end += 1
            if start > begin:
                pieces.append("".join(found[begin:start]))
                ids.append(-1)
            pieces.append("".join(found[start:end]))
            ids.append(id)
            begin = end
            i = max(i, end)
        if begin < len(found):
            pieces.append("".join(found[begin:]))
            ids.append(-1)
        return pieces, ids


class Clean(nn.Module):
    """All white space in a row becomes one space, and none is left at the ends: what diffusers does with texts for Wan."""

    def __init__(self):
        super().__init__()
        spaces = [c for c in CHARACTERS if c.isspace()]
        self.runs = ReplaceRuns(spaces, 1, " ")
        self.strip = Strip(spaces, True, True)

    def forward(self, text: str) -> str:
        return self.strip(self.runs(text))


# What is done with texts before all else, by name.
PREPARATIONS: Mapping[str, Callable[[], nn.Module]] = {"caption": Caption, "clean": Clean}


class Tokenizer(nn.Module):
    """`forward` gives of n texts the tokens and their mask, int64 [n, length], and how many were cut off, int64 [n]."""

    before: List[int]
    behind: List[int]

    def __init__(
        self,
        preparation: list[nn.Module],
        added: AddedTokens,
        normalisers: list[nn.Module],
        added_normalised: AddedTokens,
        splits: list[nn.Module],
        model: nn.Module,
        before: list[int],
        behind: list[int],
        padding: int,
        length: int,
    ):
        super().__init__()
        self.preparation = nn.ModuleList(preparation)
        self.added = added
        self.normalisers = nn.ModuleList(normalisers)
        self.added_normalised = added_normalised
        self.splits = nn.ModuleList(splits)
        self.model = model
        self.before, self.behind = before, behind
        self.padding = padding
        self.length = length
        self.longest = LONGEST_TEXT

    @torch.jit.export
    def tokens(self, text: str, instruction: str = "") -> List[int]:
        """All tokens of a text, without those before and behind it. @instruction: put before it as it is."""
        for prepare in self.preparation:
            text = prepare(text)
        ids: List[int] = []
        pieces, tokens = self.added(instruction + text)
        for k in range(len(pieces)):
            if tokens[k] >= 0:
                ids.append(tokens[k])
                continue
            piece = pieces[k]
            for normalise in self.normalisers:
                piece = normalise(piece)
            parts, part_tokens = self.added_normalised(piece)
            for m in range(len(parts)):
                if part_tokens[m] >= 0:
                    ids.append(part_tokens[m])
                    continue
                words = [parts[m]]
                for split in self.splits:
                    words = split(words)
                for word in words:
                    ids.extend(self.model(word))
        return ids

    def require(self, text: str, number: int) -> None:
        if len(text) > self.longest:
            raise ValueError(f"text {number} must have at most {self.longest} bytes, got {len(text)}")
        place = invalid_at(list(text))
        if place >= 0:
            raise ValueError(f"text {number} must be UTF-8, got other bytes at {place}")

    def forward(self, texts: List[str]) -> Tuple[Tensor, Tensor, Tensor]:
        return self.rows(texts, "", self.length)

    @torch.jit.export
    def rows(self, texts: List[str], instruction: str, length: int) -> Tuple[Tensor, Tensor, Tensor]:
        """The same with another length, and with an instruction before each text."""
        if len(texts) == 0:
            raise ValueError("texts must be at least one, got none")
        rows: List[List[int]] = []
        masks: List[List[int]] = []
        cut: List[int] = []
        for number in range(len(texts)):
            self.require(texts[number], number)
            ids = self.tokens(texts[number], instruction)
            room = length - len(self.before) - len(self.behind)
            cut.append(max(0, len(ids) - room))
            row = self.before + ids[:room] + self.behind
            missing = length - len(row)
            masks.append([1] * len(row) + [0] * missing)
            rows.append(row + [self.padding] * missing)
        return torch.tensor(rows), torch.tensor(masks), torch.tensor(cut)


# ------------------------------------------------------------------------------------------------ from transformers


def character_map(table: Mapping[bytes, str]) -> bytes:
    """SentencePiece's form of a map from bytes to texts: a double array (darts-clone), then the texts."""
    root: dict = {}
    texts = b""
    for key, text in table.items():
        node = root
        for byte in key:
            node = node.setdefault(byte, {})
        node[None] = len(texts)
        texts += text.encode() + b"\0"
    units, bases, free = [0] * 256, {0}, 0  # free: where the next node of one child may have it

    def block() -> int:
        units.extend([0] * 256)
        return len(units) - 256

    def room(labels: list[int]) -> int:
        """A base that no other node has, and a place that is free for each label: base ^ label."""
        nonlocal free
        if len(labels) > 1:
            return block()
        while free % 256 == 0 or free ^ labels[0] in bases:
            free = free + 1 if free % 256 else block() + 1
        free += 1
        return free - 1 ^ labels[0]

    def place(node: dict, position: int, unit: int) -> None:
        base = room([0 if byte is None else byte for byte in node])
        bases.add(base)
        units[position] = unit | (position ^ base) << 10 | (1 << 8 if None in node else 0)
        for byte, child in node.items():
            if byte is None:
                units[base] = 1 << 31 | child
            else:
                place(child, base ^ byte, byte)

    place(root, 0, 0)
    return struct.pack("<I", 4 * len(units)) + struct.pack(f"<{len(units)}I", *units) + texts


def read_character_map(data: bytes) -> dict[str, str]:
    """The keys that no other key begins, which are all that are ever found, and their texts."""
    (size,) = struct.unpack_from("<I", data)
    units = struct.unpack_from(f"<{size // 4}I", data, 4)
    texts = data[4 + size :]
    table: dict[str, str] = {}

    def offset(unit: int) -> int:
        return unit >> 10 << ((unit & 1 << 9) >> 6)

    def visit(position: int, key: bytes) -> None:
        for byte in range(1, 256):
            child = position ^ byte
            if child >= len(units) or units[child] & (1 << 31 | 0xFF) != byte:
                continue
            unit = units[child]
            below = child ^ offset(unit)
            if unit >> 8 & 1:
                begin = units[below] & 0x7FFFFFFF
                table[(key + bytes([byte])).decode()] = texts[begin : texts.index(b"\0", begin)].decode()
            else:
                visit(below, key + bytes([byte]))

    visit(offset(units[0]), b"")
    return table


def ask(normalise: Callable[[str], str], before: str, behind: str, drop: str = "\n") -> dict[str, str]:
    """What becomes of every character between these two texts, each asked on a line of its own."""
    asked = [c for c in CHARACTERS if c not in drop]
    answers: list[str] = []
    for begin in range(0, len(asked), 4096):
        text = "\n".join(before + c + behind for c in asked[begin : begin + 4096])
        answers += normalise(text).split("\n")
    assert len(answers) == len(asked)
    return dict(zip(asked, answers))


def cluster_classes() -> Classes:
    """How the normaliser of SentencePiece takes characters for clusters, found out by maps of one key.

    Where that key begins a short cluster all of the cluster becomes "b", and where it does not, the rest stays.
    """
    from tokenizers import normalizers

    kinds = CharacterMap
    accent, joiner, key = "\N{COMBINING ACUTE ACCENT}", "\N{ZERO WIDTH JOINER}", "\N{INFORMATION SOURCE}"
    consonant, linker, nukta = "\u0915", "\u094d", "\u0958"  # of Devanagari; the last is a consonant that maps have

    def joined(single: str, before: str, behind: str) -> set[str]:
        """The characters with which what stands around them is one cluster, too long or with another beginning."""
        ends = ask(normalizers.Precompiled(character_map({single.encode(): "b"})).normalize_str, before, behind)
        return {c for c, answer in ends.items() if answer.endswith("b" + accent)}

    letters = ask(normalizers.Precompiled(character_map({b"a": "b"})).normalize_str, "a", "")
    attached = {c for c, answer in letters.items() if answer == "b"}
    pictures = joined(key, "", joiner + key + accent) - attached
    linkers = joined(nukta, consonant, nukta + accent) & attached
    extending = joined(nukta, consonant, linker + nukta + accent) & attached
    consonants = joined(nukta, "", linker + nukta + accent) - attached
    prepended = joined("a", "", "a" + accent) - attached
    # Behind what breaks, two accents are a cluster of their own, of which the first is the key.
    ends = ask(normalizers.Precompiled(character_map({accent.encode(): "b"})).normalize_str, "", accent + "\u0300")
    classes = dict.fromkeys((c for c, answer in ends.items() if answer.endswith("b")), kinds.CONTROL)
    classes |= dict.fromkeys(attached, kinds.SPACING)
    # Where it does not know of linked consonants, everything that is attached extends.
    classes |= dict.fromkeys(extending if consonants else attached, kinds.EXTEND)
    for value, group in (
        (kinds.LINKER, linkers), (kinds.PREPEND, prepended), (kinds.PICTURE, pictures), (kinds.CONSONANT, consonants),
    ):  # fmt: skip
        classes |= dict.fromkeys(group, value)
    classes |= {joiner: kinds.JOINER, "\r": kinds.RETURN, "\n": kinds.FEED}
    for first, last, value in (
        (0x1100, 0x115F, kinds.LETTER_L), (0xA960, 0xA97C, kinds.LETTER_L), (0x1160, 0x11A7, kinds.LETTER_V),
        (0xD7B0, 0xD7C6, kinds.LETTER_V), (0x11A8, 0x11FF, kinds.LETTER_T), (0xD7CB, 0xD7FB, kinds.LETTER_T),
        (0x1F1E6, 0x1F1FF, kinds.REGIONAL),
    ):  # fmt: skip
        classes |= {chr(c): value for c in range(first, last + 1)}
    first, last, parts = 0xAC00, 0xD7A3, 28  # the syllables of Hangul; of so many the first has no third part
    classes |= {chr(c): kinds.LVT if (c - first) % parts else kinds.LV for c in range(first, last + 1)}
    return Classes(classes)


def matching(pattern: str) -> list[str]:
    """All characters that the tokenizer's regular expressions take for this."""
    from tokenizers import Regex, normalizers

    normalise = normalizers.Replace(Regex(pattern), "").normalize_str
    found: list[str] = []
    for begin in range(0, len(CHARACTERS), 4096):
        some = CHARACTERS[begin : begin + 4096]
        left = set(normalise("".join(some)))
        found += [c for c in some if c not in left]
    return found


@functools.cache
def white_space() -> list[str]:
    from tokenizers import pre_tokenizers

    split = pre_tokenizers.WhitespaceSplit()
    return [c for c in CHARACTERS if not split.pre_tokenize_str(c)]


class Reader:
    """Builds the parts that the JSON of a fast tokenizer names."""

    def __init__(self, place: Path, backend: object):
        self.place = place
        self.backend = backend
        self.values = json.loads(backend.to_str())

    def refuse(self, what: str, value: object) -> None:
        fail(f"{self.place}: {what} must be one that this exporter knows, got {json.dumps(value)[:200]}")

    def only(self, what: str, values: Mapping[str, object], **allowed: object) -> None:
        """Keys with another value may change what the part does."""
        for key, value in values.items():
            if key != "type" and (key not in allowed or (allowed[key] is not ... and value != allowed[key])):
                self.refuse(f"{key} of {what}", value)

    def normalisers(self, value: Mapping[str, object] | None) -> list[nn.Module]:
        from tokenizers import normalizers

        kind = value["type"] if value else None
        if kind is None:
            return []
        if kind == "Sequence":
            return [part for each in value["normalizers"] for part in self.normalisers(each)]
        if kind == "NFC":
            return [Compose(normalizers.NFD().normalize_str, normalizers.NFC().normalize_str)]
        if kind == "Lowercase":
            table = ask(normalizers.Lowercase().normalize_str, "", "")
            return [Replace({c: lower for c, lower in table.items() if lower != c})]
        if kind == "Strip":
            self.only(kind, value, strip_left=..., strip_right=...)
            return [Strip(white_space(), value["strip_left"], value["strip_right"])]
        if kind == "Precompiled":
            return [
                CharacterMap(read_character_map(base64.b64decode(value["precompiled_charsmap"])), cluster_classes())
            ]
        if kind == "Replace":
            pattern, content = value["pattern"], value["content"]
            if pattern == {"Regex": r"\s+"}:
                return [ReplaceRuns(matching(r"\s"), 1, content)]
            if pattern == {"Regex": " {2,}"}:
                return [ReplaceRuns([" "], 2, content)]
            if "String" in pattern and pattern["String"]:
                return [ReplaceText(pattern["String"], content)]
        self.refuse("normalizer", value)

    def splits(self, value: Mapping[str, object] | None) -> list[nn.Module]:
        kind = value["type"] if value else None
        if kind is None:
            return []
        if kind == "Sequence":
            parts = value["pretokenizers"]
            if [part["type"] for part in parts] == ["Split", "ByteLevel"]:
                return [self.clip_words(*parts)]
            return [part for each in parts for part in self.splits(each)]
        if kind == "Split" and value["pattern"] == {"String": " "} and not self.leaves_spaces():
            return []  # Gemma's cannot split anything
        if kind == "WhitespaceSplit":
            return [SplitWords(white_space())]
        if kind == "Metaspace":
            self.only(kind, value, replacement=..., prepend_scheme=..., split=..., add_prefix_space=...)
            if value["prepend_scheme"] not in ("always", "never") or value["replacement"] == " ":
                self.refuse("pre_tokenizer", value)
            return [Metaspace(value["replacement"], value["prepend_scheme"] == "always", value.get("split", True))]
        self.refuse("pre_tokenizer", value)

    def leaves_spaces(self) -> bool:
        normaliser = self.backend.normalizer
        return normaliser is None or " " in normaliser.normalize_str(" a  b ")

    def clip_words(self, split: Mapping[str, object], bytes: Mapping[str, object]) -> nn.Module:
        from tokenizers import pre_tokenizers

        if split["pattern"] != {"Regex": CLIP_WORDS}:
            self.refuse("pre_tokenizer", split)
        self.only("Split", split, pattern=..., behavior="Removed", invert=True)
        self.only("ByteLevel", bytes, add_prefix_space=False, trim_offsets=..., use_regex=True)
        classes = {c: value for value, kind in ((1, r"\p{L}"), (2, r"\p{N}"), (3, r"\s")) for c in matching(kind)}
        # Every byte as some character has it.
        alphabet = [""] * 256
        for c in map(
            chr,
            [*range(0x800), *range(0x800, 0xD800, 64), *range(0xE000, 0x10000, 64), *range(0x10000, 0x110000, 4096)],
        ):
            written = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(c)[0][0]
            for byte, letter in zip(c.encode(), written, strict=True):
                alphabet[byte] = letter
        return ClipWords(Classes(classes), alphabet)

    def model(self, value: Mapping[str, object]) -> nn.Module:
        vocabulary = value["vocab"]
        if value["type"] == "BPE":
            self.only(
                "BPE", value, dropout=None, unk_token=..., continuing_subword_prefix=..., end_of_word_suffix=...,
                fuse_unk=..., byte_fallback=..., ignore_merges=False, vocab=..., merges=...,
            )  # fmt: skip
            if value.get("continuing_subword_prefix"):
                self.refuse("continuing_subword_prefix of BPE", value["continuing_subword_prefix"])
            bytes = [f"<0x{byte:02X}>" for byte in range(256)] if value.get("byte_fallback") else []
            if absent := [piece for piece in bytes if piece not in vocabulary]:
                self.refuse("byte_fallback", f"without {absent[0]}")
            if value.get("fuse_unk") and not bytes:  # with bytes nothing is unknown
                self.refuse("fuse_unk of BPE", True)
            merges = [tuple(m.split(" ") if isinstance(m, str) else m) for m in value["merges"]]
            return Bpe(vocabulary, merges, value["end_of_word_suffix"] or "", vocabulary.get(value["unk_token"], -1), bytes)
        if value["type"] == "Unigram":
            self.only("Unigram", value, unk_id=..., vocab=..., byte_fallback=...)
            if value["unk_id"] is None:
                self.refuse("unk_id", None)
            numbers = {piece: i for i, (piece, _) in enumerate(vocabulary)}
            bytes = [numbers.get(f"<0x{byte:02X}>", -1) for byte in range(256)] if value["byte_fallback"] else []
            if -1 in bytes:
                self.refuse("byte_fallback", f"without <0x{bytes.index(-1):02X}>")
            return Unigram([tuple(piece) for piece in vocabulary], value["unk_id"], bytes)
        self.refuse("model", value["type"])

    def added(self, normalised: bool) -> AddedTokens:
        tokens, strips = {}, {}
        for token in self.values["added_tokens"]:
            content, number = token["content"], token["id"]
            if token["single_word"]:
                self.refuse("added_tokens", token)
            strips[number] = token["lstrip"] + 2 * token["rstrip"]
            if token["normalized"] and self.backend.normalizer is not None:
                content = self.backend.normalizer.normalize_str(content)
            if token["normalized"] == normalised:
                tokens[content] = number
        return AddedTokens(tokens, strips, white_space())


def make_tokenizer(place: Path, tokenizer: object, length: int, preparation: str | None = None) -> Tokenizer:
    """The same as this fast tokenizer of transformers, for texts of `length` tokens: cut, or padded.

    @place: where it is from, for messages. @preparation: one of PREPARATIONS.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    reader = Reader(place, backend)
    normalisers = reader.normalisers(reader.values["normalizer"])
    plain = tokenizer("a").input_ids
    inside = tokenizer("a", add_special_tokens=False).input_ids
    begin = next(i for i in range(len(plain)) if plain[i : i + len(inside)] == inside)
    before, behind = plain[:begin], plain[begin + len(inside) :]
    if tokenizer("").input_ids != before + behind:
        reader.refuse("post_processor", reader.values["post_processor"])
    if length <= len(before) + len(behind):
        fail(f"{place}: a text must have more than {len(before) + len(behind)} tokens, got {length}")
    if tokenizer.pad_token_id is None:
        reader.refuse("pad_token", None)
    if tokenizer.padding_side != "right" or tokenizer.truncation_side != "right":
        fail(
            f"{place}: padding_side and truncation_side must be right, got {tokenizer.padding_side} and {tokenizer.truncation_side}"
        )
    return Tokenizer(
        [PREPARATIONS[preparation]()] if preparation else [], reader.added(False), normalisers, reader.added(True),
        reader.splits(reader.values["pre_tokenizer"]), reader.model(reader.values["model"]),
        before, behind, tokenizer.pad_token_id, length,
    )  # fmt: skip
