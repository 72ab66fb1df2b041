"""Tables from a ledger: plain rows of text, for a terminal, a page or a file."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from peertune.ledger import Ledger
from peertune.payloads import PAYLOADS
from peertune.report.asynchrony import refused_table, rounds_table
from peertune.report.reading import LINKS, START, TO_COORDINATOR, Flow, Volume, arms, run_body, score_ks, traffic
from peertune.report.results import metrics_table, results_table
from peertune.report.selection import selection_table
from peertune.report.table import ABSENT, Table


def run_tables(ledger: Ledger) -> list[Table]:
    """Every table of a run that has rows. Raises `ConfigError` if nothing was run."""
    about = [agents_table(ledger), metrics_table(ledger), received_table(ledger), cost_table(ledger)]
    return [table for table in about if table.rows] + result_tables(ledger)


def result_tables(ledger: Ledger) -> list[Table]:
    """What a run ends with: who taught whom, bytes, failures, scores. Raises `ConfigError` if nothing was run."""
    ks = score_ks(run_body(ledger)["config"])
    tables = [
        pairs_table(ledger),
        selection_table(ledger),
        aggregation_table(ledger),
        traffic_table(ledger),
        failures_table(ledger),
        refused_table(ledger),
        rounds_table(ledger),
        *(results_table(ledger, k) for k in ks),
    ]
    return [table for table in tables if table.rows]


def agents_table(ledger: Ledger) -> Table:
    """Who took part: models and private data, in numbers."""
    columns = [
        "Agent",
        "Model",
        "Family",
        "Fingerprint",
        "Parameters",
        "Trained",
        "Train",
        "Validation",
        "Cut",
        "Categories",
    ]
    rows = [
        [
            *(agent[key] for key in ("name", "model", "family")),
            agent["fingerprint"][:12],
            *(f"{agent[key]:,}" for key in ("parameters", "trainable", "train", "validation", "truncated")),
            _categories(agent["histogram"]),
        ]
        for agent in run_body(ledger)["agents"]
    ]
    note = "Train, Validation: private examples. Cut: those longer than the context. Categories: those with examples."
    return Table("Agents", columns, rows, note, labels=4)


def _categories(histogram: Sequence[float]) -> str:
    present = sum(share > 0 for share in histogram)
    return f"{present} of {len(histogram)}" if present else ABSENT


# Exchanges


def pairs_table(ledger: Ledger) -> Table:
    """Who taught whom, how often, and what it brought; most frequent first within each arm."""
    exchanges: dict[tuple[str, str, str], list[dict[str, float]]] = defaultdict(list)
    for event in ledger.events("pair"):
        exchanges[event.arm, event.body["source"], event.body["receiver"]].append(event.body)
    order = {arm: place for place, arm in enumerate(arms(ledger))}
    keys = sorted(exchanges, key=lambda key: (order[key[0]], -len(exchanges[key]), *key[1:]))
    rows = [[*key, *_exchange_numbers(exchanges[key])] for key in keys]
    columns = [
        "Arm",
        "Source",
        "Receiver",
        "Exchanges",
        "Texts",
        "Of use",
        "Mean reward",
        "Mean predicted",
        "Loss before",
        "Loss after",
    ]
    note = (
        "Means over the exchanges of a pair; texts are their sum. Loss: the receiver's own validation loss, nats a "
        "token. A receiver with several sources in a round has one reward and one loss for all of them together."
    )
    return Table("Who taught whom", columns, rows, note, labels=3)


def _exchange_numbers(bodies: Sequence[dict[str, float]]) -> list[str]:
    predicted = [body["predicted"] for body in bodies if body["predicted"] is not None]
    return [
        str(len(bodies)),
        *(str(sum(body[key] for body in bodies)) for key in ("texts", "useful")),
        f"{np.mean([body['reward'] for body in bodies]):+.4f}",
        f"{np.mean(predicted):+.4f}" if predicted else ABSENT,
        *(f"{np.mean([body[key] for body in bodies]):.4f}" for key in ("before", "after")),
    ]


def aggregation_table(ledger: Ledger) -> Table:
    """How far each round's global adapter was from the average of what the agents did."""
    rows = [
        [event.arm, str(event.round), event.body["rule"], str(len(event.body["agents"])), f"{event.body['error']:.2g}"]
        for event in ledger.events("aggregation")
    ]
    note = (
        "Error: the part of the agents' average change of the weights that the aggregate misses, by Frobenius norm; "
        "below 1e-6 it is that of fp32. Start: the adapter that all begin from, instead of their own."
    )
    return Table("Aggregation", ["Arm", "Round", "Rule", "Agents", "Error"], rows, note, labels=3)


# Bytes


def traffic_table(ledger: Ledger) -> Table:
    """Bytes of the method's own traffic by arm, link and payload; what evaluation and checkpoints cost stands below."""
    volumes = traffic(ledger)
    order = {arm: place for place, arm in enumerate(arms(ledger))}
    own = [flow for flow in volumes if flow.phase == "round"]
    own.sort(key=lambda flow: (order[flow.arm], LINKS.index(flow.link), flow.payload))
    rows = []
    for arm in order:
        flows = [flow for flow in own if flow.arm == arm]
        rows += [[arm, flow.link, flow.payload, *_cells(volumes[flow])] for flow in flows]
        rows.append([arm, "all", "all", *_cells(_sum(volumes, flows))])
    warm_start = [flow for flow in volumes if flow.phase == "init"]
    apart = [flow for flow in volumes if flow.phase in ("deploy", "evaluate", "checkpoint")]
    for name, flows in (("(warm start)", warm_start), ("(evaluation, checkpoints)", apart)):
        if flows:
            rows.append([name, "all", "all", *_cells(_sum(volumes, flows))])
    note = (
        "Encoded payloads, without the framing of a network. The last lines belong to no method; in an evaluation is "
        "what it takes to have every agent able to answer alone."
    )
    return Table("Traffic", ["Arm", "Link", "Payload", "Transfers", "Bytes"], rows, note, labels=3)


def received_table(ledger: Ledger) -> Table:
    """What the coordinator received, by kind of payload: during rounds, and for evaluation and checkpoints."""
    volumes = {flow: volume for flow, volume in traffic(ledger).items() if flow.link in TO_COORDINATOR}
    rows = []
    for payload in sorted({flow.payload for flow in volumes}):
        flows = [flow for flow in volumes if flow.payload == payload]
        rounds = _sum(volumes, [flow for flow in flows if flow.phase == "round"])
        apart = _sum(volumes, [flow for flow in flows if flow.phase != "round"])
        rows.append([payload, _meaning(payload), *_cells(rounds), *_cells(apart)])
    columns = ["Payload", "What it is", "In rounds", "Bytes", "Otherwise", "Bytes"]
    note = "Otherwise: warm start, evaluation and checkpoints."
    return Table("What the coordinator received", columns, rows, note, labels=2)


def _meaning(payload: str) -> str:
    doc = PAYLOADS[payload].__doc__ if payload in PAYLOADS else None
    return doc.splitlines()[0].replace("`", "") if doc else ABSENT


def _sum(volumes: dict[Flow, Volume], flows: Iterable[Flow]) -> Volume:
    total = Volume()
    for flow in flows:
        total.add(volumes[flow].transfers, volumes[flow].bytes)
    return total


def _cells(volume: Volume) -> list[str]:
    return [f"{volume.transfers:,}", f"{volume.bytes:,}"]


# What went wrong, and what it cost


def failures_table(ledger: Ledger) -> Table:
    """Every call that an agent could not answer."""
    rows = [
        [event.arm, str(event.round), event.phase, *(event.body[key] for key in ("agent", "verb", "cause"))]
        for event in ledger.events("failure")
    ]
    columns = ["Arm", "Round", "Phase", "Agent", "Verb", "Cause"]
    return Table(
        "Failures", columns, rows, "A failed call costs its own exchange; the round went on with the others.", labels=6
    )


def cost_table(ledger: Ledger) -> Table:
    """Calls, seconds, CPU seconds and bytes of each arm, evaluation and checkpoints included."""
    calls: Counter[str] = Counter()
    seconds: dict[str, float] = defaultdict(float)
    cpu_seconds: dict[str, float] = defaultdict(float)
    for fact in ledger.facts("call"):
        arm = fact.body["arm"]
        calls[arm] += 1
        seconds[arm] += fact.body["seconds"]
        cpu_seconds[arm] += fact.body["cpu_seconds"]
    bytes_: Counter[str] = Counter()
    for flow, volume in traffic(ledger).items():
        bytes_[flow.arm] += volume.bytes
    names = [arm for arm in (START, *arms(ledger)) if calls[arm] or bytes_[arm]]
    rows = [
        [arm, f"{calls[arm]:,}", f"{seconds[arm]:.1f}", f"{cpu_seconds[arm]:.1f}", f"{bytes_[arm]:,}"] for arm in names
    ]
    note = "Seconds are summed over the agents' calls, which may run side by side. All phases count."
    return Table("Cost", ["Arm", "Calls", "Seconds", "CPU seconds", "Bytes"], rows, note)
