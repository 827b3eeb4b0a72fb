"""
One HTML page about a trained run: which code steers each chunk of a problem and what every other code would have done
there, the codes with their ablations, and how they came to be over training. Made by `eval.py --report RUN`.

The page stands alone: no network, no library, charts drawn here as SVG. Its policy (a Content-Security-Policy by
hashes) runs the one script at the end of this file and nothing else, so that no text of the data can act.
"""

import base64
import codecs
import dataclasses
import hashlib
import html
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F

from data.tokens import encode_row, end_token
from eval import grade, write

SHOWN = 32  # codes that a chunk's alternatives are computed for: the most probable ones
MAX_CHUNKS = 1500  # of all problems together; what is beyond would make the page too large
ARMS = {"on": "the router's codes", "off": "no codes: the plain language model", "random": "uniformly drawn codes",
        "shuffled": "the problem's own codes, in another order", "position": "codes of other problems, same place",
        "mean": "the mean vector in every chunk", "directions": "every vector replaced by a random one of its norm",
        "untrained": "routes of an untrained router"}


# ----------------------------------------------------------------------------------------------------------------------
# What the codes do in one problem.


@torch.no_grad()
def counterfactuals(model, ids):
    """
    What each chunk of ids[:-1] would be under other codes, all other chunks being as routed: a list of M dicts,

        code    the router's choice            probs   its softmax (C,)
        others  the codes compared, (R,)       nats    log p of the tokens predicted in the chunk under each, (R,)
        routed  log p as routed, nats          off     the same with this chunk unsteered

    A chunk's K positions predict K tokens, each the next one. Causal, so that one pass does: chunk after chunk, R + 2
    rows (as routed, unsteered, the others) read the same cache of the past as routed.
    """
    cfg, device = model.config, model.embed_tokens.weight.device
    x = torch.tensor([ids], device=device)
    h = model.lower(x[:, :-1])  # (1, T, H)
    z = model.router_logits(h[:, :: cfg.chunk])[0]  # (M, C)
    probs, codes, R, T = z.softmax(-1), z.argmax(-1), min(SHOWN, cfg.n_codes), h.size(1)
    cache = model._cache(R + 2, T, range(cfg.steer_layer, cfg.n_layer))
    chunks = []
    for m, code in enumerate(codes.tolist()):
        here, end = slice(m * cfg.chunk, (m + 1) * cfg.chunk), min((m + 1) * cfg.chunk, T)
        others = z[m].topk(R).indices.sort().values
        vectors = cfg.steer_scale * model.codebook(torch.cat([codes[m : m + 1], codes[m : m + 1], others]))  # (R+2, H)
        vectors[1] = 0
        pos = torch.arange(here.start, end, device=device)
        seen = torch.arange(end, device=device) <= pos[:, None]
        out = model.upper(h[:, here] + vectors[:, None], pos, cache, here.start, seen)
        targets = x[:, 1:][:, here].expand(R + 2, -1)
        logp = -F.cross_entropy(model.lm_head(out).float().mT, targets, reduction="none").sum(-1).cpu()  # (R+2,)
        for layer in cache.values():
            for t in layer:
                t[:, :, here] = t[:1, :, here].clone()  # what later chunks see: this one as routed
        chunks.append({"code": code, "probs": probs[m].tolist(), "others": others.tolist(), "nats": logp[2:].tolist(),
                       "routed": logp[0].item(), "off": logp[1].item()})
    return chunks


def chunk_texts(enc, ids, K, start=0):
    """
    The text of every K tokens, on a grid that began `start` tokens before the first. Joined they are the text of all:
    a character cut in two belongs to the later part. Tokens that were added to the vocabulary have no text.
    """
    decoder, cuts = codecs.getincrementaldecoder("utf-8")(errors="replace"), range(-start, len(ids), K)
    raw = [b"".join(enc.decode_single_token_bytes(i) for i in ids[max(0, a) : a + K] if i < enc.n_vocab) for a in cuts]
    return [decoder.decode(b, final=i == len(raw) - 1) for i, b in enumerate(raw)]


# ----------------------------------------------------------------------------------------------------------------------
# Text and tables.


def esc(value):
    """Any text as HTML that shows it and does nothing; carriage returns survive the parser, zero bytes cannot."""
    return html.escape(str(value)).replace("\r", "&#13;").replace("\0", "\ufffd")


def signed(x, digits=4):
    return f"{x:+.{digits}f}".replace("-", "\u2212")


def interval(triple, scale=1, digits=4):
    d, low, high = (signed(scale * v, digits) for v in triple)
    return f"{d} [{low}, {high}]"


def chip(code):
    return f'<span class="chip k{code}">{code}</span>'


def table(caption, head, rows, sortable=False):
    """head: column names; rows: lists of cells, each HTML, or (HTML, number that sorts it; None comes last)."""
    cells = []
    for row in rows:
        pairs = [cell if isinstance(cell, tuple) else (cell, None) for cell in row]
        tds = [f"<td{'' if v is None else f' data-v={chr(34)}{v:.6g}{chr(34)}'}>{h}</td>" for h, v in pairs]
        cells.append("<tr>" + "".join(tds) + "</tr>")
    name = (lambda s: f'<th scope="col" aria-sort="none"><button>{s}</button></th>') if sortable else (
        lambda s: f'<th scope="col">{s}</th>')
    return (f'<div class="scroll" role="region" tabindex="0" aria-label="{caption}"><table>'
            f"<caption>{caption}</caption><thead><tr>{''.join(map(name, head))}</tr></thead>"
            f"<tbody>{''.join(cells)}</tbody></table></div>")


# ----------------------------------------------------------------------------------------------------------------------
# Charts.

WIDTH, HEIGHT, LEFT, BOTTOM, PAD = 460, 250, 62, 44, 14


def ticks(low, high, n=6):
    """At most n + 1 round numbers between low and high."""
    step = 10 ** math.floor(math.log10((high - low) / n))
    step = next(step * m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= n)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def svg(title, desc, body, width=WIDTH, height=HEIGHT):
    return (f'<figure><figcaption>{esc(title)}</figcaption><svg viewBox="0 0 {width} {height}" role="img">'
            f"<title>{esc(title)}</title><desc>{esc(desc)}</desc>{body}</svg></figure>")


def label(x, y, text, anchor="middle", turn=False, css=""):
    more = (f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turn else "") + (f' class="{css}"' if css else "")
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{esc(text)}</text>'


def frame(x_range, y_range, x_label, y_label="", height=HEIGHT, left=LEFT):
    """(X, Y, body): functions from data to pixels, and the axes with ticks; without y_label there is no y axis."""
    (x0, x1), (y0, y1) = ((a, b) if b > a else (a - 0.5, a + 0.5) for a, b in (x_range, y_range))
    bottom, right = height - BOTTOM, WIDTH - PAD
    X = lambda x: left + (x - x0) / (x1 - x0) * (right - left)  # noqa: E731
    Y = lambda y: bottom - (y - y0) / (y1 - y0) * (bottom - PAD)  # noqa: E731
    body = label((left + right) / 2, height - 6, x_label)
    for x in ticks(x0, x1):
        body += f'<path class="grid" d="M{X(x):.1f} {PAD}V{bottom}"/>' + label(X(x), bottom + 16, f"{x:.6g}")
    for y in ticks(y0, y1) if y_label else []:
        body += f'<path class="grid" d="M{left} {Y(y):.1f}H{right}"/>' + label(left - 6, Y(y) + 4, f"{y:.6g}", "end")
    return X, Y, body + label(14, (PAD + bottom) / 2, y_label, turn=True)


def thin(xs, ys, n=400):
    """At most n points: means of equally many neighbours."""
    size = math.ceil(len(xs) / n)
    parts = [(xs[i : i + size], ys[i : i + size]) for i in range(0, len(xs), size)]
    return [sum(x) / len(x) for x, _ in parts], [sum(y) / len(y) for _, y in parts]


def svg_lines(title, x_label, y_label, xs, series, zero=False):
    """series: {name: ys}, one line each; with `zero` a line marks 0."""
    thinned = {name: thin(xs, ys) for name, ys in series.items()}
    values = [y for _, ys in thinned.values() for y in ys] + [0.0] * zero
    X, Y, body = frame((xs[0], xs[-1]), (min(values), max(values)), x_label, y_label)
    if zero:
        body += f'<path class="axis" d="M{LEFT} {Y(0):.1f}H{WIDTH - PAD}"/>'
    for i, (name, (px, py)) in enumerate(thinned.items()):
        points = " ".join(f"{X(x):.1f},{Y(y):.1f}" for x, y in zip(px, py))
        body += f'<polyline class="line s{i}" points="{points}"/>'
        if len(series) > 1:
            body += (f'<path class="line s{i}" d="M{WIDTH - 150} {PAD + 8 + 17 * i}h22"/>'
                     + label(WIDTH - 122, PAD + 12 + 17 * i, name, "start"))
    size = math.ceil(len(xs) / 400)
    each = f"Each point is the mean of {size} steps. " if size > 1 else ""
    ends = "; ".join(f"{name}: {ys[0]:.4g} at first, {ys[-1]:.4g} at last" for name, ys in series.items())
    return svg(title, f"{each}{y_label} over {x_label}. {ends}.", body)


def svg_areas(title, x_label, xs, rows):
    """Shares of the codes, rows (times, C), stacked: code 0 at the bottom, numbers on the broad ones."""
    X, Y, body = frame((xs[0], xs[-1]), (0, 100), x_label, "share of chunks, %")
    below = [0.0] * len(xs)
    for k in range(len(rows[0])):
        above = [b + 100 * row[k] / max(sum(row), 1e-9) for b, row in zip(below, rows)]
        if max(a - b for a, b in zip(above, below)) > 0.05:
            edge = [f"{X(x):.0f} {Y(y):.1f}" for x, y in [*zip(xs, above), *reversed([*zip(xs, below)])]]
            body += f'<path class="area k{k}" d="M{"L".join(edge)}z"><title>code {k}</title></path>'
            for i in {len(xs) // 4, 3 * len(xs) // 4}:
                if above[i] - below[i] > 5.5:
                    body += label(X(xs[i]), Y((above[i] + below[i]) / 2) + 4, k, css="on-area")
        below = above
    last = sorted(range(len(rows[-1])), key=lambda k: -rows[-1][k])[:5]
    return svg(title, "At the end the most used codes are " + ", ".join(f"{k}: {rows[-1][k]:.1%}" for k in last), body)


def svg_heatmap(title, x_label, y_label, matrix):
    """matrix: n rows of n numbers >= 0, drawn downwards; the stronger, the more. Ten levels, zeros empty."""
    n, top, side = len(matrix), max(max(map(max, matrix)), 1e-9), WIDTH - LEFT - PAD - 50
    size, height = side / n, side + PAD + BOTTOM
    paths = [""] * 11
    for i, row in enumerate(matrix):
        for j, v in enumerate(row):
            cell = f"M{LEFT + j * size:.1f} {PAD + i * size:.1f}h{size:.2f}v{size:.2f}h-{size:.2f}z"
            paths[min(10, math.ceil(10 * v / top))] += cell  # v / top may round to just above 1
    body = f'<rect class="empty" x="{LEFT}" y="{PAD}" width="{side}" height="{side}"/>'
    body += "".join(f'<path class="heat" fill-opacity="{level / 10}" d="{d}"/>'
                    for level, d in enumerate(paths) if level and d)
    for k in range(0, n, 2 ** max(0, math.ceil(math.log2(n / 12)))):
        body += label(LEFT - 6, PAD + (k + 0.5) * size + 4, k, "end")
        body += label(LEFT + (k + 0.5) * size, PAD + side + 14, k)
    for level in range(11):  # the legend
        x, y = LEFT + side + 12, PAD + (10 - level) * 14
        body += f'<rect class="heat" fill-opacity="{level / 10}" x="{x}" y="{y}" width="12" height="14"/>'
        if level % 5 == 0:
            body += label(x + 16, y + 11, f"{level / 10 * top:.2g}", "start")
    body += label(LEFT + side / 2, height - 8, x_label) + label(14, PAD + side / 2, y_label, turn=True)
    return svg(title, f"From 0 to {top:.3g}; rows: {y_label}, columns: {x_label}.", body, height=height)


def svg_intervals(title, x_label, rows):
    """rows: [(name, (value, low, high))], one under the other, with a line at 0."""
    height, ends = PAD + BOTTOM + 24 * len(rows), [0.0, *(v for _, triple in rows for v in triple)]
    X, _, body = frame((min(ends), max(ends)), (0, 1), x_label, height=height, left=2 * LEFT)  # names are longer
    body += f'<path class="axis" d="M{X(0):.1f} {PAD}V{height - BOTTOM}"/>'
    for i, (name, (v, low, high)) in enumerate(rows):
        y = PAD + 24 * i + 12
        body += label(2 * LEFT - 8, y + 4, name, "end") + f'<path class="line s0" d="M{X(low):.1f} {y}H{X(high):.1f}"/>'
        body += f'<circle class="dot" cx="{X(v):.1f}" cy="{y}" r="4"/>'
    return svg(title, "; ".join(f"{name}: {interval(triple)}" for name, triple in rows), body, height=height)


def svg_bar(triple, top, worse):
    """A bar from 0 with its interval, for a table's cell. top: the column's greatest value; worse: its bad sign."""
    v, low, high = (60 + 56 * x / top for x in triple)
    css, left, width = "bad" if worse * triple[0] > 0 else "good", min(v, 60), abs(v - 60)
    return (f'<svg class="bar" viewBox="0 0 120 16" aria-hidden="true"><path class="axis" d="M60 0V16"/>'
            f'<rect class="{css}" x="{left:.1f}" y="4" width="{width:.1f}" height="8"/>'
            f'<path class="whisker" d="M{low:.1f} 8H{high:.1f}"/></svg>')


# ----------------------------------------------------------------------------------------------------------------------
# The page, section by section.


def header(run, model, config, analysis, steps, seed):
    cfg = model.config
    facts = {"method": config.get("method"), "data": config.get("data"), "codes C": cfg.n_codes,
             "tokens a chunk K": cfg.chunk, "steered after block": f"{cfg.steer_layer} of {cfg.n_layer}",
             "scale \u03b1": cfg.steer_scale, "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
             "training steps": steps[-1]["step"] if steps else None,
             "training time": f"{steps[-1]['seconds']:.0f} s" if steps else None,
             "learning rate": config.get("lr"), "of codes and router": config.get("code_lr"),
             "seed": config.get("seed", seed)}
    if analysis:
        left = f", {analysis['left_out']} too long left out" if analysis["left_out"] else ""
        facts["analysed"] = f"{analysis['problems']} problems of {analysis['data']}/{analysis['split']}{left}"
    listed = "".join(f"<div><dt>{name}</dt><dd>{esc(v)}</dd></div>" for name, v in facts.items() if v is not None)
    return f"<header><p>Dynamic Latent Routing</p><h1>{esc(run)}</h1><dl>{listed}</dl></header>"


def arms(run, model, analysis):
    """The findings in plain sentences, and the arms that they rest on."""
    page = ""
    if not model.codebook.weight.any():
        page += '<p class="note">Every vector of the codebook is zero: the codes of this model change nothing.</p>'
    if not analysis:
        return page + ('<p class="note">There is no analysis of this run yet: <code>python eval.py --analyze '
                       f"{esc(run)}</code> fills this part, ablations, transitions and held-out information gain.</p>")
    found = "".join(f"<li{' class=more' if s.startswith(' ') else ''}>{esc(s)}</li>" for s in analysis["findings"])
    rows, graded = [], "strict" in analysis["arms"]["on"]
    for name, arm in analysis["arms"].items():
        other = name != "on"
        row = [f"<b>{esc(name)}</b> <small>{ARMS.get(name, '')}</small>", f"{arm['nats']:.4f}"]
        row += [interval(arm["nats_minus_on"]) if other else ""]
        if graded:
            row += [f"{100 * arm['strict']:.1f}", *([interval(arm["strict_minus_on"], 100, 1), arm["helped"],
                                                     arm["hurt"], f"{arm['mcnemar_p']:.2g}"] if other else [""] * 4)]
        rows.append(row + ["changes nothing" if arm.get("changes_nothing") else ""])
    head = ["codes", "nats / answer token", "minus on [95 %]"]
    head += ["accuracy, %", "minus on, points [95 %]", "helped", "hurt", "McNemar p"] * graded + ["note"]
    page += f'<ul class="findings">{found}</ul>' + table(
        "The same problems under other codes. More nats are worse; helped and hurt count problems.", head, rows)
    routing = analysis["routing"]
    if not routing:
        return page
    rows = []
    for kind, own in routing["trained"].items():
        told = {name: routers[kind]["cmi_bits"] for name, routers in routing.items()}
        ranges = [f" ({signed(c['low'], 2)} to {signed(c['high'], 2)})" if "low" in c else "" for c in told.values()]
        rows.append([esc(kind), f"{own['entropy_bits'] - own['position']['mi_bits']:.2f}",
                     *(signed(c["excess"], 2) + span for c, span in zip(told.values(), ranges)),
                     f"{own['cmi_bits']['p']:.2g}"])
    return page + table("What codes tell about a token\u2019s label beyond its position, bits above chance, with the "
                        "range over untrained routers; p of the trained one",
                        ["label", "all there is to tell", *map(esc, routing), "p"], rows)


def spans(texts, codes, answer=None, options=""):
    """Chunks as coloured text. The code's number is drawn by the style sheet, so that copied text is the text alone."""
    return "".join(f'<span class="k{c}{" answer" if answer is not None and i >= answer else ""}" data-c="{c}"{options}>'
                   f"{esc(t)}</span>" for i, (t, c) in enumerate(zip(texts, codes)))


def problems(model, enc, rows, suffix, max_new_tokens):
    """(HTML, the panels' data, rows left out): problems with their chunks' alternatives and the model's own answers."""
    K, S, device = model.config.chunk, model.config.block_size, model.embed_tokens.weight.device
    shown, chunks = [], 0
    for row in rows:
        ids, n_prompt = encode_row(row, enc, suffix)
        size = math.ceil((len(ids) - 1) / K)
        if len(ids) - 1 <= S and chunks + size <= MAX_CHUNKS:
            chunks += size
            shown.append((row, ids, n_prompt))
    own = model.generate([ids[:n] for _, ids, n in shown], max_new_tokens, stop=end_token(enc))
    page, data = "", []
    for number, ((row, ids, n), new) in enumerate(zip(shown, own), 1):
        chunks = counterfactuals(model, ids)
        data.append([{"c": c["code"], "k": c["others"], "n": [round(v, 4) for v in c["nats"]],
                      "p": sorted(([round(v, 4), k] for k, v in enumerate(c["probs"])), reverse=True)[:6],
                      "r": round(c["routed"], 4), "o": round(c["off"], 4), "t": predicted}
                     for c, predicted in zip(chunks, chunk_texts(enc, ids[1:], K))])
        text = spans(chunk_texts(enc, ids[:-1], K), [c["code"] for c in chunks], n // K,
                     ' role="option" tabindex="-1" aria-selected="false"')
        codes = model.route(torch.tensor([(ids[:n] + new)[:S]], device=device))[0].argmax(-1).tolist()
        texts = chunk_texts(enc, new, K, n % K)
        try:
            verdict = "right" if grade("".join(texts), row["final"])["strict"] else "wrong"
        except ValueError:  # a gold answer of a kind that is not graded
            verdict = "not graded"
        page += (f'<article class="problem"><h3>Problem {number}</h3><div class="pair"><div>'
                 f'<div class="text" role="listbox" aria-orientation="horizontal" '
                 f'aria-label="Chunks of problem {number}; arrow keys move">{text}</div>'
                 f"<h4>The model\u2019s own answer with its codes: {verdict} (gold: {esc(row['final'])})</h4>"
                 f'<div class="text">{spans(texts, codes[n // K :] + codes[-1:])}</div></div>'
                 f'<aside class="panel" aria-label="Details of problem {number}"></aside></div></article>')
    return page, data, len(rows) - len(shown)


def code_tables(model, analysis, usage):
    """The codes with what removing each one changes; without an analysis, what model and training alone tell."""
    norms = model.codebook.weight.norm(dim=-1).tolist()
    if not analysis:
        rows = [[(chip(k), k), (f"{100 * usage[k]:.1f}", usage[k]) if usage else "", (f"{norms[k]:.3f}", norms[k])]
                for k in range(len(norms))]
        return table("Codes; the share is a running average at the end of training",
                     ["code", "share, %", "vector norm"], rows, sortable=True)
    ablated = [c["ablation"] for c in analysis["codes"] + analysis["ngrams"] if c["ablation"]]
    if analysis.get("sham"):
        ablated.append(analysis["sham"])
    keys = [("nats_minus_on", 1, 4, "nats / answer token"), ("strict_minus_on", 100, 1, "accuracy, points")]
    keys = [key for key in keys if any(key[0] in a for a in ablated)]
    top = {key: max([1e-12, *(abs(v) for a in ablated if key in a for v in a[key])]) for key, *_ in keys}

    def effect(a):
        """Cells of an ablation: each difference as a bar and in numbers, and p."""
        cells = []
        for key, scale, digits, _ in keys:
            if a and key in a:
                bar = svg_bar(a[key], top[key], 1 if key == "nats_minus_on" else -1)
                cells.append((bar + interval(a[key], scale, digits), a[key][0]))
            else:
                cells.append("")
        p = (a or {}).get("p_holm")
        return cells + ([(f"{p:.2g}", p) if p is not None else ""] if generated else [])

    generated = any("p_holm" in a for a in ablated)
    head = [f"{name}: change [95 %]" for *_, name in keys] + ["p (Holm)"] * generated
    rows = [[(chip(c["code"]), c["code"]), (f"{100 * c['share']:.1f}", c["share"]), (c["problems"], c["problems"]),
             (f"{c['norm']:.3f}", c["norm"]), *effect(c["ablation"])] for c in analysis["codes"]]
    page = table("Codes: how often the router chose each, and what changes when other codes take its place",
                 ["code", "share, %", "problems", "vector norm", *head], rows, sortable=True)
    if analysis.get("sham"):
        sham = analysis["sham"]
        page += (f"<p>Sham: the same done to {' '.join(map(chip, sham['codes']))}, which never fires, must change "
                 f"nothing. It changes {interval(sham['nats_minus_on'])} nats.</p>")
    if analysis["ngrams"]:
        rows = [["\u2009".join(map(chip, g["codes"])), (g["chunks"], g["chunks"]), (g["problems"], g["problems"]),
                 *effect(g["ablation"])] for g in analysis["ngrams"]]
        page += table("Frequent sequences of codes, and what changes when other codes take their place",
                      ["codes", "times", "problems", *head], rows, sortable=True)
    book = analysis["codebook"]
    cosine = "" if book["cosine"] is None else f" Mean cosine between vectors: {book['cosine']:.3f}."
    return page + (f"<p>{book['used']} of {len(norms)} codes are used ({book['fraction_used']:.0%}); perplexity of "
                   f"their use: {book['perplexity']:.1f}.{cosine}</p>")


def training(steps, analysis):
    """The charts."""
    if not steps:
        page = '<p class="note">metrics.jsonl is missing: nothing is known about the training of this run.</p>'
    else:
        xs, charts, used = [s["step"] for s in steps], "", [s for s in steps if "usage" in s]
        losses = {name: [s[key] for s in steps] for key, name in (("loss", "loss"), ("generalist", "generalist"))
                  if key in steps[0]}
        if used:
            charts += svg_areas("Use of the codes (running average)", "step", [s["step"] for s in used],
                                [s["usage"] for s in used])
        charts += svg_lines("Loss: all terms; generalist (codes off)", "step", "nats / answer token", xs, losses)
        for key, title, unit, scale in (
                ("info_gain", "Information gain of the codes, training rows", "nats / answer token", 1),
                ("active", "Active codes (more than 0.1 % of chunks)", "% of the codes", 100),
                ("perplexity", "Perplexity of the codes\u2019 use", "codes", 1)):
            if key in steps[0]:
                charts += svg_lines(title, "step", unit, xs, {title: [scale * s[key] for s in steps]},
                                    zero=key == "info_gain")
        page = f'<div class="charts">{charts}</div>'
        if not used:
            page = ('<p class="note">metrics.jsonl has no usage lines: the run is older than they are, or has no codes.'
                    " The use of the codes over training cannot be shown.</p>") + page
    if not analysis:
        return page
    counts, gain = analysis["transitions"], analysis["information_gain"]
    shares = [[100 * v / max(sum(row), 1) for v in row] for row in counts]
    charts, gains = svg_heatmap("Which code follows which, % of the next codes", "to code", "from code", shares), ""
    if gain["by_position"]:
        gains += svg_intervals("Information gain by place in the answer", "nats / token [95 %]", [
            (f"tokens {g['from']}\u2013{g['to']}", g["gain"]) for g in gain["by_position"]])
    if gain["by_class"]:
        gains += svg_intervals("Information gain by kind of token", "nats / token [95 %]", [
            (f"{name[:16]} ({g['tokens']})", g["gain"]) for name, g in gain["by_class"].items()])
    return page + (f"<h3>On held-out problems</h3><p>Information gain of the codes over no codes: "
                   f"{interval(gain['mean'])} nats a token; above 0 the codes help.</p>"
                   f'<div class="charts">{charts}<div>{gains}</div></div>')


def report(run_folder, model, enc, rows, out, suffix=(), seed=0, max_new_tokens=320):
    """
    Write the page about the run in `run_folder`, its `model` and encoding `enc`, to the file `out` (whole or not at
    all). rows: the problems to show, as `load_rows` gives them; suffix: token ids that end every prompt; seed: the
    run's, where its config.json is missing. ValueError names a file of the run that is not as it should be.
    """
    folder, C = Path(run_folder), model.config.n_codes
    config, analysis, steps = {}, None, []
    try:
        path = folder / "config.json"
        config = json.loads(path.read_text()) if path.exists() else {}
        path = folder / "metrics.jsonl"
        steps = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        charts = training(steps, None)
        path = folder / "analysis.json"
        if path.exists():
            analysis = json.loads(path.read_text())
            charts = training(steps, analysis)
            if len(analysis["codes"]) != C or analysis["config"] != dataclasses.asdict(model.config):
                raise ValueError(f"of another model ({len(analysis['codes'])} codes, this has {C}); analyse again")
        head, findings = header(folder, model, config, analysis, steps, seed), arms(folder, model, analysis)
        codes = code_tables(model, analysis, next((s["usage"] for s in reversed(steps) if "usage" in s), None))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as e:
        raise ValueError(f"{path}: not as train.py and eval.py --analyze write it: {e!r}") from e
    chunks, data, left_out = problems(model, enc, rows, suffix, max_new_tokens)
    if left_out:
        chunks += f'<p class="note">{left_out} problems are too long for the model or for this page and left out.</p>'
    hues = "".join(f".k{k}{{--h:{k * 137.508 % 360:.0f};--t:{k % 3 - 1}}}" for k in range(C))
    style, data = STYLE + hues, json.dumps(data, separators=(",", ":"))
    for c in "<>&":  # so that no text closes the script element
        data = data.replace(c, f"\\u{ord(c):04x}")
    sha = lambda s: "sha256-" + base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()  # noqa: E731
    page = PAGE.format(run=esc(folder), sha_style=sha(style), sha_script=sha(SCRIPT), style=style, script=SCRIPT,
                       header=head, findings=findings, problems=chunks, codes=codes, charts=charts, data=data,
                       K=model.config.chunk, some="" if C <= SHOWN else f"the {SHOWN} most probable of ")
    write(Path(out), lambda p: p.write_bytes(page.encode("utf-8", "replace")))


# ----------------------------------------------------------------------------------------------------------------------
# The page's frame, looks and behaviour.

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src '{sha_style}'; \
script-src '{sha_script}'; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<title>{run}: codes of a DLR run</title><style>{style}</style></head><body>
{header}<nav aria-label="Sections"><a href="#findings">Findings</a> <a href="#problems">Problems</a>
<a href="#codes">Codes</a> <a href="#training">Training</a></nav><main>
<section id="findings"><h2>Findings</h2>{findings}</section>
<section id="problems"><h2>Problems, chunk by chunk</h2>
<p>Every {K} tokens are a chunk, in the colour and with the number of its code; chunks of the answer are underlined.
The code of chunk <i>m</i> steers the states at positions <i>m</i>K to <i>m</i>K + K \u2212 1 (K = {K}), and these
predict the tokens one place later: the numbers beside the text are log-likelihoods of those next tokens, in the prompt
too, under {some}all codes in this chunk\u2019s place, with every other chunk as routed. Point at a chunk, or reach a
problem with Tab and move with the arrow keys, Home and End.</p>
<p class="note" id="script">The details of a chunk and the sorting of tables need JavaScript, which did not run.</p>
{problems}</section>
<section id="codes"><h2>Codes</h2>{codes}</section>
<section id="training"><h2>Training and use</h2>{charts}</section></main>
<script type="application/json" id="data">{data}</script><script>{script}</script></body></html>
"""

STYLE = """
:root{--bg:#fbfbf9;--fg:#1c1d20;--soft:#5a5e66;--line:#dcdcd6;--card:#fff;--accent:#2456c7;--bad:#b3401e;--mid:86%;
--tier:5%;--chroma:.075;--area:68%;--on:#111}
@media (prefers-color-scheme:dark){:root{--bg:#131417;--fg:#e9e9e6;--soft:#a6abb4;--line:#34373d;--card:#1b1d21;
--accent:#8fb3ff;--bad:#ff9a76;--mid:39%;--tier:6%;--chroma:.085;--area:60%}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:84rem;padding:1.5rem clamp(1rem,3vw,2.5rem) 4rem;background:var(--bg);color:var(--fg);
font:1rem/1.55 system-ui,sans-serif}
header p{margin:0;color:var(--soft);font-size:.85rem;letter-spacing:.08em;text-transform:uppercase}
h1{margin:.1rem 0 1rem;font-size:clamp(1.6rem,4vw,2.3rem);line-height:1.15;overflow-wrap:anywhere}
h2{margin:2.2rem 0 .6rem;font-size:1.4rem}section+section>h2{margin-top:3.2rem}
h3{margin:1.75rem 0 .5rem;font-size:1.05rem}h4{margin:1rem 0 .35rem;font-size:.9rem;color:var(--soft)}
dl{display:flex;flex-wrap:wrap;gap:.6rem 1.8rem;margin:0}dt{color:var(--soft);font-size:.8rem}
dd{margin:0;font-weight:600;font-variant-numeric:tabular-nums}
p{max-width:75ch}small{color:var(--soft);font-size:.8rem}code{font-size:.9em}
.findings{max-width:90ch;padding:0;list-style:none}.findings li{margin:.9rem 0 .2rem;font-weight:600}
.findings .more{margin:.2rem 0 .2rem 1.2rem;font-weight:400}
.note{padding:.6rem .9rem;border-left:4px solid var(--accent);background:var(--card)}
nav{position:sticky;top:0;z-index:2;display:flex;gap:1.2rem;margin-top:1.2rem;padding:.5rem 0;background:var(--bg);
border-bottom:1px solid var(--line);overflow-x:auto}a{color:var(--accent)}html{scroll-padding:3.5rem 0 1rem}
:focus-visible{outline:3px solid var(--accent);outline-offset:2px}
[data-c],.chip,.area{--fill:oklch(calc(var(--mid) + var(--t)*var(--tier)) var(--chroma) var(--h))}
.pair{display:grid;grid-template-columns:minmax(0,1fr) 25rem;gap:1.5rem;align-items:start}
.text{padding:.9rem 1rem;border:1px solid var(--line);border-radius:.5rem;background:var(--card);white-space:pre-wrap;
overflow-wrap:anywhere;font-size:1.02rem;line-height:2}
[data-c]{padding:.16em .1em;border-radius:.2em;background:var(--fill);-webkit-box-decoration-break:clone;
box-decoration-break:clone;unicode-bidi:isolate;border-left:1px solid var(--card)}
[data-c]::before{content:attr(data-c);margin:0 .15em 0 .1em;font:600 .62rem/1 ui-monospace,monospace;
vertical-align:.5em}
[role=option]{cursor:pointer}.answer{text-decoration:underline 2px var(--accent);text-underline-offset:.3em}
.answer::before{display:inline-block;text-decoration:none}
[aria-selected=true]{outline:2px solid var(--fg);outline-offset:1px}
.panel{position:sticky;top:3.2rem;padding:.8rem 1rem;border:1px solid var(--line);border-radius:.5rem;
background:var(--card);font-size:.88rem}.panel:empty{display:none}.panel p{margin:0 0 .5rem}
.panel q{white-space:pre-wrap;overflow-wrap:anywhere}
.panel strong{font-size:1rem}
.all{display:grid;grid-auto-flow:column;grid-template-columns:repeat(3,1fr);gap:1px .7rem;margin:.4rem 0 0;padding:0;
list-style:none;font-size:.76rem;font-variant-numeric:tabular-nums}
.all li{display:flex;align-items:center;gap:.3rem;padding:1px 2px}
.all span:last-child{flex:1;text-align:right;white-space:nowrap;
background:linear-gradient(var(--way),var(--way)) 100% 100%/var(--size) 2px no-repeat}
.all .routed{outline:2px solid var(--fg);border-radius:.2rem}.end{font-weight:700}
.chip{display:inline-block;min-width:1.9em;padding:0 .3em;border-radius:.25em;background:var(--fill);text-align:center;
font:600 .78rem/1.5 ui-monospace,monospace}
.chip.none{background:none;border:1px dashed var(--soft)}
.scroll{overflow-x:auto;margin:1rem 0}table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums}
caption{padding:.3rem 0;color:var(--soft);text-align:left}
th,td{padding:.3rem .8rem .3rem 0;border-bottom:1px solid var(--line);text-align:left;white-space:nowrap}
th{min-width:3.5rem;white-space:normal;vertical-align:bottom}td small{display:block}
th button{all:unset;cursor:pointer;font-weight:600;color:var(--accent)}
th button:focus-visible{outline:3px solid var(--accent)}
[aria-sort]>button::after{content:" \u2195"}[aria-sort=ascending]>button::after{content:" \u2191"}
[aria-sort=descending]>button::after{content:" \u2193"}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,25rem),1fr));gap:1.5rem}
figure{margin:0 0 1.5rem}figcaption{margin-bottom:.25rem;font-weight:600;font-size:.92rem}svg{display:block;width:100%}
svg text{fill:var(--soft);font:11px system-ui,sans-serif}
.grid,.axis,.line,.whisker{fill:none;stroke:var(--line)}.axis{stroke:var(--soft)}
.line{stroke-width:2;stroke:var(--accent)}.line.s1{stroke:var(--bad);stroke-dasharray:5 3}.dot,.heat{fill:var(--accent)}
.empty{fill:none;stroke:var(--line)}.area{fill:oklch(calc(var(--area) + var(--t)*8%) .12 var(--h))}
svg text.on-area{fill:var(--on);font-weight:600}
.bar{display:inline-block;width:7.5rem;height:1rem;margin-right:.6rem;vertical-align:-.15rem}.bad{fill:var(--bad)}
.good{fill:var(--accent)}.whisker{stroke:var(--fg);stroke-width:1.5}
@media (max-width:64rem){.pair{grid-template-columns:minmax(0,1fr)}.panel{position:sticky;top:auto;bottom:.5rem;
max-height:40vh;overflow-y:auto;box-shadow:0 0 1rem #0003}html{scroll-padding-bottom:44vh}}
@media (max-width:30rem){.panel{padding:.5rem .7rem;font-size:.8rem}.all{gap:1px .4rem;font-size:.68rem}}
"""

SCRIPT = """
"use strict";
document.getElementById("script").remove();
const data = JSON.parse(document.getElementById("data").textContent);
const sign = x => (x < 0 ? "\u2212" : "+") + Math.abs(x).toFixed(4), percent = p => (100 * p).toFixed(1) + " %";
const make = (tag, css, text, parent) => {
  const e = document.createElement(tag);
  e.className = css; e.textContent = text; parent.append(e);
  return e;
};
document.querySelectorAll(".problem").forEach((problem, number) => {
  const chunks = [...problem.querySelectorAll("[role=option]")], panel = problem.querySelector(".panel");
  const summary = make("p", "", "", panel), predicts = make("p", "", "", panel), all = make("ol", "all", "", panel);
  summary.setAttribute("aria-live", "polite");
  function show(i) {
    const c = data[number][i];
    const rows = c.k.map((code, j) => ({code, gain: c.n[j] - c.r})).sort((a, b) => b.gain - a.gain);
    const best = rows[0], worst = rows[rows.length - 1], own = c.p.find(p => p[1] === c.c);
    const differ = best.gain - worst.gain >= 1e-4;
    summary.textContent = "";
    make("strong", "", `Chunk ${i}: code ${c.c}, router probability ${percent(own[0])}`, summary);
    summary.append(". Runners-up: " + c.p.filter(p => p !== own).map(p => `${p[1]} (${percent(p[0])})`).join(", ") +
      `. Log-likelihood of the next tokens ${c.r.toFixed(4).replace("-", "\u2212")} nats. Change ` + (differ ?
        `with the best code, ${best.code}: ${sign(best.gain)}, with the worst, ${worst.code}: ${sign(worst.gain)}, ` :
        "under other codes below 0.0001, ") + `unsteered: ${sign(c.o - c.r)}.`);
    predicts.textContent = "Next tokens: ";
    make("q", "", c.t, predicts);
    predicts.append(". Change of their log-likelihood under each code, nats:");
    rows.push({code: "off", gain: c.o - c.r});
    rows.sort((a, b) => b.gain - a.gain);
    const top = Math.max(1e-9, ...rows.map(r => Math.abs(r.gain)));
    all.replaceChildren();
    all.style.gridTemplateRows = `repeat(${Math.ceil(rows.length / 3)}, auto)`;
    for (const row of rows) {
      const end = differ && (row === best || row === worst) ? "end " : "";
      const li = make("li", end + (row.code === c.c ? "routed" : ""), "", all);
      make("span", row.code === "off" ? "chip none" : "chip k" + row.code, row.code, li);
      const mark = end && (row === best ? "\u25b2 " : "\u25bc ");
      const bar = make("span", "", row.code === c.c ? mark + "routed" : mark + sign(row.gain), li);
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
  if (chunks.length) show(0);
});
for (const button of document.querySelectorAll("th button")) button.addEventListener("click", () => {
  const head = button.parentElement, body = head.closest("table").tBodies[0];
  const way = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
  for (const other of head.parentElement.cells) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", way);
  const value = row => parseFloat(row.cells[head.cellIndex].dataset.v);
  const compare = (a, b) => isNaN(a) - isNaN(b) || (way === "ascending" ? a - b : b - a) || 0;
  body.append(...[...body.rows].sort((a, b) => compare(value(a), value(b))));
});
"""
