"""The figures of the study, from rows whose means are known by hand."""

import math

import pytest

from analysis import figures


def row(label, seed, nll, strict=None):
    return {"label": label, "seed": seed, "tokens": [10, 30], "nll": nll} | ({"strict": strict} if strict else {})


@pytest.fixture
def rows(monkeypatch):
    """Two seeds at the paper's rate, one at the best."""
    known = {"rates": [row("sft, 1e-5", 0, {"off": [8, 8]}), row("sft, 1e-5", 1, {"off": [12, 8]}),
                       row("likelihood, 1e-5", 0, {"on": [6, 6], "off": [8, 10]}),
                       row("likelihood, 1e-5", 1, {"on": [6, 6], "off": [8, 10]})],
             "words1000": [row("sft", 0, {"off": [2, 2]}, {"off": "01"}),
                           row("likelihood", 0, {"on": [2, 3], "off": [2, 2]}, {"on": "11", "off": "01"})]}
    monkeypatch.setattr(figures, "read", lambda name: known.get(name, []))
    return known


def test_gains_are_against_sft_of_the_same_rate_and_seed(rows):
    """Broken if nats were not per token, or a seed were compared with another's SFT."""
    paper, best = [[cell.strip() for cell in line.split("|")[1:-1]] for line in figures.rates_table().split("\n")[2:]]
    # 16 / 40 and 20 / 40 nats; DLR on has 12 / 40 in both seeds
    assert paper[:4] == ["1e-5", "2", "0.4500 ± 0.0707", "-0.1500 ± 0.0707"]
    assert best[:4] == ["1e-3", "1", "0.1000", "+0.0250"]
    assert paper[-2:] == ["not run", "not run"] and best[-2:] == ["50.0", "100.0"]
    assert "not run" in best[5], "static was not measured"


def test_the_leak_is_what_codes_gain_beyond_naming_the_ways(monkeypatch):
    """Broken if codes that name every manner and nothing else were said to leak."""
    worth = figures.worth_of_ways()
    assert 0.5 * math.log(2) / 20 < worth < math.log(2) / 10, "a line has 10 to 20 tokens or so, two ways in each"
    def line(label, gain, information):
        return {"label": label, "seed": 0, "tokens": [9] * 4, "chosen": "code 1", "strict": {"code 1": "1000"},
                "info_gain": gain, "study": {"handles": {"information": information}}}
    known = {"lines": [line("path", worth, 1.0)], "lines_why": [line("switch cost 0", 0.3, 0.0)]}
    monkeypatch.setattr(figures, "read", known.get)
    assert figures.by_cost() == {0: (0.0, 25, 0.3), 0.5: (1.0, 25, pytest.approx(0))}


def test_both_figures_are_drawn(rows, monkeypatch, tmp_path, capsys):
    """Broken if a figure could not be drawn from rows that lack a setting."""
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(figures, "HERE", tmp_path)
    figures.main(["rates"])
    assert "our best" in (tmp_path / "rates.svg").read_text() and "1e-5" in capsys.readouterr().out
