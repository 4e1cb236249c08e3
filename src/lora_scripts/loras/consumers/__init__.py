"""How the programs read a LoRA file; see `loras.verify`."""

RUN = ("diffusers", "PEFT")
"""Libraries that are run."""
STATED = ("A1111", "ComfyUI", "Forge", "InvokeAI", "SD.Next", "additional-networks", "kohya")
"""Programs whose rules are our own statements."""
CONSUMERS = (*RUN, *STATED)
