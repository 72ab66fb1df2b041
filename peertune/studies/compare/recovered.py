"""How much text the server of split learning could read, where the runs of a comparison were audited."""

import json
from collections.abc import Sequence

import numpy as np

from peertune.codecs import Codec
from peertune.config.schema import Config, MethodConfig
from peertune.errors import ConfigError
from peertune.runs import AUDIT
from peertune.studies.jobs import Job


def recovered(jobs: Sequence[Job]) -> dict[str, float | None]:
    """Arm of split learning -> the share of tokens, 0..1, that the better attacker recovers: with the codec of the arm,
    at its lowest cut, the mean over the runs that were audited; None if none was.

    Raises `ConfigError`: an audit that cannot be read.
    """
    found: dict[str, list[float]] = {}
    for job in jobs:
        shares = _audited(job)
        for arm, method in job.config.arms().items():
            if method.type == "split":
                seen = shares.get(_where(job.config, method))
                found.setdefault(arm, []).extend([] if seen is None else [seen])
    return {arm: float(np.mean(shares)) if shares else None for arm, shares in found.items()}


def _where(config: Config, method: MethodConfig) -> tuple[int, str]:
    lowest = min((method.cuts or {}).get(agent, method.cut) for agent in config.agent_names())
    return lowest, Codec(method.codec, method.outliers, method.keep).name


def _audited(job: Job) -> dict[tuple[int, str], float]:
    """(cut, codec) -> share."""
    path = job.folder / AUDIT
    if not path.is_file():
        return {}
    try:
        leaks = json.loads(path.read_text(encoding="utf-8"))["leaks"]
        return {(leak["cut"], leak["codec"]): max(leak["nearest"], leak["trained"]) for leak in leaks}
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{path} is no audit; remove it, or write it again with `peertune audit`") from None
