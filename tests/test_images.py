"""Images: tasks of pictures or of numbers, networks and estimators that read them, and the plain trainer."""

import io

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from rlkd.agents.prepared import prepare_training
from rlkd.choosing import trial_settings
from rlkd.data import TaskCollection, load_task
from rlkd.data.batching import encode_inputs
from rlkd.data.task import joined_inputs, raw_inputs
from rlkd.errors import ConfigError, RlkdError, StudentError, TaskError, TeacherError
from rlkd.features import ObservationConfig
from rlkd.logit_cache import build_cache, embedding_size, load_cache, read_state
from rlkd.models import load_student, load_teachers, save_hf_teacher, train_teachers
from rlkd.models.students import smallest_student
from rlkd.report.usage import student_lines
from rlkd.settings import FROM_SCRATCH_RATE, PolicyTraining, StudentSettings
from rlkd.trainer import DistillationTrainer, make_trainer
from rlkd.types import Wanted
from rlkd.weighting.fixed import Uniform

NAMES = ("dark", "dull", "bright")
ROWS, SIDE = 60, 8
RNG = np.random.default_rng(0)
COLOUR = np.stack([RNG.integers(80 * (row % 3), 80 * (row % 3) + 90, (SIDE, SIDE, 3)) for row in range(ROWS)])
COLOUR = COLOUR.astype(np.uint8)
GREY = COLOUR[..., 0]
CLASSES = {"id2label": dict(enumerate(NAMES)), "label2id": {name: index for index, name in enumerate(NAMES)}}


def png(pixels):
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "PNG")
    return {"bytes": written.getvalue(), "path": None}


def pictures(arrays, **columns):
    rows = {"image": [png(pixels) for pixels in arrays], "label": [NAMES[row % 3] for row in range(len(arrays))]}
    return datasets.Dataset.from_dict(rows | columns).cast_column("image", datasets.Image())


def numbers(values, **columns):
    return datasets.Dataset.from_dict({"image": values, "label": [NAMES[row % 3] for row in range(ROWS)], **columns})


@pytest.fixture(scope="module")
def task():
    return load_task(pictures(COLOUR))


# --- tasks


def test_pictures_and_numbers_are_the_same_images(task, tmp_path):
    assert task.table.holds == "images"
    assert task.table.images.shape == (ROWS, SIDE, SIDE, 3)
    assert load_task(numbers(COLOUR.tolist())).fingerprint == task.fingerprint
    grey = load_task(pictures(GREY))
    numbers(GREY.reshape(ROWS, -1).tolist()).to_parquet(tmp_path / "train.parquet")  # a flat row is a square
    assert load_task(numbers(GREY.tolist())).fingerprint == grey.fingerprint == load_task(tmp_path).fingerprint
    assert grey.fingerprint != task.fingerprint
    apart = load_task({"train": pictures(COLOUR), "test": pictures(GREY)})  # grey is repeated where others are not
    assert np.array_equal(apart.table.images[apart.splits["test"]], np.repeat(GREY[..., None], 3, axis=-1))
    mixed = load_task(pictures([GREY[0], *COLOUR[1:]]))
    (first,) = np.flatnonzero((mixed.table.images != task.table.images).any((1, 2, 3)))
    assert np.array_equal(mixed.table.images[first], np.repeat(GREY[0][..., None], 3, axis=-1))


def test_models_read_numbers_from_0_to_1(task):
    ids = np.array([4, 1])
    images = task.table.images[ids]
    pixels = encode_inputs(task, None, 1).batch(ids)["pixel_values"]
    assert torch.equal(pixels, torch.from_numpy(images / np.float32(255)).permute(0, 3, 1, 2))
    assert np.array_equal(raw_inputs(task, ids), images / np.float32(255))
    assert np.array_equal(joined_inputs(task, ids), (images / np.float32(255)).reshape(2, -1))
    perceptron, _ = load_student("rlkd/mlp", task)  # images are vectors too
    assert torch.equal(perceptron.eval()(pixel_values=pixels).logits, perceptron(pixels.flatten(1)).logits)


@pytest.mark.parametrize(
    ("data", "options", "told"),
    [
        (numbers(["a.png"] * ROWS), {}, r"row 0 is 'a.png'; for files of pictures use dataset.cast_column"),
        (numbers((COLOUR / 255).tolist()), {}, r"whole numbers from 0 to 255"),
        (numbers((COLOUR.astype(int) + 300).tolist()), {}, r"got 300 to"),
        (numbers(COLOUR.reshape(ROWS, -1).tolist()), {}, r"flat rows of 192, which are no square"),
        (numbers(COLOUR.transpose(0, 3, 1, 2).tolist()), {}, r"got \(3, 8, 8\); put the channels last"),
        (pictures([COLOUR[0][:5], *COLOUR[1:]]), {}, r"one size, got 5 x 8 x 3 and 8 x 8 x 3; resize them"),
        (numbers(COLOUR.tolist(), title=["a"] * ROWS), {}, r"several that may be meant: title, image; name one"),
        (numbers(COLOUR.tolist()), {"image_column": "picture"}, r"must have the column 'picture'.*--image-column"),
    ],
)
def test_what_is_no_image_is_refused_by_name(data, options, told):
    with pytest.raises(TaskError, match=told):
        load_task(data, **options)


def test_a_column_is_chosen_by_name(task):
    both = numbers(COLOUR.tolist(), text=["words"] * ROWS)
    assert load_task(both).table.holds == "text"
    assert load_task(both, image_column="image").fingerprint == task.fingerprint
    with pytest.raises(ConfigError, match="texts or images"):
        load_task(both, image_column="image", text_column="title")


# --- teachers and students of a task


def test_teachers_of_every_kind_teach_a_small_network(task, tmp_path):
    """From training to the lines that load the student; what teachers say is what they say once they are saved."""
    kinds = ["logistic", "random-features", "rlkd/cnn"]
    paths = train_teachers(task, tmp_path, kinds=kinds, epochs=8, batch_size=8, learning_rate=0.01, device="cpu")
    build_cache(load_teachers(paths, task), task, tmp_path / "cache")
    cache = load_cache(tmp_path / "cache", task)
    ids = torch.from_numpy(task.splits["test"])
    right = cache.rows(ids).argmax(-1).numpy() == task.labels("test")[:, None]
    assert right.mean(0).min() > 0.6
    assert embedding_size(task, cache) == 192
    assert read_state(task, cache, ids).embeddings.shape == (len(ids), 192)
    settings = StudentSettings(student=smallest_student(task), max_steps=40, batch_size=16, learning_rate=0.01)
    trainer = make_trainer(task, cache, Uniform(), settings, tmp_path / "student", seed=0)
    trainer.train()
    images = encode_inputs(task, None, 1).batch(task.splits["test"])
    said = trainer.model.eval()(**images).logits
    assert (said.argmax(-1).numpy() == task.labels("test")).mean() > 0.6
    trainer.save_model(tmp_path / "student")
    code = student_lines(tmp_path / "student", 8)[1:]
    loaded = {}
    exec("\n".join(line.strip() for line in code), loaded)
    assert torch.equal(loaded["student"](**images).logits, said)


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda task, folder: train_teachers(task, folder, kinds=["tfidf"]), "'tfidf' read text or vectors, .*images"),
        (lambda task, folder: train_teachers(task, folder, kinds=["rlkd/tiny"]), "choose one of: rlkd/cnn, rlkd/mlp"),
        (lambda task, folder: load_student("rlkd/bilstm", task), "reads text, but task 'data' has images"),
        (lambda task, folder: TaskCollection((task,)), "has images; leave it out"),
        (lambda task, folder: build_cache(teacher(task), task, folder, embedder=len), "affinity embeds texts"),
        (lambda task, folder: inner_states(task), "states of tokens, ViTForImageClassification reads images"),
        (lambda task, folder: load_teachers([vit(0, num_channels=1)], task), "the images of task 'data', of 8 x 8 x 3"),
        (lambda task, folder: load_teachers([vit(0, image_size=12)], task), "one with its image processor"),
    ],
)
def test_what_reads_something_else_is_refused_by_name(task, tmp_path, made, told):
    with pytest.raises(RlkdError, match=told):
        made(task, tmp_path)


def teacher(task):
    return load_teachers([lambda images: images.mean((1, 2))], task)


def inner_states(task):
    return load_teachers([vit(0)], task)[0].inner_states(task, np.arange(2), Wanted(hidden=(1,)), max_length=1)


def test_a_small_network_of_images_stands_in_for_a_pretrained_one(task, tmp_path):
    """Where a policy is trained and where one is chosen, as a BiLSTM does for texts."""
    assert trial_settings(StudentSettings(student="google/vit"), task).student == "rlkd/cnn"
    cache = build_cache(teacher(task), task, tmp_path / "cache")
    prepared = prepare_training(
        task,
        cache,
        student="google/vit",
        reward="logit_gain",
        training=PolicyTraining(n_steps=2, total_timesteps=64),
        observation=ObservationConfig(),
        episode={"horizon": 2, "batch_size": 16},
        device="cpu",
    )
    assert prepared.settings["proxy"] == "rlkd/cnn"
    assert prepared.settings["episode"]["learning_rate"] == FROM_SCRATCH_RATE


# --- networks of transformers


def vit(seed, *, hidden_size=16, image_size=SIDE, num_channels=3):
    torch.manual_seed(seed)
    sizes = {"hidden_size": hidden_size, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    dropouts = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    shape = {"image_size": image_size, "patch_size": 4, "num_channels": num_channels}
    return ViTForImageClassification(ViTConfig(**sizes, **dropouts, **shape, initializer_range=0.3, **CLASSES))


def networks():
    torch.manual_seed(1)
    small = {"hidden_sizes": [8, 8], "depths": [1, 1], **CLASSES}
    return [
        vit(2),
        ResNetForImageClassification(ResNetConfig(embedding_size=8, layer_type="basic", **small)),
        ConvNextForImageClassification(ConvNextConfig(num_stages=2, patch_size=2, **small)),
    ]


@pytest.fixture(scope="module")
def processor():
    return ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}, image_mean=[0.4] * 3, image_std=[0.3] * 3)


def test_a_teacher_reads_a_task_with_its_own_image_processor(task, tmp_path):
    model, own = vit(0, image_size=12), ViTImageProcessorPil(size={"height": 12, "width": 12})
    (given,) = load_teachers([(model, own)], task)
    ids = np.arange(7)
    with torch.no_grad():
        own_order = model(**own(list(task.table.images[ids]), return_tensors="pt")).logits
    expected = own_order[:, [NAMES.index(name) for name in task.label_names]]
    said = given.logits(task, ids, batch_size=3, max_length=1)
    torch.testing.assert_close(said, expected, rtol=0, atol=1e-5)
    save_hf_teacher(model, own, tmp_path / "vit", name="vit")
    (again,) = load_teachers([tmp_path / "vit"], task)
    assert torch.equal(again.logits(task, ids, batch_size=3, max_length=1), said)
    assert again.identity == given.identity
    own.image_mean = [0.1, 0.1, 0.1]
    assert load_teachers([(model, own)], task)[0].identity != given.identity
    _, its = load_student(str(tmp_path / "vit"), task)  # and so does a student
    assert encode_inputs(task, its, 1).batch(ids)["pixel_values"].shape == (7, 3, 12, 12)
    with pytest.raises(TeacherError, match="expected a BaseImageProcessor"):
        load_teachers([(model, object())], task)
    with pytest.raises(StudentError, match="reads images"):
        load_student(str(tmp_path / "vit"), load_task("digits"))


# --- the plain trainer


def arguments(folder, **values):
    quiet = {"use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "seed": 3}
    plain = {"lr_scheduler_type": "constant", "max_grad_norm": 0.0, "optim": "sgd", "learning_rate": 0.1}
    return TrainingArguments(str(folder), **{**quiet, **plain, "max_steps": 5, **values})


def parameters(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


@pytest.fixture(scope="module")
def rows():
    return pictures(COLOUR).cast_column("label", datasets.ClassLabel(names=list(NAMES)))


@pytest.fixture(scope="module")
def pixels(rows, processor):
    return rows.map(lambda row: processor(row["image"]), batched=True, remove_columns="image").with_format("torch")


class ByHand(Trainer):
    """The mean of the teachers, as people write it."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        with torch.no_grad():
            said = [F.softmax(one(inputs["pixel_values"]).logits, -1) for one in self.teachers]
        logits = model(inputs["pixel_values"]).logits
        return F.kl_div(F.log_softmax(logits, -1), torch.stack(said).mean(0), reduction="batchmean")


def test_an_image_script_becomes_a_distillation(rows, pixels, processor, tmp_path):
    """Pictures and a processor, ``pixel_values`` as a column and a collator of one's own are the mean by hand."""
    asked = [one.eval() for one in networks()]
    theirs = ByHand(vit(0, hidden_size=8), arguments(tmp_path), train_dataset=pixels)
    theirs.teachers = asked
    theirs.train()

    def collate(batch):
        made = processor([row["image"] for row in batch], return_tensors="pt")
        return {"pixel_values": made["pixel_values"], "labels": torch.tensor([row["label"] for row in batch])}

    ways = [
        {"train_dataset": rows, "processing_class": processor},
        {"train_dataset": pixels},
        {"train_dataset": rows, "data_collator": collate, "args": arguments(tmp_path, remove_unused_columns=False)},
    ]
    for way in ways:
        options = {"args": arguments(tmp_path), **way}
        ours = DistillationTrainer(vit(0, hidden_size=8), teachers=asked, weighting="uniform", **options)
        ours.train()
        torch.testing.assert_close(parameters(ours), parameters(theirs), rtol=0, atol=1e-6)
        assert ours.predict(way["train_dataset"]).predictions.shape == (ROWS, 3)


def test_estimators_paths_and_caches_teach_images(task, rows, pixels, processor, tmp_path):
    flat = pixels["pixel_values"][:].reshape(ROWS, -1).numpy()
    estimator = LogisticRegression().fit(flat, rows["label"][:])
    save_hf_teacher(vit(4), processor, tmp_path / "vit", name="vit")
    given = {"estimator": estimator, "vit": str(tmp_path / "vit")}
    trainer = DistillationTrainer(
        vit(0),
        arguments(tmp_path),
        train_dataset=rows,
        processing_class=processor,
        teachers=given,
        weighting="policy:auto",
    )
    batch = trainer.data_collator([rows[0], rows[1]])
    said = trainer.teachers.state({"pixel_values": batch["pixel_values"]}, {}, lambda logits: logits).teacher_logits
    torch.testing.assert_close(said[:, 0].softmax(-1), torch.tensor(estimator.predict_proba(flat[:2])).float())
    torch.testing.assert_close(said[:, 1], vit(4).eval()(batch["pixel_values"]).logits.detach())
    trainer.train()
    other = ViTImageProcessorPil(size={"height": SIDE, "width": SIDE})
    with pytest.raises(TeacherError, match=r"'vit' and the student read one batch .* build a cache"):
        DistillationTrainer(
            vit(0), arguments(tmp_path), train_dataset=rows, processing_class=other, teachers={"vit": given["vit"]}
        )
    cache = build_cache({"mean": lambda images: images.mean((1, 2))}, task, tmp_path / "cache")
    numbered = rows.add_column("id", list(range(ROWS)))
    cached = DistillationTrainer(
        vit(0), arguments(tmp_path), train_dataset=numbered, processing_class=processor, teachers=cache
    )
    cached.train()
    assert cached.weight_record.counts.sum() == 5 * 8
