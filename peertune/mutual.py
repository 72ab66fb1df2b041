"""Calls of mutual teaching, as `AgentHandle` has them: each asks for the verb of that name and returns a `Ref`."""

from abc import ABC, abstractmethod

from peertune.engines.base import Ref
from peertune.payloads import Alignment, Assessed, Lexicon, Payload, Picks, Teaching


class MutualCalls(ABC):
    """Whoever may be heard `assess`es; whoever is to learn `hear`s some of them, and then `study`s."""

    def spell(self) -> Ref:
        """Answer: `Lexicon`, the vocabulary of the agent's model."""
        return self._call("spell")

    def meet(self, lexicon: Lexicon | Ref, how: Alignment) -> Ref:
        """Get to know another's vocabulary, for good. Answer: none."""
        return self._call("meet", lexicon, how)

    def assess(self, which: Picks, k: int, mass: float = 1.0, bits: int = 16) -> Ref:
        """What the agent expects at every token of the answers of these public problems, and what it loses on each
        answer. The `k` most probable, of them no more than have `mass` together, in 16 or 8 `bits`. Answer: `Assessed`.
        """
        return self._call("assess", which, k, mass, bits)

    def hear(self, source: int, which: Picks, known: Assessed | Ref, how: Alignment) -> Ref:
        """Listen to one source, whose number decides ties: the lowest is preferred. Answer: none."""
        return self._call("hear", source, which, known, how)

    def study(self, which: Picks, how: Teaching) -> Ref:
        """Learn these public problems, beside their answers from the best that was heard. Answer: `Tally`."""
        return self._call("study", which, how)

    def renew(self) -> Ref:
        """Begin with a new optimiser and a new warm-up. Answer: none."""
        return self._call("renew")

    @abstractmethod
    def _call(self, verb: str, *args: Payload | Ref | int | float) -> Ref:
        """Ask for a verb."""
