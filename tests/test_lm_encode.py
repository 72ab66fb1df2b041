from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import make_tokenizer
from transformers import PreTrainedTokenizerFast

from peertune.lm.encode import Row, collate, encode, encode_prompt, render_example

TOKENIZER = make_tokenizer()
MISTRAL = Path(__file__).parents[2] / "shared/data/tokenizers/mistral_v1/tokenizer.json"
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def no_bos() -> PreTrainedTokenizerFast:
    tokenizer = make_tokenizer()
    tokenizer.bos_token = None
    return tokenizer


def test_loss_is_on_completion_and_end_only() -> None:
    row = encode(TOKENIZER, "def add(a, b):", "\n    return a + b\n", 64)
    assert row.ids[0] == 0 and row.ids[-1] == 0 and not row.truncated
    assert TOKENIZER.decode(list(row.ids[1 : row.prompt_length])) == "def add(a, b):"
    assert TOKENIZER.decode(list(row.ids[row.prompt_length : -1])) == "\n    return a + b\n"


@given(TEXT, TEXT, st.integers(2, 40))
def test_rows_fit_and_keep_the_end_of_the_prompt(prompt: str, completion: str, max_length: int) -> None:
    whole, row = encode(TOKENIZER, prompt, completion, 10**6), encode(TOKENIZER, prompt, completion, max_length)
    head, tail = whole.ids[: whole.prompt_length], whole.ids[whole.prompt_length :]
    assert len(row.ids) == min(max_length, len(whole.ids)) and row.truncated == (len(whole.ids) > max_length)
    assert 1 <= row.prompt_length < len(row.ids) and row.ids[0] == 0
    assert row.ids[row.prompt_length :] == tail[: max_length - 1]
    assert row.ids[1 : row.prompt_length] == head[len(head) - row.prompt_length + 1 :]
    assert TOKENIZER.decode(list(tail[:-1])) == completion or "\ufffd" in completion


@given(TEXT, TEXT)
def test_training_rows_begin_with_what_generation_sees(prompt: str, completion: str) -> None:
    row = encode(TOKENIZER, prompt, completion, 10**6)
    assert list(row.ids[: row.prompt_length]) == encode_prompt(TOKENIZER, prompt)


def test_completion_that_would_merge_with_the_prompt_keeps_the_prompt() -> None:
    together = TOKENIZER.encode("def fi" + "rst(xs):")
    assert together[: len(TOKENIZER.encode("def fi"))] != TOKENIZER.encode("def fi")
    row = encode(TOKENIZER, "def fi", "rst(xs):", 64)
    assert list(row.ids) == [0, *TOKENIZER.encode("def fi"), *TOKENIZER.encode("rst(xs):"), 0]


def test_names_of_control_tokens_in_data_are_plain_text() -> None:
    prompt, completion = "<|eos|>add<|user|>", "b<|eos|>c"
    row = encode(TOKENIZER, prompt, completion, 200)
    assert [position for position, token in enumerate(row.ids) if token < 4] == [0, len(row.ids) - 1]
    assert TOKENIZER.decode(list(row.ids)) == f"<|eos|>{prompt}{completion}<|eos|>"
    own = encode(TOKENIZER, prompt, completion, 200, template=True)
    assert own.ids.count(0) == 3 and own.ids.count(2) == 1 and own.ids[0] == 0 and own.ids[1] != 0


def test_tokenizer_without_bos() -> None:
    tokenizer = no_bos()
    assert encode(tokenizer, "add", "b", 64).ids[0] == tokenizer.encode("add")[0]
    assert encode(tokenizer, "", "b", 64) == Row((0, tokenizer.encode("b")[0], 0), 1, False)
    assert encode(tokenizer, "", "", 64) == Row((0, 0), 1, False)
    long = encode(tokenizer, "add " * 50, "b", 10)
    assert len(long.ids) == 10 and long.ids[0] != 0 and long.truncated


@pytest.mark.skipif(not MISTRAL.is_file(), reason="needs the shared tokenizer of mistral")
def test_sentencepiece_style_tokenizer_adds_no_space_inside() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(MISTRAL), bos_token="<s>", eos_token="</s>")
    row = encode(tokenizer, "def add(a, b):", "\n    return a + b", 64)
    assert tokenizer.decode(list(row.ids), skip_special_tokens=True) == "def add(a, b):\n    return a + b"
    assert list(row.ids[1:-1]) == tokenizer.encode("def add(a, b):\n    return a + b", add_special_tokens=False)
    assert (row.ids[0], row.ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)


def test_collate_pads_on_the_right() -> None:
    batch = collate([Row((0, 5, 6, 0), 2, False), Row((0, 7), 1, False)], 1, "cpu")
    assert batch.ids.tolist() == [[0, 5, 6, 0], [0, 7, 1, 1]]
    assert batch.labels.tolist() == [[-100, -100, 6, 0], [-100, 7, -100, -100]]
    assert {batch.ids.dtype, batch.labels.dtype} == {torch.int64}


def test_render_example_shows_what_carries_loss() -> None:
    row = encode(TOKENIZER, "def add(a, b):", "\n    return a", 64)
    assert render_example(row, TOKENIZER) == (
        f"given ({row.prompt_length} tokens, no loss):\n<|eos|>def add(a, b):\n"
        "learned (4 tokens):\n[\\n   ][ return][ a][<|eos|>]"
    )
    assert "no loss, truncated" in render_example(encode(TOKENIZER, "add " * 30, "b", 10), TOKENIZER)
