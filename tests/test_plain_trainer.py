"""The trainer that takes what ``transformers.Trainer`` takes: data sets, collators and teachers of one's own."""

import copy
import json
import re
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from networks import LABELS, WORDS, network, tokenizer_for
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from tokenizers import Tokenizer
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

from rlkd.data.task import Table, Task
from rlkd.distillation import weighted_distillation_loss
from rlkd.errors import ConfigError, TeacherError, WeightingError
from rlkd.features import usual_sureness
from rlkd.logit_cache import LogitCache, build_cache
from rlkd.trainer import DistillationArguments, DistillationMixin, DistillationTrainer
from rlkd.types import State
from rlkd.weighting import WEIGHTINGS, load_weighting
from rlkd.weighting.fixed import Uniform

QUIET = {"use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "seed": 3}
PLAIN = {"lr_scheduler_type": "constant", "max_grad_norm": 0.0, "dataloader_pin_memory": False} | {
    "optim": "sgd",  # Adam makes much of the rounding of gradients that are 0
    "learning_rate": 0.3,
}


def plain_arguments(folder, **values):
    return TrainingArguments(str(folder), **{**QUIET, **PLAIN, "max_steps": 6, **values})


def arguments(folder, **values):
    return DistillationArguments(str(folder), **{**QUIET, **PLAIN, "max_steps": 6, **values})


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_for("bert", model_max_length=40)


@pytest.fixture(scope="module")
def data(tokenizer):
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 1 + row % 9)) for row in range(52)]
    rows = {"text": texts, "label": [row % 3 for row in range(52)], "id": list(range(52))}
    return datasets.Dataset.from_dict(rows).map(lambda row: tokenizer(row["text"], truncation=True))


@pytest.fixture(scope="module")
def teachers(tokenizer):
    made = []
    for seed in range(3):
        torch.manual_seed(seed)
        model = network("bert", tokenizer)
        with torch.no_grad():
            model.classifier.weight.add_(torch.randn_like(model.classifier.weight))
        made.append(model)
    return made


def student(tokenizer):
    model = network("bert", tokenizer, hidden_size=8, num_hidden_layers=1)
    model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = 0.0
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def distilled(folder, data, tokenizer, teachers, *, weighting="uniform", given=None, **values):
    trainer = DistillationTrainer(
        student(tokenizer),
        given or arguments(folder, **values),
        train_dataset=data,
        processing_class=tokenizer,
        teachers=teachers,
        weighting=weighting,
    )
    trainer.train()
    return trainer


def parameters(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


class ByHand(Trainer):
    """What people write today: the mean of the teachers, as the teacher of a step."""

    teachers = ()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        fields = {name: value for name, value in inputs.items() if name != "labels"}
        with torch.no_grad():
            soft = torch.stack([F.softmax(one(**fields).logits, -1) for one in self.teachers]).mean(0)
        outputs = model(**fields)
        loss = F.kl_div(F.log_softmax(outputs.logits, -1), soft, reduction="batchmean")
        return (loss, outputs) if return_outputs else loss


def test_an_ordinary_script_becomes_a_distillation(data, tokenizer, teachers, tmp_path):
    """Plain arguments, a data set of columns and the default collator; the student is that of a loss by hand."""
    ours = distilled(tmp_path, data, tokenizer, teachers, given=plain_arguments(tmp_path))
    theirs = ByHand(student(tokenizer), plain_arguments(tmp_path), train_dataset=data, processing_class=tokenizer)
    theirs.teachers = teachers
    theirs.train()
    torch.testing.assert_close(parameters(ours), parameters(theirs), rtol=0, atol=1e-6)
    assert ours.weight_record.counts.sum() == 6 * 8
    assert set(ours.evaluate(data)) >= {"eval_loss"}
    assert ours.predict(data).predictions.shape == (52, 3)


def test_a_mixin_makes_a_trainer_of_ones_own_a_distillation(data, tokenizer, teachers, tmp_path):
    class Mine(DistillationMixin, Trainer):
        pass

    mine = Mine(
        model=student(tokenizer),
        args=plain_arguments(tmp_path),
        train_dataset=data,
        processing_class=tokenizer,
        teachers=teachers,
        weighting="uniform",
    )
    mine.train()
    assert torch.equal(parameters(mine), parameters(distilled(tmp_path, data, tokenizer, teachers)))


def test_the_shipped_policy_is_the_default_and_sees_how_sure_teachers_usually_are(data, tokenizer, teachers, tmp_path):
    trainer = distilled(tmp_path, data, tokenizer, teachers, weighting=None, max_steps=2, logging_steps=1)
    collate = trainer._get_collator_with_removed_columns(trainer.data_collator)
    batch = collate([data[row] for row in range(52)])
    fields = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        logits = torch.stack([one(**fields).logits for one in teachers], 1)
    usual = usual_sureness(logits)
    torch.testing.assert_close(trainer.usual_sureness(), usual, rtol=1e-5, atol=1e-5)
    told = next(line for line in trainer.state.log_history if "loss" in line)
    means = [told[f"weight/{name}"] for name in trainer.teachers.names]
    assert sum(means) == pytest.approx(1, abs=1e-5)
    assert {"distillation_loss", "cross_entropy", "weight_entropy"} <= set(told)
    weights = load_weighting("auto").weights(State(teacher_logits=logits, sureness=usual))
    assert weights.std() > 0.01


@pytest.mark.parametrize("batch", [(8, 2), (4, 4), (16, 1)])
def test_steps_of_several_batches_are_those_of_one(batch, data, tokenizer, teachers, tmp_path):
    """Of 52 rows the last step of an epoch has 4, in one micro-batch where others have up to four."""
    size, steps = batch
    values = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "max_steps": 8}
    whole = distilled(tmp_path, data, tokenizer, teachers, per_device_train_batch_size=16, max_steps=8)
    parts = distilled(tmp_path, data, tokenizer, teachers, **values)
    torch.testing.assert_close(parameters(parts), parameters(whole), rtol=0, atol=2e-5)


def stranger_teachers(tokenizer, teachers):
    """One behind another tokenizer, one with its classes in another order, a decoder that knows of no padding token.

    And what they are behind the student's tokenizer, with its classes and its padding token.
    """
    order = [2, 0, 1]
    turned = copy.deepcopy(teachers[1])
    with torch.no_grad():
        turned.classifier.weight.copy_(teachers[1].classifier.weight[order])
        turned.classifier.bias.copy_(teachers[1].classifier.bias[order])
    turned.config.id2label = {place: LABELS[k] for place, k in enumerate(order)}
    other, renumbered = renumbered_tokens(tokenizer, teachers[0])
    decoder = network("gpt2", tokenizer)
    silent, padless = copy.deepcopy(decoder), copy.deepcopy(tokenizer)
    silent.config.pad_token_id = padless.pad_token = None
    strangers = {"a": (renumbered, other), "b": (turned, tokenizer), "c": (silent, padless)}
    return strangers, {"a": teachers[0], "b": teachers[1], "c": decoder}


@pytest.mark.parametrize("weighting", ["uniform", "entropy"])
@pytest.mark.parametrize("how", ["live", "kept", "cache"])
def test_strangers_among_teachers_make_the_student_that_aligned_ones_make(
    how, weighting, data, tokenizer, teachers, tmp_path
):
    strangers, aligned = stranger_teachers(tokenizer, teachers)
    expected = distilled(tmp_path / "run", data, tokenizer, aligned, weighting=weighting)
    if how == "cache":
        table = Table(labels=np.array(data["label"]), domains=np.zeros(52, dtype=np.int64), texts=tuple(data["text"]))
        splits = dict(zip(("train", "probe", "validation", "test"), np.split(np.arange(52), [40, 44, 48]), strict=True))
        task = Task(name="elements", label_names=LABELS, table=table, splits=splits)
        strangers = build_cache(strangers, task, tmp_path / "cache", batch_size=8)
    values = {"cache": str(tmp_path / "kept")} if how == "kept" else {}
    for _ in range(2 if how == "kept" else 1):  # asked, then found
        mixed = distilled(tmp_path / "run", data, tokenizer, strangers, weighting=weighting, **values)
        assert mixed.teachers.names == ("a", "b", "c")
        assert mixed.teachers.columns == (("id",) if how == "cache" else ("text",))
        torch.testing.assert_close(parameters(mixed), parameters(expected), rtol=0, atol=1e-4)


def test_a_teacher_without_a_padding_token_reads_the_student_s(data, tokenizer, teachers, tmp_path):
    """A decoder answers at the last token that is no padding, and refuses batches where it knows of none."""
    decoder = network("gpt2", tokenizer)
    silent = copy.deepcopy(decoder)
    silent.config.pad_token_id = None
    students = [distilled(tmp_path, data, tokenizer, [teachers[0], one]) for one in (decoder, silent)]
    assert torch.equal(*map(parameters, students))


def renumbered_tokens(tokenizer, model):
    """The same words under other numbers, and the network that reads them."""
    other = tokenizer_for("bert", model_max_length=40)
    state = json.loads(other.backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    count = len(vocabulary)
    moved = {
        word: (number * 3 + 1) % count if count % 3 else (number + 5) % count for word, number in vocabulary.items()
    }
    state["model"]["vocab"] = moved
    for added in state["added_tokens"]:
        added["id"] = moved[added["content"]]
    for name, entry in state["post_processor"].get("special_tokens", {}).items():
        entry["ids"] = [moved[name]]
    special = {
        name: getattr(tokenizer, name) for name in ("pad_token", "unk_token", "eos_token", "cls_token", "sep_token")
    }
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        model_max_length=40,
        **{name: value for name, value in special.items() if value is not None},
    )
    renumbered = copy.deepcopy(model)
    table = renumbered.bert.embeddings.word_embeddings.weight
    with torch.no_grad():
        for word, number in vocabulary.items():
            table[moved[word]] = model.bert.embeddings.word_embeddings.weight[number]
    renumbered.config.pad_token_id = made.pad_token_id
    return made, renumbered


def test_a_cache_is_read_by_a_column_of_row_numbers(data, tokenizer, teachers, tmp_path):
    live = distilled(tmp_path, data, tokenizer, teachers)
    fields = tokenizer(data["text"][:], padding=True, return_tensors="pt")
    with torch.no_grad():
        arrays = [one(**fields).logits.numpy() for one in teachers]
    cached = distilled(tmp_path, data, tokenizer, LogitCache(arrays, ["a", "b", "c"]))
    torch.testing.assert_close(parameters(cached), parameters(live), rtol=0, atol=1e-5)
    with pytest.raises(TeacherError, match="teachers read the column 'number', the training data has "):
        distilled(tmp_path, data, tokenizer, LogitCache(arrays, ["a", "b", "c"]), id_column="number")


def test_estimators_and_functions_teach_from_texts(data, tokenizer, teachers, tmp_path):
    estimator = make_pipeline(CountVectorizer(), LogisticRegression()).fit(data["text"][:], data["label"][:])
    asked = []

    def function(texts):
        asked.extend(texts)
        return torch.zeros(len(texts), 3)

    trainer = distilled(tmp_path, data, tokenizer, [estimator, function], max_steps=1)
    assert trainer.teachers.names == ("LogisticRegression", "function")
    assert set(asked) <= set(data["text"][:])
    assert len(asked) == 8


@pytest.mark.parametrize("causal", [False, True])
def test_tokens_are_taught_where_they_have_a_label_and_nowhere_else(causal, tmp_path):
    """The mean is over labelled tokens of all rows: by hand, on rows of different lengths."""
    torch.manual_seed(0)
    small = {"vocab_size": 11, "num_labels": 4}
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}

    def made():
        if causal:
            return GPT2LMHeadModel(GPT2Config(vocab_size=11, n_embd=8, n_layer=1, n_head=2, n_positions=16, **still))
        return BertForTokenClassification(BertConfig(**small, **sizes, **quiet))

    learner, teaching = made(), [made(), made()]
    before = copy.deepcopy(learner)
    rows = [{"input_ids": [1 + (i * j) % 9 for j in range(3 + i % 5)]} for i in range(8)]
    for i, row in enumerate(rows):
        row["attention_mask"] = [1] * len(row["input_ids"])
        row["labels"] = [-100 if (i + j) % 3 == 0 else (i + j) % 4 for j in range(len(row["input_ids"]))]
    longest = max(len(row["input_ids"]) for row in rows)

    def collate(batch):
        fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
        return {n: torch.tensor([r[n] + [fill[n]] * (longest - len(r[n])) for r in batch]) for n in fill}

    trainer = DistillationTrainer(
        learner,
        arguments(tmp_path, max_steps=1, learning_rate=0.0, kd_ratio=0.25, logging_steps=1),
        train_dataset=rows,
        data_collator=collate,
        teachers=teaching,
        weighting="uniform",
    )
    trainer.train()
    losses = []
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor([row["input_ids"]])
            p = sum(F.softmax(one.eval()(input_ids=ids).logits[0].double(), -1) for one in teaching) / 2
            q = F.log_softmax(before.eval()(input_ids=ids).logits[0].double(), -1)
            for place, label in enumerate(row["labels"]):
                told = place - causal
                if label >= 0 and told >= 0:
                    kl = (p[told] * (p[told].log() - q[told])).sum()
                    losses.append(float(0.25 * kl - 0.75 * q[told][label]))
    assert trainer.state.log_history[0]["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert trainer.weight_record.counts.sum() == len(losses)


def test_a_run_that_was_broken_off_resumes_to_what_it_would_have_been(data, tokenizer, teachers, tmp_path):
    kept = {"save_strategy": "steps", "save_steps": 3}
    whole = distilled(tmp_path / "whole", data, tokenizer, teachers, **kept)
    broken = arguments(tmp_path / "broken", **kept)
    first = distilled(tmp_path / "broken", data, tokenizer, teachers, **kept, max_steps=3)
    assert first.state.global_step == 3
    again = DistillationTrainer(
        student(tokenizer),
        broken,
        train_dataset=data,
        processing_class=tokenizer,
        teachers=teachers,
        weighting="uniform",
    )
    again.train(resume_from_checkpoint=True)
    assert torch.equal(parameters(again), parameters(whole))
    assert again.weight_record.counts.sum() == whole.weight_record.counts.sum() == 6 * 8


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"teachers": []}, TeacherError, "at least one teacher, got none"),
        ({"teachers": ["nowhere"]}, TeacherError, "'nowhere' or a hub id, got .* the hub gave none"),
        ({"teachers": 7}, TeacherError, "as teacher 'int', got int"),
        ({"weighting": "router"}, WeightingError, "'router' is fitted on a task, and a trainer has batches"),
        ({"weighting": "oracle"}, WeightingError, "'oracle' is fitted on a task"),
        ({"compute_loss_func": len}, ConfigError, "compute_loss_func would be ignored, got one"),
        ({"label_smoothing_factor": 0.1}, ConfigError, "label_smoothing_factor would be ignored, got 0.1"),
    ],
)
def test_what_cannot_be_is_refused_by_name(change, error, message, data, tokenizer, teachers, tmp_path):
    given = {"teachers": teachers, "weighting": "uniform", "train_dataset": data, "processing_class": tokenizer}
    of_trainer = {name: value for name, value in change.items() if name != "label_smoothing_factor"}
    values = {name: value for name, value in change.items() if name not in of_trainer}
    with pytest.raises(error, match=message):
        DistillationTrainer(student(tokenizer), plain_arguments(tmp_path, **values), **{**given, **of_trainer})


@pytest.mark.parametrize(
    ("says", "message"),
    [
        (lambda n: torch.full((n, 3), torch.nan), "expected finite logits from teacher 'bad', got NaN or infinity"),
        (lambda n: torch.tensor([[0.2, 0.3, 0.5]]).expand(n, 3), "expected logits from teacher 'bad', got probab"),
        (lambda n: torch.zeros(n, 2), "expected logits .* from teacher 'bad'"),
    ],
)
def test_what_are_no_logits_is_not_taught(says, message, data, tokenizer, teachers, tmp_path):
    bad = {"good": teachers[0], "bad": lambda texts: says(len(texts))}
    with pytest.raises(TeacherError, match=message):
        distilled(tmp_path, data, tokenizer, bad, max_steps=1)


def test_the_logged_cross_entropy_is_of_those_that_have_a_label(data, tokenizer, teachers, tmp_path):
    some = data.select(range(8)).map(lambda row: {"label": row["label"] if row["id"] % 4 else -100})
    trainer = distilled(tmp_path, some, tokenizer, teachers, max_steps=1, logging_steps=1, learning_rate=0.0)
    fields = tokenizer(some["text"][:], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = trainer.model.eval()(**fields).logits
    expected = F.cross_entropy(logits, torch.tensor(some["label"][:]))  # which leaves -100 out
    assert trainer.state.log_history[0]["cross_entropy"] == pytest.approx(expected.item(), rel=1e-5)


def test_a_student_without_names_of_classes_is_told_to_have_some(data, tokenizer, teachers, tmp_path):
    nameless = student(tokenizer)
    nameless.config.id2label = {place: f"LABEL_{place}" for place in range(3)}
    with pytest.raises(TeacherError, match="pass id2label where the student is loaded"):
        DistillationTrainer(
            nameless, plain_arguments(tmp_path), train_dataset=data, processing_class=tokenizer, teachers=teachers
        )


def test_a_student_of_regression_is_refused(data, tokenizer, teachers, tmp_path):
    alone = BertForSequenceClassification(
        BertConfig(vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, num_labels=1)
    )
    with pytest.raises((ConfigError, TeacherError), match="classes"):
        DistillationTrainer(
            alone, plain_arguments(tmp_path), train_dataset=data, processing_class=tokenizer, teachers=teachers
        ).train()


def test_settings_can_come_from_the_arguments(data, tokenizer, teachers, tmp_path):
    folders = []
    for place, model in enumerate(teachers[:2]):
        model.save_pretrained(tmp_path / f"t{place}")
        tokenizer.save_pretrained(tmp_path / f"t{place}")
        folders.append(str(tmp_path / f"t{place}"))
    args = arguments(tmp_path / "run", teachers=folders, weighting="entropy")
    trainer = DistillationTrainer(student(tokenizer), args, train_dataset=data, processing_class=tokenizer)
    assert trainer.teachers.names == ("t0", "t1")
    assert trainer.teachers.columns == ()  # their tokens are the student's
    assert trainer.weighting.called.endswith("Entropy")
    trainer.train()


PAGES = [Path(__file__).parent.parent / page for page in ("README.md", "rlkd/trainer/README.md")]
BLOCKS = [block for page in PAGES for block in re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)]


@pytest.mark.filterwarnings("ignore:'pin_memory' argument")  # of plain arguments, where there is no accelerator
def test_the_readme_s_script_is_an_ordinary_one_but_for_two_lines(data, tokenizer, teachers, tmp_path, monkeypatch):
    (script,) = [block for block in BLOCKS if "DistillationTrainer as Trainer" in block]
    lines = [line for line in script.splitlines() if line]
    assert len(lines) <= 25
    ordinary = [line.partition("# was: ")[2] or line for line in lines if "# new" not in line]
    assert len([line for line in lines if line not in ordinary]) == 2
    assert not any("rlkd" in line for line in ordinary)
    monkeypatch.chdir(tmp_path)
    for place, name in enumerate("abc"):
        teachers[place].save_pretrained(f"models/{name}")
        tokenizer.save_pretrained(f"models/{name}")
    network("bert", tokenizer).save_pretrained("models/small")
    tokenizer.save_pretrained("models/small")
    Path("data").mkdir()
    for split in ("train", "test"):
        data.select_columns(["text", "label"]).to_parquet(f"data/{split}.parquet")
    for version in (ordinary, lines):
        run = {}
        exec(compile("\n".join(version), "README.md", "exec"), run)
        assert run["trainer"].state.global_step == 4
        assert Path("runs/student/best/model.safetensors").is_file()
    assert run["trainer"].teachers.names == ("a", "b", "c")


def test_the_readme_s_loop_is_the_trainer_s_loss():
    (script,) = [block for block in BLOCKS if "weighted_distillation_loss(student" in block]
    run = {}
    exec(compile(script, "README.md", "exec"), run)
    logits, teaching = run["student_logits"], run["teacher_logits"]
    state = State(teacher_logits=teaching, sureness=usual_sureness(teaching).expand(32, -1))
    weights = load_weighting("auto").weights(state)
    soft = (weights.unsqueeze(-1) * teaching.softmax(-1)).sum(1)
    expected = F.kl_div(F.log_softmax(logits, -1), soft, reduction="batchmean")
    assert run["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert logits.grad.abs().sum() > 0


def test_of_padded_tokens_only_those_of_the_mask_count():
    generator = torch.Generator().manual_seed(0)
    student_logits, teaching = torch.randn(2, 4, 5, generator=generator), torch.randn(2, 4, 3, 5, generator=generator)
    labels = torch.tensor([[1, -100, 2, 0], [3, 4, -100, -100]])
    mask = torch.tensor([[True, True, True, False], [True, True, False, False]])
    loss = weighted_distillation_loss(student_logits, teaching, Uniform(), labels, mask, kd_ratio=0.5)
    by_hand = []
    for i, j in mask.nonzero().tolist():
        soft = teaching[i, j].double().softmax(-1).mean(0)
        log_q = student_logits[i, j].double().log_softmax(-1)
        certain = 0.0 if labels[i, j] < 0 else -log_q[labels[i, j]].item()
        by_hand.append(0.5 * (soft * (soft.log() - log_q)).sum().item() + 0.5 * certain)
    assert loss.item() == pytest.approx(np.mean(by_hand), rel=1e-5)
    nothing = weighted_distillation_loss(student_logits, teaching, Uniform(), mask=torch.zeros_like(mask))
    assert nothing.item() == 0
    with pytest.raises(WeightingError, match="reads labels, which a loss is not told"):
        weighted_distillation_loss(student_logits, teaching, build("cross_entropy"))
    with pytest.raises(WeightingError, match=r"got \(2, 4, 5\) beside \(2, 4, 3, 4\)"):
        weighted_distillation_loss(student_logits, teaching[..., :4], Uniform())


def build(name):
    return WEIGHTINGS[name].build(None, None)
