"""Imports go down. The table is the whole truth: a floor that needs another one is changed here first."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "jaxpatch"
CORE = ("shapes", "numbers", "trees", "models", "patching", "measuring", "scoring", "tracing", "validating", "sets")
MAY_IMPORT = {
    "shapes": (),
    "atomic": (),
    "numbers": (),
    "array_file": ("atomic",),
    "trees": (),
    "fetch": ("atomic",),
    "models": ("atomic", "shapes", "trees"),
    "patching": ("shapes", "trees"),
    "measuring": ("array_file", "models", "numbers", "patching", "shapes", "trees"),
    "scoring": ("array_file", "measuring", "numbers", "patching", "shapes"),
    "tracing": ("numbers", "scoring"),
    "validating": ("measuring", "numbers", "scoring", "shapes"),
    "sets": ("measuring", "patching", "scoring", "shapes", "validating"),
    "reporting": ("measuring", "models", "patching", "scoring", "tracing", "validating"),
    "testing": ("measuring", "models", "shapes", "trees"),
    "pipeline": CORE,
    "hierarchy": (*CORE, "pipeline"),
    "joint": (*CORE, "pipeline"),
    "experts": ("measuring", "models", "pipeline", "scoring", "trees"),
    "merging": ("shapes",),
    "learned_mask": ("learned_merge", "measuring", "merging", "models", "shapes", "trees"),
    "learned_merge": ("measuring", "models", "numbers", "patching", "shapes", "trees"),
    "merger": ("merging", "numbers", "patching", "scoring", "shapes", "trees"),
    "resume": ("measuring",),
    "clock": (),
    "results": ("atomic", "measuring", "reporting", "scoring"),
    "validation": (*CORE, "clock", "pipeline", "reporting", "results"),
    "run": (*CORE, "clock", "hierarchy", "pipeline", "reference", "reporting", "results", "resume", "validation"),
    "planning": ("measuring", "models", "patching", "scoring", "shapes", "trees"),
    "plan": ("measuring", "models", "patching", "planning", "trees"),
    "reference": ("models", "shapes"),
    "check": ("atomic", "models", "patching", "reference", "reporting", "scoring", "shapes"),
    "diff": ("atomic", "models", "patching", "reporting", "scoring", "shapes", "trees"),
    "expert_runs": ("atomic", "experts", "measuring", "models", "reporting", "results", "run", "scoring", "validation"),
    "merge_recipe": ("merging", "numbers", "trees"),
    "merge_run": (
        "atomic",
        "experts",
        "merge_recipe",
        "merger",
        "merging",
        "models",
        "reporting",
        "scoring",
        "shapes",
        "trees",
        "validation",
    ),
    "recipe": ("expert_runs", "models", "plan", "run", "trees"),
    "cli": ("check", "diff", "expert_runs", "merge_run", "plan", "recipe", "run", "validation"),
    "__main__": ("cli",),
    "__init__": (
        "experts",
        "hierarchy",
        "joint",
        "learned_mask",
        "learned_merge",
        "measuring",
        "merger",
        "models",
        "patching",
        "pipeline",
        "resume",
        "scoring",
        "tracing",
    ),
}
"""Floor (a folder, or a file beside it) -> the floors it may import, beside its own."""
FILES = sorted(ROOT.rglob("*.py"))


def floor_of(file: Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(file: Path) -> Iterator[tuple[str, ...]]:
    """Every module a file imports, wherever in it, as its parts; names taken from the package itself count as modules."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            module = tuple(str(node.module).split("."))
            yield from ((*module, alias.name) for alias in node.names)


def test_every_floor_is_in_the_table():
    assert {floor_of(file) for file in FILES} <= set(MAY_IMPORT)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_go_down(file):
    mine = floor_of(file)
    for module in imports(file):
        if module[0] == "jaxpatch":
            assert module[1] in (mine, *MAY_IMPORT[mine]), f"{file.name} of {mine} imports {'.'.join(module)}"


def test_no_floor_is_above_itself():
    """The table has no circle, so its floors can be put in an order."""
    below = {floor: set(others) for floor, others in MAY_IMPORT.items()}
    while below:
        ground = {floor for floor, others in below.items() if not others & set(below)}
        assert ground, f"a circle among {sorted(below)}"
        below = {floor: others for floor, others in below.items() if floor not in ground}


@pytest.mark.parametrize(
    ("package", "floors"),
    [
        ("torch", ("reference",)),
        ("peft", ("reference",)),
        ("matplotlib", ("reporting",)),
        (
            "rich",
            ("reporting", "clock", "run", "expert_runs", "merge_run", "validation", "plan", "check", "diff", "cli"),
        ),
        ("tyro", ("check", "diff", "expert_runs", "merge_run", "validation", "recipe", "cli")),
        ("yaml", ("merge_recipe",)),
        ("pandas", ("scoring", "tracing", "sets", "reporting", "expert_runs")),
        ("optax", ("learned_mask", "learned_merge", "sets")),
        ("transformers", ("models", "reference", "testing")),
        ("subprocess", ("fetch", "reporting")),
        ("orbax", ("models", "resume")),
        ("psutil", ("measuring",)),
    ],
)
def test_packages_stay_on_their_floors(package, floors):
    found = {floor_of(file) for file in FILES for module in imports(file) if module[0] == package}
    assert found <= set(floors)


def test_scoring_sees_models_only_through_an_instrument():
    """The waist: what scores and validates knows effects, partitions and instruments, and no decoder."""
    allowed = {"instrument", "outcomes", "sweep"}
    for file in (file for file in FILES if floor_of(file) in ("scoring", "tracing", "validating", "sets")):
        for module in imports(file):
            if module[:2] == ("jaxpatch", "measuring"):
                assert module[2] in allowed, f"{file.name} imports {'.'.join(module)}"


def test_nothing_is_imported_from_torch_before_it_is_asked_for():
    file = ROOT / "reference.py"
    at_import = ast.parse(file.read_text(encoding="utf-8")).body
    names = [alias.name for node in at_import if isinstance(node, ast.Import) for alias in node.names]
    assert names and not {"torch", "peft", "transformers"} & set(names)
