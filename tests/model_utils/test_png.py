import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model_utils.png import PngWriter, encode_png


def decode(data):
    """By two decoders that know nothing of each other."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image.ndim == 3:
        image = image[:, :, [2, 1, 0, 3][: image.shape[2]]]
    with Image.open(io.BytesIO(data)) as other:
        np.testing.assert_array_equal(np.asarray(other), image)
    return image


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.sampled_from([1, 3, 4]),
    st.sampled_from(["noise", "flat", "steps"]),
    st.lists(st.integers(0, 70), max_size=4),
    st.integers(0, 99),
)
def test_any_image_in_any_portions_is_read_back(height, width, channels, kind, cuts, seed):
    shape = (height, width, channels)
    values = {
        "noise": np.random.default_rng(seed).integers(0, 256, shape),
        "flat": np.full(shape, seed),
        "steps": np.arange(np.prod(shape)).reshape(shape) // 7,
    }
    image = values[kind].astype(np.uint8)[:, :, 0 if channels == 1 else slice(None)]
    stream = io.BytesIO()
    edges = sorted({0, height, *(cut for cut in cuts if cut < height)})
    with PngWriter(stream, height, width, channels) as writer:
        for start, end in zip(edges, edges[1:], strict=False):
            writer.write(image[start:end])
    np.testing.assert_array_equal(decode(stream.getvalue()), image)
    np.testing.assert_array_equal(decode(encode_png(image)), image)


def test_views_of_larger_images_are_written_as_seen():
    image = np.random.default_rng(0).integers(0, 256, (700, 900, 3)).astype(np.uint8)
    np.testing.assert_array_equal(decode(encode_png(image[13:640, 57:801])), image[13:640, 57:801])


def test_the_file_is_what_the_specification_asks_for():
    data = encode_png(np.arange(6, dtype=np.uint8).reshape(2, 3))
    assert data[:8] == bytes([137, 80, 78, 71, 13, 10, 26, 10])
    chunks, place = [], 8
    while place < len(data):
        (length,) = struct.unpack_from(">I", data, place)
        body = data[place + 4 : place + 8 + length]
        assert struct.unpack_from(">I", data, place + 8 + length)[0] == zlib.crc32(body)
        chunks.append((body[:4], body[4:]))
        place += 12 + length
    assert [name for name, _ in chunks][:: len(chunks) - 1] == [b"IHDR", b"IEND"]
    assert chunks[0][1] == struct.pack(">IIBBBBB", 3, 2, 8, 0, 0, 0, 0)
    # Filter 2: the first row as it is, then differences from the row above.
    rows = zlib.decompress(b"".join(body for name, body in chunks if name == b"IDAT"))
    assert rows == bytes([2, 0, 1, 2, 2, 3, 3, 3])


@pytest.mark.parametrize(
    ("shape", "kind", "words"),
    [
        ((2, 4), np.uint8, "rows of uint8"),
        ((2, 3, 3), np.uint8, "rows of uint8"),
        ((2, 3), np.uint16, "rows of uint16"),
        ((5, 3), np.uint8, "5 rows where only 4 are missing"),
        ((3, 3), np.uint8, "1 rows were not written"),
    ],
)
def test_rows_that_do_not_fit_are_refused(shape, kind, words):
    with pytest.raises(ValueError, match=words), PngWriter(io.BytesIO(), 4, 3) as writer:
        writer.write(np.zeros(shape, kind))


def test_an_error_in_the_body_is_not_replaced():
    with pytest.raises(KeyError), PngWriter(io.BytesIO(), 4, 3):
        raise KeyError("x")
