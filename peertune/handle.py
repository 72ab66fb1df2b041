"""One agent as methods see it: every verb that it can be asked to run."""

from collections.abc import Callable

from peertune.engines.base import Ref
from peertune.mutual import MutualCalls
from peertune.payloads import (
    ALL_FACTORS,
    Distillation,
    Factors,
    Logits,
    Payload,
    Picks,
    Receipt,
    Records,
    Texts,
    Weights,
)
from peertune.splitting import SplitCalls

Argument = Payload | Ref | int | float
NEVER = 1e9  # nats a token: no loss rises by so much


class AgentHandle(MutualCalls, SplitCalls):
    """One agent, seen from the coordinator. Each method asks it to run the verb of that name and returns a `Ref`."""

    def __init__(self, name: str, submit: Callable[[str, str, tuple[Argument, ...]], Ref]) -> None:
        self.name, self._submit = name, submit

    def fit(self, steps: int, factors: Factors = ALL_FACTORS, proximal: float = 0.0) -> Ref:
        """Train the adapter for `steps` optimiser steps on the agent's own data. Answer: none.

        `factors`: only these of it. `proximal`: FedProx's mu; mu / 2 ||theta - theta_0||^2 is part of the loss.
        """
        return self._call("fit", steps, *((factors, proximal) if proximal or factors != ALL_FACTORS else ()))

    def records(self) -> Ref:
        """Answer: `Records`, the agent's training examples."""
        return self._call("records")

    def pool(self, records: Records | Ref) -> Ref:
        """Put others' examples beside the agent's own, for its next `fit` only. Answer: none."""
        return self._call("pool", records)

    def profile(self) -> Ref:
        """Answer: `Profile`."""
        return self._call("profile")

    def draft(self, which: Picks, temperature: float = 0.0, confident: bool = False, tested: bool = False) -> Ref:
        """Answer public problems at home, and keep the texts there. Answer: `Claims`, scalars only."""
        return self._call("draft", which, temperature, int(confident), int(tested))

    def share(self, which: Picks) -> Ref:
        """The texts that the agent drafted for these problems in this round. Answer: `Texts`."""
        return self._call("share", which)

    def accept(self, which: Picks, texts: Texts | Ref, tested: bool = False, agreed: bool = False) -> Ref:
        """Keep texts to learn from, after the public tests if `tested`; what cannot be tested only if it says what
        another text of the round says, if `agreed`. Answer: `Verdicts`.
        """
        return self._call("accept", which, texts, int(tested), *((1,) if agreed else ()))

    def blend(self, adapter: Weights | Ref) -> Ref:
        """Take the adapter of an agent with the same base; `learn` starts by moving towards it. Answer: `Verdicts`."""
        return self._call("blend", adapter)

    def express(self, which: Picks, k: int) -> Ref:
        """What the agent expected at each token of the texts that it shares. Answer: `Logits`."""
        return self._call("express", which, k)

    def soften(self, which: Picks, logits: Logits | Ref) -> Ref:
        """Learn the texts just accepted with what their author expected, once. Answer: `Verdicts`."""
        return self._call("soften", which, logits)

    def inspect(self, which: Picks, texts: Texts | Ref) -> Ref:
        """Grade texts for public problems, and keep nothing. Answer: `Verdicts`."""
        return self._call("inspect", which, texts)

    def learn(self, kd_weight: float, steps: int, tolerance: float = NEVER, keep: bool = False) -> Ref:
        """Train `steps` steps on own data, weighted 1 - `kd_weight`, and on the accepted texts, weighted `kd_weight`;
        go back if the private validation loss rises by more than `tolerance`. Answer: `Gain`.
        """
        return self._call("learn", kd_weight, steps, tolerance, int(keep))

    def know(self, which: Picks, k: int = 0, mass: float = 1.0, bits: int = 16) -> Ref:
        """What the agent expects at every token of the answers of these public problems, or of their class. The `k`
        most probable (0: all), of them no more than have `mass` together, in `bits` a number. Answer: `Logits`.
        """
        return self._call("know", which, k, mass, bits)

    def distil(self, which: Picks, logits: Logits | Ref, lesson: Distillation) -> Ref:
        """Learn from logits for these public problems, beside own data. Answer: none."""
        return self._call("distil", which, logits, lesson)

    def grade(self, samples: int = 1, temperature: float = 0.0) -> Ref:
        """Complete and grade the test problems. Answer: `Scores`. Changes nothing in the agent."""
        return self._call("grade", samples, temperature)

    def adapter(self, factors: Factors = ALL_FACTORS) -> Ref:
        """Answer: `Weights`, the agent's adapter, or these factors of it."""
        return self._call("adapter", *(() if factors == ALL_FACTORS else (factors,)))

    def load(self, adapter: Weights | Ref, since: int = 0, upto: int = 0) -> Ref:
        """Replace the agent's adapter, or what came of it. Answer: none.

        An adapter that all share has versions. `upto`: this one's. `since`: what came is the change after that version,
        which the agent must have, or fails; 0: it builds on nothing.
        """
        return self._call("load", adapter, *((since, upto) if upto else ()))

    def checkpoint(self, keep: Texts) -> Ref:
        """Store the agent's state on its own disk; drop stored states other than this and `keep`. Answer: `Receipt`."""
        return self._call("checkpoint", keep)

    def restore(self, receipt: Receipt) -> Ref:
        """Return to a stored state. Answer: none."""
        return self._call("restore", receipt)

    def _call(self, verb: str, *args: Argument) -> Ref:
        return self._submit(self.name, verb, args)
