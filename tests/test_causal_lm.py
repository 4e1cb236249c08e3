"""Causal language models: loaded from a folder, packed without a leak, trained as transformers and PEFT do."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

import small_words
from lora_scripts.adapters.dora import RowDoraLayer
from lora_scripts.adapters.inject import inject
from lora_scripts.adapters.layer import Adapter, LoraLayer
from lora_scripts.adapters.weights import LoraWeights
from lora_scripts.compute.memory import MemoryOptions
from lora_scripts.data.texts.conversations import Conversation, RecordFault
from lora_scripts.errors import UserError, UserErrors
from lora_scripts.families.base import LoadOptions
from lora_scripts.families.causal_lm.encode import Encoder, encoder_of
from lora_scripts.families.causal_lm.load import CAUSAL_LM, folder_kind, layer_weights, open_folder
from lora_scripts.families.causal_lm.model import LanguageModel, load, open_model
from lora_scripts.families.causal_lm.modelfile import modelfile
from lora_scripts.families.causal_lm.template import Template, named_template
from lora_scripts.families.sequences import Example, TextBatch, fill_rows, packed, padded
from lora_scripts.families.texts import BEGINNING, Answering
from lora_scripts.loras import adapter_folder
from lora_scripts.train.loop import Hooks, LoopSettings, run_loop
from lora_scripts.train.optim import Group, Rates, build_optimizer
from lora_scripts.train.passes import there_and_back
from lora_scripts.train.state import RunState
from lora_scripts.train.text_feed import TextFeed, TextProbe, TextSettings

CPU = torch.device("cpu")
KINDS = ("qwen3", "llama", "gpt2", "mistral", "phi3", "gemma2")


def write(folder: Path, kind: str, **changes: Any) -> Path:
    more = {"pad_token_id": 0} if kind == "phi3" else {}
    return small_words.write_model(folder, kind, **more | changes)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: write(tmp_path_factory.mktemp(kind) / "model", kind) for kind in KINDS}


def examples(count: int = 6, seed: int = 0) -> list[Example]:
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        n = rng.randrange(4, 40)
        rows.append(Example([rng.randrange(3, 300) for _ in range(n)], [i >= n // 3 for i in range(n)]))
    return rows


# --- packing ----------------------------------------------------------------------------------------------------------


def test_first_fit_decreasing() -> None:
    rows = fill_rows([5, 30, 7, 20, 12, 60], 40)
    assert sorted(i for row in rows for i in row) == list(range(6))
    assert rows == [[5], [1, 2], [3, 4, 0]]


def test_packed_holds_what_padded_holds() -> None:
    rows = examples()
    wide, narrow = padded(rows), packed(rows, 50)
    assert wide.mask is not None
    assert wide.mask.sum(1).tolist() == [len(e.ids) for e in rows]
    assert narrow.mask is None
    assert len(narrow.ids) < len(wide.ids)
    assert narrow.ids.shape[1] <= 50
    for batch in (wide, narrow):
        starts = [(r, c) for r, c in (batch.positions == 0).nonzero().tolist()]
        seen = []
        for r, c in starts:
            after = [d for rr, d in starts if rr == r and d > c]
            seen.append(batch.ids[r, c : min(after, default=batch.ids.shape[1])].tolist())
        for example in rows:
            assert any(ids[: len(example.ids)] == example.ids for ids in seen)
        assert int((batch.targets >= 0).sum()) == sum(e.count for e in rows)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_equals_alone(folders: dict[str, Path], kind: str) -> None:
    model = open_model(folders[kind], CPU, torch.float32)
    assert model.packs
    rows = examples()
    batch = packed(rows, 60)
    total, count = model.loss(batch)
    alone = [model.loss(padded([row])) for row in rows]
    assert count == sum(n for _, n in alone)
    assert total.item() == pytest.approx(sum(loss.item() for loss, _ in alone), rel=1e-5)


def test_models_that_would_mix_records_are_found_out(tmp_path: Path) -> None:
    """A convolution over neighbours, and places that the model counts by itself."""
    import transformers

    small: dict[str, Any] = {"vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    hybrid = transformers.Lfm2Config(
        **small, intermediate_size=48, num_key_value_heads=2, layer_types=["conv", "full_attention"], eos_token_id=0
    )
    counting = transformers.BloomConfig(**{k: v for k, v in small.items() if "num" not in k}, n_layer=2, n_head=4)
    for number, config in enumerate((hybrid, counting)):
        folder = tmp_path / str(number)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        small_words.tokenizer().save_pretrained(folder)
        for dtype in (torch.float32, torch.bfloat16):
            assert not open_model(folder, CPU, dtype).packs


def test_a_leak_is_found_in_bf16_too(folders: dict[str, Path]) -> None:
    model = open_model(folders["qwen3"], CPU, torch.bfloat16)
    assert model.leak() == 0.0
    run = model._run

    def careless(module: Any, batch: TextBatch) -> Any:
        mask = torch.ones_like(batch.ids)  # as most trainers give it: then positions are not looked at
        return run(module, TextBatch(batch.ids, batch.targets, batch.positions, mask, batch.names))

    model._run = careless  # type: ignore[method-assign]
    assert model.leak() > 0.1


# --- against transformers and PEFT ------------------------------------------------------------------------------------

TALKS = [
    Conversation(
        (
            {"role": "user", "content": f"what is {i}+{i}? " + "hello " * (i % 5)},
            {"role": "assistant", "content": f"it is {2 * i}" + ", sunny" * (i % 7)},
        )
    )
    for i in range(40)
]


def _trained(folder: Path, feed_of: Any, steps: int, kind: type[LoraLayer] = LoraLayer) -> tuple[Any, RunState]:
    model = open_model(folder, CPU, torch.float32)
    layers = inject(model.roots, model.usual, lambda _, layer: kind(layer, 4, 8.0), seed=1)
    parameters = [p for layer in layers.values() for p in layer.values().values()]
    optimizer = build_optimizer("adamw", [Group("lora", parameters, 1e-2)], 0.01)
    state = RunState(0, steps, {}, {}, {})
    settings = LoopSettings(steps, Rates("constant"), 1.0, 0, 10**6, 0)
    hooks = Hooks(lambda facts: None, lambda: None, lambda: None, lambda: False)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    run_loop(there_and_back(model.loss, scaler), feed_of(model).steps, optimizer, scaler, settings, state, hooks)
    return (model, layers), state


def _feed(model: LanguageModel, *, packing: bool) -> TextFeed:
    coder = Encoder(model.tokenizer, Template(model.tokenizer, model.tokenizer.chat_template), model.stops)
    rows = [example for talk in TALKS for example in coder.encode(talk)]
    return TextFeed(rows, [f"x:{i}" for i in range(len(rows))], TextSettings(4, 2, 1, 7, 128, packing))


@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
@pytest.mark.parametrize(("packing", "dora"), [(True, False), (False, False), (True, True)])
def test_first_losses_are_those_of_transformers_and_peft(
    folders: dict[str, Path], kind: str, packing: bool, dora: bool
) -> None:
    """Their model, their LoRA or DoRA, their tokens and mask, their loss and AdamW: 20 steps of two batches of four
    records."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    layer_kind = RowDoraLayer if dora else LoraLayer
    (ours, layers), state = _trained(folders[kind], lambda model: _feed(model, packing=packing), 20, layer_kind)
    base = AutoModelForCausalLM.from_pretrained(folders[kind])
    tok = AutoTokenizer.from_pretrained(folders[kind])
    names = sorted({path.rpartition(".")[2] for path in layers})
    more = {"fan_in_fan_out": kind == "gpt2", "use_dora": dora}
    config = LoraConfig(r=4, lora_alpha=8, target_modules=names, task_type="CAUSAL_LM", **more)
    peft = get_peft_model(base, config)
    fresh = open_model(folders[kind], CPU, torch.float32)
    start = inject(fresh.roots, fresh.usual, lambda _, layer: LoraLayer(layer, 4, 8.0), seed=1)
    for name, p in peft.named_parameters():
        if "lora_A" in name:
            path = "lm." + name.removeprefix("base_model.model.").removesuffix(".lora_A.default.weight")
            p.data.copy_(start[path].values()["down"])
    trained = [p for p in peft.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.01)
    marked = small_words.CHATML.replace(
        "m.content + '<|im_end|>\\n' }}",
        "'' }}{%- if m.role == 'assistant' %}{% generation %}{{- m.content + '<|im_end|>\\n' }}{% endgeneration %}"
        "{%- else %}{{- m.content + '<|im_end|>\\n' }}{%- endif %}",
    )
    losses = []
    feed = _feed(ours, packing=packing)
    order = [window for epoch in range(9) for window in _windows(feed, epoch)][:20]
    for window in order:
        talks = [[dict(m) for m in TALKS[i].messages] for batch in window for i in batch]
        rows = [
            tok.apply_chat_template(t, chat_template=marked, return_dict=True, return_assistant_tokens_mask=True)
            for t in talks
        ]
        width = max(len(row["input_ids"]) for row in rows)
        ids, labels, mask = (torch.full((len(rows), width), fill) for fill in (0, -100, 0))
        for n, row in enumerate(rows):
            size = len(row["input_ids"])
            ids[n, :size], mask[n, :size] = torch.tensor(row["input_ids"]), 1
            chosen = torch.tensor(row["assistant_masks"]).bool()
            labels[n, :size][chosen] = ids[n, :size][chosen]
        loss = peft(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert state.losses == pytest.approx(losses, abs=1e-4)
    assert losses[-1] < losses[0] - 0.5


def _windows(feed: TextFeed, epoch: int) -> Iterator[list[list[int]]]:
    batches = feed.batches(epoch)
    for start in range(0, len(batches), feed.settings.accumulation):
        yield batches[start : start + feed.settings.accumulation]


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("kind", ["qwen3", "gpt2", "phi3"])
def test_peft_loads_what_is_written_with_equal_logits(
    folders: dict[str, Path], tmp_path: Path, kind: str, dora: bool
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = open_model(folders[kind], CPU, torch.float32)
    every = model.usual

    def make(path: str, layer: nn.Module) -> Adapter:
        return (RowDoraLayer if dora else LoraLayer)(layer, 4 if ".0." in path else 2, 3.0)

    layers = inject(model.roots, every, make)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in layers.values():
            layer.values()["up"].normal_(std=0.2, generator=draw)
            if dora:
                layer.values()["magnitude"].mul_(1 + 0.2 * torch.rand(len(layer.weight), generator=draw))
    batch = padded(examples())
    assert batch.mask is not None
    weights = {}
    for path, layer in layers.items():
        own = layer.leaves()
        weights[path] = LoraWeights(own["lora_down.weight"], own["lora_up.weight"], layer.alpha, own.get("dora_scale"))
    files = adapter_folder.files_of(
        weights, torch.float32, base=str(folders[kind]), layers=every, transposed=bool(model.transposed)
    )
    adapter_folder.write(tmp_path / "adapter", files)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["use_dora"] is dora and config["fan_in_fan_out"] is (kind == "gpt2")
    assert config["target_modules"] == sorted({path.rpartition(".")[2] for path in every})
    base = AutoModelForCausalLM.from_pretrained(folders[kind])
    plain = base(input_ids=batch.ids, attention_mask=batch.mask).logits
    theirs = PeftModel.from_pretrained(base, tmp_path / "adapter")(
        input_ids=batch.ids, attention_mask=batch.mask
    ).logits
    inside = batch.mask.bool()
    assert (model.logits(batch) - theirs)[inside].abs().max() < 1e-4
    assert (plain - theirs)[inside].abs().max() > 0.1


def test_probe_is_the_mean_loss_of_each_record(folders: dict[str, Path]) -> None:
    model = open_model(folders["qwen3"], CPU, torch.float32)
    rows = examples()
    each = TextProbe(model, rows, 2).losses()
    for row, value in zip(rows, each, strict=True):
        loss, count = model.loss(padded([row]))
        assert value.item() == pytest.approx(loss.item() / count, rel=1e-5)


def test_batches_without_packing_are_of_about_one_length() -> None:
    rows = examples(200)
    settings = TextSettings(4, 1, 1, 3, 64, False)
    feed = TextFeed(rows, [""] * 200, settings)
    batches = feed.batches(0)
    assert sorted(i for batch in batches for i in batch) == list(range(200))
    spread = [max(len(rows[i].ids) for i in b) - min(len(rows[i].ids) for i in b) for b in batches]
    assert max(spread) <= 8
    assert feed.batches(1) != batches
    first = [[b.ids for b in step] for _, step in feed.steps(3, 6)]
    again = [[b.ids for b in step] for _, step in feed.steps(0, 6)][3:]
    assert all(torch.equal(a, b) for x, y in zip(first, again, strict=True) for a, b in zip(x, y, strict=True))


# --- the folder -------------------------------------------------------------------------------------------------------


def test_what_a_folder_is(folders: dict[str, Path], tmp_path: Path) -> None:
    assert folder_kind(folders["qwen3"]) is CAUSAL_LM
    assert folder_kind(folders["gpt2"]) is CAUSAL_LM
    assert folder_kind(tmp_path) is None
    opened = open_folder(folders["llama"])
    assert opened.architecture == "LlamaForCausalLM"
    assert opened.parameters == sum(
        p.numel() for p in open_model(folders["llama"], CPU, torch.float32).model.parameters()
    )


def test_faults_of_a_folder_all_at_once(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    config = json.loads((folders["qwen3"] / "config.json").read_text())
    config |= {"architectures": ["Qwen3ForSequenceClassification"], "quantization_config": {"quant_method": "gptq"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UserErrors) as caught:
        open_folder(folder)
    told = "\n".join(str(error) for error in caught.value.errors)
    assert "this is no causal language model, but Qwen3ForSequenceClassification" in told
    assert "stored rounded (gptq)" in told
    assert "no tokenizer" in told
    assert "there is pytorch_model.bin, which is not read" in told
    with pytest.raises(UserError, match="no such folder"):
        open_folder(tmp_path / "nowhere")
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="this is the folder of a LoRA, not of a model"):
        open_folder(folder)
    around = tmp_path / "around"
    shutil.copytree(folders["qwen3"], around / "snapshots" / "1a2b")
    with pytest.raises(UserError, match=re.escape(f"did you mean {around / 'snapshots' / '1a2b'}?")):
        open_folder(around)


def test_a_folder_whose_configs_hold_other_things_than_names_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": 5, "model_type": ["gpt2"]}')
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a.weight": ["model.safetensors"]}}')
    assert folder_kind(tmp_path) is None
    with pytest.raises(UserErrors, match="no causal language model"):
        open_folder(tmp_path)


def test_weights_that_do_not_fit(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = write(tmp_path / "model", "qwen3")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3, "layer_types": None}))
    with pytest.raises(UserError, match=r"the weights do not fit config\.json: model\.layers\.2"):
        open_model(folder, CPU, torch.float32)


def test_tied_output_layers_and_experts_are_refused_by_name(folders: dict[str, Path], tmp_path: Path) -> None:
    import transformers

    model = open_model(folders["qwen3"], CPU, torch.float32)
    assert "lm.lm_head" not in model.trainable()
    assert "lm_head is the table of embeddings" in str(model.refusal("lm.lm_head", lambda path: path == "lm.lm_head"))
    twice = shutil.copytree(folders["qwen3"], tmp_path / "twice")  # as some programs save it: the table two times
    tensors = load_file(twice / "model.safetensors")
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, twice / "model.safetensors")
    assert "lm.lm_head" not in open_model(twice, CPU, torch.float32).trainable()
    untied = open_model(write(tmp_path / "untied", "qwen3", tie_word_embeddings=False), CPU, torch.float32)
    assert "lm.lm_head" in untied.trainable()
    assert "lm.lm_head" not in untied.usual
    config = transformers.Qwen3MoeConfig(
        vocab_size=400, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "moe")
    small_words.tokenizer().save_pretrained(tmp_path / "moe")
    experts = open_model(tmp_path / "moe", CPU, torch.float32)
    assert all("self_attn" in path for path in experts.usual)
    assert "names experts" in str(experts.refusal("*experts*", lambda path: "experts" in path))


@pytest.mark.parametrize("kind", ["qwen3", "gemma2", "gpt2"])
def test_the_loss_is_that_of_the_whole_logits(folders: dict[str, Path], kind: str) -> None:
    """Gemma 2 caps its logits. Where the output layer is not all that stands before them, the model is asked itself."""
    model = open_model(folders[kind], CPU, torch.float32)
    assert model.head is not None
    batch = padded(examples())
    wanted = F.cross_entropy(model.logits(batch).flatten(0, 1), batch.targets.flatten(), reduction="sum").item()
    assert model.loss(batch)[0].item() == pytest.approx(wanted, rel=1e-5)
    assert model.losses(batch).sum().item() == pytest.approx(wanted, rel=1e-5)

    forward = type(model.model).forward

    def louder(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = forward(self, *args, **kwargs)
        out.logits = out.logits * 1.5
        return out

    other = open_model(folders[kind], CPU, torch.float32)
    other.model.__class__ = type("Louder", (type(other.model),), {"forward": louder})
    assert other.head is None
    wanted = F.cross_entropy(other.logits(batch).flatten(0, 1), batch.targets.flatten(), reduction="sum").item()
    assert other.loss(batch)[0].item() == pytest.approx(wanted, rel=1e-5)
    assert other.losses(batch).sum().item() == pytest.approx(wanted, rel=1e-5)


# --- merged -----------------------------------------------------------------------------------------------------------


def _adapter(folder: Path, base: Path, std: float = 0.2) -> Path:
    """A random LoRA on all layers, written as PEFT has it."""
    model = open_model(base, CPU, torch.float32)
    draw = torch.Generator().manual_seed(0)
    weights = {}
    for path in model.usual:
        out, width = model.trainable()[path].weight.shape
        down, up = torch.randn(4, width, generator=draw) / width**0.5, torch.randn(out, 4, generator=draw) * std
        weights[path] = LoraWeights(down, up, 8.0)
    transposed = bool(model.transposed)
    files = adapter_folder.files_of(weights, torch.float32, base=str(base), layers=model.usual, transposed=transposed)
    adapter_folder.write(folder, files)
    return folder


@pytest.mark.parametrize("kind", ["qwen3", "gpt2", "phi3"])
def test_the_reader_of_lora_files_takes_it_and_merge_merges(
    folders: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer as PeftLayer
    from transformers import AutoModelForCausalLM

    from lora_scripts.loras import file as loras
    from lora_scripts.workshop.common import Weighted
    from lora_scripts.workshop.merge import merge

    adapter = _adapter(tmp_path / "adapter", folders[kind])
    read = loras.read(adapter)
    assert read.family.name == "causal_lm"
    assert set(read.weights) == set(open_model(folders[kind], CPU, torch.float32).usual)
    result = merge(folders[kind], [Weighted(adapter, 0.5)], tmp_path / "merged")
    assert result.changed == len(read.weights)
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"} <= names
    merged = open_model(tmp_path / "merged", CPU, torch.float32)
    batch = padded(examples())
    base = AutoModelForCausalLM.from_pretrained(folders[kind])
    peft = PeftModel.from_pretrained(base, adapter)
    for module in peft.modules():
        if isinstance(module, PeftLayer):
            module.scaling["default"] *= 0.5
    assert batch.mask is not None
    theirs = peft(input_ids=batch.ids, attention_mask=batch.mask).logits
    inside = batch.mask.bool()
    assert (merged.logits(batch) - theirs)[inside].abs().max() < 1e-4
    assert (open_model(folders[kind], CPU, torch.float32).logits(batch) - theirs)[inside].abs().max() > 0.1


def test_the_layers_of_a_folder_are_those_of_its_model_whatever_stands_before_their_names(tmp_path: Path) -> None:
    """GPT-NeoX (Pythia) and Falcon have words of their own there; BLOOM's published file has none at all."""
    import transformers

    small: dict[str, Any] = {"vocab_size": 400, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
    for number, config in enumerate(
        (
            transformers.GPTNeoXConfig(**small, intermediate_size=48),
            transformers.FalconConfig(**small),
            transformers.BloomConfig(vocab_size=400, hidden_size=32, n_layer=2, n_head=4),
        )
    ):
        folder = tmp_path / str(number)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        small_words.tokenizer().save_pretrained(folder)
        usual = {path.removeprefix("lm.") for path in open_model(folder, CPU, torch.float32).usual}
        assert usual
        assert usual <= layer_weights(open_folder(folder)).keys()
    file = folder / "model.safetensors"
    tensors = {key.removeprefix("transformer."): value for key, value in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})
    assert usual <= layer_weights(open_folder(folder)).keys()


# --- less memory ------------------------------------------------------------------------------------------------------


def _gradients(model: LanguageModel) -> list[torch.Tensor]:
    layers = inject(model.roots, model.usual, lambda _, layer: LoraLayer(layer, 4, 8.0, dropout=0.2), seed=1)
    parameters = [p for layer in layers.values() for p in layer.values().values()]
    with torch.no_grad():
        for layer in layers.values():
            layer.values()["up"].fill_(0.02)
            layer.train()
    torch.manual_seed(4)
    loss, _ = model.loss(packed(examples(), 60))
    return list(torch.autograd.grad(loss, parameters))


def test_dropout_stays_on_whatever_the_base_is_asked_meanwhile(folders: dict[str, Path]) -> None:
    model = open_model(folders["qwen3"], CPU, torch.float32)
    layers = inject(model.roots, model.usual, lambda _, layer: LoraLayer(layer, 4, 8.0, dropout=0.5), seed=1)
    for asked in (
        lambda: model.loss(padded(examples())),  # the first one tries the output layer
        lambda: model.packs,
        lambda: model.answer([{"role": "user", "content": "hello"}], Answering(max_tokens=1)),
    ):
        asked()
        assert all(layer.training for layer in layers.values()) and not model.model.training


@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
def test_checkpointing_changes_no_gradient(folders: dict[str, Path], kind: str) -> None:
    plain = _gradients(open_model(folders[kind], CPU, torch.float32))
    options = LoadOptions(CPU, torch.float32, memory=MemoryOptions(checkpointing=True))
    again = _gradients(load(folders[kind], options))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


@pytest.mark.parametrize("storage", ["int8", "fp8"])
def test_rounded_bases_answer_nearly_alike_and_pack(folders: dict[str, Path], storage: Any) -> None:
    whole = open_model(folders["qwen3"], CPU, torch.float32)
    rounded = load(folders["qwen3"], LoadOptions(CPU, torch.float32, memory=MemoryOptions(storage=storage)))
    batch = padded(examples())
    near, far = (whole.logits(batch) - rounded.logits(batch)).norm() / whole.logits(batch).norm(), 1e-4
    assert far < near < (0.05 if storage == "int8" else 0.2)
    assert rounded.packs
    assert rounded.usual == whole.usual
    assert all(torch.isfinite(g).all() for g in _gradients(rounded))


def test_a_model_is_rounded_before_the_device_sees_it(folders: dict[str, Path]) -> None:
    """On torch's meta device there are no numbers to round: what comes there is rounded already."""
    there = torch.device("meta")
    model = load(folders["qwen3"], LoadOptions(there, torch.bfloat16, memory=MemoryOptions(storage="int8")))
    held = [*model.model.parameters(), *model.model.buffers()]
    assert model.device == there and {one.device for one in held} == {there}
    assert {one.dtype for one in held if one.dim() == 2 and one.shape[1] > 1} == {torch.int8, torch.bfloat16}


# --- answers ----------------------------------------------------------------------------------------------------------


def test_an_answer_is_what_the_model_finds_likeliest_and_ends_where_it_stops(folders: dict[str, Path]) -> None:
    model = open_model(folders["qwen3"], CPU, torch.float32)
    talk = [{"role": "user", "content": "what is 2+2?"}]
    ids = model.tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=True)["input_ids"]
    said = list(ids)
    for _ in range(12):
        logits = model.model(input_ids=torch.tensor([said])).logits[0, -1]
        said.append(int(logits.argmax()))
    wanted = said[len(ids) :]
    pieces: list[str] = []
    answer = model.answer(talk, Answering(max_tokens=12), pieces.append)
    end = next((i for i, token in enumerate(wanted) if token in model.stops), None)
    assert answer.text == model.tokenizer.decode(wanted[:end], skip_special_tokens=True) == "".join(pieces)
    assert answer.stopped == (end is not None)
    model.folder.generation["eos_token_id"] = [wanted[3]]  # type: ignore[index]
    short = model.answer(talk, Answering(max_tokens=12))
    assert short.stopped
    assert short.tokens == wanted.index(wanted[3])


def test_a_beginning_is_gone_on_with_as_it_stands(folders: dict[str, Path]) -> None:
    """As it is trained: a prompt with its completion knows no chat template."""
    model = open_model(folders["qwen3"], CPU, torch.float32)
    answer = model.answer([{"role": BEGINNING, "content": "what is"}], Answering(max_tokens=4))
    ids = model.tokenizer("what is")["input_ids"]
    out = model.model.generate(torch.tensor([ids]), max_new_tokens=4, do_sample=False)[0, len(ids) :]
    assert model.tokenizer.decode(out, skip_special_tokens=True) == answer.text


def test_an_empty_beginning_goes_on_from_the_end_of_the_text_before(folders: dict[str, Path]) -> None:
    """As a record with `prompt: ""` asks, of a tokenizer that puts nothing before a text."""
    model = open_model(folders["qwen3"], CPU, torch.float32)
    assert model.tokenizer("")["input_ids"] == []
    empty, other = ([{"role": BEGINNING, "content": text}] for text in ("", "what is"))
    out = model.model.generate(torch.tensor([[model.tokenizer.eos_token_id]]), max_new_tokens=4, do_sample=False)[0, 1:]
    wanted = model.tokenizer.decode(out, skip_special_tokens=True)
    together = model.answers([empty, other], Answering(max_tokens=4))
    assert [model.answer(one, Answering(max_tokens=4)) for one in (empty, other)] == together
    assert together[0].text == wanted


def test_answers_together_are_those_alone(folders: dict[str, Path]) -> None:
    model = open_model(folders["llama"], CPU, torch.float32)
    talks = [[{"role": "user", "content": "hello " * n}] for n in (1, 5, 2, 9)]
    together = model.answers(talks, Answering(max_tokens=8))
    assert together == [model.answer(talk, Answering(max_tokens=8)) for talk in talks]


def test_answers_are_as_they_were_asked_for_whatever_a_folder_sets(tmp_path: Path) -> None:
    """Qwen2.5's generation_config.json has a repetition_penalty, with which the likeliest token is another one."""
    folder, talk = small_words.write_model(tmp_path / "model"), [{"role": "user", "content": "hello"}]

    def said(**settings: Any) -> list[str]:
        (folder / "generation_config.json").write_text(json.dumps(settings))
        model = open_model(folder, torch.device("cpu"), torch.float32)
        return [model.answer(talk, Answering(12, heat), lambda piece: None).text for heat in (0.0, 1.0)]

    plain = said()
    assert said(repetition_penalty=1.5, do_sample=True, temperature=0.6, top_k=1, min_p=0.9) == plain
    assert said(num_beams=4, return_dict_in_generate=True, stop_strings=["o"]) == plain


def test_signs_that_only_the_tokenizer_has_are_told(tmp_path: Path) -> None:
    """Given to it by hand, without a row in the model's table: "[PAD]", or ChatML's for chat_template: chatml."""
    folder = small_words.write_model(tmp_path / "model")
    tokenizer = small_words.tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    model = open_model(folder, CPU, torch.float32)
    talks = [[{"role": "user", "content": text}] for text in ("hello", "how", "are", "you") * 2]
    stopped = [answer.stopped for answer in model.answers(talks, Answering(80, temperature=5.0))]
    assert len(set(stopped)) == 2  # some end sooner, and what fills up is left out
    talks.append([{"role": "user", "content": "hello [PAD]"}])
    says = f"has the sign [PAD], which is none of the model's {model.vocabulary} tokens"
    with pytest.raises(UserError, match=re.escape(says)):
        model.answer(talks[-1], Answering(4))
    with pytest.raises(UserError, match=re.escape(says)):
        model.answer([{"role": BEGINNING, "content": "[PAD]"}], Answering(4))
    record = Conversation((talks[-1][0], {"role": "assistant", "content": "Yes."}))
    for encoder in (model.encoder(), encoder_of(folder, None, "answers", 256)):
        with pytest.raises(RecordFault, match=re.escape(says)):
            encoder.encode(record)


def test_blanks_before_signs_stay_whatever_a_tokenizer_asks_for(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = small_words.write_model(tmp_path / "model")
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"clean_up_tokenization_spaces": True}))
    model, said = open_model(folder, CPU, torch.float32), "Quoi ? I do n't"
    capfd.readouterr()
    assert model.decode(model.tokenizer(said)["input_ids"]) == said
    assert capfd.readouterr().err == ""


def test_no_more_tokens_than_the_model_has_places_for(folders: dict[str, Path]) -> None:
    """GPT-2 has a table of places: one more, and torch's own error would end the run."""
    model = open_model(folders["gpt2"], CPU, torch.float32)
    assert model.places == model.model.config.n_positions == 256
    coder = model.encoder()
    (example,) = coder.encode(
        Conversation(({"role": "user", "content": "a"}, {"role": "assistant", "content": "b" * 300}))
    )
    assert (len(example.ids), coder.max_length, coder.counts.cut) == (256, 256, 1)
    assert model.loss(padded([example]))[0].isfinite()
    assert model.encoder(max_length=99).max_length == 99
    without = encoder_of(folders["gpt2"], None, "answers", 1 << 40)
    assert (without.places, without.max_length) == (256, 1 << 40)  # check tells how long the longest is
    short, long, most = ([{"role": "user", "content": "q" * n}] for n in (3, 220, 300))
    asked = model.room(short)
    assert asked is not None
    alone = model.answer(short, Answering(max_tokens=500))
    assert alone.stopped or alone.tokens == asked
    assert model.answers([long, short], Answering(max_tokens=40))[1] == model.answer(short, Answering(max_tokens=40))
    room = model.room(most)
    assert room is not None
    assert room < 1
    with pytest.raises(UserError, match="and the model takes 256 at once"):
        model.answer(most, Answering(max_tokens=4))


def test_drawn_answers_are_functions_of_the_seed(folders: dict[str, Path]) -> None:
    model = open_model(folders["qwen3"], CPU, torch.float32)
    talk = [{"role": "user", "content": "hello"}]

    def drawn(seed: int) -> str:
        return model.answer(talk, Answering(16, temperature=3.0, seed=seed)).text

    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert drawn(1) == drawn(1) != drawn(2)
    assert torch.equal(before, torch.get_rng_state())


def test_the_end_of_a_turn_ends_an_answer_of_a_base_model_too(tmp_path: Path) -> None:
    """A base whose configs know only the end of a text, with ChatML named in the config."""
    folder = write(tmp_path / "base", "qwen3")
    tokenizer = small_words.tokenizer(eos="</s>", template=None)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    for name in ("config.json", "generation_config.json"):
        told = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(told | {"eos_token_id": tokenizer.eos_token_id}))
    model = open_model(folder, CPU, torch.float32)
    assert model.template() is None
    assert model.stops == {tokenizer.eos_token_id}
    sign = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert model._ends("chatml") == {tokenizer.eos_token_id, sign}
    coder = model.encoder(template="chatml")
    (example,) = coder.encode(TALKS[0])
    assert example.ids[-1] == tokenizer.eos_token_id
    assert example.trained[-1]
    assert coder.counts.ended == 1
    with pytest.raises(UserError, match="there is none of the name vicuna; it is chatml, alpaca, or a"):
        model.encoder(template="vicuna")
    bare = small_words.tokenizer(signs=(), eos="</s>", template=None)
    with pytest.raises(UserError, match=r"the tokenizer does not know <\|im_start\|>, <\|im_end\|> as one token"):
        named_template("chatml", bare)


def _go_rendered(template: str, system: str, messages: list[dict[str, str]]) -> str:
    """Go's template language, as far as a Modelfile of ours uses it: if, else, range, eq, fields, and strings."""
    tokens = re.split(r"(\{\{.*?\}\})", template)
    out: list[str] = []

    def run(at: int, on: bool, message: dict[str, str] | None) -> int:
        """Up to the end or else that belongs to the block; gives where that stands."""
        while at < len(tokens):
            word = tokens[at]
            if not word.startswith("{{"):
                out.append(word if on else "")
                at += 1
                continue
            action = word[2:-2].strip()
            if action == "end" or action.startswith("else"):
                return at
            if action == "range .Messages":
                for one in messages if on else [{}]:
                    end = run(at + 1, on, one)
                at = end + 1
            elif action.startswith("if"):
                taken, hit = False, on and truth(action[3:], message)
                while True:
                    at = run(at + 1, hit, message)
                    taken = taken or hit
                    closing = tokens[at][2:-2].strip()
                    if closing == "end":
                        break
                    hit = on and not taken and (closing == "else" or truth(closing[8:], message))
                at += 1
            else:
                value = {".System": system, ".Content": (message or {}).get("content", "")}.get(action)
                out.append((json.loads(action) if value is None else value) if on else "")
                at += 1
        return at

    def truth(condition: str, message: dict[str, str] | None) -> bool:
        if condition == ".System":
            return bool(system)
        role = re.fullmatch(r'eq \.Role "(\w+)"', condition)
        assert role is not None
        return (message or {}).get("role") == role[1]

    run(0, True, None)
    return "".join(out)


@pytest.mark.parametrize("with_default", [False, True])
def test_modelfile_writes_what_the_chat_template_writes(with_default: bool) -> None:
    source = small_words.CHATML
    if with_default:  # as Qwen2.5 has a system prompt of its own
        own = "{{- '<|im_start|>system\\nBe good.<|im_end|>\\n' }}"
        source = "{%- if messages[0].role != 'system' %}" + own + "{%- endif %}" + source
    tokenizer = small_words.tokenizer(bos="<s>")
    template = Template(tokenizer, "{{- bos_token }}" + source)
    text = modelfile(template, ["<|im_end|>"])
    assert text is not None
    assert 'PARAMETER stop "<|im_end|>"' in text
    go = text.partition('TEMPLATE """')[2].partition('"""')[0]
    turns = [{"role": "user" if i % 2 == 0 else "assistant", "content": f"text {i} {{{{ x }}}}"} for i in range(5)]
    for count in (1, 3, 5):
        for system in ("", "Be brief."):
            talk = ([{"role": "system", "content": system}] if system else []) + turns[:count]
            wanted = template.render(talk, prompt=True)
            assert _go_rendered(go, system, talk) == wanted.removeprefix("<s>")
    thinking = Template(tokenizer, "{%- for m in messages %}{{ m.content * loop.index }}{% endfor %}")
    assert modelfile(thinking, []) is None


def test_merge_is_proved_and_talks_as_it_was_trained(folders: dict[str, Path], tmp_path: Path) -> None:
    from lora_scripts.workshop.common import Weighted
    from lora_scripts.workshop.merge import merge

    adapter = _adapter(tmp_path / "adapter", folders["qwen3"])
    source = small_words.CHATML
    (adapter / "chat_template.jinja").write_text(source + "{#- as trained #}")
    data = tmp_path / "held.jsonl"
    talk = json.dumps({"messages": list(TALKS[0].messages)}) + "\n"
    # What is wrong with the records is told before anything is written.
    wrong = (
        ({"prompt": "a word " * 600, "completion": "b"}, r"held\.jsonl:2: .*hold nothing"),
        ({"a": 1}, "no known form"),
    )
    for record, told in wrong:
        data.write_text(talk + json.dumps(record) + "\n")
        with pytest.raises(UserError, match=told):
            merge(folders["qwen3"], [Weighted(adapter)], tmp_path / "merged", data=data)
        assert not (tmp_path / "merged").exists()
    data.write_text(talk)
    result = merge(folders["qwen3"], [Weighted(adapter)], tmp_path / "merged", data=data)
    assert result.proof is not None
    assert result.proof.records == 1
    assert result.proof.largest < 1e-4
    assert result.proof.share < 1e-4
    assert result.proof.changed_answers == 0
    assert (tmp_path / "merged" / "chat_template.jinja").read_text() == source + "{#- as trained #}"
    assert "FROM ." in (tmp_path / "merged" / "Modelfile").read_text()
    model = open_model(tmp_path / "merged", CPU, torch.float32)
    assert model.tokenizer.chat_template == source + "{#- as trained #}"


def test_a_merge_that_swallows_the_lora_fails_and_leaves_nothing(folders: dict[str, Path], tmp_path: Path) -> None:
    """A change below what bf16 can tell, in a base of bf16."""
    from safetensors.torch import load_file, save_file

    from lora_scripts.workshop.common import Weighted
    from lora_scripts.workshop.merge import merge

    base = tmp_path / "base"
    shutil.copytree(folders["llama"], base)
    rounded = {name: t.bfloat16() for name, t in load_file(base / "model.safetensors").items()}
    save_file(rounded, base / "model.safetensors", {"format": "pt"})
    adapter = _adapter(tmp_path / "adapter", base, std=2e-5)
    with pytest.raises(UserError, match=r"is off by \d+ % of the change .*; use --precision fp32"):
        merge(base, [Weighted(adapter)], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    proof = merge(base, [Weighted(adapter)], tmp_path / "merged", precision="fp32").proof
    assert proof is not None
    assert proof.share < 0.05
