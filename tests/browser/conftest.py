"""A real JupyterLab and a real Chromium for the tests of this folder. Nothing here ever skips.

Deselect with `-m "not browser"`. Chromium: $KDA_LAB_CHROMIUM, else the first one on PATH.
Screenshots: $KDA_LAB_SHOTS, else a temporary folder whose name is printed at the end.
"""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[2]
ARGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
READY = """() => {
  const c = window.jupyterapp?.shell?.currentWidget?.sessionContext;
  return c?.isReady && c.session?.kernel?.connectionStatus === 'connected'
    && c.session.kernel.status === 'idle';
}"""
ALL_RAN = """n => {
  const p = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(e => e.innerText);
  return (p.length >= n && p.every(s => /\\[\\d+\\]/.test(s)))
    || document.querySelector("[data-mime-type='application/vnd.jupyter.error']") !== null;
}"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Lab:
    """JupyterLab on a free port of 127.0.0.1, with nobody's settings but its own."""

    def __init__(self, folder: Path, root: Path):
        self.token, port = secrets.token_hex(16), free_port()
        self.base, self.root = f"http://127.0.0.1:{port}", root
        settings = folder / "settings/@jupyterlab"
        for name, text in {
            "apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false}',
            "notebook-extension/tracker": '{"windowingMode": "none"}',  # keep all cells in the page
        }.items():
            file = settings / f"{name}.jupyterlab-settings"
            file.parent.mkdir(parents=True)
            file.write_text(text)
        env = os.environ | {
            "JUPYTER_CONFIG_DIR": str(folder / "config"),
            "JUPYTER_RUNTIME_DIR": str(folder / "run"),
            "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
            "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
            "PYTHONPATH": str(ROOT),
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        }
        self.log = folder / "lab.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root",
                    "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}",
                    "--ServerApp.port_retries=0", f"--IdentityProvider.token={self.token}",
                    f"--ServerApp.root_dir={root}", "--LabApp.extension_manager=readonly",
                    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
                    "--LabApp.expose_app_in_browser=True",
                ],
                env=env, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        end = time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen(f"{self.base}/api/status?token={self.token}", timeout=2)
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(
                        f"JupyterLab did not start:\n{self.log.read_text()}"
                    ) from None
                time.sleep(0.2)

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)

    def url(self, notebook: str) -> str:
        return f"{self.base}/lab/tree/{notebook}?token={self.token}&reset"


def write_notebook(path: Path, cells: list[str]) -> None:
    made = [
        {
            "cell_type": "code",
            "id": f"c{i}",
            "metadata": {},
            "execution_count": None,
            "outputs": [],
            "source": s,
        }
        for i, s in enumerate(cells)
    ]
    spec = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    metadata = {"kernelspec": spec}
    notebook = {"cells": made, "nbformat": 4, "nbformat_minor": 5, "metadata": metadata}
    path.write_text(json.dumps(notebook))


def open_notebook(page, lab: Lab, notebook: str) -> None:
    page.goto(lab.url(notebook))
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=120_000)
    page.wait_for_function(READY, timeout=120_000)  # earlier, Run All only opens a dialog


def run_all(page) -> None:
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.locator(".lm-Menu-item[data-command='runmenu:run-all']").click()
    page.wait_for_function(ALL_RAN, arg=page.locator(".jp-CodeCell").count(), timeout=180_000)
    errors = page.locator(
        ".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr'],"
        ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']"
    )
    assert errors.count() == 0, errors.first.inner_text()


@pytest.fixture(scope="session")
def shots(tmp_path_factory) -> Path:
    folder = Path(os.environ.get("KDA_LAB_SHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    print(f"\nscreenshots: {folder}")
    return folder


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("jupyter"), tmp_path_factory.mktemp("notebooks"))
    yield lab
    lab.close()


@pytest.fixture(scope="session")
def browser():
    names = ("chromium", "chromium-browser", "google-chrome")
    path = os.environ.get("KDA_LAB_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    assert path, "no Chromium on PATH: install it, or deselect with -m 'not browser'"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGS)
        yield browser
        browser.close()


class Watched:
    """A page, the errors it raised, and the requests it made to other hosts."""

    def __init__(self, browser, lab: Lab | None, **options):
        self.context = browser.new_context(viewport={"width": 1280, "height": 1400}, **options)
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.remote: list[str] = []
        here = ("data:", "blob:", "about:")
        if lab is not None:
            here += (lab.base, lab.base.replace("http", "ws"))
        self.page.on("pageerror", lambda e: self.errors.append(str(e)))
        self.page.on("console", self.note)
        self.page.on(
            "request", lambda r: None if r.url.startswith(here) else self.remote.append(r.url)
        )

    def note(self, message) -> None:
        if message.type == "error" and "kda" in message.text.lower():
            self.errors.append(message.text)

    def run_all(self) -> None:
        run_all(self.page)

    def verdict(self) -> None:
        assert not self.errors, self.errors
        assert not self.remote, f"requests to other hosts: {self.remote}"
        self.context.close()


@pytest.fixture(scope="session")
def visit(browser, lab):
    """visit(name, cells) -> Watched: a new notebook, opened; `run=True` runs every cell.

    cells: their sources, or None for a copy of the course's notebook of that name.
    """

    def visit(name: str, cells: list[str] | None, run: bool = True, **options) -> Watched:
        if cells is None:
            shutil.copy(ROOT / "notebooks" / name, lab.root / name)
        else:
            write_notebook(lab.root / name, cells)
        watched = Watched(browser, lab, **options)
        open_notebook(watched.page, lab, name)
        if run:
            run_all(watched.page)
        return watched

    return visit
