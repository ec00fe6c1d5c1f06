"""The native libraries: optional plain C++. Everything else is in pyproject.toml."""

from setuptools import Extension, setup

FLAGS = ["-O3", "-std=c++17", "-fvisibility=hidden", "-fno-math-errno", "-pthread"]


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


setup(ext_modules=[])
