"""Episodes by number: any one can be rebuilt from the seed and its number."""

from typing import Any, ClassVar

import numpy as np

from rlkd.errors import ConfigError


class NumberedEpisodes:
    """Of a vector environment whose episodes are each of one of several tasks."""

    turns_key: ClassVar[tuple[int, ...]]
    """Sets the order of tasks apart from everything else that is drawn from the seed."""
    num_tasks: int
    _seed: int = 0
    _episode_number: int = 0
    """Of the episode that comes next."""

    def _go_to(self, seed: int | list[int | None] | None, options: dict[str, Any] | None) -> None:
        """Read the arguments of ``reset``: a seed restarts the count, ``options={"episode": n}`` sets it.

        Raises:
            ConfigError: There is another option, or the number is none.
        """
        if isinstance(seed, list):
            seed = seed[0]
        if seed is not None:
            self._seed, self._episode_number = seed, 0
        number = (options or {}).get("episode", self._episode_number)
        if set(options or {}) - {"episode"} or not isinstance(number, int) or number < 0:
            raise ConfigError(f"reset takes the option 'episode', an integer >= 0, got {options}")
        self._episode_number = number

    def _task_of_episode(self, number: int) -> int:
        """Every task once in as many episodes."""
        turn, place = divmod(number, self.num_tasks)
        sequence = np.random.SeedSequence([self._seed, turn], spawn_key=self.turns_key)
        return int(np.random.default_rng(sequence).permutation(self.num_tasks)[place])

    @property
    def episode_number(self) -> int:
        """Number of the episode at hand, counted from 0."""
        return self._episode_number - 1
