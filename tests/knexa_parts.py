"""True agents with planted texts that play rounds of KNEXA-FL, and what the rows of a round say."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from sums import WRONG, Direct, make_agent, plant, right, run_of

from peertune.agent import Agent
from peertune.agent.faults import Liar
from peertune.federation import Federation, RoundLog
from peertune.lm.model import LanguageModel
from peertune.matchmakers import LinUCB
from peertune.matchmakers.router import Router
from peertune.methods import Knexa
from peertune.methods.base import State

# what each can: a the first, b the second, c the third; d nothing at all; nobody the fourth
SKILLS: dict[str, dict[int, str]] = {"a": right(1), "b": {**right(2), 3: WRONG}, "c": {**right(3), 1: WRONG}, "d": {}}
PROBES = dict.fromkeys((20, 21, 22), WRONG)
LIAR = {"d": Liar}
FLUENT = SKILLS | {"d": right(1, 2, 3, 4)}
Build = Callable[..., "Group"]


class Group:
    """Agents, a federation over them, and the method's state as it goes."""

    def __init__(self, agents: dict[str, Agent], method: Knexa) -> None:
        self.agents, self.method = agents, method
        self.engine = Direct(agents)
        self.fed = Federation(self.engine, list(agents))
        self.state: State = method.init(self.fed)
        self.t = 0

    def play(self) -> RoundLog:
        """One round; a state that the method changed in place would not go unseen."""
        self.t += 1
        before = {key: array.copy() for key, array in self.state.items()}
        given, self.state = self.state, self.method.round(self.state, self.fed, self.t)
        assert all(np.array_equal(given[key], array) for key, array in before.items())
        assert self.state.keys() == before.keys()
        assert all(np.isfinite(array).all() for array in self.state.values())
        return self.fed.end_round()

    def lessons(self) -> dict[str, dict[int, str]]:
        return {
            name: {problem: lesson.text for problem, lesson in sorted(agent._record.lessons.items())}
            for name, agent in self.agents.items()
        }


def builder(source: str, place: Path) -> Build:
    """Makes groups of agents with the model at `source`, and keeps their files in `place`."""

    def build(
        skills: Mapping[str, dict[int, str]] = SKILLS,
        kinds: Mapping[str, type[Agent]] | None = None,
        public: bool = True,
        folder: str = "one",
        **options: Any,
    ) -> Group:
        """`public`: do public problems have tests? `options`: of the method."""
        lm = LanguageModel.load(source, "cpu")
        agents = {name: make_agent(lm, place / folder, name, (kinds or {}).get(name, Agent), public) for name in skills}
        for name, agent in agents.items():
            plant(agent, {**PROBES, **skills[name]})
        settings: dict[str, Any] = {"matchmaker": LinUCB(), "router": Router(floor=0.0), "audit": 2} | options
        return Group(agents, Knexa(run=run_of(tested=public), **settings))

    return build


def with_bases(group: Group, bases: str) -> Group:
    """`bases`: a letter for the base and the vocabulary of each agent; equal ones can exchange more than text."""
    facts = [{"name": name, "adapter": base, "vocabulary": base} for name, base in zip("abcd", bases, strict=True)]
    group.method = replace(group.method, run=replace(group.method.run, agents=tuple(facts)))
    for agent in group.agents.values():
        agent._release |= {"weights": "agents", "logits": "agents"}
    return group


def bodies(log: RoundLog, kind: str) -> list[dict[str, Any]]:
    return [row.body for row in log.rows if row.kind == kind]


def moved(log: RoundLog, payload: str) -> list[tuple[str, str]]:
    return [(row["source"], row["destination"]) for row in bodies(log, "transfer") if row["payload"] == payload]


def failures(log: RoundLog) -> set[tuple[str, str]]:
    return {(row["agent"], row["verb"]) for row in bodies(log, "failure")}
