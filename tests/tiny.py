"""True tiny causal LMs and encoders (30k to 40k parameters, random weights, own tokenizers), made on the fly."""

import re
import string
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast

from peertune.lm.model import LanguageModel
from peertune.lm.quiet import quiet

FAMILIES = ("llama", "qwen2", "gpt2", "gpt_neox", "bloom", "opt")
TEXTS = (
    "def add(a, b):\n    return a + b\n",
    "def first(xs):\n    return xs[0]\n",
    "def total(xs):\n    return sum(xs)\n",
    "The quick brown fox jumps over the lazy dog.",
    "Return the sum of all numbers in the list xs.",
)
WIDTH, LAYERS, HEADS, CONTEXT, VOCABULARY = 32, 2, 4, 96, 320
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer(chat: bool = False, vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """Byte-level BPE; id 0 is BOS and EOS, id 1 is padding, ids 2 and 3 are the roles of a chat."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|eos|>", "<|pad|>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|eos|>", eos_token="<|eos|>", pad_token="<|pad|>"
    )
    if chat:
        fast.chat_template = CHAT_TEMPLATE
    return fast


def make_tiny_model(folder: Path, family: str, seed: int = 0, vocabulary: int = VOCABULARY) -> Path:
    """Save a randomly initialised model of `family` with its tokenizer in `folder`; returns `folder`."""
    common = {"vocab_size": vocabulary, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    gated = sizes | {"intermediate_size": 64, "max_position_embeddings": CONTEXT, "tie_word_embeddings": True}
    settings = {
        "llama": gated,
        "qwen2": gated | {"num_key_value_heads": 2},
        "gpt2": {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": CONTEXT},
        "gpt_neox": gated | {"intermediate_size": 128},
        "bloom": {"hidden_size": WIDTH, "n_layer": LAYERS, "n_head": HEADS},
        "opt": sizes | {"ffn_dim": 128, "word_embed_proj_dim": WIDTH, "max_position_embeddings": CONTEXT},
    }
    config = AutoConfig.for_model(family, **settings[family], **common)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():  # larger than the usual 0.02: greedy text then differs between prompts
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.2)
    with quiet():
        model.save_pretrained(folder)
    make_tokenizer(vocabulary=vocabulary).save_pretrained(folder)
    return folder


def randomise_adapter(lm: LanguageModel, name: str, seed: int = 0) -> None:
    """A new adapter changes nothing (B = 0); give it random tensors so that it does."""
    generator = torch.Generator().manual_seed(seed)
    state = lm.adapter_state(name)
    lm.load_adapter(name, {key: torch.randn(value.shape, generator=generator) * 0.2 for key, value in state.items()})


def make_word_tokenizer() -> PreTrainedTokenizerFast:
    """WordPiece in the frame of BERT: [CLS] ... [SEP]; id 0 is padding; no begin and no end of sequence."""
    letters = sorted(set(string.printable.lower()) - set(string.whitespace))
    words = sorted({word for text in TEXTS for word in re.findall(r"\w{2,}", text.lower())})
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters), *words]
    vocabulary = {piece: number for number, piece in enumerate(known)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", **names)


def make_tiny_encoder(folder: Path, family: str, seed: int = 0, **more: float) -> Path:
    """Save a randomly initialised encoder without a head, with its tokenizer, in `folder`; returns `folder`.

    `more`: of its configuration.
    """
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": 64}
    settings = {
        "bert": sizes | {"max_position_embeddings": CONTEXT},
        "roberta": sizes | {"max_position_embeddings": CONTEXT + 1},  # it counts from after the padding id
        "distilbert": {"dim": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": 64}
        | {"max_position_embeddings": CONTEXT},
    }
    config = AutoConfig.for_model(family, **settings[family], **more, vocab_size=VOCABULARY, pad_token_id=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModel.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.2)
    with quiet():
        model.save_pretrained(folder)
    make_word_tokenizer().save_pretrained(folder)
    return folder
