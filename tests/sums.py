"""True agents on a task without programs: sums, whose texts are planted, so that every right and wrong text is known.

`Direct` runs each call at once, in this process.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from peertune.agent import Agent, AgentSettings
from peertune.agent.desk import AgentData
from peertune.assemble import rules_of
from peertune.config.guarding import Guarding
from peertune.config.schema import Release
from peertune.engines.base import Argument, Barrier, Engine, Entry, Host, Ref, Resident
from peertune.ledger import COORDINATOR
from peertune.lm.model import LanguageModel
from peertune.lm.settings import AdapterSettings, TrainingSettings
from peertune.methods import Budget, Run
from peertune.methods.base import Public
from peertune.payloads import Number, Payload
from peertune.profiles import AgentRecord
from peertune.tasks.base import Example, Split, Task

TRANSFER, PROBE = 4, 3
WRONG = "0"  # no sum of this task


class Sums(Task):
    """`n + n = `, by parity. A test is the one right text."""

    name = "sums"
    categories = ("even", "odd")

    def examples(self, split: Split) -> list[Example]:
        first, count = {"train": (40, 8), "validation": (60, 4), "transfer": (1, TRANSFER), "probe": (20, PROBE)}.get(
            split, (30, 2)
        )
        return [sum_of(number, public=split in ("transfer", "probe")) for number in range(first, first + count)]

    def clean(self, text: str) -> str:
        return text

    def grade(self, examples: Sequence[Example], texts: Sequence[str]) -> list[float]:
        return [float(text in example.tests) for example, text in zip(examples, texts, strict=True)]


def sum_of(number: int, public: bool = False) -> Example:
    right, category = str(2 * number), Sums.categories[number % 2]
    return Example(f"{number} + {number} = ", right, category, (right,), (right,) if public else (), key=str(number))


def make_agent(lm: LanguageModel, folder: Path, name: str, kind: type[Agent] = Agent, tested: bool = True) -> Agent:
    """An agent that all share the model with. Without `tested` no public problem has tests that anybody may run."""
    task = Sums()
    lm.add_adapter(name, AdapterSettings(rank=2, alpha=4), seed=len(name) + ord(name[-1]))
    splits = {split: task.examples(split) for split in ("train", "validation", "transfer", "probe", "test")}
    if not tested:
        splits |= {split: [sum_of(int(each.key)) for each in splits[split]] for split in ("transfer", "probe")}
    training = TrainingSettings(batch_size=4, warmup_steps=0)
    rules = {"release": Release().model_dump(), "guard": rules_of(Guarding())}
    settings = AgentSettings(name, 0, folder / name, training, 4, codebleu=False, **rules)
    record = AgentRecord(static=(0.0,) * 8, histogram=(1.0, *[0.0] * 11))
    return kind(settings, lm, AgentData(**splits, task=task), record)


def plant(agent: Agent, texts: Mapping[int, str]) -> None:
    """The agent answers `n + n` with `texts[n]`, and with nothing where there is none."""

    def complete(examples: Sequence[Example], sampling: Any) -> list[str]:
        return [texts.get(int(example.key), "") for example in examples]

    agent._learner.complete = complete


def right(*numbers: int) -> dict[int, str]:
    return {number: str(2 * number) for number in numbers}


def surprised(agent: Agent, by_text: Mapping[str, float]) -> None:
    """The agent finds these texts so surprising, in nats a token; for drafts only."""
    agent._learner.encode = lambda prompt, completion, chat=False: completion  # pyright: ignore
    agent._learner.losses = lambda rows: np.array([[3 * by_text[row], 3.0] for row in rows])  # pyright: ignore


def run_of(rounds: int = 3, steps: int = 1, tested: bool = True) -> Run:
    task = Sums()
    transfer, probe = (
        tuple(Public(each.category, tested) for each in task.examples(split)) for split in ("transfer", "probe")
    )
    return Run(rounds, 0, Budget(local_steps=1, exchange_steps=steps), transfer, probe)


def call(agent: Agent, verb: str, *args: Any) -> Any:
    return agent.call(verb, [arg if isinstance(arg, Payload) else Number(arg) for arg in args])


class Direct(Engine):
    """Runs each call as it is submitted."""

    def __init__(self, agents: Mapping[str, Resident]) -> None:
        self.host, self.calls = Host(agents), list[tuple[str, str]]()
        self._rows: dict[int, list[Entry]] = {}

    def submit(self, ref: Ref, args: Sequence[bytes | Ref]) -> None:
        self.calls.append((ref.owner, ref.verb))
        values = [Argument(arg, None) if isinstance(arg, Ref) else Argument(None, arg) for arg in args]
        self._rows[ref.id], _ = self.host.run(ref, values)

    def fetch(self, ref: Ref) -> bytes:
        return self.host.release(ref, COORDINATOR)

    def end_round(self, busy: Collection[str] = ()) -> Barrier:
        rows, self._rows = self._rows, {}
        self.host.clear()
        return Barrier(rows, [], [])

    def close(self) -> None:
        """Nothing was started."""
