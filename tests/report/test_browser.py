"""The report as a reader sees it: opened by headless Chromium, spoken to by its DevTools protocol.

The page is judged as it was written, nothing is injected into it.
"""

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason=f"no browser: none of {', '.join(BROWSERS)}"
)

LOOK = """({
    images: [...document.images].map(i => [i.complete, i.naturalWidth, i.clientWidth]),
    scrollWidth: document.documentElement.scrollWidth,
    innerWidth: window.innerWidth,
    wide: [...document.querySelectorAll('body *')].filter(e =>
        e.getBoundingClientRect().right > window.innerWidth + 1 && !e.closest('.scroll, pre')
    ).map(e => e.outerHTML.slice(0, 80)),
    text: document.body.innerText,
    title: document.title,
    background: getComputedStyle(document.body).backgroundColor,
    sheets: [...document.querySelectorAll('.sheet')].map(e => getComputedStyle(e).backgroundColor),
})"""


class Chromium:
    """A headless browser with one page: messages go through two pipes, separated by zero bytes."""

    def __init__(self, profile: Path) -> None:
        theirs_in, self.out = os.pipe()
        self.into, theirs_out = os.pipe()
        # The browser reads at descriptor 3 and writes at 4; the shell puts the pipes there, by way
        # of high numbers, as one of them may already be in the other's place.
        command = f'exec 3<&{theirs_in} 4>&{theirs_out} && exec "$@"'
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        options += ["--remote-debugging-pipe", "--no-first-run", f"--user-data-dir={profile}"]
        self.process = subprocess.Popen(
            ["bash", "-c", command, "bash", str(BROWSER), *options],
            pass_fds=(theirs_in, theirs_out),
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.rest, self.count, self.session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def receive(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            chunk = os.read(self.into, 1 << 20)
            if not chunk:
                raise RuntimeError("the browser has gone")
            self.rest += chunk
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while (answer := self.receive()).get("id") != self.count:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def open(self, page: Path, width: int, scheme: str = "light") -> dict[str, Any]:
        """Load a page at a width and tell what there is to see, and what went wrong on the way."""
        self.events.clear()
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=media)
        self.call("Page.navigate", url=page.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self.receive())
        seen = self.call("Runtime.evaluate", expression=LOOK, returnByValue=True)["result"]["value"]
        bad = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        seen["errors"] = [event for event in self.events if event["method"] in bad]
        requests = [e for e in self.events if e["method"] == "Network.requestWillBeSent"]
        seen["requests"] = [event["params"]["request"]["url"] for event in requests]
        return seen

    def screenshot(self, path: Path) -> None:
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.out)
        os.close(self.into)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    chromium = Chromium(tmp_path_factory.mktemp("profile"))
    yield chromium
    chromium.close()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_paints_everything_and_fits(
    browser: Chromium, report: Path, width: int, scheme: str
) -> None:
    seen = browser.open(report, width, scheme)
    assert seen["errors"] == []
    assert len(seen["images"]) == 5
    for complete, natural, shown in seen["images"]:
        assert complete
        # At least readable on a phone, and never blown up beyond what the pixels hold.
        assert min(natural / 2, 300) <= shown <= natural
    assert seen["innerWidth"] == width
    assert seen["scrollWidth"] <= width
    assert seen["wide"] == []
    assert "5 network calls instead of 301" in seen["text"]
    # Figures are drawn on white: they keep a white card on a dark page.
    assert (seen["background"] == "rgb(255, 255, 255)") == (scheme == "light")
    assert set(seen["sheets"]) == {"rgb(255, 255, 255)"}


def test_the_page_asks_for_nothing_but_itself(browser: Chromium, report: Path) -> None:
    requests = browser.open(report, 1280)["requests"]
    assert [url for url in requests if not url.startswith("data:")] == [report.as_uri()]


def test_the_check_sees_a_broken_page(browser: Chromium, tmp_path: Path) -> None:
    """The checks above are worth something only if they fail on a page that is broken."""
    page = tmp_path / "broken.html"
    page.write_text(
        "<!doctype html><p style='width: 2000px'>wide</p><img src='missing.png'>"
        "<script>console.error('no'); nothing()</script>"
    )
    seen = browser.open(page, 390)
    assert {event["method"] for event in seen["errors"]} >= {
        "Runtime.consoleAPICalled",
        "Runtime.exceptionThrown",
    }
    assert seen["scrollWidth"] > 390
    assert seen["wide"]
    assert seen["images"][0][1] == 0
    assert len(seen["requests"]) == 2
