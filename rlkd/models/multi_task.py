"""One encoder, a head for every task: the multi-task teacher and student, ordinary ``PreTrainedModel`` s.

:meth:`MultiTaskForSequenceClassification.for_task` is an ordinary classifier of one task, which everything that works
with classifiers works with: teachers, caches, saving, the hub.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from rlkd.errors import StudentError
from rlkd.losses import cross_entropy
from rlkd.models.networks import forward_inputs
from rlkd.models.pair_encoder import PairBiLstmConfig
from rlkd.models.students import label_maps, seeded_weights


class MultiTaskConfig(PreTrainedConfig):
    """Tasks with their classes, and the configuration of the encoder that they share."""

    model_type = "rlkd-multi-task"
    sub_configs = {"encoder": AutoConfig}  # noqa: RUF012  # transformers' own attribute
    has_no_defaults_at_init = True

    def __init__(
        self,
        tasks: Mapping[str, Sequence[str]] | None = None,
        encoder: PreTrainedConfig | Mapping[str, Any] | None = None,
        head_dropout: float = 0.1,
        **kwargs: Any,
    ) -> None:
        """Store the tasks, name to class names, and the encoder's configuration, or its values with a ``model_type``.

        Raises:
            StudentError: A task has fewer than two classes, or the encoder is of no known kind.
        """
        self.tasks = {name: _class_names(name, labels) for name, labels in (tasks or {}).items()}
        self.encoder = _encoder_config(PairBiLstmConfig() if encoder is None else encoder)
        self.head_dropout = head_dropout
        if len(self.tasks) == 1:
            kwargs |= label_maps(next(iter(self.tasks.values())))
        kwargs.setdefault("pad_token_id", getattr(self.encoder, "pad_token_id", None))
        # transformers hands this down to the encoder's configuration, where an encoder that is there has its own
        kwargs.setdefault("attn_implementation", self.encoder._attn_implementation)
        super().__init__(**kwargs)


class MultiTaskForSequenceClassification(PreTrainedModel):
    """A shared encoder with a linear head for each task; which task a batch is of is told by name.

    Heads read the encoder's pooled output where it has one (BERT's first token, the comparison of the BiLSTM), else
    the mean over tokens, with the mask.

    Source: Liu et al. 2019 (MT-DNN), arXiv:1901.11504, section 3; Liu et al. 2019 (MKD), arXiv:1911.03588.
    """

    config_class = MultiTaskConfig
    base_model_prefix = "encoder"
    main_input_name = "input_ids"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: MultiTaskConfig, encoder: PreTrainedModel | None = None) -> None:
        """Build the model.

        Args:
            config: Tasks and encoder.
            encoder: Use this one instead of a new one.
        """
        super().__init__(config)
        self.encoder = AutoModel.from_config(config.encoder) if encoder is None else encoder
        self.dropout = nn.Dropout(config.head_dropout)
        size = self.encoder.config.hidden_size
        self.heads = nn.ModuleDict({_key(name): nn.Linear(size, len(labels)) for name, labels in config.tasks.items()})
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise a head; the encoder initialises itself."""
        if module in set(self.heads.children()) and not getattr(module.weight, "_is_hf_initialized", False):
            assert isinstance(module, nn.Linear)
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Module:
        """The encoder's token embedding."""
        embeddings: nn.Module = self.encoder.get_input_embeddings()
        return embeddings

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        task: str | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutput:
        """Classify the instances of one task.

        Args:
            input_ids: Token ids, shape (B, L).
            attention_mask: 1 for tokens and 0 for padding, shape (B, L); None: no padding.
            token_type_ids: Segment ids, shape (B, L); left out for encoders that take none.
            labels: Classes of the task, shape (B,).
            task: Name of the task; may be left out if there is one only.
            output_hidden_states: Hand out the encoder's hidden states, where it has some.
            output_attentions: Hand out its attention, likewise.
            return_dict: Ignored; the output is always a ``SequenceClassifierOutput``.

        Returns:
            Logits of shape (B, C_task), and the mean cross entropy where labels were given.

        Raises:
            StudentError: The task has no head, or is not named where there are several.
        """
        head = self.heads[_key(self._named(task))]
        optional = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
        given = {"input_ids": input_ids} | {name: value for name, value in optional.items() if value is not None}
        inner = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        asked = {name: True for name, wish in inner.items() if wish}
        encoded = self.encoder(**forward_inputs(self.encoder, given), **asked)
        logits = head(self.dropout(_pooled(encoded, attention_mask)))
        return SequenceClassifierOutput(
            loss=None if labels is None else cross_entropy(logits, labels).mean(),
            logits=logits,
            hidden_states=encoded.get("hidden_states"),
            attentions=encoded.get("attentions"),
        )

    def _named(self, task: str | None) -> str:
        tasks = self.config.tasks
        if task is None and len(tasks) == 1:
            return str(next(iter(tasks)))
        if task is None or task not in tasks:
            raise StudentError(
                f"expected the name of a task that has a head ({', '.join(tasks)}), got {task!r}; name one of them"
            )
        return task

    def for_task(self, name: str) -> "MultiTaskForSequenceClassification":
        """An ordinary classifier of one task; it shares its weights with this model.

        Raises:
            StudentError: The task has no head.
        """
        labels = self.config.tasks[self._named(name)]
        config = MultiTaskConfig(
            {name: labels}, self.encoder.config, self.config.head_dropout, pad_token_id=self.config.pad_token_id
        )
        with seeded_weights(0):  # the head that is made here is replaced at once
            alone = MultiTaskForSequenceClassification(config, self.encoder)
        alone.heads[_key(name)] = self.heads[_key(name)]
        alone.train(self.training)
        return alone

    def with_heads(self, tasks: Mapping[str, Sequence[str]]) -> "MultiTaskForSequenceClassification":
        """A model over this encoder with heads for tasks, name to class names: its own where both agree, else new."""
        wanted = MultiTaskForSequenceClassification(
            MultiTaskConfig(tasks, self.encoder.config, self.config.head_dropout), self.encoder
        )
        for task, labels in tasks.items():
            if self.config.tasks.get(task) == list(labels):
                wanted.heads[_key(task)] = self.heads[_key(task)]
        return wanted


AutoConfig.register(MultiTaskConfig.model_type, MultiTaskConfig)
AutoModelForSequenceClassification.register(MultiTaskConfig, MultiTaskForSequenceClassification)


def _pooled(output: Any, attention_mask: Tensor | None) -> Tensor:
    pooled: Tensor | None = getattr(output, "pooler_output", None)
    if pooled is not None:
        return pooled
    hidden: Tensor = output.last_hidden_state
    if attention_mask is None:
        return hidden.mean(1)
    mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * mask).sum(1) / mask.sum(1).clamp_min(1)


def _key(task: str) -> str:
    """Name of a head as a module: a task may be called anything, a module has no dot and is no attribute."""
    return "task_" + task.replace("%", "%25").replace(".", "%2E")


def _class_names(task: str, labels: Any) -> list[str]:
    names = list(labels) if isinstance(labels, list | tuple) else []
    if len(names) < 2 or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise StudentError(f"expected two or more different class names of task {task!r}, got {labels!r:.60}; mend it")
    return names


def _encoder_config(given: PreTrainedConfig | Mapping[str, Any]) -> PreTrainedConfig:
    if isinstance(given, PreTrainedConfig):
        return given
    values = dict(given)
    kind = values.pop("model_type", None)
    if not isinstance(kind, str) or kind == MultiTaskConfig.model_type:
        raise StudentError(
            f"expected the configuration of an encoder with a model_type, got {kind!r}; mend config.json"
        )
    return AutoConfig.for_model(kind, **values)
