"""Push a folder to the Hub, and pull a repository from it.

A push is one commit: the repository has all of it or is as it was. Large files are sent before that commit, each once: what
has arrived when a push is cut off is not sent again by the next. A pull appears under its name when it is whole.
"""

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitOperation,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    get_token,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    LocalTokenNotFoundError,
    RevisionNotFoundError,
)
from xxhash import xxh3_128_hexdigest

from ..manifest import MANIFEST_FILE, checkpoint_step, hash_files, list_checkpoints, publish, sizes_problem
from ..version import __version__
from . import card, code, shards
from .errors import HubError, hub_errors
from .files import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS,
    CARD_FILE,
    CONFIG_FILE,
    WEIGHTS_INDEX,
    Contents,
    contents,
    read_json,
    refuse_tokens,
)


MAX_SHARD_SIZE = "5GB"
PUSHED_FILE = ".pushed.json"  # where a folder was pushed to, for adapters of it
PULLING_SUFFIX = ".incomplete"
LAST_CHECKPOINT = "last-checkpoint"  # Trainer's name for it, with `hub_strategy: checkpoint`
# What an earlier push may have left that would be loaded in place of what is pushed now.
REPLACED = (
    "model*.safetensors", WEIGHTS_INDEX, "pytorch_model*", ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS, "adapter_model.bin",
    CONFIG_FILE, "task.json", *code.CODE_FILES,
)  # fmt: skip
Source = bytes | Path
# What tells one model from another of the same name.
IDENTITY = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")


@dataclass(frozen=True)
class PushResult:
    """What a push did.

    Attributes:
        repo_id: "owner/name".
        url: Of the commit, or of the repository where nothing had changed.
        commit: Its hash.
        kind: "model", "adapter", "tokenizer" or "checkpoint".
        files: Names in the repository.
        bytes: Of all of them.
        private: Whether only its owner sees the repository.
        notes: What should be known.
    """

    repo_id: str
    url: str
    commit: str
    kind: str
    files: list[str]
    bytes: int
    private: bool
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For people."""
        seen = "private" if self.private else "public"
        return [
            f"pushed the {self.kind} to {self.repo_id} ({seen}): {len(self.files)} files, {self.bytes:,} bytes",
            self.url,
            *(f"note: {note}" for note in self.notes),
        ]


@dataclass(frozen=True)
class PullResult:
    """What a pull brought.

    Attributes:
        repo_id: "owner/name".
        path: Folder of its files.
        commit: The hash of what was pulled.
        files: Names of its files.
        bytes: Of all of them.
    """

    repo_id: str
    path: Path
    commit: str
    files: list[str]
    bytes: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "path": str(self.path)}

    def lines(self) -> list[str]:
        """For people."""
        return [
            f"pulled {self.repo_id} at {self.commit[:12]}: {len(self.files)} files, {self.bytes:,} bytes",
            f"in {self.path}",
        ]


def push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    adapter_only: bool = False,
    with_code: bool = False,
    base_model: str | None = None,
    license: str | None = None,
    carbon_intensity: float = card.WORLD_CARBON_INTENSITY,
    max_shard_size: int | str = MAX_SHARD_SIZE,
    overwrite: bool = False,
    message: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
) -> PushResult:
    """Push a model, an adapter, a tokenizer or a checkpoint, with a card written from its run.

    Args:
        folder: Of any of these. A checkpoint goes into a folder of its name, from which `resume_from_hub` takes it.
        repo_id: "owner/name"; made if it is not there. Without an owner it is the token's.
        private: Of a new repository: whether others may not see it. Default: as the owner's settings have it.
        revision: Branch, made if it is not there. Default: main.
        adapter_only: The adapter's two files and the card, without tokenizer, task and results.
        with_code: Also gpt3's own code, so that it loads with `trust_remote_code=True` where hfgpt is not installed.
        base_model: The adapter's base model on the Hub. Default: as it says, or where its folder was pushed to.
        license: Of the weights, by the Hub's identifier, such as apache-2.0.
        carbon_intensity: Grams of CO2 equivalent a kWh of the electricity that was used.
        max_shard_size: Largest file of weights, in bytes or as "5GB"; larger ones are divided on the way.
        overwrite: Replace another model, or a card that a person wrote.
        message: Of the commit.
        token: Default: HF_TOKEN, or what `hf auth login` has saved.
        endpoint: Address of the Hub. Default: HF_ENDPOINT, or huggingface.co.

    Raises:
        ValueError: There is nothing to push, it is damaged, or a file of it holds a token.
        HubError: The Hub refuses, or is not reached; a ValueError, too.
    """
    found = contents(folder, adapter_only)
    if with_code and (found.kind not in ("model", "checkpoint") or found.is_adapter):
        raise ValueError(
            f"`--with-code` is for models, and {folder} is a {found.kind}: push its base model with its code."
        )
    if license is not None and not license.replace("-", "").replace(".", "").isalnum():
        raise ValueError(
            f"`license` must be one of the Hub's identifiers, such as apache-2.0 or mit, got {license!r}."
        )
    if carbon_intensity < 0:
        raise ValueError(f"`carbon_intensity` must be at least 0 grams a kWh, got {carbon_intensity}.")
    max_bytes = shards.parse_size(max_shard_size)
    if max_bytes < 1:
        raise ValueError(f"`max_shard_size` must be above 0, got {max_shard_size!r}.")
    _check_whole(found)
    refuse_tokens(found.folder, found.files, token or get_token())
    api = HfApi(endpoint=endpoint, token=token, library_name="hfgpt", library_version=__version__)
    with hub_errors(repo_id, "push to", token, revision):
        if not (token or get_token()):
            raise LocalTokenNotFoundError
        if "/" not in repo_id:
            repo_id = f"{api.whoami()['name']}/{repo_id}"
        # Before anything is made: what is to be pushed, as far as it can be known.
        adapter_config = published_adapter_config(found, base_model, api.endpoint) if found.is_adapter else None
        present, remote = open_repository(api, repo_id, private, revision)
        notes = _check_name(api, repo_id, revision, found, present, remote["private"], private, overwrite)
        by_hand, stated = remote_card(api, repo_id, revision)
        license = license or stated
        options = card.CardOptions(license, carbon_intensity, with_code)
        with tempfile.TemporaryDirectory(prefix="hfgpt-push-") as scratch:
            files = staged(found, repo_id, options, adapter_config, max_bytes, Path(scratch))
            if CARD_FILE in files and by_hand and not overwrite:
                del files[CARD_FILE]
                notes.append("the card there was written by hand and stays; --overwrite replaces it")
            total = sum(map(_size, files.values()))
            done = commit(
                api, repo_id, files, present, revision, message or f"Push the {found.kind}, with hfgpt {__version__}"
            )
    if license is None and found.kind in ("model", "adapter"):
        notes.append("the card states no licence: name it with --license, such as apache-2.0")
    if found.kind == "model":
        _remember(found.folder, repo_id, api.endpoint)
    return PushResult(repo_id, done.commit_url, done.oid, found.kind, sorted(files), total, remote["private"], notes)


def open_repository(
    api: HfApi, repo_id: str, private: bool | None, revision: str | None
) -> tuple[list[str], dict[str, Any]]:
    """Make the repository and its branch, if they are not there.

    Returns:
        The names of the branch's files; and `private`, whether only its owner sees it.
    """
    api.create_repo(repo_id, private=private, exist_ok=True)
    info = api.model_info(repo_id)
    try:
        present = api.list_repo_files(repo_id, revision=revision)
    except RevisionNotFoundError:
        if revision is None:
            raise
        api.create_branch(repo_id, branch=revision, exist_ok=True)
        present = api.list_repo_files(repo_id, revision=revision)
    return present, {"private": bool(info.private)}


def staged(
    found: Contents,
    repo_id: str,
    options: card.CardOptions,
    adapter_config: dict[str, Any] | None,
    max_bytes: int,
    scratch: Path,
) -> dict[str, Source]:
    """What goes into the repository: each file's name there, and its bytes or where they are.

    Args:
        found: The folder.
        repo_id: "owner/name".
        options: Of the card.
        adapter_config: An adapter's, as others shall read it.
        max_bytes: Of a file of weights.
        scratch: Folder for what is written on the way.
    """
    folder = found.folder
    if found.kind == "checkpoint":
        return _staged_checkpoint(found, options, scratch)
    files: dict[str, Source] = {name: folder / name for name in found.files}
    large = shards.needs_sharding(folder, found.files, max_bytes)
    if large:
        for name in (*large, WEIGHTS_INDEX):
            files.pop(name, None)
        files.update({name: scratch / name for name in shards.reshard(folder, large, scratch, max_bytes)})
    if adapter_config is not None:
        files[ADAPTER_CONFIG_FILE] = _json(adapter_config)
    if options.with_code:
        files[CONFIG_FILE] = _json(code.with_auto_map(read_json(folder / CONFIG_FILE)))
        files.update({name: scratch / name for name in code.write_code(scratch)})
    files[CARD_FILE] = _card(found, repo_id, options, adapter_config).encode("utf-8")
    return files


def _staged_checkpoint(found: Contents, options: card.CardOptions, scratch: Path) -> dict[str, Source]:
    """A checkpoint's files, in a folder of its name; with code, its manifest has that too."""
    folder = found.folder
    files: dict[str, Source] = {name: folder / name for name in found.files}
    if not options.with_code:
        return {f"{folder.name}/{name}": source for name, source in files.items()}
    added: dict[str, Source] = {CONFIG_FILE: _json(code.with_auto_map(read_json(folder / CONFIG_FILE)))}
    own_code: dict[str, Source] = {name: scratch / name for name in code.write_code(scratch)}
    added.update(own_code)
    manifest = read_json(folder / MANIFEST_FILE)
    for name, source in added.items():
        data = source if isinstance(source, bytes) else source.read_bytes()
        manifest["files"][name] = {"bytes": len(data), "xxh3_128": xxh3_128_hexdigest(data)}
    files.update(added)
    files[MANIFEST_FILE] = _json(manifest)
    # At the root too, where transformers looks for a subfolder's code.
    return {**own_code, **{f"{folder.name}/{name}": source for name, source in files.items()}}


def commit(
    api: HfApi,
    repo_id: str,
    files: dict[str, Source],
    present: Iterable[str],
    revision: str | None,
    message: str,
    gone: Iterable[str] = (),
    **kwargs: Any,
) -> Any:
    """Send files and make one commit of them; what they take the place of goes with it.

    Args:
        api: The Hub, and who asks.
        repo_id: "owner/name".
        files: Names there, with bytes or where they are.
        present: Names that are there now.
        revision: Branch.
        message: Of the commit.
        gone: Patterns of further files that are not to stay.
        **kwargs: Of `HfApi.create_commit`.
    """
    operations: list[CommitOperation] = [
        CommitOperationAdd(name, source if isinstance(source, bytes) else str(source))
        for name, source in files.items()
    ]
    patterns = [*gone, *(REPLACED if CONFIG_FILE in files or ADAPTER_CONFIG_FILE in files else ())]
    operations += [
        CommitOperationDelete(name)
        for name in present
        if name not in files
        and any(fnmatch(name, pattern) for pattern in patterns if pattern.count("/") == name.count("/"))
    ]
    with warnings.catch_warnings():
        # That a card states no licence is told in our own words.
        warnings.filterwarnings("ignore", "Warnings while validating metadata")
        return api.create_commit(repo_id, operations, commit_message=message, revision=revision, **kwargs)


def pull(
    repo_id: str,
    output: str | Path | None = None,
    *,
    revision: str | None = None,
    overwrite: bool = False,
    token: str | None = None,
    endpoint: str | None = None,
) -> PullResult:
    """Pull a repository: a model, an adapter, a tokenizer, or a run's checkpoints.

    Args:
        repo_id: "owner/name".
        output: Folder to make. Default: the cache of huggingface_hub, which `from_pretrained` reads, too.
        revision: Branch, tag or commit. Default: main.
        overwrite: Replace a folder that is there.
        token: Default: HF_TOKEN, or what `hf auth login` has saved; none is needed for what is public.
        endpoint: Address of the Hub. Default: HF_ENDPOINT, or huggingface.co.

    Raises:
        ValueError: The folder is there.
        HubError: The Hub refuses, or is not reached; a ValueError, too.
    """
    target = None if output is None else Path(output)
    if target is not None and target.exists() and not overwrite and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} is there already: give another folder, or --overwrite to replace it.")
    api = HfApi(endpoint=endpoint, token=token, library_name="hfgpt", library_version=__version__)
    with hub_errors(repo_id, "pull from", token, revision):
        if "/" not in repo_id:
            raise HubError(f"{repo_id!r} names no owner: give owner/name.")
        common = {"revision": revision, "token": token, "endpoint": endpoint}
        if target is None:
            path = Path(snapshot_download(repo_id, **common))
            return _pulled(repo_id, path, path.name)
        # Pinned, so that a commit made meanwhile does not mix with this one.
        found = api.model_info(repo_id, revision=revision).sha or revision
        staging = target.with_name(target.name + PULLING_SUFFIX)
        with _writing_to(target):
            staging.mkdir(parents=True, exist_ok=True)
            snapshot_download(repo_id, local_dir=staging, **{**common, "revision": found})
            shutil.rmtree(staging / ".cache", ignore_errors=True)
            if target.is_dir() and not any(target.iterdir()):
                target.rmdir()
            elif target.is_file():
                target.unlink()
            publish(staging, target)
    return _pulled(repo_id, target, str(found))


def pull_checkpoint(
    repo_id: str,
    output_dir: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
) -> Path | None:
    """Bring the newest checkpoint of a repository into a run's folder, unless the folder has one as new.

    Args:
        repo_id: "owner/name", to which Trainer pushed with `hub_strategy` checkpoint or all_checkpoints, or `hfgpt push` a
            checkpoint's folder.
        output_dir: Folder of the run.
        revision: Branch, tag or commit. Default: main.
        token: Default: HF_TOKEN, or what `hf auth login` has saved.
        endpoint: Address of the Hub. Default: HF_ENDPOINT, or huggingface.co.

    Returns:
        `output_dir/checkpoint-STEP`; None where the run's own is as new.

    Raises:
        ValueError: The repository has no checkpoint, or what came is not whole.
        HubError: The Hub refuses, or is not reached; a ValueError, too.
    """
    output_dir = Path(output_dir)
    api = HfApi(endpoint=endpoint, token=token, library_name="hfgpt", library_version=__version__)
    with hub_errors(repo_id, "resume from", token, revision):
        commit_hash = api.model_info(repo_id, revision=revision).sha
        folders = {
            Path(name).parent.as_posix()
            for name in api.list_repo_files(repo_id, revision=commit_hash)
            if name.count("/") == 1 and name.endswith(f"/{MANIFEST_FILE}")
        }
        steps = {step: name for name in folders if (step := checkpoint_step(Path(name))) is not None}
        if LAST_CHECKPOINT in folders:
            state = api.hf_hub_download(repo_id, f"{LAST_CHECKPOINT}/trainer_state.json", revision=commit_hash)
            steps.setdefault(int(read_json(Path(state))["global_step"]), LAST_CHECKPOINT)
        if not steps:
            raise ValueError(
                f"{repo_id} has no checkpoint to resume from: push one with `hfgpt push OUTPUT_DIR/checkpoint-STEP "
                f"{repo_id}`, or train with `push_to_hub: true` and `hub_strategy: checkpoint`."
            )
        step = max(steps)
        own = [checkpoint_step(path) or 0 for path in list_checkpoints(output_dir) if sizes_problem(path)[0] is None]
        if own and max(own) >= step:
            return None
        staging = output_dir / f"{steps[step]}{PULLING_SUFFIX}"
        with _writing_to(output_dir):
            staging.mkdir(parents=True, exist_ok=True)
            snapshot_download(
                repo_id,
                revision=commit_hash,
                local_dir=staging,
                allow_patterns=[f"{steps[step]}/*"],
                token=token,
                endpoint=endpoint,
            )
            arrived, target = staging / steps[step], output_dir / f"checkpoint-{step}"
            problem = _problem(arrived)
            if problem is not None:
                shutil.rmtree(staging, ignore_errors=True)
                raise ValueError(f"{steps[step]} of {repo_id} is not whole ({problem}): push it again.")
            publish(arrived, target)
            shutil.rmtree(staging, ignore_errors=True)
    return target


def _check_whole(found: Contents) -> None:
    if found.kind == "checkpoint":
        problem = _problem(found.folder)
        if problem is not None:
            raise ValueError(f"{found.folder} is not a whole checkpoint ({problem}): push another.")
    elif found.kind != "tokenizer" and shards.count_parameters(found.folder, found.files) == 0:
        raise ValueError(f"The weights in {found.folder} are empty: save them again.")


def _problem(checkpoint: Path) -> str | None:
    problem, digests = sizes_problem(checkpoint)
    if problem is not None:
        return problem
    changed = [name for name, digest in hash_files(checkpoint, digests).items() if digest != digests[name]]
    return f"{changed[0]} is not what was written" if changed else None


def published_adapter_config(found: Contents, base_model: str | None, hub: str) -> dict[str, Any]:
    """The adapter's config as others shall read it: its base model by its name on the Hub.

    Raises:
        ValueError: The base is a folder of this machine, and nobody knows its name on the Hub.
    """
    config = found.config
    base = base_model or str(config.get("base_model_name_or_path") or "")
    folder = Path(base).expanduser()
    if folder.is_dir() or folder.is_absolute() or base.startswith(".") or base.count("/") > 1 or not base:
        pushed = read_json(folder / PUSHED_FILE) if base else {}
        if not pushed or pushed.get("endpoint") != hub:
            raise ValueError(
                f"The adapter's base model is {base or 'not named'}, a folder that others do not have: push it first "
                f"(`hfgpt push {base or 'BASE'} owner/base`), or name it on the Hub with `--base-model owner/base`."
            )
        base = str(pushed["repo_id"])
    return {**config, "base_model_name_or_path": base}


def _card(found: Contents, repo_id: str, options: card.CardOptions, adapter_config: dict[str, Any] | None) -> str:
    base = adapter_config["base_model_name_or_path"] if adapter_config else None
    own = card.own_words(found.folder)
    if own is not None:
        return str(card.completed(own, card.card_metadata(found, repo_id, options, base)))
    return str(card.model_card(found, repo_id, options, base))


def _check_name(
    api: HfApi,
    repo_id: str,
    revision: str | None,
    found: Contents,
    present: list[str],
    is_private: bool,
    private: bool | None,
    overwrite: bool,
) -> list[str]:
    """See that the name is not another model's, and whom it is shown to.

    Returns:
        Notes.

    Raises:
        HubError: It is taken, or not as private as was asked.
    """
    if private and not is_private:
        raise HubError(
            f"{repo_id} is there already and is public: nothing was pushed. Make it private in its settings "
            f"({api.endpoint}/{repo_id}/settings), or give another name."
        )
    notes = []
    if private is False and is_private:
        notes.append("the repository is private, and stays so: its settings make it public")
    if overwrite or found.kind == "tokenizer" or (found.kind == "checkpoint"):
        return notes
    kinds = {ADAPTER_CONFIG_FILE: "an adapter", CONFIG_FILE: "a model"}
    own = ADAPTER_CONFIG_FILE if found.is_adapter else CONFIG_FILE
    other = next((name for name in kinds if name in present and name != own), None)
    if other is not None and own not in present:
        raise HubError(
            f"The name {repo_id} is taken by {kinds[other]}, and this is {kinds[own]}: give another name, or --overwrite."
        )
    if own == CONFIG_FILE and CONFIG_FILE in present:
        there = read_json(Path(api.hf_hub_download(repo_id, CONFIG_FILE, revision=revision)))
        changed = [name for name in IDENTITY if name in there and there[name] != found.config.get(name)]
        if changed:
            was = ", ".join(f"{name} {there[name]}, not {found.config.get(name)}" for name in changed)
            raise HubError(f"The name {repo_id} is taken by another model ({was}): give another name, or --overwrite.")
    return notes


def remote_card(api: HfApi, repo_id: str, revision: str | None) -> tuple[bool, str | None]:
    """Whether a person wrote the repository's card, and the licence that it states."""
    try:
        text = Path(api.hf_hub_download(repo_id, CARD_FILE, revision=revision)).read_text(encoding="utf-8")
    except EntryNotFoundError:
        return False, None
    try:
        license = ModelCard(text, ignore_metadata_errors=True).data.license
    except Exception:  # YAML's own, of several classes: it is being replaced, or kept as it is
        license = None
    return card.is_by_hand(text), license if isinstance(license, str) else None


def _remember(folder: Path, repo_id: str, hub: str) -> None:
    """Where a folder was pushed to, so that its adapters can name their base; a read-only folder does without."""
    with suppress(OSError):
        (folder / PUSHED_FILE).write_text(json.dumps({"repo_id": repo_id, "endpoint": hub}) + "\n", encoding="utf-8")


def _pulled(repo_id: str, path: Path, commit_hash: str) -> PullResult:
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    names = [file.relative_to(path).as_posix() for file in files]
    return PullResult(repo_id, path, commit_hash, names, sum(file.stat().st_size for file in files))


@contextmanager
def _writing_to(folder: Path) -> Any:
    try:
        yield
    except PermissionError as error:
        raise ValueError(f"{folder} cannot be written ({error.strerror}): give another folder.") from None
    except OSError as error:
        if error.errno is None or isinstance(error, (ConnectionError, TimeoutError)):  # the network's, or the Hub's
            raise
        raise ValueError(
            f"{folder} could not be written ({os.strerror(error.errno)}); the same again goes on."
        ) from None


def _size(source: Source) -> int:
    return len(source) if isinstance(source, bytes) else source.stat().st_size


def _json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, ensure_ascii=False, sort_keys=True) + "\n").encode("utf-8")
