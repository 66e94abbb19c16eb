"""Muon beside Adam: each does to its weights what torch's own does, and a run with both resumes."""

import pytest
import torch
from test_resume import STEPS, Run, assert_same, write_corpus
from torch import nn

from hfgpt import GPT3Config, GPT3ForCausalLM
from hfgpt.training.optimizer import MuonAdam, block_matrices, is_muon


def weights(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((7, 4), (4,), (8, 4), (4, 6))]


def give_gradients(parameters, step):
    generator = torch.Generator().manual_seed(100 + step)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def make(parameters):
    embedding, bias, *matrices = parameters
    return MuonAdam([embedding], [bias], matrices, lr=0.1, weight_decay=0.2, betas=(0.8, 0.9), eps=1e-8)


def test_a_step_is_that_of_each_optimizer():
    ours, theirs = weights(), weights()
    both = make(ours)
    adam = torch.optim.AdamW(
        [{"params": theirs[:1], "weight_decay": 0.2}, {"params": theirs[1:2], "weight_decay": 0.0}],
        lr=0.1, betas=(0.8, 0.9),
    )  # fmt: skip
    muon = torch.optim.Muon(theirs[2:], lr=0.1, weight_decay=0.2, adjust_lr_fn="match_rms_adamw")
    for step in range(3):
        give_gradients(ours, step), give_gradients(theirs, step)
        if step == 2:
            for group in [*both.param_groups, *adam.param_groups, *muon.param_groups]:
                group["lr"] = 0.03
        both.step(), adam.step(), muon.step()
    for ours_weight, theirs_weight in zip(ours, theirs):
        assert torch.equal(ours_weight, theirs_weight)
    both.zero_grad()
    assert all(weight.grad is None for weight in ours)


def test_its_state_is_kept_and_loaded():
    whole, first = weights(), weights()
    both, before = make(whole), make(first)
    for step in range(2):
        give_gradients(whole, step), give_gradients(first, step)
        both.step(), before.step()
    after = make(first)
    after.load_state_dict(before.state_dict())
    give_gradients(whole, 2), give_gradients(first, 2)
    both.step(), after.step()
    for whole_weight, resumed in zip(whole, first):
        assert torch.equal(whole_weight, resumed)


def test_it_takes_the_matrices_of_the_blocks_alone():
    model = GPT3ForCausalLM(
        GPT3Config(
            vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=8
        )
    )
    own = set(map(id, block_matrices(model)))
    names = {name for name, weight in model.named_parameters() if id(weight) in own}
    assert len(names) == 12 and all(".layers." in name and name.endswith("proj.weight") for name in names)
    with pytest.raises(ValueError, match="`muon`"):
        block_matrices(nn.Linear(2, 2))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("muon"), {"web": 24}, None)


@pytest.mark.slow
def test_a_run_with_it_resumes_as_if_nothing_had_been(corpus, tmp_path):
    whole = Run(corpus, tmp_path / "whole", muon="true")
    cut = Run(corpus, tmp_path / "cut", signal_at=5, muon="true")
    assert cut.interrupted
    resumed = Run(corpus, tmp_path / "cut", muon="true")
    assert_same(resumed, whole)
    assert len(whole.log("loss")) == STEPS
    adam = Run(corpus, tmp_path / "adam")
    assert adam.log("loss") != whole.log("loss")
    state = torch.load(tmp_path / "whole" / f"checkpoint-{STEPS}" / "optimizer.pt", weights_only=True)
    assert [is_muon(group) for group in state["param_groups"]] == [False, False, True]


def test_what_it_does_not_go_with_is_refused(corpus, tmp_path, capsys):
    with pytest.raises(SystemExit):
        Run(corpus, tmp_path / "run", muon="true", optim="sgd")
    assert "`muon` goes with torch's Adam" in capsys.readouterr().err
