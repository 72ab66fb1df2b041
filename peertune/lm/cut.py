"""A transformer cut into lower, middle and head, each of the model's own modules (split learning, arXiv:1812.00564).

lower = embeddings + blocks[:first], middle = blocks[first:last], head = blocks[last:] + final norm + LM head, or
pooler and classifier. A part is a shallow twin of the model's backbone that has only its own blocks and passes through
what belongs to another part. So its masks, positions and attention are those that the model's own forward makes.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from peertune.errors import MethodError
from peertune.lm.model import LanguageModel


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a model of L blocks is cut: 1 <= `first` <= L - 1 and `first` < `last` <= L; None = L.

    U-shape: lower and head stay at the client, and with them the labels. `plain`: the head is at the server, too,
    which therefore sees the labels.
    """

    first: int
    last: int | None = None
    plain: bool = False


class _Given(nn.Module):
    """In the place of an embedding layer that is called with hidden states: returns them."""

    def forward(self, inputs_embeds: Tensor, **_: Any) -> Tensor:
        return inputs_embeds


class _Nothing(nn.Module):
    """In the place of an embedding that is added: adds 0."""

    def forward(self, positions: Tensor) -> Tensor:
        return torch.zeros((), device=positions.device)


@dataclass(frozen=True, slots=True)
class _Family:
    """Names in a backbone. `below`: what comes before the blocks, and what stands in for it above a cut."""

    blocks: str
    after: str
    below: Mapping[str, type[nn.Module]]


ENCODERS = ("bert", "roberta", "xlm-roberta")  # cut as classifiers alone
_LLAMA = _Family("layers", "norm", {"embed_tokens": nn.Identity})
_FAMILIES = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), _LLAMA),
    "gpt2": _Family("h", "ln_f", {"wte": nn.Identity, "wpe": _Nothing, "drop": nn.Identity}),
    "gpt_neox": _Family("layers", "final_layer_norm", {"embed_in": nn.Identity, "emb_dropout": nn.Identity}),
    "bloom": _Family("h", "ln_f", {"word_embeddings": nn.Identity, "word_embeddings_layernorm": nn.Identity}),
    **dict.fromkeys(ENCODERS, _Family("encoder.layer", "pooler", {"embeddings": _Given})),
}


class Parts:
    """The parts of a model. Final. To be called within `lm.using(adapter)`, backward as well.

    All hidden states are [rows, tokens, width] with padding on the right; `mask` is that of `mask_of`. `upper` is
    blocks[last:], the identity where there are none; `readout`: [n, width] -> logits [n, classes]. `names`: the LoRA
    parameters of lower, middle and head as in `lm.trainable`. Raises `MethodError`: an architecture that is not
    known here, a cut outside of the model.
    """

    def __init__(self, lm: LanguageModel, adapter: str, cut: Cut) -> None:
        with lm.using(adapter) as model:
            base = model.get_base_model()
        family = _family(base, lm.source)
        blocks = base.base_model.get_submodule(family.blocks)
        self.cut, self.layers = cut, len(blocks)
        self.width, self.dtype = int(base.config.hidden_size), base.dtype
        self.first, self.last = first, last = _check_cut(cut, self.layers, lm.source)
        self.readout: nn.Module = _readout(base, family)
        self._lower = _twin_of(base.base_model, family, 0, first)
        self._middle = _twin_of(base.base_model, family, first, last)
        self._upper = _twin_of(base.base_model, family, last, self.layers) if last < self.layers else None
        self._causal = base.config.model_type not in ENCODERS
        self._pad: int | None = base.config.pad_token_id
        head = nn.ModuleList([self.readout] if self._upper is None else [self._upper, self.readout])
        modules = {"lower": self._lower, "middle": self._middle, "head": head}
        trainable = lm.trainable(adapter)
        self.names = {part: _names_in(module, trainable) for part, module in modules.items()}

    @property
    def whole_return(self) -> bool:
        """Must all hidden states come back to the head? If not, only those that are read: it has no blocks."""
        return self._upper is not None

    def owned(self, client: bool) -> tuple[str, ...]:
        """The LoRA parameters of the client or of the server."""
        of_client = ("lower",) if self.cut.plain else ("lower", "head")
        return tuple(sorted(name for part in self.names if (part in of_client) == client for name in self.names[part]))

    def mask_of(self, lengths: Tensor) -> Tensor:
        """Rows of `lengths` tokens -> attention mask [rows, tokens]; all ones where attention never looks right."""
        places = torch.arange(int(lengths.max()), device=lengths.device)
        real = places[None, :] < lengths[:, None]
        return torch.ones_like(real, dtype=torch.long) if self._causal else real.long()

    def pooled(self, ids: tuple[int, ...]) -> int:
        """Which token of a row a classification head reads, as transformers has it."""
        if not self._causal:
            return 0
        return max((place for place, token in enumerate(ids) if token != self._pad), default=0)

    def lower(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Tokens [rows, tokens] -> hidden states."""
        return _hidden(self._lower, mask, input_ids=ids)

    def middle(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Hidden states -> hidden states."""
        return _hidden(self._middle, mask, inputs_embeds=hidden)

    def upper(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Hidden states -> hidden states, before the final norm."""
        return hidden if self._upper is None else _hidden(self._upper, mask, inputs_embeds=hidden)


def _hidden(part: Any, mask: Tensor, **inputs: Tensor) -> Tensor:
    return part(attention_mask=mask, use_cache=False, **inputs).last_hidden_state


def _family(base: Any, source: str) -> _Family:
    kind = base.config.model_type
    classifier = type(base).__name__.endswith("ForSequenceClassification")
    if kind not in _FAMILIES or not (classifier or (kind not in ENCODERS and base.get_output_embeddings() is not None)):
        raise MethodError(
            f"{source}: a {type(base).__name__} cannot be split; expected a language model or sequence classifier of "
            f"{', '.join(sorted(_FAMILIES.keys() - set(ENCODERS)))}, or a sequence classifier of "
            f"{', '.join(ENCODERS)}. Use another model or method."
        )
    return _FAMILIES[kind]


def layers_of(lm: LanguageModel, adapter: str) -> int:
    """How many blocks there are to cut between; 0 if the model cannot be cut."""
    with lm.using(adapter) as model:
        base = model.get_base_model()
    try:
        family = _family(base, lm.source)
    except MethodError:
        return 0
    return len(base.base_model.get_submodule(family.blocks))


def _check_cut(cut: Cut, layers: int, source: str) -> tuple[int, int]:
    last = layers if cut.last is None else cut.last
    if cut.plain and last != layers:
        raise MethodError(f"{source}: the plain variant has one cut; leave out the last one, {last}, or plain")
    if not 1 <= cut.first <= layers - 1:
        raise MethodError(
            f"{source} has {layers} blocks: the first cut is after block 1 to {layers - 1}, not {cut.first}"
        )
    if not cut.first < last <= layers:
        raise MethodError(
            f"{source} has {layers} blocks and is first cut after {cut.first}: the last cut is after block "
            f"{cut.first + 1} to {layers}, not {last}"
        )
    return cut.first, last


def _readout(base: Any, family: _Family) -> nn.Module:
    """From hidden states [n, width] at the tokens that are read to logits."""
    if base.config.model_type in ENCODERS:
        one_token_rows = nn.Unflatten(0, (-1, 1))  # the head, or BERT's pooler, reads the first token of each row
        if base.config.model_type == "bert":
            return nn.Sequential(one_token_rows, base.bert.pooler, base.dropout, base.classifier)
        return nn.Sequential(one_token_rows, base.classifier)
    after = base.base_model.get_submodule(family.after)
    classifier = type(base).__name__.endswith("ForSequenceClassification")
    return nn.Sequential(after, base.score if classifier else base.get_output_embeddings())


def _twin_of(backbone: Any, family: _Family, start: int, stop: int) -> Any:
    """The backbone with blocks[start:stop] only, and without the embeddings unless it starts at 0."""
    blocks = backbone.get_submodule(family.blocks)
    changes: dict[str, nn.Module] = {family.blocks: nn.ModuleList(blocks[start:stop]), family.after: nn.Identity()}
    if start:
        changes |= {name: stand_in() for name, stand_in in family.below.items()}
    twin = _with(backbone, changes)
    if types := getattr(backbone.config, "layer_types", None):  # by which a block finds its mask
        twin.config = copy.copy(backbone.config)
        twin.config.layer_types = types[start:stop]
    return twin


def _with(module: Any, changes: Mapping[str, nn.Module]) -> Any:
    """A shallow copy, which shares its children, but for `changes` (dotted names)."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    for path, new in changes.items():
        child, _, rest = path.partition(".")
        twin._modules[child] = _with(twin._modules[child], {rest: new}) if rest else new
    return twin


def _names_in(module: nn.Module, trainable: Mapping[str, nn.Parameter]) -> tuple[str, ...]:
    own = {id(parameter) for parameter in module.parameters()}
    return tuple(name for name, parameter in trainable.items() if id(parameter) in own)
