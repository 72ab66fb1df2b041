"""KD-FedLLM: logits of public problems up, the consensus down."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

from peertune.cost.estimate import Estimate, Round
from peertune.cost.fedmkt import fedmkt
from peertune.cost.formulas import logit_bytes, sparse_logit_bytes
from peertune.cost.parties import Party, Position, World
from peertune.cost.wire import Shapes, arrays
from peertune.ledger import COORDINATOR, SERVER
from peertune.lm.batches import batches
from peertune.lm.encode import Row
from peertune.lm.flops import Pass
from peertune.lm.seeding import derived
from peertune.methods import KD
from peertune.methods.base import drawn
from peertune.methods.kd import BITS
from peertune.payloads import Distillation, Logits, Precision

WIDE = 1 << 16  # tokens of a vocabulary whose ids do not fit in two bytes
_FLOATS = {"fp32": "F32", "fp16": "F16", "int8": "F16"}


def kd(world: World, method: KD) -> Estimate:
    """Up, and again down, a client and round: logits at N positions, those of the answers of P public problems, or P.

    The k most probable of V tokens: N (k (q + q_id) + q); all of C classes: N C q. q: bytes of a number; those of 8
    bits have 8 bytes a position more. FLOPs: as `local` for the local steps; a forward pass over the P problems; s
    steps on own rows and public rows. One round trip. With `server_model` the server learns, then answers. Across
    tokenizers: as `fedmkt`.
    """
    if method.vocabularies == "aligned":
        return replace(fedmkt(world, method.mutual), method="kd")
    budget, positions = method.run.budget, world.positions()
    rounds = [Round(trips=1) for _ in range(method.run.rounds)]
    students = world.parties if method.server_model else world.agents
    for t, one in enumerate(rounds, start=1):
        which = drawn(method.run, method.problems, t)
        for party in students:
            rows = party.encode_all(world.transfer[problem] for problem in which.items)
            shapes = logits(party.lm.width, rows, method.top_k, method.precision, ragged=method.mass < 1)
            size, asked = arrays(Logits, shapes), (which, method.top_k, method.mass)
            if party.name != SERVER:
                one.ask(party.name, budget.local_steps)
                one.compute(party, party.fit(positions[party.name], budget.local_steps))
                one.send("logits", party.name, COORDINATOR, size)
                one.flops[COORDINATOR] += 2 * listed(party.lm.width, method.top_k) * _positions(rows)
            one.ask(party.name, *asked, BITS[method.precision])
            one.compute(party, party.score(rows))
            weight = 1.0 if party.name == SERVER else method.kd_weight
            teacher = SERVER if method.server_model and party.name != SERVER else COORDINATOR
            one.send("logits", teacher, party.name, size)
            one.ask(party.name, which, Distillation(weight, budget.exchange_steps, method.temperature))
            one.compute(party, _lesson(party, positions[party.name], rows, weight, budget.exchange_steps))
    return Estimate("kd", rounds, _exposure(method), bound=_bound(method))


def bytes_a_problem(world: World, method: KD) -> float:
    """Of the logits of one public problem, in the mean, framing aside."""
    agent = world.agents[0]
    width, k = agent.lm.width, listed(agent.lm.width, method.top_k)
    positions = _positions(agent.encode_all(world.transfer)) / len(world.transfer)
    q, more = BITS[method.precision] // 8, 8 if method.precision == "int8" else 0
    ids = 2 if width <= WIDE else 4
    each = logit_bytes(1, k, q) if k == width else sparse_logit_bytes(1, k, q, ids, max(2, q))
    return positions * (each + more)


def logits(width: int, rows: Sequence[Row], k: int, precision: Precision, ragged: bool = False) -> Shapes:
    """The arrays of `Logits`: of `width` tokens the `k` most probable, or all where that is shorter; `ragged`: not the
    same number at every position.
    """
    positions, kind = (_positions(rows),), _FLOATS[precision]
    entries = (listed(width, k) * positions[0],)
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {"lengths": ("I32", (len(rows),))}
    if precision == "int8":
        tensors |= {"codes": ("U8", entries), "top": ("F32", positions), "step": ("F32", positions)}
    else:
        tensors["logp"] = (kind, entries)
    if listed(width, k) < width:
        tensors |= {"ids": ("U16" if width <= WIDE else "I32", entries), "tail": (kind, positions)}
        if ragged:
            tensors["counts"] = ("I32", positions)
    return tensors


def listed(width: int, k: int) -> int:
    """How many log-probabilities of a position travel: without ids where that is shorter."""
    return k if 0 < 2 * k < width else width


def _positions(rows: Sequence[Row]) -> int:
    return sum(row.loss_tokens for row in rows)


def _lesson(party: Party, position: Position, rows: Sequence[Row], weight: float, steps: int) -> list[Pass]:
    """The private validation loss before and after, and the steps."""
    passes = 2 * party.score(party.validation)
    size = min(party.training.batch_size, len(rows))
    seed = derived(party.seed, party.name, "distil", position.steps)
    for batch in islice(batches(rows, size, seed), steps):
        own = party.draw(party.train, position) if weight < 1 else []
        passes += [*party.step(own), *party.step(batch)]
    position.steps += steps
    return passes


def _exposure(method: KD) -> str:
    teacher = "the server's" if method.server_model else "the consensus"
    return f"the coordinator sees what every agent expects of public problems, the agents {teacher}; no weights leave"


def _bound(method: KD) -> str:
    if method.mass < 1 or method.least_confidence or method.greatest_entropy:
        return "at most: what is sure is sent in fewer numbers, what is unsure not at all"
    return ""
