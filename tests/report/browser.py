"""A real browser for the tests of the pages: Chromium, driven through its DevTools protocol over two pipes.

Pipes need neither a driver, nor a package, nor a socket. Every request and every message of the console is recorded, so
that a test can say that there was none.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--remote-debugging-pipe",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--hide-scrollbars",
    "--no-first-run",
)
# Contrast as WCAG 2 defines it, of every text against the nearest background that is not transparent.
CONTRAST = """
(() => {
  const parse = (c) => c.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] === 1) return c;
      if (c[3] > 0) throw new Error("half transparent background");
    }
    throw new Error("no background");
  };
  let lowest = [99, ""];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || ["SCRIPT", "STYLE"].includes(e.tagName)) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < lowest[0]) lowest = [ratio, walk.currentNode.data.trim().slice(0, 60)];
  }
  return lowest;
})()
"""
# Elements that stick out of the window although no box around them scrolls.
STICKING_OUT = """
[...document.querySelectorAll("body *")].filter((e) => {
  if (e.closest(".scroll, pre") && !e.matches(".scroll, pre")) return false;
  return e.getBoundingClientRect().right > innerWidth + 1;
}).map((e) => e.outerHTML.slice(0, 80))
"""


def find_browser() -> str | None:
    """Return the path of an installed Chromium or Chrome; None if there is none."""
    chosen = os.environ.get("MOEKD_BROWSER")
    return chosen or next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One tab of a headless Chromium; `requests` and `messages` belong to the page that was opened last."""

    def __init__(self, program: str, profile: Path, patience: float = 60.0) -> None:
        self.patience, self.requests, self.messages = patience, list[str](), list[str]()
        self._loaded, self._number, self._buffer = False, 0, b""
        read_commands, self._commands = os.pipe()
        self._answers, write_answers = os.pipe()
        script = f'exec 3<&{read_commands} 4>&{write_answers} "$0" "$@"'
        options = [*OPTIONS, f"--user-data-dir={profile}"]
        self.process = subprocess.Popen(
            ["bash", "-c", script, program, *options, "about:blank"],
            pass_fds=(read_commands, write_answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_commands)
        os.close(write_answers)
        self._session: str | None = None
        targets = self.send("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = self.send("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        self._number += 1
        command: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            command["sessionId"] = self._session
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        deadline = time.monotonic() + self.patience
        while True:
            answer = self._read(deadline, method)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return dict(answer.get("result", {}))
            self._note(answer)

    def open(self, path: Path | str, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Open a file or an address at a width in CSS pixels, in light or dark mode, and wait until it is loaded."""
        mobile = width < 600
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.requests, self.messages, self._loaded = [], [], False
        address = path if isinstance(path, str) else path.resolve().as_uri()
        failure = self.send("Page.navigate", url=address).get("errorText")
        if failure:
            raise RuntimeError(f"{path} can't be opened: {failure}")
        deadline = time.monotonic() + self.patience
        while not self._loaded:
            self._note(self._read(deadline, f"loading {path}"))

    def run(self, script: str) -> Any:
        """Evaluate JavaScript in the page and return its value."""
        found = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{script}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def press(self, key: str, code: int, text: str = "") -> None:
        """Press and release a key as a keyboard does."""
        known = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **known)
        self.send("Input.dispatchKeyEvent", type="keyUp", **known)

    def click(self, selector: str) -> None:
        """Click the middle of the first element that matches, with the mouse."""
        place = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center', inline: 'center'}); const b = e.getBoundingClientRect();"
            "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def upload(self, selector: str, path: Path) -> None:
        """Choose a file in the first file input that matches, as a person does."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", files=[str(path)], nodeId=node)

    def wait(self, condition: str) -> None:
        """Wait until a JavaScript expression is true."""
        deadline = time.monotonic() + self.patience
        while not self.run(condition):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not true within {self.patience:g} s: {condition}")
            time.sleep(0.02)

    def screenshot(self, path: Path, whole: bool = True) -> None:
        """Write a PNG of the page, or of what is visible of it."""
        found = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))

    def close(self) -> None:
        """End the browser."""
        os.close(self._commands)
        os.close(self._answers)
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _note(self, event: dict[str, Any]) -> None:
        method, found = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            if not found["request"]["url"].startswith("data:"):
                self.requests.append(found["request"]["url"])
        elif method == "Log.entryAdded":
            self.messages.append(found["entry"]["text"])
        elif method == "Runtime.exceptionThrown":
            self.messages.append(str(found["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled":
            self.messages.append(str(found["args"]))
        elif method == "Page.loadEventFired":
            self._loaded = True

    def _read(self, deadline: float, what: str) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._answers], [], [], left)[0]:
                raise TimeoutError(f"the browser did not answer within {self.patience:g} s: {what}")
            part = os.read(self._answers, 1 << 20)
            if not part:
                raise RuntimeError(f"the browser ended (status {self.process.poll()}): {what}")
            self._buffer += part
        message, self._buffer = self._buffer.split(b"\0", 1)
        return dict(json.loads(message))
