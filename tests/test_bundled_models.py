"""The bundled models: the files are those recorded, transformers loads them, and they know no codelets."""

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from peertune.tasks.codelets import Codelets
from peertune.tasks.codelets.corpus import documents
from peertune.tasks.sandbox import Sandbox

MODELS = Path(__file__).parents[1] / "peertune" / "models"
FAMILIES = ("bloom", "gpt2", "gpt_neox", "llama", "qwen2")
each_family = pytest.mark.parametrize("family", FAMILIES)


@cache
def load(family: str) -> tuple[Any, Any]:
    folder = MODELS / family
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)


@torch.no_grad()
def complete(family: str, prompts: list[str]) -> list[str]:
    model, tokenizer = load(family)
    batch = tokenizer([tokenizer.bos_token + p for p in prompts], padding=True, return_tensors="pt")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    output = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=48, do_sample=False)
    return tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)


def test_the_files_are_the_recorded_ones():
    recorded = json.loads((MODELS / "HASHES.json").read_text())
    files = [path for family in FAMILIES for path in (MODELS / family).iterdir()]
    found = {path.relative_to(MODELS).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    assert found == recorded
    assert sum(path.stat().st_size for path in files) < 10e6
    readme = (MODELS / "README.md").read_text()
    for family in FAMILIES:
        assert recorded[f"{family}/model.safetensors"] in readme


@each_family
def test_plain_transformers_loads_a_small_float32_model(family: str):
    model, tokenizer = load(family)
    assert model.config.model_type == family
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    small, large = (0.3e6, 0.6e6), (1.9e6, 2.1e6)
    least, most = large if family == "llama" else small
    assert least < model.num_parameters() < most
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert len(tokenizer) == model.config.vocab_size and 640 <= len(tokenizer) <= 1024


@each_family
def test_the_tokenizer_is_lossless_and_adds_nothing(family: str):
    _, tokenizer = load(family)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 0, 1)
    for source in documents(3, 200):
        ids = tokenizer(source)["input_ids"]
        assert tokenizer.decode(ids) == source
        assert not {0, 1} & set(ids)
    digits = tokenizer.convert_tokens_to_ids(list("1234567890"))
    assert tokenizer("1234567890")["input_ids"] == digits


@each_family
def test_a_prompt_and_its_completion_are_cut_as_the_whole_is(family: str):
    _, tokenizer = load(family)
    for example in Codelets(0, 0, 0, 0, 0, 120).examples("test"):
        parts = [tokenizer(text)["input_ids"] for text in (example.prompt, example.completion)]
        assert sum(parts, []) == tokenizer(example.prompt + example.completion)["input_ids"]
        assert len(parts[0]) + len(parts[1]) < 120


def test_the_vocabularies_differ():
    assert sorted(len(load(family)[1]) for family in FAMILIES) == [640, 704, 768, 896, 1024]


@each_family
def test_the_model_has_learned_the_corpus_but_no_codelets(family: str):
    spelled = 'def run(xs):\n    """Return len(xs) + 17."""'
    assert complete(family, [spelled])[0].startswith("\n    return len(xs) + 1")  # gpt2 goes on with a 9
    with Sandbox(allow_unsafe=True) as sandbox:
        task = Codelets(0, train=0, validation=0, transfer=0, probe=0, test=60, sandbox=sandbox)
        examples = task.examples("test")
        texts = complete(family, [example.prompt for example in examples])
        assert sum(task.grade(examples, texts)) < 0.05 * len(examples)
    assert sum("\n    return " in text for text in texts) > 50
