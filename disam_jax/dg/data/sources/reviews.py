"""Reviews of four kinds of products, positive or negative, as hashed words: nothing is fitted, so no target leaks."""

import re
from pathlib import Path

import numpy as np

from disam_jax.dg.data.sources.convert import labelled
from disam_jax.dg.data.sources.registry import Source
from disam_jax.dg.errors import InputError
from disam_jax.dg.reading import read_bytes, shown

_DOMAINS = ("books", "dvd", "electronics", "kitchen")
_CLASSES = ("negative", "positive")
_FEATURES = 2**11
_REVIEW = re.compile("<review_text>(.*?)</review_text>", re.DOTALL)


def _texts(path: Path) -> list[str]:
    """The reviews of a file, which is not quite XML and not all in one encoding; in Latin-1 every byte is a letter."""
    texts = _REVIEW.findall(read_bytes(path).decode("latin-1"))
    if not texts:
        raise InputError(f"{shown(path)} has no <review_text>")
    return texts


def _arrays(checkout: Path) -> dict[str, np.ndarray]:
    from sklearn.feature_extraction.text import HashingVectorizer

    words = HashingVectorizer(n_features=_FEATURES, norm="l2", stop_words="english", alternate_sign=False)

    def hashed(texts: list[str]) -> np.ndarray:
        return np.asarray(words.transform(texts).todense()).astype(np.float16)

    inputs, labels = {}, {}
    for domain in _DOMAINS:
        texts = {name: _texts(checkout / "data" / domain / f"{name}.review") for name in _CLASSES}
        inputs[domain] = np.concatenate([hashed(each) for each in texts.values()])
        labels[domain] = [name for name, each in texts.items() for _ in each]
    return labelled(inputs, labels)


SOURCES = {
    "reviews": Source(
        "8,000 reviews of 4 kinds of products as 2,048 hashed words, 2 classes",
        url="https://github.com/bzantium/bert-AAD",
        commit="cbe2e0cac6564dfbc6234882a73ca78020ac0d22",
        megabytes=5,
        counts={domain: dict.fromkeys(_CLASSES, 1000) for domain in _DOMAINS},
        licence="None is stated; for research. The reviews belong to those who wrote them.",
        citation="John Blitzer, Mark Dredze and Fernando Pereira. Biographies, Bollywood, Boom-boxes and Blenders: "
        "Domain Adaptation for Sentiment Classification. ACL 2007.",
        arrays=_arrays,
        checksum="0c344f3e092576db3121889bfdbc9a0a18d1241504216a377a10801e5d19f4a1",
        depends_on="scikit-learn",
    )
}
