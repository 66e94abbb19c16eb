"""`hfgpt doctor`: on this machine, and on what other machines would say."""

import json
import os
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from helpers import ROOT, run
from hub_server import HubServer
from packaging.requirements import Requirement

from hfgpt import doctor
from hfgpt.cli import main
from hfgpt.doctor import Check, Report, examine


TOKEN = "hf_" + "s3cret" * 6

# What torch says of itself on a machine with processors alone, with GPUs, and so on.
CPU = {"cuda": None, "hip": None, "devices": [], "capability": "AVX512", "mps": False, "available": False}
H100 = {"name": "NVIDIA H100 80GB HBM3", "memory": 85_000_000_000, "capability": [9, 0]}
GPU = {
    **CPU, "cuda": "12.8", "available": True, "devices": [H100] * 8, "architectures": ["sm_80", "sm_90"], "bf16": True,
    "nccl": "2.27.3",
}  # fmt: skip


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Examine a machine of which these are the facts; returns its findings by name, the last of each."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "bin").mkdir()

    def examined(facts=CPU, smi=None, errors=None, sections=None):
        imports = {"torch": {"name": "torch", "version": "2.13.0", "facts": facts}}
        imports.update({name: {"name": name, "error": error} for name, error in (errors or {}).items()})
        monkeypatch.setattr(doctor, "_import_all", lambda names: imports)
        if smi is not None:
            program = tmp_path / "bin" / "nvidia-smi"
            program.write_text(f"#!/bin/sh\necho '{smi}'\n")
            program.chmod(0o755)
        return {check.name: check for check in examine().checks}

    return examined


def test_this_machine(tmp_path):
    """As users run it; what is imported is really imported."""
    environment = {"HF_HUB_OFFLINE": "1", "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path)}
    done = run("-m", "hfgpt.cli", "doctor", "--json", check=False, **environment)
    found = json.loads(done.stdout)
    assert done.returncode == (1 if found["counts"]["problem"] else 0)
    assert len(found["checks"]) == sum(found["counts"].values())
    checks = {check["name"]: check for check in found["checks"]}
    assert {check["section"] for check in found["checks"]} == {
        "software", "devices", "compilers", "hub", "disk", "launch",
    }  # fmt: skip
    assert {"torch", "transformers", "accelerate", "deepspeed", "peft"} <= set(checks["imports"]["text"].split(", "))
    assert "transformers" in checks["required"]["text"] and checks["required"]["status"] == "ok"
    assert str(len(os.sched_getaffinity(0))) in checks["processors"]["text"]
    assert checks["hub"]["status"] == "note" and "HF_HUB_OFFLINE" in checks["hub"]["advice"]
    assert checks["token"]["text"] == "there is one, in HF_TOKEN, not tried"
    assert TOKEN not in done.stdout + done.stderr and not done.stderr


def test_an_import_that_fails_dies_or_hangs_ends_none_of_the_others(tmp_path, monkeypatch):
    for name, code in {
        "stub_fine": "print('a word on standard output')\n__version__ = '1.2'",
        "stub_raises": "raise ImportError('undefined symbol: _ZN3c105Error')",
        "stub_dies": "import os; print('a library says why', file=__import__('sys').stderr); os.abort()",
        "stub_exits": "import sys; sys.exit(3)",
        "stub_leaves": "import os; os._exit(7)",
        "stub_hangs": "import time; time.sleep(60)",
        "stub_last": "",
    }.items():
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    names = [path.stem for path in sorted(tmp_path.glob("*.py"))]
    found = doctor._import_all([*names, "stub_missing"], timeout=2)
    assert found["stub_fine"] == {"name": "stub_fine", "version": "1.2"}
    assert found["stub_last"] == {"name": "stub_last", "version": ""}
    assert found["stub_raises"]["error"] == "ImportError: undefined symbol: _ZN3c105Error"
    assert found["stub_dies"]["error"] == "the process died of SIGABRT (a library says why)"
    assert found["stub_leaves"]["error"] == "the process ended with status 7"
    assert found["stub_exits"]["error"] == "SystemExit: 3"
    assert found["stub_hangs"]["error"] == "not done after 2 s"
    assert found["stub_missing"]["error"].startswith("ModuleNotFoundError")


def test_what_cannot_be_imported_is_a_problem_with_what_to_do(machine):
    found = machine(
        errors={"flash_attn": "ImportError: undefined symbol: x\nmore", "peft": "the process died of SIGSEGV"}
    )
    names = {check.name for check in Report(tuple(found.values())).problems}
    assert {"flash_attn", "peft"} <= names
    assert found["flash_attn"].text == "cannot be imported (ImportError: undefined symbol: x)"
    assert "another torch" in found["flash_attn"].advice
    assert found["peft"].advice == "pip install --force-reinstall peft"
    assert found["imports"].text == "torch"


def test_a_machine_without_torch_or_packaging_is_examined_all_the_same(machine, monkeypatch):
    monkeypatch.setitem(sys.modules, "packaging.requirements", None)
    found = machine(facts={})
    assert found["required"].status == "note" and "could not be examined" in found["required"].text
    assert "gpu" not in found and found["processors"].status == "ok"


SMI = "NVIDIA H100 80GB HBM3, 570.86, 70000, 81559"


@pytest.mark.parametrize(
    ("facts", "smi", "environment", "name", "status", "words"),
    [
        (CPU, None, {}, "gpu", "ok", "none; torch is built for processors alone"),
        (GPU, "NVIDIA H100 80GB HBM3, 570.86, 0, 81559", {}, "gpu", "ok", "8 x NVIDIA H100 80GB HBM3, 79.2 GiB"),
        (GPU, SMI, {}, "gpu 0", "note", "68.4 GiB of 79.6 GiB are taken"),
        (CPU, SMI, {}, "gpu", "problem", "built for processors alone"),
        ({**GPU, "available": False, "devices": [], "error": "driver too old"}, SMI, {}, "gpu", "problem", "driver too old"),
        ({**GPU, "available": False, "devices": []}, SMI, {"CUDA_VISIBLE_DEVICES": ""}, "gpu", "note", "hidden by"),
        ({**GPU, "bf16": False}, SMI, {}, "gpu", "note", "without bf16: set `bf16: false` and `fp16: true`"),
        ({**GPU, "architectures": ["sm_70"]}, SMI, {}, "gpu", "problem", "for which this torch has no code"),
        ({**GPU, "devices": [H100, {**H100, "name": "A100"}]}, SMI, {}, "gpu", "note", "several kinds"),
        ({**CPU, "numpy": "Numpy is not available"}, None, {}, "numpy", "problem", "torch cannot use numpy"),
        (CPU, None, {"ACCELERATE_USE_DEEPSPEED": "true"}, "environment", "note", "ACCELERATE_USE_DEEPSPEED set in this"),
        (CPU, None, {"LOCAL_WORLD_SIZE": "2"}, "threads", "note", "2 processes, and OMP_NUM_THREADS is not set"),
        (CPU, None, {"HF_ENDPOINT": "http://kim:pw@mirror"}, "xet", "note", "HF_ENDPOINT is http://mirror"),
    ],
)  # fmt: skip
def test_machines_that_are_known_to_go_wrong(machine, monkeypatch, facts, smi, environment, name, status, words):
    for variable in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "LOCAL_WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    if name == "xet":
        monkeypatch.delenv("HF_HUB_DISABLE_XET", raising=False)
        monkeypatch.setattr(doctor, "_version", lambda package: "1.2.0")
    found = machine(facts, smi)[name]
    assert (found.status, words in f"{found.text}: {found.advice}") == (status, True), found


def test_versions_are_compared_with_what_is_asked_for_and_tested(machine, monkeypatch):
    versions = {"torch": "2.4.1", "transformers": "5.99.0", "peft": None, "deepspeed": "0.10.0", "ray": None}
    original = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: versions[name] if name in versions else original(name))
    found = machine()
    assert found["torch"].status == "problem" and found["torch"].text == "2.4.1, but hfgpt needs >=2.9"
    assert found["peft"].text == "not installed" and found["peft"].advice.startswith("pip install 'peft>=")
    assert found["transformers"].status == "note" and "newer than 5.23.0" in found["transformers"].text
    assert found["extra train"].status == "problem" and "deepspeed 0.10.0 (needs >=0.18)" in found["extra train"].text
    assert found["extra ray"].status == "ok" and "pip install 'hfgpt[ray]'" in found["extra ray"].advice


def test_the_tested_versions_are_those_of_the_constraints():
    pins = map(Requirement, (ROOT / "constraints.txt").read_text().splitlines()[1:])
    versions = {one.name: str(one.specifier).removeprefix("==") for one in pins}
    assert {name: versions[name] for name in doctor.TESTED} == doctor.TESTED


def test_full_disks_and_low_limits(machine, monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")
    sizes = {"/dev/shm": 64 * 2**20, str(Path.cwd()): 5 * 2**30, str(tmp_path): 2**20}
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage(2**40, 0, sizes.get(str(path), 2**39)))
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda _: (1024, 524288))
    found = machine()
    assert found["current folder"].status == "note" and "5.0 GiB free of 1,024 GiB" in found["current folder"].text
    assert (
        found["Hub's cache"].status == "problem" and "set HF_HOME to a folder elsewhere" in found["Hub's cache"].advice
    )
    assert found["shared memory"].status == "note" and "--shm-size" in found["shared memory"].advice
    assert machine(GPU)["shared memory"].status == "problem"
    assert found["open files"].status == "note" and "ulimit -n 524288" in found["open files"].advice


def test_an_accelerate_config_of_ones_own(machine, monkeypatch, tmp_path):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    path = tmp_path / "hf" / "accelerate" / "default_config.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("distributed_type: MULTI_CPU\nnum_processes: 2\nuse_cpu: true\nmixed_precision: fp16\n")
    checks = [check for check in (machine(), doctor.examine().checks)[1] if check.section == "launch"]
    accelerate, threads = (next(check for check in checks if check.name == name) for name in ("accelerate", "threads"))
    assert accelerate.status == "note" and "MULTI_CPU, 2 processes, mixed_precision fp16" in accelerate.text
    assert threads.status == "note" and "OMP_NUM_THREADS is not set" in threads.text
    path.write_text("a: [")
    broken = next(check for check in doctor.examine().checks if "accelerate config" in check.name)
    assert broken.status == "note" and "could not be examined" in broken.text


@pytest.mark.parametrize(
    ("token", "stored", "hub", "status", "words"),
    [
        (None, None, "ok", "ok", "none: public models can be read"),
        (TOKEN, None, "ok", "ok", "kim's, in HF_TOKEN, write"),
        (None, TOKEN, "ok", "ok", "/token, write"),
        ("hf_readonly", None, "ok", "note", "kim's, in HF_TOKEN, may read alone"),
        ("hf_unknown", None, "ok", "problem", "does not take that of HF_TOKEN"),
        ("hf_two words", None, "ok", "problem", "has a space"),
        (TOKEN, None, "note", "ok", "there is one, in HF_TOKEN, not tried"),
    ],
)
def test_the_hub_and_whose_token_it_is(tmp_path, monkeypatch, token, stored, hub, status, words):
    server = HubServer(tmp_path / "hub")
    server.add_user("kim", TOKEN)
    server.add_user("kim", "hf_readonly", role="read")
    home = tmp_path / "home"
    home.mkdir()
    if stored:
        (home / "token").write_text(stored)
    with server, server.in_process(token, home=home):
        monkeypatch.setattr(doctor, "_import_all", lambda names: {})
        if hub == "note":
            server.stop()
        report = examine()
        if hub == "note":
            server.start()
    found = {check.name: check for check in report.checks}
    assert (found["hub"].status, found["token"].status) == (hub, status), found["token"]
    assert words in found["token"].text
    said = json.dumps(report.as_dict()) + "\n".join(report.lines())
    assert not any(secret in said for secret in (TOKEN, "hf_readonly", "hf_unknown"))


def test_lines_and_exit_status(monkeypatch, capsys):
    checks = [
        Check("disk", "a", "ok", "fine"),
        Check("disk", "b", "note", "low", "do this"),
        Check("hub", "c", "ok", "x"),
    ]
    monkeypatch.setattr("hfgpt.doctor.examine", lambda: Report(tuple(checks)))
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "disk",
        "  ok       a: fine",
        "  note     b: low: do this",
        "",
        "hub",
        "  ok       c: x",
        "",
        "no problems, 1 note",
    ]
    checks.append(Check("hub", "d", "problem", "wrong"))
    monkeypatch.setattr("hfgpt.doctor.examine", lambda: Report(tuple(checks)))
    with pytest.raises(SystemExit) as end:
        main(["doctor", "--json"])
    assert end.value.code == 1 and json.loads(capsys.readouterr().out)["counts"] == {"problem": 1, "note": 1, "ok": 2}
