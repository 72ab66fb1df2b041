"""How receipts come to those who sent what they are for: from a site's drain to the coordinator, and on with a clear.

Whoever carries them cannot make one, and learns nothing from them. A run never waits for one, nor ends for want of one.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable

from peertune.engines.seal import Seal
from peertune.errors import PeertuneError

MOST = 16 << 20  # bytes of receipts that a coordinator keeps of one party for another
_LOG = logging.getLogger(__name__)
_EACH = 64  # bytes that one counts for beside its own: no receipt is shorter
Receipts = list[tuple[str, bytes]]  # each with the party at its other end


class Bag:
    """Receipts on their way through the coordinator: in it until the party that they are for has them."""

    def __init__(self, parties: Iterable[str]) -> None:
        self._for: dict[str, dict[str, list[bytes]]] = {party: {} for party in parties}  # by who signed them

    def put(self, signer: str, receipts: Receipts) -> None:
        """What the site of `signer` handed out. Dropped: for nobody here, for itself, and what is too much."""
        came: dict[str, list[bytes]] = defaultdict(list)
        for party, raw in receipts:
            came[party].append(raw)
        dropped = 0
        for party, raws in came.items():
            kept = self._for.get(party, {}).get(signer, [])
            if party in self._for and party != signer and _size(kept) + _size(raws) <= MOST:
                self._for[party][signer] = kept + raws
            else:
                dropped += len(raws)
        if dropped:
            _LOG.warning(
                f"dropped {dropped} receipts of {signer}: expected other parties of this run and {MOST} bytes at most"
            )

    def of(self, party: str) -> Receipts:
        return [(signer, raw) for signer, raws in self._for[party].items() for raw in raws]

    def handed(self, party: str) -> None:
        """It has them."""
        self._for[party] = {}


def signed(seal: Seal, party: str) -> Receipts:
    """The receipts of `party` for all that it opened; none if its disk refuses."""
    try:
        return seal.receipts()
    except PeertuneError as error:
        _LOG.warning(f"{party} hands out no receipts now: {error}")
        return []


def settle(seal: Seal, party: str, round: int, receipts: Receipts, known: Iterable[str]) -> None:
    """The round is over: `party` keeps what is right of the receipts that came, and forgets what it had opened.

    What is refused is told in one line for each of the `known` who signed it, and one for all others.
    """
    first: dict[str, str] = {}
    refused: Counter[str] = Counter()
    names = set(known)
    for signer, raw in receipts:
        signer = signer if signer in names else "a stranger"
        try:
            seal.confirm(signer, raw)
        except PeertuneError as error:
            refused[signer] += 1
            first.setdefault(signer, str(error))
    for signer, count in refused.items():
        _LOG.warning(f"{party} refuses {count} receipts of {signer}, the first because: {first[signer]}")
    try:
        seal.settle(round)
    except PeertuneError as error:
        _LOG.warning(f"{party} cannot forget what it opened: {error}")


def _size(receipts: list[bytes]) -> int:
    return sum(len(raw) + _EACH for raw in receipts)
