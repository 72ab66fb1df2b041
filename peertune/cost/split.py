"""Split-FedLLM: hidden states and their gradients, batch after batch."""

from collections.abc import Sequence
from dataclasses import dataclass

from peertune.codecs import Codec, layout
from peertune.cost.estimate import Estimate, Round
from peertune.cost.parties import Party, World
from peertune.cost.wire import Shapes, arrays, code, floats
from peertune.ledger import COORDINATOR, SERVER
from peertune.lm.blueprint import ADAPTER
from peertune.lm.cut import Cut, Parts
from peertune.lm.encode import Row
from peertune.lm.flops import Pass
from peertune.lm.graphs import size_of
from peertune.methods import Split
from peertune.payloads import Activations, Gradient, Labelled, Shares, SplitPlan, Weights
from peertune.payloads.activations import Coded


def split(world: World, method: Split) -> Estimate:
    """Up, a client and step on N tokens of b rows, M with loss, R = M or, with upper blocks, N: B(N) + B(R) + 4 b
    (+ 4 M if R = M), down B(R) + B(N); B(n) = q n d in fp32. Plain: up B(N) + 4 (b + 2 M), down B(N) + 4.

    A round: up and down q |theta| of the client's part; before round 1 of all of it. FLOPs: those of `local`, shared
    by the blocks' places. Round trips: 2 a step, plain 1; in v2 clients take turns.
    """
    assert world.server
    clients = [_Client.of(number, agent, method) for number, agent in enumerate(world.agents)]
    in_turn = method.variant == "v2"
    rounds, deploy = [Round(trips=1, in_turn=in_turn) for _ in range(method.run.rounds)], Round()
    rounds[0].trips += 1
    for party in world.parties:
        rounds[0].send("weights", COORDINATOR, party.name, arrays(Weights, floats(party.shapes)))
        if party.name != SERVER:
            rounds[0].send("weights", party.name, COORDINATOR, arrays(Weights, floats(party.shapes)))
    positions, steps = world.positions(), method.run.budget.local_steps + method.run.budget.exchange_steps
    for t, one in enumerate(rounds, start=1):
        _begin(one, clients, method)
        for turn in method.turns(clients, t):
            one.trips += steps * (1 if method.plain else 2)
            for _ in range(steps):
                held = [each.step(one, each.party.draw(each.party.train, positions[each.party.name])) for each in turn]
                _serve(one, world.server, method, held)
        _end(one, clients)
        if world.graded(t):
            _deploy(deploy, clients, method)
    return Estimate("split", rounds, _exposure(method), deploy)


@dataclass(frozen=True, slots=True)
class _Client:
    """`number`: its place among the clients."""

    number: int
    party: Party
    parts: Parts
    codec: Codec

    @classmethod
    def of(cls, number: int, party: Party, method: Split) -> "_Client":
        cut = Cut(method.first(party.name), method.last, method.plain)
        codec = Codec(method.codec, method.outliers, method.keep)
        return cls(number, party, Parts(party.lm, ADAPTER, cut), codec)

    def owned(self, client: bool) -> Shapes:
        """The adapter's tensors that are the client's, or the server's."""
        return floats({name: self.party.shapes[name] for name in self.parts.owned(client)})

    def step(self, one: Round, rows: Sequence[Row]) -> list[Pass]:
        """What moves and runs in a step on these rows; the server's passes."""
        name, parts, whole = self.party.name, self.parts, self.party.step(rows)
        tokens, read = sum(len(row.ids) for row in rows), sum(row.loss_tokens for row in rows)
        back = tokens if parts.whole_return else read
        beside = {"lengths": len(rows), **({} if parts.whole_return else {"reads": read})}
        lower = [Pass("training", each.rows, each.width, 0, 0, parts.first + 1) for each in whole]
        if parts.cut.plain:
            one.ask(SERVER, self.number)
            one.send("labelled", name, SERVER, self._size(Labelled, tokens, **beside, labels=read))
            one.send("gradient", SERVER, name, self._size(Gradient, tokens, loss=1))
            upper, stop = [], None
        else:
            one.ask(SERVER, self.number, self.number)
            one.send("activations", name, SERVER, self._size(Activations, tokens, **beside))
            one.send("activations", SERVER, name, self._size(Activations, back))
            one.send("gradient", name, SERVER, self._size(Gradient, back))
            one.send("gradient", SERVER, name, self._size(Gradient, tokens))
            upper = [Pass("training", each.rows, each.width, each.heads, parts.last + 1) for each in whole]
            stop = parts.last + 1
        one.compute(self.party, [*lower, *upper])
        one.hold(self.party, self.party.costs.memory(*lower, *sorted(upper, key=size_of)[-1:]))
        heads = 0 if stop else 1
        return [Pass("training", each.rows, each.width, heads * each.heads, parts.first + 1, stop) for each in whole]

    def _size(self, kind: type[Coded], tokens: int, **beside: int) -> int:
        coded = layout(self.codec, tokens, self.parts.width)
        shapes = {f"{kind.what}/{name}": (code(dtype), shape) for name, (dtype, shape) in coded.items()}
        integers = {name: ("F32" if name == "loss" else "I32", (count,)) for name, count in beside.items()}
        return arrays(kind, shapes | integers)


def _begin(one: Round, clients: Sequence[_Client], method: Split) -> None:
    one.ask(SERVER, _plan(clients, method))
    for each in clients:
        one.ask(each.party.name, _plan([each], method))
        one.send("weights", COORDINATOR, each.party.name, arrays(Weights, each.owned(client=True)))


def _serve(one: Round, server: Party, method: Split, steps: Sequence[list[Pass]]) -> None:
    """The server's work for steps side by side: in the U-shape all wait for gradients together."""
    passes = [each for step in steps for each in step]
    one.compute(server, passes)
    copies = len(steps) - 1 if method.variant == "v1" else 0
    together = [max(passes, key=size_of)] if method.plain else passes
    one.hold(server, server.costs.memory(*together) + 4 * copies * server.costs.adapter)


def _end(one: Round, clients: Sequence[_Client]) -> None:
    one.ask(SERVER, Shares({each.party.name: len(each.party.examples) for each in clients}))
    for each in clients:
        one.send("weights", each.party.name, COORDINATOR, arrays(Weights, each.owned(client=True)))
    alone = _alone(clients)
    some = {name: shape for each in clients for name, shape in each.owned(client=False).items() if name not in alone}
    one.send("weights", SERVER, COORDINATOR, arrays(Weights, some))
    if some:
        one.send("weights", COORDINATOR, SERVER, arrays(Weights, some))


def _deploy(one: Round, clients: Sequence[_Client], method: Split) -> None:
    shared = {name: shape for each in clients for name, shape in each.owned(client=True).items()}
    one.ask(SERVER, _plan(clients, method))
    for each in clients:
        one.send("weights", COORDINATOR, each.party.name, arrays(Weights, shared))
        one.send("weights", SERVER, each.party.name, arrays(Weights, _alone(clients)))


def _alone(clients: Sequence[_Client]) -> Shapes:
    """What of the server's part no client has."""
    return max(clients, key=lambda each: each.parts.first).owned(client=False)


def _plan(clients: Sequence[_Client], method: Split) -> SplitPlan:
    cuts = {each.party.name: each.parts.first for each in clients}
    shared = method.variant == "v2"
    return SplitPlan(cuts, method.last, method.plain, shared, method.codec, method.outliers, method.keep)


def _exposure(method: Split) -> str:
    seen = "and the labels, which of a text are the text" if method.plain else "and their gradients, no labels"
    return f"the server sees hidden states of every training batch, from which text can be recovered, {seen}"
