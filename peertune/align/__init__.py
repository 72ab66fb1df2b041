"""From what a model of one tokenizer knows to what a model of another can learn.

`Vocabulary`: what the tokens of a tokenizer are in bytes.
"""

from peertune.align.tokens import Vocabulary

__all__ = ["Vocabulary"]
