"""
One page about a trained run, RUN/report.html: which code steers each chunk of a problem and what every
other code would have done there; the causal tests as pictures; how the codes came to be in training.

    python analysis/report.py runs/NAME              # six problems; causal.py's tests, if it was run before
    python analysis/report.py runs/NAME --split val --rows 12

The page stands alone: no network, no library, charts drawn here as SVG. Its policy (a
Content-Security-Policy by hashes) runs the one script at the end of this file and nothing else, so that
no text of the data can act.
"""

import argparse
import base64
import codecs
import dataclasses
import hashlib
import html
import json
import math
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from analysis.causal import in_words
from data.plumbing import find_device, one_line_errors, safe_output, write_text
from data.tokens import encode_row, end_tokens, load_rows
from dlr import KVCache
from eval import MAX_EACH, answer, check_golds, each_code, grade, load_run

SHOWN = 32  # codes compared in a chunk: the most probable ones


# --------------------------------------------------------------------------------------------------
# What the codes do in one problem.


@torch.no_grad()
def counterfactuals(model, ids):
    """
    What each chunk of ids[:-1] would be under other codes, all other chunks being as routed: a list of M
    dicts,

        code    the router's choice            probs   its softmax (C,)
        others  the codes compared, (R,)       nats    log p of the tokens predicted in the chunk, (R,)
        routed  log p as routed                off     log p with this chunk unsteered

    A chunk's K states predict K tokens, each the next one. One pass does: R + 2 rows (as routed,
    unsteered, the others) read the same past, which is the routed one.
    """
    cfg, device = model.config, model.cos.device
    x = torch.tensor([ids], device=device)
    h = model.lower(x[:, :-1])  # (1, T, H)
    z = model.router_logits(h[:, :: cfg.chunk])[0]  # (M, C)
    cache = [KVCache() for _ in model.layers]
    chunks = []
    for m, own in enumerate(z.argmax(-1).tolist()):
        others = z[m].topk(min(SHOWN, cfg.n_codes)).indices.sort().values  # (R,)
        vectors = model.codebook(torch.cat([others.new_tensor([own, own]), others])) * cfg.steer_scale
        vectors[1] = 0  # (R + 2, H)
        logp = 0
        for t in range(m * cfg.chunk, min((m + 1) * cfg.chunk, h.size(1))):
            logits = model.lm_head(model.upper(h[:, t : t + 1] + vectors[:, None], cache)).float()
            logp = logp + logits[:, 0].log_softmax(-1)[:, x[0, t + 1]]  # (R + 2,)
        for layer in cache[cfg.steer_layer :]:  # later chunks see this one as routed
            layer.keys, layer.values = (kv[:1].expand_as(kv) for kv in (layer.keys, layer.values))
        routed, off, *nats = logp.tolist()
        chunks.append({"code": own, "probs": z[m].softmax(-1).tolist(), "others": others.tolist(),
                       "nats": nats, "routed": routed, "off": off})
    return chunks


def chunk_texts(enc, ids, K, start=0):
    """
    The text of every K tokens, on a grid that began `start` tokens before the first. Joined they are the
    whole text: a character cut in two belongs to the later part.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    cuts = range(-start, len(ids), K)
    raw = [b"".join(enc.decode_single_token_bytes(i) for i in ids[max(0, a) : a + K] if i < enc.n_vocab)
           for a in cuts]
    return [decoder.decode(piece, final=i == len(raw) - 1) for i, piece in enumerate(raw)]


# --------------------------------------------------------------------------------------------------
# Text and charts.

WIDTH, HEIGHT, LEFT, BOTTOM, PAD = 460, 250, 62, 44, 14


def esc(value):
    """Any text as HTML that shows it and does nothing; carriage returns survive the parser, zero bytes cannot."""
    return html.escape(str(value)).replace("\r", "&#13;").replace("\0", "\ufffd")


def interval(triple, scale=1, digits=4):
    d, low, high = (f"{scale * v:+.{digits}f}".replace("-", "\u2212") for v in triple)
    return f"{d} [{low}, {high}]"


def ticks(low, high, n=6):
    """At most n + 1 round numbers between low and high."""
    step = 10 ** math.floor(math.log10((high - low) / n))
    step = next(step * m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= n)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def svg(title, words, body, height=HEIGHT):
    """A chart with the words that a screen reader reads."""
    return (f'<figure><figcaption>{esc(title)}</figcaption><svg viewBox="0 0 {WIDTH} {height}" role="img">'
            f"<title>{esc(title)}</title><desc>{esc(words)}</desc>{body}</svg></figure>")


def label(x, y, text, anchor="middle", more=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{esc(text)}</text>'


def frame(x_range, y_range, x_label, y_label="", height=HEIGHT, left=LEFT):
    """(X, Y, body): functions from data to pixels, and the axes; without y_label there is no y axis."""
    (x0, x1), (y0, y1) = ((a, b) if b > a else (a - 0.5, a + 0.5) for a, b in (x_range, y_range))
    bottom, right = height - BOTTOM, WIDTH - PAD

    def X(x):
        return left + (x - x0) / (x1 - x0) * (right - left)

    def Y(y):
        return bottom - (y - y0) / (y1 - y0) * (bottom - PAD)

    body = label((left + right) / 2, height - 6, x_label)
    for x in ticks(x0, x1):
        body += f'<path class="grid" d="M{X(x):.1f} {PAD}V{bottom}"/>'
        body += label(X(x), bottom + 16, f"{x:.6g}")
    for y in ticks(y0, y1) if y_label else []:
        body += f'<path class="grid" d="M{left} {Y(y):.1f}H{right}"/>'
        body += label(left - 6, Y(y) + 4, f"{y:.6g}", "end")
    middle = (PAD + bottom) / 2
    return X, Y, body + label(14, middle, y_label, more=f' transform="rotate(-90 14 {middle:.1f})"')


def thin(values, n):
    """At most n means of equally many neighbours; values: numbers, or tensors."""
    size = math.ceil(len(values) / n)
    parts = [values[i : i + size] for i in range(0, len(values), size)]
    return [sum(part) / len(part) for part in parts]


def svg_lines(title, x_label, y_label, xs, series):
    """series: {name: ys}, one line each, thinned to 200 points; with a line at 0 where it lies within."""
    drawn = {name: thin(ys, 200) for name, ys in series.items()}
    values = [y for ys in drawn.values() for y in ys]
    X, Y, body = frame((xs[0], xs[-1]), (min(values), max(values)), x_label, y_label)
    if min(values) < 0 < max(values):
        body += f'<path class="axis" d="M{LEFT} {Y(0):.1f}H{WIDTH - PAD}"/>'
    for i, (name, ys) in enumerate(drawn.items()):
        points = " ".join(f"{X(x):.1f},{Y(y):.1f}" for x, y in zip(thin(xs, 200), ys))
        body += f'<polyline class="line s{i}" points="{points}"/>'
        if len(series) > 1:  # the legend, where no line runs
            x = LEFT + 12 if ys[-1] > ys[0] else WIDTH - 190
            body += f'<path class="line s{i}" d="M{x} {PAD + 8 + 17 * i}h22"/>'
            body += label(x + 28, PAD + 12 + 17 * i, name, "start")
    ends = [f"{name}: {ys[0]:.4g} at first, {ys[-1]:.4g} at last" for name, ys in series.items()]
    return svg(title, f"{y_label} over {x_label}. {'; '.join(ends)}.", body)


def svg_areas(title, x_label, xs, rows):
    """Shares of the codes, rows (times, C) stacked: code 0 at the bottom, numbers on the broad ones."""
    X, Y, body = frame((xs[0], xs[-1]), (0, 100), x_label, "share of chunks, %")
    below = [0.0] * len(xs)
    for k in range(len(rows[0])):
        above = [b + 100 * float(row[k]) for b, row in zip(below, rows)]
        there = [*zip(xs, above)]
        edge = [f"{X(x):.0f} {Y(y):.1f}" for x, y in there + [*zip(xs, below)][::-1]]
        body += f'<path class="area k{k}" d="M{"L".join(edge)}z"><title>code {k}</title></path>'
        for i in {len(xs) // 4, 3 * len(xs) // 4}:
            if above[i] - below[i] > 5.5:
                body += label(X(xs[i]), Y((above[i] + below[i]) / 2) + 4, k)
        below = above
    last = rows[-1]
    most = sorted(range(len(last)), key=lambda k: -last[k])[:5]
    return svg(title, "Most used at the end: " + ", ".join(f"{k}: {last[k]:.1%}" for k in most), body)


def svg_intervals(title, x_label, rows):
    """rows: [(name, (value, low, high))], one under the other, with a line at 0."""
    height = PAD + BOTTOM + 24 * len(rows)
    ends = [0.0, *(v for _, triple in rows for v in triple)]
    left = 3 * LEFT  # names are long
    X, _, body = frame((min(ends), max(ends)), (0, 1), x_label, height=height, left=left)
    body += f'<path class="axis" d="M{X(0):.1f} {PAD}V{height - BOTTOM}"/>'
    for i, (name, (v, low, high)) in enumerate(rows):
        y = PAD + 24 * i + 12
        body += label(left - 8, y + 4, name, "end")
        body += f'<path class="line s0" d="M{X(low):.1f} {y}H{X(high):.1f}"/>'
        body += f'<circle class="dot" cx="{X(v):.1f}" cy="{y}" r="4"/>'
    words = "; ".join(f"{name}: {interval(triple)}" for name, triple in rows)
    return svg(title, words, body, height)


# --------------------------------------------------------------------------------------------------
# The page, section by section.


def header(run, model, config, analysis, steps):
    cfg = model.config
    facts = {"method": config["method"], "data": config["data"], "codes C": cfg.n_codes, "chunk K": cfg.chunk,
             "steered after block": f"{cfg.steer_layer} of {cfg.n_layer}", "scale \u03b1": cfg.steer_scale,
             "parameters": f"{sum(p.numel() for p in model.parameters()):,}", "training steps": len(steps),
             "learning rate": config["lr"], "of codes": config["code_lr"], "seed": config["seed"]}
    if analysis:
        facts["analysed"] = f"{analysis['problems']} problems of {analysis['data']}/{analysis['split']}"
    listed = "".join(f"<div><dt>{name}</dt><dd>{esc(value)}</dd></div>" for name, value in facts.items())
    return f"<header><p>Dynamic Latent Routing</p><h1>{esc(run)}</h1><dl>{listed}</dl></header>"


def tests(run, analysis):
    """The findings of causal.py in sentences, and the pictures that they rest on."""
    if not analysis:
        return ("<p class=note>The causal tests of this run are missing: <code>python analysis/causal.py "
                f"{esc(run)}</code> makes them.</p>")
    said = "".join(f"<li{' class=more' if s.startswith(' ') else ''}>{esc(s)}</li>" for s in analysis["findings"])
    arms = [(words, analysis["arms"][name]) for name, words in in_words(analysis).items()]
    charts = svg_intervals("Other codes on the same problems: likelihood", "nats / answer token, minus on [95 %]",
                           [(words, arm["nats_minus_on"]) for words, arm in arms])
    if "strict" in analysis["arms"]["on"]:
        charts += svg_intervals("Other codes on the same problems: accuracy", "points, minus on [95 %]", [
            (words, [100 * x for x in arm["strict_minus_on"]]) for words, arm in arms])
    bits = []
    for kind, r in analysis["routing"].items():
        trained = r["bits_beyond_position"]["excess"]
        bits += [(kind, [trained] * 3), ("untrained routers", r["untrained"]), ("random codes", r["random"])]
    charts += svg_intervals("What codes tell about a token\u2019s label beyond its position", "bits [range]", bits)
    for kind, r in analysis["routing"].items():
        if kind in ("operation", "subtask") and r["ngrams"]:
            ys = {name: [100 * g[key] for g in r["ngrams"]] for name, key in (
                ("this problem\u2019s codes", "paired"), ("another problem\u2019s codes", "null_mean"))}
            charts += svg_lines(f"Purity of n codes in a row for the {kind}", "n", "purity, %",
                                [g["n"] for g in r["ngrams"]], ys)
    codes = sorted(analysis["codes"], key=lambda c: -c["share"])
    ablated = [(f"{c['code']} ({c['share']:.1%})", c["ablation"]) for c in codes if c["ablation"]]
    if ablated:
        charts += svg_intervals("Other codes wherever code k (its share) fires", "nats / answer token, minus on [95 %]",
                                [(name, a["nats_minus_on"]) for name, a in ablated])
    return f'<ul class="findings">{said}</ul><div class="charts">{charts}</div>'


def spans(texts, codes, answer=None, options=""):
    """Chunks as coloured text. The code is drawn by the style sheet, so that copied text is the text alone."""
    out = ""
    for i, (text, code) in enumerate(zip(texts, codes)):
        css = f"k{code} answer" if answer is not None and i >= answer else f"k{code}"
        out += f'<span class="{css}" data-c="{code}"{options}>{esc(text)}</span>'
    return out


def under_each(forced, i):
    """HTML: what problem i is answered with each code forced everywhere; forced: {"code 0": texts, ...}."""
    said = {}  # text: the codes that say it
    for code, texts in enumerate(forced.values()):
        said.setdefault(texts[i].strip(), []).append(code)
    return "".join(f"<h4>Answer with code {', '.join(map(str, codes))} everywhere</h4>"
                   f'<div class="text forced">{spans([text], codes)}</div>' for text, codes in said.items())


@torch.no_grad()
def problems(model, enc, rows, max_new_tokens):
    """(HTML, the panels' data): each problem with every chunk's alternatives and what the model answers."""
    K, S = model.config.chunk, model.config.block_size
    encoded = [(row, *encode_row(row, enc)) for row in rows]
    shown = [(row, ids, n) for row, ids, n in encoded if len(ids) - 1 <= S]
    prompts = [ids[:n] for _, ids, n in shown]
    own = model.generate(prompts, max_new_tokens, stop=end_tokens(enc))
    arms = each_code(model) if model.config.n_codes <= MAX_EACH else []
    forced = answer(model, enc, prompts, arms, max_new_tokens)
    page, data = "", []
    for number, ((row, ids, n), new) in enumerate(zip(shown, own), 1):
        chunks = counterfactuals(model, ids)
        data.append([{
            "c": c["code"], "k": c["others"], "n": [round(v, 4) for v in c["nats"]], "t": predicted,
            "r": round(c["routed"], 4), "o": round(c["off"], 4), "p": round(c["probs"][c["code"]], 4),
        } for c, predicted in zip(chunks, chunk_texts(enc, ids[1:], K))])
        text = spans(chunk_texts(enc, ids[:-1], K), [c["code"] for c in chunks], n // K,
                     ' role="option" tabindex="-1" aria-selected="false"')
        whole = torch.tensor([(ids[:n] + new)[:S]], device=model.cos.device)
        codes = model.route(whole)[0].argmax(-1).tolist()
        texts = chunk_texts(enc, new, K, n % K)
        verdict = "right" if grade("".join(texts), row["final"])["strict"] else "wrong"
        page += (f'<article class="problem"><h3>Problem {number}</h3><div class="pair"><div>'
                 f'<div class="text" role="listbox" aria-orientation="horizontal" '
                 f'aria-label="Chunks of problem {number}; arrow keys move">{text}</div>'
                 f"<h4>The model\u2019s own answer with its codes: {verdict} (gold: {esc(row['final'])})</h4>"
                 f'<div class="text">{spans(texts, codes[n // K :] + codes[-1:])}</div>'
                 f"{under_each(forced, number - 1)}</div>"
                 f'<aside class="panel" aria-label="Details of problem {number}"></aside></div></article>')
    if len(shown) < len(rows):
        page += f"<p class=note>{len(rows) - len(shown)} problems are too long for the model and left out.</p>"
    return page, data


def training(steps):
    """The charts of metrics.jsonl."""
    xs = [s["step"] for s in steps]
    usage = thin([torch.tensor(s["usage"]) for s in steps], 100)
    charts = svg_areas("Use of the codes in training", "step", thin(xs, 100), [u.tolist() for u in usage])
    losses = {"all terms": [s["loss"] for s in steps], "generalist (codes off)": [s["generalist"] for s in steps]}
    charts += svg_lines("Loss", "step", "nats / answer token", xs, losses)
    for key, title, unit in (("info_gain", "Information gain, training rows", "nats / answer token"),
                             ("perplexity", "Perplexity of the codes in a batch", "codes")):
        charts += svg_lines(title, "step", unit, xs, {key: [s[key] for s in steps]})
    return f'<div class="charts">{charts}</div>'


def report(run, model, enc, rows, max_new_tokens=320):
    """Write RUN/report.html. rows: the problems to show. ValueError names a file that is not as it should be."""
    run = Path(run)
    if not model.codebook.weight.any():
        raise ValueError("every code of this run is zero: there is nothing to show")
    check_golds(rows)
    try:
        path, analysis = run / "config.json", None
        config = json.loads(path.read_text(encoding="utf-8"))
        path = run / "metrics.jsonl"
        steps = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        charts = training(steps)
        path = run / "analysis.json"
        if path.exists():
            analysis = json.loads(path.read_text(encoding="utf-8"))
            if analysis["config"] != dataclasses.asdict(model.config):
                raise ValueError("of another model; run causal.py again")
        head, findings = header(run, model, config, analysis, steps), tests(run, analysis)
    except (ValueError, KeyError, TypeError, IndexError) as e:
        raise ValueError(f"{path}: not as train.py and causal.py write it: {e!r}") from e
    shown, data = problems(model.eval(), enc, rows, max_new_tokens)
    style = STYLE + "".join(f".k{k}{{--h:{k * 137.508 % 360:.0f}}}" for k in range(model.config.n_codes))
    data = json.dumps(data, separators=(",", ":"))
    for c in "<>&":  # so that no text closes the script element
        data = data.replace(c, f"\\u{ord(c):04x}")

    def sha(text):
        return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    page = PAGE.format(run=esc(run), sha_style=sha(style), sha_script=sha(SCRIPT), style=style, script=SCRIPT,
                       header=head, problems=shown, tests=findings, charts=charts, data=data,
                       K=model.config.chunk)
    write_text(run / "report.html", page.encode("utf-8", "replace").decode())


# --------------------------------------------------------------------------------------------------
# The page's frame, looks and behaviour.

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src '{sha_style}'; \
script-src '{sha_script}'; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{run}: codes of a DLR run</title><style>{style}</style></head><body>
{header}<main><section><h2>Problems, chunk by chunk</h2>
<p>Every {K} tokens are a chunk, in the colour and with the number of its code; chunks of the answer are
underlined. A chunk\u2019s code steers {K} states, which predict the tokens one place later: the numbers beside
the text are log-likelihoods of those next tokens, with other codes in this chunk\u2019s place and every other
chunk as routed. Point at a chunk, or reach a problem with Tab and move with the arrow keys, Home and End.</p>
<p class="note" id="script">The details of a chunk need JavaScript, which did not run.</p>
{problems}</section>
<section><h2>What do the codes do?</h2>{tests}</section>
<section><h2>Training</h2>{charts}</section></main>
<script type="application/json" id="data">{data}</script><script>{script}</script></body></html>
"""

STYLE = """
:root{--fg:#1c1d20;--soft:#5a5e66;--line:#dcdcd6;--accent:#2456c7;--bad:#b3401e}
*{box-sizing:border-box}
body{margin:0 auto;max-width:84rem;padding:1.5rem;background:#fbfbf9;color:var(--fg);
font:1rem/1.55 system-ui,sans-serif}
header p{margin:0;color:var(--soft)}h1{margin:0 0 1rem;overflow-wrap:anywhere}
h4{margin:1rem 0 .35rem;color:var(--soft)}p{max-width:75ch}
dl{display:flex;flex-wrap:wrap;gap:.6rem 1.8rem;margin:0}
dt{color:var(--soft);font-size:.8rem}dd{margin:0;font-weight:600}
.note{padding:.6rem .9rem;border-left:4px solid var(--accent);background:#fff}
.findings{max-width:100ch;padding:0;list-style:none}.findings li{margin:.9rem 0 .2rem;font-weight:600}
.findings .more{margin:.2rem 0 .2rem 1.2rem;font-weight:400}
:focus-visible{outline:3px solid var(--accent);outline-offset:2px}
.pair{display:grid;grid-template-columns:minmax(0,1fr) 25rem;gap:1.5rem;align-items:start}
.text{padding:.9rem 1rem;border:1px solid var(--line);background:#fff;white-space:pre-wrap;overflow-wrap:anywhere;
line-height:2}
[data-c],.chip{background:oklch(86% .085 var(--h))}
[data-c]{padding:.16em .1em;border-radius:.2em;box-decoration-break:clone;unicode-bidi:isolate;
border-left:1px solid #fff}
[data-c]::before{content:attr(data-c);margin:0 .15em 0 .1em;font:600 .62rem/1 monospace;vertical-align:.5em}
[role=option]{cursor:pointer}.answer{text-decoration:underline 2px var(--accent);text-underline-offset:.3em}
.answer::before{display:inline-block;text-decoration:none}
[aria-selected=true]{outline:2px solid var(--fg);outline-offset:1px}
.panel{position:sticky;top:1rem;padding:.8rem 1rem;border:1px solid var(--line);background:#fff;font-size:.88rem}
.panel:empty{display:none}.panel p{margin:0 0 .5rem}.panel q{white-space:pre-wrap;overflow-wrap:anywhere}
.all{display:grid;grid-auto-flow:column;grid-template-columns:repeat(3,1fr);gap:1px .7rem;margin:0;padding:0;
list-style:none;font-size:.76rem;font-variant-numeric:tabular-nums}
.all li{display:flex;align-items:center;gap:.3rem;padding:1px 2px}
.all span:last-child{flex:1;text-align:right;white-space:nowrap;
background:linear-gradient(var(--way),var(--way)) 100% 100%/var(--size) 2px no-repeat}
.all .routed{outline:2px solid var(--fg)}
.chip{display:inline-block;min-width:1.9em;padding:0 .3em;text-align:center;font:600 .78rem/1.5 monospace}
.none{background:none;border:1px dashed var(--soft)}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,25rem),1fr));gap:1.5rem}
figure{margin:0}figcaption{font-weight:600;font-size:.92rem}svg{display:block;width:100%}
svg text{fill:var(--soft);font:11px system-ui,sans-serif}
.grid,.axis,.line{fill:none;stroke:var(--line)}.axis{stroke:var(--soft)}.line{stroke-width:2;stroke:var(--accent)}
.line.s1{stroke:var(--bad);stroke-dasharray:5 3}.dot{fill:var(--accent)}.area{fill:oklch(75% .12 var(--h))}
@media (max-width:64rem){.pair{grid-template-columns:minmax(0,1fr)}html{scroll-padding-bottom:44vh}
.panel{top:auto;bottom:.5rem;max-height:40vh;overflow-y:auto}.all{grid-template-columns:repeat(2,1fr)}}
"""

SCRIPT = """
"use strict";
document.getElementById("script").remove();
const data = JSON.parse(document.getElementById("data").textContent);
const sign = x => (x < 0 ? "\u2212" : "+") + Math.abs(x).toFixed(4);
const make = (tag, css, text, parent) => {
  const e = document.createElement(tag);
  e.className = css; e.textContent = text; parent.append(e);
  return e;
};
document.querySelectorAll(".problem").forEach((problem, number) => {
  const chunks = [...problem.querySelectorAll("[role=option]")], panel = problem.querySelector(".panel");
  const summary = make("p", "", "", panel), predicts = make("p", "", "Next tokens: ", panel);
  const quote = make("q", "", "", predicts), all = make("ol", "all", "", panel);
  summary.setAttribute("aria-live", "polite");
  predicts.append(". Change of their log-likelihood under each code, nats:");
  function show(i) {
    const c = data[number][i];
    summary.textContent = `Chunk ${i}: code ${c.c}, router probability ${(100 * c.p).toFixed(1)} %. ` +
      `Log-likelihood of the next tokens ${c.r.toFixed(4).replace("-", "\u2212")} nats.`;
    quote.textContent = c.t;
    const rows = c.k.map((code, j) => ({code, gain: c.n[j] - c.r}));
    rows.push({code: "off", gain: c.o - c.r});
    rows.sort((a, b) => b.gain - a.gain);
    const top = Math.max(1e-9, ...rows.map(r => Math.abs(r.gain)));
    const columns = matchMedia("(max-width: 64rem)").matches ? 2 : 3;
    all.replaceChildren();
    all.style.gridTemplateRows = `repeat(${Math.ceil(rows.length / columns)}, auto)`;
    for (const row of rows) {
      const li = make("li", row.code === c.c ? "routed" : "", "", all);
      make("span", row.code === "off" ? "chip none" : "chip k" + row.code, row.code, li);
      const bar = make("span", "", row.code === c.c ? "routed" : sign(row.gain), li);
      bar.style.setProperty("--size", 100 * Math.abs(row.gain) / top + "%");
      bar.style.setProperty("--way", row.gain < 0 ? "var(--bad)" : "var(--accent)");
    }
    chunks.forEach((e, j) => { e.setAttribute("aria-selected", j === i); e.tabIndex = j === i ? 0 : -1; });
  }
  chunks.forEach((e, i) => {
    e.addEventListener("mouseenter", () => show(i));
    e.addEventListener("focus", () => show(i));
    e.addEventListener("click", () => e.focus());
    e.addEventListener("keydown", event => {
      const last = chunks.length - 1, on = Math.min(i + 1, last), back = Math.max(i - 1, 0);
      const to = {ArrowRight: on, ArrowDown: on, ArrowLeft: back, ArrowUp: back, Home: 0, End: last}[event.key];
      if (to === undefined) return;
      event.preventDefault();
      chunks[to].focus();
    });
  });
  show(0);
});
"""


def main(argv=None):
    safe_output()
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder made by train.py")
    parser.add_argument("--data", help="as in train.py (default: what the run was trained on)")
    parser.add_argument("--split", default="test", help="split of the data (default: test)")
    parser.add_argument("--rows", type=int, default=6, help="problems shown (default: 6)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    args = parser.parse_args(argv)
    with one_line_errors("report.py"):
        model, enc, _, flags = load_run(args.run)
        model.to(find_device(args.device)[0])
        report(args.run, model, enc, load_rows(args.data or flags["data"], args.split, args.rows))
    print(f"page: {Path(args.run) / 'report.html'}")


if __name__ == "__main__":
    main()
