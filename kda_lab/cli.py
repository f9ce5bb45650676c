"""The `kda-lab` command: one subcommand a module, imported only when asked for."""

import sys
from importlib import import_module

COMMANDS = {  # name: (module whose main(argv) -> exit status runs it, one-line help)
    "doctor": ("kda_lab.doctor", "what this machine can run, and the remedy for what it cannot"),
    "lab": ("kda_lab.lab", "open the course in JupyterLab"),
    "start": ("kda_lab.start", "lay out a course folder outside a clone"),
    "notebook": ("kda_lab.notebook_form", "execute, normalise and check notebooks"),
    "grade": ("kda_lab.grading.grade", "grade exercises"),
    "hint": ("kda_lab.grading.hints", "show the next hint of an exercise"),
    "progress": ("kda_lab.grading.progress", "points, attempts and hints so far"),
    "reset": ("kda_lab.grading.reset", "restore the stub of an exercise file"),
    "class": ("kda_lab.grading.classroom", "roll up one folder per student"),
    "stubs": ("kda_lab.grading.stubs", "generate exercises/ from solutions/"),
    "build": ("kda_lab.native.build", "compile kernel rungs into the cache"),
    "gpu-check": ("kda_lab.bench.gpu_check", "run the correctness suite of every rung on this GPU"),
    "bench": ("kda_lab.bench.main", "time rungs and peers, or the CPU implementations"),
    "profile": ("kda_lab.bench.profile", "count the bytes a rung moves, with ncu"),
    "trace": ("kda_lab.bench.trace", "record when each warp of a rung works and waits"),
    "report": ("kda_lab.bench.report", "prove on this GPU that the drop-ins are what they replace"),
    "ledger": ("kda_lab.bench.ledger", "check, show, tabulate or plot recorded measurements"),
}


def usage() -> str:
    lines = ["usage: kda-lab COMMAND [options]", ""]
    lines += [f"  {name:10s} {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join([*lines, "", "kda-lab COMMAND --help tells more."])


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if argv[0] not in COMMANDS:
        print(f"kda-lab: unknown command {argv[0]!r}\n\n{usage()}", file=sys.stderr)
        return 2
    return import_module(COMMANDS[argv[0]][0]).main(argv[1:]) or 0


if __name__ == "__main__":
    sys.exit(main())
