"""Every number of the papers' tables that follows from a formula, from the shipped recipes."""

import io
import json
import re

import pytest
from rich.console import Console

from megatron_growth import methods, recipes
from megatron_growth.planner import flops, plan_run
from megatron_growth.planner.cluster import plan_cluster
from megatron_growth.planner.cluster_table import render_cluster
from megatron_growth.planner.inventory import take_inventory
from megatron_growth.planner.memory import paper_bytes
from megatron_growth.planner.table import render

STEP_SIZES = {"step-368m": (1600, 12), "step-680m": (1536, 24), "step-1.2b-2stages": (2048, 24)}


@pytest.fixture(scope="module")
def plan():
    cache = {}

    def get(name, variant=None):
        if (name, variant) not in cache:
            cache[name, variant] = plan_run(recipes.load(name, variant))
        return cache[name, variant]

    return get


def all_variants():
    for name in recipes.names():
        yield name, None
        yield from ((name, variant) for variant in recipes.load(name).variants)


@pytest.mark.parametrize(("name", "variant"), all_variants())
def test_every_shipped_recipe_and_variant_plans(plan, name, variant):
    made = plan(name, variant)
    document = json.loads(made.to_text())
    for stage in document["stages"]:
        assert stage["memory_bytes_per_gpu"] > 0
        assert stage["tokens_trained"] == stage["iterations"] * stage["global_batch_size"] * stage["sequence_length"]
        assert (
            abs(stage["tokens_trained"] - stage["tokens"]) <= stage["global_batch_size"] * stage["sequence_length"] / 2
        )


_SIZE = re.compile(r"([\d.,e+-]+) (TB|GB|MB|kB)\b(?!/s)")


@pytest.mark.parametrize("name", recipes.names())
def test_sizes_are_printed_in_the_unit_that_suits_them(plan, name):
    """1 to 999 of a unit, in tables, formulas and notes; "0.00 GB" says nothing."""
    made = plan(name)
    screen = Console(width=400, record=True, file=io.StringIO())
    screen.print(render(made))
    if name == "nano-step":
        profile = recipes.load_cluster("h100-8x").model_copy(update={"nodes": 1})
        screen.print(render_cluster(plan_cluster(recipes.load(name), made, profile)))
    text = screen.export_text()
    sizes = _SIZE.findall(text)
    assert len(sizes) >= 5
    assert not [size for size in sizes if not 1 <= float(size[0].replace(",", "")) < 1000]
    if printed := recipes.load(name).printed.vanilla_peak_bytes:
        assert f"(the paper prints {printed / 1e9:.1f} GB)" in text
    assert "GB per GPU" not in text


# --- Family ----------------------------------------------------------------------------------------------------------


def test_family_budgets(plan):
    family = json.loads(plan("progressive-8b").to_text())
    assert [s["name"] for s in family["stages"]] == ["1B", "2B", "4B", "8B"]
    assert [s["tokens"] for s in family["stages"]] == [40e9, 60e9, 120e9, 240e9]
    assert [s["flops"] for s in family["stages"]] == pytest.approx([2.4e20, 7.2e20, 2.88e21, 1.152e22], rel=1e-12)
    assert family["scratch_flops"] == pytest.approx(20.4e21, rel=1e-12)
    assert family["total_flops"] == pytest.approx(15.36e21, rel=1e-12)  # printed as 15.4 Z
    assert family["saving"] == pytest.approx(0.247, abs=5e-4)  # printed as about 25 %
    assert [s["lr"] for s in family["stages"]] == [1.5e-3, 1.1e-3, 7e-4, 3e-4]
    assert family["baselines"][0]["tokens"] == 320e9


def test_family_scratch_costs_by_size():
    sizes = (1e9, 2e9, 4e9, 8e9)
    assert [6 * x * 40 * x / 1e21 for x in sizes] == pytest.approx([0.24, 0.96, 3.84, 15.36])


def test_family_parameters_by_hand(plan):
    """4 H^2 + 3 H F + 2 H a layer, a final norm, two matrices of 50257 rows."""
    rows = {"1B": (2048, 7168, 18), "2B": (2560, 8960, 22), "4B": (3200, 11200, 27), "8B": (4096, 14336, 33)}
    for stage in plan("progressive-8b").stages:
        hidden, ffn, layers = rows[stage.name]
        transformer = layers * (4 * hidden**2 + 3 * hidden * ffn + 2 * hidden) + hidden
        assert stage.parameters.transformer == transformer
        assert stage.parameters.total == transformer + 2 * 50257 * hidden
        assert stage.shape.vocab == -(-50257 // (128 * stage.layout.tp)) * 128 * stage.layout.tp


def test_fixed_data_repeats_in_the_last_stage_only(plan):
    made = plan("progressive-8b-fixed-data")
    pool = made.stages[0].data_pool
    assert pool * 1024 == 320_000_000_000
    ends = [stage.data_start + stage.samples for stage in made.stages]
    assert [stage.data_start for stage in made.stages[1:]] == ends[:-1]
    assert ends[-2] <= pool < ends[-1]


def test_a_growing_plan_says_what_is_known_about_when_growing_pays(plan):
    (note,) = [n for n in plan("progressive-8b").notes if "2605.13405" in n]
    assert "2B 1.9 x and 28.7 tokens a parameter" in note
    assert "Longer training: 2B, 4B, 8B." in note
    assert "Larger steps" not in note
    assert "3.271" in note  # what this project measured, docs/benchmarks.md
    assert not any("2605.13405" in n for n in plan("wso-1b").notes)


def test_nano_family_follows_the_same_rule(plan):
    made = plan("nano-progressive")
    assert [round(s.parameters.nominal / 1e3) for s in made.stages] == [92, 157, 284, 542]
    scratch, matched = made.baselines
    assert scratch.iterations == 529
    assert matched.iterations == sum(stage.iterations for stage in made.stages)
    assert matched.tokens_trained == pytest.approx(scratch.tokens_trained, rel=0.03)
    layouts = {(s.layout.tp, s.layout.pp, s.layout.vpp) for s in made.stages}
    assert len(layouts) == len(made.stages)
    assert all(s.layout.tp * s.layout.pp * s.layout.dp <= 4 for s in made.stages)


# --- Reuse -----------------------------------------------------------------------------------------------------------


def test_reuse_570m_savings(plan):
    made = plan("reuse-570m")
    assert made.compute_saving.paper == pytest.approx(0.1152, abs=5e-5)
    assert made.memory_saving.paper == pytest.approx(0.161, abs=5e-4)
    assert 0 < made.compute_saving.exact < made.compute_saving.paper
    assert made.stage("stage-2").tokens == pytest.approx(11.4e9, rel=0.01)
    assert made.notes == ()


def test_reuse_1b_saving_and_its_note(plan):
    made = plan("reuse-1b")
    assert made.compute_saving.paper == pytest.approx(0.276, abs=5e-4)
    assert any("28.33%" in note and "27.62%" in note and "12,850" in note for note in made.notes)
    assert made.stage("stage-2").tokens == pytest.approx(20e9, rel=0.04)


def test_reuse_stage_two_trains_the_middle_only(plan):
    stage = plan("reuse-570m").stage("stage-2")
    assert stage.parameters.frozen == 2 * 50257 * 1280
    assert stage.growth.depth == "reuse:middle=attn"
    assert [s.data_start for s in plan("reuse-570m").stages] == [0, 0]


def test_reuse_variants_are_the_papers_rows(plan):
    expected = {
        "no-layer": (0, "full", 8e-4, 2e-3, "none"),
        "one-attn-none": (1, "attention", 1e-3, 4e-3, "none"),
        "one-attn-attn": (1, "attention", 1e-3, 3e-3, "attn"),
        "one-layer-none": (1, "full", 2e-3, 2e-3, "none"),
        "one-layer-attn": (1, "full", 2e-3, 3e-3, "attn"),
        "one-layer-attn-ffn": (1, "full", 2e-3, 4e-3, "attn-ffn"),
        "base-reuse": (24, "full", 8e-4, 1e-3, "none"),
    }
    for variant, (layers, sublayers, lr1, lr2, middle) in expected.items():
        first, second = plan("reuse-570m", variant).stages
        assert (first.shape.layers, first.shape.sublayers, first.lr, second.lr) == (layers, sublayers, lr1, lr2)
        assert second.growth.depth == f"reuse:middle={middle}"


# --- STEP ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "vanilla", "peak", "solver", "solver_peak"),
    [
        ("step-368m", 5.90, 3.44, (7, 5), 3.44),
        ("step-680m", 10.87, 6.34, (14, 10), 6.34),
        ("step-1.2b-2stages", 19.33, 11.27, (13, 11), 11.20),
        ("step-1.2b-3stages", 19.33, 8.86, (10, 8, 6), 8.25),
    ],
)
def test_step_memory(plan, name, vanilla, peak, solver, solver_peak):
    program = plan(name).integer_program
    assert round(program.vanilla_bytes / 1e9, 2) == vanilla
    assert round(program.vanilla_bytes / 1e9, 1) == program.printed_vanilla_bytes / 1e9
    assert round(program.paper_peak_bytes / 1e9, 2) == peak
    assert program.solver == solver
    assert round(program.solver_peak_bytes / 1e9, 2) == solver_peak


def test_step_1_2b_table_prints_its_second_stage(plan):
    made = plan("step-1.2b-2stages")
    assert [round(b / 1e9, 2) for b in made.integer_program.paper_stage_bytes] == [11.27, 10.58]
    assert any("10.6 GB" in note for note in made.notes)


@pytest.mark.parametrize("name", STEP_SIZES)
def test_step_updates(plan, name):
    """20K vanilla, 33K for the stages; 43K for ReLoRA but at 1.2B, where the plan says what is missing."""
    made = plan(name)
    assert made.stage("vanilla").iterations == 20000
    assert made.stage("galore").iterations == 20000
    assert round(sum(stage.iterations for stage in made.stages), -3) == 33000
    assert made.total_flops == pytest.approx(made.scratch_flops)
    relora = round(made.stage("relora").iterations, -3)
    if name == "step-1.2b-2stages":
        assert relora == 46000
        assert any("relora" in note and "2,486" in note for note in made.notes)
    else:
        assert relora == 43000


@pytest.mark.parametrize("name", STEP_SIZES)
def test_step_updates_under_the_other_reading(name):
    """Taking 75 % of the FLOPs instead of the steps gives 33K as well."""
    text = recipes.path_of(name).read_text() + "\nbudget: {fraction_of: flops}\n"
    if name == "step-368m":
        text = recipes.path_of(name).read_text().replace("fraction: 0.75", "fraction: 0.75, fraction_of: flops")
    made = plan_run(recipes.loads(text))
    assert round(sum(stage.iterations for stage in made.stages), -3) == 33000


def test_step_three_stages_cannot_reach_the_printed_updates(plan):
    made = plan("step-1.2b-3stages")
    assert sum(stage.iterations for stage in made.stages) == pytest.approx(41857, abs=2)
    assert any("45K" in note and "43,636" in note for note in made.notes)


@pytest.mark.parametrize(("size", "printed"), [(368e6, 1.63e19), (680e6, 5.55e19), (1.2e9, 1.73e20)])
def test_step_printed_flops_are_chinchillas(size, printed):
    assert float(f"{6 * size * 20 * size:.3g}") == printed


@pytest.mark.parametrize("name", STEP_SIZES)
def test_step_printed_flops(plan, name):
    """The printed updates and batch meet the printed FLOPs within 1.2 %; where rounding shows, a note says so."""
    made, printed = plan(name), recipes.load(name).printed.flops
    assert made.total_flops == pytest.approx(printed, rel=0.013)
    assert any("6 N x 20 N" in note for note in made.notes) == (name != "step-368m")


def test_step_printed_sizes():
    """Table 1 counts 12 h^2 a layer."""
    rows = {(1600, 7): 215e6, (1600, 12): 368e6, (1536, 14): 396e6, (1536, 24): 680e6, (2048, 14): 704e6}
    rows |= {(2048, 11): 553e6, (2048, 19): 956e6, (2048, 24): 1.2e9}
    for (hidden, layers), printed in rows.items():
        assert layers * flops.step_layer_parameters(hidden) == pytest.approx(printed, rel=0.007)


def test_step_freezes_exactly_the_old_layers(plan):
    """7 of 12 layers are old, none at the top is new, and each carries adapters."""
    stage = plan("step-368m").stage("stage-2")
    (relora,) = map(methods.get, stage.methods)
    parameters = take_inventory(stage.shape, stage.freeze, [relora]).parameters
    frozen = [i for i in range(12) if not any(p.trainable for p in parameters if p.layer == i)]
    assert len(frozen) == 7
    assert frozen[0] == 0
    assert frozen[-1] == 11
    assert list(relora.layers) == frozen == sorted({p.layer for p in parameters if p.factors})


def test_step_schedule_is_cut_at_growth_and_raised_again(plan):
    first, second = plan("step-368m").stages
    assert first.schedule["iterations"] == pytest.approx(first.iterations / 0.75, abs=1)
    assert second.schedule["iterations"] == second.iterations
    assert first.schedule["peak"] == second.schedule["peak"] == 5e-4


# --- WSO -------------------------------------------------------------------------------------------------------------


def test_wso_architectures_are_llamas(plan):
    """Parameter counts of the model cards: 1.24 B (tied) and 8.03 B."""
    assert plan("wso-1b").stages[0].parameters.total == 1_235_814_400
    assert plan("wso-8b").stages[0].parameters.total == 8_030_261_248


def test_wso_says_which_tokens_it_uses(plan):
    assert any("350 B" in n and "335.5 B" in n for n in plan("wso-1b").notes)
    assert any("500 B" in n and "1007 B" in n for n in plan("wso-8b").notes)


def test_wso_variants(plan):
    names = plan("wso-1b").variants
    assert len(names) == 7
    rates = {name: plan("wso-1b", name).stages[0].min_lr for name in names}
    assert rates == pytest.approx(
        {"wso": 3e-4, "wsd-0": 0, "wsd-0.1": 3e-5, "linear-0": 0, "linear-0.1": 3e-5, "cosine-0": 0, "cosine-0.1": 3e-5}
    )


# --- planted fault ---------------------------------------------------------------------------------------------------


@pytest.mark.fault
def test_counting_the_embedding_would_be_caught():
    """Reuse counts no embedding in its compute: with it the saving would not be the printed one."""
    layers, head = 24 * (4 * 1280**2 + 3 * 1280 * 4480), 50257 * 1280
    one_layer = layers // 24

    def saving(extra):
        spent = 6 * (one_layer + head + extra) * 20 + (6 * layers + 2 * (head + extra)) * 16
        return 1 - spent / (6 * (layers + head + extra) * 20)

    assert saving(0) == pytest.approx(0.1152, abs=5e-5)
    assert saving(head) != pytest.approx(0.1152, abs=5e-4)


def test_paper_memory_formula():
    assert paper_bytes(10, 5, 2) == 16 * 12 + 2 * 5


def test_what_was_written_by_name_is_shown_as_it_was_understood(plan):
    screen = Console(width=200, record=True, file=io.StringIO())
    screen.print(render(plan("nano-step", "step-3")))
    rows = [line.split() for line in screen.export_text().split("Growth and rates")[1].splitlines()[2:5]]
    assert [row[:3] for row in rows[1:]] == [
        ["stage-2", "stage-1", "interpolate"],
        ["stage-3", "stage-2", "interpolate"],
    ]
    assert rows[0][:5] == ["stage-1", "-", "-", "cosine,", "warm-up"]
    assert rows[1][-1].startswith("relora:rank=8,dropout=0.0,layers=[0,2,5],")
