"""What decides a model's function beside its sizes: every setting is compared, whatever version saved it."""

from __future__ import annotations

import argparse

import pytest

from megatron_growth.layout.architecture import (
    NORM_EPSILON,
    ROPE_FACTOR,
    SETTINGS,
    SIZES,
    UNKNOWN,
    UNSUPPORTED,
    differences,
    settings_of,
)
from megatron_growth.testing import run_distributed, tiny_pretrain_args

# A Megatron of 2026 would save these for a Llama; everything else as its parser has it by default.
OTHER = {
    "normalization": "LayerNorm",
    "position_embedding_type": "none",
    "rotary_base": 500000,
    "rotary_percent": 0.5,
    "rotary_seq_len_interpolation_factor": 4,
    "rope_scaling_factor": 32.0,
    "no_rope_freq": [0, 1],
    "mrope_section": [1, 2, 1],
    "rotary_scaling_factor": 2.0,
    "yarn_original_max_position_embeddings": 4096,
    "yarn_beta_fast": 16.0,
    "yarn_beta_slow": 2.0,
    "yarn_correction_range_round_to_int": False,
    "mscale": 0.7,
    "mscale_all_dim": 1.0,
    "glu_linear_offset": 1.0,
    "activation_func_clamp_value": 7.0,
    "softmax_type": "off-by-one",
    "window_size": (128, 0),
    "window_attn_skip_freq": 2,
    "spec": ["my_layers", "spec"],
}
CONDITIONS = {
    "rope_scaling_factor": {"use_rope_scaling": True},
    "window_attn_skip_freq": {"window_size": (64, 0)},
    "bias_gelu_fusion": {"swiglu": False, "add_bias_linear": True},
    "use_te_activation_func": {"swiglu": False},
    "bias_swiglu_fusion": {"activation_func_clamp_value": 7.0},
    **{
        name: {"position_embedding_type": "yarn"}
        for name in OTHER
        if name.startswith(("yarn_", "mscale")) or name == "rotary_scaling_factor"
    },
}

# What describes the network in Megatron's parser, and in it what does not decide the function of a dense GPT.
NETWORK = ("transformer configuration", "network size")
KINDS = (  # of layers that growth refuses; precision; how and where something is computed
    "moe_ mtp_ dsa_ linear_conv_ linear_key_ linear_value_ linear_num_ mamba_ mup_ fp4 fp8 activation_offload_ "
    "cpu_offloading_ cross_entropy_ cuda_graph_ delay_ expert_ fine_grained_ inference_ kitchen_ overlap_ recompute_ "
    "tensor_ tp_comm_ use_grouped_gemm_"
)
OTHERS = """
    encoder_num_layers decoder_num_layers group_query_attention max_position_embeddings make_vocab_size_divisible_by
    use_rotary_position_embeddings add_position_embedding relative_attention_num_buckets relative_attention_max_distance
    bert_binary_head onnx_safe bf16 fp16 fp32_residual_connection apply_query_key_layer_scaling first_last_layers_bf16
    num_layers_at_start_in_bf16 num_layers_at_end_in_bf16 disable_bf16_reduced_precision_matmul batch_invariant_mode
    deterministic_mode hidden_dropout attention_dropout calculate_per_token_loss qk_clip qk_clip_alpha qk_clip_threshold
    init_method_std embedding_init_method_std init_model_with_meta_device perform_initialization use_cpu_initialization
    transformer_impl attention_backend flash_attention_version flash_decode use_kitchen_attention fused_residual_rmsnorm
    use_fused_weighted_squared_relu use_transformer_engine_op_fuser use_mamba_mem_eff_path mlp_chunks_for_prefill
    mlp_chunks_for_training pipeline_model_parallel_size pipeline_model_parallel_comm_backend sequence_parallel
    context_parallel_size hierarchical_context_parallel_sizes hybrid_context_parallel max_seqlen_per_dp_cp_rank
    account_for_embedding_in_pipeline_split account_for_loss_in_pipeline_split microbatch_group_size_per_vp_stage
    distribute_saved_activations use_ring_exchange_p2p defer_embedding_wgrad_compute wgrad_deferral_limit
    ep_overlap_early_attn_memory_release high_priority_a2a_comm_stream symmetric_ar_type nccl_all_reduce_for_prefill
    clone_scatter_output_in_embedding enable_cuda_graph external_cuda_graph offload_modules min_offloaded_tensor_size
    delta_offload_bytes_across_pp_ranks config_logger_dir
"""


def parsed(words: list[str]) -> tuple[dict, dict, set]:
    """Arguments of a nano Llama by Megatron's own parser, the attribute that each of its flags sets, and the attributes
    that describe the network."""
    import sys

    from megatron.training.arguments import add_megatron_arguments

    parser = add_megatron_arguments(argparse.ArgumentParser())
    sys.argv = ["x"]
    known, _ = parser.parse_known_args(words)
    flags = {flag: action.dest for action in parser._actions for flag in action.option_strings}
    network = {a.dest for group in parser._action_groups if group.title in NETWORK for a in group._group_actions}
    return vars(known), flags, network


@pytest.fixture(scope="module")
def megatron():
    return run_distributed(parsed, 1, tiny_pretrain_args(), process_group=False)[0]


def test_every_setting_is_one_of_megatrons_by_its_name_and_flag(megatron):
    known, flags, _ = megatron
    for setting in SETTINGS:
        assert setting.name in known
        assert flags[setting.flag] == setting.name or setting.turns_off
    assert flags["--disable-bias-linear"] == "add_bias_linear"


def test_every_argument_that_describes_the_network_is_compared_refused_or_known_not_to_matter(megatron):
    """A release of Megatron with a new one fails here: it belongs into `layout/architecture.py`, or into OTHERS."""
    known = {*(s.name for s in SETTINGS), NORM_EPSILON.name, *UNSUPPORTED, *SIZES, *OTHERS.split()}
    assert [name for name in sorted(megatron[2] - known) if not name.startswith(tuple(KINDS.split()))] == []


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_another_value_is_found_and_its_flag_named(megatron, setting):
    base = megatron[0] | {"yarn_beta_fast": 32.0, "yarn_beta_slow": 1.0, "yarn_original_max_position_embeddings": 2048}
    base |= CONDITIONS.get(setting.name, {})
    other = OTHER.get(setting.name, not base[setting.name])
    source, target = argparse.Namespace(**base | {setting.name: other}), argparse.Namespace(**base)
    found, unknown = differences(source, target)
    assert [difference.setting for difference in found] == [setting]
    assert unknown == []
    assert setting.flag in setting.written(found[0].source)
    assert differences(source, source) == ([], [])


def test_what_was_not_given_is_what_megatron_takes_then(megatron):
    """Megatron saves None and builds the model with its default; the same value, given, is the same function."""
    source = argparse.Namespace(**megatron[0] | {"position_embedding_type": "yarn"})
    given = {"yarn_original_max_position_embeddings": 4096, "yarn_beta_fast": 32.0, "yarn_beta_slow": 1.0}
    target = argparse.Namespace(**vars(source) | given | {"yarn_correction_range_round_to_int": True})
    assert source.yarn_beta_fast is None
    assert differences(source, target) == ([], [])
    target.yarn_correction_range_round_to_int = False
    found, _ = differences(target, source)
    assert found[0].setting.written(found[0].source) == "--no-yarn-correction-range-round-to-int"


def test_the_rope_factor_is_that_of_megatrons_model(megatron):
    """`gpt_config_from_args` forgets the flag, so it is the model's own default that counts."""
    from megatron.training.models import GPTModelConfig

    known, _, _ = megatron
    assert (GPTModelConfig.rope_scaling_factor, known["rope_scaling_factor"]) == (ROPE_FACTOR, ROPE_FACTOR)


def test_what_does_not_matter_is_not_compared(megatron):
    source, target = (argparse.Namespace(**megatron[0] | {"rotary_base": base}) for base in (10000, 500000))
    assert len(differences(source, target)[0]) == 1
    source.position_embedding_type = target.position_embedding_type = "none"
    assert differences(source, target) == ([], [])


def test_a_fusion_is_compared_only_where_it_is_another_activation(megatron):
    """SwiGLU is the same fused, unless it is clamped; GELU without biases is never fused."""
    fused = argparse.Namespace(**megatron[0])
    plain = argparse.Namespace(**megatron[0] | {"bias_gelu_fusion": False, "bias_swiglu_fusion": False})
    assert differences(fused, plain) == ([], [])
    fused.swiglu = plain.swiglu = False
    assert differences(fused, plain) == ([], [])
    fused.add_bias_linear = plain.add_bias_linear = fused.add_qkv_bias = plain.add_qkv_bias = True
    assert [str(found) for found in differences(fused, plain)[0]] == [
        "bias_gelu_fusion is True in the source and False here"
    ]


@pytest.mark.parametrize(
    "activation", [{"swiglu": False, "add_bias_linear": True}, {"swiglu": True, "activation_func_clamp_value": 7.0}]
)
def test_what_is_fused_is_what_transformer_engines_module_computes(megatron, activation):
    fused = argparse.Namespace(**megatron[0] | activation)
    plain = argparse.Namespace(**vars(fused) | {"bias_gelu_fusion": False, "bias_swiglu_fusion": False})
    module = argparse.Namespace(**vars(plain) | {"use_te_activation_func": True})
    assert differences(fused, module) == differences(module, fused) == ([], [])
    assert len(differences(fused, plain)[0]) == len(differences(plain, module)[0]) == 1


def test_megatrons_own_local_layers_are_no_other_function(megatron):
    source, target = (argparse.Namespace(**megatron[0] | {"spec": spec}) for spec in (["local"], None))
    assert differences(source, target) == ([], [])


def test_arguments_of_older_versions_are_read_as_those_versions_meant_them(megatron):
    """Without an argument Megatron did one thing; where that is not certain, it is said to be unknown."""
    plain = argparse.Namespace(add_bias_linear=False)
    values = settings_of(plain)
    assert values["normalization"] == "LayerNorm"
    assert values["rotary_base"] == 10000
    assert values["add_qkv_bias"] is False
    assert values["position_embedding_type"] == UNKNOWN
    assert differences(plain, argparse.Namespace(**megatron[0]))[1] == ["position_embedding_type"]
    assert settings_of(argparse.Namespace(apply_layernorm_1p=True))["layernorm_zero_centered_gamma"] is True
    assert settings_of(argparse.Namespace(use_rotary_position_embeddings=True))["position_embedding_type"] == "rope"
    assert settings_of(argparse.Namespace())["add_qkv_bias"] is True
