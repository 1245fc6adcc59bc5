"""Checkpoints: what is written can be read, by diffusers too, and what is wrong with one is said in a sentence."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.checkpoints import CPU, FLOAT, TEXT, TRANSFORMER, VQGAN, load, refused
from helpers.tiny import tiny_checkpoint
from safetensors.torch import load_file, save_file

from amused.checkpoints.config import REQUIRED_FILES
from amused.checkpoints.hub import locate
from amused.checkpoints.save import save_checkpoint
from amused.errors import UserError
from amused.model.text import encode_text, tokenize
from amused.model.vqgan import HALVES


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny", traits={"backgrounds": {"warm": "#e1d7d5"}})


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "copy"))


def test_configurations_saved_with_a_byte_order_mark_are_read(folder: Path) -> None:
    """As Windows editors save them."""
    for file in ("transformer/config.json", "scheduler/scheduler_config.json", "traits.json"):
        (folder / file).write_text((folder / file).read_text("utf-8"), "utf-8-sig")
    assert locate(folder).traits == {"backgrounds": {"warm": "#e1d7d5"}}


def edit(folder: Path, file: str, **changes: object) -> None:
    data = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**data, **changes}))


def edit_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    state = {key: tensor.clone() for key, tensor in load_file(path).items()}
    change(state)
    save_file(state, path, metadata={"format": "pt"})


# What is written can be read


def test_reads_what_was_written(folder: Path) -> None:
    checkpoint = locate(folder)
    assert (checkpoint.name, checkpoint.size) == ("copy", 64)
    assert (checkpoint.mask_token_id, checkpoint.masking_schedule) == (79, "cosine")
    assert checkpoint.traits == {"backgrounds": {"warm": "#e1d7d5"}}
    for file in (TRANSFORMER, VQGAN, TEXT):
        network, stored = load(folder, file), load_file(folder / file)
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())
        assert all(torch.equal(tensor, stored[key].float()) for key, tensor in network.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_loads_in_the_wanted_precision_and_free_of_the_file(folder: Path, dtype: torch.dtype) -> None:
    network = locate(folder).load_transformer(CPU, dtype)
    assert {parameter.dtype for parameter in network.parameters()} == {dtype}
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    with (folder / TRANSFORMER).open("r+b") as stream:  # in place, as a careless copy over it would
        stream.write(bytes((folder / TRANSFORMER).stat().st_size))
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())


def test_falls_back_to_full_precision(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "full", dtype=FLOAT, variant=None)
    assert not list(folder.rglob("*fp16*"))
    for file in (TRANSFORMER, VQGAN, TEXT):
        assert next(load(folder, file).parameters()).dtype == FLOAT


INDEX = "transformer/diffusion_pytorch_model.safetensors.index.fp16.json"


@pytest.fixture(scope="module")
def original_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("shards") / "tiny", max_shard_size="20KB")


@pytest.fixture
def shards(original_shards: Path, tmp_path: Path) -> Path:
    """The same weights as those of `folder`, each network in several files."""
    return Path(shutil.copytree(original_shards, tmp_path / "shards"))


def test_reads_weights_in_several_files(folder: Path, shards: Path) -> None:
    for file in (TRANSFORMER, VQGAN, TEXT):
        assert not (shards / file).exists()
        assert len(list((shards / file).parent.glob("*.safetensors"))) > 1
        state, wanted = load(shards, file).state_dict(), load(folder, file).state_dict()
        assert state.keys() == wanted.keys()
        assert all(torch.equal(tensor, wanted[key]) for key, tensor in state.items())
    for half in HALVES:
        state, wanted = (locate(place).load_vqgan(CPU, FLOAT, half).state_dict() for place in (shards, folder))
        assert state.keys() == wanted.keys()
        assert all(torch.equal(tensor, wanted[key]) for key, tensor in state.items())


def test_refuses_a_missing_shard(shards: Path) -> None:
    (shard, *_) = sorted((shards / TRANSFORMER).parent.glob("*.safetensors"))
    shard.unlink()
    refused(lambda: load(shards), f"transformer/{shard.name} is missing")


@pytest.mark.parametrize(
    "name",
    ["../vqvae/diffusion_pytorch_model.safetensors", "/etc/x.safetensors", "a/b.safetensors", "", ".safetensors",
     "..\\x.safetensors", "x.bin", "x.safetensors\n", "nul\x00.safetensors", 1, None, ["x.safetensors"]],
)  # fmt: skip
def test_an_index_names_only_safetensors_next_to_it(shards: Path, name: object) -> None:
    index = json.loads((shards / INDEX).read_text())["weight_map"]
    edit(shards, INDEX, weight_map={**index, next(iter(index)): name})
    refused(lambda: load(shards), INDEX, "next to it")


@pytest.mark.parametrize("weight_map", [None, [], "x"])
def test_refuses_an_index_without_a_map(shards: Path, weight_map: object) -> None:
    edit(shards, INDEX, weight_map=weight_map)
    refused(lambda: load(shards), INDEX, "weight_map")


def test_an_index_must_list_the_tensors_of_the_network_and_of_its_files(shards: Path) -> None:
    index = json.loads((shards / INDEX).read_text())["weight_map"]
    one, other = sorted(set(index.values()))[:2]
    moved = next(key for key, shard in index.items() if shard == one)
    edit(shards, INDEX, weight_map={key: shard for key, shard in index.items() if key != moved})
    refused(lambda: load(shards), INDEX, f"{moved} is missing")
    edit(shards, INDEX, weight_map={**index, "lora.weight": one})
    refused(lambda: load(shards), INDEX, "lora.weight", "not part of this network")
    edit(shards, INDEX, weight_map={**index, moved: other})
    refused(lambda: load(shards), moved)


@pytest.mark.parametrize(("downsample", "max_shard_size"), [(False, "10GB"), (True, "10GB"), (False, "20KB")])
@pytest.mark.slow
def test_diffusers_reads_it_and_computes_the_same(tmp_path: Path, downsample: bool, max_shard_size: str) -> None:
    from diffusers import AmusedPipeline

    folder = tiny_checkpoint(
        tmp_path / "tiny", downsample=downsample, masking_schedule="linear", max_shard_size=max_shard_size
    )
    theirs = AmusedPipeline.from_pretrained(folder, variant="fp16", torch_dtype=FLOAT)
    ours = locate(folder)
    assert theirs.scheduler.config.masking_schedule == ours.masking_schedule == "linear"
    assert theirs.scheduler.config.mask_token_id == ours.mask_token_id
    prompts = ["a red cat, ünïcode & 🐈 " + "hat " * 99, "a red cat", ""]
    ids = tokenize(ours.load_tokenizer(), prompts)
    padded = theirs.tokenizer(prompts, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
    assert torch.equal(ids, padded.input_ids)
    with torch.no_grad():
        hidden, pooled = encode_text(ours.load_text_encoder(CPU, FLOAT), ids)
        reference = theirs.text_encoder(ids, output_hidden_states=True)
        assert torch.equal(hidden, reference.hidden_states[-2]) and torch.equal(pooled, reference.text_embeds)
        side = ours.transformer.sample_size
        tokens = torch.arange(side * side).view(1, side, side) % 64
        micro = torch.tensor([[64.0, 64.0, 0.0, 0.0, 6.0]])
        hidden, pooled = hidden[:1], pooled[:1]
        transformer = ours.load_transformer(CPU, FLOAT)
        logits = transformer(tokens, transformer.condition(hidden, pooled, micro))
        wanted = theirs.transformer(tokens, hidden, pooled, micro)
        torch.testing.assert_close(logits, wanted.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-4)
        pixels = theirs.vqvae.decode(tokens, force_not_quantize=True, shape=(1, side, side, 8)).sample
        torch.testing.assert_close(ours.load_vqgan(CPU, FLOAT).decode(tokens), pixels, rtol=1e-4, atol=1e-4)


def test_reads_a_text_encoder_as_transformers_writes_it(folder: Path) -> None:
    from transformers import CLIPTextModelWithProjection

    theirs = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder", variant="fp16")
    theirs.save_pretrained(folder / "text_encoder")
    (folder / TEXT).unlink()
    ids = torch.tensor([[523, 320, 524]])
    ours = locate(folder).load_text_encoder(CPU, FLOAT)
    assert torch.equal(encode_text(ours, ids)[1], theirs.float()(ids).text_embeds)


def test_tolerates_the_position_ids_of_older_text_encoders(folder: Path) -> None:
    ids = torch.tensor([[523, 320, 524]])
    _, before = encode_text(load(folder, TEXT), ids)
    key = "text_model.embeddings.position_ids"
    edit_weights(folder / TEXT, lambda state: state.update({key: torch.arange(77)[None]}))
    assert torch.equal(encode_text(load(folder, TEXT), ids)[1], before)


def test_the_fixture_is_not_degenerate(original: Path) -> None:
    checkpoint = locate(original)
    transformer, vqgan = checkpoint.load_transformer(CPU, FLOAT), checkpoint.load_vqgan(CPU, FLOAT)
    with torch.no_grad():
        text = torch.randn(2, 77, 32, generator=torch.Generator().manual_seed(0))
        tokens = torch.full((2, 4, 4), checkpoint.mask_token_id)
        logits = transformer(tokens, transformer.condition(text, text[:, 0], torch.zeros(2, 5)))
        assert 1 < logits.std() < 4 and not torch.allclose(logits[0], logits[1], atol=0.1)
        pictures = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        assert vqgan.encode(pictures).unique().numel() > 8
        assert vqgan.decode(torch.arange(64).view(1, 8, 8)).std() > 0.05


def test_saves_over_a_checkpoint_but_over_nothing_else(folder: Path, tmp_path: Path) -> None:
    before = (folder / TRANSFORMER).read_bytes()
    tiny_checkpoint(folder, seed=1)
    assert (folder / TRANSFORMER).read_bytes() != before
    other = tmp_path / "other"
    other.mkdir()
    (other / "letter.txt").write_text("dear")
    with pytest.raises(UserError):
        tiny_checkpoint(other)
    assert [path.name for path in other.iterdir()] == ["letter.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "other"]


def test_does_not_overwrite_good_weights_with_bad_ones(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*.safetensors")}
    checkpoint = locate(folder)
    parts = dict(
        transformer=checkpoint.load_transformer(CPU, FLOAT),
        vqgan=checkpoint.load_vqgan(CPU, FLOAT),
        text_encoder=checkpoint.load_text_encoder(CPU, FLOAT),
        tokenizer=folder / "tokenizer",
    )
    save_checkpoint(folder, **parts)
    assert {path: path.read_bytes() for path in folder.rglob("*.safetensors")} == before
    with torch.no_grad():
        parts["vqgan"].post_quant_conv.bias[0] = float("nan")
    refused(lambda: save_checkpoint(folder, **parts), VQGAN, "post_quant_conv.bias")
    assert {path: path.read_bytes() for path in folder.rglob("*.safetensors")} == before
    assert [path.name for path in folder.parent.iterdir()] == ["copy"]


# Broken weights


def with_header(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header


@pytest.mark.parametrize("file", [TRANSFORMER, VQGAN, TEXT])
def test_refuses_truncated_weights(folder: Path, file: str) -> None:
    data = (folder / file).read_bytes()
    header = 8 + struct.unpack("<Q", data[:8])[0]
    for length in (0, 7, 8, header - 1, header, len(data) // 2, len(data) - 1):
        (folder / file).write_bytes(data[:length])
        refused(lambda: load(folder, file), file)
    (folder / file).write_bytes(data)
    load(folder, file)


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<Q", 100_000_000) + b"{" + bytes(1000),
        struct.pack("<Q", 2**64 - 1) + b"{}",
        with_header(b"not json at all"),
        with_header(b"[]"),
        with_header(b"\xff\xfe"),
        with_header(
            b'{"a":{"dtype":"F16","shape":[4],"data_offsets":[0,8]},"b":{"dtype":"F16","shape":[4],"data_offsets":[4,12]}}'
        )
        + bytes(12),
        with_header(b'{"a":{"dtype":"F16","shape":[4],"data_offsets":[0,9999]}}') + bytes(8),
        with_header(b'{"a":{"dtype":"F16","shape":[99999999999,99999999999],"data_offsets":[0,8]}}') + bytes(8),
        pickle.dumps({"weights": [1.0] * 100}),
        b"\x80\x02}q\x00.",
    ],
)
def test_refuses_garbage_for_weights(folder: Path, data: bytes) -> None:
    (folder / TRANSFORMER).write_bytes(data)
    refused(lambda: load(folder), TRANSFORMER)


def test_a_long_header_is_refused_before_it_is_parsed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = b'{"__metadata__":{"a":"' + b"x" * 20_000_000 + b'"}}'
    (folder / TRANSFORMER).write_bytes(with_header(header))
    monkeypatch.setattr("safetensors.safe_open", lambda *args, **kwargs: pytest.fail("parsed"))
    refused(lambda: load(folder), TRANSFORMER, "header")


def test_never_reads_pickles(folder: Path) -> None:
    state = load_file(folder / TRANSFORMER)
    (folder / TRANSFORMER).unlink()
    torch.save(state, folder / "transformer/diffusion_pytorch_model.bin")
    torch.save(state, folder / "transformer/diffusion_pytorch_model.fp16.bin")
    refused(lambda: load(folder), "transformer/diffusion_pytorch_model.safetensors is missing")
    (folder / "transformer/diffusion_pytorch_model.bin").rename(folder / TRANSFORMER)
    refused(lambda: load(folder), TRANSFORMER)


KEYS = {
    TRANSFORMER: "mlm_layer.conv1.weight",
    VQGAN: "quantize.embedding.weight",
    TEXT: "text_model.encoder.layers.0.mlp.fc1.bias",
}


@pytest.mark.parametrize("file", KEYS)
@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: None,
        lambda tensor: tensor[:1],
        lambda tensor: tensor.reshape(-1, 2),
        lambda tensor: tensor.to(torch.int8),
        lambda tensor: tensor.double(),
        lambda tensor: tensor.index_fill(0, torch.tensor(0), float("nan")),
        lambda tensor: tensor.index_fill(0, torch.tensor(-1), float("-inf")),
    ],
    ids=["missing", "short", "reshaped", "int8", "float64", "nan", "inf"],
)
def test_refuses_a_bad_tensor_by_name(folder: Path, file: str, change: Callable) -> None:
    def spoil(state: dict[str, torch.Tensor]) -> None:
        tensor = change(state.pop(KEYS[file]))
        if tensor is not None:
            state[KEYS[file]] = tensor

    edit_weights(folder / file, spoil)
    refused(lambda: load(folder, file), file, KEYS[file])


@pytest.mark.parametrize("file", KEYS)
def test_refuses_an_extra_tensor_by_name(folder: Path, file: str) -> None:
    edit_weights(folder / file, lambda state: state.update({"lora.weight": torch.zeros(2)}))
    refused(lambda: load(folder, file), file, "lora.weight")


def test_refuses_weights_that_overflow_in_the_wanted_precision(folder: Path) -> None:
    state = {key: tensor.float() for key, tensor in load_file(folder / TRANSFORMER).items()}
    state[KEYS[TRANSFORMER]][0] = 1e6
    save_file(state, folder / TRANSFORMER)
    locate(folder).load_transformer(CPU, torch.bfloat16)
    refused(lambda: locate(folder).load_transformer(CPU, torch.float16), TRANSFORMER, KEYS[TRANSFORMER])


def test_large_finite_weights_are_not_taken_for_infinite(folder: Path) -> None:
    edit_weights(
        folder / TRANSFORMER, lambda state: state.update({KEYS[TRANSFORMER]: torch.full((16, 16, 1, 1), 3e38)})
    )
    load(folder)


# Bad configurations


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("transformer/config.json", "hidden_size", "1024"),
        ("transformer/config.json", "hidden_size", True),
        ("transformer/config.json", "hidden_size", None),
        ("transformer/config.json", "hidden_size", 0),
        ("transformer/config.json", "hidden_size", -32),
        ("transformer/config.json", "hidden_size", 10**400),
        ("transformer/config.json", "num_hidden_layers", 10**9),
        ("transformer/config.json", "num_hidden_layers", 1.5),
        ("transformer/config.json", "layer_norm_eps", float("nan")),
        ("transformer/config.json", "layer_norm_eps", float("inf")),
        ("transformer/config.json", "downsample", 1),
        ("transformer/config.json", "downsample", True),
        ("transformer/config.json", "sample_size", 60_000),
        ("transformer/config.json", "vocab_size", 64),
        ("transformer/config.json", "codebook_size", 60),
        ("transformer/config.json", "encoder_hidden_size", 64),
        ("transformer/config.json", "cond_embed_dim", 64),
        ("transformer/config.json", "_class_name", "UNet2DModel"),
        ("vqvae/config.json", "_class_name", "AutoencoderKL"),
        ("vqvae/config.json", "block_out_channels", 8),
        ("vqvae/config.json", "block_out_channels", []),
        ("vqvae/config.json", "block_out_channels", [8] * 1000),
        ("vqvae/config.json", "block_out_channels", [8, 8, 8, 16, "16"]),
        ("vqvae/config.json", "down_block_types", ["AttnDownEncoderBlock2D"] * 5),
        ("vqvae/config.json", "act_fn", "x" * 10_000),
        ("vqvae/config.json", "norm_num_groups", 3),
        ("vqvae/config.json", "latent_channels", 65_536_000),
        ("text_encoder/config.json", "hidden_act", "gelu_evil"),
        ("text_encoder/config.json", "hidden_size", {}),
        ("text_encoder/config.json", "projection_dim", 16),
        ("text_encoder/config.json", "num_attention_heads", 5),
        ("scheduler/scheduler_config.json", "mask_token_id", 78),
        ("scheduler/scheduler_config.json", "mask_token_id", "79"),
        ("scheduler/scheduler_config.json", "masking_schedule", "quadratic"),
        ("scheduler/scheduler_config.json", "masking_schedule", ["cosine"]),
        ("tokenizer/tokenizer_config.json", "model_max_length", 10**30),
        ("tokenizer/tokenizer_config.json", "model_max_length", 78),
        ("traits.json", "backgrounds", {"warm": "javascript:alert(1)"}),
        ("traits.json", "heads", "cat"),
    ],
)
def test_refuses_a_bad_configuration_by_file_and_key(folder: Path, file: str, key: str, value: object) -> None:
    edit(folder, file, **{key: value})
    refused(lambda: locate(folder), file, key.removesuffix("_size"))


def test_refuses_heads_that_do_not_divide_the_width(folder: Path) -> None:
    edit(folder, "transformer/config.json", num_attention_heads=5)
    refused(lambda: locate(folder), "transformer/config.json", "heads")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "[" * 100_000,
        '{"hidden_size": ' + "9" * 10_000 + "}",
        b"\xff\xfe{}",
        " " * 1_000_001 + "{}",
    ],
)
@pytest.mark.parametrize("file", ["transformer/config.json", "scheduler/scheduler_config.json", "traits.json"])
def test_refuses_what_is_no_configuration(folder: Path, file: str, text: str | bytes) -> None:
    (folder / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(lambda: locate(folder), file)


@pytest.mark.parametrize("file", REQUIRED_FILES)
def test_refuses_a_folder_without_a_configuration(folder: Path, file: str) -> None:
    (folder / file).unlink()
    refused(lambda: locate(folder), f"{file} is missing")


def test_passes_over_bookkeeping(folder: Path) -> None:
    edit(folder, "transformer/config.json", _name_or_path="x", optimization_step=9, decay=0.99, surprise=1)
    edit(folder, "text_encoder/config.json", torch_dtype="float16", use_cache=True)
    load(folder)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "vocab.json").write_text("{"),
        lambda folder: (folder / "vocab.json").unlink(),
        lambda folder: [(folder / name).unlink() for name in ("vocab.json", "merges.txt")],
        lambda folder: (folder / "merges.txt").write_bytes(b"\xff\xfe\x00 x y z"),
        lambda folder: (folder / "merges.txt").unlink(),
        lambda folder: (folder / "vocab.json").write_text("{}"),
        lambda folder: (folder / "vocab.json").write_text('{"a": -1}'),
        lambda folder: (folder / "tokenizer.json").write_text("[" * 100_000),
        lambda folder: (folder / "tokenizer.json").write_text("[1]"),
        lambda folder: (folder / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}, "merges": [["a", 7]]}}'),
        lambda folder: edit(folder, "tokenizer_config.json", added_tokens_decoder={"x": {"content": "y"}}),
        lambda folder: edit(folder, "tokenizer_config.json", added_tokens_decoder={"1": "y"}),
        lambda folder: edit(folder, "tokenizer_config.json", eos_token={"content": []}),
        lambda folder: edit(folder, "tokenizer_config.json", eos_token=""),
        lambda folder: edit(folder, "tokenizer_config.json", unk_token="no word"),
    ],
    ids=[
        *("broken", "no vocabulary", "no files", "merges", "no merges", "empty", "a negative id", "deep", "a list"),
        *("a number", "no id", "not described", "badly described", "an empty token", "unknown"),
    ],
)
def test_refuses_a_bad_tokenizer(folder: Path, spoil: Callable[[Path], object]) -> None:
    edit(folder, "text_encoder/config.json", vocab_size=1000)  # not refused for its size
    spoil(folder / "tokenizer")
    refused(locate(folder).load_tokenizer, "tokenizer/vocab.json and the files next to it")


def test_refuses_a_tokenizer_of_absurd_size(folder: Path) -> None:
    with (folder / "tokenizer/merges.txt").open("r+b") as stream:
        stream.truncate(16_000_001)
    refused(locate(folder).load_tokenizer, "tokenizer/merges.txt is too large")


def test_refuses_an_id_that_the_text_encoder_does_not_know(folder: Path) -> None:
    edit(folder, "tokenizer/vocab.json", cat=10**9)
    refused(locate(folder).load_tokenizer, "tokenizer/vocab.json has 1000000001 entries")


def test_refuses_a_tokenizer_of_more_words_than_the_text_encoder_knows(folder: Path) -> None:
    edit(folder, "text_encoder/config.json", vocab_size=500)
    refused(locate(folder).load_tokenizer, "tokenizer/vocab.json has 525 entries", "vocab_size 500")


@pytest.mark.parametrize(
    ("file", "config", "changes"),
    [
        (TRANSFORMER, "transformer/config.json", {"hidden_size": 65_520, "intermediate_size": 65_536}),
        (TRANSFORMER, "transformer/config.json", {"num_hidden_layers": 256, "hidden_size": 16_384}),
        (VQGAN, "vqvae/config.json", {"block_out_channels": [65_536] * 5, "layers_per_block": 64}),
        (TEXT, "text_encoder/config.json", {"intermediate_size": 65_536, "num_hidden_layers": 256}),
        (TEXT, "text_encoder/config.json", {"vocab_size": 1_000_000}),
    ],
)
def test_a_huge_model_is_refused_before_memory_is_allocated(
    folder: Path, file: str, config: str, changes: dict[str, object]
) -> None:
    edit(folder, config, **changes)
    before = peak_memory()
    refused(lambda: load(folder, file), file)
    assert peak_memory() - before < 200_000_000


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize("key", ["gguf_file", "fast_tokenizer_files", "init_inputs"])
def test_refuses_a_tokenizer_that_names_other_files(folder: Path, key: str) -> None:
    edit(folder, "tokenizer/tokenizer_config.json", **{key: ["../../tokenizer.9.json"]})
    refused(lambda: locate(folder), "tokenizer/tokenizer_config.json", key)


def test_refuses_a_named_pipe_among_the_tokenizer_s_files(folder: Path) -> None:
    os.mkfifo(folder / "tokenizer/added_tokens.json")
    refused(locate(folder).load_tokenizer, "tokenizer/", "added_tokens.json", "regular file")
