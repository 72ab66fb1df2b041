"""From what a model of one tokenizer knows to what a model of another can learn.

`Vocabulary`: what the tokens of a tokenizer are in bytes. `Positions`: where the prefixes of an answer's tokens end.
`Aligner`: moves knowledge from one vocabulary and its positions to another.
"""

from peertune.align.aligner import Aligner
from peertune.align.positions import Positions
from peertune.align.tokens import Vocabulary

__all__ = ["Aligner", "Positions", "Vocabulary"]
