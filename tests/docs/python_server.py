"""Runs Python programs in forks of one process that has imported what they import, which else takes most of their time.

    server = Server(["torch", "diffusers"])
    server.command(path)      # writes a program to path that runs `path SCRIPT ARGUMENTS...` there
"""

import atexit
import json
import os
import runpy
import shutil
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

# Without the packages of site, which it has no use for, so that it starts at once.
CLIENT = """#!{python} -S
import json, os, socket, sys
words = sys.argv[1:]
if not words or "/export/" not in words[0] or not os.path.isfile(words[0]):
    os.execv({python!r}, [{python!r}, *words])
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
    server.connect({place!r})
    message = json.dumps([words, os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [message], [0, 1, 2])
    sys.exit(int(server.recv(16) or 1))
"""


class Server:
    def __init__(self, modules: list[str]):
        self.folder = Path(tempfile.mkdtemp())  # names of sockets are short
        self.place = self.folder / "socket"
        self.process = subprocess.Popen([sys.executable, __file__, self.place, *modules], stdout=subprocess.PIPE, text=True)
        atexit.register(self.close)
        if self.process.stdout.readline() != "ready\n":
            sys.exit(f"{__file__}: must be ready, got nothing")

    def command(self, path: Path) -> None:
        path.write_text(CLIENT.format(python=sys.executable, place=str(self.place)))
        path.chmod(0o755)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder)


def run(words: list[str]) -> int:
    """A program as Python runs it. @returns its exit code"""
    sys.argv, sys.path[0] = words, str(Path(words[0]).resolve().parent)
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def serve(place: str, modules: list[str]) -> None:
    for module in modules:
        __import__(module)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(place)
        listener.listen()
        print("ready", flush=True)
        while True:
            client, _ = listener.accept()
            message, files, *_ = socket.recv_fds(client, 1 << 20, 3)
            words, folder, environment = json.loads(message)
            if (child := os.fork()) == 0:
                for number, file in enumerate(files):
                    os.dup2(file, number)
                os.chdir(folder)
                os.environ.clear()
                os.environ.update(environment)
                code = run(words)
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
            for file in files:
                os.close(file)
            _, status = os.waitpid(child, 0)
            client.send(str(os.waitstatus_to_exitcode(status) & 255).encode())
            client.close()


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2:])
