"""Tiny networks of many makes with random weights, and a task of texts of many lengths for them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    LlamaConfig,
    MPNetConfig,
    PreTrainedConfig,
    RobertaConfig,
    T5Config,
    XLNetConfig,
)

from rlkd.data.task import Table, Task
from rlkd.models import save_hf_teacher, train_tokenizer

LABELS = ("earth", "fire", "sea")
WORDS = ("warm", "cold", "vast", "small", "old", "new", "deep", "flat", *LABELS)
POSITIONS = 40
PAD = 9
"""What the tokenizer pads with: no token that a network would guess."""

WIDE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
SHORT = {"max_position_embeddings": POSITIONS}
KINDS: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "bert": (BertConfig, {**WIDE, **SHORT}),
    "albert": (AlbertConfig, {**WIDE, **SHORT, "embedding_size": 8}),
    "electra": (ElectraConfig, {**WIDE, **SHORT, "embedding_size": 16}),
    "distilbert": (DistilBertConfig, {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 16, **SHORT}),
    "deberta-v2": (DebertaV2Config, {**WIDE, **SHORT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
    "roberta": (RobertaConfig, {**WIDE, **SHORT}),
    "mpnet": (MPNetConfig, {**WIDE, **SHORT}),
    "gpt2": (GPT2Config, {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": POSITIONS}),
    "llama": (LlamaConfig, {**WIDE, **SHORT, "num_key_value_heads": 1}),
    "xlnet": (XLNetConfig, {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 16}),
    "bart": (
        BartConfig,
        {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
        | {"decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, **SHORT},
    ),
    "t5": (T5Config, {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}),
}


def task_of_texts(rows: int = 48, longest: int = 12, *, pairs: bool = False, vectors: bool = False) -> Task:
    """Texts of one to ``longest`` words, and one of none; or pairs of such, or vectors of length 5."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 1 + row % longest)) for row in range(rows)]
    texts[1] = ""
    features = rng.normal(size=(rows, 5)).astype(np.float32)
    ends = np.cumsum([rows - 12, 4, 4, 4])
    return Task(
        name="elements",
        label_names=LABELS,
        domain_names=(),
        table=Table(
            labels=np.arange(rows) % 3,
            domains=np.zeros(rows, dtype=np.int64),
            texts=None if vectors else tuple(texts),
            text_pairs=tuple(texts[::-1]) if pairs else None,
            vectors=features if vectors else None,
        ),
        splits={
            name: np.arange(start, end)
            for name, start, end in zip(("train", "probe", "validation", "test"), [0, *ends], ends, strict=False)
        },
    )


def tokenizer_for(kind: str, side: str = "right", **settings: Any) -> Any:
    """A tokenizer of ``WORDS`` that ends every text; it names no longest row."""
    tokenizer = train_tokenizer([" ".join(WORDS)], max_length=10**30)
    pad = tokenizer.convert_ids_to_tokens(1 if kind == "mpnet" else PAD)
    tokenizer.add_special_tokens({"pad_token": pad, "eos_token": "[SEP]"})
    tokenizer.padding_side = side
    for name, value in settings.items():
        setattr(tokenizer, name, value)
    return tokenizer


def network(kind: str, tokenizer: Any, **changes: Any) -> Any:
    """A classifier of random weights, large enough that what it reads decides what it says."""
    make, sizes = KINDS[kind]
    labels = {"id2label": dict(enumerate(LABELS)), "label2id": {name: k for k, name in enumerate(LABELS)}}
    tokens = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": 2}
    if kind in ("bart", "t5"):
        tokens["decoder_start_token_id"] = 2
    config = make(**{"vocab_size": len(tokenizer), **sizes, **labels, **tokens, **changes})
    model = AutoModelForSequenceClassification.from_config(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return model


def saved(kind: str, folder: Path, tokenizer: Any, **changes: Any) -> Path:
    """A network and its tokenizer on disk, with a ``config.json`` that says what it is told to say."""
    path = save_hf_teacher(network(kind, tokenizer, **changes), tokenizer, folder / kind, name=kind)
    return path
