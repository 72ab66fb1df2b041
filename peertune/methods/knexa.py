"""KNEXA-FL, Alg. 1: who should learn from whom is itself learned, by a matchmaker that never sees a model.

Phase 1, local fine-tuning; phase 2, who learns what from whom; phase 3, the receiver distils the sources' texts, which
travel source -> receiver (Eq. 2); phase 4, what the receivers found out teaches the matchmaker (Eq. 3).
`route: set` is the paper's: one source for all prompts, pairs by profile. `route: prompt` chooses a source for every
prompt, from scalars. The coordinator receives numbers, never a text. docs/methods.md lists where this departs from
the paper, and with what effect.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, MinLen

from peertune.federation import Federation
from peertune.matchmakers import Matchmaker, Pair
from peertune.matchmakers.candidates import candidate_pairs
from peertune.matchmakers.router import Router
from peertune.methods.base import State, joined, part
from peertune.methods.book import Book, Exchange, Report
from peertune.methods.evidence import Evidence, useful_share
from peertune.methods.routing import Board, audits, book, lost, orders, rankings, read_board, with_leads
from peertune.methods.texts import Order, TextMethod, record_pairs
from peertune.payloads import Claims, Gain, Picks

TOP_K = 16  # tokens of a position whose probability travels with a text
Lesson = tuple[Exchange, Order, tuple[int, ...]]  # what was agreed, and of its problems which texts were of use
NEEDS_ALIKE = {"text": "", "logits": "vocabulary", "adapter": "adapter"}  # what two agents must have in common


@dataclass(frozen=True, slots=True, kw_only=True)
class Knexa(TextMethod):
    """Agents learn from each other's text, matched by what is learned from their gains.

    `route`: a source for every prompt (`router` decides), or one for all prompts of a pair (`matchmaker` decides).
    `protocols`: how a pair may exchange, which the matchmaker chooses with the pair: by texts; by texts and what their
    author expected at each token (logits), where both have the same tokens; by the adapter, where both have the same
    base. `max_pairs`: K_p, half the agents by default. `retries`: further sources that a receiver
    asks when a text is of no use. `audit`: public probe problems that are graded by a peer, in round 1 and wherever
    texts cannot be tested. `agreed` (`route: prompt`): there a text is of use only if it says what an earlier one of
    the round says, another source's or the receiver's own.
    """

    matchmaker: Matchmaker
    router: Router = Router()
    route: Literal["prompt", "set"] = "prompt"
    protocols: Annotated[tuple[Literal["text", "logits", "adapter"], ...], MinLen(1)] = ("text",)
    max_pairs: Annotated[int, Gt(0)] | None = None
    retries: Annotated[int, Ge(0)] = 1
    audit: Annotated[int, Ge(0)] = 24
    agreed: bool = False

    def init(self, fed: Federation) -> State:
        categories = len({problem.category for problem in (*self.run.transfer, *self.run.probe)})
        return joined(
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
        evidence = Evidence(part(state, "evidence"), fed)
        exchanges = Book(part(state, "book"), fed, t, self.reward_limit)
        profiles = fed.gather({agent.name: agent.profile() for agent in fed.agents})
        credit, claims, board = self._board(part(state, "router"), fed, t, audit=self.matchmaker.reads_leads)
        self._hear(fed, exchanges)
        policy = self._learn_from(exchanges, part(state, "matchmaker"), evidence)
        there = {name: profile for name, profile in profiles.items() if name in claims}
        gained, protocols = self.matchmaker.gained(policy), self._protocols(there)
        candidates = candidate_pairs(there, evidence.trust(), protocols, seed=self.run.seed, gained=gained)
        if self.matchmaker.reads_leads:
            candidates = with_leads(candidates, self.router, credit, board)
        pairs = self.matchmaker.match(policy, candidates, self.max_pairs or len(fed.agents) // 2)
        lessons = self._exchange(fed, pairs, claims, evidence)
        credit = book(self.router, credit, board, {order: passed for order, passed in lessons.values() if passed})
        self._report(fed, exchanges, lessons, t)
        policy = self._learn_from(exchanges, policy, evidence)
        parts = {"router": credit, "evidence": evidence.state, "book": exchanges.state}
        return joined(matchmaker=policy, **parts)

    def _exchange(
        self, fed: Federation, pairs: Sequence[Pair], claims: Mapping[str, Claims], evidence: Evidence
    ) -> dict[Pair, tuple[Order, tuple[int, ...]]]:
        """What arrived for each pair, by text or adapter: the order, and for each of its problems if it was of use."""
        wanted = {pair: Order(pair.source, pair.receiver, self._useful(claims, pair)) for pair in pairs}
        texts = [order for pair, order in wanted.items() if pair.protocol != "adapter"]
        adapters = [pair for pair in pairs if pair.protocol == "adapter"]
        pulled = self.pull(fed, texts)
        for pair, order in wanted.items():
            if pair.protocol == "logits" and order in pulled and order.problems:
                self._soften(fed, order)
        blended = fed.gather({pair: fed[pair.receiver].blend(fed[pair.source].adapter()) for pair in adapters})
        came = {wanted[pair]: (1,) for pair in blended}  # an adapter counts like one text, good until it is undone
        evidence.note(wanted.values(), pulled | came, fed.failed)
        arrived = {pair: (order, pulled[order]) for pair, order in wanted.items() if order in pulled}
        return arrived | {pair: (Order(pair.source, pair.receiver, ()), ()) for pair in blended}

    def _soften(self, fed: Federation, order: Order) -> None:
        """The texts that just arrived are taught with what their author expected; plainly, if that does not come."""
        which = Picks(order.problems)
        fed[order.receiver].soften(which, fed[order.source].express(which, TOP_K))

    def _report(
        self, fed: Federation, exchanges: Book, lessons: Mapping[Pair, tuple[Order, tuple[int, ...]]], t: int
    ) -> None:
        """Receivers learn and report; a report is booked for the time when its receiver is done."""
        agreed: dict[str, Lesson] = {}
        for pair, (order, passed) in lessons.items():
            share = 1.0 if pair.protocol == "adapter" else useful_share(passed)
            agreed[pair.receiver] = exchanges.opened(exchanges.agree(pair, share)), order, passed
        for name, gain in self.learn_all(fed, agreed, t, agreed).items():
            self._settle(fed, exchanges, agreed[name], gain, fed.free(name))

    def _hear(self, fed: Federation, exchanges: Book) -> None:
        """What receivers of earlier rounds report only now."""
        for late in fed.late():
            exchanges.reopen(late.about[0])
            self._settle(fed, exchanges, late.about, late.report, fed.now)

    def _settle(self, fed: Federation, exchanges: Book, lesson: Lesson, gain: Gain, due: float) -> None:
        exchange, order, passed = lesson
        report = Report(exchange.number, order.source, order.receiver, self.reward_for(gain), gain.kept)
        if exchanges.take(report, due):
            agreed = exchange.agreed if exchanges.age(exchange) else None
            record_pairs(fed, {order: passed}, gain, report.reward, exchange.pair, agreed)

    def _learn_from(self, exchanges: Book, policy: State, evidence: Evidence) -> State:
        """The matchmaker's state after all reports that have come by now."""
        come = exchanges.come()
        for each in come:
            if not each.kept:
                evidence.regret(each.pair.source, each.share, exchanges.age(each))
        return self.matchmaker.update_all(policy, [(each.pair, each.reward) for each in come])

    def _by_prompt(self, state: State, fed: Federation, t: int) -> State:
        """A source for every prompt of every receiver."""
        evidence = Evidence(part(state, "evidence"), fed)
        credit, claims, board = self._board(part(state, "router"), fed, t, audit=True)
        ranked, pulled = rankings(self.router, credit, board, list(claims)), {}
        for attempt in range(1 + self.retries):
            wanted = orders(board, ranked, pulled, attempt)
            found = self.pull(fed, wanted, self.agreed)
            credit = book(self.router, credit, board, found | lost(wanted, found, fed.failed))
            evidence.note(wanted, found, fed.failed)
            pulled |= found
        known = self.known(fed, self.learn_pulled(fed, claims, t, pulled))
        for order, passed in pulled.items():
            if order.receiver in known and not known[order.receiver].kept:
                evidence.regret(order.source, useful_share(passed), age=0)
        return {**state, **joined(router=credit, evidence=evidence.state)}

    def _board(self, credit: State, fed: Federation, t: int, audit: bool) -> tuple[State, dict[str, Claims], Board]:
        """Everybody drafts; what they claim, and the credit of it after this round's audit."""
        audited = self._audited(t) if audit else ()
        asked = (*self.transfer(), *audited)
        claims = self.draft_all(fed, asked)
        board = read_board(self.run, [agent.name for agent in fed.everyone], asked, claims, self.tested)
        graded = self.grade(fed, audits(board, audited, t, [agent.name for agent in fed.agents]))
        return book(self.router, self.router.next_round(credit), board, graded, known=True), claims, board

    def _protocols(self, profiles: Iterable[str]) -> dict[tuple[str, str], tuple[str, ...]] | None:
        """How each pair may exchange: texts always, logits between agents of one vocabulary, adapters between those of
        one base and one shape of adapter. None where texts are all there is: a large federation has no table of all
        pairs.
        """
        if self.protocols == ("text",):
            return None
        names = list(profiles)
        alike = {protocol: self.run.fact(fact) for protocol, fact in NEEDS_ALIKE.items()}
        return {
            (one, other): tuple(
                protocol for protocol in self.protocols if alike[protocol].get(one) == alike[protocol].get(other)
            )
            for one in names
            for other in names
        }

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
