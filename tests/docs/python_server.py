"""Runs Python programs in forks of one process that has imported what they import, which else takes most of their time.

    server = Server(["torch", "diffusers"])
    server.command(path)      # writes a program to path that runs `path SCRIPT ARGUMENTS...` there
"""

import atexit
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
import forked  # noqa: E402

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
                os.chdir(folder)
                os.environ.clear()
                os.environ.update(environment)
                forked.become(words, files)
            for file in files:
                os.close(file)
            _, status = os.waitpid(child, 0)
            client.send(str(os.waitstatus_to_exitcode(status) & 255).encode())
            client.close()


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2:])
