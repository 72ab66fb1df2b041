"""How good the agents became: the tables of scores and of the measures beside them."""

import numpy as np

from peertune.evaluate import Estimate, estimate
from peertune.ledger import Ledger
from peertune.report.reading import (
    START,
    Scored,
    arms,
    evaluations,
    local_arm,
    run_body,
    runs_code,
    score_name,
)
from peertune.report.table import ABSENT, Table

BEFORE = "before"


def results_table(ledger: Ledger, k: int = 1) -> Table:
    """Every agent's score before and after each arm's last evaluated round, its gain over `local`, mean and worst."""
    body = run_body(ledger)
    config, agents = body["config"], [agent["name"] for agent in body["agents"]]
    last = _last_evaluations(ledger)
    columns = {arm: _values(scored, k if runs_code(config) else None) for arm, (_, scored) in last.items()}
    local = local_arm(config, columns)
    gains = {arm: _gain(columns[arm], columns[local]) for arm in columns if arm not in (START, local)} if local else {}
    rows = [
        [
            agent,
            *(_score(column.get(agent)) for column in columns.values()),
            *(_signed(gain.get(agent)) for gain in gains.values()),
        ]
        for agent in agents
    ]
    for name, summarise in (("mean", _mean), ("worst", _worst)):
        scores = [_score(summarise(column)) for column in columns.values()]
        rows.append([name, *scores, *(_signed(summarise(gain)) for gain in gains.values())])
    heads = [_head(arm, round_, config["rounds"]) for arm, (round_, _) in last.items()]
    note = _results_note(columns, len(agents), bool(gains))
    return Table(
        f"{score_name(config, k)} on the test problems, in %",
        ["Agent", *heads, *(f"{arm} vs {local}" for arm in gains)],
        rows,
        note,
        totals=2,
    )


def metrics_table(ledger: Ledger) -> Table:
    """The other numbers of the same evaluations, each the mean over agents."""
    last = {arm: scored for arm, (_, scored) in _last_evaluations(ledger).items()}
    names = sorted({name for scored in last.values() for grades in scored.values() for name in grades.metrics})
    rows = [[name.replace("_", " "), *(_metric(scored, name) for scored in last.values())] for name in names]
    heads = [BEFORE if arm == START else arm for arm in last]
    return Table(
        "Other measures, mean over agents", ["Measure", *heads], rows, "Losses are in nats a token: lower is better."
    )


def _metric(scored: dict[str, Scored], name: str) -> str:
    values = [grades.metrics[name] for grades in scored.values() if name in grades.metrics]
    return f"{np.mean(values):.3f}" if values else ABSENT


def _last_evaluations(ledger: Ledger) -> dict[str, tuple[int, dict[str, Scored]]]:
    """arm -> its last evaluated round and the grades there; the start comes first."""
    found = evaluations(ledger)
    return {arm: (max(found[arm]), found[arm][max(found[arm])]) for arm in (START, *arms(ledger)) if arm in found}


def _values(scored: dict[str, Scored], k: int | None) -> dict[str, np.ndarray]:
    return {agent: grades.values(k) for agent, grades in scored.items()}


def _gain(column: dict[str, np.ndarray], local: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """agent -> difference problem by problem, so that its standard error is that of paired scores."""
    return {agent: column[agent] - local[agent] for agent in column if agent in local}


def _mean(column: dict[str, np.ndarray]) -> np.ndarray | None:
    """The mean over agents of each problem: agents answer the same problems, so these are what varies."""
    return np.mean(list(column.values()), axis=0) if column else None


def _worst(column: dict[str, np.ndarray]) -> np.ndarray | None:
    return min(column.values(), key=np.mean) if column else None


def _score(values: np.ndarray | None) -> str:
    return ABSENT if values is None else _with_error(estimate(values), "")


def _signed(values: np.ndarray | None) -> str:
    return ABSENT if values is None else _with_error(estimate(values), "+")


def _with_error(result: Estimate, sign: str) -> str:
    text = f"{100 * result.value:{sign}.1f}"
    return text if result.standard_error is None else f"{text} ± {100 * result.standard_error:.1f}"


def _head(arm: str, round: int, rounds: int) -> str:
    if arm == START:
        return BEFORE
    return arm if round == rounds else f"{arm} (round {round} of {rounds})"


def _results_note(columns: dict[str, dict[str, np.ndarray]], agents: int, gains: bool) -> str:
    problems = max((len(values) for column in columns.values() for values in column.values()), default=0)
    sentences = [
        "Before: after the warm start, from which every arm begins.",
        f"± is one standard error over the {problems} test problems; it does not cover the choice of the seed.",
    ]
    if gains:
        sentences.append("Gains are differences on the same problems; the worst gain is the smallest.")
    sentences += [
        f"The mean of {BEFORE if arm == START else arm} is over {len(column)} of {agents} agents: the graded ones."
        for arm, column in columns.items()
        if len(column) < agents
    ]
    return " ".join(sentences)
