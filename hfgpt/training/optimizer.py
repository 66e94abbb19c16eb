"""Muon for the matrices inside the blocks, Adam for everything else. Not the paper's: that is Adam alone, the default.

A model of a few million weights reaches on a few hundred thousand tokens the loss that Adam needs several times as many for.
Both go by one learning rate: Muon's updates are scaled to the size that Adam's have. Source: K. Jordan et al., *Muon*, 2024;
J. Liu et al., *Muon is Scalable for LLM Training*, 2025.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer
from transformers import Trainer


class MuonAdam(Optimizer):
    """torch's Muon and AdamW as one optimizer, with one state and one list of groups: those of AdamW first.

    Args:
        decayed, undecayed: Weights that AdamW takes, with and without weight decay.
        matrices: Weights of two dimensions that Muon takes, with weight decay.
        lr: Learning rate of all.
        weight_decay: Of `decayed` and `matrices`.
        adam: Further arguments of AdamW.
    """

    def __init__(
        self,
        decayed: Iterable[nn.Parameter],
        undecayed: Iterable[nn.Parameter],
        matrices: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float,
        **adam: Any,
    ):
        groups = [
            {"params": list(decayed), "weight_decay": weight_decay},
            {"params": list(undecayed), "weight_decay": 0.0},
        ]
        self._adam = AdamW(groups, lr=lr, **adam)
        self._muon = Muon(list(matrices), lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        super().__init__([*self._adam.param_groups, *self._muon.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Let both work on this optimizer's groups and state."""
        self._adam.param_groups = [group for group in self.param_groups if not is_muon(group)]
        self._muon.param_groups = [group for group in self.param_groups if is_muon(group)]
        self._adam.state = self._muon.state = self.state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of both."""
        loss = None if closure is None else closure()
        self._adam.step()
        self._muon.step()
        return loss


def is_muon(group: dict[str, Any]) -> bool:
    """Whether a group of weights is Muon's."""
    return "ns_steps" in group


def block_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Weights of the linear layers inside the blocks of a model, which Muon is for: not embeddings and output layer."""
    blocks: Any = getattr(model, getattr(model, "base_model_prefix", ""), model)
    layers = getattr(blocks, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ValueError(f"`muon` needs a model whose blocks are `layers`; {type(model).__name__} has none.")
    return [weight for weight in layers.parameters() if weight.requires_grad and weight.dim() == 2]


def muon_adam_for(trainer: Trainer, model: nn.Module | None = None) -> MuonAdam:
    """The optimizer of a trainer's model, with the fields of its arguments.

    Args:
        trainer: Whose weight decay leaves out biases and LayerNorms.
        model: In place of the trainer's, as it is wrapped.

    Raises:
        ValueError: The model's blocks are not `layers`.
    """
    args, model = trainer.args, trainer.model if model is None else model
    assert args.learning_rate is not None  # the recipe's, or what it is by default
    matrices = block_matrices(trainer.accelerator.unwrap_model(model))
    own = set(map(id, matrices))
    decayed = set(trainer.get_decay_parameter_names(model))
    others = [
        (name in decayed, weight)
        for name, weight in model.named_parameters()
        if weight.requires_grad and id(weight) not in own
    ]
    return MuonAdam(
        [weight for decays, weight in others if decays],
        [weight for decays, weight in others if not decays],
        matrices,
        lr=args.learning_rate,
        weight_decay=args.weight_decay,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
        fused=args.optim == "adamw_torch_fused",
    )
