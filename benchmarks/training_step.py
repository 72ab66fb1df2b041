"""What a training step, an evaluation and a generation of a bundled model cost: `python benchmarks/training_step.py`.

CPU milliseconds of one core, beside the same work written with transformers and PEFT as a user would: a forward for
each of the two groups, padded in the order of the rows, logits at every token, PEFT's own LoRA layer. Both run in one
process and take turns. A step: 16 own rows and 16 taught rows of codelets, rank 8. The losses of both are compared.

The floor of a step: each frozen matrix once forward and once backward (the first layer's inputs need no gradient, which
is not deducted), each adapter matrix once more for its own gradient, the head at tokens with loss only, causal
attention; all at the rate that one product of this size reaches here alone.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", HF_HUB_OFFLINE="1")

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from peertune.lm.encode import IGNORED, Row, encode
from peertune.lm.generate import generate
from peertune.lm.model import LanguageModel
from peertune.lm.quiet import quiet
from peertune.lm.score import losses
from peertune.lm.settings import AdapterSettings, Sampling, TrainingSettings
from peertune.lm.source import local_folder
from peertune.lm.train import Trainer
from peertune.tasks.codelets import Codelets

MODELS = ("bundled/qwen2", "bundled/gpt_neox", "bundled/bloom", "bundled/gpt2")
SIZE, WEIGHT, NEW_TOKENS, RANK = 16, 0.3, 48, 8
Times = dict[str, list[float]]


class Plain:
    """The same adapter and optimiser, written with transformers and PEFT."""

    def __init__(self, lm: LanguageModel) -> None:
        self.tokenizer = lm.tokenizer
        with quiet():
            base = AutoModelForCausalLM.from_pretrained(local_folder(lm.source))
            config = LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=2 * RANK, target_modules="all-linear")
            self.model: PeftModel = get_peft_model(base, config)  # type: ignore[assignment]
        named = {name.replace(".default.", "."): value for name, value in self.model.named_parameters()}
        with torch.no_grad():
            for name, value in lm.adapter_state("a").items():
                named[name].copy_(value)
        self.parameters = [value for value in self.model.parameters() if value.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=5e-3, betas=(0.9, 0.98), weight_decay=0.0)

    def loss(self, rows: Sequence[Row]) -> torch.Tensor:
        """Mean cross-entropy of the completions' tokens."""
        batch = self.tokenizer.pad(
            {"input_ids": [list(row.ids) for row in rows]}, padding_side="right", return_tensors="pt"
        )
        labels = batch["input_ids"].clone()
        for index, row in enumerate(rows):
            labels[index, : row.prompt_length] = IGNORED
            labels[index, len(row.ids) :] = IGNORED
        return self.model(**batch, labels=labels).loss

    def step(self, own: Sequence[Row], taught: Sequence[Row], rate: float) -> float:
        self.model.train()
        loss = (1 - WEIGHT) * self.loss(own) + WEIGHT * self.loss(taught)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    @torch.no_grad()
    def losses(self, rows: Sequence[Row]) -> None:
        self.model.eval()
        for start in range(0, len(rows), SIZE):
            self.loss(rows[start : start + SIZE])

    @torch.no_grad()
    def generate(self, prompts: list[str]) -> None:
        self.model.eval()
        for start in range(0, len(prompts), SIZE):
            batch = self.tokenizer(
                prompts[start : start + SIZE], padding=True, padding_side="left", return_tensors="pt"
            ).to("cpu")
            ids, mask = batch["input_ids"], batch["attention_mask"]
            self.model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False)


def clocked(times: Times, name: str, work: Callable[[], object]) -> object:
    """CPU milliseconds of this process, of all its threads; waiting for the machine does not count."""
    start = time.process_time()
    result = work()
    times.setdefault(name, []).append(1e3 * (time.process_time() - start))
    return result


def product_rate(repeats: int = 20) -> float:
    """GFLOP/s of a product of a micro-batch's size, [400, 96] x [96, 384]: the best of `repeats`."""
    left, right = torch.randn(400, 96), torch.randn(384, 96)
    times: Times = {}
    for _ in range(repeats):
        clocked(times, "", lambda: [torch.nn.functional.linear(left, right) for _ in range(20)])
    return 20 * 2 * 400 * 96 * 384 / min(times[""]) / 1e6


def flops_of_step(lm: LanguageModel, rows: Sequence[Row]) -> float:
    """See the top of the file."""
    tokens, learned = sum(len(row.ids) for row in rows), sum(row.loss_tokens for row in rows)
    adapter = sum(parameter.numel() for parameter in lm.trainable("a").values())
    head = lm.tokenizer.vocab_size * 96
    layers = lm.parameters - head
    attention = 3 * 3 * sum(2 * len(row.ids) ** 2 * 96 for row in rows)  # 3 layers; forward and twice that backward
    return 4.0 * layers * tokens + 6.0 * adapter * tokens + 4.0 * head * learned + attention


def measure(source: str, steps: int, rate: float) -> None:
    lm = LanguageModel.load(source)
    lm.add_adapter("a", AdapterSettings(rank=RANK, alpha=2 * RANK), seed=0)
    plain, trainer = Plain(lm), Trainer(lm, "a", TrainingSettings(warmup_steps=20))
    task = Codelets(0, train=384, validation=96, transfer=12, probe=12, test=96)
    rows = [encode(lm.tokenizer, each.prompt, each.completion, 192) for each in task.examples("train")]
    times: Times = {}
    for step in range(steps):
        start = step * 2 * SIZE % len(rows)
        own, taught = rows[start : start + SIZE], rows[start + SIZE : start + 2 * SIZE]
        warm = 5e-3 * min(1.0, (step + 1) / 20)
        ours = clocked(times, "step", lambda: trainer.step([(own, 1 - WEIGHT), (taught, WEIGHT)], seed=step))  # noqa: B023
        theirs = clocked(times, "plain step", lambda: plain.step(own, taught, warm))  # noqa: B023
        assert step > 4 or abs(float(ours) - float(theirs)) < 1e-3, (ours, theirs)  # type: ignore[arg-type]
    prompts = [each.prompt for each in task.examples("test")]
    for _ in range(max(2, steps // 8)):
        clocked(times, "losses", lambda: losses(lm, "a", rows[:96]))
        clocked(times, "plain losses", lambda: plain.losses(rows[:96]))
        clocked(times, "generate", lambda: generate(lm, "a", prompts, Sampling(NEW_TOKENS)))
        clocked(times, "plain generate", lambda: plain.generate(prompts))
    print_row(source, times, flops_of_step(lm, rows) * 2 * SIZE / len(rows), rate)


def print_row(source: str, times: Times, flops: float, rate: float) -> None:
    cells = []
    for name in ("step", "losses", "generate"):
        ours, theirs = statistics.median(times[name]), statistics.median(times[f"plain {name}"])
        cells.append(f"{ours:8.1f} {theirs:8.1f} {theirs / ours:5.2f}x")
    achieved = flops / statistics.median(times["step"]) / 1e6
    floor = f"{flops / 1e9:8.2f} {flops / rate / 1e6:9.1f} {achieved:9.1f}"
    print(f"{source:17}" + " |".join(cells) + " |" + floor, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two models, few steps")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    rate = product_rate()
    print(f"CPU ms (ours, plain, ratio); one product alone: {rate:.0f} GFLOP/s")
    columns = " |".join(f"{name:>24}" for name in ("step", "96 losses", "96 texts of 48 tokens"))
    print(f"{'model':17}{columns} |{'GFLOP':>8} {'floor, ms':>9} {'GFLOP/s':>9}")
    for source in MODELS[:2] if quick else MODELS:
        measure(source, 8 if quick else 40, rate)


if __name__ == "__main__":
    main()
