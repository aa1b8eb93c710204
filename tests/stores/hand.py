"""Somebody else's hand in a bucket, with nothing but the standard library: what a thief of the mover's credentials can do by S3.

    hand.py make BUCKET              makes a bucket with object lock
    hand.py attack BUCKET            asks for the removal of every version by its id, then of every name without one
    hand.py blank BUCKET KEY         lays an empty version over whatever KEY is
    hand.py count BUCKET PREFIX      how many versions and markers there are

S3_ENDPOINT, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY say where and who. Prints one line of JSON.
"""
import datetime
import hashlib
import hmac
import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
import xml.etree.ElementTree as ElementTree

ENDPOINT, KEY, SECRET = (os.environ[n] for n in ("S3_ENDPOINT", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))


def ask(method, path, query=(), headers=None):
    """One signed request; status and body."""
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    empty = hashlib.sha256(b"").hexdigest()
    fields = {"host": ENDPOINT.split("//")[1], "x-amz-date": now, "x-amz-content-sha256": empty, **(headers or {})}
    quote = lambda text: urllib.parse.quote(text, safe="-_.~")
    asked = "&".join(f"{quote(k)}={quote(v)}" for k, v in sorted(query))
    path = urllib.parse.quote(path, safe="/-_.~")
    names = ";".join(sorted(fields))
    lines = [method, path, asked, *(f"{k}:{fields[k]}" for k in sorted(fields)), "", names, empty]
    scope = f"{now[:8]}/us-east-1/s3/aws4_request"
    said = "\n".join(["AWS4-HMAC-SHA256", now, scope, hashlib.sha256("\n".join(lines).encode()).hexdigest()])
    key = ("AWS4" + SECRET).encode()
    for word in scope.split("/"):
        key = hmac.new(key, word.encode(), hashlib.sha256).digest()
    signature = hmac.new(key, said.encode(), hashlib.sha256).hexdigest()
    del fields["host"]
    fields["Authorization"] = f"AWS4-HMAC-SHA256 Credential={KEY}/{scope}, SignedHeaders={names}, Signature={signature}"
    url = ENDPOINT + path + ("?" + asked if asked else "")
    request = urllib.request.Request(url, method=method, headers=fields, data=b"" if method == "PUT" else None)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def versions(bucket, prefix=""):
    """(kind, key, id) of all versions and markers."""
    found, marks = [], []
    while True:
        status, body = ask("GET", f"/{bucket}", [("versions", ""), ("prefix", prefix), *marks])
        assert status == 200, (status, body)
        root = ElementTree.fromstring(body)
        plain = lambda element: element.tag.rsplit("}", 1)[-1]
        text = lambda element, name: next((e.text or "" for e in element if plain(e) == name), "")
        for entry in root:
            if plain(entry) in ("Version", "DeleteMarker"):
                found.append((plain(entry), text(entry, "Key"), text(entry, "VersionId")))
        if text(root, "IsTruncated") != "true":
            return found
        marks = [("key-marker", text(root, "NextKeyMarker")), ("version-id-marker", text(root, "NextVersionIdMarker"))]


def attack(bucket):
    removed, refused = [], []
    for _, key, version in versions(bucket):
        status, body = ask("DELETE", f"/{bucket}/{key}", [("versionId", version)])
        assert status in (204, 403), (status, body)
        (removed if status == 204 else refused).append(key)
    for key in refused:
        status, body = ask("DELETE", f"/{bucket}/{key}")
        assert status == 204, (status, body)
    return {"removed": sorted(removed), "refused": sorted(refused)}


def count(bucket, prefix):
    kinds = [kind for kind, _, _ in versions(bucket, prefix)]
    return {"versions": kinds.count("Version"), "markers": kinds.count("DeleteMarker")}


def blank(bucket, key):
    status, body = ask("PUT", f"/{bucket}/{key}")
    assert status == 200, (status, body)
    return {}


def make(bucket):
    status, body = ask("PUT", f"/{bucket}", headers={"x-amz-bucket-object-lock-enabled": "true"})
    assert status == 200, (status, body)
    return {}


print(json.dumps({"make": make, "attack": attack, "blank": blank, "count": count}[sys.argv[1]](*sys.argv[2:])))
