"""Central exchange of text: all drafts go up to one server, which hands down one text for every problem.

The baselines that KNEXA-FL is compared with. Drafts, gates and lessons are those of `knexa`; what differs is who
chooses, and who reads: the coordinator receives the text of every agent. `vote: fedid` with `server_model` is
FedID-CentralKD (the KNEXA-FL paper's central baseline): the text with the most confidence behind it is taught to the
server's model, and what that one writes to all agents. What is elected is taught as it was written, not as it was
normalised for the vote, which takes its indentation away.
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from peertune.errors import MethodError
from peertune.federation import NEVER, NO_SERVER, SERVER, Federation
from peertune.methods.base import State
from peertune.methods.texts import Order, Pulled, TextMethod, whole
from peertune.payloads import Claims, Picks, Texts, Verdicts

Vote = Literal["confidence", "majority", "fedid"]
_COMMENT = re.compile(r"(^|[ \t])#([ \t].*)?$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Offer:
    """One agent's text for a problem. `surprise`: of its author, thousandths of a nat a token."""

    source: str
    text: str
    surprise: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CentralText(TextMethod):
    """A central server sees all texts and teaches every agent the same one for each problem.

    `vote`: the text whose author is surest of it (confidence), which most agents wrote (majority; ties go to the surest
    author), or which carries most confidence in all (fedid). `skip_settled`: a receiver that has a tested text for a
    problem is sent no other. `server_model`: the server learns the chosen texts, and its own are handed down.
    """

    vote: Vote = "confidence"
    skip_settled: bool = True
    server_model: bool = False

    def check(self, agents: Sequence[Any]) -> None:
        TextMethod.check(self, agents)
        if self.server_model and self.run.server is None:
            raise MethodError(NO_SERVER)

    @property
    def server_learns(self) -> bool:
        return self.server_model

    def init(self, fed: Federation) -> State:
        return {}

    def round(self, state: State, fed: Federation, t: int) -> State:
        for agent in fed.agents:
            agent.fit(self.run.budget.local_steps)
        claims = self.draft_all(fed, self.transfer())
        offers = self._collect(fed, claims)
        chosen = {problem: elect(offers[problem], self.vote) for problem in sorted(offers)}
        if self.server_model:
            chosen = self._through_server(fed, chosen, t)
        pulled = self._hand_down(fed, claims, chosen)
        self.learn_pulled(fed, claims, t, pulled)
        return state

    def _collect(self, fed: Federation, claims: Mapping[str, Claims]) -> dict[int, list[Offer]]:
        """Every offered text comes to the server."""
        asked = {name: Picks(self._where(each.offered)) for name, each in claims.items() if any(each.offered)}
        offers: dict[int, list[Offer]] = defaultdict(list)
        for name, texts in fed.gather({name: fed[name].share(which) for name, which in asked.items()}).items():
            if not whole(fed, name, "share", texts.items, asked[name]):
                continue
            for problem, text in zip(asked[name].items, texts.items, strict=True):
                if text.strip():
                    offers[problem].append(Offer(name, text, claims[name].surprise[problem]))
        return offers

    def _through_server(self, fed: Federation, chosen: Mapping[int, Offer], t: int) -> dict[int, Offer]:
        """The server's model learns these texts; what it writes itself for the same problems."""
        which, texts = Picks(tuple(chosen)), Texts(tuple(offer.text for offer in chosen.values()))
        fed.server.accept(which, texts, self.tested)
        fed.server.learn(1.0, self.run.budget.exchange_steps, NEVER, self.keep_best)
        fed.server.draft(which, self.temperature, False, self.tested)
        answers = fed.gather({SERVER: fed.server.share(which)})
        if SERVER not in answers or not whole(fed, SERVER, "share", answers[SERVER].items, which):
            return {}
        written = zip(which.items, answers[SERVER].items, strict=True)
        return {problem: Offer(SERVER, text, 0) for problem, text in written if text.strip()}

    def _hand_down(self, fed: Federation, claims: Mapping[str, Claims], chosen: Mapping[int, Offer]) -> Pulled:
        """Each agent gets the chosen texts and checks them; what it found, by the agent that wrote them."""
        wanted: dict[str, tuple[int, ...]] = {}
        for name, each in claims.items():
            settled = set(self._where(each.settled)) if self.skip_settled else set()
            if problems := tuple(problem for problem in chosen if problem not in settled):
                wanted[name] = problems
        refs = {}
        for name, problems in wanted.items():
            texts = Texts(tuple(chosen[problem].text for problem in problems))
            refs[name] = fed[name].accept(Picks(problems), texts, self.tested)
        pulled: Pulled = {}
        for name, verdicts in fed.gather(refs).items():
            if whole(fed, name, "accept", verdicts.passed, Picks(wanted[name])):
                pulled |= _by_source(name, wanted[name], verdicts, chosen)
        return pulled

    def _where(self, bits: Sequence[int]) -> tuple[int, ...]:
        return tuple(problem for problem in self.transfer() if bits[problem])


def elect(offers: Sequence[Offer], vote: Vote) -> Offer:
    """The offer that wins; of equal ones that of the surest author, then the first."""
    surest = sorted(offers, key=lambda offer: offer.surprise)
    if vote == "confidence":
        return surest[0]
    weights: dict[str, float] = defaultdict(float)
    for offer in surest:
        weights[normalised(offer.text)] += 1.0 if vote == "majority" else math.exp(-offer.surprise / 1000)
    winner = max(weights, key=weights.__getitem__)  # of equals the first, which the surest author wrote
    return next(offer for offer in surest if normalised(offer.text) == winner)


def normalised(text: str) -> str:
    """What a vote compares: the text without comments, indentation, blank lines and repeated spaces."""
    lines = (" ".join(line.split()) for line in _COMMENT.sub("", text).splitlines())
    return "\n".join(line for line in lines if line)


def _by_source(name: str, problems: Sequence[int], verdicts: Verdicts, chosen: Mapping[int, Offer]) -> Pulled:
    """The verdicts of one receiver; its own texts, which came back to it, taught it nothing of others."""
    found: dict[str, dict[int, int]] = defaultdict(dict)
    for problem, passed in zip(problems, verdicts.passed, strict=True):
        if chosen[problem].source != name:
            found[chosen[problem].source][problem] = passed
    return {Order(source, name, tuple(passed)): tuple(passed.values()) for source, passed in found.items()}
