"""The tokenizer of a folder, and transformers without its remarks."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lora_scripts.errors import UserError
from lora_scripts.families.causal_lm.load import Folder, processors_template

NOT_ITS_OWN = "take the tokenizer that came with the model, or another chat_template"


def load_tokenizer(path: Path) -> Any:
    """The tokenizer of a folder; one that knows the place of each token in the text. UserError for another."""
    with quiet():
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        except (ValueError, OSError, ImportError, RuntimeError, KeyError, AttributeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"transformers cannot load the tokenizer: {reason}", file=path) from None
    if not tokenizer.is_fast:
        raise UserError("the tokenizer has no tokenizer.json", file=path, hint="save it once with transformers")
    tokenizer.chat_template = tokenizer.chat_template or processors_template(path)
    tokenizer.model_max_length = int(1e30)  # lengths are looked after here; it would only warn
    # Llama 3's files ask for it: it would take the blank from "Quoi ?", or warn that it does not.
    tokenizer.clean_up_tokenization_spaces = False
    return tokenizer


def stops_of(folder: Folder, tokenizer: Any) -> frozenset[int]:
    """The tokens that end an answer, by the model's configs and its tokenizer."""
    eos = tokenizer.eos_token_id
    return folder.stops | ({eos} if eos is not None else set())


def places_of(config: Any) -> int | None:
    """How many tokens a text may have, by transformers' config of a model; None where it names no limit."""
    places = getattr(config.get_text_config(), "max_position_embeddings", None)
    return places if isinstance(places, int) and places > 0 else None


def unknown_sign(ids: Sequence[int], vocabulary: int, tokenizer: Any) -> str | None:
    """What is wrong with tokens that the model has no place for: a sign was given to the tokenizer alone."""
    token = max(ids, default=0)
    if token < vocabulary:
        return None
    sign = tokenizer.convert_ids_to_tokens(token)
    return f"the tokenizer has the sign {sign}, which is none of the model's {vocabulary} tokens"


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' bars and remarks: what matters of them is told here."""
    from transformers.utils import logging

    bar, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
