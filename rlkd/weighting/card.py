"""The card of a saved policy: what it is, what it saw, what that was worth, and three lines that use it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlkd.features import ObservationConfig

CARD = """---
{{ card_data }}
---
# A teacher-weighting policy for knowledge distillation

Says for every instance how far each of several teachers is to be trusted. One network, shared over teachers, scores
each of them and pools over the set: it knows no number or order of teachers or classes. Made with [rlkd]; no pickle is
involved, weights are `model.safetensors`.

```python
policy = rlkd.load_weighting("{{ place }}")
{{ use }}
trainer = rlkd.DistillationTrainer.from_task(student, args, task=task, cache=cache, weighting=policy)
```

{{ inputs }}

## What it saw

{{ seen }}

## What it was worth

{{ results }}
"""
READS = {
    "sureness": "how sure each teacher usually is",
    "student_logits": "the student's logits",
    "affinity": "how near the instance is to each teacher's training data",
    "labels": "labels",
    "reliability": "each teacher's accuracy on validation rows",
}
"""What a policy observes beside the teachers' logits, in words."""
UNKNOWN = "Not recorded. `rlkd compare` tells on your own task, with intervals."


def card_parts(record: Mapping[str, Any], observation: ObservationConfig, strength: float) -> dict[str, str]:
    """What the template ``CARD`` is filled with.

    Args:
        record: What is remembered of the training, as a file may hold it: nothing in it is taken for granted.
        observation: What the policy sees.
        strength: Of its actions.
    """
    return {
        "use": _use(observation),
        "inputs": _inputs(observation),
        "seen": "\n".join(["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in _seen(record, observation, strength))]),
        "results": "\n\n".join(_results(record)) or UNKNOWN,
    }


def _use(observation: ObservationConfig) -> str:
    unknown = sorted(observation.requires - {"sureness"})
    if unknown:
        fields = ", ".join(f"{name}={name}" for name in sorted(observation.requires))
        return f"weights = policy.weights(rlkd.State(teacher_logits=logits, {fields}))  # (B, K, C) to (B, K)"
    if observation.relative:
        return "weights = policy.weights(logits, sureness=rlkd.usual_sureness(many_logits))  # (B, K, C) to (B, K)"
    return "weights = policy.weights(logits)  # teachers' logits (B, K, C), numpy or torch, to weights (B, K)"


def _inputs(observation: ObservationConfig) -> str:
    reads = [READS[name] for name in sorted(observation.requires)]
    said = f"It reads teachers' logits and {', '.join(reads)}." if reads else "It reads teachers' logits alone."
    if observation.relative:
        said += " How sure a teacher usually is takes a hundred rows to tell, without labels; a cache has measured it."
    return said


def _seen(record: Mapping[str, Any], observation: ObservationConfig, strength: float) -> Iterator[tuple[str, str]]:
    training = record.get("training")
    training = training if isinstance(training, Mapping) else {}
    rows = {
        "task": record.get("task"),
        "teachers": record.get("teachers_seen"),
        "reward": record.get("reward"),
        "learned from": _lesson(record),
        "algorithm": training.get("algorithm"),
        "instances weighted": training.get("total_timesteps"),
        "features": observation.feature_names,
        "strength": f"{strength:g}" + (" (equal weights)" if strength == 0 else ""),
        "commit of rlkd": record.get("commit"),
    }
    return ((name, _words(value)) for name, value in rows.items() if value not in (None, ""))


def _lesson(record: Mapping[str, Any]) -> str | None:
    lessons = {"labels": "labels: who is right", "gain": "labels: what each teacher gains a student"}
    if record.get("method") == "router":
        return lessons.get(str(record.get("targets")), str(record.get("targets")))
    return None if record.get("reward") is None else "rewards of students"


def _words(value: Any) -> str:
    several = isinstance(value, Sequence) and not isinstance(value, str)
    text = ", ".join(map(str, value)) if several else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _results(record: Mapping[str, Any]) -> Iterator[str]:
    gain = record.get("gain_over_equal")
    if isinstance(gain, Mapping):
        yield (
            f"On labelled validation rows its {gain.get('students')} trial students lose {_lead(gain)} nats less than "
            "the same students with equal weights (below zero: more). They chose its strength too; the test is "
            "`rlkd compare`."
        )
    losses = record.get("strength_losses")
    if isinstance(losses, Mapping) and losses:
        yield _table("strength (0: equal weights)", losses)
    chosen = record.get("chosen")
    if isinstance(chosen, Mapping):
        yield str(chosen.get("why", ""))
        if isinstance(chosen.get("losses"), Mapping) and chosen["losses"]:
            yield _table("candidate", chosen["losses"])


def _lead(gain: Mapping[str, Any]) -> str:
    """A difference with its 95% interval, where there was more than one student."""
    value, low, high = (gain.get(name) for name in ("value", "low", "high"))
    return f"{value}" if low is None else f"{value} [{low}, {high}] (95%)"


def _table(what: str, losses: Mapping[str, Any]) -> str:
    rows = [f"| {_words(name)} | {_words(loss)} |" for name, loss in losses.items()]
    return "\n".join([f"| {what} | trial students' loss on validation, nats |", "|---|---|", *rows])
