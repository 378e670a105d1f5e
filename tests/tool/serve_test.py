"""Pictures over HTTP: serve_test.py TSTITCH_SERVE TSTITCH_SAMPLE BUNDLED_MODELS TOOL_MODELS FOLDER [--soak SECONDS]

What is drawn is what tstitch_sample draws, byte by byte, also for 32 clients at once; what is no request is refused by
name; who is slow, hangs up or is one too many holds up nobody; the numbers add up; and a signal ends it well.
TOOL_MODELS is what tool_models wrote. --soak goes on with 32 clients, and prints what memory that takes.
"""

import argparse
import atexit
import base64
import contextlib
import http.client
import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

parser = argparse.ArgumentParser()
for name in ("serve", "sample", "bundled", "models", "scratch"):
    parser.add_argument(name, type=Path)
parser.add_argument("--soak", type=float, default=0)
ARGUMENTS = parser.parse_args()
SCRATCH = ARGUMENTS.scratch.resolve()
shutil.rmtree(SCRATCH, ignore_errors=True)
SCRATCH.mkdir(parents=True)
TOKEN = "correct-horse-battery-staple"
DRAWING = ["--device", "cpu", "--batch", "8", "--pad-batches"]
SMALL = ["--ratio", "1", "--guidance", "1"]  # for what may be drawn by the small network alone


def expect(condition: object, *what: object) -> None:
    if not condition:
        sys.exit(" ".join(map(str, what))[:3000])


class Service:
    """A running tstitch_serve."""

    def __init__(self, *words: str, drawing: list[str] = DRAWING) -> None:
        self.process = subprocess.Popen([ARGUMENTS.serve, "--port", "0", *drawing, *words], text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
        atexit.register(self.process.kill)
        line = self.process.stdout.readline()
        found = re.fullmatch(r"listening: http://127\.0\.0\.1:(\d+)\n", line)
        if not found:
            sys.exit(f"{words} must say where it listens, got {line!r}\n{self.process.communicate()[1]}")
        self.port = int(found[1])

    def ask(self, method: str = "GET", path: str = "/healthz", body: bytes | None = None,
            headers: dict[str, str] | None = None) -> tuple[int, http.client.HTTPMessage, bytes]:  # fmt: skip
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    def post(self, fields: object, **headers: str) -> tuple[int, http.client.HTTPMessage, bytes]:
        body = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.ask("POST", "/v1/pictures", body, {"Content-Type": "application/json"} | named)

    def draw(self, fields: dict, **headers: str) -> dict:
        status, _, body = self.post(fields, **headers)
        expect(status == 200, fields, "must be drawn, got", status, body)
        return json.loads(body)

    def files(self, fields: dict) -> list[bytes]:
        return [base64.b64decode(each["png"]) for each in self.draw(fields)["pictures"]]

    def refused(self, status: int, place: str, rule: str, answer: tuple[int, http.client.HTTPMessage, bytes]) -> None:
        got, _, body = answer
        expect(got == status, f"must be {status} of {place}, got {got}", body)
        error = json.loads(body)["error"]
        expect(error["status"] == status and error["place"] == place and rule in error["message"], place, rule, error)
        expect(error["message"].startswith(f"{place}: "), error)

    def settled(self) -> dict[str, float]:
        """The metrics once all is counted: a client may have its response before that."""
        last = self.metrics()
        for _ in range(600):
            time.sleep(0.1)
            now = self.metrics()
            if now == last | {(ok := 'tstitch_responses_total{status="200"}'): last.get(ok, 0) + 1}:
                return now
            last = now
        sys.exit(f"metrics must come to rest, got {last}")

    def metrics(self) -> dict[str, float]:
        self.scrapes = getattr(self, "scrapes", 0) + 1
        text = self.ask(path="/metrics")[2].decode()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")}

    def raw(self, text: bytes, seconds: float = 120) -> bytes:
        """What is answered to these bytes until the connection is closed."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as client:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                client.sendall(text)
            answer = b""
            with contextlib.suppress(ConnectionResetError):
                while part := client.recv(65536):
                    answer += part
            return answer

    def open(self, fields: dict, token: str = "") -> socket.socket:
        """A request whose answer is not read yet."""
        client = socket.create_connection(("127.0.0.1", self.port), timeout=300)
        body = json.dumps(fields).encode()
        with_token = f"Authorization: Bearer {token}\r\n" if token else ""
        client.sendall(f"POST /v1/pictures HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{with_token}"
                       f"Content-Length: {len(body)}\r\n\r\n".encode() + body)  # fmt: skip
        return client

    def until(self, what: str, condition, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not condition(self.metrics()):
            expect(time.monotonic() < end, what, "must come, got", self.metrics())
            time.sleep(0.02)

    def stop(self, which: int = signal.SIGTERM, said: str = "") -> None:
        self.process.send_signal(which)
        output, errors = self.process.communicate(timeout=300)
        expect(self.process.returncode == 128 + which and output == "", self.process.returncode, output, errors)
        expect(errors == said if not said else said in errors, "must say", repr(said), "got", errors)


def sampled(folder: str, *words: str, drawing: list[str] = DRAWING) -> list[bytes]:
    """The files of tstitch_sample."""
    subprocess.run([ARGUMENTS.sample, *drawing, "--output", SCRATCH / folder, "--quiet", *words], check=True)
    return [path.read_bytes() for path in sorted((SCRATCH / folder).iterdir())]


def chunks(png: bytes) -> dict[bytes, bytes]:
    """What a PNG file has, by kind."""
    found, at = {}, 8
    while at < len(png):
        size = int.from_bytes(png[at : at + 4], "big")
        kind = png[at + 4 : at + 8]
        found[kind] = found.get(kind, b"") + png[at + 8 : at + 8 + size]
        at += size + 12
    return found


def pixels(png: bytes) -> bytes:
    return chunks(png)[b"IHDR"] + chunks(png)[b"IDAT"]


def events(answer: bytes) -> list[tuple[str, dict]]:
    found = []
    for text in answer.decode().split("\n\n")[:-1]:
        event, data = text.split("\n")
        found.append((event.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


# ------------------------------------------------------------------------------------------------- the same pictures


def same_pictures(service: Service) -> None:
    expect(service.files({"class": "horse", "seed": 7, "count": 2})
           == sampled("plain", "--class", "horse", "--seed", "7", "--count", "2", "--steps", "4", *SMALL), "must be the tool's bytes")  # fmt: skip
    words = ["--sampler", "dpm-solver++", "--order", "3", "--spacing", "karras", "--steps", "5", "--ratio", "0.6",
             "--guidance", "1.5,3", "--guidance-interval", "0.1:0.9", "--guidance-rescale", "0.5",
             "--class", "cat", "--class", "1", "--seed", "5,9", "--forecast-guidance", "every:2"]  # fmt: skip
    fields = {"sampler": "dpm-solver++", "order": 3, "spacing": "karras", "steps": 5, "ratio": 0.6, "guidance": [1.5, 3],
              "guidance_interval": "0.1:0.9", "guidance_rescale": 0.5, "class": ["cat", 1], "seed": [5, 9],
              "forecast_guidance": "every:2"}  # fmt: skip
    expect(service.files(fields) == sampled("many", *words), "must be the tool's bytes with many options")
    # What a request says takes the place of all that the command line says of it.
    expect(service.draw({"class": 3, "profile": "dit"})["parameters"]["profile"] == "dit", "must be the request's profile")


def parameters(service: Service) -> None:
    answer = service.draw({"class": 3})
    seed = answer["pictures"][0]["seed"]
    expect(seed != service.draw({"class": 3})["pictures"][0]["seed"], "seeds must be drawn at random")
    again = service.draw({"class": 3, "seed": seed})
    expect(again["pictures"] == answer["pictures"], "must be the same picture of the same seed")
    expect(again["parameters"] == answer["parameters"] and answer["parameters"]["seed"] == seed, answer["parameters"])
    text = chunks(base64.b64decode(answer["pictures"][0]["png"]))[b"iTXt"]
    expect(f'"image_seed":{seed}'.encode() in text and b'"class":"cat"' in text, text)
    status, headers, png = service.post({"class": 3, "seed": seed}, Accept="image/png")
    expect(status == 200 and headers["Content-Type"] == "image/png" and headers["Tstitch-Seed"] == str(seed), headers)
    expect(png == base64.b64decode(answer["pictures"][0]["png"]), "must be the same file")
    expect(service.post({"class": 3, "seed": seed, "format": "png"})[2] == png, "must be the same file")
    service.refused(400, "format", "more than one", service.post({"class": 3, "count": 2, "format": "png"}))
    most = 2**64 - 1
    expect(service.draw({"class": 3, "seed": most})["pictures"][0]["seed"] == most, "must be the whole seed")
    known = json.loads(service.ask(path="/v1/networks")[2])
    expect([each["name"] for each in known["networks"]] == ["cifar10-dit-small", "cifar10-dit-large"], known)
    expect(known["limits"]["pictures"] == 8 and known["defaults"]["steps"] == 4 and not known["prompts"], known)
    expect("seed" in known["fields"] and known["networks"][1]["class_names"][3] == "cat", known)
    page = service.ask(path="/")
    expect(page[0] == 200 and b"<title>tstitch</title>" in page[2] and b"://" not in page[2], page)


def many_clients(service: Service) -> None:
    """32 at once, each with a seed of its own; every second sees its steps."""
    files = sampled("clients", "--class", "horse", "--seed", "100", "--count", "32", "--steps", "4", *SMALL)
    expected = {100 + i: pixels(png) for i, png in enumerate(files)}
    together = threading.Barrier(32)

    def client(i: int) -> None:
        together.wait()
        fields = {"class": "horse", "seed": 100 + i, "steps": 4, "priority": i % 3}
        if i % 2:
            status, headers, body = service.post(fields | {"stream": True})
            expect(status == 200 and headers["Content-Type"] == "text/event-stream", status, headers)
            answer = events(body)[-1][1]
        else:
            answer = service.draw(fields)
        picture = answer["pictures"][0]
        expect(picture["seed"] == 100 + i, "must be its own seed", picture["seed"])
        expect(pixels(base64.b64decode(picture["png"])) == expected[100 + i], "must be its own picture", i)

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(client, range(32)))


def streams(service: Service) -> None:
    fields = {"class": "horse", "seed": 7, "count": 2, "steps": 4, "preview_every": 2}
    found = events(service.post(fields, Accept="text/event-stream")[2])
    names = [name for name, _ in found]
    expect(names == ["begin", "step", "step", "preview", "step", "step", "pictures"], names)
    expect([data["done"] for name, data in found if name == "step"] == [1, 2, 3, 4], found)
    begin, preview, last = found[0][1], found[3][1], found[-1][1]
    expect(begin["steps"] == 4 and begin["pictures"] == 2 and begin["parameters"]["seed"] == 7, begin)
    expect(len(preview["png"]) == 2 and all(base64.b64decode(png)[1:4] == b"PNG" for png in preview["png"]), preview)
    expect([base64.b64decode(each["png"]) for each in last["pictures"]]
           == service.files({"class": "horse", "seed": 7, "count": 2, "steps": 4}), "must be the same files")  # fmt: skip
    expect(preview["png"][0] != last["pictures"][0]["png"], "a preview must be of before")
    # What is refused is so before the stream begins.
    service.refused(422, "steps", "[1, 250], got 251", service.post({"class": 3, "steps": 251, "stream": True}))


# --------------------------------------------------------------------------------------------------- what is refused

REFUSED = [
    (b"", 400, "body", "must be JSON"),
    (b"{", 400, "body", "must be JSON"),
    (b'{"class": 3}x', 400, "body", "must be JSON"),
    (b'{"class": NaN}', 400, "body", "must be JSON"),
    (b'{"class": Infinity}', 400, "body", "must be JSON"),
    (b'{"guidance": 1e999}', 400, "body", "finite"),
    (b'{"prompt": "\xff\xfe"}', 400, "body", "UTF-8"),
    (b'{"prompt": "\xed\xa0\x80"}', 400, "body", "UTF-8"),
    (b'{"class": "\\ud800"}', 400, "body", "must be JSON"),
    (b"\x00", 400, "body", "must be JSON"),
    (b"[" * 60000, 400, "body", "deeper nesting"),
    (b'{"a":' * 10000, 400, "body", "deeper nesting"),
    (b'{"class": [[3]]}', 400, "body", "deeper nesting"),
    (b'{"class": 3, "class": 4}', 400, "body", "each field once"),
    (b"null", 400, "body", "a JSON object, got null"),
    (b"3", 400, "body", "a JSON object, got number"),
    (b"[]", 400, "body", "a JSON object, got array"),
    ({}, 422, "class", "got none"),
    ({"Class": 3}, 400, "Class", "must be one of class"),
    ({"model": "/etc/passwd", "class": 3}, 400, "model", "must be one of"),
    ({"condition": "x", "class": 3}, 400, "condition", "must be one of"),
    ({"class": "unicorn"}, 422, "class", "got 'unicorn'"),
    ({"class": 10}, 422, "class", "[0, 9]"),
    ({"class": -1}, 422, "class", "[0, 9]"),
    ({"class": 3.0}, 400, "class", "a text, got 3.0"),
    ({"class": True}, 400, "class", "a text, got true"),
    ({"class": ""}, 400, "class", "something in it"),
    ({"class": "--seed=3"}, 422, "class", "got '--seed=3'"),
    ({"class": ["all"]}, 422, "count", "at most 8 pictures, got 10"),
    ({"class": list(range(9))}, 422, "class", "at most 8, got 9"),
    ({"class": 3, "prompt": "a fox"}, 422, "prompt", "draw from text"),
    ({"class": 3, "negative": "a fox"}, 422, "negative", "draw from text"),
    ({"class": 3, "count": 9}, 422, "count", "at most 8 pictures, got 9"),
    ({"class": 3, "count": 10**18}, 422, "count", "got 1000000000000000000"),
    ({"class": 3, "count": 0}, 422, "count", "at least 1"),
    ({"class": 3, "count": "2"}, 400, "count", 'a number, got "2"'),
    ({"class": 3, "seed": -1}, 422, "seed", "got '-1'"),
    ({"class": 3, "seed": 2**64}, 422, "seed", "got '1.8446744073709552e+19'"),
    ({"class": 3, "seed": 2**64 - 1, "count": 2}, 422, "seed", "leave room"),
    ({"class": 3, "seed": 1.5}, 422, "seed", "got '1.5'"),
    ({"class": 3, "seed": []}, 400, "seed", "at least one value"),
    ({"class": 3, "seed": list(range(9))}, 422, "seed", "at most 8, got 9"),
    ({"class": 3, "steps": 0}, 422, "steps", "[1, 250], got 0"),
    ({"class": 3, "steps": 251}, 422, "steps", "[1, 250], got 251"),
    ({"class": 3, "steps": 10**9}, 422, "steps", "[1, 250]"),
    ({"class": 3, "timesteps": list(range(999, 700, -1))}, 422, "steps", "[1, 250], got 299"),
    ({"class": 3, "ratio": 1.5}, 422, "tstitch::Stitch", "1.5"),
    ({"class": 3, "sampler": "magic"}, 422, "sampler", "must be one of ddpm"),
    ({"class": 3, "sampler": "dpm-solver++-adaptive"}, 422, "tstitch::Batcher", "how often they evaluate"),
    ({"class": 3, "sampler": "ddim", "profile": "dit"}, 422, "profile", "must come without"),
    ({"class": 3, "timesteps": [999, 500], "steps": 3}, 422, "steps", "must come without"),
    ({"class": 3, "order": 2}, 422, "order", "is for"),
    ({"class": 3, "routing": "/etc/passwd"}, 422, "routing", "got"),
    ({"class": 3, "forecast_guidance": "/etc/passwd"}, 422, "forecast_guidance", "got"),
    ({"class": 3, "guidance": -1e308}, 422, "request", "finite"),
    ({"class": 3, "guidance": [1, 2, 3]}, 422, "guidance", "one for each of the 2 networks, got 3"),
    ({"class": 3, "size": 64}, 422, "size", "got"),
    ({"class": 3, "priority": 101}, 400, "priority", "[-100, 100], got 101"),
    ({"class": 3, "priority": 2**64 - 1}, 400, "priority", "[-100, 100]"),
    ({"class": 3, "format": "jpeg"}, 400, "format", 'got "jpeg"'),
    ({"class": 3, "stream": 1}, 400, "stream", "true or false, got 1"),
    ({"class": 3, "stream": True, "format": "png"}, 400, "format", "with stream"),
    ({"class": 3, "preview_every": 2}, 400, "preview_every", "with stream"),
]  # fmt: skip

# Of every field.
ODD = [None, True, -1, 0, 1.5, -1e308, 2**63, -(2**63), 2**64, "", "\0", "x", "--class=3", "[1,2]", "{}", "%%", "\x1b[31m",
       "é" * 5000, [], {}, [None], ["x"], [1, "2"], {"a": 1}, ["--", "-"], [1] * 5000, "nan", "1e400", "0x10", " 1"]  # fmt: skip

POST = b"POST /v1/pictures HTTP/1.1\r\nHost: x\r\n"
JSON = b"Content-Type: application/json\r\n"
BARE = [  # bytes, the status that is answered, and the place
    (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 20000 + b"\r\n\r\n", 431, "request"),
    (b"GET / HTTP/1.1\r\n" + b"A: a\r\n" * 20000 + b"\r\n", 431, "request"),
    (b"G" * 100000, 431, "request"),
    (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414, "path"),
    (b"nonsense\r\n\r\n", 400, "request"),
    (b"GET / HTTP/9.9\r\n\r\n", 400, "request"),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "request"),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "request"),
    (b"BREW / HTTP/1.1\r\n\r\n", 400, "request"),
    (b"GET /../../etc/passwd HTTP/1.1\r\n\r\n", 404, "path"),
    (b"GET /%00 HTTP/1.1\r\n\r\n", 404, "path"),
    (b"GET /v1/pictures/ HTTP/1.1\r\n\r\n", 404, "path"),
    (b"GET /metrics?a=1 HTTP/1.1\r\n\r\n", 400, "query"),
    (b"GET /v1/pictures HTTP/1.1\r\n\r\n", 405, "method"),
    (b"PUT /v1/pictures HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", 405, "method"),
    (b"OPTIONS /v1/pictures HTTP/1.1\r\n\r\n", 405, "method"),
    (b"POST /metrics HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}", 405, "method"),
    (POST + JSON + b"\r\n", 411, "Content-Length"),
    (POST + JSON + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 411, "Content-Length"),
    (POST + JSON + b"Content-Length: -2\r\n\r\n{}", 400, "Content-Length"),
    (POST + JSON + b"Content-Length: +2\r\n\r\n{}", 400, "Content-Length"),
    (POST + JSON + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400, "Content-Length"),
    (POST + JSON + b"Content-Length: 99999999999999999999\r\n\r\n{}", 400, "Content-Length"),
    (POST + JSON + b"Content-Length: 1000000\r\n\r\n" + b" " * 1000000, 413, "body"),
    (POST + JSON + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}", 415, "Content-Encoding"),
    (POST + b"Content-Length: 2\r\n\r\n{}", 415, "Content-Type"),
    (POST + b"Content-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}", 415, "Content-Type"),
    (POST + b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 2\r\n\r\n{}", 415, "Content-Type"),
    (POST + b"Content-Type: application/json; charset=utf-8\r\nContent-Length: 2\r\n\r\n{}", 422, "class"),
    (POST + JSON + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n{}", 422, "class"),
]  # fmt: skip


def hostile(service: Service) -> None:
    for fields, status, place, rule in REFUSED:
        service.refused(status, place, rule, service.post(fields))
    fields = json.loads(service.ask(path="/v1/networks")[2])["fields"]
    answers: dict[int, int] = {}
    for field, value in itertools.product(fields, ODD):
        status, _, body = service.post({"class": 3, "steps": 1, "count": 1} | {field: value})
        answers[status] = answers.get(status, 0) + 1
        expect(status in (200, 400, 422), field, repr(value)[:80], "must be drawn or refused, got", status, body)
        if status == 200:
            continue
        error = json.loads(body)["error"]
        expect(error["message"].startswith(f"{error['place']}: ") and len(error["message"]) < 2000, field, error)
        expect(all(" " <= c for c in error["message"]), field, "must be shown without control characters", error)
    expect(answers[400] > 300 and answers[422] > 60 and 0 < answers[200] < 60, answers)
    for text, status, place in BARE:
        answer = service.raw(text).removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
        head, _, body = answer.partition(b"\r\n\r\n")
        expect(head.startswith(f"HTTP/1.1 {status} ".encode()), text[:80], "must be", status, "got", answer[:300])
        expect(b"Connection: close" in head and json.loads(body)["error"]["place"] == place, text[:80], answer[:300])
    # A part of a request and no more, and a range of a response.
    expect(service.raw(b"HEAD /metrics HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 200"), "HEAD")
    expect(service.raw(b"GET / HTTP/1.1\r\nRange: bytes=0-1,0-1,0-1\r\n\r\n").startswith(b"HTTP/1.1 200"), "ranges")
    for text in (b"", b"\r\n", b"GET", b"GET / HTTP/1.1\r\n", POST + JSON + b"Content-Length: 9\r\n\r\n{}"):
        with socket.create_connection(("127.0.0.1", service.port)) as client:
            client.sendall(text)
    expect(service.process.poll() is None and service.ask()[0] == 200, "must be there still")


# ---------------------------------------------------------------------------------------------- slow, gone, too many


def slow_clients() -> None:
    service = Service("--client-seconds", "0.5", "--steps", "2", "--connections", "4", *SMALL)
    for head in (b"GE", b"GET / HTTP/1.1\r\nA", POST + JSON + b"Content-Length: 9\r\n\r\n{"):
        begin = time.monotonic()
        with socket.create_connection(("127.0.0.1", service.port), timeout=20) as client:
            client.sendall(head)
            for _ in range(3):  # a byte now and then is no request, either
                time.sleep(0.2)
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    client.sendall(b"x")
            answer = client.recv(65536)
        expect(answer.startswith(b"HTTP/1.1 408 "), head, answer)
        expect(time.monotonic() - begin < 5, "must be told in time")
    # Too many at once: the first four have the threads.
    idle = [socket.create_connection(("127.0.0.1", service.port), timeout=20) for _ in range(4)]
    time.sleep(0.1)
    answer = service.raw(b"GET /healthz HTTP/1.1\r\n\r\n")
    expect(answer.startswith(b"HTTP/1.1 503 ") and b"Retry-After: 1" in answer and b"4 clients" in answer, answer)
    for client in idle:
        expect(client.recv(10) == b"", "who says nothing must be left")
        client.close()
    # Who reads nothing loses its pictures and holds up nobody.
    reader = service.open({"class": 3, "steps": 2, "stream": True})
    expect(service.ask()[0] == 200, "must go on")
    reader.close()
    service.stop()


def hang_ups(service: Service) -> None:
    before = service.metrics()
    for stream in (False, True):
        client = service.open({"class": 3, "steps": 250, "count": 8, "stream": stream})
        service.until("the drawing", lambda now: now["tstitch_requests_in_progress"] == 1)
        client.close()
        service.until("its end", lambda now: now["tstitch_requests_in_progress"] == 0)
    now = service.metrics()
    expect(now["tstitch_hang_ups_total"] - before["tstitch_hang_ups_total"] == 2, now)
    expect(now["tstitch_pictures_total"] == before["tstitch_pictures_total"], "must not have been drawn")
    calls = [now[name] - before[name] for name in now if name.startswith("tstitch_network_calls_total")]
    expect(sum(calls) < 400, "the rows must be free, got", calls, "calls of 500")


def numbers(service: Service) -> None:
    before, scrapes, count = service.settled(), service.scrapes, 2
    for _ in range(count):
        service.draw({"class": 3, "steps": 3, "ratio": 0.34, "count": 2, "guidance": 1})
    service.post({})
    now = service.settled()

    def more(name: str) -> float:
        return now[name] - before.get(name, 0)

    def of(kind: str, network: int) -> float:
        return more(f'tstitch_network_{kind}_total{{network="{network}",name="cifar10-dit-{("small", "large")[network]}"}}')

    expect(more('tstitch_responses_total{status="422"}') == 1, now)
    # From the first metrics on, without the last.
    expect(more('tstitch_responses_total{status="200"}') == count + service.scrapes - scrapes, now)
    expect(more("tstitch_pictures_total") == 2 * count and more("tstitch_request_seconds_count") == count, now)
    expect(more('tstitch_request_seconds_bucket{le="+Inf"}') == count and more("tstitch_request_seconds_sum") > 0, now)
    expect([of("calls", 0), of("pictures", 0), of("slots", 0)] == [count, 2 * count, 8 * count], now)
    expect([of("calls", 1), of("pictures", 1), of("slots", 1)] == [2 * count, 4 * count, 16 * count], now)
    expect(now["tstitch_requests_in_progress"] == now["tstitch_requests_waiting"] == 0, now)
    buckets = [value for name, value in now.items() if name.startswith("tstitch_request_seconds_bucket")]
    expect(buckets == sorted(buckets), buckets)


def with_token() -> None:
    token_file = SCRATCH / "token"
    token_file.write_text(TOKEN + "\nand what is behind it\n")
    service = Service("--token-file", str(token_file), "--most-waiting", "1", "--grace", "300", "--steps", "2", *SMALL)
    for path, free in (("/", True), ("/healthz", True), ("/metrics", False), ("/v1/networks", False)):
        expect(service.ask(path=path)[0] == (200 if free else 401), path)
        for wrong in ("Bearer", "Bearer ", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer x"):
            expect(free or service.ask(path=path, headers={"Authorization": wrong})[0] == 401, path, wrong)
        expect(service.ask(path=path, headers={"Authorization": f"bearer {TOKEN}"})[0] == 200, path)
    answer = service.post({"class": 3})
    service.refused(401, "Authorization", "got none", answer)
    expect(answer[1]["WWW-Authenticate"] == "Bearer", answer[1])
    secret = {"Authorization": f"Bearer {TOKEN}"}
    expect(service.post({"class": 3}, **secret)[0] == 200, "must be drawn with the token")

    # Two draw, one waits, and there is no room for another. Then it is told to stop: all of these come to their end.
    def metric(name: str) -> float:
        text = service.ask(path="/metrics", headers=secret)[2].decode()
        return float(re.search(rf"^{name} (.*)$", text, re.M)[1])

    def until(name: str, value: int) -> None:
        end = time.monotonic() + 120
        while metric(name) != value:
            expect(time.monotonic() < end, name, "must become", value)
            time.sleep(0.01)

    asked = {"class": 3, "count": 8, "steps": 12, "stream": True}
    clients = []
    for waiting in (0, 0, 1):
        clients.append(service.open(asked, TOKEN))
        answer = b""
        while b"event: begin" not in answer:  # then it is submitted
            part = clients[-1].recv(65536)
            expect(part, "must begin, got", answer)
            answer += part
        until("tstitch_requests_waiting", waiting)
    status, headers, body = service.post({"class": 3}, **secret)
    expect(status == 503 and headers["Retry-After"] == "1" and b"at most 1 requests that wait" in body, status, body)
    service.process.send_signal(signal.SIGTERM)
    end = time.monotonic() + 10
    while service.ask()[0] != 503:
        expect(time.monotonic() < end, "must not be ready any more")
    service.refused(503, "service", "stops", service.post({"class": 3}, **secret))
    for client in clients:
        answer = b""
        while part := client.recv(65536):
            answer += part
        expect(b"event: pictures\ndata: {" in answer, "what runs must be finished, got", answer[-300:])
        client.close()
    service.process.wait(20)
    expect(service.process.returncode == 143, service.process.returncode)


def without_grace() -> None:
    service = Service("--grace", "0", "--steps", "250", "--quiet", *SMALL)
    clients = [service.open({"class": 3, "count": 8, "stream": stream}) for stream in (False, True)]
    service.until("both", lambda now: now["tstitch_requests_in_progress"] == 2)
    begin = time.monotonic()
    service.stop(signal.SIGINT)
    expect(time.monotonic() - begin < 5, "must end at once")
    for client in clients:
        answer = b""
        while part := client.recv(65536):
            answer += part
        expect(b"told to stop" in answer, answer[-300:])
        client.close()


def refusals_of_arguments() -> None:
    small = str(ARGUMENTS.bundled / "cifar10_dit_small.pt")
    (SCRATCH / "two words").write_text("two words here\n")
    taken = socket.create_server(("127.0.0.1", 0))
    for code, said, words in (
        (2, "--port: must be in [0, 65535]", ["--port", "65536"]),
        (2, "--grace", ["--grace", "nan"]),
        (2, "arguments: must be those that --help lists", ["--preset", "fast"]),
        (2, "--steps: must be in [1, 10], got 11", ["--steps", "11", "--most-steps", "10"]),
        (2, "--ratio: is for two networks", ["--model", small, "--ratio", "0.5"]),
        (1, "--token-file: 'nowhere' must be a file", ["--token-file", "nowhere"]),
        (1, "without spaces", ["--token-file", str(SCRATCH / "two words")]),
        (1, "nowhere.pt", ["--model", "nowhere.pt"]),
        (1, "--port: must be free", ["--port", str(taken.getsockname()[1])]),
        (1, "--port: must be free", ["--host", "203.0.113.1", "--port", "0", "--quiet"]),
    ):  # fmt: skip
        done = subprocess.run([ARGUMENTS.serve, "--device", "cpu", *words], text=True, capture_output=True, check=False,
                              timeout=300)  # fmt: skip
        expect(done.returncode == code and said in done.stderr and done.stdout == "", words, done)
        expect(done.stderr.startswith("tstitch_serve: ") and done.stderr.count("\n") == 1, words, done.stderr)
    plan = subprocess.run([ARGUMENTS.serve, "--steps", "10", "--plan"], text=True, capture_output=True, check=True)
    expect("network 0 takes 4, network 1 takes 6" in plan.stdout, plan.stdout)
    # Beyond loopback, and without a token.
    process = subprocess.Popen([ARGUMENTS.serve, "--device", "cpu", "--port", "0", "--host", "0.0.0.0"], text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    process.stdout.readline()
    process.terminate()
    expect("without --token-file anybody there may ask" in process.communicate(timeout=300)[1], "must be warned")


def prompts() -> None:
    """Of a pipeline: text encoders, latents and a decoder."""
    drawing = [*DRAWING, "--pipeline", str(ARGUMENTS.models.resolve())]
    service = Service("--steps", "3", drawing=drawing)
    words = ["--steps", "3", "--prompt", "a fox", "--prompt", "in the snow", "--negative", "a fox", "--guidance", "2", "--seed", "4"]
    fields = {"prompt": ["a fox", "in the snow"], "negative": "a fox", "guidance": 2, "seed": 4}
    found, expected = service.files(fields), sampled("prompts", *words, drawing=drawing)
    expect([pixels(png) for png in found] == [pixels(png) for png in expected], "must be the tool's pictures")
    expect(b'"prompt_text":"in the snow"' in found[1] and str(ARGUMENTS.models).encode() not in found[1], chunks(found[1])[b"iTXt"])
    found = events(service.post({"prompt": "a fox", "stream": True, "preview_every": 1})[2])
    expect([name for name, _ in found].count("preview") == 2, found)
    service.refused(422, "prompt", "got none", service.post({}))
    service.refused(400, "prompt", "something in it", service.post({"prompt": ""}))
    service.refused(400, "prompt", "NUL", service.post({"prompt": "a\0b"}))
    for odd in ("{}", "%%", "[a, b]", "--seed=3", "-", "é" * 1000, "\x1b[31m", "a\nb"):
        status, _, body = service.post({"prompt": odd})
        expect(status == 200 or (status == 422 and b"prompt" in body), odd, status, body)
        expect(status != 200 or json.loads(body)["prompts"] == [odd], odd, body)
    expect(json.loads(service.ask(path="/v1/networks")[2])["prompts"], "must say that it draws from prompts")
    service.stop()


# -------------------------------------------------------------------------------------------------------------- soak


def memory(process: subprocess.Popen) -> float:
    """MiB that are resident."""
    return int(re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text(), re.M)[1]) / 1024


def soak(seconds: float) -> None:
    service = Service("--steps", "4", "--ratio", "0.75", "--guidance", "1")
    expected = {}
    for seed in range(0, 64, 8):
        files = service.files({"class": 3, "seed": seed, "count": 8})
        expected |= {seed + i: pixels(png) for i, png in enumerate(files)}
    before = service.metrics()
    counts: dict[str, int] = {}
    lock = threading.Lock()
    end = time.monotonic() + seconds
    marks: list[float] = []

    def client(number: int) -> None:
        chance = random.Random(number)
        while time.monotonic() < end:
            seed = chance.randrange(64)
            fields = {"class": 3, "seed": seed, "priority": chance.randrange(3)}
            kind = chance.choice(["plain", "plain", "plain", "stream", "gone", "wrong"])
            if kind == "gone":
                left = service.open(fields | {"stream": chance.random() < 0.5})
                time.sleep(chance.random() * 0.1)
                left.close()
            elif kind == "wrong":
                kind = "wrong" if service.post({"class": "x" * chance.randrange(1, 1000)})[0] == 422 else "lost"
            else:
                stream = kind == "stream"
                status, _, body = service.post(fields | ({"stream": True, "preview_every": 1} if stream else {}))
                answer = (events(body)[-1][1] if stream else json.loads(body)) if status == 200 else {}
                if "pictures" not in answer:
                    kind = "lost"
                elif pixels(base64.b64decode(answer["pictures"][0]["png"])) != expected[seed]:
                    kind = "crossed"
            with lock:
                counts[kind] = counts.get(kind, 0) + 1

    def watch() -> None:
        while time.monotonic() < end:
            marks.append(memory(service.process))
            time.sleep(max(seconds / 12, 0.1))

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(client, range(32)))
    watcher.join()
    service.until("the end", lambda now: now["tstitch_requests_in_progress"] == 0)
    now = service.metrics()
    drawn = now["tstitch_pictures_total"] - before["tstitch_pictures_total"]
    print(f"{seconds:.0f} s: {counts}, {drawn:.0f} pictures, {now['tstitch_hang_ups_total']:.0f} hang-ups seen")
    print("MiB:", ", ".join(f"{mark:.0f}" for mark in marks), f"; in the end {memory(service.process):.0f}")
    expect(not counts.keys() & {"lost", "crossed"}, counts)
    service.stop()


def main() -> None:
    if ARGUMENTS.soak:
        return soak(ARGUMENTS.soak)
    refusals_of_arguments()
    service = Service("--steps", "4", "--sampler", "ddim", *SMALL)
    same_pictures(service)
    parameters(service)
    streams(service)
    many_clients(service)
    numbers(service)
    hang_ups(service)
    hostile(service)
    service.stop(said="values must be finite numbers")
    slow_clients()
    with_token()
    without_grace()
    prompts()
    return None


os.environ.setdefault("OMP_NUM_THREADS", "1")
main()
