//! PEFT adapter folders: `adapter_config.json` and `adapter_model.safetensors`, as raw LoRA pairs.
