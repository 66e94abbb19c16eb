"""Recipes are checked as they are read: what is wrong, where, and what would be right."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

import pytest

from hfgpt.config import from_mapping, read_yaml


class Precision(Enum):
    BF16 = "bf16"
    FP32 = "fp32"


@dataclass
class Optimizer:
    lr: float = field(metadata={"help": "Peak learning rate."})
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    warmup: float | None = None


@dataclass
class Source:
    path: str | list[str] | None = None
    max_rows: int | None = None


@dataclass
class Recipe:
    optimizer: Optimizer = field(metadata={"help": "How to step."})
    hidden_size: int = 8
    tie_weights: bool = True
    precision: Precision = Precision.FP32
    schedule: Literal["cosine", "linear"] = "cosine"
    tag: float | str = 0.0
    where: dict[str, Any] | None = None
    sources: list[Source] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    shares: dict[str, float] | None = None
    total: int = field(init=False, default=0)


def build(**values: Any) -> Recipe:
    return from_mapping(Recipe, {"optimizer": {"lr": 0.1}, **values}, "recipe.yaml")


def message(**values: Any) -> str:
    with pytest.raises(ValueError) as caught:
        build(**values)
    return str(caught.value)


def test_unknown_key_names_the_nearest_known_one():
    assert message(hiden_size=3) == "Unknown key `hiden_size` in recipe.yaml: did you mean `hidden_size`?"


def test_unknown_key_near_nothing_lists_the_known_ones():
    text = message(zzzzzz=3)
    assert "`zzzzzz` in recipe.yaml" in text
    assert all(key in text for key in ("hidden_size", "optimizer", "sources", "where"))


@pytest.mark.parametrize("key", ["total", 7], ids=["computed field", "number as a key"])
def test_key_that_cannot_be_set_is_unknown(key):
    with pytest.raises(ValueError, match=f"Unknown key `{key}` in recipe.yaml"):
        from_mapping(Recipe, {"optimizer": {"lr": 0.1}, key: 1}, "recipe.yaml")


def test_unknown_key_of_a_nested_dataclass_is_placed():
    text = message(optimizer={"lr": 0.1, "betes": [0.9]})
    assert "`betes` in `optimizer` in recipe.yaml" in text
    assert "did you mean `betas`?" in text


def test_wrong_type_in_a_list_of_dataclasses_is_placed():
    text = message(sources=[{"path": "a"}, {"path": "b", "max_rows": "many"}])
    assert "`max_rows` in `sources` in recipe.yaml, item 2 must be int, got str 'many'" in text


def test_unknown_key_of_a_dataclass_in_a_union_is_named():
    @dataclass
    class Outer:
        inner: Optimizer | str | None = None

    with pytest.raises(ValueError, match=r"Unknown key `lrr` in `inner` in r\.yaml: did you mean `lr`\?"):
        from_mapping(Outer, {"inner": {"lrr": 1.0}}, "r.yaml")


@pytest.mark.parametrize(
    ("key", "value", "wanted", "given"),
    [
        ("hidden_size", "eight", "int", "str 'eight'"),
        ("hidden_size", 8.5, "int", "float 8.5"),
        ("hidden_size", None, "int", "NoneType None"),
        ("hidden_size", True, "int", "bool True"),
        ("tie_weights", 1, "bool", "int 1"),
        ("tie_weights", "yes", "bool", "str 'yes'"),
        ("optimizer", 3, "Optimizer", "int 3"),
        ("optimizer", None, "Optimizer", "NoneType None"),
        ("sources", {"path": "a"}, "list[", "dict {'path': 'a'}"),
        ("sources", "a.txt", "list[", "str 'a.txt'"),
        ("where", ["fresh"], "dict[str, Any]", "list ['fresh']"),
        ("tag", [1.5], "float | str", "list [1.5]"),
    ],
)
def test_wrong_type_names_the_given_and_the_allowed(key, value, wanted, given):
    text = message(**{key: value})
    assert text.startswith(f"`{key}` in recipe.yaml must be {wanted}")
    assert text.endswith(f"got {given}.")


@pytest.mark.parametrize("value", [True, "fast", None, [0.1]])
def test_what_is_no_number_is_no_float(value):
    assert "`lr` in `optimizer` in recipe.yaml must be float" in message(optimizer={"lr": value})


def test_wrong_item_of_a_list_is_counted_from_one():
    assert "`betas` in `optimizer` in recipe.yaml, item 2 must be float, got str 'x'" in message(
        optimizer={"lr": 0.1, "betas": [0.9, "x"]}
    )


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [("schedule", "cosin", ["'cosine'", "'linear'"]), ("precision", "fp16", ["'bf16'", "'fp32'"])],
)
def test_wrong_choice_names_the_given_and_the_allowed(key, value, allowed):
    text = message(**{key: value})
    assert f"`{key}` in recipe.yaml" in text
    assert repr(value) in text
    assert all(choice in text for choice in allowed)


def test_choices_are_accepted_by_value():
    recipe = build(schedule="linear", precision="bf16")
    assert (recipe.schedule, recipe.precision) == ("linear", Precision.BF16)


def test_scientific_notation_that_yaml_reads_as_text_becomes_a_float(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("optimizer: {lr: 6e-4, betas: [9e-1, 0.95], warmup: 1e-2}\n")
    values = read_yaml(path)
    assert values["optimizer"]["lr"] == "6e-4"  # if this ever fails, the conversion is not needed any more
    optimizer = from_mapping(Recipe, values, str(path)).optimizer
    assert (optimizer.lr, optimizer.betas, optimizer.warmup) == (6e-4, [0.9, 0.95], 0.01)


def test_conversions_lose_nothing():
    recipe = build(hidden_size=16.0, optimizer={"lr": 1})
    assert type(recipe.hidden_size) is int
    assert recipe.hidden_size == 16
    assert type(recipe.optimizer.lr) is float


@pytest.mark.parametrize("tag", ["6e-4", 6e-4], ids=["text", "number"])
def test_exact_type_of_a_union_wins_over_a_conversion(tag):
    assert type(build(tag=tag).tag) is type(tag)


def test_optional_field_takes_null_and_its_own_type():
    recipe = build(sources=[{"path": None, "max_rows": None}, {"path": ["a", "b"], "max_rows": 3}, {"path": "a"}])
    assert recipe.sources == [Source(None, None), Source(["a", "b"], 3), Source("a", None)]


def test_nested_values_and_defaults_are_kept():
    recipe = build(optimizer={"lr": 0.2}, where={"category": ["fresh"]})
    assert recipe.optimizer == Optimizer(lr=0.2, betas=[0.9, 0.95], warmup=None)
    assert recipe.where == {"category": ["fresh"]}


def read_recipe(tmp_path, text: str) -> Recipe:
    path = tmp_path / "r.yaml"
    path.write_text("optimizer: {lr: 0.1}\n" + text)
    return from_mapping(Recipe, read_yaml(path), "r.yaml")


def test_numbers_as_keys_of_a_mapping_are_texts(tmp_path):
    recipe = read_recipe(tmp_path, 'labels: {0: " no", 1: " yes"}\nshares: {1: 6e-4, b: 1}\nwhere: {2: [true]}')
    assert recipe.labels == {"0": " no", "1": " yes"}
    assert recipe.shares == {"1": 6e-4, "b": 1.0} and type(recipe.shares["b"]) is float
    assert recipe.where == {"2": [True]}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('labels: {no: " no", "yes": " yes"}', "A key of `labels` in r.yaml must be str, got bool False. YAML reads"),
        ('labels: {true: " yes"}', "A key of `labels` in r.yaml must be str, got bool True. YAML reads"),
        ('labels: {"0": no}', "`labels` in r.yaml, `0` must be str, got bool False. YAML reads a plain yes, no"),
        ("shares: {en: 0.5, no: 0.5}", "A key of `shares` in r.yaml must be str, got bool False. YAML reads"),
        ("labels: {a: 1}", "`labels` in r.yaml, `a` must be str, got int 1."),
        ("labels: {1.5: a}", "A key of `labels` in r.yaml must be str, got float 1.5."),
        ("labels: {null: a}", "A key of `labels` in r.yaml must be str, got NoneType None."),
        ("shares: {en: half}", "`shares` in r.yaml, `en` must be float, got str 'half'."),
    ],
)
def test_keys_and_values_of_a_mapping_are_checked(tmp_path, text, wanted):
    with pytest.raises(ValueError, match="must be") as caught:
        read_recipe(tmp_path, text)
    assert str(caught.value).startswith(wanted)
    assert str(caught.value).endswith("put it in quotes." if "bool" in wanted else wanted)


def test_built_dataclass_is_accepted_as_a_value():
    optimizer = Optimizer(lr=0.3)
    assert build(optimizer=optimizer).optimizer is optimizer


def test_required_key_missing_is_named_with_its_help():
    with pytest.raises(ValueError, match=r"`optimizer` is missing in r\.yaml: How to step\."):
        from_mapping(Recipe, {"hidden_size": 8}, "r.yaml")


def test_required_key_missing_in_a_nested_dataclass_is_placed():
    assert "`lr` is missing in `optimizer` in recipe.yaml: Peak learning rate." in message(optimizer={})


def test_what_a_dataclass_itself_refuses_is_placed():
    """With five sources, "`fraction` must be ..." does not say which."""

    @dataclass
    class Inner:
        fraction: float = 0.5

        def __post_init__(self) -> None:
            if self.fraction > 1:
                raise ValueError("`fraction` must be at most 1.")

    @dataclass
    class Outer:
        parts: list[Inner]

    with pytest.raises(ValueError, match="`fraction` must be at most 1") as caught:
        from_mapping(Outer, {"parts": [{"fraction": 1.0}, {"fraction": 2.0}]}, "r.yaml")
    assert "r.yaml" in str(caught.value)
    assert "item 2" in str(caught.value)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="No such file") as caught:
        read_yaml(tmp_path / "absent.yaml")
    assert str(tmp_path / "absent.yaml") in str(caught.value)


def test_folder_in_place_of_a_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="directory"):
        read_yaml(tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"- a\n- b\n", "got a list"),
        (b"just text\n", "got a str"),
        (b"42\n", "got a int"),
        (b"key: [unclosed\n", "not valid YAML"),
        (b"\tkey: tab\n", "not valid YAML"),
        (b"key: \xff\xfe\n", "not valid YAML"),
    ],
)
def test_yaml_that_is_no_mapping_is_refused_by_name(tmp_path, content, reason):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=reason) as caught:
        read_yaml(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "key"),
    [("seed: 1\nwhere: {a: b}\nseed: 2\n", "seed"), ("sources:\n  - {path: a, max_rows: 1, path: b}\n", "path")],
    ids=["top", "nested"],
)
def test_key_given_twice_is_refused(tmp_path, content, key):
    """YAML keeps the last of them: a `where` or a `max_rows` given before it would be ignored without a word."""
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"`{key}` is given twice") as caught:
        read_yaml(path)
    assert str(path) in str(caught.value)


def test_empty_yaml_is_an_empty_mapping(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("# nothing yet\n")
    assert read_yaml(path) == {}


def test_yaml_is_read_as_utf8(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes("name: 한국어\n".encode())
    assert read_yaml(path) == {"name": "한국어"}
