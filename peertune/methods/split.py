"""Split-FedLLM: the model is cut, clients keep its ends, a server has the middle (arXiv:2501.04436).

SplitFed (Thapa et al., arXiv:2004.12088), U-shaped (Vepakomma et al., arXiv:1812.00564): an agent has the embeddings
and the first `cut` blocks, and, from block `last` on, the upper end with the head and the labels; the server has the
blocks between. A step on a batch of N tokens, of which M predict one that carries loss (classes: M rows), is

    client  h = lower(x)                 -> server   N hidden states
    server  z = middle(h)                -> client   N hidden states, or M where the client has no upper blocks
    client  loss(head(z)), dL/dz         -> server   as many gradients
    server  dL/dh, AdamW                 -> client   N gradients
    client  AdamW

and with the plain shape, the head and the labels at the server, N hidden states and labels up, N gradients down. V1:
the server has an adapter for each client, all take their steps side by side, and these adapters are averaged after each
round. V2: it has one, which takes each step for one client after the other, in an order drawn for each round. The
coordinator averages what the clients have (FedIT). Where clients are cut in different places, a block is the mean of
what every client was trained with: its own, or the server's. What AdamW knows stays with whoever trains, round after
round.

Bytes of a step, with B(n) = `codecs.bytes_of(codec, n, width)`, b rows and R = N or M as above, framing aside:
U-shape up B(N) + B(R) + 4 b (+ 4 M if R = M), down the same two; 2 round trips. Plain up B(N) + 4 (b + 2 M), down
B(N) + 4; 1 round trip. A round: up and down 4 bytes for each parameter of the client's part. FLOPs of a micro-batch
of r rows padded to s tokens with m labels are `Pass("training", r, s, 0, 0, cut + 1)` and `Pass("training", r, s, m,
last + 1)` at the client, `Pass("training", r, s, 0, cut + 1, last + 1)` at the server; plain has the head there.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import numpy as np
from annotated_types import Ge

from peertune.aggregate import AGGREGATORS, Tensors, Update, common_start, relative_error
from peertune.codecs import Codec, Kind
from peertune.errors import MethodError
from peertune.federation import AgentHandle, Federation, Ref
from peertune.methods.base import Method, State, joined, part
from peertune.methods.parts import of_client
from peertune.methods.shared import misfit
from peertune.payloads import Shares, SplitPlan, Weights

Party = TypeVar("Party")
RULE = "fedit"
ENCODERS = ("bert", "roberta", "xlm-roberta")  # of classes alone
FAMILIES = ("bloom", "gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", *ENCODERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Split(Method):
    """Split-FedLLM: clients keep the ends of the model and a server trains the middle; hidden states travel.

    `cut`: blocks below the first cut, at the client; `cuts`: of some agents, by name. `last`: the blocks from here on
    are at the client, too; none by default. `shape`: u; or plain, with the head at the server, which then sees labels.
    `variant`: of SplitFed, v1 or v2. `codec`: fp32, fp16, int8 (but for `outliers` channels) or topk (`keep` entries).
    """

    needs_server: ClassVar[bool] = True
    cut: Annotated[int, Ge(1)] = 1
    cuts: dict[str, Annotated[int, Ge(1)]] | None = None
    last: Annotated[int, Ge(2)] | None = None
    shape: Literal["u", "plain"] = "u"
    variant: Literal["v1", "v2"] = "v2"
    codec: Kind = "fp32"
    outliers: Annotated[int, Ge(0)] = 0
    keep: Annotated[int, Ge(0)] = 0

    def check(self, agents: Sequence[Mapping[str, Any]]) -> None:
        server = self.run.server
        if server is None:
            raise MethodError("split needs a server; give the configuration a `server: {model: ...}`")
        for facts in agents:
            if (facts["adapter"], facts["scale"]) != (server["adapter"], server["scale"]):
                raise MethodError(
                    f"split needs one base model and one adapter shape for all: {facts['name']} ({facts['model']}) "
                    f"differs from the server ({server['model']}). Give all the same `model` and `adapter`"
                )
        if not server["layers"]:
            raise uncut(server["model"], server["family"])
        check_cuts({facts["name"]: self.first(facts["name"]) for facts in agents}, self.last, server["layers"])
        Codec(self.codec, self.outliers, self.keep)

    def first(self, name: str) -> int:
        """Blocks of that agent below the first cut."""
        return (self.cuts or {}).get(name, self.cut)

    def init(self, fed: Federation) -> State:
        """A common start, as FedLLM has it: the best form of the average of the adapters that agents have."""
        answers = fed.gather({agent.name: agent.adapter() for agent in fed.everyone})
        reference = next((answer.tensors for answer in answers.values()), {})
        updates = self._fitting(fed, {name: (reference, answer) for name, answer in answers.items()})
        if not updates:
            raise MethodError("split begins with the agents' adapters, and none came that can be used; see `show`")
        start = common_start(updates).factors
        for party in (*fed.everyone, fed.server):
            party.load(Weights(dict(start), 0))
        clients = [of_client(start, self.first(name), self.last, self.plain) for name in self._names]
        return joined(adapter={name: array for each in clients for name, array in each.items()})

    def round(self, state: State, fed: Federation, t: int) -> State:
        fed.server.split_serve(self._plan(self._names))
        for agent in fed.agents:
            agent.split_join(self._plan([agent.name]))
            agent.split_take(Weights(self._held(state, agent.name), 0))
        turns = self.turns(fed.agents, t)
        for _ in range(self._steps):
            for turn in turns:
                self._step(fed, turn)
        answers = fed.gather({agent.name: agent.split_leave() for agent in fed.agents})
        parts = {name: (self._held(state, name), answer) for name, answer in answers.items()}
        return self._next(state, fed, self._fitting(fed, parts))

    def deploy(self, state: State, fed: Federation) -> None:
        """Every agent gets the middle from the server, and what is the average of all from the coordinator."""
        shared, middle = Weights(dict(part(state, "adapter")), 0), fed.server.split_part(self._plan(self._names))
        for agent in fed.everyone:
            agent.split_take(shared)
            agent.split_take(middle)

    def turns(self, agents: Sequence[Party], t: int) -> list[list[Party]]:
        """Who take a step side by side; V2: one after the other, in round `t` always in the same order."""
        if self.variant == "v1":
            return [list(agents)]
        return [[agents[place]] for place in np.random.default_rng([self.run.seed, t]).permutation(len(agents))]

    @property
    def plain(self) -> bool:
        return self.shape == "plain"

    @property
    def _names(self) -> list[str]:
        return [facts["name"] for facts in self.run.agents]

    @property
    def _steps(self) -> int:
        return self.run.budget.local_steps + self.run.budget.exchange_steps

    def _plan(self, names: Iterable[str]) -> SplitPlan:
        cuts = {name: self.first(name) for name in names}
        return SplitPlan(cuts, self.last, self.plain, self.variant == "v2", self.codec, self.outliers, self.keep)

    def _held(self, state: State, name: str) -> dict[str, np.ndarray]:
        """What that agent has, as the average of all has it."""
        return of_client(part(state, "adapter"), self.first(name), self.last, self.plain)

    def _step(self, fed: Federation, agents: Sequence[AgentHandle]) -> None:
        """One step of each. Whatever fails in it ends the step of that agent, and of nobody else."""
        number, server = {name: place for place, name in enumerate(self._names)}, fed.server
        back: dict[str, Ref]
        if self.plain:
            back = {agent.name: server.split_score(number[agent.name], agent.split_labelled()) for agent in agents}
        else:
            hidden = {agent.name: server.split_middle(number[agent.name], agent.split_lower()) for agent in agents}
            found = {agent.name: agent.split_loss(hidden[agent.name]) for agent in agents}
            back = {name: server.split_middle_back(number[name], gradient) for name, gradient in found.items()}
        for agent in agents:
            agent.split_back(back[agent.name])

    def _next(self, state: State, fed: Federation, updates: Sequence[Update]) -> State:
        """The average of what clients were trained with; the round counts for nothing if the server was lost."""
        shares = Shares({update.name: int(update.weight) for update in updates})
        closed = fed.gather({"both": fed.server.split_close(shares)})
        if not updates or "both" not in closed:
            return state
        both: Tensors = closed["both"].tensors
        whole = [Update(each.name, {**both, **each.tensors}, each.weight, each.scale) for each in updates]
        mean = AGGREGATORS[RULE].combine(whole)
        error = relative_error(whole, mean)
        fed.record("aggregation", rule=RULE, error=error, agents=[update.name for update in updates])
        if both:
            fed.server.split_take(Weights({name: mean.factors[name] for name in both}, 0))
        return joined(adapter=mean.factors)

    def _fitting(self, fed: Federation, answers: Mapping[str, tuple[Tensors, Weights]]) -> list[Update]:
        """The answers that are what was expected; the others are failures of their agents."""
        updates, facts = [], {each["name"]: each for each in self.run.agents}
        for name, (expected, answer) in answers.items():
            if cause := misfit({each: tensor.shape for each, tensor in expected.items()}, answer):
                fed.failed.add(name)
                fed.record("failure", agent=name, verb="split_leave", cause=cause)
            else:
                updates.append(Update(name, answer.tensors, answer.examples, facts[name]["scale"]))
        return updates


def uncut(model: str, family: str) -> MethodError:
    """That models of this architecture cannot be cut."""
    return MethodError(
        f"split: {model} is a {family} model, which cannot be cut; expected one of {', '.join(FAMILIES)} (the last "
        f"{len(ENCODERS)} for classes only). Use another model or method"
    )


def check_cuts(cuts: Mapping[str, int], last: int | None, layers: int) -> None:
    """Raise `MethodError` if a model of so many blocks cannot be cut there."""
    name = max(cuts, key=lambda name: cuts[name])
    if cuts[name] >= layers:
        raise MethodError(
            f"split: the model has {layers} blocks: `cut` is 1 to {layers - 1}, found {cuts[name]} for {name}"
        )
    if last is not None and not cuts[name] < last <= layers:
        raise MethodError(
            f"split: the model has {layers} blocks and is first cut after {cuts[name]} ({name}): `last` is "
            f"{cuts[name] + 1} to {layers}, found {last}"
        )
