"""Tiny models of the transformers library with random weights: one entry per model type, nothing is downloaded.

`ENTRIES` maps names to functions that build a `Case`. A row of the tables is a class, its inputs and its configuration;
names that end in ``-eager`` have written-out attention in place of ``scaled_dot_product_attention``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor

from benchmarks.suites import Case, randomise

Config = dict[str, Any]
MakeInputs = Callable[[], dict[str, Tensor]]
Row = tuple[str, MakeInputs, Config]

# ----------------------------------------------------------------------------------------------------------- inputs


def _tokens(length: int = 7) -> Tensor:
    """Token ids, clear of the special tokens."""
    return torch.randint(5, 60, (2, length))


def _boxes(length: int = 7) -> Tensor:
    corners = torch.randint(0, 15, (2, length, 2))
    return torch.cat([corners, corners + torch.randint(1, 15, (2, length, 2))], dim=-1)


def _ones(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.long)


def _inputs(**makers: Callable[[], Tensor] | tuple[int, ...]) -> MakeInputs:
    """Keyword arguments: random numbers of a shape, or what a function returns."""

    def make() -> dict[str, Tensor]:
        return {name: torch.randn(m) if isinstance(m, tuple) else m() for name, m in makers.items()}

    return make


TEXT = _inputs(input_ids=_tokens)
MASKED = _inputs(input_ids=_tokens, attention_mask=partial(_ones, 2, 7))
LONG_TEXT = _inputs(input_ids=partial(_tokens, 16))
PAIR = _inputs(input_ids=_tokens, decoder_input_ids=partial(_tokens, 5))
IMAGE = _inputs(pixel_values=(2, 3, 32, 32))
IMAGE64 = _inputs(pixel_values=(2, 3, 64, 64))
IMAGE_TEXT = _inputs(input_ids=_tokens, pixel_values=(2, 3, 32, 32))
VIDEO = _inputs(pixel_values=(2, 4, 3, 32, 32))
WAVE = _inputs(input_values=(2, 800))

# --------------------------------------------------------------------------------------------------- configurations

IDS: Config = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZE: Config = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
BERT: Config = SIZE | {"vocab_size": 64, "intermediate_size": 48, "max_position_embeddings": 40, "use_cache": False}
LLAMA: Config = BERT | IDS | {"num_key_value_heads": 2, "head_dim": 8}
MOE: Config = LLAMA | {"num_experts_per_tok": 2, "moe_intermediate_size": 24, "experts_implementation": "eager"}
GPT: Config = IDS | {"vocab_size": 64, "n_positions": 40, "n_embd": 32, "n_layer": 2, "n_head": 4, "use_cache": False}
BART: Config = (
    IDS
    | {"vocab_size": 64, "d_model": 32, "max_position_embeddings": 40, "use_cache": False, "decoder_start_token_id": 2}
    | {"encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 48}
    | {"decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 56}
)
T5: Config = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 2} | {
    "num_heads": 4,
    "use_cache": False,
    "decoder_start_token_id": 0,
}
VIT: Config = SIZE | {"intermediate_size": 48, "image_size": 32, "patch_size": 8}
SWIN: Config = {
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
}
WAV: Config = (
    SIZE
    | {"intermediate_size": 48, "vocab_size": 40, "mask_time_prob": 0.0, "layerdrop": 0.0}
    | {"conv_dim": (16, 24, 24), "conv_kernel": (10, 3, 2), "conv_stride": (5, 4, 2), "num_feat_extract_layers": 3}
    | {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
)
RESNET: Config = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 2], "layer_type": "basic"}
RESNET4: Config = {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1], "layer_type": "basic"}
BACKBONE: Config = RESNET4 | {"model_type": "resnet", "embedding_size": 16, "out_features": ["stage4"]}
DETR: Config = (
    {"encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 48, "d_model": 32, "num_queries": 6}
    | {"decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 56}
    | {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None, "backbone_config": BACKBONE}
)
CLIP: Config = {"text_config": BERT | IDS, "vision_config": VIT, "projection_dim": 24}

# ----------------------------------------------------------------------------------------------------------- models

_ENCODERS: dict[str, Row] = {
    "bert": ("BertForSequenceClassification", MASKED, BERT),
    "roberta": ("RobertaForSequenceClassification", TEXT, BERT),
    "camembert": ("CamembertForTokenClassification", TEXT, BERT),
    "xlm-roberta": ("XLMRobertaForQuestionAnswering", TEXT, BERT),
    "xlm-roberta-xl": ("XLMRobertaXLForMaskedLM", TEXT, BERT),
    "distilbert": (
        "DistilBertForSequenceClassification",
        TEXT,
        {"vocab_size": 64, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 40},
    ),
    "albert": ("AlbertForMaskedLM", TEXT, BERT | {"embedding_size": 16}),
    "electra": ("ElectraForSequenceClassification", TEXT, BERT | {"embedding_size": 16}),
    "deberta": (
        "DebertaForSequenceClassification",
        TEXT,
        BERT | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_relative_positions": 8},
    ),
    "deberta-v2": (
        "DebertaV2ForSequenceClassification",
        TEXT,
        BERT | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
    ),
    "mpnet": ("MPNetForMaskedLM", TEXT, BERT),
    "ernie": ("ErnieForSequenceClassification", TEXT, BERT),
    "esm": (
        "EsmForMaskedLM",
        TEXT,
        BERT | {"pad_token_id": 1, "mask_token_id": 3, "position_embedding_type": "rotary"},
    ),
    "megatron-bert": ("MegatronBertForSequenceClassification", TEXT, BERT),
    "mobilebert": (
        "MobileBertForSequenceClassification",
        TEXT,
        BERT | {"embedding_size": 16, "intra_bottleneck_size": 16, "num_feedforward_networks": 2},
    ),
    "squeezebert": ("SqueezeBertForSequenceClassification", TEXT, BERT | {"embedding_size": 32}),
    "convbert": ("ConvBertForSequenceClassification", TEXT, BERT | {"embedding_size": 16}),
    "rembert": (
        "RemBertForSequenceClassification",
        TEXT,
        BERT | {"input_embedding_size": 16, "output_embedding_size": 24},
    ),
    "roformer": ("RoFormerForSequenceClassification", TEXT, BERT | {"embedding_size": 16}),
    "ibert": ("IBertForSequenceClassification", TEXT, BERT),
    "nystromformer": (
        "NystromformerForSequenceClassification",
        TEXT,
        BERT | {"num_landmarks": 4, "segment_means_seq_len": 4},
    ),
    "yoso": ("YosoForSequenceClassification", TEXT, BERT | {"use_expectation": True}),
    "modernbert": ("ModernBertForSequenceClassification", TEXT, BERT | IDS | {"global_attn_every_n_layers": 2}),
    "nomic-bert": ("NomicBertForSequenceClassification", TEXT, BERT),
    "fnet": ("FNetForSequenceClassification", TEXT, BERT),
    "funnel": (
        "FunnelForSequenceClassification",
        TEXT,
        {"vocab_size": 64, "block_sizes": [1, 1], "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 48},
    ),
    "longformer": ("LongformerForSequenceClassification", LONG_TEXT, BERT | {"attention_window": 4}),
    "big-bird": ("BigBirdForSequenceClassification", TEXT, BERT | {"attention_type": "original_full"}),
    "xlnet": (
        "XLNetForSequenceClassification",
        TEXT,
        {"vocab_size": 64, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48, "use_mems_eval": False},
    ),
    "xlm": ("XLMForSequenceClassification", TEXT, {"vocab_size": 64, "emb_dim": 32, "n_layers": 2, "n_heads": 4}),
    "flaubert": (
        "FlaubertForSequenceClassification",
        TEXT,
        {"vocab_size": 64, "emb_dim": 32, "n_layers": 2, "n_heads": 4},
    ),
    "reformer": (
        "ReformerForSequenceClassification",
        LONG_TEXT,
        {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 4, "attention_head_size": 8}
        | {"feed_forward_size": 48, "axial_pos_shape": [4, 4], "axial_pos_embds_dim": [8, 24], "use_cache": False}
        | {"attn_layers": ["local", "local"], "local_attn_chunk_length": 4, "is_decoder": False, "hash_seed": 0},
    ),
    "luke": (
        "LukeForMaskedLM",
        _inputs(
            input_ids=_tokens,
            entity_ids=lambda: torch.randint(1, 16, (2, 3)),
            entity_position_ids=lambda: torch.randint(0, 7, (2, 3, 4)),
        ),
        BERT | {"entity_vocab_size": 16, "entity_emb_size": 16},
    ),
    "splinter": ("SplinterForQuestionAnswering", TEXT, BERT),
    "tapas": ("TapasForSequenceClassification", TEXT, BERT),
    "layoutlm": (
        "LayoutLMForSequenceClassification",
        _inputs(input_ids=_tokens, bbox=_boxes),
        BERT | {"max_2d_position_embeddings": 32},
    ),
    "layoutlmv3": (
        "LayoutLMv3ForTokenClassification",
        _inputs(input_ids=_tokens, bbox=_boxes, pixel_values=(2, 3, 32, 32)),
        BERT
        | {"max_2d_position_embeddings": 32, "coordinate_size": 5, "shape_size": 6, "input_size": 32, "patch_size": 8},
    ),
    "lilt": (
        "LiltForTokenClassification",
        _inputs(input_ids=_tokens, bbox=_boxes),
        BERT | {"hidden_size": 48, "max_2d_position_embeddings": 32},
    ),
    "markuplm": ("MarkupLMForSequenceClassification", TEXT, BERT | {"xpath_unit_hidden_size": 8, "max_depth": 4}),
}

_DECODERS: dict[str, Row] = {
    "openai-gpt": ("OpenAIGPTLMHeadModel", TEXT, GPT),
    "gpt2": ("GPT2LMHeadModel", TEXT, GPT),
    "gpt2-classifier": ("GPT2ForSequenceClassification", TEXT, GPT),
    "gpt-neo": (
        "GPTNeoForCausalLM",
        TEXT,
        LLAMA | {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 4},
    ),
    "gpt-neox": ("GPTNeoXForCausalLM", TEXT, BERT | {"rotary_pct": 0.5}),
    "gpt-neox-japanese": ("GPTNeoXJapaneseForCausalLM", TEXT, BERT | {"rotary_pct": 0.5}),
    "gptj": ("GPTJForCausalLM", TEXT, GPT | {"rotary_dim": 4}),
    "codegen": ("CodeGenForCausalLM", TEXT, GPT | {"rotary_dim": 4}),
    "gpt-bigcode": ("GPTBigCodeForCausalLM", TEXT, GPT),
    "opt": ("OPTForCausalLM", TEXT, BERT | IDS | {"ffn_dim": 48, "word_embed_proj_dim": 24}),
    "bloom": ("BloomForCausalLM", TEXT, BERT | {"n_layer": 2, "n_head": 4}),
    "falcon": ("FalconForCausalLM", TEXT, BERT | {"new_decoder_architecture": False, "multi_query": True}),
    "falcon-new": ("FalconForCausalLM", TEXT, BERT | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "biogpt": ("BioGptForCausalLM", TEXT, BERT | IDS),
    "ctrl": ("CTRLLMHeadModel", TEXT, GPT | {"dff": 48}),
    "llama": ("LlamaForCausalLM", TEXT, LLAMA),
    "llama-classifier": ("LlamaForSequenceClassification", TEXT, LLAMA | {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("MistralForCausalLM", TEXT, LLAMA | {"sliding_window": 4}),
    "mixtral": ("MixtralForCausalLM", TEXT, MOE | {"num_local_experts": 4}),
    "qwen2": ("Qwen2ForCausalLM", TEXT, LLAMA | {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3ForCausalLM", TEXT, LLAMA),
    "qwen2-moe": (
        "Qwen2MoeForCausalLM",
        TEXT,
        MOE | {"num_experts": 4, "shared_expert_intermediate_size": 40, "decoder_sparse_step": 1},
    ),
    "qwen3-moe": ("Qwen3MoeForCausalLM", TEXT, MOE | {"num_experts": 4}),
    "gemma": ("GemmaForCausalLM", TEXT, LLAMA),
    "gemma2": ("Gemma2ForCausalLM", TEXT, LLAMA | {"sliding_window": 4}),
    "gemma3": ("Gemma3ForCausalLM", TEXT, LLAMA | {"sliding_window": 4}),
    "phi": ("PhiForCausalLM", TEXT, LLAMA | {"partial_rotary_factor": 0.5}),
    "phi3": ("Phi3ForCausalLM", TEXT, LLAMA),
    "phimoe": ("PhimoeForCausalLM", TEXT, MOE | {"num_local_experts": 4}),
    "persimmon": ("PersimmonForCausalLM", TEXT, LLAMA),
    "stablelm": ("StableLmForCausalLM", TEXT, LLAMA | {"partial_rotary_factor": 0.5}),
    "olmo": ("OlmoForCausalLM", TEXT, LLAMA),
    "olmo2": ("Olmo2ForCausalLM", TEXT, LLAMA),
    "olmoe": ("OlmoeForCausalLM", TEXT, MOE | {"num_experts": 4}),
    "cohere": ("CohereForCausalLM", TEXT, LLAMA | {"use_qk_norm": False}),
    "cohere-qk-norm": ("CohereForCausalLM", TEXT, LLAMA | {"use_qk_norm": True}),
    "cohere2": ("Cohere2ForCausalLM", TEXT, LLAMA | {"sliding_window": 4}),
    "granite": ("GraniteForCausalLM", TEXT, LLAMA),
    "granitemoe": ("GraniteMoeForCausalLM", TEXT, MOE | {"num_local_experts": 4}),
    "starcoder2": ("Starcoder2ForCausalLM", TEXT, LLAMA),
    "nemotron": ("NemotronForCausalLM", TEXT, LLAMA),
    "glm": ("GlmForCausalLM", TEXT, LLAMA),
    "glm4": ("Glm4ForCausalLM", TEXT, LLAMA),
    "helium": ("HeliumForCausalLM", TEXT, LLAMA),
    "smollm3": ("SmolLM3ForCausalLM", TEXT, LLAMA),
    "exaone4": ("Exaone4ForCausalLM", TEXT, LLAMA | {"sliding_window": 4, "sliding_window_pattern": 2}),
    "ernie4-5": ("Ernie4_5ForCausalLM", TEXT, LLAMA),
    "arcee": ("ArceeForCausalLM", TEXT, LLAMA),
    "apertus": ("ApertusForCausalLM", TEXT, LLAMA),
    "seed-oss": ("SeedOssForCausalLM", TEXT, LLAMA),
    "hunyuan": ("HunYuanDenseV1ForCausalLM", TEXT, LLAMA),
    "nanochat": ("NanoChatForCausalLM", TEXT, LLAMA),
    "diffllama": ("DiffLlamaForCausalLM", TEXT, LLAMA),
    "gpt-oss": ("GptOssForCausalLM", TEXT, MOE | {"num_local_experts": 4, "sliding_window": 4}),
    "dbrx": (
        "DbrxForCausalLM",
        TEXT,
        {"vocab_size": 64, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 40, "use_cache": False}
        | {"ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32}}
        | {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0}},
    ),
    "deepseek-v2": (
        "DeepseekV2ForCausalLM",
        TEXT,
        MOE
        | {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "kv_lora_rank": 16}
        | {"q_lora_rank": 20, "qk_rope_head_dim": 4, "qk_nope_head_dim": 6, "v_head_dim": 10, "head_dim": 4}
        | {"num_key_value_heads": 4},
    ),
    "deepseek-v3": (
        "DeepseekV3ForCausalLM",
        TEXT,
        MOE
        | {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "kv_lora_rank": 16}
        | {"q_lora_rank": 20, "qk_rope_head_dim": 4, "qk_nope_head_dim": 6, "v_head_dim": 10, "head_dim": 4}
        | {"num_key_value_heads": 4, "n_group": 2, "topk_group": 1},
    ),
    "mamba": (
        "MambaForCausalLM",
        TEXT,
        {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 6, "use_cache": False},
    ),
    "mamba2": (
        "Mamba2ForCausalLM",
        TEXT,
        SIZE
        | IDS
        | {"vocab_size": 64, "num_heads": 8, "head_dim": 8, "state_size": 6, "n_groups": 2, "chunk_size": 4}
        | {"use_cache": False},
    ),
    "falcon-mamba": (
        "FalconMambaForCausalLM",
        TEXT,
        {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 6, "use_cache": False},
    ),
    "rwkv": (
        "RwkvForCausalLM",
        TEXT,
        {
            "vocab_size": 64,
            "hidden_size": 32,
            "attention_hidden_size": 32,
            "num_hidden_layers": 2,
            "intermediate_size": 48,
            "use_cache": False,
        },
    ),
    "recurrent-gemma": (
        "RecurrentGemmaForCausalLM",
        TEXT,
        LLAMA | {"lru_width": 32, "attention_window_size": 8, "block_types": ["recurrent", "attention"]},
    ),
    "lfm2": (
        "Lfm2ForCausalLM",
        TEXT,
        LLAMA | {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    ),
    "bamba": (
        "BambaForCausalLM",
        TEXT,
        LLAMA
        | {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 6, "mamba_n_groups": 2, "mamba_chunk_size": 4}
        | {"attn_layer_indices": [1]},
    ),
    "jamba": (
        "JambaForCausalLM",
        TEXT,
        MOE
        | {"num_experts": 4, "attn_layer_offset": 1, "attn_layer_period": 2, "expert_layer_offset": 1}
        | {"mamba_d_state": 6, "mamba_dt_rank": 4, "use_mamba_kernels": False},
    ),
}

_SEQUENCE_TO_SEQUENCE: dict[str, Row] = {
    "t5": ("T5ForConditionalGeneration", PAIR, T5),
    "mt5": ("MT5ForConditionalGeneration", PAIR, T5 | {"feed_forward_proj": "gated-gelu"}),
    "umt5": ("UMT5ForConditionalGeneration", PAIR, T5),
    "t5-encoder": ("T5ForTokenClassification", TEXT, T5),
    "longt5": ("LongT5ForConditionalGeneration", PAIR, T5 | {"local_radius": 3}),
    "switch-transformers": (
        "SwitchTransformersForConditionalGeneration",
        PAIR,
        T5 | {"num_experts": 4, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
    ),
    "bart": ("BartForConditionalGeneration", PAIR, BART),
    "mbart": ("MBartForConditionalGeneration", PAIR, BART),
    "plbart": ("PLBartForConditionalGeneration", PAIR, BART),
    "pegasus": ("PegasusForConditionalGeneration", PAIR, BART),
    "marian": ("MarianMTModel", PAIR, BART),
    "m2m-100": ("M2M100ForConditionalGeneration", PAIR, BART),
    "blenderbot": ("BlenderbotForConditionalGeneration", PAIR, BART),
    "led": (
        "LEDForConditionalGeneration",
        PAIR,
        BART | {"attention_window": 4, "max_encoder_position_embeddings": 40, "max_decoder_position_embeddings": 40},
    ),
    "pegasus-x": ("PegasusXForConditionalGeneration", PAIR, BART | {"block_size": 4, "num_global_tokens": 2}),
    "bigbird-pegasus": ("BigBirdPegasusForConditionalGeneration", PAIR, BART | {"attention_type": "original_full"}),
    "prophetnet": (
        "ProphetNetForConditionalGeneration",
        PAIR,
        IDS
        | {"vocab_size": 64, "hidden_size": 32, "max_position_embeddings": 40, "use_cache": False, "ngram": 2}
        | {"num_encoder_layers": 2, "num_encoder_attention_heads": 4, "encoder_ffn_dim": 48}
        | {"num_decoder_layers": 2, "num_decoder_attention_heads": 4, "decoder_ffn_dim": 56},
    ),
    "encoder-decoder": (
        "EncoderDecoderModel",
        PAIR,
        {
            "encoder": BERT | {"model_type": "bert"},
            "decoder": BERT | {"model_type": "bert", "is_decoder": True, "add_cross_attention": True},
        },
    ),
}

_SPEECH: dict[str, Row] = {
    "whisper": (
        "WhisperForConditionalGeneration",
        _inputs(input_features=(2, 16, 20), decoder_input_ids=partial(_tokens, 5)),
        BART | {"num_mel_bins": 16, "max_source_positions": 10, "max_target_positions": 12},
    ),
    "speech-to-text": (
        "Speech2TextForConditionalGeneration",
        _inputs(input_features=(2, 24, 16), decoder_input_ids=partial(_tokens, 5)),
        BART
        | {"input_feat_per_channel": 16, "conv_channels": 24, "num_conv_layers": 2, "conv_kernel_sizes": (3, 3)}
        | {"max_source_positions": 24, "max_target_positions": 12},
    ),
    "wav2vec2": ("Wav2Vec2ForCTC", WAVE, WAV),
    "wav2vec2-large": (
        "Wav2Vec2ForSequenceClassification",
        WAVE,
        WAV | {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
    ),
    "wav2vec2-conformer": (
        "Wav2Vec2ConformerForCTC",
        WAVE,
        WAV | {"position_embeddings_type": "rotary", "conv_depthwise_kernel_size": 5},
    ),
    "wav2vec2-bert": (
        "Wav2Vec2BertForCTC",
        _inputs(input_features=(2, 12, 16)),
        SIZE
        | {
            "vocab_size": 40,
            "intermediate_size": 48,
            "feature_projection_input_dim": 16,
            "conv_depthwise_kernel_size": 5,
        }
        | {
            "mask_time_prob": 0.0,
            "layerdrop": 0.0,
            "left_max_position_embeddings": 6,
            "right_max_position_embeddings": 3,
        },
    ),
    "hubert": ("HubertForCTC", WAVE, WAV),
    "wavlm": ("WavLMForCTC", WAVE, WAV | {"num_buckets": 8, "max_bucket_distance": 16}),
    "sew": ("SEWForCTC", WAVE, WAV | {"squeeze_factor": 2}),
    "unispeech-sat": ("UniSpeechSatForCTC", WAVE, WAV),
    "data2vec-audio": ("Data2VecAudioForCTC", WAVE, WAV | {"num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 5}),
    "audio-spectrogram-transformer": (
        "ASTForAudioClassification",
        _inputs(input_values=(2, 24, 16)),
        VIT | {"max_length": 24, "num_mel_bins": 16, "frequency_stride": 6, "time_stride": 6},
    ),
    "clap": (
        "ClapModel",
        _inputs(
            input_ids=_tokens, input_features=(2, 1, 64, 16), is_longer=partial(torch.zeros, 2, 1, dtype=torch.bool)
        ),
        {
            "text_config": BERT | {"projection_dim": 24},
            "audio_config": {
                "spec_size": 32,
                "num_mel_bins": 16,
                "patch_size": 4,
                "patch_stride": [4, 4],
                "window_size": 4,
            }
            | {"depths": [2, 2], "num_attention_heads": [2, 4], "patch_embeds_hidden_size": 16, "hidden_size": 32}
            | {"projection_dim": 24, "enable_fusion": False},
            "projection_dim": 24,
        },
    ),
    "encodec": (
        "EncodecModel",
        _inputs(input_values=(2, 1, 640)),
        {
            "num_filters": 8,
            "hidden_size": 32,
            "codebook_size": 16,
            "codebook_dim": 32,
            "upsampling_ratios": [4, 2],
            "num_lstm_layers": 1,
        },
    ),
    "speecht5": (
        "SpeechT5ForSpeechToText",
        _inputs(input_values=(2, 800), decoder_input_ids=partial(_tokens, 5)),
        {key: value for key, value in BART.items() if key != "d_model"}
        | {key: value for key, value in WAV.items() if key.startswith(("conv_", "num_conv", "num_feat", "mask"))}
        | {"hidden_size": 32, "vocab_size": 64, "max_text_positions": 40, "encoder_layerdrop": 0.0},
    ),
    "vits": (
        "VitsModel",
        TEXT,
        {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 24}
        | {"flow_size": 16, "spectrogram_bins": 17, "upsample_initial_channel": 16, "upsample_rates": [4, 4]}
        | {"upsample_kernel_sizes": [8, 8], "resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1]]}
        | {"use_stochastic_duration_prediction": False, "noise_scale": 0.0},
    ),
}

_VISION: dict[str, Row] = {
    "vit": ("ViTForImageClassification", IMAGE, VIT),
    "deit": ("DeiTForImageClassificationWithTeacher", IMAGE, VIT),
    "beit": (
        "BeitForImageClassification",
        IMAGE,
        VIT | {"use_relative_position_bias": True, "layer_scale_init_value": 0.1},
    ),
    "data2vec-vision": (
        "Data2VecVisionForImageClassification",
        IMAGE,
        VIT | {"use_absolute_position_embeddings": True},
    ),
    "swin": ("SwinForImageClassification", IMAGE, SWIN),
    "swinv2": ("Swinv2ForImageClassification", IMAGE, SWIN),
    "swin2sr": ("Swin2SRForImageSuperResolution", IMAGE, SWIN | {"patch_size": 1, "embed_dim": 16, "image_size": 32}),
    "donut-swin": ("DonutSwinForImageClassification", IMAGE, SWIN),
    "convnext": ("ConvNextForImageClassification", IMAGE, {"hidden_sizes": [8, 16], "depths": [1, 2], "num_stages": 2}),
    "convnextv2": (
        "ConvNextV2ForImageClassification",
        IMAGE,
        {"hidden_sizes": [8, 16], "depths": [1, 2], "num_stages": 2},
    ),
    "dinov2": ("Dinov2ForImageClassification", IMAGE, VIT),
    "dinov2-registers": ("Dinov2WithRegistersForImageClassification", IMAGE, VIT | {"use_swiglu_ffn": True}),
    "dinov3-vit": ("DINOv3ViTModel", IMAGE, VIT),
    "dinov3-convnext": (
        "DINOv3ConvNextModel",
        IMAGE64,
        {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 1, 1]},
    ),
    "ijepa": ("IJepaForImageClassification", IMAGE, VIT),
    "hiera": (
        "HieraForImageClassification",
        IMAGE64,
        {
            "image_size": [64, 64],
            "embed_dim": 16,
            "depths": [1, 1, 1, 1],
            "num_heads": [2, 2, 4, 4],
            "embed_dim_multiplier": 2.0,
        },
    ),
    "vit-mae": (
        "ViTMAEForPreTraining",
        _inputs(pixel_values=(2, 3, 32, 32), noise=(2, 16)),
        VIT
        | {"decoder_hidden_size": 24, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 3}
        | {"decoder_intermediate_size": 40},
    ),
    "vit-msn": ("ViTMSNForImageClassification", IMAGE, VIT),
    "levit": (
        "LevitForImageClassification",
        IMAGE64,
        {"image_size": 64, "hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 3, 4], "depths": [1, 1, 1]}
        | {"key_dim": [6, 6, 6], "drop_path_rate": 0},
    ),
    "mobilevit": (
        "MobileViTForImageClassification",
        IMAGE64,
        {"image_size": 64, "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 12, 16, 20, 24, 28, 48]}
        | {"num_attention_heads": 4},
    ),
    "mobilevitv2": (
        "MobileViTV2ForImageClassification",
        IMAGE64,
        {"image_size": 64, "width_multiplier": 0.125, "n_attn_blocks": [1, 1, 1]},
    ),
    "pvt": (
        "PvtForImageClassification",
        IMAGE64,
        {"image_size": 64, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
        | {"num_attention_heads": [1, 2, 3, 4], "mlp_ratios": [2, 2, 2, 2], "sequence_reduction_ratios": [4, 2, 2, 1]},
    ),
    "pvt-v2": (
        "PvtV2ForImageClassification",
        IMAGE64,
        {"image_size": 64, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "mlp_ratios": [2, 2, 2, 2]}
        | {"num_attention_heads": [1, 2, 3, 4], "sr_ratios": [4, 2, 2, 1]},
    ),
    "cvt": (
        "CvtForImageClassification",
        IMAGE64,
        {"embed_dim": [16, 24, 32], "num_heads": [1, 3, 4], "depth": [1, 2, 3]},
    ),
    "poolformer": (
        "PoolFormerForImageClassification",
        IMAGE64,
        {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
    ),
    "focalnet": (
        "FocalNetForImageClassification",
        IMAGE,
        {
            "image_size": 32,
            "patch_size": 2,
            "embed_dim": 16,
            "depths": [1, 1],
            "hidden_sizes": [16, 32],
            "focal_levels": [2, 2],
            "focal_windows": [3, 3],
        },
    ),
    "swiftformer": (
        "SwiftFormerForImageClassification",
        IMAGE64,
        {"image_size": 64, "depths": [1, 1, 1, 1], "embed_dims": [8, 16, 24, 32], "mlp_ratio": 2},
    ),
    "segformer": (
        "SegformerForSemanticSegmentation",
        IMAGE64,
        {"image_size": 64, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "mlp_ratios": [2, 2, 2, 2]}
        | {"num_attention_heads": [1, 2, 3, 4], "sr_ratios": [4, 2, 2, 1], "decoder_hidden_size": 20},
    ),
    "glpn": (
        "GLPNForDepthEstimation",
        IMAGE64,
        {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "mlp_ratios": [2, 2, 2, 2]}
        | {"num_attention_heads": [1, 2, 3, 4], "sr_ratios": [4, 2, 2, 1], "decoder_hidden_size": 16},
    ),
    "resnet": ("ResNetForImageClassification", IMAGE, RESNET),
    "resnet-bottleneck": ("ResNetForImageClassification", IMAGE, RESNET | {"layer_type": "bottleneck"}),
    "regnet": (
        "RegNetForImageClassification",
        IMAGE,
        {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 2], "groups_width": 8},
    ),
    "bit": (
        "BitForImageClassification",
        IMAGE64,
        {"embedding_size": 16, "hidden_sizes": [32, 64], "depths": [1, 2], "num_groups": 4},
    ),
    "efficientnet": (
        "EfficientNetForImageClassification",
        IMAGE64,
        {"image_size": 64, "width_coefficient": 0.25, "depth_coefficient": 0.5, "hidden_dim": 320},
    ),
    "mobilenet-v1": ("MobileNetV1ForImageClassification", IMAGE64, {"image_size": 64, "depth_multiplier": 0.25}),
    "mobilenet-v2": ("MobileNetV2ForImageClassification", IMAGE64, {"image_size": 64, "depth_multiplier": 0.25}),
    "hgnet-v2": (
        "HGNetV2ForImageClassification",
        IMAGE64,
        {"embedding_size": 16, "hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1], "stem_channels": [3, 8, 16]}
        | {"stage_in_channels": [16, 16, 24, 32], "stage_mid_channels": [8, 12, 16, 24]}
        | {
            "stage_out_channels": [16, 24, 32, 48],
            "stage_num_blocks": [1, 1, 1, 1],
            "stage_numb_of_layers": [2, 2, 2, 2],
        }
        | {"stage_kernel_size": [3, 3, 5, 5]},
    ),
    "textnet": (
        "TextNetForImageClassification",
        IMAGE64,
        {"stem_out_channels": 8, "hidden_sizes": [8, 12, 16, 24, 32]},
    ),
    "dpt": (
        "DPTForDepthEstimation",
        IMAGE,
        VIT
        | {"num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8, 12, 16, 20]}
        | {"fusion_hidden_size": 16},
    ),
    "depth-anything": (
        "DepthAnythingForDepthEstimation",
        IMAGE,
        {
            "backbone_config": VIT
            | {
                "model_type": "dinov2",
                "num_hidden_layers": 4,
                "out_indices": [1, 2, 3, 4],
                "reshape_hidden_states": False,
            }
        }
        | {"patch_size": 8, "reassemble_hidden_size": 32, "neck_hidden_sizes": [8, 12, 16, 20]}
        | {"fusion_hidden_size": 16, "head_hidden_size": 12},
    ),
    "upernet": (
        "UperNetForSemanticSegmentation",
        IMAGE64,
        {
            "backbone_config": RESNET4
            | {"model_type": "resnet", "embedding_size": 16, "out_features": ["stage1", "stage2", "stage3", "stage4"]}
        }
        | {"hidden_size": 24, "auxiliary_in_channels": 32, "auxiliary_channels": 16, "use_auxiliary_head": True},
    ),
    "sam": (
        "SamModel",
        _inputs(pixel_values=(1, 3, 32, 32), input_points=(1, 1, 2, 2)),
        {
            "vision_config": VIT
            | {"output_channels": 16, "window_size": 2, "global_attn_indexes": [1], "mlp_dim": 48, "num_pos_feats": 8},
            "prompt_encoder_config": {"hidden_size": 16, "image_size": 32, "patch_size": 8, "mask_input_channels": 8},
            "mask_decoder_config": {"hidden_size": 16, "mlp_dim": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
            | {"iou_head_hidden_dim": 20},
        },
    ),
    "detr": ("DetrForObjectDetection", IMAGE64, DETR),
    "conditional-detr": ("ConditionalDetrForObjectDetection", IMAGE64, DETR),
    "deformable-detr": (
        "DeformableDetrForObjectDetection",
        IMAGE64,
        DETR | {"num_feature_levels": 2} | {"backbone_config": BACKBONE | {"out_features": ["stage3", "stage4"]}},
    ),
    "table-transformer": ("TableTransformerForObjectDetection", IMAGE64, DETR),
    "rt-detr": (
        "RTDetrForObjectDetection",
        IMAGE64,
        {
            "backbone_config": {"model_type": "rt_detr_resnet", "embedding_size": 16, "hidden_sizes": [16, 24, 32, 48]}
            | {"depths": [1, 1, 1, 1], "layer_type": "basic", "out_features": ["stage2", "stage3", "stage4"]}
        }
        | {"encoder_in_channels": [24, 32, 48], "encoder_hidden_dim": 32, "encoder_ffn_dim": 48, "d_model": 32}
        | {"encoder_attention_heads": 4, "decoder_in_channels": [32, 32, 32], "decoder_ffn_dim": 48}
        | {"decoder_layers": 2, "decoder_attention_heads": 4, "num_queries": 6, "num_denoising": 0},
    ),
    "yolos": ("YolosForObjectDetection", IMAGE, VIT | {"image_size": [32, 32], "num_detection_tokens": 5}),
    "maskformer": (
        "MaskFormerForInstanceSegmentation",
        IMAGE64,
        {
            "backbone_config": {
                "model_type": "swin",
                "image_size": 64,
                "embed_dim": 8,
                "depths": [1, 1, 1, 1],
                "num_heads": [1, 2, 2, 4],
            }
            | {"window_size": 2, "out_features": ["stage1", "stage2", "stage3", "stage4"]},
            "decoder_config": {key: DETR[key] for key in DETR if "backbone" not in key} | {"model_type": "detr"},
        }
        | {"fpn_feature_size": 32, "mask_feature_size": 32},
    ),
    "mask2former": (
        "Mask2FormerForUniversalSegmentation",
        IMAGE64,
        {
            "backbone_config": RESNET4
            | {"model_type": "resnet", "embedding_size": 16, "out_features": ["stage1", "stage2", "stage3", "stage4"]}
        }
        | {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_feedforward_dim": 48}
        | {"encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 4, "dim_feedforward": 48, "num_queries": 6},
    ),
    "timesformer": ("TimesformerForVideoClassification", VIDEO, VIT | {"num_frames": 4}),
    "vivit": ("VivitForVideoClassification", VIDEO, VIT | {"num_frames": 4, "tubelet_size": [2, 8, 8]}),
    "videomae": ("VideoMAEForVideoClassification", VIDEO, VIT | {"num_frames": 4}),
}

_MULTIMODAL: dict[str, Row] = {
    "clip": ("CLIPModel", IMAGE_TEXT, CLIP),
    "siglip": ("SiglipModel", IMAGE_TEXT, CLIP),
    "altclip": ("AltCLIPModel", IMAGE_TEXT, CLIP | {"text_config": BERT | {"project_dim": 24}}),
    "chinese-clip": ("ChineseCLIPModel", IMAGE_TEXT, CLIP),
    "clipseg": ("CLIPSegForImageSegmentation", IMAGE_TEXT, CLIP | {"extract_layers": [0, 1], "reduce_dim": 16}),
    "groupvit": ("GroupViTModel", IMAGE_TEXT, CLIP),
    "owlvit": ("OwlViTModel", IMAGE_TEXT, CLIP),
    "blip": ("BlipForImageTextRetrieval", IMAGE_TEXT, CLIP | {"image_text_hidden_size": 24}),
    "blip-2": (
        "Blip2ForConditionalGeneration",
        IMAGE_TEXT,
        {
            "vision_config": VIT,
            "qformer_config": BERT | {"encoder_hidden_size": 32, "cross_attention_frequency": 2},
            "text_config": BERT | IDS | {"model_type": "opt", "ffn_dim": 48, "word_embed_proj_dim": 32},
        }
        | {"num_query_tokens": 4, "image_token_index": 60},
    ),
    "git": ("GitForCausalLM", IMAGE_TEXT, BERT | {"vision_config": VIT}),
    "vilt": ("ViltForQuestionAnswering", IMAGE_TEXT, BERT | VIT),
    "visual-bert": (
        "VisualBertForQuestionAnswering",
        _inputs(input_ids=_tokens, attention_mask=partial(_ones, 2, 7), visual_embeds=(2, 5, 24)),
        BERT | {"visual_embedding_dim": 24},
    ),
    "lxmert": (
        "LxmertForQuestionAnswering",
        _inputs(input_ids=_tokens, visual_feats=(2, 5, 24), visual_pos=(2, 5, 4)),
        BERT | {"visual_feat_dim": 24, "l_layers": 1, "x_layers": 1, "r_layers": 1, "num_qa_labels": 10},
    ),
    "llava": (
        "LlavaForConditionalGeneration",
        _inputs(input_ids=lambda: torch.cat([torch.full((2, 16), 60), _tokens()], 1), pixel_values=(2, 3, 32, 32)),
        {
            "vision_config": VIT | {"model_type": "clip_vision_model"},
            "text_config": LLAMA | {"model_type": "llama"},
            "image_token_index": 60,
        },
    ),
    "vision-encoder-decoder": (
        "VisionEncoderDecoderModel",
        _inputs(pixel_values=(2, 3, 32, 32), decoder_input_ids=partial(_tokens, 5)),
        {
            "encoder": VIT | {"model_type": "vit"},
            "decoder": GPT | {"model_type": "gpt2", "is_decoder": True, "add_cross_attention": True},
        },
    ),
    "perceiver": (
        "PerceiverForSequenceClassification",
        _inputs(inputs=_tokens, attention_mask=partial(_ones, 2, 7)),
        {"vocab_size": 64, "max_position_embeddings": 40, "num_latents": 6, "d_latents": 32, "d_model": 24}
        | {"num_blocks": 1, "num_self_attends_per_block": 2, "num_self_attention_heads": 4}
        | {"num_cross_attention_heads": 4, "qk_channels": 32, "v_channels": 32},
    ),
    "patchtst": (
        "PatchTSTForPrediction",
        _inputs(past_values=(2, 16, 3)),
        {"num_input_channels": 3, "context_length": 16, "patch_length": 4, "patch_stride": 4, "d_model": 32}
        | {"num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48, "prediction_length": 4},
    ),
    "patchtsmixer": (
        "PatchTSMixerForPrediction",
        _inputs(past_values=(2, 16, 3)),
        {"num_input_channels": 3, "context_length": 16, "patch_length": 4, "patch_stride": 4, "d_model": 32}
        | {"num_layers": 2, "prediction_length": 4},
    ),
    "decision-transformer": (
        "DecisionTransformerModel",
        _inputs(
            states=(2, 4, 9),
            actions=(2, 4, 3),
            rewards=(2, 4, 1),
            returns_to_go=(2, 4, 1),
            timesteps=lambda: torch.arange(4).expand(2, 4).clone(),
            attention_mask=partial(_ones, 2, 4),
        ),
        {
            "state_dim": 9,
            "act_dim": 3,
            "hidden_size": 32,
            "max_ep_len": 16,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 40,
        },
    ),
}

_MODELS = _ENCODERS | _DECODERS | _SEQUENCE_TO_SEQUENCE | _SPEECH | _VISION | _MULTIMODAL
_EAGER = ("bert", "gpt2", "llama", "t5", "bart", "vit", "clip", "wav2vec2", "swin", "detr", "falcon-new", "gemma2")


_FORWARD_FUNCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    # Between the two, it rounds to a codebook: no gradient reaches the encoder.
    "EncodecModel": lambda model, inputs: model.decoder(model.encoder(inputs["input_values"])),
}


_PREDICTED = ("logits", "pred", "score", "reconstruction", "waveform")


def _predictions(output: Any) -> Any:
    """What a model predicts. The hidden states that many hand out as well would have to keep their width."""
    return {key: value for key, value in output.items() if any(word in key for word in _PREDICTED)} or output


def build_case(name: str, make_inputs: MakeInputs, config: Config, attention: str | None = None) -> Case:
    """A model in evaluation mode, always with the same random weights, and its inputs."""
    model_class = getattr(transformers, name)
    options = {"attn_implementation": attention} if attention else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(model_class.config_class(**config, **options))
        forward = _FORWARD_FUNCTIONS.get(name)
        return Case(randomise(model), make_inputs(), forward, None if forward else _predictions)


ENTRIES: dict[str, Callable[[], Case]] = {
    **{name: partial(build_case, *row) for name, row in _MODELS.items()},
    **{f"{name}-eager": partial(build_case, *_MODELS[name], "eager") for name in _EAGER},
}
