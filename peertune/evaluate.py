"""From single grades to the numbers of a table: pass@k, CodeBLEU, perplexity, and the summary over agents."""

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from peertune.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over problems and its standard error; the error is None when there is one problem only."""

    value: float
    standard_error: float | None


@dataclass(frozen=True, slots=True)
class Summary:
    """The mean and the worst agent; gains are over the same agents trained alone, None if not known."""

    mean: float
    worst: float
    gain: float | None
    worst_gain: float | None


def pass_at_k(n: int, c: int, k: int) -> float:
    """The unbiased estimate, from `n` samples of which `c` are right, that one of `k` samples is right.

    1 - C(n-c, k) / C(n, k), as a product (Chen et al. 2021, arXiv:2107.03374, eq. 1).
    Raises `ValueError` unless 1 <= k <= n and 0 <= c <= n.
    """
    if not (1 <= k <= n and 0 <= c <= n):
        raise ValueError(f"pass@k needs 1 <= k <= n and 0 <= c <= n; got n={n}, c={c}, k={k}")
    if n - c < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))


def mean_pass_at_k(correct: Sequence[int], n: int, k: int) -> Estimate:
    """pass@k over problems: `correct[i]` of the `n` samples of problem i are right.

    The standard error is that of the mean over problems, as if they were drawn at random.
    Raises `ValueError` if there is no problem.
    """
    if not correct:
        raise ValueError("pass@k needs at least one problem; got none")
    values = np.array([pass_at_k(n, c, k) for c in correct])
    error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    return Estimate(float(values.mean()), error)


def codebleu(references: Sequence[str], texts: Sequence[str]) -> float:
    """CodeBLEU of Python `texts` against one reference each, 0..1 (Ren et al. 2020, arXiv:2009.10297).

    Over the corpus, four parts of equal weight, by the library `codebleu`. It counts a corpus without
    matching data flow as if all matched: hopeless texts score 0.25.
    Raises `ConfigError` if it is not installed, or not with a grammar that it can use.
    """
    if not texts:
        raise ValueError("CodeBLEU needs at least one text; got none")
    try:
        score = importlib.import_module("codebleu").calc_codebleu(list(references), list(texts), lang="python")
    except (ImportError, TypeError) as error:
        # TypeError: the grammar is too new for the library's tree-sitter.
        raise ConfigError(
            "CodeBLEU needs codebleu 0.7 and tree-sitter-python 0.21: pip install 'peertune[metrics]'"
        ) from error
    return float(score["codebleu"])


def perplexity(total_nll: float, tokens: int) -> float:
    """exp of the mean negative log-likelihood (nats) a token; infinite where a float cannot hold it."""
    if tokens <= 0:
        raise ValueError(f"perplexity needs at least one token; got {tokens}")
    mean = total_nll / tokens
    return math.exp(mean) if mean < math.log(np.finfo(float).max) else math.inf


def summary(by_agent: Mapping[str, float], local: Mapping[str, float] | None = None) -> Summary:
    """Mean and worst score over agents, and mean and worst gain over `local`: the same agents alone.

    Raises `ValueError` if there is no agent or `local` lacks one.
    """
    if not by_agent:
        raise ValueError("a summary needs at least one agent; got none")
    scores = np.array(list(by_agent.values()), dtype=float)
    if local is None:
        return Summary(float(scores.mean()), float(scores.min()), None, None)
    if missing := sorted(by_agent.keys() - local.keys()):
        raise ValueError(f"no score of training alone for {', '.join(missing)}")
    gains = scores - np.array([local[agent] for agent in by_agent], dtype=float)
    return Summary(float(scores.mean()), float(scores.min()), float(gains.mean()), float(gains.min()))
