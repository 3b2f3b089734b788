"""A tiny configuration of every architecture of the table: a few hundred to thousand parameters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# Two layers, four heads of four entries, twelve neurons.
_SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 12,
}
_WORDS = {"vocab_size": 17, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_TEXT = {**_SIZES, **_WORDS, "max_position_embeddings": 32}
_GROUPED = {**_TEXT, "num_key_value_heads": 2}
# Experts have sixteen: kernels of grouped products want rows of whole 16 bytes.
_EXPERTS = {**_GROUPED, "head_dim": 4, "num_experts_per_tok": 2, "intermediate_size": 16}
_IMAGE = {**_SIZES, "image_size": 8, "patch_size": 4}
_STAGES = {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [2, 1], "window_size": 4}
_GPT = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_inner": 12, "n_positions": 32, **_WORDS}
_ENCODER_DECODER = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_ffn_dim": 12,
    "decoder_ffn_dim": 12,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "decoder_start_token_id": 1,
    "max_position_embeddings": 32,
    "max_length": 20,
    **_WORDS,
}
_T5 = {
    **_WORDS,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 12,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 1,
}
_SOUND = {
    **_SIZES,
    "vocab_size": 17,
    "conv_dim": [8, 8],
    "conv_kernel": [32, 10],
    "conv_stride": [32, 10],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "mask_time_prob": 0.0,
    "layerdrop": 0.0,
}
_LINEAR_ATTENTION = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 4,
}


@dataclass(frozen=True)
class Tiny:
    """A model of transformers by its classes' common name and the settings of its config.

    Args:
        prefix: What the names of its classes begin with: ``Bert`` of ``BertConfig`` and
            ``BertModel``.
        settings: What its config is made with.
        model: What the name of the model's class ends with.
    """

    prefix: str
    settings: dict[str, Any] = field(default_factory=dict)
    model: str = "Model"

    @property
    def class_name(self) -> str:
        """The name of the model's class."""
        return self.prefix + self.model

    def build(self) -> Any:
        """The model in evaluation and without dropout, each of its weights different from zero.

        Raises:
            AttributeError: If the installed transformers has no such class.
        """
        import torch
        import transformers

        config = getattr(transformers, f"{self.prefix}Config")(**self.settings)
        for key, value in vars(config).items():
            if "drop" in key and isinstance(value, float):
                setattr(config, key, 0.0)
        torch.manual_seed(0)
        model = getattr(transformers, self.class_name)(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(0.3 * torch.randn_like(parameter) + 0.1)
        return model


TINY: dict[str, Tiny] = {
    # --- encoders of text ---
    "ALBERT": Tiny("Albert", {**_TEXT, "embedding_size": 6}),
    "BERT": Tiny("Bert", _TEXT),
    "BigBird with full attention": Tiny("BigBird", {**_TEXT, "attention_type": "original_full"}),
    "CamemBERT": Tiny("Camembert", _TEXT),
    "DeBERTa v1": Tiny(
        "Deberta",
        {**_TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 0},
    ),
    "DeBERTa v2": Tiny(
        "DebertaV2",
        {**_TEXT, "relative_attention": True, "position_buckets": 4, "type_vocab_size": 0}
        | {"pos_att_type": ["p2c", "c2p"], "share_att_key": False},
    ),
    "DeBERTa v3": Tiny(
        "DebertaV2",
        {**_TEXT, "relative_attention": True, "position_buckets": 4, "type_vocab_size": 0}
        | {"pos_att_type": ["p2c", "c2p"], "share_att_key": True, "norm_rel_ebd": "layer_norm"},
    ),
    "DistilBERT": Tiny(
        "DistilBert",
        {**_WORDS, "dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 12}
        | {"max_position_embeddings": 32},
    ),
    "ELECTRA": Tiny("Electra", {**_TEXT, "embedding_size": 16}),
    "ESM": Tiny("Esm", {**_TEXT, "mask_token_id": 3, "position_embedding_type": "rotary"}),
    "Funnel": Tiny(
        "Funnel",
        {**_WORDS, "block_sizes": [1, 1], "num_decoder_layers": 1, "d_model": 16, "n_head": 4}
        | {"d_head": 4, "d_inner": 12},
    ),
    "I-BERT": Tiny("IBert", _TEXT),
    "Longformer": Tiny("Longformer", {**_TEXT, "attention_window": 4}),
    "LUKE": Tiny("Luke", {**_TEXT, "entity_vocab_size": 5, "entity_emb_size": 6}),
    "MobileBERT": Tiny(
        "MobileBert",
        {**_TEXT, "embedding_size": 8, "true_hidden_size": 16, "intra_bottleneck_size": 16}
        | {"intermediate_size": 24},
    ),
    "ModernBERT": Tiny("ModernBert", {**_TEXT, "cls_token_id": 1, "sep_token_id": 2}),
    "MPNet": Tiny("MPNet", _TEXT),
    "Nyströmformer": Tiny(
        "Nystromformer", {**_TEXT, "num_landmarks": 2, "segment_means_seq_len": 6}
    ),
    "RoBERTa": Tiny("Roberta", _TEXT),
    "RoFormer": Tiny("RoFormer", {**_TEXT, "embedding_size": 16}),
    "SqueezeBERT": Tiny("SqueezeBert", {**_TEXT, "embedding_size": 16, "intermediate_size": 12}),
    "XLM-RoBERTa": Tiny("XLMRoberta", _TEXT),
    "XLNet": Tiny("XLNet", {**_WORDS, "d_model": 16, "n_layer": 2, "n_head": 4, "d_inner": 12}),
    # --- decoders of text ---
    "BigCode": Tiny("GPTBigCode", {**_GPT, "multi_query": False}),
    "BigCode with one key-value head": Tiny("GPTBigCode", {**_GPT, "multi_query": True}),
    "Bloom": Tiny("Bloom", {**_WORDS, "hidden_size": 16, "n_layer": 2, "n_head": 4}),
    "CodeGen": Tiny("CodeGen", {**_GPT, "n_head": 8, "n_embd": 32, "n_ctx": 32, "rotary_dim": 2}),
    "Cohere": Tiny("Cohere", _GROUPED),
    "Falcon": Tiny(
        "Falcon",
        {**_TEXT, "new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False}
        | {"ffn_hidden_size": 12},
    ),
    "Falcon with ALiBi": Tiny(
        "Falcon", {**_TEXT, "alibi": True, "multi_query": False, "ffn_hidden_size": 12}
    ),
    "Falcon with one key-value head": Tiny(
        "Falcon", {**_TEXT, "alibi": False, "multi_query": True, "ffn_hidden_size": 12}
    ),
    "Gemma": Tiny("Gemma", {**_GROUPED, "head_dim": 4}),
    "Gemma 2": Tiny("Gemma2", {**_GROUPED, "head_dim": 4}),
    "Gemma 3": Tiny("Gemma3Text", {**_GROUPED, "head_dim": 4}),
    "GLM": Tiny("Glm", {**_GROUPED, "head_dim": 4}),
    "GLM-4": Tiny("Glm4", {**_GROUPED, "head_dim": 4}),
    "GPT-2": Tiny("GPT2", _GPT),
    "GPT-J": Tiny("GPTJ", {**_GPT, "rotary_dim": 2}),
    "GPT-Neo": Tiny(
        "GPTNeo",
        {**_WORDS, "hidden_size": 16, "num_layers": 2, "num_heads": 4, "intermediate_size": 12}
        | {"attention_types": [[["global", "local"], 1]], "max_position_embeddings": 32},
    ),
    "GPT-NeoX": Tiny("GPTNeoX", _TEXT),
    "Granite": Tiny("Granite", _GROUPED),
    "Granite hybrid": Tiny(
        "GraniteMoeHybrid",
        {**_EXPERTS, "layer_types": ["mamba", "attention"], "num_local_experts": 3}
        | {"shared_intermediate_size": 12, "mamba_n_heads": 4}
        | {"mamba_d_head": 8, "mamba_d_state": 4, "mamba_n_groups": 1, "mamba_chunk_size": 4},
    ),
    "LFM2": Tiny(
        "Lfm2",
        {**_GROUPED, "layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    ),
    "Llama": Tiny("Llama", _GROUPED),
    "Mistral": Tiny("Mistral", _GROUPED),
    "MPT": Tiny("Mpt", {**_WORDS, "d_model": 16, "n_heads": 4, "n_layers": 2, "max_seq_len": 32}),
    "Nemotron": Tiny("Nemotron", _GROUPED),
    "OLMo": Tiny("Olmo", _GROUPED),
    "OLMo 2": Tiny("Olmo2", _GROUPED),
    "OPT": Tiny(
        "OPT",
        {**_WORDS, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
        | {"ffn_dim": 12, "word_embed_proj_dim": 16, "max_position_embeddings": 32},
    ),
    "Persimmon": Tiny("Persimmon", _TEXT),
    "Phi": Tiny("Phi", _GROUPED),
    "Phi-3": Tiny("Phi3", _GROUPED),
    "Qwen2": Tiny("Qwen2", _GROUPED),
    "Qwen3": Tiny("Qwen3", {**_GROUPED, "head_dim": 4}),
    "SmolLM3": Tiny("SmolLM3", _GROUPED),
    "StableLM": Tiny("StableLm", _GROUPED),
    "StarCoder2": Tiny("Starcoder2", _GROUPED),
    "XGLM": Tiny(
        "XGLM",
        {**_WORDS, "d_model": 16, "num_layers": 2, "attention_heads": 4, "ffn_dim": 12}
        | {"max_position_embeddings": 32},
    ),
    # --- mixtures of experts ---
    "DeepSeek-V3": Tiny(
        "DeepseekV3",
        {**_TEXT, "num_key_value_heads": 4, "moe_intermediate_size": 16, "n_routed_experts": 8}
        | {"num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1}
        | {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4}
        | {"v_head_dim": 4},
    ),
    "GPT-OSS": Tiny("GptOss", {**_EXPERTS, "num_local_experts": 3}),
    "Granite-MoE": Tiny("GraniteMoe", {**_EXPERTS, "num_local_experts": 3}),
    "Mixtral": Tiny("Mixtral", {**_EXPERTS, "num_local_experts": 3}),
    "OLMoE": Tiny(
        "Olmoe", {**_GROUPED, "intermediate_size": 16, "num_experts": 3, "num_experts_per_tok": 2}
    ),
    "Qwen2-MoE": Tiny(
        "Qwen2Moe",
        {**_EXPERTS, "num_experts": 3, "moe_intermediate_size": 16}
        | {"shared_expert_intermediate_size": 12},
    ),
    "Qwen3-MoE": Tiny("Qwen3Moe", {**_EXPERTS, "num_experts": 3, "moe_intermediate_size": 16}),
    "Qwen3-Next": Tiny(
        "Qwen3Next",
        {**_EXPERTS, **_LINEAR_ATTENTION, "layer_types": ["linear_attention", "full_attention"]}
        | {"num_experts": 3, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 12},
    ),
    # --- encoders and decoders ---
    "BART": Tiny("Bart", _ENCODER_DECODER),
    "M2M-100": Tiny("M2M100", _ENCODER_DECODER),
    "Marian": Tiny("Marian", _ENCODER_DECODER),
    "mBART": Tiny("MBart", _ENCODER_DECODER),
    "Pegasus": Tiny("Pegasus", _ENCODER_DECODER),
    "T5": Tiny("T5", _T5),
    "T5 v1.1": Tiny("T5", {**_T5, "feed_forward_proj": "gated-gelu"}),
    # --- images ---
    "BEiT": Tiny("Beit", {**_IMAGE, "use_relative_position_bias": True}),
    "ConvNeXt": Tiny(
        "ConvNext",
        {"image_size": 32, "patch_size": 2, "hidden_sizes": [8, 16], "depths": [1, 1]}
        | {"num_stages": 2},
    ),
    "DeiT": Tiny("DeiT", _IMAGE),
    "DINOv2": Tiny("Dinov2", {**_IMAGE, "mlp_ratio": 1}),
    "PVTv2": Tiny(
        "PvtV2",
        {"image_size": 32, "num_encoder_blocks": 2, "depths": [1, 1], "hidden_sizes": [8, 16]}
        | {"num_attention_heads": [2, 4], "mlp_ratios": [2, 2], "sr_ratios": [2, 1]}
        | {"patch_sizes": [7, 3], "strides": [4, 2]},
    ),
    "ResNet": Tiny(
        "ResNet",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    ),
    "SegFormer": Tiny(
        "Segformer",
        {"image_size": 32, "num_encoder_blocks": 2, "depths": [1, 1], "hidden_sizes": [8, 16]}
        | {"num_attention_heads": [2, 4], "mlp_ratios": [2, 2], "sr_ratios": [2, 1]}
        | {"patch_sizes": [7, 3], "strides": [4, 2], "decoder_hidden_size": 16},
    ),
    "Swin": Tiny("Swin", {**_STAGES, "num_heads": [2, 4], "mlp_ratio": 2.0}),
    "Swin v2": Tiny("Swinv2", {**_STAGES, "num_heads": [2, 4], "mlp_ratio": 2.0}),
    "ViT": Tiny("ViT", _IMAGE),
    "YOLOS": Tiny(
        "Yolos", {**_IMAGE, "image_size": [8, 8], "num_detection_tokens": 2, "mlp_ratio": 1}
    ),
    # --- text and images ---
    "CLIP (vision)": Tiny("CLIPVision", _IMAGE),
    "CLIP (text)": Tiny("CLIPText", _TEXT),
    "SigLIP (vision)": Tiny("SiglipVision", _IMAGE),
    # --- sound and series ---
    "HuBERT": Tiny("Hubert", _SOUND),
    "PatchTST": Tiny(
        "PatchTST",
        {"num_input_channels": 2, "context_length": 16, "patch_length": 4, "patch_stride": 4}
        | {"d_model": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 12},
    ),
    "wav2vec 2.0": Tiny("Wav2Vec2", _SOUND),
    "Whisper": Tiny(
        "Whisper",
        {**_ENCODER_DECODER, "num_mel_bins": 8, "max_source_positions": 8}
        | {"max_target_positions": 16},
    ),
}
