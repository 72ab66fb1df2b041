"""What `pairwise` remembers: sums over all exchanges so far, kept by agent and by pair of agents that have met.

A state is a dict of arrays and a value: every function here returns a new one. Nothing is kept for pairs that never
met, so a state grows with agents and exchanges, not with agents^2.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

State = Mapping[str, np.ndarray]
TOGETHER, MET, GAIN, SHOWN = range(4)  # columns of "history"
_FADE = 0.7  # what an earlier gain of a pair weighs after each later one
_FORGOTTEN = 0.05  # a pair is forgotten when its exchanges together weigh less than this
_RECENT = 256  # rewards that say what is usual
_FEW = 5  # rewards that say nothing of it yet


@dataclass(frozen=True, eq=False)
class Exchanges:
    """What happened: rows of the agents, features [exchanges, features] and rewards."""

    sources: np.ndarray
    receivers: np.ndarray
    features: np.ndarray
    rewards: np.ndarray


def no_evidence(features: int) -> State:
    """The state before the first exchange. All sums but counts fade."""
    return {
        "clock": np.zeros(1, dtype=np.int64),  # exchanges in all
        "recent": np.zeros(0),  # the last rewards, as they were reported
        "squares": np.zeros(1),  # sum of reward^2
        "moment": np.zeros(features),  # sum of reward * x
        "precision": np.zeros((features, features)),  # sum of x x'; x starts with 1, so row 0 is the sum of x
        "agents": np.zeros(0, dtype=np.int64),  # identities, in order of appearance
        "count": np.zeros(0),  # exchanges of each agent
        "received": np.zeros(0),  # the clock when it last learnt
        "sides": np.zeros((0, 2, features)),  # sum of x of each agent, as a source and as a receiver
        "side_moment": np.zeros((0, 2)),  # sum of reward
        "pairs": np.zeros(0, dtype=np.int64),  # who has met: keys made of both rows, ascending
        "history": np.zeros((0, 4)),  # weight together; both counts, added up, when they met; faded gains; and of ones
    }


def knowing(state: State, identities: np.ndarray) -> State:
    """The state with room for these agents: nothing is known of the new ones."""
    if len(state["agents"]) and (state["agents"][rows(state, identities)] == identities).all():
        return state
    new = identities[np.sort(np.unique(identities, return_index=True)[1])]
    new = new[~np.isin(new, state["agents"])]
    by_agent = ("count", "received", "sides", "side_moment")
    grown = {key: np.pad(state[key], [(0, len(new))] + [(0, 0)] * (state[key].ndim - 1)) for key in by_agent}
    return {**state, **grown, "agents": np.concatenate([state["agents"], new])}


def rows(state: State, identities: np.ndarray) -> np.ndarray:
    """The rows of agents that the state knows, int64; of another agent, any row."""
    order = np.argsort(state["agents"])
    return order[np.searchsorted(state["agents"], identities, sorter=order).clip(max=len(order) - 1)]


def together(state: State, sources: np.ndarray, receivers: np.ndarray) -> np.ndarray:
    """The "history" of these pairs (rows of both), zeros where they never met in this direction: [pairs, 4]."""
    if not len(state["pairs"]):
        return np.zeros((len(sources), 4))
    keys = _keys(sources, receivers)
    place = np.searchsorted(state["pairs"], keys).clip(max=len(state["pairs"]) - 1)
    return np.where((state["pairs"][place] == keys)[:, None], state["history"][place], 0.0)


def met_pairs(state: State) -> tuple[np.ndarray, np.ndarray]:
    """Rows of source and receiver of all pairs that have met, in the order of "history"."""
    return state["pairs"] >> 32, state["pairs"] & (2**32 - 1)


def moments(state: State) -> tuple[float, float]:
    """Mean and standard deviation of the rewards so far, old ones faded."""
    count = state["precision"][0, 0]
    if count == 0:
        return 0.0, 1.0
    mean = state["moment"][0] / count
    return float(mean), float(np.sqrt(max(0.0, state["squares"][0] / count - mean**2)))


def usual(rewards: np.ndarray, deviations: float) -> tuple[float, float]:
    """Bounds of what is usual: the median -+ so many robust standard deviations. A liar cannot move them far."""
    if len(rewards) < _FEW:
        return -np.inf, np.inf
    middle = float(np.median(rewards))
    apart = np.abs(rewards - middle)
    scale = 1.4826 * float(np.median(apart)) or 1.2533 * float(apart.mean())  # most rewards may be equal
    return middle - deviations * scale, middle + deviations * scale


def with_exchanges(state: State, new: Exchanges, fade: float, deviations: float) -> State:
    """The state after these exchanges, one after the other: before each, all earlier evidence is multiplied by `fade`.

    Rewards beyond `deviations` of what is usual count as the bound.
    """
    recent = np.concatenate([state["recent"], new.rewards])[-_RECENT:]
    x, rewards = new.features, np.clip(new.rewards, *usual(recent, deviations))
    age = fade ** np.arange(len(rewards) - 1, -1, -1.0)
    old, faded = fade ** len(rewards), x * age[:, None]
    count, received = state["count"].copy(), state["received"].copy()
    np.add.at(count, new.sources, 1)
    np.add.at(count, new.receivers, 1)
    received[new.receivers] = state["clock"][0] + 1 + np.arange(len(rewards))
    sides, side_moment = old * state["sides"], old * state["side_moment"]
    for side, agents in enumerate((new.sources, new.receivers)):
        np.add.at(sides[:, side], agents, faded)
        np.add.at(side_moment[:, side], agents, age * rewards)
    summed = {
        "clock": state["clock"] + len(rewards),
        "recent": recent,
        "squares": old * state["squares"] + age @ rewards**2,
        "moment": old * state["moment"] + rewards @ faded,
        "precision": old * state["precision"] + faded.T @ x,
    }
    after = {**state, **summed, "count": count, "received": received, "sides": sides, "side_moment": side_moment}
    return {**after, **_histories(after, new, age, rewards, old)}


def _histories(after: State, new: Exchanges, age: np.ndarray, rewards: np.ndarray, old: float) -> State:
    """ "pairs" and "history" with these exchanges; `after`: the state with all other sums."""
    keys, level_spread = _keys(new.sources, new.receivers), moments(after)
    every = np.union1d(after["pairs"], keys)
    history = np.zeros((len(every), 4))
    history[np.searchsorted(every, after["pairs"])] = after["history"]
    history[:, TOGETHER] *= old
    place = np.searchsorted(every, keys)
    np.add.at(history[:, TOGETHER], place, age)
    history[place, MET] = after["count"][new.sources] + after["count"][new.receivers]
    gains = (rewards - level_spread[0]) / (level_spread[1] + 1e-6)
    for here, gain in zip(place.tolist(), gains.tolist(), strict=True):
        history[here, GAIN] = _FADE * history[here, GAIN] + gain
        history[here, SHOWN] = _FADE * history[here, SHOWN] + 1
    kept = history[:, TOGETHER] >= _FORGOTTEN
    return {"pairs": every[kept], "history": history[kept]}


def _keys(sources: np.ndarray, receivers: np.ndarray) -> np.ndarray:
    return (sources.astype(np.int64) << 32) | receivers
