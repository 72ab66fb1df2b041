"""What the halves of a split model send each other, whom the server serves in which order, and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from halves import (
    SETTINGS,
    VOCABULARY,
    WIDTH,
    Pair,
    assert_same,
    client_of,
    gradients,
    labelled,
    model,
    reset,
    server_of,
    texts,
)
from hypothesis import given
from hypothesis import strategies as st

from peertune.errors import MethodError, PayloadError
from peertune.lm.cut import Cut, Parts
from peertune.lm.encode import Row
from peertune.lm.ragged import Sample, buckets, completion, flat_reads, pack, unpack
from peertune.lm.settings import AdapterSettings
from peertune.lm.split import ServerHalf
from peertune.lm.train import Trainer, TrainingDiverged


@pytest.mark.parametrize("labels", [False, True])
def test_no_padding_and_no_more_than_is_read_travels(labels: bool) -> None:
    lm = model("bert" if labels else "gpt2", labels)
    rows = texts()
    samples = labelled(lm, rows) if labels else [completion(row) for row in rows]
    tokens, reads = sum(len(row.ids) for row in rows), sum(len(sample.reads) for sample in samples)
    assert reads == (len(rows) if labels else sum(row.loss_tokens for row in rows))
    for cut, states in ((Cut(1), 2 * (tokens + reads)), (Cut(1, 3), 4 * tokens), (Cut(1, plain=True), 2 * tokens)):
        pair = Pair(lm, cut)
        pair.step(samples)
        assert pair.bytes == states * WIDTH * 4


def test_labels_and_what_is_read_stay_at_home_where_they_can() -> None:
    lm = model("llama")
    samples = [completion(row) for row in texts()]
    sent = [client_of(lm, cut).lower(samples, 0) for cut in (Cut(1, 3), Cut(1), Cut(1, plain=True))]
    assert [(len(smashed.reads) > 0, len(smashed.targets) > 0) for smashed in sent] == [
        (False, False),
        (True, False),
        (True, True),
    ]


def test_a_server_with_an_adapter_for_each_client_serves_them_in_any_order() -> None:
    """SplitFed V1: the steps of two clients are those that each has alone, though their messages interleave."""
    lm = model("gpt2")
    samples = [[completion(row) for row in texts(seed=seed)] for seed in (0, 1)]
    alone = []
    for batch in samples:
        reset(lm)
        pair = Pair(lm, Cut(1))
        pair.step(batch)
        alone.append(pair.gradients())
    reset(lm)
    for name in ("client b", "server b"):
        lm.add_adapter(name, AdapterSettings(rank=2), seed=0)
        lm.load_adapter(name, lm.adapter_state("whole"))
    clients = [client_of(lm, Cut(1), name) for name in ("client", "client b")]
    servers = [server_of(lm, Cut(1), name) for name in ("server", "server b")]
    seen = [
        (gradients(client.trainer), gradients(server.trainer)) for client, server in zip(clients, servers, strict=True)
    ]
    sides = list(zip(clients, servers, samples, strict=True))
    smashed = [client.lower(batch, 1) for client, _, batch in sides]
    hidden = [server.middle("c", sent, 2) for (_, server, _), sent in zip(sides, smashed, strict=True)]
    found = [client.loss(states, 3)[1] for (client, _, _), states in zip(sides, hidden, strict=True)]
    for (client, server, _), gradient in reversed(list(zip(sides, found, strict=True))):
        client.back(server.back("c", gradient))
    for (clients_own, servers), expected in zip(seen, alone, strict=True):
        assert_same(clients_own | servers, expected)


def test_a_shared_server_refuses_a_gradient_for_parameters_that_have_moved() -> None:
    """SplitFed V2."""
    lm = model("gpt2")
    client, server = client_of(lm, Cut(1)), server_of(lm, Cut(1), clients="ab")
    smashed = client.lower([completion(row) for row in texts()], 1)
    hidden = [server.middle(name, smashed, 2) for name in ("a", "b")]
    assert np.array_equal(*hidden)
    gradient = client.loss(hidden[0], 3)[1]
    server.back("a", gradient)
    for name in ("a", "b"):
        with pytest.raises(MethodError, match=f"'{name}'.*one client after the other"):
            server.back(name, gradient)


def test_a_shared_server_serves_clients_that_are_cut_in_different_places() -> None:
    """One adapter and one optimiser for the blocks from the first cut up; blocks below a client's cut stay still."""
    lm = model("gpt2")
    cuts = {"a": Cut(1), "b": Cut(3)}
    server = ServerHalf(Trainer(lm, "server", SETTINGS), cuts)
    samples = [completion(row) for row in texts()]
    for name, cut in cuts.items():
        client, before = client_of(lm, cut), lm.adapter_state("server")
        hidden = server.middle(name, client.lower(samples, 1), 2)
        client.back(server.back(name, client.loss(hidden, 3)[1]))
        after = lm.adapter_state("server")
        changed = {key for key in after if not torch.equal(after[key], before[key])}
        assert changed == set(Parts(lm, "server", cut).owned(client=False))
    counts = server.trainer.state()["counts"].tolist()
    names = list(lm.trainable("server"))
    of_block = {n: {count for name, count in zip(names, counts, strict=True) if f".h.{n}." in name} for n in range(4)}
    assert of_block == {0: {0}, 1: {1}, 2: {1}, 3: {2}}


def test_activations_that_are_in_memory_together() -> None:
    lm = model("gpt2")
    client, server = client_of(lm, Cut(1, 3)), server_of(lm, Cut(1, 3), clients="ab")
    smashed = client.lower([completion(row) for row in texts(rows=11)], 1)
    lower = client.peak
    assert [(one.kind, one.rows, one.start, one.stop) for one in lower] == [
        ("backward", 8, 0, 2),
        ("backward", 3, 0, 2),
    ]
    hidden = [server.middle(name, smashed, 2) for name in "ab"]
    assert len(server.peak) == 4 and {(one.start, one.stop) for one in server.peak} == {(2, 4)}
    gradient = client.loss(hidden[0], 3)[1]
    assert client.peak[:2] == lower and len(client.peak) == 3 and client.peak[2].start == 4
    server.back("a", gradient)
    assert server.held == ()


def test_calls_out_of_turn() -> None:
    lm = model("gpt2")
    client = client_of(lm, Cut(1))
    states = np.zeros((3, WIDTH), np.float32)
    for call in (lambda: client.back(states), lambda: client.loss(states, 0)):
        with pytest.raises(MethodError, match="call `lower` first"):
            call()
    client.lower([completion(row) for row in texts()], 0)
    with pytest.raises(MethodError, match="call `loss` first"):
        client.back(states)
    with pytest.raises(ValueError, match="no token with loss"):
        client.lower([], 0)


def test_a_gradient_that_is_no_number_changes_nothing() -> None:
    lm = model("gpt2")
    before = lm.adapter_state("client")
    pair = Pair(lm, Cut(1))
    smashed = pair.client.lower([completion(row) for row in texts()], 1)
    gradient = np.full_like(pair.server.middle("c", smashed, 2), np.nan)
    with pytest.raises(TrainingDiverged, match="found gradient norm nan"):
        pair.server.back("c", gradient)
    assert_same(lm.adapter_state("server"), before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths": np.array([2, 3, 4], np.int64)}, "int32"),
        ({"lengths": np.array([], np.int32)}, "1 to 16 rows"),
        ({"lengths": np.ones(17, np.int32)}, "1 to 16 rows"),
        ({"lengths": np.array([0, 4, 5], np.int32)}, "1 to 64 tokens"),
        ({"lengths": np.array([2, 3, 65], np.int32)}, "1 to 64 tokens"),
        ({"lengths": np.array([4, 3, 2], np.int32)}, "shortest first"),
        ({"lengths": np.array([2, 3, 5], np.int32)}, r"float32 \(10, 16\)"),
        ({"hidden": np.zeros((9, 17), np.float32)}, r"float32 \(9, 16\)"),
        ({"hidden": np.zeros((9, 16), np.float64)}, "found float64"),
        ({"reads": np.array([1, 9], np.int32)}, "ascending"),
        ({"reads": np.array([-1, 2], np.int32)}, "ascending"),
        ({"reads": np.array([2, 2], np.int32)}, "ascending"),
        ({"targets": np.array([1], np.int32)}, "a label for each"),
        ({"targets": np.array([1, VOCABULARY], np.int32)}, "labels from 0 to 49"),
        ({"targets": np.array([-100, 2], np.int32)}, "labels from 0 to 49"),
    ],
)
def test_smashed_data_that_cannot_be(change: dict[str, np.ndarray], message: str) -> None:
    lm = model("gpt2")
    rows = [Row((5, 6), 1, False), Row((5, 6, 7), 2, False), Row((5, 6, 7, 8), 4, False)]
    smashed = client_of(lm, Cut(1, plain=True)).lower([completion(row) for row in rows], 0)
    with pytest.raises(PayloadError, match=message):
        server_of(lm, Cut(1, plain=True)).loss("c", replace(smashed, **change), 0)
    if "targets" not in change:
        with pytest.raises(PayloadError, match=message):
            server_of(lm, Cut(1)).middle("c", replace(smashed, **change), 0)


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (Cut(0), "after block 1 to 3, not 0"),
        (Cut(4), "after block 1 to 3, not 4"),
        (Cut(2, 2), "after block 3 to 4, not 2"),
        (Cut(2, 5), "after block 3 to 4, not 5"),
        (Cut(1, 3, plain=True), "one cut; leave out the last one, 3"),
    ],
)
def test_a_cut_outside_of_the_model(cut: Cut, message: str) -> None:
    with pytest.raises(MethodError, match=message):
        Parts(model("llama"), "client", cut)


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=6), min_size=1, max_size=7), st.integers(1, 4))
def test_packing_and_bucketing_find_every_token_again(rows: list[list[bool]], size: int) -> None:
    rows = sorted(rows, key=len)
    lengths = np.array([len(row) for row in rows], np.int32)
    samples = [Sample((7,) * len(row), tuple(np.flatnonzero(row).tolist()), ()) for row in rows]
    packed = torch.arange(int(lengths.sum())).float()[:, None]
    reads = flat_reads(samples)
    parts = buckets(lengths, reads, size, torch.device("cpu"))
    pieces = packed.split([part.tokens for part in parts])
    found = []
    for part, piece in zip(parts, pieces, strict=True):
        padded = unpack(piece, part.lengths)
        assert padded.shape == (len(part.lengths), int(part.lengths.max()), 1)
        assert torch.equal(pack(padded, part.lengths), piece)
        found += padded[part.rows, part.places, 0].tolist()
    assert found == reads.tolist() == [place for place, read in enumerate(sum(rows, [])) if read]
