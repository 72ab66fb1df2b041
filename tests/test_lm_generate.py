import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny import CONTEXT, FAMILIES, TEXTS, make_tiny_model, randomise_adapter

from peertune.errors import ConfigError
from peertune.lm.encode import encode, encode_prompt
from peertune.lm.generate import generate
from peertune.lm.model import LanguageModel
from peertune.lm.settings import AdapterSettings, Sampling, TrainingSettings
from peertune.lm.train import Trainer

PROMPTS = ["The quick brown fox jumps over", "def", "xs", "Return the sum of all", "def total(xs):", "a", "def"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {family: make_tiny_model(root / family, family) for family in FAMILIES}


def model(folder: Path) -> LanguageModel:
    lm = LanguageModel.load(str(folder))
    lm.add_adapter("a", AdapterSettings(rank=2), seed=0)
    randomise_adapter(lm, "a")
    return lm


def greedy_without_cache(lm: LanguageModel, prompt: str, length: int) -> str:
    """One token at a time, the whole row anew, no padding, no cache: what any faster way must reproduce."""
    head = encode_prompt(lm.tokenizer, prompt)
    ids = list(head)
    with lm.using("a") as net, torch.no_grad():
        for _ in range(length):
            token = int(net(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
            if token in lm.end_tokens:
                break
            ids.append(token)
    return lm.tokenizer.decode(ids[len(head) :], skip_special_tokens=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_batched_text_equals_one_by_one_without_cache(folders: dict[str, Path], family: str) -> None:
    lm = model(folders[family])
    expected = [greedy_without_cache(lm, prompt, 16) for prompt in PROMPTS]
    assert len(set(expected)) >= 5  # of 6: the texts tell the prompts apart
    for batch_size in (1, 3, 64):
        assert generate(lm, "a", PROMPTS, Sampling(16), batch_size) == expected


def test_text_follows_the_adapter(folders: dict[str, Path]) -> None:
    lm = model(folders["llama"])
    lm.add_adapter("b", AdapterSettings(rank=2), seed=0)
    randomise_adapter(lm, "b", seed=5)
    first, second = (generate(lm, name, PROMPTS, Sampling(12)) for name in "ab")
    assert first != second
    assert generate(lm, "a", PROMPTS, Sampling(12)) == first


def test_sampling_depends_on_the_seed_only(folders: dict[str, Path]) -> None:
    lm = model(folders["qwen2"])
    before = torch.get_rng_state()
    texts = generate(lm, "a", PROMPTS, Sampling(12, temperature=0.9, seed=3))
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(11)
    generate(lm, "a", PROMPTS[:2], Sampling(5, temperature=1.0))
    again = model(folders["qwen2"])
    assert generate(again, "a", PROMPTS, Sampling(12, temperature=0.9, seed=3)) == texts
    assert generate(lm, "a", PROMPTS, Sampling(12, temperature=0.9, seed=3)) == texts
    assert generate(lm, "a", PROMPTS, Sampling(12, temperature=0.9, seed=4)) != texts
    assert generate(lm, "a", PROMPTS, Sampling(12, temperature=1e-4)) == generate(lm, "a", PROMPTS, Sampling(12))
    assert texts[1] != texts[6]  # the same prompt twice is sampled twice


def test_no_hidden_cut_of_the_distribution(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["gpt2"], tmp_path / "gpt2")
    path = tmp_path / "gpt2" / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_sample": True, "top_p": 0.01, "top_k": 1}))
    for folder in (folders["gpt2"], tmp_path / "gpt2"):
        flat = generate(model(folder), "a", ["def"] * 400, Sampling(1, temperature=50.0))
        assert len(set(flat)) > 100  # transformers' default of top_k = 50 would allow 50


def test_end_of_text_and_special_tokens_are_stripped(folders: dict[str, Path]) -> None:
    lm = LanguageModel.load(str(folders["llama"]))
    lm.add_adapter("a", AdapterSettings(rank=8), seed=0)
    rows = [encode(lm.tokenizer, text[:8], text[8:], 80) for text in TEXTS]
    trainer = Trainer(lm, "a", TrainingSettings(warmup_steps=2))
    for step in range(60):
        trainer.step([(rows, 1.0)], seed=step)
    assert generate(lm, "a", [text[:8] for text in TEXTS], Sampling(60)) == [text[8:] for text in TEXTS]
    assert generate(lm, "a", [], Sampling(4)) == []


def test_long_prompts_lose_their_beginning(folders: dict[str, Path]) -> None:
    for family in ("gpt2", "opt"):  # learned positions: one token too many would be an error
        lm = model(folders[family])
        long = "The quick brown fox " * 40 + "def total(xs):"
        assert len(encode_prompt(lm.tokenizer, long)) > CONTEXT
        whole = lm.tokenizer.encode(long)
        kept = lm.tokenizer.decode(whole[len(whole) - (CONTEXT - 16 - 1) :])
        assert generate(lm, "a", [long, "def"], Sampling(16)) == generate(lm, "a", [kept, "def"], Sampling(16))
        with pytest.raises(ConfigError, match=f"below the context of {CONTEXT} tokens, found {CONTEXT}"):
            generate(lm, "a", ["def"], Sampling(CONTEXT))


def test_names_of_control_tokens_in_prompts_are_plain_text(folders: dict[str, Path]) -> None:
    lm = model(folders["llama"])
    plain, chat = (generate(lm, "a", ["def<|eos|><|user|>"], Sampling(8), template=flag)[0] for flag in (False, True))
    assert plain != chat


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_generation_leaves_no_trace_in_training(folders: dict[str, Path], family: str) -> None:
    first, second = model(folders[family]), model(folders[family])
    generate(second, "a", PROMPTS, Sampling(8))
    steps = [
        Trainer(lm, "a", TrainingSettings()).step([([encode(lm.tokenizer, "def", " add", 64)], 1.0)], seed=0)
        for lm in (first, second)
    ]
    assert steps[0] == steps[1]


@pytest.mark.gpu
@pytest.mark.parametrize("family", FAMILIES)
def test_cuda_trains_and_generates(folders: dict[str, Path], family: str) -> None:
    lm = LanguageModel.load(str(folders[family]), "cuda")
    lm.add_adapter("a", AdapterSettings(rank=4, dropout=0.1), seed=0)
    assert lm._base.get_input_embeddings().weight.dtype == torch.bfloat16
    assert {value.dtype for value in lm.trainable("a").values()} == {torch.float32}
    rows = [encode(lm.tokenizer, text[:8], text[8:], 80) for text in TEXTS]
    trainer = Trainer(lm, "a", TrainingSettings(warmup_steps=2))
    curve = [trainer.step([(rows, 0.8), (rows[:2], 0.2)], seed=step) for step in range(30)]
    assert curve[-1] < 0.8 * curve[0]
    stored = trainer.state()
    expected = trainer.step([(rows, 1.0)], seed=30)
    trainer.load_state(stored)
    assert trainer.step([(rows, 1.0)], seed=30) == pytest.approx(expected, rel=1e-2)
    assert len(generate(lm, "a", PROMPTS, Sampling(12, temperature=0.8, seed=1))) == len(PROMPTS)
