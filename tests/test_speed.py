"""Every shortcut against its exact slow twin: plain loops of whole forward passes. All on the CPU."""

import math

import pytest
import torch
from test_dlr import data, make

from dlr import GPT, GPTConfig, code_logp, real_chunks
from train import by_length


def ragged(lengths=((9, 22), (1, 15), (14, 17), (6, 22)), T=24, seed=3):
    """A batch of rows (labels from `first`, end); the last columns are padding of all rows."""
    idx, targets = data(B=len(lengths), T=T, prompt=0, seed=seed)
    for b, (first, end) in enumerate(lengths):
        targets[b, :first] = targets[b, end:] = -1
    return idx, targets


def whole_passes(model, idx, targets, codes):
    """log p(x_t | x_<t, a) of codes (N, B, M) by one whole pass with all logits for each rollout and row: (N, B, T)."""
    logp = torch.zeros(*codes.shape[:2], idx.size(1))
    for n, b in torch.cartesian_prod(*map(torch.arange, codes.shape[:2])).tolist():
        p = model(idx[b : b + 1], codes=codes[n, b : b + 1])[0][0].softmax(-1)  # (T, V)
        for t in (targets[b] >= 0).nonzero().flatten().tolist():
            logp[n, b, t] = p[t, targets[b, t]].log()
    return logp


@pytest.mark.parametrize("chunk", [1, 4])
@pytest.mark.parametrize("answer_only", [False, True])
@torch.no_grad()
def test_rollouts_are_whole_forward_passes(answer_only, chunk):
    """Broken if a shared prompt, a shared lower half, or a row cut to its length changed a rollout's score."""
    model, (idx, targets) = make(chunk=chunk, qk_norm=True), ragged()
    h = model.lower(idx)
    z = model.router_logits(h[:, ::chunk])
    codes, logp = model.rollouts(h, z, targets, 3, 1.0, answer_only=answer_only)
    torch.testing.assert_close(logp, whole_passes(model, idx, targets, codes), atol=2e-5, rtol=1e-5)
    assert logp.std(0).sum() > 1, "the codes must matter"


@torch.no_grad()
def test_rollouts_share_a_prompt_of_one_chunk():
    """Broken if the shortest prompt that rollouts can share, one chunk, were not run before it is read."""
    model, (idx, targets) = make(), ragged(lengths=((9, 22), (3, 15)))
    h = model.lower(idx)
    codes, logp = model.rollouts(h, model.router_logits(h[:, ::4]), targets, 2, 1.0, answer_only=True)
    torch.testing.assert_close(logp, whole_passes(model, idx, targets, codes), atol=2e-5, rtol=1e-5)


def test_answer_only_draws_the_same_codes_where_it_draws():
    """Broken if the codes that can reach a label of their chunk or the next were not those of a full search."""
    model, (idx, targets) = make(), ragged()
    h = model.lower(idx)
    z = model.router_logits(h[:, ::4])
    torch.manual_seed(0)
    full, _ = model.rollouts(h, z, targets, 5, 1.0)
    torch.manual_seed(0)
    short, _ = model.rollouts(h, z, targets, 5, 1.0, answer_only=True)
    for b, first in enumerate((9, 1, 14, 6)):
        m = max(first // 4 - 1, 0)
        assert torch.equal(short[:, b, m:], full[:, b, m:])
        assert torch.equal(short[:, b, :m], z[b, :m].argmax(-1).expand(5, -1))


@pytest.mark.parametrize("select", ["likelihood", "joint", "advantage"])
def test_a_step_is_the_obvious_recipe(select):
    """Broken if loss or gradients differed from N + 2 whole passes over padded rows with all logits."""
    model, (idx, targets) = make().eval(), ragged()
    N, K = 4, 4
    torch.manual_seed(0)
    loss, _ = model.dlr_loss(idx, targets, N, 1.0, select, alpha_policy=0.5, alpha_reg=0.0)
    got = torch.autograd.grad(loss, list(model.parameters()))

    torch.manual_seed(0)
    z, real = model.route(idx), real_chunks(targets, K)
    with torch.no_grad():
        tried, _ = model.rollouts(model.lower(idx), z, targets, N, 1.0, select == "joint", select == "advantage")
        logp = whole_passes(model, idx, targets, tried)
    greedy, policy = z.argmax(-1), 0.0
    if select == "advantage":
        a = greedy
        for b, m in real.nonzero().tolist():
            gain = logp[:, b, m * K : (m + 2) * K].sum(-1)
            policy = policy - ((gain - gain.mean()) * z[b, m].log_softmax(-1)[tried[:, b, m]]).mean() / real.sum()
    else:
        score = logp.sum(-1)
        if select == "joint":
            score = score + (code_logp(z, tried) * real).sum(-1)
        a = torch.stack([tried[score[:, b].argmax(), b] for b in range(len(idx))])
        for b, m in real.nonzero().tolist():
            policy = policy - z[b, m].log_softmax(-1)[a[b, m]] / real.sum()
    expected, labels = 0.5 * policy, [(b, t) for b, t in (targets >= 0).nonzero().tolist()]
    plain, steered = model(idx, codes="off")[0], model(idx, codes=a)[0]
    for b, t in labels:
        p, q = (x[b, t].log_softmax(-1)[targets[b, t]] for x in (plain, steered))
        expected = expected - (p + q - p.detach()) / len(labels)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    slow = torch.autograd.grad(expected, list(model.parameters()), allow_unused=True)
    for (name, p), a, b in zip(model.named_parameters(), got, slow):
        torch.testing.assert_close(a, torch.zeros_like(p) if b is None else b, atol=1e-5, rtol=1e-4, msg=name)


def test_advantage_is_the_exact_gradient_given_the_prompts_own_codes():
    """Broken if leaving the prompt's codes at the argmax biased REINFORCE: the exact gradient, by enumeration."""
    model = make(n_codes=2, steer_scale=1.0)
    idx, targets = data(B=1, T=20, prompt=13)  # labels from chunk 3 on: codes 2, 3 and 4 are drawn
    h, W = model.lower(idx), model.router.weight
    p = model.router_logits(h[:, ::4])[0].softmax(-1)  # (5, C)
    exact = torch.zeros_like(W)
    for a in torch.cartesian_prod(*[torch.arange(2)] * 3):
        codes = torch.cat([p[:2].argmax(-1), a])
        own = model.token_logp(model.steer(h, codes[None]), targets)[0].detach().unflatten(0, (5, 4)).sum(-1)
        score = sum((own[m] + (own[m + 1] if m < 4 else 0)) * p[m, codes[m]].log() for m in (2, 3, 4))
        prob = math.prod(p[m, codes[m]].item() for m in (2, 3, 4))
        exact += torch.autograd.grad(-prob * score / 5, W, retain_graph=True)[0]
    torch.manual_seed(0)
    loss = model.dlr_loss(idx, targets, 10_000, 1.0, "advantage", alpha_policy=1.0, alpha_reg=0.0)[0]
    got = torch.autograd.grad(loss, W)[0]
    assert (got - exact).norm() < 0.1 * exact.norm()


def saved_bytes(step):
    """Bytes that autograd keeps for the backward pass of step(), each storage once; and its gradients' input."""
    storages = {}

    def pack(t):
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = step()
    return sum(storages.values()), loss


@pytest.mark.parametrize("codes", ["off", "search"])
def test_checkpointing_changes_memory_alone(codes):
    """Broken if recomputing activations changed the loss or a gradient, or saved no memory."""
    model, (idx, targets) = make(n_layer=8), data(B=4, T=40)
    runs = []
    for flag in (False, True):
        model.checkpointing = flag
        model.zero_grad()
        model.bigram.fill_(1 / 36)
        torch.manual_seed(0)
        kept, loss = saved_bytes(lambda: model(idx, targets, codes=codes)[codes == "off"])
        loss.backward()
        runs.append((kept, loss, [torch.zeros_like(p) if p.grad is None else p.grad.clone()
                                  for p in model.parameters()]))
    (kept, loss, grads), (kept_less, same, same_grads) = runs
    assert torch.equal(loss, same) and kept_less < 0.5 * kept, f"{kept_less} of {kept} bytes"
    for a, b in zip(grads, same_grads):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_checkpointing_leaves_the_cache_alone():
    """Broken if blocks that are recomputed in training lost their keys and values in generation or in the search."""
    model, (idx, targets) = make(), ragged()
    h = model.lower(idx)
    runs = []
    for model.checkpointing in (False, True):
        torch.manual_seed(0)
        logp = model.rollouts(h, model.route(idx), targets, 2, 1.0, answer_only=True)[1]
        runs.append((model.generate([[1, 2, 3, 4, 5], [6]], 8), logp))
    assert runs[0][0] == runs[1][0] and torch.equal(runs[0][1], runs[1][1])


def test_the_router_decides_in_float32_under_autocast():
    """Broken if bfloat16 (8 bits of mantissa) tied or swapped two codes whose logits differ by 1 part in 1000."""
    model, (idx, _) = make(n_codes=2), data()
    with torch.no_grad():
        model.router.weight[1] = 1.001 * model.router.weight[0]
        with torch.autocast("cpu", torch.bfloat16):
            h = model.lower(idx)[:, ::4]
            z = model.router_logits(h)
        x = h.double() / (h.double().pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
        exact = x @ model.router.weight.double().T
    assert z.dtype == torch.float32 and (exact[..., 0] != exact[..., 1]).all()
    torch.testing.assert_close(z.double(), exact, atol=1e-5, rtol=1e-5)
    assert torch.equal(z.argmax(-1), exact.argmax(-1))
    assert not torch.equal(exact.bfloat16().argmax(-1), exact.argmax(-1)), "the case must be one that bfloat16 ties"


@pytest.mark.parametrize("codes", [None, "off"])
def test_generation_is_that_of_transformers(codes, tmp_path):
    """Broken if sorted, grouped and dropped rows, or the slots of the cache, gave other tokens than transformers."""
    transformers = pytest.importorskip("transformers")
    model = GPT(GPTConfig(vocab_size=50, block_size=64, n_layer=3, n_head=4, n_kv_head=2, n_embd=32)).eval()
    torch.manual_seed(0)
    for p in model.parameters():
        if p.dim() == 2:
            torch.nn.init.normal_(p, std=0.2)
    torch.nn.init.zeros_(model.codebook.weight)  # with codes None: routed and steered, by nothing
    prompts = [torch.randint(50, (n,)).tolist() for n in torch.randint(1, 20, (40,)).tolist()]
    model.save_pretrained(tmp_path)
    hf = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    P = max(map(len, prompts))
    idx = torch.tensor([[0] * (P - len(p)) + p for p in prompts])
    seen = torch.tensor([[0] * (P - len(p)) + [1] * len(p) for p in prompts])
    for stop in (None, 7):
        out = hf.generate(input_ids=idx, attention_mask=seen, max_new_tokens=24, do_sample=False, eos_token_id=stop,
                          pad_token_id=0)[:, P:].tolist()
        out = [row[: row.index(stop)] if stop in row else row for row in out]
        assert model.generate(prompts, 24, codes=codes, stop=stop) == out
    assert len({len(row) for row in out}) > 2, "rows must end at different times"


def test_length_buckets_pad_less_and_only_reorder_within_windows():
    """Broken if a row were lost or left its window of 16 batches, or the batches did not become alike in length."""
    g = torch.Generator().manual_seed(0)
    items = [([0] * n, 1) for n in torch.randint(20, 400, (1000,), generator=g).tolist()]
    shuffled = torch.randperm(1000, generator=g).tolist()
    order = by_length(shuffled, items, 128)
    assert all(set(order[i : i + 128]) == set(shuffled[i : i + 128]) for i in range(0, 1000, 128))
    padded = [sum(8 * max(len(items[row][0]) for row in rows[i : i + 8]) for i in range(0, 1000, 8))
              for rows in (shuffled, order)]
    real = sum(len(ids) for ids, _ in items)
    assert padded[1] < 1.1 * real < 1.5 * real < padded[0]
