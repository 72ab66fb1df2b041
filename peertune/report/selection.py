"""Whom learners chose as their teachers of public problems, as in FedMKT's DualMinCE."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from peertune.ledger import Event, Ledger
from peertune.report.reading import arms
from peertune.report.table import Table


@dataclass(slots=True)
class Selection:
    """Of one learner, over all rounds: of so many `problems`, how many each source taught it, alone or with others, and
    about how many it was not believed.
    """

    problems: int = 0
    taught: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)

    def shares(self) -> dict[str, float]:
        """Source -> the share of the problems, 0..1, that it taught."""
        return {source: count / self.problems for source, count in self.taught.items()}


def selections(events: Iterable[Event]) -> dict[str, Selection]:
    """Learner -> what it chose, of one arm's events; empty if nobody chose a teacher."""
    found: dict[str, Selection] = defaultdict(Selection)
    for event in events:
        if event.kind == "teachers":
            chosen = found[event.body["learner"]]
            chosen.problems += event.body["problems"]
            for source in event.body["taught"]:  # with its zeros, so that who was never chosen is seen
                chosen.taught[source] += event.body["taught"][source]
                chosen.refused[source] += event.body["refused"][source]
    return {learner: chosen for learner, chosen in found.items() if chosen.problems}


def selection_table(ledger: Ledger) -> Table:
    """One line for each learner and source; no rows in a run without public problems that teachers are chosen for."""
    rows = []
    for arm in arms(ledger):
        for learner, chosen in selections(ledger.events("teachers", arm)).items():
            rows += [
                [arm, learner, source, f"{chosen.problems:,}", f"{100 * share:.1f}", f"{chosen.refused[source]:,}"]
                for source, share in chosen.shares().items()
            ]
    columns = ["Arm", "Learner", "Source", "Problems", "Taught, %", "Not believed"]
    note = (
        "A source teaches a problem if it loses less on the answer than the learner does, and, where one teacher is "
        "chosen, less than the other sources. Not believed: problems of which the source claimed what cannot be true."
    )
    return Table("Teachers that were chosen", columns, rows, note, labels=3)
