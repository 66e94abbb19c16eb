"""Push and pull, by the real client, against a Hub on this machine."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from helpers import run
from hub_users import OTHER_TOKEN, READ_TOKEN, TOKEN, UNKNOWN_TOKEN
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hfgpt.hub import HubError, pull, pull_checkpoint, push
from hfgpt.manifest import MANIFEST_FILE, files_below, hash_files, write_manifest
from hfgpt.training.checkpoints import why_incomplete


PROMPT = "The film was wonderful"


def logits(model, tokenizer) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(**tokenizer(PROMPT, return_tensors="pt")).logits


def local_logits(folder: Path) -> torch.Tensor:
    return logits(AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))


WITHOUT_HFGPT = """
import sys
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

output, pulled = sys.argv[1:]
code = {"trust_remote_code": True}
tokenizer = AutoTokenizer.from_pretrained("kim/film")
inputs = tokenizer("The film was wonderful", return_tensors="pt")
models = {
    "model": AutoModelForCausalLM.from_pretrained("kim/film", **code),
    "adapter": AutoPeftModelForCausalLM.from_pretrained("kim/film-lora", **code),
    "checkpoint": AutoModelForCausalLM.from_pretrained("kim/run", subfolder="checkpoint-12", **code),
    "pulled": AutoModelForCausalLM.from_pretrained(pulled, **code),
}
with torch.inference_mode():
    torch.save({name: model.eval()(**inputs).logits for name, model in models.items()}, output)
text = models["model"].generate(**inputs, max_new_tokens=4, do_sample=False)
assert text.shape[1] == inputs["input_ids"].shape[1] + 4
for model in models.values():
    kind = type(model.get_base_model() if hasattr(model, "get_base_model") else model)
    assert kind.__name__ == "GPT3ForCausalLM" and kind.__module__.startswith("transformers_modules"), kind
assert not any(name.split(".")[0] == "hfgpt" for name in sys.modules), "hfgpt was imported"
try:
    import hfgpt
except ImportError:
    pass
else:
    raise AssertionError("hfgpt can be imported here")
"""


def hide_hfgpt(folder: Path) -> dict[str, str]:
    """Environment of a process in which hfgpt cannot be imported, however it is installed."""
    hidden = folder / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(
        "import sys\n"
        "class Hidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'hfgpt':\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Hidden())\n"
    )
    return {"PYTHONPATH": str(hidden)}


def test_a_model_comes_back_with_equal_logits(hub, model_folder, tmp_path):
    done = push(model_folder, "kim/film", license="apache-2.0")
    assert done.kind == "model" and not done.private and not done.notes
    assert set(done.files) == set(hub.files("kim/film")) - {".gitattributes"}
    expected = local_logits(model_folder)
    there = AutoModelForCausalLM.from_pretrained("kim/film")
    assert torch.equal(logits(there, AutoTokenizer.from_pretrained("kim/film")), expected)

    pulled = pull("kim/film", tmp_path / "pulled")
    assert pulled.commit == done.commit
    assert torch.equal(local_logits(pulled.path), expected)
    assert not list(tmp_path.glob("*.incomplete"))


def test_with_code_all_loads_where_hfgpt_is_not_installed(hub, run_folder, model_folder, adapter_folder, tmp_path):
    from peft import AutoPeftModelForCausalLM

    checkpoint = run_folder / "checkpoint-12"
    push(model_folder, "kim/film", with_code=True)
    assert "auto_map" not in json.loads((model_folder / "config.json").read_text())  # the folder is as it was
    push(adapter_folder, "kim/film-lora")
    push(checkpoint, "kim/run", with_code=True)
    pulled = pull("kim/run", tmp_path / "pulled").path / checkpoint.name
    run(
        "-c", WITHOUT_HFGPT, tmp_path / "logits.pt", pulled, cwd=tmp_path,
        **{**hub.environment(TOKEN, home=tmp_path / "home"), **hide_hfgpt(tmp_path)},
    )  # fmt: skip
    found = torch.load(tmp_path / "logits.pt")
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    expected = local_logits(model_folder)
    assert torch.equal(found["model"], expected)
    assert torch.equal(found["adapter"], logits(AutoPeftModelForCausalLM.from_pretrained(adapter_folder), tokenizer))
    of_checkpoint = logits(AutoModelForCausalLM.from_pretrained(checkpoint), tokenizer)
    assert torch.equal(found["checkpoint"], of_checkpoint) and torch.equal(found["pulled"], of_checkpoint)
    assert why_incomplete(pulled) is None  # a run goes on from it as before

    # Where hfgpt is installed its own classes are taken, and no code of the repository runs.
    here = AutoModelForCausalLM.from_pretrained("kim/film")
    assert type(here).__module__.startswith("hfgpt.")
    assert torch.equal(logits(here, tokenizer), expected)

    push(model_folder, "kim/film")
    assert not [name for name in hub.files("kim/film") if name.endswith(".py")]


def test_an_adapter_names_its_base_on_the_hub(hub, model_folder, adapter_folder):
    from peft import AutoPeftModelForCausalLM

    with pytest.raises(ValueError, match=r"hfgpt push .*--base-model"):
        push(adapter_folder, "kim/film-lora")
    assert hub.requests == []
    push(model_folder, "kim/film")
    done = push(adapter_folder, "kim/film-lora")
    assert done.kind == "adapter"
    config = json.loads(hub.read("kim/film-lora", "adapter_config.json"))
    assert config["base_model_name_or_path"] == "kim/film"
    assert str(model_folder.parent) not in hub.read("kim/film-lora", "README.md").decode()
    expected = logits(
        AutoPeftModelForCausalLM.from_pretrained(adapter_folder), AutoTokenizer.from_pretrained(model_folder)
    )
    there = AutoPeftModelForCausalLM.from_pretrained("kim/film-lora")
    tokenizer = AutoTokenizer.from_pretrained("kim/film-lora")
    assert torch.equal(logits(there, tokenizer), expected)
    assert not torch.equal(expected, local_logits(model_folder))

    done = push(adapter_folder, "kim/bare", adapter_only=True, base_model="kim/film")
    assert set(done.files) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    with pytest.raises(ValueError, match="holds no adapter"):
        push(model_folder, "kim/bare", adapter_only=True)


def test_a_tokenizer_alone(hub, corpus):
    done = push(corpus / "tokenizer", "kim/words")
    assert done.kind == "tokenizer"
    there = AutoTokenizer.from_pretrained("kim/words")
    here = AutoTokenizer.from_pretrained(corpus / "tokenizer")
    assert there(PROMPT)["input_ids"] == here(PROMPT)["input_ids"]


def test_a_checkpoint_goes_into_a_folder_of_its_name(hub, run_folder, tmp_path):
    checkpoint = max(run_folder.glob("checkpoint-*"))
    push(run_folder, "kim/run", private=True)
    done = push(checkpoint, "kim/run")
    assert done.kind == "checkpoint" and done.private
    assert all(name.startswith(f"{checkpoint.name}/") for name in done.files)
    pulled = pull("kim/run", tmp_path / "pulled")
    for file in checkpoint.iterdir():
        assert (pulled.path / checkpoint.name / file.name).read_bytes() == file.read_bytes()
    (checkpoint / "optimizer.pt").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"not a whole checkpoint \(optimizer.pt has 4 bytes"):
        push(checkpoint, "kim/run")


def test_weights_are_divided_on_the_way(hub, model_folder, tmp_path):
    push(model_folder, "kim/film")
    done = push(model_folder, "kim/film", max_shard_size="40KB")
    weights = [name for name in hub.files("kim/film") if name.endswith(".safetensors")]
    assert len(weights) > 1 and "model.safetensors" not in weights
    assert "model.safetensors.index.json" in done.files
    assert all(hub.files("kim/film")[name] < 80_000 for name in weights)
    there = AutoModelForCausalLM.from_pretrained("kim/film")
    expected = load_file(model_folder / "model.safetensors")
    assert all(torch.equal(there.state_dict()[name], value) for name, value in expected.items())
    # And back in one piece: the parts of before go.
    push(model_folder, "kim/film")
    assert [name for name in hub.files("kim/film") if name.endswith(".safetensors")] == ["model.safetensors"]
    with pytest.raises(ValueError, match="5GB"):
        push(model_folder, "kim/film", max_shard_size="big")


def test_a_branch(hub, model_folder, tmp_path):
    push(model_folder, "kim/film")
    main = hub.files("kim/film")
    push(model_folder, "kim/film", revision="coded", with_code=True)
    assert "modeling_gpt3.py" in hub.files("kim/film", "coded")
    assert hub.files("kim/film") == main
    push(model_folder, "kim/film", revision="parts", max_shard_size="40KB")
    assert "model.safetensors" not in hub.files("kim/film", "parts")  # of main, with which the branch began
    pulled = pull("kim/film", tmp_path / "coded", revision="coded")
    assert (pulled.path / "modeling_gpt3.py").is_file()
    assert torch.equal(local_logits(pull("kim/film").path), local_logits(model_folder))


def test_an_upload_that_broke_off_goes_on(hub, model_folder):
    options = {"max_shard_size": "40KB"}
    hub.cut_next("PUT", "/lfs/", after=50_000, times=100)  # what is larger than that never arrives
    with pytest.raises(HubError, match="run the same again"):
        push(model_folder, "kim/film", **options)
    assert "model.safetensors.index.json" not in hub.files("kim/film")  # all or nothing
    arrived = list(hub.uploads)
    assert arrived
    hub.clear()
    done = push(model_folder, "kim/film", **options)
    large = {name for name in done.files if name.endswith(".safetensors")}
    assert 0 < len(hub.uploads) <= len(large)
    assert not set(hub.uploads) & set(arrived)
    assert AutoModelForCausalLM.from_pretrained("kim/film")


def test_an_unchanged_model_is_not_sent_again(hub, model_folder):
    push(model_folder, "kim/film")
    hub.clear()
    push(model_folder, "kim/film")
    assert hub.uploads == []


def test_a_download_that_broke_off_leaves_nothing_under_its_name(hub, model_folder, tmp_path):
    push(model_folder, "kim/film")
    hub.fail_next("GET", "/lfs/", status=403, times=100)
    with pytest.raises(HubError):
        pull("kim/film", tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()
    hub.clear()
    assert torch.equal(local_logits(pull("kim/film", tmp_path / "pulled").path), local_logits(model_folder))
    with pytest.raises(ValueError, match="is there already"):
        pull("kim/film", tmp_path / "pulled")
    pull("kim/film", tmp_path / "pulled", overwrite=True)


REFUSALS = {
    "a bad token": ({"token": UNKNOWN_TOKEN}, "does not know this token: log in"),
    "a token with a line break": ({"token": "hf_one\nhf_twoAndItsRest"}, "holds characters that no token has"),
    "a token in Hangul": ({"token": "hf_\ud1a0\ud070"}, "holds characters that no token has"),
    "a token that only reads": ({"token": READ_TOKEN}, "token may not write there"),
    "another's token": ({"token": OTHER_TOKEN}, "token may not write there"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_the_hub_refuses_is_one_line(hub, model_folder, case):
    arguments, words = REFUSALS[case]
    with pytest.raises(HubError, match=words) as refused:
        push(model_folder, "kim/film", **arguments)
    assert "\n" not in str(refused.value) and "hf_" not in str(refused.value).replace("hf_***", "")
    assert "kim/film" in str(refused.value)


def test_no_token_at_all(hub, model_folder, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="there is no token: log in with `hf auth login`"):
        push(model_folder, "kim/film")


@pytest.mark.parametrize("name", ["kim/", "kim/film/x", "kim/fi lm", "/film"])
def test_names_that_are_none(hub, model_folder, name):
    with pytest.raises(HubError, match="is not a name on the Hub"):
        push(model_folder, name)
    with pytest.raises(HubError, match=r"is not a name on the Hub|names no owner"):
        pull(name)


def test_a_name_without_owner_is_the_tokens(hub, model_folder):
    assert push(model_folder, "film").repo_id == "kim/film"


def test_what_is_private_is_not_there_for_others(hub, model_folder, tmp_path):
    assert push(model_folder, "kim/secret", private=True).private
    for arguments in ({"token": OTHER_TOKEN}, {"token": UNKNOWN_TOKEN}):
        with pytest.raises(
            HubError, match=r"no such repository, or the token may not see it|does not know this token"
        ):
            pull("kim/secret", tmp_path / "other", **arguments)
    assert pull("kim/secret", tmp_path / "own").files
    push(model_folder, "kim/open")
    with pytest.raises(HubError, match="is there already and is public: nothing was pushed"):
        push(model_folder, "kim/open", private=True)


def test_a_name_that_is_taken(hub, model_folder, adapter_folder, tmp_path):
    push(model_folder, "kim/film")
    with pytest.raises(HubError, match="taken by a model, and this is an adapter"):
        push(adapter_folder, "kim/film")
    other = Path(shutil.copytree(model_folder, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "vocab_size": 7}))
    with pytest.raises(HubError, match=r"taken by another model \(vocab_size \d+, not 7\)"):
        push(other, "kim/film")
    push(adapter_folder, "kim/film", overwrite=True, base_model="kim/base")
    assert "config.json" not in hub.files("kim/film") and "model.safetensors" not in hub.files("kim/film")


def test_not_there_not_reachable_offline(hub, model_folder, tmp_path, monkeypatch):
    with pytest.raises(HubError, match="no such repository"):
        pull("kim/none", tmp_path / "none")
    push(model_folder, "kim/film")
    with pytest.raises(HubError, match="has no revision 'v9'"):
        pull("kim/film", tmp_path / "none", revision="v9")
    with pytest.raises(HubError, match=r"http://127\.0\.0\.1:9 is not reachable"):
        pull("kim/film", tmp_path / "none", endpoint="http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for action in (lambda: push(model_folder, "kim/film"), lambda: pull("kim/film", tmp_path / "none")):
        with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
            action()
    assert not (tmp_path / "none").exists()


def test_a_busy_hub(hub, model_folder):
    hub.fail_next("POST", "/api/models/kim/film/commit", status=503, times=100)
    with pytest.raises(HubError, match=r"the Hub is busy \(status 503\): run the same again"):
        push(model_folder, "kim/film")


def test_a_token_in_a_file_is_not_pushed(hub, model_folder):
    config = json.loads((model_folder / "generation_config.json").read_text())
    (model_folder / "generation_config.json").write_text(json.dumps({**config, "note": TOKEN}))
    with pytest.raises(ValueError, match=r"generation_config.json holds your token: nothing was pushed") as refused:
        push(model_folder, "kim/film")
    assert TOKEN not in str(refused.value)
    (model_folder / "generation_config.json").write_text(json.dumps({**config, "note": OTHER_TOKEN}))
    with pytest.raises(ValueError, match="looks like a token"):
        push(model_folder, "kim/film")
    assert not HfApi().repo_exists("kim/film")


def test_no_token_gets_anywhere_but_into_its_header(hub, run_folder, capfd, caplog):
    push(run_folder, "kim/run", with_code=True)
    push(max(run_folder.glob("checkpoint-*")), "kim/run")
    pull("kim/run")
    assert hub.token_leaks(TOKEN) == []
    written = capfd.readouterr()
    assert TOKEN not in written.out + written.err + caplog.text
    # Neither the arguments of the run nor its test rows go along.
    assert not {"training_args.bin", "trainer_state.json", ".lock"} & set(hub.files("kim/run"))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: shutil.rmtree(folder), "is no folder"),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no weights"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "only safetensors"),
        (lambda folder: os.truncate(folder / "model.safetensors", 5000), "is not a whole safetensors file"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda folder: [file.unlink() for file in folder.iterdir()], "holds no model, adapter or tokenizer"),
    ],
)
def test_what_is_not_whole_stays_here(hub, model_folder, spoil, words):
    spoil(model_folder)
    with pytest.raises(ValueError, match=words):
        push(model_folder, "kim/film")
    assert hub.requests == []


def test_the_command(hub, model_folder, tmp_path):
    environment = hub.environment(TOKEN, home=tmp_path / "home")
    done = run("-m", "hfgpt.cli", "push", model_folder, "kim/film", "--private", "--json", **environment)
    assert json.loads(done.stdout)["private"] is True
    assert "%|" not in done.stderr  # no progress bars outside a terminal
    done = run("-m", "hfgpt.cli", "pull", "kim/film", tmp_path / "film", **environment)
    assert done.stdout.startswith("pulled kim/film at ") and "%|" not in done.stderr
    done = run("-m", "hfgpt.cli", "push", model_folder, "lee/film", check=False, **environment)
    assert done.returncode == 2 and done.stderr.startswith(
        "hfgpt push: error: Cannot push to lee/film: this token may not"
    )
    assert len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr


def test_a_cut_off_pull_does_not_mix_with_another(hub, model_folder, tmp_path):
    push(model_folder, "kim/parts", max_shard_size="40KB")
    push(model_folder, "kim/whole")
    hub.fail_next("GET", r"/lfs/.*filename=model-00003", status=403, times=100)
    with pytest.raises(HubError):
        pull("kim/parts", tmp_path / "film")
    assert list((tmp_path / "film.incomplete").glob("model-*"))
    hub.clear()
    pulled = pull("kim/whole", tmp_path / "film")
    assert {path.name for path in pulled.path.iterdir()} == set(hub.files("kim/whole"))
    assert set(pulled.files) == set(hub.files("kim/whole"))


def test_checkpoints_with_folders_replace_all_of_theirs(hub, run_folder, tmp_path):
    checkpoint = run_folder / "checkpoint-12"
    (checkpoint / "global_step12").mkdir()
    (checkpoint / "global_step12" / "states.pt").write_bytes(b"states")
    names = [name for name in files_below(checkpoint) if name != MANIFEST_FILE]
    write_manifest(checkpoint, hash_files(checkpoint, names))
    push(checkpoint, "kim/run")
    HfApi().upload_file(path_or_fileobj=b"old", path_in_repo="checkpoint-12/global_step8/old.pt", repo_id="kim/run")
    HfApi().upload_file(path_or_fileobj=b"old", path_in_repo="checkpoint-12/rng_state_7.pth", repo_id="kim/run")
    fetched = pull_checkpoint("kim/run", tmp_path / "elsewhere")
    assert files_below(fetched) == files_below(checkpoint)  # what the manifest names, and no more
    push(checkpoint, "kim/run")
    assert {name for name in hub.files("kim/run") if "/" in name} == {
        f"checkpoint-12/{n}" for n in files_below(checkpoint)
    }


def test_a_token_in_a_card_by_hand(hub, model_folder):
    (model_folder / "README.md").write_text(f"# Mine\n\nexport HF_TOKEN={TOKEN}\n")
    with pytest.raises(ValueError, match=r"README.md holds your token"):
        push(model_folder, "kim/film")
    assert not HfApi().repo_exists("kim/film")


def test_words_that_only_look_like_tokens(hub, model_folder):
    config = json.loads((model_folder / "generation_config.json").read_text())
    words = "hf_deepspeed_config hf_checkpoints /data/hf_hub_download_and_more_of_these_long_names_here"
    (model_folder / "generation_config.json").write_text(json.dumps({**config, "note": words}))
    push(model_folder, "kim/hf_sentiment_korean_and_a_long_name")
    with pytest.raises(HubError, match="hf_sentiment_korean_and_a_long_name"):
        push(model_folder, "lee/hf_sentiment_korean_and_a_long_name")


def test_what_was_refused_leaves_no_empty_repository(hub, model_folder, tmp_path):
    (model_folder / "all_results.json").write_text("{")
    with pytest.raises(ValueError, match=r"all_results.json cannot be read"):
        push(model_folder, "kim/film")
    (model_folder / "all_results.json").unlink()
    config = json.loads((model_folder / "config.json").read_text())
    (model_folder / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    with pytest.raises(ValueError, match=r"brings the code of gpt3, and this model is a gpt2"):
        push(model_folder, "kim/film", with_code=True)
    assert not HfApi().repo_exists("kim/film")


def test_the_licence_chosen_on_the_website_is_kept(hub, model_folder):
    HfApi().create_repo("kim/film")
    readme = b"---\nlicense: cc-by-4.0\nlanguage: ko\n---\n"
    HfApi().upload_file(path_or_fileobj=readme, path_in_repo="README.md", repo_id="kim/film")
    done = push(model_folder, "kim/film")
    card = ModelCard(hub.read("kim/film", "README.md").decode())
    assert (card.data.license, card.data.language) == ("cc-by-4.0", "ko") and "## How to use" in card.text
    assert not done.notes
    push(model_folder, "kim/film", license="MIT")
    assert ModelCard(hub.read("kim/film", "README.md").decode()).data.license == "mit"


def test_a_card_by_hand_is_updated_from_where_it_was_pushed(hub, model_folder):
    (model_folder / "README.md").write_text("# First words\n")
    push(model_folder, "kim/film")
    (model_folder / "README.md").write_text("# Second words\n")
    push(model_folder, "kim/film")
    assert "# Second words" in hub.read("kim/film", "README.md").decode()
    HfApi().upload_file(path_or_fileobj=b"# On the website\n", path_in_repo="README.md", repo_id="kim/film")
    done = push(model_folder, "kim/film")
    assert hub.read("kim/film", "README.md") == b"# On the website\n" and "stays" in done.notes[0]


def test_an_adapters_base_is_the_one_that_was_pushed(hub, model_folder, adapter_folder, tmp_path):
    push(model_folder, "kim/base", revision="exp")
    push(adapter_folder, "kim/lora")
    config = json.loads(hub.read("kim/lora", "adapter_config.json"))
    assert (config["base_model_name_or_path"], config["revision"]) == ("kim/base", "exp")
    # Moved together.
    (tmp_path / "moved").mkdir()
    moved = Path(shutil.move(adapter_folder, tmp_path / "moved" / "adapter"))
    base = Path(shutil.move(model_folder, tmp_path / "moved" / "model"))
    push(moved, "kim/lora")
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.model.norm.weight.add_(1.0)
    model.save_pretrained(base)
    with pytest.raises(ValueError, match="has changed since it was pushed to kim/base"):
        push(moved, "kim/lora")


def test_a_tokenizer_beside_a_model_leaves_its_card(hub, model_folder, corpus):
    push(model_folder, "kim/film")
    card = hub.read("kim/film", "README.md")
    done = push(corpus / "tokenizer", "kim/film")
    assert hub.read("kim/film", "README.md") == card and "stays" in done.notes[0]


def test_another_model_leaves_nothing_of_the_one_before(hub, run_folder, adapter_folder):
    push(run_folder, "kim/film")
    push(adapter_folder, "kim/film", overwrite=True, base_model="kim/base")
    gone = {"generation_config.json", "all_results.json", "run.json", "loss_curve.png", "config.json"}
    assert not gone & set(hub.files("kim/film"))


def test_into_the_folder_where_one_is(hub, model_folder, tmp_path, monkeypatch):
    push(model_folder, "kim/film")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert pull("kim/film", ".").path == tmp_path / "empty"
    assert (tmp_path / "empty" / "config.json").is_file()


def test_a_cache_that_cannot_be_used_is_named(hub, model_folder, tmp_path, monkeypatch):
    push(model_folder, "kim/film")
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(HubError, match="set HF_HOME to a folder that can be written"):
        push(model_folder, "kim/film")
