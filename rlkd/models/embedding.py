"""Embeddings of instances by a pretrained encoder, for the affinity feature."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel

from rlkd.errors import TeacherError, one_line
from rlkd.models.networks import load_tokenizer, mixed_precision


class TextEmbedder:
    """Mean over tokens, with the mask, of an encoder's last hidden states."""

    def __init__(
        self,
        name: str,
        *,
        max_length: int = 128,
        batch_size: int = 64,
        device: str | None = None,
        bf16: bool = False,
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
            self._tokenizer = load_tokenizer(name)
            self._model = AutoModel.from_pretrained(
                name, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            raise TeacherError(
                f"expected an encoder with a tokenizer at {name!r}: {one_line(error)}; pass another"
            ) from error
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._model.eval().requires_grad_(False).to(self._device)
        self._max_length, self._batch_size, self._bf16 = max_length, batch_size, bf16

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts, shape (N, D)."""
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        rows = [self._embed([texts[i] for i in order[at : at + self._batch_size]]) for at in self._starts(len(order))]
        sorted_rows = np.concatenate(rows)
        embeddings = np.empty_like(sorted_rows)
        embeddings[order] = sorted_rows
        return embeddings

    def _starts(self, count: int) -> range:
        return range(0, count, self._batch_size)

    @torch.inference_mode()
    def _embed(self, texts: list[str]) -> NDArray[np.float32]:
        batch = self._tokenizer(
            texts, truncation=True, max_length=self._max_length, padding=True, return_tensors="pt"
        ).to(self._device)
        with mixed_precision(self._device, bf16=self._bf16):
            hidden = self._model(**batch).last_hidden_state.float()
        mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        mean: NDArray[np.float32] = ((hidden * mask).sum(1) / mask.sum(1).clamp_min(1)).cpu().numpy()
        return mean
