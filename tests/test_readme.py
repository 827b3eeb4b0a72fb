"""The README keeps its promises: links land on what they name, commands parse, files exist."""

import re
import shlex
from pathlib import Path

import pytest

import train

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_links_into_the_code_land_on_the_definition():
    """Broken if a line number in the README no longer points at the method it names."""
    links = re.findall(r"\[`(\w+)`\]\((\w+\.py)#L(\d+)\)", README)
    assert len(links) >= 8
    for name, file, line in links:
        found = (ROOT / file).read_text().splitlines()[int(line) - 1]
        assert re.match(rf"\s*(def|class) {name}\b", found), f"{file}#L{line} is {found!r}, not {name}"


def test_linked_files_exist():
    """Broken if the README showed a picture or named a file that is not in the repository."""
    for target in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / target).exists(), target


def test_commands_parse():
    """Broken if a command that users copy had a flag that train.py does not know."""
    commands = re.findall(r"^(?:\./run\.sh train|python train\.py|torchrun \S+ train\.py)(.*)$", README, re.M)
    inline = re.findall(r"`python train\.py([^`]*)`", README)
    assert len(commands) >= 6
    for flags in commands + inline:
        argv = shlex.split(re.sub(r"\s#.*", "", flags))
        if "--resume" in argv:
            continue  # needs its run
        try:
            train.parse(argv)
        except SystemExit:
            if "--help" not in argv:
                pytest.fail(f"python train.py {flags}")
