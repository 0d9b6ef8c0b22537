"""A real browser for pages: Chromium without a window, a network or a driver."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

# After `steps` the page waits for what they set off, and `results` goes into the page that
# Chromium prints, with what went wrong.
SCRIPT = """
<script>
const errors = []
window.onerror = (message) => { errors.push(String(message)) }
window.onunhandledrejection = (event) => { errors.push(String(event.reason)) }
for (const kind of ["error", "warn"]) console[kind] = (...words) => { errors.push(words.join(" ")) }
</script>
%s
<script>
const waiting = setInterval(async () => {
  const page = window.Bokeh?.documents[0]
  if (!page?.is_idle) return
  clearInterval(waiting)
  const results = []
  const named = (name) => page.get_model_by_name(name)
  const rest = () => new Promise((done) => setTimeout(done, 50))
  try {
    %s
  } catch (error) { errors.push(String(error)) }
  const loaded = performance.getEntriesByType("resource").map((entry) => entry.name)
  const out = document.createElement("pre")
  out.id = "results"
  out.textContent = JSON.stringify({results, errors, loaded})
  document.body.append(out)
}, 20)
</script>
"""


def chromium() -> str:
    """The program; the test is skipped where there is none that starts."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            if subprocess.run([path, "--version"], capture_output=True).returncode == 0:
                return path
    pytest.skip("no Chromium that starts is installed")


def in_browser(page: str, steps: str, folder: Path) -> dict[str, Any]:
    """Opens the text of a page from disk, runs `steps` in it once it is drawn, and returns what
    they push to `results`, with `errors` and the addresses that were `loaded`."""
    head, body = page.split("<head>", 1)
    path = folder / "page.html"
    watched, moved = SCRIPT.split("%s", 1)
    path.write_text(f"{head}<head>{watched}{body}{moved.replace('%s', steps)}", encoding="utf-8")
    command = [
        chromium(),
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={folder / 'profile'}",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--proxy-server=127.0.0.1:9",
        "--virtual-time-budget=20000",
        "--dump-dom",
        path.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    (text,) = re.findall(r'<pre id="results">(.*?)</pre>', done.stdout, re.DOTALL)
    return json.loads(html.unescape(text))
