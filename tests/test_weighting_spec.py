"""A weighting's name, parsed: its forms, what it is called in tables, what it is known by, and what is refused."""

import pickle
from pathlib import Path

import pytest

from rlkd.errors import RlkdError, UnknownNameError, WeightingError
from rlkd.features import ObservationConfig
from rlkd.weighting import WEIGHTINGS, Policy, WeightingSpec, weighting_names
from rlkd.weighting.controls import PolicyMean

OWN = "class Mine:\n    build = weights = None\nclass Idle:\n    build = None\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with two policies, one of which is called as a weighting is, and a module with a weighting."""
    for seed, name in enumerate(("saved", "entropy")):
        Policy.create(ObservationConfig(), training={}, seed=seed).save_pretrained(tmp_path / name)
    (tmp_path / "own_for_spec.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


FORMS = {  # name, argument, reads the weights of "saved"
    **{name: (name, None, False) for name in weighting_names() if name != "auto"},  # "entropy" is a folder too
    "auto": ("auto", "auto", True),  # the policy that is shipped
    "policy_shuffle:auto": ("policy_shuffle", "auto", True),
    "uniform:": ("uniform", None, False),
    "fixed:0.5,0.5": ("fixed", "0.5,0.5", False),
    "policy:saved": ("policy", "saved", True),
    "policy_mean:./saved": ("policy_mean", "./saved", True),
    "policy:someone/policy": ("policy", "someone/policy", False),
    "policy:C:/x": ("policy", "C:/x", False),
    "saved": ("policy", "saved", True),
    "./saved": ("policy", "./saved", True),
    "own_for_spec:Mine": ("own_for_spec:Mine", None, False),
}


@pytest.mark.parametrize("text", FORMS)
def test_forms(text: str) -> None:
    name, argument, reads = FORMS[text]
    spec = WeightingSpec.parse(text)
    assert spec == WeightingSpec(text, name, argument)
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert spec.builder is WEIGHTINGS.get(name, spec.builder)
    learned = spec.learned()
    assert (learned is not None) == reads
    assert spec.identity() == (f"{name}:{learned}" if reads else text)


def test_builders_and_content() -> None:
    assert WeightingSpec.parse("policy_mean:saved").builder is PolicyMean
    assert vars(WeightingSpec.parse("own_for_spec:Mine").builder)["__module__"] == "own_for_spec"
    assert WeightingSpec.parse("saved").identity() == WeightingSpec.parse("policy:./saved").identity()
    assert WeightingSpec.parse("./entropy").identity() != WeightingSpec.parse("saved").identity()


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("entropi", UnknownNameError, "unknown weighting 'entropi'; did you mean 'entropy'. choose one of: ae"),
        ("nowhere/policy", UnknownNameError, "unknown weighting 'nowhere/policy'"),
        ("no-module:Name", UnknownNameError, "unknown weighting 'no-module:Name'"),
        ("polcy:saved", WeightingError, "'polcy:saved' could not be imported: .*did you mean 'policy'. name one of ae"),
        ("own_for_spec:Other", WeightingError, "'own_for_spec:Other' could not be imported: .*Other"),
        ("own_for_spec:Idle", WeightingError, "'own_for_spec:Idle' needs the methods build and weights"),
    ],
)
def test_what_is_no_weighting_is_refused(text: str, error: type[RlkdError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        WeightingSpec.parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("texts", "names"),
    [
        (["policy:saved", "fixed:1,0"], ["policy", "fixed:1,0"]),
        (["saved", "policy_mean:saved"], ["policy", "policy_mean"]),
        (["saved", "policy:entropy"], ["saved", "policy:entropy"]),
        (["policy:auto", "policy:saved", "auto"], ["policy:auto", "policy", "auto"]),
        (
            ["max_probability:2", "own_for_spec:Mine", "router:knows"],
            ["max_probability:2", "own_for_spec:Mine", "router:knows"],
        ),
    ],
)
def test_tables_name_the_path_only_where_it_tells_policies_apart(texts: list[str], names: list[str]) -> None:
    specs = [WeightingSpec.parse(text) for text in texts]
    assert [spec.short_name(specs) for spec in specs] == names
