"""The page that analysis/report.py writes, as text and in a real browser."""

import dataclasses
import functools
import json
import math
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from analysis import report as page_module
from analysis.report import chunk_texts, counterfactuals, report
from data.tokens import encode_row, end_token, load_encoding, load_rows
from dlr import GPT, GPTConfig

ENC, C, K, BLOCK = load_encoding("wordproblems"), 5, 3, 136
HOSTILE = "</script><img src=x onerror=alert(1)>&amp;\u2028 \u00e9\U0001f600\u4f60"


ONE = [{"question": "What is 3 + 4?", "answer": "3 + 4 = 7\n#### 7", "final": "7"}]


def make(n_codes=C, chunk=K):
    torch.manual_seed(0)
    model = GPT(GPTConfig(ENC.n_vocab, BLOCK, 3, 2, 1, 32, n_codes=n_codes, chunk=chunk, steer_layer=1)).eval()
    torch.nn.init.normal_(model.codebook.weight, std=1.0)
    torch.nn.init.normal_(model.router.weight, std=0.3)
    return model


def rows():
    hostile = {"question": HOSTILE, "answer": f"{HOSTILE}\n#### 7", "final": "7"}
    return [*load_rows("wordproblems", "test", 1), *ONE, hostile]


def run_folder(folder, model, analysis=True, usage=True, steps=900):
    """A run's files with numbers that are only plausible: what eval.py --analyze and train.py write."""
    folder.mkdir(exist_ok=True)
    C = model.config.n_codes
    (folder / "config.json").write_text(json.dumps({"method": HOSTILE, "data": "wordproblems", "lr": 1e-3, "seed": 0}))
    with open(folder / "metrics.jsonl", "w") as f:
        for i in range(1, steps + 1):
            line = {"step": i, "loss": 2 / i, "generalist": 1 / i, "info_gain": 0.01 * math.sin(i), "active": 1.0,
                    "perplexity": C - 1 / i, "seconds": 0.1 * i}
            if usage and i % (steps // 50) == 0:
                weights = [1 + (k * i) % 7 for k in range(C)]
                line["usage"] = [w / sum(weights) for w in weights]
            f.write(json.dumps(line) + "\n")
    if not analysis:
        return folder
    arm = lambda x: {"nats": 0.5 + x, "strict": 0.5 - x, "nats_minus_on": [x, x - 0.02, x + 0.02],  # noqa: E731
                     "strict_minus_on": [-x, -x - 0.03, 0.03 - x], "helped": 3, "hurt": 9, "same": 288,
                     "mcnemar_p": 0.146, "changes_nothing": x == 0}
    arms = {"on": {"nats": 0.5, "strict": 0.5}, **{a: arm(0.01 * i) for i, a in enumerate(page_module.ARMS) if i}}
    order = [(k * 2 + 1) % C for k in range(C)]  # a permutation if C is odd
    codes = [{"code": k, "norm": 1.5 - k / C, "chunks": 10 * o, "share": o / sum(range(C)), "problems": 9 * o,
              "ablation": arm(0.02 * o - 0.03) | {"p_holm": 1 / (1 + o)} if o else None} for k, o in enumerate(order)]
    (folder / "analysis.json").write_text(json.dumps({
        "run": str(folder), "method": "dlr", "data": "wordproblems", "split": "test", "problems": 300, "left_out": 2,
        "seed": 0, "config": dataclasses.asdict(model.config), "arms": arms, "codes": codes,
        "sham": {"codes": [1, 4], **arm(0.0)},
        "ngrams": [{"codes": [1, 3], "chunks": 80, "problems": 60, "ablation": arm(0.04) | {"p_holm": 0.5}}],
        "codebook": {"used": C - 1, "fraction_used": 1 - 1 / C, "perplexity": 3.1, "cosine": None, "norms": [1.0] * C},
        "transitions": [[(i * j) % 4 for j in range(C)] for i in range(C)],
        "information_gain": {"mean": [0.01, 0.002, 0.02],
                             "by_position": [{"from": i, "to": i + 3, "tokens": 900 - i,
                                              "gain": [0.02 - i / 900, 0.01 - i / 900, 0.03 - i / 900]}
                                             for i in range(0, 24, 4)],
                             "by_class": {HOSTILE: {"tokens": 9, "gain": [0.1, -0.1, 0.3]},
                                          "digit": {"tokens": 900, "gain": [-0.01, -0.02, 0.0]}}},
        "routing": {"trained": {"class": {"entropy_bits": 2.03, "position": {"mi_bits": 0.4},
                                          "cmi_bits": {"excess": 0.13, "p": 0.06}}},
                    **{router: {"class": {"cmi_bits": {"excess": x, "low": x - 0.02, "high": x + 0.02}}}
                       for router, x in (("untrained", 0.08), ("random", -0.01))}},
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

    def groups(self, outer, inner):
        """For each outer element those inner ones that follow it: [[(attributes, text)]]; outer, inner: predicates."""
        groups = []
        for tag, attrs, text in self.found:
            if outer(tag, attrs):
                groups.append([])
            elif groups and inner(tag, attrs):
                groups[-1].append((attrs, text))
        return groups


def write_page(folder, model=None, rows=None, **kwargs):
    model = model or make()
    run_folder(folder / "run", model, **kwargs)
    report(folder / "run", model, ENC, rows or ONE, folder / "page.html")
    return (folder / "page.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    write_page(folder, rows=rows())
    return folder / "page.html"


@pytest.fixture(scope="module")
def elements(page):
    return Elements(page.read_text(encoding="utf-8"))


def test_counterfactuals_are_those_of_whole_forward_passes():
    """Broken if a chunk's numbers under some code were not those of the model run with exactly these codes."""
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
        assert sum(chunk["probs"]) == pytest.approx(1) and max(chunk["probs"]) == chunk["probs"][chunk["code"]]


def test_many_codes_are_cut_to_the_most_probable():
    """Broken if a large codebook were compared in full, or the codes kept were not the router's likeliest."""
    model = make(n_codes=40)
    for chunk in counterfactuals(model, encode_row(rows()[1], ENC)[0])[:5]:
        likeliest = sorted(range(40), key=lambda k: -chunk["probs"][k])[:32]
        assert chunk["others"] == sorted(likeliest) and len(chunk["nats"]) == 32


def test_chunks_join_to_the_text(elements):
    """Broken if a character cut by a chunk's border, or any text of a problem, were lost or doubled on the page."""
    for start in (0, 1, 2):
        ids = ENC.encode_ordinary(HOSTILE * 2)
        assert any("\ufffd" in ENC.decode(ids[i : i + K]) for i in range(0, len(ids), K)), "no character is cut"
        assert "".join(chunk_texts(ENC, ids, K, start)) == HOSTILE * 2
        assert len(chunk_texts(ENC, ids, K, start)) == math.ceil((len(ids) + start) / K)
    shown = elements.texts("div", role="listbox")
    assert shown == [f"Question: {r['question']}\nAnswer: {r['answer']}" for r in rows()]


def test_own_answer_is_the_models_with_its_codes(elements):
    """Broken if the answer shown as the model's were another, or its chunks were cut or coloured off the grid."""
    model = make()
    boxes = elements.groups(lambda tag, a: a.get("class") == "text", lambda tag, a: "data-c" in a)[1::2]
    for row, box in zip(rows(), boxes, strict=True):
        ids, n = encode_row(row, ENC)
        new = model.generate([ids[:n]], 320, stop=end_token(ENC))[0]
        whole = ids[:n] + new
        route = model.route(torch.tensor([whole[:BLOCK]]))[0].argmax(-1).tolist()
        chunks = range(n // K, math.ceil(len(whole) / K))
        assert [int(a["data-c"]) for a, _ in box] == [route[min(m, len(route) - 1)] for m in chunks]
        assert box[1][1].encode() in b"".join(map(ENC.decode_single_token_bytes, whole[chunks[1] * K :]))
        assert "".join(text for _, text in box) == ENC.decode(new)


def test_page_is_inert_and_alone(page, elements):
    """Broken if text of the data became markup, or the page could load or run anything that is not in it."""
    text = page.read_text(encoding="utf-8")
    assert len(text.encode()) < 300_000
    assert not re.search(r"https?:|@import|url\(|//\w", text), "a resource from elsewhere"
    tags = [tag for tag, _, _ in elements.found]
    assert tags.count("script") == 2 and not {"img", "link", "iframe", "object", "base", "form"} & set(tags)
    for tag, attrs, _ in elements.found:
        assert not [a for a in attrs if a.startswith("on") or a in ("src", "style", "srcdoc")], (tag, attrs)
        assert attrs.get("href", "#").startswith("#")
    [policy] = [a["content"] for _, a, _ in elements.found if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy and "*" not in policy
    data = json.loads(elements.texts("script", id="data")[0])
    assert "".join(chunk["t"] for chunk in data[2]).count(HOSTILE) == 2


def test_size_of_a_large_page(tmp_path):
    """Broken if 128 codes, one token a chunk, a long training and as many problems as are shown made over 2 MB."""
    model, size = make(n_codes=128, chunk=1), []
    run_folder(tmp_path / "run", model, steps=20_000)
    for n in (1, 3):
        report(tmp_path / "run", model, ENC, ONE * n, tmp_path / "page.html")
        size.append((tmp_path / "page.html").stat().st_size)
    each = (size[1] - size[0]) / 2 / (len(encode_row(ONE[0], ENC)[0]) - 1)  # bytes a chunk
    assert size[0] + page_module.MAX_CHUNKS * each < 2_000_000
    lines = [points.count(",") for points in re.findall(r'points="([^"]+)"', (tmp_path / "page.html").read_text())]
    assert len(lines) == 5 and 200 < max(lines) <= 400


def test_numbers_of_the_analysis_stand_in_its_tables(elements):
    """Broken if a table showed another number, sign or unit than analysis.json."""
    groups = elements.groups(lambda tag, attrs: tag == "tr", lambda tag, attrs: tag == "td")
    rows = [[text for _, text in row] for row in groups]
    [off] = [row for row in rows if row and row[0].startswith("off ")]
    assert off[1:] == ["0.5100", "+0.0100 [\u22120.0100, +0.0300]", "49.0", "\u22121.0 [\u22124.0, +2.0]",
                       "3", "9", "0.15", ""]
    assert ["class", "1.63", "+0.13", "+0.08 (+0.06 to +0.10)", "\u22120.01 (\u22120.03 to +0.01)", "0.06"] in rows
    codes = {row[0]: row[1:] for row in rows if len(row) == 7}
    assert codes["1"] == ["30.0", "27", "1.300", "+0.0300 [+0.0100, +0.0500]", "\u22123.0 [\u22126.0, +0.0]", "0.25"]
    assert codes["2"] == ["0.0", "0", "1.100", "", "", ""] and len(codes) == C
    assert rows[-1] == ["1\u20093", "80", "60", "+0.0400 [+0.0200, +0.0600]", "\u22124.0 [\u22127.0, \u22121.0]", "0.5"]


def test_charts_put_values_where_they_belong():
    """Broken if a line, a share or a heat map's cell were drawn at another place than its value's (by hand)."""
    line = page_module.svg_lines("t", "step", "nats", [0, 5, 10], {"a": [1.0, 3.0, 2.0]})
    left, right, top, bottom = 62, 460 - 14, 14, 250 - 44
    assert f'points="{left}.0,{bottom}.0 {(left + right) / 2:.1f},{top}.0 {right}.0,{(top + bottom) / 2:.1f}"' in line
    heat = page_module.svg_heatmap("t", "to", "from", [[0, 4], [2, 0]])
    side = (460 - 62 - 14 - 50) / 2
    assert f'fill-opacity="1.0" d="M{62 + side:.1f} 14.0h' in heat
    assert f'fill-opacity="0.5" d="M62.0 {14 + side:.1f}h' in heat
    assert heat.count("h167.00") == 2, "zeros stay empty"
    areas = page_module.svg_areas("t", "step", [0, 1], [[0.25, 0.75], [0.5, 0.5]])
    assert f'd="M62 {206 - 48:.1f}L446 {206 - 96:.1f}L446 206.0L62 206.0z"' in areas  # code 0, up to 25 and 50 %
    assert [page_module.ticks(*pair) for pair in ((0, 1), (-2, 3), (0, 100))] == [
        pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1]), [-2, -1, 0, 1, 2, 3], [0, 20, 40, 60, 80, 100]]


def test_thinned_lines_are_means():
    """Broken if thinning picked single steps (noise) or dropped the end of the training."""
    assert page_module.thin([1, 2, 3, 4, 5], [1.0, 3.0, 2.0, 6.0, 7.0], 3) == ([1.5, 3.5, 5], [2, 4, 7])
    assert page_module.thin([1, 2], [3, 4]) == ([1, 2], [3, 4])


def test_every_chart_has_words(page, elements):
    """Broken if a chart lacked what a screen reader reads, or an axis its unit."""
    charts = [i for i, (tag, attrs, _) in enumerate(elements.found) if tag == "svg" and attrs.get("role") == "img"]
    assert len(charts) == 8
    for i in charts:
        (title, _, a), (desc, _, b) = elements.found[i + 1 : i + 3]
        assert (title, desc) == ("title", "desc") and len(a) > 10 and len(b) > 10
    labels = {text for tag, _, text in elements.found if tag == "text"}
    assert {"nats / answer token", "nats / token [95 %]", "% of the codes", "share of chunks, %", "step",
            "from code", "to code"} <= labels


def test_runs_without_analysis_or_usage_say_so(tmp_path):
    """Broken if the page of a run that was not analysed, or is older than usage lines, failed or kept silent."""
    text = write_page(tmp_path, analysis=False)
    assert f"python eval.py --analyze {tmp_path / 'run'}</code> fills this part" in text
    assert "no usage lines" not in text and text.count("<svg") == 5 and "Frequent sequences" not in text
    text = write_page(tmp_path, analysis=False, usage=False)
    assert "metrics.jsonl has no usage lines" in text and text.count("<svg") == 4
    for path in (tmp_path / "run").iterdir():
        path.unlink()
    report(tmp_path / "run", make(), ENC, ONE, tmp_path / "page.html")
    assert "metrics.jsonl is missing" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "change nothing" not in text
    model = make()
    torch.nn.init.zeros_(model.codebook.weight)
    assert "change nothing" in write_page(tmp_path, model)


def test_analysis_without_answers(tmp_path):
    """Broken if what --no-generate leaves out failed the page, or left empty columns of accuracy."""
    write_page(tmp_path)
    drop = lambda d: {k: v for k, v in d.items() if k not in (  # noqa: E731
        "strict", "strict_minus_on", "helped", "hurt", "same", "mcnemar_p", "p_holm")}
    path = tmp_path / "run" / "analysis.json"
    path.write_text(json.dumps(json.loads(path.read_text(), object_hook=drop)))
    report(tmp_path / "run", make(), ENC, ONE, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "accuracy" not in text and "Holm" not in text and "+0.0300 [+0.0100, +0.0500]" in text


def test_problems_that_do_not_fit_are_counted(tmp_path):
    """Broken if a problem longer than the context stopped the page, or was left out in silence."""
    long = {"question": "many words " * 200, "answer": "#### 1", "final": "1"}
    run = run_folder(tmp_path / "run", make())
    report(run, make(), ENC, [long, *ONE, *ONE, long], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "2 problems are too long" in text and text.count("<article") == 2
    report(run, make(), ENC, [long], tmp_path / "page.html")
    assert "1 problems are too long" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name, text, match", [
    ("analysis.json", "{", "analysis.json"), ("analysis.json", "{}", "analysis.json.*'codes'"),
    ("metrics.jsonl", '{"step": 1}\n[]', "metrics.jsonl"), ("config.json", "no", "config.json")])
def test_foreign_files_are_named(tmp_path, name, text, match):
    """Broken if a damaged file of the run gave a traceback that does not name it, or half a page."""
    run = run_folder(tmp_path / "run", make())
    (run / name).write_text(text)
    with pytest.raises(ValueError, match=match):
        report(run, make(), ENC, ONE, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_analysis_of_another_model_is_refused(tmp_path):
    """Broken if the ablations of a model with other codes were shown beside this one's problems."""
    for other, match in ((make(n_codes=7), "of another model .7 codes, this has 5"), (make(chunk=2), "another model")):
        with pytest.raises(ValueError, match=match):
            report(run_folder(tmp_path / "run", other), make(), ENC, ONE, tmp_path / "page.html")


def test_page_is_whole_or_absent(tmp_path, monkeypatch):
    """Broken if an interrupted write left half a page, or destroyed the old one."""
    write_page(tmp_path)
    old = (tmp_path / "page.html").read_bytes()

    def fail(path, data):
        path.touch()
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="disk full"):
        write_page(tmp_path)
    assert (tmp_path / "page.html").read_bytes() == old
    assert {p.name for p in tmp_path.iterdir()} == {"page.html", "run"}


# ----------------------------------------------------------------------------------------------------------------------
# In a real browser.

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser():
    """Chromium through Playwright. In CI it is installed if it is missing; on a user's machine the tests skip."""
    find = lambda: next(filter(None, map(shutil.which, NAMES)), None)  # noqa: E731
    if not find() and os.environ.get("CI"):
        sudo = ["sudo"] if os.geteuid() and shutil.which("sudo") else []
        subprocess.run([*sudo, "apt-get", "update", "-q"], check=True)
        subprocess.run([*sudo, "apt-get", "install", "-q", "-y", "chromium"], check=True)
    if not find():
        assert not os.environ.get("CI"), "CI must have a browser"
        pytest.skip(f"none of {', '.join(NAMES)} is installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find())
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, page):
    """A function that opens the page; at the end nothing may have been reported, asked or requested."""
    contexts, wrong = [], []

    def visit(width=1200, **kwargs):
        contexts.append(browser.new_context(viewport={"width": width, "height": 800}, **kwargs))
        tab = contexts[-1].new_page()
        tab.on("console", lambda message: wrong.append(message.text))
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        tab.on("request", lambda request: request.url != page.as_uri() and wrong.append(request.url))
        tab.goto(page.as_uri())
        return tab

    yield visit
    for context in contexts:
        context.close()
    assert wrong == []


@functools.cache
def expected(number):
    return counterfactuals(make(), encode_row(rows()[number], ENC)[0])


def check_panel(tab, number, i):
    """The panel must hold the numbers of chunk i of a problem as the model gives them, the best code first."""
    chunk, panel = expected(number)[i], tab.locator(".panel").nth(number)
    code, p = re.fullmatch(rf"Chunk {i}: code (\d+), router probability ([\d.]+) %",
                           panel.locator("strong").text_content()).groups()
    assert int(code) == chunk["code"] and float(p) == pytest.approx(100 * max(chunk["probs"]), abs=0.06)
    shown = panel.locator("li").evaluate_all("all => all.map(li => [...li.children].map(e => e.textContent))")
    gains = {k: float(re.sub("[\u25b2\u25bc ]", "", text).replace("\u2212", "-").replace("routed", "0"))
             for k, text in shown}
    true = {str(k): n - chunk["routed"] for k, n in enumerate(chunk["nats"])} | {"off": chunk["off"] - chunk["routed"]}
    assert gains == pytest.approx(true, abs=2e-4) and list(gains.values()) == sorted(gains.values(), reverse=True)
    assert [k for k, text in shown if "routed" in text] == [code]
    del true["off"]
    assert [k for k, text in shown if "\u25b2" in text] == [max(true, key=true.get)]
    assert [k for k, text in shown if "\u25bc" in text] == [min(true, key=true.get)]


def test_keys_and_pointer_show_the_right_chunk(visit):
    """Broken if Tab, the arrow keys, Home, End or the pointer led to another chunk's numbers, or to none."""
    tab = visit()
    focused = "document.activeElement.dataset.c + '|' + document.activeElement.textContent"
    last = math.ceil((len(encode_row(rows()[0], ENC)[0]) - 1) / K) - 1
    for _ in range(12):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.role") == "option":
            break
    for key, i in ((None, 0), ("ArrowRight", 1), ("ArrowDown", 2), ("ArrowLeft", 1), ("End", last),
                   ("ArrowRight", last), ("ArrowUp", last - 1), ("Home", 0), ("ArrowLeft", 0)):
        if key:
            tab.keyboard.press(key)
        chunk = tab.locator("[role=listbox]").nth(0).locator("[role=option]").nth(i)
        assert tab.evaluate(focused) == f"{chunk.get_attribute('data-c')}|{chunk.text_content()}"
        assert chunk.get_attribute("aria-selected") == "true" and tab.locator("[aria-selected=true]").count() == 3
        check_panel(tab, 0, i)
    tab.keyboard.press("Tab")  # to the next problem, not through a hundred chunks
    assert tab.evaluate("document.activeElement.closest('article').querySelector('h3').textContent") == "Problem 2"
    tab.locator("[role=listbox]").nth(2).locator("[role=option]").nth(4).hover()
    check_panel(tab, 2, 4)
    check_panel(tab, 0, 0)
    assert tab.locator(".panel").nth(2).locator("[aria-live=polite]").count() == 1


def test_tables_sort_by_key_and_click(visit):
    """Broken if a column sorted as text, the wrong way, or put codes that never fired among the others."""
    tab = visit()
    table = tab.locator("table:has(caption:has-text('how often the router'))")
    order = lambda: [int(c) for c in table.locator("td:first-child").all_text_contents()]  # noqa: E731
    head = table.locator("th").nth(6)
    assert order() == list(range(C)) and head.get_attribute("aria-sort") == "none"
    head.locator("button").focus()
    tab.keyboard.press("Enter")  # Holm p is 1 / (1 + o) for o = 1, 3, 0, 2, 4: code 2 has none
    assert order() == [4, 1, 3, 0, 2] and head.get_attribute("aria-sort") == "ascending"
    tab.keyboard.press("Enter")
    assert order() == [0, 3, 1, 4, 2] and head.get_attribute("aria-sort") == "descending"
    table.locator("th button").nth(4).click()  # nats: .02 o - .03
    assert order() == [0, 3, 1, 4, 2] and table.locator("[aria-sort=ascending]").count() == 1
    assert head.get_attribute("aria-sort") == "none"


CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const light = colour => {
    canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map(v => v / 255).map(
      v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const ratio = (a, b) => (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  const body = getComputedStyle(document.body), found = {};
  for (const e of document.querySelectorAll("[data-c]"))
    found[e.dataset.c] = ratio(light(getComputedStyle(e).color), light(getComputedStyle(e).backgroundColor));
  for (const css of ["small", "h4", "a", "caption", "th button", ".note"]) {
    const e = document.querySelector(css);
    if (e) found[css] = ratio(light(getComputedStyle(e).color), light(body.backgroundColor));
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(visit, scheme, tmp_path):
    """Broken if text fell below WCAG's contrast of 4.5 on the page or on the colour of any code."""
    tab = visit(color_scheme=scheme)
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background))) > 384) == (scheme == "light")
    ratios = tab.evaluate(CONTRAST)
    assert len(ratios) >= 5 + 4 and min(ratios.values()) > 4.5, ratios
    colours = tab.locator("[data-c]").evaluate_all("all => [...new Set(all.map(e => getComputedStyle(e).background))]")
    assert len(colours) == 5, "every code has a colour of its own"
    assert len(tab.screenshot(path=tmp_path / f"{scheme}.png", full_page=True)) > 100_000


def test_narrow_windows_do_not_scroll_sideways(visit):
    """Broken if a phone had to scroll the page sideways, or the panel hid the chunk that it is about."""
    tab = visit(width=360)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    tab.locator("[role=listbox]").nth(0).locator("[role=option]").first.focus()
    for _ in range(40):
        tab.keyboard.press("ArrowRight")
        below = tab.evaluate("document.activeElement.getBoundingClientRect().bottom")
        assert below <= tab.locator(".panel").nth(0).evaluate("e => e.getBoundingClientRect().top")


def test_page_is_readable_without_scripts(visit):
    """Broken if problems, tables or charts came from the script, or its absence were not said."""
    tab = visit(java_script_enabled=False)
    assert tab.get_by_text("need JavaScript").is_visible()
    assert visit().get_by_text("need JavaScript").count() == 0
    assert tab.get_by_text("Turning the codes off costs").is_visible()
    assert tab.locator("[role=option]").first.is_visible() and tab.locator("svg[role=img]").count() == 8
