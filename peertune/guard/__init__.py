"""What may leave a party, and sealed: nobody between two parties can read, forge or repeat what they exchange.

identity = Identity.create(Path("keys.json"), "clinic")     # once; identity.card goes to the others
peers = Peers.read(Path("peers.toml"))                      # peers.pin(card) once people compared fingerprints
seal = Seal(identity, peers, "run/1", Replay(Path("replay.sqlite")), Outbox(Path("outbox")))
sealed = seal.close("lab", round=3, raw=raw, call=17)       # at the clinic
raw = seal.open("clinic", round=3, sealed=sealed, call=17)  # at the lab
[("clinic", receipt)] = seal.receipts()                     # at the lab; once they are handed over, seal.settle(3)
seal.confirm("lab", receipt)                                # at the clinic, into its outbox
"""

from peertune.guard.envelope import Seal
from peertune.guard.keys import Card, Identity
from peertune.guard.outbox import OUTBOX, Departure, Outbox
from peertune.guard.peers import Peers
from peertune.guard.receipts import Receipt, read_receipt
from peertune.guard.replay import Replay

__all__ = ["OUTBOX", "Card", "Departure", "Identity", "Outbox", "Peers", "Receipt", "Replay", "Seal", "read_receipt"]
