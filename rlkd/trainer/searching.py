"""Arguments that change once a trainer is made, by a search over them or by hand: they are followed, or refused."""

import copy
from collections.abc import Callable
from typing import Any, cast

from rlkd.errors import ConfigError
from rlkd.kinds import Kind
from rlkd.settings import LossSettings, check_loss_settings
from rlkd.settings.knobs import names_of

READ_AT_FIRST = ("teachers", "cache", "text_columns", "id_column", "offload_teachers", "max_length")
"""Arguments that teachers are made by, once."""


def loss_settings(args: Any) -> LossSettings:
    """The settings of the loss; of plain ``TrainingArguments``, which have none, the defaults.

    Raises:
        ConfigError: One is out of its range.
    """
    settings = LossSettings(**{name: getattr(args, name) for name in names_of(LossSettings) if hasattr(args, name)})
    check_loss_settings(settings.temperature, settings.kd_ratio, settings.mix, settings.divergence)
    return settings


class FollowsArguments:
    """Of a trainer: every run is the one that its arguments say, and every trial of a search the one of its own."""

    args: Any
    loss_settings: LossSettings
    _kind: Kind
    _chosen: Any
    _before_search: Any
    _set_kind: Callable[[type[Kind]], None]

    def _hold_arguments(self, weighting: Any) -> None:
        """Remember what a trainer is made by.

        Args:
            weighting: That was passed. None: that of the arguments is used.
        """
        self._weighting_passed, self._before_search = weighting is not None, None
        self._weighting_named = getattr(self.args, "weighting", None)
        self._read_at_first = {name: getattr(self.args, name, None) for name in READ_AT_FIRST}

    def hyperparameter_search(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's own; every trial begins with the arguments as they are now, which come back at the end.

        Settings of the loss may be searched over, and ``weighting`` where none was passed.

        Raises:
            ConfigError: What is searched over would be ignored.
        """
        self._before_search = copy.copy(self.args)
        try:
            return cast(Any, super()).hyperparameter_search(*args, **kwargs)
        finally:
            self._as_before_search()
            self._before_search = None
            self._follow_arguments()

    def _begin_trial(self, trial: Any) -> None:
        """Take a trial's arguments before the Trainer does, who would make the student with the last one's seed."""
        self._as_before_search()
        cast(Any, self)._hp_search_setup(trial)

    def _as_before_search(self) -> None:
        if self._before_search is not None:
            vars(self.args).update(vars(self._before_search))

    def _follow_arguments(self) -> None:
        """Take the arguments as they are now.

        Raises:
            ConfigError: One would be ignored, or is out of its range.
        """
        for name, value in self._read_at_first.items():
            self._refuse_another(name, value, "teachers are made once; make a trainer with it")
        if self._weighting_passed:
            self._refuse_another("weighting", self._weighting_named, "another was passed; leave that out")
        settings, named = loss_settings(self.args), getattr(self.args, "weighting", None)
        if settings != self.loss_settings:
            self.loss_settings = settings
            self._kind.check_settings(settings)
        if named != self._weighting_named:
            self._weighting_named = self._chosen = named
            self._set_kind(type(self._kind))
        cast(Any, self)._train_batch_size = self.args.train_batch_size  # the Trainer looks at it once

    def _refuse_another(self, name: str, value: Any, instead: str) -> None:
        found = getattr(self.args, name, None)
        if found != value:
            raise ConfigError(f"{name} would be ignored, it became {found!r} after the trainer was made: {instead}")
