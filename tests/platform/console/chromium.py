"""Drives a real Chromium by its DevTools protocol: pages, what they say and what they look like."""

import asyncio
import base64
import itertools
import json
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import websockets

BINARIES = ("chromium-headless-shell", "chromium", "google-chrome")
PATIENCE_S = 40.0
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
    "--remote-debugging-port=0",
)


def found() -> str | None:
    return next(filter(None, map(shutil.which, BINARIES)), None)


class Browser:
    """One process, and the connection to it. Use it as a context manager."""

    async def __aenter__(self) -> "Browser":
        self._folder = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        command = (found(), *_FLAGS, f"--user-data-dir={self._folder.name}", "about:blank")
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(
            command, stdout=quiet, stderr=quiet, start_new_session=True
        )
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future] = {}
        self._pages: dict[str, Page] = {}
        async with asyncio.timeout(PATIENCE_S):
            url = await self._url()
            self._socket = await websockets.connect(url, max_size=64 << 20, compression=None)
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        # With all its processes: it has nothing to lose, and may take seconds to end by itself.
        os.killpg(self._process.pid, signal.SIGKILL)
        await asyncio.to_thread(self._process.wait)
        await self._socket.close()
        await asyncio.gather(self._reading, return_exceptions=True)
        self._folder.cleanup()

    async def open(self, url: str, width: int = 1440, height: int = 900, **options) -> "Page":
        """Return a page with storage of its own, when it has loaded."""
        context = (await self.call("Target.createBrowserContext"))["browserContextId"]
        target = await self.call("Target.createTarget", url="about:blank", browserContextId=context)
        attached = await self.call(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )
        page = self._pages[attached["sessionId"]] = Page(self, attached["sessionId"], context)
        await page.prepare(width, height, **options)
        await page.go(url)
        return page

    async def call(self, method: str, session: str | None = None, **params):
        number = next(self._numbers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        told = {"id": number, "method": method, "params": params}
        await self._socket.send(json.dumps(told | ({"sessionId": session} if session else {})))
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await self._answers[number]
        finally:
            del self._answers[number]

    async def _url(self) -> str:
        """Return where it listens, as it writes it into its folder."""
        said = Path(self._folder.name) / "DevToolsActivePort"
        while not (said.exists() and len(lines := said.read_text().splitlines()) == 2):
            assert self._process.poll() is None, "chromium has ended"
            await asyncio.sleep(0.02)
        return f"ws://127.0.0.1:{lines[0]}{lines[1]}"

    async def _read(self) -> None:
        async for message in self._socket:
            told = json.loads(message)
            answer = self._answers.get(told.get("id", 0))
            if answer is not None and not answer.done():
                if "error" in told:
                    answer.set_exception(AssertionError(told["error"]["message"]))
                else:
                    answer.set_result(told["result"])
            elif told.get("sessionId") in self._pages:
                self._pages[told["sessionId"]].hear(told["method"], told["params"])


class Page:
    """`problems` are errors and warnings that its console has, and exceptions."""

    def __init__(self, browser: Browser, session: str, context: str) -> None:
        self.problems: list[str] = []
        self._browser = browser
        self._session = session
        self._context = context
        self._loaded = asyncio.Event()

    async def prepare(self, width: int, height: int, dark: bool = False) -> None:
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.call(f"{domain}.enable")
        mobile = width < 600
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])

    async def go(self, url: str) -> None:
        self._loaded.clear()
        await self.call("Page.navigate", url=url)
        async with asyncio.timeout(PATIENCE_S):
            await self._loaded.wait()

    async def call(self, method: str, **params):
        return await self._browser.call(method, self._session, **params)

    async def run(self, script: str):
        """Return the value of an expression, or of the promise that it is."""
        told = await self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    async def until(self, script: str):
        """Return the expression's value when it is true."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not (value := await self.run(script)):
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"never came true: {script}; {self.problems}") from None
        return value

    async def text(self, selector: str) -> str:
        return await self.run(f"document.querySelector({json.dumps(selector)}).textContent")

    async def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            await self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    async def offline(self, yes: bool) -> None:
        await self.call(
            "Network.emulateNetworkConditions",
            **{"offline": yes, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1},
        )

    async def screenshot(self, whole: bool = True) -> bytes:
        """Return a PNG of the page, or of what can be seen of it without scrolling."""
        taken = await self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        return base64.b64decode(taken["data"])

    async def close(self) -> None:
        await self._browser.call("Target.disposeBrowserContext", browserContextId=self._context)

    def hear(self, method: str, params: dict) -> None:
        match method:
            case "Page.loadEventFired":
                self._loaded.set()
            case "Runtime.exceptionThrown":
                self.problems.append(json.dumps(params["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                self.problems.append(json.dumps(params["args"]))
            case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                self.problems.append(f"{params['entry']['text']} {params['entry'].get('url')}")
