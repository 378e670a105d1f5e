"""The page of tstitch_serve in a browser: serve_page_test.py TSTITCH_SERVE

Draws by the page as a user would, and compares the picture with that of the same request. Exits with 77 where there is no
Chromium.
"""

import atexit
import base64
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if not BROWSER:
    print("skipped: there is no Chromium")
    sys.exit(77)


def expect(condition: object, *what: object) -> None:
    if not condition:
        sys.exit(" ".join(map(str, what))[:3000])


class Browser:
    """One page, by the DevTools protocol over pipes: JSON messages that end with NUL."""

    def __init__(self, folder: str) -> None:
        to_browser, self.write_end = os.pipe()
        self.read_end, from_browser = os.pipe()

        def as_third_and_fourth() -> None:
            os.dup2(to_browser, 13), os.dup2(from_browser, 14)
            os.dup2(13, 3), os.dup2(14, 4)

        words = [BROWSER, "--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                 "--remote-debugging-pipe", f"--user-data-dir={folder}", "about:blank"]  # fmt: skip
        if os.geteuid() == 0:
            words.append("--no-sandbox")  # Chromium does not start for root with it
        self.process = subprocess.Popen(words, preexec_fn=as_third_and_fourth, close_fds=False, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL)  # fmt: skip
        os.close(to_browser), os.close(from_browser)
        self.number, self.rest, self.session, self.faults = 0, b"", None, []
        pages = self.call("Target.getTargets")["targetInfos"]
        page = next(each["targetId"] for each in pages if each["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Runtime", "Log", "Page"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: object) -> dict:
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.write_end, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.rest:
                part = os.read(self.read_end, 1 << 16)
                expect(part, "the browser must not end")
                self.rest += part
            text, _, self.rest = self.rest.partition(b"\0")
            answer = json.loads(text)
            # Browsers log a refused request, too, which the page shows.
            if answer.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded") and "status of 422" not in str(answer):
                self.faults.append(answer["params"])
            if answer.get("id") == self.number:
                expect("error" not in answer, method, answer)
                return answer["result"]

    def value(self, script: str) -> object:
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        expect("exceptionDetails" not in found, script, found)
        return found["result"].get("value")

    def until(self, script: str, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not self.value(script):
            expect(time.monotonic() < end, script, "must become true, got", self.value("document.body.innerText"), self.faults)
            time.sleep(0.05)


def main() -> None:
    service = subprocess.Popen([sys.argv[1], "--port", "0", "--device", "cpu", "--batch", "8", "--pad-batches", "--steps", "4"],
                               text=True, stdout=subprocess.PIPE)  # fmt: skip
    atexit.register(service.kill)
    address = re.fullmatch(r"listening: (http://\S+)\n", service.stdout.readline())[1]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        browser = Browser(folder)
        browser.call("Page.navigate", url=address)
        browser.until("document.readyState === 'complete' && at('networks').textContent !== ''")
        expect(browser.value("at('networks').textContent") == "cifar10-dit-small, then cifar10-dit-large", "networks")
        expect(browser.value("at('prompt').hidden && !at('class').hidden && at('steps').placeholder") == "4", "fields")
        browser.value("at('class').value = 'horse'; at('seed').value = '18446744073709551615'; at('draw').click()")
        browser.until("at('status').textContent.startsWith('seed 18446744073709551615')")
        shown = browser.value("[...document.images].map(each => [each.src, each.complete && each.naturalWidth])")
        body = json.dumps({"class": "horse", "seed": 2**64 - 1}).encode()
        asked = urllib.request.Request(f"{address}/v1/pictures", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked) as answer:
            expected = json.load(answer)["pictures"][0]["png"]
        expect(shown == [[f"data:image/png;base64,{expected}", 32]], "must show the picture of the seed, got", shown)
        expect('"seed": "18446744073709551615"' in browser.value("at('parameters').textContent"), "parameters")
        expect(base64.b64decode(expected)[1:4] == b"PNG", expected)
        expect(not browser.faults, browser.faults)
        # An error is said, and the next picture is drawn all the same.
        browser.value("at('steps').max = ''; at('steps').value = '251'; at('draw').click()")
        browser.until("at('status').className === 'error' && at('status').textContent.includes('[1, 250], got 251')")
        browser.value("at('seed').value = ''; at('steps').value = '250'; at('count').value = '8'; at('draw').click()")
        browser.until("at('status').textContent.includes(' of 250 steps')")
        browser.value("at('stop').click()")
        browser.until("at('status').textContent === 'stopped'")
        expect(not browser.faults, browser.faults)
        browser.process.terminate()
        browser.process.wait(60)
    service.terminate()
    service.wait(60)


main()
