"""`import hfgpt` in fresh interpreters, before and after transformers."""

import json
import pickle

import pytest
from helpers import run


# Loads what takes longest once, without transformers, and forks for each case: prints what each leaves in its `found`.
ORDERS = """
import gc, json, os, sys, traceback
import torch, torch._dynamo, torch.distributed.checkpoint, torch.distributed.tensor, torch.export
import accelerate, huggingface_hub.hf_api, jinja2, PIL.Image, regex, safetensors.torch, scipy.optimize, tokenizers, yaml

assert not {"transformers", "hfgpt"} & set(sys.modules)
cases, check = json.loads(sys.argv[1])
gc.disable()  # a collection would copy the pages that the forks share
for name, code in cases.items():
    read, write = os.pipe()
    if os.fork() == 0:
        try:
            names = {"sys": sys}
            exec(code, names)
            if "found" not in names:
                exec(check, names)
            answer = names["found"]
        except BaseException:
            answer = traceback.format_exc()[-2000:]
        os.write(write, json.dumps(answer).encode())
        sys.stderr.flush()
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        answer = json.loads(file.read())
    os.wait()
    print("FOUND" + json.dumps([name, answer]), flush=True)
"""

CHECK = """
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING
config = AutoConfig.for_model("gpt3", vocab_size=11, hidden_size=8, num_hidden_layers=2, num_attention_heads=2)
classes = (AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification)
import hfgpt, hfgpt.model.configuration_gpt3
found = {
    "classes": [type(config).__name__, *(type(one.from_config(config)).__name__ for one in classes)],
    "same": type(config) is hfgpt.GPT3Config is hfgpt.model.configuration_gpt3.GPT3Config,
    "tokenizer": type(config) in TOKENIZER_MAPPING,
    "traces": [type(finder).__name__ for finder in sys.meta_path if "hfgpt" in type(finder).__module__],
    "loader": type(sys.modules["transformers"].__spec__.loader).__module__,
}
"""

REGISTERED = {
    "transformers after": "import hfgpt, transformers",
    "transformers before": "import transformers, hfgpt",
    "a name of hfgpt": "from hfgpt import GPT3Config",
    "a module of the model": "from hfgpt.model.presets import PRESETS",
    "a module of transformers": "import hfgpt\nfrom transformers.models.auto.modeling_auto import AutoModel",
    "only asked for": """
import hfgpt
from importlib.util import find_spec
assert find_spec("transformers") and find_spec("transformers")
assert "transformers" not in sys.modules
""",
    # As a notebook's autoreload does it.
    "reloaded": """
import hfgpt, importlib
importlib.reload(hfgpt)
assert "transformers" not in sys.modules
import transformers
importlib.reload(hfgpt)
""",
    # Another that watches imports, and asks all finders itself.
    "another finder": """
import hfgpt
class Watcher:
    def find_spec(self, name, path=None, target=None):
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(name, path, target) for finder in others)
        return next((spec for spec in specs if spec is not None), None) if name == "transformers" else None
sys.meta_path.insert(0, Watcher())
""",
    "two threads": """
import hfgpt, threading
threads = [threading.Thread(target=__import__, args=(name,)) for name in ("hfgpt.model", "transformers")]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
""",
}

OTHERS = {
    "light": """
import hfgpt
before = sorted(name for name in sys.modules if name.partition(".")[0] in ("hfgpt", "transformers"))
found = {"before": before, "hidden": sorted(set(hfgpt.__all__) - set(dir(hfgpt))), "version": hfgpt.__version__}
try:
    hfgpt.GPT4Config
except AttributeError as error:
    found["error"] = str(error)
import hfgpt.model
found["missing"] = [name for name in hfgpt.__all__ if not hasattr(hfgpt, name)]
found["ours"] = sorted({name.split(".")[1] for name in sys.modules if name.startswith("hfgpt.")})
heavy = {"datasets", "datatrove", "deepspeed", "matplotlib", "pandas", "peft", "sklearn"}
found["heavy"] = sorted(heavy & set(sys.modules))
""",
    "broken": """
import warnings
sys.modules["hfgpt.model"] = None  # what is None there cannot be imported
import hfgpt
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import transformers
found = [transformers.__name__, [str(one.message) for one in caught if one.category is RuntimeWarning]]
""",
    # As a child process of multiprocessing gets its arguments.
    "unpickled": """
import pickle
config = pickle.loads(bytes.fromhex("CONFIG"))
from transformers import AutoConfig
found = [type(config).__name__, config.hidden_size, type(AutoConfig.for_model("gpt3")) is type(config)]
""",
}


@pytest.fixture(scope="module")
def found():
    """What each case says, by its name."""
    from hfgpt import GPT3Config

    config = pickle.dumps(GPT3Config(hidden_size=8, num_attention_heads=2)).hex()
    cases = {**REGISTERED, **{name: code.replace("CONFIG", config) for name, code in OTHERS.items()}}
    done = run("-W", "error::RuntimeWarning", "-c", ORDERS, json.dumps([cases, CHECK]))
    return dict(json.loads(line[5:]) for line in done.stdout.splitlines() if line.startswith("FOUND"))


@pytest.mark.parametrize("name", REGISTERED)
def test_gpt3_is_registered_whatever_is_imported_first(found, name):
    assert found[name] == {
        "classes": ["GPT3Config", "GPT3Model", "GPT3ForCausalLM", "GPT3ForSequenceClassification"],
        "same": True,
        "tokenizer": True,
        "traces": [],
        "loader": "_frozen_importlib_external",
    }


def test_import_loads_nothing_and_the_model_when_it_is_asked_for(found):
    light = found["light"]
    assert light["before"] == ["hfgpt", "hfgpt.registration", "hfgpt.version"]
    assert light["ours"] == ["model", "registration", "version"]
    assert light["heavy"] == light["missing"] == light["hidden"] == []
    assert light["error"] == "module 'hfgpt' has no attribute 'GPT4Config'"


def test_transformers_can_be_imported_where_the_model_cannot(found):
    name, warnings = found["broken"]
    assert name == "transformers" and len(warnings) == 1 and "gpt3 is not registered" in warnings[0]


def test_a_configuration_can_be_unpickled_in_a_fresh_process(found):
    assert found["unpickled"] == ["GPT3Config", 8, True]


def test_help_loads_nothing_heavy():
    code = """
import sys
from hfgpt.cli import COMMANDS, main
for words in [["--help"], *([name, "--help"] for name in ("prepare", "generate", "evaluate", "convert", "plan", "push"))]:
    try:
        main(words)
    except SystemExit as done:
        assert not done.code
print("HEAVY", *{"torch", "transformers", "numpy", "datasets", "yaml", "asyncio"} & set(sys.modules))
"""
    done = run("-c", code)
    assert done.stdout.splitlines()[-1] == "HEAVY" and done.stdout.count("usage: hfgpt") == 7


def test_a_vocabulary_beside_a_gpt3_config_is_read_as_gpt2s(tmp_path):
    """Files of GPT-2's vocabulary name no tokenizer class."""
    from transformers import AutoTokenizer

    from hfgpt import GPT3Config

    GPT3Config(vocab_size=258).save_pretrained(tmp_path)
    alphabet = [chr(byte) for byte in range(33, 127)] + ["Ġ", "<|endoftext|>", "ab"]
    (tmp_path / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(alphabet)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.tokenize("abc ab") == ["ab", "c", "Ġ", "ab"]
    assert tokenizer.eos_token == "<|endoftext|>"
