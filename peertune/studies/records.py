"""From the ledgers of a study to flat records: one for each federation, seed, arm and evaluated round.

Only arms that were run to their end count. The grades of single problems stay beside the records, for the intervals.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from peertune.ledger import Event, Ledger
from peertune.report.reading import Scored, evaluations, local_arm, run_body, runs_code, score_ks
from peertune.report.selection import Selection, selections
from peertune.runs import LEDGER
from peertune.studies.costs import Costs, costs_by_round

ACCURACY = "text_accuracy"  # the name of a metric event
TOLD = ("coordinator", "everyone")  # who has to be allowed an agent's metrics, for them to stand in the ledger


@dataclass(frozen=True, slots=True)
class Record:
    """One arm after one round. `benign` and `all`: means over these agents, by measure, the main score first.

    `agents`: the main score of each. `worst_gain`: the smallest gain of a benign agent over itself in `local`.
    The costs are sums over the arm's rounds: bytes of the method's own traffic ("texts, agent → agent"), optimiser
    steps on exchanges, 10^9 floating-point operations of all agents, grading included.
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
    `costs`: up to each round. `server`: its main score, by round, where it has a whole model. `chosen`: learner
    -> the teachers it chose for public problems.
    """

    records: list[Record]
    grades: dict[str, np.ndarray]
    taught: dict[tuple[str, str], float]
    costs: dict[int, Costs] = field(default_factory=dict)
    server: dict[int, float] = field(default_factory=dict)
    chosen: dict[str, Selection] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Run:
    """What a ledger says of one federation under one seed. `faults`: agent -> its fault, empty if it is benign.

    `score`: the name of the main score. `unit`: what `taught` counts. `unfinished`: arms that are not at their end.
    `local`: the arm in which nobody learns from anybody, if it is finished. `method`: that of the configuration's own
    method. `silent`: agents that keep their metrics.
    """

    federation: str
    seed: int
    rounds: int
    score: str
    unit: str
    faults: dict[str, str]
    arms: dict[str, Arm]
    unfinished: list[str]
    local: str | None = None
    silent: tuple[str, ...] = ()
    method: str = ""

    @property
    def benign(self) -> list[str]:
        return [name for name, fault in self.faults.items() if not fault]


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
    sections = dict(zip([facts["name"] for facts in body["agents"]], config["agents"], strict=True))
    planned = [*config["baselines"], config["method"]["type"]]
    finished = list(dict.fromkeys(event.arm for event in ledger.events("done")))  # as they ran; a ledger sorts keys
    measures, final = _measures(config), config["evaluation"].get("final")
    sampled = {f"sampled Pass@{k}": _pass_at(k) for k in (final["k"] if final else ())}
    run = Run(
        federation=federation,
        seed=seed,
        rounds=config["rounds"],
        score=next(iter(measures)),
        unit="texts" if any("texts" in event.body for event in ledger.events("pair")) else "exchanges",
        faults={name: section.get("fault") or "" for name, section in sections.items()},
        arms={},
        unfinished=[arm for arm in planned if arm not in finished],
        local=local_arm(config, finished),
        silent=tuple(name for name, section in sections.items() if _is_silent(section)),
        method=config["method"]["type"],
    )
    scores, calls = evaluations(ledger), [fact.body for fact in ledger.facts("call")]
    for arm in finished:
        told = list(ledger.events(arm=arm)), [call for call in calls if call["arm"] == arm]
        read = _read_arm(run, arm, told, (scores.get(arm, {}), scores.get(run.local or "", {})), (measures, sampled))
        if read.grades.keys() & set(run.benign):
            run.arms[arm] = read
        else:
            run.unfinished.append(f"{arm} (no grades)")
    return run


def _is_silent(agent: Mapping[str, Any]) -> bool:
    return agent.get("release", {}).get("metrics", TOLD[0]) not in TOLD


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
    run: Run,
    arm: str,
    told: tuple[Sequence[Event], Sequence[Mapping[str, Any]]],
    scores: tuple[Rounds, Rounds],
    kinds: tuple[Measures, Measures],
) -> Arm:
    """`told`: the arm's events and calls. `scores`: its own and those of `local`. `kinds`: greedy and sampled."""
    (events, calls), (mine, local), (measures, sampled) = told, scores, kinds
    costs, learnt = costs_by_round(events, calls), _accuracy(events, run.benign)
    records = []
    for t in sorted(mine):
        record = _record(run, (arm, t), (mine[t], local.get(t, {})), costs.get(t, Costs()), measures)
        records.append(_extended(record, learnt.get(t, {}), {}))
    if records:
        records[-1] = _with_samples(records[-1], run.benign, events, sampled)
    k = None if run.score == "accuracy" else 1
    last = {name: scored.values(k) for name, scored in mine[max(mine)].items()} if mine else {}
    server = {event.round: _mean(_scored(event.body).values(k)) for event in events if event.kind == "server_scores"}
    return Arm(records, last, _taught(events), costs, server, selections(events))


def _record(
    run: Run,
    place: tuple[str, int],
    scores: tuple[Mapping[str, Scored], Mapping[str, Scored]],
    costs: Costs,
    measures: Measures,
) -> Record:
    (scored, local), main = scores, measures[run.score]
    agents = {name: value for name, grades in scored.items() if (value := main(grades)) is not None}
    gains = [agents[name] - (main(local[name]) or 0.0) for name in run.benign if name in agents and name in local]
    return Record(
        federation=run.federation,
        seed=run.seed,
        arm=place[0],
        round=place[1],
        benign=_means([scored[name] for name in run.benign if name in scored], measures),
        all=_means(list(scored.values()), measures),
        agents=agents,
        worst_gain=min(gains, default=None),
        bytes=dict(sorted((f"{payload}, {' → '.join(ends)}", n) for (payload, *ends), n in costs.flows.items())),
        text_bytes=costs.text_bytes,
        updates=costs.updates,
        gflop=(costs.flops + sum(costs.apart_flops.values())) / 1e9,
    )


def _extended(record: Record, benign: Mapping[str, float], all: Mapping[str, float]) -> Record:
    return replace(record, benign={**record.benign, **benign}, all={**record.all, **all})


def _with_samples(record: Record, benign: Sequence[str], events: Iterable[Event], measures: Measures) -> Record:
    """The last round's record with Pass@k of the answers that were sampled after it, if there are any."""
    bodies = [event.body for event in events if event.kind == "samples" and event.round == record.round]
    sampled = {body["agent"]: _scored(body) for body in bodies}
    mine = _means([grades for name, grades in sampled.items() if name in benign], measures)
    return _extended(record, mine, _means(list(sampled.values()), measures))


def _scored(body: Mapping[str, Any]) -> Scored:
    return Scored(body["correct"], body["samples"], body["metrics"])


def _accuracy(events: Iterable[Event], benign: Sequence[str]) -> dict[int, dict[str, float]]:
    """round -> the mean accuracy of the texts that benign agents learnt from in it."""
    found: dict[int, list[float]] = defaultdict(list)
    for event in events:
        if event.kind == "metric" and event.body["name"] == ACCURACY and event.body["agent"] in benign:
            found[event.round].append(event.body["value"])
    return {t: {ACCURACY: _mean(values)} for t, values in found.items()}


def _means(grades: Sequence[Scored], measures: Measures) -> dict[str, float]:
    """The mean over agents of every measure that all of them have."""
    columns = {name: [measure(scored) for scored in grades] for name, measure in measures.items()}
    return {
        name: _mean(value for value in values if value is not None)
        for name, values in columns.items()
        if values and None not in values
    }


def _taught(events: Iterable[Event]) -> dict[tuple[str, str], float]:
    found: Counter[tuple[str, str]] = Counter()
    for event in events:
        if event.kind == "pair":
            found[event.body["source"], event.body["receiver"]] += event.body.get("texts", 1)
    return dict(found)
