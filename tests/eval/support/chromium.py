"""Headless Chromium over its own protocol (DevTools, through a pipe): no driver, no package."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")


def find() -> str | None:
    """The program; None where there is none."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Page:
    """A tab. `events` holds all that it reported since it was opened."""

    def __init__(self, send: int, receive: int):
        self._send, self._receive = send, receive
        self._buffer, self._count, self._session = b"", 0, None
        self.events: list[dict[str, Any]] = []
        self._earlier: set[str] = set()  # loaders of pages before the present one
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        answer = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = answer["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                assert "error" not in answer, (method, answer)
                return answer["result"]
            self.events.append(answer)

    def open(self, path: Path, width: int, scheme: str = "light") -> None:
        """Open a file of the disk in a window so wide, and wait until it is loaded."""
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=900, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.ask("Emulation.setEmulatedMedia", features=[feature])
        seen = len(self.events)
        self._earlier |= {event["params"]["loaderId"] for event in self._requested()}
        self.ask("Page.navigate", url=path.resolve().as_uri())
        while not any(e.get("method") == "Page.loadEventFired" for e in self.events[seen:]):
            self.events.append(self._next())

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def requests(self) -> list[str]:
        """What the page opened last has asked for. A page before it may still have asked for the
        icons of its video after this one was on its way."""
        return [
            event["params"]["request"]["url"]
            for event in self._requested()
            if event["params"]["loaderId"] not in self._earlier
        ]

    def _requested(self) -> list[dict[str, Any]]:
        return [e for e in self.events if e.get("method") == "Network.requestWillBeSent"]

    def complaints(self) -> list[dict[str, Any]]:
        """What the console would show: messages, errors, refusals."""
        kinds = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [event["params"] for event in self.events if event.get("method") in kinds]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            piece = os.read(self._receive, 1 << 16)
            assert piece, "Chromium ended"
            self._buffer += piece
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)


@contextlib.contextmanager
def page(program: str, profile: Path) -> Iterator[Page]:
    """A tab of a new Chromium with a new profile."""
    (commands, send), (receive, answers) = os.pipe(), os.pipe()
    # It listens on 3 and answers on 4; what lies there now must not be overwritten first.
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (commands, answers)]
    process = subprocess.Popen(
        [
            program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--remote-debugging-pipe", f"--user-data-dir={profile}",
        ],
        close_fds=False,
        preexec_fn=lambda: [os.dup2(end, number) for end, number in zip(high, (3, 4), strict=True)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    for end in (commands, answers, *high):
        os.close(end)
    try:
        tab = Page(send, receive)
        yield tab
        tab.ask("Browser.close")  # its own processes end with it
        process.wait(timeout=60)
    finally:
        process.kill()
        process.wait()
        os.close(send)
        os.close(receive)
