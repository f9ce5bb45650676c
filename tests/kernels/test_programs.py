"""Microbenchmarks and skeletons without a GPU: each says what it asks and what it predicts, and compiles."""

import re

import pytest

from kda_lab.bench import micro, sources
from kda_lab.native import toolchain

PROGRAMS = sources.programs()


def why_no_nvcc() -> str | None:
    try:
        toolchain.find_nvcc()
    except toolchain.Unbuildable as reason:
        return str(reason)
    return None


def header(path) -> str:
    """The comment that a program starts with, as one line."""
    lines = path.read_text().splitlines()
    end = next(i for i, line in enumerate(lines) if not line.startswith("//"))
    return " ".join(line.removeprefix("//").strip() for line in lines[:end])


def test_there_are_programs():
    assert {p.parent.name for p in PROGRAMS.values()} == {"micro", "skeletons"}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_asks_and_predicts(name):
    text, source = header(PROGRAMS[name]), PROGRAMS[name].read_text()
    assert "?" in text, "the header asks no question"
    _, prediction = re.split(r"\bPredict(?:ion|ed)\b", text, maxsplit=1)
    assert len(re.findall(r"\d", prediction)) >= 3, "a prediction is arithmetic"
    assert re.search(r"^int main\(\)", source, re.MULTILINE)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_compiles(name, tmp_path):
    if reason := why_no_nvcc():
        pytest.skip(reason)
    micro.compile_program(PROGRAMS[name], "90a", tmp_path / name)
    assert (tmp_path / name).stat().st_size > 0


def test_a_program_that_does_not_compile_is_named(tmp_path):
    if reason := why_no_nvcc():
        pytest.skip(reason)
    source = tmp_path / "wrong.cu"
    source.write_text("int main() { return undefined_thing; }\n")
    with pytest.raises(toolchain.Unbuildable, match=r"wrong\.cu.*undefined_thing"):
        micro.compile_program(source, "90a", tmp_path / "wrong")


def test_a_program_that_fails_or_says_nothing_is_no_measurement(tmp_path):
    for script, words in (("exit 3", "status 3"), ("echo hello", "no measurement")):
        program = tmp_path / "program"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        with pytest.raises(RuntimeError, match=words):
            micro.run("program", program)
