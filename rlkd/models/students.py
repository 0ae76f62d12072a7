"""Students: two small models of our own, a tiny transformer, and any pretrained classifier.

The two small models are ordinary ``PreTrainedModel`` classes, registered with transformers' Auto classes, so
that everything which works with a BERT student (the trainer, saving, the hub) works with them too.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import logging as hf_logging

from rlkd.data.task import Task
from rlkd.errors import StudentError, unknown_name

PREFIX = "rlkd/"
_EMBEDDING_DEVIATION = 0.1
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


class BiLstmConfig(PreTrainedConfig):
    """Sizes of a :class:`BiLstmForSequenceClassification`."""

    model_type = "rlkd-bilstm"

    def __init__(
        self,
        vocab_size: int = 8000,
        embedding_size: int = 100,
        hidden_size: int = 100,
        dropout: float = 0.2,
        pad_token_id: int | None = 0,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.embedding_size = embedding_size
        self.hidden_size = hidden_size
        self.dropout = dropout
        super().__init__(pad_token_id=pad_token_id, **kwargs)


class BiLstmForSequenceClassification(PreTrainedModel):
    """One bidirectional LSTM layer, the maximum over time, a linear classifier.

    Padding cannot change the logits: it stands behind the last token in both directions, and the maximum
    skips it. There are two plain LSTMs, the second over reversed rows, because packed sequences take twice
    the time on a CPU and make a GPU wait for the lengths.

    Source: the BiLSTM student of Tang et al. (2019), "Distilling Task-Specific Knowledge from BERT into
    Simple Neural Networks"; the maximum over time of Conneau et al. (2017), "Supervised Learning of
    Universal Sentence Representations".
    """

    config_class = BiLstmConfig
    base_model_prefix = "bilstm"
    main_input_name = "input_ids"

    def __init__(self, config: BiLstmConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(
            config.vocab_size, config.embedding_size, padding_idx=config.pad_token_id
        )
        self.forward_lstm = nn.LSTM(config.embedding_size, config.hidden_size, batch_first=True)
        self.backward_lstm = nn.LSTM(config.embedding_size, config.hidden_size, batch_first=True)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(2 * config.hidden_size, config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Keep torch's scales; an std of 0.02 suits networks with layer norms and stalls this one."""
        reset = getattr(module, "reset_parameters", None)
        # A module is also visited when its weights have just been read from a file.
        if callable(reset) and not any(_is_loaded(p) for p in module.parameters(recurse=False)):
            reset()
            if isinstance(module, nn.Embedding):
                # Torch draws embeddings with a deviation of 1, ten times that of the weights that read them.
                with torch.no_grad():
                    module.weight.mul_(_EMBEDDING_DEVIATION)

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.embedding

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutput:
        """Classify token sequences.

        Args:
            input_ids: Token ids, shape (B, L).
            attention_mask: 1 for tokens and 0 for padding, shape (B, L); None: no padding.
            token_type_ids: Ignored; accepted because tokenizers of sentence pairs send it.
            labels: Class indices, shape (B,).
            return_dict: Ignored; the output is always a ``SequenceClassifierOutput``.

        Returns:
            Logits of shape (B, C), and the mean cross-entropy where labels were given.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        front = mask.argsort(dim=1, descending=True, stable=True)
        embedded = self.dropout(self.embedding(input_ids.gather(1, front)))
        lengths = mask.sum(1, keepdim=True).clamp(min=1)
        steps = torch.arange(mask.shape[1], device=mask.device)[None, :]
        padding = (steps >= lengths)[..., None]
        reverse = torch.where(steps < lengths, lengths - 1 - steps, steps)[..., None].expand_as(embedded)
        states = torch.cat(
            [self.forward_lstm(embedded)[0], self.backward_lstm(embedded.gather(1, reverse))[0]], dim=2
        )
        pooled = states.masked_fill(padding, torch.finfo(states.dtype).min).amax(1)
        logits = self.classifier(self.dropout(pooled))
        return SequenceClassifierOutput(loss=_cross_entropy(logits, labels), logits=logits)


class MlpConfig(PreTrainedConfig):
    """Sizes of a :class:`MlpForSequenceClassification`."""

    model_type = "rlkd-mlp"

    def __init__(
        self, input_size: int = 64, hidden_size: int = 64, dropout: float = 0.1, **kwargs: Any
    ) -> None:
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.dropout = dropout
        super().__init__(**kwargs)


class MlpForSequenceClassification(PreTrainedModel):
    """One hidden layer over feature vectors; named after the output that it shares with the text models."""

    config_class = MlpConfig
    base_model_prefix = "mlp"
    main_input_name = "input_values"

    def __init__(self, config: MlpConfig) -> None:
        super().__init__(config)
        self.hidden = nn.Linear(config.input_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    _init_weights = BiLstmForSequenceClassification._init_weights

    def forward(
        self, input_values: Tensor, labels: Tensor | None = None, return_dict: bool | None = None
    ) -> SequenceClassifierOutput:
        """Classify vectors.

        Args:
            input_values: Features, shape (B, D).
            labels: Class indices, shape (B,).
            return_dict: Ignored; the output is always a ``SequenceClassifierOutput``.

        Returns:
            Logits of shape (B, C), and the mean cross-entropy where labels were given.
        """
        logits = self.classifier(self.dropout(torch.relu(self.hidden(input_values))))
        return SequenceClassifierOutput(loss=_cross_entropy(logits, labels), logits=logits)


AutoConfig.register(BiLstmConfig.model_type, BiLstmConfig)
AutoConfig.register(MlpConfig.model_type, MlpConfig)
AutoModelForSequenceClassification.register(BiLstmConfig, BiLstmForSequenceClassification)
AutoModelForSequenceClassification.register(MlpConfig, MlpForSequenceClassification)


@dataclass(frozen=True)
class Student:
    """A student that is trained from scratch."""

    reads: str
    """``"text"`` or ``"vectors"``."""
    build: Callable[[int, dict[str, Any]], PreTrainedModel]
    """From the input size (words of the vocabulary, or length of the vectors) and the label names."""


def _tiny(vocab_size: int, labels: dict[str, Any]) -> PreTrainedModel:
    config = BertConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=256,
        max_position_embeddings=512,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
        pad_token_id=0,
        **labels,
    )
    return BertForSequenceClassification(config)


def _bilstm(vocab_size: int, labels: dict[str, Any]) -> PreTrainedModel:
    return BiLstmForSequenceClassification(BiLstmConfig(vocab_size=vocab_size, **labels))


def _mlp(input_size: int, labels: dict[str, Any]) -> PreTrainedModel:
    return MlpForSequenceClassification(MlpConfig(input_size=input_size, **labels))


STUDENTS: dict[str, Student] = {
    "rlkd/tiny": Student("text", _tiny),
    "rlkd/bilstm": Student("text", _bilstm),
    "rlkd/mlp": Student("vectors", _mlp),
}


def load_student(
    name: str,
    task: Task,
    *,
    num_layers: int | None = None,
    seed: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Build or load a student for a task.

    The weights that are not read from files are a pure function of ``seed``; torch's global generator is left
    as it was.

    Args:
        name: A name of ``STUDENTS``, a model id on the hub, or a path.
        task: Gives the classes and, for students from scratch, the vocabulary or the length of the vectors.
        num_layers: Keep only the first layers of a pretrained encoder. None: all.
        seed: Seed of the initialisation.
        tokenizer: For text: use this one. None: train it (from scratch) or load the model's own.

    Returns:
        The model in float32 and training mode, and its tokenizer (None for tasks of vectors).

    Raises:
        StudentError: The student does not exist, cannot read this task, or has too few layers.
    """
    if name.startswith(PREFIX):
        return _from_scratch(name, task, num_layers, seed, tokenizer)
    return _pretrained(name, task, num_layers, seed, tokenizer)


def _from_scratch(
    name: str, task: Task, num_layers: int | None, seed: int, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    if name not in STUDENTS:
        raise unknown_name("student", name, STUDENTS)
    if num_layers is not None:
        raise StudentError(
            f"num_layers keeps the first layers of a pretrained encoder, came {num_layers} for {name!r}, "
            "which is built from scratch; drop num_layers or name a pretrained model"
        )
    student = STUDENTS[name]
    _check_reads(name, student.reads, task)
    if task.table.vectors is not None:
        tokenizer, size = None, task.table.vectors.shape[1]
    else:
        tokenizer = tokenizer or train_tokenizer(task_texts(task))
        size = len(tokenizer)
    with seeded_weights(seed):
        return student.build(size, label_maps(task.label_names)), tokenizer


def _pretrained(
    name: str, task: Task, num_layers: int | None, seed: int, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    with quiet_transformers(), seeded_weights(seed):
        try:
            config = AutoConfig.from_pretrained(name, trust_remote_code=False)
            for key, value in label_maps(task.label_names).items():
                setattr(config, key, value)
            # A head that was fine-tuned for regression or for many labels would bring the wrong loss.
            config.problem_type = None
            keep_first_layers(config, num_layers, name)
            # A model's own code and pickles are refused; a head for other classes is replaced by a fresh one.
            model = AutoModelForSequenceClassification.from_pretrained(
                name,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,
            )
            reads = "vectors" if model.main_input_name == "input_values" else "text"
            _check_reads(name, reads, task)
            if reads == "text" and tokenizer is None:
                tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        except (OSError, KeyError, ValueError) as error:
            if isinstance(error, StudentError):
                raise
            raise StudentError(
                f"expected one of {', '.join(STUDENTS)}, a hub id or a directory of a classifier or encoder "
                f"with safetensors weights and a tokenizer; {name!r} could not be loaded "
                f"({first_line(error)}); check the name and the connection"
            ) from error
    if task.table.vectors is not None:
        _check_vector_size(name, model, task.table.vectors.shape[1])
        return model.train(), None
    _set_padding(model, tokenizer)
    return model.train(), tokenizer


def keep_first_layers(config: PreTrainedConfig, num_layers: int | None, name: str) -> None:
    """Shorten a configuration to its first ``num_layers`` layers, in place.

    Args:
        config: Configuration of an encoder.
        num_layers: Layers to keep. None: all.
        name: The student's name, for the error.

    Raises:
        StudentError: The encoder has no layer count, or fewer layers.
    """
    if num_layers is None:
        return
    # transformers maps this name to the model's own (DistilBERT: n_layers).
    available = getattr(config, "num_hidden_layers", None)
    if not isinstance(available, int) or not 1 <= num_layers <= available:
        raise StudentError(
            f"expected num_layers from 1 to {available} for {name!r}, came {num_layers}; "
            "choose one in that range"
        )
    config.num_hidden_layers = num_layers
    kinds = getattr(config, "layer_types", None)
    if isinstance(kinds, list):
        config.layer_types = kinds[:num_layers]


def last_linear(model: nn.Module, num_labels: int) -> nn.Linear:
    """Find the layer whose input is the student's last hidden state.

    Args:
        model: A classifier.
        num_labels: Its number of classes C.

    Returns:
        The last linear layer with C outputs.

    Raises:
        StudentError: There is none.
    """
    found = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == num_labels]
    if not found:
        raise StudentError(
            f"expected a model that ends in a linear layer with {num_labels} outputs, came "
            f"{type(model).__name__} without one; use a sequence classifier built for this task"
        )
    return found[-1]


def train_tokenizer(
    texts: Iterable[str], vocab_size: int = 8000, max_length: int = 512
) -> PreTrainedTokenizerFast:
    """Train a lower-casing tokenizer of words and punctuation marks; equal texts give equal tokenizers.

    Args:
        texts: Training texts.
        vocab_size: Largest vocabulary, the four special tokens included.
        max_length: Longest sequence, in tokens.

    Returns:
        A tokenizer that writes ``[CLS] a [SEP]`` and ``[CLS] a [SEP] b [SEP]``, with token types 0 and 1.
    """
    pad, unknown, first, separator = SPECIAL_TOKENS
    core = Tokenizer(models.WordLevel(unk_token=unknown))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordLevelTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL_TOKENS), show_progress=False
    )
    core.train_from_iterator((_clean(text) for text in texts), trainer)
    core.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {separator}",
        pair=f"{first} $A {separator} $B:1 {separator}:1",
        special_tokens=[(token, core.token_to_id(token)) for token in (first, separator)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=max_length,
        pad_token=pad,
        unk_token=unknown,
        cls_token=first,
        sep_token=separator,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def task_texts(task: Task) -> list[str]:
    """All texts of the training split, second texts of pairs included: what a vocabulary is learned from."""
    columns = (task.table.texts, task.table.text_pairs)
    ids = task.splits["train"].tolist()
    return [column[i] for column in columns if column is not None for i in ids]


def label_maps(label_names: Sequence[str]) -> dict[str, Any]:
    """The two label maps of a configuration; their length is its ``num_labels``."""
    return {
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: index for index, name in enumerate(label_names)},
    }


@contextmanager
def seeded_weights(seed: int) -> Iterator[None]:
    """Draw weights from ``seed`` and leave the generators of the caller (CPU and devices) untouched."""
    # torch.manual_seed would reseed every device as well; models are built on the CPU.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence what transformers says on loading; a fresh head is intended here, and errors still raise."""
    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()


def _check_reads(name: str, reads: str, task: Task) -> None:
    came = "text" if task.table.vectors is None else "vectors"
    if reads != came:
        fitting = sorted(key for key, student in STUDENTS.items() if student.reads == came)
        raise StudentError(
            f"student {name!r} reads {reads}, but task {task.name!r} has {came}; "
            f"choose one of: {', '.join(fitting)}"
        )


def _check_vector_size(name: str, model: PreTrainedModel, came: int) -> None:
    expected = model.config.input_size
    if expected != came:
        raise StudentError(
            f"student {name!r} reads vectors of length {expected}, the task's have length {came}; "
            "build a new one with 'rlkd/mlp'"
        )


def _set_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Give decoders, which are trained without padding, their end token as padding."""
    if tokenizer is None:
        return
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id


def _cross_entropy(logits: Tensor, labels: Tensor | None) -> Tensor | None:
    return None if labels is None else nn.functional.cross_entropy(logits, labels)


def _is_loaded(parameter: nn.Parameter) -> bool:
    return bool(getattr(parameter, "_is_hf_initialized", False))


def _clean(text: str) -> str:
    """Replace lone surrogates, which the tokenizers library refuses."""
    return text.encode("utf-8", "replace").decode("utf-8")


def first_line(error: Exception) -> str:
    """The first line of another library's message: ours are one line each."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def forward_inputs(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop what a model does not read: some tokenizers send token types to models without them.

    Args:
        model: Any model with a named ``forward``.
        batch: Inputs by name.

    Returns:
        The inputs that ``forward`` names.
    """
    accepted = signature(model.forward).parameters
    return {key: value for key, value in batch.items() if key in accepted}
