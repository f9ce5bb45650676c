"""The process in which a learner's file runs. Knows no right answer, and cannot reach one.

Started as a plain script (`python -I worker.py FD FOLDER_OF_TORCH`), it never imports kda_lab. It
imports torch once and then waits; for every exercise file it forks a child, which locks itself in
(`lock`) before it runs the first line of the learner's code. The child takes arguments and gives
results as raw bytes; the grader, another process, compares them.

A CUDA exercise comes as a library, compiled for the host (`cuda/runtime.cpp`). It is loaded before the
lock, which runs none of its code, and called after it (`launch`).

The lock has two layers. On Linux, where the kernel allows it, new user, mount, process and network
namespaces: no other process exists, every file is read-only, and the library, the solutions and
/proc are not there at all. Everywhere, an audit hook, which Python code cannot take out: no new
processes, signals, native calls or network, no file written, none of ours read. The hook alone does
not see what native code inside torch does with files; what it could write there is nothing that
the grader reads, and the verdicts are written after the child's end.
"""

import ctypes
import gc
import importlib.util
import io
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from types import ModuleType
from typing import Any

if __name__ == "__main__":
    sys.path += [p for p in sys.argv[2:] if p not in sys.path]  # -I forgets a user's own packages

import numpy as np
import torch

DTYPES = {str(d).removeprefix("torch."): d for d in (
    torch.float64, torch.float32, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
)}  # fmt: skip
LARGEST = 64 << 20  # bytes in one message
LARGEST_HEAD = 1 << 20  # of which JSON
MOST = 10_000  # numbers, texts and tensors in one result
PRINTED = 4000  # characters of the learner's own output that are kept
GUARD = 64  # elements on both sides of an argument, filled with NaN
MEMORY = 2 << 30  # bytes of private memory a learner's process may hold


# ---- values as bytes: no pickle, nothing that can run ----------------------------------------------


class Garbled(ValueError):
    """Bytes that are not a message."""


def pack(value) -> bytes:
    """Numbers, text, tensors and nests of them as a JSON head and raw buffers."""
    buffers: list[bytes] = []
    room, values = LARGEST - LARGEST_HEAD, 0

    def tree(x):
        nonlocal room, values
        values += 1
        if values > MOST:
            raise ValueError(f"a result of more than {MOST} values cannot be graded")
        if x is None or isinstance(x, bool | str):
            return {"is": "plain", "x": x if x is None or isinstance(x, bool) else str(x)}
        if isinstance(x, np.generic):
            x = x.item()
        if isinstance(x, int | float):
            return {"is": "plain", "x": x}
        if isinstance(x, np.ndarray):
            x = torch.from_numpy(np.ascontiguousarray(x))
        if isinstance(x, torch.Tensor):
            x = x.detach().as_subclass(torch.Tensor)
            name = str(x.dtype).removeprefix("torch.")
            if name not in DTYPES:
                raise TypeError(f"a result of dtype {name} cannot be graded")
            room -= x.numel() * x.element_size()
            if room < 0:
                raise ValueError(f"a result of more than {LARGEST >> 20} MB cannot be graded")
            x = x.cpu().to_dense().resolve_conj().contiguous()
            buffers.append(x.reshape(-1).view(torch.uint8).numpy().tobytes())
            return {"is": "tensor", "dtype": name, "shape": list(x.shape)}
        if isinstance(x, list | tuple):
            return {"is": type(x).__mro__[-2].__name__, "of": [tree(y) for y in x]}
        if isinstance(x, dict):
            return {"is": "dict", "of": [[tree(k), tree(y)] for k, y in x.items()]}
        raise TypeError(f"a result of type {type(x).__name__} cannot be graded")

    head = json.dumps(tree(value)).encode()
    return b"".join([struct.pack(">I", len(head)), head, *buffers])


def unpack(data: bytes, guarded: bool = False):
    """The value of `pack`. Raises Garbled. `guarded`: tensors lie between NaN guard zones."""
    position = 0

    def take(n: int) -> bytes:
        nonlocal position
        if n > len(data) - position:
            raise Garbled("message too short")
        position += n
        return data[position - n : position]

    def value(x):
        if x["is"] == "plain":
            if x["x"] is not None and type(x["x"]) not in (bool, int, float, str):
                raise Garbled("not a plain value")
            return x["x"]
        if x["is"] == "tensor":
            dtype, shape = DTYPES[x["dtype"]], [int(n) for n in x["shape"]]
            if len(shape) > 16 or any(not 0 <= n < 1 << 32 for n in shape):
                raise Garbled("bad shape")
            count = 1
            for n in shape:
                count *= n
            raw = bytearray(take(count * dtype.itemsize))
            flat = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
            if guarded and dtype.is_floating_point:
                zone = torch.full((count + 2 * GUARD,), float("nan"), dtype=dtype)
                zone[GUARD : GUARD + count] = flat
                flat = zone[GUARD : GUARD + count]
            return flat.reshape(shape)
        if x["is"] == "dict":
            return {value(k): value(y) for k, y in x["of"]}
        return {"list": list, "tuple": tuple}[x["is"]](value(y) for y in x["of"])

    try:
        (length,) = struct.unpack(">I", take(4))
        if length > LARGEST_HEAD:
            raise Garbled("head too large")
        result = value(json.loads(take(length)))
        if position != len(data):
            raise Garbled("message too long")
        return result
    except Garbled:
        raise
    except (ValueError, KeyError, TypeError, IndexError, RecursionError, OverflowError) as e:
        raise Garbled(f"not a message: {type(e).__name__}") from None


def send(sock: socket.socket, data: bytes) -> None:
    sock.sendall(struct.pack(">Q", len(data)) + data)


def receive(sock: socket.socket, left: Callable[[], float] | None = None) -> bytes:
    """One message. `left()`: seconds until TimeoutError. Raises EOFError when the other side is gone."""

    def exactly(n: int) -> bytes:
        parts = bytearray()
        while len(parts) < n:
            if left is not None:
                sock.settimeout(max(left(), 0.001))
            part = sock.recv(min(n - len(parts), 1 << 20))
            if not part:
                raise EOFError
            parts += part
        return bytes(parts)

    (length,) = struct.unpack(">Q", exactly(8))
    if length > LARGEST:
        raise Garbled("message too large")
    return exactly(length)


# ---- the lock, first layer: namespaces (Linux) ----------------------------------------------------

NEW_WORLD = 0x20000 | 0x8000000 | 0x10000000 | 0x20000000 | 0x40000000  # mount ipc user pid net
PRIVATE, RECURSIVE = 1 << 18, 1 << 14
SYS_MOUNT_SETATTR, AT_RECURSIVE, READ_ONLY = 442, 0x8000, 1
DEATH_SIGNAL, SUBREAPER, NO_NEW_PRIVILEGES = 1, 36, 38
CAPABILITIES_V3 = 0x20080522


def libc():
    return ctypes.CDLL(None, use_errno=True)


def separate(hidden: list[str]) -> bool:
    """Leave the world: new namespaces, files read-only, `hidden` folders and /proc empty.

    Returns in the first process of the new world with True, or where it stands with False when the
    kernel does not allow it. The process that asked stays outside and waits for the one inside.
    """
    if not sys.platform.startswith("linux"):
        return False
    c, uid, gid = libc(), os.getuid(), os.getgid()
    if c.unshare(NEW_WORLD) != 0:
        return False
    try:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{uid} {uid} 1"),
            ("gid_map", f"{gid} {gid} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as f:
                f.write(text)
    except OSError:
        pass  # without the maps the process is nobody, which is as good
    inside = os.fork()
    if inside:
        _, status = os.waitpid(inside, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    c.prctl(DEATH_SIGNAL, signal.SIGKILL)
    c.mount(None, b"/", None, PRIVATE | RECURSIVE, None)
    done = [c.mount(b"none", os.fsencode(f), b"tmpfs", 0, b"size=4k") for f in [*hidden, "/proc"]]
    attributes = struct.pack("QQQQ", READ_ONLY, 0, 0, 0)
    long = ctypes.c_long
    done.append(
        c.syscall(
            long(SYS_MOUNT_SETATTR),
            long(-100),
            b"/",
            long(AT_RECURSIVE),
            attributes,
            long(len(attributes)),
        )
    )
    c.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    c.capset(struct.pack("II", CAPABILITIES_V3, 0), bytes(24))  # so that no mount can be undone
    return not any(done)


# ---- the lock, second layer: an audit hook ---------------------------------------------------------

FORBIDDEN = {  # audit events and what the learner is told about them
    **dict.fromkeys(
        ("os.fork", "os.forkpty", "os.posix_spawn", "os.exec", "os.system", "os.spawn",
         "os.startfile", "subprocess.Popen", "pty.spawn"),
        "may not start processes",
    ),
    **dict.fromkeys(("os.kill", "os.killpg", "signal.pthread_kill"), "may not send signals"),
    **dict.fromkeys(
        ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod", "os.chown",
         "os.truncate", "os.utime", "os.setxattr", "os.removexattr", "os.chflags", "os.lockf"),
        "may not change files",
    ),
    **dict.fromkeys(
        ("gc.get_objects", "gc.get_referrers", "gc.get_referents", "sys.settrace", "sys.setprofile",
         "sys._current_frames", "sys._current_exceptions", "sys.addaudithook"),
        "may not look into the interpreter",
    ),
    **dict.fromkeys(("resource.setrlimit", "resource.prlimit"), "may not change limits"),
    **dict.fromkeys(("mmap.__new__",), "may not map files"),
}  # fmt: skip
FAMILIES = {
    "ctypes": "may not call native code",
    **dict.fromkeys(("socket", "urllib", "http", "ftplib"), "may not use the network"),
    **dict.fromkeys(("shutil", "tempfile", "fcntl"), "may not change files"),
}
NO_IMPORT = frozenset((
    "kda_lab", "solutions", "fla", "flash_kda", "triton", "numba", "pytest", "IPython",  # answers
    "cffi", "_cffi_backend", "_ctypes", "pybind11", "multiprocessing", "_posixsubprocess",  # ways out
    "_xxsubinterpreters", "_interpreters", "_testcapi", "_testinternalcapi",
    "readline", "sqlite3", "_sqlite3", "dbm", "_dbm", "_gdbm", "tkinter", "_tkinter",  # files, unseen
))  # fmt: skip


def no_file(*_, **__):
    raise PermissionError("an exercise may not map files")


def blunt() -> torch.library.Library:
    """Take out what would go round the audit hook; whoever drops the result undoes a part of it."""
    import _posixsubprocess
    import subprocess

    for module, names in (
        (_posixsubprocess, ["fork_exec"]),
        (subprocess, ["_fork_exec"]),
        (os, ["pidfd_open"]),
        (sys.modules["posix"], ["pidfd_open"]),
        (signal, ["pidfd_send_signal"]),
        (sys.modules["_signal"], ["pidfd_send_signal"]),
        (torch._C, ["PyTorchFileReader", "PyTorchFileWriter"]),
        (torch._C.ScriptModule, ["save", "_save_for_mobile"]),
        (torch._C.ScriptFunction, ["save"]),
    ):
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    storage = torch._C.StorageBase  # a built-in type: only its own dictionary can change it
    gc.get_referents(storage.__dict__)[0]["from_file"] = staticmethod(no_file)
    ctypes.pythonapi.PyType_Modified(ctypes.py_object(storage))
    operators = torch.library.Library("aten", "IMPL")
    for key in (
        "CPU",
        "BackendSelect",
    ):  # whichever way it is called: Python, TorchScript, torch.ops
        operators.impl("from_file", no_file, key)
    for loaded in [m for m in sys.modules if m.split(".")[0] in NO_IMPORT]:
        del sys.modules[loaded]
    return operators


def private_copy(name: str) -> ModuleType:
    """A module of the standard library, loaded a second time for ourselves alone."""
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def guard(hidden: list[str], readable: list[str], keep: Any) -> None:
    """Install the audit hook. `hidden` folders cannot be read, except what is under `readable`.

    `keep` lives as long as the hook, out of anybody's reach.
    """
    paths: Any = private_copy("posixpath")  # the learner may patch os.path: not this one
    paths.os = ModuleType("os")
    paths.os.__dict__.update(os.__dict__)
    forbidden, families = FORBIDDEN.copy(), FAMILIES.copy()
    flags_that_write = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

    def inside(path, folders, *, any=any):
        return any(path == f or path.startswith(f + "/") for f in folders)

    def hook(  # everything it uses is its own: no global, no builtin that could be patched
        event, args, *, forbidden=forbidden, families=families, no_import=NO_IMPORT,
        realpath=paths.realpath, decode=os.fsdecode, hidden=tuple(hidden), readable=tuple(readable),
        inside=inside, keep=keep,
        writing=flags_that_write, isinstance=isinstance, any=any, str=str, set=set, int=int,
        error=PermissionError, no_module=ImportError,
    ):  # fmt: skip
        if event == "open":
            path, mode, flags = args
            if isinstance(path, int):
                return
            path = decode(path)
            if not path.startswith("/"):  # it may be relative to a folder held open
                raise error(f"an exercise may not open files ({path})")
            path = realpath(path)
            writes = isinstance(flags, int) and flags & writing
            writes = writes or (isinstance(mode, str) and set(mode) & {"w", "a", "x", "+"})
            if writes and path != "/dev/null":
                raise error(f"an exercise may not change files ({path})")
            if path.startswith("/proc/") and path not in ("/proc/cpuinfo", "/proc/meminfo"):
                raise error(f"an exercise may not read {path}")
            if inside(path, hidden) and not inside(path, readable):
                raise error(f"an exercise may not read the library or the solutions ({path})")
        elif event == "import":
            name, path = args[:2]
            if isinstance(path, str) and inside(realpath(path), hidden + readable):
                raise no_module(f"{name} is compiled code from a folder that is out of reach")
            if isinstance(name, str) and name.partition(".")[0] in no_import:
                raise no_module(
                    f"{name} is out of reach while an exercise is graded: write it yourself"
                )
        elif event == "object.__setattr__":
            if args[1] == "__code__":
                raise error("an exercise may not replace code objects")
        else:
            why = forbidden.get(event) or families.get(event.partition(".")[0])
            if why:
                raise error(f"an exercise {why} ({event})")

    sys.addaudithook(hook)


# ---- the lock, for native code: no system call that it does not need -----------------------------------

CALLS = {  # what a launch needs: its socket, memory, signals, the clock, the end
    "x86_64": (0xC000003E, (
        0, 1, 9, 10, 11, 12, 13, 14, 15, 20, 24, 25, 28, 35, 39, 44, 45, 46, 47, 60, 131, 186, 202, 228,
        230, 231, 318,
    )),
    "aarch64": (0xC00000B7, (
        63, 64, 66, 93, 94, 98, 113, 115, 124, 132, 134, 135, 139, 172, 178, 206, 207, 211, 212, 214, 215,
        216, 222, 226, 233, 278,
    )),
}  # fmt: skip
SET_SECCOMP, FILTER_MODE = 22, 2


class Filter(ctypes.Structure):
    _fields_ = [("count", ctypes.c_ushort), ("code", ctypes.c_void_p)]


def confine() -> bool:
    """Refuse (EPERM) every system call but those in CALLS; True where the kernel does it (Linux)."""
    machine = os.uname().machine
    if not sys.platform.startswith("linux") or machine not in CALLS:
        return False
    architecture, calls = CALLS[machine]
    load, equal, give = 0x20, 0x15, 0x06
    allow, refuse = 0x7FFF0000, 0x00050000 | 1
    steps = [(load, 0, 0, 4), (equal, 1, 0, architecture), (give, 0, 0, refuse), (load, 0, 0, 0)]
    for number in calls:
        steps += [(equal, 0, 1, number), (give, 0, 0, allow)]
    steps.append((give, 0, 0, refuse))
    code = b"".join(struct.pack("HBBI", *step) for step in steps)
    buffer = ctypes.create_string_buffer(code, len(code))
    c = libc()
    c.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    filter = Filter(len(steps), ctypes.addressof(buffer))
    return c.prctl(SET_SECCOMP, FILTER_MODE, ctypes.byref(filter), 0, 0) == 0


def lock(job: dict) -> bool:
    """Close every door; True when the namespaces hold. From here on only the learner's code and torch.

    Python code gets the audit hook; a library, which no hook sees, is confined by `serve_kernels`.
    """
    apart = job["namespaces"] and separate(job["hidden"])
    os.chdir("/")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (job["seconds"] + 20, job["seconds"] + 20))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    os.environ.clear()
    if "library" in job:
        return apart
    hidden = [os.path.realpath(p) for p in job["hidden"]]
    roots = {os.path.dirname(p) for p in hidden if os.path.basename(p) == "kda_lab"}
    keep = [
        p for p in sys.path if "packages" in os.path.basename(p) or os.path.realpath(p) not in roots
    ]
    sys.path[:] = [*keep, job["folder"]]
    sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in repr(f).lower()]
    guard(hidden, [os.path.realpath(job["folder"])], keep=blunt())
    return apart


# ---- CUDA exercises: a kernel in a library -------------------------------------------------------------

NUMBERS = {"int": ctypes.c_int32, "int64_t": ctypes.c_int64, "uint32_t": ctypes.c_uint32,
           "float": ctypes.c_float, "double": ctypes.c_double, "bool": ctypes.c_bool}  # fmt: skip
CHECKED = 1 << 22  # bytes of one array: its shadow is many times as large


class Fault(Exception):
    """What the host form found while a kernel ran. line: of the file, or 0; pc, shared: offsets, or -1."""

    line, pc, shared = 0, -1, -1
    printed = ""


class OutOfBounds(Fault):
    pass


class DataRace(Fault):
    pass


class BarrierError(Fault):
    pass


class IntegerOverflow(Fault):
    pass


class Crash(Fault):
    pass


class Misuse(Fault):
    pass


AT = ("line", "pc", "shared")
FAULTS = {2: OutOfBounds, 3: DataRace, 4: BarrierError, 5: IntegerOverflow, 6: Crash, 7: Misuse}


class Argument(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p), ("bytes", ctypes.c_int64), ("item", ctypes.c_int32),
        ("written", ctypes.c_int32), ("name", ctypes.c_char_p),
    ]  # fmt: skip


class Report(ctypes.Structure):
    _fields_ = [
        ("code", ctypes.c_int32), ("line", ctypes.c_int32), ("pc", ctypes.c_int64),
        ("shared", ctypes.c_int64), ("text", ctypes.c_char * 600), ("printed", ctypes.c_char * 4000),
    ]  # fmt: skip


def launch(
    library: ctypes.CDLL, kernel: str, shape: list[int], parameters: list, values: list
) -> str:
    """Run a kernel on the host; the tensors of `values` are left as the kernel leaves them.

    shape: grid x y z, block x y z, bytes of dynamic shared memory. parameters: [name, type, written]
    for each value, the type that of a number, or of an array's elements. Returns what the kernel
    printed. Raises a Fault, or NotImplementedError for a stub.
    """
    arguments, report = (Argument * len(values))(), Report()
    numbers: list[Any] = []  # alive until the call is over
    for argument, (name, kind, written), value in zip(arguments, parameters, values, strict=True):
        argument.name, argument.written = name.encode(), written
        if isinstance(value, torch.Tensor):
            argument.data, argument.item = value.data_ptr(), value.element_size()
            argument.bytes = value.numel() * value.element_size()
            if argument.bytes > CHECKED or not value.is_contiguous():
                raise ValueError(f"{name} is too large or not contiguous")
        else:
            numbers.append(NUMBERS[kind](value))
            argument.data, argument.bytes = ctypes.addressof(numbers[-1]), -1
    library.kda_launch(
        kernel.encode(), (ctypes.c_int64 * 7)(*shape), len(values), arguments, ctypes.byref(report)
    )
    printed = report.printed.decode(errors="replace")
    if report.code == 0:
        return printed
    text = report.text.decode(errors="replace")
    error = NotImplementedError(text) if report.code == 1 else FAULTS.get(report.code, Fault)(text)
    if isinstance(error, Fault):
        error.line, error.pc, error.shared = report.line, report.pc, report.shared
        error.printed = printed
    raise error


def serve_kernels(sock: socket.socket, library: ctypes.CDLL, apart: bool) -> None:
    """Answer launches until the grader hangs up."""
    send(sock, pack({"names": [], "apart": apart, "confined": confine()}))
    while True:
        shape, parameters, values = (request := unpack(receive(sock)))["args"]
        try:
            printed = launch(library, request["name"], shape, parameters, values)
            reply = pack({"value": None, "after": tuple(values), "printed": printed})
        except Exception as e:
            details = {k: getattr(e, k) for k in (*AT, "printed")} if isinstance(e, Fault) else {}
            missing = isinstance(e, NotImplementedError)
            reply = pack(
                {"raised": type(e).__name__, "text": str(e), "missing": missing, **details}
            )
        send(sock, reply)


# ---- one learner's file ----------------------------------------------------------------------------


class Printed(io.TextIOBase):
    """Keeps the first few thousand characters that the learner prints."""

    def __init__(self):
        self.parts: list[str] = []
        self.room = PRINTED

    def write(self, text: str) -> int:
        if self.room > 0:
            self.parts.append(str(text)[: self.room])
            self.room -= len(self.parts[-1])
        return len(text)

    def take(self) -> str:
        text, self.parts, self.room = "".join(self.parts), [], PRINTED
        return text


def raised(error: BaseException, filename: str) -> dict:
    """An exception in words: what, and the learner's line it came through last."""
    where = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename == filename:
            where = f"{os.path.basename(filename)} line {frame.lineno}: {frame.line or ''}"
    if isinstance(error, SyntaxError) and error.filename == filename:
        where = f"{os.path.basename(filename)} line {error.lineno}: {(error.text or '').strip()}"
    try:
        text = str(error)[:600]
    except BaseException:
        text = "(its message could not be read)"
    missing = isinstance(error, NotImplementedError)
    return {"raised": type(error).__name__, "text": text, "where": where, "missing": missing}


def serve(sock: socket.socket, job: dict) -> None:
    """Run the learner's file, then answer calls until the grader hangs up."""
    filename = os.path.join(job["folder"], job["filename"])
    if "library" in job:
        library = ctypes.CDLL(job["library"])
        library.kda_launch.restype = None
        serve_kernels(sock, library, lock(job))
    apart = lock(job)
    printed = sys.stdout = sys.stderr = Printed()
    module = ModuleType(job["filename"].removesuffix(".py"))
    module.__file__ = filename
    sys.modules[module.__name__] = module
    import linecache

    linecache.cache[filename] = (len(job["text"]), None, job["text"].splitlines(True), filename)
    try:
        exec(compile(job["text"], filename, "exec"), module.__dict__)
        send(
            sock,
            pack(
                {"names": sorted(k for k in module.__dict__ if isinstance(k, str)), "apart": apart}
            ),
        )
    except BaseException as e:
        send(sock, pack(raised(e, filename)))
        return
    while True:
        request = unpack(receive(sock), guarded=True)
        args = request["args"]
        try:
            value = module.__dict__[request["name"]](*args)
            reply = pack({"value": value, "after": args, "printed": printed.take()})
        except BaseException as e:
            reply = pack({**raised(e, filename), "printed": printed.take()})
        send(sock, reply)


# ---- the process that waits and forks -----------------------------------------------------------------


def child(sock: socket.socket, job: dict) -> None:
    """The forked half: let go of everything but the socket, then serve."""
    try:
        os.setsid()
        if sys.platform.startswith("linux"):
            libc().prctl(DEATH_SIGNAL, signal.SIGKILL)
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        keep = sock.fileno()
        os.closerange(3, keep)
        os.closerange(keep + 1, 4096)
        serve(sock, job)
    except (EOFError, OSError, Garbled):
        pass
    finally:
        os._exit(0)


def children() -> list[int]:
    """Processes that have this one as parent, adopted orphans included (Linux)."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as f:
            return [int(pid) for pid in f.read().split()]
    except OSError:
        return []


def clear(pid: int) -> None:
    """End a child, its group, and whatever it left behind."""
    for end in (os.killpg, os.kill):
        with suppress(OSError):
            end(pid, signal.SIGKILL)
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)
    while left := children():
        for orphan in left:
            os.kill(orphan, signal.SIGKILL)
            os.waitpid(orphan, 0)


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the notebook's interrupt is not for us
    torch.set_num_threads(1)
    # torch.empty gives NaN from here on; the public switch would import inductor
    torch._C._set_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    torch.einsum("ij,jk->ik", torch.zeros(2, 2), torch.zeros(2, 2))
    if sys.platform.startswith("linux"):
        libc().prctl(SUBREAPER, 1, 0, 0, 0)
    pid = 0
    while True:
        select.select([control], [], [])
        data, fds, _, _ = socket.recv_fds(control, 3, 1)
        if pid:
            clear(pid)
            pid = 0
        if not data:
            return
        job = unpack(receive(control))
        if fds:
            pid = os.fork()
            if pid == 0:
                control.close()
                child(socket.socket(fileno=fds[0]), job)
            os.close(fds[0])
        send(control, pack({"pid": pid}))


if __name__ == "__main__":
    main()
