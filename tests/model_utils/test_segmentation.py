"""Tables of classes, masks in their many encodings, lists and folders of pairs, palettes."""

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from model_utils.errors import UserError
from model_utils.files import write_image
from model_utils.segmentation import (
    IGNORE,
    ClassTable,
    Pair,
    default_colours,
    list_images,
    pair_folders,
    read_list,
    read_mask,
    read_palette,
    to_eight_bits,
)

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def table(**changes):
    parts = {
        "names": ("sky", "road", "car"),
        "colours": np.array([RED, GREEN, BLUE], np.uint8),
        "ids": (7, 3, 40),
        "void_ids": (0, IGNORE),
        "void_colours": (WHITE,),
    }
    return ClassTable(**{**parts, **changes})


# ---------------------------------------------------------------------------------------------
# tables of classes


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_numbers_become_labels(dtype):
    mask = np.array([[7, 3, 40], [0, 255, 7]], dtype)
    labels = table().decode(mask, "m.png")
    assert labels.dtype == np.uint8
    assert labels.tolist() == [[0, 1, 2], [IGNORE, IGNORE, 0]]


def test_colours_become_labels():
    mask = np.array([[RED, GREEN], [BLUE, WHITE]], np.uint8)
    assert table().decode(mask, "m.png").tolist() == [[0, 1], [2, IGNORE]]


@pytest.mark.parametrize(
    "value, dtype, text",
    [(41, np.uint8, "class number 41"), (700, np.uint16, "class number 700"),
     ((254, 0, 0), np.uint8, "colour (254, 0, 0)"), ((0, 0, 0), np.uint8, "colour (0, 0, 0)")],
)  # fmt: skip
def test_what_is_in_no_table_is_named_with_file_and_pixel(value, dtype, text):
    mask = np.full((5, 6, 3), RED, dtype) if isinstance(value, tuple) else np.full((5, 6), 7, dtype)
    mask[3, 4] = value
    mask[4, 5] = value
    with pytest.raises(UserError) as error:
        table().decode(mask, "some/m.png")
    assert text in str(error.value)
    assert "some/m.png" in str(error.value) and "row 3, column 4" in str(error.value)


def test_none_ignores_whatever_is_no_class():
    loose = table(void_ids=None, void_colours=None)
    assert loose.decode(np.array([[9, 7]], np.uint8), "").tolist() == [[IGNORE, 0]]
    assert loose.decode(np.array([[(1, 2, 3), BLUE]], np.uint8), "").tolist() == [[IGNORE, 2]]


def test_of_two_classes_with_one_colour_the_first_is_read():
    shared = table(colours=np.array([RED, GREEN, RED], np.uint8))
    assert shared.decode(np.array([[RED]], np.uint8), "").tolist() == [[0]]


# One table: that of colours takes a while to build.
INVERTIBLE = table(void_ids=(0, IGNORE), void_colours=((0, 0, 0),))


@settings(deadline=None)
@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)),
                  elements=st.sampled_from([0, 1, 2, IGNORE])))  # fmt: skip
def test_encoding_and_decoding_are_inverse(labels):
    assert (INVERTIBLE.decode(INVERTIBLE.encode_ids(labels), "") == labels).all()
    assert (INVERTIBLE.decode(INVERTIBLE.colourise(labels), "") == labels).all()


@pytest.mark.parametrize(
    "mask", [np.zeros((2, 2), np.float32), np.zeros((2, 2, 3), np.uint16), np.zeros(4, np.uint8)]
)
def test_masks_of_another_kind_are_refused(mask):
    with pytest.raises(UserError, match="masks are grey"):
        table().decode(mask, "m.png")


@pytest.mark.parametrize(
    "changes",
    [{"names": (), "colours": np.zeros((0, 3))}, {"colours": np.zeros((2, 3))}, {"ids": (1, 2)},
     {"names": ("x",) * 255, "colours": np.zeros((255, 3)), "ids": None}],
)  # fmt: skip
def test_tables_that_do_not_fit_together_are_refused(changes):
    with pytest.raises(UserError):
        table(**changes)


def test_254_classes_can_be_told_apart_from_what_is_unknown():
    many = ClassTable(tuple(map(str, range(254))), default_colours(254))
    mask = np.arange(254, dtype=np.uint8)[None]
    assert (many.decode(mask, "") == mask).all()
    with pytest.raises(UserError, match="class number 254"):
        many.decode(np.array([[254]], np.uint8), "")


def test_numbers_above_255_do_not_fit_into_a_submission():
    with pytest.raises(UserError, match="300"):
        table(ids=(7, 3, 300)).encode_ids(np.zeros((2, 2), np.uint8))


def test_a_used_table_travels_small_to_other_processes():
    classes = table()
    classes.decode(np.array([[RED]], np.uint8), "")
    data = pickle.dumps(classes)
    assert len(data) < 2000  # the lookup table of colours has 16 MiB
    other = pickle.loads(data)
    assert other.decode(np.array([[BLUE]], np.uint8), "").tolist() == [[2]]


def test_default_colours_are_those_of_pascal_voc():
    # Published colour map of the challenge: aeroplane, bicycle, person, potted plant, TV.
    colours = default_colours(254)
    assert [tuple(colours[k - 1]) for k in (1, 2, 15, 16, 20)] == [
        (128, 0, 0), (0, 128, 0), (192, 128, 128), (0, 64, 0), (0, 64, 128),
    ]  # fmt: skip
    assert len({tuple(colour) for colour in colours}) == 254


# ---------------------------------------------------------------------------------------------
# mask files

NUMBERS = np.array([[7, 3], [40, 0]], np.uint8)
LABELS = [[0, 1], [2, IGNORE]]


def test_grey_masks_of_8_and_16_bits(tmp_path):
    write_image(tmp_path / "8.png", NUMBERS)
    write_image(tmp_path / "16.png", NUMBERS.astype(np.uint16))
    write_image(tmp_path / "rgb.png", np.repeat(NUMBERS[..., None], 3, 2))
    for name, values in (("8", "auto"), ("16", "auto"), ("8", "ids"), ("rgb", "ids")):
        assert read_mask(tmp_path / f"{name}.png", table(), values).tolist() == LABELS


def test_colour_masks_with_and_without_alpha(tmp_path):
    colours = np.array([[RED, GREEN], [BLUE, WHITE]], np.uint8)
    Image.fromarray(colours).save(tmp_path / "rgb.png")
    alpha = np.full((2, 2, 1), 128, np.uint8)
    Image.fromarray(np.concatenate([colours, alpha], 2)).save(tmp_path / "rgba.png")
    for name in ("rgb", "rgba"):
        for values in ("auto", "colours"):
            assert read_mask(tmp_path / f"{name}.png", table(), values).tolist() == LABELS
        with pytest.raises(UserError, match="colour image; class numbers"):
            read_mask(tmp_path / f"{name}.png", table(), "ids")


def test_a_colour_mask_whose_pixels_are_all_grey_may_be_stored_grey(tmp_path):
    greys = table(colours=np.array([(9, 9, 9), (200, 200, 200), RED], np.uint8))
    write_image(tmp_path / "grey.png", np.array([[9, 200]], np.uint8))
    assert read_mask(tmp_path / "grey.png", greys, "colours").tolist() == [[0, 1]]


def test_numbers_are_not_ignored_where_colours_are_expected(tmp_path):
    """CamVid is also handed round with class numbers, in an order of its own."""
    open_table = table(void_colours=None)
    write_image(tmp_path / "numbers.png", NUMBERS)
    with pytest.raises(UserError, match=r"numbers\.png is grey and holds no class colour"):
        read_mask(tmp_path / "numbers.png", open_table, "colours")
    write_image(tmp_path / "void.png", np.zeros((2, 2), np.uint8))
    assert (read_mask(tmp_path / "void.png", open_table, "colours") == IGNORE).all()


def test_palette_masks_hold_numbers_or_colours(tmp_path):
    image = Image.fromarray(NUMBERS, "P")
    palette = np.zeros((256, 3), np.uint8)
    palette[[7, 3, 40, 0]] = [BLUE, RED, GREEN, WHITE]  # not the order of the classes
    image.putpalette(palette.ravel().tolist())
    image.save(tmp_path / "p.png")
    assert read_mask(tmp_path / "p.png", table(), "auto").tolist() == LABELS
    assert read_mask(tmp_path / "p.png", table(), "ids").tolist() == LABELS
    assert read_mask(tmp_path / "p.png", table(), "colours").tolist() == [[2, 0], [1, IGNORE]]
    # Without numbers in the table only the colours can be meant.
    assert read_mask(tmp_path / "p.png", table(ids=None)).tolist() == [[2, 0], [1, IGNORE]]


def test_masks_of_1_and_4_bits_are_not_stretched(tmp_path):
    rows = np.array([[0, 1, 1], [1, 0, 1]], np.uint8)
    Image.fromarray(rows.astype(bool)).save(tmp_path / "1.png")
    assert (tmp_path / "1.png").read_bytes()[24] == 1  # the depth, as stored
    two = ClassTable(("no", "yes"), default_colours(2))
    assert (read_mask(tmp_path / "1.png", two) == rows).all()
    # A 4-bit grey PNG, put together by hand since no library here writes one.
    import struct
    import zlib

    def chunk(kind, data):
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", 4, 1, 4, 0, 0, 0, 0)
    pixels = zlib.compress(bytes([0, 0x01, 0x2F]))  # filter 0, then 0 1 2 15
    (tmp_path / "4.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )
    many = ClassTable(tuple("abcdefghijklmnop"), default_colours(16))
    assert read_mask(tmp_path / "4.png", many).tolist() == [[0, 1, 2, 15]]


@pytest.mark.parametrize("kind", ["grey", "palette"])
def test_broken_masks_are_named(tmp_path, kind):
    noise = np.random.default_rng(0).integers(0, 3, (64, 64), dtype=np.uint8)
    image = Image.fromarray(noise, "P" if kind == "palette" else "L")
    if kind == "palette":
        image.putpalette(list(range(256)) * 3)
    image.save(tmp_path / "m.png")
    data = (tmp_path / "m.png").read_bytes()
    (tmp_path / "m.png").write_bytes(data[: len(data) - 300])
    with pytest.raises(UserError, match=r"m\.png.*corrupt"):
        read_mask(tmp_path / "m.png", table())
    (tmp_path / "m.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"m\.png.*corrupt"):
        read_mask(tmp_path / "m.png", table())
    with pytest.raises(UserError, match="does not exist"):
        read_mask(tmp_path / "none.png", table())


def test_a_jpeg_mask_is_refused_with_the_reason(tmp_path):
    mask = np.zeros((16, 16, 3), np.uint8)
    mask[:] = RED
    mask[:, 8:] = BLUE
    write_image(tmp_path / "m.jpg", mask)
    with pytest.raises(UserError, match="JPEG change colours"):
        read_mask(tmp_path / "m.jpg", table())


def test_sixteen_bit_images_keep_their_full_range():
    values = np.array([[0, 128, 257, 32896, 65535]], np.uint16)
    assert to_eight_bits(values, "x").tolist() == [[0, 0, 1, 128, 255]]
    same = np.array([[1, 2]], np.uint8)
    assert to_eight_bits(same, "x") is same
    with pytest.raises(UserError, match=r"x\.tif holds float32"):
        to_eight_bits(np.zeros((1, 1), np.float32), "x.tif")


# ---------------------------------------------------------------------------------------------
# lists and folders


def touch(*files):
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")


def test_lists_with_comments_blank_lines_tabs_and_spaces(tmp_path):
    files = ["a.jpg", "a.png", "my photo.jpg", "my mask.png", "c#1.jpg", "c.png"]
    touch(*(tmp_path / name for name in files))
    listing = tmp_path / "train.lst"
    text = "\ufeff# images and masks\n\na.jpg   a.png  # the first\nmy photo.jpg\tmy mask.png\n"
    listing.write_text(text + "c#1.jpg c.png\r\n", encoding="utf-8")
    pairs = read_list(listing, [tmp_path])
    assert [(p.image.name, p.mask.name) for p in pairs] == [
        ("a.jpg", "a.png"), ("my photo.jpg", "my mask.png"), ("c#1.jpg", "c.png"),
    ]  # fmt: skip


def test_lists_are_relative_to_the_first_folder_that_has_the_files(tmp_path):
    touch(tmp_path / "camvid" / "i" / "a.jpg", tmp_path / "camvid" / "a.png")
    (tmp_path / "l.lst").write_text("i/a.jpg a.png\n")
    pairs = read_list(tmp_path / "l.lst", [tmp_path, tmp_path / "camvid"])
    assert pairs == [Pair(tmp_path / "camvid" / "i" / "a.jpg", tmp_path / "camvid" / "a.png")]


def test_masks_may_be_absent_only_where_they_are_optional(tmp_path):
    touch(tmp_path / "a.jpg", tmp_path / "a.png")
    (tmp_path / "l.lst").write_text("a.jpg\na.jpg a.png\n")
    optional = read_list(tmp_path / "l.lst", [tmp_path], masks=False)
    assert [pair.mask for pair in optional] == [None, tmp_path / "a.png"]
    with pytest.raises(UserError, match=r"l\.lst, line 1: 'a\.jpg' names no mask"):
        read_list(tmp_path / "l.lst", [tmp_path])


@pytest.mark.parametrize("line", ["b.jpg a.png", "a.jpg b.png"])
def test_a_missing_file_is_named_with_list_and_line(tmp_path, line):
    touch(tmp_path / "a.jpg", tmp_path / "a.png")
    (tmp_path / "l.lst").write_text(f"# heading\na.jpg a.png\n{line}\n")
    with pytest.raises(UserError, match=r"l\.lst, line 3: .*b\.(jpg|png) does not exist"):
        read_list(tmp_path / "l.lst", [tmp_path])


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing but words\n"])
def test_empty_lists_are_refused(tmp_path, text):
    (tmp_path / "l.lst").write_text(text)
    with pytest.raises(UserError, match=r"l\.lst names no images"):
        read_list(tmp_path / "l.lst", [tmp_path])


def test_a_list_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "l.lst").write_bytes(b"\xff\xfe\x00a\x80")
    with pytest.raises(UserError, match="not UTF-8"):
        read_list(tmp_path / "l.lst", [tmp_path])
    with pytest.raises(UserError, match="does not exist"):
        read_list(tmp_path / "none.lst", [tmp_path])


def test_folders_are_paired_by_name(tmp_path):
    touch(*(tmp_path / "i" / name for name in ("b.JPG", "s/a.jpg", ".hidden.png", "notes.txt")))
    touch(*(tmp_path / "m" / name for name in ("b.png", "s/a.png", "c.png")))
    pairs = pair_folders(tmp_path / "i", tmp_path / "m")
    assert pairs == [
        Pair(tmp_path / "i/b.JPG", tmp_path / "m/b.png"),
        Pair(tmp_path / "i/s/a.jpg", tmp_path / "m/s/a.png"),
    ]
    assert pair_folders(tmp_path / "i", None)[0] == Pair(tmp_path / "i/b.JPG", None)
    (tmp_path / "m/s/a.png").unlink()
    with pytest.raises(UserError, match=r"a\.jpg has no mask s/a\.\*"):
        pair_folders(tmp_path / "i", tmp_path / "m")


def test_images_and_masks_may_share_a_folder(tmp_path):
    touch(tmp_path / "a.jpg", tmp_path / "a.png", tmp_path / "b.jpeg", tmp_path / "b.png")
    assert pair_folders(tmp_path, tmp_path) == [
        Pair(tmp_path / "a.jpg", tmp_path / "a.png"),
        Pair(tmp_path / "b.jpeg", tmp_path / "b.png"),
    ]


def test_folders_without_images_or_with_two_of_one_name_are_refused(tmp_path):
    (tmp_path / "m").mkdir()
    with pytest.raises(UserError, match="does not exist"):
        pair_folders(tmp_path / "i", tmp_path / "m")
    touch(tmp_path / "i" / "a.txt")
    with pytest.raises(UserError, match="holds no images"):
        pair_folders(tmp_path / "i", tmp_path / "m")
    touch(tmp_path / "i" / "a.jpg", tmp_path / "i" / "a.png")
    with pytest.raises(UserError, match="have one name"):
        pair_folders(tmp_path / "i", tmp_path / "m")
    assert [path.name for path in list_images(tmp_path / "i")] == ["a.jpg", "a.png"]


# ---------------------------------------------------------------------------------------------
# palettes


@pytest.mark.parametrize(
    "name, text",
    [
        ("p.csv", "name,r,g,b,ignore\nsky,255,0,0,0\nroad,0,255,0,no\nother,255,255,255,1\n"),
        ("p.csv", "r;g;b;ignore;name\n255;0;0;;sky\n0;255;0;0;road\n255;255;255;yes;other\n"),
        ("p.csv", '"sky",255,0,0,0\n"road",0,255,0,0\n"other",255,255,255,1\n'),
        ("p.txt", "# my classes\nsky 255 0 0 0\nroad 0 255 0 0\n\nother 255 255 255 1\n"),
        ("p.txt", "name\tred\tgreen\tblue\tvoid\nsky\t255\t0\t0\t0\nroad\t0\t255\t0\t0\n"
                  "other\t255\t255\t255\t1\n"),
        ("p.yaml", "sky: [255, 0, 0]\nroad: [0, 255, 0]\nother: [255, 255, 255, true]\n"),
        ("p.yml", "- {name: sky, colour: [255, 0, 0]}\n- {name: road, r: 0, g: 255, b: 0}\n"
                  "- {name: other, color: [255, 255, 255], ignore: true}\n"),
    ],
)  # fmt: skip
def test_palettes_of_colours(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    classes = read_palette(tmp_path / name)
    assert classes.names == ("sky", "road")
    assert classes.colours.tolist() == [[255, 0, 0], [0, 255, 0]]
    assert classes.ids is None and classes.void_colours == (WHITE,)
    mask = np.array([[GREEN, WHITE]], np.uint8)
    assert classes.decode(mask, "").tolist() == [[1, IGNORE]]


@pytest.mark.parametrize(
    "name, text",
    [("p.csv", "name,id\nsky,5\nmain road,2\n"), ("p.txt", "name,id\nsky,5\nmain road,2"),
     ("p.yaml", "sky: 5\nmain road: 2\n"), ("p.yaml", "sky: {id: 5}\nmain road: {id: 2}\n")],
)  # fmt: skip
def test_palettes_of_numbers_get_colours(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    classes = read_palette(tmp_path / name)
    assert classes.names == ("sky", "main road") and classes.ids == (5, 2)
    assert (classes.colours == default_colours(2)).all()
    assert classes.decode(np.array([[2, 5, 255]], np.uint8), "").tolist() == [[1, 0, IGNORE]]
    with pytest.raises(UserError, match="class number 0"):
        classes.decode(np.array([[0]], np.uint8), "")


def test_palettes_with_numbers_and_colours_read_both_kinds_of_masks(tmp_path):
    (tmp_path / "p.csv").write_text("name,r,g,b,id,ignore\nsky,1,2,3,9,0\nvoid,0,0,0,0,1\n")
    classes = read_palette(tmp_path / "p.csv")
    assert classes.decode(np.array([[9, 0]], np.uint8), "").tolist() == [[0, IGNORE]]
    mask = np.array([[(1, 2, 3), (0, 0, 0)]], np.uint8)
    assert classes.decode(mask, "").tolist() == [[0, IGNORE]]


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("p.csv", "", "names no class"),
        ("p.csv", "name,r,g,b,ignore\nx,1,2,3,1\n", "names no class"),
        ("p.csv", "sky,256,0,0\n", "line 1: r is '256'"),
        ("p.csv", "name,r,g,b\nsky,1,2,3\nroad,1,-2,3\n", "line 3: g is '-2'"),
        ("p.csv", "name,r,g,b\nsky,1,2\n", "line 2: 3 columns"),
        ("p.csv", "name,r,g\nsky,1,2\n", "b is ''"),
        ("p.csv", "name,r,g,b,shade\nsky,1,2,3,4\n", "unknown column 'shade'"),
        ("p.csv", "sky\nroad\n", "1 columns"),
        ("p.csv", "name,id\n,1\n", "line 2: the class has no name"),
        ("p.csv", "name,id,ignore\nsky,1,perhaps\n", "ignore is 'perhaps'"),
        ("p.csv", "name,r,g,b\nsky,1,2,3\nsky,1,2,4\n", "have one name, sky"),
        ("p.csv", "name,r,g,b\nsky,1,2,3\nroad,1,2,3\n", "'sky' and 'road' have one colour"),
        ("p.csv", "name,id\nsky,1\nroad,1\n", "have one number, 1"),
        ("p.csv", "name,id\nsky,1.5\n", "id is '1.5'"),
        ("p.yaml", "sky: [1, 2]\n", "b is ''"),
        ("p.yaml", "sky: {id: 1}\nroad: [1, 2, 3]\n", "'road' has no number"),
        ("p.yaml", "sky: {shade: 1}\n", "unknown key 'shade'"),
        ("p.yaml", "sky: [1, 2\n", "not valid YAML"),
        ("p.yaml", "just words\n", "not a table of classes"),
        ("p.yaml", "- sky\n- road\n", "not a table of classes"),
    ],
)  # fmt: skip
def test_malformed_palettes_are_explained(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as error:
        read_palette(tmp_path / name)
    assert message in str(error.value) and str(tmp_path / name) in str(error.value)
    assert "\n" not in str(error.value).split("YAML")[0]


def test_masks_of_0_and_255(tmp_path):
    """A common way to store two classes; 255 is a class then."""
    (tmp_path / "p.csv").write_text("name,id\nground,0\nobject,255\n")
    mask = np.array([[0, 255]], np.uint8)
    assert read_palette(tmp_path / "p.csv").decode(mask, "").tolist() == [[0, 1]]


def test_a_palette_that_is_missing_or_no_text(tmp_path):
    with pytest.raises(UserError, match=r"palette .*none\.csv does not exist"):
        read_palette(tmp_path / "none.csv")
    Path(tmp_path / "p.csv").write_bytes(cv2.imencode(".png", np.zeros((2, 2)))[1].tobytes())
    with pytest.raises(UserError, match="not UTF-8"):
        read_palette(tmp_path / "p.csv")
