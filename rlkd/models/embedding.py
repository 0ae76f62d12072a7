"""Embeddings of instances by a pretrained encoder, for the affinity feature."""

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModel

from rlkd.data.batching import longest_row, report_cut, tokenised
from rlkd.devices import mixed_precision
from rlkd.errors import TeacherError, one_line
from rlkd.models.fitting import fit
from rlkd.models.identity import network_identity
from rlkd.models.networks import forward_inputs, load_tokenizer, quiet_transformers
from rlkd.settings import CacheSettings, StepSettings


class TextEmbedder:
    """Mean over tokens, with the mask, of an encoder's last hidden states."""

    def __init__(
        self,
        name: str,
        *,
        max_length: int = CacheSettings.max_length,
        batch_size: int = CacheSettings.batch_size,
        device: str | None = None,
        bf16: bool = StepSettings.bf16,
    ) -> None:
        """Load the encoder and its tokenizer.

        Args:
            name: Hub id or path.
            max_length: Tokens a text is cut to.
            batch_size: Texts a forward pass.
            device: None: the accelerator if there is one.
            bf16: Compute in bfloat16 where that is safe.
        """
        self.name = name
        try:
            tokenizer = load_tokenizer(name)
            with quiet_transformers():
                self._model = AutoModel.from_pretrained(
                    name, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
                )
        except (OSError, ValueError) as error:
            raise TeacherError(
                f"expected an encoder with a tokenizer at {name!r}: {one_line(error)}; pass another"
            ) from error
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._model.eval().requires_grad_(False).to(self._device)
        self._tokenizer = fit(
            self._model, tokenizer, who=f"encoder {name!r}", error=TeacherError, answer=self._mean_state
        )
        self._max_length, self._batch_size, self._bf16 = max_length, batch_size, bf16

    @cached_property
    def identity(self) -> str:
        """Hash of everything that decides the embeddings."""
        weights = network_identity(self._model, self._tokenizer, ())
        return f"{weights}:{self._max_length}{':bf16' if self._bf16 else ''}"

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts, shape (N, D)."""
        inputs = tokenised(self._tokenizer, texts, None, longest_row(self._tokenizer, self._max_length))
        report_cut(self._tokenizer, texts, None, inputs, self._max_length)
        order = np.array(sorted(range(len(texts)), key=lambda index: len(texts[index])))
        starts = range(0, len(order), self._batch_size)
        sorted_rows = np.concatenate([self._embed(inputs.batch(order[at : at + self._batch_size])) for at in starts])
        embeddings = np.empty_like(sorted_rows)
        embeddings[order] = sorted_rows
        return embeddings

    @torch.inference_mode()
    def _embed(self, batch: Mapping[str, Tensor]) -> NDArray[np.float32]:
        moved = {key: value.to(self._device) for key, value in batch.items()}
        with mixed_precision(self._device, bf16=self._bf16):
            mean: NDArray[np.float32] = self._mean_state(moved).cpu().numpy()
        return mean

    def _mean_state(self, batch: Mapping[str, Tensor]) -> Tensor:
        hidden = self._model(**forward_inputs(self._model, batch)).last_hidden_state.float()
        mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        mean: Tensor = (hidden * mask).sum(1) / mask.sum(1).clamp_min(1)
        return mean
