"""The verbs of split learning: a client has the lower part and the head of its model, the server what is between.

A round begins with `split_join` and `split_serve` and ends with `split_leave` and `split_close`; only adapters and
optimisers outlast it. A server with an adapter for each client (SplitFed V1) keeps them with its checkpoints.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from peertune.agent.core import AgentCore, verb
from peertune.agent.halves import ClientSide, ServerSide, cuts_of
from peertune.errors import MethodError
from peertune.lm.cut import Cut, Parts
from peertune.lm.encode import Row
from peertune.lm.train import Trainer
from peertune.payloads import Activations, Gradient, Labelled, Shares, SplitPlan, Weights


class SplitVerbs(AgentCore):
    """As a client or as the server."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._client: ClientSide | None = None
        self._served: tuple[SplitPlan, ServerSide] | None = None
        self._copies: dict[str, Trainer] = {}  # of the server's adapter, by client

    @verb
    def split_take(self, part: Weights) -> None:
        """Put these tensors in the place of the adapter's own; what the optimiser knows stays."""
        tensors = {name: torch.from_numpy(array.copy()) for name, array in part.tensors.items()}
        for adapter in (self.name, *(copy.adapter for copy in self._copies.values())):
            self._put(adapter, tensors)

    @verb
    def split_join(self, plan: SplitPlan) -> None:
        """A client: begin a round."""
        self._client = ClientSide(self._learner, self.name, plan)

    @verb
    def split_lower(self) -> Activations:
        """A client: begin a step on a batch of its own data."""
        return self._as_client().lower(*self._next_batch())

    @verb
    def split_labelled(self) -> Labelled:
        """A client: begin a step, and show the server the labels."""
        return self._as_client().labelled(*self._next_batch())

    @verb
    def split_loss(self, hidden: Activations) -> Gradient:
        """A client: what the server made of its hidden states; the gradient of the loss by them."""
        return self._as_client().loss(hidden)

    @verb
    def split_back(self, gradient: Gradient) -> None:
        """A client: end the step with the gradient of what it began with."""
        self._as_client().back(gradient)

    @verb
    def split_leave(self) -> Weights:
        """A client: end the round. Its part of the adapter."""
        client, self._client = self._as_client(), None
        self._metrics += client.end()
        if client.losses:
            self._record.trained(sum(client.losses) / len(client.losses))
        return self._part(client.half.parts.owned(client=True))

    @verb
    def split_serve(self, plan: SplitPlan) -> None:
        """The server: begin a round. `plan.cuts` are all clients; verbs name one by its place there."""
        cuts = cuts_of(plan)
        own = self._learner.trainer
        trainers = {name: own if plan.shared else self._copy(name, cut) for name, cut in cuts.items()}
        self._served = plan, ServerSide(self._learner, plan, trainers)

    @verb
    def split_middle(self, client: int, smashed: Activations) -> Activations:
        """The server: a client's hidden states through the middle of the model."""
        return self._as_server()[1].middle(client, smashed, self._next_seed())

    @verb
    def split_middle_back(self, client: int, gradient: Gradient) -> Gradient:
        """The server: step with the gradient of what it answered; that of what it was sent."""
        return self._as_server()[1].back(client, gradient)

    @verb
    def split_score(self, client: int, smashed: Labelled) -> Gradient:
        """The server: step on a client's hidden states and labels; their gradient, and the loss."""
        return self._as_server()[1].score(client, smashed, self._next_seed())

    @verb
    def split_close(self, shares: Shares) -> Weights:
        """The server: end the round; adapters of its own for each client become their mean over those of `shares`.

        What of its part some clients have themselves.
        """
        (plan, side), self._served = self._as_server(), None
        self._metrics += side.end()
        if not plan.shared:
            mean = self._mean(shares.examples)
            for adapter in (self.name, *(copy.adapter for copy in self._copies.values())):
                self._put(adapter, mean)
        alone = set(self._owned(plan, max(plan.cuts.values())))
        return self._part([name for name in self._owned(plan, min(plan.cuts.values())) if name not in alone])

    @verb
    def split_part(self, plan: SplitPlan) -> Weights:
        """The server: what of its part no client has."""
        return self._part(self._owned(plan, max(plan.cuts.values())))

    def _more(self) -> dict[str, Tensor]:
        return {
            f"{client}/{name}": tensor
            for client, trainer in self._copies.items()
            for name, tensor in trainer.state().items()
        }

    def _take_more(self, tensors: Mapping[str, Tensor]) -> None:
        self._client = self._served = None
        states: dict[str, dict[str, Tensor]] = {}
        for path, tensor in tensors.items():
            client, name = path.split("/", 1)
            states.setdefault(client, {})[name] = tensor
        self._copies = {client: self._restored(client, state) for client, state in states.items()}

    def _restored(self, client: str, state: Mapping[str, Tensor]) -> Trainer:
        names = [name.removeprefix("adapter/") for name in state if name.startswith("adapter/")]
        trainer = Trainer(self._lm, self._adapter_for(client), self._settings.training, names)
        trainer.load_state(state)
        return trainer

    def _copy(self, client: str, cut: Cut) -> Trainer:
        """The trainer for one client; a new one begins with the server's own adapter."""
        if client not in self._copies:
            adapter = self._adapter_for(client)
            self._put(adapter, self._lm.adapter_state(self.name))
            names = Parts(self._lm, adapter, cut).owned(client=False)
            self._copies[client] = Trainer(self._lm, adapter, self._settings.training, names)
        return self._copies[client]

    def _adapter_for(self, client: str) -> str:
        name = f"{self.name}/{client}"
        if not self._lm.has_adapter(name):
            self._lm.add_adapter(name, self._lm.settings(self.name), seed=0)
        return name

    def _mean(self, examples: Mapping[str, int]) -> dict[str, Tensor]:
        """Of each tensor over the clients whose adapter has it, by their examples (as FedIT does)."""
        sums: dict[str, Tensor] = {}
        totals: dict[str, int] = {}
        for client, count in examples.items():
            trained = self._copies[client].state()
            for path in (path for path in trained if path.startswith("adapter/")):
                name = path.removeprefix("adapter/")
                totals[name] = totals.get(name, 0) + count
                sums[name] = sums.get(name, torch.zeros(())) + count * trained[path].double()
        return {name: (total / totals[name]).float() for name, total in sums.items()}

    def _owned(self, plan: SplitPlan, first: int) -> tuple[str, ...]:
        """The server's parameters where a client has `first` blocks below the first cut."""
        return Parts(self._lm, self.name, Cut(first, plan.last, plan.plain)).owned(client=False)

    def _part(self, names: Collection[str]) -> Weights:
        state = self._lm.adapter_state(self.name)
        return Weights({name: state[name].numpy() for name in names}, len(self._train))

    def _put(self, adapter: str, tensors: Mapping[str, Tensor]) -> None:
        self._lm.load_adapter(adapter, {**self._lm.adapter_state(adapter), **tensors})

    def _next_batch(self) -> tuple[Sequence[Row], int]:
        self._as_client()
        self._record.steps += 1
        return self._learner.own_batch(self._train, self._record), self._record.steps

    def _next_seed(self) -> int:
        self._record.steps += 1
        return self._learner.seed("split middle", self._record.steps)

    def _as_client(self) -> ClientSide:
        if self._client is None:
            raise MethodError(f"split: {self.name} has joined no round as a client; call split_join first")
        return self._client

    def _as_server(self) -> tuple[SplitPlan, ServerSide]:
        if self._served is None:
            raise MethodError(f"split: {self.name} serves no round; call split_serve first")
        return self._served
