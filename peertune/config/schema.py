"""Every key of a configuration, its type, its default and its unit. Unknown keys are errors.

`type` names the method, task, partition or matchmaker; the other keys beside it are those that this type uses.
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, model_validator

from peertune.config.asynchrony import AsynchronyConfig
from peertune.config.guarding import Guarding
from peertune.config.release import Release, ServerRelease
from peertune.config.section import Section, Typed, bare_name, one_of
from peertune.ledger import SERVER
from peertune.matchmakers import MATCHMAKERS, ROUTERS
from peertune.methods import METHODS
from peertune.partition import PARTITIONS

VERSION = 1
Count = Annotated[int, Field(ge=0)]


# Tasks. The dataclasses of partitions, methods and matchmakers say what their sections hold.

if TYPE_CHECKING:
    PartitionConfig = Any
    MatchmakerConfig = Any
    MethodConfig = Any
else:
    PartitionConfig = one_of(PARTITIONS)
    MatchmakerConfig = one_of(MATCHMAKERS)
    RouterConfig = one_of(ROUTERS)
    MethodConfig = one_of(
        METHODS,
        run=(None, None),
        matchmaker=(MatchmakerConfig, {"type": "pairwise"}),
        router=(RouterConfig, {"type": "beta"}),
    )


class CodeletsTask(Typed):
    """Small generated programming problems in 12 categories. Sizes are examples in all."""

    type: Literal["codelets"] = "codelets"
    train: PositiveInt = 480
    validation: PositiveInt = 96
    transfer: Count = 96
    probe: Count = 48
    test: PositiveInt = 96
    partition: PartitionConfig = {"type": "dirichlet"}


class MBPPTask(Typed):
    """Mostly Basic Python Problems, from a file or the hub; the train split is dealt to the agents. `transfer`: so many
    problems of it are public instead, with two of their tests; or a file of prompts.
    """

    type: Literal["mbpp"] = "mbpp"
    path: str = "google-research-datasets/mbpp"
    transfer: PositiveInt | str | None = None
    partition: PartitionConfig = {"type": "iid"}


class HumanEvalTask(Typed):
    """HumanEval, from a file or the hub: test problems only, so every agent brings `data` of its own."""

    type: Literal["humaneval"] = "humaneval"
    path: str = "openai/openai_humaneval"
    transfer: str | None = None


class RecordsTask(Typed):
    """Your own data: `test` and `transfer` are files or folders of prompt/completion, text or messages records."""

    type: Literal["records"] = "records"
    test: str
    transfer: str | None = None


class AnswersTask(Typed):
    """Your own questions in categories, one right answer each, dealt to the agents. Sizes are examples in all."""

    type: Literal["answers"] = "answers"
    path: str
    train: PositiveInt = 480
    validation: PositiveInt = 96
    transfer: Count = 96
    probe: Count = 48
    test: PositiveInt = 96
    partition: PartitionConfig = {"type": "dirichlet"}


class IntentTask(Typed):
    """Messages and their intents, as in BANKING77, dealt to the agents. Files have `text` and `category`; `test_path`
    has the test. `output`: models (encoders, too) choose a class, or write its name. Sizes are messages in all; null
    is all that there are, of `train` all that is left.
    """

    type: Literal["intent"] = "intent"
    path: str
    test_path: str
    output: Literal["classes", "text"] = "classes"
    train: PositiveInt | None = None
    validation: PositiveInt = 400
    transfer: Count = 1000
    probe: Count = 200
    test: PositiveInt | None = None
    partition: PartitionConfig = {"type": "dirichlet"}


TaskConfig = Annotated[
    CodeletsTask | MBPPTask | HumanEvalTask | RecordsTask | AnswersTask | IntentTask,
    Field(discriminator="type"),
    BeforeValidator(bare_name),
]

# Agents


class Adapter(Section):
    """LoRA. `target_modules`: names of layers; the architecture's attention and MLP layers if absent."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 8
    alpha: PositiveInt = 16
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: tuple[str, ...] | None = None


class Training(Section):
    """AdamW on the adapter. `clip_norm`: of the gradient. `max_length`: tokens of one example."""

    learning_rate: PositiveFloat = 3e-3
    batch_size: PositiveInt = 16
    accumulate: PositiveInt = 1
    warmup_steps: Count = 20
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip_norm: PositiveFloat = 1.0
    max_length: Annotated[int, Field(ge=8)] = 192


class Data(Section):
    """An agent's own records: a file or folder; `validation` is the share held out."""

    path: str
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1


class Party(Section):
    """Who has a model. `model`: bundled/NAME, a local folder, or a hub id (safetensors only). `adapter`, `guard`:
    its own, instead of the run's.
    """

    model: str
    adapter: Adapter | None = None
    release: Release = Release()
    guard: Guarding | None = None


class AgentConfig(Party):
    """One agent.

    `fault`, for studies of what bad agents do to others: `useless` learns from shuffled answers; so does `liar`, which
    hands out wrong texts and claims to be certain of them.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,31}$")] | None = None
    data: Data | None = None
    fault: Literal["useless", "liar"] | None = None


class ServerConfig(Party):
    """The server of methods that need one: a model and no data of its own."""

    release: ServerRelease = ServerRelease()  # pyright: ignore[reportIncompatibleVariableOverride]


# The run


class BudgetConfig(Section):
    """Optimiser steps: before round 1 (the same for every method), and in each round alone and on an exchange."""

    warm_start_steps: Count = 60
    local_steps: Count = 8
    exchange_steps: PositiveInt = 24


class FinalEvaluation(Section):
    """After an arm's last round, also `samples` sampled completions a problem, for Pass@`k`."""

    samples: Annotated[int, Field(ge=2)] = 10
    temperature: Annotated[float, Field(gt=0, le=10)] = 0.8
    k: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 5, 10)


class Evaluation(Section):
    """Grading the test problems every `every` rounds and after the last: `samples` completions a problem, Pass@`k`.

    `codebleu`: also compare with the reference solutions (extra `peertune[metrics]`).
    """

    every: PositiveInt = 1
    samples: PositiveInt = 1
    k: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1,)
    temperature: Annotated[float, Field(ge=0, le=10)] = 0.0
    max_new_tokens: PositiveInt = 48
    codebleu: bool = False
    final: FinalEvaluation | None = None


class EngineConfig(Section):
    """`workers`: processes; `auto` is one a core or GPU, with `asynchrony` one a party, 0 runs everything in this
    process. `deadline`: seconds a call.
    """

    type: Literal["local"] = "local"
    workers: Count | Literal["auto"] = "auto"
    deadline: PositiveFloat = 600.0
    device: Literal["auto", "cpu", "cuda"] = "auto"


class AvailabilityConfig(Section):
    """Who is there in a round, and how fast, in virtual time: units of one optimiser step of an ordinary agent.

    `dropout`: probability that an agent misses a round. `stragglers`: share of the agents that need `slowdown` times as
    long. A round closes when a `quorum` of its receivers have reported, or `deadline` units after it began; what comes
    later is learnt from when it comes. `present`: the rounds that an agent takes part in, first and last; null is the
    end, `{dana: [[1, 2], [5, null]]}` leaves and returns. All others are always there.
    """

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    stragglers: Annotated[float, Field(ge=0, le=1)] = 0.0
    slowdown: Annotated[float, Field(ge=1, le=1e6)] = 10.0
    quorum: Annotated[float, Field(gt=0, le=1)] = 1.0
    deadline: PositiveFloat | None = None
    present: dict[str, tuple[tuple[PositiveInt, PositiveInt | None], ...]] = {}


class Config(Section):
    """One run: the method, and the baselines that start from the same agents, data, seed and budget."""

    version: Annotated[int, Field(ge=1, le=VERSION)] = VERSION
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    rounds: PositiveInt = 8
    task: TaskConfig
    agents: Annotated[tuple[AgentConfig, ...], Field(min_length=1)]
    server: ServerConfig | None = None
    adapter: Adapter = Adapter()
    guard: Guarding = Guarding()
    training: Training = Training()
    method: MethodConfig
    baselines: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")], MethodConfig] = {}
    budget: BudgetConfig = BudgetConfig()
    evaluation: Evaluation = Evaluation()
    engine: EngineConfig = EngineConfig()
    availability: AvailabilityConfig | None = None
    asynchrony: AsynchronyConfig | None = None
    sandbox: Literal["bubblewrap", "unsafe"] = "bubblewrap"

    @model_validator(mode="after")
    def _fits_together(self) -> "Config":
        from peertune.config.combinations import check_combinations  # the checks read the finished model

        check_combinations(self)
        return self

    def agent_names(self) -> list[str]:
        """The agents' names; unnamed ones are a0, a1, ... by their place."""
        return [agent.name or f"a{index}" for index, agent in enumerate(self.agents)]

    def parties(self) -> dict[str, Party]:
        """The agents, and the server if there is one, by name."""
        agents: dict[str, Party] = dict(zip(self.agent_names(), self.agents, strict=True))
        return agents | ({SERVER: self.server} if self.server else {})

    def arms(self) -> dict[str, MethodConfig]:
        """What is run, in order: the baselines, then the method under its own name."""
        return {**self.baselines, self.method.type: self.method}
