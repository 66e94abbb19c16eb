"""Push models, adapters, tokenizers and checkpoints to the Hub, with a card written from their run, and pull them back."""

from .errors import HubError
from .transfer import PullResult, PushResult, pull, pull_checkpoint, push


__all__ = ["HubError", "PullResult", "PushResult", "pull", "pull_checkpoint", "push"]
