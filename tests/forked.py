"""Runs Python programs in forks of this process, which has imported what they import: that else takes most of their time."""

import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path


def run_here(words: list[str], first: Callable[[], object]) -> int:
    """A program as Python runs it, after `first`. @returns its exit code"""
    sys.argv, sys.path[0] = words, str(Path(words[0]).resolve().parent)
    try:
        first()
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def become(words: list[str], files: list[int], first: Callable[[], object] = lambda: None) -> None:
    """Ends this process, a fork, with the program's exit code. @files: its input, output and errors"""
    for number, file in enumerate(files):
        os.dup2(file, number)
    code = run_here(words, first)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run(*words: object, first: Callable[[], object] = lambda: None) -> subprocess.CompletedProcess:
    """A program with these arguments, with what it prints. @first: is called in its process before it

    This process must have computed with one thread alone: others are not in the fork, which would wait for them.
    """
    command = list(map(str, words))
    sys.stdout.flush()  # else the fork would write it, too
    sys.stderr.flush()
    with open(os.devnull) as nothing, tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        if (child := os.fork()) == 0:
            try:
                become(command, [nothing.fileno(), output.fileno(), errors.fileno()], first)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        output.seek(0)
        errors.seek(0)
        return subprocess.CompletedProcess(command, os.waitstatus_to_exitcode(status), output.read(), errors.read())
