"""Pins: the keys of the other parties, in `peers.toml`. A pin is written once, after people compared fingerprints.

What travels through the hub could be exchanged there, keys also. So a key that differs from its pin is never taken.
"""

import base64
import tomllib
from pathlib import Path

import msgspec

from peertune.errors import ChangedKeyError, ConfigError, SealError
from peertune.guard.keys import Card
from peertune.guard.store import private_folder, translated, write_private

_HEAD = "# Pinned keys of other parties. Compare each fingerprint with its owner, on the telephone for instance.\n"


class Peers:
    """The pinned cards by name."""

    def __init__(self, path: Path, cards: dict[str, Card]) -> None:
        self.path = path
        self._cards = cards

    @classmethod
    def read(cls, path: Path) -> "Peers":
        """The pins in `path`; none if there is no such file. Raises `ConfigError` if it cannot be read."""
        if not path.exists():
            return cls(path, {})
        with translated(path):
            raw = path.read_bytes()
        try:
            tables = tomllib.loads(raw.decode())
            return cls(path, {name: _card(name, table) for name, table in tables.items()})
        except (ValueError, TypeError, KeyError, msgspec.ValidationError, SealError) as error:
            raise ConfigError(f"{path} is not a file of pinned keys ({error}); restore it from a backup") from None

    def __getitem__(self, name: str) -> Card:
        """The pinned card of `name`. Raises `SealError` if there is none."""
        if name not in self._cards:
            raise SealError(
                f"{self.path.name} pins no key of {name!r:.80}; compare the fingerprint with its owner and pin it"
            )
        return self._cards[name]

    @property
    def names(self) -> tuple[str, ...]:
        """Who is pinned."""
        return tuple(self._cards)

    def check(self, card: Card) -> None:
        """Compare the card that a party shows with its pin. Raises `ChangedKeyError`; `SealError` if there is none."""
        pinned = self[card.name]
        if pinned != card:
            raise ChangedKeyError(
                f"{card.name} shows other keys than those that are pinned: pinned {pinned.fingerprint}, shown "
                f"{card.fingerprint}. The run stops. If {card.name} has new keys, compare the fingerprint shown with "
                f"{card.name}, delete [{card.name}] in {self.path} and pin again; if not, somebody is in between"
            )

    def pin(self, card: Card) -> None:
        """Pin a card whose fingerprint somebody has compared. Raises `ChangedKeyError` if another one is pinned."""
        if card.name in self._cards:
            self.check(card)
            return
        card.check()
        self._write(self._cards | {card.name: card})

    def drop(self, name: str) -> None:
        """Trust the keys that are pinned for `name` no more."""
        self._write({other: card for other, card in self._cards.items() if other != name})

    def _write(self, cards: dict[str, Card]) -> None:
        private_folder(self.path.parent)
        write_private(self.path, (_HEAD + "".join(map(_table, cards.values()))).encode())
        self._cards = cards


def _card(name: str, table: dict[str, str]) -> Card:
    """The card of one table. Raises what `Peers.read` translates."""
    keys = {field: base64.b64decode(table[field], validate=True) for field in ("signing", "recipient")}
    card = msgspec.convert({"name": name, "suite": table["suite"], **keys}, Card)
    card.check()
    if table["fingerprint"] != card.fingerprint:
        raise SealError(f"the fingerprint of [{name}] does not fit its keys")
    return card


def _table(card: Card) -> str:
    return (
        f'\n["{card.name}"]\nfingerprint = "{card.fingerprint}"\nsuite = "{card.suite}"\n'
        f'signing = "{base64.b64encode(card.signing).decode()}"\n'
        f'recipient = "{base64.b64encode(card.recipient).decode()}"\n'
    )
