"""README and docs/: every block of Python runs, the API pages have every public name, and the site
has what it needs."""

import hashlib
import html
import importlib.util
import inspect
import json
import re
import types
from pathlib import Path

import diffrax
import jax
import pytest
from public import lookup, public_names

import dlnjax as dln
from dlnjax._sweep.toml import read_sweep
from dlnjax.papers.ledger import CLAIMS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if not page.name.startswith("_"))
# Pages that show what a study looks like: at these sizes they still compile for minutes.
TINY = {
    "acceleration.md": {"side = 1000": "side = 30"},
    "sweeps.md": {
        "(300, 20": "(4, 20",
        "jnp.ones((300": "jnp.ones((4",
        "instances=1000": "instances=2",
        "[(3, 4), (5, 8)]": "[(3, 4)]",
    },
    "training.md": {"100_000": "200"},
}


def blocks(page: Path, language: str = "python") -> list[tuple[int, str]]:
    """The blocks of code of a page, each with the line at which it starts."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [(text.count("\n", 0, match.start(1)), match[1]) for match in found]


def tiny(page: Path) -> dict[str, str]:
    return TINY.get(page.name, {}) if page.parent == DOCS else {}


def executable() -> list:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(p for p in PAGES if blocks(p))]
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in pages]


@pytest.mark.filterwarnings("default")  # of what users import, xarray for one
@pytest.mark.parametrize("page", executable())
def test_code_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    namespace = {"__name__": "page"}
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        for line, code in blocks(page):
            for large, small in tiny(page).items():
                code = code.replace(large, small)
            # Blank lines before it, so that errors name the line of the page.
            exec(compile("\n" * line + code, str(page), "exec"), namespace)
    jax.config.update("jax_enable_x64", True)


def test_studies_are_read(tmp_path):
    (block,) = blocks(DOCS / "from-laptop-to-cluster.md", "toml")
    (tmp_path / "study.toml").write_text(block[1], encoding="utf-8")
    assert read_sweep(tmp_path / "study.toml").instances == 10_000


@pytest.mark.parametrize("name", TINY)
def test_pages_still_have_what_is_made_tiny(name):
    text = "".join(code for _, code in blocks(DOCS / name))
    assert [large for large in TINY[name] if large not in text] == []


def test_readme_is_the_entrance():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("\n") <= 120
    # What .ci/run takes out and runs.
    assert re.search(r"^<!-- test -->\n```bash\n.*pytest.*\n```$", text, re.MULTILINE)
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def documented() -> list[str]:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    return re.findall(r"^::: (\S+)$", text, re.MULTILINE)


def test_api_pages_have_each_public_name_once():
    names = [name for name in documented() if not name.startswith("dlnjax.papers.")]
    assert sorted(names) == sorted(public_names())


def described(kind: type, member: str) -> bool:
    """Here, or where an abstract base class says what the method is for."""
    return any(getattr(base, member).__doc__ for base in kind.__mro__ if hasattr(base, member))


@pytest.mark.parametrize("name", sorted(public_names()))
def test_docstring_says_what_goes_in(name):
    value = lookup(name)
    text = inspect.getdoc(value) or ""
    assert text
    if inspect.isclass(value):
        members = [
            member
            for member, of in vars(value).items()
            if not member.startswith("_") and isinstance(of, property | types.FunctionType)
        ]
        assert [member for member in members if not described(value, member)] == []
        text += vars(value).get("__init__", value).__doc__ or ""
    elsewhere = ("as in `", "as for `", "those of `")
    if ".metrics." in name or any(words in text for words in elsewhere):
        return
    arguments = [
        parameter.name
        for parameter in inspect.signature(value).parameters.values()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    assert [argument for argument in arguments if f"`{argument}" not in text] == []


def test_docstrings_refer_to_what_readers_have():
    for name in public_names():
        value = lookup(name)
        members = vars(value).values() if inspect.isclass(value) else []
        for text in [value.__doc__, *(getattr(member, "__doc__", None) for member in members)]:
            for key in re.findall(r"\[([A-Z]+[a-z]*\d\d)\]", text or ""):
                assert f"[{key}]:" in (DOCS / "_references.md").read_text(encoding="utf-8")
            assert "DESIGN" not in (text or ""), name


def test_all_results_and_claims_are_listed():
    text = (DOCS / "api" / "results.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    ours, theirs = (set(kind._name_to_item) for kind in (dln.RESULTS, diffrax.RESULTS))  # pyright: ignore
    assert sorted(listed) == sorted(ours - theirs | {"successful"})
    text = (DOCS / "api" / "papers.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `([\w.-]+)` \|", text, re.MULTILINE) == list(CLAIMS)


def hooks():
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "_hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_of_files_at_the_root_and_links_out_of_docs():
    page = hooks().on_page_markdown
    text = page((DOCS / "contributing.md").read_text(encoding="utf-8"))
    assert text.startswith("# Contributing") and "](how-it-works.md)" in text
    assert page((DOCS / "changelog.md").read_text(encoding="utf-8")).startswith("# Changelog")
    for source in PAGES:
        text = source.read_text(encoding="utf-8")
        for target in re.findall(r"\]\((\.\./(?:notebooks|benchmarks)/[^)#]+)", text):
            assert (DOCS / target).is_file(), (source, target)


def test_gallery_has_figures_of_notebooks_that_are_there():
    text = (DOCS / "gallery.md").read_text(encoding="utf-8")
    for name, number in re.findall(r"\(figures/(\w+)-(\d+)\.png\)", text):
        found = list(hooks().figures(ROOT / "notebooks" / f"{name}.ipynb"))
        assert found[int(number) - 1].startswith(b"\x89PNG")
    for name in re.findall(r"\(((?:gallery/)?[\w-]+\.png)\)", text):
        assert (DOCS / name).is_file()


def test_page_to_explore_is_made_by_the_present_code():
    """As far as that shows without computing it: what moves is what `page.js` says."""
    page = (DOCS / "explore.html").read_text(encoding="utf-8")
    (text,) = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)
    moves = (ROOT / "dlnjax" / "cli" / "page.js").read_text(encoding="utf-8")
    assert json.dumps(moves)[1:-1] in html.unescape(text)
    assert len(page.encode()) < 2e6


def test_all_notebooks_are_pages():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = re.findall(r"notebooks/(\w+)\.ipynb", text)
    assert sorted(pages) == sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
    # From the first steps to the studies.
    assert pages[:3] == ["quickstart", "lasso_path_inside_training", "saddle_to_saddle"]


def test_notebooks_link_to_what_is_there():
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "markdown":
                for target in re.findall(r"\]\(([^)#]+)", "".join(cell["source"])):
                    is_here = (notebook.parent / target).is_file()
                    assert target.startswith("https://") or is_here, (notebook.name, target)


def test_site_needs_no_other_host():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert "://" not in text[text.index("extra_css:") :]
    configuration = (DOCS / "javascripts/mathjax/configuration.js").read_text(encoding="utf-8")
    digest = hashlib.sha256((DOCS / "javascripts/mathjax/tex-svg.js").read_bytes()).hexdigest()
    assert digest in configuration  # the file that was published, unchanged


def test_files_that_the_page_for_contributors_names_are_there():
    text = (DOCS / "how-it-works.md").read_text(encoding="utf-8")
    names = re.findall(r"`((?:\w+/)*\w+(?:\.py|/))`", text)
    assert len(names) > 40
    assert [name for name in names if not (ROOT / "dlnjax" / name).exists()] == []


def test_citation_has_the_version():
    assert f"\nversion: {dln.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"{{{dln.__version__}}}" in (DOCS / "cite.md").read_text(encoding="utf-8")
