"""Trainer's own pushes (`push_to_hub`, `hub_strategy`), of what `hfgpt push` would push; and a run that goes on from the Hub.

A push during training never stops the run: what the Hub refuses is told and counted. Only a Hub that refuses at the very
start does, before any work is lost, and one that refuses the finished run, which is saved by then.
"""

import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from huggingface_hub import HfApi
from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress, logging

from ..hub import HubError, pull_checkpoint
from ..hub.card import LOSS_CURVE_FILE, RUN_FILE, CardOptions, model_card, own_words
from ..hub.errors import hub_errors, without_tokens
from ..hub.files import CARD_FILE, Contents, contents
from ..hub.transfer import (
    LAST_CHECKPOINT,
    Source,
    commit,
    open_repository,
    published_adapter_config,
    remote_card,
    staged,
)
from ..manifest import checkpoint_step, files_below
from .arguments import CommonArguments


logger = logging.get_logger(__name__)

PUSHING_FOLDER = ".pushing"  # links to files on their way, which may be rotated meanwhile
WHOLE_FILES = 1 << 62  # weights are saved in files of a good size already


class PushingTrainer(Trainer):
    """Trainer that pushes safetensors, tokenizer, results and a card of the run; no arguments, logs or test rows."""

    failed_pushes = 0
    # Whether `save_model` pushes, too, as Trainer's does; the runs of hfgpt push when their scores are there.
    push_when_saved = True

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository; all processes must ask.

        Raises:
            HubError: The Hub refuses, or is not reached: at the start of a run, so that nothing is lost.
            ValueError: It would be an adapter whose base model nobody else has.
        """
        problem = None
        if self.is_world_process_zero():
            name = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
            token = token if token is not None else self.args.hub_token
            private = private if private is not None else self.args.hub_private_repo
            try:
                with hub_errors(name, "push to", token, self.args.hub_revision):
                    api = HfApi(token=token)
                    if "/" not in name:
                        name = f"{api.whoami()['name']}/{name}"
                    self._check_base(api)
                    _, remote = open_repository(api, name, private, self.args.hub_revision)
                    if private and not remote["private"]:
                        raise HubError(f"{name} is there already and is public: give another `hub_model_id`.")
            except ValueError as error:
                problem = str(error)
            self.hub_model_id, self.push_in_progress = name, None
        [problem] = broadcast_object_list([problem])
        if problem is not None:
            raise HubError(problem)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the card of the run into the output folder; a card that a person wrote there stays."""
        if self.is_world_process_zero():
            folder = Path(self.args.output_dir)
            if own_words(folder) is None:
                name = self.hub_model_id or self.args.hub_model_id or folder.absolute().name
                (folder / CARD_FILE).write_text(str(model_card(contents(folder), name)), encoding="utf-8")

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Save the model and push it, in one commit.

        Raises:
            HubError: The Hub refuses, or is not reached; the model is saved.
        """
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        before, self.push_when_saved = self.push_when_saved, False
        try:
            self.save_model()
        finally:
            self.push_when_saved = before
        return self.push_saved(commit_message or "End of training", token=token, revision=revision, blocking=blocking)

    def push_saved(
        self, commit_message: str, token: str | None = None, revision: str | None = None, blocking: bool = True
    ) -> Any:
        """Push what lies in the output folder; all processes must ask.

        Raises:
            HubError: The Hub refuses, or is not reached.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        done, problem = None, None
        if self.is_world_process_zero():
            self._finish_current_push()
            token = token if token is not None else self.args.hub_token
            try:
                with hub_errors(str(self.hub_model_id), "push to", token, revision or self.args.hub_revision):
                    found = contents(self.args.output_dir)
                    done = self._commit(self._files(found, token), commit_message, token, revision, blocking)
            except ValueError as error:
                problem = f"{error} The run is whole in {self.args.output_dir}: `hfgpt push` takes it from there."
        [problem] = broadcast_object_list([problem])
        if problem is not None:
            self.failed_pushes += 1
            raise HubError(problem)
        return done

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        pushing: Any = self.push_in_progress
        if not self.args.hub_always_push and pushing is not None and not pushing.is_done():
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        checkpoint = Path(checkpoint_folder)
        step = checkpoint_step(checkpoint) or self.state.global_step
        # By another name: of a checkpoint `contents` would take every file, and here its model is meant.
        links = Path(self.args.output_dir) / PUSHING_FOLDER / f"step-{step}"
        try:
            with hub_errors(str(self.hub_model_id), "push to", self.args.hub_token, self.args.hub_revision):
                _link_all(checkpoint, links)
                run = Path(self.args.output_dir)
                for name in (RUN_FILE, LOSS_CURVE_FILE):
                    if (run / name).is_file() and not (links / name).exists():
                        shutil.copy(run / name, links / name)
                found = contents(links)
                files = self._files(found, self.args.hub_token)
                gone: list[str] = []
                if self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
                    kept = self.args.hub_strategy == HubStrategy.ALL_CHECKPOINTS
                    folder = checkpoint.name if kept else LAST_CHECKPOINT
                    states = {f"{folder}/{name}": links / name for name in files_below(checkpoint)}
                    gone = [f"{folder}/*"] if not kept else []
                    files.update(states)
                future = self._commit(
                    files, f"Training in progress, step {step}", self.args.hub_token, None, False, gone
                )
        except (ValueError, OSError) as error:
            self._push_failed(error, links)
            return
        future.add_done_callback(self._after_push(links))
        self.push_in_progress = PushInProgress([future])

    def _after_push(self, links: Path) -> Callable[[Future], None]:
        def after(future: Future) -> None:
            error = future.exception()
            if error is None:
                shutil.rmtree(links, ignore_errors=True)
                return
            try:
                with hub_errors(str(self.hub_model_id), "push to", self.args.hub_token, self.args.hub_revision):
                    raise error
            except Exception as explained:
                self._push_failed(explained, links)

        return after

    def _push_failed(self, error: Exception, links: Path) -> None:
        self.failed_pushes += 1
        words = without_tokens(str(error), self.args.hub_token)
        logger.warning(f"{words} The run goes on, and the next save is pushed again.")
        shutil.rmtree(links, ignore_errors=True)

    def _files(self, found: Contents, token: str | None) -> dict[str, Source]:
        api = HfApi(token=token)
        base = published_adapter_config(found, None, api.endpoint) if found.is_adapter else None
        repo_id, revision = str(self.hub_model_id), self.args.hub_revision
        by_hand, license = remote_card(api, repo_id, revision)
        files = staged(found, repo_id, CardOptions(license), base, WHOLE_FILES, found.folder)
        if by_hand:
            files.pop(CARD_FILE, None)
        return files

    def _commit(
        self,
        files: dict[str, Source],
        message: str,
        token: str | None,
        revision: str | None,
        blocking: bool,
        gone: list[str] | None = None,
    ) -> Any:
        api, revision = HfApi(token=token), revision or self.args.hub_revision
        present = api.list_repo_files(str(self.hub_model_id), revision=revision)
        return commit(
            api, str(self.hub_model_id), files, present, revision, message, gone or (), run_as_future=not blocking
        )

    def _check_base(self, api: HfApi) -> None:
        adapters = getattr(self.accelerator.unwrap_model(self.model), "peft_config", None)
        if adapters:
            published_adapter_config(
                Contents(Path(self.args.output_dir), "adapter", ()),
                str(next(iter(adapters.values())).base_model_name_or_path or ""),
                api.endpoint,
            )


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
    problem = None
    if args.process_index == 0:
        repo_id, _, revision = args.resume_from_hub.partition("@")
        try:
            fetched = pull_checkpoint(repo_id, args.output_dir, revision=revision or None, token=args.hub_token)
            if fetched is None:
                logger.warning(f"{args.output_dir} has a checkpoint as new as those of {repo_id}: going on from it.")
            else:
                logger.warning(f"Pulled {fetched.name} from {repo_id}.")
        except ValueError as error:
            problem = str(error)
    [problem] = broadcast_object_list([problem])
    if problem is not None:
        raise ValueError(problem)


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
