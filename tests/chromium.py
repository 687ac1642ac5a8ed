"""Headless Chromium through its DevTools protocol, for tests that need a real browser."""

import base64
import json
import os
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
INSTALL = "no Chromium here: `apt-get install chromium` as root, or set CHROMIUM to the path of a Chrome"


def find_chromium() -> str | None:
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """A page of a Chromium that lives as long as the `with` block; `problems` is what its console complained of."""

    def __init__(
        self, profile: Path, *, width: int = 1280, height: int = 900, mobile: bool = False, dark: bool = False
    ):
        self.profile, self.size = profile, {"width": width, "height": height, "mobile": mobile}
        self.dark = dark
        self.problems: list[str] = []
        self._last = 0

    def __enter__(self):
        import websocket

        self.process = subprocess.Popen(
            [
                find_chromium(), "--headless=new", "--remote-debugging-port=0", f"--user-data-dir={self.profile}",
                "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--mute-audio",
                "--disable-background-networking", "--autoplay-policy=no-user-gesture-required",
                "--remote-allow-origins=*", "about:blank",
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            address = self.profile / "DevToolsActivePort"
            self._wait(lambda: address.exists() and address.read_text().count("\n") >= 1, "Chromium did not start", 60)
            port = address.read_text().splitlines()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
                pages = [page for page in json.load(answer) if page["type"] == "page"]
            self.socket = websocket.create_connection(pages[0]["webSocketDebuggerUrl"], timeout=60)
            for domain in ("Page", "Runtime", "Log"):
                self.call(f"{domain}.enable")
            self.call("Emulation.setDeviceMetricsOverride", deviceScaleFactor=1, **self.size)
            if self.size["mobile"]:
                self.call("Emulation.setTouchEmulationEnabled", enabled=True)
            scheme = [{"name": "prefers-color-scheme", "value": "dark" if self.dark else "light"}]
            self.call("Emulation.setEmulatedMedia", features=scheme)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def call(self, method: str, **params) -> dict:
        self._last += 1
        self.socket.send(json.dumps({"id": self._last, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == self._last:
                if "error" in message:
                    raise AssertionError(f"{method}: {message['error']}")
                return message["result"]
            self._note(message)

    def _note(self, message: dict) -> None:
        params = message.get("params", {})
        if message["method"] == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.problems.append(details.get("exception", {}).get("description") or details["text"])
        elif message["method"] == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.problems.append(params["entry"]["text"])
        elif message["method"] == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.problems.append(str([one.get("value") for one in params["args"]]))

    def open(self, path: Path, ready: str = "document.querySelector('main') !== null") -> float:
        """Opens a file; how many seconds until `ready` was true."""
        start = time.perf_counter()
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.wait_for(ready)
        return time.perf_counter() - start

    def run(self, expression: str):
        """The value of an expression of JavaScript, or of the promise that it is."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise AssertionError(f"{expression}: {found['exceptionDetails']['exception'].get('description')}")
        return found["result"].get("value")

    def wait_for(self, expression: str, timeout_s: float = 20) -> None:
        try:
            self._wait(lambda: self.run(expression), f"{expression} was never true", timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}; the console: {self.problems}") from None

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    @staticmethod
    def _wait(condition, message: str, timeout_s: float) -> None:
        end = time.perf_counter() + timeout_s
        while not condition():
            if time.perf_counter() > end:
                raise AssertionError(message)
            time.sleep(0.02)
