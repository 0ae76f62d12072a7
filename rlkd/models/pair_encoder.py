"""A BiLSTM encoder that compares the two texts of a pair; an ordinary encoder, known to transformers' ``AutoModel``."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from rlkd.errors import StudentError
from rlkd.models.architectures import (
    BiLstmForSequenceClassification,
    both_directions,
    maximum_over_time,
    moved_to_front,
)


class PairBiLstmConfig(PreTrainedConfig):
    """Sizes of a :class:`PairBiLstmModel`; ``hidden_size`` is the length of what heads read."""

    model_type = "rlkd-pair-bilstm"

    def __init__(
        self,
        vocab_size: int = 16_000,
        embedding_size: int = 100,
        lstm_size: int = 100,
        hidden_size: int = 200,
        dropout: float = 0.2,
        pad_token_id: int | None = 0,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.embedding_size = embedding_size
        self.lstm_size = lstm_size
        self.hidden_size = hidden_size
        self.dropout = dropout
        super().__init__(pad_token_id=pad_token_id, **kwargs)


class PairBiLstmModel(PreTrainedModel):
    """One BiLSTM layer for all texts; a single text is pooled, the two of a pair read each other and are compared.

    Of a pair every token attends to the other text (bi-attention), is compared with what it found there, and the
    maxima u and v of the two texts become ``[u; v; |u - v|; u * v]``. Token types tell the texts apart.

    Source: Liu et al. 2019 (MKD), arXiv:1911.03588, section 3 (shared BiLSTM, bi-attention after McCann et al. 2017,
    arXiv:1708.00107, comparison features). Deviation: one layer without word vectors that were trained elsewhere;
    scaled dot products; the maximum over time pools single texts too.
    """

    config_class = PairBiLstmConfig
    base_model_prefix = "encoder"
    main_input_name = "input_ids"

    def __init__(self, config: PairBiLstmConfig) -> None:
        super().__init__(config)
        states = 2 * config.lstm_size
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_size, padding_idx=config.pad_token_id)
        self.forward_lstm = nn.LSTM(config.embedding_size, config.lstm_size, batch_first=True)
        self.backward_lstm = nn.LSTM(config.embedding_size, config.lstm_size, batch_first=True)
        self.dropout = nn.Dropout(config.dropout)
        self.single = nn.Linear(states, config.hidden_size)
        self.compare_tokens = nn.Linear(4 * states, config.hidden_size)
        self.compare_texts = nn.Linear(4 * config.hidden_size, config.hidden_size)
        self.post_init()

    _init_weights = BiLstmForSequenceClassification._init_weights

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.embedding

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """Encode single texts or pairs.

        Args:
            input_ids: Token ids, shape (B, L).
            attention_mask: 1 for tokens and 0 for padding, shape (B, L); None: no padding.
            token_type_ids: 1 for tokens of the second text, shape (B, L); None: single texts.
            return_dict: Ignored; the output is always an object.

        Returns:
            ``pooler_output`` (B, hidden_size), >= 0, and ``last_hidden_state`` of the (first) text, (B, L, 2H).

        Raises:
            StudentError: If a batch holds pairs and single texts.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        second = torch.zeros_like(mask) if token_type_ids is None else (token_type_ids == 1).long() * mask
        paired = second.any(dim=1)
        if not paired.any():
            states, padding = self._read(input_ids, mask)
            pooled = torch.relu(self.single(self.dropout(maximum_over_time(states, padding))))
            return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=pooled)
        if not paired.all():
            raise StudentError("expected a batch of pairs or one of single texts, got both; put each in its own batch")
        # both texts in one pass: the second ones stand below the first
        states, padding = self._read(input_ids.repeat(2, 1), torch.cat([mask - second, second]))
        (a, b), (no_a, no_b) = states.chunk(2), padding.chunk(2)
        scores = a @ b.transpose(1, 2) / a.shape[-1] ** 0.5
        u = self._compared(a, _attend(scores, no_b) @ b, no_a)
        v = self._compared(b, _attend(scores.transpose(1, 2), no_a) @ a, no_b)
        pooled = torch.relu(self.compare_texts(self.dropout(_comparison(u, v))))
        return BaseModelOutputWithPooling(last_hidden_state=a, pooler_output=pooled)

    def _read(self, input_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        front, lengths = moved_to_front(input_ids, mask)
        front = front[:, : int(lengths.max())]
        return both_directions(self.dropout(self.embedding(front)), lengths, self.forward_lstm, self.backward_lstm)

    def _compared(self, states: Tensor, found: Tensor, padding: Tensor) -> Tensor:
        return maximum_over_time(torch.relu(self.compare_tokens(_comparison(states, found))), padding)


def _attend(scores: Tensor, padding: Tensor) -> Tensor:
    """Attention (B, La, Lb) over the tokens of the second argument's text, whose padding (B, Lb, 1) gets none."""
    return torch.softmax(scores.masked_fill(padding.transpose(1, 2), torch.finfo(scores.dtype).min), dim=-1)


def _comparison(u: Tensor, v: Tensor) -> Tensor:
    return torch.cat([u, v, (u - v).abs(), u * v], dim=-1)


AutoConfig.register(PairBiLstmConfig.model_type, PairBiLstmConfig)
AutoModel.register(PairBiLstmConfig, PairBiLstmModel)
