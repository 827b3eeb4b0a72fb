"""The README keeps its promises: its code is the code, its commands parse, its files exist."""

import re
import shlex
from pathlib import Path

import pytest

import eval as evaluation
import train
from data.plumbing import open_model
from data.tokens import collate, encode_rows, load_rows

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_code_beside_the_method_is_the_code():
    """Broken if a line of the seven steps were no longer in dlr.py, or stood in another order."""
    lines = [line.strip() for line in (ROOT / "dlr.py").read_text(encoding="utf-8").splitlines()]
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 7
    for block in blocks:
        places = [lines.index(line.strip()) for line in block.splitlines()]
        assert places == sorted(places), block


@pytest.mark.parametrize("page", ["README.md", "analysis/README.md"])
def test_linked_files_exist(page):
    """Broken if a page showed a picture or named a file that is not in the repository."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert ((ROOT / page).parent / target).exists(), target


def test_commands_parse():
    """Broken if a command that users copy had a flag that train.py does not know."""
    text = README.replace("\\\n", " ")
    start = r"(?:\./run\.sh train|python train\.py|torchrun \S+ train\.py)"
    commands = re.findall(rf"^{start}(.*)$", text, re.MULTILINE)
    commands += re.findall(rf"`{start}([^`\n]*)`", text)
    assert len(commands) >= 4
    for flags in commands:
        argv = shlex.split(re.sub(r"\s#.*", "", flags))
        if "--resume" not in argv:  # which needs its run
            try:
                train.parse(argv)
            except SystemExit:
                pytest.fail(f"python train.py {flags}")


def test_the_first_screen_is_what_its_commands_print(capsys):
    """Broken if the codes that are shipped did not make the two answers that README opens with."""
    [question] = re.findall(r'^Q="(.*)"$', README, re.MULTILINE)
    command = r'^\./run\.sh eval data/lines\.pt --code (\d) --ask "\$Q"\n'
    found = re.findall(command + r"((?:[^`\n]+\n)+)", README, re.MULTILINE)
    assert [code for code, _ in found] == ["0", "1"]
    for code, printed in found:
        evaluation.main([str(ROOT / "data/lines.pt"), "--code", code, "--ask", question, "--device", "cpu"])
        assert capsys.readouterr().out.strip() == printed.strip()


def test_the_code_for_your_own_code_runs(capsys):
    """Broken if a snippet that users paste did not run, or did not print what it says."""
    dlr, gds = re.findall(r"```py\n(.*?)```", README, re.DOTALL)
    items, _ = encode_rows(load_rows("lines", "train", 4), open_model("base", 512)[1], 512)
    names = {"batches": [collate(items)]}
    exec(dlr.replace("data/", f"{ROOT}/data/"), names)
    assert names["model"].codebook.weight.abs().sum() > 0 and 0 < len(names["new"][0]) <= 20
    exec(gds, {})
    printed = capsys.readouterr().out.strip()
    assert printed.startswith("optimal") and f"# {printed}" in gds
