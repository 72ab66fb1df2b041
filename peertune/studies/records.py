"""From the ledgers of a study to flat records: one for each federation, seed, arm and evaluated round.

Only arms that were run to their end count. The grades of single problems stay beside the records, for the intervals.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from peertune.ledger import COORDINATOR, Event, Ledger
from peertune.report.reading import Scored, evaluations, local_arm, run_body, runs_code, score_ks
from peertune.runs import LEDGER

TEXTS = "texts"  # the kind of payload that carries answers
UPDATES, FLOPS, ACCURACY = "exchange_updates", "flops", "text_accuracy"  # names of metric events


@dataclass(frozen=True, slots=True)
class Record:
    """One arm after one round. `benign` and `all`: means over these agents, by measure, the main score first.

    `agents`: the main score of each. `worst_gain`: the smallest gain of a benign agent over itself in `local`.
    The costs are sums from round 1 on: bytes of the method's own traffic ("texts, agent → agent"), optimiser steps on
    exchanges, 10^9 floating-point operations of all agents.
    """

    federation: str
    seed: int
    arm: str
    round: int
    benign: dict[str, float]
    all: dict[str, float]
    agents: dict[str, float]
    worst_gain: float | None
    bytes: dict[str, int]
    text_bytes: int
    updates: float
    gflop: float


@dataclass(frozen=True, slots=True)
class Arm:
    """One finished arm of one run. `grades`: agent -> the main score of every test problem after the last round.

    `taught`: (source, receiver) -> texts that the receiver got from this source, or exchanges if no texts are counted.
    """

    records: list[Record]
    grades: dict[str, np.ndarray]
    taught: dict[tuple[str, str], float]


@dataclass(frozen=True, slots=True)
class Run:
    """What a ledger says of one federation under one seed. `faults`: agent -> its fault, empty if it is benign.

    `score`: the name of the main score. `unit`: what `taught` counts. `unfinished`: arms that are not at their end.
    """

    federation: str
    seed: int
    rounds: int
    score: str
    unit: str
    faults: dict[str, str]
    arms: dict[str, Arm]
    unfinished: list[str]

    @property
    def benign(self) -> list[str]:
        return [name for name, fault in self.faults.items() if not fault]


@dataclass(slots=True)
class _Costs:
    """Sums of one arm up to a round; `accuracy`: of the texts that benign agents learnt from in that round."""

    bytes: Counter[str] = field(default_factory=Counter)
    text_bytes: int = 0
    updates: float = 0.0
    flops: float = 0.0
    accuracy: list[float] = field(default_factory=list)


def read_runs(folder: Path) -> list[Run]:
    """Every run in `folder` that is named FEDERATION-sSEED and has begun, by federation and seed."""
    found = []
    for path in folder.glob(f"[!.]*-s*/{LEDGER}"):
        federation, _, seed = path.parent.name.rpartition("-s")
        ledger = Ledger.read(path)
        if seed.isdecimal() and next(ledger.events("run"), None):
            found.append(read_run(ledger, federation, int(seed)))
        ledger.close()
    return sorted(found, key=lambda run: (run.federation, run.seed))


def read_run(ledger: Ledger, federation: str, seed: int) -> Run:
    """The finished arms of one run, the warm start first if it is over."""
    body = run_body(ledger)
    config = body["config"]
    agents = zip(body["agents"], config["agents"], strict=True)
    faults = {facts["name"]: section.get("fault") or "" for facts, section in agents}
    planned = [*config["baselines"], config["method"]["type"]]
    finished = list(dict.fromkeys(event.arm for event in ledger.events("done")))  # as they ran; a ledger sorts keys
    unfinished = [arm for arm in planned if arm not in finished]
    measures, final = _measures(config), config["evaluation"].get("final")
    sampled = {f"sampled Pass@{k}": _pass_at(k) for k in (final["k"] if final else ())}
    counted = any("texts" in event.body for event in ledger.events("pair"))
    unit = "texts" if counted else "exchanges"
    run = Run(federation, seed, config["rounds"], next(iter(measures)), unit, faults, {}, unfinished)
    scores = evaluations(ledger)
    local = scores.get(local_arm(config, finished) or "", {})
    for arm in finished:
        read = _read_arm(run, arm, list(ledger.events(arm=arm)), (scores.get(arm, {}), local), (measures, sampled))
        if read.grades.keys() & set(run.benign):
            run.arms[arm] = read
        else:
            run.unfinished.append(f"{arm} (no grades)")
    return run


Measures = Mapping[str, Callable[[Scored], float | None]]
Rounds = Mapping[int, Mapping[str, Scored]]


def _measures(config: Mapping[str, Any]) -> Measures:
    """What is read off an agent's grades, by name; the main score first."""
    if not runs_code(dict(config)):
        found = {"accuracy": _pass_at(None)}
    else:
        found = {f"Pass@{k}": _pass_at(k) for k in dict.fromkeys([1, *score_ks(dict(config))])}
    for name in ("codebleu", "validation_loss"):
        found[name] = lambda scored, name=name: scored.metrics.get(name)
    return found


def _pass_at(k: int | None) -> Callable[[Scored], float | None]:
    return lambda scored: _mean(scored.values(k))


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _read_arm(
    run: Run, arm: str, events: Sequence[Event], scores: tuple[Rounds, Rounds], kinds: tuple[Measures, Measures]
) -> Arm:
    (mine, local), (measures, sampled) = scores, kinds
    costs = _costs(events, run.benign)
    records = [_record(run, arm, t, mine[t], local.get(t, {}), costs.get(t, _Costs()), measures) for t in sorted(mine)]
    if records:
        records[-1] = _with_samples(records[-1], run.benign, events, sampled)
    k = None if run.score == "accuracy" else 1
    last = {name: scored.values(k) for name, scored in mine[max(mine)].items()} if mine else {}
    return Arm(records, last, _taught(events))


def _record(  # noqa: PLR0913  all that a record is made of
    run: Run,
    arm: str,
    t: int,
    scored: Mapping[str, Scored],
    local: Mapping[str, Scored],
    costs: _Costs,
    measures: Measures,
) -> Record:
    main = measures[run.score]
    agents = {name: value for name, grades in scored.items() if (value := main(grades)) is not None}
    gains = [agents[name] - (main(local[name]) or 0.0) for name in run.benign if name in agents and name in local]
    benign = _means([scored[name] for name in run.benign if name in scored], measures)
    if costs.accuracy:
        benign[ACCURACY] = _mean(costs.accuracy)
    return Record(
        federation=run.federation,
        seed=run.seed,
        arm=arm,
        round=t,
        benign=benign,
        all=_means(list(scored.values()), measures),
        agents=agents,
        worst_gain=min(gains, default=None),
        bytes=dict(sorted(costs.bytes.items())),
        text_bytes=costs.text_bytes,
        updates=costs.updates,
        gflop=costs.flops / 1e9,
    )


def _with_samples(record: Record, benign: Sequence[str], events: Iterable[Event], measures: Measures) -> Record:
    """The last round's record with Pass@k of the answers that were sampled after it, if there are any."""
    bodies = [event.body for event in events if event.kind == "samples" and event.round == record.round]
    sampled = {body["agent"]: Scored(body["correct"], body["samples"], body["metrics"]) for body in bodies}
    mine = _means([grades for name, grades in sampled.items() if name in benign], measures)
    return replace(
        record, benign={**record.benign, **mine}, all={**record.all, **_means(list(sampled.values()), measures)}
    )


def _means(grades: Sequence[Scored], measures: Measures) -> dict[str, float]:
    """The mean over agents of every measure that all of them have."""
    columns = {name: [measure(scored) for scored in grades] for name, measure in measures.items()}
    return {
        name: _mean(value for value in values if value is not None)
        for name, values in columns.items()
        if values and None not in values
    }


def _costs(events: Sequence[Event], benign: Sequence[str]) -> dict[int, _Costs]:
    """round -> what the arm has cost up to its end."""
    found: dict[int, _Costs] = {}
    total = _Costs()
    for event in events:
        if event.round not in found:  # rounds come in order
            total = found[event.round] = _Costs(Counter(total.bytes), total.text_bytes, total.updates, total.flops)
        if event.kind == "transfer" and event.phase == "round":
            _add_transfer(total, event.body)
        elif event.kind == "metric":
            _add_metric(total, event.body, benign)
    return found


def _add_transfer(costs: _Costs, body: Mapping[str, Any]) -> None:
    ends = ["agent" if body[end] != COORDINATOR else COORDINATOR for end in ("source", "destination")]
    costs.bytes[f"{body['payload']}, {' → '.join(ends)}"] += body["bytes"]
    costs.text_bytes += body["bytes"] if body["payload"] == TEXTS else 0


def _add_metric(costs: _Costs, body: Mapping[str, Any], benign: Sequence[str]) -> None:
    if body["name"] == UPDATES:
        costs.updates += body["value"]
    elif body["name"] == FLOPS:
        costs.flops += body["value"]
    elif body["name"] == ACCURACY and body["agent"] in benign:
        costs.accuracy.append(body["value"])


def _taught(events: Iterable[Event]) -> dict[tuple[str, str], float]:
    found: Counter[tuple[str, str]] = Counter()
    for event in events:
        if event.kind == "pair":
            found[event.body["source"], event.body["receiver"]] += event.body.get("texts", 1)
    return dict(found)
