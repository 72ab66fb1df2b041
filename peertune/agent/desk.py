"""Where an agent writes and receives texts for public problems: its drafts of this round, its lessons for good.

No text leaves here but through `share`, and none is learnt from that did not pass `accept`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, compress

import numpy as np
import torch

from peertune.agent.drafts import Draft, Lesson, PublicProblems, add_lesson, confidence_threshold, fitting, surprise
from peertune.agent.learner import Learner
from peertune.lm.encode import Row
from peertune.lm.settings import Sampling
from peertune.lm.teach import with_teacher
from peertune.losses import Teacher
from peertune.payloads import Claims, Logits, Picks, Texts, Verdicts, Weights
from peertune.profiles import AgentRecord
from peertune.tasks.base import Example, Task


@dataclass(frozen=True, slots=True)
class AgentData:
    """What an agent trains and is measured on; `train` and `validation` never leave it.

    Everybody holds the same `transfer` and `probe` problems. Public problems are numbered: transfer first, then probe.
    """

    train: Sequence[Example]
    validation: Sequence[Example]
    transfer: Sequence[Example]
    probe: Sequence[Example]
    test: Sequence[Example]
    task: Task

    def texts(self) -> tuple[Iterator[str], Iterator[str]]:
        """What is private of all this, and what everybody has."""
        private = (each.prompt + each.completion for each in (*self.train, *self.validation))
        answered = (each.prompt + each.completion for each in (*self.probe, *self.test))
        return private, chain((each.prompt for each in self.transfer), answered)


class Desk:
    """Final. `adapter`, `pulled`: another's adapter and all bytes that it was sent since its last lesson.

    `may_leave`: would the guard let this text go as it is?
    """

    def __init__(self, learner: Learner, data: AgentData, may_leave: Callable[[str], bool]) -> None:
        self._learner, self._task, self._may_leave = learner, data.task, may_leave
        self._public = PublicProblems(data.task, data.transfer, data.probe)
        self._known = data.probe or data.validation  # whose answers it knows, to learn how far to trust itself
        self.drafts: dict[int, Draft] = {}
        self.threshold = 0.0  # of the drafts' surprise
        self.pulled = 0
        self.adapter: dict[str, torch.Tensor] = {}
        self.views: dict[Row, Teacher] = {}  # what the authors of lessons expected at each of their tokens
        self._arrived: dict[int, str] = {}  # texts that were accepted since the last lesson
        self._replaced: dict[int, Lesson | None] = {}  # lessons before what was accepted since the last one
        self._said: dict[int, set[str]] = {}  # texts that came since the last lesson and could not be tested

    def clear(self) -> None:
        """Forget the round."""
        self.drafts = {}
        self.settle()

    def settle(self) -> None:
        """A lesson is over: what was sent for it has been used."""
        self.pulled, self.adapter, self.views = 0, {}, {}
        self._arrived, self._replaced, self._said = {}, {}, {}

    def undo(self, record: AgentRecord) -> None:
        """The lesson did harm: what was accepted for it is forgotten."""
        for problem, before in self._replaced.items():
            if before is None:
                record.lessons.pop(problem, None)
            else:
                record.lessons[problem] = before

    def take(self, adapter: Weights) -> None:
        """Keep another's adapter for the lesson. Raises `PayloadError` if it does not fit the agent's own."""
        self.adapter = self._learner.fitting(adapter.tensors)
        self.pulled += sum(array.nbytes for array in adapter.tensors.values())

    def draft(self, record: AgentRecord, which: Picks, sampling: Sampling, gates: tuple[bool, bool]) -> Claims:
        """Answer these problems. `gates`: withhold what is not `confident`; what is not `tested` right."""
        confident, tested = gates
        self.clear()  # also what a lesson that failed left behind
        written = self._write(self._public.of(which), sampling, tested)
        self.drafts = dict(zip(which.items, written, strict=True))
        self.threshold = self._calibrate(sampling.max_new_tokens) if confident else float("inf")
        for problem, draft in self.drafts.items():
            if draft.verified and self._public.teaches(problem):
                add_lesson(record.lessons, problem, Lesson(draft.text, verified=True))
        lessons, drafts = record.lessons, self.drafts.values()
        return Claims(
            surprise=tuple(draft.surprise for draft in drafts),
            offered=tuple(int(draft.offered(self.threshold)) for draft in drafts),
            settled=tuple(int(problem in lessons and lessons[problem].verified) for problem in which.items),
        )

    def share(self, which: Picks) -> Texts:
        """The drafts of these problems; empty where there is none or it is withheld."""
        drafts = [self.drafts.get(problem) for problem in which.items]
        return Texts(tuple(draft.text if draft and draft.offered(self.threshold) else "" for draft in drafts))

    def express(self, which: Picks, k: int) -> Logits:
        """What the agent expected at each token of the drafts that it shares; nothing of those it withholds or that the
        guard would not let go as they are: who has it can read the text from it.
        """
        texts = [text if self._may_leave(text) else "" for text in self.share(which).items]
        rows = [self._learner.encode(each.prompt, text) for each, text in zip(self.public(which), texts, strict=True)]
        known = self._learner.expectations(rows, k)
        return Logits.of(known.only(np.array([bool(text) for text in texts])))

    def soften(self, record: AgentRecord, which: Picks, logits: Logits) -> Verdicts:
        """The texts just accepted for these problems are learnt once with what their author expected at each token.

        Raises `PayloadError` if it is not of these problems and of the agent's own vocabulary.
        """
        self.pulled += sum(array.nbytes for array in logits.tensors.values())
        known = fitting(logits, which, self._learner.width)
        texts = [self._arrived.get(problem, "") for problem in which.items]
        rows = [self._learner.encode(each.prompt, text) for each, text in zip(self.public(which), texts, strict=True)]
        whole = known.lengths == [row.loss_tokens for row in rows]
        is_lesson = [problem in record.lessons and record.lessons[problem].text for problem in which.items]
        kept = np.array([text != "" and text == lesson for text, lesson in zip(texts, is_lesson, strict=True)])
        self.views |= {item.row: item.teacher for item in with_teacher(rows, known.only(whole & kept))}
        return Verdicts(tuple((whole & kept).astype(int).tolist()))

    def accept(self, record: AgentRecord, which: Picks, texts: Texts, gates: tuple[bool, bool]) -> Verdicts:
        """Keep of texts what counts as lessons. `gates`: `tested`, of problems with public tests only what passes;
        `agreed`, of others only what somebody else wrote, too.
        """
        tested, agreed = gates
        self.pulled += sum(len(text.encode()) for text in texts.items)
        cleaned = [self._task.clean(text) for text in texts.items]  # no test sees the rest, which may be anything
        verified = self._public.verify(self._public.of(which, texts), cleaned, tested)
        useful = [bool(text.strip()) and one is not False for text, one in zip(cleaned, verified, strict=True)]
        arrived = [*zip(which.items, cleaned, verified, strict=True)]
        if agreed:
            said = [one is not None or self._agreed(problem, text) for problem, text, one in arrived]
            useful = [one and two for one, two in zip(useful, said, strict=True)]
        for problem, text, passed in compress(arrived, useful):
            if self._public.teaches(problem):
                self._replaced.setdefault(problem, record.lessons.get(problem))
                add_lesson(record.lessons, problem, Lesson(text, verified=bool(passed)))
                self._arrived[problem] = text
        return Verdicts(tuple(map(int, useful)))

    def _agreed(self, problem: int, text: str) -> bool:
        """Has the agent drafted this, or has it come from somebody else before?"""
        said, own = self._said.setdefault(problem, set()), self.drafts.get(problem)
        found = text.strip() in said or (own is not None and own.text.strip() == text.strip())
        said.add(text.strip())
        return found

    def public(self, which: Picks) -> list[Example]:
        """These public problems, with their answers."""
        return self._public.of(which)

    def inspect(self, which: Picks, texts: Texts) -> Verdicts:
        """Grade texts for problems whose answers are known; keep nothing."""
        grades = self._task.grade(self._public.of(which, texts), texts.items)
        return Verdicts(tuple(int(grade == 1.0) for grade in grades))

    def accuracy(self, record: AgentRecord) -> float | None:
        """Share of the lessons that are right, by what nobody used to choose them; None where that is not known."""
        return self._public.accuracy(record.lessons)

    def rows(self, record: AgentRecord) -> list[Row]:
        """The lessons as rows to train on, in the order of their problems."""
        problems = self._public.numbered(sorted(record.lessons))
        return [self._learner.encode(problem.prompt, record.lessons[at].text) for at, problem in problems.items()]

    def _write(self, problems: Sequence[Example], sampling: Sampling, tested: bool) -> list[Draft]:
        texts = [self._task.clean(text) for text in self._learner.complete(problems, sampling)]
        rows = [self._learner.encode(problem.prompt, text) for problem, text in zip(problems, texts, strict=True)]
        surprises = [surprise(nats, tokens) for nats, tokens in self._learner.losses(rows)]
        return [
            Draft(*each) for each in zip(texts, surprises, self._public.verify(problems, texts, tested), strict=True)
        ]

    def _calibrate(self, max_new_tokens: int) -> float:
        """Where right and wrong texts part, on problems whose answers are known."""
        drafts = self._write(self._known, Sampling(max_new_tokens), tested=False)
        right = self._task.grade(self._known, [draft.text for draft in drafts])
        return confidence_threshold(np.array([draft.surprise for draft in drafts]), np.array(right) == 1.0)
