"""Small encoders from scratch with a large one's tokens and number of heads, and fewer, narrower layers."""

from pathlib import Path

from transformers import AutoModelForSequenceClassification, PreTrainedConfig

from rlkd.data.task import Task
from rlkd.errors import StudentError, one_line
from rlkd.models.networks import load_config, load_tokenizer, quiet_transformers
from rlkd.models.students import label_maps, seeded_weights
from rlkd.models.teacher_files import write_hf


def save_small_encoder(
    name: str, task: Task, folder: str | Path, *, num_layers: int, hidden_size: int, seed: int = 0
) -> Path:
    """Make a classifier of a large encoder's kind with random weights, and save it with that encoder's tokenizer.

    Args:
        name: Hub id or path of the large encoder.
        task: Gives the classes.
        folder: Where it is saved; a student of that path starts from it.
        num_layers: Layers; for feature losses they must divide the large encoder's.
        hidden_size: Width of the hidden states, a multiple of the number of heads; the feed-forward layers keep their
            ratio to it.
        seed: Of the weights.

    Returns:
        The folder.

    Raises:
        StudentError: The encoder cannot be loaded, or the sizes do not fit it.
    """
    with quiet_transformers(), seeded_weights(seed):
        config, tokenizer = small_config(name, num_layers=num_layers, hidden_size=hidden_size), load_tokenizer(name)
        for key, value in label_maps(task.label_names).items():
            setattr(config, key, value)
        model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    path = Path(folder)
    write_hf(model, tokenizer, path)
    return path


def small_config(name: str, *, num_layers: int, hidden_size: int) -> PreTrainedConfig:
    """Configuration of :func:`save_small_encoder`'s network; raises what that raises."""
    try:
        config = load_config(name)
        load_tokenizer(name)
    except (OSError, ValueError) as error:
        raise StudentError(
            f"expected an encoder with a tokenizer at {name!r}: {one_line(error)}; pass another"
        ) from error
    heads, layers = config.num_attention_heads, config.num_hidden_layers
    if hidden_size < heads or hidden_size % heads or not 1 <= num_layers <= layers:
        raise StudentError(
            f"a small copy of {name!r} needs a hidden_size that is a multiple of its {heads} heads and 1 to "
            f"{layers} layers, got {hidden_size} and {num_layers}; change them"
        )
    config.intermediate_size = config.intermediate_size * hidden_size // config.hidden_size
    config.hidden_size, config.num_hidden_layers, config.dtype = hidden_size, num_layers, "float32"
    return config
