"""The model and the training step, against brute force and hand-computed numbers."""

import itertools
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gds
from dlr import GPT, GPTConfig, best_path, bizipf_target

TINY = {"vocab_size": 50, "block_size": 64, "n_layer": 4, "n_head": 4, "n_kv_head": 2, "n_embd": 32,
        "n_codes": 6}


def make(seed=0, codes=1.0, **settings):
    """A tiny model whose codes matter: codebook and router far from their initial values."""
    torch.manual_seed(seed)
    model = GPT(GPTConfig(**{**TINY, **settings}))
    for p in model.parameters():
        if p.dim() == 2:
            torch.nn.init.normal_(p, std=0.2)
    torch.nn.init.normal_(model.codebook.weight, std=codes)
    torch.nn.init.normal_(model.router.weight, std=1.0)
    return model


def data(B=3, T=22, prompt=7, seed=1):
    """idx, targets (B, T) of random tokens; the first `prompt` positions have no label."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(50, (B, T + 1), generator=generator)
    idx, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].clone()
    targets[:, :prompt] = -1
    return idx, targets


def by_hand(model, idx, codes=None):
    """All logits, with the codes added by a loop over rows and tokens; and the state at l*."""
    T, cfg = idx.size(1), model.config
    x = model.embed_tokens(idx)
    for i, layer in enumerate(model.layers):
        if i == cfg.steer_layer:
            h_mid = x
            if codes is not None:
                e = model.codebook.weight
                added = [torch.stack([e[row[t // cfg.chunk]] for t in range(T)]) for row in codes]
                x = x + cfg.steer_scale * torch.stack(added)
        x = layer(x, (model.cos[:T], model.sin[:T]))
    return model.lm_head(model.norm(x)), h_mid


# ---- steering ------------------------------------------------------------------------------------


def test_zero_codebook_is_the_plain_lm_bit_for_bit():
    """Broken if steering touched anything but the added code vector."""
    model, (idx, targets) = make(codes=0.0), data()
    assert torch.equal(model(idx, codes="off")[0], model(idx)[0])
    assert torch.equal(model(idx, targets, codes="off")[1], model(idx, targets)[1])


@pytest.mark.parametrize("tie", [True, False])
def test_a_new_model_begins_as_the_plain_lm(tie):
    """Broken if it began steered, or with another layer, head or scale than configured."""
    torch.manual_seed(0)
    settings = {**TINY, "n_embd": 512, "n_layer": 8, "router_std": 0.3, "tie_embeddings": tie}
    model = GPT(GPTConfig(**settings))
    assert not model.codebook.weight.any() and model.config.steer_layer == 4
    assert (model.lm_head.weight is model.embed_tokens.weight) == tie
    assert model.router.weight.std().item() == pytest.approx(0.3, rel=0.05)
    attention = model.layers[0].self_attn
    assert attention.q_proj.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert attention.o_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.02), "as GPT-2's"


def test_steering_adds_the_scaled_code_to_every_token_of_its_chunk():
    """Broken if the chunk grid, the scale or the layer of the injection were off by one."""
    model = make(steer_layer=3, steer_scale=0.7)
    idx, _ = data(B=2, T=10)
    codes = torch.tensor([[0, 3, 5], [2, 2, 1]])
    torch.testing.assert_close(model(idx, codes=codes)[0], by_hand(model, idx, codes)[0])


@pytest.mark.parametrize("route_norm", [True, False])
def test_router_reads_the_unsteered_state_of_each_chunks_first_token(route_norm):
    """Broken if routing saw steered states, another position, the wrong layer or another scale."""
    model, (idx, _) = make(route_norm=route_norm), data()
    x = by_hand(model, idx)[1][:, ::4]
    if route_norm:
        x = x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    z = model.route(idx)
    torch.testing.assert_close(z, x @ model.router.weight.T)
    assert torch.equal(model(idx)[0], model(idx, codes=z.argmax(-1))[0]), "the argmax"


def test_the_router_decides_in_float32_under_autocast():
    """Broken if bfloat16 tied two codes whose logits differ by 1 part in 1000."""
    model, (idx, _) = make(n_codes=2), data()
    with torch.no_grad():
        model.router.weight[1] = 1.001 * model.router.weight[0]
        with torch.autocast("cpu", torch.bfloat16):
            h = model.lower(idx)[:, ::4]
            z = model.router_logits(h)
    x = h.double() / (h.double().pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    exact = x @ model.router.weight.double().T
    torch.testing.assert_close(z.double(), exact, atol=1e-5, rtol=1e-5)
    assert torch.equal(z.argmax(-1), exact.argmax(-1))
    assert not torch.equal(exact.bfloat16().argmax(-1), exact.argmax(-1)), "bfloat16 must tie here"


@pytest.mark.parametrize("chunk", [1, 3, 4])
def test_no_token_and_no_code_changes_the_past(chunk):
    """Broken if a logit or a code could see a later token, or a logit the code of a later chunk."""
    model, (idx, _) = make(chunk=chunk), data(B=1)
    logits, codes = model(idx)[0], model.route(idx).argmax(-1)
    for t in range(idx.size(1)):
        other = idx.clone()
        other[0, t] = (other[0, t] + 1) % 50
        begun = math.ceil(t / chunk)  # chunks whose first token lies before t
        assert torch.equal(model(other)[0][:, :t], logits[:, :t])
        assert not torch.equal(model(other)[0][:, t:], logits[:, t:])
        assert torch.equal(model.route(other)[:, :begun], model.route(idx)[:, :begun])
    for m in range(codes.size(1)):
        other = codes.clone()
        other[0, m] = (other[0, m] + 1) % 6
        new = model(idx, codes=other)[0]
        assert torch.equal(new[:, : m * chunk], logits[:, : m * chunk])
        assert (new[:, m * chunk :] != logits[:, m * chunk :]).any(-1).all()


def test_rows_do_not_see_each_other_or_the_padding():
    """Broken if padding moved the chunk grid or leaked into a logit or code (trap 1)."""
    model, (idx, _) = make(), data(B=4)
    padded = idx.clone()
    for i, n in enumerate((5, 9, 14, 22)):
        padded[i, n:] = 7
    logits, z = model(padded)[0], model.route(padded)
    for i, n in enumerate((5, 9, 14, 22)):
        alone = idx[i : i + 1, :n]
        torch.testing.assert_close(logits[i, :n], model(alone)[0][0])
        torch.testing.assert_close(z[i, : math.ceil(n / 4)], model.route(alone)[0])


# ---- generation ----------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), chunk=st.integers(1, 5), new=st.sampled_from([0, 1, 7, 30]),
       kind=st.sampled_from(["routed", "off", "forced", "function"]))
def test_generation_is_the_argmax_of_the_whole_sequence_in_any_batch(seed, chunk, new, kind):
    """Broken if a token depended on the cache, a chunk's phase, or its neighbours and their ends."""
    model, r = make(seed, chunk=chunk, block_size=24).double(), random.Random(seed)
    prompts = [[r.randrange(50) for _ in range(r.choice([1, 2, 3, 5, 9, 14, 24]))]
               for _ in range(r.randrange(7))]
    forced = torch.randint(6, (len(prompts), 24))
    codes = {"routed": None, "off": "off", "forced": forced,
             "function": lambda z, row, chunk: forced[row, chunk]}[kind]
    unstopped = model.generate(prompts, new, codes)
    stop = r.choice([None, *itertools.chain(*prompts, *unstopped)])  # in a prompt it ends nothing
    answers = model.generate(prompts, new, codes, stop)
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        ids = list(prompt)
        while len(ids) < min(len(prompt) + new, 24 + 1):  # the last one is never read
            own = forced[i : i + 1, : math.ceil(len(ids) / chunk)]
            own = codes if kind in ("routed", "off") else own
            token = model(torch.tensor([ids]), codes=own)[0][0, -1].argmax().item()
            if token == stop:
                break
            ids.append(token)
        assert answer == ids[len(prompt) :]


def test_generation_stops_working_when_all_rows_have_ended(monkeypatch):
    """Broken if ended rows went on costing time until max_new_tokens."""
    model, calls = make(), []
    stop = model.generate([[1, 2, 3]], 1)[0][0]
    upper = model.upper
    monkeypatch.setattr(model, "upper", lambda *a: calls.append(1) or upper(*a))
    assert model.generate([[1, 2, 3]], 40, stop=stop) == [[]] and len(calls) == 1


@pytest.mark.parametrize("chunk", [1, 3])
def test_a_function_is_asked_once_for_each_chunk(chunk):
    """Broken if a function in place of the argmax saw other chunks or logits than the router."""
    model = make(chunk=chunk)
    prompts = [torch.randint(50, (n,)).tolist() for n in (3, 6, 9, 5, 7)]
    asked = {}

    def argmax(z, row, chunk):
        for r, m, own in zip(row.flatten().tolist(), chunk.flatten().tolist(), z.flatten(0, 1)):
            assert (r, m) not in asked
            asked[r, m] = own
        return z.argmax(-1)

    out = model.generate(prompts, 15, codes=argmax)
    assert out == model.generate(prompts, 15)
    for i, (prompt, new) in enumerate(zip(prompts, out)):
        for m, z in enumerate(model.route(torch.tensor([prompt + new[:-1]]))[0]):
            torch.testing.assert_close(asked[i, m], z)


def test_sampling_follows_the_temperature():
    """Broken if temperature were ignored: frequencies must match softmax(logits / T)."""
    model = make()
    expected = (model(torch.tensor([[4, 8, 15]]))[0][0, -1] / 2.0).softmax(-1)
    torch.manual_seed(0)
    new = torch.tensor(model.generate([[4, 8, 15]] * 20_000, 1, temperature=2.0)).flatten()
    assert (torch.bincount(new, minlength=50) / 20_000 - expected).abs().max() < 0.015


# ---- search and select ---------------------------------------------------------------------------


def answer_logp(model, idx, targets, codes):
    """log p(x | a) of each row, one whole unbatched forward pass each."""
    nll = [model(*row)[1] for row in zip(idx[:, None], targets[:, None], codes[:, None])]
    return -torch.stack(nll) * (targets >= 0).sum(1)


def candidates(model, monkeypatch):
    """A list that fills with the code sequences (B, M) that a search steers with."""
    tried, steer = [], model.steer

    def spy(h, codes):
        assert not torch.is_grad_enabled(), "N graphs would cost N times the memory"
        tried.append(codes)
        return steer(h, codes)

    monkeypatch.setattr(model, "steer", spy)
    return tried


def test_search_returns_the_best_of_its_candidates(monkeypatch):
    """Broken if the shared lower half ranked candidates otherwise than whole passes do."""
    model, (idx, targets) = make(), data(B=4)
    targets[1, 15:] = -1  # a shorter row: its last real chunk is chunk 3
    tried = candidates(model, monkeypatch)
    best = model.search(idx, targets, n_rollouts=10)
    monkeypatch.undo()
    codes = torch.stack(tried)  # (N, B, M)
    assert len(codes) == 10 and len(codes.unique(dim=0)) > 5, "candidates must differ"
    score = torch.stack([answer_logp(model, idx, targets, c) for c in codes])
    assert torch.equal(best, torch.stack([codes[score[:, b].argmax(), b] for b in range(4)]))


def test_which_candidates_there_are():
    """Broken if "likelihood" tried the router's argmax without being told to, or "greedy" searched."""
    model, (idx, targets) = make(), data()
    argmax = model.route(idx).argmax(-1)
    assert torch.equal(model.search(idx, targets, 8, 5.0, "greedy"), argmax)
    assert torch.equal(model.search(idx, targets, 1, 0.0, "likelihood"), argmax)
    assert not torch.equal(model.search(idx, targets, 1, 5.0, "likelihood"), argmax)


def path_value(score, codes, switch_cost):
    """sum_m score[m][a_m] - switch_cost * changes: score (M, C) as lists, codes M integers."""
    changes = sum(a != b for a, b in itertools.pairwise(codes))
    return sum(row[a] for row, a in zip(score, codes)) - (switch_cost * changes if changes else 0)


@pytest.mark.parametrize("switch_cost", [0.0, 0.4, 1.5, math.inf])
def test_best_path_is_the_best_of_all_paths(switch_cost):
    """Broken if the dynamic programme missed a better path: all C^M are tried."""
    score = -torch.rand(3, 5, 6, generator=torch.Generator().manual_seed(1)) ** 2 * 3  # (C, B, M)
    found = best_path(score, switch_cost)
    for b in range(5):
        row = score[:, b].T.tolist()
        every = itertools.product(range(3), repeat=6)
        best = max(every, key=lambda codes: path_value(row, codes, switch_cost))
        assert found[b].tolist() == list(best)


@pytest.mark.parametrize("switch_cost", [0.0, 0.3, 1.0])
def test_gds_finds_the_path_that_search_finds(switch_cost):
    """Broken if the search of the language model were not the search of the theorem."""
    model, (idx, targets) = make(), data(B=6)
    found = model.search(idx, targets, select="path", switch_cost=switch_cost)
    for b in range(6):
        # What search scores: each code held for the whole row, log p summed over each chunk's tokens.
        logp = torch.stack([answer_token_logp(model, idx[b], targets[b], code) for code in range(6)])
        score = torch.stack([part.sum(-1) for part in logp.split(4, dim=-1)]).tolist()  # (M, C)
        # The trellis: state 0, then 1 + 6 m + c once chunk m has code c. Action c gives the next chunk code c.
        M, C = len(score), 6
        states = 1 + C * M
        next_state = np.zeros((states, C), int)
        cost = np.zeros((M, states, C))
        for m, c in itertools.product(range(M), range(C)):
            came_from = [0] if m == 0 else range(1 + C * (m - 1), 1 + C * m)
            for s in came_from:
                next_state[s, c] = 1 + C * m + c
                changes = m > 0 and (s - 1) % C != c
                cost[m, s, c] = -score[m][c] + switch_cost * changes
        mdp = gds.MDP.deterministic(next_state, -cost, 1.0)
        goals = range(1 + C * (M - 1), states)
        for solve in (gds.gds, gds.gds_literal) if b == 0 and switch_cost == 1 else (gds.gds,):
            best = solve(mdp, 0, goals)
            assert best.value == pytest.approx(path_value(score, found[b].tolist(), switch_cost), abs=1e-4)
        dists, _ = gds.follow(mdp, 0, best.policy)
        path = [(s - 1) % C for dist in dists[1:] for s in dist]
        assert path_value(score, path, switch_cost) == pytest.approx(best.value)
        if switch_cost > 0:  # otherwise chunks without a label are free to take any code
            assert path == found[b].tolist()


def answer_token_logp(model, row, targets, code):
    """log p of a row's labels (T,), 0 where there is none, that code held for the whole row."""
    logp = by_hand(model, row[None], torch.full((1, 22), code))[0][0].log_softmax(-1)
    return torch.where(targets >= 0, logp.gather(-1, targets.clamp(min=0)[:, None])[:, 0], 0.0)


def test_an_infinite_switch_cost_is_the_best_single_code():
    """Broken if the path could change its code at a price that nothing can pay."""
    model, (idx, targets) = make(), data(B=8)
    single = torch.stack([answer_logp(model, idx, targets, torch.full((8, 6), code)) for code in range(6)])
    found = model.search(idx, targets, select="path", switch_cost=math.inf)
    assert torch.equal(found, single.argmax(0)[:, None].expand(8, 6))


def test_chunks_without_a_label_take_a_neighbours_code():
    """Broken if the prompt's chunks had codes of their own, or padding changed a row's path."""
    model, (idx, targets) = make(), data(B=8, prompt=9)
    path = model.search(idx, targets, select="path", switch_cost=0.1)
    assert (path[:, :2] == path[:, 2:3]).all(), "the first label is in chunk 2"
    assert len(path.unique(dim=0)) > 4 and (path[:, 1:] != path[:, :-1]).any(), "codes must differ"
    padded_idx, padded = (torch.cat([x, torch.full((8, 7), fill)], dim=1) for x, fill in ((idx, 0), (targets, -1)))
    longer = model.search(padded_idx, padded, select="path", switch_cost=0.1)
    assert torch.equal(longer[:, :6], path) and (longer[:, 6:] == path[:, 5:]).all()


@pytest.mark.parametrize("chunk", [1, 3, 4])
def test_an_integer_is_that_code_everywhere(chunk):
    """Broken if model(codes=2) or generate(codes=2) steered any token otherwise than (B, M) twos do."""
    model, (idx, targets) = make(chunk=chunk), data()
    twos = torch.full((3, math.ceil(22 / chunk)), 2)
    assert torch.equal(model(idx, codes=2)[0], model(idx, codes=twos)[0])
    assert torch.equal(model(idx, targets, codes=2)[1], model(idx, targets, codes=twos)[1])
    prompts = [[1, 2, 3], [4] * 9]
    forced = torch.full((2, 64), 2)
    assert model.generate(prompts, 20, codes=2) == model.generate(prompts, 20, codes=forced)
    assert model.generate(prompts, 20, codes=2) != model.generate(prompts, 20, codes="off")


@pytest.mark.parametrize("tau", [0.5, 2.0])
def test_candidates_are_samples_of_the_tempered_router(tau, monkeypatch):
    """Broken if the noise sampled anything but softmax(z / tau), or rows or chunks shared it."""
    model = make()
    idx, targets = data(B=2, T=6, prompt=1)
    monkeypatch.setattr(model, "token_logp", lambda h, t: torch.zeros(2, 6))
    tried = candidates(model, monkeypatch)
    model.search(idx, targets, 8_000, tau)
    codes, p = torch.stack(tried), (model.route(idx) / tau).softmax(-1)
    for b, m in itertools.product(range(2), range(2)):
        observed = torch.bincount(codes[:, b, m], minlength=6) / 8_000
        assert (observed - p[b, m]).abs().max() < 0.02, (b, m)
    for one, other in (((0, 0), (0, 1)), ((0, 0), (1, 0))):  # independent: joint = product
        both = codes[:, one[0], one[1]] * 6 + codes[:, other[0], other[1]]
        observed = (torch.bincount(both, minlength=36) / 8_000).view(6, 6)
        assert (observed - torch.outer(p[one], p[other])).abs().max() < 0.02


# ---- the loss ------------------------------------------------------------------------------------


def numpy_bigram(p, chunks):
    """Mean over neighbouring real chunks, pairs (b, m), of p(a_m = i) p(a_m+1 = j) in float64."""
    pairs = [(b, m) for b, m in chunks if (b, m + 1) in chunks]
    return sum(np.outer(p[b, m], p[b, m + 1]) for b, m in pairs) / len(pairs)


def numpy_kl(P):
    """KL(P || the bi-Zipf target), method section 3, in float64."""
    C = len(P)
    rank = np.arange(1, C + 1)
    zipf = np.where(rank <= max(1, math.floor(0.8 * C)), 1 / rank, 0)
    zipf /= zipf.sum()
    Q = np.where(np.eye(C) == 1, 1e-5 * P, P)
    for _ in range(3):
        Q = Q * (zipf / np.maximum(Q.sum(1), 1e-300))[:, None]
        Q = Q * (zipf / np.maximum(Q.sum(0), 1e-300))
    return (P * np.log(P / np.maximum(Q, 1e-10))).sum()


@pytest.mark.parametrize("select, N, K", [("likelihood", 1, 4), ("likelihood", 3, 1), ("path", 3, 3),
                                          ("greedy", 3, 4)])
def test_each_term_by_hand(select, N, K):
    """Broken if a term had another sign, mean, mask or weight than the method's four-term loss."""
    model, exact, (idx, targets) = make(chunk=K), make(chunk=K).double(), data(B=2, T=11, prompt=4)
    targets[1, 8:] = -1  # row 1 ends after 8 tokens: what follows (with K = 4, chunk 2) is padding
    targets[0, 5] = 0  # a token like any other
    torch.manual_seed(3)
    codes = model.search(idx, targets, N, select=select)
    torch.manual_seed(3)
    loss, terms = model.dlr_loss(idx, targets, N, select=select, alpha_policy=0.3, alpha_reg=0.2)

    def mean_nll(codes):
        p, total = by_hand(exact, idx, codes)[0].softmax(-1).detach(), 0.0
        places = [(0, t) for t in range(4, 11)] + [(1, t) for t in range(4, 8)]
        for b, t in places:
            total -= math.log(p[b, t, targets[b, t]])
        return total / len(places)

    plain, steered = mean_nll(None), mean_nll(codes)
    assert model(idx, targets, codes="off")[1].item() == pytest.approx(plain, abs=1e-5)
    assert model(idx, targets, codes=codes)[1].item() == pytest.approx(steered, abs=1e-5)
    p = exact.route(idx).softmax(-1).detach()
    chunks = [(b, m) for b, n in ((0, 11), (1, 8)) for m in range(math.ceil(n / K))]  # real ones
    policy = -sum(math.log(p[b, m, codes[b, m]]) for b, m in chunks) / len(chunks)
    policy = 0.0 if select == "greedy" else policy
    P = 0.8 / 36 + 0.2 * numpy_bigram(p.numpy(), chunks)
    assert terms["generalist"].item() == pytest.approx(plain, abs=1e-5)
    assert terms["info_gain"].item() == pytest.approx(plain - steered, abs=1e-5)
    assert terms["policy"].item() == pytest.approx(policy, abs=1e-5)
    assert terms["regularizer"].item() == pytest.approx(numpy_kl(P), abs=1e-4)
    expected = plain + (steered - plain) + 0.3 * policy + 0.2 * numpy_kl(P)
    assert loss.item() == pytest.approx(expected, abs=1e-4)
    np.testing.assert_allclose(model.bigram.numpy(), P, atol=1e-6)
    argmax = [p[c].argmax().item() for c in chunks]
    assert terms["usage"].tolist() == [argmax.count(k) for k in range(6)]
    assert not any(value.requires_grad for value in terms.values()), "logs must not keep a graph"


@pytest.mark.parametrize("P, second", [([[0.4, 0.3], [0.2, 0.1]], 1), ([[0.9998, 1e-4], [1e-4, 0.0]], 0)])
def test_the_prior_with_two_codes_by_hand(P, second):
    """Broken if floor(0.8 C), the damping, the mix 0.8 : 0.2 or a floor were others, or eval moved it."""
    P, model = torch.tensor(P), make(n_codes=2)
    torch.testing.assert_close(bizipf_target(P), torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    model.bigram.copy_(P)
    probs = torch.eye(2)[[0, second]]  # surely code 0, then code `second`
    model.eval().prior_kl(probs[None], torch.tensor([[True, True]]))
    assert torch.equal(model.bigram, P), "the average moves in training only"
    got = model.train().prior_kl(probs[None], torch.tensor([[True, True]]))
    mixed = 0.8 * P
    mixed[0, second] += 0.2
    first, *rest = mixed.flatten().tolist()
    expected = first * math.log(first) + sum(q * math.log(q / 1e-10) for q in rest if q > 0)
    assert got.item() == pytest.approx(expected, abs=2e-5)
    torch.testing.assert_close(model.bigram, mixed)


def test_nothing_labelled_is_a_zero_loss_not_nan():
    """Broken if a fully masked batch poisoned the weights with NaN, or no targets gave a loss."""
    model, (idx, targets) = make(), data()
    nothing = torch.full_like(targets, -1)
    loss, _ = model.dlr_loss(idx, nothing)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert model(idx, nothing)[1] == 0 and model(idx)[1] is None


# ---- gradients -----------------------------------------------------------------------------------


def gradients(loss, model):
    """{name: gradient}, zeros where a parameter has no part in the loss."""
    names, params = zip(*model.named_parameters())
    found = torch.autograd.grad(loss, params, allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for n, p, g in zip(names, params, found)}


@pytest.mark.parametrize("select", ["likelihood", "path"])
def test_routing_terms_train_the_router_alone(select):
    """Broken if the policy or the regularizer sent a gradient into the LM or the codebook."""
    model, (idx, targets) = make().eval(), data()
    grads = {}
    for weights in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)):
        torch.manual_seed(5)
        grads[weights] = gradients(model.dlr_loss(idx, targets, 4, 1.0, select, *weights)[0], model)
    assert not grads[0.0, 0.0]["router.weight"].any(), "likelihoods must not train the router"
    for weights in ((1.0, 0.0), (0.0, 1.0)):
        for name, grad in grads[weights].items():
            same = torch.allclose(grad, grads[0.0, 0.0][name], atol=1e-7)
            assert same == (name != "router.weight"), name


def test_the_policy_moves_the_router_towards_the_winner():
    """Broken if its gradient were not (p - onehot(a*)) outer the state, mean over real chunks."""
    model, (idx, targets) = make(route_norm=False).eval(), data(B=2, T=10, prompt=3)
    targets[1, 4:] = -1  # row 1 has one real chunk
    torch.manual_seed(2)
    a = model.search(idx, targets, 3)
    torch.manual_seed(2)
    loss = model.dlr_loss(idx, targets, 3, alpha_policy=0.5, alpha_reg=0.0)[0]
    h, p = by_hand(model, idx)[1], model.route(idx).softmax(-1)
    expected = torch.zeros(6, 32)
    for b, m in ((0, 0), (0, 1), (0, 2), (1, 0)):
        error = p[b, m] - torch.eye(6)[a[b, m]]
        expected += 0.5 * torch.outer(error, h[b, 4 * m]) / 4
    got = gradients(loss, model)["router.weight"]
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-4)


def test_the_regularizer_takes_its_target_as_a_constant():
    """Broken if a gradient flowed through the target: held, it is 0.2 (ln(P / Q) + 1) in B."""
    model = make(n_codes=5)
    model.bigram.copy_(torch.rand(5, 5)).div_(model.bigram.sum())
    p = torch.rand(1, 2, 5).softmax(-1).requires_grad_()
    P = 0.8 * model.bigram + 0.2 * torch.outer(p[0, 0], p[0, 1]).detach()
    G = 0.2 * (P.log() - bizipf_target(P).clamp(min=1e-10).log() + 1)
    model.prior_kl(p, torch.tensor([[True, True]])).backward()
    expected = torch.stack([G @ p[0, 1].detach(), p[0, 0].detach() @ G])
    torch.testing.assert_close(p.grad[0], expected)


def test_the_lms_gradient_is_that_of_both_likelihoods():
    """Broken if the sg() cut more than a value, or steering cut the gradient on its way down."""
    model, (idx, targets) = make(steer_layer=2), data(B=2, T=10)
    codes = model.route(idx).argmax(-1)
    loss = model.dlr_loss(idx, targets, select="greedy", alpha_reg=0.0)[0]
    both = 0.0
    for a in (None, codes):
        logp = by_hand(model, idx, a)[0].log_softmax(-1)
        both = both - sum(logp[b, t, targets[b, t]] for b in range(2) for t in range(7, 10)) / 6
    got, expected = gradients(loss, model), gradients(both, model)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-4)
    unused = sorted(set(range(6)) - set(codes.flatten().tolist()))
    assert unused and not got["codebook.weight"][unused].any(), "codes that steer nothing stay"


@pytest.mark.parametrize("qk_norm", [False, True])  # True as in Qwen3
def test_bfloat16_autocast_trains_every_weight_and_generates(qk_norm):
    """Broken if weights cast for the gradient-free search were reused in the graded pass."""
    model, (idx, targets) = make(seed=1, qk_norm=qk_norm), data()  # rounding flips no route here
    grads, logits = [], []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss, _ = model.dlr_loss(idx, targets, n_rollouts=1, temperature=0.0, alpha_reg=0.0)
            out = model.generate([[1, 2, 3], [4]], 5)
            logits.append(model(idx, codes="off")[0])
        assert [len(row) for row in out] == [5, 5]
        grads.append(gradients(loss, model))
    assert (logits[0] - logits[1]).abs().max() < 0.1 * logits[0].abs().max()
    for name in grads[0]:
        assert (grads[0][name] - grads[1][name]).norm() < 0.2 * grads[0][name].norm(), name


def test_the_bigram_is_float32_under_autocast():
    """Broken if mixed precision rounded the prior's shares of about 1 / C^2."""
    model, probs = make().eval(), torch.randn(3, 9, 6).softmax(-1)
    mask = torch.ones(3, 9, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model.prior_kl(probs, mask)
    assert torch.equal(mixed, model.prior_kl(probs, mask))


@pytest.mark.parametrize("settings", [{"n_codes": 1}, {"chunk": 1}, {"n_codes": 1, "chunk": 1},
                                      {"chunk": 64}, {"steer_layer": 0}])
@pytest.mark.parametrize("select", ["likelihood", "path", "greedy"])
def test_the_corners_train(settings, select):
    """Broken if C = 1, K = 1, one code for the whole row or l* = 0 failed to train."""
    model, (idx, targets) = make(codes=0.0, **settings), data()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    steered = []
    for _ in range(12):
        loss, terms = model.dlr_loss(idx, targets, n_rollouts=2, select=select)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        steered.append((terms["generalist"] - terms["info_gain"]).item())
    assert steered[-1] < steered[0] - 0.3 and model.codebook.weight.any()
    if settings.get("n_codes") == 1:
        assert terms["regularizer"] == 0 and terms["policy"] == pytest.approx(0, abs=1e-7)


def test_search_turns_codes_into_handles():
    """Broken if DLR did not learn: two answers that no prompt tells apart must get their codes."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(**{**TINY, "n_layer": 2, "n_codes": 4, "chunk": 64}))
    code_params = [model.codebook.weight, model.router.weight]
    lm = [p for p in model.parameters() if all(p is not q for q in code_params)]
    optimizer = torch.optim.Adam([{"params": lm}, {"params": code_params, "lr": 5e-2}], lr=3e-3)
    answer = (1 + torch.arange(32) % 2)[:, None].expand(32, 4)  # four times token 1, or token 2
    losses, gains = [], []
    for _ in range(80):
        prompt = torch.randint(10, 40, (32, 4))
        idx = torch.cat([prompt, answer[:, 1:]], dim=1)
        targets = torch.cat([torch.full((32, 3), -1), answer], dim=1)
        loss, terms = model.dlr_loss(idx, targets, n_rollouts=8, alpha_policy=0.0, alpha_reg=0.0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        gains.append(terms["info_gain"].item())
    assert losses[-1] < 0.1 * losses[0] and gains[0] == 0, "all codes are zero at the start"
    assert gains[-1] > 0.1  # of ln 2 / 4 = 0.173: which of the two, in nats per token
    forced = [model.generate(prompt.tolist(), 4, codes=torch.full((32, 1), c)) for c in range(4)]
    said = [{tuple(row) for row in rows} for rows in forced]
    assert {(1, 1, 1, 1)} in said and {(2, 2, 2, 2)} in said, "a code says which answer it is"


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize("settings, words", [
    ({"n_codes": 0}, "n_codes"), ({"chunk": 2.5}, "chunk"), ({"n_kv_head": 3}, "n_kv_head"),
    ({"n_embd": 30}, "n_embd"), ({"head_dim": 7}, "head_dim"), ({"steer_layer": 4}, "steer_layer"),
    ({"steer_layer": -1}, "steer_layer"), ({"steer_layer": 1.5}, "steer_layer"),
    ({"steer_scale": float("nan")}, "steer_scale"), ({"router_std": -1}, "router_std")])
def test_bad_configs(settings, words):
    """Broken if a config that cannot work were accepted, or the error did not name the field."""
    with pytest.raises(ValueError, match=words):
        GPTConfig(**{**TINY, **settings})


def test_bad_calls():
    """Broken if a wrong shape, code, length or name slipped through or failed obscurely."""
    model, (idx, targets) = make(), data()
    codes = torch.zeros(3, 6, dtype=torch.long)
    bad = [
        (lambda: model(idx, codes="on"), "codes"),
        (lambda: model(idx, codes=6), r"0\.\.5.*got 6"),
        (lambda: model.generate([[1]], 4, codes=-1), r"0\.\.5.*got -1"),
        (lambda: model(idx, codes=True), "got True"),
        (lambda: model(idx, codes=codes[:, :5]), r"\(3, 6\).*\(3, 5\)"),
        (lambda: model(idx, codes=codes + 6), r"0\.\.5.*6\.\.6"),
        (lambda: model(idx, codes=codes - 1), r"0\.\.5.*-1"),
        (lambda: model(idx, codes=codes.int()), "int32"),
        (lambda: model(idx, targets[:, :5]), r"targets.*\(3, 22\).*\(3, 5\)"),
        (lambda: model(torch.zeros(1, 65, dtype=torch.long)), "block_size"),
        (lambda: model.route(idx.float()), "LongTensor"),
        (lambda: model.generate([[1], [1] * 65], 4), r"prompt 1 .*1\.\.64 .*65"),
        (lambda: model.generate([[1], []], 4), "prompt 1 .* 0"),
        (lambda: model.generate([[1]], 4, codes="no"), "codes"),
        (lambda: model.generate([[1]], 8, codes=codes[:1, :2]), r"\(1, 3\).*\(1, 2\)"),
        (lambda: model.generate([[1]], 4, temperature=-1.0), "temperature"),
        (lambda: model.generate([[1]], -1), "max_new_tokens"),
        (lambda: model.search(idx, targets, select="best"), "select"),
        (lambda: model.search(idx, targets, select="path", switch_cost=-1.0), "switch_cost"),
        (lambda: model.dlr_loss(idx, targets, select="path", switch_cost=math.nan), "switch_cost"),
        (lambda: model.dlr_loss(idx, targets, n_rollouts=0), "n_rollouts"),
        (lambda: model.dlr_loss(idx, targets, temperature=-1.0), "temperature"),
    ]
    for call, words in bad:
        with pytest.raises(ValueError, match=words):
            call()
