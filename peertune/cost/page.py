"""A plan for a person, and as JSON."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from peertune.cost.crossovers import crossovers
from peertune.cost.estimate import Estimate
from peertune.cost.plan import Plan
from peertune.report.reading import readable_bytes
from peertune.report.table import ABSENT, counted
from peertune.studies.markdown import readable_flops

Link = tuple[float, float]  # bits a second, and seconds of a round trip
Row = Mapping[str, Any]


def title(plan: Plan, link: Link) -> str:
    """What the numbers are of."""
    agents, rounds = counted(len(plan.world.agents), "agent"), counted(plan.world.config.rounds, "round")
    return (
        f"{agents}, {rounds}; up and down: an agent in a round; transfer: over {link[0] / 1e6:g} Mbit/s and "
        f"{1000 * link[1]:g} ms; evaluations and checkpoints aside"
    )


def table(plan: Plan, link: Link) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: an arm each (*: at most), and the warm start that all begin with."""
    share = len(plan.world.agents) * plan.world.config.rounds
    moved: dict[str, Callable[[Row], str]] = {
        "up": lambda row: readable_bytes(row["up"] / share),
        "down": lambda row: readable_bytes(row["down"] / share),
        "bytes": lambda row: readable_bytes(row["bytes"]),
        "round trips": lambda row: f"{row['trips']:,}",
        "transfer": lambda row: readable_seconds(row["seconds"]),
    }
    worked: dict[str, Callable[[Row], str]] = {
        "client FLOPs": lambda row: readable_flops(row["flops"]),
        "server FLOPs": lambda row: readable_flops(row["server_flops"] + row["coordinator_flops"]),
        "memory": lambda row: readable_bytes(row["memory"]) if row["memory"] else ABSENT,
    }
    rows = [
        [f"{arm} *" if each.bound else arm, *(cell(priced(each, link)) for cell in (moved | worked).values())]
        for arm, each in plan.estimates.items()
    ]
    start = priced(plan.start, link)
    rows.append(["(warm start)", *[ABSENT] * len(moved), *(cell(start) for cell in worked.values())])
    return ["arm", *moved, *worked], rows


def notes(plan: Plan) -> list[str]:
    """Who will see what, what is only a bound, where methods send the same, what is left out."""
    found = plan.estimates.items()
    return [
        *(f"{arm}: {each.exposure}" for arm, each in found),
        *(f"* {arm}: {each.bound}" for arm, each in found if each.bound),
        *crossovers(plan),
        *(f"left out: {arm}: {why}" for arm, why in plan.left_out.items()),
    ]


def as_json(plan: Plan, link: Link) -> dict[str, Any]:
    """Everything, with the bytes of each link and kind of payload."""
    return {
        "bandwidth": link[0],
        "rtt": link[1],
        "arms": {arm: _whole(each, link) for arm, each in plan.estimates.items()},
        "warm_start": priced(plan.start, link),
        "crossovers": crossovers(plan),
        "left_out": plan.left_out,
    }


def priced(estimate: Estimate, link: Link) -> dict[str, Any]:
    """The totals, with `seconds` of transfer."""
    return estimate.totals() | {"seconds": estimate.seconds(*link)}


def readable_seconds(seconds: float) -> str:
    """0.25 s, 12 s, 3.4 min, 5.6 h."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds >= 0.01 else "< 0.01 s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def _whole(estimate: Estimate, link: Link) -> dict[str, Any]:
    payloads: Counter[str] = Counter()
    for (payload, *_), size in estimate.flows.items():
        payloads[payload] += size
    links = {f"{source} -> {destination}": size for (source, destination), size in estimate.links.items()}
    said = {"method": estimate.method, "exposure": estimate.exposure, "bound": estimate.bound}
    return {**said, **priced(estimate, link), "payloads": dict(payloads), "links": links}
