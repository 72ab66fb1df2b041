"""Which pictures a run's report has, in order, with captions."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.figure import Figure

from peertune.ledger import Event, Ledger
from peertune.report.canvas import WIDTH, label, png
from peertune.report.pairings import pairing_graph, pairing_timeline, reward_scale
from peertune.report.plots import Curves, learning_curves, reward_history, reward_limits, traffic_bars
from peertune.report.reading import START, arms, evaluations, plain, run_body, runs_code, score_ks, score_name, traffic

CSS_PIXELS = 96  # an inch


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture: its file's `name`, the page's `section` that shows it, and its text."""

    name: str
    section: Literal["learning", "pairs", "rewards", "traffic"]
    caption: str
    figure: Figure

    @property
    def wide(self) -> bool:
        return self.figure.get_figwidth() > WIDTH

    @property
    def css_width(self) -> int:
        return round(CSS_PIXELS * self.figure.get_figwidth())

    def png(self) -> bytes:
        return png(self.figure)


def draw_pictures(ledger: Ledger) -> list[Picture]:
    """Every picture that this run has something to show in."""
    return [*_learning(ledger), *_exchanges(ledger), *_traffic(ledger)]


def _learning(ledger: Ledger) -> list[Picture]:
    config = run_body(ledger)["config"]
    drawn = []
    for k in score_ks(config):
        name = score_name(config, k)
        picture = learning_curves(
            _scores(ledger, k if runs_code(config) else None), f"{name} on the test problems", f"{name}, %"
        )
        caption = f"{name} on the test problems by round: each arm's mean over agents, every agent faint behind it."
        drawn.append(Picture(f"learning-{k}", "learning", caption, picture))
    losses = _metric(ledger, "validation_loss")
    if losses:
        caption = "Loss on each agent's own validation data by round, in nats a token; lower is better."
        picture = learning_curves(losses, "Validation loss", "nats a token")
        drawn.append(Picture("learning-loss", "learning", caption, picture))
    return drawn


def _scores(ledger: Ledger, k: int | None) -> Curves:
    return {
        arm: _by_agent(
            {
                round_: {agent: 100 * float(g.values(k).mean()) for agent, g in scored.items()}
                for round_, scored in rounds.items()
            }
        )
        for arm, rounds in evaluations(ledger).items()
    }


def _metric(ledger: Ledger, name: str) -> Curves:
    curves = {
        arm: _by_agent(
            {
                round_: {agent: g.metrics[name] for agent, g in scored.items() if name in g.metrics}
                for round_, scored in rounds.items()
            }
        )
        for arm, rounds in evaluations(ledger).items()
    }
    return {arm: agents for arm, agents in curves.items() if agents}


def _by_agent(rounds: dict[int, dict[str, float]]) -> dict[str, dict[int, float]]:
    agents: dict[str, dict[int, float]] = defaultdict(dict)
    for round_, values in rounds.items():
        for agent, value in values.items():
            agents[agent][round_] = value
    return dict(agents)


def _exchanges(ledger: Ledger) -> list[Picture]:
    pairs = list(ledger.events("pair"))
    if not pairs:
        return []
    scale, limits = reward_scale(pairs), reward_limits(pairs)
    agents = _everyone(ledger, pairs)
    drawn = []
    for place, arm in enumerate(arms(ledger)):
        own = [event for event in pairs if event.arm == arm]
        if not own:
            continue
        failures = [event for event in ledger.events("failure", arm) if event.phase == "round"]
        title, name = label(arm, 24), plain(arm)
        graph = pairing_graph(own, agents, f"{title}: who taught whom", scale)
        timeline = pairing_timeline(own, failures, agents, f"{title}: exchanges by round", scale)
        history = reward_history(own, f"{title}: rewards", limits)
        caption = f"{name}: an arrow points from the source to the receiver that learned from it."
        drawn += [
            Picture(f"pairs-{place}", "pairs", caption, graph),
            Picture(f"timeline-{place}", "pairs", f"{name}: the exchanges of each round.", timeline),
            Picture(f"rewards-{place}", "rewards", f"{name}: {_accuracy_of(own)}", history),
        ]
    return drawn


def _everyone(ledger: Ledger, pairs: Sequence[Event]) -> list[str]:
    """The run's agents in order, and after them whoever else was paired."""
    names = [agent["name"] for agent in run_body(ledger)["agents"]]
    return list(dict.fromkeys([*names, *(event.body[side] for event in pairs for side in ("source", "receiver"))]))


def _accuracy_of(pairs: Sequence[Event]) -> str:
    errors = [
        abs(event.body["reward"] - event.body["predicted"]) for event in pairs if event.body["predicted"] is not None
    ]
    rewards = f"{len(pairs)} exchanges, mean reward {np.mean([event.body['reward'] for event in pairs]):+.4f}"
    if not errors:
        return f"{rewards}; this matchmaker predicts nothing."
    return f"{rewards}; the {len(errors)} predictions were off by {np.mean(errors):.4f} on average."


def _traffic(ledger: Ledger) -> list[Picture]:
    volumes = traffic(ledger)
    if not any(flow.phase == "round" for flow in volumes):
        return []
    caption = "Bytes of the methods' own traffic by arm, link and kind of payload; without evaluation and checkpoints."
    return [
        Picture("traffic", "traffic", caption, traffic_bars(volumes, [arm for arm in arms(ledger) if arm != START]))
    ]
