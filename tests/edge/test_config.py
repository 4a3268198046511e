"""The configuration file: safe as it is written, and one sentence for each mistake."""

from __future__ import annotations

import stat
import subprocess
import sys

import pytest
from orthokernels.edge.commands import check_config
from orthokernels.edge.config import TEMPLATE, Config, Mrd, Stow, load, write_template

from orthokernels.errors import InputError

STOW_PEER = '[[stow.peers]]\nname = "router"\nhosts = ["192.0.2.1"]\ntoken_file = "token"'
DIMSE = '[[destinations]]\nname = "a"\nae_title = "PACS"\nport = 104\n'
WEB = '[[destinations]]\nname = "web"\nkind = "dicomweb"\n'


def edge(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orthokernels.cli", "edge", *map(str, arguments)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_every_line_of_the_template_shows_its_default():
    assert load(TEMPLATE) == Config()


def test_every_setting_that_the_template_comments_out_exists(tmp_path):
    lines = TEMPLATE.read_text().splitlines()
    settings = [line.removeprefix("# ") if (line.startswith(("# [", "# ")) and "=" in line) or line.startswith("# [")
                else line for line in lines]  # fmt: skip
    (tmp_path / "all.toml").write_text("\n".join(settings))
    found = load(tmp_path / "all.toml")
    assert found.receive.peers[0].ae_title == "MRI1"
    assert found.destinations[0].tls is not None
    assert found.destinations[1].kind == "dicomweb"
    assert found.watch is not None
    assert found.stow is not None
    assert found.mrd is not None


def test_init_writes_a_file_for_its_owner_alone_and_never_over_another(tmp_path):
    path = tmp_path / "appliance.toml"
    write_template(path, tmp_path / "data")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load(path).appliance.data == tmp_path / "data"
    with pytest.raises(InputError, match="is there already"):
        write_template(path, tmp_path)


def test_written_configuration_lets_nobody_in_and_listens_on_loopback():
    assert Config().receive.peers == ()
    assert Config().receive.host == Config().page.host == Stow().host == Mrd().host == "127.0.0.1"
    assert Config().stow is None
    assert Config().mrd is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[receive]\nport = 0", "receive.port: input should be greater than or equal to 1, not 0"),
        ("[receive]\nprot = 1", "receive.prot: there is no such setting"),
        ('[appliance]\nae_title = "WITH\\\\BACKSLASH"', "appliance.ae_title"),
        ('[appliance]\nae_title = "SEVENTEEN-LETTERS"', "appliance.ae_title"),
        ('[[receive.peers]]\nae_title = "MR1"', "receive.peers.0.hosts: field required"),
        ('[[receive.peers]]\nae_title = "MR1"\nhosts = ["mri.local"]', "receive.peers.0.hosts.0"),
        ('[page]\nhost = "0.0.0.0"', "page: a page that is not on 127.0.0.1 needs token_file"),
        ('[page.tls]\nauthority = "ca.pem"', "page.tls: needs a certificate"),
        ('[receive.tls]\nauthority = "ca.pem"', "receive.tls: needs a certificate"),
        ("port = ", "is not TOML"),
        ('[receive]\nhost = ""', "receive.host: must be an address or a host's name"),
        ('[page]\nhost = "a..b"', "page.host: must be an address or a host's name"),
        (f'{DIMSE}host = "archive..example"', "destinations.0.host: must be an address or a host's name"),
        (
            f'{DIMSE}host = "h"\n[destinations.tls]\nauthority = "a"\nmutual = true',
            "destinations.0.tls: mutual is for who connects here; a destination that asks for a certificate is shown",
        ),
        ('[[destinations]]\nname = "Bad Name"\nae_title = "A"\nhost = "h"\nport = 1', "destinations.0.name"),
    ],
)
def test_mistake_is_told_in_one_sentence_with_exit_code_2(tmp_path, text, told):
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    done = edge("check-config", "--config", path)
    assert done.returncode == 2
    assert f"{path}: " in done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[stow]\nhost = "0.0.0.0"', "stow: off 127.0.0.1 there must be peers, each with a token_file"),
        (f'[stow]\nhost = "0.0.0.0"\n{STOW_PEER}', "stow: off 127.0.0.1 it needs tls, or allow_plain = true"),
        (f"[stow]\n{STOW_PEER}\n{STOW_PEER}", "stow: two peers have the same name"),
        ("[mrd]\nhosts = []", "mrd.hosts: "),
        ('[mrd]\nhosts = ["scanner.local"]', "mrd.hosts.0: must be an address or a network, as 192.0.2.10"),
        ("[mrd.limits]\nbytes_per_message = 9999999999", "mrd.limits.bytes_per_message: "),
        (f'{WEB}url = "http://pacs.example/dicom-web"', "destinations.0: url must be https off this machine"),
        (f'{WEB}url = "https://user:secret@pacs.example"', "destinations.0.url: url must be https://HOST/PATH"),
        (f'{WEB}url = "https://:secret@pacs.example"', "destinations.0.url: url must be https://HOST/PATH"),
        (f'{WEB}url = "https://pacs.example/web#part"', "destinations.0.url: url must be https://HOST/PATH"),
        (f'{WEB}url = "https://pacs.example:99999"', "destinations.0.url: port out of range"),
        (f'{WEB}url = "https://pacs..example"', "destinations.0.url: must be an address or a host's name"),
        (f'{WEB}url = "ftp://pacs.example"', "destinations.0.url: url must be https://HOST/PATH"),
        (f'{WEB}url = "https://p"\ntoken_file = "a"\npassword_file = "b"', "exclude each other"),
        (f'{WEB}url = "http://127.0.0.1/p"\ntls = {{authority = "a"}}', "url must be https where there is tls"),
        (f'{WEB}url = "https://p"\nae_title = "PACS"', "destinations.0.ae_title: there is no such setting"),
        (f'{WEB}url = "https://p"\nlabel_map = "auto"', "destinations.0.label_map: a DICOMweb server can't be asked"),
        (f'{WEB}url = "https://p"\nlabel_map = "yes"', "destinations.0.label_map: input should be True, False, 'auto'"),
        ('[[destinations]]\nname = "a"\nkind = "ftp"', "destinations.0.kind: there is no such kind of destination"),
    ],
)
def test_mistake_in_dicomweb_or_mrd_is_told_in_one_sentence(tmp_path, text, told):
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(InputError) as mistake:
        load(path)
    assert str(mistake.value).startswith(f"{path}: ")
    assert told in str(mistake.value)
    assert "\n" not in str(mistake.value)


def test_destinations_of_both_kinds_stand_beside_each_other_and_the_first_need_not_say_its_kind(tmp_path):
    path = tmp_path / "both.toml"
    plain = '[[destinations]]\nname = "archive"\nae_title = "PACS"\nhost = "192.0.2.1"\nport = 104\n'
    path.write_text(f'{plain}{WEB}url = "http://127.0.0.1:8042/dicom-web/"\n')
    found = load(path)
    assert [one.kind for one in found.destinations] == ["dimse", "dicomweb"]
    assert found.destinations[1].url == "http://127.0.0.1:8042/dicom-web"
    assert Config.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize(("tls", "told"), [("", True), ('[page.tls]\ncertificate = "a"\nkey = "b"', False)])
def test_page_that_others_reach_without_tls_is_told(tmp_path, capsys, tls, told):
    (tmp_path / "open.toml").write_text(f'[page]\nhost = "0.0.0.0"\ntoken_file = "token"\n{tls}')
    check_config(tmp_path / "open.toml")
    assert ("cross the network unencrypted" in capsys.readouterr().out) is told


@pytest.mark.parametrize(("mutual", "told"), [("", True), ("mutual = true", False)])
@pytest.mark.parametrize("section", ["receive", "stow", "page"])
def test_authority_that_nobody_is_held_against_is_told(tmp_path, capsys, section, mutual, told):
    (tmp_path / "own.toml").write_text(f'[{section}.tls]\ncertificate = "a"\nkey = "b"\nauthority = "c"\n{mutual}')
    check_config(tmp_path / "own.toml")
    assert (f"{section}.tls has an authority without mutual" in capsys.readouterr().out) is told


@pytest.mark.parametrize(("host", "told"), [("127.0.0.1", True), ("0.0.0.0", False)])
def test_peer_elsewhere_of_an_appliance_that_listens_to_this_machine_alone_is_told(tmp_path, capsys, host, told):
    peer = '[[receive.peers]]\nae_title = "MR1"\nhosts = ["127.0.0.1", "192.0.2.10"]'
    (tmp_path / "own.toml").write_text(f'[receive]\nhost = "{host}"\n{peer}')
    check_config(tmp_path / "own.toml")
    assert ("no other machine reaches it" in capsys.readouterr().out) is told


def test_data_folder_that_can_not_be_made_is_told_in_a_sentence(tmp_path):
    from orthokernels.edge.service import Service

    with pytest.raises(InputError, match=r"appliance\.data: /proc/none: can't be made or written"):
        Service(Config.model_validate({"appliance": {"data": "/proc/none"}}))


def test_all_mistakes_are_told_at_once(tmp_path):
    path = tmp_path / "wrong.toml"
    path.write_text("[receive]\nport = 0\n[settle]\nquiet_seconds = -1\n[disk]\nrefuse = 1")
    assert len(edge("check-config", "--config", path).stderr.strip().splitlines()) == 3


def test_results_digest_changes_with_what_decides_results_alone():
    plain = Config().results.digest()
    assert Config.model_validate({"settle": {"quiet_seconds": 1}}).results.digest() == plain
    assert Config.model_validate({"results": {"seed": 1}}).results.digest() != plain
    assert Config.model_validate({"results": {"indeterminate_within": 0.1}}).results.digest() != plain


def test_digest_of_the_defaults_is_that_of_version_0_1():
    """What was made with them keeps its identifiers."""
    assert Config().results.digest().startswith("ccd658ff963d0e1f")


@pytest.mark.parametrize(
    ("watched", "told"),
    [("data", "appliance.data"), (".", "appliance.data"), ("data/in", "appliance.data"), ("b/in", "work.bundle")],
)
def test_folder_that_is_emptied_holds_nothing_of_the_appliance(tmp_path, watched, told):
    (tmp_path / "link").symlink_to(tmp_path)
    path = tmp_path / "appliance.toml"
    path.write_text(
        f'[appliance]\ndata = "{tmp_path}/link/data"\n[work]\nbundle = "{tmp_path}/b"\n'
        f'[watch]\nfolder = "{tmp_path}/{watched}"\n'
    )
    with pytest.raises(InputError, match=rf"is emptied, so it can't hold {told}"):
        load(path)
    path.write_text(path.read_text().replace(f"{tmp_path}/{watched}", f"{tmp_path}/database"))
    assert load(path).watch is not None
