"""What commands take beside students and policies: a task, an output directory, and what each command is asked to do.

A class named after a command holds the flags that are its own, with those that commands share below it.
"""

from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkd.settings.knobs import Range, Settings, above, at_least, knob, like, names_of, required
from rlkd.settings.policies import PolicyTraining
from rlkd.settings.students import BY_KIND, StepSettings, StudentSettings


@dataclass(frozen=True, kw_only=True)
class TaskSettings(Settings):
    """A task's data, see :func:`rlkd.data.load_task`."""

    task: str = required(
        "Task: an embedded one (docstrings, digits, planted), a file, a folder of splits, or a hub id."
    )
    text_column: str = knob(
        "text",
        "Column of the texts; if there is no text, the only one that is usual elsewhere (sentence, review, ...).",
    )
    text_pair_column: str | None = knob(None, "Column of the second texts of pairs.")
    label_column: str = knob("label", "Column of the labels; if there is no label, likewise (target, category, ...).")
    domain_column: str = knob("domain", "Column of the domains, if there is one.")
    image_column: str | None = knob(
        None, "Column of the images, for a task of images; by default image, or a like name, where there are no texts."
    )
    split_seed: int = knob(0, "Seed of the splits that the data do not give.")

    def options(self) -> dict[str, Any]:
        """Arguments of ``load_task``; columns at their defaults are left out: embedded tasks refuse them."""
        return {"source": self.task, "seed": self.split_seed, **_chosen_columns(self)}


@dataclass(frozen=True, kw_only=True)
class TasksSettings(Settings):
    """The data of one task or of several."""

    task: tuple[str, ...] = required(
        "Task, repeatable, each with a cache in the same order: an embedded one (docstrings, digits, planted), a file, "
        "a folder of splits, or a hub id. Columns and split seed hold for all, columns not for embedded tasks among "
        "others."
    )
    text_column: str = like(TaskSettings, "text_column")
    text_pair_column: str | None = like(TaskSettings, "text_pair_column")
    label_column: str = like(TaskSettings, "label_column")
    domain_column: str = like(TaskSettings, "domain_column")
    image_column: str | None = like(TaskSettings, "image_column")
    split_seed: int = like(TaskSettings, "split_seed")

    def options(self, embedded: Container[str]) -> list[dict[str, Any]]:
        """Arguments of ``load_task``, one a task.

        Args:
            embedded: Names of tasks whose columns are fixed. Those that were chosen are for the others; where there are
                none, ``load_task`` refuses them.
        """
        others = [task for task in self.task if task not in embedded] or self.task
        columns = _chosen_columns(self)
        return [{"source": task, "seed": self.split_seed, **(columns if task in others else {})} for task in self.task]


def _chosen_columns(settings: Settings) -> dict[str, Any]:
    """Columns that are not at their defaults."""
    names = [name for name in names_of(TaskSettings) if name.endswith("_column")]
    columns = {name: getattr(settings, name) for name in sorted(names)}
    return {name: value for name, value in columns.items() if value != getattr(TaskSettings, name)}


@dataclass(frozen=True, kw_only=True)
class TableCommand(Settings):
    """A command that prints a table."""

    json: Path | None = knob(None, "File to write the table to as well, as a list of flat records.")


@dataclass(frozen=True, kw_only=True)
class Command(TableCommand):
    """A command whose flags a file may give."""

    config: Path | None = knob(None, "YAML file whose keys are the flags of the command; flags win over it.")


@dataclass(frozen=True, kw_only=True)
class WritingCommand(Command):
    """A command that writes into a directory of its own."""

    output_dir: str = required("Directory that everything is written to.", short="o")
    overwrite: bool = knob(False, "Delete an earlier run in the output directory.")
    quiet: bool = knob(False, "Show no progress bars.")

    def handling(self) -> dict[str, Any]:
        """How the output directory is treated and what is shown, as functions of :mod:`rlkd.workflow` take it."""
        resume = {"resume": self.resume} if isinstance(self, ResumableCommand) else {}
        return {**resume, "overwrite": self.overwrite, "progress": not self.quiet}


@dataclass(frozen=True, kw_only=True)
class ResumableCommand(WritingCommand):
    """A command whose interrupted run can be continued."""

    resume: bool = knob(False, "Continue an interrupted run with the same settings.")


@dataclass(frozen=True, kw_only=True)
class CacheReader(Settings):
    """Something that reads teachers' logits."""

    cache: str = required("Folder of the logit cache.")


@dataclass(frozen=True, kw_only=True)
class TeacherTraining(Settings):
    """How a set of teachers is trained."""

    specialize: str | None = knob(
        None,
        "What specialists are told apart by: class or domain, of which each teacher sees only some; by default all see "
        "everything.",
        choices=("class", "domain"),
    )
    variant: int = knob(0, "Which classes or domains specialists get: another number deals others.")
    share: float = knob(0.5, "Share of the classes or domains that a specialist knows.", Range(0, 1, open_low=True))
    epochs: float = knob(3, "Passes over the training rows.", above(0))
    learning_rate: float | None = knob(None, f"Peak learning rate of a teacher; {BY_KIND}.", above(0))
    batch_size: int = like(StepSettings, "batch_size", default=32)
    num_layers: int | None = knob(None, "Keep only so many first layers of pretrained teachers.")
    max_length: int = like(StepSettings, "max_length")
    bf16: bool = like(StepSettings, "bf16")
    seed: int = like(PolicyTraining, "seed")


@dataclass(frozen=True, kw_only=True)
class TrainTeachersCommand(ResumableCommand):
    """``rlkd train-teachers``, beside the task and the training."""

    kind: tuple[str, ...] = required(
        "Kind of a teacher, repeatable, one teacher each: tfidf, rlkd/bilstm or rlkd/tiny for texts; rlkd/cnn for "
        "images; logistic, random-features or rlkd/mlp for images and vectors; a hub id or a path."
    )
    device: str = like(StudentSettings, "device")


@dataclass(frozen=True, kw_only=True)
class CacheSettings(Settings):
    """How teachers are asked, see :func:`rlkd.logit_cache.build_cache`."""

    batch_size: int = knob(64, "Instances a forward pass.", at_least(1))
    max_length: int = like(StepSettings, "max_length")
    dtype: str = knob(
        "float32", "Number format of the logits on disk: float32 or float16.", choices=("float32", "float16")
    )


@dataclass(frozen=True, kw_only=True)
class CacheCommand(WritingCommand):
    """``rlkd cache``, beside the task and how teachers are asked."""

    teachers: tuple[str, ...] = required(
        "Folder of a teacher or of several, or hub id, repeatable. Logits: a folder of train.npy, validation.npy and "
        "test.npy, rows in the order of your files, columns in that of the classes or named in label_names.json."
    )
    embedder: str | None = knob(None, "Encoder for the affinity feature: a hub id or a path.")
    device: str = like(StudentSettings, "device")


@dataclass(frozen=True, kw_only=True)
class AskCommand(Command):
    """``rlkd ask``, beside the task.

    Nothing that was paid for is ever deleted, and another call goes on from what is there: so there is neither a flag
    to resume nor one to overwrite.
    """

    teachers: tuple[str, ...] = like(CacheCommand, "teachers")
    strategy: str = knob(
        "verify",
        "Which rows, and whom: all, random, best, only:TEACHER, explore, verify, router, bandit, ... or "
        "package.module:Name; margin*verify asks first about rows of which a student is unsure, pairs*verify a little.",
    )
    budget: float = required(
        "What may be spent in all, that of earlier calls into the same directory included, in the unit of the prices: "
        "in answers where no price is named.",
        above(0),
    )
    price: tuple[str, ...] = knob(
        (),
        "Price of a teacher, NAME=PRICE, repeatable: of a call (10), of tokens in and out (0.5/1k in+1.5/1k out) or "
        "both; 1 a call where none is named.",
    )
    dry_run: bool = knob(False, "Say what would be spent at most, and ask nobody.")
    ask_again: bool = knob(
        False,
        "Ask again where a call was broken off and may have been paid for; by default it stays unsettled, and its "
        "price set aside.",
    )
    output_dir: str = like(
        WritingCommand, "output_dir", help="Directory of the cache that is written, and of the ledger of all answers."
    )
    batch_size: int = like(CacheSettings, "batch_size")
    max_length: int = like(CacheSettings, "max_length")
    device: str = like(StudentSettings, "device")
    seed: int = like(PolicyTraining, "seed")
    quiet: bool = like(WritingCommand, "quiet")


@dataclass(frozen=True, kw_only=True)
class HeadroomCommand(Command, CacheReader):
    """``rlkd headroom``, beside the task."""

    split: str = knob("validation", "Split that is looked at: validation, or another one.")


@dataclass(frozen=True, kw_only=True)
class TrainPolicyCommand(ResumableCommand):
    """``rlkd train-policy``, beside the tasks, the students, the training and the observation."""

    cache: tuple[str, ...] = like(
        CacheReader, "cache", help="Folder of the logit cache of a task, repeatable: one a task, in the same order."
    )
    jobs: int | None = knob(
        None,
        "Number of processes: a second one distils trial students meanwhile, by default where there is a core for it "
        "and it saves time; the policy does not depend on it.",
    )
    tensorboard: bool = knob(False, "Write TensorBoard logs.")


@dataclass(frozen=True, kw_only=True)
class ChoiceSettings(Settings):
    """What ``auto`` does where there are labels, see :mod:`rlkd.choosing`."""

    trial_students: int = knob(
        4,
        "Short trial students of each candidate by which auto chooses where there are labels: the shipped policy, a "
        "router, the policy of auto:PATH, equal weights; 0: none, and auto is what it is without labels.",
        at_least(0),
    )


@dataclass(frozen=True, kw_only=True)
class DistillCommand(ResumableCommand, CacheReader, ChoiceSettings):
    """``rlkd distill``, beside the task and the student."""

    weighting: str = knob(
        "auto",
        "Weighting of the teachers: auto, the policy that is shipped where it changes a fifth of what students are "
        "taught and equal weights elsewhere, or auto:PATH, which tries that of a folder too; "
        "uniform, entropy, router, policy:PATH, ... or package.module:Name.",
    )
    save_steps: int = knob(200, "Steps between checkpoints.", at_least(1))
    training_args: str | None = knob(None, 'Further TrainingArguments as JSON, such as {"weight_decay": 0.01}.')
    seed: int = like(PolicyTraining, "seed")


@dataclass(frozen=True, kw_only=True)
class CompareCommand(ResumableCommand, CacheReader, ChoiceSettings):
    """``rlkd compare``, beside the task and the student."""

    weighting: tuple[str, ...] = knob(
        (), "Weighting to compare, repeatable; by default the baselines, labels alone, the policy and its controls."
    )
    policy: str | None = knob(None, "Folder of the policy that the default weightings contain.")
    labels: bool = knob(
        True, "Have a student of the labels alone among the default weightings, where train rows have labels."
    )
    seeds: int = knob(3, "Number of paired seeds; three are a look, five a claim.")
    jobs: int = knob(1, "Number of processes; each run has one thread.")


@dataclass(frozen=True, kw_only=True)
class QuickstartCommand(ResumableCommand):
    """``rlkd quickstart``."""

    output_dir: str = like(WritingCommand, "output_dir", default="runs/quickstart")
    seeds: int = like(CompareCommand, "seeds")
    jobs: int | None = knob(None, "Number of processes; by default one a core.")
    total_timesteps: int = like(PolicyTraining, "total_timesteps")


@dataclass(frozen=True, kw_only=True)
class BenchRunCommand(Command):
    """``rlkd bench run``."""

    suite: Path = required("A suite in YAML, see benchmarks/suites.", argument=True)
    output_dir: str | None = like(
        WritingCommand,
        "output_dir",
        default=None,
        help="Directory that everything is written to; by default runs/bench/ and the suite's name.",
    )
    jobs: int | None = knob(None, "Number of processes, each with one thread; by default one a core.")
    task: tuple[str, ...] = knob((), "Name of a task to run alone, repeatable.")
    weighting: tuple[str, ...] = knob(
        (), "Weighting to run beside the suite's own, such as my_module:MyWeighting, repeatable."
    )
    seeds: int | None = knob(None, "Number of seeds of every task; by default the suite's own.")
    device: str | None = knob(
        None, "Device of the networks: cpu, cuda or auto; by default as the suite says, else cpu."
    )
    dry_run: bool = knob(False, "Say what would be run, and stop.")
    smoke: bool = knob(False, "Few rows and steps, to see that everything runs; no figure means anything.")
    quiet: bool = like(WritingCommand, "quiet")


@dataclass(frozen=True, kw_only=True)
class BenchReportCommand(Command):
    """``rlkd bench report``."""

    paths: tuple[Path, ...] = knob(
        (), "Files of results or folders that hold them; by default runs/bench.", argument=True
    )
    output_dir: str = like(
        WritingCommand, "output_dir", default="runs/bench", help="Directory that the pages are written to."
    )
