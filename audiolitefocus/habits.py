"""What users of diffusers write and this library does not have, with what to write instead."""

from collections.abc import Iterable

LOADING = {
    "use_safetensors": "safetensors are read where a repository has them",
    "device_map": "give device=, and offload=True where memory is short",
    "low_cpu_mem_usage": "weights are read into place as it is",
    "use_auth_token": "give token=",
    "scheduler": "give each call sampler='ddim' or 'dpm++'",
    "trust_remote_code": "code in a repository is never run",
    "custom_pipeline": "code in a repository is never run",
}
CALLING = {
    "max_new_tokens": "the number of generated tokens is the model's",
    "transcription": "speech models are not supported",
    "num_images_per_prompt": "give num_waveforms_per_prompt=",
    "timesteps": "give num_inference_steps= and sampler=",
    "cross_attention_kwargs": "give attention=",
}
SAVING = {
    "safe_serialization": "safetensors are what is written",
    "max_shard_size": "every network is one file",
    "push_to_hub": "call push_to_hub(repo_id)",
}
ATTRIBUTES = {
    "scheduler": "give each call sampler='ddim' or 'dpm++'",
    "progress_bar": "set_progress_bar_config() shows one in every call",
    "enable_sequential_cpu_offload": "enable_model_cpu_offload() moves whole networks",
    "enable_attention_slicing": "attention never holds its weights: there is nothing to slice",
    "enable_xformers_memory_efficient_attention": "attention is PyTorch's fused one as it is",
    "enable_vae_slicing": "clips are decoded one by one as it is",
    "enable_vae_tiling": "give a call decode='tiled'",
    "load_lora_weights": "load_lora(FOLDER, scale) adds an adapter in PEFT's format",
    "tokenizer": "encode_prompt reads texts; its tokenizers are files in pipe.folder",
    "text_encoder": "its text towers are in pipe.text, and in pipe.components",
    "num_timesteps": "the call's num_inference_steps",
    "_interrupt": "set pipe.interrupt = True",
}


def refuse(names: Iterable[str], advice: dict[str, str], function: str) -> None:
    """Raise ValueError for the first of these arguments, which `function` does not have."""
    for name in names:
        hint = f": {advice[name]}" if name in advice else ""
        raise ValueError(f"{function} has no argument {name!r}{hint}")
