"""Trainer's own pushes (`push_to_hub`, `hub_strategy`), of what `hfgpt push` would push; and a run that goes on from the Hub.

A push during training never stops the run: what the Hub refuses is told and counted. Only a Hub that refuses at the very
start does, before any work is lost, and one that refuses the finished run, which is saved by then.
"""

import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from accelerate.utils import broadcast_object_list
from huggingface_hub import HfApi, get_token
from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress, logging

from ..hub import HubError, pull_checkpoint
from ..hub.card import LOSS_CURVE_FILE, RUN_FILE, CardOptions, model_card, own_words
from ..hub.errors import hub_errors, without_tokens
from ..hub.files import CARD_FILE, Contents, contents, refuse_tokens
from ..hub.transfer import (
    LAST_CHECKPOINT,
    Source,
    card_options,
    check_name,
    commit,
    look,
    make,
    published_adapter_config,
    remember,
    settle_card,
    staged,
)
from ..manifest import checkpoint_step, files_below
from .arguments import CommonArguments


T = TypeVar("T")

logger = logging.get_logger(__name__)

PUSHING_FOLDER = ".pushing"  # links to files on their way, which may be rotated meanwhile
WHOLE_FILES = 1 << 62  # weights are saved in files of a good size already


class PushingTrainer(Trainer):
    """Trainer that pushes safetensors, tokenizer, results and a card of the run: no logs, test rows or pickles.

    With `hub_strategy` checkpoint or all_checkpoints the checkpoints go along, whole. Pushes are made one after another,
    in the order of the steps.
    """

    failed_pushes = 0
    # Whether `save_model` pushes, too, as Trainer's does; the runs of hfgpt push when their scores are there.
    push_when_saved = True

    _hub: HfApi | None = None

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository; all processes must ask.

        Raises:
            HubError: The Hub refuses or is not reached, or the name is another model's: at the start of a run, so that
                nothing is lost. Also where it would be an adapter whose base model nobody else has.
        """
        token = token if token is not None else self.args.hub_token
        private = private if private is not None else self.args.hub_private_repo

        def open_it() -> str:
            shutil.rmtree(Path(self.args.output_dir) / PUSHING_FOLDER, ignore_errors=True)  # of a run that was killed
            name = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
            with hub_errors(name, "push to", token, self.args.hub_revision):
                api = self._hub = HfApi(token=token)
                if "/" not in name:
                    name = f"{api.whoami()['name']}/{name}"
                model: Any = self.accelerator.unwrap_model(self.model)
                adapters = getattr(model, "peft_config", None)
                if adapters:
                    base = next(iter(adapters.values())).base_model_name_or_path
                    adapter = {"base_model_name_or_path": base}
                    published_adapter_config(adapter, Path(self.args.output_dir), None, api.endpoint)
                remote = look(api, name, self.args.hub_revision)
                config = model.config.to_dict() if hasattr(model, "config") else {}
                check_name(api, name, remote, bool(adapters), config, private)
                make(api, name, private, self.args.hub_revision)
            return name

        self.hub_model_id = _on_first_process(self.is_world_process_zero(), open_it)
        self.push_in_progress = None

    def create_model_card(self, license: str | None = None, **kwargs: Any) -> None:
        """Write the card of the run, once its model is saved, into the output folder; one that a person wrote stays.

        Args:
            license: Of the weights, by the Hub's identifier.
            **kwargs: Trainer's other words for a card, which is written from the run: they change nothing, and are named.

        Raises:
            ValueError: The output folder holds no model.
        """
        if not self.is_world_process_zero():
            return
        if kwargs:
            logger.warning(f"{', '.join(sorted(kwargs))}: left out, the card is written from the run. Edit README.md.")
        folder = Path(self.args.output_dir)
        if own_words(folder) is None:
            name = self.hub_model_id or self.args.hub_model_id or folder.absolute().name
            text = str(model_card(contents(folder), name, CardOptions(license)))
            (folder / CARD_FILE).write_text(text, encoding="utf-8")

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        license: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Save the model and push it, in one commit; all processes must ask.

        Args:
            commit_message: Of the commit.
            blocking: Wait until it is there. False: the next push, or the end of training, waits.
            token: Default: `hub_token`, HF_TOKEN, or what `hf auth login` has saved.
            revision: Branch, made if it is not there. Default: `hub_revision`, or main.
            private: Of a new repository. Default: `hub_private_repo`.
            license: Of the weights, by the Hub's identifier.
            **kwargs: Trainer's other words for a card, which is written from the run: they change nothing, and are named.

        Raises:
            HubError: The Hub refuses, or is not reached; the model is saved.
        """
        if kwargs and self.is_world_process_zero():
            logger.warning(f"{', '.join(sorted(kwargs))}: left out, the card is written from the run. Edit README.md.")
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        before, self.push_when_saved = self.push_when_saved, False
        try:
            self.save_model()
        finally:
            self.push_when_saved = before
        return self.push_saved(commit_message or "End of training", token, revision, blocking, license)

    def push_saved(
        self,
        commit_message: str,
        token: str | None = None,
        revision: str | None = None,
        blocking: bool = True,
        license: str | None = None,
    ) -> Any:
        """Push what lies in the output folder; all processes must ask.

        Raises:
            HubError: The Hub refuses, or is not reached.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = token if token is not None else self.args.hub_token
        revision = revision or self.args.hub_revision
        folder = Path(self.args.output_dir)

        def push_it() -> Any:
            self._finish_current_push()
            with hub_errors(str(self.hub_model_id), "push to", token, revision):
                api = self._api(token)
                make(api, str(self.hub_model_id), None, revision)
                files = self._files(contents(folder), api, token, revision, license)
                written = files.get(CARD_FILE)
                if not blocking:
                    future = self._later(api, files, commit_message, revision)
                    future.add_done_callback(self._after_push(None))
                    return future
                done = self._commit(api, files, commit_message, revision)
            remember(folder, str(self.hub_model_id), revision, api.endpoint, written)
            return done

        try:
            return _on_first_process(
                self.is_world_process_zero(),
                push_it,
                f" The run is whole in {folder}: `hfgpt push` takes it from there.",
            )
        except HubError:
            self.failed_pushes += 1
            raise

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        pushing: Any = self.push_in_progress
        if not self.args.hub_always_push and pushing is not None and not pushing.is_done():
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        checkpoint, run = Path(checkpoint_folder), Path(self.args.output_dir)
        step = checkpoint_step(checkpoint) or self.state.global_step
        # By another name: of a checkpoint `contents` would take every file, and here its model is meant.
        links = run / PUSHING_FOLDER / f"step-{step}"
        token, revision = self.args.hub_token, self.args.hub_revision
        try:
            with hub_errors(str(self.hub_model_id), "push to", token, revision):
                _link_all(checkpoint, links)
                for name in (RUN_FILE, LOSS_CURVE_FILE):
                    if (run / name).is_file() and not (links / name).exists():
                        shutil.copy(run / name, links / name)
                api = self._api(token)
                files = self._files(contents(links), api, token, revision)
                gone = []
                if self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
                    last = self.args.hub_strategy == HubStrategy.CHECKPOINT
                    gone = [LAST_CHECKPOINT if last else checkpoint.name]
                    files.update({f"{gone[0]}/{name}": links / name for name in files_below(checkpoint)})
                future = self._later(api, files, f"Training in progress, step {step}", revision, gone)
        except Exception as error:
            self._push_failed(error, links)
            return
        future.add_done_callback(self._after_push(links))

    def _later(
        self, api: HfApi, files: dict[str, Source], message: str, revision: str | None, gone: list[str] | None = None
    ) -> Future:
        # One client has one thread: what is asked for first is done first.
        future = api.run_as_future(self._commit, api, files, message, revision, gone)
        pushing: Any = self.push_in_progress
        if pushing is None or pushing.is_done():
            self.push_in_progress = PushInProgress([future])
        else:
            pushing.jobs.append(future)
        return future

    def _commit(
        self, api: HfApi, files: dict[str, Source], message: str, revision: str | None, gone: list[str] | None = None
    ) -> Any:
        present = api.list_repo_files(str(self.hub_model_id), revision=revision)
        return commit(api, str(self.hub_model_id), files, present, revision, message, gone or ())

    def _files(
        self, found: Contents, api: HfApi, token: str | None, revision: str | None, license: str | None = None
    ) -> dict[str, Source]:
        repo_id = str(self.hub_model_id)
        base = published_adapter_config(found.config, found.folder, None, api.endpoint) if found.is_adapter else None
        remote = look(api, repo_id, revision)
        files = staged(found, repo_id, card_options(remote, license), base, WHOLE_FILES, found.folder)
        run = Contents(Path(self.args.output_dir), found.kind, found.files)  # whose card was pushed before
        settle_card(files, run, remote)
        refuse_tokens(files, token or get_token())
        return files

    def _api(self, token: str | None) -> HfApi:
        if self._hub is None or self._hub.token != token:
            self._hub = HfApi(token=token)
        return self._hub

    def _after_push(self, links: Path | None) -> Callable[[Future], None]:
        def after(future: Future) -> None:
            error = future.exception()
            if error is None:
                if links is not None:
                    shutil.rmtree(links, ignore_errors=True)
                return
            try:
                with hub_errors(str(self.hub_model_id), "push to", self.args.hub_token, self.args.hub_revision):
                    raise error
            except Exception as explained:
                self._push_failed(explained, links)

        return after

    def _push_failed(self, error: Exception, links: Path | None) -> None:
        self.failed_pushes += 1
        words = without_tokens(str(error), self.args.hub_token)
        logger.warning(f"{words} The run goes on, and the next save is pushed again.")
        if links is not None:
            shutil.rmtree(links, ignore_errors=True)


def _on_first_process(is_first: bool, work: Callable[[], T], advice: str = "") -> T:
    """Do something in the first process; all processes must ask, and get its result, or learn that it failed.

    Raises:
        HubError: It failed.
    """
    outcome: list[Any] = [None, None]
    cause: Exception | None = None
    if is_first:
        try:
            outcome[0] = work()
        except Exception as error:  # of any kind: the others wait for what came of it
            cause, outcome[1] = error, without_tokens(str(error) or type(error).__name__)
    local = outcome[0]
    # The result itself may be what only this process has.
    [shared, problem] = broadcast_object_list([local if isinstance(local, str) else None, outcome[1]])
    if problem is None:
        return local if is_first else shared
    if cause is not None and not isinstance(cause, ValueError):
        raise cause
    raise HubError(problem + advice)


def fetch_checkpoint(args: CommonArguments) -> None:
    """Bring the checkpoint that `resume_from_hub` names into the output folder; all processes must ask.

    Raises:
        ValueError: There is none, it is not whole, or the Hub refuses.
    """
    if args.resume_from_hub is None:
        return
    if str(args.resume_from_checkpoint).lower() == "false":
        raise ValueError(
            "`resume_from_hub` and `resume_from_checkpoint: false` contradict each other: leave one of them out."
        )

    def fetch() -> None:
        repo_id, _, revision = str(args.resume_from_hub).partition("@")
        fetched = pull_checkpoint(repo_id, args.output_dir, revision=revision or None, token=args.hub_token)
        if fetched is None:
            logger.warning(f"{args.output_dir} has a checkpoint as new as those of {repo_id}: going on from it.")
        else:
            logger.warning(f"Pulled {fetched.name} from {repo_id}.")

    _on_first_process(args.process_index == 0, fetch)


def _link_all(source: Path, target: Path) -> None:
    """Give the files of a folder a second name, which its deletion does not take away; a copy where there are no links."""
    shutil.rmtree(target, ignore_errors=True)
    for name in files_below(source):
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source / name, path)
        except OSError:
            shutil.copy(source / name, path)
