"""Torn lines, killed writers, damaged files and directories that must not be deleted."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from rlkd import records
from rlkd.errors import ConfigError, OutputDirectoryError, RlkdError
from rlkd.records import (
    Finished,
    RunDirectory,
    append_jsonl,
    commit,
    digest,
    environment,
    file_hash,
    finished,
    newest_verified,
    once,
    prepare_output_dir,
    read_jsonl,
    source,
    verify_manifest,
    write_array_atomic,
    write_json_atomic,
    write_manifest,
    write_text_atomic,
)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def checkpoint(directory: Path, payload: bytes = b"weights") -> Path:
    (directory / "inner").mkdir(parents=True)
    (directory / "model.bin").write_bytes(payload)
    (directory / "inner" / "state.json").write_text("{}")
    write_manifest(directory)
    return directory


def test_text_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    write_text_atomic(tmp_path / "a.txt", "old")
    write_text_atomic(tmp_path / "a.txt", "new é")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "new é"
    assert names(tmp_path) == ["a.txt"]


def test_a_failed_write_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text_atomic(tmp_path / "a.txt", "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputDirectoryError, match="No space left"):
        write_text_atomic(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_arrays_come_back_and_objects_are_refused(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float16).reshape(2, 3)
    write_array_atomic(tmp_path / "a.npy", array)
    found = np.load(tmp_path / "a.npy", allow_pickle=False)
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, array)
    with pytest.raises(RlkdError, match="dtype object"):
        write_array_atomic(tmp_path / "a.npy", np.array([object()]))
    assert names(tmp_path) == ["a.npy"]


def test_json_takes_numpy_paths_and_sets(tmp_path: Path) -> None:
    value = {
        "a": np.float32(0.5),
        "b": np.arange(2),
        "c": Path("x"),
        "d": {"z", "y"},
        "e": (1, None),
        "f": "\ud800",
    }
    write_json_atomic(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text()) == {
        "a": 0.5, "b": [0, 1], "c": "x", "d": ["y", "z"], "e": [1, None], "f": "\ud800",
    }  # fmt: skip


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), np.float64("nan")])
def test_json_refuses_nan_by_name(tmp_path: Path, bad: float) -> None:
    with pytest.raises(RlkdError, match=r"student\.loss\[1\]"):
        write_json_atomic(tmp_path / "a.json", {"student": {"loss": [1.0, bad]}})
    assert names(tmp_path) == []
    with pytest.raises(RlkdError, match="got object"):
        write_json_atomic(tmp_path / "a.json", {"x": object()})


def test_lines_come_back_and_nan_is_null(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    assert read_jsonl(path) == []
    append_jsonl(path, {"step": 1, "loss": float("nan")})
    append_jsonl(path, {"step": 2, "text": "two\nlines"})
    assert read_jsonl(path) == [{"step": 1, "loss": None}, {"step": 2, "text": "two\nlines"}]
    assert path.read_bytes().count(b"\n") == 2


def test_every_tear_of_the_last_line_heals(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    lines = [b'{"step": 1}\n', b'{"step": 2, "x": {"y": 12}}\n']
    for cut in range(len(lines[1]) + 1):
        path.write_bytes(lines[0] + lines[1][:cut])
        survives = [{"step": 2, "x": {"y": 12}}] if cut >= len(lines[1]) - 1 else []
        assert read_jsonl(path) == [{"step": 1}, *survives]
        append_jsonl(path, {"step": 3})
        assert read_jsonl(path) == [{"step": 1}, *survives, {"step": 3}]
        assert path.read_bytes().endswith(b'}\n{"step": 3}\n')


def test_a_long_torn_line_heals(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b": "' + b"x" * 200_000)
    append_jsonl(path, {"c": 1})
    assert read_jsonl(path) == [{"a": 1}, {"c": 1}]


@pytest.mark.parametrize("bad", [b"{torn", b"[1]", b'{"a": NaN}', b"\xff\xfe", b"[" * 100_000])
def test_an_unreadable_middle_line_is_named(tmp_path: Path, bad: bytes) -> None:
    (tmp_path / "m.jsonl").write_bytes(b'{"a": 1}\n\n' + bad + b'\n{"b": 1}\n')
    with pytest.raises(OutputDirectoryError, match="line 3"):
        read_jsonl(tmp_path / "m.jsonl")


def test_a_short_write_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.jsonl"
    append_jsonl(path, {"a": 1})
    before = path.read_bytes()
    write = os.write
    monkeypatch.setattr("os.write", lambda fd, data: write(fd, data[:5]))
    with pytest.raises(OutputDirectoryError, match="only 5 of"):
        append_jsonl(path, {"b": 2})
    assert path.read_bytes() == before


def test_processes_append_whole_lines(tmp_path: Path) -> None:
    code = (
        "import sys; from rlkd.records import append_jsonl\n"
        "for i in range(100): append_jsonl(sys.argv[1], {'who': sys.argv[2], 'i': i, 'pad': 'x' * 3000})"
    )
    path = tmp_path / "m.jsonl"
    workers = [subprocess.Popen([sys.executable, "-c", code, str(path), str(w)]) for w in range(2)]
    assert [worker.wait() for worker in workers] == [0, 0]
    found = read_jsonl(path)
    for worker in "01":
        assert [record["i"] for record in found if record["who"] == worker] == list(range(100))


def test_hash_is_xxh3_of_64_bits(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    # The published XXH3_64bits value of the empty input with seed 0.
    assert file_hash(tmp_path / "empty") == "2d06800538d394c2"


def test_manifest_names_every_file(tmp_path: Path) -> None:
    directory = checkpoint(tmp_path / "c")
    manifest = json.loads((directory / "manifest.json").read_text())
    assert manifest["format_version"] == 1
    assert list(manifest["files"]) == ["inner/state.json", "model.bin"]
    assert manifest["files"]["model.bin"]["size"] == 7
    assert verify_manifest(directory)
    (directory / "unlisted").write_text("")
    assert verify_manifest(directory)
    assert not verify_manifest(tmp_path / "absent")


def test_every_truncation_and_bit_flip_is_found(tmp_path: Path) -> None:
    directory = checkpoint(tmp_path / "c", bytes(range(64)))
    rng = random.Random(0)
    for name in ("model.bin", "inner/state.json", "manifest.json"):
        path = directory / name
        whole = path.read_bytes()
        for size in {0, 1, len(whole) // 2, len(whole) - 1}:
            path.write_bytes(whole[:size])
            assert not verify_manifest(directory), (name, size)
        bits = range(8 * len(whole))
        for bit in rng.sample(bits, min(300, len(bits))):
            flipped = bytearray(whole)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            assert not verify_manifest(directory), (name, bit)
        path.write_bytes(whole)
        assert verify_manifest(directory)
        path.unlink()
        assert not verify_manifest(directory)
        path.write_bytes(whole)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "", ".", "link", "a\0b", "inner/../model.bin"])
def test_a_manifest_cannot_point_outside(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("x")
    directory = tmp_path / "c"
    (directory / "inner").mkdir(parents=True)
    (directory / "model.bin").write_text("x")
    (directory / "link").symlink_to(tmp_path / "secret")
    entry = {"size": 1, "xxh3": file_hash(tmp_path / "secret")}
    document = {"format_version": 1, "files": {name: entry}}
    (directory / "manifest.json").write_text(json.dumps(document, indent=2) + "\n")
    assert not verify_manifest(directory)
    with pytest.raises(OutputDirectoryError, match="link"):
        write_manifest(directory)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": 3}', "[" * 100_000, '{"files": {"a": NaN}}', "\xff"])
def test_hostile_manifests_do_not_verify(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_bytes(text.encode("latin-1"))
    assert not verify_manifest(tmp_path)


def test_newest_is_by_number_and_verified(tmp_path: Path) -> None:
    assert newest_verified(tmp_path / "absent") is None
    for number in (9, 10, 100):
        checkpoint(tmp_path / f"checkpoint-{number}")
    checkpoint(tmp_path / "checkpoint-7.tmp-500")
    (tmp_path / "checkpoint-200").mkdir()
    (tmp_path / "checkpoint-300").write_text("a file")
    assert newest_verified(tmp_path) == tmp_path / "checkpoint-100"
    (tmp_path / "checkpoint-100" / "model.bin").write_bytes(b"weighty")
    assert newest_verified(tmp_path) == tmp_path / "checkpoint-10"
    assert newest_verified(tmp_path, "step-*") is None
    with pytest.raises(ConfigError, match="one '\\*'"):
        newest_verified(tmp_path, "checkpoint-10")


WRITER = """
import sys
from pathlib import Path
from typing import Any
from rlkd.records import append_jsonl, newest_verified, write_manifest
root = Path(sys.argv[1])
newest = newest_verified(root)
number = 0 if newest is None else int(newest.name.split("-")[1])
print("ready", flush=True)
while True:
    number += 1
    directory = root / f"checkpoint-{number}"
    directory.mkdir(exist_ok=True)
    for part in range(4):
        (directory / f"part-{part}").write_bytes(f"{number} {part} ".encode() * 20_000)
    write_manifest(directory)
    append_jsonl(root / "log.jsonl", {"number": number})
"""


def test_a_killed_writer_leaves_a_checkpoint_that_verifies(tmp_path: Path) -> None:
    rng = random.Random(0)
    reached = 0
    for _ in range(6):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(rng.uniform(0.02, 0.15))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        logged = [record["number"] for record in read_jsonl(tmp_path / "log.jsonl")]
        if not logged:
            continue
        newest = newest_verified(tmp_path)
        assert newest is not None
        number = int(newest.name.split("-")[1])
        # What was logged had been sealed before.
        assert number >= logged[-1]
        assert (newest / "part-3").read_bytes() == f"{number} 3 ".encode() * 20_000
        reached = number
    assert reached > 0


# --- finished folders and keys


class Killed(BaseException):
    pass


def make_parts(folder: Path, calls: list[int]) -> dict[str, Any]:
    calls.append(1)
    (folder / "inner").mkdir(exist_ok=True)
    for name in ("first", "inner/second"):
        write_text_atomic(folder / name, name)
    return {"seconds": 1.5}


@pytest.mark.parametrize("whole", [False, True])
def test_a_folder_is_finished_when_all_of_it_is_there_and_not_before(
    tmp_path: Path, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before each rename and each sync; then made, once."""
    for last in range(100):
        folder, calls, steps = tmp_path / f"{whole}-{last}", [], iter(range(100))
        make = partial(make_parts, folder, calls)

        def killed(real: Any, *args: Any, steps: Any = steps, last: int = last) -> None:
            if next(steps) == last:
                raise Killed
            real(*args)

        with monkeypatch.context() as patch:
            for name in ("replace", "fsync"):
                patch.setattr(os, name, partial(killed, getattr(os, name)))
            try:
                once(folder, "key", make, whole=whole)
                break
            except Killed:
                pass
        marked = finished(folder)
        if marked is not None:
            assert marked == Finished("key", {"seconds": 1.5})
            assert (folder / "inner" / "second").read_text() == "inner/second"
        (folder / "leftover").write_text("")
        for _ in range(2):
            assert once(folder, "key", make, whole=whole) == {"seconds": 1.5}
        assert len(calls) == (2 if marked is None else 1)
        left = {"leftover"} if marked is not None or not whole else set()
        sealed = {"manifest.json"} if whole else set()
        assert {*names(folder)} - {".making.tmp"} == {"done.json", "first", "inner", *left, *sealed}
    assert last > 8


def test_a_folder_that_was_made_of_something_else_is_told(tmp_path: Path) -> None:
    once(tmp_path / "made", "this", dict)
    with pytest.raises(OutputDirectoryError, match=r"other settings or data .* that, got this; choose another"):
        once(tmp_path / "made", "that", dict)


def test_a_sealed_folder_that_is_damaged_is_made_again(tmp_path: Path) -> None:
    calls: list[int] = []
    for damage in ("", "first", "manifest.json"):
        if damage:
            (tmp_path / damage).unlink()
            assert finished(tmp_path) is None
        once(tmp_path, "key", lambda: make_parts(tmp_path, calls), whole=True)
    assert len(calls) == 3


def test_two_programs_make_a_folder_once(tmp_path: Path) -> None:
    calls: list[int] = []

    def make() -> dict[str, Any]:
        time.sleep(0.05)
        return make_parts(tmp_path, calls)

    threads = [threading.Thread(target=once, args=(tmp_path, "key", make)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert names(tmp_path) == ["done.json", "first", "inner"]


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"done.json": {"seconds": 2, "path": "router"}}, Finished(None, {"seconds": 2, "path": "router"})),
        ({"result.json": {"rows": []}}, Finished(None, {"rows": []})),
        (
            {"teacher.json": {"name": "a", "settings": "key", "metrics": {"seconds": 3}}},
            Finished("key", {"seconds": 3}),
        ),
        ({"teacher.json": {"name": "of a person"}}, Finished("", {})),
        ({"stage.json": {"made_of": "key"}}, None),  # whose manifest a kill prevented
        ({"README.md": {}, "model.safetensors": {}, "config.json": {}}, Finished(None, {})),
        ({"model.safetensors": {}, "config.json": {}}, None),
    ],
)
def test_what_an_earlier_release_finished_is_finished(
    tmp_path: Path, files: dict[str, Any], found: Finished | None
) -> None:
    for name, content in files.items():
        write_json_atomic(tmp_path / name, content)
    assert finished(tmp_path) == found


def test_a_model_that_an_earlier_release_sealed_is_finished_while_it_is_whole(tmp_path: Path) -> None:
    directory, done = checkpoint(tmp_path / "c"), {"made_of": "key", "steps": 3}
    write_json_atomic(directory / "stage.json", done)
    write_manifest(directory)
    assert finished(directory) == Finished("key", done)
    (directory / "model.bin").write_bytes(b"weighty")
    assert finished(directory) is None


def test_keys_are_those_of_the_records_and_folders_on_disk() -> None:
    content = {"b": 1, "a": [0.5, None]}
    sorted_text, text = b'{"a": [0.5, null], "b": 1}', b'{"b": 1, "a": [0.5, null]}'
    assert digest(content) == xxhash.xxh3_64_hexdigest(sorted_text)[:8]
    assert digest(content, 16, in_order=True) == xxhash.xxh3_64_hexdigest(text)
    assert digest(content, 16, algorithm="sha256") == hashlib.sha256(sorted_text).hexdigest()[:16]
    assert digest(content, 12, algorithm="sha256", in_order=True) == hashlib.sha256(text).hexdigest()[:12]


def test_output_directory_is_created_with_parents(tmp_path: Path) -> None:
    for resume in (True, False):
        assert prepare_output_dir(tmp_path / str(resume) / "b", resume=resume, overwrite=not resume).is_dir()


def test_a_directory_in_use_is_refused_and_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(OutputDirectoryError, match=r"resume expected a run .* no environment\.json but config"):
        prepare_output_dir(tmp_path, resume=True, overwrite=False)
    (tmp_path / "environment.json").write_text("{}")
    with pytest.raises(OutputDirectoryError, match=r"environment\.json; pass resume .* overwrite"):
        prepare_output_dir(tmp_path, resume=False, overwrite=False)
    with pytest.raises(ConfigError, match="got both"):
        prepare_output_dir(tmp_path, resume=True, overwrite=True)
    with pytest.raises(OutputDirectoryError, match="got a file"):
        prepare_output_dir(tmp_path / "config.json", resume=False, overwrite=False)
    prepare_output_dir(tmp_path, resume=True, overwrite=False)
    assert names(tmp_path) == ["config.json", "environment.json"]


def test_overwrite_empties_a_run(tmp_path: Path) -> None:
    checkpoint(tmp_path / "run" / "checkpoint-1")
    (tmp_path / "run" / "environment.json").write_text("{}")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep").write_text("")
    (tmp_path / "run" / "link").symlink_to(outside)
    prepare_output_dir(tmp_path / "run", resume=False, overwrite=True)
    assert names(tmp_path / "run") == []
    assert names(outside) == ["keep"]


def test_overwrite_deletes_nothing_that_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    thesis = tmp_path / "home" / "thesis"
    thesis.mkdir(parents=True)
    (thesis / "chapter.tex").write_text("")
    with pytest.raises(OutputDirectoryError, match=r"chapter\.tex"):
        prepare_output_dir(thesis, resume=False, overwrite=True)
    (thesis / "config.json").write_text("{}")  # as a saved model has
    with pytest.raises(OutputDirectoryError, match=r"no environment\.json but chapter\.tex, config\.json"):
        prepare_output_dir(thesis, resume=False, overwrite=True)
    (thesis / "environment.json").write_text("{}")
    (thesis / ".git").mkdir()
    with pytest.raises(OutputDirectoryError, match="git"):
        prepare_output_dir(thesis, resume=False, overwrite=True)
    (thesis / ".git").rmdir()
    (tmp_path / "link").symlink_to(thesis)
    with pytest.raises(OutputDirectoryError, match="symbolic link"):
        prepare_output_dir(tmp_path / "link", resume=False, overwrite=True)
    monkeypatch.chdir(thesis)
    with pytest.raises(OutputDirectoryError, match="work in"):
        prepare_output_dir(thesis, resume=False, overwrite=True)
    assert names(thesis) == ["chapter.tex", "config.json", "environment.json"]


def test_environment_is_plain_and_complete() -> None:
    found = environment()
    assert set(found["versions"]) == set(records.PACKAGES)
    assert found["versions"]["numpy"] == np.__version__
    assert found["commit"] == commit()
    assert found["commit"] is None or len(found["commit"]) == 40
    json.dumps(found)


def test_environment_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert environment()["commit"] is None
    assert environment()["source"] == source()  # what stands for it


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *who, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def checkout_and_installed(tmp_path: Path) -> tuple[Path, Path]:
    """A committed copy of our sources, and the same files as pip installs them from it."""
    root = Path(records.__file__).parents[2]
    checkout, site = tmp_path / "clone", tmp_path / "site"
    only_sources = shutil.ignore_patterns("__pycache__")
    for name, folder in (("rlkd", root / "rlkd"), ("envs", root / "envs")):
        shutil.copytree(folder, checkout / name, ignore=only_sources)
        shutil.copytree(folder, site / {"envs": "rlkd_envs"}.get(name, name), ignore=only_sources)
    git(checkout, "init", "-q")
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "all")
    told = site / "rlkd-0.1.0.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: rlkd\nVersion: 0.1.0\n")
    (told / "direct_url.json").write_text(json.dumps({"url": checkout.as_uri(), "dir_info": {}}))
    return checkout, site


def environment_of(site: Path) -> dict[str, Any]:
    """What a process says that runs the package in a folder."""
    code = "import json; from rlkd.records import environment; print(json.dumps(environment()))"
    told = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", code], env=told, cwd=site, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_an_installed_package_names_the_commit_it_was_installed_from(checkout_and_installed: tuple[Path, Path]) -> None:
    checkout, site = checkout_and_installed
    found = environment_of(site)
    assert (found["commit"], found["dirty"]) == (git(checkout, "rev-parse", "HEAD"), False)
    assert found["source"] == source()
    moved_on = checkout / "rlkd" / "losses" / "classes.py"
    moved_on.write_text(moved_on.read_text() + "\n")
    git(checkout, "commit", "-qam", "more")
    found = environment_of(site)
    assert (found["commit"], found["source"]) == (None, source())  # of neither the one commit nor the other


def test_without_git_the_source_files_say_which_code_ran(checkout_and_installed: tuple[Path, Path]) -> None:
    checkout, site = checkout_and_installed
    shutil.rmtree(checkout / ".git")
    found = environment_of(site)
    assert (found["commit"], found["source"]) == (None, source())
    changed = site / "rlkd_envs" / "rewards.py"
    changed.write_text(changed.read_text().replace("0", "1", 1))
    assert environment_of(site)["source"] != source()


def test_run_directory_records_and_reads_back(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run", {"seed": 1, "student": {"layers": (2, 3)}})
    run.log(1, **{"student/loss": 0.5, "teacher/weights": np.array([0.25, 0.75])})
    run.log(2, **{"student/loss": float("nan")})
    assert names(run.path) == ["config.json", "environment.json", "metrics.jsonl"]
    assert json.loads((run.path / "config.json").read_text()) == {"seed": 1, "student": {"layers": [2, 3]}}
    assert run.metrics() == [
        {"step": 1, "student/loss": 0.5, "teacher/weights": [0.25, 0.75]},
        {"step": 2, "student/loss": None},
    ]
    with pytest.raises(ConfigError, match="'loss'"):
        run.log(3, loss=1.0)


def test_resume_names_the_setting_that_differs(tmp_path: Path) -> None:
    config = {"seed": 1, "student": {"layers": [2], "width": 8}, "num_workers": 0}
    first = RunDirectory(tmp_path, config)
    assert not first.resumed
    assert RunDirectory(tmp_path, {**config, "num_workers": 4}).resumed
    with pytest.raises(OutputDirectoryError, match=r"started with student\.width = 8, got 9"):
        RunDirectory(tmp_path, {**config, "student": {"layers": [2], "width": 9}})
    with pytest.raises(OutputDirectoryError, match="seed = 1, got nothing"):
        RunDirectory(tmp_path, {key: value for key, value in config.items() if key != "seed"})
    with pytest.raises(OutputDirectoryError, match="num_workers"):
        RunDirectory(tmp_path, {**config, "num_workers": 4}, harmless=())
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(OutputDirectoryError, match="JSON object"):
        RunDirectory(tmp_path, config)


def test_rewind_drops_what_comes_again(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, {})
    for step in range(5):
        run.log(step, **{"student/loss": float(step)})
    before = run.metrics_path.read_bytes()
    run.rewind(2)
    assert [record["step"] for record in run.metrics()] == [0, 1, 2]
    for step in (3, 4):
        run.log(step, **{"student/loss": float(step)})
    assert run.metrics_path.read_bytes() == before
