"""How a student that was distilled is loaded: lines of Python, made from the files that were written."""

from pathlib import Path

from rlkd.records import read_object

OWN = "rlkd-"
"""Begins the model types that transformers does not know until ``rlkd.models`` is imported."""
_TOKENIZER = "tokenizer_config.json"


def student_lines(folder: str | Path, max_length: int) -> list[str]:
    """Say where a student lies, and how Python loads it: plain transformers, or that and one import.

    Args:
        folder: Of the saved student.
        max_length: Tokens that texts were cut to in its training.

    Returns:
        A sentence, and lines of code that are indented by two blanks.
    """
    place = Path(folder)
    kind = str(read_object(place / "config.json")["model_type"])
    own = [f"import rlkd.models  # makes {kind} known to transformers"] if kind.startswith(OWN) else []
    if (place / _TOKENIZER).is_file():
        code = [
            "from transformers import pipeline",
            f"student = pipeline('text-classification', {str(folder)!r}, truncation=True, max_length={max_length})",
        ]
    else:
        code = [
            "from transformers import AutoModelForSequenceClassification",
            f"student = AutoModelForSequenceClassification.from_pretrained({str(folder)!r})  # of input_values",
        ]
    return [f"The student is in {folder}. To use it:", *(f"  {line}" for line in [*own, *code])]
