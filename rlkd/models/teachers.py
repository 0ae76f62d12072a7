"""Teachers: anything that gives logits, aligned to the task's classes, in eval mode and without gradients."""

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlkd.data.batching import Inputs, encode_inputs
from rlkd.data.task import Task, raw_inputs
from rlkd.devices import mixed_precision
from rlkd.errors import TeacherError, one_line
from rlkd.models.fitting import check_reading, fit
from rlkd.models.identity import network_identity, once_identity
from rlkd.models.inner_states import check_encoder, read_inner_states
from rlkd.models.labels import align_labels, aligned_logits
from rlkd.models.networks import forward_inputs
from rlkd.models.probabilities import check_logits
from rlkd.settings import StepSettings
from rlkd.types import InnerStates, Wanted

KnowsBy = Literal["class", "domain"]


class Teacher(Protocol):
    """What gives logits."""

    @property
    def name(self) -> str:
        """Unique among the teachers of a run."""

    @property
    def identity(self) -> str:
        """Hash of everything that decides the logits; caches made by another identity are refused."""

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the teacher's own columns."""

    @property
    def knows(self) -> frozenset[str] | None:
        """Names of the classes or domains it was trained on. None: not known, or all."""

    @property
    def knows_by(self) -> KnowsBy | None:
        """Whether ``knows`` names classes or domains."""

    def logits(self, task: Task, ids: NDArray[np.int64], *, batch_size: int, max_length: int) -> Tensor:
        """Logits of the instances ``ids`` (N,): (N, C) float32 on the CPU, in the task's class order."""


class LabelledTeacher:
    """What all teachers of this module share: a name, columns with names, and what they know.

    Args:
        name: Unique among the teachers of a run.
        label_names: Names of the teacher's columns, in order.
        knows: Names of the classes or domains it was trained on. None: not known, or all.
        knows_by: Whether ``knows`` names classes or domains.
        allow_missing: Whether it may lack classes of the task. None: where it is a specialist.
    """

    def __init__(
        self,
        name: str,
        label_names: Sequence[str],
        *,
        knows: Iterable[str] | None = None,
        knows_by: KnowsBy | None = None,
        allow_missing: bool | None = None,
    ) -> None:
        self.name = name
        self.label_names = tuple(label_names)
        self.knows = None if knows is None else frozenset(knows)
        self.knows_by = knows_by
        self._allow_missing = self.knows is not None if allow_missing is None else allow_missing
        if (self.knows is None) != (knows_by is None):
            raise TeacherError(
                f"teacher {name!r} needs knows and knows_by together, got {knows!r} and {knows_by!r}; "
                "give both or neither"
            )

    def columns(self, task: Task) -> NDArray[np.int64]:
        """The teacher's column of each class of the task, shape (C,); see :func:`align_labels`."""
        may_lack = task.label_names if self._allow_missing else task.untaught
        return align_labels(self.label_names, task.label_names, teacher=self.name, may_lack=may_lack)

    def check(self, task: Task) -> None:
        """Raise what :meth:`logits` would raise for a task, before the long work."""
        self.columns(task)
        unknown = (self.knows or frozenset()) - set(task.label_names)
        if self.knows_by == "class" and unknown:
            raise TeacherError(
                f"expected classes of task {task.name!r} in knows of teacher {self.name!r}, got "
                f"{sorted(unknown)}; correct knows in its teacher.json"
            )

    def logits(self, task: Task, ids: NDArray[np.int64], *, batch_size: int, max_length: int) -> Tensor:
        """Logits of the instances ``ids`` (N,): (N, C) float32 on the CPU, in the task's class order."""
        self.check(task)
        if len(ids) == 0:
            return torch.zeros(0, task.num_classes)
        raw = self.raw_logits(task, np.asarray(ids, dtype=np.int64), batch_size, max_length)
        raw = raw.detach().to("cpu", torch.float32)
        if raw.shape != (len(ids), len(self.label_names)):
            raise TeacherError(
                f"expected logits of shape {(len(ids), len(self.label_names))} from teacher {self.name!r}, "
                f"got {tuple(raw.shape)}; give one row per instance and one column per label name"
            )
        bad = ~raw.isfinite().all(dim=1)
        if bad.any():
            raise TeacherError(
                f"expected finite logits from teacher {self.name!r}, got NaN or infinity in {int(bad.sum())} of "
                f"{len(ids)} rows, instances {ids[bad.numpy()][:5].tolist()}; clip probabilities before taking "
                "logarithms"
            )
        check_logits(self.name, raw.numpy())
        return aligned_logits(raw, self.columns(task))

    def raw_logits(self, task: Task, ids: NDArray[np.int64], batch_size: int, max_length: int) -> Tensor:
        """Logits of the instances ``ids`` (N,) in the teacher's own class order, shape (N, its classes), unchecked."""
        raise NotImplementedError

    def reading_order(self, task: Task, ids: NDArray[np.int64], max_length: int) -> NDArray[np.int64]:
        """The order in which it reads the instances ``ids`` (N,): places in ``ids``, shape (N,)."""
        return np.arange(len(ids))

    def rows_at_once(self, batch_size: int) -> int:
        """How many instances it reads at once where it is asked for ``batch_size``."""
        return batch_size


class HfTeacher(LabelledTeacher):
    """A transformers classifier with its own tokenizer, frozen, and mended where padding would change its answers.

    Args:
        name: Unique among the teachers of a run.
        model: A sequence classifier of one label; see :func:`rlkd.models.fitting.fit`.
        tokenizer: Its own tokenizer; None for models of vectors; of images its image processor, or None.
        label_names: Names of its columns. None: its configuration's ``id2label``.
        knows: See :class:`LabelledTeacher`.
        knows_by: See :class:`LabelledTeacher`.
        allow_missing: See :class:`LabelledTeacher`.
        device: Where it runs. None: the GPU where there is one.
        bf16: Compute in bfloat16 where that is safe; its answers, and so its identity, are others.
    """

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        label_names: Sequence[str] | None = None,
        knows: Iterable[str] | None = None,
        knows_by: KnowsBy | None = None,
        allow_missing: bool | None = None,
        device: str | torch.device | None = None,
        bf16: bool = StepSettings.bf16,
    ) -> None:
        config = model.config
        names = label_names or [config.id2label[index] for index in range(config.num_labels)]
        super().__init__(name, names, knows=knows, knows_by=knows_by, allow_missing=allow_missing)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = model.to(self.device).eval().requires_grad_(False)
        self.tokenizer = fit(self.model, tokenizer, who=f"teacher {name!r}", error=TeacherError)
        self._bf16 = bf16
        self._encoded: tuple[tuple[str, int], Inputs] | None = None
        self._checked = ""

    @cached_property
    def identity(self) -> str:
        """Hash of the configuration, the weights and the tokenizer, and the precision unless it is float32."""
        weights = network_identity(self.model, self.tokenizer, self.label_names)
        return f"{weights}:bf16" if self._bf16 else weights

    def check(self, task: Task) -> None:
        """Raise what :meth:`logits` would raise for a task, before the long work."""
        super().check(task)
        if self._checked == task.fingerprint:
            return
        who = f"teacher {self.name!r}"
        check_reading(self.model, task, who=who, error=TeacherError, processor=self.tokenizer)
        if task.table.holds == "text" and self.tokenizer is None:
            raise TeacherError(f"{who} reads text and has no tokenizer; give it its own")
        self._checked = task.fingerprint

    def raw_logits(self, task: Task, ids: NDArray[np.int64], batch_size: int, max_length: int) -> Tensor:
        """See :meth:`LabelledTeacher.raw_logits`."""
        inputs, order = self.inputs(task, max_length), self.reading_order(task, ids, max_length)
        self.model.eval()
        parts = []
        with torch.inference_mode(), mixed_precision(self.device, bf16=self._bf16):
            for start in range(0, len(ids), batch_size):
                batch = inputs.batch(ids[order[start : start + batch_size]])
                moved = {key: value.to(self.device) for key, value in batch.items()}
                parts.append(self.model(**forward_inputs(self.model, moved)).logits.float())
        restored = torch.empty_like(joined := torch.cat(parts))
        restored[torch.from_numpy(order).to(self.device)] = joined
        return restored

    def reading_order(self, task: Task, ids: NDArray[np.int64], max_length: int) -> NDArray[np.int64]:
        """Long rows first: an out-of-memory error then comes at once, and padding is least."""
        return np.argsort(-self.inputs(task, max_length).lengths[ids], kind="stable")

    def inner_states(
        self, task: Task, ids: NDArray[np.int64], wanted: Wanted, *, max_length: int
    ) -> tuple[Tensor, InnerStates]:
        """Logits and inner states of the instances ``ids`` (B,) in one pass, on the CPU.

        Args:
            task: The task.
            ids: One batch of instance ids, shape (B,).
            wanted: Which inner states.
            max_length: Tokens a text is cut to.

        Returns:
            Logits (B, C) as :meth:`logits` gives them, and the inner states.

        Raises:
            StudentError: The network has no such states.
        """
        self.check(task)
        check_encoder(self.model, attention=bool(wanted.attention))
        self.model.eval()
        batch = {key: value.to(self.device) for key, value in self.inputs(task, max_length).batch(ids).items()}
        # No inference mode: a student's backward pass reads these.
        with torch.no_grad(), mixed_precision(self.device, bf16=self._bf16):
            outputs, states = read_inner_states(self.model, batch, wanted)
        logits = aligned_logits(outputs.logits.to("cpu", torch.float32), self.columns(task))
        return logits, InnerStates(
            mask=states.mask.cpu(),
            hidden={index: value.cpu() for index, value in states.hidden.items()},
            attention={index: value.cpu() for index, value in states.attention.items()},
        )

    def inputs(self, task: Task, max_length: int) -> Inputs:
        """Tokenise a task once, however many calls ask for parts of it."""
        key = (task.fingerprint, max_length)
        if self._encoded is None or self._encoded[0] != key:
            self._encoded = (key, encode_inputs(task, self.tokenizer, max_length))
        return self._encoded[1]


class CallableTeacher(LabelledTeacher):
    """A function from raw inputs to logits.

    Args:
        name: Unique among the teachers of a run.
        fn: From a list of texts, a list of text pairs or an array (B, D) to logits (B, C).
        label_names: Names of its columns.
        identity: Changes whenever the function's answers do: a name and a version. None: one that no other teacher
            has, so that no cache of the answers is opened for another object than this.
        knows: See :class:`LabelledTeacher`.
        knows_by: See :class:`LabelledTeacher`.
    """

    def __init__(
        self,
        name: str,
        fn: Callable[[Any], ArrayLike | Tensor],
        label_names: Sequence[str],
        *,
        identity: str | None = None,
        knows: Iterable[str] | None = None,
        knows_by: KnowsBy | None = None,
    ) -> None:
        super().__init__(name, label_names, knows=knows, knows_by=knows_by)
        self.function = fn
        self.identity = identity or once_identity()

    def raw_logits(self, task: Task, ids: NDArray[np.int64], batch_size: int, max_length: int) -> Tensor:
        """See :meth:`LabelledTeacher.raw_logits`."""
        parts = []
        with torch.inference_mode():
            for start in range(0, len(ids), batch_size):
                parts.append(self._tensor(self.function(raw_inputs(task, ids[start : start + batch_size]))))
        return torch.cat(parts)

    def _tensor(self, answer: Any) -> Tensor:
        try:
            return torch.as_tensor(answer).detach().to("cpu", torch.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TeacherError(
                f"expected an array of logits (B, C) from teacher {self.name!r}, got {type(answer).__name__} "
                f"({one_line(error, 80)}); return one row for each input, one column for each class"
            ) from error


def refuse_namesakes(names: Sequence[str], advice: str) -> None:
    """Refuse teachers of which two are called alike."""
    for name in names:
        if names.count(name) > 1:
            raise TeacherError(
                f"expected teachers with different names, got {name!r} {names.count(name)} times; {advice}"
            )
