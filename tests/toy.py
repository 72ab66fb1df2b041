"""Agents without a language model: numpy only, start in a moment, and misbehave on request.

The builder "toy:build" needs this folder on the path (`PATH_HERE` for worker processes). Its spec is msgpack of `Spec`.
An agent misbehaves when the first problem that `share` is asked for stands for a fault (`fault` makes such picks), and
when `fit` is asked for a negative number of steps: -1 is the first of `FAULTS`.
"""

import json
import os
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np

from peertune.engines.base import Resident
from peertune.engines.local import LocalEngine
from peertune.errors import ConfigError, PeertuneError
from peertune.ledger import COORDINATOR
from peertune.payloads import (
    Change,
    Claims,
    Gain,
    Number,
    Payload,
    Picks,
    Profile,
    Receipt,
    Scores,
    Texts,
    Verdicts,
    Weights,
)

PATH_HERE = {"PYTHONPATH": str(Path(__file__).parent)}
NAMES = ("a0", "a1", "a2", "a3", "open", "shut")
RELEASE = {  # as the configuration's defaults
    "texts": "agents",
    "profile": "coordinator",
    "claims": "coordinator",
    "verdicts": "coordinator",
    "gain": "coordinator",
    "scores": "coordinator",
    "receipt": "coordinator",
    "weights": "nobody",
    "logits": "nobody",
    "assessed": "nobody",
    "lexicon": "agents",
    "tally": "coordinator",
    "activations": "nobody",
    "labelled": "nobody",
    "gradient": "nobody",
    "records": "nobody",
    "metrics": "coordinator",
}
POLICIES = {"open": dict.fromkeys(RELEASE, "everyone"), "shut": dict.fromkeys(RELEASE, "nobody")}
SECRET = "patient 4711 has"
FIRST = Receipt("0" * 64)  # `restore(FIRST)` puts an agent back to its first state


class Spec(msgspec.Struct):
    """`folder`: traces and logs. `refusal`: the builder's error. `crash`: not empty if a1's builder is to die."""

    folder: str
    refusal: str = ""
    crash: str = ""


class Foreign(Payload, frozen=True):
    """A payload of a kind that nobody knows."""

    kind: ClassVar[str] = "martian"
    items: tuple[str, ...] = ("x",)


class Garbage(Payload, frozen=True):
    """Bytes that claim to be texts and are not."""

    kind: ClassVar[str] = "texts"
    junk: bytes = b"\xff\x00" * 8


class Unchecked(Payload, frozen=True):
    """A profile that skips its own checks."""

    kind: ClassVar[str] = "profile"
    values: tuple[float, ...] = (float("nan"),) * 32


def _raise(error: BaseException) -> Callable[[], Any]:
    def fault() -> Any:
        raise error

    return fault


def _half_an_answer() -> None:
    """Write the beginning of a reply straight to the coordinator, then die."""
    os.write(int(sys.argv[1]), struct.pack("!i", 1000) + b"x" * 10)
    os._exit(1)


def _die_soon() -> Texts:
    """Answer well, then die while idle."""
    threading.Timer(0.05, os._exit, (1,)).start()
    return Texts(("last words",))


FAULTS: dict[str, Callable[[], Any]] = {
    "raise": _raise(ValueError("no")),
    "private": _raise(RuntimeError(f"{SECRET} a cold")),
    "own": _raise(PeertuneError("the loss is not a number")),
    "memory": _raise(MemoryError()),
    "type": lambda: "not a payload",
    "foreign": Foreign,
    "garbage": Garbage,
    "nan": Unchecked,
    "kind": lambda: Profile((0.0,) * 32),
    "huge": lambda: Texts(("",) * ((1 << 16) + 1)),
    "long": lambda: Texts(("x" * ((1 << 16) + 1),)),
    "hang": lambda: time.sleep(3600),
    "exit": lambda: os._exit(1),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "half": _half_an_answer,
    "idle": _die_soon,
}
FIRST_FAULT = 1000  # problems from here on are the faults
DEADLY = ("exit", "kill", "half")
QUIET = ("raise", "private", "own", "memory", "type", "foreign", "huge", "long")  # fail at the agent itself
INVALID = ("garbage", "nan", "kind")  # fail where the answer is decoded


class ToyAgent:
    """Four numbers that move with every call, so that order and repetition show."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self._folder = name, folder
        self._policy = RELEASE | POLICIES.get(name, {})
        self._metrics: list[tuple[str, float]] = []
        self._weights = self._first()
        self._taught = self._pulled = self._calls = 0

    def call(self, verb: str, args: list[Payload]) -> Payload | None:
        self._calls += 1
        with (self._folder / f"{self.name}.trace").open("a") as file:
            file.write(f"{os.getpid()} {verb}\n")
        return getattr(self, f"do_{verb}")(*(arg.value if isinstance(arg, Number) else arg for arg in args))

    def may_pull(self, kind: str, caller: str) -> bool:
        who = self._policy.get(kind, "nobody")
        if who in ("coordinator", "agents"):
            return (caller == COORDINATOR) == (who == "coordinator")
        return who == "everyone"

    def outgoing(self, payload: Payload) -> tuple[Payload, str]:
        return payload, f"examined by {self.name}"

    def take_metrics(self) -> list[tuple[str, float]]:
        metrics, self._metrics = self._metrics, []
        return metrics

    def log_path(self) -> Path:
        return self._folder / self.name / "errors.log"

    def do_fit(self, steps: int) -> None:
        if steps < 0:
            return list(FAULTS.values())[-1 - steps]()
        self._weights = self._weights * 0.9 + steps
        self._metrics.append(("train_loss", self._loss()))

    def do_profile(self) -> Profile:
        return Profile((*self._weights.tolist(), *[0.0] * 28))

    def do_draft(self, which: Picks, temperature: float, confident: int, tested: int) -> Claims:
        self._weights = self._weights + temperature
        count = len(which.items)
        return Claims((round(10 * self._loss()),) * count, (1,) * count, (0,) * count)

    def do_share(self, which: Picks) -> Payload:
        if which.items[0] >= FIRST_FAULT:
            return list(FAULTS.values())[which.items[0] - FIRST_FAULT]()
        return Texts(tuple(f"{problem} {self.name}:{self._loss():.6f}" for problem in which.items))

    def do_accept(self, which: Picks, texts: Texts, tested: int) -> Verdicts:
        """Texts of odd problems are of use."""
        self._pulled += sum(len(text.encode()) for text in texts.items)
        self._taught += sum(which.items) + sum(len(text) * index for index, text in enumerate(texts.items, 1))
        return self.do_inspect(which, texts)

    def do_inspect(self, which: Picks, texts: Texts) -> Verdicts:
        return Verdicts(tuple(problem % 2 for problem, _ in zip(which.items, texts.items, strict=True)))

    def do_learn(self, kd_weight: float, steps: int, tolerance: float, keep: int) -> Gain:
        before = self._loss()
        self._weights = self._weights * (1 - kd_weight) + kd_weight * np.sin(self._taught + steps)
        gain = Gain(Change(before, self._loss(), 0.1), None, self._pulled / 1000, True)
        self._taught = self._pulled = 0
        return gain

    def do_grade(self, samples: int, temperature: float) -> Scores:
        return Scores((float(samples), 0.0), samples, {"validation_loss": self._loss()})

    def do_adapter(self) -> Weights:
        return Weights({"w": self._weights.astype(np.float32)}, 4)

    def do_load(self, adapter: Weights) -> None:
        self._weights = adapter.tensors["w"].astype(np.float64)

    def do_checkpoint(self, keep: Texts) -> Receipt:
        raw = json.dumps(self._weights.tolist()).encode()
        digest = f"{len(raw):064x}"
        (self._folder / f"{self.name}.{digest}").write_bytes(raw)
        return Receipt(digest)

    def do_restore(self, receipt: Receipt) -> None:
        self._taught = self._pulled = 0
        if receipt == FIRST:
            self._weights = self._first()
        else:
            self._weights = np.array(json.loads((self._folder / f"{self.name}.{receipt.digest}").read_bytes()))

    def _first(self) -> np.ndarray:
        return np.full(4, NAMES.index(self.name) + 1.0)

    def _loss(self) -> float:
        return float(np.abs(self._weights).mean())


def fault(name: str) -> Picks:
    """What to ask `share` for, to have that fault."""
    return Picks((FIRST_FAULT + list(FAULTS).index(name),))


def described(name: str) -> dict[str, Any]:
    """The facts of a toy agent."""
    words = ("model", "fingerprint", "adapter", "family", "vocabulary", "data", "isolation")
    counts = ("layers", "parameters", "trainable", "train", "validation", "test", "truncated", "chats")
    facts = {**dict.fromkeys(words, "toy"), **dict.fromkeys(counts, 0)}
    return {"name": name, **facts, "rank": 1, "scale": 1.0, "histogram": [1.0]}


def build(raw: bytes, names: list[str]) -> tuple[dict[str, Resident], list[dict[str, Any]]]:
    """The builder. Raises `ConfigError` if the spec wants a refusal, and something worse if it wants a crash."""
    spec = msgspec.msgpack.decode(raw, type=Spec)
    if spec.refusal and "a1" in names:
        raise ConfigError(spec.refusal)
    if spec.crash and "a1" in names:
        os._exit(1)
    return {name: ToyAgent(name, Path(spec.folder)) for name in names}, [described(name) for name in names]


def grouped(workers: int) -> list[list[str]]:
    """Who sits with whom: dealt in turn, so that neighbours are apart."""
    return [list(NAMES[index::workers]) for index in range(workers)]


def start(folder: Path, workers: int, deadline: float = 60.0, **spec: str) -> LocalEngine:
    """A local engine of toy agents; 0 workers run in this process."""
    groups = grouped(max(1, workers))
    raw = msgspec.msgpack.encode(Spec(str(folder), **spec))
    environments = [PATH_HERE] * len(groups)
    return LocalEngine("toy:build", raw, groups, inline=workers == 0, deadline=deadline, environments=environments)
