"""The grader's side of the worker: start it, hand it a learner's file, ask, and end it.

Whatever the file does, the answer here is one of the replies below, in time.
"""

import atexit
import copy
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from kda_lab.grading import worker
from kda_lab.grading.source import PACKAGE, ExerciseFile, course_files, exercise_file, function_text
from kda_lab.native.build import cache_dir
from kda_lab.native.toolchain import Unbuildable

FILE_SECONDS = 90  # for one exercise file, so that its verdict is there within 120
EXERCISE_SECONDS = 20
START_SECONDS = 60  # torch may come from a cold disk


@dataclass(frozen=True)
class Value:
    """The function returned. after: its arguments as it left them."""

    value: Any
    after: tuple
    printed: str = ""


@dataclass(frozen=True)
class Raised:
    """The function raised. missing: it was NotImplementedError."""

    kind: str
    text: str
    where: str = ""
    missing: bool = False
    printed: str = ""
    at: tuple[
        int, ...
    ] = ()  # of a CUDA exercise: line, and offsets of the code and of shared memory
    nameless: str = ""  # its text before shared arrays had their names, as a model's is


@dataclass(frozen=True)
class Gone:
    """The process ended or sent nonsense."""

    text: str


@dataclass(frozen=True)
class Late:
    """No answer in time."""

    seconds: float


Reply = Value | Raised | Gone | Late


class Local:
    """A trusted function in this process, answering like a worker: models and mutants."""

    def __init__(self, function):
        self.function = function

    def call(self, name: str, args: tuple, seconds: float = 0) -> Reply:
        after = copy.deepcopy(args)
        try:
            return Value(self.function(*after), after)
        except Exception as e:
            return Raised(type(e).__name__, str(e), missing=isinstance(e, NotImplementedError))


class Nursery:
    """The waiting process that forks one child a file. Slow to start (torch), quick to fork."""

    def __init__(self):
        ours, theirs = socket.socketpair()
        with theirs:
            self.home = tempfile.mkdtemp(prefix="kda-lab-")
            command = [sys.executable, "-I", str(Path(worker.__file__).resolve())]
            keep = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "VIRTUAL_ENV")
            quiet = {"OMP_NUM_THREADS": "1", "HOME": self.home, "KMP_INIT_AT_FORK": "FALSE"}
            self.process = subprocess.Popen(
                [*command, str(theirs.fileno()), str(Path(torch.__file__).parents[1])],
                pass_fds=[theirs.fileno()],
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env={k: os.environ[k] for k in keep if k in os.environ} | quiet,
            )
        self.control = ours

    def ask(self, job: dict | None, fd: int | None) -> None:
        """Have the present child ended, and a new one started when there is a job."""
        deadline = time.monotonic() + START_SECONDS
        self.control.settimeout(START_SECONDS)
        socket.send_fds(self.control, [b"job"], [] if fd is None else [fd])
        worker.send(self.control, worker.pack(job))
        worker.receive(self.control, lambda: deadline - time.monotonic())

    def close(self) -> None:
        self.control.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.home, ignore_errors=True)


_nursery: Nursery | None = None


def nursery() -> Nursery:
    """This process's nursery, started when there is none."""
    global _nursery
    if _nursery is None or _nursery.process.poll() is not None:
        if _nursery is not None:
            _nursery.close()
        _nursery = Nursery()
    return _nursery


def close_nursery() -> None:
    """End the waiting process, if any (also done at exit)."""
    global _nursery
    if _nursery is not None:
        _nursery.close()
        _nursery = None


def handed_over(job: dict, fd: int) -> bool:
    """Give a job to the nursery; a nursery that does not answer is replaced once."""
    for _ in range(2):
        try:
            nursery().ask(job, fd)
            return True
        except (OSError, EOFError, worker.Garbled):
            close_nursery()
    return False


class Submission:
    """One learner's exercise file in a process of its own. Use as a context manager.

    namespaces: use the first layer of the lock where the system has it (`worker.separate`).
    """

    def __init__(
        self, folder: Path, filename: str, seconds: float = FILE_SECONDS, namespaces: bool = True
    ):
        self.folder, self.filename = Path(folder).resolve(), filename
        self.namespaces = namespaces
        self.end = time.monotonic() + seconds
        self.socket: socket.socket | None = None
        self.trouble: Reply | None = None  # why the file cannot be used at all
        self.names: list[str] = []
        self.apart = self.confined = False
        self.cuda: ExerciseFile | None = None
        if filename.endswith(".cu"):
            self.cuda = exercise_file(Path(filename).stem)
        self.text = ""
        self.library: Path | None = None
        self.device: Any = None  # cuda.gpu.Gpu, once the host form has passed where there is one

    def __enter__(self) -> "Submission":
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def left(self) -> float:
        return self.end - time.monotonic()

    def start(self) -> Reply | None:
        """Load the file in a fresh child; None when it stands, else what happened."""
        path = self.folder / self.filename
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return Gone(f"{self.filename} is not in {self.folder}")
        except (OSError, UnicodeDecodeError) as e:
            return Gone(f"{self.filename} cannot be read: {type(e).__name__}")
        if len(text) > 1 << 19:
            return Gone(f"{self.filename} is larger than half a megabyte")
        self.text = text
        if self.cuda is not None and (trouble := self.compile()):
            return trouble
        ours, theirs = socket.socketpair()
        hidden = [
            PACKAGE,
            course_files("solutions"),
            course_files("exercises"),
            PACKAGE.parent / ".git",  # every solution is in the history too
            cache_dir(),  # and a compiled one there
        ]
        job = {
            "folder": str(self.folder),
            "filename": self.filename,
            "text": text,
            "hidden": [str(p.resolve()) for p in hidden if p.is_dir() and not self._holds(p)],
            "seconds": FILE_SECONDS,
            "namespaces": self.namespaces,
        }
        if self.library is not None:
            job["library"] = str(self.library)
        with theirs:
            if not handed_over(job, theirs.fileno()):
                ours.close()
                return Gone("the grader could not start a process for your code")
        self.socket = ours
        reply = self._answer(min(EXERCISE_SECONDS, self.left()))
        if isinstance(reply, dict) and "names" in reply:
            self.names, self.apart = reply["names"], bool(reply.get("apart"))
            self.confined = bool(reply.get("confined"))
            return None
        self.stop()
        return self._reply(reply)

    def compile(self) -> Reply | None:
        """Make a library of a CUDA file; None when it stands, else what happened."""
        from kda_lab.grading.cuda import compile as cuda

        assert self.cuda is not None
        try:
            names = [said.name for said in self.cuda.statements.values()]
            text = cuda.learners_text(self.filename, self.text, self.cuda.text, names)
            self.library = cuda.library("yours", self.filename, text, learners=True)
        except cuda.Refused as e:
            return Raised("CompileError", str(e))
        except Unbuildable as e:
            return Gone(f"{self.filename} cannot be compiled here: {e}")
        return None

    def _holds(self, hidden: Path) -> bool:
        return self.folder.is_relative_to(hidden.resolve())

    def stop(self) -> None:
        """End the child and all that it started."""
        if self.device is not None:
            self.device.stop()
        if self.socket is not None:
            self.socket.close()
            self.socket = None
            try:
                nursery().ask(None, None)
            except (OSError, EOFError, worker.Garbled):
                close_nursery()

    def call(self, name: str, args: tuple, seconds: float = EXERCISE_SECONDS) -> Reply:
        """The reply to one call. After trouble the next call starts a fresh child."""
        if self.trouble is None and self.socket is None:
            self.trouble = self.start()
        if self.cuda is not None:
            return self.launch(self.cuda, name, args, seconds)
        if self.trouble is not None:
            return self.trouble
        if name not in self.names:
            return Gone(f"{self.filename} has no function {name}")
        return self.ask(name, args, seconds)

    def launch(self, file: ExerciseFile, name: str, args: tuple, seconds: float) -> Reply:
        """The reply of a CUDA exercise: its results from the arrays that the kernel left."""
        from kda_lab.grading.cuda import compile as cuda
        from kda_lab.grading.cuda.variants import Prepared, of

        exercise_id = f"{file.key}.{name}"
        if self.trouble is not None:
            stub = function_text(file.stub, file.suffix, name)
            if self.text and function_text(self.text, file.suffix, name) == stub:
                return Raised("NotImplementedError", "not attempted", missing=True)
            return self.trouble
        prepared = Prepared(of(exercise_id), file.text, args)
        request = (prepared.shape, prepared.parameters, prepared.values)
        reply = self.ask(prepared.launch.kernel, request, seconds)
        if isinstance(reply, Value):
            if len(reply.after) != len(prepared.values):
                return Gone("your code disturbed the grader's channel")
            return replace(
                reply, value=prepared.results(reply.after), after=prepared.after(reply.after)
            )
        if isinstance(reply, Raised) and self.library is not None:
            text = cuda.with_names(self.library, reply.text, reply.at)
            where = cuda.where(self.library, self.filename, self.text, reply.at)
            return replace(reply, text=text, where=where, nameless=reply.text)
        return reply

    def ask(self, name: str, args: tuple, seconds: float) -> Reply:
        """Send one call to the child and wait for its reply."""
        assert self.socket is not None
        try:
            self.socket.settimeout(max(0.001, min(seconds, self.left())))
            worker.send(self.socket, worker.pack({"name": name, "args": args}))
        except OSError:
            self.stop()
            return Gone("your code ended its process")
        reply = self._reply(self._answer(min(seconds, self.left())))
        if isinstance(reply, Gone | Late):
            self.stop()
        return reply

    def _answer(self, seconds: float) -> Any:
        end = time.monotonic() + seconds
        assert self.socket is not None
        try:
            return worker.unpack(worker.receive(self.socket, lambda: end - time.monotonic()))
        except TimeoutError:
            return Late(seconds)
        except (EOFError, ConnectionError):
            return Gone("your code ended its process (exit, kill, or too much memory)")
        except worker.Garbled as e:
            return Gone(f"your code disturbed the grader's channel ({e})")

    @staticmethod
    def _reply(reply: Any) -> Reply:
        """A message from the other side, which may be anything, as one of ours."""
        if isinstance(reply, Gone | Late):
            return reply
        if isinstance(reply, dict):
            printed = str(reply.get("printed", ""))[: worker.PRINTED]
            if "value" in reply and isinstance(reply.get("after"), tuple):
                return Value(reply["value"], reply["after"], printed)
            if isinstance(reply.get("raised"), str):
                text, where = str(reply.get("text", ""))[:600], str(reply.get("where", ""))[:300]
                missing = reply.get("missing") is True
                at = tuple(x if type(x := reply.get(k)) is int else -1 for k in worker.AT)
                return Raised(reply["raised"][:80], text, where, missing, printed, at)
        return Gone("your code disturbed the grader's channel")


atexit.register(close_nursery)
