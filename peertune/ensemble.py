"""What several clients know of the same public problems, as one teacher.

Logits are averaged, not probabilities (FedDF, arXiv:2006.07242), and log-probabilities are the logits that are
comparable between clients: z_v = sum_k w_k z_kv / sum_k w_k over the clients that sent token v, then normalised.
A token that a client did not send is no vote, neither zero nor minus infinity (adaptive top-k, arXiv:2509.01750).
The tail is averaged in the same way: by Hoelder's inequality at least what the averaged whole distributions would have
outside the listed tokens.

Where one number must speak for a tail, entropy and sharpening, it is spread evenly over the tokens that are not listed:
a client that puts 0.9 of its probability there is not sure of anything.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Literal

import numpy as np

from peertune.errors import MethodError
from peertune.knowledge import Knowledge, log_softmax, log_sum

_BLOCK = 1 << 22  # entries of all clients together that are worked on at a time


class Use(IntEnum):
    """What became of one client's knowledge of one problem."""

    USED = 0
    ABSENT = 1  # it sent nothing
    BROKEN = 2  # not a number somewhere, or not as many positions as most clients have
    UNSURE = 3  # below `least_confidence`


@dataclass(frozen=True)
class Rule:
    """How clients count, at each position, and what is left out (Selective-FD, arXiv:2304.01731).

    `weighting`: all alike; by the probability of the most probable token; or by exp(-entropy). `least_confidence`: a
    client whose most probable tokens have less than that probability, in the mean over a problem's positions, is far
    from that problem and is not asked. `greatest_entropy`: a problem of which the clients together are left with more,
    nats a position, is ambiguous, and nothing is said of it. `limit`: of a position keep that many tokens, the most
    probable; the others join the tail. None = all that any client sent.
    """

    weighting: Literal["mean", "confidence", "entropy"] = "mean"
    least_confidence: float = 0.0
    greatest_entropy: float = math.inf
    limit: int | None = None


@dataclass(frozen=True, eq=False)
class Ensemble:
    """`knowledge` of all clients together; `uses` int8 [clients, P], see `Use`; `entropy` [P], nats a position, NaN
    where no client was used; `ambiguous` bool [P]: left out for its entropy. What was left out has length 0.
    """

    knowledge: Knowledge
    uses: np.ndarray
    entropy: np.ndarray
    ambiguous: np.ndarray


def combine(knowledge: Sequence[Knowledge | None], rule: Rule = Rule()) -> Ensemble:
    """One teacher of all clients; None where one sent nothing. A wrong one loses its own say, and that is reported.

    Raises `MethodError` if nobody sent anything, or if it is not of the same problems, width and form (dense, sparse).
    """
    given = [each for each in knowledge if each is not None]
    forms = {(len(each.lengths), each.width, each.ids is None) for each in given}
    if len(forms) != 1:
        raise MethodError(
            f"expected knowledge of the same problems, of one width, and all dense or all sparse, of one or more "
            f"clients; found (problems, width, dense): {sorted(forms) or 'none'}. Give all clients one setting."
        )
    usual = _usual(np.stack([each.lengths for each in given]))
    votes = [_vote(each, usual, rule.least_confidence) for each in given]
    uses = np.full((len(knowledge), len(usual)), Use.ABSENT, dtype=np.int8)
    uses[[index for index, each in enumerate(knowledge) if each is not None]] = [use for use, _ in votes]
    pooled = _pool([vote for _, vote in votes], rule)
    found = _of_problems(entropy(pooled), pooled)
    ambiguous = found > rule.greatest_entropy
    return Ensemble(pooled.only(~ambiguous), uses, found, ambiguous)


def confidence(known: Knowledge) -> np.ndarray:
    """The probability of the most probable token at each position, [N]."""
    return np.exp(known.logp.max(axis=1).astype(np.float64))


def entropy(known: Knowledge) -> np.ndarray:
    """Nats, at each position, [N]; the tail counts as spread evenly over the tokens that are not listed."""
    logp = known.logp.astype(np.float64)
    of_listed = -(np.exp(logp) * np.maximum(logp, np.finfo(np.float64).min)).sum(axis=1)  # padding: 0 times a number
    if known.tail is None:
        return of_listed
    tail = np.maximum(known.tail.astype(np.float64), np.finfo(np.float64).min)
    return of_listed + np.exp(tail) * (_log_unlisted(known) - tail)


def sharpen(known: Knowledge, temperature: float) -> Knowledge:
    """p^(1/T), normalised, at each position: surer below T = 1 (DS-FL's entropy reduction, arXiv:2008.06180).

    That is softmax(z / T) of logits. The usual softmax(p / T), of probabilities, makes anything but a few classes
    nearly uniform: they are all within 1 of each other, whatever their ratio.
    """
    logp = known.logp / np.float64(temperature)
    if known.tail is None:
        return replace(known, logp=log_softmax(logp).astype(np.float32))
    spread = _log_unlisted(known)
    tail = (known.tail - spread) / temperature + spread
    total = log_sum(np.column_stack([logp, tail]))
    return replace(known, logp=(logp - total[:, None]).astype(np.float32), tail=(tail - total).astype(np.float32))


def _log_unlisted(known: Knowledge) -> np.ndarray:
    """The log of how many tokens are not listed, at each position, [N]; 0 where none is."""
    return np.log(np.maximum(known.width - known.listed.sum(axis=1), 1))


def _of_problems(values: np.ndarray, known: Knowledge) -> np.ndarray:
    """The mean of `values` [N] over the positions of each problem, [P]; NaN where there are none."""
    total = np.bincount(known.problems, weights=values, minlength=len(known.lengths))
    return np.divide(total, known.lengths, out=np.full(len(total), np.nan), where=known.lengths > 0)


def _usual(lengths: np.ndarray) -> np.ndarray:
    """Of `lengths` [clients, P] that of most clients that know a problem, the first such; 0 where nobody does."""
    alike = ((lengths[:, None] == lengths) & (lengths > 0)).sum(axis=1)
    return lengths[alike.argmax(axis=0), np.arange(lengths.shape[1])]


def _vote(known: Knowledge, usual: np.ndarray, least_confidence: float) -> tuple[np.ndarray, Knowledge]:
    """What becomes of each problem, [P], and what is used."""
    unsound = np.bincount(known.problems[~known.sound], minlength=len(usual)) > 0
    uses = np.where(unsound | (known.lengths != usual), Use.BROKEN, Use.USED)
    uses[known.lengths == 0] = Use.ABSENT
    left = known.only(uses == Use.USED)
    uses[_of_problems(confidence(left), left) < least_confidence] = Use.UNSURE
    return uses, known.only(uses == Use.USED)


@dataclass(frozen=True, eq=False)
class _Voter:
    """One client at the N positions that any client knows: its row there, -1 = none, and its weight, 0 = none."""

    known: Knowledge
    rows: np.ndarray
    weights: np.ndarray


def _voter(known: Knowledge, lengths: np.ndarray, weighting: str) -> _Voter:
    """`lengths` [P]: the positions of each problem in the ensemble; the client has all of them, or none."""
    has = np.repeat(known.lengths > 0, lengths)
    rows, weights = np.full(len(has), -1), np.zeros(len(has))
    rows[has] = np.arange(len(known.logp))
    weights[has] = _weights(known, weighting)
    return _Voter(known, rows, weights)


def _weights(known: Knowledge, weighting: str) -> np.ndarray:
    if weighting == "confidence":
        return confidence(known)
    return np.exp(-entropy(known)) if weighting == "entropy" else np.ones(len(known.logp))


def _pool(votes: list[Knowledge], rule: Rule) -> Knowledge:
    lengths, width = np.max([vote.lengths for vote in votes], axis=0), votes[0].width
    voters = [_voter(vote, lengths, rule.weighting) for vote in votes if len(vote.logp)]
    if not voters:
        return votes[0]
    if votes[0].ids is None:
        mean = _mean(voters, [voter.known.logp for voter in voters], slice(None))
        return Knowledge(lengths, width, log_softmax(mean).astype(np.float32))
    size = max(1, _BLOCK // sum(vote.logp.shape[1] for vote in votes))
    blocks = (slice(start, start + size) for start in range(0, int(lengths.sum()), size))
    parts = zip(*(_pool_sparse(voters, block, width, rule.limit) for block in blocks), strict=True)
    return Knowledge.ragged(lengths, width, *(np.concatenate(part) for part in parts))


def _mean(voters: list[_Voter], tables: list[np.ndarray], block: slice) -> np.ndarray:
    """The weighted mean, at a block of n positions, of a table of each client, [N] or [N, width]."""
    weights = np.stack([voter.weights[block] for voter in voters])
    weights /= weights.sum(axis=0)
    total = np.zeros((weights.shape[1], *tables[0].shape[1:]))
    for voter, table, weight in zip(voters, tables, weights, strict=True):
        has = voter.rows[block] >= 0
        total[has] += (table[voter.rows[block][has]].T * weight[has]).T
    return total


def _pool_sparse(
    voters: list[_Voter], block: slice, width: int, limit: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of a block of n positions: counts [n], ids and log p [sum of counts] by falling log p, tails [n]."""
    ids, z = _mean_by_id(voters, block, width)
    tails = [voter.known.tail for voter in voters if voter.known.tail is not None]
    tail = np.where(np.isfinite(z).sum(axis=1) < width, _mean(voters, tails, block), -np.inf)
    total = log_sum(np.column_stack([z, tail]))
    z, tail = z - total[:, None], tail - total
    order = np.argsort(-z, axis=1, kind="stable")  # padding, of -inf, comes last; of equals the lower id first
    ids, z = np.take_along_axis(ids, order, 1), np.take_along_axis(z, order, 1)
    if limit is not None:
        tail = log_sum(np.column_stack([z[:, limit:], tail]))
        ids, z = ids[:, :limit], z[:, :limit]
    listed = np.isfinite(z)
    return listed.sum(axis=1), ids[listed], z[listed], tail.astype(np.float32)


def _mean_by_id(voters: list[_Voter], block: slice, width: int) -> tuple[np.ndarray, np.ndarray]:
    """At n positions: the ids that any client lists, rising, and the weighted mean of their log p over the clients that
    list them; [n, the most of a position], padded with log p -inf.
    """
    ids, z, weights = (
        np.concatenate(part, axis=1) for part in zip(*(_entries(voter, block, width) for voter in voters), strict=True)
    )
    columns = ids.shape[1]
    keys = np.sort(ids * np.int64(columns) + np.arange(columns), axis=1)  # several times as fast as a stable argsort
    ids, order = np.divmod(keys, columns)
    z, weights = np.take_along_axis(z, order, 1), np.take_along_axis(weights, order, 1)
    first = np.ones(ids.shape, dtype=bool)
    first[:, 1:] = ids[:, 1:] != ids[:, :-1]
    starts = np.flatnonzero(first)
    named = ids.ravel()[starts] < width
    total, weight = (np.add.reduceat(each.ravel(), starts)[named] for each in (z * weights, weights))
    counts = np.bincount(starts[named] // columns, minlength=len(ids))
    listed = np.arange(counts.max()) < counts[:, None]
    found = np.zeros(listed.shape, dtype=np.int64), np.full(listed.shape, -np.inf)
    found[0][listed], found[1][listed] = ids.ravel()[starts][named], total / weight
    return found


def _entries(voter: _Voter, block: slice, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, log p and weights [n, k] of one client; id `width` where it says nothing."""
    assert voter.known.ids is not None
    rows = voter.rows[block]
    z = voter.known.logp[rows].astype(np.float64)
    says = np.isfinite(z) & (rows >= 0)[:, None]
    weights = np.broadcast_to(voter.weights[block, None], z.shape)
    return np.where(says, voter.known.ids[rows], width), np.where(says, z, 0.0), weights
