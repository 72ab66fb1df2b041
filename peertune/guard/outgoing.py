"""What of an agent's text may leave it: secrets, personal data and copies of private text are taken out or stop it.

The guard belongs to the agent and works where an answer is made, before anybody can ask for it. A verdict says which
rules found how much, never what.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from peertune.errors import PeertuneError
from peertune.guard.copies import Copies
from peertune.guard.personal import find_personal
from peertune.guard.secrets import find_secrets
from peertune.guard.spans import Span, merged, redacted
from peertune.payloads import Payload, Record, Records, Texts

Action = Literal["redact", "block", "off"]
Find = Callable[[str], Iterable[Span]]
GROUPS = ("secrets", "personal", "copies")


@dataclass(frozen=True, slots=True)
class Rules:
    """What happens to a text in which something is found."""

    secrets: Action = "off"
    personal: Action = "off"
    copies: Action = "off"


class Blocked(PeertuneError):
    """The guard lets nothing of an answer go. The message names rules and counts."""

    code = "blocked"


@dataclass(slots=True)
class Verdict:
    """What was found in a payload: how often each rule, by its name after that of its group, found something."""

    examined: bool = False
    found: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        if not self.examined:
            return "not examined"
        return f"redacted: {_listed(self.found)}" if self.found else "nothing found"

    def of(self, group: str) -> int:
        """How often the rules of a group found something."""
        return sum(count for name, count in self.found.items() if name.startswith(f"{group}."))


class Guard:
    """`policy`: the rules for each payload kind that holds text. `private`: texts of which no passage may leave, unless
    it is also in `public`; read only if there is a rule against copies.
    """

    def __init__(self, policy: Mapping[str, Rules], private: Iterable[str] = (), public: Iterable[str] = ()) -> None:
        self._policy = policy
        watched = any(rules.copies != "off" for rules in policy.values())
        self._copies = Copies(private, public) if watched else Copies([])

    def check(self, payload: Payload) -> tuple[Payload, Verdict]:
        """The payload as it may leave; itself if nothing was found. Raises `Blocked`."""
        active = self._active(payload.kind)
        if not isinstance(payload, Texts | Records) or not active:
            return payload, Verdict()
        verdict, blocking = Verdict(examined=True), Counter[str]()

        def cleaned(text: str) -> str:
            marks = []
            for group, (action, find) in active.items():
                for span in merged(find(text)):
                    (blocking if action == "block" else verdict.found)[f"{group}.{span.rule}"] += 1
                    marks.append(span._replace(rule="secret") if group == "secrets" else span)
            return redacted(text, merged(marks)) if marks else text

        checked = _with(payload, cleaned)
        if blocking:
            raise Blocked(f"its guard holds back {payload.kind}: {_listed(blocking)}; see `guard` in its configuration")
        return (checked if verdict.found else payload), verdict

    def passes(self, kind: str, text: str) -> bool:
        """Would this text leave as it is?"""
        return not any(True for _, find in self._active(kind).values() for _ in find(text))

    def _active(self, kind: str) -> dict[str, tuple[Action, Find]]:
        """The groups of rules that a payload kind is held to."""
        rules = self._policy.get(kind, Rules())
        groups: dict[str, tuple[Action, Find]] = {
            "secrets": (rules.secrets, find_secrets),
            "personal": (rules.personal, find_personal),
            "copies": (rules.copies, self._copies.find),
        }
        return {group: (action, find) for group, (action, find) in groups.items() if action != "off"}


def _with(payload: Texts | Records, change: Callable[[str], str]) -> Texts | Records:
    """The payload with every text changed."""
    if isinstance(payload, Texts):
        return Texts(tuple(map(change, payload.items)))
    return Records(tuple(Record(change(item.prompt), change(item.completion)) for item in payload.items))


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
