"""From single grades to the numbers of a table: pass@k, the mean over problems and its error, CodeBLEU."""

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from peertune.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over problems and its standard error; the error is None when there is one problem only."""

    value: float
    standard_error: float | None


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


def estimate(values: np.ndarray) -> Estimate:
    """Mean of `values`, [problems], and its standard error, as if the problems were drawn at random.

    Raises `ValueError` if there is no problem.
    """
    if not len(values):
        raise ValueError("a mean over problems needs at least one; got none")
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
            "CodeBLEU needs codebleu 0.7 and tree-sitter-python 0.21: pip install -e '.[metrics]'"
        ) from error
    return float(score["codebleu"])
