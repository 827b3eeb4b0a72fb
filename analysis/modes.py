"""
What a code carries, on data answered in several ways (data/modes.py, or your own):

    python analysis/modes.py RUN [--rows 300]         # what the codes of one run tell, as JSON, see below
    python analysis/runs.py modes --table             # all seeds
    python analysis/modes.py --svg analysis/lines.svg         # README's picture, from results/lines.jsonl

Training rows with a field "way", which names how the answer is told, or how each of its lines is: "ways", each
code's share of them and their shares under it; "information", I(code; way) / H(way), 1 where the code tells all of
the way; "bits" that the codes gain a row. Without that field: manners of writing that the codes found. On --data
lines and the like: plans followed line by line.
"""

import argparse
import html
import json
import math
import re
import sys
import textwrap
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from data import plumbing
from data.files import read_jsonl
from data.handles import first_tokens, follow_plans, information
from data.modes import LINES
from data.tokens import collate, encode_row, end_tokens, load_rows
from data.wordproblems import generate
from dlr import SWITCH_COST, best_path
from eval import MAX_EACH, answer, bootstrap, decode, each_code, grade, likelihood, load_run


def prompts_of(rows, enc):
    items = [encode_row(row, enc) for row in rows]
    return [ids[:n_prompt] for ids, n_prompt in items]


def fitting(rows, enc, model):
    """The rows that the context holds, each with its (ids, n_prompt)."""
    pairs = [(row, encode_row(row, enc)) for row in rows]
    return [(row, item) for row, item in pairs if len(item[0]) - 1 <= model.config.block_size]


def vote(model, enc, rows, temperature, n=8):
    """Of the first 150 rows, the fraction that the most frequent final answer of n samples gets right."""
    rows = rows[:150]
    prompts, samples = prompts_of(rows, enc), [[] for _ in rows]
    torch.manual_seed(0)
    for _ in range(n):
        answers = model.generate(prompts, 320, "off", end_tokens(enc), temperature)
        for mine, new in zip(samples, answers):
            mine.append(decode(enc, new).partition("####")[2].strip())
    winners = [Counter(mine).most_common(1)[0][0] for mine in samples]
    return float(np.mean([grade(f"#### {win}", row["final"])["strict"] for win, row in zip(winners, rows)]))


@torch.no_grad()
def hindsight(model, enc, rows, switch_cost):
    """
    What the codes of the path search, which sees the answers, tell about the ways of training rows: a dict, see the
    top of this file. row["way"] is any value, for which one code a row is searched; or a list, a way for each line
    before "####", for which the code counts that predicts the line's first token.
    """
    K, counts, gains = model.config.chunk, {code: Counter() for code in range(model.config.n_codes)}, []
    for row, (ids, n_prompt) in fitting(rows, enc, model):
        ways, begins, cost = [row["way"]], [0], math.inf
        if isinstance(row["way"], list):
            lines = first_tokens([decode(enc, [token]) for token in ids[n_prompt:]])
            ways, begins, cost = row["way"], [at for _, at in lines], switch_cost
            if len(ways) != len(lines):
                raise ValueError(f"{row['where']}: 'way' has {len(ways)} entries, the answer {len(lines)} lines before "
                                 "'####'")
        idx, targets = (t.to(model.cos.device) for t in collate([(ids, n_prompt)]))
        codes = model.search(idx, targets, select="path", switch_cost=cost)  # (1, M)
        for way, at in zip(ways, begins):
            counts[codes[0, (n_prompt + at - 1) // K].item()][str(way)] += 1
        h = model.lower(idx)
        steered, plain = (model.token_logp(states, targets).sum().item() for states in (model.steer(h, codes), h))
        gains.append((steered - plain) / math.log(2))

    names = sorted(set().union(*counts.values()))
    table = np.array([[row[name] for name in names] for row in counts.values()])  # (C, ways)
    found = {f"code {code}": {"share": round(row.total() / int(table.sum()), 3),
                              "ways": {name: round(n / row.total(), 3) for name, n in row.most_common()}}
             for code, row in counts.items()}
    return {"ways": found, "information": information(table), "bits": float(np.mean(gains))}


def manners(model, enc, rows, seed=0):
    """
    Rows whose ways, if there are any, have no names: does a code that fits the first half of an answer fit its
    second half, too? And what do a code's rows look like?

    Returns a dict. "second half": nats per token of the second halves under the code that makes the row's first
    half likeliest, minus those under another row's such code, with a 95 % interval. "same": in how many rows one
    code is the best for both halves, "by chance": if the halves had nothing to do with each other. "codes": for
    each code its share of the rows (the whole answer being known), the `marks` of their answers and the three that
    are most clearly its own; "written": the marks of what the model answers to the first 100 under each code.
    """
    if not 2 <= model.config.n_codes <= MAX_EACH:
        raise ValueError(f'without a field "way" 2 to {MAX_EACH} codes can be studied, this run has '
                         f"{model.config.n_codes}")
    pairs = fitting(rows, enc, model)
    items = [(ids, n_prompt) for _, (ids, n_prompt) in pairs]
    middle = [(n_prompt + len(ids)) // 2 for ids, n_prompt in items]
    arms = each_code(model)
    first, n_first = likelihood(model, [(ids[:m], n_prompt) for (ids, n_prompt), m in zip(items, middle)], arms)
    second, n_second = likelihood(model, [(ids, m) for (ids, _), m in zip(items, middle)], arms)
    first, second = np.stack([first[arm] for arm in arms]), np.stack([second[arm] for arm in arms])  # (C, rows)
    fits, fits_second = first.argmin(0), second.argmin(0)  # (rows,)
    others = np.random.default_rng(seed).permutation(fits)
    row = np.arange(len(pairs))
    gain = bootstrap(second[fits, row] / n_second, second[others, row] / n_second, n_second)
    share, share_second = (np.bincount(best, minlength=len(arms)) / len(row) for best in (fits, fits_second))
    found = {"rows": len(row), "second half": gain, "same": float((fits == fits_second).mean()),
             "by chance": float(share @ share_second), "codes": []}

    whole = (first + second) / (n_first + n_second)  # (C, rows), nats per token
    lead = np.sort(whole, axis=0)[1] - whole.min(0)  # of the best code over the next
    for code in range(len(arms)):
        mine = np.flatnonzero(whole.argmin(0) == code)
        answers = [pairs[i][0]["answer"] for i in mine[np.argsort(-lead[mine])]]
        found["codes"].append({"share": len(mine) / len(row), "marks": marks(answers), "clearest": answers[:3]})
    texts = answer(model, enc, [ids[:n_prompt] for ids, n_prompt in items[:100]], ["off", *arms], 200)
    found["written"] = {arm: marks(answers) for arm, answers in texts.items()}
    return found


@torch.no_grad()
def within_lines(model, enc, rows, seed=0):
    """
    The same at the grain of lines: does the code that fits the first half of a line fit its second half, too? Each
    line but an answer's last, if it has 6 tokens or more.

    Returns a dict. "answers": how many there are with two such lines; "against another answer", "against another
    line": nats per token of the second halves of lines under the code that makes the line's first half likeliest,
    minus those under such a code of a line of another answer, or of another line of the same answer, with a 95 %
    interval over answers.
    """
    lines, answers = [], 0  # lines: (answer, its code, another line's, nats of its end under each code (C,), tokens)
    for _, (ids, n_prompt) in fitting(rows, enc, model):
        idx, targets = (t.to(model.cos.device) for t in collate([(ids, n_prompt)]))
        h = model.lower(idx)
        nll = -torch.stack([model.token_logp(model.steer(h, code), targets)[0]
                            for code in range(model.config.n_codes)]).cpu()  # (C, T)
        begins = begins_of_lines(ids, n_prompt, enc)
        halves = [nll[:, a:b].tensor_split(2, dim=1) for a, b in pairwise(begins) if b - a >= 6]
        if len(halves) < 2:
            continue
        fits = [first.sum(1).argmin().item() for first, _ in halves]
        for i, (_, second) in enumerate(halves):
            lines.append((answers, fits[i], fits[i - 1], second.sum(1).numpy(), second.size(1)))
        answers += 1
    if not lines:
        return {"answers": 0}
    of, fit, fit_another, second, n = (np.array(column) for column in zip(*lines))  # second (lines, C)
    anywhere = np.random.default_rng(seed).permutation(fit)
    n_of, line = np.bincount(of, n), np.arange(len(n))
    own, another_answer, another_line = (np.bincount(of, second[line, codes]) / n_of  # (answers,) nats a token
                                         for codes in (fit, anywhere, fit_another))
    return {"answers": answers, "against another answer": bootstrap(own, another_answer, n_of),
            "against another line": bootstrap(own, another_line, n_of)}


def changes_of_code(model, enc, rows, switch_cost):
    """
    Where do the codes of the path search change? Returns a dict: "changes", how many of the chunks that begin a line
    have another code than the chunk before, and how many of the others; "samples", three answers, [c] where the code
    becomes c.
    """
    K, changes, samples = model.config.chunk, {"at a line's begin": [], "elsewhere": []}, []
    for _, (ids, n_prompt) in fitting(rows, enc, model):
        idx, targets = (t.to(model.cos.device) for t in collate([(ids, n_prompt)]))
        codes = model.search(idx, targets, select="path", switch_cost=switch_cost)[0].tolist()  # (M,)
        chunks = {t // K for t in begins_of_lines(ids, n_prompt, enc)[1:]}
        marked = f"[{codes[(n_prompt - 1) // K]}]"
        for t, token in enumerate(ids[n_prompt:], n_prompt - 1):  # the state at t predicts the token at t + 1
            m = t // K
            if t % K == 0 and t >= n_prompt:
                changes["at a line's begin" if m in chunks else "elsewhere"].append(codes[m] != codes[m - 1])
                marked += f"[{codes[m]}]" if codes[m] != codes[m - 1] else ""
            marked += decode(enc, [token])
        samples.append(marked)
    return {"samples": samples[:3],
            "changes": {where: float(np.mean(seen)) for where, seen in changes.items() if seen}}


def begins_of_lines(ids, n_prompt, enc):
    """The positions that predict the first tokens of an answer's lines: the state at t predicts the token at t + 1."""
    texts = [decode(enc, [token]) for token in ids[n_prompt:]]
    return [n_prompt + at - 1 for _, at in first_tokens(texts)]


def marks(answers):
    """What the eye sees of the manner in which GSM8K answers are written: {mark: how much of it, in the mean}."""
    seen = []
    for text in answers:
        lines = re.sub(r"<<.*?>>", "", text).strip().split("\n")[:-1] or [""]  # without the final answer
        seen.append({"apart": any(re.search(r"\d [-+*/x] \$?\d", line) for line in lines),  # 5 + 3, not 5+3
                     "full stops": np.mean([line.rstrip().endswith(".") for line in lines]),
                     "First or Then": any(line.startswith(("First", "Then")) for line in lines),
                     "words a line": np.mean([len(line.split()) for line in lines])})
    return {mark: round(float(np.mean([m[mark] for m in seen])), 2) for mark in (seen or [{}])[0]}


@torch.no_grad()
def table_quality(model, enc, rows, n_drawn=64):
    """
    The path search scores a chunk under code c with c in all earlier chunks, too. How good is that? Means over rows,
    in nats a row, of log p(answer | codes): "table", what the table promises for its best path; "path", what that
    path really has; "second round", a path found again from a table whose earlier chunks carry the first path's
    codes; "drawn", the best of n_drawn sequences drawn from the router; "off", without codes.
    """
    K, C, found = model.config.chunk, model.config.n_codes, Counter()
    for _, item in fitting(rows, enc, model):
        idx, targets = (t.to(model.cos.device) for t in collate([item]))
        h = model.lower(idx)

        def chunks(codes, h=h, targets=targets):  # (1, M): log p of each chunk's labels
            logp = model.token_logp(h if codes is None else model.steer(h, codes), targets)
            return torch.nn.functional.pad(logp, (0, -logp.size(1) % K)).unflatten(1, (-1, K)).sum(-1)

        held = torch.stack([chunks(code) for code in range(C)])  # (C, 1, M)
        path = best_path(held, SWITCH_COST)  # (1, M)
        again = torch.empty_like(held)
        for m in range(path.size(1)):
            for code in range(C):
                tried = path.clone()
                tried[0, m] = code
                again[code, :, m] = chunks(tried)[:, m]
        z = model.router_logits(h[:, ::K])
        gumbel = -torch.empty(n_drawn, *z.shape, device=z.device).exponential_().log()
        drawn = max(chunks(codes).sum().item() for codes in (z + gumbel).argmax(-1))
        found.update({"table": held.gather(0, path[None]).sum().item(), "path": chunks(path).sum().item(),
                      "second round": chunks(best_path(again, SWITCH_COST)).sum().item(),
                      "drawn": drawn, "off": chunks(None).sum().item(), "rows": 1})
    return {key: found[key] / found["rows"] for key in ("table", "path", "second round", "drawn", "off")}


def study_lines(model, enc, rows):
    """
    Data in which each line has a manner of its own: follow_plans on rows, greedy and at T = 1, and on as many
    problems of five operations, more than any that was trained; and five answers told line by line.
    """
    longer = [row | {"final": str(row["final"])} for row in generate(len(rows), 0, "test", ops=(5, 5))]
    found = {"handles": follow_plans(model, enc, rows), "sampled": follow_plans(model, enc, rows, temperature=1.0),
             "five operations": follow_plans(model, enc, longer)}
    counts = found["handles"]["lines"]  # {code: {manner: how many}}
    by_worked = sorted(counts, key=lambda code: counts[code].get("worked", 0) / max(1, sum(counts[code].values())))
    turns = [by_worked[-1], by_worked[0]] * 3  # worked, not worked, ...
    found["told"] = [{"question": row["question"], "lines": line_by_line(model, enc, row, turns)} for row in rows[:5]]
    return found


def study(run, n_rows=300, votes=True):
    """What one run's folder adds to its evaluation, see the functions above; n_rows of test or of train."""
    model, enc, _, flags = load_run(run)
    model.to(plumbing.find_device("auto")[0]).eval()
    rows = load_rows(flags["data"], "test", n_rows, at_most=True)
    if flags["data"] in LINES:
        found = study_lines(model, enc, rows)
        return found | {"table": table_quality(model, enc, load_rows(flags["data"], "train", 100))}
    if not model.codebook.weight.any():
        return {"vote": {t: vote(model, enc, rows, t) for t in (0.7, 1.0)}} if votes else {}
    train_rows = load_rows(flags["data"], "train", n_rows, at_most=True)
    named = [row for row in train_rows if row.get("way") is not None]
    if named:
        return hindsight(model, enc, named, flags["switch_cost"])
    found = {"ways": f'no training row of {flags["data"]} has a field "way"'} | manners(model, enc, rows)
    lines = within_lines(model, enc, rows) | changes_of_code(model, enc, rows, flags["switch_cost"])
    return found | {"lines": lines}


def line_by_line(model, enc, row, codes):
    """The lines of one answer, line i written under codes[i] (the last code from there on): [(code, line)]."""
    K, block = model.config.chunk, model.config.block_size
    ids, n_prompt = encode_row(row, enc)
    plan = torch.full((1, math.ceil(block / K)), codes[0], device=model.cos.device)
    for i in range(len(codes)):
        new = model.generate([ids[:n_prompt]], 200, plan, end_tokens(enc))[0]
        begins = first_tokens([enc.decode([token]) for token in new])
        if i + 1 >= len(begins) or i + 1 == len(codes):
            break
        at = n_prompt + begins[i + 1][1] - 1  # the token that predicts the next line's first
        plan[0, at // K :] = codes[i + 1]
    text = decode(enc, new).strip().split("\n")
    return [(code, line) for code, line in zip([*codes, *[codes[-1]] * len(text)], text)]


# --------------------------------------------------------------------------------------------------
# The table over seeds.


def control(line):
    """{way: its greatest share under one forced code} of a line of runs.py; ways by first letters, n = none."""
    ways = sorted(set("".join(line["ways"].values())) - {"n"})
    counts = np.array([[line["ways"][arm].count(way) for way in ways]
                       for arm in line["ways"] if arm.startswith("code ")])
    return dict(zip(ways, counts.max(0) / len(line["tokens"])))


def parted(line):
    """In percent: how many training rows have the way that is most frequent among their code's rows."""
    return 100 * sum(code["share"] * max(code["ways"].values(), default=0) for code in line["study"]["ways"].values())


def mean(values, form=".1f"):
    """Mean ± sd of the values of several seeds, as text."""
    spread = f" ± {np.std(values, ddof=1):{form}}" if len(values) > 1 else ""
    return f"{np.mean(values):{form}}{spread}"


def accuracy(line, arm):
    """In percent, strict."""
    return 100 * line["strict"][arm].count("1") / len(line["tokens"])


def table(lines):
    """Markdown: accuracy and control, mean ± sd over seeds, a row for each label."""
    groups = {}
    for line in lines:
        groups.setdefault(line["label"], []).append(line)

    rows = [["run", "seeds", "accuracy %, plain", "majority of 8", "code chosen on val",
             "best share of each way under one code", "training rows parted, %"]]
    for label, group in groups.items():
        cells = [label, str(len(group)), mean([accuracy(line, "off") for line in group])]
        votes = [line["study"]["vote"] for line in group if "vote" in line.get("study", ())]
        cells.append(", ".join(f"{mean([100 * v[t] for v in votes])} (T = {t})" for t in votes[0]) if votes else "")
        if "chosen" in group[0]:
            cells.append(mean([accuracy(line, line["chosen"]) for line in group]))
            controls = [control(line) for line in group]
            names = sorted({way for shares in controls for way in shares})
            shares = [f"{way} {mean([s.get(way, 0) for s in controls], '.2f')}" for way in names]
            cells.append(", ".join(shares) if len(names) > 1 else "")  # what looks the same cannot be counted
            cells.append(mean([parted(line) for line in group]) if "ways" in group[0]["study"] else "")
        rows.append(cells + [""] * (len(rows[0]) - len(cells)))
    rows = list(zip(*(column for column in zip(*rows) if any(column[1:]))))  # without empty columns
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


BARS = {"the paper's search": "the paper's search: best of 8 sequences",
        "one code a row": "one code for the whole answer",
        "path": "the shortest path over chunks"}


def lines_table(lines):
    """Markdown: how far codes are handles on each line of an answer, and accuracy; mean ± sd over seeds."""
    groups = {}
    for line in lines:
        groups.setdefault(line["label"], []).append(line)

    out = ["| search | seeds | information | at T = 1 | as planned, % | of five operations, % "
           "| accuracy %, off | code chosen on val |", "|---" * 8 + "|"]
    for label, group in groups.items():
        found = [line["study"] for line in group]
        cells = [label, str(len(group))]
        cells += [mean([f[key]["information"] for f in found], ".3f") for key in ("handles", "sampled")]
        cells += [mean([100 * f[key]["as planned"] for f in found], ".1f") for key in ("handles", "five operations")]
        cells.append(mean([accuracy(line, "off") for line in group], ".1f"))
        chosen = [accuracy(line, line["chosen"]) for line in group if "chosen" in line]
        out.append(f"| {' | '.join([*cells, mean(chosen, '.1f') if chosen else ''])} |")
    return "\n".join(out)


def manners_table(lines):
    """Markdown: GSM8K as it is, a row for each run: what `manners` and `within_lines` find."""
    out = ["| run | seed | nats a token of an answer's second half | of a line's, against another answer's line "
           "| against another line of the same answer | changes at a line's begin, elsewhere, % |", "|---" * 6 + "|"]
    for line in lines:
        study, within = line["study"], line["study"]["lines"]
        gains = [study["second half"], within["against another answer"], within["against another line"]]
        cells = ["{:+.4f} [{:+.4f}, {:+.4f}]".format(*gain) for gain in gains]
        changes = ", ".join(f"{100 * share:.0f}" for share in within["changes"].values())
        out.append(f"| {' | '.join([line['label'], str(line['seed']), *cells, changes])} |")
    return "\n".join(out)


def figure(told, bars):
    """
    README's picture: one question answered line by line under two codes in turn (an entry of "told", see study), and
    bars, {search: fraction of the manner that its codes tell}.
    """
    out, colors = [], {}

    def text(x, y, words, more=""):
        out.append(f'<text x="{x}" y="{y}" fill="#222" {more}>{html.escape(words)}</text>')

    for i, words in enumerate(textwrap.wrap(told["question"], 64)):
        text(24, 32 + 18 * i, words)
    top = 54 + 18 * i
    for code, line in told["lines"]:
        last = line.startswith("####")
        color = "#888" if last else colors.setdefault(code, ("#2f7ed8", "#e07b39")[len(colors) % 2])
        out.append(f'<rect x="24" y="{top}" width="440" height="26" rx="6" fill="{color}" '
                   f'fill-opacity="{".06" if last else ".14"}" stroke="{color}"/>')
        text(36, top + 17, "" if last else f"code {code}", 'font-weight="bold"')
        text(92, top + 17, line, 'font-family="ui-monospace, monospace" font-size="12"')
        top += 32
    text(500, 32, "how much of a line's manner its code tells, %", 'font-weight="bold"')
    for i, (name, share) in enumerate(bars.items()):
        y = 50 + 52 * i
        text(500, y + 14, name)
        out.append(f'<rect x="500" y="{y + 20}" width="{3 * 100 * share:.0f}" height="20" rx="3" fill="#2f7ed8"/>')
        text(508 + 3 * 100 * share, y + 35, f"{100 * share:.0f}")
    height = max(top, 50 + 52 * len(bars)) + 12
    head = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 880 {height}" font-size="13" '
            'font-family="ui-sans-serif, Helvetica, Arial, sans-serif">')
    title = "<title>One question answered under two codes in turn, and what the codes of each search tell</title>"
    paper = f'<rect width="880" height="{height}" rx="8" fill="#fbfbf9"/>'
    return "\n".join([head, title, paper, *out, "</svg>"]) + "\n"


def main(argv=None):
    plumbing.safe_output()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", help="folder made by train.py")
    parser.add_argument("--rows", type=int, default=300, help="rows of test, or of train where they name ways")
    parser.add_argument("--svg", type=Path, help="write README's picture from results/lines.jsonl, instead")
    args = parser.parse_args(argv)
    with plumbing.one_line_errors("modes.py"):
        if args.svg:
            lines = [item for _, item in read_jsonl(Path(__file__).parent / "results" / "lines.jsonl")]
            shares = {}
            for line in lines:
                shares.setdefault(line["label"], []).append(line["study"]["handles"]["information"])
            bars = {label: float(np.mean(shares[label])) for label in BARS}
            told = [answer for line in lines if line["label"] == "path" for answer in line["study"]["told"]]
            rows = load_rows("lines", "test", len(lines[0]["tokens"]))
            final = {row["question"]: f"#### {row['final']}" for row in rows}

            def worth(answer):  # a right one if there is one, and of those a long one
                said = [line for _, line in answer["lines"]]
                return said[-1] == final[answer["question"]], len(said)

            example = max(told, key=worth)
            plumbing.write_text(args.svg, figure(example, {BARS[label]: share for label, share in bars.items()}))
            return
        if not args.run:
            raise ValueError("give a RUN, or --svg FILE")
        print(json.dumps(study(args.run, args.rows), indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
