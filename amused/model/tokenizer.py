"""CLIP's tokenizer (arXiv 2103.00020, section 2.4; byte pairs of arXiv 1508.07909) on the `tokenizers` library.

Its files are read as transformers reads them. One that is wrong may raise anything: what to say of it, and how large it
may be, is the checkpoint's matter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor

START, END = "<|startoftext|>", "<|endoftext|>"
ROLES = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
WORD_END = "</w>"

Token = str | AddedToken


class Tokenizer:
    """Texts to token ids.

    Attributes:
        max_length: ids of a text, its start and its end included.
        bos_id, eos_id, pad_id: the ids of a text's start, of its end and of what follows.
    """

    def __init__(
        self,
        vocabulary: Mapping[str, int],
        merges: Sequence[tuple[str, str]],
        max_length: int,
        special: Mapping[str, Token] = ROLES,
        added: Sequence[AddedToken] = (),
    ) -> None:
        """
        Args:
            vocabulary: the ids of pieces of words, written in the letters of `ByteLevel`, `WORD_END` after the last.
            merges: pairs of pieces, in the order in which they are joined.
            special: a token for each of `ROLES`.
            added: tokens that are found in a text before it is split into words, as those of `special` are.
        """
        self.max_length, self.special = max_length, {role: str(special[role]) for role in ROLES}
        bos, eos, unknown, pad = self.special.values()
        if unknown not in vocabulary:
            raise ValueError("there is no id for what is not in the vocabulary")
        model = models.BPE(
            vocabulary,
            merges,
            unk_token=unknown,
            continuing_subword_prefix="",
            end_of_word_suffix=WORD_END,
            fuse_unk=False,
        )
        self.backend = tokenizers.Tokenizer(model)
        self.backend.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        words = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
        self.backend.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        self.backend.decoder = decoders.ByteLevel()
        self.backend.add_tokens(all_added(special, added))
        self.bos_id, self.eos_id, self.pad_id = (self.backend.token_to_id(token) for token in (bos, eos, pad))
        self.backend.post_processor = processors.RobertaProcessing(
            (eos, self.eos_id), (bos, self.bos_id), trim_offsets=False, add_prefix_space=False
        )
        self.backend.enable_truncation(max_length)
        self.backend.enable_padding(length=max_length, pad_id=self.pad_id, pad_token=pad)

    @classmethod
    def read(cls, folder: Path) -> Tokenizer:
        """The tokenizer of a folder: by `tokenizer.json` where there is one, else by `vocab.json` and `merges.txt`."""
        settings, whole = read_optional(folder / "tokenizer_config.json"), read_optional(folder / "tokenizer.json")
        if whole:
            vocabulary, merges = read_model(whole["model"])
        else:
            vocabulary, merges = models.BPE.read_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
        numbered = settings.get("added_tokens_decoder")
        if numbered is None:
            settings |= read_optional(folder / "special_tokens_map.json")
            numbered = {token.pop("id"): token for token in whole.get("added_tokens", ())}
        added = [AddedToken(**token) for _, token in sorted(numbered.items(), key=lambda item: int(item[0]))]
        known = {str(token): token for token in added}
        special = {role: read_token(settings.get(role, usual), known) for role, usual in ROLES.items()}
        return cls(vocabulary, merges, settings["model_max_length"], special, added)

    def write(self, folder: Path) -> None:
        """Write the published files, of which `read` makes the same tokenizer."""
        self.backend.model.save(str(folder))
        added = self.backend.get_added_tokens_decoder()
        settings = {
            "add_prefix_space": False,
            "added_tokens_decoder": {str(i): added[i].__getstate__() for i in sorted(added)},
            "do_lower_case": True,
            "model_max_length": self.max_length,
            "tokenizer_class": "CLIPTokenizer",
            **self.special,
        }
        for name, data in (("special_tokens_map", self.special), ("tokenizer_config", settings)):
            (folder / f"{name}.json").write_text(json.dumps(data, indent=2) + "\n", "utf-8")

    def __len__(self) -> int:
        """How many ids there are: one more than the greatest."""
        return 1 + max(self.backend.get_vocab().values(), default=-1)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Ids of texts, (batch, max_length): cut at the end, or padded."""
        return torch.tensor([self.backend.encode(text).ids for text in texts])

    def is_cut(self, text: str) -> bool:
        """Whether a text is longer than its ids say."""
        return bool(self.backend.encode(text).overflowing)


def all_added(special: Mapping[str, Token], added: Sequence[AddedToken]) -> list[AddedToken]:
    """The tokens to add, in their order; those that have a role are special."""
    roles = {str(token) for token in special.values()}
    tokens = [AddedToken(token) if isinstance(token, str) else token for token in (*added, *special.values())]
    for token in tokens:
        token.special = token.special or str(token) in roles
    return tokens


def read_optional(path: Path) -> dict[str, Any]:
    data = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    if not isinstance(data, dict):
        raise TypeError(f"{path.name} is not an object")
    return data


def read_model(model: Mapping[str, Any]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of `tokenizer.json`, whose older versions write a pair as one string."""
    merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
    return model["vocab"], merges


def read_token(value: Any, known: Mapping[str, AddedToken]) -> Token:
    """A token as the files name or describe it, or as it is known already."""
    if isinstance(value, dict):
        described = {key: item for key, item in value.items() if key not in ("__type", "special")}
        value = AddedToken(**described, special=True)
    if not isinstance(value, Token):
        raise TypeError(f"a special token is a {type(value).__name__}")
    return known.get(str(value), value)
