"""KD-FedLLM: clients share what they expect of public problems, not their weights (arXiv:2501.04436).

FedMD (Li and Wang 2019, arXiv:1910.03581): each client trains on its own data, says what it expects of every public
problem, and digests the consensus of all. With a server model (FedDF, arXiv:2006.07242) the server digests it first and
the clients learn from the server. Clients may have any models that choose from the same tokens, or the same classes.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt, Le

from peertune.ensemble import Ensemble, Rule, Use, combine, sharpen
from peertune.errors import MethodError
from peertune.federation import NEVER, NO_SERVER, AgentHandle, Federation, Ref
from peertune.knowledge import Knowledge
from peertune.methods.base import Method, State, drawn
from peertune.methods.fedmkt import FedMKT
from peertune.payloads import Distillation, Logits, Picks, Precision

BITS: dict[Precision, int] = {"fp32": 32, "fp16": 16, "int8": 8}


@dataclass(frozen=True, slots=True, kw_only=True)
class KD(Method):
    """Agents learn from the logits of all, on public problems.

    `problems`: public problems a round (all by default), drawn anew. `top_k`: of a position that many tokens are sent,
    the most probable, or all where that takes fewer bytes (classes); 0: all. `mass`: no more of them than have this
    probability together. `precision`: of a number. `weighting`: how clients count, at each position.
    `least_confidence`: a client that is less sure of a problem has no say in it. `greatest_entropy`: a problem of which
    all together are less sure (nats a position) teaches nothing. `sharpening`: the consensus to the power 1 / this,
    below 1 surer.

    Students: `kd_weight` of the logits beside own data; `temperature` of the softmax; `rollback`, an agent goes back if
    its private validation loss rose by more than this (nats a token). `server_model`: the server learns first.
    `vocabularies`: all agents must have one; or those of each learn from each other (who has none beside learns alone);
    or they are aligned: the server's model hears every client, learns their mean and teaches it, as in FedMKT.
    """

    problems: Annotated[int, Gt(0)] | None = None
    top_k: Annotated[int, Ge(0)] = 64
    mass: Annotated[float, Gt(0), Le(1)] = 1.0
    precision: Precision = "fp16"
    weighting: Literal["mean", "confidence", "entropy"] = "mean"
    least_confidence: Annotated[float, Ge(0), Le(1)] = 0.0
    greatest_entropy: Annotated[float, Gt(0)] | None = None
    sharpening: Annotated[float, Gt(0)] = 1.0
    kd_weight: Annotated[float, Gt(0), Le(1)] = 0.5
    temperature: Annotated[float, Gt(0), Le(1000)] = 1.0
    rollback: Annotated[float, Ge(0)] | None = None
    server_model: bool = False
    vocabularies: Literal["one", "groups", "aligned"] = "one"

    def check(self, agents: Sequence[Mapping[str, Any]]) -> None:
        if not self.run.transfer:
            raise MethodError("kd needs public problems that all agents hold; set `transfer` of the task")
        if self.server_model and self.run.server is None:
            raise MethodError(NO_SERVER)
        if self.vocabularies == "aligned":
            if not self.server_model:
                raise MethodError("kd across tokenizers goes through a server's model; set `server_model: true`")
            return
        learners = [*agents, *([self.run.server] if self.server_model and self.run.server else [])]
        for facts in learners[1:]:
            if self._is_one() and facts["vocabulary"] != learners[0]["vocabulary"]:
                raise strangers(
                    f"{facts['name']} ({facts['model']}) has another tokenizer than {learners[0]['name']} "
                    f"({learners[0]['model']})"
                )

    @property
    def server_learns(self) -> bool:
        return self.server_model

    def init(self, fed: Federation) -> State:
        return self.mutual.init(fed) if self.vocabularies == "aligned" else {}

    def round(self, state: State, fed: Federation, t: int) -> State:
        if self.vocabularies == "aligned":
            return self.mutual.round(state, fed, t)
        which = drawn(self.run, self.problems, t)
        for agent in fed.agents:
            agent.fit(self.run.budget.local_steps)
        known = fed.gather({agent.name: self._known(agent, which) for agent in fed.agents})
        for group in self._groups(fed):
            teacher = self._consensus(fed, which, {name: known[name] for name in group if name in known})
            if teacher and self.server_model:
                fed.server.distil(which, teacher, self._lesson(1.0))
                teacher = self._known(fed.server, which)
            if teacher:
                for name in group:
                    fed[name].distil(which, teacher, self._lesson(self.kd_weight))
        return state

    @property
    def mutual(self) -> FedMKT:
        """The same across tokenizers: everybody teaches the server alike, and nobody learns the answers themselves."""
        return FedMKT(
            run=self.run,
            kd_weight=self.kd_weight,
            temperature=self.temperature,
            problems=self.problems,
            top_k=self.top_k,
            mass=self.mass,
            precision="int8" if self.precision == "int8" else "fp16",
            mode="mean",
            beside="own",
        )

    def _is_one(self) -> bool:
        return self.vocabularies == "one" or self.server_model

    def _known(self, party: AgentHandle, which: Picks) -> Ref:
        return party.know(which, self.top_k, self.mass, BITS[self.precision])

    def _groups(self, fed: Federation) -> list[list[str]]:
        """The agents of this round that can learn from each other."""
        names = [agent.name for agent in fed.agents]
        if self._is_one():
            return [names]
        groups: dict[str, list[str]] = {}
        for facts in self.run.agents:
            groups.setdefault(facts["vocabulary"], []).append(facts["name"])
        return [there for group in groups.values() if len(there := [name for name in names if name in group]) > 1]

    def _lesson(self, weight: float) -> Distillation:
        tolerance = NEVER if self.rollback is None else self.rollback
        return Distillation(weight, self.run.budget.exchange_steps, self.temperature, tolerance)

    def _consensus(self, fed: Federation, which: Picks, answers: Mapping[str, Logits]) -> Logits | None:
        """What all know together; None if nobody knows anything. What was left out, and why, is recorded."""
        known = _of_one_form(fed, {name: logits.knowledge() for name, logits in answers.items()}, len(which.items))
        if not known:
            return None
        limit, entropy = self.top_k or None, self.greatest_entropy or math.inf
        found = combine(list(known.values()), Rule(self.weighting, self.least_confidence, entropy, limit))
        _record(fed, list(known), found)
        sharpened = found.knowledge if self.sharpening == 1.0 else sharpen(found.knowledge, self.sharpening)
        return Logits.of(sharpened, self.precision) if sharpened.lengths.any() else None


def strangers(difference: str) -> MethodError:
    """That models have different tokens to choose from; `difference` says which models."""
    return MethodError(
        f"kd needs models that choose from the same tokens; {difference}. Use models of one tokenizer, a task of "
        "classes, `vocabularies: groups`, `vocabularies: aligned` with a server's model, or `method: knexa`, which "
        "shares text"
    )


def _of_one_form(fed: Federation, known: Mapping[str, Knowledge], problems: int) -> dict[str, Knowledge]:
    """The knowledge that can be combined: of so many problems, and of the width and form of most."""
    forms = {name: (len(each.lengths), each.width, each.ids is None) for name, each in known.items()}
    usual = next(iter(Counter(form for form in forms.values() if form[0] == problems).most_common(1)), (None, 0))[0]
    for name, form in forms.items():
        if form != usual:
            fed.failed.add(name)
            cause = f"its logits are of {form[0]} problems and width {form[1]}, others' of another form"
            fed.record("failure", agent=name, verb="know", cause=cause)
    return {name: each for name, each in known.items() if forms[name] == usual}


def _record(fed: Federation, names: Sequence[str], found: Ensemble) -> None:
    uses = {name: [int((row == use).sum()) for use in Use] for name, row in zip(names, found.uses, strict=True)}
    mean = float(np.nanmean(found.entropy)) if np.isfinite(found.entropy).any() else None
    fed.record(
        "knowledge",
        agents={name: dict(zip((use.name.lower() for use in Use), row, strict=True)) for name, row in uses.items()},
        problems=int((found.knowledge.lengths > 0).sum()),
        ambiguous=int(found.ambiguous.sum()),
        entropy=mean,
    )
