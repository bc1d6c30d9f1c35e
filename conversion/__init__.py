"""Original checkpoint files -> safetensors, config and pipeline layout; see `conversion.convert`."""
