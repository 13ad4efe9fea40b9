"""The second look at a document's own privacy block, on a real PostgreSQL."""

from __future__ import annotations

import json
from typing import Any

import psycopg

from scout_edge.privacy import Privacy, PrivacyRule, PrivacySettings
from scout_shared.wire import UNKNOWN_DAY, Document

HASHED = "hmac:2026-11:" + "0a" * 20
KEPT: list[Any] = [
    [],
    "text",
    {"customer_id": "raw"},
    {"privacy": "high", "face_id": "raw"},
    {"privacy": {}, "face_id": "raw", "audio": "raw"},
    {"privacy": {"noFacialRecognition": True}, "face_id": None},
    {"privacy": {"noFacialRecognition": False}, "face_id": "raw"},
    {"privacy": {"audioStored": False}, "audioTranscript": "safeguard na"},
    {"privacy": {"anonymizationLevel": "none"}, "customer_id": "raw"},
    {"privacy": {"anonymizationLevel": "high"}, "customer_id": HASHED, "face_id": None},
    {"privacy": {"anonymizationLevel": "high"}, "total": 9171234567, "note": "2 x 176.00 @ 5"},
]
BROKEN: list[Any] = [
    {"privacy": {"noFacialRecognition": True}, "face_id": HASHED},
    {"privacy": {"noFacialRecognition": True}, "face_id": {"x": [1]}},
    {"privacy": {"noImageProcessing": True}, "people": [{"faceId": 17}]},
    {"privacy": {"audioStored": False}, "context": {"audio_url": "file:///a.wav"}},
    {"privacy": {"anonymizationLevel": "high"}, "customer_id": "raw"},
    {"privacy": {"anonymizationLevel": "high"}, "items": [{"facialId": 17}]},
    {"privacy": {"anonymizationLevel": "high"}, "customer_id": HASHED + "0"},
    {"privacy": {"anonymizationLevel": "low"}, "note": ["write ana@mail.example"]},
    {"privacy": {"anonymizationLevel": "high"}, "note": "call 0917-123-4567 po"},
]


def breaches(database: str, documents: list[Any]) -> list[str | None]:
    with psycopg.connect(database) as connection:
        return [
            connection.execute(
                "select metadata.privacy_breach(%s::jsonb)", (json.dumps(document),)
            ).fetchone()[0]  # type: ignore[index]  # one row
            for document in documents
        ]


def test_only_what_breaks_its_own_block_is_a_breach(database: str) -> None:
    assert breaches(database, KEPT) == [None] * len(KEPT)
    assert None not in breaches(database, BROKEN)


def test_what_the_edge_let_through_holds_at_the_hub(database: str) -> None:
    rule = PrivacyRule(
        hash=("customer_id", "face_id", "people.faceId", "items.facialId"),
        redact=("note",),
        faces=("face_id", "people.faceId"),
        audio=("audio", "context.audio_url"),
        breach="redact",
    )
    privacy = Privacy(PrivacySettings((rule,), "2026-11", "a salt that nobody guesses"))
    documents = [
        Document("transaction", None, UNKNOWN_DAY, json.dumps(body).encode())
        for body in BROKEN
        if body.get("customer_id") != HASHED + "0"
    ]
    made = [json.loads(document.body) for document in privacy.apply(documents)]
    assert breaches(database, made) == [None] * len(made)
