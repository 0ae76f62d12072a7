"""Teachers that lie elsewhere: repositories of the hub, and adapters upon a model that is named."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hub import running
from networks import LABELS, network, task_of_texts, tokenizer_for
from safetensors.torch import load_file, save_file
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from rlkd.errors import TeacherError
from rlkd.models import load_teachers, save_hf_teacher, save_sklearn_teacher
from rlkd.trainer import DistillationArguments, DistillationTrainer

TASK = task_of_texts()
QUIET = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "max_steps": 2}


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_for("bert", model_max_length=40)


def adapter(folder, tokenizer, base, *, prompt=False, **config):
    """An adapter with a head of its own upon the network in a folder, and what the two say together."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    beneath = network("bert", tokenizer)
    beneath.load_state_dict(load_file(base / "model.safetensors"))
    if prompt:
        made = peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2)
    else:
        made = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"], **config)
    learned = peft.get_peft_model(beneath, made).eval()
    with torch.no_grad():
        for name, parameter in learned.named_parameters():
            if "lora" in name or "modules_to_save" in name:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    learned.peft_config["default"].base_model_name_or_path = str(base)
    learned.save_pretrained(folder)
    with torch.no_grad():
        inputs = tokenizer(list(TASK.table.texts), padding=True, return_tensors="pt")
        return learned(**inputs).logits


@pytest.fixture(scope="module")
def base(tokenizer, tmp_path_factory):
    """A network whose classes have no names, and its tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    names = {f"LABEL_{place}": place for place in range(3)}
    model = network("bert", tokenizer, label2id=names, id2label={place: name for name, place in names.items()})
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def trainer_of(tokenizer, teachers, folder, **values):
    rows = [{**tokenizer(text), "text": text, "label": row % 3} for row, text in enumerate(TASK.table.texts)]
    learner = network("bert", tokenizer, hidden_size=8, num_hidden_layers=1)
    args = DistillationArguments(str(folder), **QUIET, **values)
    return DistillationTrainer(learner, args, train_dataset=rows, processing_class=tokenizer, teachers=teachers)


def said_live(trainer, tokenizer):
    inputs = dict(tokenizer(list(TASK.table.texts), padding=True, return_tensors="pt"))
    return trainer.teachers.state(inputs, {}, lambda logits: logits).teacher_logits[:, 0]


def asked(teacher):
    return teacher.logits(TASK, np.arange(len(TASK.table)), batch_size=16, max_length=40)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing. is deprecated")  # peft reads transformers' old name
@pytest.mark.parametrize("names", ["teacher.json", "config.json"])
def test_an_adapter_teaches_what_it_and_the_model_beneath_say(names, tokenizer, base, tmp_path):
    """Its classes are named beside it, in another order than the task's and the student's."""
    expected = adapter(tmp_path / "mine", tokenizer, base)[:, [2, 0, 1]]
    turned = [LABELS[k] for k in (1, 2, 0)]
    if names == "teacher.json":
        (tmp_path / "mine" / names).write_text(json.dumps({"name": "mine", "label_names": turned}))
    else:
        config = json.loads((base / names).read_text())
        config["id2label"] = dict(enumerate(turned))
        config["label2id"] = {name: place for place, name in enumerate(turned)}
        (tmp_path / "mine" / names).write_text(json.dumps(config))
    (teacher,) = load_teachers([str(tmp_path / "mine")], TASK, device="cpu")
    torch.testing.assert_close(asked(teacher), expected, rtol=0, atol=1e-4)
    trainer = trainer_of(tokenizer, [str(tmp_path / "mine")], tmp_path / "run")
    assert trainer.teachers.names == ("mine",)
    torch.testing.assert_close(said_live(trainer, tokenizer), expected, rtol=0, atol=1e-4)
    again = load_teachers([str(tmp_path / "mine")], TASK, device="cpu")[0]
    assert again.identity == teacher.identity
    adapter(tmp_path / "mine", tokenizer, base, lora_alpha=3)  # the same weights, more of them
    assert load_teachers([str(tmp_path / "mine")], TASK, device="cpu")[0].identity != teacher.identity


def broken(what, folder, tokenizer, base):
    weights = folder / "adapter_model.safetensors"
    settings = json.loads((folder / "adapter_config.json").read_text())
    if what == "no weights":
        weights.rename(folder / "adapter_model.bin")
    elif what == "part of them":
        held = load_file(weights)
        save_file({name: value for name, value in held.items() if "layer.1." not in name}, weights)
    elif what == "no head":
        held = load_file(weights)
        save_file({name: value for name, value in held.items() if "classifier" not in name}, weights)
        (folder / "bare").mkdir()
        network("bert", tokenizer).bert.save_pretrained(folder / "bare")
        tokenizer.save_pretrained(folder / "bare")
        settings["base_model_name_or_path"] = str(folder / "bare")
    elif what == "other classes":
        (folder / "teacher.json").write_text('{"name": "mine", "label_names": ["earth", "fire"]}')
    elif what == "of nothing":
        settings["base_model_name_or_path"] = None
    elif what == "gone":
        settings["base_model_name_or_path"] = str(folder / "gone")
    elif what == "on no hub":
        settings["base_model_name_or_path"] = "user/base"
    (folder / "adapter_config.json").write_text(json.dumps(settings))


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing. is deprecated", "ignore:.*missing adapter keys")
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no weights", r"expected adapter_model\.safetensors in the adapter .*, got none"),
        ("part of them", "Found missing adapter keys"),
        ("no head", r"'classifier\.bias' is missing, as where the head was not saved"),
        ("other classes", r"of shape \(3,.*\), its classes are earth, fire; name them in label_names of a teacher"),
        ("of nothing", "expected base_model_name_or_path in"),
        ("gone", "a folder that is not there; correct base_model_name_or_path"),
        ("on no hub", "expected the model beneath the adapter .* or a hub id, got 'user/base': no such folder"),
        ("prompt", "expected an adapter of layers, as LoRA is, in .*, got PROMPT_TUNING"),
        ("no peft", "which the library peft reads, and that is not installed: pip install peft"),
        ("no names", "generic names 'LABEL_0'"),
    ],
)
def test_what_is_wrong_with_an_adapter_is_told(what, message, tokenizer, base, tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    adapter(folder, tokenizer, base, prompt=what == "prompt")
    if what != "no names":
        (folder / "teacher.json").write_text(json.dumps({"name": "mine", "label_names": LABELS}))
    broken(what, folder, tokenizer, base)
    if what == "no peft":
        monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(TeacherError, match=message):
        load_teachers([str(folder)], TASK, device="cpu")
    with pytest.raises(TeacherError, match=message):
        trainer_of(tokenizer, [str(folder)], tmp_path / "run")


@pytest.mark.parametrize("name", ["user/none", "none", "user/none/more", "./none", "-x/y"])
def test_a_name_that_is_nowhere_is_told(name, tokenizer, tmp_path):
    by_hub = name in ("user/none", "none")
    with pytest.raises(TeacherError, match="the hub gave none" if by_hub else "which is missing"):
        load_teachers([name], TASK)
    with pytest.raises(TeacherError, match="the hub gave none" if by_hub else f"got '{name}', which is no folder"):
        trainer_of(tokenizer, [name], tmp_path)


def test_two_teachers_of_one_name_are_not_taken_for_one(tokenizer, tmp_path):
    places = []
    for seed, owner in enumerate(("me", "you")):
        torch.manual_seed(seed)
        model = copy.deepcopy(network("bert", tokenizer))
        with torch.no_grad():
            model.classifier.weight.add_(torch.randn_like(model.classifier.weight))
        places.append(str(save_hf_teacher(model, tokenizer, tmp_path / owner / "t", name="t")))
    with pytest.raises(TeacherError, match="different names, got 't' 2 times; pass a mapping"):
        trainer_of(tokenizer, places, tmp_path / "run")
    by_name = trainer_of(tokenizer, dict(zip("ab", places, strict=True)), tmp_path / "run")
    assert by_name.teachers.names == ("a", "b")


SCRIPT = """
import sys
import huggingface_hub, numpy as np, torch
sys.path.insert(0, sys.argv[1])
from test_hub_teachers import TASK, asked, said_live, tokenizer_for, trainer_of
from rlkd.errors import TeacherError
from rlkd.models import load_teachers

tokenizer = tokenizer_for("bert", model_max_length=40)
ids = ["me/network", "me/adapter", "me/counts"]
for offline in (False, True):
    huggingface_hub.constants.HF_HUB_OFFLINE = offline
    teachers = load_teachers(ids, TASK, device="cpu")
    assert [teacher.name for teacher in teachers] == ["network", "adapter", "counts"]
    trainer = trainer_of(tokenizer, ids, "run")
    assert trainer.teachers.names == ("network", "adapter", "counts"), trainer.teachers.names
    trainer.train()
    live = [said_live(trainer_of(tokenizer, one, "run"), tokenizer) for one in ids[:2]]
    np.savez(f"said-{offline}.npz", live=torch.stack(live), asked=torch.stack([asked(one) for one in teachers]))
    for name in ("endpoint", "private"):
        try:
            load_teachers([f"me/{name}"], TASK)
        except TeacherError as error:
            print(error)
"""


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing. is deprecated")
def test_hub_ids_are_teachers_with_the_hub_and_then_without(tokenizer, base, tmp_path):
    """A network, an adapter upon a model that is a repository too, a scikit-learn classifier."""
    with torch.no_grad():
        own = network("bert", tokenizer, num_hidden_layers=1).eval()
        inputs = tokenizer(list(TASK.table.texts), padding=True, return_tensors="pt")
        expected = [own(**inputs).logits, adapter(tmp_path / "adapter", tokenizer, base)]
    save_hf_teacher(own, tokenizer, tmp_path / "network", name="network")
    (tmp_path / "adapter" / "teacher.json").write_text(json.dumps({"name": "adapter", "label_names": LABELS}))
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        json.dumps({**settings, "base_model_name_or_path": "me/base"})
    )
    names = np.array(LABELS)[TASK.table.labels]
    counts = make_pipeline(CountVectorizer(token_pattern=r"\w+"), LogisticRegression()).fit(TASK.table.texts, names)
    save_sklearn_teacher(counts, tmp_path / "counts", name="counts")
    (tmp_path / "endpoint").mkdir()
    (tmp_path / "endpoint" / "endpoint.json").write_text('{"url": "http://127.0.0.1:9/v1", "model": "m"}')
    with running() as hub:
        for name in ("network", "adapter", "counts", "endpoint"):
            files = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
            hub.repos[f"me/{name}"] = files | {"pytorch_model.bin": b"code", "onnx/model.onnx": b"", "x.py": b"code"}
        hub.repos["me/base"] = {path.name: path.read_bytes() for path in base.iterdir()}
        named = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        environment = {**os.environ, **named, "HF_HOME": str(tmp_path / "cache")}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent)]
        run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.count("got 'me/endpoint', which is neither") == 2
    assert run.stdout.count("got 'me/private': no such folder, and the hub gave none") == 2
    for offline in (False, True):
        said = np.load(tmp_path / f"said-{offline}.npz")
        np.testing.assert_allclose(said["live"], torch.stack(expected), atol=1e-4)
        np.testing.assert_allclose(said["asked"][:2], torch.stack(expected), atol=1e-4)
        assert (np.array(LABELS)[said["asked"][2].argmax(-1)] == counts.predict(TASK.table.texts)).all()
    got = [path for path in hub.asked if "/resolve/" in path]
    assert any(path.endswith("adapter_model.safetensors") for path in got)
    assert not [path for path in got if path.endswith((".bin", ".onnx", ".py"))]
