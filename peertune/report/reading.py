"""What a ledger holds, in the shapes that tables and pictures need. Reads committed events only."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from peertune.errors import ConfigError
from peertune.evaluate import pass_at_k
from peertune.ledger import COORDINATOR, SERVER, Event, Ledger
from peertune.tasks.base import CODE_TASKS

START = "start"  # the arm of the warm start: the state that all other arms begin from

LINKS = (
    *("coordinator → agent", "agent → coordinator", "agent → agent"),
    *("agent → server", "server → agent", "coordinator → server", "server → coordinator"),
)
TO_COORDINATOR = tuple(link for link in LINKS if link.endswith(COORDINATOR))


@dataclass(frozen=True, slots=True)
class Scored:
    """One agent's grades: of each problem how many of `samples` answers were right, and named numbers beside them."""

    correct: list[float]
    samples: int
    metrics: dict[str, float]

    def values(self, k: int | None) -> np.ndarray:
        """The score of every problem, 0..1, [problems]: Pass@k, or the mean grade if `k` is None."""
        if k is None:
            return np.asarray(self.correct, dtype=float) / self.samples
        return np.array([pass_at_k(self.samples, round(count), k) for count in self.correct])


@dataclass(frozen=True, slots=True)
class Flow:
    """A class of transfers: which arm, in which phase, over which kind of link of `LINKS`, which kind of payload."""

    arm: str
    phase: str
    link: str
    payload: str


@dataclass(slots=True)
class Volume:
    """How many transfers, and their bytes."""

    transfers: int = 0
    bytes: int = 0

    def add(self, transfers: int, count: int) -> None:
        self.transfers += transfers
        self.bytes += count


def run_body(ledger: Ledger) -> dict[str, Any]:
    """Configuration, agents and version of the run. Raises `ConfigError` if nothing was run."""
    event = next(ledger.events("run"), None)
    if event is None:
        raise ConfigError(f"{ledger.path} holds no run yet: it stopped before its agents were built; start it again")
    return event.body


def arms(ledger: Ledger) -> list[str]:
    """The arms that have a complete round, in the order in which they ran, without the warm start."""
    return list(dict.fromkeys(event.arm for event in ledger.events() if event.arm != START))


def evaluations(ledger: Ledger) -> dict[str, dict[int, dict[str, Scored]]]:
    """arm -> round -> agent -> grades, for every round that was evaluated."""
    found: dict[str, dict[int, dict[str, Scored]]] = defaultdict(lambda: defaultdict(dict))
    for event in ledger.events("scores"):
        body = event.body
        scored = Scored(body["correct"], body["samples"], body["metrics"])
        found[event.arm][event.round][body["agent"]] = scored
    return {arm: dict(rounds) for arm, rounds in found.items()}


def traffic(ledger: Ledger) -> dict[Flow, Volume]:
    """All transfers, summed by arm, phase, kind of link and kind of payload."""
    volumes: dict[Flow, Volume] = defaultdict(Volume)
    for event in ledger.events("transfer"):
        flow = Flow(event.arm, event.phase, _link(event), event.body["payload"])
        volumes[flow].add(1, event.body["bytes"])
    return dict(volumes)


def _link(event: Event) -> str:
    ends = (event.body["source"], event.body["destination"])
    return " → ".join(end if end in (COORDINATOR, SERVER) else "agent" for end in ends)


def local_arm(config: dict[str, Any], names: Iterable[str]) -> str | None:
    """The arm among `names` in which nobody learned from anybody, if there is one."""
    methods = {**config["baselines"], config["method"]["type"]: config["method"]}
    return next((name for name in names if name in methods and methods[name]["type"] == "local"), None)


def score_name(config: dict[str, Any], k: int) -> str:
    """What the score is called: answers that are run pass, others are accurate."""
    return f"Pass@{k}" if runs_code(config) else "accuracy"


def runs_code(config: dict[str, Any]) -> bool:
    return config["task"]["type"] in CODE_TASKS


def score_ks(config: dict[str, Any]) -> list[int]:
    """The k of Pass@k that the configuration asks for; 1 alone where nothing is run."""
    return list(config["evaluation"]["k"]) if runs_code(config) else [1]


def plain(text: str) -> str:
    """Foreign text in one line, without control, format or bidirectional characters, surrogates and private ones."""
    kept = (" " if char.isspace() else char for char in text)
    return "".join(char for char in kept if unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Co", "Cn"))


def readable_bytes(count: float) -> str:
    """12 B, 3.4 kB, 5.6 MB ... in steps of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{round(count, 1):g} {unit}"
        count /= 1000
    return f"{round(count, 1):g} TB"
