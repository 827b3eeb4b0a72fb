"""
Dynamic Latent Routing (DLR), after Yu, Su, Abdullah, arXiv 2605.14323 (2026), in one file: a minimal
modern GPT with a codebook and a router inside, and the search-select-update training step.

The idea. Cut the sequence x_1..x_T into chunks of K tokens. At a middle layer l* a router reads the
state of each chunk's FIRST token (the rest does not exist yet when we generate) and picks one of C
codes. The code's learned vector is added to the state of every token of the chunk.

    tokens -- embed -- l* blocks --+-- h ------------------(+)-- other blocks -- norm, head -- logits
                                   |                        |
                            every K-th state                |  alpha * e_a, the same vector
                                   |                        |  for all K tokens of a chunk
                                   +-- router --  codes a --+
                                                  ^ argmax, or in training the winner of a search

Training. Rows are prompt + answer; only the answer's tokens are labels (targets >= 0), but the prompt's
chunks have codes, too. Each step tries N code sequences for each row (search), keeps the one that makes
the row's answer most likely (select), and trains language model, codebook and router (update). The
search sees the answer, inference does not: so the router learns to predict the winner from the text
so far.

A second search, ours (select="path"), gives each chunk its own credit and finds the best path over
codes. A search that sees the answer can hide hints at its words in the codes, and a model that has
learned with hints is worse without. Picking 1 of N sequences tells at most log2 N bits of an answer,
a path up to log2 C bits a chunk: that is why a path pays for each change of code.

The cost. Routing reads h BEFORE steering, so one lower half serves all chunks, all N candidates, and
the two passes that are trained, one without codes and one with them: a step runs 1 lower and N + 2
upper halves (the path search C + 2).

Letters in shape comments: B rows, T tokens, K tokens a chunk, M = ceil(T / K) chunks, C codes,
H = n_embd, N candidates, V vocabulary, L labelled positions of the batch, hd = head_dim.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

SWITCH_COST = 0.5  # select="path": the price of each change of code, in nats; chosen on validation data


@dataclass
class GPTConfig:
    vocab_size: int
    block_size: int  # longest sequence
    n_layer: int
    n_head: int
    n_kv_head: int  # key/value heads, each shared by n_head / n_kv_head query heads
    n_embd: int
    # Dynamic Latent Routing
    n_codes: int = 32  # C; with 1 there is nothing to route: one static learned vector
    chunk: int = 4  # K
    steer_layer: int | None = None  # l*: how many blocks run before the steering; default half
    steer_scale: float = 0.5  # alpha
    route_norm: bool = True  # the router reads h / rms(h); False, as in the paper: h itself
    router_std: float = 0.1  # std of the router's initial weights; the paper: 0.01
    # the transformer's variants: Llama, Llama 3.2, SmolLM2, Qwen3
    ffn_dim: int | None = None  # width of the MLP; default 8/3 n_embd, rounded up to a multiple of 32
    head_dim: int | None = None  # width of one head; default n_embd / n_head
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None  # Llama 3's stretched RoPE, see rope_frequencies
    norm_eps: float = 1e-5
    qk_norm: bool = False  # RMSNorm on each head's queries and keys, before RoPE (Qwen3)
    tie_embeddings: bool = True  # the head shares the embedding's weights

    def __post_init__(self):
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_kv_head", "n_embd", "n_codes", "chunk"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be an integer >= 1, got {value!r}")
        if self.head_dim is None and self.n_embd % self.n_head:
            raise ValueError(f"n_embd must be a multiple of n_head, got {self.n_embd}, {self.n_head}")
        self.head_dim = self.head_dim or self.n_embd // self.n_head
        self.ffn_dim = self.ffn_dim or math.ceil(8 * self.n_embd / 3 / 32) * 32
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even (RoPE turns pairs), got {self.head_dim}")
        if self.n_head % self.n_kv_head:
            raise ValueError(f"n_head must be a multiple of n_kv_head, got {self.n_head}, {self.n_kv_head}")
        if self.steer_layer is None:
            self.steer_layer = self.n_layer // 2
        if type(self.steer_layer) is not int or not 0 <= self.steer_layer < self.n_layer:
            raise ValueError(f"steer_layer must lie in 0..{self.n_layer - 1} (below n_layer), got {self.steer_layer}")
        if not (0 <= self.steer_scale < math.inf and 0 <= self.router_std < math.inf):
            raise ValueError(f"steer_scale, router_std: finite and >= 0, got {self.steer_scale}, {self.router_std}")


# ---- The transformer. Named as in Hugging Face's Llama, so its weights fit. -----------------------

def rope_frequencies(config):
    """
    Radians per position of each rotating pair: theta^(-2i / hd), shape (hd / 2,). Llama 3 stretches
    its context (config.rope_scaling): a pair that turns less than low_freq_factor times within the
    original context is slowed down by `factor`, one that turns more than high_freq_factor times is
    kept, and those between are blended.
    """
    f = 1.0 / config.rope_theta ** (torch.arange(0, config.head_dim, 2).float() / config.head_dim)
    s = config.rope_scaling
    if s is None:
        return f
    turns = s["original_max_position_embeddings"] / (2 * math.pi / f)
    keep = (turns - s["low_freq_factor"]) / (s["high_freq_factor"] - s["low_freq_factor"])
    keep = keep.clamp(0, 1)
    return (1 - keep) * f / s["factor"] + keep * f


def rotate(x, rope):
    """Rotary position embedding, half-rotation form: x (B, heads, T, hd), rope = cos, sin (T, hd)."""
    cos, sin = rope
    x1, x2 = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-x2, x1), dim=-1) * sin


class KVCache:
    """The keys and values that one block has computed, (B, kv heads, pos, hd), for pos tokens."""

    def __init__(self):
        self.pos, self.keys, self.values = 0, None, None

    def append(self, k, v):
        """Add those of the next T tokens, (B, kv heads, T, hd) each; return those of all tokens."""
        if self.pos > 0:
            k, v = torch.cat([self.keys, k], dim=2), torch.cat([self.values, v], dim=2)
        self.pos, self.keys, self.values = k.size(2), k, v
        return k, v


class Attention(nn.Module):
    """Causal attention; each key/value head serves n_head / n_kv_head query heads."""

    def __init__(self, config):
        super().__init__()
        self.n_head, self.n_kv_head, self.hd = config.n_head, config.n_kv_head, config.head_dim
        self.q_proj = nn.Linear(config.n_embd, self.n_head * self.hd, bias=False)
        self.k_proj = nn.Linear(config.n_embd, self.n_kv_head * self.hd, bias=False)
        self.v_proj = nn.Linear(config.n_embd, self.n_kv_head * self.hd, bias=False)
        self.o_proj = nn.Linear(self.n_head * self.hd, config.n_embd, bias=False)
        self.q_norm = nn.RMSNorm(self.hd, eps=config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(self.hd, eps=config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(self, x, rope, cache=None):
        B, T, H = x.size()
        q = self.q_proj(x).view(B, T, self.n_head, self.hd).transpose(1, 2)  # (B, heads, T, hd)
        k = self.k_proj(x).view(B, T, self.n_kv_head, self.hd).transpose(1, 2)
        v = self.v_proj(x).view(B, T, self.n_kv_head, self.hd).transpose(1, 2)
        # Under autocast projections return bfloat16: norm and rotate in x's dtype (float32), then cast back.
        q = rotate(self.q_norm(q.to(x.dtype)), rope).to(v.dtype)
        k = rotate(self.k_norm(k.to(x.dtype)), rope).to(v.dtype)
        if cache is not None:
            k, v = cache.append(k, v)
        # T > 1 only with an empty cache, so is_causal is right; a single token sees the whole cache.
        y = F.scaled_dot_product_attention(q, k, v, is_causal=T > 1, enable_gqa=self.n_head != self.n_kv_head)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, self.n_head * self.hd))


class MLP(nn.Module):  # SwiGLU
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

    def forward(self, x, rope, cache=None):
        x = x + self.self_attn(self.input_layernorm(x), rope, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


# ---- The model, in the order in which data flows: lower half, route, steer, upper half. ----------

class GPT(nn.Module):
    """A GPT that routes and steers: h_t += alpha * e_a after l* blocks, a = the code of t's chunk."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.n_embd)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.RMSNorm(config.n_embd, eps=config.norm_eps)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.codebook = nn.Embedding(config.n_codes, config.n_embd)  # e_a, the rows
        self.router = nn.Linear(config.n_embd, config.n_codes, bias=False)  # W_rt
        if config.tie_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

        positions = torch.arange(config.block_size).float()
        angles = torch.outer(positions, rope_frequencies(config)).repeat(1, 2)  # (block_size, hd)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        # For the regularizer: a running average of how often code i is followed by code j, at first uniform.
        self.register_buffer("bigram", torch.ones(config.n_codes, config.n_codes) / config.n_codes**2)

        for name, p in self.named_parameters():
            if p.dim() == 2:
                adds_to_stream = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * config.n_layer) if adds_to_stream else 0.02)
        nn.init.normal_(self.router.weight, std=config.router_std)
        # Codes that are zero change nothing: training starts from exactly the plain LM.
        nn.init.zeros_(self.codebook.weight)

    def _run(self, x, blocks, cache):
        """States x (B, T, H) through a range of blocks, behind the tokens that the cache holds."""
        pos = cache[blocks[0]].pos if cache and blocks else 0  # l* = 0: no blocks
        rope = self.cos[pos : pos + x.size(1)], self.sin[pos : pos + x.size(1)]
        for i in blocks:
            x = self.layers[i](x, rope, cache[i] if cache else None)
        return x

    def lower(self, idx, cache=None):
        """Embedding and the first l* blocks, never steered: idx (B, T) -> h (B, T, H)."""
        return self._run(self.embed_tokens(idx), range(self.config.steer_layer), cache)

    def router_logits(self, h):
        """z = W_rt sg(h): states (..., H) -> (..., C). sg, stop-gradient: z never trains the LM."""
        h = h.detach().to(self.router.weight.dtype)
        if self.config.route_norm:
            h = F.rms_norm(h, h.shape[-1:], eps=1e-6)
        # Without autocast: bfloat16 would make close logits equal.
        with torch.autocast(h.device.type, enabled=False):
            return self.router(h)

    def steer(self, h, codes, start=0):
        """h_t += alpha * e_a: h (B, T, H) of the tokens from `start` on, codes (B, M), an int or "off"."""
        if isinstance(codes, str):  # "off": the plain LM
            return h
        if isinstance(codes, int):  # one code everywhere: a constant
            return h + self.config.steer_scale * self.codebook.weight[codes]
        chunk_of = torch.arange(start, start + h.size(1), device=h.device) // self.config.chunk  # (T,)
        return h + self.config.steer_scale * self.codebook(codes[:, chunk_of])

    def upper(self, h, cache=None):
        """The blocks after l* and the final norm: (B, T, H) -> (B, T, H), ready for the head."""
        return self.norm(self._run(h, range(self.config.steer_layer, self.config.n_layer), cache))

    def forward(self, idx, targets=None, codes=None):
        """
        idx (B, T): token ids; rows of unequal length are padded on the right.
        targets (B, T): targets[b, t] is the token after idx[b, t], or -1 where nothing is graded.
        codes: None = the router's argmax, "off" = the plain LM, an int = that code everywhere,
            LongTensor (B, M) = these codes.

        Returns (logits, loss). Without targets: logits (B, T, V), loss None. With targets: logits
        (L, V) of the labelled positions, and their mean cross-entropy in nats (0 if there are none).
        That loss never trains the router: DLR trains by dlr_loss.
        """
        self._check(idx, targets)
        self._check_codes(codes, idx.size(0), math.ceil(idx.size(1) / self.config.chunk))
        h = self.lower(idx)
        if codes is None:
            codes = self.router_logits(h[:, :: self.config.chunk]).argmax(-1)  # (B, M)
        x = self.upper(self.steer(h, codes))
        if targets is None:
            return self.lm_head(x), None
        labelled = targets >= 0
        logits = self.lm_head(x[labelled])
        nll = F.cross_entropy(logits.float(), targets[labelled], reduction="sum")
        return logits, nll / labelled.sum().clamp(min=1)

    def route(self, idx):
        """Routing logits z (B, M, C) of all chunks, each read at its chunk's first token."""
        self._check(idx)
        return self.router_logits(self.lower(idx)[:, :: self.config.chunk])

    def token_logp(self, h, targets):
        """
        One upper half: log p(targets[b, t] | tokens up to t), (B, T), 0 where unlabelled, from the
        middle layer's states h (B, T, H), steered or not.
        """
        labelled = targets >= 0
        logits = self.lm_head(self.upper(h)[labelled])  # (L, V)
        logp = torch.zeros(targets.shape, device=h.device)
        logp[labelled] = -F.cross_entropy(logits.float(), targets[labelled], reduction="none")
        return logp

    # ---- Training: search, select, update (paper, section 3). ------------------------------------
    @torch.no_grad()
    def _search(self, h, z, targets, n_rollouts, temperature, select, switch_cost):
        """SEARCH and SELECT from states h (B, T, H) and routing logits z (B, M, C) -> codes (B, M)."""
        if select == "greedy":
            return z.argmax(-1)
        if select == "path":
            # Hold each code for the whole row: how likely does it make each chunk? One upper half a code.
            held = [self.token_logp(self.steer(h, code), targets) for code in range(z.size(-1))]  # C times (B, T)
            padded = F.pad(torch.stack(held), (0, -h.size(1) % self.config.chunk))  # T up to a multiple of K
            score = padded.unflatten(-1, (-1, self.config.chunk)).sum(-1)  # (C, B, M)
            codes = best_path(score, switch_cost)
        else:
            # Gumbel noise turns argmax into a sample: argmax(z + temperature * Gumbel) ~ softmax(z / temperature).
            gumbel = -torch.empty(n_rollouts, *z.shape, device=z.device).exponential_().log()
            candidates = (z + temperature * gumbel).argmax(-1)  # (N, B, M)
            # How likely does each candidate make the row's answer? One upper half each: (N, B).
            score = torch.stack([self.token_logp(self.steer(h, a), targets).sum(-1) for a in candidates])
            best = score.argmax(0)  # (B,); ties, as at the start, go to the first
            codes = candidates[best, torch.arange(len(best), device=z.device)]  # row b's is candidate best[b]
        torch.clear_autocast_cache()  # older torch would reuse these gradient-free casts in the loss
        return codes

    @torch.no_grad()
    def search(self, idx, targets, n_rollouts=8, temperature=1.0, select="likelihood", switch_cost=SWITCH_COST):
        """Codes (B, M), chosen as a step of training does ("likelihood" draws anew); arguments as in dlr_loss."""
        self._check(idx, targets, n_rollouts, temperature, select, switch_cost)
        h = self.lower(idx)
        z = self.router_logits(h[:, :: self.config.chunk])
        return self._search(h, z, targets, n_rollouts, temperature, select, switch_cost)

    def dlr_loss(self, idx, targets, n_rollouts=8, temperature=1.0, select="likelihood",
                 alpha_policy=0.1, alpha_reg=0.1, switch_cost=SWITCH_COST):
        """
        The loss of one training step; idx, targets as in forward. a*: the codes that the search chooses.
        log p(x) is short for log p(answer | prompt):

            loss = - log p(x)                       generalist   LM: works without codes
                   - log [ p(x | a*) / sg p(x) ]    info_gain    LM, codebook: works with a*
                   - alpha_policy * log p(a* | .)   policy       router: predict a* from the text so far (.)
                   + alpha_reg * KL(P || target)    regularizer  router: use codes by Zipf's law, see prior_kl

        sg p(x) is the same number without a gradient. Dividing by it makes the second line a gain: what codes
        that were chosen with the answer in sight are worth. As numbers the first two lines add up to
        -log p(x | a*), so the loss must not be compared with that of plain fine-tuning.
        log p(x): mean over the batch's labels; log p(a* | .): mean over its real chunks, without padding.
        How a* is chosen, row by row:

            select "likelihood" (the paper): N = n_rollouts code sequences are drawn from
                softmax(z / temperature), and the one with the greatest log p(x | a) wins;
            select "path" (ours): a code's score in a chunk is log p of the chunk's targets if that code is
                held for the whole row; the sequence with the greatest sum of scores, less switch_cost
                nats for each change of code, wins, see best_path. Nothing is drawn. Pass alpha_reg=0, as
                train.py does: the regularizer punishes a code that lasts;
            select "greedy": the router's argmax, nothing is searched and policy is 0, so that the
                regularizer alone trains the router: the control that shows what searching adds.

        Returns (loss, terms): the four, unweighted; of them info_gain alone is the better the greater. And
        "usage" (C,): how many real chunks the router's argmax gave each code. In train() mode the
        regularizer's running average moves on.
        """
        self._check(idx, targets, n_rollouts, temperature, select, switch_cost)
        h = self.lower(idx)  # (B, T, H): the only lower pass of the step
        z = self.router_logits(h[:, :: self.config.chunk])  # (B, M, C)
        mask = chunk_mask(targets, self.config.chunk)  # (B, M)
        a = self._search(h, z, targets, n_rollouts, temperature, select, switch_cost)  # (B, M)

        n_labels = (targets >= 0).sum().clamp(min=1)
        plain = self.token_logp(h, targets).sum() / n_labels  # log p(x)
        steered = self.token_logp(self.steer(h, a), targets).sum() / n_labels  # log p(x | a*)
        info_gain = steered - plain.detach()  # its value is the gain, its gradient steered's alone
        policy = -(code_logp(z, a) * mask).sum() / mask.sum().clamp(min=1)
        if select == "greedy":
            policy = torch.zeros_like(policy)
        regularizer = self.prior_kl(z.softmax(-1), mask)

        loss = -plain - info_gain + alpha_policy * policy + alpha_reg * regularizer
        usage = torch.bincount(z.argmax(-1)[mask], minlength=self.config.n_codes)  # (C,)
        terms = {"generalist": -plain, "info_gain": info_gain, "policy": policy, "regularizer": regularizer}
        return loss, {name: term.detach() for name, term in terms.items()} | {"usage": usage}

    def prior_kl(self, probs, mask):
        """
        The paper's marginal entropy regularizer: codes should be used as words are, many of them, by Zipf's
        law, and rarely twice in a row. KL(P || target) in nats, probs (B, M, C), mask (B, M).
        P (C, C), a running average, says how often code i is followed by code j: 0.8 * the old P + 0.2 *
        this batch's mean of p(a_m = i) p(a_m+1 = j) over neighbouring real chunks. The target is a detached
        copy of P, made anew at each step, with almost no repetitions and Zipf's frequencies.
        """
        neighbours = mask[:, :-1] & mask[:, 1:]  # (B, M-1)
        if self.config.n_codes == 1 or not neighbours.any():
            return probs.new_zeros(())
        first, second = probs[:, :-1][neighbours], probs[:, 1:][neighbours]  # (pairs, C) each
        # Shares of 1 / C^2 need float32.
        with torch.autocast(probs.device.type, enabled=False):
            P = 0.8 * self.bigram + 0.2 * (first.T @ second) / len(first)  # (C, C), sums to 1
        if self.training:
            self.bigram.copy_(P.detach())
        target = bizipf_target(P.detach())
        return (P * (P.clamp(min=1e-10).log() - target.clamp(min=1e-10).log())).sum()

    # ---- Inference. ------------------------------------------------------------------------------
    @torch.no_grad()
    def generate(self, prompts, max_new_tokens, codes=None, stop=None, temperature=0.0):
        """
        Continue each prompt (a list of token ids); returns the new ids, one list for each prompt.

        codes: as in forward. A LongTensor needs at least ceil(min(longest prompt + max_new_tokens,
            block_size) / K) columns, more are ignored. Or a function codes(z, row, chunk) -> (B, m) instead
            of the argmax, for the m chunks that begin: z (B, m, C), their row and chunk numbers (B, m) each.
        stop: a token id, or a list of them, that ends a row and is not returned; so does a full context.
        """
        K, block_size, device = self.config.chunk, self.config.block_size, self.cos.device
        if max_new_tokens < 0 or temperature < 0:
            raise ValueError(f"max_new_tokens and temperature must be >= 0, got {max_new_tokens}, {temperature}")
        for i, prompt in enumerate(prompts):
            if not 1 <= len(prompt) <= block_size:
                raise ValueError(f"prompt {i} must have 1..{block_size} (block_size) tokens, it has {len(prompt)}")
        if len(prompts) == 0 or max_new_tokens == 0:
            return [[] for _ in prompts]
        B, lens = len(prompts), [len(p) for p in prompts]
        prompt_len = torch.tensor(lens, device=device)  # (B,)
        end = min(max(lens) + max_new_tokens, block_size + 1)  # tokens at most: the last is written, never read
        n_chunks = math.ceil(min(end, block_size) / K)
        if torch.is_tensor(codes) and codes.dim() == 2:
            codes = codes[:, :n_chunks]  # more than needed is fine
        if not callable(codes):
            self._check_codes(codes, B, n_chunks)

        stop = [stop] if isinstance(stop, int) else list(stop or [])
        stops = torch.tensor(stop, dtype=torch.long, device=device)  # (how many,)
        tokens = torch.zeros(B, end, dtype=torch.long, device=device)  # prompts, then what is new
        for i, prompt in enumerate(prompts):
            tokens[i, : len(prompt)] = torch.as_tensor(prompt)
        routed = codes is None or callable(codes)
        a = torch.zeros(B, 0, dtype=torch.long, device=device) if routed else codes  # (B, M), an int or "off"
        done = torch.zeros(B, dtype=torch.bool, device=device)
        cache = [KVCache() for _ in self.layers]
        start = 0  # how many tokens have been read
        # All rows stand at the same position t: tokens start..t-1 are read and token t is predicted.
        # The first round reads the shortest prompt at once, every later round one token; rows whose
        # prompt is longer keep their own token t. So chunks begin at the same t in all rows.
        for t in range(min(lens), end):
            h = self.lower(tokens[:, start:t], cache)  # (B, t - start, H)
            begins = h[:, -start % K :: K]  # (B, m, H) from the first multiple of K on; m may be 0
            if routed and begins.size(1) > 0:
                z = self.router_logits(begins)  # (B, m, C)
                row = torch.arange(B, device=device)[:, None].expand(z.shape[:2])
                chunk = torch.arange(a.size(1), a.size(1) + z.size(1), device=device).expand(z.shape[:2])
                a = torch.cat([a, z.argmax(-1) if codes is None else codes(z, row, chunk)], dim=1)
            x = self.upper(self.steer(h, a, start), cache)
            logits = self.lm_head(x[:, -1]).float()  # (B, V)
            new = logits.argmax(-1)  # (B,)
            if temperature > 0:
                new = torch.multinomial((logits / temperature).softmax(-1), 1)[:, 0]
            answering = t >= prompt_len  # (B,)
            tokens[:, t] = torch.where(answering, new, tokens[:, t])
            done |= answering & (new[:, None] == stops).any(1)
            if (done | (t + 1 >= prompt_len + max_new_tokens)).all():  # stopped, or as long as allowed
                break
            start = t

        answers = [ids[n : n + max_new_tokens] for n, ids in zip(lens, tokens.tolist())]
        ends = [[i for i, token in enumerate(ids) if token in stop] for ids in answers]
        return [ids[: end[0]] if end else ids for ids, end in zip(answers, ends)]

    # ---- Checks and loading. ---------------------------------------------------------------------
    def _check(self, idx, targets=None, n_rollouts=1, temperature=1.0, select="greedy", switch_cost=0.0):
        if idx.dim() != 2 or idx.dtype != torch.long or not 1 <= idx.size(1) <= self.config.block_size:
            raise ValueError(f"idx must be a LongTensor (B, T) with T in 1..{self.config.block_size} "
                             f"(block_size), got {idx.dtype} {tuple(idx.shape)}")
        if targets is not None and targets.shape != idx.shape:
            raise ValueError(f"idx and targets must have one shape, got {tuple(idx.shape)}, {tuple(targets.shape)}")
        if select not in ("likelihood", "path", "greedy"):
            raise ValueError(f'select must be "likelihood", "path" or "greedy", got {select!r}')
        if n_rollouts < 1 or not 0 <= temperature < math.inf or not switch_cost >= 0:
            raise ValueError("n_rollouts must be >= 1, temperature >= 0 and finite, switch_cost >= 0, "
                             f"got {n_rollouts}, {temperature}, {switch_cost}")

    def _check_codes(self, codes, B, M):
        if codes is None or (isinstance(codes, str) and codes == "off"):
            return
        if type(codes) is int and 0 <= codes < self.config.n_codes:
            return
        if not torch.is_tensor(codes) or codes.dtype != torch.long or codes.shape != (B, M):
            got = f"{codes.dtype} {tuple(codes.shape)}" if torch.is_tensor(codes) else repr(codes)
            raise ValueError(f'codes must be None, "off", an integer in 0..{self.config.n_codes - 1} '
                             f"or a LongTensor ({B}, {M}), got {got}")
        if codes.min() < 0 or codes.max() >= self.config.n_codes:
            raise ValueError(f"codes must lie in 0..{self.config.n_codes - 1}, got {codes.min()}..{codes.max()}")

    @classmethod
    def from_checkpoint(cls, path, **overrides):
        """A model from a checkpoint of train.py; overrides: see build."""
        saved = load_checkpoint(path)
        return build(saved["config"], saved["model"], path, **overrides)

    @classmethod
    def from_pretrained(cls, folder, **overrides):
        """A model from a Hugging Face folder of Llama, SmolLM2 or Qwen3; overrides as in from_checkpoint."""
        from data.huggingface import load
        return load(folder, **overrides)


# ---- Small pieces of the loss. -------------------------------------------------------------------

def chunk_mask(targets, K):
    """
    Which chunks are real, the prompt's included: targets (B, T) -> bool (B, M). A row ends at its
    last label; what follows is padding, whose chunks take no part in policy and regularizer.
    """
    position = torch.arange(targets.size(1), device=targets.device)
    row_len = torch.where(targets >= 0, position + 1, 0).amax(1)  # (B,)
    return position[::K] < row_len[:, None]


def code_logp(z, codes):
    """The router's log p(a_m | text so far) = log softmax(z_m)[a_m]: z (B, M, C), codes (B, M) -> (B, M)."""
    return z.log_softmax(-1).gather(-1, codes[..., None])[..., 0]


def best_path(score, switch_cost):
    """
    Viterbi: the codes a_1..a_M of each row that maximise

        sum_m score_m(a_m) - switch_cost * (how many m have a_m != a_m-1).

    score (C, B, M): in nats, log p of chunk m's labels if code c is held for the whole row. Returns (B, M).
    The sum is not quite log p(x | path), whose earlier chunks carry other codes. Where two ways are equally
    good the code stays as it is, so chunks without a label, which score 0, take a neighbour's code.
    switch_cost 0 lets every chunk choose for itself, infinity keeps one code for the row. At the start
    all codes tie: code 0 everywhere. With costs -score >= 0, which change with m, this is a shortest path
    as General Dijkstra Search solves it (gds.py).
    """
    C, B, M = score.shape
    own = torch.arange(C, device=score.device)[:, None]  # (C, 1)
    value = score[:, :, 0]  # (C, B): of the best path so far that ends in code c
    before = []  # for each later chunk (C, B): the code before c on that path
    for m in range(1, M):
        best, code = value.max(0)  # (B,) each: where a change comes from
        before.append(torch.where(value >= best - switch_cost, own, code))
        value = torch.maximum(value, best - switch_cost) + score[:, :, m]
    path = [value.argmax(0)]  # (B,); now backwards
    for code_before in reversed(before):
        path.append(code_before.gather(0, path[-1][None])[0])
    return torch.stack(path[::-1], dim=1)


def bizipf_target(P):
    """
    The regularizer's target for P (C, C): its diagonal damped by 1e-5 (a code should not follow
    itself), then 3 Sinkhorn rounds that scale rows and columns in turn, so that code i is used in
    proportion to 1 / (i + 1), and about the last fifth of all codes never. For few codes the two wishes disagree:
    with C = 3 or 4 code 0 has more than half of all chunks, so it must follow itself; with C = 2 it has
    all of them, and alpha_reg > 0 orders the router to collapse.
    """
    zipf = 1.0 / torch.arange(1, len(P) + 1, device=P.device)
    zipf[max(1, int(0.8 * len(P))) :] = 0.0
    zipf /= zipf.sum()
    Q = P.clone()
    Q.diagonal().mul_(1e-5)
    for _ in range(3):
        Q = Q * (zipf / Q.sum(1).clamp(min=1e-30))[:, None]
        Q = Q * (zipf / Q.sum(0).clamp(min=1e-30))[None, :]
    return Q


# ---- The method ends here. Opening a checkpoint, without any other file of this repository. -------

CODE_TENSORS = ("codebook.weight", "router.weight", "bigram")
CODE_SETTINGS = ("n_codes", "chunk", "steer_layer", "steer_scale", "route_norm")  # trained codes need these


def load_checkpoint(path):
    """The dict that train.py saved, on the CPU, with its "path". ValueError on a foreign or cut file."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:  # not there, or not to be read
        raise
    except Exception as e:  # torch.load fails in many ways on a truncated or foreign file
        raise ValueError(f"{path}: not a readable checkpoint ({type(e).__name__}); truncated or foreign") from e
    if not isinstance(saved, dict) or not {"config", "model"} <= saved.keys():
        raise ValueError(f"{path}: not a checkpoint of train.py, which holds 'config' and 'model'")
    return {**saved, "path": str(path)}


def build(config, weights, source, **overrides):
    """
    A GPT from the fields of its config and a state dict, both found in `source`; float32.

    Without a codebook, or with a zero one, codes start fresh under `overrides` of the config (n_codes,
    chunk, ...; None = as it is). Trained codes keep their settings: other ones are a ValueError, as
    are weights that do not fit the config.
    """
    weights = dict(weights)
    overrides = {name: value for name, value in overrides.items() if value is not None}
    if "block_size" in overrides:  # the model knows no position beyond its own context
        overrides["block_size"] = min(overrides["block_size"], config["block_size"])
    trained = "codebook.weight" in weights and bool(weights["codebook.weight"].any())
    if trained:
        for name in CODE_SETTINGS:
            wanted = overrides.pop(name, config[name])
            if wanted != config[name]:
                raise ValueError(f"{source}: codes trained with {name} {config[name]} do not work with {wanted}")
    try:
        model = GPT(GPTConfig(**{**config, **overrides}))
        if not trained:
            fresh = model.state_dict()
            weights |= {name: fresh[name] for name in CODE_TENSORS}
        if model.config.tie_embeddings and "embed_tokens.weight" in weights:
            weights["lm_head.weight"] = weights["embed_tokens.weight"]
        model.load_state_dict(weights)  # names all that is missing, unknown or of a wrong shape
    except (TypeError, ValueError, RuntimeError) as e:
        raise ValueError(f"{source}: no GPT has this config and these weights: {e}") from e
    return model
