"""The documentation says what is there, and its code runs."""

import importlib.util
import pkgutil
import re
import subprocess
import sys
import types
import typing
from pathlib import Path

import pytest
import typer

import koinon
import koinon.attack
import koinon.data
import koinon.secure
from koinon.cli.main import INTERRUPTED, UNEXPECTED, app
from koinon.core import errors
from koinon.protocol import messages
from koinon.run.host import STOPPED
from koinon.run.policy import Policy

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PROTOCOLS = (
    "learn.learner.Learner",
    "strategy.method.Method",
    "learn.metrics.Metric",
    "learn.corrections.Correction",
    "learn.corrections.Remembering",
    "update.stage.Stage",
    "update.codec.Codec",
    "aggregate.reducer.Reducer",
    "aggregate.reducer.Summing",
    "server.sampling.Sampler",
    "data.partition.Partition",
    "run.engine.Engine",
)
RUNNABLE = (
    ROOT / "README.md",
    DOCS / "index.md",
    DOCS / "tutorial.md",
    *sorted((DOCS / "how-to").glob("*.md")),
    *sorted((DOCS / "explanation").glob("*.md")),
)
ERRORS = [kind for kind in vars(errors).values() if isinstance(kind, type)]


def load_hooks():
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HOOKS = load_hooks()
COMMANDS = dict(HOOKS.walk(typer.main.get_command(app), "koinon"))


def text(*parts):
    return DOCS.joinpath(*parts).read_text()


def blocks(markdown, language):
    """Fenced blocks of a language, except those behind a comment `<!-- not run: … -->`."""
    found = re.findall(r"(<!-- not run: [^>]*-->\n)?^```(\w+)\n(.*?)^```", markdown, re.MULTILINE | re.DOTALL)
    return [body for skipped, kind, body in found if kind == language and not skipped]


def test_every_public_name_is_in_the_reference():
    described = [pkgutil.resolve_name(path) for path in re.findall(r"^::: (\S+)", text("reference", "python.md"), re.M)]
    public = {
        f"{module.__name__}.{name}": getattr(module, name)
        for module in (koinon, koinon.attack, koinon.data, koinon.privacy, koinon.secure)
        for name in module.__all__
    }
    public |= {f"koinon.{name}": pkgutil.resolve_name(f"koinon.{name}") for name in PROTOCOLS}
    elsewhere = [koinon.attack, koinon.data, koinon.privacy, koinon.secure, *ERRORS]
    assert [
        path for path, thing in public.items() if not any(thing is other for other in (*described, *elsewhere))
    ] == []


@pytest.mark.parametrize("path", sorted(COMMANDS))
def test_every_command_is_in_the_reference_with_its_options(path):
    page = HOOKS.on_page_markdown(text("reference", "cli.md"))
    section = page.split(f"### {path}\n")[1].split("\n### ")[0]
    assert COMMANDS[path].help in section
    for part in COMMANDS[path].params:
        assert (part.metavar if part.param_type_name == "argument" else part.opts[0]) in section
        assert part.help and part.help in section


def test_the_root_options_are_in_the_reference():
    for part in typer.main.get_command(app).params:
        assert f"`koinon {part.opts[0]}`" in text("reference", "cli.md")


@pytest.mark.parametrize("kind", ERRORS)
def test_every_error_is_explained_with_its_exit_code(kind):
    page = text("reference", "errors.md")
    if kind is errors.KoinonError:
        assert f"`{kind.__name__}`" in page
    else:
        assert f"| {kind.exit_code} | `{kind.__name__}` |" in page
        assert f"## {kind.__name__}, {kind.exit_code}\n" in page


@pytest.mark.parametrize("code", [0, UNEXPECTED, INTERRUPTED, STOPPED])
def test_every_other_exit_code_is_explained(code):
    assert f"\n| {code} | " in text("reference", "errors.md")


def test_every_message_is_in_the_protocol_page():
    page = HOOKS.on_page_markdown(text("reference", "protocol.md"))
    for message in typing.get_args(messages.Message):
        assert f"| `{message.__name__}` |" in page


def test_the_shown_policy_has_every_setting_and_is_valid(tmp_path):
    (shown,) = blocks(text("how-to", "deploy.md"), "toml")
    (tmp_path / "policy.toml").write_text(shown)
    Policy.load(tmp_path / "policy.toml")
    assert set(re.findall(r"^(\w+) =", shown, re.MULTILINE)) == set(Policy.__struct_fields__)


def test_readme_and_index_show_the_same_app():
    assert blocks((ROOT / "README.md").read_text(), "python")[0] == blocks(text("index.md"), "python")[0]


def test_every_local_link_of_the_readme_leads_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.name)
def test_python_on_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    for number, block in enumerate(blocks(page.read_text(), "python"), start=1):
        exec(compile(block, f"{page.name}, block {number}", "exec"), vars(module))


@pytest.mark.parametrize("page", [ROOT / "README.md", DOCS / "tutorial.md"], ids=lambda page: page.name)
def test_shell_commands_on_a_page_exist(page):
    shown = re.findall(r"^\s*(?:\$ )?(koinon(?: \w+)+.*)$", page.read_text(), re.MULTILINE)
    assert shown
    for line in shown:
        path = max((path for path in COMMANDS if f"{line} ".startswith(f"{path} ")), key=len, default=None)
        assert path is not None, line
        known = {name for part in COMMANDS[path].params for name in part.opts}
        assert set(re.findall(r"(?<= )--[a-z-]+", line)) <= known, line


def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path):
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    fetched = re.compile(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=\"?(?:https?:)?//")
    for page in tmp_path.rglob("*.html"):
        assert not fetched.search(page.read_text()), page
