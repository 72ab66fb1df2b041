"""An agent: one organisation's model, adapter, data and rules. Verbs are all that can be called from outside."""

from peertune.agent.core import VERBS, AgentSettings
from peertune.agent.knowledge import KnowledgeVerbs
from peertune.agent.mutual import MutualVerbs
from peertune.agent.split import SplitVerbs
from peertune.agent.texts import TextVerbs

__all__ = ["VERBS", "Agent", "AgentSettings"]


class Agent(TextVerbs, KnowledgeVerbs, MutualVerbs, SplitVerbs):
    """All verbs. An agent never knows which method is running."""
