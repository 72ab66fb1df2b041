"""From what a model of one tokenizer knows to what a model of another can learn.

`Vocabulary`: what the tokens of a tokenizer are in bytes. `vocabulary_map`: what they are in another vocabulary;
`cached_map`: the same from disk. `Positions`: where the prefixes of an answer's tokens end. `Aligner`: moves knowledge
from one vocabulary and its positions to another.
"""

from peertune.align.aligner import Aligner
from peertune.align.cache import cached_map
from peertune.align.positions import Positions
from peertune.align.tokens import Vocabulary
from peertune.align.vocabulary import vocabulary_map

__all__ = ["Aligner", "Positions", "Vocabulary", "cached_map", "vocabulary_map"]
