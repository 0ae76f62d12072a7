"""Asking within a budget: teachers, a ledger and a strategy in, a cache with gaps out."""

import math
import shlex
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from rlkd.asking import Answers, Pool, TeacherBank
from rlkd.asking.bank import Ids
from rlkd.asking.ledger import Ledger
from rlkd.asking.strategies import build_strategy
from rlkd.data import Task, load_task
from rlkd.data.splitting import check_seed
from rlkd.data.task import UNLABELLED
from rlkd.devices import check_device
from rlkd.errors import ConfigError, OutputDirectoryError, unknown_name
from rlkd.logit_cache import MANIFEST, joint_knowledge, write_gapped_cache
from rlkd.logit_cache.gaps import check_place
from rlkd.models import load_teachers
from rlkd.records import append_jsonl, check_one_process, environment
from rlkd.settings import AskCommand
from rlkd.workflow.deploying import input_flags
from rlkd.workflow.teachers import Rows, teacher_paths

LEDGER, RECORD = "ledger", "asked.jsonl"
"""In the output directory: all answers ever paid for, and a line on every call."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What came out of asking."""

    rows: Rows
    """Of each teacher."""
    sentences: list[str]
    following: str
    """What to do next."""


class Watched:
    """A bank that shows how much of its budget is spent."""

    def __init__(self, own: TeacherBank, bar: Any) -> None:
        """Show a bank on a progress bar."""
        self._own, self._bar = own, bar
        self._show()

    @property
    def teacher_names(self) -> tuple[str, ...]:
        """See :class:`~rlkd.asking.TeacherBank`, as for what follows."""
        return self._own.teacher_names

    @property
    def prices(self) -> NDArray[np.float64]:
        """Likewise."""
        return self._own.prices

    @property
    def answers(self) -> Answers:
        """Likewise."""
        return self._own.answers

    @property
    def budget(self) -> float:
        """Likewise."""
        return self._own.budget

    @property
    def spent(self) -> float:
        """Likewise."""
        return self._own.spent

    def ask(self, teacher: int, ids: Ids) -> Ids:
        """Likewise."""
        asked = self._own.ask(teacher, ids)
        self._show()
        return asked

    def _show(self) -> None:
        self._bar.n = round(self._own.spent, 6)
        self._bar.refresh()


def run_ask(
    task_options: Mapping[str, Any],
    teachers: Sequence[str],
    output_dir: str,
    *,
    strategy: str = AskCommand.strategy,
    budget: float,
    prices: Sequence[str] = AskCommand.price,
    dry_run: bool = AskCommand.dry_run,
    batch_size: int = AskCommand.batch_size,
    max_length: int = AskCommand.max_length,
    device: str | None = None,
    seed: int = AskCommand.seed,
    progress: bool = False,
) -> Asked:
    """Ask about train rows of a task, and write all answers that there are as a cache; one row a teacher.

    Another call into the same directory goes on from there, whatever its strategy and budget: answers that are there
    cost nothing. Where a call is broken off, by a teacher's error too, the cache holds what was paid for.

    Args:
        task_options: Of :func:`~rlkd.data.load_task`; a strategy may read the labels of train rows.
        teachers: Folders of teachers.
        output_dir: Of the cache and its ledger.
        strategy: See :func:`~rlkd.asking.strategies.build_strategy`.
        budget: What may be spent in all, earlier calls included.
        prices: Each ``NAME=PRICE``.
        dry_run: Say what would be spent, and ask nobody.
        batch_size: Instances a forward pass.
        max_length: Tokens a text is cut to.
        device: Of the teachers.
        seed: Of the strategy.
        progress: Show a progress bar over the budget.
    """
    check_one_process("teachers are asked within a budget")
    check_device(device)
    check_seed(seed)
    rule, folder = build_strategy(strategy), Path(output_dir)
    check_folder(folder)
    task = load_task(**task_options)
    loaded = load_teachers(teacher_paths(teachers), task, device=device)
    check_place(folder, task, loaded)
    named = named_prices(prices, [teacher.name for teacher in loaded])
    bank = Ledger(
        folder / LEDGER, task, loaded, prices=named, budget=budget, batch_size=batch_size, max_length=max_length
    )
    check_budget(bank, task, folder)
    if dry_run:
        return _would_be(bank, task)
    before, pool = bank.spent, Pool.of(task, knowledge=joint_knowledge(loaded, task))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with closing(tqdm(total=budget, desc="budget", disable=not progress)) as bar:
            rule.run(pool, Watched(bank, bar), seed)
    finally:  # what was paid for can be used, whatever went wrong
        answers = bank.answers
        write_gapped_cache(answers.logits, answers.answered, task, loaded, folder, max_length=max_length)
    rows = teacher_rows(bank)
    record = {"strategy": strategy, "budget": budget, "prices": list(prices), "seed": seed, "data": task.fingerprint}
    append_jsonl(folder / RECORD, record | {"spent": bank.spent, "teachers": rows, "environment": environment()})
    words = ["rlkd", "distill", *input_flags(task_options, output_dir), "-o", f"{folder}-student"]
    return Asked(rows=rows, sentences=_sentences(bank, task, before), following=f"Next: {shlex.join(words)}")


def check_folder(folder: Path) -> None:
    """Refuse a directory that holds something else than a cache, or what an earlier call has paid for.

    Raises:
        OutputDirectoryError: Says what is there.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputDirectoryError(f"expected a directory at {folder}, got a file; choose another output directory")
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if there and not {LEDGER, MANIFEST} & set(there):
        raise OutputDirectoryError(
            f"expected an empty directory or one that rlkd ask has written to, got {folder} with "
            f"{', '.join(there[:3])}; choose another"
        )


def named_prices(prices: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    """Prices of ``NAME=PRICE``.

    Raises:
        ConfigError: One is no such thing, or names a teacher twice.
        UnknownNameError: There is no such teacher.
    """
    found: dict[str, float] = {}
    for text in prices:
        name, _, price = text.rpartition("=")
        try:
            number = float(price)
        except ValueError:
            number = math.nan
        if not name or not 0 < number < math.inf:
            raise ConfigError(f"expected a teacher's name and a price above 0, got {text!r}; write {names[0]}=10")
        if name not in names:
            raise unknown_name("teacher", name, names)
        if name in found:
            raise ConfigError(f"every teacher has one price, {name!r} got {found[name]:g} and {number:g}; drop one")
        found[name] = number
    return found


def check_budget(bank: TeacherBank, task: Task, folder: Path) -> None:
    """Refuse a budget that is spent already, or that pays for no answer.

    Raises:
        ConfigError: Says what was spent, or what an answer costs.
    """
    if bank.budget < bank.spent:
        raise ConfigError(
            f"expected a budget of what was spent in {folder} before or more, {bank.spent:g}, got {bank.budget:g}; it "
            "counts earlier calls: raise it"
        )
    if bank.budget < bank.prices.min() and not bank.answers.asked.any():
        raise ConfigError(
            f"expected a budget that pays for an answer, of which the cheapest costs {bank.prices.min():g}, got "
            f"{bank.budget:g}; raise it"
        )


def _would_be(bank: TeacherBank, task: Task) -> Asked:
    """What would be spent at most: of a strategy it cannot be known before."""
    asked = bank.answers.asked[task.splits["train"]]
    rows: Rows = [
        {
            "teacher": name,
            "price": float(price),
            "asked": int(asked[:, k].sum()),
            "to_ask": int((~asked[:, k]).sum()),
            "costs_at_most": float((~asked[:, k]).sum() * price),
        }
        for k, (name, price) in enumerate(zip(bank.teacher_names, bank.prices, strict=True))
    ]
    most = min(bank.budget - bank.spent, sum(row["costs_at_most"] for row in rows))
    told = (
        f"At most {most:g} would be spent: the budget is {bank.budget:g}, of which {bank.spent:g} are spent; to ask "
        f"everybody about all {len(asked)} train rows costs {sum(row['costs_at_most'] for row in rows):g} more."
    )
    return Asked(rows=rows, sentences=[told], following="Nobody was asked; leave --dry-run out to ask.")


def teacher_rows(bank: Ledger) -> Rows:
    """What was asked of each teacher so far, and what came of it."""
    answers = bank.answers
    return [
        {
            "teacher": name,
            "asked": int(answers.asked[:, k].sum()),
            "answered": int(answers.answered[:, k].sum()),
            "refused": int((answers.asked[:, k] & ~answers.answered[:, k]).sum()),
            "unsettled": int(bank.unsettled[k]),
            "spent": round(float(bank.spent_by[k]), 9),
        }
        for k, name in enumerate(bank.teacher_names)
    ]


def _sentences(bank: TeacherBank, task: Task, before: float) -> list[str]:
    answered = bank.answers.answered[task.splits["train"]]
    told = answered.any(1)
    labelled = task.table.labels[task.splits["train"]] != UNLABELLED
    mean = answered[told].sum(1).mean() if told.any() else 0.0
    return [
        f"Spent {bank.spent:g} of {bank.budget:g}, {before:g} of it before: {told.sum()} of {len(told)} train rows "
        f"have an answer, {mean:.2f} on average.",
        f"A student is taught {(labelled & ~told).sum()} other rows by their label alone, and "
        f"{(~labelled & ~told).sum()} not at all.",
    ]
