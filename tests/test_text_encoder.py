"""What reads a prompt: the tokenizer and the text encoder give exactly what transformers' do."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_text_encoder
from tokenizers import AddedToken
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from amused.benchmark.weights import CLIP_L, WORDS, byte_tokenizer
from amused.checkpoints.catalog import BUNDLED
from amused.checkpoints.lora import LowRank, merged
from amused.model.text_encoder import TextConfig, TextEncoder, initialize
from amused.model.tokenizer import END, ROLES, START, Tokenizer
from amused.training.finetune.model import add_adapter, changes, recompute

SMALL = TextConfig(
    vocab_size=300,
    hidden_size=48,
    intermediate_size=64,
    projection_dim=40,
    num_hidden_layers=3,
    num_attention_heads=2,
    max_position_embeddings=20,
    eos_token_id=299,
)


def pair(config: TextConfig, dtype: torch.dtype = torch.float32) -> tuple[TextEncoder, CLIPTextModelWithProjection]:
    """Ours and theirs with the same random weights, none of them at exactly 0 or 1."""
    torch.manual_seed(0)
    ours, theirs = TextEncoder(config), CLIPTextModelWithProjection(CLIPTextConfig(**asdict(config)))
    with torch.no_grad():
        for parameter in initialize(ours, factor=2.0).parameters():
            parameter.add_(0.1 * torch.randn_like(parameter)) if parameter.dim() == 1 else None
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours.to(dtype).eval(), theirs.to(dtype).eval()


def texts(batch: int, length: int, config: TextConfig) -> torch.Tensor:
    """Random ids, the end at another place in each."""
    last = config.vocab_size - 1
    ids = torch.randint(last, (batch, length), generator=torch.Generator().manual_seed(length))
    for i, row in enumerate(ids):
        row[max(1, length - 1 - 3 * i) :] = last
    return ids


def outputs(theirs: CLIPTextModelWithProjection, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    text = theirs(ids, output_hidden_states=True)
    return text.hidden_states[-2], text.text_embeds


def same(ours: TextEncoder, theirs: CLIPTextModelWithProjection, ids: torch.Tensor) -> None:
    with torch.no_grad():
        for found, wanted in zip(ours(ids), outputs(theirs, ids), strict=True):
            assert found.dtype == wanted.dtype and torch.equal(found, wanted)


# The text encoder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_computes_exactly_what_transformers_does(activation: str, dtype: torch.dtype) -> None:
    config = replace(SMALL, hidden_act=activation)
    ours, theirs = pair(config, dtype)
    for batch in (1, 3):
        for length in (2, 3, 7, 20):
            same(ours, theirs, texts(batch, length, config))


@pytest.mark.parametrize("eos", [2, 5, 299])
def test_finds_the_end_of_a_text_as_transformers_does(eos: int) -> None:
    """By its id, the first of them; at the start without one; at the greatest id in old configurations, which say 2."""
    ours, theirs = pair(replace(SMALL, eos_token_id=eos))
    ids = torch.tensor([[9, 7, 299, 299, 2], [9, 299, 5, 2, 5], [9, 5, 299, 0, 0], [9, 8, 7, 6, 1], [2, 2, 2, 2, 2]])
    same(ours, theirs, ids)


def test_is_exact_in_the_published_shape() -> None:
    config = replace(CLIP_L, vocab_size=1000, eos_token_id=999)  # the rows of the table are all alike
    same(*pair(config), texts(2, 77, config))


@pytest.mark.parametrize("layers", [1, 4])
def test_has_the_names_of_transformers(layers: int) -> None:
    ours, theirs = pair(replace(SMALL, num_hidden_layers=layers))
    shapes = [{name: tensor.shape for name, tensor in each.state_dict().items()} for each in (ours, theirs)]
    assert shapes[0] == shapes[1] and not dict(ours.named_buffers())
    same(ours, theirs, texts(3, 9, SMALL))


def test_starts_at_weights_of_the_scale_of_transformers() -> None:
    config = replace(SMALL, hidden_size=256, intermediate_size=512, projection_dim=256)
    ours = initialize(TextEncoder(config), factor=2.0).state_dict()
    theirs = CLIPTextModelWithProjection(CLIPTextConfig(**asdict(config), initializer_factor=2.0)).state_dict()
    for name, tensor in ours.items():
        assert tensor.std().item() == pytest.approx(theirs[name].std().item(), rel=0.05), name
        assert tensor.mean().item() == pytest.approx(theirs[name].mean().item(), abs=0.05 * (tensor.std().item() or 1))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_learns_as_transformers_does(checkpointing: bool) -> None:
    """The same gradients; and the same dropout, by the same random numbers, where there is any."""
    ours, theirs = pair(replace(SMALL, attention_dropout=0.3))
    if checkpointing:
        recompute(ours)
    ids, found = texts(3, 9, SMALL), []
    for network, forward in ((ours.train(), ours), (theirs.train(), lambda ids: outputs(theirs, ids))):
        torch.manual_seed(1)
        hidden, pooled = forward(ids)
        (hidden.square().sum() + pooled.square().sum()).backward()
        found.append({name: parameter.grad for name, parameter in network.named_parameters()})
    assert all(torch.allclose(gradient, found[1][name], rtol=1e-4, atol=1e-6) for name, gradient in found[0].items())
    ours.eval(), theirs.eval()
    same(ours, theirs, ids)


def test_what_is_between_its_layers_is_forgotten_where_that_is_asked_for() -> None:
    kept = []
    for network in (pair(SMALL)[0], pair(SMALL)[0]):
        if kept:
            recompute(network)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, sizes=sizes: sizes.append(x.numel()) or x, lambda x: x):
            network(texts(3, 20, SMALL))
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 3


@torch.no_grad()
def test_takes_an_adapter_and_has_it_merged() -> None:
    ours, _ = pair(SMALL)
    ids, (before, _) = texts(2, 9, SMALL), ours(texts(2, 9, SMALL))
    adapted = pair(SMALL)[0]
    add_adapter(adapted, 4, 8, ["q_proj", "k_proj", "v_proj", "out_proj"])
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert len(trained) == 3 * 4 * 2 and all("lora" in name for name in trained)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.normal_()
    layers: dict[str, LowRank] = changes(adapted)
    whole = merged(ours, layers, 1.0)
    assert whole.text_projection.weight is ours.text_projection.weight
    for found, wanted in zip(whole(ids), adapted(ids)):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert (whole(ids)[0] - before).abs().max() > 0.1 and torch.equal(ours(ids)[0], before)


def test_different_prompts_look_different_to_the_tests() -> None:
    torch.manual_seed(0)
    _, pooled = tiny_text_encoder(300, 299)(texts(3, 20, SMALL))
    assert torch.pdist(pooled).min() > 0.1


# The tokenizer

PARTS = (
    "a red cat", "A RED Cat", "", " ", "\t\n\r ", "  two  spaces\u00a0and\u2003more\u3000",
    "line\nbreak\r\nand\x0bmore", "it's we're I've I'm they'll he'd don't O'Brien's 'S 'RE ''ss",
    "1234567890 3.14 1st ½ ² Ⅷ ٣ 四 १२", "e\u0301 é ﬁ Å Å Ω", "Ünïcödé ß İ ı ǅ Σίσυφος", "🐈 👩‍👩‍👧‍👦 🇩🇪 👍🏽 ❤️",
    "a\u0300\u0301\u0302\u0303" * 3, "q\u0323\u0307 \u1e0b\u0323", "\x00\x01\x1f\x7f\x80\x9f",
    "\ufeff\u200b\u200d\u2060\u00ad", "\ufffd\uffff\U0010ffff", "<|endoftext|>", "a <|endoftext|> b",
    "a<|startoftext|>b", "<|ENDOFTEXT|> <|EndOfText|>", "<|endoftext|><|endoftext|>", "<|endoftext|",
    "<|pad|> <pad> [PAD] !", "!!! hat! !hat", "שלום עולם", "مرحبا بالعالم", "\u202eabc\u202c \u2066x\u2069",
    "红猫戴帽子", "赤い猫がネコﾈｺ", "한국어 한국어", "हिन्दी ไทย ქართული", "a" * 500, "hat " * 200,
    "#$%&()*+,-./:;=?@[]^_`{|}~", "-- ... !? :-)", "snake_case camelCase CO₂ x²", "</w> cat</w> Ġcat", "\\n \\u0041 \\",
    '"quoted" “curly” ‘single’', "http://a.b/c?d=e&f", "a\u0345\u0313 ΰ", "ſt K ℌ", "ﷺ ", "𝕳𝖊𝖑𝖑𝖔 ｗｉｄｅ",
    "a\u2028b\u2029c\u0085d", "head-cat, glasses-square-red", "1'st 2're 's's", "can 't stop", "\u1160\u3164x",
)  # fmt: skip
PROMPTS = (*PARTS, *(f"{left} {right}" for left, right in zip(PARTS, PARTS[7:])), *map(str.upper, PARTS))
LONG = "".join(PARTS) * 20


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(path.read_text("utf-8"))
    change(data)
    path.write_text(json.dumps(data), "utf-8")


def described(content: str, normalized: bool = True) -> dict[str, Any]:
    return {"content": content, "lstrip": False, "normalized": normalized, "rstrip": False, "single_word": False}


def numbered(*tokens: str) -> Callable[[dict[str, Any]], object]:
    """`added_tokens_decoder` as fine-tuned models have it, with tokens of the vocabulary and perhaps others."""

    def change(settings: dict[str, Any]) -> None:
        known = {"!": 0, START: 523, END: 524}
        added = {known.get(token, 525 + i): described(token, token == START) for i, token in enumerate(tokens)}
        settings["added_tokens_decoder"] = {str(i): {**token, "special": i < 525} for i, token in added.items()}

    return change


def rewrite(settings: dict[str, Any], **changes: Any) -> None:
    settings.pop("added_tokens_decoder", None)
    settings.update(changes)


def as_whole(folder: Path, pairs: bool = True) -> None:
    """`tokenizer.json` alone, as transformers 5 writes it; older versions wrote a merge as one string."""
    CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)
    if not pairs:
        edit(
            folder / "tokenizer.json",
            lambda data: data["model"].update(merges=list(map(" ".join, data["model"]["merges"]))),
        )
    for name in ("vocab.json", "merges.txt", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)


def settings_of(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    edit(folder / "tokenizer_config.json", change)


def special_of(folder: Path, **tokens: Any) -> None:
    settings_of(folder, rewrite)
    edit(folder / "special_tokens_map.json", lambda data: data.update(tokens))


FOLDERS: dict[str, Callable[[Path], object]] = {
    "as written": lambda folder: None,
    "plain": lambda folder: settings_of(folder, rewrite),
    "no special tokens' map": lambda folder: [
        settings_of(folder, rewrite), (folder / "special_tokens_map.json").unlink()
    ],
    "usual tokens": lambda folder: [
        (folder / "tokenizer_config.json").write_text('{"model_max_length": 77}'),
        (folder / "special_tokens_map.json").unlink(),
    ],
    "another pad token": lambda folder: special_of(folder, pad_token="!"),
    "a new pad token": lambda folder: special_of(folder, pad_token="[PAD]"),
    "described in the map": lambda folder: special_of(
        folder, bos_token=described(START), eos_token=described(END), unk_token=described(END), pad_token=END
    ),
    "described in the settings": lambda folder: [
        settings_of(folder, lambda data: rewrite(data, eos_token={"__type": "AddedToken", **described(END)})),
        (folder / "special_tokens_map.json").unlink(),
    ],
    "numbered": lambda folder: settings_of(folder, numbered(START, END)),
    "numbered, another pad token": lambda folder: settings_of(
        folder, lambda data: [numbered("!", START, END)(data), data.update(pad_token="!")]
    ),
    "numbered, a new one": lambda folder: settings_of(folder, numbered(START, END, "<hat>", "<Pad>")),
    "whole": as_whole,
    "whole, of old": lambda folder: as_whole(folder, pairs=False),
    "whole, not numbered": lambda folder: [
        settings_of(folder, numbered(START, END, "<hat>")), as_whole(folder), settings_of(folder, rewrite)
    ],
}  # fmt: skip


def alike(folder: Path) -> None:
    """The tokenizer of a folder is transformers' own, to the last detail of what the library runs."""
    ours, theirs = Tokenizer.read(folder), CLIPTokenizer.from_pretrained(folder)
    length = theirs.model_max_length
    wanted = theirs(list(PROMPTS), padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    found = ours(PROMPTS)
    assert found.shape == (len(PROMPTS), length) and found.dtype == torch.int64
    for prompt, row, reference in zip(PROMPTS, found, wanted.input_ids):
        assert torch.equal(row, reference), prompt
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id)
    assert (len(ours), ours.max_length) == (len(theirs), length)
    assert json.loads(ours.backend.to_str()) == json.loads(theirs.backend_tokenizer.to_str())
    for prompt in (*PROMPTS, LONG, "hat " * (length - 2), "hat " * (length - 1)):
        whole = theirs(prompt, truncation=False, verbose=False).input_ids
        assert ours.is_cut(prompt) == (len(whole) > length), prompt


@pytest.mark.parametrize("spoil", FOLDERS.values(), ids=FOLDERS)
def test_reads_a_text_as_transformers_does(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    byte_tokenizer(WORDS).write(tmp_path)
    spoil(tmp_path)
    alike(tmp_path)


def test_reads_a_text_for_the_bundled_checkpoint_as_transformers_does() -> None:
    alike(BUNDLED / "nouns" / "tokenizer")


def test_writes_what_it_reads(tmp_path: Path) -> None:
    special = {**ROLES, "pad_token": "!", "eos_token": AddedToken(END, normalized=True)}
    letters = byte_tokenizer(WORDS).backend.get_vocab()
    tokenizer = Tokenizer(letters, [("h", "a"), ("ha", "t</w>")][:0], 20, special, [AddedToken("<hat>", lstrip=True)])
    tokenizer.write(tmp_path)
    assert Tokenizer.read(tmp_path).backend.to_str() == tokenizer.backend.to_str()
    alike(tmp_path)
