"""The notebooks as a person meets them: JupyterLab in a real browser, everything run, a control moved by keyboard.

Needs Chromium or Chrome; without one these tests are skipped, but fail where ``BROWSER_REQUIRED`` is set
(``make test-browser``). Screenshots go to ``BROWSER_SCREENSHOTS``.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
TOKEN = "browser-test"
SECONDS = 240  # for all cells of a notebook, on a busy machine

pytestmark = pytest.mark.timeout(600)

_READY = """() => {
  const session = window.jupyterapp?.shell?.currentWidget?.context?.sessionContext;
  const kernel = session?.session?.kernel;
  return session?.isReady && kernel?.connectionStatus === 'connected' && kernel?.status === 'idle';
}"""
# "Run all" that comes before the kernel has answered once is dropped.
_RUN_ALL = """async () => {
  const notebook = window.jupyterapp.shell.currentWidget;
  await notebook.context.sessionContext.session.kernel.info;
  await window.jupyterapp.commands.execute('notebook:run-all-cells');
}"""
_DONE = """() => {
  const notebook = window.jupyterapp.shell.currentWidget;
  const cells = notebook.content.widgets.filter((cell) => cell.model.type === 'code');
  const outputs = ({ model }) => Array.from({length: model.outputs.length}, (_, place) => model.outputs.get(place));
  const failed = cells.some((cell) => outputs(cell).some((output) => output.type === 'error'));
  return failed || cells.every((cell) => cell.model.executionCount && cell.model.executionState === 'idle');
}"""
_CELLS = """() => window.jupyterapp.shell.currentWidget.content.widgets
  .filter((cell) => cell.model.type === 'code')
  .map((cell) => ({
    source: cell.model.sharedModel.getSource(),
    count: cell.model.executionCount,
    outputs: Array.from({length: cell.model.outputs.length}, (_, place) => cell.model.outputs.get(place).toJSON()),
  }))"""


def find_browser() -> str:
    """The installed browser; where there is none the test is skipped, or fails if one is required."""
    found = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if found is None:
        message = f"no browser: install Chromium or Chrome ({', '.join(BROWSERS)} on the PATH)"
        if os.environ.get("BROWSER_REQUIRED"):
            pytest.fail(message)
        pytest.skip(message)
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = find_browser()
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    opened = browser.new_page(viewport={"width": 1400, "height": 1000})
    yield opened
    opened.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[str]:
    """The address of a JupyterLab that serves a copy of the notebooks and knows nothing of the user's settings."""
    folder = tmp_path / "notebooks"
    shutil.copytree(NOTEBOOKS, folder, ignore=shutil.ignore_patterns("reports", ".ipynb_checkpoints"))
    port = free_port()
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}"),
        *(f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={folder}", "--LabApp.expose_app_in_browser=True"),
        "--LabApp.check_for_updates_class=jupyterlab.handlers.announcements.NeverCheckForUpdate",
    ]
    homes = ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")
    environment = {**os.environ, **{name: str(tmp_path / name.lower()) for name in homes}}
    ask_nothing = tmp_path / homes[2].lower() / "@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    ask_nothing.parent.mkdir(parents=True)
    ask_nothing.write_text('{"fetchNews": "false"}')  # or a question about news covers a corner of the page
    with (tmp_path / "lab.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            wait_for_server(f"http://127.0.0.1:{port}/api?token={TOKEN}", server, tmp_path / "lab.log")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(30)


def wait_for_server(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")


def run_all(page: Any, lab: str, name: str) -> None:
    """Opens a notebook, runs all of it, and asserts that every cell ran without an error or a warning."""
    page.goto(f"{lab}/lab/tree/{name}?token={TOKEN}&reset")
    page.wait_for_function(_READY, timeout=120_000)
    page.set_default_timeout(SECONDS * 1000)
    page.evaluate(_RUN_ALL)
    page.wait_for_function(_DONE)  # the command comes back early when a cell is still to be drawn
    cells = page.evaluate(_CELLS)
    for cell in cells:
        for output in cell["outputs"]:
            bad = output["output_type"] == "error" or output.get("name") == "stderr"
            assert not bad, f"{cell['source']}\n{output}"
    assert [cell["count"] for cell in cells] == list(range(1, len(cells) + 1))


def take_screenshot(page: Any, name: str) -> None:
    folder = os.environ.get("BROWSER_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(Path(folder) / f"{name}.png"))


def see_change(page: Any, picture: Any, act: Any, what: str) -> None:
    """Asserts that what somebody does changes a picture."""
    read = "picture => picture.src || picture.innerHTML"
    before = picture.evaluate(read)
    act()
    page.wait_for_function(
        f"([picture, before]) => ({read})(picture) !== before", arg=[picture, before], timeout=30_000
    )
    assert picture.evaluate(read) != before, what


def test_graph_tutorial(page: Any, lab: str) -> None:
    """A channel chosen by the slider, and a layer by a click on it, light up what goes with them."""
    run_all(page, lab, "01_graph_tutorial.ipynb")
    panel = find_panels(page, ".cleanai-drawing").first
    drawing = panel.locator(".cleanai-drawing").element_handle()
    move_slider(page, panel, drawing, "01_graph_tutorial")
    see_change(page, drawing, lambda: panel.locator('[id="name-1"]').first.click(force=True), "a click does nothing")
    take_screenshot(page, "01_graph_tutorial_click")


def test_importance_comparison(page: Any, lab: str) -> None:
    """Moving a slider of each panel redraws its picture."""
    run_all(page, lab, "02_importance_comparison.ipynb")
    panels = find_panels(page, ".noUi-handle")
    assert panels.count() == 2
    for number in range(panels.count()):
        panel = panels.nth(number)
        move_slider(page, panel, panel.locator("img").first.element_handle(), f"02_importance_comparison_{number + 1}")


def find_panels(page: Any, inside: str) -> Any:
    """The outputs that hold a panel."""
    return page.locator(".jp-OutputArea-output", has=page.locator(inside))


def move_slider(page: Any, panel: Any, picture: Any, name: str) -> None:
    """Moves the first slider of a panel one step down by keyboard, which must change the picture."""
    handle = panel.locator(".noUi-handle:visible").first
    handle.focus()
    handle.scroll_into_view_if_needed()
    take_screenshot(page, f"{name}_opened")
    see_change(page, picture, lambda: handle.press("ArrowLeft"), "the slider does not move the picture")
    take_screenshot(page, f"{name}_slider")
