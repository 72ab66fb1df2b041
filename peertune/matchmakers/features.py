"""What any designer would want to know of a directed pair: from the two profiles, the coordinator's evidence on the
source, the protocol, and the pair's history.

The features of profiles were written down before anything was run and not changed since (though not in ignorance of the
synthetic environments, whose formulas are public; agents' hidden qualities are in no feature). Two agents can help each
other if they know different things, hence the overlap of their data; the source must know what the receiver lacks,
hence complementarity, gaps, and what both claim of their answers to the public prompts, corrected by audits; a strong
receiver has little left to learn, hence headroom; gaps can be too wide to learn across, hence squares; text passes more
easily between equal models, hence family and size; gains are used up, hence recency, with one step for each exchange
since, so that the shape of the curve is learnt, and earlier gains. All features lie in about -2..2, so that one prior
width fits all.
"""

from collections.abc import Collection, Mapping
from typing import Literal

import numpy as np

from peertune.matchmakers.base import PROTOCOLS
from peertune.profiles import HISTOGRAM, INVERSE_PERPLEXITY, PARAMETERS, SCORE

FAMILY = slice(0, 5)
_STEPS = tuple(range(1, 9))  # exchanges of either side with others since the two met
NAMES = (
    *("one", "distance", "root_distance", "overlap_gap", "complementarity", "new_share"),
    *("score_gap", "score_gap_size", "score_gap_square", "room", "score_lead_room", "score_source"),
    *("loss_gap", "loss_gap_size", "loss_lead_room", "same_family", "size_gap"),
    *("trust", "claimed_lead", "logits", "adapter"),
    *(f"met_within_{step}" for step in _STEPS),
    *("never_met", "earlier_gain", "earlier_gain_reversed"),
)
Group = Literal[
    "overlap", "complementarity", "skill", "family", "recency", "gains", "sides", "trust", "lead", "protocol"
]
GROUPS: Mapping[Group, tuple[str, ...]] = {  # all features but "one", which counts the exchanges
    "overlap": ("distance", "root_distance", "overlap_gap"),
    "complementarity": ("complementarity", "new_share"),
    "skill": tuple(name for name in NAMES if name.startswith(("score_", "loss_"))) + ("room",),
    "family": ("same_family", "size_gap"),
    "recency": (*(f"met_within_{step}" for step in _STEPS), "never_met"),
    "gains": ("earlier_gain", "earlier_gain_reversed"),
    "sides": (),  # not features: the agents' own effects (posterior.py)
    "trust": ("trust",),
    "lead": ("claimed_lead",),
    "protocol": ("logits", "adapter"),
}
_SHRINK = 1.0  # earlier gains of a pair are averaged with as much evidence of no difference


def prior_mean() -> np.ndarray:
    """What to expect before any reward, in standard deviations of the reward, by feature: float64 [32].

    Only signs and rough sizes, set once: other data, a lead where there is room, and a trusted source help; who has
    just met has less to gain, less so with every exchange since, and new partners are worth a try.
    """
    known = {
        "root_distance": 1.0,
        "complementarity": 1.0,
        "score_lead_room": 1.0,
        "claimed_lead": 3.0,
        "trust": 1.0,
        "never_met": 0.3,
    }
    known |= {f"met_within_{step}": np.exp(-step / 2) - np.exp(-(step - 1) / 2) for step in _STEPS}
    return np.array([known.get(name, 0.0) for name in NAMES])


def kept(without: Collection[Group]) -> np.ndarray:
    """1 for each feature that is in none of the groups `without`, 0 for the others: float64 [32]."""
    out = {name for group in without for name in GROUPS[group]}
    return np.array([float(name not in out) for name in NAMES])


def pair_features(contexts: np.ndarray, known: tuple[np.ndarray, np.ndarray], protocols: np.ndarray) -> np.ndarray:
    """The 21 features that need no history: `contexts` float64 [pairs, 64]; `known`: the source's trust (0..1, so that
    0.5, nothing known, becomes 0) and its lead (0..1); `protocols` by place in `PROTOCOLS`. Float64 [pairs, 21].
    """
    half = contexts.shape[1] // 2
    ways = [protocols == PROTOCOLS.index(protocol) for protocol in ("logits", "adapter")]
    trust, lead = known
    return np.column_stack([profile_features(contexts[:, :half], contexts[:, half:]), 2 * trust - 1, 2 * lead, *ways])


def profile_features(source: np.ndarray, receiver: np.ndarray) -> np.ndarray:
    """The 17 features that need no history. Profiles: float64 [pairs, 32]. Returns float64 [pairs, 17]."""
    p, q = np.maximum(source[:, HISTOGRAM], 0), np.maximum(receiver[:, HISTOGRAM], 0)
    distance = np.maximum(0.0, 1 - np.sqrt(p * q).sum(1))  # Hellinger, squared
    shared, new = np.minimum(p, q).sum(1), np.maximum(0.0, p - q).sum(1)
    score_gap, room = source[:, SCORE] - receiver[:, SCORE], 1 - receiver[:, SCORE]
    loss_gap = source[:, INVERSE_PERPLEXITY] - receiver[:, INVERSE_PERPLEXITY]
    return np.stack(
        [
            np.ones(len(p)),
            distance,
            np.sqrt(distance),
            shared * score_gap,
            new
            * source[:, SCORE],  # what the source's data has and the receiver's lacks, as well as the source knows it
            new * room,
            score_gap,
            np.abs(score_gap),
            score_gap**2,
            room,
            np.maximum(0.0, score_gap) * room,
            source[:, SCORE],
            loss_gap,
            np.abs(loss_gap),
            np.maximum(0.0, loss_gap) * (1 - receiver[:, INVERSE_PERPLEXITY]),
            (source[:, FAMILY] * receiver[:, FAMILY]).sum(1),
            source[:, PARAMETERS] - receiver[:, PARAMETERS],
        ],
        axis=1,
    )


def history_features(since: np.ndarray, gains: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The 11 features of a pair's history, by row. `since`: exchanges that either side had with others since the two
    met, on average, inf if never. `gains`, `weights`: [pairs, 2], (directed, reversed) sums of earlier standardised
    gains and the evidence behind them. Returns float64 [pairs, 11].
    """
    met = since[:, None] < np.array(_STEPS)
    return np.column_stack([met, np.isinf(since), np.clip(gains / (weights + _SHRINK), -2, 2)])
