"""What the site takes from elsewhere in the repository: the notebooks, as executed; their figures,
for the gallery; the figures of `benchmarks/results`; and two files at the root.

Pages of `docs/` refer to notebooks and figures of benchmarks as they lie in the repository,
`../notebooks/quickstart.ipynb` for example, so that the links work wherever the files are read.
"""

import base64
import json
import logging
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[1]
FOLDERS = {"../notebooks/": "notebooks/", "../benchmarks/results/": "results/"}
log = logging.getLogger("mkdocs.hooks")  # in strict builds, its warnings are errors


def figures(notebook: Path) -> Iterator[bytes]:
    """The figures of an executed notebook, in their order."""
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                yield base64.b64decode("".join(output["data"]["image/png"]))


def on_files(files, *, config, **_):
    from mkdocs.structure.files import File  # not there where tests import this module

    add = lambda uri, **source: files.append(File.generated(config, uri, **source))
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        uri = f"notebooks/{notebook.name}"
        files.append(File(uri, str(ROOT), config.site_dir, config.use_directory_urls))
        for number, figure in enumerate(figures(notebook), 1):
            add(f"figures/{notebook.stem}-{number}.png", content=figure)
    for figure in sorted((ROOT / "benchmarks/results").glob("*.png")):
        add(f"results/{figure.name}", abs_src_path=str(figure))
    return files


# Before the plugin that makes pages of notebooks.
on_files.mkdocs_priority = 50


def on_page_markdown(markdown: str, **_) -> str:
    def root_file(match: re.Match) -> str:
        return (ROOT / match[1]).read_text(encoding="utf-8").replace("](docs/", "](")

    markdown = re.sub(r'^--8<-- "(\w+\.md)"$', root_file, markdown, flags=re.MULTILINE)
    for here, there in FOLDERS.items():
        markdown = markdown.replace(f"]({here}", f"]({there}")
    return markdown


def cells(html: str) -> str:
    """The cells of a notebook alone, in the elements that the theme styles: around them there is a
    style sheet of half a megabyte a page, and scripts from other hosts."""
    start = html.index('<div class="jupyter-wrapper">')
    html = html[start : html.rindex("</div> <!-- jupyter-wrapper -->")] + "</div>"
    replacements = {
        r'<div class="zeroclipboard-container">.*?</clipboard-copy>\s*</div>': "",
        r'<div class="clipboard-copy-txt".*?</div>': "",
        r'<div class="celltoolbar">.*?</span>\s*</span>\s*</div>\s*</div>': "",
        r'<div class="highlight-ipynb[^"]*"><pre>(.*?)</pre>': (
            r'<div class="highlight"><pre><code>\1</code></pre>'
        ),
        r'<a class="anchor-link"': '<a class="headerlink"',
    }
    for old, new in replacements.items():
        html = re.sub(old, new, html, flags=re.DOTALL)
    return html


def on_page_content(html: str, *, page, files, **_) -> str:
    """Notebooks: their cells, and links of pages in place of links of files in the repository."""
    if not page.file.src_uri.endswith(".ipynb"):
        return html

    def link(match: re.Match) -> str:
        target = urlsplit(match[1])
        if target.scheme or not target.path:
            return match[0]
        path = posixpath.normpath(posixpath.join("notebooks", target.path))
        file = files.get_file_from_path(path.removeprefix("docs/"))
        if file is None:
            log.warning("%s links to '%s', which is no page.", page.file.src_uri, match[1])
            return match[0]
        anchor = f"#{target.fragment}" if target.fragment else ""
        return f'href="{file.url_relative_to(page.file)}{anchor}"'

    return re.sub(r'href="([^"]+)"', link, cells(html))
