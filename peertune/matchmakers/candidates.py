"""Which pairs are worth a look: all of them in a small federation, about `limit` for each agent in a large one.

In a large federation every pair cannot be scored (10^10 of 100 000 agents). Candidates are then, for each agent: the
sources that fit it best, the receivers that it fits best, random sources, and the pairs that gained before. A source
fits a receiver if it does better in what both have: the overlap of their data times the lead in skill, [skill x cover,
cover] . [cover, -skill x cover]. That finds who has what the receiver is judged by and lacks, neither the most similar
agents nor those most unlike it. From each value the means of the source and of the receiver are taken away: the best
sources and the weakest receivers would else stand on every list, and each can be in one pair only. How good a source is
in general, and whether it is trusted, is for the policy to say.

The search is within blocks of 256 agents, drawn anew in every round: O(agents x block) by one matrix product each.
benchmarks/matchmaking.py compares what can be reached with random candidates and with a k-d tree over all agents.
"""

import zlib
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from peertune.matchmakers.base import PROTOCOLS, Candidates
from peertune.payloads import PROFILE_SIZE, Profile
from peertune.profiles import HISTOGRAM, INVERSE_PERPLEXITY, SCORE

_ALL = 64  # so few agents cost nothing: every pair is a candidate
_BLOCK = 256


def candidate_pairs(
    profiles: Mapping[str, Profile],
    trust: Mapping[str, float] | None = None,
    protocols: Mapping[tuple[str, str], tuple[str, ...]] | None = None,
    *,
    seed: int = 0,
    limit: int = 16,
    gained: np.ndarray | None = None,
) -> Candidates:
    """Pairs for a policy to choose from: every directed pair of different agents, in the order of
    the names given, up to 64 agents; above about `limit` for each agent.

    `trust`: of each agent as a source, 0.5 where none is known. `protocols`: of each (source, receiver), none if they
    cannot exchange anything; without it, text alone. A mapping may work its values out and need not hold all pairs.
    `gained`: what `Matchmaker.gained` says of the state. What is random follows from `seed` and the profiles.
    """
    names, believed = tuple(profiles), trust or {}
    values = np.array([profile.values for profile in profiles.values()], dtype=np.float64).reshape(-1, PROFILE_SIZE)
    belief = np.array([believed.get(name, 0.5) for name in names], dtype=np.float64)
    none = np.zeros(0, dtype=np.int64)
    every = Candidates(names, values, belief, none, none, none, none)
    if len(names) <= max(_ALL, limit + 1):
        sources, receivers = np.nonzero(~np.eye(len(names), dtype=bool))
    else:
        digest = zlib.crc32(values.tobytes())
        sources, receivers = _prefiltered(every, np.random.default_rng([seed, digest]), limit, gained)
    return _by_protocol(every, sources, receivers, protocols)


def _prefiltered(
    every: Candidates, random: np.random.Generator, limit: int, gained: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Sources and receivers of the candidates of a large federation, by source, then by receiver, none twice."""
    agents, near = len(every.names), max(1, limit // 4)
    gives, takes = embeddings(every.profiles)
    order = random.permutation(agents)
    sources, receivers = [], []
    for block in np.array_split(order, -(-agents // _BLOCK)):
        fit = gives[block] @ takes[block].T  # [source, receiver]
        fit -= fit.mean(axis=0) + fit.mean(axis=1, keepdims=True)
        np.fill_diagonal(fit, -np.inf)
        best_sources = np.argpartition(-fit, near, axis=0)[:near].T
        best_receivers = np.argpartition(-fit, near, axis=1)[:, :near]
        sources += [block[best_sources].ravel(), np.repeat(block, near)]
        receivers += [np.repeat(block, near), block[best_receivers].ravel()]
    others = limit - 2 * near
    sources.append(random.integers(agents, size=agents * others))
    receivers.append(np.repeat(np.arange(agents), others))
    known = _places(every.identities, np.zeros((0, 2), dtype=np.int64) if gained is None else gained)
    keys = np.unique(np.concatenate([*sources, known[:, 0]]) * agents + np.concatenate([*receivers, known[:, 1]]))
    found = keys // agents, keys % agents
    apart = found[0] != found[1]
    return found[0][apart], found[1][apart]


def embeddings(profiles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each agent as a source and as a receiver, float32 [agents, 24] each, whose product is overlap x lead in skill.
    Roots, since the first examples of a category teach most.
    """
    skill = np.clip((profiles[:, SCORE] + profiles[:, INVERSE_PERPLEXITY]) / 2, 0, 1)[:, None]
    cover = np.sqrt(np.maximum(profiles[:, HISTOGRAM], 0))
    gives, takes = np.hstack([skill * cover, cover]), np.hstack([cover, -skill * cover])
    return gives.astype(np.float32), takes.astype(np.float32)


def _places(identities: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Places of agents, [pairs, 2], leaving out pairs of which one is not here."""
    order = np.argsort(identities)
    found = order[np.searchsorted(identities[order], pairs).clip(max=len(order) - 1)]
    return found[(identities[found] == pairs).all(1)]


def _by_protocol(
    every: Candidates,
    sources: np.ndarray,
    receivers: np.ndarray,
    protocols: Mapping[tuple[str, str], tuple[str, ...]] | None,
) -> Candidates:
    """These pairs, each once for every protocol that it may use."""
    if protocols is None:
        admitted, each = np.arange(len(sources)), np.zeros(len(sources), dtype=np.int64)
    else:
        names = every.names
        arms = [
            (place, PROTOCOLS.index(protocol))
            for place, (source, receiver) in enumerate(zip(sources.tolist(), receivers.tolist(), strict=True))
            for protocol in protocols.get((names[source], names[receiver]), ())
        ]
        admitted, each = np.array(arms, dtype=np.int64).reshape(-1, 2).T
    ends = {"sources": sources[admitted], "receivers": receivers[admitted]}
    return replace(every, **ends, protocols=each, leads=np.zeros(len(each)))
