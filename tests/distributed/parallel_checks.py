"""Run by test_tensor_parallel.py in each of two processes: a tiny model split over both, beside the whole one.

Usage: `python -m torch.distributed.run --nproc_per_node 2 parallel_checks.py FOLDER`. Each writes FOLDER/rank<n>.json,
{check: {quantity: number}}: largest absolute differences from the whole model, and facts as 0 or 1. A check that
raises leaves its traceback under "error" in place of numbers.
"""

import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import ScheduleGPipe, SplitPoint, pipeline
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig


sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "model"))
from checks import run_checks
from tiny_models import make_ids, make_model

from hfgpt import GPT3ForSequenceClassification
from hfgpt.model import modeling_gpt3


modeling_gpt3.CHUNK_BYTES = 0  # the loss without the logits, however small they are


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor gathered from the processes it is split over."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    assert one.shape == other.shape, (one.shape, other.shape)
    return (one - other).abs().max().item()


def gradient_difference(model: nn.Module, reference: nn.Module) -> float:
    """Largest difference of a gradient, relative to the largest gradient of the model."""
    expected = {name: parameter.grad for name, parameter in reference.named_parameters()}
    found = {name: whole(parameter.grad) for name, parameter in model.named_parameters()}
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    scale = max(gradient.abs().max().item() for gradient in expected.values())
    return max(difference(found[name], expected[name]) for name in expected) / scale


def is_split(parameter: torch.Tensor) -> float:
    return float(hasattr(parameter, "to_local") and parameter.to_local().numel() < parameter.numel())


def saved_difference(model: nn.Module, reference: nn.Module, folder: Path) -> float:
    """What `save_pretrained` writes of a split model, loaded in one process, beside the whole one."""
    model.save_pretrained(folder)
    dist.barrier()
    loaded, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    expected = dict(reference.named_parameters())
    found = dict(loaded.named_parameters())
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    return max(difference(found[name], expected[name]) for name in expected)


def load(reference: nn.Module, folder: Path, auto=AutoModelForCausalLM, **sizes: int | str) -> nn.Module:
    """The reference model, saved and loaded over both processes."""
    if dist.get_rank() == 0:
        reference.save_pretrained(folder)
    dist.barrier()
    return auto.from_pretrained(folder, distributed_config=DistributedConfig(**sizes))


def tensor_parallel(folder: Path, tied: bool) -> dict[str, float]:
    # 97 words: the slices of the vocabulary are not equal.
    reference, ids = make_model(tie_word_embeddings=tied), make_ids(2, 20)
    model = load(reference, folder / "reference", tp_plan="auto")
    result = {
        "embeddings are split": is_split(model.model.embed_tokens.weight),
        "head is split": is_split(model.lm_head.weight),
        "queries are split": is_split(model.model.layers[0].self_attn.q_proj.weight),
        "tied": float(model.lm_head.weight is model.model.embed_tokens.weight),
        "saved": saved_difference(model, reference, folder / "saved"),
    }
    with torch.no_grad():
        result["logits"] = difference(model(ids).logits, reference(ids).logits)
        mask = torch.ones_like(ids)
        mask[0, :7] = 0
        options = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False}
        result["generated"] = difference(model.generate(ids, **options), reference.generate(ids, **options))
    model.train()
    reference.train()
    output, expected = model(ids, labels=ids, use_cache=False), reference(ids, labels=ids, use_cache=False)
    output.loss.backward()
    expected.loss.backward()
    result["loss"] = difference(whole(output.loss.detach()), expected.loss.detach())
    result["gradients"] = gradient_difference(model, reference)
    return result


def tensor_parallel_classifier(folder: Path) -> dict[str, float]:
    config = make_model().config
    config.num_labels = 3
    config.pad_token_id = 0
    torch.manual_seed(0)
    reference, ids = GPT3ForSequenceClassification(config).eval(), make_ids(2, 20) + 1
    ids[ids >= config.vocab_size] = 1
    model = load(reference, folder, auto=GPT3ForSequenceClassification, tp_plan="auto")
    labels = torch.tensor([2, 0])
    output, expected = model(ids, labels=labels), reference(ids, labels=labels)
    output.loss.backward()
    expected.loss.backward()
    return {
        "logits": difference(output.logits.detach(), expected.logits.detach()),
        "gradients": gradient_difference(model, reference),
    }


def sharded(folder: Path, tied: bool, by_plan: bool) -> dict[str, float]:
    """FSDP2, by the plan through transformers, or as accelerate wraps: each block, then all."""
    reference, ids = make_model(tie_word_embeddings=tied), make_ids(2, 20)
    if by_plan:
        model = load(reference, folder / "reference", fsdp_size=2)
    else:
        model = make_model(tie_word_embeddings=tied)
        for module in model.modules():
            if type(module).__name__ in model._no_split_modules:
                fully_shard(module)
        fully_shard(model)
    result = {
        "embeddings are split": is_split(model.model.embed_tokens.weight),
        "head is split": is_split(model.lm_head.weight),
        "norm is split": is_split(model.model.norm.weight),
    }
    with torch.no_grad():
        result["logits"] = difference(model(ids).logits, reference(ids).logits)
    model.train()
    if not by_plan:
        model.gradient_checkpointing_enable()
    row = ids[dist.get_rank() :][:1]
    output = model(row, labels=row, use_cache=False)
    output.loss.backward()
    result["logits in training"] = float(output.logits is not None)
    reference.train()
    reference(ids, labels=ids, use_cache=False).loss.backward()
    expected = reference(row, labels=row, use_cache=False).loss
    result["loss"] = difference(output.loss.detach(), expected.detach())
    result["gradients"] = gradient_difference(model, reference)
    return result


def pipelined(folder: Path, tied: bool) -> dict[str, float]:
    """Transformers' pipeline, for inference: half of the blocks on each process."""
    reference, ids = make_model(tie_word_embeddings=tied), make_ids(2, 20)
    model = load(reference, folder, pp_size=2)
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    blocks = [type(layer).__name__ == "GPT3DecoderLayer" for layer in model.model.layers]
    with torch.no_grad():
        padded = model(ids, attention_mask=mask).logits, reference(ids, attention_mask=mask).logits
        return {
            "blocks on this process": float(sum(blocks)),
            "logits": difference(model(ids).logits, reference(ids).logits),
            "logits after padding": difference(*(logits[mask == 1] for logits in padded)),
            "generated": difference(
                model.generate(ids, max_new_tokens=12, do_sample=False),
                reference.generate(ids, max_new_tokens=12, do_sample=False),
            ),
        }


class Logits(nn.Module):
    """The logits alone, as stages pass tensors."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids, use_cache=False).logits


def next_token_loss(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def traced_pipeline() -> dict[str, float]:
    """PyTorch's own pipeline, which cuts an exported graph: two micro-batches forward and back."""
    # Untied: the two stages would train a tied weight apart.
    model, reference = make_model(tie_word_embeddings=False), make_model(tie_word_embeddings=False)
    # One row each: stages also pass on the masks, which rows share in memory, and only whole tensors can be sent.
    ids = make_ids(2, 20)
    cut = {"model.model.layers.2": SplitPoint.BEGINNING}
    stage = pipeline(Logits(model), mb_args=(ids[:1],), split_spec=cut).build_stage(
        dist.get_rank(), torch.device("cpu")
    )
    schedule = ScheduleGPipe(stage, n_microbatches=2, loss_fn=next_token_loss)
    losses: list[torch.Tensor] = []
    expected_logits = Logits(reference)(ids)
    expected = next_token_loss(expected_logits, ids)
    expected.backward()
    if dist.get_rank() == 0:
        schedule.step(ids)
        result = {"logits": 0.0, "loss": 0.0}
    else:
        logits = schedule.step(target=ids, losses=losses)
        result = {
            "logits": difference(logits.detach(), expected_logits.detach()),
            "loss": difference(torch.stack(losses).mean().detach(), expected.detach()),
        }
    gradients = {f"model.{name}": parameter.grad for name, parameter in reference.named_parameters()}
    found = {name: parameter.grad for name, parameter in stage.submod.named_parameters()}
    scale = max(gradient.abs().max().item() for gradient in gradients.values())
    result["gradients"] = max(difference(found[name], gradients[name]) for name in found) / scale
    result["parameters missing"] = float(not 0 < len(found) < len(gradients))
    return result


CHECKS: dict[str, Callable[[Path], dict[str, float]]] = {
    "tensor parallel, tied": lambda folder: tensor_parallel(folder, tied=True),
    "tensor parallel, untied": lambda folder: tensor_parallel(folder, tied=False),
    "tensor parallel, classifier": tensor_parallel_classifier,
    "sharded by the plan, tied": lambda folder: sharded(folder, tied=True, by_plan=True),
    "sharded by the plan, untied": lambda folder: sharded(folder, tied=False, by_plan=True),
    "sharded by block, tied": lambda folder: sharded(folder, tied=True, by_plan=False),
    "sharded by block, untied": lambda folder: sharded(folder, tied=False, by_plan=False),
    "pipeline, tied": lambda folder: pipelined(folder, tied=True),
    "pipeline, untied": lambda folder: pipelined(folder, tied=False),
    "pipeline of a traced graph": lambda folder: traced_pipeline(),
}


def main() -> None:
    # Where one process fails, the other is not to wait for it for long.
    dist.init_process_group("gloo", timeout=timedelta(seconds=30))
    run_checks(CHECKS)


if __name__ == "__main__":
    main()
