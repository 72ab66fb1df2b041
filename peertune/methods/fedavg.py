"""FedLLM: federated averaging of LoRA adapters (FedAvg: McMahan et al., arXiv:1602.05629; FedIT, arXiv:2305.05644).

In a round each chosen agent takes the global adapter, trains it on its own data and returns it; the coordinator makes
the next one of what came, weighted by examples. What is trained, what travels and how it is combined is the matter of
the `aggregator` (`peertune.aggregate`); how far its result is from the average of what the agents did stands in the
ledger. The coordinator sees adapters, never data.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import numpy as np
from annotated_types import Ge, Gt, Le

from peertune.aggregate import AGGREGATORS, Aggregate, Rule, Update, common_start, relative_error, with_core
from peertune.errors import MethodError
from peertune.federation import AgentHandle, Federation, Ref
from peertune.methods.base import Method, State
from peertune.methods.shared import NOTHING, SharedAdapter
from peertune.payloads import Factors, Weights

Party = TypeVar("Party")
Calls = dict[tuple[str, str], Ref]  # by agent and verb
MIXED = [name for name, rule in AGGREGATORS.items() if rule.mixed_ranks]
if TYPE_CHECKING:
    Aggregator = str
else:
    Aggregator = Literal[tuple(AGGREGATORS)]


@dataclass(frozen=True, slots=True)
class FedAvg(Method):
    """FedLLM: LoRA adapters of one base model are trained at home and averaged by the coordinator.

    `aggregator`: how; `fraction`: of the agents that are there, drawn anew for each round. `proximal`: FedProx's mu.
    """

    aggregator: Aggregator = "fedit"
    fraction: Annotated[float, Gt(0), Le(1)] = 1.0
    proximal: Annotated[float, Ge(0)] = 0.0

    def check(self, agents: Sequence[Mapping[str, Any]]) -> None:
        first, kinds = agents[0], {}
        for facts in agents:
            if facts["fingerprint"] != first["fingerprint"]:
                raise MethodError(
                    f"fedavg needs one base model for all agents: {facts['name']} ({facts['model']}) differs from "
                    f"{first['name']} ({first['model']}). Give all the same `model`, or use knexa, which mixes models."
                )
            if not self.rule.mixed_ranks and (facts["rank"], facts["scale"]) != (first["rank"], first["scale"]):
                raise MethodError(
                    f"fedavg with {self.aggregator} needs one adapter shape for all agents: {facts['name']} (rank "
                    f"{facts['rank']}, alpha / rank {facts['scale']:g}) differs from {first['name']} (rank "
                    f"{first['rank']}, alpha / rank {first['scale']:g}). Give all the same "
                    f"`adapter`, or set `aggregator` to one that takes several: {', '.join(MIXED)}."
                )
            if kinds.setdefault(facts["rank"], facts["adapter"]) != facts["adapter"]:
                raise MethodError(
                    f"fedavg needs adapters of the same layers, but those of {facts['name']} are not those of others; "
                    "give all the same `target_modules`"
                )

    def init(self, fed: Federation) -> State:
        """A common start: the best form of the average of the adapters that the agents have."""
        answers = fed.gather({agent.name: agent.adapter() for agent in fed.everyone})
        own = [SharedAdapter(answer.tensors, 1.0, {}) for answer in answers.values()]
        updates = self._fitting(fed, own[0], answers, "ABR") if own else []
        if not updates:
            raise MethodError("fedavg begins with the agents' adapters, and none came that can be used; see `show`")
        start = common_start(updates)
        self._record(fed, "start", updates, start)
        factors = with_core(start.factors, self.run.seed) if "R" in self.rule.trained(1) else start.factors
        return SharedAdapter(factors, start.scale, dict.fromkeys(self._facts, NOTHING)).state

    def round(self, state: State, fed: Federation, t: int) -> State:
        trained, travels = Factors(self.rule.trained(t)), Factors(self.rule.shared(t))
        calls: Calls = {}
        for agent in self.chosen(fed.agents, t):
            calls[agent.name, "load"] = self.hand_out(state, agent)
            calls[agent.name, "fit"] = agent.fit(self._steps, trained, self.proximal)
            calls[agent.name, "adapter"] = agent.adapter(travels)
        return self.average(state, fed, t, calls)

    def hand_out(self, state: State, agent: AgentHandle) -> Ref:
        """Send an agent what it has not of the global adapter."""
        return agent.load(*self._lacking(SharedAdapter.of(state), agent))

    def average(self, state: State, fed: Federation, t: int, calls: Calls) -> State:
        """The next state, of the adapters of those who did all that they were asked."""
        shared, travels = SharedAdapter.of(state), self.rule.shared(t)
        updates = self._fitting(fed, shared, _answers(calls, fed.gather(calls)), travels)
        shared = shared.told({name for name, _ in calls}, [update.name for update in updates])
        if updates:
            aggregate = self.rule.combine(updates)
            self._record(fed, self.aggregator, updates, aggregate)
            shared = shared.after(aggregate, travels, version=t + 1)
        return shared.state

    def deploy(self, state: State, fed: Federation) -> None:
        """All have the global adapter who are not at work or out of reach, also those that were not chosen; what is
        private stays as it is.
        """
        for agent in fed.agents:
            self.hand_out(state, agent)

    def chosen(self, agents: Sequence[Party], t: int) -> list[Party]:
        """At least one of those that are there; in round `t` always the same."""
        count = max(1, round(self.fraction * len(agents)))
        order = np.random.default_rng([self.run.seed, t]).permutation(len(agents))
        return [agents[place] for place in sorted(order[:count])]

    @property
    def rule(self) -> Rule:
        return AGGREGATORS[self.aggregator]

    @property
    def _steps(self) -> int:
        return self.run.budget.local_steps + self.run.budget.exchange_steps

    @property
    def _facts(self) -> dict[str, Mapping[str, Any]]:
        return {facts["name"]: facts for facts in self.run.agents}

    def _lacking(self, shared: SharedAdapter, agent: AgentHandle) -> tuple[Weights, int, int]:
        facts = self._facts[agent.name]
        return shared.lacking(self.rule, agent.name, facts["rank"], facts["scale"])

    def _fitting(
        self, fed: Federation, shared: SharedAdapter, answers: Mapping[str, Weights], letters: str
    ) -> list[Update]:
        """The answers that can be averaged; the others are failures of their agents."""
        updates = []
        for name, answer in answers.items():
            facts = self._facts[name]
            if cause := shared.misfit(answer, letters, facts["rank"]):
                fed.failed.add(name)
                fed.record("failure", agent=name, verb="adapter", cause=cause)
            else:
                updates.append(Update(name, answer.tensors, answer.examples, facts["scale"]))
        return updates

    def _record(self, fed: Federation, rule: str, updates: Sequence[Update], aggregate: Aggregate) -> None:
        error = relative_error(updates, aggregate)
        fed.record("aggregation", rule=rule, error=error, agents=[update.name for update in updates])


def _answers(calls: Calls, came: Mapping[tuple[str, str], Any]) -> dict[str, Weights]:
    """The adapters of those who did all that they were asked."""
    lost = {name for name, _ in calls.keys() - came.keys()}
    return {name: came[name, verb] for name, verb in calls if verb == "adapter" and name not in lost}
