"""Multi-task models for the tasks of a collection: from scratch, over a pretrained encoder, or from files."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedTokenizerBase

from rlkd.data.batching import check_tokenizer
from rlkd.data.collection import TaskCollection
from rlkd.errors import StudentError, unknown_name
from rlkd.models.fitting import fit, limited
from rlkd.models.multi_task import MultiTaskConfig, MultiTaskForSequenceClassification
from rlkd.models.networks import forward_inputs, load_config, load_tokenizer
from rlkd.models.pair_encoder import PairBiLstmConfig
from rlkd.models.students import PREFIX, keep_first_layers, pretrained, refuse_layers, seeded_weights, tiny_config
from rlkd.models.tokenizer import task_texts, train_tokenizer
from rlkd.settings import StepSettings

VOCABULARY = 16_000
"""Words that encoders from scratch know: twice those of a student of one task."""
ENCODERS = ("rlkd/bilstm", "rlkd/tiny")
"""Encoders from scratch; others are hub ids or paths."""


def load_multi_task(
    name: str,
    collection: TaskCollection,
    *,
    num_layers: int | None = None,
    seed: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> tuple[MultiTaskForSequenceClassification, PreTrainedTokenizerBase]:
    """Build or load a multi-task model for a collection.

    The weights that are not read from files are a pure function of ``seed``.

    Args:
        name: ``rlkd/bilstm`` or ``rlkd/tiny`` (from scratch), a hub id or path of an encoder, or the folder of a
            multi-task model, whose heads are kept where tasks have the same name and classes.
        collection: Gives tasks, classes and, from scratch, the vocabulary.
        num_layers: Keep only the first layers of a pretrained encoder. None: all.
        seed: Seed of the initialisation.
        tokenizer: Use this one. None: train it (from scratch) or load the encoder's own.

    Returns:
        The model in float32 and training mode, and its tokenizer.

    Raises:
        StudentError: There is no such model, it has too few layers, or it cannot tell the texts of pairs apart.
    """
    tasks = {task.name: task.label_names for task in collection}
    if name.startswith(PREFIX):
        model, tokenizer = _from_scratch(name, collection, tasks, num_layers, seed, tokenizer)
    else:
        model, tokenizer = _pretrained(name, tasks, num_layers, seed, tokenizer)
    _check_pairs(model, tokenizer, collection)
    return model.train(), tokenizer


def check_multi_task(
    name: str, collection: TaskCollection, *, num_layers: int | None = None, max_length: int = StepSettings.max_length
) -> None:
    """Raise before any long work what :func:`load_multi_task` and the encoding of its inputs would raise."""
    vocabulary = train_tokenizer(()) if name.startswith(PREFIX) else None
    _, tokenizer = load_multi_task(name, collection, num_layers=num_layers, tokenizer=vocabulary)
    for task in collection:
        check_tokenizer(tokenizer, max_length, task)


def _from_scratch(
    name: str,
    collection: TaskCollection,
    tasks: Mapping[str, Sequence[str]],
    num_layers: int | None,
    seed: int,
    tokenizer: PreTrainedTokenizerBase | None,
) -> tuple[MultiTaskForSequenceClassification, PreTrainedTokenizerBase]:
    if name not in ENCODERS:
        raise unknown_name("multi-task student", name, ENCODERS)
    refuse_layers(name, num_layers)
    if tokenizer is None:
        tokenizer = train_tokenizer([text for task in collection for text in task_texts(task)], vocab_size=VOCABULARY)
    size, pad = len(tokenizer), tokenizer.pad_token_id
    encoder: PreTrainedConfig = tiny_config(size, pad_token_id=pad)
    if name == "rlkd/bilstm":
        encoder = PairBiLstmConfig(vocab_size=size, pad_token_id=pad)
    with seeded_weights(seed):
        model = MultiTaskForSequenceClassification(MultiTaskConfig(tasks, encoder))
    return model, limited(model, tokenizer)


def _pretrained(
    name: str,
    tasks: Mapping[str, Sequence[str]],
    num_layers: int | None,
    seed: int,
    tokenizer: PreTrainedTokenizerBase | None,
) -> tuple[MultiTaskForSequenceClassification, PreTrainedTokenizerBase]:
    with pretrained(name, ENCODERS, "an encoder", seed):
        config = load_config(name)
        if isinstance(config, MultiTaskConfig):
            model = _load(AutoModelForSequenceClassification, name).with_heads(tasks)
            if num_layers is not None:
                raise StudentError(
                    f"num_layers shortens encoders, got {num_layers} for the multi-task model {name!r}; drop it"
                )
        else:
            keep_first_layers(config, num_layers, name)
            encoder = _load(AutoModel, name, config=config)
            model = MultiTaskForSequenceClassification(MultiTaskConfig(tasks, encoder.config), encoder)
        tokenizer = tokenizer or load_tokenizer(name)
    return model, fit_multi_task(model, tokenizer, f"student {name!r}")


def fit_multi_task(
    model: MultiTaskForSequenceClassification, tokenizer: PreTrainedTokenizerBase, who: str
) -> PreTrainedTokenizerBase:
    """As :func:`rlkd.models.fitting.fit`, for a network with several heads."""
    one = next(iter(model.config.tasks))  # heads are linear: what holds for one holds for all

    def answer(batch: Mapping[str, Tensor]) -> Tensor:
        logits: Tensor = model(**forward_inputs(model, batch), task=one).logits
        return logits

    fitted = fit(model, tokenizer, who=who, error=StudentError, answer=answer)
    assert fitted is not None
    return fitted


def _load(auto: Any, name: str, **options: Any) -> Any:
    return auto.from_pretrained(name, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, **options)


def _check_pairs(
    model: MultiTaskForSequenceClassification, tokenizer: PreTrainedTokenizerBase, collection: TaskCollection
) -> None:
    pairs = [task.name for task in collection if task.table.text_pairs is not None]
    by_types = isinstance(model.encoder.config, PairBiLstmConfig)
    if pairs and by_types and "token_type_ids" not in tokenizer.model_input_names:
        raise StudentError(
            f"the BiLSTM tells the texts of a pair apart by token types, which this tokenizer does not give (task "
            f"{pairs[0]!r} has pairs); use a tokenizer that does, such as its own"
        )
