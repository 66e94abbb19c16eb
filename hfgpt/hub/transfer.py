"""Push a folder to the Hub, and pull a repository from it.

A push is one commit: the repository has all of it or is as it was. Large files are sent before that commit, each once: what
has arrived when a push is cut off is not sent again by the next. A pull appears under its name when it is whole.
"""

import json
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Mapping
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
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from xxhash import xxh3_128_hexdigest

from ..manifest import (
    MANIFEST_FILE,
    checkpoint_step,
    hash_files,
    list_checkpoints,
    publish,
    sizes_problem,
    weights_state,
)
from ..version import __version__
from . import card, code, shards
from .errors import HubError, hub_errors
from .files import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS,
    CARD_FILE,
    CONFIG_FILE,
    MODEL_FILES,
    RUN_FILES,
    TOKENIZER_FILES,
    WEIGHTS_INDEX,
    Contents,
    contents,
    read_json,
    refuse_tokens,
)


MAX_SHARD_SIZE = "5GB"
PUSHED_FILE = ".pushed.json"  # where a folder was pushed to, for adapters of it
PULLING_SUFFIX = ".incomplete"
PULLING_FILE = ".pulling.json"
LAST_CHECKPOINT = "last-checkpoint"  # Trainer's name for it, with `hub_strategy: checkpoint`
# What an earlier push may have left that would be loaded in place of what is pushed now, or says what is no longer true.
REPLACED = (
    "model*.safetensors", WEIGHTS_INDEX, "pytorch_model*", ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS, "adapter_model.bin",
    CONFIG_FILE, "task.json", *code.CODE_FILES, *RUN_FILES,
)  # fmt: skip
# The same of another model.
REPLACED_BY_ANOTHER = (*MODEL_FILES, *TOKENIZER_FILES)
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


@dataclass(frozen=True)
class Remote:
    """A branch of a repository as it is.

    Attributes:
        exists: Whether the repository is there, as far as the token may see.
        private: Whether only its owner sees it; None where it is not there.
        present: Names of its files.
        card: Its README.md; None where there is none.
        config: Its config.json; empty where there is none.
    """

    exists: bool
    private: bool | None
    present: tuple[str, ...] = ()
    card: str | None = None
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def metadata(self) -> dict[str, Any]:
        """The head of the card; empty where it has none, or none that can be read."""
        if not (self.card or "").lstrip().startswith("---"):
            return {}
        try:
            return ModelCard(self.card or "", ignore_metadata_errors=True).data.to_dict()
        except Exception:  # YAML's own, of several classes: the card is replaced, or stays as it is
            return {}


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
    license = license.lower() if license else None
    if license is not None and not license.replace("-", "").replace(".", "").replace("+", "").isalnum():
        raise ValueError(
            f"`license` must be one of the Hub's identifiers, such as apache-2.0 or mit, got {license!r}."
        )
    if not 0 <= carbon_intensity < math.inf:
        raise ValueError(f"`carbon_intensity` must be at least 0 grams a kWh, got {carbon_intensity}.")
    max_bytes = shards.parse_size(max_shard_size)
    if max_bytes < 1:
        raise ValueError(f"`max_shard_size` must be above 0, got {max_shard_size!r}.")
    _check_whole(found)
    api = HfApi(endpoint=endpoint, token=token, library_name="hfgpt", library_version=__version__)
    with (
        hub_errors(repo_id, "push to", token, revision, api.endpoint),
        tempfile.TemporaryDirectory(prefix="hfgpt-push-") as scratch,
    ):
        if not (token or get_token()):
            raise LocalTokenNotFoundError
        if "/" not in repo_id:
            repo_id = f"{api.whoami()['name']}/{repo_id}"
        # Everything that can be known beforehand, so that a refusal leaves no empty repository behind.
        adapter_config = (
            published_adapter_config(found.config, found.folder, base_model, api.endpoint)
            if found.is_adapter
            else None
        )
        remote = look(api, repo_id, revision)
        notes = check_name(
            api,
            repo_id,
            remote,
            found.is_adapter,
            found.config,
            private,
            overwrite or found.kind not in ("model", "adapter"),
        )
        options = card_options(remote, license, carbon_intensity, with_code)
        files = staged(found, repo_id, options, adapter_config, max_bytes, Path(scratch))
        notes += settle_card(files, found, remote, overwrite)
        refuse_tokens(files, token or get_token())
        is_private = make(api, repo_id, private, revision)
        total = sum(map(_size, files.values()))
        done = commit(
            api,
            repo_id,
            files,
            api.list_repo_files(repo_id, revision=revision),  # a new branch begins with the files of main
            revision,
            message or f"Push the {found.kind}, with hfgpt {__version__}",
            gone_folders=[found.folder.name] if found.kind == "checkpoint" else (),
            gone_names=REPLACED_BY_ANOTHER if overwrite and not adapter_only else (),
        )
        stated = _stated_license(files)
    if stated is None and CARD_FILE in files and found.kind in ("model", "adapter"):
        notes.append("the card states no licence: name it with --license, such as apache-2.0")
    if found.kind in ("model", "adapter"):
        remember(found.folder, repo_id, revision, api.endpoint, files.get(CARD_FILE))
    return PushResult(repo_id, done.commit_url, done.oid, found.kind, sorted(files), total, is_private, notes)


def look(api: HfApi, repo_id: str, revision: str | None) -> Remote:
    """What is there now; nothing is changed."""
    try:
        info = api.model_info(repo_id)
    except RepositoryNotFoundError as error:
        if error.response is not None and "Invalid" in (getattr(error, "server_message", None) or ""):
            raise  # the token's fault
        return Remote(False, None)
    try:
        present = tuple(api.list_repo_files(repo_id, revision=revision))
    except RevisionNotFoundError:
        return Remote(True, bool(info.private))

    def read(name: str) -> str | None:
        if name not in present:
            return None
        try:
            return Path(api.hf_hub_download(repo_id, name, revision=revision)).read_text(encoding="utf-8")
        except EntryNotFoundError:
            return None

    try:
        config = json.loads(read(CONFIG_FILE) or "{}")
    except ValueError:
        config = {}
    return Remote(True, bool(info.private), present, read(CARD_FILE), config if isinstance(config, dict) else {})


def make(api: HfApi, repo_id: str, private: bool | None, revision: str | None) -> bool:
    """Make the repository and its branch, if they are not there.

    Returns:
        Whether only its owner sees it.
    """
    api.create_repo(repo_id, private=private, exist_ok=True)
    if revision is not None:
        try:
            api.list_repo_files(repo_id, revision=revision)
        except RevisionNotFoundError:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
    return bool(api.model_info(repo_id).private)


def card_options(
    remote: Remote, license: str | None, carbon_intensity: float = card.WORLD_CARBON_INTENSITY, with_code: bool = False
) -> card.CardOptions:
    """What the card is written with: what the repository says of itself is not lost."""
    kept = remote.metadata
    stated = kept.get("license")
    # The head that a repository made on the website has; of an earlier card of ours all else is written anew.
    own = (
        {} if card.MARK in (remote.card or "") else {key: value for key, value in kept.items() if key != "model-index"}
    )
    return card.CardOptions(
        license or (stated if isinstance(stated, str) else None), carbon_intensity, with_code, kept_metadata=own
    )


def settle_card(files: dict[str, Source], found: Contents, remote: Remote, overwrite: bool = False) -> list[str]:
    """Leave the repository's card where it is worth more than ours.

    Returns:
        Notes.
    """
    if CARD_FILE not in files or overwrite or remote.card is None:
        return []
    if found.kind == "tokenizer" and {CONFIG_FILE, ADAPTER_CONFIG_FILE} & set(remote.present):
        del files[CARD_FILE]
        return ["the card there is of a model, and stays"]
    if not card.is_by_hand(remote.card):
        return []
    # Written by hand: here, and pushed before, so that this one is the newer; or there.
    pushed = read_json(found.folder / PUSHED_FILE).get("card")
    if card.own_words(found.folder) is not None and pushed == xxh3_128_hexdigest(remote.card.encode("utf-8")):
        return []
    del files[CARD_FILE]
    return ["the card there was written by hand and stays; --overwrite replaces it"]


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
    gone_folders: Iterable[str] = (),
    gone_names: Iterable[str] = (),
) -> Any:
    """Send files and make one commit of them; what they take the place of goes with it.

    Args:
        api: The Hub, and who asks.
        repo_id: "owner/name".
        files: Names there, with bytes or where they are.
        present: Names that are there now.
        revision: Branch.
        message: Of the commit.
        gone_folders: Folders there, of which nothing is to stay but what is in `files`.
        gone_names: Patterns of further files at the root that are not to stay.
    """
    operations: list[CommitOperation] = [
        CommitOperationAdd(name, source if isinstance(source, bytes) else str(source))
        for name, source in files.items()
    ]
    patterns = [*gone_names, *(REPLACED if CONFIG_FILE in files or ADAPTER_CONFIG_FILE in files else ())]
    folders = tuple(f"{folder}/" for folder in gone_folders)
    operations += [
        CommitOperationDelete(name)
        for name in present
        if name not in files
        and (name.startswith(folders) if "/" in name else any(fnmatch(name, pattern) for pattern in patterns))
    ]
    with warnings.catch_warnings():
        # That a card states no licence is told in our own words.
        warnings.filterwarnings("ignore", "Warnings while validating metadata")
        return api.create_commit(repo_id, operations, commit_message=message, revision=revision)


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
    target = None if output is None else Path(output).resolve()
    if target is not None and target.exists() and not overwrite and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} is there already: give another folder, or --overwrite to replace it.")
    api = HfApi(endpoint=endpoint, token=token, library_name="hfgpt", library_version=__version__)
    with hub_errors(repo_id, "pull from", token, revision, api.endpoint):
        if "/" not in repo_id:
            raise HubError(f"{repo_id!r} names no owner: give owner/name.")
        # Pinned, so that a commit made meanwhile does not mix with this one.
        commit_hash = str(api.model_info(repo_id, revision=revision).sha)
        common: dict[str, Any] = {"revision": commit_hash, "token": token, "endpoint": endpoint}
        if target is None:
            return _pulled(repo_id, Path(snapshot_download(repo_id, **common)), commit_hash)
        with _writing_to(target):
            staging = _staging(target, repo_id, commit_hash)
            snapshot_download(repo_id, local_dir=staging, **common)
            _discard_notes(staging)
            if target.is_dir() and not any(target.iterdir()):
                target.rmdir()
            elif target.is_file():
                target.unlink()
            publish(staging, target)
    return _pulled(repo_id, target, commit_hash)


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
    with hub_errors(repo_id, "resume from", token, revision, api.endpoint):
        commit_hash = str(api.model_info(repo_id, revision=revision).sha)
        names = api.list_repo_files(repo_id, revision=commit_hash)
        folders = {
            Path(name).parent.as_posix()
            for name in names
            if name.count("/") == 1 and name.endswith(f"/{MANIFEST_FILE}")
        }
        steps = {step: name for name in folders if (step := checkpoint_step(Path(name))) is not None}
        if LAST_CHECKPOINT in folders:
            state = api.hf_hub_download(repo_id, f"{LAST_CHECKPOINT}/trainer_state.json", revision=commit_hash)
            steps.setdefault(int(read_json(Path(state))["global_step"]), LAST_CHECKPOINT)
        if not steps:
            others = any(name.endswith("/trainer_state.json") for name in names)
            raise ValueError(
                f"{repo_id} has no checkpoint to resume from{f' (those there have no {MANIFEST_FILE})' if others else ''}: push "
                f"one with `hfgpt push OUTPUT_DIR/checkpoint-STEP {repo_id}`, or train with `push_to_hub: true` and "
                "`hub_strategy: checkpoint`."
            )
        step = max(steps)
        own = [checkpoint_step(path) or 0 for path in list_checkpoints(output_dir) if sizes_problem(path)[0] is None]
        if own and max(own) >= step:
            return None
        target = output_dir / f"checkpoint-{step}"
        manifest = read_json(
            Path(api.hf_hub_download(repo_id, f"{steps[step]}/{MANIFEST_FILE}", revision=commit_hash))
        )
        wanted = [f"{steps[step]}/{name}" for name in (MANIFEST_FILE, *manifest.get("files", {}))]
        with _writing_to(output_dir):
            staging = _staging(target, repo_id, commit_hash)
            snapshot_download(
                repo_id,
                revision=commit_hash,
                local_dir=staging,
                allow_patterns=wanted,
                token=token,
                endpoint=endpoint,
            )
            arrived = staging / steps[step]
            problem = _problem(arrived)
            if problem is not None:
                shutil.rmtree(staging, ignore_errors=True)
                raise ValueError(f"{steps[step]} of {repo_id} is not whole ({problem}): push it again.")
            publish(arrived, target)
            shutil.rmtree(staging, ignore_errors=True)
    return target


def _staging(target: Path, repo_id: str, commit_hash: str) -> Path:
    """The folder that a pull fills: what an earlier one of the same commit has brought stays, of any other nothing."""
    staging = target.with_name(target.name + PULLING_SUFFIX)
    note = staging / PULLING_FILE
    wanted = {"repo_id": repo_id, "commit": commit_hash}
    if staging.exists() and read_json(note) != wanted:
        shutil.rmtree(staging)
    staging.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(wanted), encoding="utf-8")
    return staging


def _discard_notes(staging: Path) -> None:
    """Remove what the client and this module have noted for themselves."""
    shutil.rmtree(staging / ".cache", ignore_errors=True)
    (staging / PULLING_FILE).unlink(missing_ok=True)


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


def published_adapter_config(
    config: Mapping[str, Any], folder: Path, base_model: str | None, hub: str
) -> dict[str, Any]:
    """An adapter's config as others shall read it: its base model by its name on the Hub.

    Args:
        config: As peft has it.
        folder: Of the adapter.
        base_model: Name of the base on the Hub. Default: as the config says, or where its folder was pushed to.
        hub: Address of the Hub.

    Raises:
        ValueError: The base is a folder of this machine, and its name on the Hub is not known, or it has changed since.
    """
    if base_model:
        return {**config, "base_model_name_or_path": base_model, "revision": None}
    base = str(config.get("base_model_name_or_path") or "")
    base_folder = Path(base).expanduser()
    sibling = folder.resolve().parent / base_folder.name
    if base and not base_folder.is_dir() and sibling.is_dir():  # they were moved together
        base_folder = sibling
    is_local = base_folder.is_dir() or base_folder.is_absolute() or base.startswith(".") or base.count("/") > 1
    if base and not is_local:
        return dict(config)
    pushed = read_json(base_folder / PUSHED_FILE) if base else {}
    if not pushed or pushed.get("endpoint") != hub:
        raise ValueError(
            f"The adapter's base model is {base or 'not named'}, a folder that others do not have: push it first "
            f"(`hfgpt push {base_folder if base else 'BASE'} owner/base`), or name it on the Hub with `--base-model owner/base`."
        )
    if pushed.get("weights") != weights_state(base_folder):
        raise ValueError(
            f"The adapter's base model {base_folder} has changed since it was pushed to {pushed['repo_id']}: push it again, or "
            "name the base on the Hub with `--base-model owner/base`."
        )
    return {**config, "base_model_name_or_path": str(pushed["repo_id"]), "revision": pushed.get("revision")}


def _card(found: Contents, repo_id: str, options: card.CardOptions, adapter_config: dict[str, Any] | None) -> str:
    base = adapter_config["base_model_name_or_path"] if adapter_config else None
    own = card.own_words(found.folder)
    if own is not None:
        return str(card.completed(own, card.card_metadata(found, repo_id, options, base)))
    return str(card.model_card(found, repo_id, options, base))


def check_name(
    api: HfApi,
    repo_id: str,
    remote: Remote,
    is_adapter: bool,
    config: Mapping[str, Any],
    private: bool | None,
    overwrite: bool = False,
) -> list[str]:
    """See that the name is not another model's, and whom it is shown to.

    Args:
        api: The Hub.
        repo_id: "owner/name".
        remote: What is there.
        is_adapter: Whether an adapter is to be pushed.
        config: Of the model that is to be pushed.
        private: Whether others may not see it.
        overwrite: What is there may go, or stays beside it.

    Returns:
        Notes.

    Raises:
        HubError: It is taken, or not as private as was asked.
    """
    if private and remote.private is False:
        raise HubError(
            f"{repo_id} is there already and is public: nothing was pushed. Make it private in its settings "
            f"({api.endpoint}/{repo_id}/settings), or give another name."
        )
    notes = []
    if private is False and remote.private:
        notes.append("the repository is private, and stays so: its settings make it public")
    if overwrite:
        return notes
    has_weights = any(fnmatch(name, "model*.safetensors") for name in remote.present)
    has_adapter = ADAPTER_CONFIG_FILE in remote.present
    if has_weights if is_adapter else has_adapter and not has_weights:
        kinds = ("a model", "an adapter")
        raise HubError(
            f"The name {repo_id} is taken by {kinds[not is_adapter]}, and this is {kinds[is_adapter]}: give another name, or "
            "--overwrite."
        )
    if not is_adapter:
        there = remote.config
        changed = [name for name in IDENTITY if name in there and there[name] != config.get(name)]
        if changed:
            was = ", ".join(f"{name} {there[name]}, not {config.get(name)}" for name in changed)
            raise HubError(f"The name {repo_id} is taken by another model ({was}): give another name, or --overwrite.")
    return notes


def remember(folder: Path, repo_id: str, revision: str | None, hub: str, written: Source | None = None) -> None:
    """Where a folder was pushed to, so that its adapters can name their base; a read-only folder does without."""
    pushed = {"repo_id": repo_id, "revision": revision, "endpoint": hub, "weights": weights_state(folder)}
    if written is not None:
        pushed["card"] = xxh3_128_hexdigest(written if isinstance(written, bytes) else written.read_bytes())
    with suppress(OSError):
        (folder / PUSHED_FILE).write_text(json.dumps(pushed) + "\n", encoding="utf-8")


def _stated_license(files: Mapping[str, Source]) -> str | None:
    text = files.get(CARD_FILE)
    return (
        ModelCard(text.decode("utf-8"), ignore_metadata_errors=True).data.license if isinstance(text, bytes) else None
    )


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
