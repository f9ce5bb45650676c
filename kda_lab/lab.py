"""`kda-lab lab`: JupyterLab on the first notebook, on this machine only."""

import argparse
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import webbrowser
from pathlib import Path

FIRST = Path("notebooks", "00_start_here.ipynb")
SETTINGS = Path(__file__).with_name("lab_settings")  # no pop-up that asks to fetch news
LOG = Path(".kda_lab", "lab.log")
PATIENCE = 120  # seconds a slow disk may take to load JupyterLab


def free_port(first: int = 8888) -> int:
    """The first port from `first` on that nobody listens to on 127.0.0.1."""
    for port in range(first, first + 200):
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                s.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise SystemExit(f"kda-lab lab: ports {first} to {first + 199} are all taken")


def command(port: int) -> list[str]:
    """The server's command line; its token goes by the environment, where `ps` does not show it."""
    return [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root",
        "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0",
        f"--ServerApp.root_dir={Path.cwd()}", f"--LabApp.app_settings_dir={SETTINGS}",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        "--LabApp.extension_manager=readonly",
    ]  # fmt: skip


def answers(base: str, token: str) -> bool:
    request = urllib.request.Request(
        f"{base}/api/status", headers={"Authorization": f"token {token}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=2) as reply:
            return reply.status == 200
    except (urllib.error.URLError, OSError):
        return False


def wants_browser() -> bool:
    """Whether a browser can be opened: asked not to, or no screen, and the address is enough."""
    if os.environ.get("KDA_LAB_NO_BROWSER") == "1":
        return False
    screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return sys.platform in ("darwin", "win32") or bool(screen)


def main(argv: list[str]) -> int:
    argparse.ArgumentParser(
        prog="kda-lab lab",
        description="Serves the course in this folder with JupyterLab, on 127.0.0.1, and opens a "
        "browser (KDA_LAB_NO_BROWSER=1: only prints the address). Ctrl-C stops it.",
    ).parse_args(argv)
    if not FIRST.is_file():
        print(f"kda-lab lab: no {FIRST} in {Path.cwd()}; run it in the course folder, "
              "or lay one out with: kda-lab start DIR", file=sys.stderr)  # fmt: skip
        return 2
    token, port = secrets.token_hex(24), free_port()
    base = f"http://127.0.0.1:{port}"
    LOG.parent.mkdir(exist_ok=True)
    print("Starting JupyterLab ...", flush=True)
    with LOG.open("wb") as log:
        server = subprocess.Popen(
            command(port), env=os.environ | {"JUPYTER_TOKEN": token}, stdin=subprocess.DEVNULL,
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        try:
            deadline = time.monotonic() + PATIENCE
            while not answers(base, token):
                if server.poll() is not None or time.monotonic() > deadline:
                    tail = "\n".join(LOG.read_text(errors="replace").splitlines()[-15:])
                    print(f"kda-lab lab: no answer from JupyterLab. {LOG} ends:\n{tail}")
                    return 1
                time.sleep(0.1)
            address = f"{base}/lab/tree/{FIRST.as_posix()}?token={token}"
            print(f"\nThe course is open at\n\n    {address}\n\nCtrl-C stops it.", flush=True)
            if wants_browser():
                webbrowser.open(address)
            return server.wait()
        except KeyboardInterrupt:
            print("\nStopped. Your exercises and progress are saved.")
            return 0
        finally:
            server.terminate()
            try:
                server.wait(15)
            except subprocess.TimeoutExpired:
                server.kill()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
