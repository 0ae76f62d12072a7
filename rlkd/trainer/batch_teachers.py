"""Who teaches the batches of a trainer: networks that read its inputs or texts of their own, functions, a cache."""

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlkd.data.batching import longest_row
from rlkd.errors import CacheError, TeacherError
from rlkd.kinds import Kind, MultiLabelClassification, Regression
from rlkd.logit_cache import LogitCache
from rlkd.logit_cache.held import held_states
from rlkd.models.fitting import fit
from rlkd.models.identity import estimator_identity, network_identity
from rlkd.models.labels import MISSING, aligned_logits
from rlkd.models.probabilities import FEWEST_ROWS, check_log_odds, check_logits, log_odds
from rlkd.models.teachers import estimator_logits
from rlkd.types import State

Pick = Callable[[Tensor], Tensor]
"""From what a network says of a batch, (B, ..., C), to the rows that are taught, (N, C)."""
Rows = Sequence[Mapping[str, Any]]


class BatchTeachers(Protocol):
    """K teachers of a trainer that knows batches, not a task."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the teachers."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the training data that they read beside what the student reads."""

    @property
    def gives(self) -> frozenset[str]:
        """Fields of a state that they know beside the logits."""

    def carry(self, rows: Rows, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """What goes with a batch for them.

        Args:
            rows: Of the data, with ``columns``.
            inputs: What the student reads of them, every tensor (B, ...).

        Raises:
            TeacherError: A row lacks one of ``columns``.
        """

    def state(self, inputs: Mapping[str, Tensor], carried: Mapping[str, Any], pick: Pick) -> State:
        """What they say of a batch.

        Args:
            inputs: What the student reads, every tensor (B, ...).
            carried: What :meth:`carry` gave, on the student's device.
            pick: Takes the rows that are taught, where those are not the rows of the batch.

        Returns:
            With logits (N, K, C) in the student's order of classes, and what else is known.
        """


class AskingTeacher(Protocol):
    """One teacher that is asked about every batch."""

    name: str
    reads_text: bool
    """Whether it reads texts, not what the student reads."""

    def reads(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What it reads of what the student reads."""

    def carry(self, texts: Sequence[Any]) -> Any:
        """What goes with a batch of B texts, or pairs of texts, for it."""

    def logits(self, read: Any) -> Tensor:
        """Its answers to what :meth:`carry` gave, or to what the student reads: (B, ..., its own classes)."""

    columns: NDArray[np.int64] | None
    """Its own column of each of the student's classes; None: they are the student's."""

    @property
    def identity(self) -> str:
        """Hash of what decides its answers; beginning with ``ONCE`` where that cannot be told."""


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
_CHECKS: Mapping[type[Kind], Callable[[str, Any], None] | None] = {
    MultiLabelClassification: check_log_odds,
    Regression: None,
}
"""Whether answers may be probabilities, likewise."""


class AskedTeachers:
    """Teachers that are asked about every batch: :class:`BatchTeachers`."""

    gives: frozenset[str] = frozenset()

    def __init__(
        self, teachers: Sequence[AskingTeacher], text_columns: Sequence[str], classes: int, kind: type[Kind] = Kind
    ) -> None:
        """Hold them.

        Args:
            teachers: K of them, with different names.
            text_columns: The column of texts, or two of pairs; empty: none of them reads texts.
            classes: C of the student.
            kind: Of the task.
        """
        self._teachers, self._text_columns, self._classes = list(teachers), tuple(text_columns), classes
        self._check = _CHECKS.get(kind, check_logits)
        self._unknown = set(self.names)  # whether they give logits or probabilities

    @property
    def covers(self) -> Tensor | None:
        """Which of the student's classes each teacher has, bool, shape (K, C); None: all have all."""
        columns = [teacher.columns for teacher in self._teachers]
        if not any(own is not None and (own == MISSING).any() for own in columns):
            return None
        everything = np.ones(self._classes, dtype=bool)
        return torch.from_numpy(np.stack([everything if own is None else own != MISSING for own in columns]))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the teachers."""
        return tuple(teacher.name for teacher in self._teachers)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of texts, if one of the teachers reads them."""
        return self._text_columns if any(teacher.reads_text for teacher in self._teachers) else ()

    def texts(self, rows: Rows) -> list[Any]:
        """The texts, or pairs of texts, of rows, if one of the teachers reads them."""
        return [_texts_of(row, self._text_columns) for row in rows] if self.columns else []

    def carry(self, rows: Rows, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """What each of those that read texts reads of these rows."""
        texts = self.texts(rows)
        return {teacher.name: teacher.carry(texts) for teacher in self._teachers if teacher.reads_text}

    def state(self, inputs: Mapping[str, Tensor], carried: Mapping[str, Any], pick: Pick) -> State:
        """Ask them all."""
        answers = [self._answer(teacher, inputs, carried, pick) for teacher in self._teachers]
        logits = torch.stack(answers, dim=-2)
        if not logits.isfinite().all():  # of all together: each such question waits for the device
            bad = (~logits.isfinite()).any(-1).any(0).int().argmax()
            raise TeacherError(f"expected finite logits from teacher {self.names[bad]!r}, got NaN or infinity")
        return State(teacher_logits=logits)

    def _answer(
        self, teacher: AskingTeacher, inputs: Mapping[str, Tensor], carried: Mapping[str, Any], pick: Pick
    ) -> Tensor:
        device = next(iter(inputs.values())).device
        logits = pick(self._said(teacher, inputs, carried).to(device))
        if self._classes == 1 and logits.ndim == 1:
            logits = logits.unsqueeze(-1)
        self._check_answer(teacher, logits)
        return logits if teacher.columns is None else aligned_logits(logits, teacher.columns)

    def _check_answer(self, teacher: AskingTeacher, logits: Tensor) -> None:
        """Refuse what are no logits of instances or tokens, (N, the teacher's own classes)."""
        own = self._classes if teacher.columns is None else logits.shape[-1]
        if logits.ndim != 2 or logits.shape[-1] != own:
            raise TeacherError(
                f"expected logits (B, {self._classes}) from teacher {teacher.name!r}, a row an instance in the "
                f"student's order of classes, got {tuple(logits.shape)}"
            )
        if self._check and teacher.name in self._unknown and len(logits) >= FEWEST_ROWS:
            self._check(teacher.name, logits.cpu().numpy())  # once: it would wait for the device
            self._unknown.remove(teacher.name)

    def _said(self, teacher: AskingTeacher, inputs: Mapping[str, Tensor], carried: Mapping[str, Any]) -> Tensor:
        return teacher.logits(carried[teacher.name] if teacher.reads_text else inputs)


class CachedTeachers:
    """Teachers whose answers lie in a cache, found by a column of instance ids: :class:`BatchTeachers`."""

    def __init__(self, cache: LogitCache, id_column: str, device: torch.device) -> None:
        """Hold the cache, whose rows are numbered as in ``id_column``, and where it fits on the students' device."""
        self._cache, self._id_column = cache, id_column
        self._classes = cache.rows(torch.zeros(1, dtype=torch.int64)).shape[-1]
        self._held = held_states(self._read, len(cache), device)
        self.names, self.columns = cache.teacher_names, (id_column,)

    @property
    def gives(self) -> frozenset[str]:
        """Ids, how sure teachers usually are, and what else the cache keeps."""
        cache = self._cache
        known = cache.reliability is not None
        more = {"affinity": cache.has_affinity, "embeddings": cache.embedding_size, "reliability": known}
        return frozenset({"ids", "sureness", *(name for name, there in more.items() if there)})

    def carry(self, rows: Rows, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """The ids of these rows."""
        values = [row[self._id_column] if self._id_column in row else _value(row, self._id_column) for row in rows]
        whole = {(getattr(value, "dtype", None), getattr(value, "ndim", None)) for value in values}
        ids = torch.stack(values) if whole == {(torch.int64, 0)} else torch.tensor(values)
        numbers = ids.tolist()
        if ids.is_floating_point() or (numbers and not 0 <= min(numbers) <= max(numbers) < len(self._cache)):
            raise CacheError(
                f"expected numbers of rows of the cache, 0 to {len(self._cache) - 1}, in column {self._id_column!r}, "
                f"got {ids.min().item()} to {ids.max().item()}; name the column that holds them"
            )
        return {"ids": ids}

    def state(self, inputs: Mapping[str, Tensor], carried: Mapping[str, Any], pick: Pick) -> State:
        """Look the rows up."""
        return self._read(carried["ids"].cpu()) if self._held is None else self._held.of(carried["ids"])

    def _read(self, ids: Tensor) -> State:
        known = self._cache.reliability
        return State(
            teacher_logits=self._cache.rows(ids),
            teacher_mask=self._cache.mask_rows(ids),
            ids=ids,
            affinity=self._cache.affinity_rows(ids),
            reliability=None if known is None else known.expand(len(ids), -1, -1),
            sureness=self._cache.sureness_rows(ids) if self._classes > 1 else None,
            embeddings=self._cache.embedding_rows(ids),
        )


class GivenLogits:
    """Teachers whose logits stand in a column of the data, (K, C) a row: :class:`BatchTeachers`."""

    gives: frozenset[str] = frozenset()

    def __init__(self, column: str, names: Sequence[str], classes: int) -> None:
        """Name the column, the K teachers and the number of classes."""
        self.names, self.columns, self._classes = tuple(names), (column,), classes

    def carry(self, rows: Rows, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """The logits of these rows, (B, K, C)."""
        logits = torch.as_tensor(np.array([_value(row, self.columns[0]) for row in rows], dtype=np.float32))
        if logits.shape[1:] != (len(self.names), self._classes):
            raise TeacherError(
                f"expected {len(self.names)} teachers by {self._classes} classes in column {self.columns[0]!r}, got "
                f"{tuple(logits.shape[1:])}"
            )
        return {"logits": logits}

    def state(self, inputs: Mapping[str, Tensor], carried: Mapping[str, Any], pick: Pick) -> State:
        """The logits that came with the batch."""
        return State(teacher_logits=carried["logits"])


def _value(row: Mapping[str, Any], column: str) -> Any:
    if column not in row:
        raise TeacherError(
            f"teachers read the column {column!r}, the training data has {', '.join(map(str, row)) or 'none'}; keep it "
            "in the data set, or name the column that holds it"
        )
    return row[column]


def _texts_of(row: Mapping[str, Any], columns: Sequence[str]) -> Any:
    texts = tuple(_value(row, column) for column in columns)
    return texts[0] if len(texts) == 1 else texts
