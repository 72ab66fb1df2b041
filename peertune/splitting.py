"""Calls of split learning, as `AgentHandle` has them: each asks for the verb of that name and returns a `Ref`."""

from abc import ABC, abstractmethod

from peertune.engines.base import Ref
from peertune.payloads import Activations, Gradient, Labelled, Payload, Shares, SplitPlan, Weights


class SplitCalls(ABC):
    """Clients `split_join`, take steps and `split_leave`; the server, which they are numbers to, `split_serve`s them.

    A step, with the labels at home: client `split_lower`, server `split_middle`, client `split_loss`, server
    `split_middle_back`, client `split_back`. Plain: client `split_labelled`, server `split_score`, client `split_back`.
    """

    def split_take(self, part: Weights | Ref) -> Ref:
        """Put these tensors in the place of the adapter's own; what the optimiser knows stays. Answer: none."""
        return self._call("split_take", part)

    def split_join(self, plan: SplitPlan) -> Ref:
        """A client: begin a round. Answer: none."""
        return self._call("split_join", plan)

    def split_lower(self) -> Ref:
        """A client: begin a step. Answer: `Activations`."""
        return self._call("split_lower")

    def split_labelled(self) -> Ref:
        """A client: begin a step, and show the server the labels. Answer: `Labelled`."""
        return self._call("split_labelled")

    def split_loss(self, hidden: Activations | Ref) -> Ref:
        """A client: what the server answered. Answer: its `Gradient`."""
        return self._call("split_loss", hidden)

    def split_back(self, gradient: Gradient | Ref) -> Ref:
        """A client: end the step. Answer: none."""
        return self._call("split_back", gradient)

    def split_leave(self) -> Ref:
        """A client: end the round. Answer: `Weights`, its part of the adapter."""
        return self._call("split_leave")

    def split_serve(self, plan: SplitPlan) -> Ref:
        """The server: begin a round with all clients of the plan. Answer: none."""
        return self._call("split_serve", plan)

    def split_middle(self, client: int, smashed: Activations | Ref) -> Ref:
        """The server: a client's hidden states through the middle of the model. Answer: `Activations`."""
        return self._call("split_middle", client, smashed)

    def split_middle_back(self, client: int, gradient: Gradient | Ref) -> Ref:
        """The server: step with the gradient of what it answered. Answer: `Gradient` of what it was sent."""
        return self._call("split_middle_back", client, gradient)

    def split_score(self, client: int, smashed: Labelled | Ref) -> Ref:
        """The server: step on a client's hidden states and labels. Answer: `Gradient` of what it was sent."""
        return self._call("split_score", client, smashed)

    def split_close(self, shares: Shares) -> Ref:
        """The server: end the round. Answer: `Weights`, what of its part some clients have themselves."""
        return self._call("split_close", shares)

    def split_part(self, plan: SplitPlan) -> Ref:
        """The server: what of its part no client has. Answer: `Weights`."""
        return self._call("split_part", plan)

    @abstractmethod
    def _call(self, verb: str, *args: Payload | Ref | int | float) -> Ref:
        """Ask for a verb."""
