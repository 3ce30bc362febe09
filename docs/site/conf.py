"""Sphinx's configuration. assemble.py copies it to the source of the site."""

import os
import sys
from importlib import import_module
from pathlib import Path

ROOT = Path(os.environ["GOPTIM_ROOT"])
sys.path[:0] = [str(ROOT / "python"), str(Path(__file__).parent)]

project = "goptim"
author = "the goptim authors"
copyright = author
release = version = import_module("goptim").__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "mathml",
]
html_math_renderer = "mathml"
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_use_rtype = False
napoleon_use_ivar = True
suppress_warnings = ["config.cache"]

sphinx_gallery_conf = {
    "examples_dirs": str(ROOT / "examples/gallery"),
    "gallery_dirs": "gallery",
    "filename_pattern": r"plot_",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "min_reported_time": 1e9,
    "write_computation_times": False,
    "remove_config_comments": True,
    "plot_gallery": True,
}

html_theme = "furo"
html_title = f"goptim {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_last_updated_fmt = None
html_theme_options = {
    "source_repository": "https://github.com/goptim/goptim/",
    "light_css_variables": {"color-brand-primary": "#00677f", "color-brand-content": "#00677f"},
    "dark_css_variables": {"color-brand-primary": "#5dc9e2", "color-brand-content": "#5dc9e2"},
}
pygments_style = "friendly"
pygments_dark_style = "github-dark"
