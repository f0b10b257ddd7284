"""Packaging of OneDiff: three packages, one command, and the configurations and job templates beside them."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

REQUIRES = [
    "torch>=2.9",  # the framework; install the build for your hardware first (docs/running.md)
    "deepspeed~=0.19.8",  # ZeRO-3 engine
    "megatron-core~=0.16.1",  # tensor-parallel layers and process groups
    "transformers~=5.23.0",  # vision towers and language models
    "huggingface_hub~=2.4",  # weights from the hub, resumed and checked
    "sentencepiece~=0.2.1",  # transformers reads `tokenizer.model` with it: Vicuna has no other vocabulary
    "protobuf>=5",  # the format of such a file
    "peft~=0.21.2",  # low-rank adapters, and the format that they are saved in
    "safetensors~=0.8.0",  # weights on disk, read by slices
    "fsspec~=2026.9",  # shards at URLs: one call for every kind of store
    "aiohttp>=3.9",  # fsspec reads http(s) with it
    "mlflow~=3.17",  # experiment tracking
    "psutil~=7.2",  # system metrics of every node
    "pycocoevalcap~=1.2",  # BLEU, METEOR, ROUGE-L, CIDEr as published papers compute them
    "pydantic~=2.14",  # typed, strict configuration
    "pyyaml~=6.0",  # configuration files
    "numpy>=1.26",  # arrays between decoding and torch
    "pillow>=11.3",  # image decoding, the reference for pixels; AVIF too
    "simplejpeg~=1.9",  # libjpeg-turbo without Pillow's copies: a quarter of the decode path's time
    "tqdm~=4.70",  # progress bars
    "shtab~=1.13",  # shell completion scripts, made from the parsers
    "pyarrow>=15",  # Parquet tables of pairs
    "faiss-cpu>=1.8",  # nearest neighbours among image embeddings
    "openai>=2",  # captions of pairs by any OpenAI-compatible endpoint
]

DOCS = ["mkdocs~=1.6.1", "mkdocs-material~=9.7.7"]  # the pages as a site; MkDocs 2 has no themes and no plugins

EXTRAS = {
    "docs": DOCS,
    # NVIDIA's Apex is built from source and detected; the package `apex` on PyPI is an unrelated one.
    "gpu": ["flash-attn>=2.7", "nvidia-ml-py>=12"],  # nvidia-ml-py reads GPU metrics
    "dask": ["distributed>=2025.1"],  # data preparation on several machines
    "heif": ["pillow-heif>=1.0"],  # HEIC images, as phones store them
    "s3": ["s3fs~=2026.9"],  # fsspec's reader of s3://
    "gs": ["gcsfs~=2026.9"],  # of gs://
    "az": ["adlfs>=2025.8"],  # of az://, Azure's blobs
    "search": ["optuna~=4.9"],  # proposals of settings, and which runs to end early
    "video": ["opencv-python-headless>=4.10"],  # frames of videos to caption
    "bench": [  # other loaders, for comparison in benchmarks/loader.py
        "webdataset~=1.0.2",
        "spdl~=0.8.0",
        "litdata~=0.2.76",
        "grain~=0.2.18",
        "torchvision>=0.24",
    ],
    "dev": [
        *DOCS,
        "pytest~=9.2",
        "pytest-xdist~=3.8",  # two test modules at a time: the daemons of one wait while the other computes
        "pytest-rerunfailures~=16.7",  # one more try if real daemons missed a time limit on a busy machine
        "hypothesis>=6.160,<7",  # property-based tests of the data order
        "ruff~=0.17.6",
        "mypy~=2.4",
        "types-PyYAML",
        "gguf~=0.19.0",  # real weights for the tests: transformers reads SmolLM2 with it
        "onnx~=1.23.2",  # and DINOv2 comes from an ONNX file
        "pillow-heif~=1.8",  # HEIC images
        "optuna~=4.9",  # searches
        "distributed>=2025.1",  # a local Dask cluster
        "scikit-image~=0.26",  # photographs for the tests
        "psutil>=5.9",  # memory of process trees in benchmarks
        "opencv-python-headless>=4.10",  # frames of videos as backgrounds
        "s3fs~=2026.9",  # s3:// addresses
        "moto[s3]~=5.2",  # and a server that answers as Amazon's does
        "webdataset~=1.0.2",  # shards as others write them
        "axe-core-python~=0.1.0",  # finds what keeps people from using a page
        "psycopg[binary]>=3.2",  # PostgreSQL as MLflow's store
        "asyncssh~=2.21",  # a server for `launch --host`
        "kubernetes-validate~=1.37.0",  # Kubernetes' own schemas, against which a JobSet's parts are validated
        "websocket-client~=1.9",  # Chromium's DevTools, which the tests of pages talk to
    ],
}


def tree(folder: str) -> list[tuple[str, list[str]]]:
    """The files of `folder` as `data_files` entries below `share/onediff` of the environment."""
    found: dict[str, list[str]] = {}
    for path in sorted((HERE / folder).rglob("*")):
        if path.is_file():
            found.setdefault(f"share/onediff/{path.parent.relative_to(HERE)}", []).append(str(path.relative_to(HERE)))
    return list(found.items())


setup(
    name="onediff",
    version="0.1.0",
    description="Train a generalist model that describes how two similar images differ",
    long_description=(HERE / "README.md").read_text() if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["onediff*", "launcher*", "data_prep*"]),
    package_data={
        "onediff": ["py.typed", "**/*.txt", "**/*.html"],
        "data_prep": ["**/*.txt"],
        "launcher": ["**/*.txt"],
    },
    data_files=tree("configs") + tree("slurm"),
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["onediff = onediff.cli:main"]},
)
