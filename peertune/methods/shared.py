"""The adapter that agents share, as the coordinator keeps it: what each agent has of it, and is to be sent.

Version 1 is the start, version t + 1 what round t made of it. An agent whose version is known is sent what has changed
since, any other one the whole. An agent refuses a change of a version that it does not have, after it was lost and put
back: that call fails, and it is sent the whole in its next round.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from peertune.aggregate import Aggregate, Rule, Tensors, fold, for_rank, having, rank_sides
from peertune.methods.base import State, joined, part
from peertune.payloads import Weights

NOTHING, UNSURE = 0, -1  # what an agent has instead of a version: none yet; it failed, and it could be any
LARGEST = 1e6  # number in an adapter: products of three such factors fit in fp32


@dataclass(frozen=True, slots=True, eq=False)
class SharedAdapter:
    """`factors`: dW = `scale` * B A, of at most the greatest rank among agents, and what is no factor. `frozen`: all
    that was added to the base; `change`: what the last version added, to the version `before` it. `held`: the version
    that each agent has, by name.
    """

    factors: Tensors
    scale: float
    held: Mapping[str, int]
    version: int = 1
    before: int = 1
    frozen: Tensors = field(default_factory=dict)
    change: Tensors = field(default_factory=dict)

    @classmethod
    def of(cls, state: State) -> "SharedAdapter":
        factors, frozen, change, held = (part(state, name) for name in ("factors", "frozen", "change", "held"))
        versions = {name: int(version) for name, version in held.items()}
        version, before = state["versions"].tolist()
        return cls(factors, float(state["scale"]), versions, version, before, frozen, change)

    @property
    def state(self) -> State:
        numbers = {"scale": np.array(self.scale), "versions": np.array([self.version, self.before])}
        held = {name: np.array(version) for name, version in self.held.items()}
        return {**numbers, **joined(factors=self.factors, frozen=self.frozen, change=self.change, held=held)}

    def lacking(self, rule: Rule, agent: str, rank: int, scale: float) -> tuple[Weights, int, int]:
        """What `agent`, with an adapter of this rank and scale, is sent; since which version; up to which."""
        held = self.held[agent]
        known = held > 0 and (held == self.before or not self.frozen)
        letters = "ABR" if held == NOTHING else "".join(letter for letter in "ABR" if letter not in rule.private)
        if known:
            letters = "".join(rule.shared(t) for t in range(held, self.version))
        factors = for_rank(having(self.factors, letters), rank, self.scale / scale)
        frozen = self.change if known else self.frozen
        return Weights({**factors, **frozen}, 0), held if known else 0, self.version

    def misfit(self, answer: Weights, letters: str, rank: int) -> str:
        """Why an agent's answer cannot be these factors of its adapter; empty if it can."""
        expected = {
            name: tuple(rank if side in rank_sides(name) else size for side, size in enumerate(tensor.shape))
            for name, tensor in having(self.factors, letters).items()
        }
        return misfit(expected, answer)

    def told(self, asked: Collection[str], answered: Collection[str]) -> "SharedAdapter":
        """Those who were `asked` were sent this version; those who `answered` have it."""
        unsure = {name: UNSURE for name in asked if self.held[name] != NOTHING}
        return replace(self, held={**self.held, **unsure, **dict.fromkeys(answered, self.version)})

    def after(self, aggregate: Aggregate, letters: str, version: int) -> "SharedAdapter":
        """The next version: these factors are those of `aggregate`; where it has none, all begin anew."""
        blank = {
            name: tensor[tuple(slice(0) if side in rank_sides(name) else slice(None) for side in range(tensor.ndim))]
            for name, tensor in having(self.factors, letters).items()
        }
        return replace(
            self,
            factors={**self.factors, **blank, **aggregate.factors},
            scale=aggregate.scale,
            version=version,
            before=self.version,
            frozen=fold(self.frozen, aggregate.frozen),
            change=aggregate.frozen,
        )


def misfit(expected: Mapping[str, tuple[int, ...]], answer: Weights) -> str:
    """Why an answer cannot be an agent's tensors of these shapes; empty if it can."""
    found = {name: tensor.shape for name, tensor in answer.tensors.items()}
    if different := sorted(expected.items() ^ found.items()):
        name = different[0][0]
        return f"{name}: expected the shape {expected.get(name)}, found {found.get(name)}"
    if large := [name for name, tensor in answer.tensors.items() if np.abs(tensor).max(initial=0) > LARGEST]:
        return f"{large[0]} holds numbers beyond {LARGEST:g}; lower learning_rate"
    return "" if answer.examples else "it stands for no training example"
