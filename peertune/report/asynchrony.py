"""What time did to a run: how long rounds took, who was missing, whose reports came late or were refused."""

from collections import Counter, defaultdict

from peertune.ledger import Ledger
from peertune.report.table import ABSENT, Table


def rounds_table(ledger: Ledger) -> Table:
    """One line a round; no rows in a run without `availability` or `asynchrony`."""
    late: dict[tuple[str, int], list[str]] = defaultdict(list)
    for event in (*ledger.events("late"), *(event for event in ledger.events("pair") if "agreed" in event.body)):
        if event.body["receiver"] not in late[event.arm, event.round]:
            late[event.arm, event.round].append(event.body["receiver"])
    rows, unit = [], ""
    for event in ledger.events("clock"):
        body, here = event.body, (event.arm, event.round)
        absent, unit = Counter(body["absent"].values()), body.get("unit", "")
        rows.append(
            [
                event.arm,
                str(event.round),
                *(f"{body[key]:.1f}" for key in ("start", "end")),
                ", ".join(f"{count} {why}" for why, count in sorted(absent.items())) or ABSENT,
                *(", ".join(names) or ABSENT for names in (body["missed"], body["busy"], late[here])),
            ]
        )
    columns = ["Arm", "Round", "Began", "Closed", "Absent", "Missed the deadline", "Still at work", "Late reports"]
    title, measure = (
        ("Rounds in real time", "Seconds since the arm began, without the time that the run was stopped")
        if unit
        else ("Rounds in virtual time", "Virtual time, in optimiser steps of an ordinary agent")
    )
    note = f"{measure}. Late reports: receivers of exchanges agreed in an earlier round, whose gains came in this one."
    return Table(title, columns, rows, note, labels=8)


def refused_table(ledger: Ledger) -> Table:
    """Every report that was refused."""
    rows = [
        [event.arm, str(event.round), event.body["agent"], event.body["cause"]] for event in ledger.events("refused")
    ]
    note = "A refused report teaches nobody anything; the round went on."
    return Table("Refused reports", ["Arm", "Round", "Agent", "Cause"], rows, note, labels=4)
