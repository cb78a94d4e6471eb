"""Everything that a user can name is documented: hooks, commands, methods and every option."""

import importlib.util
import inspect
import re
from pathlib import Path

import pytest

import edgesmith
from edgesmith.cli import COMMANDS
from edgesmith.host import hookspecs
from edgesmith.host.loader import load_registry
from edgesmith.host.options import option_schemas

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
REGISTRY = load_registry(plugins=False)
HOOKS = [name for name, one in vars(hookspecs).items() if hasattr(one, f"{hookspecs.PROJECT_NAME}_spec")]
RECORDS = [record for plugin in REGISTRY.plugins for record in plugin.records]


def load_generator():
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATOR = load_generator()


def section(page: str, heading: str) -> str:
    """Return what stands under a heading of the second level."""
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert found, f"there is no section {heading}"
    return found[1]


def test_there_are_hooks_to_look_for():
    assert len(HOOKS) == 10 and "register_methods" in HOOKS


@pytest.mark.parametrize("hook", HOOKS)
def test_each_hook_has_a_section_with_its_signature(hook):
    text = section((DOCS / "plugins" / "hooks.md").read_text(), hook)
    function = getattr(hookspecs, hook)
    (signature,) = re.findall(rf"def {hook}\((.*?)\) -> (.*?): \.\.\.", text)
    given = [word.partition(":")[0].strip() for word in signature[0].split(",") if word.strip()]
    assert given == list(inspect.signature(function).parameters)
    documented, declared = (
        re.sub(r"edgesmith\.|list|Sequence|'", "", one)
        for one in (signature[1], str(inspect.signature(function).return_annotation))
    )
    assert documented == declared
    assert (function.__doc__ or "").strip()


@pytest.mark.parametrize("record", REGISTRY.methods(), ids=lambda record: record.name)
def test_each_method_has_a_page_that_names_it_and_its_source(record):
    page = GENERATOR.page_of(record)
    assert page.exists(), f"write docs/methods/{page.name}: what it does, when it pays, when not, source"
    assert page.read_text().startswith(f"# {record.name}\n")
    assert record.source


@pytest.mark.parametrize("record", REGISTRY.methods(), ids=lambda record: record.name)
def test_each_option_says_what_it_sets(record):
    for name, schema in option_schemas(REGISTRY.options(record)).items():
        assert schema.get("description", "").strip(), f"option {name} of {record.name} has no description"


def test_what_follows_a_table_is_never_lost():
    record = REGISTRY.method("quantize-int8")
    page = GENERATOR.with_options("# quantize-int8\n", REGISTRY, record) + "What follows.\n"
    assert GENERATOR.with_options(page, REGISTRY, record) == page
    with pytest.raises(ValueError, match="without"):
        GENERATOR.with_options(page.replace(GENERATOR.END, ""), REGISTRY, record)


def test_generated_text_is_current():
    stale = [path.relative_to(ROOT) for path, text in GENERATOR.pages().items() if path.read_text() != text]
    assert stale == [], "run `make docs`, or: python docs/generate.py"


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_and_argument_is_explained(name):
    page = (DOCS / "cli.md").read_text()
    assert f"## edgesmith {name}" in page
    empty = [line for line in page.splitlines() if re.fullmatch(r"\| `.*` ?\S* \| +\|", line)]
    assert empty == []


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: f"{type(record).__name__}-{record.name}")
def test_each_record_says_what_the_user_gets_in_one_sentence(record):
    assert record.summary.endswith(".") and "\n" not in record.summary and len(record.summary) <= 120


def test_each_public_name_stands_in_the_reference():
    text = (DOCS / "plugins" / "reference.md").read_text()
    named = re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE)
    missing = set(edgesmith.__all__) - {one.rpartition(".")[2] for one in named} - {"__version__"}
    assert missing == set()
    for path in named:
        module, _, name = path.rpartition(".")
        found = importlib.import_module(path) if name.islower() and _is_module(path) else None
        assert found is not None or hasattr(importlib.import_module(module), name), path


def test_each_public_name_is_described_in_the_reference_as_it_is_read_in_the_repository():
    text = (DOCS / "plugins" / "reference.md").read_text()
    described = re.findall(r"^\| `([\w.]+)(?:\([\w, ]*\))?` \| (.+) \|$", text, re.MULTILINE)
    assert set(edgesmith.__all__) - {"__version__"} <= {name for name, words in described if len(words.split()) > 2}
    assert GENERATOR.with_names(text) == text


def _is_module(path: str) -> bool:
    try:
        return importlib.util.find_spec(path) is not None
    except ModuleNotFoundError:
        return False


def links(page: Path) -> list[str]:
    """Return the targets of links to other files, outside of code."""
    text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.DOTALL)
    text = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    found = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    return [one for one in found if not re.match(r"[a-z]+:", one)]


PAGES = [*sorted(DOCS.rglob("*.md")), *ROOT.glob("*.md"), *sorted(ROOT.glob("examples/**/*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    dead = [one for one in links(page) if not (page.parent / one).exists()]
    assert dead == []
