"""TLS at both ends of a worker's stream, where the settings have it."""

import ssl
from pathlib import Path
from tempfile import TemporaryDirectory

from stafette.workers.errors import ConfigError
from stafette.workers.service.config import ServiceConfig


def server_side(config: ServiceConfig) -> ssl.SSLContext | None:
    if config.tls_key is None or config.tls_certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with TemporaryDirectory(prefix="stafette-") as folder:  # ssl reads them from files only
        key, certificate = Path(folder) / "key", Path(folder) / "certificate"
        key.write_bytes(config.tls_key)
        certificate.write_bytes(config.tls_certificate)
        try:
            context.load_cert_chain(certificate, key)
        except ssl.SSLError as error:
            remedy = f"must be a certificate and its key, as PEM ({error})"
            raise ConfigError("service.tls_key, tls_certificate", "", remedy) from None
    return context


def client_side(config: ServiceConfig) -> ssl.SSLContext | None:
    if config.tls_authority is None:
        return None
    try:
        return ssl.create_default_context(cadata=config.tls_authority.decode("ascii"))
    except (ssl.SSLError, UnicodeDecodeError) as error:
        remedy = f"must be certificates, as PEM ({error})"
        raise ConfigError("service.tls_authority", "", remedy) from None
