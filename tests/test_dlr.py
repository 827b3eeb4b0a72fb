"""The model and the training step, against brute force and hand-computed numbers. All on the CPU."""

import itertools
import math

import numpy as np
import pytest
import torch

from dlr import GPT, GPTConfig, bizipf_target, code_logp, load_checkpoint, pair_sum, real_chunks

TINY = {"vocab_size": 50, "block_size": 64, "n_layer": 4, "n_head": 4, "n_kv_head": 2, "n_embd": 32, "n_codes": 6}


def make(seed=0, codes=1.0, **kw):
    """A tiny model whose codes matter: codebook and router far from their initial values."""
    torch.manual_seed(seed)
    model = GPT(GPTConfig(**{**TINY, **kw}))
    for p in model.parameters():
        if p.dim() == 2:
            torch.nn.init.normal_(p, std=0.2)
    torch.nn.init.normal_(model.codebook.weight, std=codes)
    torch.nn.init.normal_(model.router.weight, std=1.0)
    return model


def data(B=3, T=22, prompt=7, seed=1, vocab=50):
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randint(vocab, (B, T + 1), generator=g)
    idx, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].clone()
    targets[:, :prompt] = -1
    return idx, targets


# --- steering ---------------------------------------------------------------------------------------------------------


def test_zero_codebook_is_the_plain_lm_bit_for_bit():
    """Broken if steering touched anything but the added code vector."""
    model = make()
    torch.nn.init.zeros_(model.codebook.weight)
    idx, targets = data()
    off, steered = model(idx, codes="off")[0], model(idx)[0]
    assert torch.equal(off, steered)
    assert torch.equal(model(idx, targets, codes="off")[1], model(idx, targets)[1])
    fresh = GPT(GPTConfig(**TINY))
    assert fresh.codebook.weight.abs().sum() == 0, "a new model must start as the plain LM"


def test_steering_adds_the_scaled_code_to_every_token_of_its_chunk():
    """Broken if the chunk grid, the scale or the injection layer were off by one."""
    model = make(steer_layer=3, steer_scale=0.7, chunk=4)
    idx, _ = data(B=2, T=10)
    codes = torch.tensor([[0, 3, 5], [2, 2, 1]])
    x = model.embed_tokens(idx)
    cos, sin = model.cos[:10][None, None], model.sin[:10][None, None]
    for i, layer in enumerate(model.layers):
        if i == 3:  # three blocks have run
            for b, t in itertools.product(range(2), range(10)):
                x = x.clone()
                x[b, t] += 0.7 * model.codebook.weight[codes[b, t // 4]]
        x = layer(x, cos, sin)
    expected = model.lm_head(model.norm(x))
    torch.testing.assert_close(model(idx, codes=codes)[0], expected)


def test_router_reads_the_unsteered_state_of_each_chunks_first_token():
    """Broken if routing saw steered states, another position, or the wrong layer."""
    for route_norm in (True, False):
        model = make(route_norm=route_norm, steer_layer=2)
        idx, _ = data()
        x = model.embed_tokens(idx)
        for layer in model.layers[:2]:
            x = layer(x, model.cos[:22][None, None], model.sin[:22][None, None])
        if route_norm:
            x = x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
        expected = torch.stack([x[:, t] @ model.router.weight.T for t in range(0, 22, 4)], 1)
        torch.testing.assert_close(model.route(idx), expected)
        argmax = model.route(idx).argmax(-1)
        assert torch.equal(model(idx)[0], model(idx, codes=argmax)[0]), "codes=None must be the router's argmax"


@pytest.mark.parametrize("chunk", [1, 3, 4])
def test_no_token_changes_the_past(chunk):
    """Broken if a logit before t, or a code of a chunk begun before t, could see token t."""
    model = make(chunk=chunk)
    idx, _ = data(B=1)
    logits, codes = model(idx)[0], model.route(idx)
    for t in range(idx.size(1)):
        other = idx.clone()
        other[0, t] = (other[0, t] + 1) % 50
        new_logits, new_codes = model(other)[0], model.route(other)
        assert torch.equal(new_logits[:, :t], logits[:, :t])
        begun = math.ceil(t / chunk)  # chunks whose first token lies before t
        assert torch.equal(new_codes[:, :begun], codes[:, :begun])
        assert not torch.equal(new_logits[:, t:], logits[:, t:])


def test_rows_of_a_batch_do_not_see_each_other_or_the_padding():
    """Broken if padding shifted the chunk grid or leaked into attention (trap 1: accuracy changed with the batch)."""
    model = make()
    rows = [data(B=1, T=n, prompt=3, seed=n) for n in (5, 9, 14, 22)]
    idx, targets = torch.full((4, 22), 7), torch.full((4, 22), -1)
    for i, (x, y) in enumerate(rows):
        idx[i, : x.size(1)], targets[i, : x.size(1)] = x[0], y[0]
    logits, routed = model(idx)[0], model.route(idx)
    for i, (x, _) in enumerate(rows):
        n, m = x.size(1), math.ceil(x.size(1) / 4)
        torch.testing.assert_close(logits[i, :n], model(x)[0][0])
        torch.testing.assert_close(routed[i, :m], model.route(x)[0])
    model.eval()
    whole = model.dlr_loss(idx, targets, 1, 0.0, alpha_policy=0.3, alpha_reg=0.2)[1]
    alone = [model.dlr_loss(x, y, 1, 0.0, alpha_policy=0.3, alpha_reg=0.2)[1] for x, y in rows]
    labels = torch.tensor([(y >= 0).sum() for _, y in rows]).float()
    chunks = torch.tensor([math.ceil(x.size(1) / 4) for x, _ in rows]).float()
    for name, weight in (("generalist", labels), ("info_gain", labels), ("policy", chunks)):
        mean = (torch.stack([t[name] for t in alone]) * weight).sum() / weight.sum()
        torch.testing.assert_close(whole[name], mean, msg=f"{name}: padding changed it")


# --- generation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["routed", "off", "forced"])
@pytest.mark.parametrize("chunk", [1, 4])
def test_cached_generation_is_recomputation(kind, chunk):
    """Broken if the cache, a row's chunk phase, or a neighbour in the batch changed what is generated."""
    model = make(chunk=chunk)
    prompts = [torch.randint(50, (n,)).tolist() for n in (5, 1, 9, 3, 7, 2, 8, 4, 6)]  # every length modulo K, ragged
    new, M = 12, math.ceil(21 / chunk)
    forced = torch.randint(6, (len(prompts), M))
    codes = {"routed": None, "off": "off", "forced": forced}[kind]
    out = model.generate(prompts, new, codes=codes)
    for i, prompt in enumerate(prompts):
        ids = list(prompt)
        for _ in range(new):
            c = forced[i : i + 1, : math.ceil(len(ids) / chunk)] if kind == "forced" else codes
            ids.append(model(torch.tensor([ids]), codes=c)[0][0, -1].argmax().item())
        assert out[i] == ids[len(prompt):], f"prompt {i} of {len(prompt)} tokens"
        alone = model.generate([prompt], new, codes=forced[i : i + 1] if kind == "forced" else codes)
        assert alone == [out[i]]


def test_off_is_off_in_the_prompt_too_and_interventions_bite():
    """Broken if an arm left the prompt steered (trap 3) or if an intervention changed nothing (trap 2)."""
    model = make()
    prompts = [torch.randint(50, (n,)).tolist() for n in (8, 11)]
    on, off = model.generate(prompts, 8), model.generate(prompts, 8, codes="off")
    late = model.generate(prompts, 8, codes=torch.zeros(2, 8, dtype=torch.long))
    assert on != off and late != off and late != on
    plain = make()
    torch.nn.init.zeros_(plain.codebook.weight)
    assert plain.generate(prompts, 8) == off
    only_prompt = torch.zeros(2, 8, dtype=torch.long)
    only_prompt[:, 0] = 1  # a code in the prompt's first chunk alone
    assert model.generate(prompts, 8, codes=only_prompt) != late


@pytest.mark.parametrize("chunk", [1, 3])
def test_a_function_chooses_the_codes_once_for_each_chunk(chunk):
    """Broken if a function in place of the argmax were asked for other chunks than the router, or ignored."""
    model = make(chunk=chunk)
    prompts = [torch.randint(50, (n,)).tolist() for n in (3, 6, 9, 5, 7)]
    table, asked = torch.randint(6, (5, 40)), {}

    def argmax(z, row, chunk):
        for r, m, own in zip(row.flatten().tolist(), chunk.flatten().tolist(), z.argmax(-1).flatten().tolist()):
            asked[r, m] = own
        return z.argmax(-1)

    on = model.generate(prompts, 15)
    stop = on[2][4]
    assert model.generate(prompts, 15, codes=argmax, stop=stop) == model.generate(prompts, 15, stop=stop)
    assert model.generate(prompts, 15, codes=lambda z, row, chunk: table[row, chunk]) == model.generate(
        prompts, 15, codes=table) != on
    assert model.generate(prompts, 15, codes=argmax) == on
    for i, (prompt, new) in enumerate(zip(prompts, on)):
        z = model.route(torch.tensor([prompt + new[:-1]]))[0]
        assert [asked[i, m] for m in range(len(z))] == z.argmax(-1).tolist()


def test_stop_ends_a_row_and_only_that_row():
    """Broken if one row's end token stopped or shifted the others, also after ended rows are dropped."""
    model = make()
    prompts = [torch.randint(50, (n,)).tolist() for n in (3, 6, 9, 5, 7)]
    full = model.generate(prompts, 20)
    stop = full[1][2]
    cut = [row[: row.index(stop)] if stop in row else row for row in full]
    assert model.generate(prompts, 20, stop=stop) == cut
    assert len(cut[1]) <= 2 and any(len(row) == 20 for row in cut)


@pytest.mark.parametrize("kind", ["routed", "off", "forced"])
def test_ended_rows_leave_the_others_alone(kind):
    """Broken if dropping ended rows mixed up caches, codes or positions of those that go on."""
    model = make()
    prompts = [torch.randint(50, (n,)).tolist() for n in (3, 6, 9, 5, 7, 2, 8, 4)]
    codes = {"routed": None, "off": "off", "forced": torch.randint(6, (8, 8))}[kind]
    full = model.generate(prompts, 20, codes=codes)
    for stop in sorted({t for row in full for t in row})[::3]:
        cut = [row[: row.index(stop)] if stop in row else row for row in full]
        assert model.generate(prompts, 20, codes=codes, stop=stop) == cut


def test_generation_ends_where_the_context_is_full():
    """Broken if a row ran past block_size, or stopped before using the last position."""
    model = make()
    out = model.generate([[1] * 60, [2] * 64], 30)
    assert [len(row) for row in out] == [5, 1]


@pytest.mark.parametrize("kind", ["routed", "off", "forced"])
def test_a_full_row_waits_for_the_others(kind):
    """Broken if a row at the end of its context, kept in the batch, went on past the last position or code."""
    model = make(block_size=16)
    prompts = [[3] * 16] + [torch.randint(50, (n,)).tolist() for n in (2, 3, 4, 5, 5)]
    forced = torch.randint(6, (6, 4))  # the whole context
    for new in (7, 30):
        codes = {"routed": None, "off": "off", "forced": forced}[kind]
        out = model.generate(prompts, new, codes=codes)
        assert [len(row) for row in out] == [min(new, 17 - len(p)) for p in prompts]
        for i, prompt in enumerate(prompts):
            assert model.generate([prompt], new, codes=forced[i : i + 1] if kind == "forced" else codes) == [out[i]]


def test_nothing_asked_is_nothing_generated():
    """Broken if no prompts failed, or 0 new tokens gave some."""
    model = make()
    assert model.generate([], 4) == [] and model.generate([[1], [2, 3]], 0) == [[], []]


def test_sampling_follows_the_temperature():
    """Broken if temperature were ignored: frequencies must match softmax(logits / T)."""
    model = make()
    prompt = [4, 8, 15]
    expected = (model(torch.tensor([prompt]))[0][0, -1] / 2.0).softmax(-1)
    torch.manual_seed(0)
    new = torch.tensor(model.generate([prompt] * 20_000, 1, temperature=2.0)).flatten()
    observed = torch.bincount(new, minlength=50) / 20_000
    assert (observed - expected).abs().max() < 0.015


# --- search and select ------------------------------------------------------------------------------------------------


def rescore(model, idx, targets, codes):
    """Sum of log p(x | a) per row by whole, separate, unbatched forwards."""
    return torch.stack([-model(idx[i : i + 1], targets[i : i + 1], codes[i : i + 1])[1] * (targets[i] >= 0).sum()
                        for i in range(len(idx))])


def independent_code_logp(model, idx, codes, last):
    """Sum over real chunks of log p(a_m | x), by loops."""
    p = model.route(idx).softmax(-1)
    return torch.stack([sum(p[i, m, codes[i, m]].log() for m in range(last[i] // 4 + 1)) for i in range(len(idx))])


@pytest.mark.parametrize("select", ["likelihood", "joint"])
def test_search_returns_the_best_of_its_candidates(select, monkeypatch):
    """Broken if the batched, shared-lower-half scores ranked candidates otherwise than full forwards do."""
    model = make()
    idx, targets = data(B=4)
    targets[1, 15:] = -1  # a shorter row
    tried = {}
    rollouts = model.rollouts
    monkeypatch.setattr(model, "rollouts", lambda *a, **k: tried.setdefault("r", rollouts(*a, **k)))
    best = model.search(idx, targets, n_rollouts=10, select=select)
    codes = tried["r"][0]
    scores = torch.stack([rescore(model, idx, targets, c) for c in codes])
    if select == "joint":
        last = [21, 14, 21, 21]
        scores += torch.stack([independent_code_logp(model, idx, c, last) for c in codes])
        assert torch.equal(codes[0], model.route(idx).argmax(-1)), "the greedy sequence must be among the candidates"
    assert torch.equal(best, torch.stack([codes[scores[:, i].argmax(), i] for i in range(4)]))
    assert len({tuple(c.flatten().tolist()) for c in codes}) > 5, "candidates must differ"


def test_only_joint_adds_the_greedy_candidate():
    """Broken if the paper's selection by likelihood were given the router's argmax, or "joint" were not."""
    model, (idx, targets) = make(), data()
    greedy = model.route(idx).argmax(-1)
    assert torch.equal(model.search(idx, targets, 1, 5.0, "joint"), greedy)
    assert not torch.equal(model.search(idx, targets, 1, 5.0, "likelihood"), greedy)


def test_joint_leaves_out_the_codes_of_padding(monkeypatch):
    """Broken if a likely code in a chunk of padding won the joint selection."""
    model, z = make(chunk=1), torch.zeros(1, 3, 6)
    z[..., 0] = 2.0  # code 0 is 2 nats likelier than any other
    codes = torch.tensor([[[0, 0, 1]], [[0, 0, 0]]])  # the same but for padding, where the worse one looks better
    monkeypatch.setattr(model, "rollouts", lambda *a, **k: (codes, torch.tensor([[[-1.0]], [[-2.0]]])))
    assert torch.equal(model._select(None, z, None, torch.tensor([[True, True, False]]), 2, 1.0, "joint"), codes[0])


def test_search_with_many_rollouts_finds_the_brute_force_optimum():
    """Broken if some code sequence could never be drawn or a better one were passed over."""
    model = make(n_codes=2)
    torch.nn.init.normal_(model.router.weight, std=0.1)
    idx, targets = data(B=2, T=12, prompt=4)
    every = [torch.tensor([c, c]) for c in itertools.product(range(2), repeat=3)]
    scores = torch.stack([rescore(model, idx, targets, c) for c in every])
    found = model.search(idx, targets, n_rollouts=200)
    assert torch.equal(found, torch.stack([every[scores[:, i].argmax()][i] for i in range(2)]))


def test_rollouts_are_samples_of_the_tempered_router():
    """Broken if the Gumbel trick, tau, or a list of taus sampled anything but softmax(z / tau)."""
    model = make()
    idx, targets = data(B=1, T=5)
    h = model.lower(idx)
    z = model.router_logits(h[:, ::4])
    for tau in (0.5, 2.0):
        codes, _ = model.rollouts(h, z, targets, 20_000, tau)
        observed = torch.bincount(codes[:, 0, 0], minlength=6) / 20_000
        assert (observed - (z[0, 0] / tau).softmax(-1)).abs().max() < 0.015
    assert torch.equal(model.rollouts(h, z, targets, 3, 0.0)[0], z.argmax(-1).expand(3, -1, -1))
    mixed, _ = model.rollouts(h, z, targets, 500, [0.0] + [5.0] * 499)
    assert torch.equal(mixed[0], z.argmax(-1)) and len(mixed[:, 0, 0].unique()) == 6


def test_seeded_rollouts_are_samples_of_the_router():
    """Broken if draws from a row's own seed were shared by rollouts, or missed softmax(z) or a last, partial chunk."""
    model = make()
    idx, targets = data(B=2, T=6)
    targets[0, 3], targets[1, 5] = 1, 2  # rows end after 4 and 6 tokens
    h = model.lower(idx)
    z = model.router_logits(h[:, ::4]) / 2
    codes, _ = model.rollouts(h, z, targets, 5000, 1.0, seeds=[1, 2])
    for b, m in ((0, 0), (1, 0), (1, 1)):
        observed = torch.bincount(codes[:, b, m], minlength=6) / 5000
        assert (observed - z[b, m].softmax(-1)).abs().max() < 0.03, f"row {b}, chunk {m}"


# --- the loss ---------------------------------------------------------------------------------------------------------


def numpy_prior_kl(p, real, avg):
    """The regularizer of method section 3 by plain loops, in float64."""
    p, C = p.double().numpy(), p.size(-1)
    B, n = np.zeros((C, C)), 0
    for b, m in itertools.product(range(p.shape[0]), range(p.shape[1] - 1)):
        if real[b][m] and real[b][m + 1]:
            n += 1
            for i, j in itertools.product(range(C), range(C)):
                B[i, j] += p[b, m, i] * p[b, m + 1, j]
    P = 0.8 * avg + 0.2 * B / n
    zipf = np.array([1 / (k + 1) if k < max(1, math.floor(0.8 * C)) else 0.0 for k in range(C)])
    zipf /= zipf.sum()
    Q = P.copy()
    for i in range(C):
        Q[i, i] *= 1e-5
    for _ in range(3):
        for i in range(C):
            Q[i] *= zipf[i] / max(Q[i].sum(), 1e-300)
        for j in range(C):
            Q[:, j] *= zipf[j] / max(Q[:, j].sum(), 1e-300)
    return sum(P[i, j] * math.log(max(P[i, j], 1e-10) / max(Q[i, j], 1e-10)) for i in range(C) for j in range(C)), P


def test_each_term_by_hand():
    """Broken if a term had another sign, mean, mask or weight than the four-term loss of the method."""
    model = make()
    idx, targets = data(B=2, T=11, prompt=4)
    targets[1, 8:] = -1  # row 1 ends after 8 tokens: its third chunk (tokens 8..10) is padding
    z, codes = model.route(idx), model.search(idx, targets, 1, 0.0)
    avg = model.bigram.double().numpy().copy()
    loss, terms = model.dlr_loss(idx, targets, 1, 0.0, "likelihood", alpha_policy=0.3, alpha_reg=0.2)

    def mean_nll(codes):
        p, total = model(idx, codes=codes)[0].softmax(-1).detach(), 0.0
        places = [(0, t) for t in range(4, 11)] + [(1, t) for t in range(4, 8)]
        for b, t in places:
            total -= math.log(p[b, t, targets[b, t]])
        return total / len(places)

    plain, steered = mean_nll("off"), mean_nll(codes)
    p = z.softmax(-1).detach()
    chunks = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]  # those that steer a real token
    policy = -sum(math.log(p[b, m, codes[b, m]]) for b, m in chunks) / 5
    kl, P = numpy_prior_kl(p, [[1, 1, 1], [1, 1, 0]], avg)
    assert terms["generalist"].item() == pytest.approx(plain, abs=1e-5)
    assert terms["info_gain"].item() == pytest.approx(plain - steered, abs=1e-5)
    assert terms["policy"].item() == pytest.approx(policy, abs=1e-5)
    assert terms["regularizer"].item() == pytest.approx(kl, abs=1e-4)
    assert loss.item() == pytest.approx(plain + (steered - plain) + 0.3 * policy + 0.2 * kl, abs=1e-4)
    np.testing.assert_allclose(model.bigram.numpy(), P, atol=1e-6)
    assert terms["usage"].tolist() == [sum(z.argmax(-1)[c].item() == k for c in chunks) for k in range(6)]


def test_the_prior_moves_in_training_only():
    """Broken if evaluating a loss changed the running average, and with it later training."""
    model, (idx, targets) = make().eval(), data()
    before = model.bigram.clone()
    model.dlr_loss(idx, targets, 2)
    assert torch.equal(model.bigram, before)
    model.train().dlr_loss(idx, targets, 2)
    assert not torch.equal(model.bigram, before)


def test_prior_with_two_codes_by_hand():
    """Broken if floor(0.8 C), the damped diagonal or the 1e-10 floors were read otherwise: C=2 leaves one Zipf code."""
    P = torch.tensor([[0.4, 0.3], [0.2, 0.1]])
    torch.testing.assert_close(bizipf_target(P), torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    model = make(n_codes=2)
    model.bigram.copy_(P)
    probs = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])  # code 0, then code 1: B = [[0, 1], [0, 0]]
    got = model.prior_kl(probs, torch.tensor([[True, True]]))
    mixed = [0.32, 0.44, 0.16, 0.08]
    expected = 0.32 * math.log(0.32) + sum(q * math.log(q / 1e-10) for q in mixed[1:])
    assert got.item() == pytest.approx(expected, abs=1e-4)
    torch.testing.assert_close(model.bigram, torch.tensor([[0.32, 0.44], [0.16, 0.08]]))


def test_rare_pairs_count_as_rare_in_the_prior():
    """Broken if the floor under P, 1e-10, were so high that it changed the pairs that hardly occur."""
    model = make(n_codes=2)
    model.bigram.copy_(torch.tensor([[0.9998, 1e-4], [1e-4, 0.0]]))
    got = model.prior_kl(torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]), torch.tensor([[True, True]]))
    expected = 0.99984 * math.log(0.99984) + 2 * 8e-5 * math.log(8e-5 / 1e-10)  # the target is code 0 alone
    assert got.item() == pytest.approx(expected, abs=2e-5)


def test_prior_target_has_zipf_marginals_and_no_repetition():
    """Broken if the target did not discourage repeated codes or did not approach the Zipf marginals."""
    torch.manual_seed(0)
    P = torch.rand(10, 10)
    Q = bizipf_target(P / P.sum())
    zipf = np.array([1 / k for k in range(1, 9)] + [0, 0])
    np.testing.assert_allclose(Q.sum(0).numpy(), zipf / zipf.sum(), atol=1e-6)
    np.testing.assert_allclose(Q.sum(1).numpy(), zipf / zipf.sum(), atol=0.05)
    assert Q.diagonal().sum() < 1e-3


def test_routing_terms_train_the_router_alone():
    """Broken if the policy or the regularizer sent a gradient into the LM or the codebook."""
    for select in ("likelihood", "joint", "advantage"):
        model, (idx, targets) = make(), data()
        loss = model.dlr_loss(idx, targets, 4, select=select, alpha_policy=1.0, alpha_reg=1.0)[0]
        base = model.dlr_loss(idx, targets, 4, select=select, alpha_policy=0.0, alpha_reg=0.0)[0]
        assert model.router.weight.grad is None
        torch.manual_seed(5)
        loss, _ = model.dlr_loss(idx, targets, 4, select=select, alpha_policy=1.0, alpha_reg=1.0)
        full = torch.autograd.grad(loss, list(model.parameters()))
        torch.manual_seed(5)
        base, _ = model.dlr_loss(idx, targets, 4, select=select, alpha_policy=0.0, alpha_reg=0.0)
        bare = torch.autograd.grad(base, list(model.parameters()))
        for (name, _), a, b in zip(model.named_parameters(), full, bare):
            same = torch.allclose(a, b, atol=1e-7)
            assert same == (name != "router.weight"), name
        assert dict(zip(dict(model.named_parameters()), bare))["router.weight"].abs().sum() == 0


def test_unused_codes_get_no_gradient():
    """Broken if codes that steered nothing moved."""
    model = make()
    idx, targets = data(B=1, T=8, prompt=2)
    loss = model(idx, targets, codes=torch.tensor([[1, 4]]))[1]
    loss.backward()
    moved = model.codebook.weight.grad.abs().sum(1) > 0
    assert moved.tolist() == [False, True, False, False, True, False]


def test_the_steered_loss_trains_the_layers_below_the_codes():
    """Broken if steering cut the gradient on its way down: a pass by hand has the same gradient in every weight."""
    model, (idx, targets) = make(steer_layer=2, chunk=4), data(B=2, T=10)
    codes = torch.tensor([[0, 3, 5], [2, 2, 1]])
    model(idx, targets, codes=codes)[1].backward()
    got = {name: p.grad for name, p in model.named_parameters()}
    x = model.embed_tokens.weight[idx]
    for i, layer in enumerate(model.layers):
        if i == 2:
            x = x + 0.5 * torch.stack([model.codebook.weight[codes[:, t // 4]] for t in range(10)], 1)
        x = layer(x, model.cos[:10][None, None], model.sin[:10][None, None])
    logp = (model.norm(x) @ model.lm_head.weight.T).log_softmax(-1)
    loss = -sum(logp[b, t, targets[b, t]] for b in range(2) for t in range(7, 10)) / 6
    expected = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    for (name, _), grad in zip(model.named_parameters(), expected):
        torch.testing.assert_close(got[name], grad, atol=1e-6, rtol=1e-4, msg=name)
    assert all(p.grad.abs().sum() > 0 for p in model.layers[0].parameters())


def test_terms_are_plain_numbers_and_usage_counts_the_routers_own_codes():
    """Broken if logging a term kept the step's graph alive, or if usage counted the rollouts that were selected."""
    model, (idx, targets) = make(), data()
    _, terms = model.dlr_loss(idx, targets, 4, temperature=5.0)
    assert not any(value.requires_grad for value in terms.values())
    greedy = model.route(idx).argmax(-1).flatten().tolist()
    assert terms["usage"].tolist() == [greedy.count(k) for k in range(6)]


def test_the_priors_target_is_a_constant():
    """Broken if a gradient flowed through the target: for P ln(P / Q) with Q held, it is 0.2 (ln(P / Q) + 1) in B."""
    model = make(n_codes=5)
    model.bigram.copy_(torch.rand(5, 5)).div_(model.bigram.sum())
    p = torch.rand(1, 2, 5).softmax(-1).requires_grad_()
    P = 0.8 * model.bigram + 0.2 * torch.outer(p[0, 0], p[0, 1]).detach()
    G = 0.2 * (P.log() - bizipf_target(P).clamp(min=1e-10).log() + 1)
    model.prior_kl(p, torch.tensor([[True, True]])).backward()
    torch.testing.assert_close(p.grad[0], torch.stack([G @ p[0, 1].detach(), p[0, 0].detach() @ G]))


def test_lm_gradient_is_that_of_both_likelihoods():
    """Broken if the sg() in the information gain cancelled the generalist's gradient instead of only its value."""
    model, (idx, targets) = make(), data()
    loss = model.dlr_loss(idx, targets, 1, 0.0, alpha_policy=0, alpha_reg=0)[0]
    lm = [p for n, p in model.named_parameters() if not n.startswith("router")]
    got = torch.autograd.grad(loss, lm)
    two = model(idx, targets, codes="off")[1] + model(idx, targets)[1]
    zero = [torch.zeros_like(p) for p in lm]
    expected = torch.autograd.grad(two, lm, allow_unused=True)
    for a, b, z in zip(got, expected, zero):
        torch.testing.assert_close(a, z if b is None else b, atol=1e-6, rtol=1e-4)


def test_advantage_is_the_gradient_of_the_expected_local_gain():
    """Broken if REINFORCE had the wrong sign, baseline or chunks: compared with the exact gradient by enumeration."""
    model = make(n_codes=2, chunk=4, steer_scale=1.0)
    idx, targets = data(B=1, T=8, prompt=2)
    targets[0, 6:] = -1
    h = model.lower(idx)
    W = model.router.weight
    exact = torch.zeros_like(W)
    p = model.router_logits(h[:, ::4])[0].softmax(-1)  # (2, C)
    for a in itertools.product(range(2), repeat=2):
        logp = model.token_logp(model.steer(h, torch.tensor([a])), targets)[0].detach()
        own = [logp[:4].sum(), logp[4:].sum()]
        gains = [own[0] + own[1], own[1]]  # chunk m and the next
        prob = (p[0, a[0]] * p[1, a[1]]).detach()
        score = sum(g * p[m, a[m]].log() for m, g in enumerate(gains))
        exact += torch.autograd.grad(-prob * score / 2, W, retain_graph=True)[0]
    torch.manual_seed(0)
    loss = model.dlr_loss(idx, targets, 50_000, 1.0, "advantage", alpha_policy=1.0, alpha_reg=0.0)[0]
    got = torch.autograd.grad(loss, W)[0]
    assert (got - exact).norm() < 0.1 * exact.norm()


def test_nothing_labelled_is_a_zero_loss_not_nan():
    """Broken if a fully masked batch poisoned the weights with NaN."""
    model, (idx, targets) = make(), data()
    loss, _ = model.dlr_loss(idx, torch.full_like(targets, -1))
    loss.backward()
    assert loss.isfinite() and all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert model(idx, torch.full_like(targets, -1))[1] == 0
    assert model(idx)[1] is None, "without targets there is no loss"


@pytest.mark.parametrize("kw", [{"n_codes": 1}, {"chunk": 1}, {"n_codes": 1, "chunk": 1}, {"chunk": 64}])
@pytest.mark.parametrize("select", ["likelihood", "joint", "advantage"])
def test_static_vector_and_single_token_chunks_train(kw, select):
    """Broken if the C=1 control, K=1 or one chunk for the whole row failed to train."""
    model, (idx, targets) = make(codes=0.0, **kw), data()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss, terms = model(idx, targets, codes="search", n_rollouts=2, select=select)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append((terms["generalist"] - terms["info_gain"]).item())
    assert losses[-1] < losses[0] - 0.3 and model.codebook.weight.abs().sum() > 0
    if kw.get("n_codes") == 1:
        assert terms["regularizer"] == 0 and terms["policy"] == pytest.approx(0, abs=1e-7)


def test_padding_takes_no_part():
    """Broken if chunks of padding counted in the policy or the prior."""
    _, targets = data(B=1, T=8, prompt=2)
    targets = torch.cat([targets, torch.full((1, 6), -1)], 1)
    assert real_chunks(targets, 4).tolist() == [[True, True, False, False]]
    assert real_chunks(torch.full((1, 5), -1), 4).tolist() == [[False, False]]
    z = torch.tensor([[[math.log(3.0), 0.0]]])  # probabilities 3/4 and 1/4
    assert code_logp(z, torch.tensor([[[0]], [[1]]])).exp().flatten().tolist() == pytest.approx([0.75, 0.25])


def test_bfloat16_autocast_trains_every_weight_and_generates():
    """Broken if weights cast for the gradient-free rollouts were reused in the graded pass (their gradients vanish)."""
    model, (idx, targets) = make(), data()
    grads = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            model(idx, targets, codes="search", n_rollouts=1, temperature=0.0, alpha_policy=0.0)[0].backward()
            out = model.generate([[1, 2, 3], [4]], 5)
        assert [len(row) for row in out] == [5, 5]
        grads.append({name: p.grad.clone() for name, p in model.named_parameters() if not name.startswith("router")})
    for name in grads[0]:
        assert (grads[0][name] - grads[1][name]).norm() < 0.2 * grads[0][name].norm(), name


def test_the_loss_survives_compile_wrapping():
    """Broken if the training loss could not be reached through forward of a wrapped model."""
    model, (idx, targets) = make(), data()
    with pytest.raises(TypeError, match="n_rolouts"):
        model(idx, targets, n_rolouts=2)
    compiled = torch.compile(model, backend="eager")
    torch.manual_seed(0)
    a = compiled(idx, targets, codes="search", n_rollouts=2)[0]
    torch.manual_seed(0)
    model.bigram.fill_(1 / 36)
    b = model(idx, targets, codes="search", n_rollouts=2)[0]
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("select", ["likelihood", "joint", "advantage"])
def test_parts_add_up_to_the_whole_batch(select):
    """Broken if accumulated parts of a batch differed from it: rollouts, prior, normalisers or gradients."""
    idx, targets = data()
    targets[1, 9:] = -1  # parts of different sizes
    flags = dict(codes="search", n_rollouts=3, select=select, alpha_policy=0.7, alpha_reg=0.3)
    seeds, K = [5, 6, 7], 4
    model = make(chunk=K).double()
    model.bigram.copy_(torch.rand(6, 6)).div_(model.bigram.sum())
    before = model.bigram.clone()
    loss, terms = model(idx, targets, seeds=seeds, **flags)
    loss.backward()
    gradients, after = {n: p.grad for n, p in model.named_parameters()}, model.bigram.clone()
    model.zero_grad()
    model.bigram.copy_(before)
    real = real_chunks(targets, K)
    total, pairs = pair_sum(model.route(idx).softmax(-1).detach(), real)
    whole = {"parts": 2, "labels": (targets >= 0).sum(), "chunks": real.sum(), "pairs": pairs, "bigram": total / pairs}
    added = {"loss": 0.0}
    for part in (slice(0, 1), slice(1, 3)):
        share, part_terms = model(idx[part], targets[part], seeds=seeds[part], whole=whole, **flags)
        share.backward()
        for name, value in {"loss": share.detach(), **part_terms}.items():
            added[name] = added.get(name, 0.0) + value
    for name, value in {"loss": loss.detach(), **terms}.items():
        torch.testing.assert_close(added[name], value, rtol=1e-5, atol=1e-6, check_dtype=False, msg=name)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, gradients[name], rtol=1e-4, atol=1e-6, msg=name)
    assert torch.equal(model.bigram, before)
    torch.testing.assert_close(before.lerp(whole["bigram"], 0.2), after)


def test_the_bigram_is_float32_under_autocast():
    """Broken if mixed precision rounded the prior's shares."""
    probs, real = torch.randn(3, 9, 6).softmax(-1), torch.ones(3, 9, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = pair_sum(probs, real)
    assert torch.equal(total, pair_sum(probs, real)[0]) and total.dtype == torch.float32


def test_a_rows_rollouts_depend_on_its_seed_alone():
    """Broken if a row drew other codes in another batch, at another place in it, or beside longer rows."""
    model, (idx, targets) = make(), data()
    targets[0, 10:], targets[2, 5:] = -1, -1
    h = model.lower(idx)
    z = model.router_logits(h[:, :: model.config.chunk])
    codes, logp = model.rollouts(h, z, targets, 4, 1.0, seeds=[1, 2, 3])
    swapped, _ = model.rollouts(h.flip(0), z.flip(0), targets.flip(0), 4, 1.0, seeds=[3, 2, 1])
    real = real_chunks(targets, model.config.chunk)
    assert torch.equal(torch.where(real, codes, -1), torch.where(real, swapped.flip(1), -1))
    alone, _ = model.rollouts(h[:1, :12], z[:1, : real[0].sum()], targets[:1, :12], 4, 1.0, seeds=[1])
    assert torch.equal(alone[:, 0], codes[:, 0, : real[0].sum()])
    other, _ = model.rollouts(h, z, targets, 4, 1.0, seeds=[1, 9, 3])
    assert torch.equal(other[:, 0], codes[:, 0]) and not torch.equal(other[:, 1], codes[:, 1])


# --- loading and bad input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kw, word", [
    ({"n_codes": 0}, "n_codes"), ({"chunk": 0}, "chunk"), ({"chunk": 2.5}, "chunk"), ({"n_kv_head": 3}, "n_kv_head"),
    ({"steer_layer": 4}, "steer_layer"), ({"steer_layer": -1}, "steer_layer"), ({"n_embd": 30}, "n_embd"),
    ({"steer_scale": float("nan")}, "steer_scale"), ({"steer_layer": 1.5}, "steer_layer"),
    ({"router_std": -1}, "router_std"), ({"vocab_size": 0}, "vocab_size")])
def test_bad_configs(kw, word):
    """Broken if a config that cannot work were accepted, or the error did not name the field."""
    with pytest.raises(ValueError, match=word):
        GPT(GPTConfig(**{**TINY, **kw}))


def test_bad_calls():
    """Broken if a wrong shape, code, length or name slipped through or failed obscurely."""
    model, (idx, targets) = make(), data()
    bad = [
        (lambda: model(idx, codes="on"), "codes"),
        (lambda: model(idx, codes=torch.zeros(3, 5, dtype=torch.long)), r"\(3, 6\).*\(3, 5\)"),
        (lambda: model(idx, codes=torch.full((3, 6), 6)), "0..5"),
        (lambda: model(idx, targets[:, :5]), "targets"),
        (lambda: model(torch.zeros(1, 65, dtype=torch.long)), "block_size"),
        (lambda: model(idx.float()), "LongTensor"),
        (lambda: model.generate([[1] * 65], 4), "prompt 0 has 65 tokens"),
        (lambda: model.generate([[1], []], 4), "prompt 1 has 0 tokens"),
        (lambda: model.generate([[1]], 4, codes="no"), "codes"),
        (lambda: model.generate([[1]], 8, codes=torch.zeros(1, 2, dtype=torch.long)), r"\(1, 3 or more\)"),
        (lambda: model.route(idx.float()), "LongTensor"),
        (lambda: model(idx, codes=torch.zeros(1, 6, dtype=torch.long)), r"\(3, 6\).*\(1, 6\)"),
        (lambda: model(idx, codes=torch.zeros(3, 7, dtype=torch.long)), r"\(3, 6\).*\(3, 7\)"),
        (lambda: model(idx, codes=torch.full((3, 6), -1)), "0..5"),
        (lambda: model(idx, codes=torch.zeros(3, 6, dtype=torch.int32)), "int32"),
        (lambda: model.generate([[1]], 4, temperature=-1.0), "temperature"),
        (lambda: model.generate([[1]], -1), "max_new_tokens"),
        (lambda: model.search(idx, targets, select="best"), "select"), (lambda: model.search(idx, None), "targets"),
        (lambda: model(idx, codes="search"), "targets"),
        (lambda: model.search(idx, targets, n_rollouts=0), "n_rollouts"),
        (lambda: model.search(idx, targets, 3, [1.0, 2.0]), "temperature"),
        (lambda: model.search(idx, targets, 2, [1.0, -1.0]), "temperature"),
        (lambda: model.search(idx, targets, 2, [[1.0, 1.0]]), "temperature"),
        (lambda: model.dlr_loss(idx, targets, select="best"), "select"),
    ]
    for call, words in bad:
        with pytest.raises(ValueError, match=words):
            call()


def test_bad_checkpoints(tmp_path):
    """Broken if a truncated, foreign or misfitting checkpoint loaded, or failed without naming the file."""
    model, good = make(), tmp_path / "good.pt"
    torch.save({"config": vars(model.config), "model": model.state_dict()}, good)
    again = GPT.from_checkpoint(good)
    idx, _ = data()
    assert torch.equal(again(idx)[0], model(idx)[0])
    (tmp_path / "cut.pt").write_bytes(good.read_bytes()[:5000])
    torch.save([1], tmp_path / "list.pt")
    for name in ("cut.pt", "list.pt"):
        with pytest.raises(ValueError, match=name):
            load_checkpoint(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "none.pt")
    with pytest.raises(ValueError, match=r"trained codes with {'n_codes': 6}"):
        GPT.from_checkpoint(good, n_codes=8)
    with pytest.raises(ValueError, match=r"embed_tokens.weight: expected \(51, 32\), got \(50, 32\)"):
        GPT.from_checkpoint(good, vocab_size=51)
    torch.nn.init.zeros_(model.codebook.weight)
    torch.save({"config": vars(model.config), "model": model.state_dict()}, tmp_path / "plain.pt")
    assert GPT.from_checkpoint(tmp_path / "plain.pt", n_codes=8, chunk=1).codebook.weight.shape == (8, 32)
    torch.save({"config": {"n_head": 2, "dropout": 0.1}, "model": {}}, tmp_path / "foreign.pt")
    with pytest.raises(ValueError, match=r"foreign\.pt"):
        GPT.from_checkpoint(tmp_path / "foreign.pt")
    with pytest.raises(ValueError, match="surplus"):
        GPT.from_checkpoint(good, n_layer=3)


@pytest.mark.parametrize("select", ["likelihood", "joint", "advantage"])
def test_padding_changes_no_term(select):
    """Broken if a chunk's gain, or any term, moved with the padding behind the rows (T not a multiple of K)."""
    model, (idx, targets) = make(chunk=4), data(T=21)
    flags = dict(codes="search", n_rollouts=3, select=select, seeds=[1, 2, 3])
    model.eval()
    loss, terms = model(idx, targets, **flags)
    for extra in (1, 3, 5):
        padded, other = model(torch.nn.functional.pad(idx, (0, extra)),
                              torch.nn.functional.pad(targets, (0, extra), value=-1), **flags)
        torch.testing.assert_close(padded, loss, rtol=1e-4, atol=1e-5)
        for name in ("generalist", "info_gain", "policy", "regularizer"):
            torch.testing.assert_close(other[name], terms[name], rtol=1e-4, atol=1e-5, msg=name)


def test_token_zero_is_a_label_and_the_prior_starts_uniform():
    """Broken if a row whose last label is token 0 ended before it, or the prior's average did not start as a bigram."""
    targets = torch.tensor([[-1, 5, 0, -1], [-1, -1, -1, 0]])
    assert real_chunks(targets, 1).tolist() == [[True, True, True, False], [True] * 4]
    assert torch.equal(GPT(GPTConfig(**TINY)).bigram, torch.full((6, 6), 1 / 36))


def test_the_prior_trains_the_router():
    """Broken if the regularizer were only reported: its gradient is what pulls the codes' use towards the prior."""
    model, (idx, targets) = make(), data()
    model.eval()  # the running average stays
    gradients = []
    for alpha_reg in (0.0, 1.0):
        model.zero_grad()
        model(idx, targets, codes="search", n_rollouts=2, seeds=[1, 2, 3], alpha_reg=alpha_reg)[0].backward()
        gradients.append(model.router.weight.grad.clone())
    model.zero_grad()
    model.prior_kl(model.route(idx).softmax(-1), real_chunks(targets, model.config.chunk)).backward()
    assert model.router.weight.grad.abs().max() > 1e-5
    torch.testing.assert_close(gradients[1] - gradients[0], model.router.weight.grad, rtol=1e-3, atol=1e-6)
