"""What MindSpore gets wrong, and what is unsafe anywhere, must not enter the code.

``RULES`` are checked over ``research/`` and ``model_utils/`` by reading the syntax trees. The
reasons in full are in docs/framework_traps.md. The tests named ``test_fact_...`` show that the
framework's defect is still there: when one of them fails after an upgrade, its rule (and the
replacement in ``model_utils``) can go.
"""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import mindspore as ms
import mindspore.dataset as ds
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(
    path for folder in ("research", "model_utils") for path in (ROOT / folder).rglob("*.py")
)


class Source:
    """One file: its tree, and the full names behind its imports."""

    def __init__(self, text, path="snippet.py"):
        self.path = str(path)
        self.tree = ast.parse(text)
        self.names = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    first = alias.name.split(".")[0]
                    self.names[alias.asname or first] = alias.name if alias.asname else first
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for alias in node.names:
                    self.names[alias.asname or alias.name] = f"{node.module}.{alias.name}"

    def full_name(self, node):
        """``mindspore.nn.Conv2d`` for ``nn.Conv2d`` or ``Conv2d``, however imported; else ""."""
        parts = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name) or node.id not in self.names:
            return ""
        return ".".join([self.names[node.id], *reversed(parts)])

    def uses(self):
        """(full name, node) of every import, attribute and name."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((alias.name, node) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)
            elif isinstance(node, ast.Attribute):
                yield self.full_name(node), node

    def calls(self):
        """(full name, keyword arguments, node) of every call."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call):
                keywords = {word.arg: word.value for word in node.keywords}
                yield self.full_name(node.func), keywords, node


Check = Callable[[Source], Iterator[ast.AST]]


@dataclass(frozen=True)
class Rule:
    """A check with the reason it gives; ``bad`` are snippets it must refuse, ``good`` not."""

    name: str
    reason: str
    check: Check
    bad: tuple[str, ...]
    good: tuple[str, ...] = ()


def never(*names: str) -> Check:
    """Refuse uses of these full names (a trailing dot: everything below)."""

    def check(source):
        for used, node in source.uses():
            if any(
                used == name or (name[-1] == "." and f"{used}.".startswith(name)) for name in names
            ):
                yield node

    return check


def constant(node):
    return node.value if isinstance(node, ast.Constant) else None


def output_padding(source):
    for name, keywords, node in source.calls():
        if name == "mindspore.nn.Conv2dTranspose" and "output_padding" in keywords:
            yield node


def implicit_pad_mode(source):
    for name, keywords, node in source.calls():
        layers = ("Conv1d", "Conv2d", "Conv3d", "Conv2dTranspose", "Conv3dTranspose")
        if name in [f"mindspore.nn.{layer}" for layer in layers] and "pad_mode" not in keywords:
            yield node


def bytecode_capture(source):
    for _, keywords, node in source.calls():
        if constant(keywords.get("capture_mode")) == "bytecode":
            yield node


def nesterov_momentum(source):
    for name, keywords, node in source.calls():
        if name == "mindspore.nn.Momentum" and constant(keywords.get("use_nesterov")) is not False:
            if "use_nesterov" in keywords:
                yield node


def iterators_in_loops(source):
    loops = (ast.For, ast.While, ast.ListComp, ast.GeneratorExp, ast.SetComp, ast.DictComp)
    for loop in ast.walk(source.tree):
        if not isinstance(loop, loops):
            continue
        # "for batch in data.create_dict_iterator()" makes one: only what repeats counts.
        parts = loop.body if isinstance(loop, (ast.For, ast.While)) else [loop]
        for node in (inner for part in parts for inner in ast.walk(part)):
            if isinstance(node, ast.Attribute) and node.attr in (
                "create_dict_iterator",
                "create_tuple_iterator",
            ):
                yield node


def moxing_import(source):
    if Path(source.path).name == "moxing_adapter.py":
        return
    yield from never("moxing.")(source)
    for name, _, node in source.calls():
        named = node.args and constant(node.args[0])
        if name == "importlib.import_module" and str(named).split(".")[0] == "moxing":
            yield node


def path_edits(source):
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if source.full_name(node.func.value) == "sys.path":
                yield node
        elif isinstance(node, (ast.Assign, ast.AugAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                inner = target.value if isinstance(target, ast.Subscript) else target
                if source.full_name(inner) == "sys.path":
                    yield node


def bare_except(source):
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield node


def guards_names(node):
    methods = {part.name: part for part in node.body if isinstance(part, ast.FunctionDef)}
    return "find_class" in methods and not any(
        isinstance(part, ast.Name) and part.id == "super"
        for part in ast.walk(methods["find_class"])
    )


def unsafe_loading(source):
    loaders = [
        f"{module}.{name}"
        for module in ("pickle", "_pickle", "dill", "cloudpickle", "marshal", "joblib")
        for name in ("load", "loads", "Unpickler")
    ]
    # An unpickler that looks up every name itself, and asks nobody else, runs nothing foreign.
    guarded = {
        base
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ClassDef) and guards_names(node)
        for base in node.bases
    }
    yield from (node for node in never(*loaders)(source) if node not in guarded)
    for name, keywords, node in source.calls():
        if name == "torch.load" and constant(keywords.get("weights_only")) is not True:
            yield node
        elif name.startswith("numpy") and "allow_pickle" in keywords:
            if constant(keywords["allow_pickle"]) is not False:
                yield node


def unsafe_yaml(source):
    safe = {"yaml.SafeLoader", "yaml.CSafeLoader"}
    own = {
        node.name
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ClassDef)
        and any(source.full_name(base) in safe for base in node.bases)
    }
    for name, keywords, node in source.calls():
        if name in ("yaml.load", "yaml.load_all"):
            loader = keywords.get("Loader", node.args[1] if len(node.args) > 1 else None)
            by_name = isinstance(loader, ast.Name) and loader.id in own
            if not by_name and (loader is None or source.full_name(loader) not in safe):
                yield node
        elif name in ("yaml.unsafe_load", "yaml.full_load", "yaml.unsafe_load_all"):
            yield node


MS = "import mindspore as ms\nfrom mindspore import nn, ops\n"

RULES = (
    Rule(
        "constant-padding",
        "its gradient is wrong from the second graph-mode run on; use layers.zero_pad",
        never(
            "mindspore.ops.pad",
            "mindspore.ops.function.pad",
            "mindspore.ops.function.nn_func.pad",
            "mindspore.ops.functional.pad",
            "mindspore.ops.PadV3",
            "mindspore.nn.ZeroPad2d",
            "mindspore.nn.ConstantPad1d",
            "mindspore.nn.ConstantPad2d",
            "mindspore.nn.ConstantPad3d",
        ),
        (
            MS + "y = ops.pad(x, (1, 1))",
            MS + "y = ms.ops.pad(x, (1, 1))",
            "from mindspore.ops import pad",
            "from mindspore.ops import function as F\ny = F.pad(x, (1, 1))",
            MS + "layer = nn.ZeroPad2d(1)",
            "from mindspore.nn import ConstantPad2d",
        ),
        (MS + "layer = nn.Pad(((0, 0), (1, 1)))", "import numpy as np\ny = np.pad(x, 1)"),
    ),
    Rule(
        "output-padding",
        "Conv2dTranspose(output_padding=) appends zeros; use layers.conv_transpose2d",
        output_padding,
        (MS + "nn.Conv2dTranspose(1, 1, 3, 2, output_padding=1)",),
        (
            MS + "nn.Conv2dTranspose(1, 1, 3, 2, pad_mode='pad', padding=(1, 0, 1, 0))",
            "from torch import nn\nnn.ConvTranspose2d(1, 1, 3, 2, output_padding=1)",
        ),
    ),
    Rule(
        "implicit-pad-mode",
        "MindSpore's default padding is 'same'; name pad_mode or use layers.conv2d",
        implicit_pad_mode,
        (MS + "nn.Conv2d(1, 1, 3)", MS + "nn.Conv3d(1, 1, 3, padding=1)"),
        (MS + "nn.Conv2d(1, 1, 3, pad_mode='pad')", "from torch import nn\nnn.Conv2d(1, 1, 3)"),
    ),
    Rule(
        "mint",
        "most of mindspore.mint is missing on CPU and its optimizers do nothing; use ops and nn",
        never("mindspore.mint."),
        (
            "from mindspore import mint",
            "import mindspore.mint.nn as mnn",
            "from mindspore.mint import optim",
            MS + "y = ms.mint.matmul(a, b)",
        ),
    ),
    Rule(
        "bytecode-capture",
        "jit(capture_mode='bytecode') returns stale values after a few closures; use Cells",
        bytecode_capture,
        (MS + "@ms.jit(capture_mode='bytecode')\ndef f(x):\n    return x",),
        (MS + "@ms.jit(capture_mode='ast')\ndef f(x):\n    return x",),
    ),
    Rule(
        "log-softmax",
        "off by 3 to 4e-6 on CPU; use logits - ops.logsumexp(logits, axis, True)",
        never("mindspore.ops.log_softmax", "mindspore.ops.LogSoftmax", "mindspore.nn.LogSoftmax"),
        (
            MS + "ops.log_softmax(x, axis=1)",
            MS + "layer = nn.LogSoftmax(1)",
            "from mindspore.ops import log_softmax",
        ),
        ("import torch\ntorch.log_softmax(x, 1)", MS + "x - ops.logsumexp(x, 1, True)"),
    ),
    Rule(
        "interpolate",
        "breaks MINDIR files with dynamic sizes; use ops.ResizeBilinearV2 with computed sizes",
        never("mindspore.ops.interpolate", "mindspore.nn.Upsample"),
        (MS + "ops.interpolate(x, scale_factor=2.0)", "from mindspore.nn import Upsample"),
    ),
    Rule(
        "missing-norms",
        "not on CPU; use mean and variance, or distributed.SyncBatchNorm",
        never(
            "mindspore.nn.InstanceNorm1d",
            "mindspore.nn.InstanceNorm2d",
            "mindspore.nn.InstanceNorm3d",
            "mindspore.nn.SyncBatchNorm",
        ),
        (MS + "nn.InstanceNorm2d(3)", "from mindspore.nn import SyncBatchNorm"),
        ("from model_utils.distributed import SyncBatchNorm",),
    ),
    Rule(
        "repeated-iterators",
        "every new iterator repeats the first epoch's order and random numbers; use data.Loader",
        iterators_in_loops,
        (
            "for epoch in range(9):\n    for batch in data.create_dict_iterator():\n        pass",
            "while True:\n    it = data.create_tuple_iterator()",
            "[list(data.create_tuple_iterator()) for _ in range(2)]",
        ),
        ("for batch in data.create_dict_iterator(num_epochs=9):\n    pass",),
    ),
    Rule(
        "framework-dropout",
        "its random state is in no checkpoint, so no run can be resumed; use layers.Dropout",
        never(
            "mindspore.nn.Dropout",
            "mindspore.nn.Dropout1d",
            "mindspore.nn.Dropout2d",
            "mindspore.nn.Dropout3d",
            "mindspore.ops.dropout",
            "mindspore.ops.dropout2d",
            "mindspore.ops.Dropout",
        ),
        (MS + "nn.Dropout(p=0.3)", MS + "ops.dropout(x, 0.3)"),
        ("from torch import nn\nnn.Dropout(0.3)", "from model_utils.layers import Dropout"),
    ),
    Rule(
        "other-optimizers",
        "another update than every publication's; use nn.Adam or nn.SGD",
        never("mindspore.nn.AdamWeightDecay", "mindspore.nn.RMSProp"),
        (MS + "nn.AdamWeightDecay(p)", MS + "nn.RMSProp(p)"),
    ),
    Rule(
        "nesterov-momentum",
        "nn.Momentum(use_nesterov=True) is another update than PyTorch's; use nn.SGD(nesterov=)",
        nesterov_momentum,
        (MS + "nn.Momentum(p, 0.1, 0.9, use_nesterov=True)",),
        (MS + "nn.Momentum(p, 0.1, 0.9)", MS + "nn.SGD(p, 0.1, 0.9, nesterov=True)"),
    ),
    Rule(
        "moxing",
        "MoXing exists in ModelArts only; go through model_utils.moxing_adapter",
        moxing_import,
        (
            "import moxing as mox",
            "from moxing import file",
            "import importlib\nimportlib.import_module('moxing.file')",
        ),
    ),
    Rule(
        "path-edits",
        "imports then depend on who was imported first; install the project (pip install -e .)",
        path_edits,
        (
            "import sys\nsys.path.insert(0, '.')",
            "from sys import path\npath.append('.')",
            "import sys\nsys.path += ['.']",
            "import sys\nsys.path[0] = '.'",
        ),
        ("import sys\nprint(sys.path)",),
    ),
    Rule(
        "bare-except",
        "it hides interrupts and typing errors; name the exceptions",
        bare_except,
        ("try:\n    f()\nexcept:\n    pass",),
        ("try:\n    f()\nexcept ValueError:\n    pass",),
    ),
    Rule(
        "unsafe-loading",
        "pickled data runs code when loaded; use weights_only=True, allow_pickle=False",
        unsafe_loading,
        (
            "import pickle\npickle.load(stream)",
            "from pickle import loads",
            "import joblib\njoblib.load('x')",
            "import torch\ntorch.load('x.pth')",
            "import torch\ntorch.load('x.pth', weights_only=False)",
            "import numpy as np\nnp.load('x.npz', allow_pickle=True)",
            "import numpy as np\nnp.load('x.npz', allow_pickle=flag)",
            "import pickle\nclass Mine(pickle.Unpickler):\n    pass",
            "import pickle\nclass Mine(pickle.Unpickler):\n"
            "    def find_class(self, module, name):\n"
            "        return super().find_class(module, name)",
        ),
        (
            "import torch\ntorch.load('x.pth', weights_only=True)",
            "import pickle\ntry:\n    f()\nexcept pickle.UnpicklingError:\n    pass",
            "import pickle\nclass Mine(pickle.Unpickler):\n"
            "    def find_class(self, module, name):\n        return ALLOWED[module, name]",
            "import numpy as np\nnp.load('x.npz')",
            "import numpy as np\nnp.load('x.npz', allow_pickle=False)",
        ),
    ),
    Rule(
        "unsafe-yaml",
        "yaml.load builds any object; use safe_load or a Loader derived from SafeLoader",
        unsafe_yaml,
        (
            "import yaml\nyaml.load(text)",
            "import yaml\nyaml.load(text, Loader=yaml.Loader)",
            "import yaml\nyaml.unsafe_load(text)",
            "import yaml\nclass Mine(yaml.Loader): pass\nyaml.load(text, Loader=Mine)",
        ),
        (
            "import yaml\nyaml.safe_load(text)",
            "import yaml\nyaml.load(text, Loader=yaml.SafeLoader)",
            "import yaml\nclass Mine(yaml.SafeLoader): pass\nyaml.load_all(text, Loader=Mine)",
        ),
    ),
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_code_keeps_the_rule(rule):
    assert len(SOURCES) > 20
    found = []
    for path in SOURCES:
        source = Source(path.read_text(encoding="utf-8"), path.relative_to(ROOT))
        lines = sorted({node.lineno for node in rule.check(source)})
        found += [f"{source.path}:{line}" for line in lines]
    assert not found, f"{', '.join(found)}: {rule.name}: {rule.reason}"


@pytest.mark.parametrize(
    ("rule", "snippet"),
    [
        pytest.param(rule, text, id=f"{rule.name}-{i}")
        for rule in RULES
        for i, text in enumerate(rule.bad)
    ],
)
def test_rule_refuses(rule, snippet):
    assert list(rule.check(Source(snippet)))


@pytest.mark.parametrize(
    ("rule", "snippet"),
    [
        pytest.param(rule, text, id=f"{rule.name}-{i}")
        for rule in RULES
        for i, text in enumerate(rule.good)
    ],
)
def test_rule_allows(rule, snippet):
    assert not list(rule.check(Source(snippet)))


def test_moxing_adapter_may_import_moxing():
    assert not list(moxing_import(Source("import moxing", "model_utils/moxing_adapter.py")))


def test_every_rule_is_explained():
    text = (ROOT / "docs" / "framework_traps.md").read_text(encoding="utf-8")
    assert [rule.name for rule in RULES if f"`{rule.name}`" not in text] == []


# The framework's defects, still there.


class PadGradient(nn.Cell):
    def __init__(self):
        super().__init__()
        self.differentiate = ms.grad(self.weighted)

    def weighted(self, x, weight):
        return (ops.pad(x, (1, 1, 1, 1)) * weight).sum()

    def construct(self, x, weight):
        return self.differentiate(x, weight)


def test_fact_constant_padding_has_a_wrong_gradient_in_later_runs():
    cell = PadGradient()
    right = []
    # Two runs and no more: later ones may read so much garbage that they never end.
    for seed in range(2):
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((2, 3, 8, 8)).astype(np.float32)
        weight = rng.standard_normal((2, 3, 10, 10)).astype(np.float32)
        found = cell(Tensor(x), Tensor(weight)).asnumpy()
        right.append(np.allclose(found, weight[:, :, 1:-1, 1:-1]))
    assert right[0]
    assert not right[1], "ops.pad is repaired: drop the rule constant-padding"


def test_fact_output_padding_appends_zeros():
    layer = nn.Conv2dTranspose(1, 1, 3, 2, pad_mode="pad", padding=1, output_padding=1)
    layer.weight.set_data(Tensor(np.ones((1, 1, 3, 3), np.float32)))
    found = layer(Tensor(np.ones((1, 1, 4, 4), np.float32))).asnumpy()[0, 0]
    # The last row of the definition is a whole kernel row's worth, not zero.
    assert (found[-1] == 0).all(), "output_padding is repaired: drop the rule output-padding"


@pytest.mark.parametrize("layer", [ops.log_softmax, nn.LogSoftmax(1), ops.LogSoftmax(1)])
def test_fact_log_softmax_is_inaccurate(layer):
    x = np.random.default_rng(0).uniform(0, 5, (6, 6)).astype(np.float32)
    wide = x.astype(np.float64)
    exact = wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
    error = np.abs(layer(Tensor(x)).asnumpy() - exact).max()
    by_hand = (Tensor(x) - ops.logsumexp(Tensor(x), 1, True)).asnumpy()
    assert np.abs(by_hand - exact).max() < 0.75 * error
    assert error > 2e-6, "log_softmax is repaired: drop the rule log-softmax"


def test_fact_new_iterators_repeat_the_order():
    data = ds.GeneratorDataset(list(range(50)), ["x"], shuffle=True)
    ms.dataset.config.set_seed(3)
    orders = []
    for _ in range(2):
        orders.append(
            [int(x) for (x,) in data.create_tuple_iterator(num_epochs=1, output_numpy=True)]
        )
    assert orders[0] != sorted(orders[0])
    assert orders[0] == orders[1], "iterators reshuffle: drop the rule repeated-iterators"


def test_fact_mint_lacks_convolution():
    from mindspore import mint

    x = Tensor(np.ones((1, 1, 4, 4), np.float32))
    layer = mint.nn.Conv2d(1, 1, 3)
    with pytest.raises(RuntimeError):
        layer(x).asnumpy()
