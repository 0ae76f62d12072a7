"""The tokenizer of students that are trained from scratch."""

from collections.abc import Iterable

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from rlkd.data.task import Task

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def train_tokenizer(texts: Iterable[str], vocab_size: int = 8000, max_length: int = 512) -> PreTrainedTokenizerFast:
    """Train a lower-casing tokenizer of words and punctuation marks; equal texts give equal tokenizers.

    Args:
        texts: Training texts.
        vocab_size: Largest vocabulary, the four special tokens included.
        max_length: Longest sequence, in tokens.

    Returns:
        A tokenizer that writes ``[CLS] a [SEP]`` and ``[CLS] a [SEP] b [SEP]``, with token types 0 and 1.
    """
    pad, unknown, first, separator = SPECIAL_TOKENS
    core = Tokenizer(models.WordLevel(unk_token=unknown))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordLevelTrainer(vocab_size=vocab_size, special_tokens=list(SPECIAL_TOKENS), show_progress=False)
    core.train_from_iterator((_clean(text) for text in texts), trainer)
    core.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {separator}",
        pair=f"{first} $A {separator} $B:1 {separator}:1",
        special_tokens=[(token, core.token_to_id(token)) for token in (first, separator)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=max_length,
        pad_token=pad,
        unk_token=unknown,
        cls_token=first,
        sep_token=separator,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def task_texts(task: Task) -> list[str]:
    """All texts of the training split, second texts of pairs included: what a vocabulary is learned from."""
    columns = (task.table.texts, task.table.text_pairs)
    ids = task.splits["train"].tolist()
    return [column[i] for column in columns if column is not None for i in ids]


def _clean(text: str) -> str:
    """Replace lone surrogates, which the tokenizers library refuses."""
    return text.encode("utf-8", "replace").decode("utf-8")
