"""The native libraries: optional plain C++. Everything else is in pyproject.toml."""

from glob import glob

from setuptools import Extension, setup

FLAGS = [
    "-O3",
    "-g0",  # Python's own flags ask for debug symbols, ten times the library
    "-std=c++17",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-ffp-contract=off",  # a product and a sum are fused where the source says so, nowhere else
    "-pthread",
]
KERNELS = "src/stafette/workers/native"
TRANSFER = "src/stafette/kvtransfer/native"
HASHING = [f"{TRANSFER}/hashing.cpp"]


def native(name: str, sources: list[str], depends: list[str]) -> Extension:
    """Return an extension that may fail to build: without a compiler the pure fallback serves."""
    return Extension(
        name,
        sources=sources,
        depends=depends,
        extra_compile_args=FLAGS,
        extra_link_args=["-pthread"],
        optional=True,
    )


setup(
    ext_modules=[
        native(
            "stafette.workers.native._kernels",
            sources=sorted(glob(f"{KERNELS}/*.cpp")),
            depends=sorted(glob(f"{KERNELS}/*.h")),
        ),
        native(
            "stafette.kvtransfer.native._hashing",
            sources=HASHING,
            depends=[],
        ),
        native(
            "stafette.kvtransfer.native._moving",
            sources=sorted(set(glob(f"{TRANSFER}/*.cpp")) - set(HASHING)),
            depends=sorted(glob(f"{TRANSFER}/*.h")),
        ),
        native(
            "stafette.router.native._table",
            sources=["src/stafette/router/native/table.cpp"],
            depends=sorted(glob("src/stafette/router/native/*.h")),
        ),
    ]
)
