"""A submission cannot pass without solving the exercise, end the grader, or write its result.

Every attack runs twice: with the namespaces of the kernel (where it has them) and with the audit
hook alone. Attacks that fetch somebody else's answer are first shown to work where nothing guards.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kda_lab.grading import engine, runner, source
from kda_lab.grading.engine import verdict
from kda_lab.grading.runner import Local, Submission
from kda_lab.native import build

ID = "ex04.kda_recurrent"
FILE = source.exercise_file("ex04")
ROOT = source.PACKAGE.parent
SAID, EXERCISE = source.statement(ID), source.exercises(FILE)[ID]
DEF = "def kda_recurrent(q, k, v, g, beta, scale, initial_state):\n"
SOLVED = FILE.text  # the right answer, to which an attack is added


def attempt(text: str, folder: Path, namespaces: bool):
    (folder / FILE.filename).write_text(text)
    with Submission(folder, FILE.filename, namespaces=namespaces) as submission:
        found = verdict(EXERCISE, SAID, submission)
        return found, submission


@pytest.fixture(params=[True, False], ids=["namespaces", "hook"])
def namespaces(request):
    return request.param


@pytest.fixture
def hurry(monkeypatch):
    monkeypatch.setattr(runner, "EXERCISE_SECONDS", 3)
    monkeypatch.setattr(engine, "EXERCISE_SECONDS", 3)


def indent(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.strip().splitlines())


def test_the_right_answer_passes_in_both(tmp_path, namespaces):
    found, submission = attempt(SOLVED, tmp_path, namespaces)
    assert found.status == "passed", found
    if not namespaces:
        assert not submission.apart


# ---- somebody else's answer -------------------------------------------------------------------------

CALL = """
o, S = kda_lab.fused_recurrent_kda(
    q, k, v, g, beta, scale, initial_state=initial_state, output_final_state=True)
return o, S
"""
MODEL = f"{ROOT}/solutions/{FILE.filename}"
RUN = "return space['kda_recurrent'](q, k, v, g, beta, scale, initial_state)"
CHILD = """
import io, sys, torch
from kda_lab import fused_recurrent_kda
args = torch.load(io.BytesIO(sys.stdin.buffer.read()), weights_only=False)
out = io.BytesIO()
torch.save(fused_recurrent_kda(*args[:6], initial_state=args[6], output_final_state=True), out)
sys.stdout.buffer.write(out.getvalue())
"""
FETCHED = {  # bodies of kda_recurrent that compute nothing themselves
    "import": "import kda_lab" + CALL,
    "import from": "from kda_lab.ops import fused_recurrent_kda\nimport types\n"
    "kda_lab = types.SimpleNamespace(fused_recurrent_kda=fused_recurrent_kda)" + CALL,
    "importlib": "import importlib\nkda_lab = importlib.import_module('kda_lab')" + CALL,
    "dunder import": "kda_lab = __import__('kda_lab')" + CALL,
    "sys.modules": f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
    "kda_lab = sys.modules.get('kda_lab') or __import__('kda_lab')" + CALL,
    "no finders left": f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
    "sys.meta_path[:] = [f for f in sys.meta_path if 'PathFinder' in repr(f)]\nimport kda_lab"
    + CALL,
    "spec from file": f"""
import importlib.util
spec = importlib.util.spec_from_file_location("m", {MODEL!r})
m = importlib.util.module_from_spec(spec)
spec.loader.exec_module(m)
return m.kda_recurrent(q, k, v, g, beta, scale, initial_state)
""",
    "runpy": f"import runpy\nspace = runpy.run_path({MODEL!r})\n{RUN}",
    "open and exec": f"space = {{}}\nexec(open({MODEL!r}).read(), space)\n{RUN}",
    "os.open": f"""
import os
fd = os.open({MODEL!r}, os.O_RDONLY)
space = {{}}
exec(os.read(fd, 1 << 20), space)
{RUN}
""",
    "relative to a folder": f"""
import os
fd = os.open("solutions/{FILE.filename}", os.O_RDONLY, dir_fd=os.open({str(ROOT)!r}, os.O_RDONLY))
space = {{}}
exec(os.read(fd, 1 << 20), space)
{RUN}
""",
    "through a link": f"""
import os, tempfile
link = os.path.join(tempfile.mkdtemp(), "link")
os.symlink({MODEL!r}, link)
space = {{}}
exec(open(link).read(), space)
{RUN}
""",
    "pathlib": f"import pathlib\nspace = {{}}\nexec(pathlib.Path({MODEL!r}).read_text(), space)\n{RUN}",
    "numpy": f"import numpy\nspace = {{}}\nexec(bytes(numpy.fromfile({MODEL!r}, dtype='u1')), space)\n{RUN}",
    "mapped by torch": f"""
import os, torch
n = os.path.getsize({MODEL!r})
text = bytes(torch.from_file({MODEL!r}, size=n, dtype=torch.uint8).tolist())
space = {{}}
exec(text, space)
{RUN}
""",
    "mapped as a storage": f"""
import os, torch
text = bytes(torch.UntypedStorage.from_file({MODEL!r}, False, os.path.getsize({MODEL!r})).tolist())
space = {{}}
exec(text, space)
{RUN}
""",
    "mapped by the operator": f"""
import os, torch
n = os.path.getsize({MODEL!r})
text = bytes(torch.ops.aten.from_file({MODEL!r}, False, n, dtype=torch.uint8).tolist())
space = {{}}
exec(text, space)
{RUN}
""",
    "subprocess": f"""
import io, subprocess, sys, torch
buffer = io.BytesIO()
torch.save((q, k, v, g, beta, scale, initial_state), buffer)
done = subprocess.run([sys.executable, "-c", {CHILD!r}], cwd={str(ROOT)!r}, input=buffer.getvalue(),
                      stdout=subprocess.PIPE, check=True)
return torch.load(io.BytesIO(done.stdout), weights_only=False)
""",
}


@pytest.mark.parametrize("way", FETCHED)
def test_somebody_elses_answer_is_out_of_reach(way, tmp_path, namespaces):
    text = DEF + indent(FETCHED[way])
    if way != "subprocess" and namespaces:  # it works where nothing guards (slow for a process)
        function = source.load(text, "unguarded").kda_recurrent
        assert verdict(EXERCISE, SAID, Local(function)).status == "passed"
    found, _ = attempt(text, tmp_path, namespaces)
    assert found.status in ("failed", "error") and found.points == 0, found


@pytest.mark.parametrize("way", ["history", "compiled"])
def test_other_copies_of_the_answer_are_out_of_reach(way, tmp_path, namespaces):
    """git's folder holds every solution, and the cache of compiled code a whole implementation."""
    body = {
        "history": f"open({str(ROOT / '.git/HEAD')!r}).read()",
        "compiled": f"""
import importlib.machinery, importlib.util
path = {str(build.binding_library())!r}
loader = importlib.machinery.ExtensionFileLoader("a._binding", path)
importlib.util.module_from_spec(importlib.machinery.ModuleSpec("a._binding", loader, origin=path))
""",
    }[way]
    solved = SOLVED + "\nfind = kda_recurrent\n" + DEF + indent(
        body + "\nreturn find(q, k, v, g, beta, scale, initial_state)"
    )
    found, _ = attempt(solved, tmp_path, namespaces)
    assert found.status == "error" and found.points == 0, found


def test_it_says_that_the_library_is_out_of_reach(tmp_path):
    found, _ = attempt(DEF + indent("import kda_lab" + CALL), tmp_path, False)
    assert "kda_lab is out of reach while an exercise is graded" in found.message


LOOK = """
import gc, sys, torch
frame, seen = sys._getframe(), []
while frame:
    seen += list(frame.f_locals.values()) + list(frame.f_globals.values())
    frame = frame.f_back
try:
    seen += gc.get_objects()
except PermissionError:
    pass
for x in seen:
    if isinstance(x, dict) and "want" in x:
        return x["want"]
    if isinstance(x, tuple) and len(x) == 2 and all(isinstance(y, torch.Tensor) for y in x):
        return x
for module in list(sys.modules.values()):
    if "EXERCISES" in vars(module) or str(vars(module).get("__name__")).startswith("kda_lab"):
        raise SystemExit("found the tests")
return v, initial_state
"""


def test_right_answers_are_not_in_the_process(tmp_path, namespaces):
    found, _ = attempt("import torch\n" + DEF + indent(LOOK), tmp_path, namespaces)
    assert found.status == "failed" and found.points == 0, found


# ---- comparing otherwise -----------------------------------------------------------------------------

LIES = {
    "patched torch": "import torch\ntorch.allclose = torch.equal = lambda *a, **k: True\n"
    "torch.testing.assert_close = lambda *a, **k: None\ntorch.Tensor.__eq__ = lambda *a: True\n"
    "torch.Tensor.__sub__ = lambda a, b: torch.zeros_like(a)\n" + DEF
    + "    return v, initial_state\n",
    "patched numpy and builtins": "import builtins, numpy, math\nnumpy.allclose = lambda *a, **k: True\n"
    "numpy.testing.assert_allclose = lambda *a, **k: None\nmath.isclose = lambda *a, **k: True\n"
    "builtins.all = lambda *a: True\nbuiltins.abs = lambda x: 0\n" + DEF + "    return v, initial_state\n",
    "patched harness": "import __main__\n__main__.FORBIDDEN.clear()\n__main__.NO_IMPORT = ()\n"
    "real = __main__.pack\n"
    "__main__.pack = lambda x: real({**x, 'status': 'passed', 'points': 5} if isinstance(x, dict) else x)\n"
    + DEF + "    return v, initial_state\n",
    "patched pytest": "try:\n    import pytest\n    pytest.fail = lambda *a, **k: None\n"
    "except ImportError:\n    pass\n" + DEF + "    return v, initial_state\n",
    "lying subclass": "import torch\nclass Liar(torch.Tensor):\n"
    "    @classmethod\n    def __torch_function__(cls, func, types, args=(), kwargs=None):\n"
    "        if func.__name__ in ('__eq__', 'eq', 'equal', 'allclose', '__le__'):\n            return True\n"
    "        return super().__torch_function__(func, types, args, kwargs or {})\n"
    + DEF + "    return v.as_subclass(Liar), initial_state.as_subclass(Liar)\n",
    "object that equals all": "class Yes:\n    def __eq__(self, other):\n        return True\n"
    "    __hash__ = None\n    shape = dtype = property(lambda self: self)\n" + DEF + "    return Yes(), Yes()\n",
    "NaN": "import torch\n" + DEF + "    return v * float('nan'), initial_state * float('nan')\n",
    "infinity": "import torch\n" + DEF + "    return v + float('inf'), initial_state + float('inf')\n",
    "unfilled": "import torch\n" + DEF + "    return torch.empty_like(v), torch.empty_like(initial_state)\n",
    "inputs set to zero": DEF + "    for x in (q, k, v, g, beta, initial_state):\n        x.zero_()\n"
    "    return v, initial_state\n",
    "remembered": "import torch\nseen = []\n" + DEF + "    seen.append((v, initial_state))\n    return seen[0]\n",
    "printing": DEF + "    print('{\"status\": \"passed\", \"points\": 5}')\n    print('PASSED ' * 10**6)\n"
    "    return v, initial_state\n",
    "nothing": DEF + "    return None\n",
    "huge": "import torch\n" + DEF + "    return torch.zeros(1 << 24, dtype=torch.float64), initial_state\n",
    "long list": DEF + "    return [[0] * 5_000_000, initial_state]\n",
    "recursive": DEF + "    x = []\n    x.append(x)\n    return x, x\n",
    "wrong kinds": DEF + "    return {1: 2}, 'S'\n",
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_lies_do_not_pass(lie, tmp_path, namespaces):
    found, _ = attempt(LIES[lie], tmp_path, namespaces)
    assert found.status in ("failed", "error") and found.points == 0, found


def test_right_numbers_but_changed_inputs_fail(tmp_path):
    text = SOLVED.replace(
        "S, o = initial_state,", "initial_state *= 1.5\n    S, o = initial_state / 1.5,"
    )
    found, _ = attempt(text, tmp_path, True)
    assert (found.status, found.failed_test) == ("failed", "inputs unmodified")


# ---- ending, delaying, disturbing ----------------------------------------------------------------------

FORK = "import os\nwhile True:\n    os.fork()\n"
KILL = """
import os, signal, sys
def strike():
    for kill in (
        lambda: os.kill(os.getppid(), 9), lambda: os.killpg(os.getpgid(os.getppid()), 9), lambda: os.kill(-1, 9),
        lambda: signal.pidfd_send_signal(os.pidfd_open(os.getppid()), 9),
        lambda: __import__("ctypes").CDLL(None).kill(os.getppid(), 9),
        lambda: __import__("ctypes").pythonapi.PyRun_SimpleString(b"import os; os.kill(os.getppid(), 9)"),
        lambda: __import__("resource").prlimit(os.getppid(), 0, (0, 0)),
        lambda: os.system(f"kill -9 {os.getppid()}"),
        lambda: __import__("cffi").FFI().dlopen(None).kill,
        lambda: __import__("_posixsubprocess").fork_exec,
        lambda: __import__("_xxsubinterpreters").create(),
    ):
        try:
            kill()
        except BaseException as e:
            assert isinstance(e, (PermissionError, ImportError, AttributeError, OSError)), e
        else:
            return True
    return False
"""
ERROR, LATE, WRONG = {"error"}, {"timeout"}, {"failed"}
GIVE = "\nreturn v, initial_state"


def function(text: str) -> str:
    return DEF + indent(text)


DISTURBANCES = {  # text and the statuses it may end in
    "exit while loading": ("import sys\nsys.exit(0)\n", ERROR),
    "exit": (function("raise SystemExit(0)"), ERROR),
    "hard exit while loading": ("import os\nos._exit(0)\n", ERROR),
    "hard exit": (function("import os\nos._exit(0)"), ERROR),
    "interrupt": (function("raise KeyboardInterrupt"), ERROR),
    "abort": (function("import os\nos.abort()"), ERROR),
    "no such function": ("def other():\n    pass\n", ERROR),
    "not Python": ("def kda_recurrent(:\n", ERROR),
    "not text": ("\0\0\0", ERROR),
    "bottomless": (
        function("""
import sys
sys.setrecursionlimit(10**9)
def f(x):
    return [f(x)]
return f(1)
"""),
        ERROR | LATE,
    ),
    "sleep while loading": ("import time\ntime.sleep(1000)\n", LATE),
    "sleep": (function("import time\ntime.sleep(1000)"), LATE),
    "endless loop": (
        function("""
while True:
    try:
        while True:
            pass
    except BaseException:
        pass
"""),
        LATE,
    ),
    "deaf to signals": (
        function("""
import signal, time
for s in range(1, 64):
    try:
        signal.signal(s, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
time.sleep(1000)
"""),
        LATE,
    ),
    "fork bomb while loading": (FORK, ERROR | LATE),
    "fork bomb": (function(FORK), ERROR | LATE),
    "thread bomb": (
        function("""
import threading, time
while True:
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
"""),
        ERROR | LATE,
    ),
    "memory at once": ("import torch\n" + function("return torch.ones(1 << 36), v"), ERROR),
    "memory bit by bit": (
        function("x = []\nwhile True:\n    x.append(bytearray(1 << 24))"),
        ERROR | LATE,
    ),
    "closed files": (function("import os\nos.closerange(0, 1000)" + GIVE), ERROR),
    "nonsense on every file": (
        function(
            """
import os
for fd in range(100):
    try:
        os.write(fd, b"x" * 64)
    except OSError:
        pass
"""
            + GIVE
        ),
        ERROR | LATE,
    ),
    "nonsense for ever": (
        function(
            """
import os, threading
def flood():
    while True:
        for fd in range(3, 20):
            try:
                os.write(fd, bytes(4096))
            except OSError:
                pass
threading.Thread(target=flood, daemon=True).start()
"""
            + GIVE
        ),
        ERROR | LATE | WRONG,
    ),
    "hook taken out": (
        function(
            """
import sys
def dead(*a):
    raise RuntimeError
sys.addaudithook(dead)
"""
            + GIVE
        ),
        WRONG,
    ),
    "killing": (KILL + function("assert not strike(), 'a blow went through'" + GIVE), WRONG),
}


@pytest.mark.parametrize("name", DISTURBANCES)
def test_disturbances_end_in_a_verdict(name, tmp_path, namespaces, hurry):
    text, statuses = DISTURBANCES[name]
    start = time.monotonic()
    found, _ = attempt(text, tmp_path, namespaces)
    assert found.status in statuses and found.points == 0, found
    assert time.monotonic() - start < 40
    after, _ = attempt(SOLVED, tmp_path, namespaces)  # the next file finds everything in order
    assert after.status == "passed", after


def test_processes_do_not_outlive_their_verdict(tmp_path, namespaces, hurry):
    before = children_of(runner.nursery().process.pid)
    attempt(DISTURBANCES["fork bomb"][0], tmp_path, namespaces)
    attempt(DISTURBANCES["sleep"][0], tmp_path, namespaces)
    assert children_of(runner.nursery().process.pid) == before == []


def children_of(pid: int) -> list[str]:
    if not sys.platform.startswith("linux"):
        pytest.skip("needs /proc")
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


# ---- files -----------------------------------------------------------------------------------------------


def test_no_file_can_be_written_or_removed(tmp_path, namespaces):
    treasure = tmp_path / "treasure"
    treasure.mkdir()
    (treasure / "keep").write_text("gold")
    body = f"""
import os, shutil, pathlib, atexit, tempfile, torch
here = {str(treasure)!r}
atexit.register(lambda: open(here + "/late", "w"))
for act in (
    lambda: open(here + "/new", "w"), lambda: open(here + "/keep", "a").write("x"), lambda: os.remove(here + "/keep"),
    lambda: os.open(here + "/new", os.O_CREAT | os.O_WRONLY), lambda: os.rename(here + "/keep", here + "/moved"),
    lambda: shutil.rmtree(here), lambda: pathlib.Path(here + "/new").touch(), lambda: os.mkdir(here + "/d"),
    lambda: os.symlink("/", here + "/s"), lambda: os.truncate(here + "/keep", 0), lambda: os.chmod(here, 0),
    lambda: tempfile.NamedTemporaryFile(dir=here), lambda: torch.save(v, here + "/t"),
    lambda: v.numpy().tofile(here + "/n"),
):
    try:
        act()
    except (OSError, RuntimeError, AttributeError):
        continue
    raise AssertionError("it could be done")
return v, initial_state
"""
    found, _ = attempt(DEF + indent(body), tmp_path, namespaces)
    assert found.status == "failed" and "could be done" not in found.message, found
    assert [p.name for p in treasure.iterdir()] == ["keep"]
    assert (treasure / "keep").read_text() == "gold"


def test_other_processes_cannot_be_read(tmp_path, namespaces):
    body = f"""
import os
parent = f"/proc/{{os.getppid()}}/"
for path in (parent + "mem", parent + "environ", "/proc/{os.getpid()}/environ", "/proc/1/environ"):
    try:
        open(path, "rb").read(1)
    except OSError:
        continue
    raise AssertionError("it could be read")
return v, initial_state
"""
    found, _ = attempt(DEF + indent(body), tmp_path, namespaces)
    assert found.status == "failed" and "could be read" not in found.message, found


def command(*arguments: str, folder: Path) -> subprocess.CompletedProcess:
    line = [sys.executable, "-P", "-m", "kda_lab.cli", "grade", *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(line, cwd=folder, env=env, capture_output=True, text=True, timeout=150)


def test_the_result_is_the_graders_alone(tmp_path):
    """The worst file we can think of, through the command: it can neither end it nor write its result."""
    result = tmp_path / "out" / "result.json"
    forged = json.dumps({"exercises": [{"id": ID, "status": "passed", "points": 5}]})
    worst = (
        KILL
        + f"""
import atexit, os, sys, threading, time
def forge():
    for i in range(3):
        try:
            with open({str(result)!r}, "w") as f:
                f.write({forged!r})
        except OSError:
            pass
atexit.register(forge)
forge()
print({forged!r})
def kda_step(*args):
    strike()
    forge()
    threading.Thread(target=forge, daemon=True).start()
    os._exit(0)
def token_cost(*args):
    sys.exit(0)
def telling_inputs():
    raise NotImplementedError
"""
        + DEF
        + "    strike()\n    forge()\n    return v, initial_state\n"
    )
    submission = tmp_path / "s"
    submission.mkdir()
    (submission / FILE.filename).write_text(worst)
    (submission / "conftest.py").write_text("raise SystemExit(0)\n")
    (submission / "torch.py").write_text("raise SystemExit(0)\n")
    (submission / "sitecustomize.py").write_text("raise SystemExit(0)\n")
    (submission / "pytest.ini").write_text("[pytest]\naddopts = --collect-only\n")
    start = time.monotonic()
    done = command("ex04", "--submission", str(submission), "--json", str(result), folder=tmp_path)
    assert done.returncode == 1, done
    assert time.monotonic() - start < 120
    rows = json.loads(result.read_text())["exercises"]
    assert [(r["id"], r["status"], r["points"], r["max_points"]) for r in rows] == [
        ("ex04.kda_step", "error", 0, 3),
        (ID, "failed", 0, 5),
        ("ex04.token_cost", "error", 0, 2),
        ("ex04.telling_inputs", "not_attempted", 0, 4),
    ]


def test_run_from_inside_a_hostile_folder(tmp_path):
    """Started in the submission itself, the command takes no module from it."""
    (tmp_path / FILE.filename).write_text(SOLVED)
    for name in ("torch", "numpy", "pytest", "json", "conftest"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(0)\n")
    done = command("ex04.token_cost", "--submission", ".", "--json", "r.json", folder=tmp_path)
    assert done.returncode == 0 and "2 of 2 points" in done.stdout, done
    assert json.loads((tmp_path / "r.json").read_text())["exercises"][0]["status"] == "passed"


def test_a_file_that_never_answers_is_cut_off_as_a_whole(tmp_path, hurry):
    """Each exercise has its limit and so has the file: 20 s and 90 s when nobody is in a hurry."""
    names = [s.name for s in FILE.statements.values()]
    text = "import time\n" + "".join(f"def {n}(*a):\n    time.sleep(1000)\n" for n in names)
    (tmp_path / FILE.filename).write_text(text)
    start = time.monotonic()
    with Submission(tmp_path, FILE.filename, seconds=7) as submission:
        tests = source.exercises(FILE)
        found = [verdict(tests[key], said, submission) for key, said in FILE.statements.items()]
    assert [v.status for v in found] == ["timeout"] * len(names)
    assert time.monotonic() - start < 7 + 5
    assert runner.FILE_SECONDS <= 100
