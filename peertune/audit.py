"""How much of a text a server could read off the hidden states of split learning, by cut and codec.

The text is that of the test, which is public; the attacker learns from the other public problems. It knows the model
and the client's adapter, which every client of a federation has. Nothing but rates comes out of here.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from peertune.arms import make_method, make_run
from peertune.assemble import device_of, make_task, public_examples
from peertune.codecs import Codec, bytes_of
from peertune.config.schema import Config
from peertune.errors import ConfigError
from peertune.export import model_of
from peertune.ledger import Ledger
from peertune.lm.classify import encode_labelled
from peertune.lm.cut import layers_of
from peertune.lm.encode import Row, encode
from peertune.lm.inversion import Seen, look, nearest, trained
from peertune.lm.model import LanguageModel
from peertune.lm.settings import AdapterSettings
from peertune.methods import Split
from peertune.report.reading import evaluations, runs_code
from peertune.report.table import ABSENT
from peertune.runs import LEDGER, stored_config
from peertune.tasks.base import Example

COLUMNS = ("Cut", "Codec", "Bytes a token", "Nearest", "Trained", "of prompts", "of answers", "Score")
ADAPTER = "client"  # of a model that was not trained


@dataclass(frozen=True, slots=True)
class Leak:
    """Shares of the tokens of a text, 0..1, that are recovered from the hidden states after block `cut`.

    `nearest`, `trained`: by the two attackers; `prompts` and `answers` are the parts of the latter. `score`: what a
    method of the run with this cut and codec reached; None if there was none. `bytes`: of one token's state.
    """

    cut: int
    codec: str
    bytes: float
    nearest: float
    trained: float
    prompts: float
    answers: float | None
    score: float | None


@dataclass(frozen=True, slots=True)
class Audit:
    """`commonest`: the share of whoever always guesses the commonest token. `tokens`: that were attacked."""

    model: str
    what: str
    tokens: int
    commonest: float
    leaks: list[Leak]

    @property
    def title(self) -> str:
        return (
            f"{self.what}: tokens of {self.tokens} that are recovered from hidden states, in % (always guessing the "
            f"commonest: {_percent(self.commonest)})"
        )

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    def rows(self) -> list[list[str]]:
        """As a table with `COLUMNS`, shares in %."""
        return [
            [
                *(str(leak.cut), leak.codec, f"{leak.bytes:.0f}"),
                *(_percent(share) for share in (leak.nearest, leak.trained, leak.prompts, leak.answers, leak.score)),
            ]
            for leak in self.leaks
        ]


def audit_run(folder: Path, agent: str | None, arm: str | None, watch: Callable[[int, int], None]) -> Audit:
    """Of an agent's model as it was after the last round of an arm. Raises `ConfigError`: no such names, no text."""
    config = stored_config(folder)
    name, arm = agent or config.agent_names()[0], arm or str(config.method.type)
    lm = model_of(folder, name, arm)
    ledger = Ledger.read(folder / LEDGER)
    scores = _scores(config, ledger, name)
    ledger.close()
    return _audit(config, lm, (name, f"{name} after {arm}"), scores, watch)


def audit_config(config: Config, watch: Callable[[int, int], None]) -> Audit:
    """Of the first agent's model as it is, before any training."""
    party = config.agents[0]
    adapter = party.adapter or config.adapter
    labels = make_task(config.task, config.seed, None).labels
    lm = LanguageModel.load(party.model, device_of(config), labels, config.seed)
    lm.add_adapter(ADAPTER, AdapterSettings(adapter.rank, adapter.alpha, 0.0, adapter.target_modules), seed=0)
    return _audit(config, lm, (ADAPTER, f"{config.agent_names()[0]} before training"), {}, watch)


def _audit(
    config: Config,
    lm: LanguageModel,
    who: tuple[str, str],
    scores: Mapping[tuple[int, Codec], float],
    watch: Callable[[int, int], None],
) -> Audit:
    adapter, what = who
    layers = layers_of(lm, adapter)
    if not layers:
        raise ConfigError(f"audit: {lm.source} ({lm.family}) cannot be split, so there is nothing to be seen of it")
    width = look(lm, adapter, 1, [Row((0,), 1, False)], Codec()).hidden.shape[1]
    codecs = list(
        dict.fromkeys([Codec(), Codec("int8"), Codec("topk", keep=max(1, width // 8)), *(c for _, c in scores)])
    )
    public, target = _texts(config, lm)
    leaks: list[Leak] = []
    for first in range(1, layers):
        for codec in codecs:
            leaks.append(_leak(lm, adapter, (first, codec), (public, target), scores.get((first, codec))))
            watch(len(leaks), (layers - 1) * len(codecs))
    tokens = torch.tensor([token for row in target for token in row.ids[1:]])
    commonest = float((tokens == tokens.mode().values).float().mean())
    return Audit(lm.source, what, len(tokens), commonest, leaks)


def _leak(
    lm: LanguageModel, adapter: str, at: tuple[int, Codec], texts: tuple[list[Row], list[Row]], score: float | None
) -> Leak:
    first, codec = at
    public, target = (look(lm, adapter, first, rows, codec) for rows in texts)
    guessed, inverted = nearest(lm, adapter, first, public, target), trained(public, target, seed=0)
    later = target.places > 0  # what begins every text is no secret
    per_token = bytes_of(codec, 1000, target.hidden.shape[1]) / 1000
    return Leak(
        cut=first,
        codec=codec.name,
        bytes=per_token,
        nearest=_share(guessed, target, later) or 0.0,
        trained=_share(inverted, target, later) or 0.0,
        prompts=_share(inverted, target, later & ~target.answers) or 0.0,
        answers=_share(inverted, target, later & target.answers),
        score=score,
    )


def _texts(config: Config, lm: LanguageModel) -> tuple[list[Row], list[Row]]:
    """What the attacker learns from, and what it attacks: public problems and the test, or half of the test each."""
    test = make_task(config.task, config.seed, None).examples("test")
    known = [example for split in public_examples(config) for example in split]
    if not known:
        known, test = test[::2], test[1::2]
    if not known or not test:
        raise ConfigError("audit: expected at least two test problems, or public ones; found fewer")
    return _encode(config, lm, known), _encode(config, lm, test)


def _encode(config: Config, lm: LanguageModel, examples: Sequence[Example]) -> list[Row]:
    length = min(config.training.max_length, lm.max_length)
    if lm.labels:
        return [encode_labelled(lm, example.prompt, example.completion, length) for example in examples]
    return [encode(lm.tokenizer, each.prompt, each.completion, length, each.chat) for each in examples]


def _scores(config: Config, ledger: Ledger, name: str) -> dict[tuple[int, Codec], float]:
    """(cut, codec) -> the mean score after the last evaluated round of the arm that splits this agent's model so."""
    run, found = make_run(config, ([], []), [], None), {}
    graded = evaluations(ledger)
    for arm, section in config.arms().items():
        if section.type == "split" and arm in graded:
            method = make_method(run, section)
            assert isinstance(method, Split)
            last = graded[arm][max(graded[arm])]
            k = 1 if runs_code(config.model_dump(mode="json")) else None
            mean = sum(float(scored.values(k).mean()) for scored in last.values()) / len(last)
            found[method.first(name), Codec(method.codec, method.outliers, method.keep)] = mean
    return found


def _share(found: Tensor, target: Seen, where: Tensor) -> float | None:
    return float((found == target.tokens)[where].float().mean()) if bool(where.any()) else None


def _percent(share: float | None) -> str:
    return ABSENT if share is None else f"{100 * share:.1f}"
