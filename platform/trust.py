"""Whose certificates a command believes: the system's, those of a file, or anybody's."""

import argparse
import ssl
from dataclasses import dataclass
from pathlib import Path

from stafette.platform.frontend.errors import InvalidSetting


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Of `https://` URLs; what else was asked for is not touched."""

    ca_file: Path | None = None  # PEM; instead of the system's
    insecure: bool = False

    def __post_init__(self) -> None:
        if self.insecure and self.ca_file is not None:
            remedy = "believes every certificate, and --ca-file only some: give one of the two"
            raise InvalidSetting("--insecure", True, remedy)

    def context(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:  # ssl.SSLError is one: the file holds no certificate
            reason = error.strerror or str(error)
            raise InvalidSetting(
                "--ca-file", str(self.ca_file), f"is not to be read: {reason}"
            ) from None
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


def add_trust_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--ca-file", type=Path, metavar="FILE", help="believe this CA's certificates only (PEM)")
    add("--insecure", action="store_true", help="believe every certificate")


def trust_of(arguments: argparse.Namespace) -> Trust:
    return Trust(ca_file=arguments.ca_file, insecure=arguments.insecure)


def advice(error: BaseException) -> str:
    """Return what to do about an error of TLS; empty: it is another one."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return "name its CA with --ca-file, or give --insecure"
    if isinstance(error, ssl.SSLError) and error.reason == "WRONG_VERSION_NUMBER":
        return "it does not speak TLS there: take http://"
    return ""
