"""The direction of imports: a room of the package may use what lies below it, never what lies above or beside it."""

import ast
import json
import re
from pathlib import Path

import pytest

import megatron_growth
from megatron_growth import recipes
from megatron_growth.planner import plan_run
from megatron_growth.run import directory
from tests import loaded

PACKAGE = Path(megatron_growth.__file__).parent

# From the ground up; rooms in one tuple are neighbours and do not know each other, but where NEIGHBOURS says so.
LEVELS = (
    ("errors", "__init__"),
    ("shape", "records", "words", "hints", "mistakes"),
    ("axes", "patterns", "progress", "registry", "strokes"),
    ("schedules", "operators", "layout"),
    ("methods",),
    ("checkpoint", "backend", "planner", "recipes", "data"),
    ("exchange",),
    ("plugin",),
    ("testing",),
    ("run",),
    ("slurm",),
    ("evaluation", "posttrain"),
    ("report",),
    ("cli",),
)
HEIGHT = {room: height for height, rooms in enumerate(LEVELS) for room in rooms}
# The planner reads recipes; both name the operators and the data they plan for.
NEIGHBOURS = {("planner", "recipes")}
# Only these may import Megatron's training loop.
TRAINING_LOOP_ROOMS = {"plugin", "backend", "run", "testing"}


def imports_of(source: str) -> set[str]:
    """Absolute names of all modules that a source file imports, at its top or inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import; write the absolute name"
            names.add(node.module)
            if node.module == "megatron_growth":
                names.update(f"megatron_growth.{alias.name}" for alias in node.names)
    return names


def room_of(path: Path) -> str:
    """The room (top-level module or subpackage) a file of the package belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def wrong_imports(room: str, source: str) -> list[str]:
    """Imports of one file that point up, sideways, or to Megatron's training loop from where they may not."""
    wrong = []
    for name in sorted(imports_of(source)):
        parts = name.split(".")
        if parts[:2] == ["megatron", "training"] and room not in TRAINING_LOOP_ROOMS:
            wrong.append(f"{name}: {room} must not import Megatron's training loop")
        if parts[0] != "megatron_growth" or len(parts) == 1 or parts[1] not in HEIGHT or parts[1] == room:
            continue
        target = parts[1]
        if HEIGHT[target] >= HEIGHT[room] and (room, target) not in NEIGHBOURS:
            wrong.append(f"{name}: {room} lies below or beside {target}")
    return wrong


FILES = sorted(path for path in PACKAGE.rglob("*.py"))
MODULES = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__") for path in FILES}


def modules_of(source: str, modules: set[str]) -> set[str]:
    """The modules of the package that a file names: `from room import module` is the module, not the room's face.

    The package's own face offers names of any room, lazily, and is left out.
    """
    named: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            named.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            inner = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            named.update(full if full in modules else str(node.module) for full in inner.values())
    return (named & modules) - {PACKAGE.name}


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """A circle of imports, its first module again at the end; empty when there is none."""
    done: set[str] = set()

    def visit(module: str, way: list[str]) -> list[str]:
        if module in way:
            return [*way[way.index(module) :], module]
        if module in done:
            return []
        found = next(filter(None, (visit(below, [*way, module]) for below in sorted(graph.get(module, ())))), [])
        done.add(module)
        return found

    return next(filter(None, (visit(module, []) for module in sorted(graph))), [])


def test_no_file_imports_itself_by_a_detour():
    names = {
        path: ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in FILES
    }
    graph = {name: modules_of(path.read_text(encoding="utf-8"), MODULES) - {name} for path, name in names.items()}
    assert circle_in(graph) == []


@pytest.mark.fault
def test_a_planted_circle_is_found():
    """Two files of one room, one of which imports the other inside a function."""
    modules = {"megatron_growth.data.readers", "megatron_growth.data.sources"}
    sources = "def late():\n    from megatron_growth.data import readers"
    assert modules_of(sources, modules) == {"megatron_growth.data.readers"}
    graph = {name: modules - {name} for name in modules}
    assert circle_in(graph) == [
        "megatron_growth.data.readers",
        "megatron_growth.data.sources",
        "megatron_growth.data.readers",
    ]


def test_contributing_names_the_rooms_that_touch_megatrons_training_loop():
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rule = re.search(r"only\s+([^:]*?)\s+may import `megatron.training`", text)
    assert rule is not None
    assert set(re.findall(r"`(\w+)`", rule.group(1))) == TRAINING_LOOP_ROOMS


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    room = room_of(path)
    assert room in HEIGHT, f"a new room {room!r}: say in LEVELS where it lies"
    if room == "__init__":
        return  # the package's own face may offer names of any room, lazily
    assert wrong_imports(room, path.read_text(encoding="utf-8")) == []


def test_the_package_imports_without_torch():
    """What starts again and again must be quick: `--help`, a command that finds its work done, the steps of a Slurm
    job, and looking for a GPU without a driver import neither torch nor Megatron nor scipy."""
    import subprocess
    import sys

    program = (
        "import sys, megatron_growth\n"
        "from megatron_growth.cli.main import build_parser\n"
        "build_parser().format_help()\n"
        "import megatron_growth.slurm.job, megatron_growth.slurm.preflight\n"
        "import megatron_growth.posttrain.slurm_job, megatron_growth.posttrain.slurm_preflight\n"
        "from megatron_growth.backend import nvml\n"
        "from megatron_growth.run import gpu_options, train\n"
        "nvml._loaded = lambda name: None\n"
        "assert (train.local_devices(), gpu_options.machine_here()) == (0, 'host')\n"
        "heavy = {'torch', 'megatron', 'transformers', 'scipy', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {sorted(heavy)}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr


def test_verbs_that_plan_and_show_import_nothing_heavy(tmp_path):
    """Nor does a mistake in a command line wait for torch."""
    recipe = recipes.load("nano-progressive")
    made = directory.create(tmp_path / "run", recipe, plan_run(recipe, gpus=1))
    made.stage("nano-92k").path.mkdir(parents=True)
    step = {"iteration": 1, "tokens": 1, "loss": 5.0, "lr": 0.1, "seconds": 1.0}
    made.stage("nano-92k").metrics.write_text(json.dumps(step) + "\n")
    run = str(made.path)
    verbs = {
        ("plan",): 0,
        ("plan", "progressive-8b", "--cluster", "h100-8x"): 0,
        ("plan", "wso-1b", "--json"): 0,
        ("plan", "progressive-8b", "--command", "2B", "--gpus", "8"): 0,
        ("submit", "progressive-8b", "--cluster", "h100-8x", "--dry-run"): 0,
        ("status", run): 0,
        ("report", run, "--json"): 0,
        ("evaluate", "tasks", run, "--tasks", "nonsense"): 2,
    }
    for words, ended in zip(verbs, loaded.run_verbs(list(verbs)), strict=True):
        assert (ended.code, ended.heavy) == (verbs[words], ()), words


@pytest.mark.fault
@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("axes", "from megatron_growth.cli.main import main"),
        ("operators", "import megatron_growth.layout"),
        ("data", "def late():\n    from megatron_growth import run"),
        ("planner", "from megatron.training import get_args"),
    ],
)
def test_a_planted_upward_import_is_found(room, source):
    assert len(wrong_imports(room, source)) == 1
    assert wrong_imports("cli", "from megatron_growth.run import directory") == []


def test_test_files_have_names_of_their_own():
    """pytest imports a test file by its name alone: two of one name stop the whole suite."""
    names = [path.name for path in Path(__file__).parents[1].rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


SCRIPTS = sorted(path for room in ("benchmarks", "ci", "examples") for path in (PACKAGE.parent / room).rglob("*.py"))


def names_in(module: str) -> set[str]:
    """What can be imported from a module of the package: its definitions, its imports, the modules below it."""
    path = PACKAGE.parent / module.replace(".", "/")
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    names = {inner.stem for inner in path.glob("*")}
    for node in ast.walk(ast.parse(source.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.TypeAlias):
            names.add(node.name if not isinstance(node, ast.TypeAlias) else node.name.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update(alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):  # the package's own face: lazy names
            names.add(node.value)
    return names


@pytest.mark.skipif(not SCRIPTS, reason="installed without the scripts")
def test_scripts_import_what_is_there():
    """Benchmarks take hours and run rarely: a name that has moved is found here."""
    missing = []
    for script in SCRIPTS:
        for node in ast.walk(ast.parse(script.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == PACKAGE.name:
                known = names_in(str(node.module))
                missing += [f"{script.name}: {node.module}.{a.name}" for a in node.names if a.name not in known]
    assert missing == []
