"""KNEXA-FL, Alg. 1: who should learn from whom is itself learned, by a matchmaker that never sees a model.

Phase 1, local fine-tuning; phase 2, who learns what from whom; phase 3, the receiver distils the sources' texts, which
travel source -> receiver (Eq. 2); phase 4, what the receivers found out teaches the matchmaker (Eq. 3).
`route: set` is the paper's: one source for all prompts, pairs by profile. `route: prompt` chooses a source for every
prompt, from scalars. The coordinator receives numbers, never a text. docs/methods.md lists where this departs from
the paper, and with what effect.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt

from peertune.federation import Federation
from peertune.matchmakers import Matchmaker, Pair, directed_pairs
from peertune.matchmakers.router import Router
from peertune.methods.base import State
from peertune.methods.book import Book, Report
from peertune.methods.evidence import Evidence, useful_share
from peertune.methods.routing import audits, book, orders, rankings, read_board
from peertune.methods.texts import Order, TextMethod, record_pairs
from peertune.payloads import Claims


@dataclass(frozen=True, slots=True, kw_only=True)
class Knexa(TextMethod):
    """Agents learn from each other's text, matched by what is learned from their gains.

    `route`: a source for every prompt (`router` decides), or one for all prompts of a pair (`matchmaker` decides).
    `max_pairs`: K_p, half the agents by default. `retries`: further sources that a receiver asks when a text fails the
    tests. `audit`: public probe problems that are graded by a peer, in round 1 and wherever texts cannot be tested.
    """

    matchmaker: Matchmaker
    router: Router = Router()
    route: Literal["prompt", "set"] = "prompt"
    max_pairs: Annotated[int, Gt(0)] | None = None
    retries: Annotated[int, Ge(0)] = 1
    audit: Annotated[int, Ge(0)] = 24

    def init(self, fed: Federation) -> State:
        categories = len({problem.category for problem in (*self.run.transfer, *self.run.probe)})
        return _joined(
            matchmaker=self.matchmaker.init(self.run.seed),
            router=self.router.init(len(fed.everyone), categories, self.run.seed),
            evidence=Evidence.init(len(fed.everyone)),
        )

    def round(self, state: State, fed: Federation, t: int) -> State:
        for agent in fed.agents:
            agent.fit(self.run.budget.local_steps)
        return self._by_prompt(state, fed, t) if self.route == "prompt" else self._by_pair(state, fed, t)

    def _by_pair(self, state: State, fed: Federation, t: int) -> State:
        """The paper's: one source for all prompts of a receiver."""
        evidence = Evidence(_part(state, "evidence"), fed)
        exchanges = Book(_part(state, "book"), fed, t, self.reward_limit)
        profiles = fed.gather({agent.name: agent.profile() for agent in fed.agents})
        claims = self.draft_all(fed, self.transfer())
        policy = self._learn_from(exchanges, _part(state, "matchmaker"), evidence)
        there = {name: profile for name, profile in profiles.items() if name in claims}
        pairs = self.matchmaker.match(policy, directed_pairs(there, evidence.trust()), self._most_pairs(fed))
        wanted = {pair: Order(pair.source, pair.receiver, self._useful(claims, pair)) for pair in pairs}
        pulled = self.pull(fed, list(wanted.values()))
        lessons = {pair: pulled[order] for pair, order in wanted.items() if order in pulled}
        numbers = {pair: exchanges.agree(pair, useful_share(passed)) for pair, passed in lessons.items()}
        gains, known = self.learn_all(fed, [pair.receiver for pair in lessons], t), {}
        for pair, passed in lessons.items():
            if gain := gains.get(pair.receiver):
                report = Report(numbers[pair], pair.source, pair.receiver, self.reward_for(gain), gain.kept)
                due = fed.free(pair.receiver)
                if exchanges.take(report, due):
                    record_pairs(fed, {wanted[pair]: passed}, gain, report.reward, pair.predicted)
                    known |= {pair.receiver: gain} if due <= fed.now else {}
        evidence.note(wanted.values(), pulled, known, fed.failed)
        policy = self._learn_from(exchanges, policy, evidence)
        parts = {"router": _part(state, "router"), "evidence": evidence.state, "book": exchanges.state}
        return _joined(matchmaker=policy, **parts)

    def _learn_from(self, exchanges: Book, policy: State, evidence: Evidence) -> State:
        """The matchmaker's state after all reports that have come by now."""
        for each in exchanges.come():
            policy = self.matchmaker.update(policy, each.pair, each.reward)
            age = exchanges.age(each)
            if age and not each.kept:
                evidence.regret(each.pair.source, each.share, age)
        return policy

    def _by_prompt(self, state: State, fed: Federation, t: int) -> State:
        """A source for every prompt of every receiver."""
        credit, evidence = self.router.next_round(_part(state, "router")), Evidence(_part(state, "evidence"), fed)
        audited = self._audited(t)
        asked = (*self.transfer(), *audited)
        claims = self.draft_all(fed, asked)
        board = read_board(self.run, [agent.name for agent in fed.everyone], asked, claims, self.tested)
        inspections = audits(board, audited, t, [agent.name for agent in fed.agents])
        credit = book(self.router, credit, board, self.grade(fed, inspections), known=True)
        ranked, pulled = rankings(self.router, credit, board, list(claims)), {}
        for attempt in range(1 + self.retries):
            wanted = orders(board, ranked, pulled, attempt)
            found = self.pull(fed, wanted)
            credit = book(self.router, credit, board, found)
            evidence.note(wanted, found, {}, fed.failed)
            pulled |= found
        self.record_lessons(fed, pulled, self.learn_all(fed, claims, t))
        return {**state, **_joined(router=credit, evidence=evidence.state)}

    def _most_pairs(self, fed: Federation) -> int:
        return self.max_pairs or len(fed.agents) // 2

    def _useful(self, claims: Mapping[str, Claims], pair: Pair) -> tuple[int, ...]:
        """What the source offers and the receiver still needs."""
        offered, settled = claims[pair.source].offered, claims[pair.receiver].settled
        return tuple(problem for problem in self.transfer() if offered[problem] and not settled[problem])

    def _audited(self, t: int) -> tuple[int, ...]:
        """Probe problems that peers grade in this round: another part of the probe in every round."""
        probe = len(self.run.probe)
        if not probe or (t > 1 and self.tested and all(problem.tested for problem in self.run.transfer)):
            return ()
        size = min(self.audit, probe)
        return tuple(len(self.run.transfer) + (size * (t - 1) + place) % probe for place in range(size))


def _joined(**parts: State) -> State:
    """Several states as one: the name of its part stands before each key."""
    return {f"{name}/{key}": array for name, state in parts.items() for key, array in state.items()}


def _part(state: State, name: str) -> State:
    return {key.removeprefix(f"{name}/"): array for key, array in state.items() if key.startswith(f"{name}/")}
