"""Reads what png_samples writes with another program's zlib, as the PNG specification says: png_test.py PROGRAM FOLDER"""

import os
import shutil
import struct
import subprocess
import sys
import zlib

program, folder = sys.argv[1:]


def chunks(data):
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at = 8
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        body, (crc,) = data[at + 4 : at + 8 + size], struct.unpack(">I", data[at + 8 + size : at + 12 + size])
        assert zlib.crc32(body) == crc
        yield body[:4], body[4:]
        at += 12 + size
    assert at == len(data)


def paeth(a, b, c):
    p = a + b - c
    return min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]


def pixels(width, height, channels, compressed):
    packed = zlib.decompress(compressed)
    size, above, rows = width * channels, bytes(width * channels), b""
    assert len(packed) == height * (size + 1)
    for y in range(height):
        filtering, line, row = packed[y * (size + 1)], packed[y * (size + 1) + 1 :][:size], bytearray()
        for i in range(size):
            left, upper = (row[i - channels] if i >= channels else 0), above[i]
            corner = above[i - channels] if i >= channels else 0
            row.append((line[i] + [0, left, upper, (left + upper) // 2, paeth(left, upper, corner)][filtering]) % 256)
        above = bytes(row)
        rows += above
    return rows


texts = {"5x4x3": [("Software", "tstitch"), ("k" * 79, ""), ("two words", "Größe\n猫 😀")]}
shutil.rmtree(folder, ignore_errors=True)
os.makedirs(folder)
assert subprocess.run([program, folder]).returncode == 0, "settings of the program's own copy reached the library's"
names = sorted(os.listdir(folder))
assert len(names) == 5, names
for name in names:
    stem = name.removesuffix(".png")
    width, height, channels = map(int, stem.split("x"))
    parts = list(chunks(open(f"{folder}/{name}", "rb").read()))
    kinds = [kind for kind, _ in parts]
    expected_texts = texts.get(stem, [])
    assert kinds == [b"IHDR"] + [b"iTXt"] * len(expected_texts) + [b"IDAT", b"IEND"], kinds
    assert parts[0][1] == struct.pack(">IIBBBBB", width, height, 8, {1: 0, 3: 2}[channels], 0, 0, 0)
    assert parts[-1][1] == b""
    for (_, body), (keyword, text) in zip(parts[1:], expected_texts):
        assert body == keyword.encode() + b"\0\0\0\0\0" + text.encode(), body
    expected = bytes((i * i * 7 + i * 3) % 251 for i in range(width * height * channels))
    assert pixels(width, height, channels, parts[-2][1]) == expected, name
print(f"{len(names)} PNG files are what they should be")
