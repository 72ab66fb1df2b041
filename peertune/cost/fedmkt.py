"""FedMKT: what clients and server expect of public problems, to each other."""

from collections.abc import Sequence

import numpy as np

from peertune.align import Vocabulary
from peertune.cost.estimate import Estimate, Round
from peertune.cost.fedavg import fedavg
from peertune.cost.parties import Party, Position, World
from peertune.cost.wire import Shapes, arrays, code
from peertune.ledger import SERVER
from peertune.lm.batches import batches
from peertune.lm.encode import Row
from peertune.lm.flops import Pass
from peertune.lm.seeding import derived
from peertune.methods import FedAvg, FedMKT
from peertune.methods.base import drawn
from peertune.methods.fedmkt import AVERAGING, BITS
from peertune.payloads import Assessed, Lexicon, Picks, Tally, encode
from peertune.payloads.logits import id_type

_CODES, _FLOATS = (("codes.zst", "U8"), ("top.zst", "F32"), ("step.zst", "F32")), (("logp.zst", "F16"),)


def fedmkt(world: World, method: FedMKT) -> Estimate:
    """Up, and again down, a client and round, at most: N (k (q + q_id) + 4) bytes and 12 P + 32, for N positions of P
    answers and k of V tokens; q_id: 2, or 4 where V > 65,536; q: 2, or 1 and 8 bytes a position in 8 bits. Packing
    leaves about two thirds of it. Once: the vocabularies, where they differ. FLOPs: as `local` for the local steps; a
    forward pass over the P answers to be heard, another to compare; s steps on public rows alone, with the head once
    for the answers and once for each teacher. Homogeneous clients also average their adapters, as in `fedavg`.
    """
    positions, rounds = world.positions(), [Round(trips=2) for _ in range(method.run.rounds)]
    assert world.server is not None
    _introduce(world, method, rounds[0])
    deploy = _average(world, method, rounds) if method.setting == "homogeneous" else Round()
    for t, one in enumerate(rounds, start=1):
        which = drawn(method.run, method.problems, t)
        rows = {p.name: p.encode_all(world.transfer[problem] for problem in which.items) for p in world.parties}
        for agent in world.agents:
            one.ask(agent.name, method.run.budget.local_steps)
            one.compute(agent, agent.fit(positions[agent.name], method.run.budget.local_steps))
            if method.server_learns:
                _tell(one, method, which, (agent, world.server), rows[agent.name])
                _assess(one, method, which, agent, rows[agent.name])
        if method.server_learns:
            _study(one, method, which, world.server, (rows[SERVER], positions[SERVER], len(world.agents)))
        _assess(one, method, which, world.server, rows[SERVER])
        for agent in world.agents:
            _tell(one, method, which, (world.server, agent), rows[SERVER])
            _study(one, method, which, agent, (rows[agent.name], positions[agent.name], 1))
    return Estimate("fedmkt", rounds, _exposure(method), deploy, "at most: what travels is compressed")


def _introduce(world: World, method: FedMKT, one: Round) -> None:
    """Those whose vocabularies differ tell each other; by the facts that the method reads them off."""
    assert world.server is not None
    own = {facts["name"]: facts["vocabulary"] for facts in (*method.run.agents, method.run.server or {})}
    for agent in world.agents:
        if own[agent.name] == own[SERVER]:
            continue
        links = [(world.server, agent), *([(agent, world.server)] if method.server_learns else [])]
        for source, learner in links:
            size = len(encode(Lexicon.of(Vocabulary.of(source.lm.tokenizer))))
            one.send("lexicon", source.name, learner.name, size)
            one.ask(learner.name, method.alignment)


def _average(world: World, method: FedMKT, rounds: Sequence[Round]) -> Round:
    """The adapters of homogeneous clients; what evaluations ask for beside."""
    averaged = fedavg(world, FedAvg(method.run, AVERAGING))
    for t, (one, other) in enumerate(zip(rounds, averaged.rounds, strict=True), start=1):
        for (kind, source, destination), size in other.flows.items():
            if kind == "weights":
                one.send(kind, source, destination, size)
        for agent in world.agents:
            one.ask(agent.name, t, t)  # since which version, and up to which
        one.trips += other.trips
    return averaged.deploy


def _assess(one: Round, method: FedMKT, which: Picks, party: Party, rows: Sequence[Row]) -> None:
    one.ask(party.name, which, method.top_k, method.mass, BITS[method.precision])
    one.compute(party, party.score(rows))


def _tell(one: Round, method: FedMKT, which: Picks, link: tuple[Party, Party], rows: Sequence[Row]) -> None:
    source, learner = link
    size = arrays(Assessed, shapes(source.lm.width, rows, method.top_k, method.precision, method.mass < 1))
    one.send("assessed", source.name, learner.name, size)
    one.ask(learner.name, 0, which, method.alignment)


def shapes(width: int, rows: Sequence[Row], k: int, precision: str, ragged: bool) -> Shapes:
    """The arrays of `Assessed` as if nothing could be compressed; `ragged`: not all positions have as many entries."""
    positions = (sum(row.loss_tokens for row in rows),)
    entries, ids = (min(k, width) * positions[0],), code(np.dtype(id_type(width)))
    values = {name: (dtype, positions) for name, dtype in (_CODES if precision == "int8" else _FLOATS)}
    first = next(iter(values))
    problems = {name: (dtype, (len(rows),)) for name, dtype in (("lengths", "I32"), ("nats", "F32"), ("texts", "I32"))}
    return {
        **problems,
        **{"vocabulary": ("U8", (32,)), "k": ("I32", (1,))},
        **{"starts.zst": ("U16", positions), "ids.zst": (ids, entries), "tail.zst": ("F16", positions)},
        **values,
        first: (values[first][0], entries),
        **({"counts.zst": (ids, positions)} if ragged else {}),
    }


def _study(one: Round, method: FedMKT, which: Picks, party: Party, work: tuple[Sequence[Row], Position, int]) -> None:
    """`work`: the party's rows, where it stands, and how many it has heard."""
    rows, position, sources = work
    budget = method.run.budget.exchange_steps
    one.ask(party.name, which, method.teaching)
    most = {0: len(rows)} if sources == 1 and party.name != SERVER else dict.fromkeys(range(1, sources + 1), len(rows))
    one.answer(party.name, Tally(len(rows), most, most))
    one.compute(party, party.score(rows))
    mixed = method.kd_weight < 1
    heads = (1 if method.mode == "hard" else sources) + (mixed and method.beside == "answers")
    size = min(party.training.batch_size, len(rows))
    drawn_rows = batches(rows, size, derived(party.seed, party.name, "study", position.steps))
    for _ in range(budget):
        own = party.draw(party.train, position) if mixed and method.beside == "own" and party.train else []
        taught: list[Pass] = [each._replace(heads=each.heads * heads) for each in party.step(next(drawn_rows))]
        one.compute(party, [*(party.step(own) if own else []), *taught])
    position.steps += budget


def _exposure(method: FedMKT) -> str:
    averaged = "; the coordinator sees their adapters" if method.setting == "homogeneous" else ""
    if not method.server_learns:
        return "agents see what the server expects of public problems; nothing but counts leaves them"
    return f"the server sees what every agent expects of public problems, the agents what the server does{averaged}"
