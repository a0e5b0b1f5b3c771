"""A real browser for tests: Chromium without a window, driven over the WebDriver protocol.

The protocol is JSON over HTTP, so that no package is needed; Debian has both programs (`apt-get install
chromium chromium-driver`).
"""

import base64
import contextlib
import io
import json
import os
import re
import selectors
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request

import numpy as np
import pytest

START_S = 60
#: How long a page may take to show what is waited for.
WAIT_S = 20

# Runs in the page: finds elements in all trees, those of web components included, once per frame.
_WAIT = """
const [selector, wanted, done] = arguments;
function* all(root) {
  yield* root.querySelectorAll(selector);
  for (const element of root.querySelectorAll("*"))
    if (element.shadowRoot) yield* all(element.shadowRoot);
}
const matches = new Function("element", "return " + wanted);
function look() {
  const found = [...all(document)].filter(e => e.getClientRects().length && matches(e));
  if (found.length) done(found.map(e => e.textContent.trim()));
  else requestAnimationFrame(look);
}
look();
"""
_OPEN = """
function open_(found) {
  found[0].dispatchEvent(new MouseEvent("dblclick", {bubbles: true, composed: true}));
}
"""


def require():
    """Paths of browser and driver; skips the test where one is missing."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("no browser: apt-get install chromium chromium-driver")
    return browser, driver


@contextlib.contextmanager
def running(command, pattern, **options):
    """A program that says where it listens: yields what `pattern` finds in its output."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        **options,
    )
    try:
        yield _read_until(process, pattern)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def _read_until(process, pattern):
    seen, deadline = b"", time.monotonic() + START_S
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while selector.select(deadline - time.monotonic()):
            part = os.read(process.stdout.fileno(), 65536)
            seen += part
            found = re.search(pattern, seen.decode(errors="replace"))
            if found:
                return found[1]
            if not part:
                break
    pytest.fail(
        f"{process.args} did not start within {START_S} s:\n{seen.decode(errors='replace')}"
    )


class Page:
    """A window of the browser."""

    def __init__(self, url, session):
        self._url = f"{url}/session/{session}"

    def open(self, url):
        """Load a page."""
        call(f"{self._url}/url", {"url": url})

    def wait_for(self, selector, wanted="true"):
        """The texts of the visible elements of `selector` for which the expression `wanted` holds."""
        arguments = {"script": _WAIT, "args": [selector, wanted]}
        return call(f"{self._url}/execute/async", arguments)

    def double_click(self, selector, wanted="true"):
        """Open the first element that `wait_for` would find."""
        arguments = {
            "script": _WAIT.replace("done(", "open_(found), done(") + _OPEN,
            "args": [selector, wanted],
        }
        call(f"{self._url}/execute/async", arguments)

    def screenshot_with(self, shown):
        """The window's pixels (H, W, 3), as soon as `shown(pixels)` holds."""
        from PIL import Image

        deadline = time.monotonic() + WAIT_S
        while True:
            png = base64.b64decode(call(f"{self._url}/screenshot"))
            pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
            if shown(pixels):
                return pixels
            assert time.monotonic() < deadline, f"not seen within {WAIT_S} s on {pixels.shape}"


def call(url, body=None):
    """One command of the WebDriver protocol."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=START_S + WAIT_S) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        reason = json.load(error)["value"]["message"]
        asked = (body or {}).get("args", body)
        pytest.fail(f"{url} {asked}: {reason}")


@contextlib.contextmanager
def opened(folder):
    """A `Page` of a new browser, which keeps its files in `folder`."""
    browser, driver = require()
    options = {
        "binary": browser,
        "args": [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--window-size=1300,1000", f"--user-data-dir={folder}",
        ],
    }  # fmt: skip
    command = [driver, "--port=0"]
    with running(command, r"started successfully on port (\d+)") as port:
        url = f"http://127.0.0.1:{port}"
        capabilities = {"browserName": "chrome", "goog:chromeOptions": options}
        started = call(f"{url}/session", {"capabilities": {"alwaysMatch": capabilities}})
        page = Page(url, started["sessionId"])
        call(f"{page._url}/timeouts", {"script": 1000 * WAIT_S})
        try:
            yield page
        finally:
            call_delete(page._url)


def call_delete(url):
    """End a session, and with it the browser."""
    request = urllib.request.Request(url, method="DELETE")
    with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=START_S):
        pass
