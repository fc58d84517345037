"""A smaller vocabulary: tokenizer and embeddings cut down to the tokens that a task uses.

The embeddings of a vocabulary are most of a small model. Texts made of kept tokens are encoded and
answered as before; elsewhere a word falls into smaller pieces.
"""

import copy
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from nanonet.core.errors import BundleError
from nanonet.models.learner import Learner

Ids = NDArray[np.int64]


def kept_tokens(tokenizer_json: str, counts: NDArray[Any], n: int) -> Ids:
    """Return the ids of the tokens to keep, in ascending order.

    They are the ``n`` most frequent ones (of equally frequent ones those of lower id) and what is
    needed beside them so that nothing becomes unknown that was not before: special tokens, single
    characters and bytes, and the pieces that longer tokens are merged from. A tokenizer that knows
    whole words only (WordLevel) keeps all.

    Args:
        tokenizer_json: the content of a ``tokenizer.json``.
        counts: how often each token occurs in the task's texts, (V,).
        n: how many to keep for their frequency.

    Raises:
        BundleError: the tokenizer is of a kind that cannot be cut.
    """
    settings = json.loads(tokenizer_json)
    model = settings["model"]
    vocabulary = _vocabulary(model)
    special = {token["content"] for token in settings["added_tokens"]}
    frequency = np.zeros(1 + max(vocabulary.values()), dtype=np.int64)
    frequency[: len(counts)] = counts[: len(frequency)]
    order = np.argsort(-frequency, kind="stable")
    present = set(vocabulary.values())
    n = len(present) if model["type"] == "WordLevel" else n
    frequent = set([i for i in order.tolist() if i in present][:n])
    keep = {token for token, i in vocabulary.items() if i in frequent}
    keep |= {t for t in vocabulary if t in special or t == model.get("unk_token")}
    if model["type"] == "Unigram" and model.get("unk_id") is not None:
        keep.add(model["vocab"][model["unk_id"]][0])
    prefix = model.get("continuing_subword_prefix") or ""
    keep |= {t for t in vocabulary if _is_single(t.removeprefix(prefix))}
    if model["type"] == "WordPiece":
        keep |= _not_spelled_out(vocabulary, prefix, special)
    if model["type"] == "BPE":
        keep |= _ancestors(keep, _merges(model), prefix)
    ids = {vocabulary[token] for token in keep} | {t["id"] for t in settings["added_tokens"]}
    return np.array(sorted(ids), dtype=np.int64)


def _vocabulary(model: dict[str, Any]) -> dict[str, int]:
    if model["type"] in ("WordPiece", "BPE", "WordLevel"):
        return dict(model["vocab"])
    if model["type"] == "Unigram":
        return {token: i for i, (token, _) in enumerate(model["vocab"])}
    raise BundleError(
        f"the vocabulary of a {model['type']} tokenizer cannot be trimmed: export without"
        " --trim-vocabulary"
    )


def _is_single(piece: str) -> bool:
    """Return whether a token is one character (byte-level BPE: one byte) or a byte's fallback."""
    return len(piece) == 1 or (len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"))


def _not_spelled_out(vocabulary: dict[str, int], prefix: str, special: set[str]) -> set[str]:
    """Return tokens with a character that does not stand alone in every place of a word."""

    def is_hard(token: str) -> bool:
        piece = token.removeprefix(prefix)
        return any(c not in vocabulary or prefix + c not in vocabulary for c in piece)

    longer = (t for t in vocabulary if len(t.removeprefix(prefix)) > 1 and t not in special)
    return {t for t in longer if is_hard(t) and not _is_placeholder(t)}


def _is_placeholder(token: str) -> bool:
    """Return whether no text can hold this token: BERT's ``[unused…]``."""
    return token.startswith("[unused") and token.endswith("]")


def _merges(model: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the merges in order; older files write a pair as one string."""
    pairs = (m.split(" ") if isinstance(m, str) else m for m in model["merges"])
    return [(a, b) for a, b in pairs]


def _ancestors(keep: Iterable[str], merges: list[tuple[str, str]], prefix: str) -> set[str]:
    """Return all tokens that the kept ones are merged from, on every way to them."""
    parents: dict[str, set[str]] = {}
    for a, b in merges:
        parents.setdefault(a + b.removeprefix(prefix), set()).update((a, b))
    found: set[str] = set()
    waiting = list(keep)
    while waiting:
        for parent in parents.get(waiting.pop(), ()):
            if parent not in found:
                found.add(parent)
                waiting.append(parent)
    return found


def trim_tokenizer(tokenizer_json: str, kept: Ids) -> str:
    """Return a ``tokenizer.json`` of the kept tokens alone, numbered from 0 in their order."""
    settings = json.loads(tokenizer_json)
    model = settings["model"]
    new_id = {int(old): new for new, old in enumerate(kept)}
    if model["type"] == "Unigram":
        model["vocab"] = [entry for i, entry in enumerate(model["vocab"]) if i in new_id]
        if model.get("unk_id") is not None:
            model["unk_id"] = new_id[model["unk_id"]]
    else:
        prefix = model.get("continuing_subword_prefix") or ""
        model["vocab"] = {t: new_id[i] for t, i in model["vocab"].items() if i in new_id}
        if model["type"] == "BPE":
            known = model["vocab"]
            model["merges"] = [
                [a, b]
                for a, b in _merges(model)
                if a in known and b in known and a + b.removeprefix(prefix) in known
            ]
    for token in settings["added_tokens"]:
        token["id"] = new_id[token["id"]]
    settings["padding"] = None  # ours is done when batches are made
    _renumber(settings.get("post_processor"), new_id)
    return json.dumps(settings, ensure_ascii=False, separators=(",", ":"))


def _renumber(processor: dict[str, Any] | None, new_id: dict[int, int]) -> None:
    """Give the special tokens that a post-processor adds their new ids, in place."""
    if processor is None:
        return
    for inner in processor.get("processors", []):
        _renumber(inner, new_id)
    for token in processor.get("special_tokens", {}).values():
        token["ids"] = [new_id[i] for i in token["ids"]]
    for name in ("sep", "cls"):  # of BertProcessing and RobertaProcessing
        if isinstance(processor.get(name), list):
            text, old = processor[name]
            processor[name] = [text, new_id[old]]


def trim_embeddings(learner: Learner, kept: Ids) -> tuple[Learner, str]:
    """Return a copy whose word embeddings are those of the kept tokens, in their order.

    Everything else is shared with the learner. Also returned: the name of their table.

    Raises:
        BundleError: the encoder has no embedding of its vocabulary's size, or a token that the
            model treats apart (padding) would get another id.
    """
    size = int(learner.encoder.config.vocab_size)
    tables = [n for n, m in learner.named_modules() if _is_table(m, size)]
    if len(tables) != 1:
        raise BundleError("this encoder's word embeddings cannot be trimmed: none or several found")
    old = learner.get_submodule(tables[0])
    assert isinstance(old, nn.Embedding)
    padding = old.padding_idx
    if padding is not None and (padding >= len(kept) or kept[padding] != padding):
        raise BundleError("this encoder's padding token would change its id: export untrimmed")
    shared: dict[int, Any] = {id(t): t for t in [*learner.parameters(), *learner.buffers()]}
    small = copy.deepcopy(learner, memo=shared)
    table = nn.Embedding(len(kept), old.embedding_dim, padding_idx=padding)
    table.weight = nn.Parameter(old.weight.detach()[kept], requires_grad=False)
    small.set_submodule(tables[0], table)
    small.encoder.config.vocab_size = len(kept)
    return small.eval(), f"{tables[0]}.weight"


def _is_table(module: nn.Module, rows: int) -> bool:
    return isinstance(module, nn.Embedding) and module.num_embeddings == rows
