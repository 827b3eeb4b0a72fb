"""
The paper's two token-level baselines, as data: model, loss and loop stay those of plain fine-tuning.

pause (Goyal et al. 2024, arXiv 2310.02226): N_PAUSE copies of a new token <pause> stand between prompt and answer, in
training and at inference; they are never labels. Its embedding starts as the mean of the existing ones.

tokenassorted (Token Assorted, Su et al. 2025, arXiv 2502.03275): a VQ-VAE learns to say a chunk of answer tokens in one
discrete code. In training, the first m tokens of a solution (m a random multiple of the chunk, possibly 0, anew each
time) are replaced by their codes: prompt <abs> z z .. </abs> rest. The codes are labels like any token. At inference
the model gets the plain prompt and may answer in codes itself; they are dropped from the text that is graded.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

N_PAUSE = 8
VQ_CHUNK = 16  # L, answer tokens a code stands for
VQ_CODES = 1024
VQ_WIDTH = 256  # bottleneck
VQ_BETA = 0.25  # weight of the commitment loss


def vqvae_codes(embedding, answers, steps=500, batch_size=256, lr=1e-3):
    """
    The code of every full chunk of every answer, by a VQ-VAE trained here on the chunks' frozen token embeddings.

    embedding (V, H); answers: lists of token ids. Linear encoder and decoder, straight-through gradient, loss = MSE +
    VQ_BETA * commitment + codebook. Codes start at encoded chunks, else most would never be used.
    Returns one list of codes (0 .. VQ_CODES - 1) for each answer, len(answer) // VQ_CHUNK long.
    """
    counts = [len(ids) // VQ_CHUNK for ids in answers]
    chunks = [ids[i * VQ_CHUNK : (i + 1) * VQ_CHUNK] for ids, n in zip(answers, counts) for i in range(n)]
    if not chunks:
        return [[] for _ in answers]
    chunks = torch.tensor(chunks)  # (n, L)
    embedding = embedding.detach().float() / embedding.detach().float().std()  # unit scale, whatever the model's
    read = lambda rows: F.embedding(rows, embedding).flatten(1)  # noqa: E731  (b, L) -> (b, L H)
    size = VQ_CHUNK * embedding.size(1)
    encoder, decoder = nn.Linear(size, VQ_WIDTH), nn.Linear(VQ_WIDTH, size)
    with torch.no_grad():
        start = encoder(read(chunks[torch.randint(len(chunks), (VQ_CODES,))]))
    codebook = nn.Parameter(start + 0.01 * start.std() * torch.randn_like(start))
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters(), codebook], lr=lr)
    for _ in range(steps):
        x = read(chunks[torch.randint(len(chunks), (batch_size,))])
        z = encoder(x)
        code = codebook[torch.cdist(z.detach(), codebook.detach()).argmin(1)]
        back = decoder(z + (code - z).detach())
        loss = F.mse_loss(back, x) + VQ_BETA * F.mse_loss(z, code.detach()) + F.mse_loss(code, z.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        codes = [torch.cdist(encoder(read(part)), codebook).argmin(1) for part in chunks.split(1024)]
    codes = iter(torch.cat(codes).tolist())
    return [[next(codes) for _ in range(n)] for n in counts]


def solution_chunks(enc, answer):
    """How many full chunks of `answer` (token ids) may be replaced: those before its "####", which stays readable."""
    n = len(answer) // VQ_CHUNK
    while n and "####" not in enc.decode(answer[n * VQ_CHUNK :]):
        n -= 1
    return n


def assort(item, codes, first_new, rng):
    """
    item (ids, n_prompt) with the first j * VQ_CHUNK answer tokens, j uniform in 0..len(codes), said in codes, between
    <abs> = first_new and </abs> = first_new + 1; code c is token first_new + 2 + c. j = 0 leaves the item as it is.
    """
    ids, n_prompt = item
    j = rng.randint(0, len(codes))
    if j == 0:
        return item
    said = [first_new, *(first_new + 2 + c for c in codes[:j]), first_new + 1]
    return ids[:n_prompt] + said + ids[n_prompt + j * VQ_CHUNK :], n_prompt
