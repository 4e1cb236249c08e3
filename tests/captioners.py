"""Captioners of the true architectures with random weights, small enough to make in a test, each in a folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipProcessor,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from lora_scripts.label.base import CaptionOptions
from lora_scripts.label.writer import INSTRUCTION, complete

WORDS = ("a", "the", "red", "blue", "big", "old", "house", "cat", "sky", "on", "near", "stands", "sleeps", ",", ".")
SIDE = {"height": 32, "width": 32}
TEXT = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 48}
EYES = {**TEXT, "image_size": 32, "patch_size": 8}


def tokenizer(special: dict[str, str], *, frame: str = "$A") -> PreTrainedTokenizerFast:
    """A token for each ASCII character; `special` names roles and tokens, `frame` is put around a text."""
    tokens = [*dict.fromkeys(special.values()), *map(chr, range(33, 127)), "Ġ", "Ċ"]  # the last two: space, line break
    inner = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        **{role: token for role, token in special.items() if role.endswith("_token")},
        extra_special_tokens=[token for role, token in special.items() if not role.endswith("_token")],
    )
    pairs = [(token, made.convert_tokens_to_ids(token)) for token in special.values() if token in frame]
    if pairs:
        made.backend_tokenizer.post_processor = processors.TemplateProcessing(single=frame, special_tokens=pairs)
    return made


def _save(folder: Path, model: Any, *parts: Any, spread: float = 0.35) -> Path:
    """`spread` is the standard deviation of the weights, such that other pictures give other words."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, spread, generator=generator)
    for part in (model, *parts):
        part.save_pretrained(folder)
    return folder


def blip(folder: Path) -> Path:
    folder.mkdir(parents=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    config = BlipConfig(
        text_config={
            **TEXT,
            "vocab_size": len(words) + 1,
            "encoder_hidden_size": 32,
            "bos_token_id": len(words),  # as published: [DEC] is beyond the tokenizer
            "sep_token_id": 3,
            "eos_token_id": 3,
            "pad_token_id": 0,
        },
        vision_config=EYES,
        projection_dim=32,
    )
    model = BlipForConditionalGeneration(config)
    return _save(folder, model, BertTokenizer(str(folder / "vocab.txt")), BlipImageProcessorPil(size=SIDE))


def blip2(folder: Path, language: str = "opt") -> Path:
    special = {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>", "image": "<image>"}
    words = tokenizer(special, frame="</s> $A" if language == "opt" else "$A </s>")
    picture = words.convert_tokens_to_ids("<image>")
    text = {"vocab_size": len(words), "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 0}
    if language == "opt":
        text |= {"model_type": "opt", **TEXT, "ffn_dim": 48, "word_embed_proj_dim": 32}
    else:
        text |= {"model_type": "t5", "d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2}
        text |= {"decoder_start_token_id": 1}
    config = Blip2Config(
        vision_config=EYES,
        qformer_config={**TEXT, "encoder_hidden_size": 32, "vocab_size": 8},
        text_config=text,
        num_query_tokens=4,
        image_token_index=picture,
    )
    return _save(folder, Blip2ForConditionalGeneration(config), words, BlipImageProcessorPil(size=SIDE))


def florence2(folder: Path) -> Path:
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "image": "<image>"}
    words = tokenizer(special, frame="<s> $A </s>")
    config = Florence2Config(
        vision_config={
            "embed_dim": [8, 16, 16, 32],
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 1, 1, 1],
            "num_groups": [1, 1, 1, 1],
            "window_size": 2,
            "projection_dim": 32,
            "max_position_embeddings": 10,
        },
        text_config={
            "model_type": "bart",
            "vocab_size": len(words),
            "d_model": 32,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "bos_token_id": 0,
            "pad_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 2,
        },
        image_token_id=words.convert_tokens_to_ids("<image>"),
    )
    size = {"height": 64, "width": 64}
    images = CLIPImageProcessorPil(size=size, do_center_crop=False)
    return _save(folder, Florence2ForConditionalGeneration(config), words, images)


def qwen(folder: Path, version: str = "qwen2_5_vl") -> Path:
    special = {"pad_token": "<|endoftext|>", "start": "<|im_start|>", "eos_token": "<|im_end|>"}
    special |= {"see": "<|vision_start|>", "seen": "<|vision_end|>", "image": "<|image_pad|>", "video": "<|video_pad|>"}
    words = tokenizer(special)
    ids = {name: words.convert_tokens_to_ids(token) for name, token in special.items()}
    text = {
        **TEXT,
        "vocab_size": len(words),
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
        "bos_token_id": None,
        "eos_token_id": ids["eos_token"],
        "pad_token_id": ids["pad_token"],
    }
    eyes = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "out_hidden_size": 32}
    tokens = {
        "image_token_id": ids["image"],
        "video_token_id": ids["video"],
        "vision_start_token_id": ids["see"],
        "vision_end_token_id": ids["seen"],
    }
    if version == "qwen2_5_vl":
        eyes |= {"patch_size": 14, "window_size": 56, "fullatt_block_indexes": [0]}
        model: Any = Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(text_config=text, vision_config=eyes, **tokens)
        )
    else:
        eyes |= {"patch_size": 16, "deepstack_visual_indexes": [0], "num_position_embeddings": 16}
        model = Qwen3VLForConditionalGeneration(
            Qwen3VLConfig(text_config={**text, "head_dim": 16}, vision_config=eyes, **tokens)
        )
    model.generation_config.eos_token_id = [ids["eos_token"], ids["pad_token"]]
    images = Qwen2VLImageProcessorPil(patch_size=eyes["patch_size"], size={"shortest_edge": 1024, "longest_edge": 8192})
    return _save(folder, model, words, images, spread=0.2 if version == "qwen2_5_vl" else 0.35)


def llava(folder: Path, eyes: str = "siglip", template: str | None = None, *, select: str = "full") -> Path:
    special = {"bos_token": "<|begin|>", "eos_token": "<|eot|>", "head": "<|head|>", "image": "<image>"}
    words = tokenizer(special, frame="<|begin|> $A")
    words.chat_template = template
    config = LlavaConfig(
        vision_config={"model_type": f"{eyes}_vision_model", **EYES},
        text_config={
            "model_type": "llama",
            **TEXT,
            "vocab_size": len(words),
            "num_key_value_heads": 1,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 1,
        },
        image_token_index=words.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy=select,
        vision_feature_layer=-2,
    )
    if eyes == "clip":
        images: Any = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=SIDE)
    else:
        images = SiglipImageProcessorPil(size=SIDE)
    return _save(folder, LlavaForConditionalGeneration(config), words, images)


# --- the same in plain transformers code ------------------------------------------------------------------------------

Inputs = Callable[[Image.Image], Any]


def _blip(folder: Path) -> tuple[Any, Inputs]:
    processor = BlipProcessor(BlipImageProcessorPil.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))
    return BlipForConditionalGeneration, lambda image: processor(image, return_tensors="pt")


def _blip2(folder: Path) -> tuple[Any, Inputs]:
    images, tokenizer = BlipImageProcessorPil.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    processor = Blip2Processor(images, tokenizer, num_query_tokens=4)
    return Blip2ForConditionalGeneration, lambda image: processor(image, text="", return_tensors="pt")


def _florence2(folder: Path) -> tuple[Any, Inputs]:
    images, tokenizer = CLIPImageProcessorPil.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    images.image_seq_length = 5  # 64 px, a place for 32: 2 x 2, and the whole
    tokenizer.image_token, tokenizer.image_token_id = "<image>", tokenizer.convert_tokens_to_ids("<image>")
    processor = Florence2Processor(images, tokenizer)
    return Florence2ForConditionalGeneration, lambda image: processor(
        images=image, text="<DETAILED_CAPTION>", return_tensors="pt"
    )


def _qwen(folder: Path) -> tuple[Any, Inputs]:
    """With the prompt that the published chat templates give."""
    new = "qwen3" in folder.name
    system = "" if new else "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    images, tokenizer = Qwen2VLImageProcessorPil.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

    def inputs(image: Image.Image) -> Any:
        seen = images(image, return_tensors="pt")
        _, height, width = seen["image_grid_thw"][0].tolist()
        marks = "<|vision_start|>" + "<|image_pad|>" * (height * width // 4) + "<|vision_end|>"
        text = f"{system}<|im_start|>user\n{marks}{INSTRUCTION}<|im_end|>\n<|im_start|>assistant\n"
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        kinds = (ids == tokenizer.convert_tokens_to_ids("<|image_pad|>")).int()
        return {**seen, "input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": kinds}

    return Qwen3VLForConditionalGeneration if new else Qwen2_5_VLForConditionalGeneration, inputs


def _llava(folder: Path) -> tuple[Any, Inputs]:
    clip = "clip" in folder.name
    processor = LlavaProcessor(
        (CLIPImageProcessorPil if clip else SiglipImageProcessorPil).from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
        patch_size=8,
        vision_feature_select_strategy="default" if "default" in folder.name else "full",
        num_additional_image_tokens=1 if clip else 0,
    )
    return LlavaForConditionalGeneration, lambda image: processor(
        images=image, text=f"USER: <image>\n{INSTRUCTION} ASSISTANT:", return_tensors="pt", return_token_type_ids=False
    )


PLAIN = {
    "blip": _blip,
    "blip2": _blip2,
    "florence2": _florence2,
    "qwen2.5": _qwen,
    "qwen3": _qwen,
    "llava": _llava,
}
ANSWERS_WITH_PROMPT = ("blip2-opt", "qwen", "llava")


def plain(folder: Path, images: Sequence[Image.Image], options: CaptionOptions) -> list[str]:
    """What each picture alone gives; a text that is not complete is cut as `complete` does."""
    model_class, inputs_of = PLAIN[folder.name.split("-")[0]](folder)
    model, tokenizer, texts = model_class.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder), []
    for image in images:
        inputs = inputs_of(image)
        answer = model.generate(
            **inputs, num_beams=options.beams, max_new_tokens=options.max_new_tokens, do_sample=False
        )[0]
        if folder.name.startswith(ANSWERS_WITH_PROMPT):
            answer = answer[inputs["input_ids"].shape[1] :]
        words = tokenizer.decode(answer, skip_special_tokens=True, clean_up_tokenization_spaces=folder.name == "blip")
        ended = answer[-1].item() in tokenizer.all_special_ids
        texts.append(" ".join(words.split()) if ended else complete(" ".join(words.split())))
    return texts
