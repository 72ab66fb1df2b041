"""What hidden states tell of the tokens that they are of: two attackers who know the model, and each token apart.

Attackers that look at neighbouring tokens, at gradients, or optimise their guess (BiSR, arXiv:2409.00960) find more:
what these find is the least that must be expected.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from peertune.codecs import Codec, decode_array, encode_array
from peertune.lm.cut import Cut, Parts
from peertune.lm.encode import Row, pad
from peertune.lm.model import LanguageModel
from peertune.lm.ragged import pack
from peertune.lm.seeding import seeded

STEPS, BATCH, RATE = 300, 256, 1e-2  # of the trained attacker
CHUNK = 512  # tokens of a vocabulary that go through the model together


@dataclass(frozen=True, slots=True)
class Seen:
    """Hidden states fp32 [N, width] that a client sent; their tokens and places in the row, int64 [N]; and whether they
    are of what the model is to learn, bool [N]: of a completion.
    """

    hidden: Tensor
    tokens: Tensor
    places: Tensor
    answers: Tensor


def look(lm: LanguageModel, adapter: str, first: int, rows: Sequence[Row], codec: Codec, batch: int = 16) -> Seen:
    """What a server sees of rows that go through `first` blocks of the client, `batch` rows a message."""
    parts, hidden = Parts(lm, adapter, Cut(first)), []
    ordered = sorted(rows, key=lambda row: len(row.ids))
    with lm.using(adapter), torch.no_grad():
        for start in range(0, len(ordered), batch):
            chosen = [row.ids for row in ordered[start : start + batch]]
            lengths = torch.tensor([len(ids) for ids in chosen], device=lm.device)
            states = parts.lower(pad(chosen, lm.pad_token, lm.device)[0], parts.mask_of(lengths))
            packed = pack(states, lengths).float().cpu().numpy()
            hidden.append(decode_array(encode_array(packed, codec), codec, *packed.shape))
    return Seen(
        torch.from_numpy(np.concatenate(hidden)),
        torch.tensor([token for row in ordered for token in row.ids]),
        torch.tensor([place for row in ordered for place in range(len(row.ids))]),
        torch.tensor([place >= row.prompt_length for row in ordered for place in range(len(row.ids))]),
    )


def nearest(lm: LanguageModel, adapter: str, first: int, public: Seen, target: Seen) -> Tensor:
    """For each hidden state the token that comes nearest to it when it stands alone, int64 [N].

    By the cosine, after the mean is taken away: of public states in that place, and of all tokens that stand alone.
    """
    overall = public.hidden.mean(0)
    means = torch.stack([_mean_at(public, place, overall) for place in range(int(target.places.max()) + 1)])
    table = _alone(lm, adapter, first)
    table = normalize(table - table.mean(0), dim=1)
    found = [
        (normalize(part, dim=1) @ table.T).argmax(1) for part in (target.hidden - means[target.places]).split(CHUNK)
    ]
    return torch.cat(found)


def trained(public: Seen, target: Seen, seed: int) -> Tensor:
    """For each hidden state the token that a linear map, trained on public states and tokens, finds in it; [N]."""
    tokens, classes = public.tokens.unique(return_inverse=True)
    mean, spread = public.hidden.mean(0), public.hidden.std(0).clamp_min(1e-6)
    states = (public.hidden - mean) / spread
    with seeded(seed, torch.device("cpu")):
        net = torch.nn.Linear(states.shape[1], len(tokens))
        optimizer = torch.optim.AdamW(net.parameters(), lr=RATE)
        for _ in range(STEPS):
            batch = torch.randint(0, len(states), (BATCH,))
            optimizer.zero_grad()
            cross_entropy(net(states[batch]), classes[batch]).backward()
            optimizer.step()
    with torch.no_grad():
        return tokens[net((target.hidden - mean) / spread).argmax(1)]


def _mean_at(public: Seen, place: int, otherwise: Tensor) -> Tensor:
    here = public.hidden[public.places == place]
    return here.mean(0) if len(here) else otherwise


def _alone(lm: LanguageModel, adapter: str, first: int) -> Tensor:
    """The hidden state of every token of the vocabulary alone, after that which begins a text; [vocabulary, width]."""
    parts, tokenizer = Parts(lm, adapter, Cut(first)), lm.tokenizer
    begin = tokenizer.cls_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    prefix = [] if begin is None else [begin]
    with lm.using(adapter) as model, torch.no_grad():
        size = model.get_input_embeddings().weight.shape[0]
        found = []
        for start in range(0, size, CHUNK):
            ids = torch.tensor([[*prefix, token] for token in range(start, min(start + CHUNK, size))], device=lm.device)
            found.append(parts.lower(ids, torch.ones_like(ids))[:, -1].float().cpu())
    return torch.cat(found)
