"""Inline use over MRD: originals always, labels on the same slices, and what stays up whatever is sent."""

from __future__ import annotations

import contextlib
import ctypes
import resource
import socket
import sqlite3
import struct
import threading
import time
from typing import Any

import nibabel
import numpy as np
import pytest

ismrmrd = pytest.importorskip("ismrmrd", reason="ismrmrd, which speaks MRD, is not installed")

from ismrmrd.serialization import ConfigFile, ConfigText  # noqa: E402
from orthokernels.edge import audit  # noqa: E402
from orthokernels.edge.service import Service  # noqa: E402

from orthokernels.data.study import read_study  # noqa: E402
from tests.data.series import noise, rotation  # noqa: E402
from tests.edge.conftest import needs  # noqa: E402
from tests.edge.kit import config, free_port, wait_for  # noqa: E402
from tests.edge.scanner import Scanner, block, header_xml, slices  # noqa: E402
from tests.edge.threshold import labels_of  # noqa: E402

NOTICE = "orthokernels: Research use only, not for diagnosis."


@pytest.fixture(scope="module")
def appliance(tmp_path_factory) -> Any:
    """One for all tests that need no setting of their own."""
    needs("storescu")
    service = Service(
        config(tmp_path_factory.mktemp("inline"), mrd={"port": free_port(), "limits": {"connections": 32}})
    )
    service.start()
    wait_for(lambda: service.inline.loaded)
    yield service
    service.stop()


@pytest.fixture
def inline(start) -> Any:
    """Start one with settings of its own."""

    def begin(ready: bool = True, **mrd: Any):
        service = start(mrd={"port": free_port(), **mrd})
        if ready:
            wait_for(lambda: service.inline.loaded)
        return service

    return begin


def scanner(service) -> Scanner:
    return Scanner(service.config.mrd.port)


def answers(service) -> bool:
    """Whether the port still serves a scanner."""
    with scanner(service) as own:
        return len(own.scan(slices(noise(1)), config="originals")[0]) == 18


def test_originals_come_back_first_and_to_the_byte_then_labels_on_the_same_slices(appliance):
    pixels = noise(1)
    sent = slices(pixels)
    with scanner(appliance) as own:
        images, texts = own.scan(sent)
    assert [image.to_bytes() for image in images[:18]] == [image.to_bytes() for image in sent]
    labels = labels_of(pixels)
    for number, (made, original) in enumerate(zip(images[18:], sent, strict=True)):
        assert np.array_equal(made.data[0, 0], labels[number])
        for name in ("position", "read_dir", "phase_dir", "slice_dir", "field_of_view", "slice"):
            assert list(np.ravel(getattr(made, name))) == list(np.ravel(getattr(original, name)))
        assert made.matrix_size == original.matrix_size
    assert texts == [NOTICE, "orthokernels: Tear: absent", "orthokernels: no body part was named"]


def test_labels_are_a_series_of_their_own_that_the_scanner_places_by_the_originals(appliance):
    with scanner(appliance) as own:
        images, _ = own.scan(slices(noise(1), series=7))
    made = images[18:]
    assert {image.image_series_index for image in made} == {8}
    assert [image.image_index for image in made] == list(range(1, 19))
    meta = made[0].meta
    assert (meta["DataRole"], meta["Keep_image_geometry"]) == ("Segmentation", "1")
    assert "Patient" not in meta
    assert made[0].data.dtype == np.uint16
    assert max(image.data.max() for image in made) < 2**12


@pytest.mark.parametrize("plane", ["sagittal", "coronal", "axial"])
@pytest.mark.parametrize("backwards", [False, True])
def test_oblique_images_in_any_order_get_labels_on_their_own_slices(appliance, plane, backwards):
    pixels = noise(2)
    sent = slices(pixels, plane, rotate=rotation(8, -12, 20))
    order = list(range(18))[::-1] if backwards else [*range(0, 18, 2), *range(1, 18, 2)]
    with scanner(appliance) as own:
        images, _ = own.scan([sent[number] for number in order])
    for made, number in zip(images[18:], order, strict=True):
        assert np.array_equal(made.data[0, 0], labels_of(pixels)[number])
        assert np.allclose(list(made.position), list(sent[number].position))


def test_position_of_the_first_voxel_instead_of_the_centre_gives_the_same_labels(appliance):
    pixels = noise(2)
    sent = slices(pixels, rotate=rotation(8, -12, 20))
    for image in sent:
        sides = np.array(image.matrix_size[:2])
        back = -(sides - 1) / 2 * np.array(image.field_of_view[:2]) / sides
        image.position = tuple(
            np.array(image.position) + back @ np.array([list(image.read_dir), list(image.phase_dir)])
        )
    with scanner(appliance) as own:
        images, _ = own.scan(sent)
    assert all(np.array_equal(made.data[0, 0], labels_of(pixels)[k]) for k, made in enumerate(images[18:]))


def test_volume_in_one_image_gives_labels_in_one_image(appliance):
    pixels = noise(3)
    with scanner(appliance) as own:
        images, _ = own.scan([block(slices(pixels))])
    assert len(images) == 2
    assert np.array_equal(images[1].data[0], labels_of(pixels))
    assert images[1].field_of_view[2] == images[0].field_of_view[2]


def test_planes_of_one_measurement_each_get_a_series(appliance):
    sent = [
        image
        for number, plane in enumerate(("sagittal", "coronal", "axial"))
        for image in slices(noise(number), plane, series=number)
    ]
    with scanner(appliance) as own:
        images, _ = own.scan(sent)
    assert [image.image_series_index for image in images[54:]] == [3] * 18 + [4] * 18 + [5] * 18


@pytest.mark.parametrize("plane", ["sagittal", "coronal", "axial"])
def test_volume_lies_where_the_headers_say(inline, tmp_path, plane):
    """Against the DICOM reader: the same slices as DICOM files and as MRD images are one volume."""
    from orthokernels.edge.config import Disk
    from orthokernels.edge.mrd.messages import Image
    from orthokernels.edge.mrd.originals import Originals
    from orthokernels.edge.mrd.scan import Scan
    from orthokernels.edge.mrd.volumes import write_volumes

    from tests.data.series import write_series

    tilt = (5.0, 10.0, -15.0)
    write_series(tmp_path / "dicom", noise(4), plane=plane, tilt=tilt, spacing=(0.5, 0.7, 4.0), start=(-40, -60, 50))
    expected = read_study([tmp_path / "dicom"]).load(plane)
    (tmp_path / "mrd").mkdir()
    with Originals(tmp_path, Disk(keep_free_bytes=0, refuse_above=1.0)) as originals:
        for image in slices(noise(4), plane, rotate=rotation(*tilt)):
            content = image.to_bytes()
            originals.keep(Image(image.getHead(), content, len(content) - image.data.nbytes))
        (made,) = write_volumes(originals, Scan(), tmp_path / "mrd", 100)
    found = nibabel.load(made.path)
    assert np.array_equal(np.asanyarray(found.dataobj), expected.voxels)
    # MRD keeps positions and directions as 32-bit floats: of some 100 mm, 1e-5 mm are lost at most
    assert np.allclose(found.affine, expected.affine, atol=1e-4)


def test_signed_and_unsigned_images_of_32_bits_make_one_volume(tmp_path):
    """No type of 32 bits holds both."""
    from orthokernels.edge.config import Disk
    from orthokernels.edge.mrd.messages import Image
    from orthokernels.edge.mrd.originals import Originals
    from orthokernels.edge.mrd.scan import Scan
    from orthokernels.edge.mrd.volumes import write_volumes

    pixels = noise(4).astype(np.uint32)
    with Originals(tmp_path, Disk(keep_free_bytes=0, refuse_above=1.0)) as originals:
        for number, image in enumerate(slices(pixels)):
            header, content = image.getHead(), image.to_bytes()
            header.data_type = ismrmrd.DATATYPE_INT if number % 2 else ismrmrd.DATATYPE_UINT
            originals.keep(Image(header, content, len(content) - image.data.nbytes))
        (made,) = write_volumes(originals, Scan(), tmp_path, 100)
    assert np.array_equal(np.sort(np.asanyarray(nibabel.load(made.path).dataobj).ravel()), np.sort(pixels.ravel()))


@pytest.mark.parametrize(
    ("kind", "values"),
    [(np.uint16, 1), (np.int16, 1), (np.uint32, 1), (np.float32, 0.25), (np.float64, 0.25)],
)
def test_magnitudes_of_any_type_are_labelled(appliance, kind, values):
    pixels = (noise(5) * values).astype(kind)
    with scanner(appliance) as own:
        images, _ = own.scan(slices(pixels))
    assert np.array_equal(images[20].data[0, 0], labels_of(pixels)[2])


def test_configuration_says_what_comes_back(appliance):
    counts = {}
    for name in ("orthokernels", "segmentation", "findings", "originals"):
        with scanner(appliance) as own:
            images, texts = own.scan(slices(noise(1)), config=name)
        counts[name] = (len(images), sum("Tear" in text for text in texts))
    assert counts == {"orthokernels": (36, 1), "segmentation": (36, 0), "findings": (18, 1), "originals": (18, 0)}


def test_configuration_may_come_as_a_text_of_parameters(appliance):
    with scanner(appliance) as own:
        own.send(ConfigFile("openrecon"), ConfigText('{"version": "1.1.0", "parameters": {"config": "segmentation"}}'))
        images, _ = own.scan(slices(noise(1)), config="segmentation")
    assert len(images) == 36


def test_a_study_in_the_queue_does_not_hold_up_the_scanner(inline, study, tmp_path):
    from tests.edge.kit import store, write_study

    service = inline()
    assert store(service.config, write_study(tmp_path / "hang", SeriesDescription="hang")).returncode == 0
    wait_for(lambda: service.store.jobs(("inferring",)))
    with scanner(service) as own:
        assert len(own.scan(slices(noise(1)))[0]) == 36


def refused(texts: list[str], reason: str) -> bool:
    return len(texts) == 1 and texts[0].startswith("orthokernels: No result: ") and reason in texts[0]


@pytest.mark.parametrize("name", ["os", "../../etc/passwd", "orthokernels.edge.service", "", "x" * 1023])
def test_unknown_configuration_imports_nothing_and_returns_the_originals(appliance, name):
    with scanner(appliance) as own:
        images, texts = own.scan(slices(noise(1)), config=name)
    assert len(images) == 18
    assert refused(texts, "the configuration is not known here; choose from orthokernels, segmentation")


@pytest.mark.parametrize(
    ("protocol", "reason"),
    [
        ("reject", "metal near the joint"),
        ("crash", "the model gave no answer: it was ended by SIGABRT"),
        ("hang", "the model gave no answer: it took longer than"),
    ],
)
def test_originals_come_back_when_the_model_fails_and_the_next_scan_is_labelled(inline, protocol, reason):
    service = inline(inline_seconds=2.0)
    with scanner(service) as own:
        images, texts = own.scan(slices(noise(1)), xml=header_xml(protocol))
    assert len(images) == 18
    assert refused(texts, reason)
    wait_for(lambda: service.inline.loaded)
    with scanner(service) as own:
        assert len(own.scan(slices(noise(1)))[0]) == 36


def test_without_a_model_originals_come_back_with_the_reason(start):
    service = start(mrd={"port": free_port()}, work={"command": ["false"]})
    wait_for(lambda: service.inline.unusable)
    with scanner(service) as own:
        images, texts = own.scan(slices(noise(1)))
    assert len(images) == 18
    assert refused(texts, "the model for inline use can't be used: it ended with exit status 1")


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"position": (float("nan"), 0, 0)}, "no valid geometry"),
        ({"read_dir": (0, 0, 0)}, "no valid geometry"),
        ({"phase_dir": (0, 1, 0)}, "no valid geometry"),
        ({"field_of_view": (0, 10, 4)}, "no valid geometry"),
        ({"field_of_view": (float("inf"), 10, 4)}, "no valid geometry"),
        ({"image_type": ismrmrd.IMTYPE_PHASE}, "phase images are not evaluated"),
        ({"image_type": ismrmrd.IMTYPE_COMPLEX}, "send magnitude images"),
    ],
)
def test_images_without_a_usable_place_or_kind_come_back_with_the_reason(appliance, changed, reason):
    with scanner(appliance) as own:
        images, texts = own.scan(slices(noise(1), **changed))
    assert len(images) == 18
    assert refused(texts, reason)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_pixels_that_are_no_numbers_come_back_with_the_reason(appliance, value):
    pixels = noise(1).astype(np.float32)
    pixels[3, 4, 5] = value
    with scanner(appliance) as own:
        images, texts = own.scan(slices(pixels))
    assert np.array_equal(images[3].data[0, 0], pixels[3], equal_nan=True)
    assert refused(texts, "voxels are NaN or infinite")


def test_complex_images_come_back_with_the_reason(appliance):
    with scanner(appliance) as own:
        images, texts = own.scan(slices(noise(1).astype(np.complex64)))
    assert len(images) == 18
    assert refused(texts, "complex")


def test_too_few_slices_come_back_with_the_reason(appliance):
    with scanner(appliance) as own:
        images, texts = own.scan(slices(noise(1, 5)))
    assert len(images) == 5
    assert texts[0].startswith("orthokernels: No result: ")
    assert "5 slices; at least 16 are needed" in texts[0]
    assert str(appliance.config.appliance.data) not in texts[0]


def readouts(kspace: np.ndarray) -> list[ismrmrd.Acquisition]:
    """k-space (coil, line, sample) as MRD readouts."""
    made = []
    for line in range(kspace.shape[1]):
        readout = ismrmrd.Acquisition.from_array(np.ascontiguousarray(kspace[:, line]))
        readout.idx.kspace_encode_step_1 = line
        made.append(readout)
    return made


def test_raw_data_is_refused_politely(appliance, real_data):
    kspace = np.load(real_data / "kspace-brain" / "cartesian_ksp.npy")
    with scanner(appliance) as own:
        wave = ismrmrd.Waveform.from_array(np.zeros((2, 100), np.uint32))
        images, texts = own.scan([*readouts(kspace), wave])
    assert not images
    assert refused(texts, "230 readouts of raw data came and no image; this appliance reads images")
    assert answers(appliance)


def test_images_beside_raw_data_are_labelled(appliance):
    sent = [*readouts(np.ones((2, 4, 8), np.complex64)), *slices(noise(1))]
    with scanner(appliance) as own:
        assert len(own.scan(sent)[0]) == 36


IMAGE = 1022


def head(**fields: Any) -> bytes:
    """The start of an image message, up to the length of its attributes."""
    header = slices(noise(1, 1))[0].getHead()
    for name, value in fields.items():
        setattr(header, name, value)
    return struct.pack("<H", IMAGE) + bytes(header)


ACQUISITION = ismrmrd.AcquisitionHeader(number_of_samples=65535, active_channels=65535, trajectory_dimensions=65535)
WAVEFORM = ismrmrd.WaveformHeader(number_of_samples=65535, channels=65535)


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        (head(matrix_size=(65535, 65535, 65535), channels=65535), "an image of"),
        (head(matrix_size=(65535, 65535, 1)), "an image of 8589672450 bytes came; 268435456 are allowed"),
        (head(data_type=99), "an image of data type 99 came"),
        (head() + struct.pack("<Q", 2**64 - 1), "attributes of 18446744073709551615 bytes"),
        (struct.pack("<HI", 3, 2**32 - 1), "a text of 4294967295 bytes came"),
        (struct.pack("<HI", 2, 2**32 - 1), "a text of"),
        (struct.pack("<HI", 5, 2**32 - 1), "a text of"),
        (struct.pack("<H", 1008) + bytes(ACQUISITION), "raw data of"),
        (struct.pack("<H", 1026) + bytes(WAVEFORM), "raw data of"),
        (struct.pack("<H", 1030) + bytes(100), "message 1030 came, whose length is not known here"),
        (struct.pack("<H", 0), "message 0 came"),
        (b"GET / HTTP/1.1\r\n\r\n", "message 17735 came"),
    ],
)
def test_length_that_lies_ends_the_connection_after_the_originals(appliance, lie, reason):
    with scanner(appliance) as own:
        own.send(ConfigFile("orthokernels"), *slices(noise(1)))
        own.send_bytes(lie)
        images, texts = own.sorted_answers()
    assert len(images) == 18
    assert refused(texts, reason)
    assert answers(appliance)


@pytest.mark.parametrize(
    "xml",
    [
        "not XML",
        "<a>" * 100_000,
        '<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;&b;">]><a>&c;</a>',
        '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a><protocolName>&b;</protocolName></a>',
        "<a><TE>NaN</TE><TR>1e999</TR><sequence_type/></a>",
        '<?xml version="1.0" encoding="klingon"?><a/>',
        '<?xml version="1.0" encoding="utf-7"?><a/>',
        '<?xml version="1.0" encoding="hex"?><a/>',
    ],
)
def test_header_that_can_not_be_read_costs_nothing_but_what_it_said(appliance, xml):
    with scanner(appliance) as own:
        images, texts = own.scan(slices(noise(1)), xml=xml)
    assert len(images) == 36
    assert not any("root:" in text for text in texts)


@pytest.mark.parametrize("cut", [1, 2, 100, 250, 5000])
def test_scanner_that_leaves_in_mid_message_gets_what_it_had_sent(appliance, cut):
    first, second = slices(noise(1, 2, 64, 64))
    with scanner(appliance) as own:
        own.send(ConfigFile("orthokernels"), first)
        own.send_bytes((struct.pack("<H", IMAGE) + second.to_bytes())[:cut])
        own.socket.shutdown(socket.SHUT_WR)
        images, texts = own.sorted_answers()
    assert len(images) == 1
    assert refused(texts, "the connection ended within a message")


def test_scanner_that_is_gone_leaves_nothing_behind(inline):
    service = inline(ready=False)
    for _ in range(10):
        with scanner(service) as own:
            own.send(ConfigFile("orthokernels"), *slices(noise(1, 2)))

    def served() -> bool:
        """Those that are gone may still wait to be accepted, and are too many at once until they were."""
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            return answers(service)
        return False

    wait_for(served)
    wait_for(lambda: not service._mrd._open)
    assert not list((service.config.appliance.data / "inline").iterdir())


@pytest.mark.parametrize(
    "sent", [b"", b"\x01", struct.pack("<H", 1) + b"ortho", struct.pack("<HI", 3, 500) + b"<", head()]
)
def test_scanner_that_falls_silent_gets_its_images_in_time(inline, sent):
    service = inline(ready=False, limits={"idle_seconds": 0.5, "message_seconds": 0.5})
    with scanner(service) as own:
        own.send(*slices(noise(1, 2)))
        own.send_bytes(sent)
        assert answers(service)
        images, texts = own.sorted_answers()
    assert len(images) == 2
    assert refused(texts, "nothing more came in time")


def test_scanner_that_drips_is_answered_at_the_deadline_of_its_message(inline):
    service = inline(ready=False, limits={"message_seconds": 1.0})
    began = time.monotonic()
    with scanner(service) as own:
        own.send_bytes(struct.pack("<HI", 3, 500))
        with contextlib.suppress(OSError):
            while time.monotonic() - began < 15:
                own.send_bytes(b"x")
                time.sleep(0.1)
    assert time.monotonic() - began < 10  # 500 bytes at this pace take 50 seconds


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"messages_per_connection": 10}, "more than 10 messages came"),
        ({"bytes_per_connection": 10_000}, "more than 10000 bytes came"),
    ],
)
def test_more_than_a_connection_may_send_is_not_read_and_what_was_is_returned(inline, limits, reason):
    service = inline(ready=False, limits=limits)
    with scanner(service) as own:
        own.send(ConfigFile("orthokernels"), *slices(noise(1)))
        images, texts = own.sorted_answers()
    assert 5 <= len(images) <= 10
    assert refused(texts, reason)


def test_more_images_than_are_kept_go_straight_back(inline):
    service = inline(ready=False, limits={"images_per_connection": 9})
    with scanner(service) as own:
        images, texts = own.scan(slices(noise(1)))
    assert [image.image_index for image in images] == list(range(1, 19))
    assert refused(texts, "more than 9 images came")


def test_images_that_can_not_be_kept_go_straight_back(inline, monkeypatch):
    from orthokernels.edge.mrd.originals import Originals

    kept = Originals.keep

    def keep(self, image):
        if len(self.headers) == 5:
            raise OSError(28, "No space left on device")
        kept(self, image)

    service = inline(ready=False)
    monkeypatch.setattr(Originals, "keep", keep)
    with scanner(service) as own:
        images, texts = own.scan(slices(noise(1)))
    assert [image.image_index for image in images] == list(range(1, 19))
    assert refused(texts, "there was no room to keep the images")


def test_full_disk_sends_the_images_straight_back(start):
    service = start(mrd={"port": free_port()}, disk={"keep_free_bytes": 2**60})
    sent = slices(noise(1))
    with scanner(service) as own:
        images, texts = own.scan(sent)
    assert [image.to_bytes() for image in images] == [image.to_bytes() for image in sent]
    assert refused(texts, "there was no room to keep the images")


def test_folder_that_can_not_be_written_sends_the_images_straight_back(inline):
    service = inline(ready=False)
    folder = service.config.appliance.data / "inline"
    wait_for(folder.is_dir)  # its thread makes it
    folder.rmdir()
    sent = slices(noise(1))
    for _ in range(2):
        with scanner(service) as own:
            images, texts = own.scan(sent)
        assert [image.to_bytes() for image in images] == [image.to_bytes() for image in sent]
        assert refused(texts, "there was no room to keep the images")


def test_images_before_the_disk_was_full_can_still_be_read(tmp_path):
    """A buffer would hold on to what could not be written, and fail every read after it."""
    from orthokernels.edge.mrd.messages import Image
    from orthokernels.edge.mrd.originals import Originals

    with Originals(tmp_path, config(tmp_path).disk) as originals:
        images = [Image(ismrmrd.ImageHeader(), bytes([number]) * 3000, 0) for number in range(4)]
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        try:
            for image in images[:3]:
                originals.keep(image)
            with pytest.raises(OSError, match="File too large"):
                originals.keep(images[3])
            assert list(originals._messages()) == [image.message for image in images[:3]]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_connections_that_can_not_be_noted_do_not_keep_their_places(inline, monkeypatch, caplog):
    service = inline(ready=False, limits={"connections": 2})
    noted = audit.append

    def append(connection, event, *rest):
        if event == "inline":
            raise sqlite3.OperationalError("disk I/O error")
        noted(connection, event, *rest)

    monkeypatch.setattr(audit, "append", append)
    for _ in range(5):
        assert answers(service)
        wait_for(lambda: not service._mrd._open)
    assert "could not be noted in the audit log" in caplog.text


def test_more_slices_or_orientations_than_a_scan_has_are_not_sorted(appliance):
    thin = [block(slices(noise(1, 1500, 1, 1)))] * 3
    turned = [
        slices(noise(1, 1, 4, 4), rotate=rotation(0, 0, angle))[0] for angle in np.linspace(0, 360, 300, endpoint=False)
    ]
    for sent, reason in ((thin, "more than 4096 slices"), (turned, "more than 200 different sizes and orientations")):
        with scanner(appliance) as own:
            images, texts = own.scan(sent)
        assert len(images) == len(sent)
        assert refused(texts, reason)


def test_unknown_host_is_not_talked_to(inline):
    service = inline(ready=False, hosts=["192.0.2.0/24"])
    with scanner(service) as own, contextlib.suppress(ConnectionResetError):
        assert own.socket.recv(1) == b""


def test_more_connections_than_allowed_are_closed_and_those_that_are_open_go_on(inline):
    service = inline(limits={"connections": 2})
    with scanner(service) as first, scanner(service):
        wait_for(lambda: len(service._mrd._open) == 2)
        with scanner(service) as third, contextlib.suppress(ConnectionResetError):
            assert third.socket.recv(1) == b""
        assert len(first.scan(slices(noise(1)))[0]) == 36
    wait_for(lambda: not service._mrd._open)
    assert answers(service)


def test_two_scanners_at_once_are_each_answered_with_their_own(appliance):
    found: dict[int, list[Any]] = {}

    def scan(seed: int) -> None:
        with scanner(appliance) as own:
            found[seed] = own.scan(slices(noise(seed)))[0]

    threads = [threading.Thread(target=scan, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for seed, images in found.items():
        assert np.array_equal(images[18].data[0, 0], labels_of(noise(seed))[0])


def test_each_connection_is_in_the_audit_log_without_the_patient(inline, caplog):
    service = inline()
    caplog.set_level("INFO")
    with scanner(service) as own:
        own.scan(slices(noise(1)))
    (entry,) = wait_for(lambda: [one for one in audit.entries(service.store.database) if one["event"] == "inline"])
    assert (entry["actor"], entry["outcome"]) == ("127.0.0.1", "18 images returned, 18 made")
    assert "Secret" not in caplog.text


def test_what_a_crash_left_is_removed_at_the_next_start(inline, tmp_path):
    left = tmp_path / "data" / "inline" / "tmp123"
    left.mkdir(parents=True)
    (left / "0.nii").write_text("pixels")
    service = inline(ready=False)
    assert answers(service)
    assert not left.exists()


def test_sizes_of_the_packages_structures_are_those_on_the_wire():
    """ISMRMRD's C structures are packed to two bytes; waveforms' to eight."""
    sizes = [ctypes.sizeof(one) for one in (ismrmrd.ImageHeader, ismrmrd.AcquisitionHeader, ismrmrd.WaveformHeader)]
    assert sizes == [198, 340, 40]


def test_appliance_without_the_section_does_not_listen(start):
    assert start().inline is None
