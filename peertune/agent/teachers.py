"""What an agent is taught about public problems, by whom, and in whose vocabulary (FedMKT, arXiv:2406.02224).

Everything arrives in the vocabulary of its sender and is put into the agent's own here: nobody else needs to know how
the agent cuts text. A claim that cannot be true costs its sender that problem.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from peertune.agent.learner import Learner
from peertune.align import Aligner, Positions, Vocabulary
from peertune.align.cache import cached_map
from peertune.align.positions import BEFORE
from peertune.assessment import Assessment, believable, least_loss, right_tokens, shares
from peertune.errors import PayloadError, StorageError
from peertune.knowledge import Knowledge
from peertune.lm.encode import Row
from peertune.lm.teach import TaughtRow, one_after_the_other, teacher_of
from peertune.losses import Teacher
from peertune.payloads import Alignment, Lexicon, Tally, Teaching, decode, encode
from peertune.tasks.base import Example

NOBODY = Teacher(torch.zeros(0, 1), torch.zeros(0, 1, dtype=torch.int32), torch.zeros(0), torch.zeros(0))


@dataclass(frozen=True, eq=False)
class Problems:
    """Public problems as one agent reads them. `whole` bool [P]: its tokens spell the answer, and all of them fit."""

    rows: Sequence[Row]
    answers: Sequence[bytes]
    texts: np.ndarray
    positions: Positions
    whole: np.ndarray


@dataclass(frozen=True, eq=False)
class Source:
    """What one source says where it and the agent have read the same text: at `rows` of what is `known` to it, which
    are the `places` of the agent among all its positions. `said`: the same rows in the agent's vocabulary. `loss` [P]:
    nats a byte. `refused`: how many problems it was not believed about.
    """

    known: Knowledge
    rows: np.ndarray
    places: np.ndarray
    said: Knowledge
    loss: np.ndarray
    refused: int

    def of(self, problem: int, ranked: bool) -> tuple[Teacher, np.ndarray]:
        """Of one problem, and its places. `ranked`: in the source's vocabulary."""
        end = int(self.said.lengths[: problem + 1].sum())
        part = np.arange(end - self.said.lengths[problem], end)
        if ranked:
            return teacher_of(self.known, self.rows[part]), self.places[part]
        part = part[self.said.listed[part].any(axis=1)]  # of no entries: nothing has a counterpart
        return teacher_of(self.said, part), self.places[part]


class Teachers:
    """Final. `folder`: where the vocabularies of others are kept."""

    def __init__(self, learner: Learner, folder: Path) -> None:
        self._learner, self._folder = learner, folder
        self._vocabularies: dict[str, Vocabulary] = {}  # those of others, by digest
        self._by_bytes: dict[str, dict[bytes, int]] = {}
        self._heard: dict[int, Source] = {}

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The agent's own. Raises `ConfigError` if the bytes of its tokens cannot be had."""
        return Vocabulary.of(self._learner.lm.tokenizer)

    def read(self, examples: Sequence[Example]) -> Problems:
        """Raises `PayloadError` if none of them has an answer."""
        if not any(example.completion for example in examples):
            raise PayloadError("expected public problems with answers, found none; give the transfer set completions")
        rows = self._learner.encode_all(examples)
        tokens = ((row.ids[row.prompt_length :], each.completion) for row, each in zip(rows, examples, strict=True))
        positions = Positions.of(self.vocabulary, tokens)
        answers = [example.completion.encode() for example in examples]
        texts = [zlib.crc32(f"{each.prompt}\0{each.completion}".encode()) for each in examples]
        ends = np.cumsum(positions.lengths)
        parts = np.split(positions.starts, ends[:-1])
        ended = [
            part.min() >= BEFORE and part[-1] == len(answer) > 0 for part, answer in zip(parts, answers, strict=True)
        ]
        return Problems(
            rows, answers, np.array(texts, np.uint32).view(np.int32), positions, np.array(ended, dtype=bool)
        )

    def assess(self, problems: Problems, k: int) -> Assessment:
        """What the agent knows of these problems; nothing of those it cannot read whole, or where it has diverged."""
        known, nats = self._learner.assess(problems.rows, k)
        keep = problems.whole & (known.lengths > 0)
        starts = problems.positions.starts[np.repeat(known.lengths > 0, problems.positions.lengths)]
        return Assessment(known, starts, nats, problems.texts, self.vocabulary.digest).only(keep)

    def meet(self, lexicon: Lexicon, how: Alignment) -> None:
        """Keep another vocabulary, and find what its tokens are in the agent's own."""
        vocabulary = lexicon.vocabulary()
        if "eos" not in vocabulary.roles:
            raise PayloadError("expected a vocabulary with a token that ends a text, found none")
        kept = self._folder / f"{vocabulary.digest}.lexicon"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            kept.with_suffix(".tmp").write_bytes(encode(lexicon))
            kept.with_suffix(".tmp").replace(kept)
        except OSError as error:
            cure = "free space or check the rights"
            raise StorageError(f"{kept}: the vocabulary cannot be kept ({error.strerror}); {cure}") from error
        self._table(vocabulary, how)

    def hear(self, number: int, claim: Assessment, problems: Problems, how: Alignment) -> None:
        """Keep what a source knows, as far as it can be true. Raises `PayloadError` if it is not of these problems, or
        in a vocabulary that the agent has not met.
        """
        if len(claim.known.lengths) != len(problems.rows):
            raise PayloadError(f"expected {len(problems.rows)} problems, found {len(claim.known.lengths)}")
        source = self._met(claim.vocabulary)
        right = right_tokens(claim, problems.answers, self._ids(source), source.roles["eos"])
        sizes = np.array([len(answer) for answer in problems.answers])
        keep = believable(claim, problems.texts, sizes, right)
        claim = claim.only(keep & problems.whole)
        aligner = Aligner(source, self.vocabulary, self._table(source, how), how.merge)
        said, rows, places = aligner.translate(claim.known, claim.positions, problems.positions)
        self._heard[number] = Source(claim.known, rows, places, said, claim.loss, int((~keep).sum()))

    def take(self) -> dict[int, Source]:
        """What was heard, by the source's number; it is forgotten."""
        taken, self._heard = self._heard, {}
        return taken

    def _met(self, digest: str) -> Vocabulary:
        if digest == self.vocabulary.digest:
            return self.vocabulary
        if digest not in self._vocabularies:
            kept = self._folder / f"{digest}.lexicon"
            found = decode(kept.read_bytes()) if kept.is_file() else None
            if not isinstance(found, Lexicon) or found.vocabulary().digest != digest:
                raise PayloadError("expected a vocabulary that the agent has met, found another one")
            self._vocabularies[digest] = found.vocabulary()
        return self._vocabularies[digest]

    def _ids(self, vocabulary: Vocabulary) -> dict[bytes, int]:
        """Of tokens by their bytes."""
        if vocabulary.digest not in self._by_bytes:
            tokens = enumerate(vocabulary.tokens)
            self._by_bytes[vocabulary.digest] = {token: id for id, token in tokens if id not in vocabulary.spare}
        return self._by_bytes[vocabulary.digest]

    def _table(self, source: Vocabulary, how: Alignment) -> np.ndarray:
        """The agent's token for each of the source's."""
        if source.digest == self.vocabulary.digest:
            return np.arange(len(source.tokens), dtype=np.int32)
        return cached_map(source, self.vocabulary, how.rule, how.tie, self._folder)


def lesson(
    own: Assessment, heard: Mapping[int, Source], problems: Problems, how: Teaching
) -> tuple[list[TaughtRow], Tally]:
    """Each problem with its teachers, if it has any, and how many each source teaches."""
    numbers, sources = sorted(heard), [heard[number] for number in sorted(heard)]
    losses = np.array([source.loss for source in sources]).reshape(len(sources), len(problems.rows))
    weights = _weights(own.loss, losses, how.mode)
    tally = Tally(
        len(problems.rows),
        dict(zip(numbers, (weights > 0).sum(axis=1).tolist(), strict=True)),
        {number: source.refused for number, source in zip(numbers, sources, strict=True)},
    )
    if how.on_no_teacher == "self":
        sources, weights = [*sources, _oneself(own, problems)], np.vstack([weights, ~weights.any(axis=0)])
    first = np.cumsum(problems.positions.lengths) - problems.positions.lengths
    ranked = how.loss == "uld"
    items = []
    for at, row in enumerate(problems.rows):
        parts = [(*source.of(at, ranked), float(weights[n, at])) for n, source in enumerate(sources) if weights[n, at]]
        items.append(_taught(row, parts, int(first[at])))
    return items, tally


def _weights(own: np.ndarray, losses: np.ndarray, mode: str) -> np.ndarray:
    """By how much each source teaches each problem, [K, P]; columns sum to 1, or to 0 where nobody does."""
    match mode:
        case "weighted":
            return shares(own, losses)
        case "mean":
            known = np.isfinite(losses)
            return known / np.maximum(known.sum(axis=0), 1)
    return (np.arange(len(losses))[:, None] == least_loss(own, losses)).astype(np.float64)


def _oneself(own: Assessment, problems: Problems) -> Source:
    places = np.flatnonzero(np.repeat(own.known.lengths > 0, problems.positions.lengths))
    return Source(own.known, np.arange(len(places)), places, own.known, own.loss, 0)


def _taught(row: Row, parts: list[tuple[Teacher, np.ndarray, float]], first: int) -> TaughtRow:
    """A row and its teachers, with the places of each among all positions. `first`: the row's first position."""
    known = [part for part in parts if len(part[1])]
    if not known:
        return TaughtRow(row, NOBODY, torch.zeros(0, dtype=torch.int64))
    teachers = [replace(each, weights=torch.full((len(places),), weight)) for each, places, weight in known]
    places = np.concatenate([places for _, places, _ in known]) - first
    return TaughtRow(row, one_after_the_other(teachers), torch.from_numpy(places))
