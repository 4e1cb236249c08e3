"""Captions before the model: a large text encoder is loaded, asked, and gone, before the rest comes.

What it gave lies in the run's cache, where the feed finds it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from lora_scripts.config.schema import TrainConfig
from lora_scripts.data.cache import Cache
from lora_scripts.data.listing import list_data
from lora_scripts.events import Note, Progress, Sink
from lora_scripts.families import table
from lora_scripts.families.base import CaptionEncoder
from lora_scripts.formats import io
from lora_scripts.generate.cut import tell_cut
from lora_scripts.run import dataset, heldout
from lora_scripts.run.after.base_kept import OTHERS
from lora_scripts.run.after.copies import questions
from lora_scripts.run.configs import cache_of
from lora_scripts.run.preflight import Split
from lora_scripts.run.previews import previews_of, shown_beside, usual
from lora_scripts.train.asked import Said, all_said, make_caption
from lora_scripts.train.encoded import KEPT


def captions_first(
    config: TrainConfig,
    folder: Path,
    samples: Split,
    sink: Sink,
    write: Callable[[Path, bytes], None] = io.write_atomic,
) -> Callable[[CaptionEncoder], None]:
    """For `LoadOptions.first`: encodes every caption of a run into its cache, and keeps what will be drawn: the prompts
    of previews, of class pictures and of the looks for copies and for what is kept in the end."""

    def encode(encoder: CaptionEncoder) -> None:
        cache, fingerprint = Cache(cache_of(config, folder), write, KEPT), encoder.fingerprint()
        asked = list(dict.fromkeys(_asked(config, samples)))
        for done, one in enumerate(asked, 1):
            make_caption(cache, fingerprint, one, encoder.encode)
            sink(Progress("captions", done, len(asked)))
        captions = list(known := dict.fromkeys(one.caption for one in asked))
        tell_cut(encoder, captions, "caption", sink)
        prompts = dict.fromkeys(_prompts(config, samples, encoder))
        tell_cut(encoder, [prompt for prompt in prompts if prompt not in known], "prompt", sink)
        if short := [caption for caption in captions if caption and encoder.is_short(caption)]:
            text = "say less than those that the base was made for (docs/models.md), and may be learned worse, first: "
            sink(Note(f"note: {len(short)} captions {text}{short[0][:60]}"))

    return encode


def _asked(config: TrainConfig, samples: Split) -> Iterator[Said]:
    """All that are trained or measured, those of class pictures among them."""
    facts = table.find(config.base_model)
    steps, sees = facts.bucket_steps, facts.sees
    trained = dataset.preserving(config, dataset.planned(config, steps, samples.trained))
    yield from all_said(trained, sees=sees, dropped=config.caption_dropout > 0)
    yield from all_said(heldout.planned(config, steps, samples.held_out), sees=sees, dropped=False)
    if config.class_data_dir is not None:
        listing = list_data(config.class_data_dir, allow_missing_captions=bool(config.class_prompt))
        yield from (Said(listing.caption(name) or config.class_prompt) for name in listing.images)
    yield Said("")


def _prompts(config: TrainConfig, samples: Split, encoder: CaptionEncoder) -> Iterator[str]:
    """All that will be drawn, each once it is kept."""
    facts = table.find(config.base_model)
    asked = [question.preview for question in questions(config, samples.trained, samples.held_out)]
    # First those with references: a tower that is missing then means that the encoder is built anew.
    for preview in (*previews_of(config, samples.trained), *asked, usual(config)):
        texts = (preview.prompt, preview.sampling.negative)
        encoder.remember(texts, shown_beside(preview, facts) if facts.sees else ())
        yield from texts
    others = [*([config.class_prompt] if config.class_images else []), *OTHERS]
    encoder.remember(others)
    yield from others
