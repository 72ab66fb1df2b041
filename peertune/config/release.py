"""Who may pull which kind of payload from whom."""

from typing import Literal

from peertune.config.section import Section

Who = Literal["coordinator", "agents", "everyone", "nobody"]


class Release(Section):
    """Who may pull which kind of payload from this agent. Kept and enforced by the agent, whatever the method asks."""

    texts: Who = "agents"
    profile: Who = "coordinator"
    claims: Who = "coordinator"
    verdicts: Who = "coordinator"
    gain: Who = "coordinator"
    scores: Who = "coordinator"
    receipt: Who = "coordinator"
    weights: Who = "nobody"
    logits: Who = "nobody"  # of public problems
    assessed: Who = "nobody"  # the same, with the loss on each answer
    lexicon: Who = "agents"  # the bytes of the tokens of the model's vocabulary
    tally: Who = "coordinator"  # how many problems each teacher taught
    activations: Who = "nobody"  # hidden states of private text, for the server of split learning
    labelled: Who = "nobody"  # the same with their labels; of a text these are the text
    gradient: Who = "nobody"  # of hidden states
    records: Who = "nobody"  # the training examples themselves
    metrics: Who = "coordinator"  # losses and validation scores, for the run's ledger


class ServerRelease(Release):
    """A server holds nobody's data: what it has, it gives."""

    texts: Who = "everyone"
    weights: Who = "everyone"
    logits: Who = "everyone"
    assessed: Who = "everyone"
    lexicon: Who = "everyone"
    activations: Who = "everyone"
    gradient: Who = "everyone"
