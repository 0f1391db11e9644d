"""Tiny random configurations of many architectures, in the shapes of their real checkpoints."""

from collections.abc import Callable
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

TOKENS, ROWS = 257, 304  # bytes and an end-of-text token; the rows beyond are padding
LAYERS = 2

BASE = {
    "vocab_size": ROWS,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "head_dim": 8,
    "bos_token_id": None,
    "eos_token_id": TOKENS - 1,
    "pad_token_id": None,
    "initializer_range": 0.15,
    "init_std": 0.15,
    "tie_word_embeddings": False,
    "attention_dropout": 0.0,
}
MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
DEEPSEEK = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "first_k_dense_replace": 1,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "num_key_value_heads": 2,
}
GPT2 = {"n_embd": 16, "n_layer": LAYERS, "n_head": 2, "n_positions": 256, "n_ctx": 256, "n_inner": 24, "rotary_dim": 4}
MAMBA_HEADS = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_chunk_size": 8}
LINEAR_HEADS = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 4, "linear_value_head_dim": 4}
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}


def _config(kind: str, *without: str, **values: Any) -> PreTrainedConfig:
    """Return a configuration from ``BASE`` and what differs, leaving out the keys of ``BASE`` that the architecture refuses."""
    return CONFIG_MAPPING[kind](**{k: v for k, v in BASE.items() if k not in without} | values)


def _qwen_vl(kind: str) -> PreTrainedConfig:
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [1, 1, 2]}
    text = {**BASE, "rope_parameters": rope}
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "intermediate_size": 24, "out_hidden_size": 16}
    ids = {"image_token_id": 301, "video_token_id": 302, "vision_start_token_id": 299, "vision_end_token_id": 300}
    return CONFIG_MAPPING[kind](text_config=text, vision_config=vision, tie_word_embeddings=False, **ids)


def _gemma3() -> PreTrainedConfig:
    text = {**BASE, "sliding_window": 8, "query_pre_attn_scalar": 8, "layer_types": ["sliding_attention", "full_attention"]}
    return CONFIG_MAPPING["gemma3"](text_config=text, vision_config=VISION, mm_tokens_per_image=4, image_token_index=300, boi_token_index=299)


def _gemma3n() -> PreTrainedConfig:
    shared = {"num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": ROWS, "laurel_rank": 4}
    layers = {"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2, "activation_sparsity_pattern": [0.0] * 4}
    return _config("gemma3n_text", sliding_window=6, **shared, **layers)


CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: _config("llama"),
    "mistral": lambda: _config("mistral", sliding_window=6),
    "mixtral": lambda: _config("mixtral", **MOE),
    "qwen2": lambda: _config("qwen2", tie_word_embeddings=True),
    "qwen3": lambda: _config("qwen3"),
    "qwen2_moe": lambda: _config("qwen2_moe", **MOE, shared_expert_intermediate_size=8),
    "qwen3_moe": lambda: _config("qwen3_moe", **MOE, mlp_only_layers=[0]),
    "gemma": lambda: _config("gemma", tie_word_embeddings=True),
    "gemma2": lambda: _config("gemma2", sliding_window=6, query_pre_attn_scalar=8, tie_word_embeddings=True),
    "gemma3_text": lambda: _config("gemma3_text", sliding_window=6, query_pre_attn_scalar=8, tie_word_embeddings=True),
    "gemma3": _gemma3,
    "llama4_text": lambda: _config("llama4_text", **MOE, intermediate_size_mlp=24, no_rope_layers=[1, 0], attention_chunk_size=32),
    "qwen2_vl": lambda: _qwen_vl("qwen2_vl"),
    "qwen2_5_vl": lambda: _qwen_vl("qwen2_5_vl"),
    "phi": lambda: _config("phi", num_key_value_heads=2),
    "phi3": lambda: _config("phi3"),
    "gpt2": lambda: _config("gpt2", **GPT2, tie_word_embeddings=True),
    "gpt_neox": lambda: _config("gpt_neox"),
    "gpt_neo": lambda: _config("gpt_neo", num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]], window_size=6),
    "gptj": lambda: _config("gptj", **GPT2),
    "gpt_bigcode": lambda: _config("gpt_bigcode", **GPT2, tie_word_embeddings=True),
    "opt": lambda: _config("opt", ffn_dim=24, word_embed_proj_dim=16, pad_token_id=1, tie_word_embeddings=True),
    "bloom": lambda: _config("bloom", n_head=2, n_layer=LAYERS, tie_word_embeddings=True),
    "falcon": lambda: _config("falcon", "head_dim", alibi=False, new_decoder_architecture=False),
    "falcon-alibi": lambda: _config("falcon", "head_dim", alibi=True, new_decoder_architecture=False),
    "stablelm": lambda: _config("stablelm"),
    "starcoder2": lambda: _config("starcoder2", residual_dropout=0.0),
    "olmo": lambda: _config("olmo"),
    "olmo2": lambda: _config("olmo2"),
    "olmo3": lambda: _config("olmo3", sliding_window=6),
    "olmoe": lambda: _config("olmoe", **MOE),
    "cohere": lambda: _config("cohere", logit_scale=0.5, tie_word_embeddings=True),
    "cohere2": lambda: _config("cohere2", sliding_window=6, tie_word_embeddings=True),
    "granite": lambda: _config("granite", logits_scaling=2.0, residual_multiplier=0.5),
    "granitemoe": lambda: _config("granitemoe", **MOE),
    "smollm3": lambda: _config("smollm3", no_rope_layers=[1, 0]),
    "deepseek_v2": lambda: _config("deepseek_v2", **DEEPSEEK, topk_method="greedy"),
    "deepseek_v3": lambda: _config("deepseek_v3", "head_dim", **DEEPSEEK),
    "glm": lambda: _config("glm"),
    "glm4": lambda: _config("glm4"),
    "gpt_oss": lambda: _config("gpt_oss", **MOE, sliding_window=6),
    "ernie4_5": lambda: _config("ernie4_5"),
    "nemotron": lambda: _config("nemotron"),
    "persimmon": lambda: _config("persimmon"),
    "helium": lambda: _config("helium"),
    "exaone4": lambda: _config("exaone4", sliding_window=6),
    "seed_oss": lambda: _config("seed_oss"),
    "phimoe": lambda: _config("phimoe", **MOE),
    "mpt": lambda: CONFIG_MAPPING["mpt"](d_model=16, n_heads=2, n_layers=LAYERS, max_seq_len=128, vocab_size=ROWS, eos_token_id=TOKENS - 1),
    "ctrl": lambda: _config("ctrl", **GPT2, dff=24, num_attention_heads=2),
    "xglm": lambda: _config("xglm", d_model=16, ffn_dim=24, num_layers=LAYERS, attention_heads=2, pad_token_id=1),
    "biogpt": lambda: _config("biogpt", pad_token_id=1),
    "openai-gpt": lambda: _config("openai-gpt", **GPT2),
    "mamba": lambda: _config("mamba", state_size=4),
    "mamba2": lambda: _config("mamba2", state_size=4, num_heads=4, n_groups=1, chunk_size=8),
    "falcon_mamba": lambda: _config("falcon_mamba", state_size=4),
    "rwkv": lambda: _config("rwkv", attention_hidden_size=16),
    "jamba": lambda: _config("jamba", attn_layer_period=2, attn_layer_offset=1, mamba_d_state=4, use_mamba_kernels=False),
    "recurrent_gemma": lambda: _config("recurrent_gemma", lru_width=16, attention_window_size=8, block_types=["recurrent", "attention"]),
    "bamba": lambda: _config("bamba", **MAMBA_HEADS, mamba_n_groups=1, attn_layer_indices=[1]),
    "granitemoehybrid": lambda: _config(
        "granitemoehybrid", **MOE, **MAMBA_HEADS, layer_types=["mamba", "attention"], shared_intermediate_size=8
    ),
    "lfm2": lambda: _config("lfm2", full_attn_idxs=[1]),
    "qwen3_next": lambda: _config(
        "qwen3_next", **MOE, **LINEAR_HEADS, layer_types=["linear_attention", "full_attention"], shared_expert_intermediate_size=8
    ),
    "minimax": lambda: _config("minimax", **MOE, layer_types=["full_attention", "linear_attention"], block_size=8),
    "xlstm": lambda: _config("xlstm", num_heads=2, embedding_dim=16, num_blocks=2),
    "bert": lambda: _config("bert", is_decoder=False),
    "bert-decoder": lambda: _config("bert", is_decoder=True),
    "roberta": lambda: _config("roberta", is_decoder=False, pad_token_id=1),
    "electra": lambda: _config("electra", embedding_size=16),
    "xlm": lambda: _config("xlm", emb_dim=16, n_layers=2, n_heads=2, n_words=ROWS),
    "t5": lambda: _config("t5", d_model=16, d_ff=24, num_layers=LAYERS, num_heads=2, d_kv=8),
    "bart": lambda: _config("bart", d_model=16, encoder_layers=1, decoder_layers=LAYERS, pad_token_id=1),
    "gemma3n_text": _gemma3n,
    "diffllama": lambda: _config("diffllama", num_key_value_heads=2),
    "dots1": lambda: _config("dots1", **DEEPSEEK),
    "glm4_moe": lambda: _config("glm4_moe", **DEEPSEEK),
}
