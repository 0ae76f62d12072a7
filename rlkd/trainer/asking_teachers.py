"""One teacher that is asked about batches: a network, which may read texts of its own, or a function.

Both are an :class:`~rlkd.trainer.batch_teachers.AskingTeacher`.
"""

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlkd.data.batching import longest_row
from rlkd.errors import TeacherError
from rlkd.kinds import Kind, MultiLabelClassification, Regression
from rlkd.models.estimators import estimator_logits
from rlkd.models.fitting import fit
from rlkd.models.identity import estimator_identity, network_identity
from rlkd.models.probabilities import log_odds


class NetworkTeacher:
    """A network of transformers, or any module whose output has ``logits``: frozen, in evaluation mode.

    Args:
        name: Its name.
        model: The network. One on the CPU is moved to where the student is, one on an accelerator stays there.
        tokenizer: Its own; None: it reads what the student reads.
        columns: Its own column of each of the student's classes; None: they are the student's.
        max_length: Tokens that texts are cut to.
        device: Where the student is.
        offload: Keep it on the CPU but while it is asked.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase | None,
        columns: NDArray[np.int64] | None,
        *,
        max_length: int,
        device: torch.device,
        offload: bool = False,
    ) -> None:
        self.name, self.columns, self.reads_text = name, columns, tokenizer is not None
        own = next(model.parameters(), torch.zeros(0)).device
        self.device = device if own.type == "cpu" else own
        self.model = model.eval().requires_grad_(False)
        self._fields = frozenset(signature(model.forward).parameters)
        self._offload, self._max_length = offload, max_length
        if tokenizer is not None and isinstance(model, PreTrainedModel):
            tokenizer = fit(model, tokenizer, who=f"teacher {name!r}", error=TeacherError)
        self._tokenizer = tokenizer
        if not offload:
            self.model.to(self.device)

    @property
    def identity(self) -> str:
        """Hash of weights, configuration, tokenizer and code."""
        if isinstance(self.model, PreTrainedModel):
            network = network_identity(self.model, self._tokenizer, ())
        else:
            network = estimator_identity(self.model, ())
        return network if self._tokenizer is None else f"{network}:{self._max_length}"

    def reads(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The fields that its ``forward`` names."""
        return {name: value for name, value in inputs.items() if name in self._fields}

    def carry(self, texts: Sequence[Any]) -> Any:
        """The tokens of texts, or of pairs of texts."""
        assert self._tokenizer is not None
        pairs = not isinstance(texts[0], str)
        first, second = ([text[0] for text in texts], [text[1] for text in texts]) if pairs else (list(texts), None)
        length = longest_row(self._tokenizer, self._max_length)
        return dict(
            self._tokenizer(first, second, truncation=True, max_length=length, padding=True, return_tensors="pt")
        )

    def logits(self, read: Mapping[str, Tensor]) -> Tensor:
        """Its answers, (B, ..., its own classes), float32."""
        moved = {name: value.to(self.device) for name, value in self.reads(read).items()}
        self.model.eval()
        if self._offload:
            self.model.to(self.device)
        with torch.no_grad():
            answer = self.model(**moved)
        if self._offload:
            self.model.to("cpu")
        logits: Tensor = answer.logits if hasattr(answer, "logits") else answer
        return logits.float()


class FunctionTeacher:
    """A function from texts, or from what the student reads, to logits (B, C) in the student's order of classes.

    Args:
        name: Its name.
        function: Of a list of texts, or of pairs of texts, if ``reads_text``, else of the student's inputs by name.
        reads_text: What it reads.
        made_of: What decides its answers: an estimator, the function, or a name and a version of it.
        columns: Its own column of each of the student's classes; None: they are the student's.
    """

    def __init__(
        self,
        name: str,
        function: Callable[[Any], Any],
        *,
        reads_text: bool,
        made_of: Any,
        columns: NDArray[np.int64] | None = None,
    ) -> None:
        self.name, self.reads_text, self.columns = name, reads_text, columns
        self._function, self._made_of = function, made_of

    @property
    def identity(self) -> str:
        """Hash of what it is made of: of a function its code and what that holds."""
        return estimator_identity(self._made_of, ())

    def reads(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """All of it."""
        return inputs

    def carry(self, texts: Sequence[Any]) -> Any:
        """The texts."""
        return list(texts)

    def logits(self, read: Any) -> Tensor:
        """Its answers, (B, ..., C), float32."""
        with torch.no_grad():
            return torch.as_tensor(self._function(read)).detach().float()


def reader_of_batches(name: str, model: Any, kind: type[Kind] = Kind) -> Callable[[Any], NDArray[np.float64]]:
    """A fitted scikit-learn estimator as a function of what a batch has: texts, pairs of texts, or the one input.

    That is flattened: of images ``pixel_values``, channel by channel.
    """
    answer = _ESTIMATORS.get(kind, estimator_logits)

    def logits(read: Any) -> NDArray[np.float64]:
        if isinstance(read, Mapping):
            found = {key: value for key, value in read.items() if value.is_floating_point()}
            if len(found) != 1:
                raise TeacherError(
                    f"a scikit-learn teacher reads the one tensor of numbers that the student reads, {name!r} got "
                    f"{', '.join(found) or 'none'} of {', '.join(read)}; pass a function of the batch instead"
                )
            (values,) = found.values()
            return answer(name, model, values.cpu().numpy().reshape(len(values), -1))
        return answer(name, model, [row if isinstance(row, str) else "\n".join(row) for row in read])

    return logits


def _label_log_odds(name: str, model: Any, rows: Any) -> NDArray[np.float64]:
    if hasattr(model, "predict_proba"):
        return log_odds(name, model.predict_proba(rows))
    return np.asarray(model.decision_function(rows), dtype=np.float64)


def _numbers(name: str, model: Any, rows: Any) -> NDArray[np.float64]:
    return np.asarray(model.predict(rows), dtype=np.float64).reshape(len(rows), -1)


_ESTIMATORS: Mapping[type[Kind], Callable[[str, Any, Any], NDArray[np.float64]]] = {
    MultiLabelClassification: _label_log_odds,
    Regression: _numbers,
}
"""What estimators say to a student, by the kind of task where that is no choice of a class."""
