"""How long a run is: their steps, epochs and shares of a run as our epochs and steps."""

from __future__ import annotations

import math

from lora_scripts.adopt.folders import count
from lora_scripts.adopt.found import Found, Left
from lora_scripts.config.schema import TrainConfig

_USUAL = TrainConfig.model_fields["epochs"].default


def put_length(found: Found) -> int | None:
    """Sets epochs and every key that counts steps; the steps of the run, where the pictures are here to be counted."""
    seen = _seen(found)
    length = found.length
    batch, gathered = _whole(found, "batch_size"), _whole(found, "gradient_accumulation")
    each = math.ceil(math.ceil(seen / batch) / gathered) if seen else None
    steps = length.steps
    if length.epochs:
        found.put("epochs", length.epochs, note=length.epochs_why)
        steps = each * length.epochs if each else None
    elif length.steps and each:
        epochs = max(1, round(length.steps / each))
        steps = epochs * each
        found.put("epochs", epochs, note=f"{length.steps_why}; {each} steps an epoch, so {steps} steps")
        if steps != length.steps:
            found.left.append(Left(length.steps_why, f"a run has whole epochs here: {epochs}, which are {steps} steps"))
    elif length.steps:
        looked = length.steps * batch * gathered
        found.put("epochs", _USUAL, note=f"{length.steps_why}: to be set, see the end")
        text = f"set epochs to {looked} / (pictures x repeats): the pictures are not here to be counted"
        found.left.append(Left(length.steps_why, text))
    for key, share, why in length.shares:
        if steps:
            found.put(key, int(share * steps), note=f"{why} of {steps} steps")
        else:
            found.left.append(Left(why, f"{key} counts steps here: write {share:g} x the steps of the run"))
    for key, epochs_each, why in length.per_epoch:
        if each:
            found.put(key, max(1, round(epochs_each * each)), note=f"{why}, {each} steps an epoch")
        else:
            found.left.append(Left(why, f"{key} counts steps here: write {epochs_each:g} x the steps of an epoch"))
    return steps if each else None


def _seen(found: Found) -> int | None:
    """Pictures in one epoch, those of the class, too."""
    by_folders = found.puts.get("folder_repeats") is not None
    repeats = _whole(found, "repeats")
    own = count(str(found.puts["train_data_dir"].value), by_folders=by_folders, repeats=repeats)
    if "class_data_dir" not in found.puts:
        return own
    folder = str(found.puts["class_data_dir"].value)
    of_class = count(folder, by_folders=by_folders, repeats=repeats)
    if found.length.class_told:
        text = "there they are repeated until they are as many as the others, here each is seen as its folder says"
        if own and (bare := count(folder, by_folders=False, repeats=1)):
            times = max(1, round(own / bare))
            text += f": {of_class} to {own} an epoch; put them into a folder {times}_name, with folder_repeats: true"
        found.left.append(Left(f"as many pictures of the class ({found.length.class_told})", text))
    return own + of_class if own and of_class else None


def _whole(found: Found, key: str) -> int:
    value = found.puts[key].value if key in found.puts else TrainConfig.model_fields[key].default
    return value if isinstance(value, int) else 1
