"""analysis/peers.py and the figures of data with a choice in every line."""

import itertools

import numpy as np
import pytest
import torch
from test_modes import ENC, model_of

from analysis import modes, peers
from data.tokens import collate, encode_row, load_rows


def spread(x, cluster):
    return sum(((x[cluster == k] - x[cluster == k].mean(0)) ** 2).sum() for k in (0, 1))


def test_two_means_are_the_best_two():
    """Broken if a better split into two clusters had been missed: all 2^9 are tried."""
    for seed in range(5):
        x = np.random.default_rng(seed).normal(size=(10, 2))
        x[:4] += 2  # two clouds that touch
        splits = [np.array((0, *rest)) for rest in itertools.product((0, 1), repeat=9) if any(rest)]
        assert spread(x, peers.two_means(x)) == pytest.approx(min(spread(x, s) for s in splits))


@pytest.mark.parametrize("peer", ["clean", "clusters", "filter", "finish"])
def test_a_peer_trains_on_what_it_says(peer, tmp_path, monkeypatch):
    """Broken if a peer saw rows it has to leave out, was not told its cluster, or had fewer steps."""
    trained, starts, asked = [], [], []

    def rows_of(data, split, n=None):
        return load_rows(data, split, 24 if split == "train" else 2)

    def parse(argv):
        flags = dict(zip(argv[::2], argv[1::2]))
        trained.append((load_rows(flags["--data"], "train"), float(flags["--epochs"])))
        starts.append(flags["--init_from"])
        return flags

    def evaluate(model, enc, rows, arms):
        asked.append(rows)
        return ({"arms": {"off": {"strict": 0.5}}}, [{"off": {"strict": True}}, {"off": {"strict": False}}])

    base = peers.plumbing.open_model("base", 512)
    monkeypatch.setattr(peers, "load_rows", rows_of)
    monkeypatch.setattr(peers, "evaluate", evaluate)
    monkeypatch.setattr(peers.train, "parse", parse)
    monkeypatch.setattr(peers.train, "train", lambda flags: (*base, 1.0))
    line = peers.measure("modes_wrong", peer, 0, tmp_path)
    assert line["strict"] == "10" and line["peer"] == peer
    rows, (seen, epochs) = load_rows("modes_wrong", "train", 24), trained[-1]
    right = {row["question"]: row["way"] == "worked" for row in rows}
    if peer == "clean":
        assert sum(right.values()) == len(seen) and all(right[row["question"]] for row in seen)
        assert epochs * len(seen) == pytest.approx(3 * 24)
    elif peer == "finish":
        assert starts == ["base", str(tmp_path / "first")] and len(trained[0][0]) == 24
        assert [row["answer"] for row in seen] == [row["answer"] for row in load_rows("modes_wrong", "val", 2)]
    elif peer == "clusters":
        assert {row["question"][-4:] for row in seen} == {" (0)", " (1)"} and len(seen) == 24
        assert [rows[0]["question"][-4:] for rows in asked[:2]] == [" (0)", " (1)"]
        assert sum(n for _, n in line["worked of each cluster"]) == 24
    else:
        assert len(trained) == 2 and len(seen) == 12 and epochs == 6
        assert line["worked of those kept"] == [sum(right[row["question"]] for row in seen), 12]


def test_an_unknown_peer_is_one_error(capsys):
    """Broken if a misspelt peer were measured as another one."""
    with pytest.raises(SystemExit):
        peers.main(["modes_wrong", "cluster", "--seeds", "0"])
    assert "clusters" in (said := capsys.readouterr().err) and "got 'cluster'" in said


def test_the_table_and_the_picture_of_lines():
    """Broken if a mean over seeds, a code's color or a line of the example were another one's."""
    def line(seed, information):
        found = {"information": information, "as planned": 0.5}
        return {"label": "path", "seed": seed, "chosen": "code 1", "tokens": [1, 1],
                "strict": {"off": "01", "code 1": "11"},
                "study": {"handles": found, "sampled": found, "five operations": found | {"as planned": 0.25}}}

    rows = modes.lines_table([line(0, 0.8), line(1, 1.0)]).splitlines()
    assert [cell.strip() for cell in rows[-1].strip("|").split("|")] == [
        "path", "2", "0.900 ± 0.141", "0.900 ± 0.141", "50.0 ± 0.0", "25.0 ± 0.0", "50.0 ± 0.0", "100.0 ± 0.0"]
    told = {"question": "1 + 1 < 3?", "lines": [(1, "So 1+1 = 2."), (0, "<<2>>"), (1, "So 3."), (0, "#### 3")]}
    svg = modes.figure(told, {"path": 0.95})
    assert "1 + 1 &lt; 3?" in svg and "&lt;&lt;2&gt;&gt;" in svg and ">95<" in svg
    colors = [part.split('"')[0] for part in svg.split('rx="6" fill="')[1:]]
    assert colors[0] == colors[2] != colors[1] and colors[3] == "#888"


def test_what_the_table_promises_and_what_a_path_has():
    """Broken if a log p were another sequence's: against whole passes, one row each."""
    model, rows = model_of(2), load_rows("wordproblems", "train", 3)
    torch.manual_seed(0)
    found = modes.table_quality(model, ENC, rows, n_drawn=4)
    expected = {"table": 0.0, "path": 0.0, "off": 0.0}
    for row in rows:
        idx, targets = collate([encode_row(row, ENC)])
        n, path = (targets >= 0).sum(), model.search(idx, targets, select="path")
        expected["path"] -= (n * model(idx, targets, codes=path)[1]).item() / 3
        expected["off"] -= (n * model(idx, targets, codes="off")[1]).item() / 3
        logits = [model(idx, codes=code)[0].log_softmax(-1) for code in range(2)]
        for t in targets[0].ge(0).nonzero()[:, 0].tolist():
            expected["table"] += logits[path[0, t // 3].item()][0, t, targets[0, t]].item() / 3
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-4)
