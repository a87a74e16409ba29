"""The artifact file: round trip, every kind of damage, manifests that lie, and disks that refuse."""

from __future__ import annotations

import copy
import json
import os
import random
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dlc.errors import DlcError
from dlc.runtime import errors
from dlc.runtime.artifact import parse_artifact, read_artifact, replace_manifest, reseal, tree_digest, write_artifact
from dlc.runtime.executable import Executable, load
from dlc.runtime.manifest import check_manifest

STRANGE = (
    None, True, -1, 0, 1, 2, 3, 17, 10**6, 2**31, 2**62, 2**63, 2**64, 10**30, 0.5, float("nan"), "", "x", "b",
    "b*s*99999", "1//0", "-7", "min(b)", "dlc_main", "k_double", "main", "pool", "f64", [], ["b"],
    [[0, 0]], ["input", 0], {}, {"t": "leaf", "i": 0},
)  # fmt: skip


@pytest.fixture(scope="module")
def saved(models, tmp_path_factory):
    path = tmp_path_factory.mktemp("artifact") / "model.dlc"
    Executable.from_parts(*models.bias(), threads=2).save(path)
    return path


def test_round_trip(models, saved):
    artifact = read_artifact(saved)
    manifest, objects, constants = models.bias()
    assert artifact.objects == objects
    np.testing.assert_array_equal(artifact.constants, constants)
    assert not artifact.constants.flags.writeable
    assert artifact.constants.ctypes.data % 64 == 0
    for key in ("symbols", "inputs", "outputs", "kernels"):
        assert artifact.json[key] == manifest[key]


def test_layout_is_as_documented(saved):
    data = saved.read_bytes()
    assert data[:8] == b"DLCART\x01\n"
    (length,) = struct.unpack_from("<Q", data, 8)
    manifest = json.loads(data[16 : 16 + length])
    start = -(-(16 + length) // 4096) * 4096
    assert not any(data[16 + length : start])
    for entry in manifest["objects"]:
        assert entry["offset"] % 64 == 0
        if entry["name"] != "interface":
            assert data[start + entry["offset"] :][:4] == b"\x7fELF"
    assert data[-32:] == tree_digest(memoryview(data[:start]), memoryview(data[start:-32]))


def test_large_constants_are_hashed_in_chunks(models, tmp_path):
    manifest, objects, _ = models.bias()
    constants = np.random.default_rng(0).integers(0, 256, (9 << 20) + 77, dtype=np.uint8)
    Executable.from_parts(manifest, objects, constants).save(tmp_path / "m.dlc")
    artifact = read_artifact(tmp_path / "m.dlc")
    np.testing.assert_array_equal(artifact.constants, constants)
    data = bytearray((tmp_path / "m.dlc").read_bytes())
    data[-5000] ^= 1
    with pytest.raises(errors.DamagedArtifact):
        parse_artifact(np.frombuffer(bytes(data), np.uint8))


def test_other_files_are_named_as_such(tmp_path):
    path = tmp_path / "x.dlc"
    for content in (b"", b"PK\x03\x04" + bytes(100), bytes(5000)):
        path.write_bytes(content)
        with pytest.raises(errors.NotAnArtifact):
            load(path)
    with pytest.raises(errors.CannotRead, match="No such file"):
        load(tmp_path / "missing.dlc")
    with pytest.raises((errors.CannotRead, errors.NotAnArtifact)):
        load(tmp_path)
    with pytest.raises((errors.CannotRead, errors.NotAnArtifact)):
        load("/dev/null")


@pytest.mark.parametrize(("key", "value"), [("format", 2), ("abi", 9), ("abi", None), ("format", True)])
def test_other_versions_are_refused(saved, key, value):
    data = saved.read_bytes()
    manifest = {**read_artifact(saved).json, key: value}
    with pytest.raises(errors.WrongVersion, match=key):
        parse_artifact(np.frombuffer(replace_manifest(data, manifest), np.uint8))


def test_a_manifest_for_other_code_is_refused(saved):
    data = saved.read_bytes()
    manifest = copy.deepcopy(read_artifact(saved).json)
    manifest["outputs"][0]["shape"] = ["1", "s"]  # valid by itself, and would make the code write out of bounds
    with pytest.raises(errors.DamagedArtifact, match="another manifest"):
        parse_artifact(np.frombuffer(replace_manifest(data, manifest), np.uint8))


def test_code_that_changed_is_refused(saved):
    data = bytearray(saved.read_bytes())
    at = data.index(b"\x7fELF") + 200
    data[at] ^= 255
    with pytest.raises(errors.DamagedArtifact, match="digest"):
        parse_artifact(np.frombuffer(bytes(data), np.uint8))
    with pytest.raises(errors.DamagedArtifact, match="the object"):
        parse_artifact(np.frombuffer(reseal(bytes(data)), np.uint8))


FUZZ = """
import random, resource, struct, sys
import numpy as np
from dlc.errors import DlcError
from dlc.runtime.artifact import reseal
from dlc.runtime.executable import load
good = open(sys.argv[1], "rb").read()
(length,) = struct.unpack_from("<Q", good, 8)
rng = random.Random(sys.argv[3])
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
x = np.ones((5, 6), np.float32)
want = load(sys.argv[1], threads=2)(x)
refused = 0
for step in range(int(sys.argv[4])):
    data = bytearray(good)
    kind = rng.randrange(5)
    if kind == 0:
        del data[rng.randrange(len(data)):]
    elif kind == 1:
        at = rng.randrange(len(data)); data[at:at] = rng.randbytes(rng.choice((1, 8, 64)))
    elif kind == 2:
        at = rng.randrange(len(data)); del data[at:at + rng.choice((1, 8, 64, 4096))]
    else:
        span = len(data) if kind == 3 else 16 + length
        for _ in range(rng.choice((1, 2, 8))):
            data[rng.randrange(span)] = rng.choice((0, 255, 34, 48, 57, 125, rng.randrange(256)))
    changed = bytes(data) != good
    if sys.argv[5] == "reseal":
        try:
            data = reseal(bytes(data))
        except (struct.error, IndexError, ValueError, OverflowError):
            pass
    with open(sys.argv[2], "wb") as file:
        file.write(data)
    try:
        got = load(sys.argv[2], threads=2)(x)
    except DlcError as error:
        refused += 1
        assert error.code.startswith("DLC05"), error
        assert len(str(error)) < 5000
    else:
        # zero padding and text that means nothing may differ when the digest is made to fit
        assert sys.argv[5] == "reseal" or not changed, "damage went unnoticed"
        assert np.array_equal(got, want)
print(refused)
"""


@pytest.mark.parametrize("mode", ["plain", "reseal"])
def test_random_damage_is_an_error(saved, tmp_path, everything, mode):
    count = 500 if everything else 60
    command = [sys.executable, "-c", FUZZ, str(saved), str(tmp_path / "bad.dlc"), mode, str(count), mode]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > count * 0.6


def _places(value, path=()):
    """Paths to every value inside a JSON document."""
    yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _places(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _places(item, (*path, index))


def _with(document, path, value):
    result = copy.deepcopy(document)
    if not path:
        return value
    parent = result
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    return result


def test_every_field_withstands_every_strange_value(saved, everything):
    """The checker either accepts or raises a coded error that names a field; nothing else escapes."""
    manifest = read_artifact(saved).json
    cases = [(path, value) for path in _places(manifest) for value in STRANGE]
    if not everything:
        cases = random.Random(3).sample(cases, 700)
    refused = 0
    for path, value in cases:
        changed = _with(manifest, path, value)
        try:
            check_manifest(changed)
        except DlcError as error:
            refused += 1
            assert error.code in ("DLC0500", "DLC0503")
            assert len(str(error)) < 2000
    assert refused > len(cases) * 0.6


def test_removed_fields(saved):
    manifest = read_artifact(saved).json
    for path in _places(manifest):
        if not path or not isinstance(path[-1], str):
            continue
        changed = copy.deepcopy(manifest)
        parent = changed
        for key in path[:-1]:
            parent = parent[key]
        del parent[path[-1]]
        try:
            check_manifest(changed)
        except DlcError as error:
            assert error.code in ("DLC0500", "DLC0503")


LIES = """
import json, random, sys
import numpy as np
from dlc.errors import DlcError
from dlc.runtime.artifact import parse_artifact, replace_manifest
from dlc.runtime.executable import Executable
good = open(sys.argv[1], "rb").read()
x = np.ones((5, 6), np.float32)
refused = 0
for line in open(sys.argv[2]):
    data = np.frombuffer(replace_manifest(good, json.loads(line)), np.uint8)
    try:
        a = parse_artifact(data)
        Executable(a.json, a.manifest, a.objects, a.constants, 2)(x)
    except DlcError:
        refused += 1
print(refused)
"""


def test_changed_manifests_with_a_fitting_digest_are_errors(saved, tmp_path, everything):
    manifest = read_artifact(saved).json
    cases = [_with(manifest, path, value) for path in _places(manifest) for value in STRANGE]
    plain = json.dumps(manifest)
    lines = [text for text in map(json.dumps, cases) if text != plain]
    if not everything:
        lines = random.Random(5).sample(lines, 100)
    (tmp_path / "cases").write_text("\n".join(lines))
    command = [sys.executable, "-c", LIES, str(saved), str(tmp_path / "cases")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    # what compares equal in Python (true for 1) is the same manifest
    assert int(done.stdout) >= len(lines) * 0.97


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda m: m["frame"].update(inputs=15), "frame.inputs"),
        (lambda m: m["frame"].update(outputs=16), "frame"),
        (lambda m: m["frame"].update(size=20), "frame"),
        (lambda m: m["buffers"][0].update(last=-1), r"buffers\[0\].last"),
        (lambda m: m["buffers"][0].update(bytes="4*q"), r"buffers\[0\].bytes"),
        (lambda m: m["inputs"][0].update(dtype="f33"), r"inputs\[0\].dtype"),
        (lambda m: m["inputs"][0].update(colour="red"), r"inputs\[0\].colour"),
        (lambda m: m["outputs"][0].update(alias=["input", 1]), r"outputs\[0\].alias"),
        (lambda m: m["outputs"][0].update(alias=["constant", 10**6]), r"outputs\[0\].alias"),
        (lambda m: m["outputs"][0].update(alias=["output", 0]), r"outputs\[0\].alias"),
        (lambda m: m["symbols"][0].update(inputs=[[0, 2]]), r"symbols\[0\].inputs"),
        (lambda m: m["symbols"][0].update(inputs=[[0, 1]]), r"symbols\[0\].inputs"),
        (lambda m: m["symbols"][0].update(name="s"), "symbols"),
        (lambda m: m["symbols"][0].update(name="a b"), r"symbols\[0\].name"),
        (lambda m: m["symbols"][0].update(dynamic=True), "inputs"),
        (lambda m: m["kernels"][1].update(object="k9"), r"kernels\[1\].object"),
        (lambda m: m["kernels"][1].update(symbol="k_other"), r"kernels\[1\].symbol"),
        (lambda m: m["entry"].update(symbol="nothing"), "entry.symbol"),
        (lambda m: m["entry"].update(object="nothing"), "entry.object"),
        (lambda m: m.update(pool="nothing"), "pool"),
        (lambda m: m.update(in_tree={"t": "leaf", "i": 0}), "in_tree"),
        (lambda m: m.update(out_tree={"t": "tuple", "c": []}), "out_tree"),
        (lambda m: m.update(clock="sundial"), "clock"),
        (
            lambda m: m.update(constants={"items": [{"name": "w", "offset": 200, "bytes": 100}]}),
            r"constants.items\[0\]",
        ),
        (lambda m: m.update(symbols=m["symbols"] + [{"name": "q", "lo": 0, "hi": 9}]), "frame"),
        (lambda m: m.update(surprise=1), "surprise"),
    ],
)
def test_each_lie_is_named(models, change, field):
    manifest, objects, constants = copy.deepcopy(models.bias())
    change(manifest)
    with pytest.raises(errors.BadManifest, match=f"field {field}"):
        Executable.from_parts(manifest, objects, constants)


def test_a_symbol_in_no_input_is_refused(models):
    manifest, objects, constants = copy.deepcopy(models.bias())
    manifest["symbols"].append({"name": "q", "lo": 0, "hi": 9})
    manifest["frame"] |= {"buffers": 21, "dynamic": 22, "size": 22}
    with pytest.raises(errors.BadManifest, match="'q' follows from no input"):
        Executable.from_parts(manifest, objects, constants)


def test_own_fields_are_kept(models, tmp_path):
    manifest, objects, constants = models.bias()
    manifest["x-note"] = {"anything": [1, None, "ü"]}
    Executable.from_parts(manifest, objects, constants).save(tmp_path / "m.dlc")
    assert load(tmp_path / "m.dlc").manifest["x-note"] == {"anything": [1, None, "ü"]}


FULL = """
import resource, signal, sys
import numpy as np
from dlc.errors import DlcError
from dlc.runtime.executable import load
exe = load(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
try:
    exe.save(sys.argv[2])
except DlcError as error:
    print(error.code)
"""


def test_a_full_disk_keeps_the_old_file(saved, tmp_path):
    target = tmp_path / "m.dlc"
    target.write_bytes(b"the old file")
    for limit in (0, 100, 5000):
        command = [sys.executable, "-c", FULL, str(saved), str(target), str(limit)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.stdout.strip() == "DLC0508", done.stderr
        assert target.read_bytes() == b"the old file"
        assert os.listdir(tmp_path) == ["m.dlc"]


def test_a_small_file_system_keeps_the_old_file(models, saved, tmp_path):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no right to mount a file system")
    try:
        target = tmp_path / "m.dlc"
        target.write_bytes(b"the old file")
        manifest, objects, _ = models.bias()
        exe = Executable.from_parts(manifest, objects, np.zeros(1 << 20, np.uint8))
        with pytest.raises(errors.CannotWrite, match="No space left"):
            exe.save(target)
        assert target.read_bytes() == b"the old file"
        assert os.listdir(tmp_path) == ["m.dlc"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_places_that_cannot_be_written(models, saved, tmp_path):
    exe = load(saved)
    for target in (tmp_path / "no" / "folder.dlc", tmp_path, Path("/dev/full"), Path("/proc/x.dlc")):
        with pytest.raises(errors.CannotWrite):
            exe.save(target)
    assert Path("/dev/full").is_char_device()


def test_a_link_keeps_pointing_to_the_file(saved, tmp_path):
    (tmp_path / "real").mkdir()
    target = tmp_path / "real" / "m.dlc"
    target.write_bytes(b"")
    (tmp_path / "link.dlc").symlink_to(target)
    load(saved).save(tmp_path / "link.dlc")
    assert (tmp_path / "link.dlc").is_symlink()
    assert target.read_bytes() == saved.read_bytes()


def test_a_loaded_file_may_be_replaced_while_in_use(models, saved, tmp_path):
    target = tmp_path / "m.dlc"
    target.write_bytes(saved.read_bytes())
    exe = load(target)
    exe.save(target)
    target.unlink()
    x = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(exe(x), 2 * x + models.weights[:3])


def test_write_checks_the_manifest(tmp_path):
    with pytest.raises(errors.WrongVersion):
        write_artifact(tmp_path / "m.dlc", {}, {}, np.empty(0, np.uint8))
    assert not list(tmp_path.iterdir())
