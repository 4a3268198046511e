"""TLS as BCP 195 asks for it: version 1.2 or newer, certificates checked, the other side's too where it is mutual."""

from __future__ import annotations

import ssl

from orthokernels.edge.config import Tls

from orthokernels.errors import InputError


def server_context(tls: Tls) -> ssl.SSLContext:
    """For who is connected to."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load(context, tls)
    if tls.mutual:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(tls: Tls) -> ssl.SSLContext:
    """For who connects; with an authority of its own that alone is trusted, else the system's are."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load(context, tls)
    if tls.authority is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    return context


def own_context(tls: Tls) -> ssl.SSLContext:
    """For who connects to this very appliance: its own certificate on both sides, and that alone is trusted.

    Whoever signed it need not be known here, and it names the appliance as others know it, not as it is reached here.
    """
    context = client_context(tls.model_copy(update={"authority": tls.certificate}))
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.check_hostname = False
    return context


def _load(context: ssl.SSLContext, tls: Tls) -> None:
    try:
        if tls.certificate is not None:
            context.load_cert_chain(tls.certificate, tls.key)
        if tls.authority is not None:
            context.load_verify_locations(tls.authority)
    except (OSError, ssl.SSLError) as error:
        named = ", ".join(str(path) for path in (tls.certificate, tls.key, tls.authority) if path)
        raise InputError(f"tls: {named}: can't be used ({error}). Give PEM files that belong together.") from error
