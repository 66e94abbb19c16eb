"""Puts recipes/ and ds_configs/ of the repository into the wheel, below the package. All else is in pyproject.toml."""

from setuptools import find_namespace_packages, find_packages, setup


FOLDERS = ("recipes", "ds_configs")

mapped = {f"hfgpt.{name}": name for name in FOLDERS}
for folder in FOLDERS:
    for name in find_namespace_packages(folder, exclude=["__pycache__", "*.__pycache__"]):
        mapped[f"hfgpt.{folder}.{name}"] = f"{folder}/{name.replace('.', '/')}"

setup(
    packages=[*find_packages(include=["hfgpt", "hfgpt.*"]), *mapped],
    package_dir=mapped,
    package_data={
        "hfgpt": ["py.typed"],
        **{name: ["*.json", "*.md", "*.py", "*.sbatch", "*.yaml"] for name in mapped},
    },
)
