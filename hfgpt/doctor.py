"""What is installed here, and what is known to go wrong with it: versions, devices, compilers, the Hub, disks, limits.

Nothing but Python's own library is imported in this process: what is examined may be broken. Libraries are imported by a
child process, which may die of it. A check that fails itself says so and the others go on.
"""

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal


# The versions of constraints.txt, of libraries whose next version may change what we rely on.
TESTED = {
    "accelerate": "1.15.0",
    "deepspeed": "0.19.8",
    "peft": "0.21.2",
    "torch": "2.13.0",
    "transformers": "5.23.0",
}
# What an extra is for; `dev`, `docs` and `notebooks` are for working on hfgpt.
EXTRAS = {
    "train": "ZeRO",
    "gpu": "flash attention from the Hub",
    "qlora": "adapters on weights in 4 bits",
    "web": "corpora of web pages, WARC files and Wikipedia dumps",
    "ray": "corpora on a Ray cluster",
    "report": "curves in TensorBoard or trackio",
    "harness": "lm-evaluation-harness",
    "demo": "hfgpt demo",
}
# In the order in which they need each other, by the name of the package that has them.
IMPORTED = {
    "numpy": "numpy",
    "torch": "torch",
    "torchvision": "torchvision",
    "torchaudio": "torchaudio",
    "tokenizers": "tokenizers",
    "huggingface_hub": "huggingface_hub",
    "datasets": "datasets",
    "transformers": "transformers",
    "accelerate": "accelerate",
    "peft": "peft",
    "deepspeed": "deepspeed",
    "bitsandbytes": "bitsandbytes",
    "flash_attn": "flash-attn",
    "kernels": "kernels",
}
DEFAULT_ENDPOINT = "https://huggingface.co"
HUB_TIMEOUT = 5.0  # seconds
IMPORT_TIMEOUT = 180.0  # seconds, for all imports of one child
GIB = 2**30

Status = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Check:
    """One finding: `status` "ok", "note" (worth knowing) or "problem" (something will not work), and what to do."""

    section: str
    name: str
    status: Status
    text: str
    advice: str = ""


@dataclass(frozen=True)
class Report:
    """What `examine` found."""

    checks: tuple[Check, ...]

    @property
    def problems(self) -> list[Check]:
        """The findings that will stop something."""
        return [check for check in self.checks if check.status == "problem"]

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        counts = {status: sum(check.status == status for check in self.checks) for status in ("problem", "note", "ok")}
        return {"counts": counts, "checks": [asdict(check) for check in self.checks]}

    def lines(self) -> list[str]:
        """A line for each check, below its section's name."""
        lines: list[str] = []
        section = ""
        for check in self.checks:
            if check.section != section:
                section = check.section
                lines += [*([""] if lines else []), section]
            advice = f": {check.advice}" if check.advice else ""
            lines.append(f"  {check.status:<8} {check.name}: {check.text}{advice}")
        notes = sum(check.status == "note" for check in self.checks)
        counts = f"{_count(len(self.problems), 'problem')}, {_count(notes, 'note')}"
        return [*lines, "", counts]


def examine() -> Report:
    """Look at everything. It takes as long as importing what is installed, and the Hub's answer, of 5 s at most.

    Nothing is changed, and no token is part of what is said.
    """
    imports = _import_all([name for name in IMPORTED if _is_there(name)])
    checks: list[Check] = []
    sections: dict[str, list[Any]] = {
        "software": [_python, _required, _extras, partial(_imported, imports), _versions],
        "devices": [partial(_gpus, imports), _processors, _memory],
        "compilers": [_cpp_compiler, partial(_cuda_compiler, imports), _build_tools],
        "hub": [_hub, _xet],
        "disk": [_disks, partial(_shared_memory, imports), _leftovers],
        "launch": [_recipes, _accelerate_config, _limits, partial(_environment, imports)],
    }
    for section, functions in sections.items():
        for function in functions:
            try:
                for check in function():
                    checks.append(replace(check, section=section))
            except Exception as error:
                name = getattr(function, "func", function).__name__.strip("_").replace("_", " ")
                checks.append(Check(section, name, "note", f"could not be examined ({_one_line(error)})"))
    return Report(tuple(checks))


def _ok(name: str, text: str, advice: str = "") -> Check:
    return Check("", name, "ok", text, advice)


def _note(name: str, text: str, advice: str = "") -> Check:
    return Check("", name, "note", text, advice)


def _problem(name: str, text: str, advice: str = "") -> Check:
    return Check("", name, "problem", text, advice)


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"


def _one_line(error: BaseException | str) -> str:
    text = str(error).strip() or type(error).__name__
    return (text if isinstance(error, str) else f"{type(error).__name__}: {text}").splitlines()[0][:300]


def _gib(size: float) -> str:
    return f"{size / GIB:,.1f} GiB" if size < 100 * GIB else f"{size / GIB:,.0f} GiB"


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return True  # something of that name, and broken: importing it says how


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _output(*words: str, timeout: float = 10.0) -> str | None:
    """Standard output of a program; None where there is none, or it fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


# Imports, by a child process

_PROBE = """
import importlib, json, os, sys, warnings
out = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # libraries say a word on standard output
warnings.simplefilter("ignore")
def torch_facts(torch):
    facts = {"cuda": torch.version.cuda, "hip": torch.version.hip, "devices": []}
    try:
        torch.zeros(1).numpy()
    except Exception as error:
        facts["numpy"] = str(error)
    try:
        facts["capability"] = torch.backends.cpu.get_cpu_capability()
        facts["mps"] = torch.backends.mps.is_available()
        facts["available"] = torch.cuda.is_available()
        if facts["available"]:
            facts["architectures"] = torch.cuda.get_arch_list()
            for index in range(torch.cuda.device_count()):
                one = torch.cuda.get_device_properties(index)
                facts["devices"].append(
                    {"name": one.name, "memory": one.total_memory, "capability": [one.major, one.minor]}
                )
            facts["bf16"] = torch.cuda.is_bf16_supported(including_emulation=False)
            facts["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
        elif torch.version.cuda:
            torch.cuda.init()
    except Exception as error:
        facts["error"] = str(error).strip()
    return facts
for name in sys.argv[1:]:
    print(json.dumps({"starts": name}), file=out, flush=True)
    try:
        module = importlib.import_module(name)
        found = {"name": name, "version": str(getattr(module, "__version__", ""))}
        if name == "torch":
            found["facts"] = torch_facts(module)
    except BaseException as error:
        found = {"name": name, "error": (type(error).__name__ + ": " + str(error)).strip()}
    print(json.dumps(found), file=out, flush=True)
out.flush()
os._exit(0)
"""


def _import_all(names: list[str], timeout: float = IMPORT_TIMEOUT) -> dict[str, dict[str, Any]]:
    """What a child process says of importing each: `version` and `facts`, or `error`. A death ends one import alone."""
    found: dict[str, dict[str, Any]] = {}
    left = list(names)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}
    while left:
        with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as errors:
            # Files, not pipes: grandchildren that a library starts may keep those open.
            child = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROBE, *left],
                stdin=subprocess.DEVNULL, stdout=said, stderr=errors, env=environment,
            )  # fmt: skip
            try:
                status: int | None = child.wait(timeout)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
                status = None
            said.seek(0)
            errors.seek(0)
            lines = [json.loads(line) for line in said.read().decode(errors="replace").splitlines() if line[:1] == "{"]
            last = (errors.read().decode(errors="replace").strip().splitlines() or [""])[-1]
        found.update({line["name"]: line for line in lines if "name" in line})
        started = [line["starts"] for line in lines if "starts" in line] or left[:1]
        if started[-1] not in found:
            if status is None:
                reason = f"not done after {timeout:.0f} s"
            elif status < 0:
                reason = f"the process died of {signal.Signals(-status).name}"
            else:
                reason = f"the process ended with status {status}"
            said_last = f" ({last[:200]})" if last and status is not None else ""
            found[started[-1]] = {"name": started[-1], "error": f"{reason}{said_last}"}
        left = [name for name in left if name not in found]
    return found


def _facts(imports: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Of torch; empty where it cannot be imported."""
    return dict(imports.get("torch", {}).get("facts", {}))


# Software


def _python() -> Iterator[Check]:
    release = platform.release()
    text = f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    if "microsoft" in release.lower():
        yield _note("python", f"{text}, in WSL", "keep corpora and checkpoints in its own file system, not below /mnt")
    else:
        yield _ok("python", text)
    yield _ok("hfgpt", f"{_version('hfgpt') or 'not installed, run from its folder'} in {Path(__file__).parent}")


def _requirements() -> list[Any]:
    """hfgpt's, with their markers."""
    from packaging.requirements import Requirement

    return [Requirement(line) for line in importlib.metadata.requires("hfgpt") or []]


def _required() -> Iterator[Check]:
    """What hfgpt cannot do without: versions that are asked for, one line for all that are as they should be."""
    fine = []
    for one in _requirements():
        if one.marker is not None and not one.marker.evaluate({"extra": ""}):
            continue
        version = _version(one.name)
        if version is None:
            yield _problem(one.name, "not installed", f"pip install '{one}'")
        elif not one.specifier.contains(version, prereleases=True):
            yield _problem(one.name, f"{version}, but hfgpt needs {one.specifier}", f"pip install -U '{one}'")
        else:
            fine.append(f"{one.name} {version}")
    yield _ok("required", ", ".join(fine))


def _extras() -> Iterator[Check]:
    """What an extra brings, and how to get it."""
    requirements = _requirements()
    for extra, purpose in EXTRAS.items():
        own = [one for one in requirements if one.marker is not None and one.marker.evaluate({"extra": extra})]
        own = [one for one in own if one.name != "hfgpt" and not one.marker.evaluate({"extra": ""})]
        missing = [one.name for one in own if _version(one.name) is None]
        old = [one for one in own if one.name not in missing and not one.specifier.contains(_version(one.name), True)]
        there = [f"{one.name} {_version(one.name)}" for one in own if one.name not in missing]
        advice = f"pip install 'hfgpt[{extra}]'"
        if not own:
            continue
        if old:
            wrong = ", ".join(f"{one.name} {_version(one.name)} (needs {one.specifier})" for one in old)
            yield _problem(f"extra {extra}", f"{wrong}, for {purpose}", advice.replace("install", "install -U"))
        elif missing:
            have = f" ({', '.join(there)} is there)" if there else ""
            yield _ok(f"extra {extra}", f"{', '.join(missing)} not installed{have}, for {purpose}", advice)
        else:
            yield _ok(f"extra {extra}", f"{', '.join(there)}, for {purpose}")


def _imported(imports: Mapping[str, Mapping[str, Any]]) -> Iterator[Check]:
    """Which of the libraries cannot be imported, and why."""
    advice = {
        "flash_attn": "it was built for another torch, or another CUDA: pip uninstall flash-attn, and take flash attention "
        "from the Hub (pip install 'hfgpt[gpu]')",
        "torchvision": "it must be of torch's release: pip install -U torch torchvision, or uninstall it; hfgpt needs none",
        "torchaudio": "it must be of torch's release: pip install -U torch torchaudio, or uninstall it; hfgpt needs none",
        "deepspeed": "pip install -U 'hfgpt[train]'",
        "bitsandbytes": "pip install -U 'hfgpt[qlora]', or uninstall it",
    }
    fine = []
    for name, found in imports.items():
        if "error" in found:
            text = f"cannot be imported ({_one_line(found['error'])})"
            yield _problem(name, text, advice.get(name, f"pip install --force-reinstall {IMPORTED.get(name, name)}"))
        else:
            fine.append(name)
    yield _ok("imports", ", ".join(fine))
    facts = _facts(imports)
    if "numpy" in facts:
        text = f"torch cannot use numpy {_version('numpy')} ({_one_line(facts['numpy'])})"
        yield _problem("numpy", text, "they were built for different numpy: pip install -U torch numpy")


def _versions() -> Iterator[Check]:
    """Libraries that are newer than those hfgpt was tested with."""
    from packaging.version import Version

    for name, tested in TESTED.items():
        version = _version(name)
        if version is not None and Version(version).release[:2] > Version(tested).release[:2]:
            advice = f"pip install '{name}=={tested}', should something of it fail"
            yield _note(name, f"{version} is newer than {tested}, which hfgpt is tested with", advice)


# Devices


def _driver() -> list[dict[str, Any]] | None:
    """NVIDIA's GPUs by its driver: name, driver, memory in use and in all (bytes); None without a driver."""
    fields = "name,driver_version,memory.used,memory.total"
    said = _output("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits")
    if said is None:
        return [] if Path("/proc/driver/nvidia/version").exists() else None
    gpus = []
    for line in said.strip().splitlines():
        name, driver, used, total = (part.strip() for part in line.split(","))
        sizes = {key: int(word) * 2**20 for key, word in (("used", used), ("total", total)) if word.isdigit()}
        gpus.append({"name": name, "driver": driver, **sizes})
    return gpus


def _gpus(imports: Mapping[str, Mapping[str, Any]]) -> Iterator[Check]:
    facts, driver = _facts(imports), _driver()
    if driver:
        yield _ok("nvidia driver", f"{driver[0]['driver']}, {len(driver)} x {driver[0]['name']}")
    if not facts:
        return
    if driver is not None and facts["cuda"] is None and facts["hip"] is None:
        yield _problem(
            "gpu",
            "there is an NVIDIA driver, but this torch is built for processors alone",
            "install torch for CUDA, as its web page says for this system",
        )
    elif facts["cuda"] and not facts.get("available") and driver is not None:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        if hidden is not None and hidden.strip() in ("", "-1"):
            yield _note("gpu", f"hidden by CUDA_VISIBLE_DEVICES={hidden!r}", "unset it to use them")
        else:
            why = _one_line(facts.get("error", "no reason given"))
            advice = "an older driver needs a torch for an older CUDA; a container needs `--gpus all`"
            yield _problem("gpu", f"torch for CUDA {facts['cuda']} finds none ({why})", advice)
    elif facts["devices"]:
        yield from _gpu_models(facts)
        for index, gpu in enumerate(driver or []):
            if gpu.get("used", 0) > 0.2 * gpu.get("total", 1e30):
                text = f"{_gib(gpu['used'])} of {_gib(gpu['total'])} are taken"
                yield _note(f"gpu {index}", text, "`nvidia-smi` says by which process")
    elif facts.get("mps"):
        yield _ok("gpu", "Apple's (mps)")
    else:
        built = f"CUDA {facts['cuda']}" if facts["cuda"] else "processors alone"
        yield _ok("gpu", f"none; torch is built for {built}")


def _gpu_models(facts: Mapping[str, Any]) -> Iterator[Check]:
    kinds: dict[tuple[Any, ...], int] = {}
    for one in facts["devices"]:
        kind = (one["name"], one["memory"], tuple(one["capability"]))
        kinds[kind] = kinds.get(kind, 0) + 1
    built = f"CUDA {facts['cuda']}" if facts["cuda"] else f"ROCm {facts['hip']}"
    for (name, memory, (major, minor)), count in kinds.items():
        text = (
            f"{count} x {name}, {_gib(memory)}, compute capability {major}.{minor}, {built}, NCCL {facts.get('nccl')}"
        )
        codes = [int(code) for code in re.findall(r"sm_(\d+)", " ".join(facts.get("architectures", [])))]
        if facts["cuda"] and codes and not any(10 * major <= code <= 10 * major + minor for code in codes):
            yield _problem("gpu", f"{text}, for which this torch has no code", "install a torch that is built for it")
        elif not facts.get("bf16"):
            yield _note("gpu", f"{text}, without bf16", "set `bf16: false` and `fp16: true` in the recipe")
        else:
            yield _ok("gpu", f"{text}, bf16")
    if len(kinds) > 1:
        yield _note("gpu", "GPUs of several kinds", "a run is as fast as the slowest: choose by CUDA_VISIBLE_DEVICES")


def _processors() -> Iterator[Check]:
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    flags: set[str] = set()
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "flags":
                flags |= set(value.split())
            elif key.strip() == "model name":
                model = value.strip()
    known = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX-512 bf16", "amx_bf16": "AMX bf16"}
    found = [name for flag, name in known.items() if flag in flags]
    yield _ok("processors", f"{_count(cores, 'core')}, {model}{', ' if found else ''}{', '.join(found)}")
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.exists():
        limit, _, period = quota.read_text().partition(" ")
        if limit.isdigit() and int(limit) / int(period) < cores - 0.5:
            share = int(limit) / int(period)
            text = f"this container may use {share:.1f} of {cores} cores, which programs do not see"
            yield _note("processors", text, f"export OMP_NUM_THREADS={max(int(share), 1)}, and --workers as many")


def _memory() -> Iterator[Check]:
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return
    sizes = dict(re.findall(r"^(\w+):\s+(\d+) kB", meminfo.read_text(), re.MULTILINE))
    total, free = int(sizes["MemTotal"]) * 1024, int(sizes["MemAvailable"]) * 1024
    limit = Path("/sys/fs/cgroup/memory.max")
    words = limit.read_text().strip() if limit.exists() else "max"
    text = f"{_gib(free)} free of {_gib(total)}"
    if words.isdigit() and int(words) < total:
        text += f"; this container may use {_gib(int(words))}"
    if free < 2 * GIB:
        yield _note("memory", text, "little for training; `hfgpt plan` says what a model takes")
    else:
        yield _ok("memory", text)


# Compilers, of which DeepSpeed's operators and torch.compile make their code


def _cpp_compiler() -> Iterator[Check]:
    names = [*os.environ.get("CXX", "").split()[:1], "g++", "c++", "clang++"]
    path = next((found for name in names if (found := shutil.which(name)) is not None), None)
    if path is None:
        advice = "install g++ for ZeRO with offload (its CPU Adam is built) and for torch.compile on processors"
        yield _note("c++", "no compiler", advice)
    else:
        said = (_output(path, "--version") or "").splitlines()
        yield _ok("c++", f"{path}{f', {said[0]}' if said else ''}")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        yield _note("python headers", "Python.h is not there", f"install python{version}-dev for torch.compile")


def _cuda_compiler(imports: Mapping[str, Mapping[str, Any]]) -> Iterator[Check]:
    facts = _facts(imports)
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    path = shutil.which("nvcc") or shutil.which("nvcc", path=str(Path(home, "bin")))
    if path is None:
        if facts.get("devices") and facts.get("cuda") and _version("deepspeed") is not None:
            advice = (
                "without it DeepSpeed builds none of its operators; ZeRO itself works, and so does torch's fused AdamW"
            )
            yield _note("nvcc", "not found, nor is CUDA_HOME set", advice)
        else:
            yield _ok("nvcc", "not found, nor needed without GPUs and DeepSpeed")
        return
    match = re.search(r"release (\d+)\.(\d+)", _output(path, "--version") or "")
    version = f"{match[1]}.{match[2]}" if match else "of an unknown version"
    built = facts.get("cuda")
    if match and built and match[1] != built.split(".")[0]:
        advice = f"point CUDA_HOME to a CUDA {built.split('.')[0]}, else DeepSpeed refuses to build its operators"
        yield _note("nvcc", f"{path}, {version}, but torch is built for CUDA {built}", advice)
    else:
        yield _ok("nvcc", f"{path}, {version}")


def _build_tools() -> Iterator[Check]:
    path = shutil.which("ninja") or shutil.which("ninja", path=str(Path(sys.executable).parent))
    if path is not None:
        yield _ok("ninja", path)
    elif _version("deepspeed") is not None:
        yield _note("ninja", "not found", "pip install ninja: DeepSpeed's operators are built with it")
    else:
        yield _ok("ninja", "not found, nor needed without DeepSpeed")


# The Hub


def _endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")


def _offline() -> str | None:
    """The variable that switches the Hub off."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return next((name for name in names if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")), None)


def _shown(address: str) -> str:
    """An address without a password."""
    return re.sub(r"//[^/@]*@", "//", address)


def _hub() -> Iterator[Check]:
    from huggingface_hub import constants, get_token

    endpoint, offline, token = _endpoint(), _offline(), get_token()
    place = "HF_TOKEN" if os.environ.get("HF_TOKEN") else _tilde(constants.HF_TOKEN_PATH)
    if offline is not None:
        text = f"not asked: {offline} is set, and everything comes from the cache"
        yield _note("hub", text, f"unset {offline} for `hfgpt push`, `hfgpt pull` and new models")
        yield _ok("token", f"there is one, in {place}, not tried" if token else "none")
        return
    if token and not re.fullmatch(r"[!-~]+", token):
        advice = "`hf auth login` writes a sound one"
        yield _problem("token", f"that of {place} has a space or a letter that no token has", advice)
        yield from (check for check in _ask_hub(endpoint, None, place) if check.name != "token")
        return
    for check in _ask_hub(endpoint, token, place):
        yield replace(check, text=check.text.replace(token, "***") if token else check.text)


def _tilde(path: str) -> str:
    return path.replace(str(Path.home()), "~", 1) if path.startswith(str(Path.home())) else path


def _ask_hub(endpoint: str, token: str | None, place: str) -> Iterator[Check]:
    from huggingface_hub import get_session

    # A token is asked about where the models come from, and nowhere else.
    path = "/api/whoami-v2" if token else "/api/models?limit=1"
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        answer = get_session().get(endpoint + path, headers=headers, timeout=HUB_TIMEOUT)
    except Exception as error:
        advice = (
            "set HTTPS_PROXY if there is a proxy, HF_ENDPOINT if there is a mirror; or HF_HUB_OFFLINE=1 to work from the "
            "cache without waiting for it"
        )
        # Most work needs none of it.
        yield _note("hub", f"{_shown(endpoint)} cannot be reached ({_shown(_one_line(error))})", advice)
        yield _ok("token", f"there is one, in {place}, not tried" if token else "none")
        return
    if answer.status_code >= 500:
        yield _note("hub", f"{_shown(endpoint)} answers with status {answer.status_code}", "try again later")
    else:
        yield _ok("hub", f"{_shown(endpoint)} can be reached")
    if token is None:
        yield _ok("token", "none: public models can be read", "`hf auth login` before `hfgpt push`")
    elif answer.status_code in (401, 403):
        yield _problem(
            "token", f"the Hub does not take that of {place}", "`hf auth login` with a new one, or unset HF_TOKEN"
        )
    elif answer.status_code == 200:
        said = answer.json()
        role = ((said.get("auth") or {}).get("accessToken") or {}).get("role", "")
        text = f"{said.get('name')}'s, in {place}"
        if role == "read":
            yield _note("token", f"{text}, may read alone", "`hfgpt push` needs one that may write")
        else:
            yield _ok("token", f"{text}{f', {role}' if role else ''}")
    else:
        yield _note(
            "token", f"there is one, in {place}; asked whose, the Hub answers with status {answer.status_code}"
        )


def _xet() -> Iterator[Check]:
    off = os.environ.get("HF_HUB_DISABLE_XET", "").upper() in ("1", "ON", "YES", "TRUE")
    if _version("hf-xet") is not None and _endpoint() != DEFAULT_ENDPOINT and not off:
        text = f"hf_xet is installed, and HF_ENDPOINT is {_shown(_endpoint())}"
        yield _note("xet", text, "export HF_HUB_DISABLE_XET=1 if that server has no Xet: uploads fail without it")


# Disks


def _cache() -> Path:
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser()


def _existing(path: Path) -> Path:
    return next(one for one in (path, *path.parents) if one.exists())


def _disks() -> Iterator[Check]:
    places = {"current folder": Path.cwd(), "Hub's cache": _cache(), "temporary files": Path(tempfile.gettempdir())}
    for name, path in places.items():
        there = _existing(path.absolute())
        usage = shutil.disk_usage(there)
        text = f"{_gib(usage.free)} free of {_gib(usage.total)} at {_tilde(str(path))}"
        if not os.access(there, os.W_OK):
            yield _problem(name, f"{_tilde(str(there))} cannot be written to", _elsewhere(name))
        elif usage.free < GIB:
            yield _problem(name, text, f"a checkpoint of GPT-3 125M takes 1.5 GiB: make room, or {_elsewhere(name)}")
        elif usage.free < 10 * GIB:
            yield _note(name, text, "little for checkpoints: `save_total_limit` keeps their number down")
        else:
            yield _ok(name, text)
        if os.statvfs(there).f_files and os.statvfs(there).f_favail < 10_000:
            yield _problem(
                name, f"no room for more files at {_tilde(str(path))} (inodes)", "remove some, whatever their size"
            )


def _elsewhere(name: str) -> str:
    variables = {
        "Hub's cache": "set HF_HOME to a folder elsewhere",
        "temporary files": "set TMPDIR to a folder elsewhere",
    }
    return variables.get(name, "give another `output_dir`")


def _shared_memory(imports: Mapping[str, Mapping[str, Any]]) -> Iterator[Check]:
    path = Path("/dev/shm")
    if not path.is_dir():
        return
    usage = shutil.disk_usage(path)
    text = f"{_gib(usage.free)} free of {_gib(usage.total)} at /dev/shm"
    advice = (
        "processes of one machine exchange data there (NCCL, data loaders): docker run --shm-size=8g, or --ipc=host"
    )
    if usage.free < GIB:
        several = len(_facts(imports).get("devices", [])) > 1
        yield (_problem if several else _note)("shared memory", text, advice)
    else:
        yield _ok("shared memory", text)


def _leftovers() -> Iterator[Check]:
    files = (
        [file for file in Path("/dev/shm").glob("deepspeed_*") if file.is_file()] if Path("/dev/shm").is_dir() else []
    )
    if files:
        size = sum(file.stat().st_size for file in files)
        text = (
            f"{_count(len(files), 'file')} of DeepSpeed ({_gib(size)}), of a run that was killed or of one that is on"
        )
        yield _note("shared memory", text, "if none is on: rm /dev/shm/deepspeed_*")


# Launching


def _recipes() -> Iterator[Check]:
    from .shipped import shipped_root

    try:
        yield _ok("recipes", f"in {shipped_root()}; `hfgpt recipes` lists them")
    except ValueError as error:
        yield _problem("recipes", "not found", str(error))


def _accelerate_config() -> Iterator[Check]:
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"))
    folder = home.expanduser() / "accelerate"
    path = next(
        (one for one in (folder / f"default_config.{end}" for end in ("yaml", "yml", "json")) if one.exists()), None
    )
    if path is None:
        yield _ok(
            "accelerate", "no config of your own", "name one: accelerate launch --config_file recipes/accelerate/..."
        )
        return
    import yaml

    values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    text = f"{_tilde(str(path))} counts where no --config_file is named: {values.get('distributed_type', 'NO')}, "
    text += _count(values.get("num_processes", 1), "process").replace("processs", "processes")
    precision = str(values.get("mixed_precision", "no")).lower()
    if precision not in ("no", "false", "none"):
        yield _note(
            "accelerate", f"{text}, mixed_precision {precision}", "leave that to the recipe: they may contradict"
        )
    else:
        yield _ok("accelerate", text)
    processes = values.get("num_processes", 1)
    if values.get("use_cpu") and processes > 1 and "OMP_NUM_THREADS" not in os.environ:
        advice = (
            f"export OMP_NUM_THREADS={max((os.cpu_count() or 1) // processes, 1)}, else they take each other's cores"
        )
        yield _note("threads", f"{processes} processes on processors, and OMP_NUM_THREADS is not set", advice)


def _limits() -> Iterator[Check]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < 4096:
        most = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
        yield _note("open files", f"{soft} at most (ulimit -n)", f"`ulimit -n {most}` in the shell that launches runs")
    else:
        yield _ok("open files", f"{'unlimited' if soft == resource.RLIM_INFINITY else soft} (ulimit -n)")


def _environment(imports: Mapping[str, Mapping[str, Any]]) -> Iterator[Check]:
    """Variables that are a launcher's, left in a shell, and how many threads processes take."""
    left = sorted(name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_")))
    if left and "LOCAL_RANK" not in os.environ:
        yield _note("environment", f"{', '.join(left)} set in this shell", "they change every launch: unset them")
    processes = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    threads = os.environ.get("OMP_NUM_THREADS")
    if processes > 1 and threads is None:
        yield _note("threads", f"{processes} processes, and OMP_NUM_THREADS is not set", "set it to cores / processes")
    elif threads is None:
        advice = "" if _facts(imports).get("devices") else "with several processes on processors: cores / processes"
        yield _ok("threads", "OMP_NUM_THREADS is not set", advice)
    else:
        yield _ok("threads", f"OMP_NUM_THREADS={threads}")
