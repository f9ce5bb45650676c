"""CUDA exercises on this machine's GPU: the second verdict, after the host form's."""

import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from kda_lab.grading import source, worker
from kda_lab.grading.cuda import compile
from kda_lab.grading.cuda.variants import Prepared, of
from kda_lab.grading.runner import Gone, Late, Raised, Reply, Value
from kda_lab.native import toolchain

START_SECONDS = 60
FOLDERS = (Path(torch.__file__).parents[1], Path(worker.__file__).parent)


@cache
def here() -> str | None:
    """The GPU's name where exercises can be compiled for it and run, else None."""
    arch = toolchain.gpu_arch()
    if arch is None or int(arch.rstrip("af")) < 80:
        return None
    try:
        toolchain.find_nvcc()
    except toolchain.Unbuildable:
        return None
    return torch.cuda.get_device_name()


def cubin(filename: str, text: str) -> bytes:
    """The learner's device code for this GPU. Raises compile.Refused."""
    nvcc, arch = toolchain.find_nvcc(), toolchain.gpu_arch()

    def make(folder: Path) -> Path:
        print(f"kda-lab: compiling {filename} for the GPU, once ...", file=sys.stderr, flush=True)
        (folder / filename).write_text(text)
        command = [nvcc, "-std=c++17", "-O3", "-cubin", f"-arch=sm_{arch}", f"-I{compile.HERE}"]
        done = subprocess.run(
            [*command, filename, "-o", "exercise.cubin"], cwd=folder, capture_output=True,
            text=True, timeout=compile.COMPILE_SECONDS, check=False,
        )  # fmt: skip
        if done.returncode:
            errors = [x for x in (done.stderr + done.stdout).splitlines() if "error" in x]
            raise compile.Refused((errors or ["nvcc failed"])[0][:400])
        return folder / "exercise.cubin"

    header = (compile.HERE / "kda_exercise.cuh").read_text()
    parts = [toolchain.compiler_version(nvcc), str(arch), header, text]
    return compile.cached("yours-gpu", ".cubin", parts, make).read_bytes()


class Gpu:
    """One learner's file on the GPU, answering like a Submission until `stop`.

    left: seconds that the file has left for all that it does.
    """

    def __init__(self, file: source.ExerciseFile, text: str, left: Callable[[], float]):
        self.file, self.text, self.left = file, text, left
        self.process: subprocess.Popen | None = None
        self.socket: socket.socket | None = None

    def start(self) -> dict[str, Any]:
        code = torch.frombuffer(bytearray(cubin(self.file.filename, self.text)), dtype=torch.uint8)
        self.socket, theirs = socket.socketpair()
        script = str(Path(__file__).with_name("gpu_worker.py"))
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-I", script, str(theirs.fileno()), *map(str, FOLDERS)],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
            )  # fmt: skip
        return {"cubin": code}

    def stop(self) -> None:
        if self.socket is not None:
            self.socket.close()
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.socket = self.process = None

    def call(self, name: str, args: tuple, seconds: float = 20) -> Reply:
        """The reply to one launch; after trouble the next one starts a fresh process."""
        prepared = Prepared(of(f"{self.file.key}.{name}"), self.file.text, args)
        request: dict[str, Any] = {"name": prepared.launch.kernel}
        request["args"] = (prepared.shape, prepared.parameters, prepared.values)
        try:
            if self.socket is None:
                request |= self.start()
                seconds += START_SECONDS
            seconds = max(0.1, min(seconds, self.left()))
            end = time.monotonic() + seconds
            assert self.socket is not None
            self.socket.settimeout(seconds)
            worker.send(self.socket, worker.pack(request))
            reply = worker.unpack(worker.receive(self.socket, lambda: end - time.monotonic()))
        except TimeoutError:
            self.stop()
            return Late(seconds)
        except compile.Refused as e:
            return Raised("CompileError", str(e))
        except (EOFError, OSError):
            self.stop()
            return Gone("the process that drives the GPU ended")
        if "raised" in reply:
            self.stop()  # an illegal access spoils the context for good
            return Raised(reply["raised"], reply["text"])
        return Value(prepared.results(reply["after"]), prepared.after(reply["after"]))
