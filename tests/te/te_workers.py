"""What one rank with Transformer Engine does in these tests: a few iterations of the plugged script, and a look."""

import sys

from tests.megatron.plugin_workers import PLUGGED, load_script


def train(argv, after_setup=None, after_iteration=None):
    """Train with the words `argv` and these functions of the plugin."""
    import megatron_growth as growth
    from megatron_growth.backend import cpu

    script = load_script()
    script.train_valid_test_datasets_provider.is_distributed = True
    sys.argv = [str(PLUGGED), *argv, *cpu.cpu_flags(argv)]
    args = script.parse_and_validate_args(extra_args_provider=growth.add_arguments)
    model_cfg = growth.plug_into(
        script.gpt_config_from_args(args),
        args,
        after_setup=[after_setup] if after_setup else [],
        after_iteration=[after_iteration] if after_iteration else [],
    )
    config = script.pretrain_cfg_container_from_args(args, model_cfg)
    provider = script.train_valid_test_datasets_provider
    script.pretrain(config, provider, script.ModelType.encoder_or_decoder, script.forward_step)


def changes(argv):
    """{name: (trainable, largest change, gradient norm)} of this rank's parameters over one iteration, and the classes
    of the layers' modules."""
    from megatron_growth.layout.model_names import named_parameters

    before, after, classes = {}, {}, set()

    def setup(model, optimizer, scheduler):
        before.update({name: p.detach().clone() for name, p in named_parameters(model)})
        classes.update(type(module).__name__ for module in model[0].modules())

    def iteration(model, optimizer, scheduler, number):
        for name, p in named_parameters(model):
            after[name] = p.requires_grad, (p.detach() - before[name]).abs().max().item()

    train(argv, setup, iteration)
    return after, classes


def train_with_fp8_state(argv):
    """Train, and give each linear layer the state that an FP8 recipe with delayed scaling leaves in it."""
    import transformer_engine.pytorch as te
    from transformer_engine.common.recipe import DelayedScaling

    def calibrate(model, optimizer, scheduler, number):
        recipe = DelayedScaling()
        for module in model[0].modules():
            if isinstance(module, te.Linear | te.LayerNormLinear):
                module.fp8_meta |= {"recipe": recipe, "fp8_checkpoint": True, "num_gemms": 1}
                module.init_fp8_meta_tensors(recipe)
                module.fp8_meta["scaling_fwd"].scale.fill_(3.0)

    train(argv, after_iteration=calibrate)


def fp8_scales(argv):
    """Forward scales of the layers of a model that loads a checkpoint and trains one iteration; None without any."""
    import transformer_engine.pytorch as te

    found = []

    def look(model, optimizer, scheduler):
        for module in model[0].modules():
            if isinstance(module, te.Linear | te.LayerNormLinear):
                state = module.fp8_meta.get("scaling_fwd")
                found.append(None if state is None else state.scale.max().item())

    train(argv, after_setup=look)
    return found
