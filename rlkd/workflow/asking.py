"""Asking within a budget: teachers, a ledger and a strategy in, a cache with gaps out."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from rlkd.asking import OneRun, Pool, TeacherBank
from rlkd.asking.bank import Ids
from rlkd.asking.ledger import Ledger
from rlkd.asking.prices import Price
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
BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:g}/{total:g} [{elapsed}]"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What came out of asking."""

    rows: Rows
    """Of each teacher."""
    sentences: list[str]
    following: str
    """What to do next."""


class WatchedRun(OneRun):
    """A run that shows how much of its bank's budget is spent."""

    def __init__(self, bank: TeacherBank, bar: Any) -> None:
        """Show a bank on a progress bar."""
        super().__init__(bank)
        self._bar = bar
        self._show()

    def ask(self, teacher: int, ids: Ids) -> Ids:
        """See :class:`~rlkd.asking.TeacherBank`."""
        asked = super().ask(teacher, ids)
        self._show()
        return asked

    def _show(self) -> None:
        self._bar.update(round(self._bank.spent, 6) - self._bar.n)


def run_ask(
    task_options: Mapping[str, Any],
    teachers: Sequence[str],
    output_dir: str,
    *,
    strategy: str = AskCommand.strategy,
    budget: float,
    prices: Sequence[str] = AskCommand.price,
    dry_run: bool = AskCommand.dry_run,
    ask_again: bool = AskCommand.ask_again,
    batch_size: int = AskCommand.batch_size,
    max_length: int = AskCommand.max_length,
    device: str | None = None,
    seed: int = AskCommand.seed,
    progress: bool = False,
) -> Asked:
    """Ask about train rows of a task, and write all answers that there are as a cache; one row a teacher.

    Another call into the same directory goes on from there, whatever its strategy and budget: answers that are there
    cost nothing, and one that was broken off goes the same way again. Where a call is broken off, by a teacher's error
    too, the cache holds what was paid for.

    Args:
        task_options: Of :func:`~rlkd.data.load_task`; a strategy may read the labels of train rows.
        teachers: Folders of teachers.
        output_dir: Of the cache and its ledger.
        strategy: See :func:`~rlkd.asking.strategies.build_strategy`.
        budget: What may be spent in all, earlier calls included.
        prices: Each ``NAME=PRICE``.
        dry_run: Say what would be spent, and ask nobody.
        ask_again: Ask again what is unsettled, which may then be paid for twice.
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

    def opened(place: Path) -> Ledger:
        limits = {"batch_size": batch_size, "max_length": max_length}
        return Ledger(place, task, loaded, prices=named, budget=budget, ask_again=ask_again, **limits)

    if dry_run:
        return _would_be(opened, folder, task)
    bank = opened(folder / LEDGER)
    check_budget(bank, folder)
    before, pool = bank.spent, Pool.of(task, knowledge=joint_knowledge(loaded, task))
    broken = True
    try:
        with closing(tqdm(total=budget, desc="budget", disable=not progress, bar_format=BAR)) as bar:
            rule.run(pool, WatchedRun(bank, bar), seed)
        broken = False
    finally:  # what was paid for can be used, whatever went wrong; by other processes too
        bank = opened(folder / LEDGER)
        with bank.standing_still() as answers:  # of two that write, the second has all that the first had
            if not broken or answers.answered.any():
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


def named_prices(prices: Sequence[str], names: Sequence[str]) -> dict[str, Price]:
    """Prices of ``NAME=PRICE``.

    Raises:
        ConfigError: One is no such thing, or names a teacher twice.
        UnknownNameError: There is no such teacher.
    """
    found: dict[str, Price] = {}
    for text in prices:
        name, equals, price = text.rpartition("=")
        if not equals:
            raise ConfigError(f"expected a teacher's name and a price, got {text!r}; write for example {names[0]}=10")
        if name not in names:
            raise unknown_name("teacher", name, names)
        if name in found:
            raise ConfigError(f"every teacher has one price, {name!r} got a second one, {price!r}; drop one")
        found[name] = Price.read(price)
    return found


def check_budget(bank: TeacherBank, folder: Path) -> None:
    """Refuse a budget that is spent already, or that pays for no answer.

    Raises:
        ConfigError: Says what was spent, or what an answer costs.
    """
    if bank.budget < bank.spent:
        raise ConfigError(
            f"expected a budget of what was spent in {folder} before or more, {bank.spent:g}, got {bank.budget:g}; it "
            "counts earlier calls: raise it"
        )
    if bank.budget < bank.prices.min() and bank.spent == 0:
        raise ConfigError(
            f"expected a budget that pays for an answer, of which the cheapest costs {bank.prices.min():g}, got "
            f"{bank.budget:g}; raise it"
        )


def _would_be(opened: Callable[[Path], Ledger], folder: Path, task: Task) -> Asked:
    """What would be spent at most: what a strategy would spend it on, it cannot say before it asks."""
    with TemporaryDirectory() as elsewhere:  # nothing is written
        there = folder / LEDGER
        bank = opened(there if there.is_dir() else Path(elsewhere) / LEDGER)
    check_budget(bank, folder)
    unasked = np.asarray(~bank.answers.asked[task.splits["train"]])
    rows: Rows = [
        {
            "teacher": name,
            "price": float(price),
            "asked": int((~unasked[:, k]).sum()),
            "to_ask": int(unasked[:, k].sum()),
            "costs_at_most": float(unasked[:, k].sum() * price),
        }
        for k, (name, price) in enumerate(zip(bank.teacher_names, bank.prices, strict=True))
    ]
    everything = sum(row["costs_at_most"] for row in rows)
    told = (
        f"At most {min(bank.budget - bank.spent, everything):g} would be spent: the budget is {bank.budget:g}, "
        f"{bank.spent:g} of it spent before; what is left to ask everybody about {len(unasked)} train rows costs "
        f"{everything:g}."
    )
    return Asked(rows=rows, sentences=[told], following="Nobody was asked; leave --dry-run out to ask.")


def teacher_rows(bank: Ledger) -> Rows:
    """What each teacher was asked so far, and what came of it.

    ``refused`` are all that were no answers, ``unsettled`` those of which it is not known what became of them.
    """
    rows = []
    for k, name in enumerate(bank.teacher_names):
        counts = bank.counts[k]
        ends = {
            "answered": int(bank.answers.answered[:, k].sum()),
            "refused": sum(counts[kind] for kind in ("refused", "cut off", "no label")),
            "unsettled": sum(counts[kind] for kind in ("unsettled", "under way", "lost")),
        }
        rows.append({"teacher": name, "asked": sum(ends.values()), **ends, "spent": round(float(bank.spent_by[k]), 9)})
    return rows


def _sentences(bank: TeacherBank, task: Task, before: float) -> list[str]:
    answered = bank.answers.answered[task.splits["train"]]
    told = np.asarray(answered.any(1))
    labelled = task.table.labels[task.splits["train"]] != UNLABELLED
    mean = answered[told].sum(1).mean() if told.any() else 0.0
    return [
        f"Spent {bank.spent:g} of {bank.budget:g}, {before:g} of it before: {told.sum()} of {len(told)} train rows "
        f"have an answer, {mean:.2f} on average.",
        f"A student is taught {(labelled & ~told).sum()} other rows by their label alone, and "
        f"{(~labelled & ~told).sum()} not at all.",
    ]
