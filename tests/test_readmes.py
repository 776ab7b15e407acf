"""The READMEs against the code: every key, script, module and configuration; links; figures."""

import re
from pathlib import Path

import pytest

from model_utils.config import entries
from model_utils.entry import load_config
from model_utils.task import find_task, known_networks

ROOT = Path(__file__).resolve().parents[1]
LANGUAGES = {"README.md": "empty", "README_CN.md": "空"}
KEY_TABLES = (["key", "default"], ["参数", "默认值"])
NETWORKS = [name for name in known_networks() if (ROOT / "research" / name / "README.md").is_file()]
PAGES = [ROOT, *(ROOT / "research" / name for name in NETWORKS)]
every_page = pytest.mark.parametrize("folder", PAGES, ids=["root", *NETWORKS])
every_language = pytest.mark.parametrize("name", LANGUAGES)
every_network = pytest.mark.parametrize("network", NETWORKS)


def text_of(folder, name):
    return (folder / name).read_text(encoding="utf-8")


def key_rows(text):
    """Cells of the key tables by key."""
    rows, inside = {}, False
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
        inside = len(cells) == 4 and (inside or cells[:2] in KEY_TABLES)
        if inside and re.fullmatch(r"`[a-z_.0-9]+`", cells[0]):
            key = cells[0].strip("`")
            assert key not in rows, f"{key} has two rows"
            rows[key] = cells
    return rows


def keys_of(network):
    return {e.path: e for e in entries(load_config(find_task(network), "train", []))}


@every_network
@every_language
def test_every_key_has_a_row_with_its_other_spellings(network, name):
    rows = key_rows(text_of(ROOT / "research" / network, name))
    keys = keys_of(network)
    assert not keys.keys() - rows.keys(), "keys without a row"
    for path, entry in keys.items():
        spellings = set(re.findall(r"`([^`]+)`", rows[path][2]))
        aliases = {alias.rpartition(":")[2] for alias in entry.field.metadata.get("aliases", ())}
        tail = path.rpartition(".")[2]
        assert aliases - {tail} <= spellings | {path, tail}, path
        choices = {f"`{choice}`" for choice in entry.field.metadata.get("choices") or ()}
        assert choices <= set(re.findall(r"`[^`]+`", rows[path][3])), path


@every_network
@every_language
def test_the_rows_give_the_defaults_and_no_unknown_keys(network, name):
    rows = key_rows(text_of(ROOT / "research" / network, name))
    keys = keys_of(network)
    for path, (_, shown, _, _) in rows.items():
        assert path in keys, f"{path} is no key"
        value = keys[path].default
        if path == "output_path" or value == "":
            expected = LANGUAGES[name]
        elif isinstance(value, bool):
            expected = f"`{str(value).lower()}`"
        elif isinstance(value, list):
            # A long list may be described instead, by its length.
            expected = f"`[{', '.join(str(part) for part in value)}]`"
            if len(value) > 8 and re.match(rf"{len(value)}\b", shown):
                continue
        else:
            expected = f"`{value}`"
        assert shown == expected, path


@every_network
@every_language
def test_scripts_modules_and_configurations_are_listed(network, name):
    folder = ROOT / "research" / network
    text = text_of(folder, name)
    files = [*folder.glob("*.py"), *folder.glob("src/**/*.py")]
    files += [*folder.glob("scripts/*.sh"), *folder.glob("docker/*.sh")]
    files += (ROOT / "configs" / network).glob("*.yaml")
    # An __init__.py is only worth a line at the top.
    wanted = {file.name for file in files if file.name != "__init__.py"}
    listed = set(re.findall(r"[\w.-]+\.(?:py|sh|yaml)\b", text))
    assert not wanted - listed
    # Files that the tree promises exist.
    tree = next(block for block in re.findall(r"```text\n(.*?)```", text, re.S) if "src/" in block)
    promised = set(re.findall(r"[\w.-]+\.(?:py|sh|yaml)\b", tree))
    shared = {file.name for file in (ROOT / "configs" / "base").glob("*.yaml")}
    assert not promised - wanted - shared - {"__init__.py"}


def anchors(text):
    """What GitHub names the headings of a page."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        found.add(re.sub(r"[^\w\- ]", "", plain).replace(" ", "-"))
    return found


@every_page
@every_language
def test_links_lead_somewhere(folder, name):
    text = re.sub(r"```.*?```", "", text_of(folder, name), flags=re.S)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert links
    for link in links:
        if re.match(r"https?:", link):
            continue
        file, _, anchor = link.partition("#")
        target = folder / file if file else folder / name
        assert target.is_file(), f"{link}: no such file"
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{link}: no such heading"


def figures(line):
    # Those that a translation keeps as they are: 78.6, 583,180, 2.6e-7.
    return sorted(re.findall(r"\d+(?:,\d{3})+|\d+\.\d+(?:e-?\d+)?|\d+e-\d+", line))


@every_page
def test_both_languages_give_the_same_figures_in_their_tables(folder):
    def tables(name):
        text = re.sub(r"```.*?```", "", text_of(folder, name), flags=re.S)
        return [line for line in text.splitlines() if line.startswith("|")]

    english, chinese = tables("README.md"), tables("README_CN.md")
    assert len(english) == len(chinese)
    for first, second in zip(english, chinese, strict=True):
        assert figures(first) == figures(second), f"{first}\n{second}"


def test_a_translated_document_keeps_blocks_code_and_figures():
    english, chinese = (text_of(ROOT / "docs", name) for name in ("scenes.md", "scenes_CN.md"))
    blocks = [re.findall(r"```.*?```", text, re.S) for text in (english, chinese)]
    assert blocks[0] == blocks[1]
    plain = [re.sub(r"```.*?```", "", text, flags=re.S) for text in (english, chinese)]
    code = [sorted(" ".join(c.split()) for c in re.findall(r"`([^`]+)`", p)) for p in plain]
    assert set(code[0]) == set(code[1])
    assert len(anchors(english)) == len(anchors(chinese))
    assert figures(english) == figures(chinese)
    assert "(scenes_CN.md)" in english and "(scenes.md)" in chinese
