"""`kda-lab lab`: a server that answers only to its token, and that stops when told to."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from kda_lab import lab

ROOT = Path(__file__).parents[2]
PATIENCE = 120


@pytest.fixture
def course(tmp_path):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / lab.FIRST).write_text(
        '{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'
    )
    return tmp_path


def start(folder: Path, **env: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "kda_lab.cli", "lab"],
        cwd=folder,
        env=os.environ | {"KDA_LAB_NO_BROWSER": "1", "PYTHONPATH": str(ROOT)} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


def get(address: str) -> int:
    with urllib.request.urlopen(address, timeout=30) as reply:
        return reply.status


def test_serves_with_its_token_alone_and_stops(course):
    server = start(course)
    try:
        address = ""
        for line in server.stdout:  # ends when the server does
            if found := re.search(r"http://127\.0\.0\.1:\d+/lab/tree/\S+", line):
                address = found[0]
                break
        assert address, "no address was printed"
        base, token = re.fullmatch(r"(http://[^/]+)/lab/tree/\S+\?token=(\w{48})", address).groups()
        assert get(address) == 200
        assert get(f"{base}/api/contents/{lab.FIRST.as_posix()}?token={token}") == 200
        with pytest.raises(urllib.error.HTTPError, match="403"):
            get(f"{base}/api/contents")
        settings = urllib.request.urlopen(f"{base}/lab/api/settings?token={token}").read().decode()
        assert "checkForUpdates" in settings
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            get(f"{base}/api")
        except urllib.error.URLError:
            return
        time.sleep(0.2)
    pytest.fail("the server outlives the command that started it")


def test_outside_a_course_folder(tmp_path):
    server = start(tmp_path)
    out, _ = server.communicate(timeout=PATIENCE)
    assert server.returncode == 2
    assert "run it in the course folder" in out and "kda-lab start" in out


def test_a_server_that_dies_is_reported(course):
    (course / "jupyterlab.py").write_text("raise SystemExit('no room on disk')")
    server = start(course, PYTHONPATH=f"{course}{os.pathsep}{ROOT}")
    out, _ = server.communicate(timeout=PATIENCE)
    assert server.returncode == 1
    assert "no answer from JupyterLab" in out and "no room on disk" in out


def test_the_next_port_when_one_is_taken():
    first = lab.free_port(18888)
    with lab.socket.socket() as taken:
        taken.bind(("127.0.0.1", first))
        taken.listen()
        assert lab.free_port(first) > first


@pytest.mark.parametrize(
    ("env", "wanted"),
    [
        ({"KDA_LAB_NO_BROWSER": "1", "DISPLAY": ":0"}, False),
        ({"DISPLAY": ":0"}, True),
        ({"WAYLAND_DISPLAY": "wayland-0"}, True),
        ({}, sys.platform in ("darwin", "win32")),
    ],
)
def test_when_a_browser_opens(env, wanted, monkeypatch):
    for name in ("KDA_LAB_NO_BROWSER", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert lab.wants_browser() is wanted
