"""From one model's knowledge to what a model with another tokenizer can learn of it."""

from dataclasses import dataclass

import numpy as np

from peertune.align.positions import Positions, match
from peertune.align.tokens import Vocabulary
from peertune.align.transfer import Merge, transfer
from peertune.errors import PayloadError
from peertune.knowledge import Knowledge


@dataclass(frozen=True, eq=False)
class Aligner:
    """Positions and ids of `source` in terms of `target`.

    `table`: a vocabulary map, int32 [tokens of the source]; `merge`: see `transfer`.
    """

    source: Vocabulary
    target: Vocabulary
    table: np.ndarray
    merge: Merge = "sum"

    def translate(
        self, known: Knowledge, source: Positions, target: Positions
    ) -> tuple[Knowledge, np.ndarray, np.ndarray]:
        """What `known` says at the positions of `target` that one of `source` corresponds to, and which those are.

        `source`: the positions of `known`, row by row. Of the result `lengths` count the corresponding positions of
        each problem; the others, int64 [their sum], rising, are their numbers among all of `source`, and among all of
        `target`, as `Knowledge.spread(positions, target.lengths)` takes them. Raises `PayloadError` if `known`, which
        somebody else sent, does not fit `source` or the vocabulary.
        """
        if not np.array_equal(known.lengths, source.lengths):
            raise PayloadError("knowledge: expected a row for each of the positions sent with it, found others")
        if known.width < len(self.source.tokens):
            raise PayloadError(
                f"knowledge: expected that of a vocabulary of {len(self.source.tokens)} tokens, found {known.width}"
            )
        rows, positions = match(source, target)
        return transfer(known, rows, self.table, len(self.target.tokens), self.merge), rows, positions
