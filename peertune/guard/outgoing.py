"""What of an agent's text may leave it: secrets, personal data and copies of private text are taken out or stop it.

The guard belongs to the agent and works where an answer is made, before anybody can ask for it. A verdict says which
rules found how much, never what.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from peertune.errors import PeertuneError
from peertune.guard.copies import Copies
from peertune.guard.personal import find_personal
from peertune.guard.secrets import find_secrets
from peertune.guard.spans import Span, merged, redacted
from peertune.payloads import Payload, Record, Records, Texts

Rules = Mapping[str, str]  # secrets, personal and copies: each redact, block or off; what is not named is off
OFF, BLOCK = "off", "block"


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
        self._finders: dict[str, Callable[[str], Iterator[Span]]] = {
            "secrets": find_secrets,
            "personal": find_personal,
        }
        if any(rules.get("copies", OFF) != OFF for rules in policy.values()):
            self._finders["copies"] = Copies(private, public).find

    def check(self, payload: Payload) -> tuple[Payload, Verdict]:
        """The payload as it may leave; itself if nothing was found. Raises `Blocked`."""
        rules = self._policy.get(payload.kind, {})
        if not isinstance(payload, Texts | Records) or all(action == OFF for action in rules.values()):
            return payload, Verdict()
        verdict, blocking = Verdict(examined=True), Counter[str]()

        def cleaned(text: str) -> str:
            marks = []
            for group, span in self._finds(rules, text):
                (blocking if rules[group] == BLOCK else verdict.found)[f"{group}.{span.rule}"] += 1
                marks.append(span._replace(rule="secret") if group == "secrets" else span)
            return redacted(text, merged(marks)) if marks else text

        checked = _with(payload, cleaned)
        if blocking:
            raise Blocked(f"its guard holds back {payload.kind}: {_listed(blocking)}; see `guard` in its configuration")
        return (checked if verdict.found else payload), verdict

    def passes(self, kind: str, text: str) -> bool:
        """Would this text leave as it is?"""
        return not any(self._finds(self._policy.get(kind, {}), text))

    def _finds(self, rules: Rules, text: str) -> Iterator[tuple[str, Span]]:
        for group, action in rules.items():
            if action != OFF:
                yield from ((group, span) for span in merged(self._finders[group](text)))


def _with(payload: Texts | Records, change: Callable[[str], str]) -> Texts | Records:
    """The payload with every text changed."""
    if isinstance(payload, Texts):
        return Texts(tuple(map(change, payload.items)))
    return Records(tuple(Record(change(item.prompt), change(item.completion)) for item in payload.items))


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
