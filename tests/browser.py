"""A headless Chromium driven through its debugging pipe: no driver program, no packages, no network."""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--window-size=1500,1000", "--remote-debugging-pipe"),
)


def chromium() -> str | None:
    """Path of an installed Chromium or Chrome."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


class Browser:
    """One page of a fresh browser. `errors` collects exceptions, console errors and failed or external requests."""

    def __init__(self) -> None:
        self.profile = tempfile.mkdtemp()
        down_read, self._down = os.pipe()
        self._up, up_write = os.pipe()
        command = [chromium(), *FLAGS, f"--user-data-dir={self.profile}", "about:blank"]
        # the browser reads commands from descriptor 3 and answers on 4; the shell puts the pipes there
        shell = ["bash", "-c", f'exec "$@" 3<&{down_read} 4>&{up_write}', "bash", *command]
        self._process = subprocess.Popen(
            shell, pass_fds=(down_read, up_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(down_read)
        os.close(up_write)
        self._buffer, self._count, self.errors = b"", 0, []
        self._session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.terminate()
        self._process.wait(30)
        for descriptor in (self._down, self._up):
            os.close(descriptor)
        shutil.rmtree(self.profile, ignore_errors=True)

    def call(self, method, **parameters):
        """One command of the DevTools protocol and its result; events on the way are looked at for errors."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._down, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next(120)
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def _next(self, seconds):
        deadline = time.monotonic() + seconds
        while b"\0" not in self._buffer:
            if not select.select([self._up], [], [], max(0, deadline - time.monotonic()))[0]:
                raise TimeoutError("the browser does not answer")
            self._buffer += os.read(self._up, 1 << 20)
        line, self._buffer = self._buffer.split(b"\0", 1)
        message = json.loads(line)
        self._note(message)
        return message

    def _note(self, message):
        event = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown":
                details = event["exceptionDetails"]
                self.errors.append(details.get("exception", {}).get("description", details["text"]))
            case "Runtime.consoleAPICalled" if event["type"] in ("error", "assert"):
                self.errors.append(f"console: {[arg.get('value', arg.get('description')) for arg in event['args']]}")
            case "Log.entryAdded" if event["entry"]["level"] == "error":
                self.errors.append(f"log: {event['entry']['text']} {event['entry'].get('url', '')[:100]}")
            case "Network.requestWillBeSent" if event["request"]["url"].startswith(("http:", "https:", "ws")):
                self.errors.append(f"asks the network for {event['request']['url']}")

    def open(self, path: Path) -> None:
        """Load a file and wait until it is complete."""
        self.call("Page.navigate", url=Path(path).resolve().as_uri())
        self.wait("document.readyState == 'complete'")

    def run(self, script):
        """Value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait(self, condition, seconds=60):
        """Wait until a JavaScript expression is true."""
        deadline = time.monotonic() + seconds
        while not self.run(condition):
            if time.monotonic() > deadline:
                raise TimeoutError(f"never came true: {condition}; errors: {self.errors}")
            time.sleep(0.1)

    def screenshot(self, path: Path, whole=False) -> None:
        """Save what is seen (or the whole page) as PNG."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        Path(path).write_bytes(base64.b64decode(data))
