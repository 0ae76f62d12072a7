"""Our own small models, ordinary ``PreTrainedModel`` classes known to transformers' Auto classes.

So everything which works with a BERT student (the trainer, saving, the hub) works with them too.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import ImageClassifierOutput, SequenceClassifierOutput

from rlkd.losses import cross_entropy

_EMBEDDING_DEVIATION = 0.1


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
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_size, padding_idx=config.pad_token_id)
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
            labels: Class indices, shape (B,); floats of several labels (B, C) or of a regression (B,).
            return_dict: Ignored; the output is always a ``SequenceClassifierOutput``.

        Returns:
            Logits of shape (B, C), and the mean loss where labels were given.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        front, lengths = moved_to_front(input_ids, mask)
        embedded = self.dropout(self.embedding(front))
        states, padding = both_directions(embedded, lengths, self.forward_lstm, self.backward_lstm)
        pooled = maximum_over_time(states, padding)
        logits = self.classifier(self.dropout(pooled))
        return SequenceClassifierOutput(loss=_loss(self, logits, labels), logits=logits)


class MlpConfig(PreTrainedConfig):
    """Sizes of a :class:`MlpForSequenceClassification`."""

    model_type = "rlkd-mlp"

    def __init__(self, input_size: int = 64, hidden_size: int = 64, dropout: float = 0.1, **kwargs: Any) -> None:
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.dropout = dropout
        super().__init__(**kwargs)


class MlpForSequenceClassification(PreTrainedModel):
    """One hidden layer over feature vectors, or pixels; named after the output that it shares with the text models."""

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
        self,
        input_values: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        pixel_values: Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """Classify vectors, or images as the vectors of their pixels.

        Args:
            input_values: Features, shape (B, D).
            labels: Class indices, shape (B,); floats of several labels (B, C) or of a regression (B,).
            return_dict: Ignored; the output is always a ``SequenceClassifierOutput``.
            pixel_values: Images instead, D numbers each, shape (B, channels, H, W).

        Returns:
            Logits of shape (B, C), and the mean loss where labels were given.
        """
        values = input_values if pixel_values is None else pixel_values.flatten(1)
        logits = self.classifier(self.dropout(torch.relu(self.hidden(values))))
        return SequenceClassifierOutput(loss=_loss(self, logits, labels), logits=logits)


class CnnConfig(PreTrainedConfig):
    """Sizes of a :class:`CnnForImageClassification`."""

    model_type = "rlkd-cnn"

    def __init__(
        self,
        num_channels: int = 1,
        filters: tuple[int, int] = (16, 32),
        grid: int = 4,
        hidden_size: int = 64,
        dropout: float = 0.1,
        **kwargs: Any,
    ) -> None:
        self.num_channels = num_channels
        self.filters = tuple(filters)
        self.grid = grid
        self.hidden_size = hidden_size
        self.dropout = dropout
        super().__init__(**kwargs)


class CnnForImageClassification(PreTrainedModel):
    """Two convolutions with maxima over two by two, means over a grid, one hidden layer; images of any size."""

    config_class = CnnConfig
    base_model_prefix = "cnn"
    main_input_name = "pixel_values"

    def __init__(self, config: CnnConfig) -> None:
        super().__init__(config)
        first, second = config.filters
        self.first = nn.Conv2d(config.num_channels, first, kernel_size=3, padding=1)
        self.second = nn.Conv2d(first, second, kernel_size=3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(config.grid)
        self.hidden = nn.Linear(second * config.grid**2, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    _init_weights = BiLstmForSequenceClassification._init_weights

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, return_dict: bool | None = None
    ) -> ImageClassifierOutput:
        """Classify images.

        Args:
            pixel_values: Numbers, by our own tasks in [0, 1], shape (B, channels, H, W), 4 by 4 or larger.
            labels: Class indices, shape (B,).
            return_dict: Ignored; the output is always an ``ImageClassifierOutput``.

        Returns:
            Logits of shape (B, C), and the mean cross-entropy where labels were given.
        """
        maps = pixel_values
        for layer in (self.first, self.second):
            maps = nn.functional.max_pool2d(torch.relu(layer(maps)), 2)
        hidden = torch.relu(self.hidden(self.pool(maps).flatten(1)))
        logits = self.classifier(self.dropout(hidden))
        return ImageClassifierOutput(loss=_loss(self, logits, labels), logits=logits)


def moved_to_front(input_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens that a mask keeps, first in their rows, and how many they are.

    Args:
        input_ids: Token ids, shape (B, L).
        mask: 1 for tokens that are read, shape (B, L).

    Returns:
        Token ids (B, L), and lengths (B, 1); a row without a token reads one.
    """
    front = mask.argsort(dim=1, descending=True, stable=True)
    return input_ids.gather(1, front), mask.sum(1, keepdim=True).clamp(min=1)


def both_directions(
    embedded: Tensor, lengths: Tensor, forward_lstm: nn.LSTM, backward_lstm: nn.LSTM
) -> tuple[Tensor, Tensor]:
    """States of two LSTMs, the second over reversed rows; padding stands behind the last token of both.

    Args:
        embedded: Shape (B, L, D), padding last.
        lengths: Tokens of every row, >= 1, shape (B, 1).
        forward_lstm: Reads from the first token to the last.
        backward_lstm: Reads from the last to the first.

    Returns:
        States of every token, shape (B, L, 2H), and which are padding, shape (B, L, 1).
    """
    steps = torch.arange(embedded.shape[1], device=embedded.device)[None, :]
    reverse = torch.where(steps < lengths, lengths - 1 - steps, steps)[..., None]
    backward = backward_lstm(embedded.gather(1, reverse.expand_as(embedded)))[0]
    backward = backward.gather(1, reverse.expand_as(backward))
    return torch.cat([forward_lstm(embedded)[0], backward], dim=2), (steps >= lengths)[..., None]


def maximum_over_time(states: Tensor, padding: Tensor) -> Tensor:
    """The maximum over the tokens that are no padding (B, L, 1), of states (B, L, H): shape (B, H)."""
    return states.masked_fill(padding, torch.finfo(states.dtype).min).amax(1)


AutoConfig.register(BiLstmConfig.model_type, BiLstmConfig)
AutoConfig.register(MlpConfig.model_type, MlpConfig)
AutoConfig.register(CnnConfig.model_type, CnnConfig)
AutoModelForImageClassification.register(CnnConfig, CnnForImageClassification)
AutoModelForSequenceClassification.register(BiLstmConfig, BiLstmForSequenceClassification)
AutoModelForSequenceClassification.register(MlpConfig, MlpForSequenceClassification)


def _loss(model: PreTrainedModel, logits: Tensor, labels: Tensor | None) -> Tensor | None:
    if labels is not None and labels.is_floating_point():  # of several labels, or of numbers
        loss: Tensor = model.loss_function(labels, logits, model.config)
        return loss
    return None if labels is None else cross_entropy(logits, labels).mean()


def _is_loaded(parameter: nn.Parameter) -> bool:
    return bool(getattr(parameter, "_is_hf_initialized", False))
