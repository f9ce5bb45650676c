"""README.md names only what exists, and everything that a reader should find."""

import re
from pathlib import Path

from kda_lab.cli import COMMANDS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_every_lesson_is_on_the_map():
    linked = set(re.findall(r"\]\(notebooks/([^)]+\.ipynb)\)", README))
    assert linked == {path.name for path in (ROOT / "notebooks").glob("*.ipynb")}


def test_commands_exist():
    named = set(re.findall(r"kda-lab ([a-z-]+)", README))
    assert {"start", "doctor", "hint", "grade", "class"} <= named <= set(COMMANDS)
    targets = set(re.findall(r"\bmake ([a-z-]+)", README))
    makefile = (ROOT / "Makefile").read_text()
    assert {"lab", "test"} <= targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_pictures_have_words():
    pictures = re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", README)
    assert pictures and all(len(words) > 40 for words, _ in pictures)
