"""`dlnjax compare --html`: the page as text, and moved in a browser, beside the report."""

import base64
import html
import importlib.util
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from browser import in_browser

from dlnjax.cli import page as _page  # noqa: F401
