"""Prompts: what the tokenizer makes of any text, and how the text encoder of a checkpoint conditions an image."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.cpu_time import no_longer_than
from helpers.tiny import tiny_checkpoint
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

import amused
from amused.benchmark.weights import WORDS, byte_tokenizer
from amused.checkpoints.catalog import BUNDLED
from amused.checkpoints.hub import locate
from amused.checkpoints.lora import LoraWeights, merged
from amused.checkpoints.save import write_tokenizer
from amused.errors import UserError
from amused.model.text import END, START, encode_text, is_truncated, read_tokenizer, tokenize

PROMPTS = (
    "a red cat", "A RED Cat", "", " ", "\t\n\r ", "  two  spaces\u00a0and\u2003more\u3000",
    "line\nbreak\r\nand\x0bmore", "it's we're I've I'm they'll he'd don't O'Brien's 'S 'RE ''ss",
    "1234567890 3.14 1st ½ ² Ⅷ ٣ 四 १२",
    "e\u0301 é ﬁ Å Å Ω", "Ünïcödé ß İ ı ǅ Σίσυφος", "🐈 👩‍👩‍👧‍👦 🇩🇪 👍🏽 ❤️", "\x00\x01\x1f\x7f\x80\x9f",
    "\ufeff\u200b\u200d\u2060\u00ad", "<|endoftext|>", "a <|endoftext|> b", "<|ENDOFTEXT|>", "<|pad|> <pad> [PAD] !",
    "שלום עולם", "مرحبا بالعالم", "\u202eabc\u202c \u2066x\u2069", "红猫戴帽子", "赤い猫がネコﾈｺ", "हिन्दी ไทย ქართული",
    "a" * 500, "hat " * 75, "hat " * 76, "hat " * 200, "#$%&()*+,-./:;=?@[]^_`{|}~",
    "</w> cat</w> Ġcat", "𝕳𝖊𝖑𝖑𝖔 ｗｉｄｅ",
)  # fmt: skip


def edit(path: Path, **changes: Any) -> None:
    data = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({**data, **changes}), "utf-8")


def plain(folder: Path, **changes: Any) -> None:
    """As older checkpoints are written: without numbered tokens."""
    data = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    data.pop("added_tokens_decoder")
    (folder / "tokenizer_config.json").write_text(json.dumps({**data, **changes}), "utf-8")


def as_transformers_saves(folder: Path) -> None:
    CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)
    for name in ("vocab.json", "merges.txt", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)


FOLDERS: dict[str, Callable[[Path], object]] = {
    "as written": lambda folder: None,
    "no numbered tokens": plain,
    "only a length": lambda folder: [
        (folder / "tokenizer_config.json").write_text('{"model_max_length": 77}'),
        (folder / "special_tokens_map.json").unlink(),
    ],
    "another pad token": lambda folder: [plain(folder), edit(folder / "special_tokens_map.json", pad_token="!")],
    "added tokens": lambda folder: [plain(folder), edit(folder / "added_tokens.json", **{"<hat>": 525})],
    "tokenizer.json": as_transformers_saves,
}


@pytest.mark.parametrize("change", FOLDERS.values(), ids=FOLDERS)
def test_prompts_become_the_ids_that_transformers_gives(tmp_path: Path, change: Callable[[Path], object]) -> None:
    write_tokenizer(tmp_path, byte_tokenizer(WORDS))
    change(tmp_path)
    check_ids(tmp_path)


def test_prompts_for_the_bundled_checkpoint_become_the_ids_that_transformers_gives() -> None:
    check_ids(BUNDLED / "nouns" / "tokenizer")


def check_ids(folder: Path) -> None:
    ours, theirs = read_tokenizer(folder), CLIPTokenizer.from_pretrained(folder)
    length = theirs.model_max_length
    wanted = theirs(list(PROMPTS), padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    assert torch.equal(tokenize(ours, PROMPTS), wanted.input_ids)
    for prompt in PROMPTS:
        whole = theirs(prompt, truncation=False, verbose=False).input_ids
        assert is_truncated(ours, prompt) == (len(whole) > length), prompt


def test_ids_are_those_of_earlier_versions(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, byte_tokenizer(WORDS))
    tokenizer = read_tokenizer(tmp_path)
    assert (tokenizer.bos_token, tokenizer.eos_token) == (START, END)
    (ids,) = tokenize(tokenizer, ["a red Cat 🐈"]).tolist()
    assert ids[:9] == [523, 320, 513, 518, 172, 253, 238, 486, 524] and set(ids[9:]) == {524} and len(ids) == 77


def test_a_tokenizer_is_written_in_the_published_files(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, byte_tokenizer(WORDS))
    assert {path.name for path in tmp_path.iterdir()} == {
        *("vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json")
    }
    read = read_tokenizer(tmp_path).backend_tokenizer
    assert json.loads(read.to_str())["model"] == json.loads(byte_tokenizer(WORDS).backend_tokenizer.to_str())["model"]


def test_nothing_is_looked_up_on_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_checkpoint(tmp_path / "tiny")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("connects"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("looks up a name"))
    amused.load(folder, device="cpu").text_to_image("a red cat", steps=1)


def test_the_text_encoder_gives_what_transformers_loads(tmp_path: Path) -> None:
    """With the eos token by its id, and at the largest id where the configuration has the 2 of old versions."""
    folder = tiny_checkpoint(tmp_path / "tiny")
    ids = tokenize(locate(folder).load_tokenizer(), PROMPTS)
    pooled = {}
    for eos in (2, 320, 524):
        edit(folder / "text_encoder" / "config.json", eos_token_id=eos)
        theirs = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder", variant="fp16").float()
        ours = locate(folder).load_text_encoder("cpu", torch.float32)
        with torch.no_grad():
            wanted = theirs(ids, output_hidden_states=True)
            hidden, pooled[eos] = encode_text(ours, ids)
        assert torch.equal(hidden, wanted.hidden_states[-2]) and torch.equal(pooled[eos], wanted.text_embeds)
    assert torch.equal(pooled[2], pooled[524]) and not torch.equal(pooled[2], pooled[320])


def test_many_threads_share_a_tokenizer(tmp_path: Path) -> None:
    tokenizer = locate(tiny_checkpoint(tmp_path / "tiny")).load_tokenizer()
    alone = [(tokenize(tokenizer, [prompt]).tolist(), is_truncated(tokenizer, prompt)) for prompt in PROMPTS]

    def read(prompt: str) -> tuple[list[list[int]], bool]:
        return tokenize(tokenizer, [prompt]).tolist(), is_truncated(tokenizer, prompt)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read, PROMPTS * 20)) == alone * 20


def test_a_megabyte_of_prompt_is_refused_at_once(tmp_path: Path) -> None:
    model = amused.load(tiny_checkpoint(tmp_path / "tiny"), device="cpu")
    with no_longer_than(1), pytest.raises(UserError, match="too long"):
        model.text_to_image("hat " * 250_000)


def test_a_long_prompt_is_said_to_be_cut(tmp_path: Path) -> None:
    model = amused.load(tiny_checkpoint(tmp_path / "tiny"), device="cpu")
    assert not model.prompt_is_cut("hat " * 75) and model.prompt_is_cut("hat " * 76)


def test_different_prompts_look_different_to_the_tests(tmp_path: Path) -> None:
    checkpoint = locate(tiny_checkpoint(tmp_path / "tiny"))
    encoder, tokenizer = checkpoint.load_text_encoder("cpu", torch.float32), checkpoint.load_tokenizer()
    with torch.no_grad():
        _, pooled = encode_text(encoder, tokenize(tokenizer, ["a red cat", "a blue dog", ""]))
    assert torch.pdist(pooled).min() > 0.1


@torch.no_grad()
def test_a_merged_adapter_keeps_one_copy_of_what_it_does_not_change(tmp_path: Path) -> None:
    checkpoint = locate(tiny_checkpoint(tmp_path / "tiny"))
    encoder, ids = checkpoint.load_text_encoder("cpu", torch.float32), tokenize(checkpoint.load_tokenizer(), PROMPTS)
    before, _ = encode_text(encoder, ids)
    layer = "text_model.encoder.layers.0.self_attn.q_proj"
    adapted = merged(encoder, {layer: LoraWeights(torch.randn(2, 32), torch.randn(32, 2), 1.0)}, 1.0)
    stored = {tensor.data_ptr() for tensor in (*encoder.parameters(), *encoder.buffers())}
    new = {
        name
        for name, tensor in (*adapted.named_parameters(), *adapted.named_buffers())
        if tensor.data_ptr() not in stored
    }
    assert new == {f"{layer}.weight"}
    assert (encode_text(adapted, ids)[0] - before).abs().max() > 0.01
    assert torch.equal(encode_text(encoder, ids)[0], before)
