"""Pictures in the terminal, on one and where there is none: preview_test.py TOOL MODEL FOLDER

Exits with 77 where numpy or Pillow is missing.
"""

import base64
import fcntl
import io
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

try:
    import numpy as np
    from PIL import Image
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

tool, model, folder = (str(Path(argument).resolve()) for argument in sys.argv[1:])
os.makedirs(folder, exist_ok=True)
os.chdir(folder)
for name in ("COLORTERM", "KITTY_WINDOW_ID", "TERM_PROGRAM", "TMUX", "STY", "LC_ALL", "LC_CTYPE", "LANG"):
    os.environ.pop(name, None)
os.environ.update(OMP_NUM_THREADS="1", TERM="xterm")
drawn = [tool, "--model", model, "--device", "cpu", "--class", "3", "--steps", "1", "--grid", "grid.png", "--scale", "1"]


def run(*words, **environment):
    return subprocess.run([*drawn, *map(str, words)], capture_output=True, env=os.environ | environment, check=False)


class Terminal:
    """A program with a terminal of its own, which answers questions as it is told to."""

    def __init__(self, *words, columns=80, lines=24, answer=b"", **environment):
        self.answer, self.shown, self.asked = answer, b"", 0
        pid, self.ours = pty.fork()
        if pid == 0:
            fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 10 * columns, 20 * lines))
            os.execve(tool, [*drawn, *map(str, words)], os.environ | environment)
        self.pid = pid
        self.modes = None

    def step(self, wait=0.05):
        """@returns whether the program is still there"""
        if not select.select([self.ours], [], [], wait)[0]:
            return True
        try:
            data = os.read(self.ours, 65536)
        except OSError:
            return False
        self.shown += data
        if b"\033[c" in data:
            self.asked += 1
            self.asked_in = termios.tcgetattr(self.ours)
            os.write(self.ours, self.answer)
        return bool(data)

    def end(self):
        while self.step():
            if self.modes is None or self.asked == 0:
                self.modes = termios.tcgetattr(self.ours)
        _, status = os.waitpid(self.pid, 0)
        os.close(self.ours)
        self.code = os.waitstatus_to_exitcode(status)
        self.text = self.shown.decode().replace("\r\n", "\n")
        return self


def of_table(index):
    """A colour of the 256."""
    if index >= 232:
        return (8 + 10 * (index - 232),) * 3
    index -= 16
    return tuple(0 if level == 0 else 55 + 40 * level for level in (index // 36, index // 6 % 6, index % 6))


def decoded(text):
    """The pixels that half blocks show, as lists of rows; None where there is none."""
    rows = []
    for line in text.splitlines():
        if "\u2580" not in line:
            continue
        over, under, upper, lower = None, None, [], []
        for code, block in re.findall(r"\x1b\[([0-9;]*)m|(\u2580)", line):
            if block:
                upper.append(over)
                lower.append(under)
                continue
            numbers = [int(number) for number in code.split(";")]
            while numbers:
                kind = numbers.pop(0)
                if kind == 0:
                    over = under = None
                elif kind == 49:
                    under = None
                else:
                    assert kind in (38, 48), code
                    if numbers.pop(0) == 2:
                        color, numbers = tuple(numbers[:3]), numbers[3:]
                    else:
                        color = of_table(numbers.pop(0))
                    over, under = (color, under) if kind == 38 else (over, color)
        rows += [upper, lower]
    return rows


def picture():
    return np.asarray(Image.open("grid.png").convert("RGB"), int)


# ------------------------------------------------------------------------------------------------ what is no terminal

plain = run()
assert plain.returncode == 0 and b"\033" not in plain.stdout + plain.stderr, plain
for words in (("--preview",), ("--preview", "auto"), ("--preview=auto", "--count", 2)):
    done = run(*words)
    assert done.returncode == 0 and b"\033" not in done.stdout + done.stderr and "\u2580".encode() not in done.stdout, done
    assert done.stderr.count(b"--preview: draws nothing, for the output is no terminal\n") == 1, done.stderr
assert run("--preview", "--quiet").stdout == b"" and run("--preview", "none").stdout.count(b"\n") == plain.stdout.count(b"\n")

# What is named is written as it is asked for: in 24 bits each pixel as it is in the file, else the nearest of 256.
exact = run("--preview", "blocks", "--quiet", COLORTERM="truecolor")
assert exact.returncode == 0 and exact.stderr == b"", exact
assert np.array_equal(np.array(decoded(exact.stdout.decode())), picture())
assert exact.stdout.count(b"\n") == 16 and exact.stdout.endswith(b"\033[0m\n")
few = np.array(decoded(run("--preview", "blocks", "--quiet").stdout.decode()))
table = np.array([of_table(index) for index in range(16, 256)])
nearest = np.square(picture()[:, :, None] - table).sum(-1).min(-1)
assert few.shape == (32, 32, 3) and (np.square(few - picture()).sum(-1) <= nearest + 300).all()

# ------------------------------------------------------------------------------------------------ terminals of any width

for columns, across in ((200, 32), (80, 32), (33, 32), (20, 19), (2, 1)):
    shown = Terminal("--preview", "blocks", columns=columns, COLORTERM="truecolor").end()
    assert shown.code == 0, shown.text
    rows = decoded(shown.text)
    assert {len(row) for row in rows} == {across}, (columns, {len(row) for row in rows})
    pixels = np.array([row for row in rows if None not in row])
    assert len(pixels) == across or across % 2, (columns, len(pixels))
    assert abs(pixels.mean() - picture().mean()) < 12, (columns, pixels.mean(), picture().mean())
# Several side by side, each with a white column behind it, and no more of them than the screen has lines for.
shown = Terminal("--count", 9, "--preview", "blocks", columns=70, COLORTERM="truecolor").end()
rows = decoded(shown.text)
assert [len(row) for row in rows] == [4 * 16 + 3] * 32 and "and 1 more\n" in shown.text, shown.text[-300:]
grid = picture()
first = np.array([row[:16] for row in rows[:16]])
assert np.abs(first - grid[:32, :32].reshape(16, 2, 16, 2, 3).mean((1, 3))).max() <= 0.5
assert [row[16] for row in rows[:16]] == [(255, 255, 255)] * 16
# Each batch when it is there, above the one line of progress; and each ratio of a sweep.
for words, times in ((("--count", 3, "--batch", 1), 3), (("--model", model, "--sweep", "0:1:0.5"), 3)):
    shown = Terminal("--preview", "blocks", *words, COLORTERM="truecolor").end()
    assert shown.code == 0 and len(decoded(shown.text)) == times * 32, (words, len(decoded(shown.text)))
    for line in shown.text.split("\n"):  # the progress is off the screen where a picture begins
        assert "%" not in line.partition("\u2580")[0].split("\033[K")[-1] or "\u2580" not in line, line

# ------------------------------------------------------------------------------------------------ what the terminal knows

sixels = run("--preview", "sixel").returncode == 0  # else the program was built without libchafa, and refuses them
if not sixels:
    message = run("--preview", "sixel").stderr
    assert b"--preview: must be auto, kitty, blocks or none, for this program was built without libchafa, got 'sixel'\n" in message
for words, environment, answer, kind in (
    (("--preview",), {"KITTY_WINDOW_ID": "1"}, b"", "kitty"),
    (("--preview",), {"TERM": "xterm-kitty"}, b"", "kitty"),
    (("--preview",), {"TERM_PROGRAM": "ghostty"}, b"", "kitty"),
    (("--preview",), {}, b"\033[?62;4;22c", "sixel"),
    (("--preview",), {"KITTY_WINDOW_ID": "1", "TMUX": "x"}, b"\033[?1;2;4c", "sixel"),
    (("--preview",), {}, b"\033[?64;1;22c", "blocks"),
    (("--preview",), {}, b"typed ahead\033[?64;1;22c", "blocks"),
    (("--preview",), {}, b"", "blocks"),
    (("--preview",), {"TERM_PROGRAM": "Apple_Terminal"}, None, "blocks"),
    (("--preview", "kitty"), {"TERM": "dumb"}, None, "kitty"),
    (("--preview", "sixel"), {}, None, "sixel"),
    (("--preview",), {"TERM": "dumb"}, None, "none"),
    (("--preview",), {"LC_ALL": "de_DE.ISO-8859-1"}, None, "none"),
):  # fmt: skip
    if not sixels:
        if words == ("--preview", "sixel"):
            continue
        answer, kind = None if kind in ("sixel", "blocks") else answer, "blocks" if kind == "sixel" else kind
    shown = Terminal(*words, answer=answer or b"", **environment).end()
    text = shown.text
    assert shown.code == 0, text
    found = {"kitty": "\033_G" in text, "sixel": re.search("\033P[0-9;]*q", text) is not None, "blocks": "\u2580" in text}
    assert found == {each: each == kind for each in found}, (words, environment, answer, found)
    assert shown.asked == (answer is not None and "kitty" != kind), (words, environment, shown.asked)
    if shown.asked:  # without echo, and Ctrl-C is a signal there, too
        assert not shown.asked_in[3] & (termios.ECHO | termios.ICANON) and shown.asked_in[3] & termios.ISIG
        assert shown.modes[3] & termios.ECHO and shown.modes[3] & termios.ICANON, "the modes are not given back"
        assert "[?6" not in text and "[?1" not in text and "typed" not in text, text  # what it answered is not on the screen
    assert ("draws nothing, for the " in text) == (kind == "none"), text
# The picture is the one in the file: kitty's is a PNG file of it, sixels' has the size that it should.
text = run("--preview", "kitty", "--quiet").stdout.decode()
pieces = re.findall(r"\x1b_G([^;\x1b]*);([^\x1b]*)\x1b\\", text)
assert text == "".join(f"\x1b_G{head};{body}\x1b\\" for head, body in pieces) + "\n", text[:200]
assert all(len(body) <= 4096 for _, body in pieces) and pieces[0][0].startswith("a=T,f=100,q=2,c=3,m="), pieces[0][0]
assert [head[-1] for head, _ in pieces] == ["1"] * (len(pieces) - 1) + ["0"], [head for head, _ in pieces]
sent = Image.open(io.BytesIO(base64.b64decode("".join(body for _, body in pieces))))
assert np.array_equal(np.asarray(sent.convert("RGB"), int), picture())
if sixels:
    text = run("--preview", "sixel", "--quiet").stdout.decode()
    assert re.search('"1;1;30;(30|36|40)', text) and text.endswith("\x1b\\\n"), text[:80]

if sixels:
    # Ctrl-C while the terminal is asked, and a terminal that says nothing: as it was, at once.
    stopped = Terminal("--preview")
    before = termios.tcgetattr(stopped.ours)
    while not stopped.asked:
        assert stopped.step(), stopped.shown
    os.kill(stopped.pid, signal.SIGINT)
    begun = time.time()
    _, status = os.waitpid(stopped.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 130 and time.time() - begun < 5, status
    assert termios.tcgetattr(stopped.ours)[:4] == before[:4], "the modes are not given back"
    os.close(stopped.ours)
print("half blocks and kitty's graphics" + (", and sixels" if sixels else "; this program has no libchafa"))

# ------------------------------------------------------------------------------------------------ what is refused

for words, says in {("--preview", "gif"): "--preview: must be one of auto, kitty, sixel, blocks, none, got 'gif'",
                    ("--preview", "blocks", "--preview", "none"): "--preview: must be given once, got 2"}.items():  # fmt: skip
    done = run(*words)
    assert done.returncode == 2 and says in done.stderr.decode() and done.stderr.count(b"\n") == 1, done
