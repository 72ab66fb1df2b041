"""Keys for kits that no organiser made."""

from collections.abc import Mapping
from pathlib import Path

from peertune.deploy.sealing import KEYS, pinned
from peertune.guard import Identity


def make_keys(kits: Mapping[str, Path]) -> None:
    """Keys for each party of `kits`, name -> folder, pinned in the kits of all others."""
    cards = {party: Identity.create(kit / "local" / KEYS, party).card for party, kit in kits.items()}
    for party, kit in kits.items():
        peers = pinned(kit)
        for other, card in cards.items():
            if other != party:
                peers.pin(card)
