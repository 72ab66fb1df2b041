"""The `guard` section: what happens to an agent's text before it leaves, per payload kind. The agent enforces it."""

from typing import Literal

from peertune.config.section import Section

Action = Literal["redact", "block", "off"]


class TextsGuard(Section):
    """What is found in texts for public prompts is taken out (`redact`), or the exchange fails (`block`).

    Secrets and personal data are nobody's lesson, and a generation that holds some has learnt it by heart: they are
    taken out. `block` would cost the whole exchange for one find in one of its texts. Passages of 50 characters that
    are also in the agent's own training text (`copies`) are let go, because right answers to alike problems coincide:
    of the bundled programs up to 4 in 96. In prose they do not; there `copies: block` is the careful choice.
    """

    secrets: Action = "redact"
    personal: Action = "redact"
    copies: Action = "off"


class RecordsGuard(Section):
    """The same for training examples, which leave only if `release` says so; there is no question of copies."""

    secrets: Action = "redact"
    personal: Action = "redact"


class Guarding(Section):
    """Of each payload kind that holds text."""

    texts: TextsGuard = TextsGuard()
    records: RecordsGuard = RecordsGuard()
