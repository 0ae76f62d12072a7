"""What a name in a Python program is: a set of token classification made of the standard library's source files.

``ast`` says of every name what it is, in fourteen classes: the name of a function or class that is defined, a
parameter, the keyword or an argument of a call, an attribute or the object that has it, a method or a function that is
called, a module, a name that is imported, a variable that is set or read elsewhere, an exception that is raised or
caught or a class that is a base. The same word is many of them, so only its neighbours tell. Other tokens are read and
have no class.

A token is a word; numbers, strings and ends of lines are one word each, comments none. A string with expressions
inside (``f"{name}"``) is one word too, and the names in it are none: before Python 3.12 they are no tokens. Files of up
to 60,000 bytes in plain ASCII, without those of tests, are taken in an order drawn once, cut into windows of 32 tokens,
of which 30 at most are kept, evenly spaced. The windows depend on the files of the standard library alone, and so on
the version of Python.
"""

import ast
import io
import re
import sysconfig
import tokenize
import warnings
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CLASSES = (
    *("function", "class", "parameter", "keyword", "argument", "attribute", "object"),
    *("method", "call", "module", "imported", "set", "read", "exception"),
)
LENGTH, MOST_WINDOWS, MOST_BYTES = 32, 30, 60_000
VOCABULARY = 4000
"""Words, the two special ones included; a rarer one is unknown, as names in others' programs are."""
PAD, UNKNOWN = "[PAD]", "[UNK]"
NO_CLASS = -100
FOLDERS = re.compile(r"tests?|idle_test|idlelib|lib2to3|turtledemo|site-packages|dist-packages|__pycache__|config-.*")

OPENING, CLOSING = (
    {number for number in (getattr(tokenize, f"{kind}STRING_{end}", None) for kind in "FT") if number is not None}
    for end in ("START", "END")
)
"""Tokens around a string with expressions inside; there are none before Python 3.12."""
WITH_EXPRESSIONS = tuple(kind for name in ("JoinedStr", "TemplateStr") if (kind := getattr(ast, name, None)))
"""Nodes of such strings."""

Place = tuple[int, int]
"""Line from 1 and column from 0."""


@dataclass(frozen=True)
class Window:
    """Successive tokens of a file."""

    words: tuple[str, ...]
    classes: tuple[int, ...]
    """Of each word, ``NO_CLASS`` for none."""
    file: int
    """In the order in which files are taken."""


def windows(count: int) -> list[Window]:
    """The first windows of the files, in their drawn order; whole files, so a few more than ``count``."""
    root = Path(sysconfig.get_path("stdlib"))
    files = [
        path for path in sorted(root.rglob("*.py")) if not any(map(FOLDERS.fullmatch, path.relative_to(root).parts))
    ]
    made: list[Window] = []
    for number in np.random.default_rng(0).permutation(len(files)):
        if len(made) >= count:
            break
        content = files[number].read_bytes()
        if len(content) <= MOST_BYTES and content.isascii():
            made += file_windows(content.decode("ascii"), int(number))
    return made


def file_windows(source: str, file: int) -> list[Window]:
    """Windows of a file that have a name of a class."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old escapes in strings
        told = classes_by_place(ast.parse(source))
    words, classes = zip(*words_of(source, told), strict=True)
    starts = range(0, len(words) - LENGTH + 1, LENGTH)
    whole = [Window(words[start : start + LENGTH], classes[start : start + LENGTH], file) for start in starts]
    kept = [window for window in whole if max(window.classes) >= 0]
    return kept[:: max(1, -(-len(kept) // MOST_WINDOWS))]


def words_of(source: str, told: dict[Place, str]) -> Iterator[tuple[str, int]]:
    """Words of a program, each with its class."""
    before = ""
    yield "NEWLINE", NO_CLASS
    for token in whole_strings(tokenize.generate_tokens(io.StringIO(source).readline), OPENING, CLOSING):
        word = token.string
        if token.type in (tokenize.COMMENT, tokenize.NL, tokenize.ENDMARKER):
            continue
        if token.type in (tokenize.NUMBER, tokenize.STRING, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            word = tokenize.tok_name[token.type]
        name = told.get(token.start)
        if token.type == tokenize.NAME and before in ("def", "class"):
            name = "function" if before == "def" else "class"
        before = word
        yield word, CLASSES.index(name) if token.type == tokenize.NAME and name else NO_CLASS


def whole_strings(
    tokens: Iterable[tokenize.TokenInfo], opening: Collection[int], closing: Collection[int]
) -> Iterator[tokenize.TokenInfo]:
    """Tokens as before Python 3.12: a string with expressions inside, however deep, is one.

    Args:
        tokens: Of a program.
        opening: Types of tokens that begin such a string.
        closing: Types of those that end one.
    """
    depth = 0
    for token in tokens:
        if token.type in opening:
            if depth == 0:
                yield token._replace(type=tokenize.STRING)
            depth += 1
        elif token.type in closing:
            depth -= 1
        elif depth == 0:
            yield token


def nodes_outside_strings(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a tree as ``ast.walk`` gives them, without those in strings: their places depend on the version."""
    left = deque([tree])
    while left:
        node = left.popleft()
        left.extend(child for child in ast.iter_child_nodes(node) if not isinstance(child, WITH_EXPRESSIONS))
        yield node


def classes_by_place(tree: ast.AST) -> dict[Place, str]:
    """Class of the names by where they begin; those that are defined have no place of their own in a tree."""
    told: dict[Place, str] = {}
    for node in nodes_outside_strings(tree):  # from the root, so that what is inside a call, say, is told by the call
        for name, inner in named_inside(node):
            told.setdefault(inner, name)
    return told


def named_inside(node: ast.AST) -> Iterator[tuple[str, Place]]:
    """Names whose class a node tells."""
    match node:
        case ast.Call(func=func, args=args):
            yield from ends_of("method" if isinstance(func, ast.Attribute) else "call", [func])
            yield from ends_of("argument", args)
        case ast.ClassDef(bases=bases):
            yield from ends_of("exception", bases)
        case ast.Raise() | ast.ExceptHandler():
            yield from ends_of("exception", raised_or_caught(node))
        case ast.Import(names=names):
            yield from (("module", (alias.lineno, alias.col_offset)) for alias in names)
        case ast.ImportFrom(names=names, module=str(), level=0):
            yield "module", (node.lineno, node.col_offset + len("from "))
            yield from (("imported", (alias.lineno, alias.col_offset)) for alias in names)
        case ast.arg() | ast.keyword(arg=str()):
            name = "parameter" if isinstance(node, ast.arg) else "keyword"
            yield name, (node.lineno, node.col_offset)
        case ast.Attribute(value=value):
            yield from ends_of("attribute", [node])
            yield from ends_of("object", [value])
        case ast.Name():
            yield from ends_of("read" if isinstance(node.ctx, ast.Load) else "set", [node])


def raised_or_caught(node: ast.Raise | ast.ExceptHandler) -> list[ast.expr]:
    """Exceptions of a statement."""
    found = node.exc if isinstance(node, ast.Raise) else node.type
    if isinstance(found, ast.Call):
        found = found.func
    if found is None:
        return []
    return found.elts if isinstance(found, ast.Tuple) else [found]


def ends_of(name: str, nodes: Sequence[ast.expr]) -> Iterator[tuple[str, Place]]:
    """Where the last name of each expression begins, if it is a name or an attribute."""
    for node in nodes:
        last = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
        if last and node.end_lineno is not None and node.end_col_offset is not None:
            yield name, (node.end_lineno, node.end_col_offset - len(last))


def tokenizer_of(rows: Sequence[Window]) -> PreTrainedTokenizerFast:
    """A tokenizer of the most frequent words; it reads words that are split by spaces."""
    words, counts = np.unique([word for row in rows for word in row.words], return_counts=True)
    order = np.argsort(-counts, kind="stable")[: VOCABULARY - 2]
    vocabulary = {word: number for number, word in enumerate([PAD, UNKNOWN, *words[order].tolist()])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=PAD, unk_token=UNKNOWN, model_input_names=["input_ids", "attention_mask"]
    )
