"""A real browser for tests: headless Chromium spoken to over two pipes (the DevTools protocol).

Debian's package `chromium` is all it needs; nothing is listened to, nothing is downloaded.
"""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = os.environ.get("BROWSER_BIN") or next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
    "--force-color-profile=srgb", "--remote-debugging-pipe",
)  # fmt: skip


class Page:
    """One page: `open` a file, `run` JavaScript in it, `screenshot` it. What went wrong is kept:
    `problems` (errors on the console, exceptions, violations of the page's own rules) and
    `requests` (addresses that are neither the page's nor data:)."""

    def __init__(self, width: int = 1200, height: int = 900, dark: bool = False):
        self.home = tempfile.TemporaryDirectory()
        reads, self.writes = os.pipe()
        self.reads, writes = os.pipe()
        command = [BROWSER, *FLAGS, f"--user-data-dir={self.home.name}", "about:blank"]
        far = [fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (reads, writes)]
        self.process = subprocess.Popen(  # Chromium reads its orders from 3 and answers on 4
            ["bash", "-c", f'exec "$@" 3<&{far[0]} 4>&{far[1]}', "bash", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=far,
        )
        for end in (reads, writes, *far):
            os.close(end)
        self.number, self.left, self.session = 0, b"", None
        self.problems: list[str] = []
        self.requests: list[str] = []
        targets = self.call("Target.getTargets")["targetInfos"]
        target = next(t["targetId"] for t in targets if t["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.look(width, height, dark)

    def look(self, width: int, height: int = 900, dark: bool = False) -> None:
        """Another size in CSS pixels, light or dark; below 500 px as a phone with touch."""
        phone = width < 500
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=2 if phone else 1, mobile=phone)  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, path: Path) -> None:
        self.address = Path(path).resolve().as_uri()
        self.call("Page.navigate", url=self.address)
        for _ in range(400):
            if self.run("document.readyState + location.protocol") == "completefile:":
                return
            time.sleep(0.05)
        raise TimeoutError(f"{path} did not load")

    def run(self, script: str):
        """The value of an expression. Errors: AssertionError for an exception in it."""
        found = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def click(self, selector: str) -> None:
        """With the mouse, in the middle of the first such element, scrolled into view."""
        self.run(f"{_found(selector)}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        box = self.box(selector)
        spot = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            press = {"button": "left", "clickCount": 1} if kind != "mouseMoved" else {}
            self.call("Input.dispatchMouseEvent", type=kind, **spot, **press)

    def box(self, selector: str) -> dict:
        """x, y, width, height in the window."""
        return self.run(f"{_found(selector)}.getBoundingClientRect().toJSON()")

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def press(self, key: str) -> None:
        """`Enter`, `ArrowDown` …, down and up."""
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, **text)

    def screenshot(self, path: Path, selector: str | None = None) -> Path:
        """Of what is in view, or of a whole element."""
        clip = {}
        if selector:
            box = {k: self.box(selector)[k] for k in ("x", "y", "width", "height")}
            box |= {"y": box["y"] + self.run("scrollY"), "scale": 1}
            clip = {"clip": box, "captureBeyondViewport": True}
        data = self.call("Page.captureScreenshot", format="png", **clip)["data"]
        Path(path).write_bytes(base64.b64decode(data))
        return Path(path)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(10)
        os.close(self.writes), os.close(self.reads)
        self.home.cleanup()

    def call(self, method: str, **params) -> dict:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.writes, json.dumps(message).encode() + b"\0")
        while (reply := self._next()).get("id") != self.number:
            self._hear(reply)
        assert "error" not in reply, f"{method}: {reply['error']}"
        return reply["result"]

    def _next(self) -> dict:
        while b"\0" not in self.left:
            part = os.read(self.reads, 1 << 20)
            assert part, "the browser has ended"
            self.left += part
        first, self.left = self.left.split(b"\0", 1)
        return json.loads(first)

    def _hear(self, event: dict) -> None:
        method, told = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            url = told["request"]["url"]
            if not url.startswith(("data:", "about:")) and url.split("#")[0] != self.address:
                self.requests.append(url)
        elif method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(told["exceptionDetails"])[:400])
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning"):
            self.problems.append(json.dumps(told["args"])[:400])
        elif method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.problems.append(told["entry"]["text"])


def _found(selector: str) -> str:
    return f"document.querySelector({json.dumps(selector)})"
