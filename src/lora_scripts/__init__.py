"""lora-scripts: from fifty pictures to a LoRA, by editing one YAML file."""

__version__ = "0.1.0"
