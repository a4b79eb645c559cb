"""How Sphinx builds the documentation site: `make docs`.

The source folder is the repository's root, so a relative link leads to the same file on a code host and in the site.
"""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

project = "CleanAI"
author = "CleanAI contributors"
copyright = "CleanAI contributors, MIT licence"
version = release = importlib.metadata.version("cleanai")
language = "en"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinxarg.ext",
    "sphinx-mathjax-offline",  # formulas drawn without a network
]
root_doc = "docs/index"
include_patterns = ["*.md", "data/*.md", "docs/**.md", "notebooks/*.ipynb", "notebooks/tr/*.ipynb"]
exclude_patterns = ["docs/_build"]

html_theme = "furo"
html_title = "CleanAI"
html_extra_path = ["_extra"]  # index.html at the top leads to docs/index.html
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": True}
html_copy_source = False
html_show_sourcelink = False
templates_path: list[str] = []
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3  # links to headings, as code hosts make them
myst_ref_domains = ["std", "py"]  # not that of the command line, which answers no such question
nb_execution_mode = "off"  # outputs are stored; `make test` runs every notebook and compares
suppress_warnings = ["myst.strikethrough"]

default_role = "py:obj"
autodoc_default_options = {"members": True}
python_maximum_signature_line_length = 100  # longer ones have a line for each parameter
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
