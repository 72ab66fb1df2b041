from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from peertune.codecs import Arrays, Codec, bytes_of, decode_array, encode_array, layout
from peertune.errors import ConfigError, PayloadError

CODECS = (
    Codec("fp32"),
    Codec("fp16"),
    Codec("int8"),
    Codec("int8", outliers=2),
    Codec("topk", keep=1),
    Codec("topk", keep=3),
)
NUMBERS = st.floats(-(2.0**100), 2.0**100, width=32).map(lambda x: 0.0 if abs(x) < 2.0**-60 else x)
MATRICES = arrays.arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(3, 9)), elements=NUMBERS)


def there_and_back(x: np.ndarray, codec: Codec) -> np.ndarray:
    return decode_array(encode_array(x, codec), codec, *x.shape)


def normal(tokens: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((tokens, width)).astype(np.float32)


def half_error(x: np.ndarray, largest: float) -> np.ndarray:
    return 2.0**-11 * np.abs(x) + 2.0**-39 * largest


@pytest.mark.parametrize(
    ("codec", "expected"),
    [
        (Codec("fp32"), 32 * 768 * 4),
        (Codec("fp16"), 32 * 768 * 2 + 4),
        (Codec("int8"), 32 * (768 + 4)),
        (Codec("int8", outliers=6), 32 * (762 + 4 + 12) + 6 * 2 + 4),
        (Codec("topk", keep=64), 32 * 64 * 4 + 4),
    ],
)
def test_bytes_of_a_row_of_gpt2(codec: Codec, expected: int) -> None:
    assert bytes_of(codec, 32, 768) == expected
    assert sum(part.nbytes for part in encode_array(normal(32, 768), codec).values()) == expected


def test_ids_take_four_bytes_above_65536_channels() -> None:
    codec, x = Codec("topk", keep=2), normal(1, 65_537)
    x[0, 65_536] = 100
    assert bytes_of(codec, 1, 65_536) == 12
    assert bytes_of(codec, 1, 65_537) == 16 == sum(part.nbytes for part in encode_array(x, codec).values())
    assert there_and_back(x, codec)[0, 65_536] == 100


@given(MATRICES, st.sampled_from(CODECS))
def test_bytes_are_those_of_the_arrays(x: np.ndarray, codec: Codec) -> None:
    parts = encode_array(x, codec)
    assert {name: (part.dtype, part.shape) for name, part in parts.items()} == layout(codec, *x.shape)
    assert sum(part.nbytes for part in parts.values()) == bytes_of(codec, *x.shape)


@given(MATRICES)
def test_fp32_has_no_error_and_fp16_that_of_eleven_bits(x: np.ndarray) -> None:
    assert np.array_equal(there_and_back(x, Codec("fp32")), x)
    assert (np.abs(there_and_back(x, Codec("fp16")) - x) <= half_error(x, np.abs(x).max())).all()


@given(MATRICES, st.integers(0, 2))
def test_int8_is_off_by_half_a_step_at_most(x: np.ndarray, outliers: int) -> None:
    found = there_and_back(x, Codec("int8", outliers))
    peaks = np.abs(x).max(axis=0)
    largest = np.argsort(peaks)[x.shape[1] - outliers :]
    usual = np.setdiff1d(np.arange(x.shape[1]), largest)
    step = np.abs(x[:, usual]).max(axis=1, keepdims=True).astype(np.float64) / 127
    off = np.abs(found.astype(np.float64) - x)
    assert (off[:, usual] <= step / 2 + 2.0**-22 * np.abs(x[:, usual]) + 2.0**-126).all()
    assert (off[:, largest] <= half_error(x[:, largest], peaks.max())).all()


@given(MATRICES, st.integers(1, 3))
def test_topk_keeps_the_largest(x: np.ndarray, keep: int) -> None:
    found = there_and_back(x, Codec("topk", keep=keep))
    least = np.sort(np.abs(x), axis=1)[:, x.shape[1] - keep, None]
    kept = found != 0
    assert (kept.sum(axis=1) <= keep).all()
    assert (np.abs(found - x)[kept] <= half_error(x, np.abs(x).max())[kept]).all()
    assert (np.abs(x)[~kept] <= np.broadcast_to(least, x.shape)[~kept] + 2.0**-39 * np.abs(x).max()).all()


def test_an_outlier_channel_costs_the_others_nothing_once_it_is_kept_apart() -> None:
    x = normal(8, 16)
    x[:, 5] *= 1000
    usual = np.arange(16) != 5
    plain, apart = (np.abs(there_and_back(x, Codec("int8", n)) - x)[:, usual].max() for n in (0, 1))
    assert plain > 1 > 0.02 > apart


def test_topk_of_all_is_fp16_and_small_gradients_keep_their_digits() -> None:
    x = normal(4, 10) * np.float32(1e-9)
    everything = there_and_back(x, Codec("topk", keep=10))
    assert np.array_equal(everything, there_and_back(x, Codec("fp16")))
    assert (np.abs(everything - x) <= 2.0**-11 * np.abs(x) + 1e-20).all()


@pytest.mark.parametrize("codec", CODECS)
def test_zeros_stay_zeros(codec: Codec) -> None:
    assert not there_and_back(np.zeros((3, 4), np.float32), codec).any()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(codec: Codec, value: float) -> None:
    x = normal(3, 4)
    x[1, 2] = value
    with pytest.raises(PayloadError, match="finite"):
        encode_array(x, codec)


@pytest.mark.parametrize(
    ("kind", "outliers", "keep"),
    [("int4", 0, 0), ("fp16", 1, 0), ("int8", -1, 0), ("topk", 0, 0), ("int8", 0, 5), ("topk", 0, -1), ("topk", 1, 1)],
)
def test_a_codec_that_cannot_be(kind: str, outliers: int, keep: int) -> None:
    with pytest.raises(ConfigError, match="codec: .*found"):
        Codec(kind, outliers, keep)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("codec", [Codec("int8", outliers=4), Codec("topk", keep=5)])
def test_more_channels_than_there_are(codec: Codec) -> None:
    with pytest.raises(ConfigError, match="4 channels"):
        bytes_of(codec, 3, 4)


def changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Arrays], Arrays]:
    return lambda parts: parts | {name: change(parts[name])}


def set_to(value: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda part: np.full_like(part, value)


HOSTILE: list[tuple[Codec, str, Callable[[Arrays], Arrays], str]] = [
    (Codec("fp32"), "nothing", lambda parts: {}, "arrays"),
    (Codec("fp32"), "something more", lambda parts: parts | {"more": parts["values"]}, "arrays"),
    (Codec("fp32"), "another dtype", changed("values", lambda part: part.astype(np.float64)), "values: .*same codec"),
    (Codec("fp32"), "another shape", changed("values", lambda part: part[:-1]), "values: .*same codec"),
    (Codec("fp32"), "NaN", changed("values", set_to(np.nan)), "finite"),
    (Codec("fp16"), "infinity", changed("values", set_to(np.inf)), "finite"),
    (Codec("fp16"), "a large exponent", changed("exponent", set_to(250)), "finite"),
    (Codec("fp16"), "a huge exponent", changed("exponent", set_to(2**31 - 1)), "exponent"),
    (Codec("fp16"), "the least exponent", changed("exponent", set_to(-(2**31))), "exponent"),
    (Codec("int8"), "infinite scales", changed("scales", set_to(np.inf)), "finite"),
    (Codec("int8"), "scales that overflow", changed("scales", set_to(3e38)), "finite"),
    (Codec("int8", outliers=2), "one channel twice", changed("channels", set_to(1)), "channels"),
    (Codec("int8", outliers=2), "no such channel", changed("channels", lambda part: part + 50_000), "channels"),
    (Codec("topk", keep=2), "ids in disorder", changed("ids", lambda part: part[:, ::-1]), "channels"),
    (Codec("topk", keep=2), "ids too large", changed("ids", lambda part: part + 9), "channels"),
]


@pytest.mark.parametrize(
    ("codec", "change", "message"),
    [(codec, change, message) for codec, _, change, message in HOSTILE],
    ids=[f"{codec.kind}: {what}" for codec, what, _, _ in HOSTILE],
)
def test_hostile_arrays_are_refused(codec: Codec, change: Callable[[Arrays], Arrays], message: str) -> None:
    parts = encode_array(normal(4, 9), codec)
    with pytest.raises(PayloadError, match=message):
        decode_array(change(parts), codec, 4, 9)


def test_negative_ids_are_refused() -> None:
    codec, width = Codec("topk", keep=1), 65_537
    parts = encode_array(normal(2, width), codec)
    with pytest.raises(PayloadError, match="channels"):
        decode_array(parts | {"ids": np.full((2, 1), -1, np.int32)}, codec, 2, width)


@given(st.data(), st.sampled_from(CODECS))
def test_any_bytes_give_finite_numbers_or_an_error(data: st.DataObject, codec: Codec) -> None:
    parts = {
        name: np.frombuffer(data.draw(st.binary(min_size=size, max_size=size)), dtype).reshape(shape)
        for name, (dtype, shape) in layout(codec, 2, 4).items()
        if (size := dtype.itemsize * int(np.prod(shape)))
    }
    try:
        x = decode_array(parts, codec, 2, 4)
    except PayloadError:
        return
    assert x.shape == (2, 4) and x.dtype == np.float32 and np.isfinite(x).all()
