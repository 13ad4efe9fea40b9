"""Personal data is hashed, redacted or dropped before anything is durable.

``Privacy.apply`` stands at the buffer's door, in front of every append: what a rule names never
reaches the disk, so it never leaves the store either.

    hash      a keyed hash (HMAC-SHA256) instead of the value: equal ones stay equal, within a salt
    redact    what looks like a person's number or address in a text becomes a marker
    consent   without the time of a consent, the personal fields are left out
    block     what the document's own ``privacy`` claims is held: no face and no audio beside a
              claim that there is none, no shorter retention than the device's
    retention documents that wait for longer are given up and declared, whole segments at a time

A document that no rule names passes untouched, byte for byte; of one that a rule changed, every
number keeps its digits. Applied twice is applied once. No message says a value.
Not its job: which fields are personal (the settings say it), erasure (the hub's).
"""

from __future__ import annotations

import fnmatch
import hmac
import json
import re
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from scout_shared import settings
from scout_shared.errors import ConfigError, PermanentError
from scout_shared.wire import Document

SALT = "SCOUT_PRIVACY_SALT"
MIN_SALT_CHARACTERS = 16
REFUSE, REDACT = "refuse", "redact"
EXPIRED = "expired"
"""Reason of the gap that declares documents which waited for longer than they may be kept."""
# 160 bits of the HMAC, in 64 characters or less: an identifier at the hub has no more.
_HASHED = re.compile(r"hmac:[a-z0-9-]{1,16}:[0-9a-f]{40}")
_HEX = 40
MAX_DAYS = 3650
_SALT_ID = re.compile(r"[a-z0-9-]{1,16}")
_BLOCK, _DAYS = "privacy", "dataRetentionDays"


def _luhn(text: str) -> bool:
    digits = [int(c) for c in text if c.isdigit()]
    doubled = [2 * d - 9 * (d > 4) for d in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


_B, _E = r"(?<![\w.+-])", r"(?![\w-])"
PATTERNS: Sequence[tuple[str, re.Pattern[str], Callable[[str], bool] | None]] = (
    ("email", re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"), None),
    ("mobile", re.compile(r"(?<!\w)(?:\+?63|0)[ .-]?9\d{2}[ .-]?\d{3}[ .-]?\d{4}(?!\d)"), None),
    ("card", re.compile(_B + r"\d(?:[ -]?\d){12,18}" + _E), _luhn),
    ("philsys", re.compile(_B + r"\d{4}[ -]\d{4}[ -]\d{4}(?:[ -]\d{4})?" + _E), None),
    ("tin", re.compile(_B + r"\d{3}[ -]\d{3}[ -]\d{3}(?:[ -]\d{3,5})?" + _E), None),
)
"""Marker, what it looks like, what else must hold. In this order: the longer before its part."""


class PrivacyError(PermanentError):
    """A document carries what it may not, or cannot be looked into."""

    def __init__(self, document: int, message: str, hint: str) -> None:
        super().__init__(message, hint)
        self.document = document
        """Its place in the append."""


@dataclass(frozen=True, slots=True)
class PrivacyRule:
    """One ``[[privacy.rules]]`` table. All that fit a document's type are applied.

    A path is 'a.b'; a list on the way stands for each of its items, '*' for each field.
    """

    type: str = "*"
    """Type of the documents, or a pattern. Default '*': all."""
    hash: tuple[str, ...] = ()
    """Fields to hash: face ids, customer keys. Default none."""
    redact: tuple[str, ...] = ()
    """Texts in which numbers and addresses of persons are replaced: transcripts. Default none."""
    personal: tuple[str, ...] = ()
    """Fields that are left out without a consent. Default none."""
    consent: str = "privacy.consentTimestamp"
    """Where the time of the consent stands. Default 'privacy.consentTimestamp'."""
    faces: tuple[str, ...] = ()
    """Fields that may not stand beside 'noFacialRecognition' or 'noImageProcessing'.
    Default none."""
    audio: tuple[str, ...] = ()
    """Fields that may not stand beside 'audioStored' = false. Default none."""
    breach: str = REFUSE
    """'refuse' a document that breaks its own privacy block, or 'redact': leave the fields out.
    Default 'refuse'."""

    def __post_init__(self) -> None:
        if self.breach not in (REFUSE, REDACT):
            raise ConfigError(f"breach {self.breach!r} is not known", "use 'refuse' or 'redact'")
        for path in (*self.hash, *self.redact, *self.personal, *self.faces, *self.audio):
            if not all(path.split(".")):
                raise ConfigError(f"{path!r} is no path", "use names with dots, e.g. 'items.note'")
        if self.personal and not self.consent:
            raise ConfigError("personal needs consent", "say where the time of the consent stands")


@dataclass(frozen=True, slots=True)
class PrivacySettings:
    """What is personal, and what is done with it."""

    rules: tuple[PrivacyRule, ...] = ()
    """Default none: documents pass as they are."""
    salt_id: str = ""
    """Names the salt, and stands in each hash. No default when a rule hashes."""
    salt: str = settings.secret(SALT)
    """Key of the hashes, 16 characters or more. Environment only; never sent."""
    retention_days: float = 0.0
    """Days that documents may wait on the device; older ones are given up and declared. A document
    whose 'privacy.dataRetentionDays' is less is refused. 0: they wait until the hub has them.
    Default 0."""

    def __post_init__(self) -> None:
        if not 0 <= self.retention_days <= MAX_DAYS:
            raise ConfigError(
                f"retention_days {self.retention_days} cannot be",
                f"give 0 to {MAX_DAYS} days; 0: until the hub has them",
            )
        if not any(rule.hash for rule in self.rules):
            return
        if len(self.salt) < MIN_SALT_CHARACTERS:
            raise ConfigError(
                f"a rule hashes, and {SALT} has {len(self.salt)} characters",
                f"set {MIN_SALT_CHARACTERS} or more that nobody can guess, the same in all stores"
                " whose customers are to be told apart together",
            )
        if not _SALT_ID.fullmatch(self.salt_id):
            raise ConfigError(
                f"salt_id {self.salt_id!r} is no name", "use 1 to 16 of a-z, 0-9 and '-'"
            )


@dataclass(slots=True)
class Privacy:
    """The rules of a device. Thread-safe: counts may be a little behind, documents never."""

    given: PrivacySettings = field(default_factory=PrivacySettings)
    counted: Counter[str] = field(default_factory=Counter)
    """hashed, redacted, dropped, breached: fields so far."""

    @property
    def active(self) -> bool:
        """Whether there are rules: then nothing that is not understood may be kept or logged."""
        return bool(self.given.rules)

    def apply(self, documents: Sequence[Document]) -> Sequence[Document]:
        """The documents as they may be stored.

        Raises PrivacyError naming the first that may not be.
        """
        if self.given.retention_days:
            for i, document in enumerate(documents):
                self._check_retention(i, document)
        if not self.active:
            return documents
        return [self._document(i, document) for i, document in enumerate(documents)]

    def _check_retention(self, i: int, document: Document) -> None:
        """Raise PrivacyError when the device may keep it for longer than it says."""
        if not any(part in document.body for part in (_DAYS.encode(), b"\\u")):
            return  # without looking into it
        try:
            body = json.loads(document.body)
        except (ValueError, RecursionError):
            return  # it says nothing
        block = body.get(_BLOCK) if isinstance(body, dict) else None
        said = block.get(_DAYS) if isinstance(block, dict) else None
        if said is None:
            return
        if type(said) not in (int, float) or not said >= self.given.retention_days:
            days = said if type(said) in (int, float) else "an unreadable number of"
            raise PrivacyError(
                i,
                f"document {i}: its privacy block allows to keep it for {days} days, this device"
                f" may keep it for {self.given.retention_days:g}",
                f"raise privacy.{_DAYS}, or lower [privacy] retention_days on the device",
            )

    def _document(self, i: int, document: Document) -> Document:
        rules = [r for r in self.given.rules if fnmatch.fnmatchcase(document.type, r.type)]
        if not rules:
            return document
        token = secrets.token_hex(16)
        try:
            body = json.loads(
                document.body,
                # Numbers pass as texts of this append only, so that 1.10 stays 1.10.
                parse_float=lambda text: token + text,
                parse_int=lambda text: token + text,
                parse_constant=_no_constant,
                object_pairs_hook=_once,
            )
        except (ValueError, RecursionError) as error:
            # Not the cause: its text may hold the document.
            del error
            body = None
        if not isinstance(body, dict):
            raise PrivacyError(
                i,
                f"document {i}: privacy rules are set, and it is no JSON object that can be looked"
                " into",
                "send an object that gives each field once, without NaN",
            ) from None
        found: Counter[str] = Counter()
        for rule in rules:
            self._enforce(i, rule, body, found)
            self._keep_consent(rule, body, found)
            for holder, key in _places(body, rule.hash):
                self._hash(holder, key, token, found)
            for holder, key in _places(body, rule.redact):
                holder[key] = _redacted(holder[key], token, found)
        if not found:
            return document
        self.counted.update(found)
        text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
        text = re.sub(rf'"{token}([^"]*)"', r"\1", text)
        return document._replace(body=text.encode("utf-8", "surrogatepass"))

    def _hash(self, holder: Any, key: Any, token: str, found: Counter[str]) -> None:
        value = holder[key]
        if value is None or (isinstance(value, str) and _HASHED.fullmatch(value)):
            return
        if isinstance(value, str):
            text = value.removeprefix(token)
        else:  # a list or an object that should be one value: hashed as a whole
            text = json.dumps(value, sort_keys=True).replace(token, "")
        digest = hmac.new(self.given.salt.encode(), text.encode("utf-8", "surrogatepass"), "sha256")
        holder[key] = f"hmac:{self.given.salt_id}:{digest.hexdigest()[:_HEX]}"
        found["hashed"] += 1

    @staticmethod
    def _keep_consent(rule: PrivacyRule, body: dict[str, Any], found: Counter[str]) -> None:
        """Leave the personal fields out where there is no time of a consent."""
        if not rule.personal:
            return
        if any(holder[key] for holder, key in _places(body, (rule.consent,))):
            return
        found["dropped"] += _drop(body, rule.personal)

    @staticmethod
    def _enforce(i: int, rule: PrivacyRule, body: dict[str, Any], found: Counter[str]) -> None:
        """Hold what the document says of itself. Raises PrivacyError."""
        block = body.get(_BLOCK)
        if not isinstance(block, dict):
            return
        forbidden: list[str] = []
        if block.get("noFacialRecognition") is True or block.get("noImageProcessing") is True:
            forbidden += rule.faces
        if block.get("audioStored") is False:
            forbidden += rule.audio
        broken = [
            path
            for path in forbidden
            if any(holder[key] is not None for holder, key in _places(body, (path,)))
        ]
        if not broken:
            return
        if rule.breach == REFUSE:
            raise PrivacyError(
                i,
                f"document {i}: its privacy block says that there is no {' and no '.join(broken)}",
                "leave the fields out, or say in the privacy block that they are there",
            )
        found["breached"] += _drop(body, broken)


def _redacted(value: Any, token: str, found: Counter[str]) -> Any:
    """The text, or the texts within, with markers."""
    if isinstance(value, list):
        return [_redacted(item, token, found) for item in value]
    if isinstance(value, dict):
        return {key: _redacted(item, token, found) for key, item in value.items()}
    if not isinstance(value, str):
        return value
    number = value.startswith(token)
    text = value.removeprefix(token)
    for marker, pattern, holds in PATTERNS:

        def marked(match: re.Match[str], marker: str = marker, holds: Any = holds) -> str:
            if holds is not None and not holds(match.group()):
                return match.group()
            found["redacted"] += 1
            return f"[{marker}]"

        text = pattern.sub(marked, text)
    return token + text if number and "[" not in text else text


def _drop(body: dict[str, Any], paths: Sequence[str]) -> int:
    """Take fields out; returns how many. The items of a list become null: the others stay."""
    dropped = 0
    for holder, key in list(_places(body, paths)):
        if isinstance(holder, dict):
            dropped += holder.pop(key, None) is not None
        elif holder[key] is not None:
            holder[key] = None
            dropped += 1
    return dropped


def _places(body: Any, paths: Sequence[str]) -> Iterator[tuple[Any, Any]]:
    """Where the values at ``paths`` stand: (object or list, key or index)."""
    for path in paths:
        yield from _walk(body, path.split("."))


def _walk(value: Any, steps: list[str]) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, list):
        for item in value:
            yield from _walk(item, steps)
        return
    if not isinstance(value, dict):
        return
    step, rest = steps[0], steps[1:]
    for key in list(value) if step == "*" else [step]:
        if key not in value:
            continue
        if rest:
            yield from _walk(value[key], rest)
        elif isinstance(value[key], list):
            yield from ((value[key], at) for at in range(len(value[key])))
        else:
            yield value, key


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a field is given twice")  # the one that is not seen would pass
    return found


def _no_constant(_name: str) -> NoReturn:
    raise ValueError("no JSON number")
