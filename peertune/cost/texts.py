"""Learning from each other's texts: the most that it can cost, as nobody knows before who will write what.

Every text is as long as it may be, passes all gates, and is pulled wherever the method allows it. A text has as many
bytes a token as that of its author's own texts that has most.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from peertune.agent.drafts import MOST_SURPRISE
from peertune.agent.learner import MOST_REPEATS
from peertune.cost.estimate import Estimate, Round
from peertune.cost.kd import logits
from peertune.cost.parties import Party, Position, World
from peertune.cost.wire import arrays, floats
from peertune.federation import NEVER
from peertune.ledger import COORDINATOR, SERVER
from peertune.lm.encode import Row
from peertune.lm.flops import Pass
from peertune.methods import CentralText, Knexa
from peertune.methods.knexa import TOP_K
from peertune.payloads import (
    PROFILE_SIZE,
    Change,
    Claims,
    Gain,
    Logits,
    Picks,
    Profile,
    Texts,
    Verdicts,
    Weights,
    encode,
)
from peertune.tasks.base import Example

BOUND = "at most: every text as long as it may be, and pulled wherever the method allows it"
LONGEST = 1 << 16  # bytes of a text
_CHANGE = Change(1.0, 1.0, 1.0)


def knexa(world: World, method: Knexa) -> Estimate:
    """A client and round: numbers to the coordinator; P texts of m tokens from peers for each of 1 + `retries`
    attempts, or from one peer in a pair.

    FLOPs: as `local` for the local steps; P drafts of m tokens, and their losses; s steps on own rows and texts, and
    the validation and probe losses before and after; with `route: set` an answer to each validation problem.
    """
    positions, sizes, rounds = world.positions(), _sizes(world), []
    for t in range(1, method.run.rounds + 1):
        one = _Most(world, method, positions, sizes, Round(trips=2))
        audited = _audited(method, t)
        one.draft((*range(len(world.transfer)), *audited))
        if audited:
            one.pull_from_neighbours(audited)
        if method.route == "prompt":
            one.pull_from_all(min(1 + method.retries, len(world.agents) - 1))
            one.learn(len(world.agents))
        else:
            pairs = method.max_pairs or len(world.agents) // 2
            one.describe()
            one.exchange(pairs, method.protocols)
            one.learn(pairs)
        rounds.append(one.found)
    return Estimate("knexa", rounds, _exposure(method), bound=BOUND)


def central_text(world: World, method: CentralText) -> Estimate:
    """A client and round: P texts of m tokens up, P texts down. FLOPs: as `knexa` with `route: prompt`."""
    positions, sizes, rounds = world.positions(), _sizes(world), []
    for _ in range(method.run.rounds):
        one = _Most(world, method, positions, sizes, Round(trips=3))
        one.draft(range(len(world.transfer)))
        if method.server_model and world.server:
            one.pass_through(world.server)
        one.hand_down()
        one.learn(len(world.agents))
        rounds.append(one.found)
    exposure = "the coordinator sees every agent's texts for public prompts, the agents the best of them"
    return Estimate("central_text", rounds, exposure, bound=BOUND)


@dataclass(slots=True)
class _Most:
    """One round, filled step by step: `found`. `sizes`: bytes of a text, by its author."""

    world: World
    method: Knexa | CentralText
    positions: dict[str, Position]
    sizes: dict[str, int]
    found: Round

    def draft(self, problems: Sequence[int]) -> None:
        """Local steps; then everybody answers these problems, and says how sure it is."""
        method, which = self.method, Picks(tuple(problems))
        asked, known = self._public(problems), self.world.probe
        count = len(which.items)
        claims = Claims((MOST_SURPRISE,) * count, (1,) * count, (1,) * count)
        for agent in self.world.agents:
            steps = method.run.budget.local_steps
            self.found.ask(agent.name, steps, which, method.temperature, int(method.confident), int(method.tested))
            self.found.answer(agent.name, claims)
            self.found.compute(agent, agent.fit(self.positions[agent.name], steps))
            self.found.compute(agent, self._write(agent, asked))
            if method.confident:
                self.found.compute(agent, self._write(agent, known or agent.held_out))

    def pull_from_neighbours(self, problems: Sequence[int]) -> None:
        """Everybody's texts for these problems go to one other agent."""
        self.found.trips += 1
        for place, source in enumerate(self.world.agents):
            self._pull(source, self.world.agents[place - 1], problems, ())

    def pull_from_all(self, attempts: int) -> None:
        """Everybody pulls a text for each problem, every time from as many others as there are."""
        agents, transfer = self.world.agents, range(len(self.world.transfer))
        for attempt in range(attempts):
            self.found.trips += 1
            for receiver in agents:
                others = [agent for agent in agents if agent is not receiver]
                for place in range(len(others)):
                    if problems := transfer[(place + attempt) % len(others) :: len(others)]:
                        self._pull(others[place], receiver, problems, (int(self.method.tested),))

    def hand_down(self) -> None:
        """Everybody's texts go to the coordinator, and one for every problem to everybody."""
        which = Picks(tuple(range(len(self.world.transfer))))
        size = max(map(self._texts, self.world.parties))
        for agent in self.world.agents:
            self.found.ask(agent.name, which, which, int(self.method.tested))
            self.found.send("texts", agent.name, COORDINATOR, self._texts(agent))
            self.found.send("texts", COORDINATOR, agent.name, size)
            self.found.answer(agent.name, Verdicts((1,) * len(which.items)))

    def describe(self) -> None:
        """Everybody answers its validation problems, for its profile."""
        self.found.trips += 1
        for agent in self.world.agents:
            self.found.answer(agent.name, Profile((1.0,) * PROFILE_SIZE))
            self.found.compute(agent, [*self._answer(agent, agent.held_out), *agent.score(agent.validation)])

    def pass_through(self, server: Party) -> None:
        """A server's model learns a text for every problem, and writes one."""
        which = Picks(tuple(range(len(self.world.transfer))))
        tested, budget = int(self.method.tested), self.method.run.budget
        self.found.trips += 1
        self.found.send("texts", COORDINATOR, SERVER, max(map(self._texts, self.world.parties)))
        self.found.send("texts", SERVER, COORDINATOR, self._texts(server))
        self.found.ask(SERVER, which, tested, 1.0, budget.exchange_steps, NEVER, int(self.method.keep_best))
        self.found.ask(SERVER, which, self.method.temperature, 0, tested, which)
        self.found.compute(server, [*self._lesson(server), *self._write(server, self.world.transfer)])

    def exchange(self, pairs: int, protocols: Sequence[str]) -> None:
        """From one agent of a pair to the other: texts, texts and logits, or the adapter, whatever is most."""
        self.found.trips += 1
        for place, source in enumerate(self.world.agents[:pairs]):
            receiver = self.world.agents[place - 1]
            rows = self._rows(source, self.world.transfer)
            sizes = {
                "text": 0,
                "logits": arrays(Logits, logits(source.lm.width, rows, TOP_K, "fp16")),
                "adapter": arrays(Weights, floats(source.shapes)) - self._texts(source),
            }
            most = max(protocols, key=sizes.__getitem__)
            if most == "adapter":
                self.found.send("weights", source.name, receiver.name, arrays(Weights, floats(source.shapes)))
                self.found.answer(receiver.name, Verdicts((1,)))
                continue
            which = tuple(range(len(rows)))
            self._pull(source, receiver, which, (int(self.method.tested),))
            if most == "logits":
                self.found.ask(source.name, Picks(which), TOP_K)
                self.found.ask(receiver.name, Picks(which))
                self.found.send("logits", source.name, receiver.name, sizes["logits"])
                self.found.compute(source, source.score(rows))

    def learn(self, receivers: int) -> None:
        """The so many agents for which that is most work learn from all texts, and report."""
        budget, method = self.method.run.budget, self.method
        lessons = [(agent, self._lesson(agent)) for agent in self.world.agents]
        lessons.sort(key=lambda lesson: sum(map(lesson[0].costs.flops, lesson[1])), reverse=True)
        probe = _CHANGE if self.world.probe else None
        for agent, passes in lessons[:receivers]:
            self.found.ask(agent.name, method.kd_weight[1], budget.exchange_steps, NEVER, int(method.keep_best))
            self.found.answer(agent.name, Gain(_CHANGE, probe, 1.0, True))
            self.found.compute(agent, passes)

    def _lesson(self, agent: Party) -> list[Pass]:
        steps, size = self.method.run.budget.exchange_steps, agent.training.batch_size
        texts = self._rows(agent, self.world.transfer)
        taught = min(size, len(texts), math.ceil(MOST_REPEATS * len(texts) / steps))
        longest = sorted(texts, key=lambda row: len(row.ids))[-taught:]
        position = self.positions[agent.name]
        own = [agent.draw(agent.train, position) if agent.train else [] for _ in range(steps)]
        position.steps += steps
        probe = agent.encode_all(self.world.probe)
        measured = [*agent.score(agent.validation or probe), *agent.score(probe)]
        return [*measured, *measured, *(one for rows in own for one in agent.step([*rows, *longest]))]

    def _pull(self, source: Party, receiver: Party, problems: Sequence[int], more: tuple[int, ...]) -> None:
        which = Picks(tuple(problems))
        self.found.ask(source.name, which)
        self.found.ask(receiver.name, which, *more)
        self.found.send("texts", source.name, receiver.name, self._texts(source, len(problems)))
        self.found.answer(receiver.name, Verdicts((1,) * len(problems)))

    def _texts(self, agent: Party, count: int | None = None) -> int:
        """Bytes of so many texts; of one for each problem to learn from."""
        count = len(self.world.transfer) if count is None else count
        more = len(encode(Texts(("x" * self.sizes[agent.name],)))) - len(encode(Texts(("",))))
        return len(encode(Texts(("",) * count))) + count * more

    @property
    def _new(self) -> int:
        return self.world.config.evaluation.max_new_tokens

    def _public(self, problems: Sequence[int]) -> list[Example]:
        both = [*self.world.transfer, *self.world.probe]
        return [both[problem] for problem in problems]

    def _write(self, agent: Party, problems: Sequence[Example]) -> list[Pass]:
        """Answers, and how probable they are."""
        return [*self._answer(agent, problems), *agent.score(self._rows(agent, problems))]

    def _answer(self, agent: Party, problems: Sequence[Example]) -> list[Pass]:
        return agent.answer(problems, self._new)

    def _rows(self, agent: Party, problems: Sequence[Example]) -> list[Row]:
        """The problems with answers that are as long as they may be."""
        return agent.answered(problems, self._new)


def _sizes(world: World) -> dict[str, int]:
    """Bytes of the longest text that each party may write: of all its tokens, or the name of a class."""
    return {party.name: min(LONGEST, _longest(world, party)) for party in world.parties}


def _longest(world: World, party: Party) -> int:
    if party.lm.labels:
        return max(len(label.encode()) for label in party.lm.labels)
    examples = party.examples or world.probe
    rows = zip(examples, party.encode_all(examples), strict=True)
    most = max((len(each.completion.encode()) / row.loss_tokens for each, row in rows), default=1.0)
    return math.ceil(most * world.config.evaluation.max_new_tokens)


def _audited(method: Knexa, t: int) -> tuple[int, ...]:
    """The probe problems of round `t` that peers may grade."""
    probe, first = len(method.run.probe), len(method.run.transfer)
    size = min(method.audit, probe) if method.route == "prompt" or method.matchmaker.reads_leads else 0
    testable = method.tested and all(problem.tested for problem in method.run.transfer)
    return () if t > 1 and testable else tuple(first + (size * (t - 1) + place) % probe for place in range(size))


def _exposure(method: Knexa) -> str:
    more = {"logits": ", what it expected of them", "adapter": ", or its adapter"}
    what = "texts for public prompts" + "".join(more[each] for each in method.protocols if each in more)
    profiles = " and a profile of each agent" if method.route == "set" else ""
    return (
        f"a receiver sees {what} of each agent it learns from; the coordinator numbers{profiles}, no text, weight or "
        "logit"
    )
