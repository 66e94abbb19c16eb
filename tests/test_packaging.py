"""The wheel, built from the source archive and installed where there is no checkout; recipes found, listed and copied."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from helpers import ROOT
from packaging.requirements import Requirement

from hfgpt.cli import main
from hfgpt.config import read_yaml
from hfgpt.shipped import FOLDERS, find_file, shipped_files, shipped_root


SHIPPED = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in FOLDERS
    for path in (ROOT / folder).rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
)


class Installed:
    """hfgpt from its wheel in an environment of its own, which sees the other packages of this one."""

    def __init__(self, folder: Path):
        self.archives = folder / "dist"
        self.python = folder / "venv" / "bin" / "python"
        self.work = folder / "work"
        checkout = folder / "checkout"
        checkout.mkdir()
        for path in ROOT.iterdir():
            if path.is_file() and not path.name.startswith("."):
                shutil.copyfile(path, checkout / path.name)
        for name in ("hfgpt", "recipes", "ds_configs", "tests"):
            shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
        self.modules = {path.relative_to(checkout).as_posix() for path in (checkout / "hfgpt").rglob("*.py")}
        self.work.mkdir()
        self._call(sys.executable, "-m", "build", "--no-isolation", "--outdir", self.archives, checkout)
        shutil.rmtree(checkout)
        self._call(sys.executable, "-m", "venv", "--without-pip", folder / "venv")
        (self.wheel,) = self.archives.glob("*.whl")
        pip = ("pip", "--quiet", "--disable-pip-version-check", "--python", self.python)
        self._call(sys.executable, "-m", *pip, "install", "--no-index", "--no-deps", self.wheel)
        # A path in a .pth adds the folder without reading the .pth files in it, an editable hfgpt's among them.
        (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
        (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def _call(self, *words) -> str:
        environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "COLUMNS")}
        done = subprocess.run(
            [str(word) for word in words], cwd=self.work, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, f"{words}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def hfgpt(self, *words: str) -> str:
        """Standard output of the installed command, run in a folder of its own."""
        return self._call(self.python.parent / "hfgpt", *words)

    def run(self, code: str) -> str:
        """Standard output of Python code."""
        return self._call(self.python, "-c", code)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    return Installed(tmp_path_factory.mktemp("installed"))


def test_the_wheel_has_every_module_and_recipe(installed):
    names = set(zipfile.ZipFile(installed.wheel).namelist())
    assert installed.modules | {"hfgpt/py.typed"} | {f"hfgpt/{path}" for path in SHIPPED} <= names
    metadata = f"{installed.wheel.name.rsplit('-', 3)[0]}.dist-info"
    assert all(name.startswith(("hfgpt/", f"{metadata}/")) for name in names)
    assert f"{metadata}/licenses/LICENSE" in names


def test_the_source_archive_can_be_built_and_tested(installed):
    (archive,) = installed.archives.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    needed = {
        "LICENSE",
        "README.md",
        "Makefile",
        "constraints.txt",
        "setup.py",
        "tests/conftest.py",
        "tests/helpers.py",
    }
    assert needed | set(SHIPPED) <= names
    assert not [name for name in names if "__pycache__" in name]


def test_the_installed_command_works_where_there_is_no_checkout(installed):
    where = installed.run("import hfgpt; print(hfgpt.__file__)").strip()
    assert Path(where).is_relative_to(installed.python.parents[1])
    assert "prepare" in installed.hfgpt("--help")
    plan = json.loads(installed.hfgpt("plan", "--recipe", "recipes/pretrain/gpt3-125m.yaml", "--gpus", "8", "--json"))
    assert plan["parameters"] == 125_226_240
    found = json.loads(installed.hfgpt("recipes", "--json"))
    assert Path(found["folder"]) == Path(where).parent
    assert [one["path"] for one in found["files"]] == [one.path for one in shipped_files() if one.path[-3:] != ".md"]


def test_what_the_installed_accelerate_files_name_is_found(installed):
    code = """
import glob, json, os
from hfgpt.config import read_yaml
from hfgpt.shipped import find_file, shipped_root
from hfgpt.training.launch import output_dir_of, read_deepspeed_config
stages = {}
for path in glob.glob(f"{shipped_root()}/recipes/accelerate/zero*.yaml"):
    name = read_yaml(path)["deepspeed_config"]["deepspeed_config_file"]
    stages[os.path.basename(path)] = read_deepspeed_config(str(find_file(name)))["zero_optimization"]["stage"]
print(json.dumps([stages, output_dir_of(["--config", "recipes/pretrain/demo.yaml"])]))
"""
    stages, output_dir = json.loads(installed.run(code))
    assert stages == {"zero1.yaml": 1, "zero2.yaml": 2, "zero3.yaml": 3, "zero3_offload.yaml": 3}
    assert output_dir == "out/demo/pretrain"


def test_copied_recipes_are_a_place_to_work_in(installed):
    assert f"{len(SHIPPED)} files" in installed.hfgpt("recipes", "--copy", "mine")
    mine = installed.work / "mine"
    assert sorted(path.relative_to(mine).as_posix() for path in mine.rglob("*") if path.is_file()) == SHIPPED
    assert all((mine / path).read_bytes() == (ROOT / path).read_bytes() for path in SHIPPED)
    # `accelerate launch ... recipes/pretrain.py` needs no more than this script and the installed package.
    usage = installed._call(installed.python, mine / "recipes" / "pretrain.py", "--help")
    assert "--learning_rate" in usage


def test_every_shipped_file_says_what_it_is(capsys):
    assert [one.path for one in shipped_files()] == sorted(SHIPPED, key=lambda path: (path[0] == "d", path.split("/")))
    assert not [one.path for one in shipped_files() if not one.description or one.description.endswith(".")]
    assert main(["recipes"]) == 0
    lines = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert lines["recipes/accelerate/cpu.yaml"] == "One process on the processor"
    assert lines["ds_configs/zero3.json"] == "DeepSpeed ZeRO stage 3"
    assert lines["recipes/pretrain/gpt3-1.3b.yaml"].endswith("of the corpus of recipes/corpus/gpt3.yaml")
    assert lines["recipes/finetune/qa-full-ko.yaml"].startswith("All weights, on the Hub's KorQuAD 1.0, from a Korean")


def test_a_changed_file_is_kept_until_it_may_be_overwritten(tmp_path, capsys):
    assert main(["recipes", "--copy", str(tmp_path)]) == 0
    changed = tmp_path / "recipes" / "corpus" / "demo.yaml"
    changed.write_text("output_dir: mine\n")
    (tmp_path / "recipes" / "finetune.py").unlink()
    capsys.readouterr()
    assert main(["recipes", "--copy", str(tmp_path), "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["kept"] == ["recipes/corpus/demo.yaml"] and len(done["written"]) == len(SHIPPED) - 1
    assert changed.read_text() == "output_dir: mine\n" and (tmp_path / "recipes" / "finetune.py").exists()
    assert main(["recipes", "--copy", str(tmp_path)]) == 0
    assert f"kept {changed}, which differs" in capsys.readouterr().err
    assert main(["recipes", "--copy", str(tmp_path), "--overwrite"]) == 0
    assert changed.read_text() == (ROOT / "recipes" / "corpus" / "demo.yaml").read_text()


def test_recipes_cannot_be_copied_to_where_nothing_can_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["recipes", "--copy", str(tmp_path / "file")]) == 2
    assert "Cannot write" in capsys.readouterr().err
    assert main(["recipes", "--overwrite"]) == 2
    assert "`--copy DIR`" in capsys.readouterr().err


def test_a_short_path_means_hfgpts_own_file_where_there_is_no_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "recipes/pretrain/demo.yaml"
    assert find_file(name) == find_file(f"./{name}") == shipped_root() / name
    assert read_yaml(name)["corpus"] == "out/demo/corpus"
    for other in ("recipes/pretrain/nothing.yaml", "recipes", "elsewhere/demo.yaml", f"/{name}", f"../{name}"):
        assert find_file(other) == Path(other)
    with pytest.raises(ValueError, match=r"Cannot read the config file recipes/pretrain/nothing\.yaml"):
        read_yaml("recipes/pretrain/nothing.yaml")
    (tmp_path / "recipes" / "pretrain").mkdir(parents=True)
    (tmp_path / name).write_text("corpus: mine\n")
    assert find_file(name) == Path(name) and read_yaml(name) == {"corpus": "mine"}


def test_what_hfgpt_depends_on_directly_has_a_tested_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [Requirement(line) for lines in (project["dependencies"], *extras.values()) for line in lines]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {one.name.lower().replace("_", "-"): one for one in map(Requirement, lines[1:])}
    # kernels are fetched for a GPU; the rest comes with every installation of the checks.
    unknown = {one.name.lower().replace("_", "-") for one in asked} - set(pinned) - {"hfgpt", "kernels"}
    assert not unknown
    for one in asked:
        pin = pinned.get(one.name.lower().replace("_", "-"))
        if pin is not None:
            (version,) = (each.version for each in pin.specifier)
            assert one.specifier.contains(version), f"{one} does not take {pin}"
    assert all(set(Requirement(f"hfgpt[{name}]").extras) <= set(extras) for name in extras)
    (own,) = (Requirement(line) for line in extras["dev"] if line.startswith("hfgpt["))
    assert own.extras == set(extras) - {"dev", "gpu"}
