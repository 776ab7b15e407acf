"""SANet's samples: labels, edges and augmentation beside the reference's, layouts, bad input."""

import logging
import pickle
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model_utils.augmentation import (
    Normalisation,
    crop_part,
    pad_part,
    zoom_parts,
    zoomed_size,
)
from model_utils.data import EpochSampler, Loader
from model_utils.distributed import Ranks
from model_utils.errors import UserError
from model_utils.files import read_image, write_image
from model_utils.segmentation import IGNORE, Pair
from research.sanet.src.augment import Augmentation, edge_map
from research.sanet.src.classes import CAMVID, CITYSCAPES, GTAV
from research.sanet.src.config import SANetConfig
from research.sanet.src.dataset import SegmentationDataset, build_dataset, class_table
from research.sanet.src.generator import generate, make_scene
from research.sanet.src.imagenet import ImageFolder, centre, random_resized_crop
from tests.seeded import load_fixture

RNG = np.random.default_rng


@pytest.fixture(scope="module")
def reference():
    return load_fixture("SANet_data")


@pytest.fixture(scope="module")
def cityscapes(tmp_path_factory):
    """A generated Cityscapes that no test changes."""
    folder = tmp_path_factory.mktemp("cityscapes")
    generate(folder, seed=3, train=6, val=2, test=2, height=64, width=128)
    return folder


def config_of(root, form, **keys):
    config = SANetConfig()
    data = config.data
    data.root, data.format = str(root), form
    data.crop_height, data.crop_width, data.base_size = 32, 48, 0
    for key, value in keys.items():
        assert hasattr(data, key)
        setattr(data, key, value)
    return config


def whole(pairs, classes=CITYSCAPES, **keys):
    return SegmentationDataset(pairs, classes, **keys)


# ---------------------------------------------------------------------------------------------
# beside the reference


def test_label_numbers_map_as_in_the_reference(reference):
    description, arrays = reference
    mapping = {int(k): v for k, v in description["values"]["label_mapping"].items()}
    assert len(mapping) == 35
    # 8 bits hold number -1 as 255.
    numbers = np.array([[number % 256 for number in mapping]], np.uint8)
    assert CITYSCAPES.decode(numbers, "").tolist() == [list(mapping.values())]
    assert (
        CITYSCAPES.decode(arrays["map_ids"][None], "").tolist()[0] == arrays["map_train"].tolist()
    )
    inverse = description["values"]["inverse_int64"][:19]
    assert CITYSCAPES.encode_ids(np.arange(19, dtype=np.uint8)).tolist() == inverse


def test_camvid_colours_map_as_in_the_reference(reference):
    values = reference[0]["values"]
    assert CAMVID.colours.tolist() == values["camvid_colors"]
    # Two more colours there: one of CamVid's other 21 classes, and black.
    others = [(192, 0, 128), (0, 0, 0)]
    mask = np.array([values["camvid_colors"] + others], np.uint8)
    assert CAMVID.decode(mask, "").tolist()[0] == values["camvid_color2label"]


def test_edges_equal_the_reference(reference):
    arrays = reference[1]
    assert (edge_map(arrays["label"], frame=6) == arrays["edge_city"]).all()
    assert (edge_map(arrays["label"], frame=0) == arrays["edge_camvid"]).all()
    # One pixel more or less, and they would not.
    assert (edge_map(arrays["label"], frame=5) != arrays["edge_city"]).any()
    assert (edge_map(arrays["label"], frame=0, size=3) != arrays["edge_camvid"]).any()


@pytest.mark.parametrize("case", range(4))
def test_zoom_and_crop_equal_the_reference(reference, case):
    description, arrays = reference
    keys = description["values"][f"aug{case}"]
    image, label = arrays["image_bgr"], arrays["label"]
    size = zoomed_size(image.shape, keys["scale"], keys["base_size"])
    crop = tuple(keys["crop"])
    free = [max(0, have - want) for have, want in zip(size, crop, strict=True)]
    offset = tuple(min(o, f) for o, f in zip(keys["offset_wanted_yx"], free, strict=True))
    parts = zoom_parts(image, label, arrays["edge_city"], size)
    for name, part, filling in zip(("image", "label", "edge"), parts, (0, 255, 0), strict=True):
        result = pad_part(crop_part(part, offset, crop), crop, filling)
        assert (result == arrays[f"aug{case}_{name}"]).all(), name


def test_normalisation_equals_the_reference(reference):
    arrays = reference[1]
    image = arrays["image_bgr"]
    rgb = np.ascontiguousarray(image[..., ::-1])
    for given_image, name in ((rgb, "norm_city"), (image, "norm_camvid_rgb_input")):
        result = Normalisation()(given_image)
        assert result.dtype == np.float32 and result.flags.c_contiguous
        np.testing.assert_allclose(result[:, ::2, ::2], arrays[name], rtol=0, atol=1e-6)


def test_the_default_zooms_are_the_references(cityscapes):
    # 0.5 + randint(0, 16) / 10, both ends included.
    config = config_of(cityscapes, "cityscapes")
    zooms = build_dataset(config, "train").augmentation.zooms
    np.testing.assert_allclose(zooms, [0.5 + k / 10 for k in range(17)])


# ---------------------------------------------------------------------------------------------
# augmentation


def marked(height, width):
    """An image whose red and green name row and column, its label the row, edges the column."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    return np.stack([rows, columns, rows ^ columns], 2), rows % 19, columns % 2


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40),
       st.integers(0, 2**32 - 1))  # fmt: skip
def test_image_label_and_edges_stay_together(height, width, rows, columns, seed):
    parts = marked(height, width)
    out, label, edge = Augmentation((rows, columns), flip=False)(*parts, RNG(seed))
    assert out.shape == (rows, columns, 3) and label.shape == edge.shape == (rows, columns)
    inside = np.zeros((rows, columns), bool)
    inside[: min(rows, height), : min(columns, width)] = True
    assert (label[inside] == out[..., 0][inside] % 19).all()
    assert (edge[inside] == out[..., 1][inside] % 2).all()
    assert (out[..., 2] == out[..., 0] ^ out[..., 1]).all()
    assert (label[~inside] == IGNORE).all()
    assert not out[~inside].any() and not edge[~inside].any()
    mirrored = Augmentation((rows, columns), flip=True)(*parts, RNG(seed))
    straight = all((a == b).all() for a, b in zip(mirrored, (out, label, edge), strict=True))
    assert straight or all(
        (a[:, ::-1] == b).all() for a, b in zip(mirrored, (out, label, edge), strict=True)
    )


def test_every_offset_and_mirroring_occurs_equally_often():
    parts = marked(8, 8)
    seen = np.zeros((4, 3, 2), int)
    for seed in range(2400):
        out = Augmentation((5, 6))(*parts, RNG(seed))[0]
        seen[out[..., 0].min(), out[..., 1].min(), int(out[0, 0, 1] > out[0, 1, 1])] += 1
    # 100 +- 10 each; five deviations.
    assert seen.min() > 50 and seen.max() < 150


def test_every_zoom_occurs_equally_often():
    parts = marked(8, 8)
    augmentation = Augmentation((16, 16), base_size=8, zooms=(0.5, 1.0, 2.0))
    sizes = [int((augmentation(*parts, RNG(s))[1] != IGNORE).sum()) for s in range(900)]
    found, counts = np.unique(sizes, return_counts=True)
    assert found.tolist() == [16, 64, 256]
    assert counts.min() > 230  # 300 +- 14


def test_the_same_generator_gives_the_same_sample():
    parts = marked(20, 30)
    augmentation = Augmentation((9, 9), 30, (0.5, 1.3), True, 0.2, 0.2, 0.2)
    first, again, other = (augmentation(*parts, RNG(seed)) for seed in (1, 1, 2))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert any((a != b).any() for a, b in zip(first, other, strict=True))


def test_colour_changes_leave_labels_and_padding_alone():
    image, label, edge = marked(20, 30)
    image = image * 6 + 20
    plain = Augmentation((25, 30), flip=False)(image, label, edge, RNG(0))
    changes = {"brightness": 0.3, "contrast": 0.5, "saturation": 0.5}
    for name, amount in changes.items():
        changed = Augmentation((25, 30), flip=False, **{name: amount})(image, label, edge, RNG(0))
        assert (changed[0][:20] != plain[0][:20]).any(), name
        assert not changed[0][20:].any()
        assert (changed[1] == plain[1]).all() and (changed[2] == plain[2]).all()


def test_colour_changes_do_what_they_are_called():
    image = RNG(0).integers(60, 190, (40, 40, 3), dtype=np.uint8)
    label = np.zeros((40, 40), np.uint8)

    def changes(**keys):
        crops = [
            Augmentation((40, 40), flip=False, **keys)(image, label, label, RNG(seed))[0]
            for seed in range(30)
        ]
        return np.array([crop.astype(np.float64) for crop in crops])

    shifts = (changes(brightness=0.1) - image).mean(axis=(1, 2, 3))
    assert np.abs(shifts).max() <= 25.5 + 0.5 and shifts.max() > 15 and shifts.min() < -15
    contrast = changes(contrast=0.3)
    means, spreads = contrast.mean(axis=(1, 2, 3)), contrast.std(axis=(1, 2, 3)) / image.std()
    np.testing.assert_allclose(means, image.mean(), atol=1)
    assert 0.69 < spreads.min() < 0.8 and 1.2 < spreads.max() < 1.31
    saturation = changes(saturation=0.5)
    weights = np.array([0.299, 0.587, 0.114])
    grey = (saturation @ weights).mean(axis=(1, 2))
    np.testing.assert_allclose(grey, (image @ weights).mean(), atol=1.5)
    chroma = saturation.std(axis=3).mean(axis=(1, 2)) / image.std(axis=2).mean()
    assert 0.49 < chroma.min() < 0.7 and 1.3 < chroma.max() < 1.51


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 255))
def test_one_class_has_no_edges(height, width, value):
    label = np.full((height, width), value, np.uint8)
    for frame in (0, 6):
        assert not edge_map(label, frame).any()


def test_edges_lie_where_classes_meet_and_outside_the_frame():
    label = np.zeros((40, 40), np.uint8)
    label[:, 20:] = 1
    edges = edge_map(label)
    assert edges.dtype == np.uint8 and set(np.unique(edges)) == {0, 1}
    columns = np.flatnonzero(edges[20])
    assert 4 <= len(columns) <= 6 and {19, 20} <= set(columns)
    assert (edges == edges[20]).all()
    framed = edge_map(label, frame=6)
    # The square of 4 reaches 2 pixels back over the frame's upper and 1 over its lower border.
    assert not framed[:4].any() and not framed[36:].any() and framed[6:34].any(axis=1).all()


# ---------------------------------------------------------------------------------------------
# Cityscapes


def test_the_distributed_layout(cityscapes):
    config = config_of(cityscapes, "cityscapes")
    train, val, test = (build_dataset(config, split) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (6, 2, 2)
    assert train.augmentation is not None and val.augmentation is None
    assert val.name(0) == "leftImg8bit/val/frankfurt/frankfurt_000000_000019_leftImg8bit.png"
    image, label, edge = val.sample(0, RNG(0))
    raw = read_image(
        cityscapes / "gtFine/val/frankfurt/frankfurt_000000_000019_gtFine_labelIds.png"
    )
    numbers = raw[..., 0]
    assert (label == CITYSCAPES.decode(numbers, "")).all() and len(np.unique(label)) > 5
    assert (edge == edge_map(label, 6)).all() and edge.any()
    assert (image == Normalisation()(read_image(cityscapes / val.name(0)))).all()
    image, label, edge = train.sample(0, RNG(0))
    assert image.shape == (3, 32, 48) and label.shape == edge.shape == (32, 48)
    # Without labels: everything is ignored, no edges.
    assert test.read(0)[1] is None
    image, label, edge = test.sample(0, RNG(0))
    assert image.shape[1:] == label.shape and (label == IGNORE).all() and not edge.any()
    # On the whole image, for measuring on the training images.
    assert build_dataset(config, "train", augment=False).sample(0, RNG(0))[1].shape == (64, 128)


def test_train_and_val_together(cityscapes):
    config = config_of(cityscapes, "cityscapes", train_list="trainval", val_list="test")
    both = build_dataset(config, "train")
    assert len(both) == 8 and both.augmentation is not None
    assert "/val/" in both.name(7) and len(build_dataset(config, "val")) == 2


def test_the_references_lists(cityscapes, tmp_path):
    # data/cityscapes/..., data/list/cityscapes/*.lst, as its README wants them.
    (tmp_path / "cityscapes").symlink_to(cityscapes)
    lists = tmp_path / "list" / "cityscapes"
    lists.mkdir(parents=True)
    stem = "val/frankfurt/frankfurt_000000_000019"
    image, mask = f"leftImg8bit/{stem}_leftImg8bit.png", f"gtFine/{stem}_gtFine_labelIds.png"
    (lists / "train.lst").write_text(f"{image}\t{mask}\n" * 3)
    (lists / "test.lst").write_text(f"{image}\n")
    for root in (tmp_path, tmp_path / "cityscapes"):
        config = config_of(root, "cityscapes")
        assert len(build_dataset(config, "train")) == 3
        assert build_dataset(config, "test").read(0)[1] is None
        config.data.train_list = "list/cityscapes/train.lst"
        assert build_dataset(config, "train").read(1)[1].shape == (64, 128)
    config.data.train_list = "list/cityscapes/none.lst"
    with pytest.raises(UserError, match=r"data\.train_list list/cityscapes/none\.lst is neither"):
        build_dataset(config, "train")
    config.data.train_list = "trainextra"
    with pytest.raises(UserError, match="no trainextra data of format cityscapes"):
        build_dataset(config, "train")


def test_masks_with_training_classes(tmp_path):
    write_image(tmp_path / "a.png", np.zeros((2, 2, 3), np.uint8))
    write_image(tmp_path / "a_gtFine_labelTrainIds.png", np.array([[0, 18], [255, 7]], np.uint8))
    (tmp_path / "train.lst").write_text("a.png a_gtFine_labelTrainIds.png\n")
    data = build_dataset(config_of(tmp_path, "cityscapes"), "train")
    assert data.read(0)[1].tolist() == [[0, 18], [255, 7]]
    # Also in a reading process, where the table is a copy.
    assert pickle.loads(pickle.dumps(data)).read(0)[1].tolist() == [[0, 18], [255, 7]]


def test_colour_masks_of_cityscapes(cityscapes):
    folder = cityscapes / "gtFine/val/frankfurt/"
    for kind in ("color", "labelIds"):
        mask = folder / f"frankfurt_000000_000019_gtFine_{kind}.png"
        image = cityscapes / "leftImg8bit/val/frankfurt/frankfurt_000000_000019_leftImg8bit.png"
        label = whole([Pair(image, mask)]).read(0)[1]
        if kind == "color":
            first = label
    assert (first == label).all()


def test_a_missing_mask_and_unknown_numbers_are_named(tmp_path):
    generate(tmp_path, seed=0, train=1, val=0, test=0, height=32, width=32)
    mask = tmp_path / "gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png"
    data = build_dataset(config_of(tmp_path, "cityscapes"), "train")
    numbers = read_image(mask, channels=0)
    numbers[5, 7] = 34
    write_image(mask, numbers)
    with pytest.raises(UserError, match=r"labelIds\.png has class number 34 at row 5, column 7"):
        data.sample(0, RNG(0))
    mask.unlink()
    with pytest.raises(UserError, match=r"labelIds\.png does not exist; unpack gtFine"):
        build_dataset(config_of(tmp_path, "cityscapes"), "train")


@pytest.mark.parametrize("form", ["cityscapes", "camvid", "gtav", "folder", "imagenet"])
def test_roots_without_data(tmp_path, form):
    (tmp_path / "p.csv").write_text("name,id\na,0\n")
    config = config_of(tmp_path, form, palette="p.csv")
    config.task = "classification" if form == "imagenet" else "segmentation"
    with pytest.raises(UserError, match=str(tmp_path)):
        build_dataset(config, "train")
    assert build_dataset(config, "val") is None
    config.data.root = str(tmp_path / "none")
    with pytest.raises(UserError, match=r"none does not exist; set data\.root"):
        build_dataset(config, "val")
    config.data.root = ""
    config.data.palette = str(tmp_path / "p.csv")
    with pytest.raises(UserError, match="add --data_path=FOLDER"):
        build_dataset(config, "train")


def test_zooms_that_exclude_each_other(cityscapes):
    config = config_of(cityscapes, "cityscapes")
    config.data.augment.scale_min, config.data.augment.scale_max = 1.5, 1.0
    with pytest.raises(UserError, match="scale_max=1 is below scale_min=1.5"):
        build_dataset(config, "train")


def test_task_and_format_must_fit(cityscapes):
    config = config_of(cityscapes, "cityscapes")
    config.task = "classification"
    with pytest.raises(UserError, match=r"needs data\.format imagenet, not cityscapes"):
        build_dataset(config, "train")
    config = config_of(cityscapes, "imagenet")
    with pytest.raises(UserError, match="imagenet has no masks"):
        class_table(config)


# ---------------------------------------------------------------------------------------------
# CamVid, GTAV


def small_camvid(folder, height=24, width=32):
    rng = RNG(5)
    label = cv2.resize(rng.integers(0, 12, (4, 5), dtype=np.uint8), (width, height),
                       interpolation=cv2.INTER_NEAREST)  # fmt: skip
    colours = np.concatenate([CAMVID.colours, [(192, 0, 128)]]).astype(np.uint8)
    write_image(folder / "images/x.png", rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    write_image(folder / "labels/x_L.png", colours[label])
    return np.where(label == 11, IGNORE, label)


@pytest.mark.parametrize("size", [(360, 480), (720, 960)])
def test_camvid_of_both_sizes(tmp_path, size):
    label = small_camvid(tmp_path, *size)
    (tmp_path / "train.lst").write_text("images/x.png\tlabels/x_L.png\n")
    config = config_of(tmp_path, "camvid", edge_frame=0, base_size=480)
    data = build_dataset(config, "train", augment=False)
    assert data.classes.names[6] == "road" and len(data.classes) == 11
    image, labels, edges = data.sample(0, RNG(0))
    assert image.shape == (3, *size) and (labels == label).all() and (labels == IGNORE).any()
    assert (edges == edge_map(label)).all()
    assert build_dataset(config, "val") is None


def gtav_image(folder, number, values, colours=None):
    write_image(folder / f"images/{number:05d}.png", np.zeros((*values.shape, 3), np.uint8))
    file = folder / f"labels/{number:05d}.png"
    file.parent.mkdir(exist_ok=True)
    if colours is None:
        write_image(file, values)
    else:
        image = Image.fromarray(values, "P")
        image.putpalette(colours.ravel().tolist())
        image.save(file)


def test_gtav_from_grey_and_palette_masks(tmp_path):
    values = np.array([[0, 7, 26], [34, 33, 1], [255, 5, 4]], np.uint8)
    gtav_image(tmp_path, 1, values)
    gtav_image(tmp_path, 2, values, GTAV.colours)
    data = build_dataset(config_of(tmp_path, "gtav"), "train")
    assert len(data.classes) == 35 and len(data) == 2
    for index in range(2):
        assert (data.read(index)[1] == values).all()
    mapped = build_dataset(config_of(tmp_path, "gtav", map_classes=True), "train")
    assert len(mapped.classes) == 19
    expected = [[255, 0, 13], [255, 18, 255], [255, 255, 255]]
    for index in range(2):
        assert mapped.read(index)[1].tolist() == expected
    gtav_image(tmp_path, 1, np.full((3, 3), 35, np.uint8))
    with pytest.raises(UserError, match=r"00001\.png has class number 35 at row 0, column 0"):
        data.read(0)


def test_gtavs_own_split(tmp_path):
    from scipy.io import savemat

    for number in (1, 2, 3, 10):
        gtav_image(tmp_path, number, np.zeros((2, 2), np.uint8))
    table = {"trainIds": [[1], [10]], "valIds": [[3]], "testIds": [[2]]}
    savemat(tmp_path / "split.mat", {key: np.array(value) for key, value in table.items()})
    config = config_of(tmp_path, "gtav")
    names = {s: [Path(data.name(i)).stem for i in range(len(data))]
             for s in ("train", "val", "test") for data in [build_dataset(config, s)]}  # fmt: skip
    assert names == {"train": ["00001", "00010"], "val": ["00003"], "test": ["00002"]}
    config.data.train_list = "trainval"
    assert len(build_dataset(config, "train")) == 3
    (tmp_path / "images/00002.png").unlink()
    with pytest.raises(UserError, match=r"images/00002\.png does not exist; .*split\.mat names it"):
        build_dataset(config, "test")
    (tmp_path / "split.mat").write_bytes(b"no MATLAB file at all" * 20)
    with pytest.raises(UserError, match=r"split\.mat is not a MATLAB file"):
        build_dataset(config, "val")


# ---------------------------------------------------------------------------------------------
# a user's own folders

PALETTE = "name,r,g,b,ignore\nsky,0,0,255,0\nroad,90,90,90,0\nborder,255,255,255,1\n"


def own_data(root, places):
    """One image and mask per (image file, mask file)."""
    (root / "palette.csv").write_text(PALETTE)
    mask = np.full((8, 8, 3), (0, 0, 255), np.uint8)
    mask[4:] = 90
    mask[0] = 255
    for image, label in places:
        write_image(root / image, np.full((8, 8, 3), 77, np.uint8))
        write_image(root / label, mask)


@pytest.mark.parametrize(
    "places, keys",
    [
        ([("images/train/a.jpg", "masks/train/a.png"), ("images/val/b.jpg", "masks/val/b.png")],
         {}),
        ([("train/images/a.jpg", "train/masks/a.png"), ("val/images/b.jpg", "val/masks/b.png")],
         {}),
        ([("train/x/a.png", "train/y/a.png"), ("val/x/b.png", "val/y/b.png")],
         {"images": "x", "masks": "y"}),
        ([("train/a.jpg", "train/a.png"), ("val/b.jpg", "val/b.png")],
         {"images": ".", "masks": "."}),
    ],
)  # fmt: skip
def test_own_folders_divided_into_splits(tmp_path, places, keys):
    own_data(tmp_path, places)
    config = config_of(tmp_path, "folder", palette="palette.csv", **keys)
    train, val = build_dataset(config, "train"), build_dataset(config, "val")
    assert train.name(0) == places[0][0] and val.name(0) == places[1][0]
    assert (len(train), len(val), train.classes.names) == (1, 1, ("sky", "road"))
    assert val.read(0)[1][[0, 1, 7], 3].tolist() == [IGNORE, 0, 1]
    assert build_dataset(config, "test") is None


def test_own_folders_without_splits_and_with_lists(tmp_path):
    own_data(tmp_path, [(f"images/{n}.jpg", f"masks/{n}.png") for n in "abc"])
    config = config_of(tmp_path, "folder", palette=str(tmp_path / "palette.csv"))
    assert len(build_dataset(config, "train")) == 3 and build_dataset(config, "val") is None
    (tmp_path / "train.txt").write_text("images/a.jpg masks/a.png\nimages/b.jpg masks/b.png\n")
    (tmp_path / "val.lst").write_text("images/c.jpg masks/c.png\n")
    (tmp_path / "test.lst").write_text("images/c.jpg\n")
    sizes = [len(build_dataset(config, split)) for split in ("train", "val", "test")]
    assert sizes == [2, 1, 1]
    assert build_dataset(config, "test").read(0)[1] is None


def test_a_test_folder_may_lack_masks(tmp_path):
    own_data(tmp_path, [("images/train/a.jpg", "masks/train/a.png")])
    write_image(tmp_path / "images/test/t.jpg", np.zeros((4, 4, 3), np.uint8))
    write_image(tmp_path / "images/val/v.jpg", np.zeros((4, 4, 3), np.uint8))
    config = config_of(tmp_path, "folder", palette="palette.csv")
    assert build_dataset(config, "test").read(0)[1] is None
    with pytest.raises(UserError, match=r"mask folder .*masks/val does not exist"):
        build_dataset(config, "val")
    config.data.palette = ""
    with pytest.raises(UserError, match=r"needs data\.palette"):
        build_dataset(config, "train")


def test_a_colour_outside_the_palette_is_named(tmp_path):
    own_data(tmp_path, [("images/a.jpg", "masks/a.png")])
    mask = read_image(tmp_path / "masks/a.png")
    mask[6, 2] = (90, 90, 91)
    write_image(tmp_path / "masks/a.png", mask)
    data = build_dataset(config_of(tmp_path, "folder", palette="palette.csv"), "train")
    with pytest.raises(UserError) as error:
        data.sample(0, RNG(0))
    for part in ("masks/a.png", "(90, 90, 91)", "row 6, column 2"):
        assert part in str(error.value)


# ---------------------------------------------------------------------------------------------
# images of all kinds


def pair_of(folder, image, mask):
    write_image(folder / "i.png", image)
    write_image(folder / "m.png", mask)
    return [Pair(folder / "i.png", folder / "m.png")]


def test_mask_and_image_of_different_size(tmp_path):
    pairs = pair_of(tmp_path, np.zeros((4, 5, 3), np.uint8), np.full((5, 4), 7, np.uint8))
    with pytest.raises(UserError, match=r"m\.png has 5x4 pixels.*i\.png 4x5"):
        whole(pairs).sample(0, RNG(0))


def test_grey_images_become_three_equal_channels(tmp_path):
    grey = RNG(0).integers(0, 256, (6, 7), dtype=np.uint8)
    pairs = pair_of(tmp_path, grey, np.full((6, 7), 7, np.uint8))
    image, label = whole(pairs).read(0)
    assert (image == grey[..., None]).all() and not label.any()


def test_sixteen_bit_images_are_scaled_and_mentioned_once(tmp_path):
    logger, records = logging.getLogger("zoo"), []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    values = RNG(0).integers(0, 65536, (6, 7, 3), dtype=np.uint16)
    data = whole(pair_of(tmp_path, values, np.full((6, 7), 7, np.uint8)))
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        image = data.read(0)[0]
        data.read(0)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert image.dtype == np.uint8
    assert (np.abs(image - values / 257) <= 0.5 + 1e-6).all()
    assert len(records) == 1 and "i.png has 16 bits" in records[0]


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1)])
def test_tiny_images(tmp_path, size):
    pairs = pair_of(tmp_path, np.full((*size, 3), 200, np.uint8), np.full(size, 11, np.uint8))
    image, label, edge = whole(pairs).sample(0, RNG(0))
    assert image.shape == (3, *size) and (label == 2).all() and not edge.any()
    # Shrunk to nothing is one pixel; the rest of the crop is padding.
    augmentation = Augmentation((8, 8), base_size=1, zooms=(0.2,), flip=False)
    image, label, edge = whole(pairs, augmentation=augmentation).sample(0, RNG(0))
    assert image.shape == (3, 8, 8) and label[0, 0] == 2 and (label == 2).sum() == 1
    assert (label != 2).sum() == 63 and np.isfinite(image).all() and not edge.any()


def test_masks_without_any_class(tmp_path):
    pairs = pair_of(tmp_path, np.full((9, 9, 3), 9, np.uint8), np.zeros((9, 9), np.uint8))
    image, label, edge = whole(pairs, augmentation=Augmentation((5, 5))).sample(0, RNG(0))
    assert (label == IGNORE).all() and not edge.any() and image.dtype == np.float32


def test_a_corrupt_image_is_named(tmp_path):
    noise = RNG(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    pairs = pair_of(tmp_path, noise, np.full((64, 64), 7, np.uint8))
    data = (tmp_path / "i.png").read_bytes()
    (tmp_path / "i.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"i\.png is corrupt"):
        whole(pairs).sample(0, RNG(0))
    with pytest.raises(UserError, match="the data set is empty"):
        whole([])


def test_the_cache_keeps_pixels_and_stays_out_of_other_processes(cityscapes, tmp_path):
    generate(tmp_path, seed=3, train=6, val=0, test=0, height=64, width=128)
    config = config_of(tmp_path, "cityscapes", cache=True)
    cached = build_dataset(config, "train")
    plain = build_dataset(config_of(cityscapes, "cityscapes"), "train")
    first = [cached.sample(index, RNG(index)) for index in range(6)]
    assert len(pickle.dumps(cached)) < 20_000
    for file in (tmp_path / "gtFine").rglob("*.png"):
        file.unlink()
    for index in range(6):
        expected = plain.sample(index, RNG(index))
        for a, b, c in zip(first[index], cached.sample(index, RNG(index)), expected, strict=True):
            assert (a == b).all() and (b == c).all()


def test_reading_processes_give_the_same_batches(cityscapes):
    data = build_dataset(config_of(cityscapes, "cityscapes"), "train")
    sampler = EpochSampler(len(data), 3, Ranks(), seed=1)
    here = list(Loader(data, sampler, 1, 0).batches(0, 4))
    elsewhere = list(Loader(data, sampler, 1, 1, "process").batches(0, 4))
    threads = list(Loader(data, sampler, 1, 2).batches(0, 4))
    for others in (elsewhere, threads):
        for batch, other in zip(here, others, strict=True):
            assert all((a == b).all() for a, b in zip(batch, other, strict=True))
    assert here[0][0].shape == (3, 3, 32, 48) and here[0][1].dtype == np.uint8


# ---------------------------------------------------------------------------------------------
# ImageNet folders


@pytest.fixture
def imagenet(tmp_path):
    colours = {"n01": (250, 10, 10), "n02": (10, 250, 10), "n10": (10, 10, 250)}
    for name, colour in colours.items():
        for split, count in (("train", 2), ("val", 1)):
            for number in range(count):
                image = np.full((40 + 8 * number, 60, 3), colour, np.uint8)
                write_image(tmp_path / split / name / f"{name}_{number}.png", image)
    return tmp_path


def test_image_folders(imagenet):
    config = config_of(imagenet, "imagenet", crop_height=224, crop_width=224)
    config.task = "classification"
    train, val = build_dataset(config, "train"), build_dataset(config, "val")
    assert len(train) == 6 and len(val) == 3 and train.names == ["n01", "n02", "n10"]
    assert val.name(2) == "val/n10/n10_0.png"
    for index in range(3):
        image, number = val.sample(index, RNG(0))
        assert image.shape == (3, 224, 224) and image.dtype == np.float32
        assert number.dtype == np.int32 and number.shape == () and number == index
        assert image.mean(axis=(1, 2)).argmax() == index
    # One folder of val may be missing, the numbers stay those of train.
    (imagenet / "val/n01/n01_0.png").unlink()
    (imagenet / "val/n01").rmdir()
    assert [int(ImageFolder(imagenet, "val").sample(i, RNG(0))[1]) for i in (0, 1)] == [1, 2]
    assert build_dataset(config, "test") is None


def test_more_folders_than_outputs(imagenet):
    """Labels beyond the outputs would train silently towards nothing."""
    config = config_of(imagenet, "imagenet")
    config.task, config.classes = "classification", 2
    with pytest.raises(UserError, match="3 classes, the network 2 outputs; add --classes=3"):
        build_dataset(config, "train")
    config.classes = 3
    assert len(build_dataset(config, "train").names) == 3


def test_image_folders_that_do_not_fit(imagenet):
    (imagenet / "val/n03").mkdir()
    with pytest.raises(UserError, match=r"val/n03 is no class of .*train"):
        ImageFolder(imagenet, "val")
    (imagenet / "train/n03").mkdir()
    with pytest.raises(UserError, match="train/n03 holds no images"):
        ImageFolder(imagenet, "train")
    with pytest.raises(UserError, match="does not exist"):
        ImageFolder(imagenet, "test")
    write_image(imagenet / "flat/a.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(UserError, match="one folder per class"):
        ImageFolder(imagenet / "flat", ".")


def test_the_centre_is_224_of_256():
    # A gradient tells which part was taken: 16 of 256 rows and columns are cut on each side.
    rows, columns = np.mgrid[:512, :1024]
    image = np.stack([rows // 2, columns // 4, rows * 0], 2).astype(np.uint8)
    part = centre(image, (224, 224))
    assert part.shape == (224, 224, 3)
    assert abs(int(part[0, 0, 0]) - 16) <= 1 and abs(int(part[-1, 0, 0]) - 239) <= 1
    # Of 512 columns after shrinking, 144 are cut on each side.
    assert abs(int(part[0, 0, 1]) - 72) <= 1 and abs(int(part[0, -1, 1]) - 183) <= 1
    assert centre(np.zeros((1, 1, 3), np.uint8), (224, 224)).shape == (224, 224, 3)


def test_random_crops_cover_8_to_100_percent():
    rows, columns = np.mgrid[:200, :200].astype(np.uint8)
    image = np.stack([rows, columns, rows], 2)
    areas, aspects = [], []
    for seed in range(300):
        part = random_resized_crop(image, (32, 32), RNG(seed)).astype(int)
        # Averaging keeps the ends half a step inside.
        height = (part[-1, 0, 0] - part[0, 0, 0]) * 32 / 31
        width = (part[0, -1, 1] - part[0, 0, 1]) * 32 / 31
        areas.append(height * width / 200**2)
        aspects.append(width / height)
    assert 0.06 < min(areas) < 0.12 and 0.9 < max(areas) < 1.05
    assert 0.70 < min(aspects) < 0.82 and 1.22 < max(aspects) < 1.42
    assert 0.4 < np.mean(areas) < 0.6
    for size in ((1, 1), (1, 300), (300, 1)):
        odd = np.full((*size, 3), 9, np.uint8)
        assert (random_resized_crop(odd, (32, 32), RNG(0)) == 9).all()


# ---------------------------------------------------------------------------------------------
# the generated data


def test_generated_files_have_the_true_names_and_depend_on_the_seed(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert generate(tmp_path / name, seed, 3, 2, 1, 32, 64) == 6
    files = sorted(str(f.relative_to(tmp_path / "a")) for f in (tmp_path / "a").rglob("*.png"))
    assert len(files) == 18
    assert "leftImg8bit/train/bochum/bochum_000000_000019_leftImg8bit.png" in files
    assert "gtFine/test/berlin/berlin_000000_000019_gtFine_labelIds.png" in files
    assert "gtFine/val/munster/munster_000000_000019_gtFine_color.png" in files
    for file in files:
        same = (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
        assert same, file
    different = [(tmp_path / "a" / f).read_bytes() != (tmp_path / "c" / f).read_bytes()
                 for f in files if "leftImg8bit" in f]  # fmt: skip
    assert all(different)
    image = read_image(tmp_path / "a" / files[-1], channels=0)
    assert image.shape == (32, 64, 3) and image.dtype == np.uint8
    # Dummies, as in the real test set.
    test = read_image(
        tmp_path / "a" / "gtFine/test/berlin/berlin_000000_000019_gtFine_labelIds.png"
    )
    assert (CITYSCAPES.decode(test[..., 0], "") == IGNORE).all()
    for counts in ((0, 1, 1), (1, -1, 1)):
        with pytest.raises(UserError, match="at least one training picture"):
            generate(tmp_path / "d", 0, *counts)
    with pytest.raises(UserError, match="10x64"):
        generate(tmp_path / "d", 0, 1, 1, 1, 10, 64)


def test_generated_streets_can_be_learned_from_colour_and_place():
    """A tree on colours and coordinates must beat the commonest class, but not be perfect."""
    from sklearn.tree import DecisionTreeClassifier

    def pixels(numbers):
        features, labels = [], []
        for number in numbers:
            image, ids = make_scene(0, number, 64, 128)
            rows, columns = np.mgrid[:64, :128]
            smooth = cv2.blur(image, (5, 5))
            features.append(np.dstack([image, smooth, rows, np.abs(columns - 64)]).reshape(-1, 8))
            labels.append(CITYSCAPES.decode(ids, "").ravel())
        x, y = np.concatenate(features), np.concatenate(labels)
        return x[y != IGNORE], y[y != IGNORE]

    x, y = pixels(range(8))
    test_x, test_y = pixels(range(100, 104))
    tree = DecisionTreeClassifier(max_depth=10, random_state=0).fit(x, y)
    accuracy = (tree.predict(test_x) == test_y).mean()
    commonest = (test_y == np.bincount(y).argmax()).mean()
    assert commonest < 0.6 and commonest + 0.15 < accuracy < 0.95
    assert len(np.unique(y)) >= 14


# ---------------------------------------------------------------------------------------------
# speed


def test_reading_rates_count_samples_of_all_readers():
    from research.sanet.src.tools.reading_speed import reading_rate

    class Slow:
        """Samples that take 5 ms of waiting and no processor time."""

        def __len__(self):
            return 40

        def sample(self, index, rng):
            time.sleep(0.005)
            return (np.zeros(1, np.float32),)

        def name(self, index):
            return str(index)

    one, two = (reading_rate(Slow(), 4, workers, seconds=0.5) for workers in (1, 2))
    assert one.wall <= 200 and one.processor > 2 * one.wall
    assert two.wall <= 400 and two.wall > 1.3 * one.wall


def test_stage_times_add_up_and_need_augmentation(cityscapes):
    from research.sanet.src.tools.reading_speed import stage_times

    config = config_of(cityscapes, "cityscapes")
    start = time.thread_time()
    times = stage_times(build_dataset(config, "train"), 12)
    passed = 1000 * (time.thread_time() - start)
    assert list(times) == ["decode image", "decode mask", "edges", "zoom, crop, flip", "normalise"]
    assert all(value > 0 for value in times.values())
    assert 0.5 * passed < 12 * sum(times.values()) <= passed
    with pytest.raises(UserError, match="not augmented"):
        stage_times(build_dataset(config, "val"))
