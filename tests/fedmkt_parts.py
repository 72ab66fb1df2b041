"""What FedMKT is tested with: models of different tokenizers, agents in this process, and what they are told of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from small import small_config
from sums import Sums
from tiny import make_tiny_model

from peertune.agent import Agent, AgentSettings
from peertune.agent.desk import AgentData
from peertune.config.schema import Release
from peertune.lm.model import LanguageModel
from peertune.lm.settings import AdapterSettings, TrainingSettings
from peertune.payloads import Alignment
from peertune.profiles import AgentRecord
from peertune.tasks.base import Example

MKT: dict[str, Any] = {"type": "fedmkt", "top_k": 8}
HOW = Alignment()
FACTS = [("def f(x): return", " x + 1"), ("The quick brown", " fox jumps"), ("first", " = xs[0]"), ("a lazy", " dog.")]
OTHER = [("def add(a, b):\n", "    return b"), ("Return the", " sum of all"), ("total", "(xs) in the list")] * 3
COSTS: dict[str, Any] = {}


def models_of_three_tokenizers(root: Path) -> dict[str, str]:
    sizes = {"llama": 320, "gpt2": 290, "opt": 300}
    return {name: str(make_tiny_model(root / name, name, vocabulary=size)) for name, size in sizes.items()}


def config(models: dict[str, str], who: str = "llama gpt2", **changes: Any) -> Any:
    release = {"assessed": "agents", "weights": "coordinator"}
    agents = [{"model": models[name], "release": release} for name in who.split()]
    sections = {"agents": agents, "server": {"model": models["opt"]}, "method": MKT}
    return small_config(models, "llama", **(sections | changes))


def facts(*vocabularies: str) -> tuple[dict[str, Any], ...]:
    return tuple({"name": f"a{index}", "vocabulary": each} for index, each in enumerate(vocabularies))


def examples(texts: Sequence[tuple[str, str]]) -> list[Example]:
    return [Example(prompt, completion, "text", (), (), key=str(at)) for at, (prompt, completion) in enumerate(texts)]


def agent(source: str, folder: Path, name: str, train: Sequence[tuple[str, str]] = OTHER, **more: Any) -> Agent:
    lm = LanguageModel.load(source)
    lm.costs = COSTS.setdefault(source, lm.costs)  # which take longer to find than all else here
    lm.add_adapter(name, AdapterSettings(rank=4, alpha=8), seed=len(name))
    data = AgentData(examples(train), examples(OTHER[:3]), examples(FACTS), [], examples(FACTS), Sums())
    training = TrainingSettings(1e-2, batch_size=4, warmup_steps=0, max_length=64)
    release = Release(assessed="agents", metrics="coordinator").model_dump()
    settings = AgentSettings(name, 0, folder / name, training, 4, codebleu=False, release=release, guard={})
    return Agent(settings, lm, data, AgentRecord(static=(0.0,) * 8, histogram=(1.0, *[0.0] * 11)))
