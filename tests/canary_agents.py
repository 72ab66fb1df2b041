"""Real agents whose texts hold canaries; lives in the agent's own process."""

from canaries import CANARIES
from wrapped import Wrapped, wrapping

from peertune.deploy import build as real
from peertune.payloads import Payload, Texts

EXCHANGED, PRIVATE = CANARIES[:25], CANARIES[25:]


class Planted(Wrapped):
    """An agent, and canaries at the end of each text that it shares."""

    def call(self, verb: str, args: list[Payload]) -> Payload | None:
        answer = self._agent.call(verb, args)
        if verb == "share" and isinstance(answer, Texts):
            return Texts(tuple(" ".join([text, *EXCHANGED]) for text in answer.items))
        return answer


build = wrapping(real.build, Planted)
