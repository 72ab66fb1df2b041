"""One round of routing: all claims on one board, orders read off it, and what the orders brought booked as credit."""

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace

import numpy as np

from peertune.matchmakers.base import Candidates, State
from peertune.matchmakers.router import Claimed, Router, category_numbers, confidence_bin
from peertune.methods.base import Run
from peertune.methods.texts import Order, Pulled
from peertune.payloads import Claims

_CHUNK = 2**14  # pairs whose prompts are held in memory at once


@dataclass(frozen=True)
class Board:
    """The claims of all agents on all public problems. `names`: of the agents, by row. `categories`: int [problems].
    `testable`: bool [problems], where a receiver finds out by itself whether a text is right.
    """

    names: list[str]
    transfer: int
    claimed: Claimed
    categories: np.ndarray
    testable: np.ndarray


def read_board(run: Run, names: list[str], asked: Sequence[int], claims: Mapping[str, Claims], tested: bool) -> Board:
    """`asked`: the problems drafted. What was not asked, and an absent agent's, is neither offered nor needed."""
    problems = (*run.transfer, *run.probe)
    testable = np.array([tested and problem.tested for problem in problems])
    surprise = np.zeros((len(names), len(problems)), np.int64)
    offered, settled = np.zeros(surprise.shape, bool), np.ones(surprise.shape, bool)
    for row, name in enumerate(names):
        if name in claims:
            surprise[row, asked] = claims[name].surprise
            offered[row, asked] = claims[name].offered
            settled[row, asked] = claims[name].settled
    bins = confidence_bin(surprise, np.broadcast_to(testable, surprise.shape))
    categories = category_numbers([problem.category for problem in problems])
    return Board(names, len(run.transfer), Claimed(surprise, bins, offered, settled), categories, testable)


def audits(board: Board, audited: Sequence[int], t: int, present: Sequence[str] | None = None) -> list[Order]:
    """Who grades whose answers to these problems: everybody has an auditor, another one in every round. `present`: who
    takes part in the round; all by default.
    """
    names, orders = board.names if present is None else present, []
    for place, source in enumerate(names if len(names) > 1 else ()):
        row = board.names.index(source)
        offered = tuple(problem for problem in audited if board.claimed.offered[row, problem])
        auditor = names[(place + 1 + (t - 1) % (len(names) - 1)) % len(names)]
        if offered:
            orders.append(Order(source, auditor, offered))
    return orders


def book(router: Router, credit: State, board: Board, found: Pulled, known: bool = False) -> State:
    """What was found out about texts, to the account of their sources. `known`: graded by their answers; otherwise
    only texts that the receiver could test say anything.
    """
    for order, passed in found.items():
        problems, row = np.array(order.problems, dtype=np.int64), board.names.index(order.source)
        counted = np.ones(len(problems), bool) if known else board.testable[problems]
        chosen = problems[counted]
        cells = (board.categories[chosen], board.claimed.bins[row, chosen])
        credit = router.observe(credit, row, cells, np.array(passed, float)[counted])
    return credit


def with_leads(pairs: Candidates, router: Router, credit: State, board: Board) -> Candidates:
    """The pairs with `Pair.lead`: the share of prompts that the source is expected to have right and the receiver not,
    by the credit of their claims; a receiver that needs no text for a prompt has it right.
    """
    claimed, prompts = board.claimed, slice(0, board.transfer)
    agents, bins = np.arange(len(board.names))[:, None], claimed.bins[:, prompts]
    likely = router.credit(credit)[agents, board.categories[None, prompts], bins]
    offered = claimed.offered[:, prompts]
    own = np.where(board.testable[prompts] & ~offered, 0.0, likely)  # withheld, so it failed the tests
    offer, have = likely * offered, np.maximum(own, claimed.settled[:, prompts])
    place = {name: row for row, name in enumerate(board.names)}
    rows = np.array([place[name] for name in pairs.names], dtype=np.int64)
    found = np.empty(len(pairs))
    for start in range(0, len(pairs), _CHUNK):
        some = slice(start, start + _CHUNK)
        sources, receivers = rows[pairs.sources[some]], rows[pairs.receivers[some]]
        found[some] = np.maximum(0.0, offer[sources] - have[receivers]).mean(1)
    return replace(pairs, leads=found)


def lost(wanted: Sequence[Order], found: Pulled, failed: Set[str]) -> Pulled:
    """Orders that brought nothing because their source failed: as if all their texts were wrong."""
    return {order: (0,) * len(order.problems) for order in wanted if order not in found and order.source in failed}


def rankings(router: Router, credit: State, board: Board, receivers: Sequence[str]) -> dict[str, np.ndarray]:
    """For each receiver and prompt the rows of sources worth asking, best first; -1 behind the last."""
    return {
        name: router.rank(credit, board.claimed, board.categories, board.names.index(name))[: board.transfer]
        for name in receivers
    }


def orders(board: Board, ranked: Mapping[str, np.ndarray], pulled: Pulled, attempt: int) -> list[Order]:
    """The source of that place in the ranking, for every prompt whose earlier texts were of no use."""
    wanted: dict[tuple[str, str], list[int]] = defaultdict(list)
    for receiver, ranking in ranked.items():
        useful = _useful(pulled, receiver)
        for problem, sources in enumerate(ranking):
            if attempt < len(sources) and sources[attempt] >= 0 and problem not in useful:
                wanted[board.names[sources[attempt]], receiver].append(problem)
    return [Order(source, receiver, tuple(problems)) for (source, receiver), problems in wanted.items()]


def _useful(pulled: Pulled, receiver: str) -> set[int]:
    mine = [(order.problems, passed) for order, passed in pulled.items() if order.receiver == receiver]
    return {problem for problems, passed in mine for problem, use in zip(problems, passed, strict=True) if use}
