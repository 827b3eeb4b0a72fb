"""
Dynamic Latent Routing (DLR) in one file: a minimal modern GPT with a codebook and a router inside, and the
search-select-update training step. After Yu, Su, Abdullah, "Dynamic Latent Routing", arXiv 2605.14323 (2026).

The idea. Cut the sequence x_1..x_T into chunks of K tokens. At a middle layer l* a router reads the state of each
chunk's FIRST token and picks one of C codes; the code's learned vector is added to the state of every token of the
chunk. Training samples N code sequences (search), scores them by how likely they make the answer (select), and trains
language model, codes and router together (update).

         tokens ── embed ── block 1..l* ──┬── h ──────────────(+)── block l*+1..L ── norm ── head ── logits
                                          │                    │
                                 every K-th state              │ alpha * e_a, the same for all K tokens of a chunk
                                          └─ sg ── router ── a = argmax z (or a rollout) ── codebook

Two facts make it cheap. Routing reads h BEFORE steering, so all chunks are routed by one pass through the lower half,
and that half is shared by every loss and rollout of a step. And only labelled positions need the vocabulary projection.

Letters used in shape comments: B rows, T tokens, K tokens a chunk, M = ceil(T/K) chunks, C codes, H = n_embd,
N rollouts, V vocabulary, L labelled positions of the batch.
"""

import itertools
import json
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

LLAMA3_ROPE = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


@dataclass
class GPTConfig:
    vocab_size: int
    block_size: int  # longest sequence
    n_layer: int
    n_head: int
    n_kv_head: int  # key/value heads, each shared by n_head / n_kv_head query heads
    n_embd: int
    n_codes: int = 32  # C; 1 is the static-vector control: nothing to route
    chunk: int = 4  # K
    steer_layer: int | None = None  # l*: how many blocks run before we route and steer; default n_layer // 2
    steer_scale: float = 0.5  # alpha
    route_norm: bool = True  # the router reads h / rms(h), not raw h
    router_std: float = 0.1  # std of the router's initial weights
    ffn_dim: int | None = None  # SwiGLU width; default 8/3 n_embd, rounded up to a multiple of 32
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = True  # the head shares the embedding's weights
    head_dim: int | None = None  # width of one head; default n_embd / n_head
    qk_norm: bool = False  # RMSNorm on each head's queries and keys, before RoPE (Qwen3)
    rope_scaling: dict | None = None  # Llama 3's stretched RoPE: the four numbers of LLAMA3_ROPE (see rope_frequencies)

    def __post_init__(self):
        for name in "vocab_size block_size n_layer n_head n_kv_head n_embd n_codes chunk ffn_dim head_dim".split():
            value = getattr(self, name)
            if value is None and name in ("ffn_dim", "head_dim"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be an integer >= 1, got {value!r}")
        if self.head_dim is None and self.n_embd % self.n_head == 0:
            self.head_dim = self.n_embd // self.n_head
        if self.head_dim is None or self.head_dim % 2:
            raise ValueError(f"head_dim must be an even integer, got {self.head_dim}; its default is n_embd / n_head, "
                             f"{self.n_embd} / {self.n_head}")
        if self.n_head % self.n_kv_head:
            raise ValueError(f"n_head must be a multiple of n_kv_head, got {self.n_head} and {self.n_kv_head}")
        if self.steer_layer is None:
            self.steer_layer = self.n_layer // 2
        if not isinstance(self.steer_layer, int) or not 0 <= self.steer_layer < self.n_layer:
            raise ValueError(f"steer_layer must lie in 0..{self.n_layer - 1} (n_layer {self.n_layer}; at least one "
                             f"block must follow the steering), got {self.steer_layer}")
        for name in ("steer_scale", "router_std", "rope_theta", "norm_eps"):
            value, positive = getattr(self, name), name in ("rope_theta", "norm_eps")
            if not isinstance(value, (int, float)) or not 0 <= value < math.inf or (positive and value == 0):
                raise ValueError(f"{name} must be a finite number {'>' if positive else '>='} 0, got {value!r}")
        for name in ("tie_embeddings", "qk_norm", "route_norm"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")
        s = self.rope_scaling
        if s is not None and not (
                isinstance(s, dict) and s.keys() == set(LLAMA3_ROPE)
                and all(isinstance(v, (int, float)) and 0 < v < math.inf for v in s.values())
                and s["low_freq_factor"] < s["high_freq_factor"]):
            raise ValueError(f"rope_scaling must be None or a dict of {', '.join(LLAMA3_ROPE)}, finite numbers > 0, "
                             f"low_freq_factor < high_freq_factor; got {s!r}")
        if self.ffn_dim is None:
            self.ffn_dim = math.ceil(8 * self.n_embd / 3 / 32) * 32


# ----------------------------------------------------------------------------------------------------------------------
# The transformer. Module and parameter names are those of Hugging Face's Llama, so its weights load without a table.


def rope_frequencies(config):
    """
    Radians per position of each rotating pair, theta^(-2i / hd): (hd / 2,). Llama 3 stretches its context by dividing
    slow ones by `factor`: those of less than low_freq_factor turns in the original context wholly, those of more than
    high_freq_factor not at all, and a blend in between. In the order of transformers' arithmetic, for the same bits.
    """
    hd, s = config.head_dim, config.rope_scaling
    f = 1.0 / config.rope_theta ** (torch.arange(0, hd, 2).float() / hd)
    if s is None:
        return f
    turns = s["original_max_position_embeddings"] / (2 * math.pi / f)
    keep = ((turns - s["low_freq_factor"]) / (s["high_freq_factor"] - s["low_freq_factor"])).clamp(0, 1)
    return (1 - keep) * f / s["factor"] + keep * f


def rotate(x, cos, sin):
    """Rotary position embedding, half-rotation form: x (B, heads, T, hd), cos and sin (B or 1, 1, T, hd)."""
    x1, x2 = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-x2, x1), dim=-1) * sin


class Attention(nn.Module):
    """
    Causal grouped-query attention. With a cache (keys, values), each (B, kv heads, slots, hd), those of x go to slots
    at..at+T-1; x then sees the slots that `seen` (B or 1, 1, T, at + T) allows, by default (at = 0) itself, causally.
    """

    def __init__(self, config):
        super().__init__()
        self.n_head, self.n_kv_head, self.hd = config.n_head, config.n_kv_head, config.head_dim
        self.q_proj = nn.Linear(config.n_embd, self.n_head * self.hd, bias=False)
        self.k_proj = nn.Linear(config.n_embd, self.n_kv_head * self.hd, bias=False)
        self.v_proj = nn.Linear(config.n_embd, self.n_kv_head * self.hd, bias=False)
        self.o_proj = nn.Linear(self.n_head * self.hd, config.n_embd, bias=False)
        self.q_norm = nn.RMSNorm(self.hd, eps=config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(self.hd, eps=config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(self, x, cos, sin, cache=None, at=0, seen=None):
        B, T, H = x.size()
        q = self.q_proj(x).view(B, T, self.n_head, self.hd).transpose(1, 2)  # (B, heads, T, hd)
        k = self.k_proj(x).view(B, T, self.n_kv_head, self.hd).transpose(1, 2)  # (B, kv heads, T, hd)
        v = self.v_proj(x).view(B, T, self.n_kv_head, self.hd).transpose(1, 2)
        # Under autocast v is bfloat16, but norms and rotation are float32.
        q, k = self.q_norm(q.to(x.dtype)), self.k_norm(k.to(x.dtype))
        q, k = (rotate(t, cos, sin).to(v.dtype) for t in (q, k))
        gqa = self.n_head != self.n_kv_head
        if cache is not None:
            for slots, new in zip(cache, (k, v)):
                slots[:, :, at : at + T] = new
            k, v = (slots[:, :, : at + T] for slots in cache)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=seen is None, enable_gqa=gqa)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, self.n_head * self.hd))


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.n_embd, config.ffn_dim, bias=False)
        self.up_proj = nn.Linear(config.n_embd, config.ffn_dim, bias=False)
        self.down_proj = nn.Linear(config.ffn_dim, config.n_embd, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.n_embd, eps=config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.n_embd, eps=config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x, *where):
        x = x + self.self_attn(self.input_layernorm(x), *where)
        return x + self.mlp(self.post_attention_layernorm(x))


class GPT(nn.Module):
    """A GPT that routes and steers: h_t += alpha * e_{a_m(t)} after l* blocks, a_m = argmax W_rt sg(h_first(m))."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.checkpointing = False  # True: recompute each block's activations in backward, to save memory
        self.embed_tokens = nn.Embedding(config.vocab_size, config.n_embd)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.RMSNorm(config.n_embd, eps=config.norm_eps)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.codebook = nn.Embedding(config.n_codes, config.n_embd)  # e_k, the rows
        self.router = nn.Linear(config.n_embd, config.n_codes, bias=False)  # W_rt
        for name, p in self.named_parameters():
            if p.dim() == 2:
                shrink = (2 * config.n_layer) ** -0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
                nn.init.normal_(p, std=0.02 * shrink)
        self._finish()

    def _finish(self):
        """All that is not a weight of the LM: the tied head, tables, fresh codes. Again after building on "meta"."""
        config = self.config
        if config.tie_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        # RoPE's tables. Long contexts cost memory: 134 MB at 131072 positions of 128; block_size can be set lower.
        angles = torch.outer(torch.arange(config.block_size).float(), rope_frequencies(config)).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)  # (block_size, hd)
        self.register_buffer("sin", angles.sin(), persistent=False)
        # Running average of the codes' soft bigram, starts uniform (see prior_kl).
        self.register_buffer("bigram", torch.full((config.n_codes, config.n_codes), 1.0 / config.n_codes**2))
        nn.init.zeros_(self.codebook.weight)  # so the model starts as exactly the plain LM
        nn.init.normal_(self.router.weight, std=config.router_std)

    # ------------------------------------------------------------------------------------------------------------------
    # The model, in the order in which data flows: lower half, route, steer, upper half.

    def lower(self, idx, *where):
        """Embedding and the first l* blocks, never steered: idx (B, T) -> h (B, T, H)."""
        return self._blocks(self.embed_tokens(idx), range(self.config.steer_layer), *where)

    def upper(self, h, *where):
        """The blocks after l* and the final norm: (B, T, H) -> (B, T, H), ready for the head."""
        return self.norm(self._blocks(h, range(self.config.steer_layer, self.config.n_layer), *where))

    def _blocks(self, x, which, pos=None, cache=None, at=0, seen=None):
        """pos (T,) or (B, T): positions, by default 0..T-1; cache {block: (keys, values)}; at, seen: see Attention."""
        where = slice(x.size(1)) if pos is None else pos
        cos, sin = (t[where].view(-1, 1, x.size(1), t.size(-1)).to(x.dtype) for t in (self.cos, self.sin))
        for i in which:
            if self.checkpointing and torch.is_grad_enabled():  # keep a block's input only, run it again for backward
                x = checkpoint(self.layers[i], x, cos, sin, use_reentrant=False)
            else:
                x = self.layers[i](x, cos, sin, cache and cache[i], at, seen)
        return x

    def _cache(self, B, slots, blocks):
        """Empty keys and values for Attention: {block: [(B, kv heads, slots, hd)] * 2}."""
        cfg, weight = self.config, self.embed_tokens.weight
        dtype, kind = weight.dtype, weight.device.type
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        shape = (B, cfg.n_kv_head, slots, cfg.head_dim)
        return {i: [torch.zeros(shape, dtype=dtype, device=weight.device) for _ in range(2)] for i in blocks}

    def router_logits(self, h):
        """z = W_rt sg(h) for states h (..., H) -> (..., C). sg: routing losses train the router, never the LM."""
        h = h.detach().to(self.router.weight.dtype)
        with torch.autocast(h.device.type, enabled=False):  # in float32: bfloat16 would tie codes that lie close
            z = self.router(F.rms_norm(h, h.shape[-1:], eps=1e-6) if self.config.route_norm else h)
        return z.clone()  # a copy, since torch.compile (2.13) replays a view wrongly across graph breaks

    def steer(self, h, codes):
        """h_t += alpha * e_{a_m(t)}: h (B, T, H), codes (B, M). The grid starts at each row's first token."""
        e = self.codebook(codes).repeat_interleave(self.config.chunk, dim=1)[:, : h.size(1)]
        return h + self.config.steer_scale * e

    def route(self, idx):
        """Routing logits of all chunks, read at their first tokens: idx (B, T) -> z (B, M, C). No code changes them."""
        self._check_idx(idx)
        return self.router_logits(self.lower(idx)[:, :: self.config.chunk])

    def forward(self, idx, targets=None, codes=None, **dlr):
        """
        idx (B, T) long, right-padded where ragged (causal attention keeps the padding from being seen); targets (B, T),
        targets[b, t] = the token after idx[b, t], -1 = unlabelled; codes: None = the router's argmax, "off" = plain LM,
        LongTensor (B, M) = these, "search" = one training step's loss (then **dlr are the arguments of `dlr_loss`).

        Returns (logits, loss): without targets (B, T, V) and None; with targets the logits of the L labelled positions
        only, (L, V), and the mean negative log-likelihood over them in nats (0 if nothing is labelled).
        With codes="search": (loss, terms) of `dlr_loss`; training goes through here so that DDP and compile wrap it.
        """
        if isinstance(codes, str) and codes == "search":
            return self.dlr_loss(idx, targets, **dlr)
        if dlr:
            raise TypeError(f'{", ".join(dlr)}: only with codes="search"')
        self._check_idx(idx, targets)
        self._check_codes(codes, idx.size(0), math.ceil(idx.size(1) / self.config.chunk))
        h = self.lower(idx)
        if codes is None:
            codes = self.router_logits(h[:, :: self.config.chunk]).argmax(-1)
        x = self.upper(h if isinstance(codes, str) else self.steer(h, codes))
        if targets is None:
            return self.lm_head(x), None
        labelled = targets >= 0
        logits = self.lm_head(x[labelled])  # (L, V)
        loss = F.cross_entropy(logits.float(), targets[labelled], reduction="sum") / labelled.sum().clamp(min=1)
        return logits, loss

    # ------------------------------------------------------------------------------------------------------------------
    # Training: search, select, update.

    def token_logp(self, h, targets, *where):
        """log p(x_t | x_<t) for states h (B, T, H) just above l*, steered or not -> (B, T) nats, 0 where unlabelled."""
        labelled = targets >= 0
        x, y = self.upper(h, *where)[labelled], targets[labelled]  # (L, H), (L,): the head runs only where labels are
        nll = [F.cross_entropy(self.lm_head(a).float(), b, reduction="none")  # logits of (1024, V) at a time
               for a, b in zip(x.split(1024), y.split(1024))]
        logp = torch.zeros(targets.shape, device=h.device)
        logp[labelled] = -torch.cat(nll)
        return logp

    @torch.no_grad()
    def rollouts(self, h, z, targets, n_rollouts, temperature, greedy_first=False, answer_only=False, seeds=None):
        """
        SEARCH: draw N code sequences, a_m ~ softmax(z_m / tau_i), and score each. Returns codes (N, B, M) and their
        per-token log p(x_t | x_<t, a), (N, B, T). `temperature` is one tau or one for each rollout; tau 0 is greedy.
        answer_only: draw from the chunk before the first label's on; the prompt's others keep the router's argmax.
        seeds: an int for each row, of its draws, which then depend on nothing else of the batch.
        """
        tau = torch.as_tensor(temperature, dtype=torch.float32, device=z.device)
        if n_rollouts < 1 or tau.dim() > 1 or (tau.dim() == 1 and len(tau) != n_rollouts) or not (tau >= 0).all():
            raise ValueError(f"need n_rollouts >= 1 and one temperature >= 0, or one for each rollout; "
                             f"got n_rollouts {n_rollouts}, temperature {temperature}")
        tau = tau.expand(n_rollouts).clone()
        if greedy_first:
            tau[0] = 0.0
        (B, T), K, N = targets.shape, self.config.chunk, n_rollouts
        start, end = torch.zeros(B, dtype=torch.long, device=z.device), row_ends(targets)
        noise = torch.ones((N, *z.shape), device=z.device)  # exponential; - log of it is Gumbel noise
        for b, e in enumerate(end.tolist() if seeds is not None else []):
            own = noise.new_empty(N, math.ceil(e / K), z.size(-1))
            noise[:, b, : own.size(1)] = own.exponential_(generator=torch.Generator(z.device).manual_seed(seeds[b]))
        gumbel = -(noise if seeds is not None else noise.exponential_()).log()
        codes = (z + tau.view(-1, 1, 1, 1) * gumbel).argmax(-1)  # the Gumbel-max trick: a sample of softmax(z / tau)
        if answer_only:
            first = (targets >= 0).int().argmax(1) // K - 1  # (B,) chunks
            codes = torch.where(torch.arange(z.size(1), device=z.device) < first[:, None], z.argmax(-1), codes)
            start = K * first.clamp(min=0)

        # Where all rollouts agree their upper half does, too: it is run once, and its keys and values are kept.
        P = start.max().item()
        cache = self._cache(B, P, range(self.config.steer_layer, self.config.n_layer))
        if P > 0:
            self.upper(self.steer(h, codes[0])[:, :P], None, cache)
        # The rest is run row by row, all rollouts of a row at once: no padding, and little memory.
        logp = torch.zeros(N, B, T, device=z.device)
        for b, (s, e) in enumerate(zip(start.tolist(), end.tolist())):
            if s >= e:  # nothing is labelled
                continue
            pos, y = torch.arange(s, e, device=z.device), targets[b : b + 1, s:e].repeat(N, 1)
            steered = self.steer(h[b : b + 1, s:e].repeat(N, 1, 1), codes[:, b, s // K :])
            own, seen = None, None
            if s > 0:
                own = {i: [F.pad(t[b : b + 1, :, :s].repeat(N, 1, 1, 1), (0, 0, 0, e - s)) for t in kv]
                       for i, kv in cache.items()}
                seen = torch.arange(e, device=z.device) <= pos[:, None]
            logp[:, b, s:e] = self.token_logp(steered, y, pos, own, s, seen)
        torch.clear_autocast_cache()  # older versions would reuse these gradient-free casts in the graded pass
        return codes, logp

    def _select(self, h, z, targets, real, n_rollouts, temperature, select, seeds=None):
        """SELECT: a* = argmax_i log p(x | a_i), or of the joint log p(x | a_i) + log p(a_i | x), per row -> (B, M)."""
        codes, logp = self.rollouts(h, z, targets, n_rollouts, temperature, select == "joint", seeds=seeds)
        score = logp.sum(-1)  # (N, B); sums, not means: within a row the count of labels is the same
        if select == "joint":
            score = score + (code_logp(z, codes) * real).sum(-1)
        best = score.argmax(0)  # (B,)
        return codes[best, torch.arange(len(best), device=best.device)]

    @torch.no_grad()
    def search(self, idx, targets, n_rollouts=8, temperature=1.0, select="likelihood"):
        """Search and select alone: the best code sequence (B, M) of each row, for select "likelihood" or "joint"."""
        self._check_idx(idx, targets, labelled=True)
        if select not in ("likelihood", "joint"):
            raise ValueError(f'select must be "likelihood" or "joint" here, got {select!r}')
        h = self.lower(idx)
        z = self.router_logits(h[:, :: self.config.chunk])
        return self._select(h, z, targets, real_chunks(targets, self.config.chunk), n_rollouts, temperature, select)

    def dlr_loss(self, idx, targets, n_rollouts=8, temperature=1.0, select="likelihood", alpha_policy=0.1,
                 alpha_reg=0.1, seeds=None, whole=None):
        """
        UPDATE: the loss of one training step (method, section 2),

            L = - log p(x)                             generalist
                - log [p(x | a) / sg p(x)]             information gain
                - alpha_policy * log p(a | x)          policy
                + alpha_reg * KL(bigram || bi-Zipf)    regularizer

        log p are means over the batch's labelled tokens, log p(a | x) over its real chunks. `select` says how rollouts
        teach:  "likelihood" (the paper): a = the rollout with the greatest log p(x | a);
                "joint": a = the greatest log p(x | a) + log p(a | x), the router's own argmax among the candidates;
                "advantage": a = the router's argmax, the codes that the test will use. Rollouts teach the router
                alone, by REINFORCE: the policy term is - mean_i A_im log p(a_im | x), where A_im is what rollout i
                gives the labels predicted in chunks m and m + 1, less the mean over rollouts. Unbiased at tau = 1.
                n_rollouts = 0 leaves the search out: what a static or random router's controls need.

        Returns (loss, terms): terms are detached scalars with loss = generalist - info_gain + alpha_policy * policy
        + alpha_reg * regularizer, and "usage", how often the router's argmax chose each code (C,). In train() mode the
        prior's running average moves by one step.

        seeds: see `rollouts`. whole: where this batch is one of the "parts" of a larger one, what that one holds, as a
        dict of parts, labels, chunks and pairs (of real chunks, counts) and its soft bigram B (C, C). Loss, terms and
        gradients are then shares that add up, over the parts, to exactly those of the larger batch; the average stays.
        """
        self._check_idx(idx, targets, labelled=True)
        K = self.config.chunk
        h = self.lower(idx)  # (B, T, H): the only lower pass of the step
        z = self.router_logits(h[:, ::K])  # (B, M, C)
        real = real_chunks(targets, K)  # (B, M)
        n_real = (whole["chunks"] if whole else real.sum()).clamp(min=1)
        n_labels = (whole["labels"] if whole else (targets >= 0).sum()).clamp(min=1)

        if select in ("likelihood", "joint"):
            a = self._select(h.detach(), z.detach(), targets, real, n_rollouts, temperature, select, seeds)
            policy = -(code_logp(z, a) * real).sum() / n_real
        elif select == "advantage":
            a = z.argmax(-1)
            policy = z.new_zeros(())
            if n_rollouts > 0:
                tried, logp = self.rollouts(h.detach(), z.detach(), targets, n_rollouts, temperature, answer_only=True,
                                            seeds=seeds)
                gain = F.pad(logp, (0, -logp.size(-1) % K)).unflatten(-1, (-1, K)).sum(-1)  # (N, B, M): of chunk m
                gain = gain + F.pad(gain[..., 1:], (0, 1))  # and of the next chunk, which reads this one
                advantage = (gain - gain.mean(0)) * real
                policy = -(advantage * code_logp(z, tried)).sum() / (n_rollouts * n_real)
        else:
            raise ValueError(f'select must be "likelihood", "joint" or "advantage", got {select!r}')

        # The two graded passes run as one batch of 2B rows.
        logp = self.token_logp(torch.cat([h, self.steer(h, a)]), targets.repeat(2, 1))
        plain, steered = (logp.view(2, -1).sum(-1) / n_labels).unbind()
        info_gain = steered - plain.detach()
        regularizer = self.prior_kl(z.softmax(-1), real, whole)
        loss = -plain - info_gain + alpha_policy * policy + alpha_reg * regularizer
        terms = {"generalist": -plain, "info_gain": info_gain, "policy": policy, "regularizer": regularizer,
                 "usage": torch.bincount(z.argmax(-1)[real], minlength=self.config.n_codes)}
        return loss, {name: value.detach() for name, value in terms.items()}

    def prior_kl(self, probs, real, whole=None):
        """
        The marginal entropy regularizer KL(P || target) in nats. P = 0.8 avg + 0.2 B mixes a running average with the
        batch's soft bigram B[i, j] = mean p(a_m = i) p(a_m+1 = j) over real neighbouring chunks; probs (B, M, C),
        real (B, M) bool. whole: as in `dlr_loss`; B is then that of the larger batch, and a part's gradient its own.
        """
        if self.config.n_codes == 1:
            return probs.new_zeros(())
        total, pairs = pair_sum(probs, real)
        pairs = whole["pairs"] if whole else pairs
        if pairs == 0:
            return total.sum()  # 0
        B = whole["bigram"] + whole["parts"] * (total - total.detach()) / pairs if whole else total / pairs
        P = 0.8 * self.bigram + 0.2 * B
        if self.training and not whole:
            self.bigram.copy_(P.detach())
        kl = (P * (P.clamp(min=1e-10).log() - bizipf_target(P.detach()).clamp(min=1e-10).log())).sum()
        return kl / whole["parts"] if whole else kl

    # ------------------------------------------------------------------------------------------------------------------
    # Inference.

    @torch.no_grad()
    def generate(self, prompts, max_new_tokens, codes=None, stop=None, temperature=0.0):
        """
        Continue each prompt (lists of token ids, any lengths) with a KV cache; returns each row's new ids as a list.
        codes as in `forward`; a LongTensor (B, M) must cover ceil((longest prompt + max_new_tokens) / K) chunks or the
        whole context. A chunk is routed when its first token arrives; its other tokens keep the code. A function
        choose(z, row, chunk), z (..., C), row and chunk (...), takes the place of the argmax there (interventions).
        `stop` is a token id that ends a row and is not returned; a row also ends when the context is full.
        temperature 0: greedy.
        """
        cfg, device = self.config, self.embed_tokens.weight.device
        K, B, lens = cfg.chunk, len(prompts), [len(p) for p in prompts]
        if max_new_tokens < 0 or temperature < 0:
            raise ValueError(f"max_new_tokens and temperature must be >= 0, got {max_new_tokens} and {temperature}")
        for i, n in enumerate(lens):
            if not 1 <= n <= cfg.block_size:
                raise ValueError(f"prompt {i} has {n} tokens; allowed are 1 to {cfg.block_size} (block_size)")
        out = [[] for _ in prompts]
        if B == 0 or max_new_tokens == 0:
            return out
        P, new_tokens = max(lens), min(max_new_tokens, cfg.block_size + 1 - min(lens))
        choose = (lambda z, row, chunk: z.argmax(-1)) if codes is None else codes
        routed, off = callable(choose), isinstance(codes, str)
        if not routed:
            self._check_codes(codes, B, math.ceil(min(P + max_new_tokens, cfg.block_size) / K), at_least=True)

        # The rows of the batch, shortest prompt first. owner: which prompt each continues, None once it has ended.
        owner = sorted(range(B), key=lambda i: lens[i])
        row, every = torch.tensor(owner, device=device), torch.arange(B, device=device)
        last = torch.tensor(lens, device=device)[row] - 1  # the position that is read next
        x = torch.zeros(B, P, dtype=torch.long, device=device)  # right-padded
        for j, i in enumerate(owner):
            x[j, : lens[i]] = torch.as_tensor(prompts[i])
        if not routed and not off:
            codes = codes[row]
        # Slots of the cache: P for the prompts, then one for each step, the same for all rows.
        cache, slot = self._cache(B, P + new_tokens, range(cfg.n_layer)), torch.arange(P + new_tokens, device=device)
        seen = ((slot <= last[:, None]) | (slot >= P))[:, None, None]  # (B, 1, 1, slots)

        # The prompts, all positions at once, in quarters of similar length; then one token for each row at a time.
        states, current, quarter = [], [], math.ceil(B / 4)
        for j in range(0, B, quarter):
            g, ends = slice(j, j + quarter), (every[: min(quarter, B - j)], last[j : j + quarter])
            part = {i: [t[g] for t in kv] for i, kv in cache.items()}
            h = self.lower(x[g, : lens[owner[g][-1]]], None, part)
            if routed:
                z = self.router_logits(h[:, ::K])  # (rows, chunks of their longest prompt, C)
                chunk = torch.arange(z.size(1), device=device).expand(len(z), -1)
                own = choose(z, row[g, None].expand_as(chunk), chunk)
                current.append(own[ends[0], ends[1] // K])
            elif not off:
                own = codes[g]
            states.append(self.upper(h if off else self.steer(h, own), None, part)[ends])
        x = torch.cat(states)  # (B, H)
        if routed:
            codes = torch.cat(current)  # (B,): from here on, the code of each row's current chunk
        for at in itertools.count(P):
            logits = self.lm_head(x).float()  # (B, V)
            if temperature == 0:
                new = logits.argmax(-1)
            else:
                new = torch.multinomial((logits / temperature).softmax(-1), 1)[:, 0]
            for j, token in enumerate(new.tolist()):
                i = owner[j]
                if i is None:
                    continue
                if token != stop:
                    out[i].append(token)
                if token == stop or len(out[i]) == max_new_tokens or lens[i] + len(out[i]) > cfg.block_size:
                    owner[j] = None
            alive = [j for j, i in enumerate(owner) if i is not None]
            if not alive:
                return out
            end = max(lens[owner[j]] + len(out[owner[j]]) for j in alive)  # positions in use; ended rows stay below it
            last = (last + 1).clamp(max=end - 1)
            if 4 * len(alive) <= 3 * len(owner):  # drop ended rows when they are a quarter of the batch
                keep = torch.tensor(alive, device=device)
                owner, new, last, every = [owner[j] for j in alive], new[keep], last[keep], every[: len(alive)]
                row, seen = row[keep], seen[keep]
                cache = {i: [t[keep] for t in kv] for i, kv in cache.items()}
                codes = codes if off else codes[keep]
            where = last[:, None], cache, at, seen[..., : at + 1]
            h = self.lower(new[:, None], *where)  # (B, 1, H)
            if routed:
                first = (last % K == 0).nonzero()[:, 0]  # rows that begin a chunk
                codes[first] = choose(self.router_logits(h[first, 0]), row[first], last[first] // K)
            if not off:
                h = h + cfg.steer_scale * self.codebook(codes if routed else codes[every, last // K])[:, None]
            x = self.upper(h, *where)[:, 0]

    # ------------------------------------------------------------------------------------------------------------------
    # Checks and loading.

    def _check_idx(self, idx, targets=None, labelled=False):
        if idx.dim() != 2 or idx.dtype != torch.long or not 1 <= idx.size(1) <= self.config.block_size:
            raise ValueError(f"idx must be a LongTensor (B, T) with 1 <= T <= {self.config.block_size} (block_size), "
                             f"got {idx.dtype} {tuple(idx.shape)}")
        shape = idx.shape if targets is None and not labelled else getattr(targets, "shape", None)
        if shape != idx.shape:
            raise ValueError(f"targets must have the shape of idx, {tuple(idx.shape)}, got {shape and tuple(shape)}")

    def _check_codes(self, codes, B, M, at_least=False):
        if codes is None or (isinstance(codes, str) and codes == "off"):
            return
        if not isinstance(codes, torch.Tensor):
            raise ValueError(f'codes must be None (the router\'s argmax), "off" or a LongTensor (B, M), got {codes!r}')
        wide = codes.dim() == 2 and (codes.size(1) >= M if at_least else codes.size(1) == M)
        if not wide or codes.size(0) != B or codes.dtype != torch.long:
            raise ValueError(f"codes must be a LongTensor ({B}, {M}{' or more' if at_least else ''}), "
                             f"got {codes.dtype} {tuple(codes.shape)}")
        if codes.min() < 0 or codes.max() >= self.config.n_codes:
            raise ValueError(f"codes must lie in 0..{self.config.n_codes - 1}, "
                             f"got {codes.min().item()}..{codes.max().item()}")

    @torch.no_grad()
    def add_tokens(self, n):
        """Grow the vocabulary by n tokens, embedded and predicted as the mean token is; returns the first new id."""
        first, tied = self.config.vocab_size, self.lm_head.weight is self.embed_tokens.weight
        for layer in (self.embed_tokens,) if tied else (self.embed_tokens, self.lm_head):
            w = layer.weight
            layer.weight = nn.Parameter(torch.cat([w, w.mean(0, keepdim=True).expand(n, -1)]))
        if tied:
            self.lm_head.weight = self.embed_tokens.weight
        self.config.vocab_size = self.embed_tokens.num_embeddings = self.lm_head.out_features = first + n
        return first

    @classmethod
    def from_checkpoint(cls, path, **overrides):
        """
        A model from a checkpoint of train.py: its path, or the dict from load_checkpoint, with "config" and "model"
        (the weights). Where the codebook is absent or still zero, the codes start fresh under `overrides` of the config
        (n_codes=..., chunk=..., and so on); trained codes keep their settings, and other ones are refused.
        """
        saved = load_checkpoint(path) if isinstance(path, (str, Path)) else path
        weights = saved["model"]
        shapes = {name: tuple(w.shape) for name, w in weights.items()}
        return cls._load(saved["config"], shapes, weights.__getitem__, overrides, saved["path"])

    @classmethod
    def from_pretrained(cls, folder, **overrides):
        """
        A model from a Hugging Face folder of Llama (SmolLM2, Llama 3.2) or Qwen3: config.json, model.safetensors or
        shards with their index; float32 in memory. With the codes that `save_pretrained` left there, else fresh ones.
        `overrides` set config fields (n_codes, chunk, block_size, ...), as in `from_checkpoint`. ValueError names the
        file and what in it is wrong or not implemented. Needs the optional package safetensors.
        """
        folder, safetensors = Path(folder), _safetensors()
        config, tensors, path = read_hf_config(folder), read_hf_tensors(folder), folder / "codes.safetensors"
        if path.exists():
            shapes, settings = read_header(path)
            if shapes.keys() != set(CODES) or settings.keys() != set(CODE_SETTINGS):
                raise ValueError(f"{path}: must hold {CODES} with the settings {CODE_SETTINGS}, "
                                 f"got {sorted(shapes)} with {settings}")
            config |= settings
            tensors |= {name: (shape, path, name) for name, shape in shapes.items()}

        def read(name):  # opens the file each time: kept open, all that was read of it would stay in memory
            _, file, key = tensors[name]
            with safetensors.safe_open(file, "pt") as f:
                return f.get_tensor(key)

        return cls._load(config, {name: t[0] for name, t in tensors.items()}, read, overrides, folder, device="meta")

    @classmethod
    def _load(cls, config, shapes, read, overrides, source, device=None):
        """
        The model of `config` under `overrides` with tensors of these `shapes` {name: shape}, which read(name) returns.
        With device "meta" it is checked before it takes memory or time, then filled one tensor at a time.
        """
        if "codebook.weight" in shapes and not read("codebook.weight").any():
            shapes = {name: shape for name, shape in shapes.items() if name not in CODES}
        codes = shapes.keys() & set(CODES)
        if codes:
            fixed = {k: config[k] for k in CODE_SETTINGS if k in config}
            other = {k: v for k, v in overrides.items() if k in CODE_SETTINGS and v is not None and fixed.get(k) != v}
            if other:
                raise ValueError(f"{source} holds trained codes with {({k: fixed.get(k) for k in other})}, not {other}")
            overrides = {**overrides, **fixed}
        try:
            config = GPTConfig(**{**config, **overrides})
        except (TypeError, ValueError) as e:
            raise ValueError(f"{source}: no GPT has this config: {e}") from e
        if config.n_layer > len(shapes):  # before the blocks are built, however many
            raise ValueError(f"{source}: the config has {config.n_layer} layers, the weights are {len(shapes)} tensors")
        with torch.device(device or torch.get_default_device()):
            model = cls(config)

        own = {name: tuple(w.shape) for name, w in model.state_dict().items()}
        tied = {"lm_head.weight"} if config.tie_embeddings else set()  # a file may hold it or not
        missing = own.keys() - shapes.keys() - tied - (set() if codes else set(CODES))
        surplus = shapes.keys() - own.keys()
        wrong = [f"{k}: expected {own[k]}, got {shapes[k]}" for k in own.keys() & shapes.keys() if own[k] != shapes[k]]
        if missing or surplus or wrong:
            raise ValueError(f"{source}: the weights do not fit the config; missing {sorted(missing)}, "
                             f"surplus {sorted(surplus)}, wrong shape {sorted(wrong)}")
        if tied & shapes.keys() and not torch.equal(read("lm_head.weight"), read("embed_tokens.weight")):
            raise ValueError(f"{source}: the config ties lm_head.weight to embed_tokens.weight, but they differ; "
                             f"tie_embeddings=False loads both")
        if device == "meta":
            model.to_empty(device="cpu")
            model._finish()
        for name, w in model.state_dict().items():
            if name in shapes:
                w.copy_(read(name))  # into float32
        return model

    def save_pretrained(self, folder, tokenizer=None):
        """
        Write a Hugging Face folder: the plain LM as config.json and model.safetensors, which transformers opens, and
        beside it codes.safetensors, with the codes' settings as JSON in its metadata. `tokenizer`: the path of a
        tokenizer.json to copy. All files are complete before the first of them gets its name.
        """
        folder, cfg, save_file = Path(folder), self.config, _safetensors().torch.save_file
        lm = {name: w.contiguous() for name, w in self.state_dict().items()}
        codes = {name: lm.pop(name) for name in CODES}
        head = {"lm_head.weight": lm.pop("lm_head.weight")}
        lm = {f"model.{name}": w for name, w in lm.items()} | ({} if cfg.tie_embeddings else head)
        settings = json.dumps({name: getattr(cfg, name) for name in CODE_SETTINGS})
        kind, name = ("qwen3", "Qwen3ForCausalLM") if cfg.qk_norm else ("llama", "LlamaForCausalLM")
        config = {"model_type": kind, "architectures": [name],
                  **{hf: getattr(cfg, own) for own, hf in HF_NAMES.items()},
                  "rope_scaling": cfg.rope_scaling and {"rope_type": "llama3", **cfg.rope_scaling},
                  "hidden_act": "silu", "attention_bias": False, "bos_token_id": None, "eos_token_id": None,
                  "torch_dtype": str(self.embed_tokens.weight.dtype).removeprefix("torch.")}
        write = {"model.safetensors": lambda to: save_file(lm, to, {"format": "pt"}),
                 "codes.safetensors": lambda to: save_file(codes, to, {"format": "pt", "settings": settings}),
                 "config.json": lambda to: to.write_text(json.dumps(config, indent=2) + "\n")}
        if tokenizer is not None:
            write["tokenizer.json"] = lambda to: shutil.copyfile(tokenizer, to)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            for name in write:
                write[name](folder / f"{name}.tmp")
            for name in write:
                os.replace(folder / f"{name}.tmp", folder / name)
        finally:
            for name in write:
                (folder / f"{name}.tmp").unlink(missing_ok=True)


def load_checkpoint(path):
    """The dict that train.py saved, on the CPU, and its "path". ValueError if the file is truncated or foreign."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as e:  # torch.load fails in many ways on a truncated or foreign file
        raise ValueError(f"{path}: not a readable checkpoint ({type(e).__name__}); truncated or foreign") from e
    config, model = (saved.get(k) if isinstance(saved, dict) else None for k in ("config", "model"))
    if not isinstance(config, dict) or not isinstance(model, dict) or not all(map(torch.is_tensor, model.values())):
        raise ValueError(f"{path}: not a checkpoint of train.py; it must hold 'config', and 'model' with its weights")
    return {**saved, "path": str(path)}


# ----------------------------------------------------------------------------------------------------------------------
# Hugging Face folders.

CODES = ("codebook.weight", "router.weight", "bigram")
CODE_SETTINGS = ("n_codes", "chunk", "steer_layer", "steer_scale", "route_norm")  # trained codes work under no others
HF_NAMES = {"vocab_size": "vocab_size", "block_size": "max_position_embeddings", "n_layer": "num_hidden_layers",
            "n_head": "num_attention_heads", "n_kv_head": "num_key_value_heads", "n_embd": "hidden_size",
            "head_dim": "head_dim", "ffn_dim": "intermediate_size", "rope_theta": "rope_theta",
            "norm_eps": "rms_norm_eps", "tie_embeddings": "tie_word_embeddings"}


def _safetensors():
    try:
        import safetensors.torch
    except ImportError as e:
        raise ImportError("Hugging Face folders need safetensors: pip install safetensors") from e
    return safetensors


def read_json(path, text=None):
    """The JSON object in a file, or in `text` from it; ValueError names a file that holds none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8") if text is None else text)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{path}: not JSON ({e})") from e
    if not isinstance(found, dict):
        raise ValueError(f"{path}: must hold a JSON object, got {found!r}")
    return found


def read_hf_config(folder):
    """GPTConfig's fields from a config.json of transformers 4 or 5. ValueError on what this GPT would get wrong."""
    path = folder / "config.json"
    hf = {k: v for k, v in read_json(path).items() if v is not None}
    rope = hf.get("rope_scaling") or hf.get("rope_parameters") or {}  # transformers 4 and 5
    if not isinstance(rope, dict):
        raise ValueError(f"{path}: rope_scaling must be an object, got {rope!r}")
    rope = {"rope_type": rope.get("type", "default"), **{k: v for k, v in rope.items() if v is not None}}
    qwen3 = hf.get("model_type") == "qwen3"
    layers = ["full_attention"] * str(hf.get("layer_types")).count("full_attention")
    allowed = {"model_type": ["llama", "qwen3"], "rope_type": ["default", "llama3"], "partial_rotary_factor": [1],
               "hidden_act": ["silu"], "attention_bias": [False], "mlp_bias": [False], "attention_dropout": [0],
               "use_sliding_window": [False], "layer_types": [layers], "quantization_config": [],
               "original_max_position_embeddings": [rope.get("original_max_position_embeddings")]}
    allowed |= {k: [] for k in rope if k not in ("rope_theta", "type", *allowed, *LLAMA3_ROPE)}
    for name, value in [("model_type", hf.get("model_type")), *rope.items(), *hf.items()]:
        if name in allowed and value not in allowed[name]:
            raise ValueError(f"{path}: {name} {value!r} is not implemented; known: {allowed[name] or 'none'}")
    given = {"num_key_value_heads": hf.get("num_attention_heads"), "head_dim": 128 if qwen3 else None,
             "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "rope_theta": 10000.0, **hf, **rope}  # HF's defaults
    if missing := [name for name in HF_NAMES.values() if name not in given]:
        raise ValueError(f"{path}: lacks {missing}")
    scaling = {name: rope.get(name) for name in LLAMA3_ROPE} if rope["rope_type"] == "llama3" else None
    return {own: given[name] for own, name in HF_NAMES.items()} | {"qk_norm": qwen3, "rope_scaling": scaling}


def read_header(path):
    """({tensor's name: shape}, our settings) of a safetensors file; ValueError names a truncated or foreign one."""
    try:
        with _safetensors().safe_open(path, "pt") as f:
            shapes, metadata = {}, f.metadata() or {}
            for name in f.keys():
                shape, kind = f.get_slice(name).get_shape(), f.get_slice(name).get_dtype()
                shapes[name] = tuple(shape) if kind in ("F16", "BF16", "F32", "F64") else (kind, *shape)  # fits nothing
    except FileNotFoundError:
        raise  # names the file
    except Exception as e:
        raise ValueError(f"{path}: not a readable safetensors file; truncated or foreign ({e})") from e
    return shapes, read_json(path, metadata.get("settings", "{}"))


def read_hf_tensors(folder):
    """{our name: (shape, file, name in it)} from the headers of model.safetensors, or of all shards of its index."""
    index, files = folder / "model.safetensors.index.json", {"model.safetensors"}
    if index.exists() and not (folder / "model.safetensors").exists():
        files = read_json(index).get("weight_map")
        for name, file in files.items() if isinstance(files, dict) else [("weight_map", files)]:
            if not isinstance(file, str) or not file.endswith(".safetensors") or set(file) & set("/\\:"):
                raise ValueError(f"{index}: {name!r} must be in a .safetensors file of this folder, got {file!r}")
        files = set(files.values())
    found = {}
    for file in sorted(files):
        for key, shape in read_header(folder / file)[0].items():
            name = key.removeprefix("model.")
            if name in found or name in CODES:
                raise ValueError(f"{folder / file}: {key!r} does not belong here, or is there twice")
            if not name.endswith("rotary_emb.inv_freq"):  # a table in old checkpoints; it follows from the config
                found[name] = shape, folder / file, key
    return found


# ----------------------------------------------------------------------------------------------------------------------
# Small pieces of the loss.


def row_ends(targets):
    """
    The number of real tokens in each row: targets (B, T) -> (B,). A row ends at its last label: what follows predicts
    nothing that is scored, so it is padding.
    """
    position = torch.arange(targets.size(1), device=targets.device)
    return torch.where(targets >= 0, position + 1, 0).amax(1)


def real_chunks(targets, K):
    """
    Which chunks steer a real token: targets (B, T) -> bool (B, M). Those of padding take no part in policy and prior.
    """
    return torch.arange(0, targets.size(1), K, device=targets.device) < row_ends(targets)[:, None]


def pair_sum(probs, real):
    """Sum of p(a_m = i) p(a_m+1 = j) over real neighbouring chunks (C, C), and their count, from (B, M, C), (B, M)."""
    pair = real[:, :-1] & real[:, 1:]  # (B, M-1)
    with torch.autocast(probs.device.type, enabled=False):  # bfloat16 would round shares of 1 / C^2 to three digits
        return torch.einsum("bm,bmi,bmj->ij", pair.to(probs.dtype), probs[:, :-1], probs[:, 1:]), pair.sum()


def code_logp(z, codes):
    """log p(a_m | x), untempered: z (B, M, C), codes (..., B, M) -> (..., B, M) nats."""
    return z.log_softmax(-1).expand(*codes.shape, -1).gather(-1, codes[..., None])[..., 0]


def bizipf_target(P):
    """
    The bi-Zipf target: the bigram P (C, C) with its diagonal damped by 1e-5 (a code should not follow itself), then 3
    Sinkhorn rounds (rows, then columns) towards Zipf marginals, 1/rank over the first floor(0.8 C) codes, 0 beyond.
    """
    C = P.size(0)
    zipf = torch.zeros(C, device=P.device)
    used = max(1, int(0.8 * C))
    zipf[:used] = 1.0 / torch.arange(1, used + 1, device=P.device)
    zipf /= zipf.sum()
    Q = P.clone()
    Q.diagonal().mul_(1e-5)
    for _ in range(3):
        Q = Q * (zipf / Q.sum(1).clamp(min=1e-30))[:, None]
        Q = Q * (zipf / Q.sum(0).clamp(min=1e-30))[None, :]
    return Q
