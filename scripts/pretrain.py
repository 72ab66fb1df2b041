"""Pretrain one bundled model and its tokenizer from scratch on the codelets corpus: 2 minutes on one core, `llama` 20.

    python scripts/pretrain.py qwen2 --out peertune/models/qwen2

The hidden matrices learn with Muon (torch 2.9 or newer), embeddings and norms with AdamW; GPT-2 learns with
AdamW alone, which leaves it the weakest of the small ones, as real partners are not equally good. Llama is five times
as large, to be a server's. Everything is seeded: the same command on the same machine, torch and transformers gives
the same weights.
"""

import argparse
import hashlib
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    GenerationConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from peertune.tasks.codelets import Codelets
from peertune.tasks.codelets.corpus import documents, spelled_out
from peertune.tasks.sandbox import Sandbox

EOS, PAD = "<|eos|>", "<|pad|>"
CONTEXT, ROW, BATCH = 192, 128, 8
LEARNING_RATE, WARMUP, WEIGHT_DECAY = 3e-3, 100, 0.05


@dataclass(frozen=True)
class Family:
    seed: int
    vocabulary: int
    muon: bool = True
    width: int = 96
    layers: int = 3
    heads: int = 4
    steps: int = 2000


FAMILIES = {
    "qwen2": Family(seed=1, vocabulary=768),
    "gpt_neox": Family(seed=2, vocabulary=704),
    "bloom": Family(seed=3, vocabulary=640),
    "gpt2": Family(seed=4, vocabulary=896, muon=False),
    "llama": Family(seed=5, vocabulary=1024, width=192, layers=4, heads=6, steps=3000),
}


def pre_tokenizer(name: str) -> pre_tokenizers.PreTokenizer:
    """How text is cut before the merges; each digit is a token of its own.

    transformers gives every Qwen2 folder Qwen2's own pattern, whatever its tokenizer.json says; so do we.
    """
    if name == "qwen2":
        pattern = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated")
        return pre_tokenizers.Sequence([pattern, pre_tokenizers.ByteLevel(False, use_regex=False)])
    digits = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])


def train_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE that adds no special tokens by itself."""
    tokenizer = Tokenizer(models.BPE())
    cut = pre_tokenizer(name)
    if name == "qwen2":
        # Qwen2's pattern joins a newline to the quotes before it. Without a merge across the two, a prompt
        # that ends at the docstring's quotes is cut as the documents were.
        newlines = pre_tokenizers.Split("\n", behavior="isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([newlines, cut])
        tokenizer.normalizer = normalizers.NFC()
    else:
        tokenizer.pre_tokenizer = cut
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=FAMILIES[name].vocabulary,
        special_tokens=[EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents(FAMILIES[name].seed, 6000), trainer)
    tokenizer.pre_tokenizer = cut
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=EOS,
        eos_token=EOS,
        unk_token=EOS,
        pad_token=PAD,
        padding_side="left",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def configuration(name: str, tokenizer: PreTrainedTokenizerFast) -> PretrainedConfig:
    family = FAMILIES[name]
    width, layers, heads = family.width, family.layers, family.heads
    ids = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": True,
    }
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    match name:
        case "qwen2":
            widths = {"num_key_value_heads": heads, "intermediate_size": 256}
            return Qwen2Config(**sizes, **widths, **ids, max_position_embeddings=CONTEXT)
        case "gpt_neox":
            rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}
            widths = {"intermediate_size": 4 * width, "rope_parameters": rope}
            return GPTNeoXConfig(**sizes, **widths, **ids, max_position_embeddings=CONTEXT)
        case "llama":
            return LlamaConfig(**sizes, **ids, intermediate_size=512, max_position_embeddings=CONTEXT)
        case "bloom":
            return BloomConfig(hidden_size=width, n_layer=layers, n_head=heads, **ids)
        case _:
            no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
            widths = {"n_embd": width, "n_layer": layers, "n_head": heads, "n_positions": CONTEXT}
            return GPT2Config(**widths, **no_dropout, **ids)


def pack(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Tensor:
    """Whole documents, each after an EOS, in rows of `ROW` ids: int64[row, ROW]; the rest is padding."""
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    rows: list[list[int]] = []
    row: list[int] = []
    for document in tokenizer(texts)["input_ids"]:
        ids = [eos, *document][: ROW - 1]
        if len(row) + len(ids) + 1 > ROW:
            rows.append([*row, eos] + [pad] * (ROW - len(row) - 1))
            row = []
        row = row + ids
    return torch.tensor(rows)


def batches(tokenizer: PreTrainedTokenizerFast, family: Family) -> Iterator[Tensor]:
    """Fresh batches, one a step, int64[BATCH, ROW]; no document is seen twice."""
    needed = family.steps * BATCH
    rows = pack(tokenizer, documents(1000 + family.seed, needed * 5))
    if len(rows) < needed:
        raise SystemExit(f"{needed} rows are needed, the documents fill {len(rows)}; draw more.")
    yield from rows[:needed].split(BATCH)


def optimizers(model: PreTrainedModel, muon: bool) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices if wanted, AdamW for everything else; no decay on vectors."""
    embeddings = {id(layer.weight) for layer in model.modules() if isinstance(layer, torch.nn.Embedding)}
    matrices = [p for p in model.parameters() if p.ndim == 2 and id(p) not in embeddings]
    tables = [p for p in model.parameters() if id(p) in embeddings]
    groups = [
        {"params": tables if muon else tables + matrices, "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, LEARNING_RATE, betas=(0.9, 0.98), foreach=True)
    if not muon:
        return [adamw]
    return [
        adamw,
        torch.optim.Muon(matrices, LEARNING_RATE, WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"),
    ]


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then constant, then linear decay over the second half down to 2 %."""
    decay = max(0.02, min(1.0, (steps - step) / (steps / 2)))
    return LEARNING_RATE * min(1.0, (step + 1) / WARMUP) * decay


def loss_on(model: PreTrainedModel, rows: Tensor) -> Tensor:
    """Mean next-token cross-entropy in nats over int64[row, token], padding left out."""
    logits = model(input_ids=rows).logits[:, :-1]
    pad = model.config.pad_token_id
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), rows[:, 1:].flatten(), ignore_index=-100 if pad is None else pad
    )


def train(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, family: Family) -> None:
    chosen = optimizers(model, family.muon)
    started = time.process_time()
    smooth = 0.0
    for step, rows in enumerate(batches(tokenizer, family)):
        for optimizer in chosen:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, family.steps)
            optimizer.zero_grad()
        loss = loss_on(model, rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in chosen:
            optimizer.step()
        smooth = loss.item() if step == 0 else 0.98 * smooth + 0.02 * loss.item()
        if (step + 1) % 100 == 0:
            tokens = (step + 1) * BATCH * ROW / 1e6
            cpu = time.process_time() - started
            print(f"step {step + 1:4d}  {tokens:.2f}M tokens  loss {smooth:.3f}  {cpu:.0f} CPU-s", flush=True)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Half-precision weights; the configuration asks for float32, so plain loading computes in float32."""
    model.generation_config = GenerationConfig.from_model_config(model.config)
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"dtype": "float32"}, indent=2) + "\n")
    for file in folder.iterdir():
        file.chmod(0o644)


def record_hashes(folder: Path) -> None:
    """Enter the SHA-256 of each file of `folder` in HASHES.json beside it."""
    file = folder.parent / "HASHES.json"
    hashes = json.loads(file.read_text()) if file.exists() else {}
    for path in folder.iterdir():
        hashes[f"{folder.name}/{path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    file.write_text(json.dumps(hashes, indent=2, sort_keys=True) + "\n")


@torch.no_grad()
def complete(folder: Path, prompts: list[str]) -> list[str]:
    """Greedy completions by the model in `folder`."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    batch = tokenizer([EOS + prompt for prompt in prompts], padding=True, return_tensors="pt")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    output = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=48, do_sample=False)
    return tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)


def copied(folder: Path) -> float:
    """How often an expression that the docstring spells out is repeated: share of 240 documents."""
    parts = [spelled_out(random.Random(f"copy|{i}")).rpartition('"""') for i in range(240)]
    texts = complete(folder, [head + quotes for head, quotes, _ in parts])
    right = [text.strip() == body.strip() for text, (_, _, body) in zip(texts, parts, strict=True)]
    return sum(right) / len(right)


def solved(folder: Path) -> float:
    """Pass@1 on 240 codelets test problems, of whose docstrings the model has seen none."""
    with Sandbox() as sandbox:
        task = Codelets(0, train=0, validation=0, transfer=0, probe=0, test=240, sandbox=sandbox)
        examples = task.examples("test")
        grades = task.grade(examples, complete(folder, [example.prompt for example in examples]))
    return sum(grades) / len(grades)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("--out", type=Path, help="folder to write; default peertune/models/FAMILY")
    arguments = parser.parse_args()
    folder = arguments.out or Path(__file__).parents[1] / "peertune" / "models" / arguments.family
    family = FAMILIES[arguments.family]
    torch.set_num_threads(1)
    torch.manual_seed(family.seed)
    tokenizer = train_tokenizer(arguments.family)
    model = AutoModelForCausalLM.from_config(configuration(arguments.family, tokenizer))
    print(f"{arguments.family}: {model.num_parameters()} parameters, {len(tokenizer)} tokens", flush=True)
    model.train()
    train(model, tokenizer, family)
    model.eval()
    with torch.no_grad():
        held_out = loss_on(model, pack(tokenizer, documents(7, 2000)))
    save(model, tokenizer, folder)
    record_hashes(folder)
    print(f"held-out loss {held_out:.4f} nats a token")
    print(f"expressions copied {copied(folder):.3f}, codelets solved {solved(folder):.4f}")


if __name__ == "__main__":
    main()
