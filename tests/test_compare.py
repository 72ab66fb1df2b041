"""`peertune compare`: costs read exactly, arms chosen, fronts against brute force, tables and pictures of tiny runs."""

import json
import shutil
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from small import ROUTED, make_models, run, small_config
from transformers import AutoTokenizer

from peertune import cli
from peertune.audit import Audit, Leak
from peertune.config.reader import read_config
from peertune.errors import ConfigError
from peertune.ledger import COORDINATOR, Ledger
from peertune.report.canvas import png
from peertune.report.reading import readable_bytes
from peertune.report.selection import Selection
from peertune.runs import AUDIT
from peertune.studies.compare.page import markdown, short
from peertune.studies.compare.pictures import fronts, learning
from peertune.studies.compare.plan import Plan, admitted
from peertune.studies.compare.recovered import recovered
from peertune.studies.compare.summary import front, summarise
from peertune.studies.costs import Costs
from peertune.studies.drawing import byte_axis, canvas, rows_of, style
from peertune.studies.federations import rounded
from peertune.studies.jobs import Job
from peertune.studies.markdown import points, readable_flops
from peertune.studies.records import Arm, Record, Run, read_run

# Ledgers


def ledger_of(folder: Path) -> Ledger:
    """Two rounds of `fed` with a server, by hand; `bob` keeps its metrics."""
    ledger = Ledger.create(folder / "ledger.sqlite")
    agents = [{"model": "m"}, {"model": "m", "release": {"metrics": "nobody"}}]
    config = {
        "rounds": 2,
        "task": {"type": "codelets"},
        "evaluation": {"k": [1]},
        "agents": agents,
        "baselines": {"alone": {"type": "local"}},
        "method": {"type": "fed"},
    }
    ledger.append("start", 0, "init", "run", {"config": config, "agents": [{"name": "ann"}, {"name": "bob"}]})
    ledger.append("start", 0, "init", "transfer", transfer("coordinator", "ann", 5))
    for arm, t in (("start", 0), ("alone", 2)):
        for name in ("ann", "bob"):
            ledger.append(arm, t, "evaluate", "scores", grades(name, False))
        ledger.append(arm, t, "checkpoint", "done", {})
    for t in (1, 2):
        for source, destination, count in (
            *(("coordinator", "ann", 1), ("ann", "coordinator", 20), ("ann", "bob", 300)),
            *(("bob", "server", 4000), ("server", "ann", 50_000), ("coordinator", "server", 600_000)),
        ):
            ledger.append("fed", t, "round", "transfer", transfer(source, destination, count))
        for phase in ("deploy", "evaluate", "checkpoint"):
            ledger.append("fed", t, phase, "transfer", transfer("server", "bob", 7))
        for agent, phase, name, value in (
            *(("ann", "round", "flops", 10.0), ("ann", "round", "memory", 90.0 + t), ("server", "round", "flops", 4.0)),
            *(("ann", "evaluate", "flops", 2.0), ("server", "evaluate", "flops", 5.0), ("ann", "deploy", "flops", 1.0)),
            *(("ann", "round", "exchange_updates", 3.0), ("ann", "evaluate", "memory", 999.0)),
            ("server", "round", "memory", 999.0),
        ):
            ledger.append("fed", t, phase, "metric", {"agent": agent, "name": name, "value": value})
        ledger.append("fed", t, "evaluate", "scores", grades("ann", True))
        ledger.append("fed", t, "evaluate", "server_scores", grades("server", True))
        for agent, verb in (("ann", "fit"), ("bob", "grade"), ("server", "fit"), ("ann", "checkpoint")):
            ledger.fact("call", {"arm": "fed", "round": t, "agent": agent, "verb": verb, "seconds": 1.5})
    ledger.append("fed", 2, "checkpoint", "done", {})
    ledger.fact("call", {"arm": "alone", "round": 2, "agent": "ann", "verb": "fit", "seconds": 8.0})
    ledger.commit()
    return ledger


def transfer(source: str, destination: str, count: int) -> dict[str, Any]:
    return {"source": source, "destination": destination, "payload": "weights", "bytes": count}


def grades(agent: str, good: bool) -> dict[str, Any]:
    return {"agent": agent, "correct": [1, int(good)], "samples": 1, "metrics": {}}


def test_costs_of_clients_and_server_are_read_exactly(tmp_path: Path) -> None:
    found = read_run(ledger_of(tmp_path), "fed", 0)
    assert (found.local, found.silent) == ("alone", ("bob",))
    costs = found.arms["fed"].costs
    assert costs[1].totals() == {
        "bytes": 654_321,
        "up": 20 + 300 + 4000,
        "down": 1 + 300 + 50_000,
        "server_bytes": 654_000,
        "flops": 10.0,
        "server_flops": 4.0,
        "updates": 3.0,
        "seconds": 1.5,
        "client_trips": 2,
        "deploy_bytes": 7,
        "evaluate_bytes": 7,
        "deploy_flops": 1.0,
        "evaluate_flops": 2.0,
    }
    assert {name: 2 * value for name, value in costs[1].totals().items()} == costs[2].totals()
    assert (costs[1].memory, costs[2].memory) == (91.0, 92.0)
    assert found.arms["fed"].server == {1: 1.0, 2: 1.0} and found.arms["alone"].server == {}
    assert found.arms["alone"].costs[2].seconds == 8.0
    assert found.arms["start"].costs[0].totals()["down"] == 5
    assert found.arms["fed"].records[-1].bytes == {
        "weights, agent → agent": 600,
        "weights, agent → coordinator": 40,
        "weights, agent → server": 8000,
        "weights, coordinator → agent": 2,
        "weights, coordinator → server": 1_200_000,
        "weights, server → agent": 100_000,
    }
    assert found.arms["fed"].records[-1].gflop == pytest.approx(26e-9)


def test_chosen_teachers_are_counted_over_rounds(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path)
    for taught in ({"ann": 3, "bob": 0}, {"ann": 0, "bob": 1}):
        body = {"learner": "server", "problems": 8, "taught": taught, "refused": {"ann": 0, "bob": 2}}
        ledger.append("fed", 2, "round", "teachers", body)
    ledger.commit()
    found = read_run(ledger, "fed", 0).arms
    assert found["fed"].chosen == {"server": Selection(16, Counter(ann=3, bob=1), Counter(ann=0, bob=4))}
    assert found["fed"].chosen["server"].shares() == {"ann": 3 / 16, "bob": 1 / 16} and not found["alone"].chosen


# Fronts

POINTS = st.lists(st.tuples(st.integers(0, 6).map(float), st.integers(0, 6).map(float)), max_size=12)


@given(POINTS)
def test_the_front_is_what_nothing_dominates(points: list[tuple[float, float]]) -> None:
    def dominated(cost: float, score: float) -> bool:
        return any(c <= cost and s >= score and (c, s) != (cost, score) for c, s in points)

    assert front(points) == [not dominated(*point) for point in points]


# Summaries


def made(seed: int, levels: dict[str, list[float]], price: dict[str, float]) -> Run:
    """Four rounds of `ann` and `bob`, who is half as good, graded after rounds 2 and 4; `levels`: scores of `ann`."""
    run = Run("fed", seed, 4, "Pass@1", "texts", {"ann": "", "bob": "", "cat": "liar"}, {}, [], "local", (), "dear")
    for arm, (before, *scores) in levels.items():
        rounds = {0: before} if arm == "start" else dict(zip((2, 4), scores, strict=True))
        records = []
        for t, score in rounds.items():
            agents = {"ann": score, "bob": score / 2, "cat": 0.0}
            benign = {"Pass@1": 0.75 * score}
            records.append(Record("fed", seed, arm, t, benign, benign, agents, None, {}, 0, 0.0, 0.0))
        last = records[-1].agents
        costs = {
            t: Costs(Counter({("texts", "agent", "agent"): int(t * price.get(arm, 0))}), flops=t * 1e9)
            for t in (0, 2, 4)
        }
        run.arms[arm] = Arm(records, {name: np.full(3, last[name]) for name in last}, {}, costs)
    return run


LEVELS = {"start": [0.2], "local": [0.2, 0.4, 0.4], "dear": [0.2, 0.6, 0.8], "poor": [0.2, 0.2, 0.2]}
PRICES = {"local": 1.0, "dear": 100.0, "poor": 10.0}


def small_summary(**changes: Any) -> dict[str, Any]:
    runs = [made(seed, LEVELS, PRICES) for seed in range(3)]
    del runs[2].arms["poor"]
    return rounded({"name": "fed", "left_out": {}, "missing": {}, **summarise(runs), **changes})


def test_a_summary_is_exact() -> None:
    found = small_summary()
    rows = {row["arm"]: row for row in found["arms"]}
    assert list(rows) == ["local", "dear", "poor"] and [row["seeds"] for row in rows.values()] == [3, 3, 2]
    assert rows["dear"]["score"] == [0.6, 0.6, 0.6] and rows["dear"]["over_local"] == [0.3, 0.3, 0.3]
    assert rows["local"]["over_local"] is None and rows["dear"]["worst"] == 0.4
    assert rows["local"]["under_method"] == [0.3, 0.3, 0.3] and rows["dear"]["under_method"] is None
    assert "| n | Pass@1 | worst agent | over local | dear over it |" in markdown(found)
    assert (rows["dear"]["up"], rows["dear"]["down"], rows["dear"]["bytes"]) == (400.0, 400.0, 400.0)
    assert (rows["dear"]["flops"], rows["dear"]["memory"], rows["dear"]["server_score"]) == (4e9, None, None)
    assert found["fronts"] == {"bytes": ["local", "dear"], "flops": ["dear"]}
    assert [(p["round"], p["bytes"], p["flops"], p["score"][0]) for p in found["curves"]["dear"]] == [
        (0, 0.0, 0.0, 0.15),
        (2, 200.0, 2e9, 0.45),
        (4, 400.0, 4e9, 0.6),
    ]
    assert found["reach"] == {
        "share": 0.9,
        "best": "dear",
        "level": 0.54,
        "arms": {"local": None, "dear": {"round": 4, "bytes": 400.0, "flops": 4e9}, "poor": None},
    }
    assert summarise([]) == {"arms": []}


def test_who_was_chosen_as_a_teacher_is_a_table() -> None:
    runs = [made(seed, LEVELS, PRICES) for seed in range(2)]
    assert "as its teacher" not in markdown(small_summary())
    for one, count in zip(runs, (1, 4), strict=True):
        ann, server = Selection(10, Counter(server=count), Counter()), Selection(5, Counter(ann=2, bob=0), Counter())
        one.arms["dear"] = replace(one.arms["dear"], chosen={"ann": ann, "server": server})
    found = summarise(runs)
    dear = next(row for row in found["arms"] if row["arm"] == "dear")
    assert dear["chosen"] == {"ann": {"server": 0.25}, "server": {"ann": 0.4, "bob": 0.0}}
    page = markdown({"name": "fed", "left_out": {}, "missing": {}, **found})
    assert "| arm | learner | server | ann | bob |" in page
    assert "| dear | ann | 25.0 | – | – |\n| dear | server | – | 40.0 | 0.0 |" in page


def test_the_page_says_everything() -> None:
    summary = small_summary(left_out={"knexa": "it needs friends"}, missing={"fed-s2": ["poor"]})
    page = markdown(summary)
    assert "3 agents, 4 rounds, 3 seeds;" in page and "Not in the scores: cat (liar)." in page
    assert "| dear | 3 | 60.0 (60.0 to 60.0) | 40.0 | +30.0 (+30.0 to +30.0) |" in page
    assert "| (warm start) | 3 | 15.0 (15.0 to 15.0) | 10.0 | -15.0 (-15.0 to -15.0) |" in page
    assert "| dear | 33.3 B | 33.3 B | 0 | 400 B | 400 B | 400 B |" in page and "| dear | 4 GFLOP | 0 | 0.0 |" in page
    assert "Pareto front of Pass@1 against bytes on all links: `local`, `dear`" in page
    assert "To reach 54.0 points, 90 % of what the best, `dear`" in page and "| local | never | – | – |" in page
    assert "| dear | 4 | 400 B | 4 GFLOP |" in page and "server" not in page
    assert "* `knexa`: it needs friends" in page and "* `fed-s2`: poor" in page
    assert markdown(json.loads(json.dumps(summary))) == page
    summary["arms"][1]["server_score"] = 0.5
    assert "| 40.0 | +30.0 (+30.0 to +30.0) | – | 50.0 |" in markdown(summary)
    columns, rows = short(small_summary())
    paid = ["bytes", "client FLOPs", "front"]
    assert columns == ["arm", "n", "Pass@1", "worst agent", "over local", "dear over it", *paid]
    assert rows[1] == ["dear", "3", "60.0", "40.0", "+30.0 (+30.0 to +30.0)", "–", "400 B", "4 GFLOP", "bytes, FLOPs"]


def test_the_page_says_how_far_a_plan_was_off() -> None:
    exact = {"bytes": 396.0, "flops": 5e9, "exact": True}
    page = markdown(small_summary(planned={"dear": exact, "poor": {**exact, "exact": False}}))
    assert "| 396 B (-1.0 %) |" in page and "| 5 GFLOP (+25.0 %) |" in page
    assert "| <= 396 B |" in page and "| <= 5 GFLOP |" in page


def test_what_an_audit_recovered_stands_beside_the_score() -> None:
    page = markdown(small_summary(recovered={"dear": 0.987, "poor": None}))
    assert "| over local | dear over it | text recovered |" in page and "Text recovered: of 100 tokens" in page
    assert "| 40.0 | +30.0 (+30.0 to +30.0) | – | 98.7 |" in page and "hidden states of poor. Call" in page
    unknown = small_summary(recovered={"dear": None})
    assert "`peertune audit fed-s0 --runs runs`, then compare again" in markdown(unknown)
    assert "text recovered" not in markdown(unknown) and "Not measured" not in markdown(small_summary())


def test_an_audit_is_read_where_the_arm_is_cut(tmp_path: Path) -> None:
    """Of the lowest cut of all agents, with the codec of the arm; means over the seeds that were audited."""
    method = {"type": "split", "cut": 2, "cuts": {"a1": 1}, "codec": "topk", "keep": 4}
    release = dict.fromkeys(("weights", "activations", "gradient"), "everyone")
    agents = [{"model": "m", "release": release}] * 2
    sections = {"agents": agents, "server": {"model": "m"}, "task": {"transfer": 96}, "method": method}
    config = small_config({}, "", **sections, baselines={"split_fp32": {"type": "split"}})
    jobs = [Job(tmp_path / f"tiny-s{seed}", config) for seed in range(3)]
    assert recovered(jobs) == {"split_fp32": None, "split": None}
    for job, share in zip(jobs, (0.4, 0.6), strict=False):
        job.folder.mkdir()
        leak = Leak(1, "topk (4)", 16.0, nearest=0.1, trained=share, prompts=0.5, answers=None, score=None)
        Audit("m", "a0", 9, 0.1, [replace(leak, cut=2, trained=0.0), leak]).write(job.folder / AUDIT)
    assert recovered(jobs) == {"split_fp32": None, "split": pytest.approx(0.5)}
    (jobs[2].folder).mkdir()
    (jobs[2].folder / AUDIT).write_text("{}")
    with pytest.raises(ConfigError, match="tiny-s2/audit.json is no audit; remove it"):
        recovered(jobs)


def test_a_file_without_local_has_no_gains() -> None:
    runs = [made(0, {name: levels for name, levels in LEVELS.items() if name != "local"}, PRICES)]
    found = summarise([replace(run, local=None) for run in runs])
    summary = rounded({"name": "fed", "left_out": {}, "missing": {}, **found})
    assert {row["over_local"] for row in summary["arms"]} == {None} and "over local" not in markdown(summary)


# Pictures


def test_pictures_are_repeated_exactly() -> None:
    summary = small_summary()
    for draw in (learning, fronts):
        assert png(draw(summary)) == png(draw(summary))


@given(low=st.floats(0, 9), decades=st.floats(0, 6))
def test_labels_of_bytes_never_meet(low: float, decades: float) -> None:
    picture = canvas(4.0, 3.0)
    axes = picture.subplots()
    byte_axis(axes, [0, 10**low, 10 ** (low + decades)])
    renderer = FigureCanvasAgg(picture).get_renderer()
    left, right = axes.get_xlim()
    texts = [tick.label1 for tick in axes.xaxis.get_major_ticks() if left <= tick.get_loc() <= right]
    boxes = sorted((text.get_window_extent(renderer) for text in texts), key=lambda box: box.x0)
    assert all(first.x1 < second.x0 for first, second in zip(boxes, boxes[1:], strict=False))


def test_arms_are_told_apart() -> None:
    assert len({tuple(style(place).values()) for place in range(43)}) == 43
    names = [f"arm{number}" for number in range(14)]
    places = {name: place for place, name in enumerate(names)}
    rows = rows_of(names, ["arm0"])
    assert [len(row) for row in rows] == [6, 6, 4] and all(row[0] == "arm0" for row in rows)
    assert sorted({name for row in rows for name in row}) == sorted(names)
    for row in rows:
        assert len({style(places[name])["color"] for name in row}) == len(row)


def test_flops_are_readable() -> None:
    counts = (0.0, 999.0, 1000.0, 2.5e9, 1.234e12, 5e17)
    said = ["0 FLOP", "999 FLOP", "1 kFLOP", "2.5 GFLOP", "1.23 TFLOP", "500 PFLOP"]
    assert [readable_flops(count) for count in counts] == said


# Arms


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration without baselines, whose agents pool their examples, and one that has a baseline."""
    folder = tmp_path_factory.mktemp("compare")
    agents = "llama gpt2"
    config = small_config(make_models(folder / "models"), agents, method=ROUTED, rounds=1)
    data = config.model_dump(mode="json")
    for agent in data["agents"]:
        agent["release"]["records"] = "agents"
    (folder / "tiny.yaml").write_text(json.dumps(data))
    data["baselines"] = {"alone": {"type": "local"}}
    (folder / "given.yaml").write_text(json.dumps(data))
    return folder


def test_a_file_without_baselines_is_met_by_every_method_that_fits(folder: Path, tmp_path: Path) -> None:
    choice = admitted(read_config(folder / "tiny.yaml"))
    assert list(choice.added)[:2] == ["local", "centralised"] and "knexa" not in choice.added
    needs = "needs texts released to the coordinator and other agents, but a0 does not; set its `release.texts: "
    assert choice.left_out["central_text"] == f"{needs}everyone`"
    kept = read_config(folder / "tiny.yaml", ["agents.1.release.records=nobody"])
    assert "needs records released" in admitted(kept).left_out["centralised"]
    study = Plan(str(folder / "tiny.yaml"), 2).study(tmp_path)
    assert [job.name for job in study.jobs] == ["tiny-s0", "tiny-s1"]
    assert {tuple(job.config.arms()) for job in study.jobs} == {(*choice.added, "knexa")}
    given = Plan(str(folder / "given.yaml"), 1).study(tmp_path)
    assert [list(job.config.arms()) for job in given.jobs] == [["alone", "knexa"]]


def test_arms_can_be_named(folder: Path, tmp_path: Path) -> None:
    def arms_of(*names: str) -> list[str]:
        return list(Plan(str(folder / "tiny.yaml"), 1, (), names).study(tmp_path).jobs[0].config.arms())

    assert arms_of("local") == ["local", "knexa"] and arms_of("knexa") == ["knexa"]
    with pytest.raises(ConfigError, match=r"no arm 'central_text'; it is left out: needs texts released"):
        arms_of("central_text")
    with pytest.raises(ConfigError, match=r"no arm 'locall'; the arms are local, centralised, .*knexa"):
        arms_of("local", "locall")


def test_a_method_that_does_not_fit_the_agents_is_left_out_and_the_others_run(folder: Path, tmp_path: Path) -> None:
    """What only models tell: one has another tokenizer."""
    other = tmp_path / "other"
    shutil.copytree(read_config(folder / "given.yaml").agents[0].model, other)
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(other)
    given = (f"agents.1.model={other}", *(f"agents.{number}.release.logits=coordinator" for number in (0, 1)))
    arms = ("baselines.kd=kd", "baselines.groups={type: kd, vocabularies: groups}")
    plan = Plan(str(folder / "given.yaml"), 1, (*given, *arms))
    study = plan.study(tmp_path)
    assert [list(job.config.arms()) for job in study.jobs] == [["alone", "groups", "knexa"]]
    (written, _) = study.write()
    assert "another tokenizer than a0" in json.loads(written.read_text())["left_out"]["kd"]
    with pytest.raises(ConfigError, match=r"no arm 'kd'; it is left out: kd needs models that choose from the same"):
        replace(plan, arms=("kd",)).study(tmp_path)
    with pytest.raises(ConfigError, match="kd needs models that choose from the same tokens"):
        replace(plan, overrides=(*given, "method=kd")).study(tmp_path)


def test_a_server_comes_with_the_arms_that_need_it(folder: Path, tmp_path: Path) -> None:
    model = read_config(folder / "given.yaml").agents[0].model
    served = (
        "agents.1.model=" + model,
        f"server={{model: {model}}}",
        "baselines.routed={type: central_text, server_model: true}",
    )
    served = (*served, *(f"agents.{number}.release.texts=everyone" for number in (0, 1)))
    plan = Plan(str(folder / "given.yaml"), 1, served)
    (job,) = plan.study(tmp_path).jobs
    assert job.config.server is not None and "routed" in job.config.arms()
    (job,) = replace(plan, arms=("alone",)).study(tmp_path).jobs
    assert job.config.server is None
    with pytest.raises(ConfigError, match=r"\[server\] no arm has a use for it"):
        replace(plan, overrides=served[:2]).study(tmp_path)


# A run


def test_a_comparison_is_what_its_ledgers_say(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs that are finished are not run again; bytes and FLOPs are recounted from the ledger's events."""
    plan = Plan(str(folder / "tiny.yaml"), 2, (), ("local",))
    jobs = plan.study(tmp_path / "out").jobs
    ledgers = [run(job.folder, job.config) for job in jobs]
    monkeypatch.setattr(sys, "argv", f"peertune compare {folder}/tiny.yaml --seeds 2 --to out".split())
    sys.argv += ["--arms", "local,knexa"]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert "arms: local, knexa" in shown and "tiny: 2 seeds" in shown
    assert "left out: central_text: needs texts released" in shown and "out/pareto.png" in shown
    for name in ("learning", "pareto"):
        assert (tmp_path / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert markdown(summary) == (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert [row["arm"] for row in summary["arms"]] == ["local", "knexa"]
    for row in summary["arms"]:
        assert {key: row[key] for key in ("bytes", "up", "down", "flops", "updates")} == recounted(ledgers, row["arm"])
    rows = {row["arm"]: row for row in summary["arms"]}
    assert rows["local"]["up"] == 0 < rows["knexa"]["up"] and rows["knexa"]["updates"] == 2 * 2
    assert rows["local"]["flops"] > 0 and summary["missing"] == {}
    local, routed = (summary["planned"][arm] for arm in ("local", "knexa"))
    assert local == {"bytes": rows["local"]["bytes"], "flops": rows["local"]["flops"], "exact": True}
    assert routed["bytes"] > rows["knexa"]["bytes"] and not routed["exact"]
    page = markdown(summary)
    assert (
        "| all, planned |" in page
        and "| client FLOPs, planned |" in page
        and f"<= {readable_bytes(routed['bytes'])}" in page
    )
    assert all(len(summary["curves"][arm]) == 1 + 1 for arm in rows)


def recounted(ledgers: list[Ledger], arm: str) -> dict[str, float]:
    """Means over the ledgers."""
    found: Counter[str] = Counter()
    for ledger in ledgers:
        for event in ledger.events(arm=arm):
            if event.phase == "round" and event.kind == "transfer":
                found["bytes"] += event.body["bytes"]
                found["up"] += event.body["bytes"] if event.body["source"] != COORDINATOR else 0
                found["down"] += event.body["bytes"] if event.body["destination"] != COORDINATOR else 0
            if event.phase == "round" and event.kind == "metric":
                found[event.body["name"]] += event.body["value"]
    keys = {"bytes": "bytes", "up": "up", "down": "down", "flops": "flops", "updates": "exchange_updates"}
    return {name: found[key] / len(ledgers) for name, key in keys.items()}


def test_a_comparison_that_has_nothing_says_so(folder: Path, tmp_path: Path) -> None:
    study = Plan(str(folder / "given.yaml"), 1).study(tmp_path)
    assert [path.name for path in study.write()] == ["summary.json", "table.md"]
    page = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "No arm is finished." in page and "* `given-s0`: alone, knexa" in page


DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.parametrize(
    "place", sorted(path.parent for path in DOCS.glob("f*/summary.json")), ids=lambda path: path.name
)
def test_the_results_page_says_what_the_committed_summaries_say(place: Path) -> None:
    summary, page = json.loads((place / "summary.json").read_text()), (DOCS / "results.md").read_text(encoding="utf-8")
    assert f"]({place.name}/summary.json)" in page and len(summary["seeds"]) >= 5 and not summary["missing"]
    for row in summary["arms"]:
        assert f"| {row['arm']} | {points(row['score'])} | {100 * row['worst']:.1f} |" in page
        assert row["over_local"] is None or points(row["over_local"], "+") in page
