"""Makes data/token_ids.json: texts and their ids by two tokenizers that share no code with ours.

    pip install instant-clip-tokenizer==0.1.1 && pip install --no-deps openai-clip==1.0.1 && pip install ftfy regex
    python tests/support/make_token_ids.py

One is instant-clip-tokenizer (Rust), the other OpenAI's simple_tokenizer.py, read from the package openai-clip as a
file. The program stops at a text on which they differ.
"""

import importlib.util
import json
import pathlib

from instant_clip_tokenizer import Tokenizer

TEXTS = (
    "a photo of a cat",
    "a photo of a dog.",
    "A Photo Of A CAT",
    "  a   photo\tof\n a cat ",
    "itap of a giraffe",
    "an art painting of an elephant, in oil!",
    "a bad photo of the alarm clock.",
    "it's the dog's ball; they're here, we've seen, I'm sure, he'll go, I'd say, don't",
    "IT'S SHE'LL",
    "3 cats, 10 dogs and 2024 horses",
    "x1y22z333",
    "room 42b, 3.14%",
    "semi-truck / fire-engine (red)",
    "...!?... #hash @home $5 & co.",
    "naïve café über Ångström",
    "日本語の写真",
    "фотография собаки",
    "ελληνικά",
    "a 🐶 and two 🐱🐱",
    "½ of x²",
    "antidisestablishmentarianism",
    "",
    "zzzzqqqq",
    "the quick brown fox jumps over the lazy dog",
    "a sketch of a guitar - black_and_white",
    "<tag> [x] {y} ^ ~ `z`",
)


def openai_tokenizer():
    folder = pathlib.Path(importlib.util.find_spec("clip").submodule_search_locations[0])
    spec = importlib.util.spec_from_file_location("simple_tokenizer", folder / "simple_tokenizer.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SimpleTokenizer()


def main():
    first, second = Tokenizer(), openai_tokenizer()
    found = {}
    for text in TEXTS:
        # This one neither trims nor joins white space.
        ids = list(map(int, first.encode(" ".join(text.split()))))
        if ids != second.encode(text):
            raise SystemExit(f"{text!r}: {ids} and {second.encode(text)}")
        found[text] = ids
    out = pathlib.Path(__file__).parents[1] / "dg" / "pretrained" / "data" / "token_ids.json"
    out.parent.mkdir(exist_ok=True)
    lines = [f" {json.dumps(text, ensure_ascii=False)}: {ids}" for text, ids in found.items()]
    out.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
