"""Looks at the progress of runs on terminals of many widths, and where there is none:
progress_test.py TOOL INSPECT MODEL FOLDER"""

import fcntl
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

tool, inspect, model, folder = sys.argv[1:]
os.makedirs(folder, exist_ok=True)
os.chdir(folder)
os.environ.update(OMP_NUM_THREADS="1", TERM="xterm")


class Screen:
    """A terminal as far as a progress bar needs one: it goes on in the next line where one is full."""

    def __init__(self, columns):
        self.columns, self.lines, self.row, self.column = columns, [""], 0, 0

    def write(self, text):
        for part in re.findall(r"\x1b\[[0-9;]*[A-Za-z]|.", text, re.DOTALL):
            line = self.lines[self.row]
            if part == "\r":
                self.column = 0
            elif part == "\n":
                self.row += 1
                self.lines += [""] if self.row == len(self.lines) else []
            elif part == "\x1b[K":
                self.lines[self.row] = line[: self.column]
            elif part == "\x1b[J":
                self.lines[self.row :] = [line[: self.column]]
            else:
                assert part.isprintable(), part
                if self.column == self.columns:
                    self.write("\r\n")
                    line = self.lines[self.row]
                self.lines[self.row] = line[: self.column].ljust(self.column) + part + line[self.column + 1 :]
                self.column += 1

    def resize(self, columns):
        """As terminals do that wrap what is there: the cursor stays with its character."""
        assert self.column == 0
        lines, self.columns = [], columns
        for row, line in enumerate(self.lines):
            if row == self.row:
                self.row = len(lines)
            lines += [line[i : i + columns] for i in range(0, len(line), columns)] or [""]
        self.lines = lines

    def bars(self):
        return [line for line in self.lines if re.match(r"\[[#.]+\] |\[?[#.]* *\d+%", line)]


def watch(columns, *command, resize=None):
    """Runs a program whose errors go to a terminal of so many columns (0: it does not say how many it has)."""
    ours, theirs = pty.openpty()
    set_size = lambda wide: fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, wide, 0, 0))
    set_size(columns)
    screen = Screen(columns or 80)
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    drawn, before_resize, most, rest = 0, 0, 0, ""

    def take():
        nonlocal drawn, most, rest
        try:
            data = rest + os.read(ours, 65536).decode()
        except OSError:  # the other end is closed
            return False
        # What is behind the last \r may be half of a bar.
        done, mark, rest = data.rpartition("\r")
        for piece in (done + mark).split("\r"):
            screen.write(piece + "\r" if piece else "")
            drawn += "%" in piece
            most = max(most, len(screen.bars()))
        return True

    while take():
        if resize and drawn > 2:
            # Both sizes change between two bars: the program stands still, and all that it wrote is on the screen.
            run.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, run.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            while select.select([ours], [], [], 0.1)[0] and take():
                pass
            if not rest:
                set_size(resize)
                screen.resize(resize)
                resize, before_resize = None, drawn
            run.send_signal(signal.SIGCONT)
    screen.write(rest)
    assert run.wait() == 0, (run.returncode, screen.lines)
    assert resize is None and drawn > before_resize, "the program ended before the terminal could change"
    os.close(ours)
    return screen, drawn, most


slow = [tool, "--model", model, "--device", "cpu", "--steps", "60", "--count", "1", "--batch", "4", "--class", "3"]
slow += ["--guidance", "1"]
for columns in (200, 80, 60, 20, 0):
    screen, drawn, most = watch(columns, *slow, "--grid", "terminal.png")
    assert most <= 1 and len(screen.bars()) == 1, (columns, screen.lines)
    assert "100%" in screen.bars()[0] and drawn > 2, (columns, drawn, screen.lines)
    assert len(screen.lines) == 2 and screen.lines[1] == "", screen.lines  # what comes next begins a line
    print(f"{columns} columns: {drawn} times the one line {screen.bars()[0]!r}")
screen, drawn, most = watch(80, *slow, "--grid", "terminal.png", resize=60)
assert most <= 1 and len(screen.bars()) == 1 and drawn > 2, screen.lines
print("80, then 60 columns: one line")

swept = slow[:1] + ["--model", model] + slow[1:] + ["--sweep", "0:1:0.5", "--grid", "terminal.png"]
screen, drawn, most = watch(60, *swept)
assert most <= 1 and "100%" in screen.bars()[0] and drawn > 2, screen.lines
screen, drawn, most = watch(60, inspect, "--device", "cpu", "--rows", "8", "--steps", "20", model, model)
assert most <= 1 and drawn > 2, (drawn, screen.lines)
print("a sweep and tstitch_inspect: one line")

errors = subprocess.run(slow + ["--grid", "plain.png"], capture_output=True, text=True).stderr
assert errors.startswith("  0%  1 image\n") and "\r" not in errors and "\x1b" not in errors, errors
assert "\n100%  step 60/60" in errors and 11 <= errors.count("\n"), errors
quiet = subprocess.run(slow + ["--grid", "plain.png", "--quiet"], capture_output=True, text=True)
assert quiet.stdout + quiet.stderr == "", quiet
