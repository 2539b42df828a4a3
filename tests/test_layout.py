"""The shape of the package: its imports, what they cost, and long files."""

import ast
import importlib
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

import pyrox_ppl

PACKAGE = Path(pyrox_ppl.__file__).parent
ROOT = PACKAGE.parent
SOURCES = sorted(PACKAGE.rglob("*.py"))

# What each part may import of the others: arrows point one way (DESIGN, layout).
CORE = {
    "_cost",
    "_dependence",
    "_dict_order",
    "_distribution_parameters",
    "_fans",
    "_files",
    "_full_data",
    "_jaxpr",
    "_layer_state",
    "_leaves",
    "_loop_convolutions",
    "_message",
    "_numpyro",
    "_divergence",
    "_observed_shapes",
    "_parameter",
    "_prior",
    "_reads",
    "_same_function",
    "_support",
    "_table",
    "_transform",
    "_version",
    "_where",
}
BELOW = CORE | {"_bind"}
TOPS = {"handlers", "nn", "priors", "explanation", "prediction", "infer", "posterior"}
TOPS |= {"scores"}
ALLOWED = {
    "_version": set(),
    "_cost": set(),
    "_dependence": set(),
    "_dict_order": set(),
    "_distribution_parameters": {"_numpyro"},
    "_fans": set(),
    "_files": set(),
    "_full_data": {"_dependence"},
    "_jaxpr": set(),
    "_layer_state": set(),
    "_leaves": {"_fans"},
    "_loop_convolutions": {"_jaxpr"},
    "_parameter": {"_fans", "_leaves"},
    "_message": {"_numpyro", "_parameter"},
    "_numpyro": set(),
    "_observed_shapes": {"_dependence", "_full_data", "_layer_state"},
    "_prior": {"_parameter"},
    "_reads": {"_parameter"},
    "_same_function": set(),
    "_support": set(),
    "_table": set(),
    "_transform": set(),
    "_where": {"_parameter"},
    "_bind": CORE,
    "handlers": BELOW,
    "nn": BELOW,
    "priors": BELOW,
    "explanation": BELOW | {"handlers", "nn"},
    "prediction": BELOW | {"handlers", "nn"},
    "infer": BELOW | {"handlers", "nn"},
    "scores": CORE,
    "posterior": BELOW | {"handlers", "nn", "prediction", "scores"},
    "_show_versions": {"_version"},
    "__init__": BELOW | TOPS | {"_show_versions"},
}
# The rooms of `infer` know what they share, and each other where the word says so.
SHARED = {
    "_arrays": set(),
    "_attributes": set(),
    "_batch_scale": {"_batch_sites"},
    "_batch_sites": set(),
    "_computed_once": set(),
    "_content_key": {"_arrays", "_attributes", "_names_read"},
    "_init_to_stored": set(),
    "_jaxpr": set(),
    "_mutable_state": set(),
    "_names_read": set(),
    "_vector": {"_computed_once"},
}
ROOMS = {
    **SHARED,
    "curvature": SHARED,
    "guides": {*SHARED, "curvature", "data"},
    "kernels": SHARED,
    "optim": SHARED,
    "data": SHARED,
    "losses": SHARED,
    "compiled": {*SHARED, "guides", "kernels"},
    "resumable": {*SHARED, "compiled", "data", "kernels"},
    "ensembles": {*SHARED, "compiled", "data", "resumable"},
    "__init__": {
        *SHARED,
        "guides",
        "kernels",
        "optim",
        "losses",
        "data",
        "compiled",
        "ensembles",
        "resumable",
    },
}


def part_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path):
    """Every imported module of a file, inside functions, too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            if node.module == "pyrox_ppl":
                yield from (f"pyrox_ppl.{alias.name}" for alias in node.names)
            else:
                yield node.module


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_arrows_between_the_parts_point_one_way(path):
    part = part_of(path)
    for module in imports_of(path):
        if module.startswith("pyrox_ppl."):
            target = module.split(".")[1]
            assert target == part or target in ALLOWED[part], f"{path} -> {module}"
        if part == "infer" and module.startswith("pyrox_ppl.infer."):
            room = path.relative_to(PACKAGE / "infer").parts[0].removesuffix(".py")
            target = module.split(".")[2]
            assert target == room or target in ROOMS[room], f"{path} -> {module}"


def test_there_are_no_circles_between_files():
    graph = {}
    for path in SOURCES:
        name = ".".join(("pyrox_ppl", *path.relative_to(PACKAGE).with_suffix("").parts))
        graph[name.removesuffix(".__init__")] = {
            module for module in imports_of(path) if module.startswith("pyrox_ppl")
        }
    # The packages' __init__ files re-export; what they import does not import them.
    done, path_here = set(), []

    def visit(name):
        assert name not in path_here, f"a circle: {[*path_here, name]}"
        if name in done or name not in graph:
            return
        path_here.append(name)
        for target in sorted(graph[name]):
            visit(target)
        path_here.pop()
        done.add(name)

    for name in sorted(graph):
        visit(name)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_posterior_imports_arviz_and_xarray(path):
    if part_of(path) != "posterior":
        tops = {module.split(".")[0] for module in imports_of(path)}
        assert not {t for t in tops if t.startswith("arviz") or t == "xarray"}


def run_python(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout


def test_importing_it_imports_neither_arviz_nor_matplotlib_nor_pandas():
    loaded = run_python("import sys, pyrox_ppl; print(*sys.modules)").split()
    heavy = {"arviz", "arviz_base", "matplotlib", "pandas", "xarray", "optax"}
    assert "numpyro" in loaded
    assert not heavy & set(loaded)


def test_the_core_runs_where_arviz_is_absent():
    code = (
        "import sys\n"
        "for name in ('arviz', 'arviz_base', 'arviz_stats', 'xarray'):\n"
        "    sys.modules[name] = None\n"
        "import jax, numpyro, pyrox_ppl as px\n"
        "film = px.nn.FiLM.init(3, 2, key=jax.random.key(0))\n"
        "with numpyro.handlers.seed(rng_seed=0), px.bayesianize():\n"
        "    print(film(jax.numpy.ones(3), jax.numpy.ones(2)).shape)\n"
        "try:\n"
        "    px.to_datatree\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    out = run_python(code)
    assert out.startswith("(3,)")
    assert "arviz_base" in out or "xarray" in out


def test_every_public_name_is_there_and_documented_with_an_example():
    for name in pyrox_ppl.__all__:
        public = getattr(pyrox_ppl, name)
        assert public.__doc__
        if name not in ("nn", "priors"):
            assert ">>>" in public.__doc__, name
    for part in (pyrox_ppl.nn, pyrox_ppl.priors, pyrox_ppl.scores):
        for name, public in vars(part).items():
            if not name.startswith("_") and not isinstance(public, types.ModuleType):
                assert ">>>" in public.__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'wrong'"):
        _ = pyrox_ppl.wrong


PACKAGES = [path.parent for path in SOURCES if path.name == "__init__.py"]


@pytest.mark.parametrize("folder", PACKAGES, ids=lambda p: p.name)
def test_a_room_shows_its_public_names_and_hides_its_files(folder):
    if folder != PACKAGE:
        files = {path.stem for path in folder.glob("*.py")}
        assert all(name.startswith("_") for name in files)
    name = ".".join(folder.relative_to(ROOT).parts)
    shown = {n for n in dir(importlib.import_module(name)) if not n.startswith("_")}
    source = (folder / "__init__.py").read_text()
    exported = set(re.findall(r"\b([a-zA-Z]\w*) as \1\b", source))
    parts = {"infer", "posterior", "scores"} if folder == PACKAGE else set()
    # The import hook of the tests leaves its own name in every module.
    assert shown - {"jaxtyping"} == exported | parts
    files = {path.stem for path in folder.iterdir()}
    parts_of_package = {"nn", "priors", "infer", "posterior", "scores"}
    assert not (exported - parts_of_package) & files


def test_no_file_passes_300_lines():
    folders = ("pyrox_ppl", "tests", "tutorials", "benchmarks")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 20
    long = {path: len(path.read_text().splitlines()) for path in files}
    assert not {str(path): lines for path, lines in long.items() if lines > 300}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_says_its_purpose_in_its_first_line_and_has_no_leftovers(path):
    text = path.read_text()
    assert text.startswith('"""')
    for word in ("TODO", "FIXME", "XXX", "type: ignore", "except Exception", "assert "):
        assert word not in text, word
