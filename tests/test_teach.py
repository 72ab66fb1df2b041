"""What a model expects, and one step towards what another does, against the plain formulas on tiny models."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import make_tiny_encoder, make_tiny_model, randomise_adapter

from peertune.lm.classify import encode_labelled
from peertune.lm.encode import Row, collate, encode
from peertune.lm.model import LanguageModel
from peertune.lm.settings import AdapterSettings, TrainingSettings
from peertune.lm.teach import Taught, expectations, read, with_teacher
from peertune.lm.train import Trainer
from peertune.losses import Loss

TEXTS = [("def f(x):", " return x + 1"), ("a", " b"), ("once upon a", " time there was"), ("", "x")]
LABELS = ("card lost", "top up", "fee")


def causal(folder: Path, family: str) -> tuple[LanguageModel, list[Row]]:
    lm = LanguageModel.load(str(make_tiny_model(folder / family, family)))
    return lm, [encode(lm.tokenizer, *text, 64) for text in TEXTS]


def encoder(folder: Path) -> tuple[LanguageModel, list[Row]]:
    lm = LanguageModel.load(str(make_tiny_encoder(folder / "bert", "bert")), labels=LABELS)
    return lm, [encode_labelled(lm, text, LABELS[index % 3], 64) for index, (text, _) in enumerate(TEXTS)]


@pytest.fixture(params=["llama", "gpt2", "bert"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[LanguageModel, list[Row]]:
    lm, rows = encoder(tmp_path) if request.param == "bert" else causal(tmp_path, request.param)
    for seed, name in enumerate(("ann", "bob")):
        lm.add_adapter(name, AdapterSettings(rank=2, alpha=4, dropout=0.0), seed)
        randomise_adapter(lm, name, seed)
        with lm.using(name) as model:
            for module in model.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0
    return lm, rows


def plain(lm: LanguageModel, name: str, row: Row) -> torch.Tensor:
    """Log-probabilities at each position of one row that carries loss; [position, width]."""
    with lm.using(name) as model:
        batch = collate([row], lm.pad_token, lm.device)
        if row.label is not None:
            return model(input_ids=batch.ids, attention_mask=batch.mask).logits.log_softmax(1)
        return model(input_ids=batch.ids).logits[0, row.prompt_length - 1 : -1].log_softmax(1)


def test_expectations_are_those_of_the_model_in_the_order_of_the_rows(made: tuple[LanguageModel, list[Row]]) -> None:
    lm, rows = made
    known = expectations(lm, "ann", rows, batch_size=3)
    assert known.lengths.tolist() == [row.loss_tokens for row in rows] and known.width == lm.width
    wanted = torch.cat([plain(lm, "ann", row) for row in rows]).detach().numpy()
    np.testing.assert_allclose(known.logp, wanted, atol=1e-5)
    known.check()


def test_of_the_most_probable_the_rest_is_the_tail(made: tuple[LanguageModel, list[Row]]) -> None:
    lm, rows = made
    dense, sparse = expectations(lm, "ann", rows), expectations(lm, "ann", rows, k=2)
    assert sparse.ids is not None and sparse.tail is not None
    np.testing.assert_allclose(np.take_along_axis(dense.logp, sparse.ids, 1), sparse.logp, atol=1e-5)
    rest = 1 - np.exp(sparse.logp.astype(np.float64)).sum(axis=1)
    np.testing.assert_allclose(np.exp(sparse.tail), rest, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_distance_to_a_teacher_is_the_divergence(made: tuple[LanguageModel, list[Row]], temperature: float) -> None:
    lm, rows = made
    teacher = with_teacher(rows, expectations(lm, "bob", rows))
    wanted = []
    for item in teacher:
        with lm.using("ann") as model:
            batch = collate([item.row], lm.pad_token, lm.device)
            found = read(model, batch).loss(item.teacher, Loss(temperature))
        ours, theirs = (plain(lm, name, item.row).div(temperature).log_softmax(1) for name in ("ann", "bob"))
        wanted.append((theirs.exp() * (theirs - ours)).sum(1).mean() * temperature**2)
        torch.testing.assert_close(found, wanted[-1], atol=1e-5, rtol=1e-5)
    assert min(one.item() for one in wanted) > 1e-4


def test_a_taught_step_is_the_gradient_of_the_weighted_sum(made: tuple[LanguageModel, list[Row]]) -> None:
    """Own rows and taught rows in one step, in micro-batches, against both losses of the whole batch at once."""
    lm, rows = made
    items = with_teacher(rows, expectations(lm, "bob", rows))
    own = rows[:2]
    trainer = Trainer(lm, "ann", TrainingSettings(1e-2, batch_size=4, clip_norm=1e9, accumulate=2))
    parameters = lm.trainable("ann")
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    loss = trainer.step([(own, 0.3)], 0, Taught(items, 0.7, Loss(2.0)))

    after = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    lm.load_adapter("ann", before)
    positions = sum(row.loss_tokens for row in rows)
    wanted = torch.zeros(())
    for item in items:
        with lm.using("ann") as model:
            batch = collate([item.row], lm.pad_token, lm.device)
            wanted = wanted + 0.7 * read(model, batch).loss(item.teacher, Loss(2.0)) * item.row.loss_tokens / positions
    tokens = sum(row.loss_tokens for row in own)
    for row in own:
        chosen = [row.label] if row.label is not None else list(row.ids[row.prompt_length :])
        wanted = wanted - 0.3 * plain(lm, "ann", row)[range(len(chosen)), chosen].sum() / tokens
    assert loss == pytest.approx(wanted.item(), abs=1e-5)
    gradients = torch.autograd.grad(wanted, list(parameters.values()))
    moved = [(after[name] - before[name]).flatten() for name in parameters]
    against = [gradient.flatten() for gradient in gradients]
    large = torch.cat(against).abs() > 1e-4  # the first step of AdamW goes one learning rate against the sign
    assert large.sum() > 50
    assert torch.equal(torch.cat(moved)[large].sign(), -torch.cat(against)[large].sign())


def test_what_nothing_is_known_of_teaches_nothing(made: tuple[LanguageModel, list[Row]]) -> None:
    lm, rows = made
    known = expectations(lm, "bob", rows).only(np.array([True, False, True, False]))
    assert [item.row for item in with_teacher(rows, known)] == [rows[0], rows[2]]


def test_a_teacher_of_other_positions_is_refused(tmp_path: Path) -> None:
    lm, rows = causal(tmp_path, "llama")
    lm.add_adapter("ann", AdapterSettings(rank=2, alpha=4, dropout=0.0), 0)
    known = expectations(lm, "ann", rows)
    with pytest.raises(ValueError, match="expected .* positions of a problem, found"):
        with_teacher(rows[::-1], known)
