"""The tests' Hub, through the real huggingface_hub client: what later tests take for granted about it."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import ROOT
from hub_server import HubServer
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi, ModelCard, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import disable_progress_bars, get_session


pytestmark = pytest.mark.filterwarnings("ignore:Warnings while validating metadata")

CARD = "---\nlicense: mit\ntags:\n- gpt3\n---\n# Tiny\n"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HubServer]:
    disable_progress_bars()
    with HubServer(tmp_path / "hub", multipart_size=3_000_000, part_size=1_000_000) as server:
        server.add_user("kim", "hf_kim", organizations=("acme",))
        server.add_user("kim", "hf_reader", role="read")
        server.add_user("lee", "hf_lee")
        with server.in_process("hf_kim", home=tmp_path / "home"):
            yield server


@pytest.fixture
def api(server: HubServer) -> HfApi:
    return HfApi()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small model's folder: text, weights, an image, a subfolder."""
    folder = tmp_path / "model"
    (folder / "runs").mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    (folder / "config.json").write_text('{"model_type": "gpt3"}')
    (folder / "model.safetensors").write_bytes(os.urandom(1_500_000))
    (folder / "runs" / "loss.png").write_bytes(b"\x89PNG\r\n\x1a\n\0" + os.urandom(500))
    (folder / "설명.txt").write_text("한국어", encoding="utf-8")
    return folder


def content(folder: str | Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_file() and path.name != ".gitattributes" and ".cache" not in path.parts
    }


def refusal(call: Callable[[], object], status: int, kind: type[HfHubHTTPError] = HfHubHTTPError) -> str:
    """Message of the client's error at a call, which is of this kind and for this status."""
    with pytest.raises(kind) as error:
        call()
    assert error.value.response.status_code == status
    return str(error.value)


def test_a_folder_comes_back_as_it_went(server: HubServer, api: HfApi, folder: Path) -> None:
    assert api.whoami()["name"] == "kim"
    url = api.create_repo("kim/tiny")
    assert (url.repo_id, url.repo_type, str(url)) == ("kim/tiny", "model", f"{server.endpoint}/kim/tiny")
    commit = api.upload_folder(repo_id="kim/tiny", folder_path=folder, commit_message="First")
    assert content(api.snapshot_download("kim/tiny")) == content(folder)
    # Text is in git, weights and the image are in LFS, at the other port, without the token.
    info = api.model_info("kim/tiny", files_metadata=True)
    assert {file.rfilename for file in info.siblings if file.lfs} == {"model.safetensors", "runs/loss.png"}
    assert (info.sha, info.private, info.card_data.license, info.tags) == (
        commit.oid,
        False,
        "mit",
        ["gpt3", "license:mit"],
    )
    stored = [request for request in server.requests if request.storage]
    assert {request.method for request in stored} == {"GET", "PUT"}
    assert server.token_leaks("hf_kim") == []
    # Nothing changed: no commit, no upload.
    server.clear()
    assert api.upload_folder(repo_id="kim/tiny", folder_path=folder).oid == commit.oid
    assert server.uploads == []
    assert not [request for request in server.requests if "/commit/" in request.path]
    # Part of a folder, to another place, and from there into a folder.
    api.upload_folder(repo_id="kim/tiny", folder_path=folder, path_in_repo="epoch-2", allow_patterns="*.json")
    path = api.hf_hub_download("kim/tiny", "epoch-2/config.json", local_dir=folder.parent / "local")
    assert Path(path).read_text() == '{"model_type": "gpt3"}'


def test_what_is_listed(server: HubServer, api: HfApi, folder: Path) -> None:
    api.create_repo("kim/tiny")
    api.upload_folder(repo_id="kim/tiny", folder_path=folder, commit_message="First")
    api.upload_file(repo_id="kim/tiny", path_or_fileobj=b"2", path_in_repo="runs/2.txt", commit_message="Second")
    names = [
        ".gitattributes",
        "README.md",
        "config.json",
        "model.safetensors",
        "runs/2.txt",
        "runs/loss.png",
        "설명.txt",
    ]
    assert sorted(api.list_repo_files("kim/tiny")) == sorted(names)
    tree = {entry.path: entry for entry in api.list_repo_tree("kim/tiny", expand=True)}
    assert set(tree) == {*names[:4], "runs", "설명.txt"}
    assert (tree["config.json"].last_commit.title, tree["runs"].last_commit.title) == ("First", "Second")
    server.page_size = 2
    assert sorted(entry.path for entry in api.list_repo_tree("kim/tiny", recursive=True)) == sorted([*names, "runs"])
    assert [entry.path for entry in api.list_repo_tree("kim/tiny", "runs")] == ["runs/2.txt", "runs/loss.png"]
    assert [commit.title for commit in api.list_repo_commits("kim/tiny")] == ["Second", "First", "initial commit"]
    paths = api.get_paths_info("kim/tiny", ["runs", "model.safetensors", "absent"], expand=True)
    assert [path.path for path in paths] == ["runs", "model.safetensors"]
    assert paths[1].size == 1_500_000
    with pytest.raises(RemoteEntryNotFoundError):
        list(api.list_repo_tree("kim/tiny", "absent"))
    assert api.file_exists("kim/tiny", "runs/2.txt") and not api.file_exists("kim/tiny", "absent")
    assert api.repo_exists("kim/tiny") and not api.repo_exists("kim/absent")
    assert api.model_info("kim/tiny", expand=["sha"]).siblings is None


def test_revisions(api: HfApi, tmp_path: Path) -> None:
    api.create_repo("kim/tiny")
    first = api.upload_file(repo_id="kim/tiny", path_or_fileobj=b"1", path_in_repo="step").oid
    api.create_tag("kim/tiny", tag="v1")
    api.create_branch("kim/tiny", branch="runs/lora", revision="v1")
    second = api.upload_file(repo_id="kim/tiny", path_or_fileobj=b"2", path_in_repo="step").oid
    api.upload_file(repo_id="kim/tiny", path_or_fileobj=b"3", path_in_repo="step", revision="runs/lora")

    def step(revision: str | None = None) -> str:
        return Path(api.hf_hub_download("kim/tiny", "step", revision=revision)).read_text()

    revisions = (None, "main", second, first, "v1", "runs/lora")
    assert [step(revision) for revision in revisions] == ["2", "2", "2", "1", "1", "3"]
    refs = api.list_repo_refs("kim/tiny")
    assert {branch.name for branch in refs.branches} == {"main", "runs/lora"}
    assert [(tag.name, tag.target_commit) for tag in refs.tags] == [("v1", first)]
    assert "Invalid rev id: absent" in refusal(lambda: step("absent"), 404, RevisionNotFoundError)
    refusal(lambda: api.snapshot_download("kim/tiny", revision="absent"), 404, RevisionNotFoundError)
    refusal(lambda: api.create_branch("kim/tiny", branch="runs/lora"), 409)
    refusal(lambda: api.create_tag("kim/tiny", tag="v1"), 409)
    api.create_branch("kim/tiny", branch="runs/lora", exist_ok=True)
    api.create_tag("kim/tiny", tag="v1", exist_ok=True)
    refusal(
        lambda: api.upload_file(repo_id="kim/tiny", path_or_fileobj=b"4", path_in_repo="step", revision="absent"),
        404,
        RevisionNotFoundError,
    )
    refusal(lambda: api.delete_branch("kim/tiny", branch="main"), 403)
    api.delete_branch("kim/tiny", branch="runs/lora")
    api.delete_tag("kim/tiny", tag="v1")
    assert not api.revision_exists("kim/tiny", "v1") and api.revision_exists("kim/tiny", first)
    api.super_squash_history("kim/tiny")
    assert len(api.list_repo_commits("kim/tiny")) == 1 and step() == "2"


def test_commits(server: HubServer, api: HfApi) -> None:
    api.create_repo("kim/tiny")
    weights = os.urandom(1000)
    files = {"a.txt": b"a", "old/b.txt": b"b", "old/c.bin": weights}
    additions = [CommitOperationAdd(path, data) for path, data in files.items()]
    head = api.create_commit("kim/tiny", additions, commit_message="Three").oid
    change = [
        CommitOperationDelete("old/"),
        CommitOperationCopy("old/c.bin", "new/c.bin"),
        CommitOperationCopy("a.txt", "new/a.txt"),
    ]
    api.create_commit("kim/tiny", change, commit_message="Move", parent_commit=head)
    assert set(server.files("kim/tiny")) == {".gitattributes", "a.txt", "new/a.txt", "new/c.bin"}
    assert server.read("kim/tiny", "new/c.bin") == weights
    assert server.read("kim/tiny", "old/b.txt", revision=head) == b"b"
    add = [CommitOperationAdd("d.txt", b"d")]
    late = refusal(lambda: api.create_commit("kim/tiny", add, commit_message="Late", parent_commit=head), 412)
    assert "A commit has happened since" in late
    refusal(lambda: api.delete_file("absent", "kim/tiny"), 404, RemoteEntryNotFoundError)
    pull_request = refusal(
        lambda: api.create_commit("kim/tiny", [CommitOperationAdd("e", b"e")], commit_message="PR", create_pr=True),
        403,
    )
    assert "Pull requests are not offered" in pull_request
    # What .gitignore names stays out; a large text file goes to LFS, and .gitattributes says so.
    server.lfs_size = 100
    files = {
        ".gitignore": b"checkpoint-*/\n*.log\n!keep.log\n",
        "checkpoint-1/x": b"x",
        "a.log": b"a",
        "keep.log": b"k",
    }
    additions = [CommitOperationAdd(path, data) for path, data in {**files, "vocab.json": b"{}" * 100}.items()]
    api.create_commit("kim/tiny", additions, commit_message="Ignore")
    assert {"checkpoint-1/x", "a.log", "keep.log", "vocab.json"} & set(server.files("kim/tiny")) == {
        "keep.log",
        "vocab.json",
    }
    assert b"vocab.json filter=lfs" in server.read("kim/tiny", ".gitattributes")
    (entry,) = api.get_paths_info("kim/tiny", "vocab.json")
    assert entry.lfs.size == 200
    for number in range(2):
        image = b"\0" + bytes([number])
        api.upload_file(repo_id="kim/tiny", path_or_fileobj=image, path_in_repo="loss of run [1].png")
    assert server.read("kim/tiny", ".gitattributes").count(b"loss[[:space:]]of[[:space:]]run") == 1
    assert server.read("kim/tiny", "loss of run [1].png") == b"\0\1"


@pytest.mark.parametrize(("token", "status"), [("hf_lee", 404), (False, 401)])
def test_private_repositories_do_not_exist_for_strangers(
    server: HubServer, api: HfApi, token: str | bool, status: int
) -> None:
    api.create_repo("kim/secret", private=True)
    api.upload_file(repo_id="kim/secret", path_or_fileobj=b"x" * 9, path_in_repo="x.bin")
    assert server.is_private("kim/secret") and api.model_info("kim/secret").private
    stranger = HfApi(token=token)
    for call in (
        lambda: stranger.model_info("kim/secret"),
        lambda: stranger.hf_hub_download("kim/secret", "x.bin"),
        lambda: stranger.snapshot_download("kim/secret"),
        lambda: stranger.upload_file(repo_id="kim/secret", path_or_fileobj=b"y", path_in_repo="y"),
    ):
        refusal(call, status, RepositoryNotFoundError)
    assert not stranger.repo_exists("kim/secret")
    reader = HfApi(token="hf_reader")
    assert Path(reader.hf_hub_download("kim/secret", "x.bin")).read_bytes() == b"x" * 9
    api.update_repo_settings("kim/secret", private=False)
    assert stranger.model_info("kim/secret").private is False


@pytest.mark.parametrize(("token", "status"), [("hf_lee", 403), (False, 401)])
def test_gated_repositories_keep_their_files(server: HubServer, api: HfApi, token: str | bool, status: int) -> None:
    api.create_repo("kim/tiny")
    api.upload_file(repo_id="kim/tiny", path_or_fileobj=b"x" * 9, path_in_repo="x.bin")
    api.update_repo_settings("kim/tiny", gated="manual")
    stranger = HfApi(token=token)
    assert stranger.model_info("kim/tiny").gated == "manual"
    refusal(lambda: stranger.hf_hub_download("kim/tiny", "x.bin"), status, GatedRepoError)
    server.grant("kim/tiny", "lee")
    assert HfApi(token="hf_lee").hf_hub_download("kim/tiny", "x.bin")


def test_who_may_write(server: HubServer, api: HfApi) -> None:
    def upload(token: str | bool) -> object:
        return HfApi(token=token).upload_file(repo_id="kim/tiny", path_or_fileobj=b"y", path_in_repo="y")

    api.create_repo("kim/tiny")
    api.create_repo("acme/shared")
    taken = refusal(lambda: api.create_repo("kim/tiny"), 409)
    assert "You already created this model repo" in taken
    assert api.create_repo("kim/tiny", exist_ok=True).repo_id == "kim/tiny"
    api.create_repo("kim/tiny", repo_type="dataset")  # a name is taken for its kind
    assert 'under the namespace "kim"' in refusal(lambda: HfApi(token="hf_lee").create_repo("kim/other"), 403)
    assert 'under the namespace "kim"' in refusal(lambda: HfApi(token="hf_reader").create_repo("kim/other"), 403)
    # Whoever may not create it learns that it is there, as on the Hub.
    assert HfApi(token="hf_lee").create_repo("kim/tiny", exist_ok=True).repo_id == "kim/tiny"
    assert "write token" in refusal(lambda: upload("hf_reader"), 403)
    assert "create_pr=1" in refusal(lambda: upload("hf_lee"), 403)
    refusal(lambda: upload(False), 401)
    for call in (
        lambda: upload("hf_wrong"),
        lambda: HfApi(token="hf_wrong").create_repo("kim/other"),
        lambda: HfApi(token="hf_wrong").model_info("kim/tiny"),
    ):
        assert "Invalid credentials in Authorization header" in refusal(call, 401)
    assert "Invalid user token" in refusal(lambda: HfApi(token="hf_wrong").whoami(), 401)
    refusal(lambda: HfApi(token="hf_lee").delete_repo("kim/tiny"), 403)
    api.move_repo("kim/tiny", "acme/moved")
    api.delete_repo("acme/moved")
    refusal(lambda: api.delete_repo("acme/moved"), 404, RepositoryNotFoundError)
    api.delete_repo("acme/moved", missing_ok=True)
    # A right that is missing is found before anything is sent.
    assert server.uploads == [] and server.files("kim/tiny", repo_type="dataset")


def test_large_files_go_in_parts(server: HubServer, api: HfApi, tmp_path: Path) -> None:
    api.create_repo("kim/tiny")
    (tmp_path / "big.bin").write_bytes(os.urandom(3_300_000))
    server.fail_next("PUT", "part=3", status=503)
    api.upload_file(repo_id="kim/tiny", path_or_fileobj=tmp_path / "big.bin", path_in_repo="big.bin")
    parts = [(request.received, request.status) for request in server.requests if request.storage]
    assert parts == [(1_000_000, 200), (1_000_000, 200), (1_000_000, 503), (1_000_000, 200), (300_000, 200)]
    assert server.read("kim/tiny", "big.bin") == (tmp_path / "big.bin").read_bytes()
    assert not list((server.root / "models/kim/tiny/incoming").iterdir())


def test_a_push_that_broke_off_sends_only_what_is_missing(server: HubServer, api: HfApi, tmp_path: Path) -> None:
    api.create_repo("kim/tiny")
    for number in range(3):
        (tmp_path / f"{number}.bin").write_bytes(bytes([number]) * 400_000)

    def push() -> str:
        return api.create_commit(
            "kim/tiny",
            [CommitOperationAdd(f"{number}.bin", tmp_path / f"{number}.bin") for number in range(3)],
            commit_message="Weights",
            num_threads=1,
        ).oid

    last = hashlib.sha256((tmp_path / "2.bin").read_bytes()).hexdigest()
    server.cut_next("PUT", last, after=100_000, times=6)  # the client tries six times
    with pytest.raises(RuntimeError, match=r"2\.bin"):
        push()
    assert len(server.uploads) == 2 and set(server.files("kim/tiny")) == {".gitattributes"}
    cut = [request.received for request in server.requests if last in request.path]
    assert cut == [100_000] * 6
    server.clear()
    push()
    assert server.uploads == [("kim/tiny", last)]
    assert [request.path.rpartition("/")[2] for request in server.requests if request.storage] == [last]
    assert server.files("kim/tiny")["2.bin"] == 400_000


def test_a_download_that_broke_off_goes_on(server: HubServer, api: HfApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    api.create_repo("kim/tiny")
    data = os.urandom(1_000_000)
    api.upload_file(repo_id="kim/tiny", path_or_fileobj=data, path_in_repo="model.safetensors")
    server.clear()
    server.cut_next("GET", "filename=model.safetensors", after=600_000)
    assert Path(api.hf_hub_download("kim/tiny", "model.safetensors")).read_bytes() == data
    first, second = [request for request in server.requests if request.storage]
    assert (first.status, first.sent) == (200, 600_000)
    assert (second.status, second.headers["range"], second.sent) == (206, "bytes=600000-", 400_000)
    # Ranges of any kind, also of files in git.
    api.upload_file(repo_id="kim/tiny", path_or_fileobj=b"0123456789", path_in_repo="digits")
    url = f"{server.endpoint}/kim/tiny/resolve/main/digits"
    ranges = {"bytes=2-4": b"234", "bytes=7-": b"789", "bytes=-2": b"89", "bytes=8-99": b"89"}
    for wanted, part in ranges.items():
        answer = get_session().get(url, headers={"Range": wanted})
        assert (answer.status_code, answer.content) == (206, part)
    assert get_session().get(url, headers={"Range": "bytes=10-"}).status_code == 416
    # Addresses of large files are for one file and one purpose.
    location = (
        get_session().head(url.replace("digits", "model.safetensors"), follow_redirects=False).headers["location"]
    )
    assert get_session().get(location).content == data
    assert get_session().put(location, content=b"").status_code == 403
    assert get_session().get(location[:-1] + "x").status_code == 403


def test_failures_to_order(server: HubServer, api: HfApi, tmp_path: Path) -> None:
    api.create_repo("kim/tiny")
    server.fail_next("POST", "/preupload/", status=503, times=2)
    api.upload_file(repo_id="kim/tiny", path_or_fileobj=b"1", path_in_repo="x")
    tries = [request.status for request in server.requests if "/preupload/" in request.path]
    assert tries == [503, 503, 200]
    server.fail_next("POST", "/commit/", status=413, message="This is more than a commit may hold")
    too_large = refusal(lambda: api.upload_file(repo_id="kim/tiny", path_or_fileobj=b"2", path_in_repo="x"), 413)
    assert "more than a commit may hold" in too_large
    # A Hub that is down: what is in the cache is used, and there is one error for what is not.
    path = api.hf_hub_download("kim/tiny", "x")
    server.stop()
    assert api.hf_hub_download("kim/tiny", "x") == path
    with pytest.raises(LocalEntryNotFoundError):
        api.hf_hub_download("kim/tiny", "config.json")
    server.start()
    assert api.model_info("kim/tiny").id == "kim/tiny"


def test_tokens_out_of_place_are_found(server: HubServer, api: HfApi, tmp_path: Path) -> None:
    api.create_repo("kim/tiny")
    assert server.token_leaks("hf_kim") == []
    api.upload_file(repo_id="kim/tiny", path_or_fileobj=b"token: hf_kim", path_in_repo="config.yaml")
    api.upload_file(repo_id="kim/tiny", path_or_fileobj=b"\0hf_kim", path_in_repo="args.bin")
    api.create_tag("kim/tiny", tag="v1", tag_message="by hf_kim")
    get_session().get(f"{server.endpoint}/kim/tiny?token=hf%5Fkim")
    get_session().get(f"{server.storage}/lfs", headers={"Authorization": "Bearer hf_kim"})
    leaks = server.token_leaks("hf_kim")
    for place in (
        "stored file models/kim/tiny/blobs",
        "stored file models/kim/tiny/lfs",
        "body of POST",
        "address",
        "(storage)",
    ):
        assert any(place in leak for leak in leaks), place
    assert server.token_leaks("hf_lee") == []


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ("license: mine", '"license" must be one of'),
        ("language: Korean", '"language" with value "Korean" is not valid'),
        ("tags: [1]", '"tags[0]" must be a string'),
        ("base_model: ./out/run one", '"base_model" with value'),
        ("co2_eq_emissions: {emissions: a lot}", '"co2_eq_emissions.emissions" must be a number'),
        ("model-index: [{name: a}]", '"model-index[0].results" is required'),
        (
            "model-index: [{name: a, results: [{task: {type: t}, dataset: {name: d}, metrics: [{type: m, value: 1}]}]}]",
            '"model-index[0].results[0].dataset.type" is required',
        ),
        (
            "model-index: [{name: a, results: [{task: {}, dataset: {name: d, type: e}, metrics: [{type: m}]}]}]",
            '"model-index[0].results[0].metrics[0].value" is required',
        ),
        ("a: [", "YAML Metadata Error"),
        ("- a", "must be an object"),
    ],
)
def test_metadata_of_cards_is_checked(api: HfApi, metadata: str, problem: str) -> None:
    api.create_repo("kim/tiny")
    with pytest.raises(ValueError, match="Invalid metadata") as error:
        api.upload_file(
            repo_id="kim/tiny", path_or_fileobj=f"---\n{metadata}\n---\n".encode(), path_in_repo="README.md"
        )
    assert problem in str(error.value)


def test_good_metadata_passes(api: HfApi, recwarn: pytest.WarningsRecorder) -> None:
    api.create_repo("kim/tiny")
    index = {
        "task": {"type": "text-generation"},
        "dataset": {"name": "Reviews", "type": "reviews"},
        "metrics": [{"type": "perplexity", "value": 12.5}],
    }
    metadata = {
        "license": "apache-2.0",
        "language": ["ko", "en"],
        "base_model": "kim/base",
        "co2_eq_emissions": {"emissions": 1.5, "source": "estimate"},
        "model-index": [{"name": "tiny", "results": [index]}],
    }
    card = ModelCard(f"---\n{json.dumps(metadata)}\n---\n# Tiny\n")
    card.validate()
    card.push_to_hub("kim/tiny")
    assert not recwarn
    info = api.model_info("kim/tiny")
    assert info.card_data.eval_results[0].metric_value == 12.5
    assert ModelCard.load("kim/tiny").text == card.text
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        api.upload_file(repo_id="kim/tiny", path_or_fileobj=b"# No metadata", path_in_repo="README.md")


def test_as_a_script(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tests" / "hub_server.py"), "--root", str(tmp_path / "hub")]
    with subprocess.Popen(
        [*command, "--user", "kim", "--token", "hf_kim"], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            endpoint = process.stdout.readline().strip()
            server = HubServer(tmp_path / "other", port=int(endpoint.rpartition(":")[2]))  # for its settings
            with server.in_process("hf_kim", home=tmp_path / "home"):
                assert HfApi().create_repo("kim/tiny").endpoint == endpoint
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 0
    # Repositories outlive the server.
    with HubServer(tmp_path / "hub") as server:
        assert set(server.files("kim/tiny")) == {".gitattributes"}


LOAD = """
import sys, torch
import hfgpt
from datasets import Dataset, load_dataset
from transformers import AutoModelForCausalLM
Dataset.from_list([{"text": "하나"}, {"text": "둘"}]).push_to_hub("kim/data", private=True)
assert load_dataset("kim/data", split="train")["text"] == ["하나", "둘"]
model = AutoModelForCausalLM.from_pretrained("kim/tiny", revision="v1").eval()
with torch.no_grad():
    torch.save(model(torch.arange(8)[None]).logits, sys.argv[1])
"""


def test_models_and_datasets_from_other_processes(server: HubServer, api: HfApi, tmp_path: Path) -> None:
    import torch
    from model.tiny_models import make_model

    model = make_model()
    model.push_to_hub("kim/tiny", private=True, max_shard_size="100KB")
    api.create_tag("kim/tiny", tag="v1")
    api.delete_file("config.json", "kim/tiny")
    assert len([name for name in server.files("kim/tiny") if name.endswith(".safetensors")]) > 1
    info = api.model_info("kim/tiny", revision="v1")
    assert info.private and info.safetensors.total == model.num_parameters()
    subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path / "logits.pt")],
        env=server.environment("hf_kim", home=tmp_path / "other"),
        cwd=ROOT,
        check=True,
    )
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "logits.pt"), model(torch.arange(8)[None]).logits)
    assert server.is_private("kim/data", repo_type="dataset")
    assert server.token_leaks("hf_kim") == []
