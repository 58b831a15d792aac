"""Settings of the documentation: `python -m sphinx -W -b html docs OUT`, from the top of the repository."""

import os
import pathlib
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(pathlib.Path(__file__).parent / "_ext"))

from sphinx.domains.python import PyObject

import disam_jax

project = "disam_jax"
author = "The disam_jax authors"
copyright = "the disam_jax authors, Apache-2.0"
version = release = disam_jax.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_nb",
    "api_coverage",
    "api_tables",
    "descriptions",
    "docstrings",
    "formulas",
    "gathered",
    "mathml",
    "registries",
    "sources",
]
exclude_patterns = ["_ext", ".gitignore"]

html_theme = "furo"
html_title = "disam_jax"
html_static_path = ["_static"]
html_css_files = ["disam.css"]
html_js_files = ["copy.js"]
html_favicon = "_static/favicon.svg"
html_show_sphinx = False
html_copy_source = False
pygments_dark_style = "github-dark"
# Quotes and ellipses; an option such as --data keeps its two hyphens.
smartquotes_action = "qe"

# MathML, which browsers draw by themselves: no script and no font from another host, and it works offline.
html_math_renderer = "mathml"

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "attrs_inline", "attrs_block"]
myst_heading_anchors = 3
myst_links_external_new_tab = False

# CI runs the notebooks; here they are shown as they are stored unless their outputs are asked for.
nb_execution_mode = "cache" if os.environ.get("DISAM_JAX_DOCS_EXECUTE") else "off"
nb_execution_raise_on_error = True
nb_execution_timeout = 300

# A single backtick in a docstring means code.
default_role = "literal"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
# Shown by their names, which docs/api/core.rst explains.
named_types = ("AxisName", "Examples", "Filter", "GradFn", "Losses", "LossFn", "Mask", "Params", "Scalar")
autodoc_type_aliases = {name: name for name in (*named_types, "ScalarOrSchedule")}
autodoc_type_aliases["jax.typing.ArrayLike"] = "ArrayLike"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
maximum_signature_line_length = 90
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_admonition_for_examples = False

# Sphinx calls what a docstring lists under "Attributes:" variables.
for field in PyObject.doc_field_types:
    if field.name == "variable":
        field.label = "Attributes"
