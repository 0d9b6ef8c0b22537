"""What the pages take from elsewhere in the repository, so that each thing is in one place.

A line `<!-- README.md: How fast -->` becomes the section under that heading, without the heading; a
line `<!-- CHANGELOG.md -->` that file. Figures of `benchmarks/results` are copied into the site.
"""

import re
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[1]
PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
FIGURES = "benchmarks/results"


def section(text: str, title: str) -> str:
    """The section under the heading `## title`, up to the next one."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    if found is None:
        raise ValueError(f"README.md has no heading '## {title}'.")
    # Where a table folds on GitHub, the site has room for all of it.
    text = re.sub(r"</?details>|<summary>.*?</summary>|<!--.*?-->\n?", "", found[1])
    return text.partition("\n[CONTRIBUTING.md]")[0]  # how the README ends


def on_page_markdown(markdown: str, *, page, **_) -> str:
    up = "../" * page.file.src_uri.count("/")

    def link(match: re.Match) -> str:
        """Links of files at the root are links of pages here."""
        target = match[1]
        if not urlsplit(target).scheme:
            target = up + PAGES.get(target, target).removeprefix("docs/")
        return f"]({target})"

    def fill(match: re.Match) -> str:
        file, title = match[1], match[2]
        text = (ROOT / file).read_text(encoding="utf-8")
        text = section(text, title) if title else text
        return re.sub(r"\]\(([^)#]+)\)", link, text)

    markdown = markdown.replace(f"](../{FIGURES}/", "](results/")
    return re.sub(r"^<!-- (\w+\.md)(?:: (.+?))? -->$", fill, markdown, flags=re.MULTILINE)


def on_files(files, *, config, **_):
    from mkdocs.structure.files import File  # not there where tests import this module

    for figure in sorted((ROOT / FIGURES).glob("*.png")):
        files.append(File.generated(config, f"results/{figure.name}", abs_src_path=str(figure)))
    return files
