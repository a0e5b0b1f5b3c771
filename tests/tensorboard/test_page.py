"""TensorBoard's own page, in a real browser, shows what the writer wrote."""

import sys

import browser
import numpy as np
import pytest

import dptrain
import dptrain.nn.functional as F
from dptrain import nn
from dptrain.tensorboard import SummaryWriter

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]

#: What TensorBoard draws the first run with.
ORANGE = (255, 112, 67)
COLOURS = [(200, 30, 60), (20, 160, 90), (40, 60, 220), (230, 210, 20)]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU())
        self.fc = nn.Linear(3 * 6 * 6, 4)

    def forward(self, x):
        return F.log_softmax(self.fc(self.features(x).flatten(1)), 1)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A browser with the page of one run; `page.go("scalars")` shows one of its parts."""
    browser.require()
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed (extra `test`)")
    folder = tmp_path_factory.mktemp("page")
    with SummaryWriter(folder / "runs") as writer:
        writer.add_graph(Net(), dptrain.rand(2, 1, 8, 8))
        for step in range(10):
            writer.add_scalar("loss/train", 1 / (step + 1), step)
        squares = np.array(COLOURS, np.uint8).reshape(2, 2, 3)
        writer.add_image("four colours", dptrain.from_numpy(squares), 3, dataformats="HWC")
    server = [
        sys.executable, "-m", "tensorboard.main",
        "--logdir", folder / "runs", "--host", "127.0.0.1", "--port", "0",
    ]  # fmt: skip
    with (
        browser.running(server, r"(http://127\.0\.0\.1:\d+)") as url,
        browser.opened(folder / "browser") as opened,
    ):
        opened.go = lambda part: opened.open(f"{url}/#{part}")
        yield opened


def count(pixels, colour):
    """How many pixels have about that colour."""
    return int((np.abs(pixels.astype(int) - colour).max(-1) < 12).sum())


def test_scalars_are_seen(page):
    page.go("scalars")
    assert page.wait_for("*", 'element.textContent.trim() == "tag: loss/train"')
    # The curve is a path of ten points; the chart stands right of the menu and below the head.
    page.wait_for("svg path", '(element.getAttribute("d") || "").split("L").length >= 10')
    seen = page.screenshot_with(lambda pixels: count(pixels[180:, 340:], ORANGE) > 150)
    ys, xs = np.nonzero(np.abs(seen[180:, 340:].astype(int) - ORANGE).max(-1) < 12)
    left, right = (ys[np.abs(xs - edge) < 15].mean() for edge in (xs.min(), xs.max()))
    assert left < right  # the loss falls


def test_images_are_seen(page):
    page.go("images")
    page.wait_for(
        "img", "element.complete && element.naturalWidth == 2 && element.naturalHeight == 2"
    )
    assert page.wait_for("*", 'element.textContent.trim() == "tag: four colours"')
    page.screenshot_with(lambda pixels: min(count(pixels, c) for c in COLOURS) > 2000)


def drawn(name):
    """The expression for the node of that name."""
    return f'element.closest("g.node").dataset.name == "{name}"'


def test_the_graph_is_seen_and_opened(page):
    page.go("graphs")
    for name in ("input", "Net", "output"):
        (label, *_) = page.wait_for("g.node > text.nodelabel", drawn(name))
        assert label.startswith(name)
    # The arrow into the output says its shape, 2 by 4.
    page.wait_for("svg textPath", 'element.textContent == "2\\u00d74"')
    page.double_click("g.node > .nodeshape > *", drawn("Net"))
    for name in ("Sequential[features]", "Linear[fc]", "View", "LogSoftmax"):
        page.wait_for("g.node > .nodeshape > *", drawn(f"Net/{name}"))
    page.double_click("g.node > .nodeshape > *", drawn("Net/Linear[fc]"))
    for name in ("weight", "bias", "Linear"):
        page.wait_for("g.node > *", drawn(f"Net/Linear[fc]/{name}"))
    page.screenshot_with(lambda pixels: 0.01 < (pixels[100:, 340:].min(-1) < 200).mean() < 0.9)
