"""Installs SegStudio: `pip install .`; what is needed to develop it stands in the extras."""

import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
MODULE = (HERE / "SegStudio" / "backstage.py").read_text(encoding="utf-8")

# `mkdocs build` makes the site from these; a test builds it, so the tests need them, too.
DOCS = ["mkdocs>=1.6", "mkdocs-material>=9.6", "mkdocstrings-python>=2.0", "ruff>=0.6"]

setup(
    name="SegStudio",
    version=re.search(r'^__version__ = "(.+)"$', MODULE, re.MULTILINE).group(1),
    description="Semantic segmentation, explained and runnable, in one module",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    packages=["SegStudio"],
    package_data={"SegStudio": ["*.j2"]},
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.4",
        "torchvision>=0.19",
        "numpy>=1.26",
        "scikit-image>=0.22",
        "pycocotools>=2.0.7",
        "matplotlib>=3.8",
        "tqdm>=4.66",
        "filelock>=3.13",  # torch brings it
        "Jinja2>=3.1",
        "requests>=2.31",
        "platformdirs>=4",
    ],
    extras_require={
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.5",
            "codespell>=2.3",
            # A test executes Examples/semantic_segmentation.ipynb.
            "nbclient>=0.10",
            "nbformat>=5.10",
            "ipykernel>=6.29",
            *DOCS,
        ],
        "docs": DOCS,
        "bench": [
            "DLStudio==2.3.6",
            "pymsgbox",
            "monai",
            "segmentation-models-pytorch",
            "torchmetrics>=1.6",
        ],
    },
)
