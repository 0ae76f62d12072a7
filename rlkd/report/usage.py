"""How a student that was distilled is loaded: lines of Python, made from the files that were written."""

from pathlib import Path

from rlkd.records import read_object

OWN = "rlkd-"
"""Begins the model types that transformers does not know until rlkd is imported."""
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
    config = read_object(place / "config.json")
    kind = str(config["model_type"])
    own = [f"import rlkd  # makes {kind} known to transformers"] if kind.startswith(OWN) else []
    if (place / _TOKENIZER).is_file():
        code = [
            "from transformers import pipeline",
            f"student = pipeline('text-classification', {str(folder)!r}, truncation=True, max_length={max_length})",
        ]
    else:
        images = any("ForImageClassification" in name for name in config.get("architectures") or ())
        auto = "AutoModelForImageClassification" if images else "AutoModelForSequenceClassification"
        told = "pixel_values, as your image processor or pixels / 255 give them" if images else "input_values"
        code = [f"from transformers import {auto}", f"student = {auto}.from_pretrained({str(folder)!r})  # of {told}"]
    return [f"The student is in {folder}. To use it:", *(f"  {line}" for line in [*own, *code])]
