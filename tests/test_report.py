"""The page that analysis/report.py writes, as text and in a real browser."""

import dataclasses
import json
import math
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
import torch

from analysis import report as page_module
from analysis.causal import ARMS
from analysis.report import chunk_texts, counterfactuals, report
from data.tokens import encode_row, end_token, load_encoding, load_rows
from dlr import GPT, GPTConfig

ENC, C, K, BLOCK = load_encoding("wordproblems"), 5, 3, 136
HOSTILE = "</script><img src=x onerror=alert(1)>&amp;\u2028 \u00e9\U0001f600\u4f60"
ONE = [{"question": "What is 3 + 4?", "answer": "3 + 4 = 7\n#### 7", "final": "7"}]


def make(n_codes=C):
    torch.manual_seed(0)
    model = GPT(GPTConfig(ENC.n_vocab, BLOCK, 3, 2, 1, 32, n_codes=n_codes, chunk=K, steer_layer=1)).eval()
    torch.nn.init.normal_(model.codebook.weight, std=1.0)
    torch.nn.init.normal_(model.router.weight, std=0.3)
    return model


def rows():
    hostile = {"question": HOSTILE, "answer": f"{HOSTILE}\n#### 7", "final": "7"}
    return [*load_rows("wordproblems", "test", 1), *ONE, hostile]


def run_folder(folder, model, analysis=True, graded=True):
    """A run's files with numbers that are only plausible, as train.py and causal.py write them."""
    folder.mkdir(exist_ok=True)
    C = model.config.n_codes
    (folder / "config.json").write_text(json.dumps(
        {"method": HOSTILE, "data": "wordproblems", "lr": 1e-3, "code_lr": 1e-2, "seed": 0}))
    usage = [(1 + k) / sum(range(C + 1)) for k in range(C)]
    lines = [{"step": i, "loss": 2 / i, "generalist": 1 / i, "info_gain": 0.01 * math.sin(i),
              "perplexity": C - 1 / i, "usage": usage, "seconds": 0.1 * i} for i in range(1, 451)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if not analysis:
        return folder
    names = [*ARMS, "code 0", "code 1"]
    arms = {name: {"nats_minus_on": [i / 99, i / 99 - 0.02, i / 99 + 0.02]} for i, name in enumerate(names, 1)}
    arms["on"] = {"nats": 0.5}
    for arm in arms.values() if graded else ():
        arm |= {"strict": 0.5, "strict_minus_on": [-0.1, -0.2, 0.0]}
    codes = [{"code": k, "share": (C - k) / 20, "ablation": arms["off"] if k else None} for k in range(C)]
    grams = [{"n": n, "paired": 0.4 + n / 10, "null_mean": 0.3 + n / 10} for n in (1, 2, 3)]
    routing = {kind: {"bits_beyond_position": {"excess": 0.13}, "untrained": [0.08, 0.06, 0.1],
                      "random": [0.0, -0.01, 0.01], "ngrams": grams} for kind in (HOSTILE, "operation")}
    (folder / "analysis.json").write_text(json.dumps({
        "data": "wordproblems", "split": "test", "problems": 300, "config": dataclasses.asdict(model.config),
        "arms": arms, "chosen": "code 1", "codes": codes, "routing": routing,
        "findings": ["1. Turning the codes off costs 0.01 nats.", "   " + HOSTILE]}))
    return folder


class Elements(HTMLParser):
    """The elements of a page in their order, [tag, attributes, all text inside]."""

    def __init__(self, page):
        super().__init__()
        self.found, self.open = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append([tag, dict(attrs), ""])
        if tag != "meta":
            self.open.append(self.found[-1])

    def handle_endtag(self, tag):
        while self.open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        for element in self.open:
            element[2] += data

    def texts(self, tag, **attrs):
        return [text for t, a, text in self.found if t == tag and attrs.items() <= a.items()]


def write_page(folder, shown=ONE, **kwargs):
    run = run_folder(folder / "run", make(), **kwargs)
    report(run, make(), ENC, shown)
    return (run / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    write_page(folder, rows())
    return folder / "run" / "report.html"


@pytest.fixture(scope="module")
def elements(page):
    return Elements(page.read_text(encoding="utf-8"))


def test_counterfactuals_are_those_of_whole_forward_passes():
    """Broken if a chunk's numbers under a code were not those of the model run with exactly these codes."""
    model = make()
    ids, _ = encode_row(rows()[0], ENC)
    idx, after = torch.tensor([ids[:-1]]), torch.tensor([ids[1:]])
    assert idx.size(1) % K, "the last chunk should be a partial one"
    routed = model.route(idx).argmax(-1)
    wider = make(C + 1)  # the same model with one more code, all zeros: what an unsteered chunk has
    wider.load_state_dict({**model.state_dict(), "bigram": wider.bigram, "router.weight": wider.router.weight,
                           "codebook.weight": torch.cat([model.codebook.weight, torch.zeros(1, 32)])})
    chunks = counterfactuals(model, ids)
    assert [c["code"] for c in chunks] == routed[0].tolist() and len(set(routed[0].tolist())) > 2
    for m, chunk in enumerate(chunks):
        targets = torch.full_like(after, -1)
        targets[:, m * K : m * K + K] = after[:, m * K : m * K + K]
        expected = []
        for code in range(C + 1):
            codes = routed.clone()
            codes[0, m] = code
            expected.append(-wider(idx, targets, codes)[1].item() * (targets >= 0).sum().item())
        assert chunk["others"] == list(range(C))
        assert [*chunk["nats"], chunk["off"]] == pytest.approx(expected, abs=2e-4)
        assert chunk["routed"] == pytest.approx(expected[chunk["code"]], abs=2e-4)
        assert max(expected) - min(expected) > 0.01, "codes must matter, or nothing is tested"
        assert sum(chunk["probs"]) == pytest.approx(1)
        assert chunk["probs"][chunk["code"]] == max(chunk["probs"])


def test_chunks_join_to_the_text(elements):
    """Broken if any text, such as a character cut by a chunk's border, were lost or doubled."""
    ids = ENC.encode_ordinary(HOSTILE * 2)
    assert any("\ufffd" in ENC.decode(ids[i : i + K]) for i in range(0, len(ids), K)), "no character is cut"
    for start in (0, 1, 2):
        texts = chunk_texts(ENC, ids, K, start)
        assert "".join(texts) == HOSTILE * 2 and len(texts) == math.ceil((len(ids) + start) / K)
    shown = elements.texts("div", role="listbox")
    assert shown == [f"Question: {r['question']}\nAnswer: {r['answer']}" for r in rows()]


def test_own_answer_is_the_models_with_its_codes(elements):
    """Broken if the answer shown as the model's were another, or its chunks were coloured off the grid."""
    model, boxes = make(), []
    for tag, attrs, text in elements.found:
        if tag == "div":
            box = []
        if attrs.get("class") == "text":
            boxes.append(box)
        elif "data-c" in attrs:
            box.append((int(attrs["data-c"]), text))
    for row, box in zip(rows(), boxes[1::2], strict=True):
        ids, n = encode_row(row, ENC)
        new = model.generate([ids[:n]], 320, stop=end_token(ENC))[0]
        route = model.route(torch.tensor([(ids[:n] + new)[:BLOCK]]))[0].argmax(-1).tolist()
        chunks = range(n // K, math.ceil((n + len(new)) / K))
        assert [code for code, _ in box] == [route[min(m, len(route) - 1)] for m in chunks]
        assert "".join(text for _, text in box) == ENC.decode(new)


def test_answers_under_each_code_are_shown(elements):
    """Broken if a forced answer were missing, or stood under another code."""
    model, shown = make(), {}
    headings = [text for tag, _, text in elements.found if tag == "h4" and "everywhere" in text]
    for heading, text in zip(headings, elements.texts("div", **{"class": "text forced"}), strict=True):
        for code in heading.removeprefix("Answer with code ").removesuffix(" everywhere").split(", "):
            shown.setdefault(int(code), []).append(text)
    for code in range(C):
        for row, text in zip(rows(), shown[code], strict=True):
            ids, n = encode_row(row, ENC)
            everywhere = torch.full((1, math.ceil(BLOCK / K)), code)
            assert text == ENC.decode(model.generate([ids[:n]], 320, everywhere, end_token(ENC))[0]).strip()


def test_page_is_inert_and_alone(page, elements):
    """Broken if text of the data became markup, or the page could load or run anything that is not in it."""
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"https?:|@import|url\(|//\w", text), "a resource from elsewhere"
    tags = [tag for tag, _, _ in elements.found]
    assert tags.count("script") == 2 and not {"img", "link", "iframe", "object", "base", "form"} & set(tags)
    names = {name for _, attrs, _ in elements.found for name in attrs}
    assert not {"src", "style", "srcdoc", "href"} & names and not [a for a in names if a.startswith("on")]
    metas = [attrs for tag, attrs, _ in elements.found if tag == "meta"]
    [policy] = [a["content"] for a in metas if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy and "*" not in policy
    data = json.loads(elements.texts("script", id="data")[0])
    assert "".join(chunk["t"] for chunk in data[2]).count(HOSTILE) == 2


def test_charts_put_values_where_they_belong():
    """Broken if a line, a share or an interval were not drawn where its value is (by hand)."""
    line = page_module.svg_lines("t", "step", "nats", [0, 5, 10], {"a": [1.0, 3.0, 2.0]})
    assert 'points="62.0,206.0 254.0,14.0 446.0,110.0"' in line  # x from 62 to 446, y from 206 up to 14
    areas = page_module.svg_areas("t", "step", [0, 1], [[0.25, 0.75], [0.5, 0.5]])
    assert 'd="M62 158.0L446 110.0L446 206.0L62 206.0z"' in areas  # code 0, up to 25 and 50 %
    bars = page_module.svg_intervals("t", "x", [("a", (1.0, 0.0, 2.0)), ("b", (-1.0, -2.0, 1.0))])
    assert 'd="M316.0 26H446.0"' in bars and 'cx="251.0" cy="50"' in bars  # from -2 to 2: 186 to 446


def test_forced_codes_are_among_the_interventions(elements):
    """Broken if the code that was chosen on val were missing from a chart, or not marked in it."""
    charts = [words for words in elements.texts("desc") if "own codes, shuffled: " in words]
    assert len(charts) == 2  # likelihood and accuracy
    for words in charts:
        assert "code 0 everywhere: " in words and "code 1 everywhere, best on val: " in words


def test_what_is_missing_is_said(tmp_path):
    """Broken if a page without causal tests, without answers or with long problems failed or kept silent."""
    text = write_page(tmp_path, analysis=False)
    assert f"python analysis/causal.py {tmp_path / 'run'}</code> makes them" in text
    assert write_page(tmp_path, graded=False).count("<svg") == 8  # of 9
    long = {"question": "many words " * 200, "answer": "#### 1", "final": "1"}
    text = write_page(tmp_path, [long, *ONE, long])
    assert "2 problems are too long" in text and text.count("<article") == 1


def test_foreign_files_are_named(tmp_path):
    """Broken if a damaged file, or another model's analysis, gave a traceback or half a page."""
    run = run_folder(tmp_path / "run", make())
    with pytest.raises(ValueError, match="another model"):
        report(run, make(n_codes=7), ENC, ONE)
    (run / "metrics.jsonl").write_text('{"step": 1}\n[]')
    with pytest.raises(ValueError, match=r"metrics\.jsonl"):
        report(run, make(), ENC, ONE)
    assert not (run / "report.html").exists()


def test_the_command_writes_the_page(tmp_path, capsys):
    """Broken if `python analysis/report.py RUN` left no page in the run's folder, or a traceback."""
    model = make()
    run = run_folder(tmp_path / "run", model)
    torch.save({"config": vars(model.config), "model": model.state_dict(),
                "tokenizer": "wordproblems", "train": {"data": "wordproblems"}}, run / "ckpt.pt")
    page_module.main([str(run), "--rows", "1", "--device", "cpu"])
    assert str(run / "report.html") in capsys.readouterr().out
    assert (run / "report.html").read_text(encoding="utf-8").count("<article") == 1
    with pytest.raises(SystemExit):
        page_module.main([str(tmp_path / "nowhere")])
    assert capsys.readouterr().err.startswith("report.py: error: ")


# ---- in a real browser

@pytest.fixture
def tab(page):
    """The page in Chromium; at the end nothing may have been reported, asked or requested."""
    if not shutil.which("chromium") and os.environ.get("CI"):  # on a user's machine: skipped
        sudo = ["sudo"] if os.geteuid() and shutil.which("sudo") else []
        subprocess.run([*sudo, "apt-get", "update", "-q"], check=True)
        subprocess.run([*sudo, "apt-get", "install", "-q", "-y", "chromium"], check=True)
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if not found:
        assert not os.environ.get("CI"), "CI must have a browser"
        pytest.skip("no Chromium is installed")
    from playwright.sync_api import sync_playwright

    wrong = []
    with sync_playwright() as playwright:
        tab = playwright.chromium.launch(executable_path=found).new_page()
        tab.on("console", lambda message: wrong.append(message.text))
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        tab.on("request", lambda ask: ask.url != page.as_uri() and wrong.append(ask.url))
        tab.goto(page.as_uri())
        yield tab
    assert wrong == []


def check_panel(tab, number, i):
    """The panel must hold the model's numbers of chunk i of a problem, the best code first."""
    chunk = counterfactuals(make(), encode_row(rows()[number], ENC)[0])[i]
    panel, own = tab.locator(".panel").nth(number), chunk["code"]
    text = f"Chunk {i}: code {own}, router probability {100 * chunk['probs'][own]:.1f} %"
    assert panel.text_content().startswith(text)
    shown = panel.locator("li").evaluate_all("all => all.map(li => [...li.children].map(e => e.textContent))")
    gains = {k: float(text.replace("\u2212", "-").replace("routed", "0")) for k, text in shown}
    nats = {**{str(k): n for k, n in enumerate(chunk["nats"])}, "off": chunk["off"]}
    assert gains == pytest.approx({k: n - chunk["routed"] for k, n in nats.items()}, abs=2e-4)
    assert list(gains.values()) == sorted(gains.values(), reverse=True)
    assert [k for k, text in shown if "routed" in text] == [str(own)]


def test_keys_and_pointer_show_the_right_chunk(tab):
    """Broken if Tab, the arrow keys or the pointer led to another chunk's numbers, or to none."""
    focused = "document.activeElement.dataset.c + '|' + document.activeElement.textContent"
    last = math.ceil((len(encode_row(rows()[0], ENC)[0]) - 1) / K) - 1
    for key, i in (("Tab", 0), ("ArrowRight", 1), ("ArrowDown", 2), ("ArrowLeft", 1), ("End", last),
                   ("ArrowRight", last), ("Home", 0)):
        tab.keyboard.press(key)
        chunk = tab.locator("[role=listbox]").nth(0).locator("[role=option]").nth(i)
        assert tab.evaluate(focused) == f"{chunk.get_attribute('data-c')}|{chunk.text_content()}"
        check_panel(tab, 0, i)
    tab.keyboard.press("Tab")  # to the next problem, not through a hundred chunks
    heading = "document.activeElement.closest('article').querySelector('h3').textContent"
    assert tab.evaluate(heading) == "Problem 2"
    tab.locator("[role=listbox]").nth(2).locator("[role=option]").nth(4).hover()
    check_panel(tab, 2, 4)
