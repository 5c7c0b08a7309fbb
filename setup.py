"""Set-up: `pip install -e .[cpu]`, or `.[cuda]` on a machine with an NVIDIA driver."""

import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "fltrust_repro/__init__.py").read_text())[1]

setup(
    name="fltrust_repro",
    version=VERSION,
    description="Local model poisoning attacks to Byzantine-robust federated learning, in MXNet",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    # The paper's experiments and what was found for them, so that an installed program has them.
    packages=["fltrust_repro", "fltrust_repro.paper", "fltrust_repro.paper.results"],
    package_dir={"fltrust_repro.paper": "experiments"},
    package_data={
        "fltrust_repro": ["*.css", "*.cu", "*.html", "*.js", "py.typed"],
        "fltrust_repro.paper": ["*.toml"],
        "fltrust_repro.paper.results": ["*.trials.csv", "*.trials.csv.gz"],
    },
    entry_points={"console_scripts": ["fltrust-repro = fltrust_repro.__main__:main"]},
    python_requires=">=3.9,<3.13",
    install_requires=[
        "click>=8.1,<9",
        "jinja2>=3.1,<4",
        "matplotlib>=3.7,<4",
        "numba>=0.59,<0.70",
        "numpy>=1.24,<2",
        "packaging>=22,<27",
        "pandas>=2.0,<4",
        "pillow>=10,<14",
        "pooch>=1.8,<2",
        "rich>=13.7,<15",
        "scikit-learn>=1.3,<2",
        "scipy>=1.11,<2",
        "setuptools>=65,<81",
        "tabulate>=0.9,<1",
        "threadpoolctl>=3,<4",
        "tomli>=2,<3; python_version < '3.11'",
    ],
    extras_require={
        # Both install a package called mxnet: exactly one of the two.
        "cpu": ["mxnet==1.9.1"],
        "cuda": [
            "mxnet-cu112==1.9.1",
            "nvidia-cublas-cu11>=11.4,<12",
            "nvidia-cuda-nvrtc-cu11>=11.2,<12",
            "nvidia-cuda-runtime-cu11>=11.2,<12",
            # Older ones end the process where the loader knows no libnvrtc.so or libcuda.so, names
            # that NVIDIA's packages for pip do not have.
            "nvidia-cudnn-cu11>=8.9.6,<9",
            "nvidia-cufft-cu11>=10.4,<11",
            "nvidia-curand-cu11>=10.2,<11",
            "nvidia-cusolver-cu11>=11.1,<12",
            "nvidia-nccl-cu11>=2.14,<3",
            "nvidia-nvtx-cu11>=11.2,<12",
        ],
        "cluster": ["distributed>=2024.8,<2027"],
        # What experiments/benchmarks/suite.py compares with, on Python 3.11 and 3.12. ByzFL has no
        # stable interface yet; torchvision, which it needs, decides on torch's version.
        "peers": ["byzfl==0.0.11", "flwr>=1.42,<1.43", "torch>=2.14,<2.15"],
        "dev": [
            "axe-core-python>=0.1,<0.2; python_version >= '3.10'",
            "distributed>=2024.8,<2027",
            "hypothesis>=6.80,<7",
            "markdown-it-py>=2.2,<5",
            "mypy>=1.19,<1.20",  # the last for Python 3.9; what it finds changes, too
            "pyarrow>=14,<22",  # later ones need numpy 2
            "pytest>=7.4,<10",
            "pytest-xdist>=3.5,<4",
            "ruff>=0.17,<0.18",  # what it calls well formatted changes from one to the next
            "selenium>=4.10,<5",
        ],
    },
    classifiers=[
        "Programming Language :: Python :: 3.9",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
    ],
)
