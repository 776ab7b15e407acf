import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from model_utils import config as configuration
from model_utils.config import group, key, load, to_dict
from model_utils.errors import UserError
from model_utils.task import find_task, known_networks


@dataclass
class Inner:
    lr: float = key(0.1, "rate", "lr", minimum=0)
    name: str = key("adam", "rule", choices=("adam", "sgd"), synonyms={"plain_sgd": "sgd"})
    steps: list[float] = key([], "shares")


@dataclass
class Outer:
    epochs: int = key(3, "passes", "epochs", minimum=1)
    rows: int = key(0, "rows", "export:height")
    crop: int = key(7, "rows of a crop", "height")
    flip: bool = key(False, "mirror")
    limit: float | None = key(None, "bound")
    data_url: str = key("", "where", environment=True)
    enable_modelarts: bool = key(False, "cloud")
    optimizer: Inner = group(Inner)
    second: Inner = group(Inner, lr=0.5)
    decay: float = key(0.9, "share kept", minimum=0, below=1)

    SPELLINGS = {"max_epoch": "epochs", "rule": "optimizer.name"}
    SWITCHES = {"mirrored": ("flip", "true"), "sgd": ("rule", "plain_sgd")}
    LEGACY = {"lr_decay": "was never read"}


def read(*argv, command="train", **more):
    return load(Outer(), argv, command=command, **more)


def write(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_every_source_in_its_rank(tmp_path, monkeypatch):
    write(tmp_path, "base.yaml", "epochs: 5\noptimizer: {lr: 0.2, name: sgd}\ndata_url: file\n")
    write(tmp_path, "net.yaml", "base: base\noptimizer:\n  lr: 0.3\n")
    monkeypatch.setenv("data_url", "environment")
    config = read("--config_path", "net", "--epochs=9", folders=[tmp_path])
    assert (config.epochs, config.optimizer.lr, config.optimizer.name) == (9, 0.3, "sgd")
    assert config.data_url == "environment"
    assert read("--data_url=line").data_url == "line"
    assert config.second.lr == 0.5


def test_a_later_spelling_of_the_same_key_wins(tmp_path):
    write(tmp_path, "a.yaml", "optimizer.lr: 0.2\n")
    write(tmp_path, "b.yaml", "lr: 0.7\n")
    write(tmp_path, "net.yaml", "base: [a, b]\noptimizer: {lr: 0.9}\n")
    assert read("--config_path=net", folders=[tmp_path]).optimizer.lr == 0.9


def test_flags_of_other_implementations(tmp_path, capsys):
    config = read("--max_epoch", "8", "--mirrored", "--rule", "torch.optim.Plain_SGD")
    assert (config.epochs, config.flip, config.optimizer.name) == (8, True, "sgd")
    assert read("--sgd", "--epochs=4").optimizer.name == "sgd"
    assert read("--sgd=false").optimizer.name == "adam"
    write(tmp_path, "net.yaml", "max_epoch: 6\nsgd: true\n")
    assert read("--config_path=net", folders=[tmp_path]).epochs == 6
    with pytest.raises(UserError, match="rule=torch.optim.Other is not one of adam, sgd"):
        read("--rule=torch.optim.Other")
    with pytest.raises(UserError, match="mirrored='maybe' is not a boolean"):
        read("--mirrored=maybe")
    with pytest.raises(SystemExit):
        read("--help")
    text = capsys.readouterr().out
    assert "also --epochs, --max_epoch" in text or "also --max_epoch" in text
    assert "--sgd (the same as --rule=plain_sgd)" in text


@pytest.mark.parametrize(
    ("text", "value"), [("1e-6", 1e-6), ("-2E+3", -2000.0), ("1.5e-4", 1.5e-4), ("7", 7.0)]
)
def test_numbers_are_numbers_in_yaml_and_on_the_command_line(tmp_path, text, value):
    write(tmp_path, "net.yaml", f"limit: {text}\n")
    assert read("--config_path=net", folders=[tmp_path]).limit == value
    assert read(f"--limit={text}").limit == value


@pytest.mark.parametrize("text", ["True", "true", "YES", "on", "1"])
def test_booleans_in_any_usual_spelling(tmp_path, text):
    assert read(f"--flip={text}").flip is True
    assert read("--flip", text).flip is True
    write(tmp_path, "net.yaml", f"flip: {text}\n")
    assert read("--config_path=net", "--epochs=1", folders=[tmp_path]).flip is True
    assert read("--flip").flip is True
    assert read("--flip=False").flip is False and read("--flip=0").flip is False


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--optimizer.le=1", ["unknown key 'optimizer.le'", "'optimizer.lr'"]),
        ("--epoch=1", ["'epoch'", "'epochs'"]),
        ("--learning=1", ["unknown key"]),
        ("--epochs=2.5", ["epochs='2.5'", "integer"]),
        ("--epochs=two", ["epochs='two'", "integer"]),
        ("--epochs=0", ["epochs=0", "at least 1"]),
        ("--lr=nan", ["lr=nan is not a finite number"]),
        ("--lr=inf", ["lr=inf is not a finite number"]),
        ("--limit=-Infinity", ["limit=-Infinity is not a finite number"]),
        ("--epochs=inf", ["epochs=inf is not a finite number"]),
        ("--lr=1e999", ["lr=1e999 is not a finite number"]),
        ("--decay=1", ["decay=1.0 must be below 1"]),
        ("--optimizer.steps=[0.5,", ["optimizer.steps='[0.5,'", "a list of numbers"]),
        ("--optimizer.steps=[2026-02-31]", ["optimizer.steps='[2026-02-31]'", "a list"]),
        ("--optimizer.steps=0.5,nan", ["optimizer.steps=nan is not a finite number"]),
        ("--lr=-1", ["lr=-1", "at least 0"]),
        ("--flip=maybe", ["flip='maybe'", "boolean"]),
        ("--optimizer.name=adm", ["adm", "did you mean adam"]),
        ("--epochs", ["needs a value"]),
        ("epochs", ["'epochs' stands alone"]),
    ],
)
def test_a_wrong_flag_is_one_sentence(flag, words):
    with pytest.raises(UserError) as error:
        read(flag)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epochs: [", ["not valid YAML"]),
        ("- 1\n- 2\n", ["must hold keys"]),
        ("epochs: 1\nepochs: 2\n", ["stands twice"]),
        ("x: {<<: {a: 1}, b: 1, b: 2}\n", ["key 'b' stands twice, line 1"]),
        ("base: other\n", ["other does not exist"]),
        ("base: 5\n", ["net.yaml: base=5 is not the name"]),
        ("base: [{a: 1}]\n", ["net.yaml: base={'a': 1} is not the name"]),
        ("? [a, b]\n: 1\n", ["net.yaml is not valid YAML", "unhashable key"]),
        ("limit: 2026-02-31\n", ["net.yaml is not valid YAML"]),
        ("limit: .inf\n", ["limit=inf is not a finite number"]),
        ("optimizer: 5\n", ["unknown key 'optimizer'"]),
        ("base: net\n", ["circle"]),
        ("!!python/object/apply:os.system ['true']", ["not valid YAML"]),
    ],
)
def test_a_wrong_file_is_one_sentence(tmp_path, text, words):
    write(tmp_path, "net.yaml", text)
    with pytest.raises(UserError) as error:
        read("--config_path=net", folders=[tmp_path])
    assert all(word in str(error.value) for word in words)


def test_merge_keys_bring_another_groups_values(tmp_path):
    text = "optimizer: &o\n  lr: 0.2\n  name: sgd\nsecond:\n  <<: *o\n  lr: 0.3\n"
    write(tmp_path, "net.yaml", text)
    config = read("--config_path=net", folders=[tmp_path])
    assert (config.optimizer.lr, config.second.lr) == (0.2, 0.3)
    assert config.optimizer.name == config.second.name == "sgd"


def test_a_group_without_keys_says_nothing(tmp_path):
    write(tmp_path, "base.yaml", "optimizer: {lr: 0.4}\n")
    write(tmp_path, "net.yaml", "base: base\noptimizer:\n  # lr: 0.2\nepochs: 4\n")
    config = read("--config_path=net", folders=[tmp_path])
    assert (config.optimizer.lr, config.epochs) == (0.4, 4)


def test_an_unreadable_file_is_one_sentence(tmp_path, monkeypatch):
    path = write(tmp_path, "net.yaml", "epochs: 2\n")
    # Not by permissions: root may read everything.
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(UserError, match=f"configuration {path} cannot be read"):
        read("--config_path=net", folders=[tmp_path])


def test_decays_of_one_are_refused_and_nesterov_needs_momentum():
    from model_utils.optimizers import OptimizerConfig, build_optimizer

    for name in ("beta1", "beta2", "momentum"):
        with pytest.raises(UserError, match=f"{name}=1.0 must be below 1"):
            load(OptimizerConfig(), [f"--{name}=1"], command="train")
        assert getattr(load(OptimizerConfig(), [f"--{name}=0"], command="train"), name) == 0
    still = OptimizerConfig(name="sgd", nesterov=True, momentum=0.0)
    with pytest.raises(UserError, match="nesterov.*momentum=0.0"):
        build_optimizer(still, [], np.ones(1, np.float32))


def test_missing_configuration_names_the_nearest(tmp_path):
    write(tmp_path, "sentinel.yaml", "epochs: 2\n")
    with pytest.raises(UserError, match="did you mean 'sentinel'"):
        read("--config_path=sentinal", folders=[tmp_path])


def test_aliases_of_a_command_outrank_general_ones():
    assert read("--height=5").crop == 5 and read("--height=5").rows == 0
    exported = read("--height=5", command="export")
    assert exported.rows == 5 and exported.crop == 7


def test_model_zoo_files_of_three_documents_and_dead_keys(tmp_path, capsys):
    write(tmp_path, "net.yaml", "lr: 1e-3\nlr_decay: 1e-6\n---\nlr: help\n---\nlr: [1]\n")
    assert read("--config_path=net", folders=[tmp_path]).optimizer.lr == 1e-3
    assert "'lr_decay' has no effect here (was never read)" in capsys.readouterr().out


def test_clouds_may_add_flags_but_typing_errors_may_not_pass(capsys):
    config = read("--enable_modelarts=True", "--ma_extra=1", "--epochs=4")
    assert config.epochs == 4
    assert "ignoring --ma_extra" in capsys.readouterr().out
    with pytest.raises(UserError, match="ma_extra"):
        read("--ma_extra=1")


def test_help_lists_every_key(capsys):
    with pytest.raises(SystemExit) as stop:
        read("--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for entry in configuration.entries(Outer()):
        assert f"--{entry.path} (" in text
        assert entry.field.metadata["meaning"] in text
    assert "also --lr" in text and "adam|sgd" in text


@given(
    st.builds(
        Outer,
        epochs=st.integers(1, 10**9),
        flip=st.booleans(),
        limit=st.none() | st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False),
        data_url=st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc"))),
        optimizer=st.builds(
            Inner,
            lr=st.floats(0, 1e300, allow_subnormal=False),
            name=st.sampled_from(["adam", "sgd"]),
            steps=st.lists(st.floats(-1e9, 1e9, allow_subnormal=False)),
        ),
    )
)
def test_what_is_saved_is_what_is_read(tmp_path_factory, config):
    path = tmp_path_factory.mktemp("saved") / "config.yaml"
    configuration.save(config, path, "train")
    again = load(Outer(), ["--config_path", str(path)], command="train")
    assert to_dict(again) == to_dict(config)
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["epochs"] == config.epochs


def test_lists_on_the_command_line():
    assert read("--optimizer.steps=0.5,0.75").optimizer.steps == [0.5, 0.75]
    assert read("--optimizer.steps=[0.5, 1e-1]").optimizer.steps == [0.5, 0.1]


def test_every_declared_key_has_a_meaning():
    for field in dataclasses.fields(Outer):
        assert field.metadata.get("meaning") or field.name in ("optimizer", "second")


@pytest.mark.parametrize("network", known_networks())
def test_no_spelling_of_a_network_means_two_keys(network):
    """An alias that two groups claim would silently set only one of them."""
    config = find_task(network).config_class()
    for command in ("train", "eval", "export", "infer", "convert"):
        for qualified in (True, False):
            owner = {}
            for entry in configuration.entries(config):
                for alias in entry.field.metadata.get("aliases", ()):
                    scope, _, name = alias.rpartition(":")
                    if bool(scope) == qualified and scope in ("", command):
                        assert owner.setdefault(name, entry.path) == entry.path, name
