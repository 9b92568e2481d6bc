"""Pickles of data are read; those that ask for anything else are refused, and nothing of them runs."""

from __future__ import annotations

import os
import pickle
import struct
from collections import OrderedDict
from io import BytesIO

import numpy as np
import pytest

from metarun.errors import UserError
from metarun.tasks.pickles import ADMITTED, read_pickle


def read(content: bytes):
    return read_pickle(BytesIO(content), "file.pkl")


class Calls:
    """Pickles as a call."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


DATA = {
    "image_data": np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4),
    "by columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "foreign order": np.arange(3, dtype=">i4"),
    "empty": np.zeros((0, 3), np.float32),
    "class_dict": {"n01532829": [0, 1], "b": [np.int64(7), 8]},
    "texts": ["ب", "a"],
    "bytes": b"\x00\xff",
    "few": (1, 2.5, None, True, -(10**30)),
}


@pytest.mark.parametrize("protocol", range(6))
def test_data_come_back(protocol):
    got = read(pickle.dumps(DATA, protocol=protocol))
    assert list(got) == list(DATA)
    for name, value in DATA.items():
        if isinstance(value, np.ndarray):
            assert got[name].dtype.newbyteorder("=") == value.dtype.newbyteorder("=")
            assert np.array_equal(got[name], value)
        else:
            assert got[name] == value
    assert all(type(n) is int for n in got["class_dict"]["b"])


def test_python_2s_strings_and_arrays():
    """As Python 2 wrote CIFAR-100 and mini-ImageNet: strings of bytes, arrays of a string, protocol 2."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b\x87Rq\x03"
        b"(K\x01K\x02K\x02\x86cnumpy\ndtype\nq\x04U\x02u1K\x00K\x01\x87Rq\x05"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x04\x01\xfe\xff\x00tb"
    )
    got = read(b"\x80\x02}q\x00(U\x04dataq\x08" + array + b"U\x0bfine_labelsq\x09]q\x0a(K\x05K\x06eu.")
    assert got["data"].tolist() == [[1, 254], [255, 0]]
    assert got["fine_labels"] == [5, 6]


def ran(file):
    """What a hostile pickle would do here."""
    return Calls(os.system, (f"touch {file}",))


def by_memo(file):
    """The call hidden in a tuple that is stored, popped and fetched again."""
    return b"\x80\x02(cposix\nsystem\nq\x01X" + struct.pack("<I", len(f"touch {file}")) + f"touch {file}".encode() + (
        b"\x85q\x02tq\x030h\x01h\x02R."
    )  # fmt: skip


HOSTILE = {
    "os.system": lambda f: pickle.dumps(ran(f)),
    "inside a list": lambda f: pickle.dumps([{"data": [ran(f)]}]),
    "eval": lambda f: pickle.dumps(Calls(eval, (f"open({str(f)!r}, 'w')",))),
    "exec at protocol 0": lambda f: pickle.dumps(Calls(exec, (f"open({str(f)!r}, 'w')",)), 0),
    "getattr": lambda f: pickle.dumps(Calls(getattr, (1, "real"))),
    "in an object array": lambda f: pickle.dumps(np.array([ran(f), 1], dtype=object)),
    "in an object number": lambda f: pickle.dumps(Calls(np._core.multiarray.scalar, (np.dtype("O"), ran(f)))),
    "object array of numbers": lambda f: pickle.dumps(np.array([1, "a"], dtype=object)),
    "records": lambda f: pickle.dumps(np.zeros(2, dtype=[("a", "i4"), ("b", "O")])),
    "times": lambda f: pickle.dumps(np.zeros(2, dtype="datetime64[s]")),
    "texts in an array": lambda f: pickle.dumps(np.array(["a"])),
    "memo": by_memo,
    "old instance": lambda f: b"(S'touch " + str(f).encode() + b"'\niposix\nsystem\n.",
    "object": lambda f: b"(cposix\nsystem\nS'touch " + str(f).encode() + b"'\no.",
    "dotted name": lambda f: b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.__new__\x93.",
    "another class": lambda f: pickle.dumps(OrderedDict(a=1)),
    "a function of numpy": lambda f: pickle.dumps(np.load),
    "extension": lambda f: b"\x80\x02\x82\x01.",
    "persistent": lambda f: b"Pposix\n.",
    "a reconstructed class of another kind": lambda f: (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\n(I0\ntS'b'\ntR."
    ),
    "another codec": lambda f: b"c_codecs\nencode\n(Va\nVrot13\ntR.",
    "an instance of a name": lambda f: b"\x80\x02cnumpy\nndarray\n)\x81.",
    "a changed name": lambda f: b"\x80\x02cnumpy\nndarray\nq\x01N}U\x09__class__K\x01s\x86b.",
    "a changed function's state": lambda f: b"\x80\x02cnumpy\ndtype\n}U\x01aK\x01sb.",
    "a shape beyond the bytes": lambda f: pickle.dumps(np.zeros(9, np.uint8), 2).replace(b"K\x09\x85", b"K\x7f\x85"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_more_than_data_is_refused_before_it_runs(case, tmp_path):
    content = HOSTILE[case](tmp_path / "ran")
    with pytest.raises(UserError, match=r"^file.pkl: [^\n]*$") as error:
        read(content)
    assert "asks for more than data" in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_the_hostile_pickles_do_run_where_nobody_looks(tmp_path):
    """Else the test above shows nothing."""
    for case in ("os.system", "inside a list", "eval", "exec at protocol 0", "in an object array", "memo"):
        pickle.loads(HOSTILE[case](tmp_path / "ran"))
        (tmp_path / "ran").unlink()
    for case in ("old instance", "object"):
        pickle.loads(HOSTILE[case](tmp_path / "ran"))
        (tmp_path / "ran").unlink()


def test_what_is_admitted_holds_nothing_that_can_be_changed():
    for stand_in in ADMITTED.values():
        assert not hasattr(stand_in, "__dict__")
        with pytest.raises(pickle.UnpicklingError):
            stand_in.anything = 1
    assert len(ADMITTED) == 10


@pytest.mark.parametrize("cut", [0, 1, 20, 100, -1])
def test_a_damaged_pickle_is_one_line(cut):
    with pytest.raises(UserError, match=r"^file.pkl: not a readable pickle [^\n]*$"):
        read(pickle.dumps(DATA)[:cut])
