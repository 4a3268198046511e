"""The appliance's configuration: one TOML file, checked as a whole before anything starts."""

from __future__ import annotations

import hashlib
import os
import sys
import tomllib
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from orthokernels.edge.forms import FORMS, Form, LabelMap, wished
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from orthokernels.errors import InputError
from orthokernels.tasks import PLANES

TEMPLATE = Path(__file__).with_name("appliance.toml")

# PS3.5 table 6.2-1: at most 16 characters of the default repertoire, no backslash; spaces around it mean nothing.
AETitle = Annotated[str, StringConstraints(pattern=r"^[!-\[\]-~]([ -\[\]-~]{0,14}[!-\[\]-~])?$")]
Port = Annotated[int, Field(ge=1, le=65535)]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]
HostName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$", to_lower=True)]
Priority = Annotated[int, Field(ge=0, le=9)]
Seconds = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def _network(given: Any) -> Any:
    try:
        return ip_network(given)
    except ValueError as error:
        raise ValueError("must be an address or a network, as 192.0.2.10 or 192.0.2.0/24") from error


def _host(given: str) -> str:
    """An empty one would be every interface, or this machine; one that no look-up takes ends in an error of ours."""
    try:
        given.encode("idna")
    except UnicodeError:
        given = ""
    if not given.strip():
        raise ValueError("must be an address or a host's name")
    return given


Host = Annotated[str, AfterValidator(_host)]


Network = Annotated[IPv4Network | IPv6Network, BeforeValidator(_network)]
Networks = Annotated[tuple[Network, ...], Field(min_length=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Appliance(_Section):
    """Who the appliance is, and where it keeps everything."""

    ae_title: AETitle = "ORTHOKERNELS"
    data: Path = Path("/var/lib/orthokernels")


class Tls(_Section):
    """Certificate and key of this side; ``authority`` signs the other's, which ``mutual`` demands of who connects."""

    certificate: Path | None = None
    key: Path | None = None
    authority: Path | None = None
    mutual: bool = False

    @model_validator(mode="after")
    def _together(self) -> Tls:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key are given together or not at all")
        if self.mutual and self.authority is None:
            raise ValueError("mutual needs an authority, which signed the other side's certificate")
        return self


def _served(tls: Tls) -> Tls:
    if tls.certificate is None:
        raise ValueError("needs a certificate and its key to be served")
    return tls


ServedTls = Annotated[Tls, AfterValidator(_served)]


class Peer(_Section):
    """Who may send: an AE title, from these networks. 0 is the most urgent priority, 9 the least.

    What a peer sends that is not to ``deliver`` is worked on as everything else, and its results stay here.
    """

    ae_title: AETitle
    hosts: Networks
    priority: Priority = 5
    deliver: bool = True


class Limits(_Section):
    """What a sender may ask of the appliance; beyond it the association is refused or cut."""

    pdu_bytes: Annotated[int, Field(ge=16384, le=2**20)] = 131072
    associations: Annotated[int, Field(ge=1, le=100)] = 8
    instances_per_association: Annotated[int, Field(ge=1)] = 20000
    bytes_per_association: Annotated[int, Field(ge=1)] = 16 * 2**30
    bytes_per_instance: Annotated[int, Field(ge=1, le=2**31)] = 256 * 2**20
    elements_before_uids: Annotated[int, Field(ge=16)] = 2000
    idle_seconds: Annotated[float, Field(gt=0)] = 60.0
    pdu_seconds: Annotated[float, Field(gt=0)] = 30.0
    handshake_seconds: Annotated[float, Field(gt=0)] = 10.0
    waiting_studies: Annotated[int, Field(ge=1)] = 200


class Disk(_Section):
    """Below ``keep_free_bytes`` or above ``refuse_above`` nothing is taken in; before it comes to that, and above
    ``clean_above``, what was delivered goes, oldest first."""

    keep_free_bytes: Annotated[int, Field(ge=0)] = 5 * 2**30
    refuse_above: Annotated[float, Field(gt=0, le=1)] = 0.75
    clean_above: Annotated[float, Field(gt=0, le=1)] = 0.90


class Receive(_Section):
    """The DICOM storage SCP."""

    host: Host = "127.0.0.1"
    port: Port = 11112
    peers: tuple[Peer, ...] = ()
    tls: ServedTls | None = None
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _titles_differ(self) -> Receive:
        titles = [peer.ae_title for peer in self.peers]
        if len(set(titles)) < len(titles):
            raise ValueError("an AE title is listed twice among the peers; give one entry all its hosts")
        return self

    @property
    def unreached(self) -> bool:
        """Whether it listens to this machine alone, and lists peers that are elsewhere."""
        networks = [network for peer in self.peers for network in peer.hosts]
        return self.host in _LOOPBACK and not all(network.is_loopback for network in networks)


class Watch(_Section):
    """A folder that is emptied into the appliance."""

    folder: Path
    priority: Priority = 5
    seconds_unchanged: Annotated[float, Field(gt=0)] = 2.0


class StowPeer(_Section):
    """Who may post: whoever shows the token that this file holds, from these networks."""

    name: Name
    hosts: Networks
    token_file: Path | None = None
    priority: Priority = 5


class StowLimits(_Section):
    """What one request may ask of the appliance. An instance's own limits are those of ``receive.limits``."""

    requests: Annotated[int, Field(ge=1, le=100)] = 8
    parts: Count = 20000
    bytes_per_request: Count = 16 * 2**30
    header_seconds: Seconds = 10.0
    idle_seconds: Seconds = 30.0
    request_seconds: Seconds = 3600.0
    retry_after_seconds: Count = 60


class Stow(_Section):
    """DICOMweb in: a STOW-RS server."""

    host: Host = "127.0.0.1"
    port: Port = 8081
    peers: tuple[StowPeer, ...] = ()
    tls: ServedTls | None = None
    allow_plain: bool = False
    limits: StowLimits = StowLimits()

    @model_validator(mode="after")
    def _closed_to_strangers(self) -> Stow:
        names = [peer.name for peer in self.peers]
        if len(set(names)) < len(names):
            raise ValueError("two peers have the same name; images are tracked by it")
        if self.host in _LOOPBACK:
            return self
        if not self.peers or any(peer.token_file is None for peer in self.peers):
            raise ValueError("off 127.0.0.1 there must be peers, each with a token_file, a file that holds its token")
        if self.tls is None and not self.allow_plain:
            raise ValueError("off 127.0.0.1 it needs tls, or allow_plain = true lets tokens and images go unencrypted")
        return self


class MrdLimits(_Section):
    """What a scanner's connection may ask of the appliance."""

    connections: Annotated[int, Field(ge=1, le=100)] = 8
    bytes_per_message: Annotated[int, Field(ge=1024, le=2**31)] = 256 * 2**20
    bytes_per_text: Annotated[int, Field(ge=1024, le=2**26)] = 4 * 2**20
    bytes_per_connection: Count = 4 * 2**30
    messages_per_connection: Count = 1_000_000
    images_per_connection: Annotated[int, Field(ge=1, le=65535)] = 4096
    idle_seconds: Seconds = 600.0
    message_seconds: Seconds = 30.0


class Mrd(_Section):
    """Inline use: images from a scanner over MRD, labels back on the same connection."""

    host: Host = "127.0.0.1"
    port: Port = 9002
    hosts: Networks = (IPv4Network("127.0.0.1/32"),)
    inline_seconds: Seconds = 120.0
    limits: MrdLimits = MrdLimits()


class Settle(_Section):
    """When a study counts as complete. One that lacks a plane waits ``plane_seconds`` for it, if that is longer."""

    quiet_seconds: Annotated[float, Field(gt=0)] = 60.0
    plane_seconds: Annotated[float, Field(ge=0)] = 0.0
    early: bool = True
    give_up_seconds: Annotated[float, Field(gt=0)] = 5400.0


class Results(_Section):
    """What decides the results, beside the images and the model; its digest goes into every output's UID."""

    joint: Literal["knee", "ankle", "shoulder"] = "knee"
    planes: Annotated[tuple[Literal["sagittal", "coronal", "axial"], ...], Field(min_length=1)] = PLANES  # type: ignore[assignment]
    preparation: Literal["full", "published"] = "full"
    seed: Annotated[int, Field(ge=0)] = 0
    label_map: bool = False
    indeterminate_within: Annotated[float, Field(ge=0, le=0.5)] = 0.0

    def digest(self) -> str:
        """Of what decides results. A setting that came later does not count where it is off, so that what was made
        before it keeps its identifiers."""
        off = set() if self.indeterminate_within else {"indeterminate_within"}
        return hashlib.sha256(self.model_dump_json(exclude=off).encode()).hexdigest()


class Work(_Section):
    """The process that reads pixels and runs the model, and what it may use.

    ``bundle_key`` is the public key (PEM) that must have signed the bundle; without one it need not be signed.
    """

    bundle: Path | None = None
    bundle_key: Path | None = None
    command: tuple[str, ...] = (sys.executable, "-m", "orthokernels.edge.evaluate")
    workers: Annotated[int, Field(ge=1, le=16)] = 1
    memory_bytes: Annotated[int, Field(ge=2**26)] = 8 * 2**30
    check_seconds: Annotated[float, Field(gt=0)] = 120.0
    study_seconds: Annotated[float, Field(gt=0)] = 1800.0
    start_seconds: Annotated[float, Field(gt=0)] = 300.0
    attempts: Annotated[int, Field(ge=1)] = 2
    lease_seconds: Annotated[float, Field(ge=1)] = 30.0


class Destination(_Section):
    """Where results go. A failed try waits ``first_wait_seconds``, then three times as long each time.

    ``label_map`` is its own word on the form of segmentations, "auto" for label maps where it accepts them; without
    one, that of the results' section counts.
    """

    name: Name
    label_map: Literal[True, False, "auto", None] = None
    tls: Tls | None = None
    tries: Annotated[int, Field(ge=1)] = 5
    first_wait_seconds: Annotated[float, Field(gt=0)] = 5.0
    longest_wait_seconds: Annotated[float, Field(gt=0)] = 900.0
    timeout_seconds: Annotated[float, Field(gt=0)] = 60.0

    @field_validator("tls")
    @classmethod
    def _shows_its_own(cls, tls: Tls | None) -> Tls | None:
        if tls is not None and tls.mutual:
            told = "is for who connects here; a destination that asks for a certificate is shown certificate and key"
            raise ValueError(f"mutual {told}")
        return tls


class DimseDestination(Destination):
    """A storage SCP, by C-STORE."""

    kind: Literal["dimse"] = "dimse"
    ae_title: AETitle
    host: Host
    port: Port
    commitment: bool = False
    commitment_seconds: Annotated[float, Field(gt=0)] = 3600.0


class WebDestination(Destination):
    """A DICOMweb server, by STOW-RS. ``url`` is what ``/studies`` is added to."""

    kind: Literal["dicomweb"]
    url: str
    token_file: Path | None = None
    password_file: Path | None = None
    allow_plain: bool = False
    bytes_per_request: Count = 64 * 2**20

    @field_validator("url")
    @classmethod
    def _is_plain_address(cls, url: str) -> str:
        parts = urlsplit(url)
        more = "@" in parts.netloc or parts.query or parts.fragment
        if parts.scheme not in ("http", "https") or not parts.hostname or more:
            raise ValueError("url must be https://HOST/PATH, with neither a user nor a query nor a fragment in it")
        _host(parts.hostname)
        if parts.port == 0:  # one that is no number, or too large, it tells itself
            raise ValueError("port must be from 1 to 65535")
        return url.rstrip("/")

    @field_validator("label_map")
    @classmethod
    def _is_known_beforehand(cls, label_map: LabelMap | None) -> LabelMap | None:
        if label_map == "auto":
            raise ValueError("a DICOMweb server can't be asked what it accepts; say true or false")
        return label_map

    @model_validator(mode="after")
    def _safe(self) -> WebDestination:
        address = urlsplit(self.url)
        if address.scheme == "http" and address.hostname not in _LOOPBACK and not self.allow_plain:
            raise ValueError("url must be https off this machine, or allow_plain = true lets images go unencrypted")
        if self.token_file is not None and self.password_file is not None:
            raise ValueError("token_file and password_file exclude each other")
        if address.scheme == "http" and self.tls is not None:
            raise ValueError("url must be https where there is tls, which http does nothing with")
        return self


def _kind(given: Any) -> Any:
    return given.get("kind", "dimse") if isinstance(given, dict) else getattr(given, "kind", None)


AnyDestination = Annotated[
    Annotated[DimseDestination, Tag("dimse")] | Annotated[WebDestination, Tag("dicomweb")], Discriminator(_kind)
]


class Retention(_Section):
    """How long what is finished stays. What was not delivered stays until someone decides.

    ``kept_here_days`` is for results that no destination was to get. They are nowhere else, so it is as long as for
    what waits for a person; not for ever, since every visit of ``edge doctor`` leaves a study.
    """

    delivered_days: Annotated[float, Field(ge=0)] = 7.0
    kept_here_days: Annotated[float, Field(ge=0)] = 30.0
    rejected_days: Annotated[float, Field(ge=0)] = 30.0


class Page(_Section):
    """The page and its probes. Off loopback a token is needed, and ``tls`` keeps it from being read on the way.

    ``names`` are the host names by which browsers may reach it, beside localhost and IP addresses.
    """

    host: Host = "127.0.0.1"
    port: Port = 8080
    token_file: Path | None = None
    names: tuple[HostName, ...] = ()
    tls: ServedTls | None = None
    show_patient: bool = False

    @model_validator(mode="after")
    def _token_off_loopback(self) -> Page:
        if self.host not in _LOOPBACK and self.token_file is None:
            raise ValueError("a page that is not on 127.0.0.1 needs token_file, a file that holds the token")
        return self

    @property
    def in_clear(self) -> bool:
        """Whether its token, and all that it shows, cross a network unencrypted."""
        return self.host not in _LOOPBACK and self.tls is None


class Config(_Section):
    """The whole file."""

    appliance: Appliance = Appliance()
    receive: Receive = Receive()
    watch: Watch | None = None
    stow: Stow | None = None
    mrd: Mrd | None = None
    disk: Disk = Disk()
    settle: Settle = Settle()
    results: Results = Results()
    work: Work = Work()
    destinations: tuple[AnyDestination, ...] = ()
    retention: Retention = Retention()
    page: Page = Page()

    @model_validator(mode="after")
    def _names_differ(self) -> Config:
        names = [destination.name for destination in self.destinations]
        if len(set(names)) < len(names):
            raise ValueError("two destinations have the same name; results are tracked by it")
        return self

    @model_validator(mode="after")
    def _empties_no_folder_of_its_own(self) -> Config:
        if self.watch is None:
            return self
        watched = self.watch.folder.resolve()
        for what, own in (("appliance.data", self.appliance.data), ("work.bundle", self.work.bundle)):
            if own is not None and (own.resolve().is_relative_to(watched) or watched.is_relative_to(own.resolve())):
                raise ValueError(
                    f"watch.folder ({self.watch.folder}) is emptied, so it can't hold {what} ({own}) nor lie in it; "
                    "watch a folder of its own"
                )
        return self

    def label_map(self, destination: Destination) -> LabelMap:
        """Whether a destination gets label maps."""
        return self.results.label_map if destination.label_map is None else destination.label_map

    def forms(self) -> tuple[Form, ...]:
        """The forms of segmentation that some destination may get; the results' own, where there is none."""
        settings = [self.label_map(one) for one in self.destinations] or [self.results.label_map]
        return tuple(form for form in FORMS if any(form in wished(setting) for setting in settings))


def load(path: Path) -> Config:
    """The configuration in ``path``.

    Raises:
        InputError: the file can't be read, or something in it is wrong: one sentence for each mistake.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{path}: can't be read ({error.strerror}). Write one: orthokernels edge init {path}"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text (byte {error.start}). Save it as UTF-8.") from error
    try:
        return Config.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: is not TOML: {error}.") from error
    except ValidationError as error:
        raise InputError("\n".join(_sentence(path, dict(mistake)) for mistake in _mistakes(error))) from error


def _mistakes(error: ValidationError) -> list[Any]:
    """One for each place: a list that loses a wrong entry counts as too short as well."""
    found = error.errors()
    return [
        one for one in found
        if not any(one["loc"] == other["loc"][: len(one["loc"])] and one is not other for other in found)
    ]  # fmt: skip


def _sentence(path: Path, mistake: dict[str, object]) -> str:
    places = mistake["loc"]
    assert isinstance(places, tuple)
    if places[:1] == ("destinations",):
        places = (*places[:2], *places[3:])  # the third is the kind, which the file need not name
    where = ".".join(str(place) for place in places)
    given = "" if mistake["type"] in ("missing", "value_error") else f", not {repr(mistake['input'])[:60]}"
    said = str(mistake["msg"]).removeprefix("Value error, ")
    if mistake["type"] == "extra_forbidden":
        return f"{path}: {where}: there is no such setting. Remove it, or correct its name."
    if mistake["type"] == "union_tag_invalid":
        return f"{path}: {where}.kind: there is no such kind of destination. Choose dimse or dicomweb."
    return f"{path}: {where or 'the file'}: {said[:1].lower()}{said[1:]}{given}."


def write_template(path: Path, data: Path) -> None:
    """Write the commented defaults to ``path``, readable by its owner alone; an existing file is never touched.

    Raises:
        InputError: the file is there already, or can't be written.
    """
    text = TEMPLATE.read_text(encoding="utf-8").replace('data = "/var/lib/orthokernels"', f'data = "{data}"')
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise InputError(f"{path}: is there already and is left as it is. Name another file.") from None
    except OSError as error:
        raise InputError(f"{path}: can't be written ({error.strerror}). Name another file.") from error
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
