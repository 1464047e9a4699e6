"""Files as responses, read off the loop, with conditional and range requests (RFC 9110)."""

from __future__ import annotations

import errno
import mimetypes
import os
import secrets
import stat
import time
from typing import Any, cast

from django.core.handlers.wsgi import WSGIRequest
from django.http import Http404, HttpRequest, HttpResponse
from django.http.response import BadHeaderError, HttpResponseBase
from django.utils.cache import get_conditional_response
from django.utils.http import content_disposition_header, http_date

from nuages.bridge.threads import in_thread
from nuages.http.byte_ranges import ByteRange, Unsatisfiable, if_range_passes, parse_range
from nuages.http.file_body import BlockingChunks, Chunks, FileBody
from nuages.http.streams import DirectStreamingResponse

CHUNK_SIZE = 256 * 1024

_COMPRESSED = {
    "br": "application/x-brotli",
    "bzip2": "application/x-bzip",
    "compress": "application/x-compress",
    "gzip": "application/gzip",
    "xz": "application/x-xz",
}
"""Types, as in Django's FileResponse: a browser would unpack a Content-Encoding."""

_NO_SUCH_FILE = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}


async def afile_response(
    request: HttpRequest,
    path: str | os.PathLike[str],
    *,
    as_attachment: bool = False,
    filename: str = "",
    content_type: str | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> HttpResponseBase:
    """Return the response that serves a file to this request.

    The file is opened and read in threads, a file of up to `chunk_size` bytes in one go. Where
    the server can send files by itself (the ASGI extension `http.response.pathsend`) it does.
    ETag and Last-Modified come from the file's time and size; preconditions are evaluated in
    the order of RFC 9110 (13.2.2) for GET and HEAD, ranges for GET.

    Args:
        request: The request to answer.
        path: The file. Where a client has a say in it, build it with
            `django.utils._os.safe_join`: nothing here keeps it inside a directory.
        as_attachment: Have the browser save the file rather than show it.
        filename: The name it is saved under; by default the file's own.
        content_type: By default guessed from the name, as Django's FileResponse does.
        chunk_size: How many bytes are read and sent at a time, and kept in memory.

    Returns:
        A streaming response (200 or 206), or one without content (304, 412, 416).

    Raises:
        Http404: There is no such file, or it is a directory or something other than a file, as
            in `django.views.static.serve`.
        OSError: The file cannot be read, for lack of permission for example.
        BadHeaderError: `content_type` or `filename` has a line end.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size is a number of bytes from 1, not {chunk_size}.")
    body = FileBody(chunk_size)
    names = _Names(as_attachment, filename, content_type)
    try:
        return await in_thread(_respond, request, os.fsdecode(path), body, names)
    except BaseException:
        body.close()  # perhaps a cancellation, with the file open
        raise


class AsyncFileResponse(DirectStreamingResponse):
    """A file, or ranges of it, as `afile_response` returns it."""

    def __init__(self, content: Chunks | BlockingChunks, path: str | None, **kwargs: Any) -> None:
        super().__init__(content, **kwargs)
        self._path = path

    @property
    def pathsend(self) -> str | None:
        """The absolute path, where the content is the whole file and nothing else."""
        return self._path if self.unwrapped else None


class _Names:
    """The name and type of the file, as the client is told."""

    def __init__(self, as_attachment: bool, filename: str, content_type: str | None) -> None:
        self.as_attachment = as_attachment
        self.filename = filename
        self.content_type = content_type

    def headers(self, path: str) -> dict[str, str]:
        name = os.path.basename(self.filename or path)
        content_type = self.content_type
        if content_type is None:
            guessed, encoding = mimetypes.guess_type(name)
            content_type = _COMPRESSED.get(encoding or "", guessed or "application/octet-stream")
        if "\r" in content_type or "\n" in content_type:
            # In a multipart answer this is no header, which Django would check.
            raise BadHeaderError(f"A content type is one line, not {content_type!r}.")
        headers = {"Content-Type": content_type}
        if disposition := content_disposition_header(self.as_attachment, name):
            headers["Content-Disposition"] = disposition
        return headers


def _respond(request: HttpRequest, path: str, body: FileBody, names: _Names) -> HttpResponseBase:
    """Open the file and answer the request; blocks. `body` keeps the file, if it is needed."""
    status = _open(path, body)
    size = status.st_size
    # Not later than now (RFC 9110, 8.8.2.1).
    modified = int(min(status.st_mtime, time.time()))
    etag = f'"{status.st_mtime_ns:x}-{size:x}"'
    validators = {"ETag": etag, "Last-Modified": http_date(modified)}
    asks = request.method in ("GET", "HEAD")
    if asks:
        empty = HttpResponse(headers=validators)
        answer = cast("HttpResponseBase", get_conditional_response(request, etag, modified, empty))
        if answer is not empty:
            body.close()
            return answer

    headers = validators | {"Accept-Ranges": "bytes"}
    ranges = None
    if request.method == "GET" and (header := request.META.get("HTTP_RANGE")):
        condition = request.META.get("HTTP_IF_RANGE")
        if condition is None or if_range_passes(condition, etag, modified):
            try:
                ranges = parse_range(header, size)
            except Unsatisfiable:
                body.close()
                headers["Content-Range"] = f"bytes */{size}"
                return HttpResponse(status=416, headers=headers)

    headers |= names.headers(path)
    if ranges is None:
        length = size
        body.plan.extend([ByteRange(0, size)] if size else [])
    elif len(ranges) == 1:
        length = ranges[0].stop - ranges[0].start
        headers["Content-Range"] = ranges[0].content_range(size)
        body.plan.extend(ranges)
    else:
        length = _plan_parts(body, ranges, headers, size)
    headers["Content-Length"] = str(length)

    sent_by_path = ranges is None and request.method != "HEAD"
    if request.method == "HEAD" or not size:
        body.close()
    elif not (sent_by_path and _server_sends_paths(request)):
        body.ahead = body.read()
    wsgi = isinstance(request, WSGIRequest)
    return AsyncFileResponse(
        BlockingChunks(body) if wsgi else Chunks(body),
        os.path.abspath(path) if sent_by_path else None,
        status=200 if ranges is None else 206,
        headers=headers,
    )


def _open(path: str, body: FileBody) -> os.stat_result:
    try:
        # Checked before the file is opened: opening a pipe would wait for a writer.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise Http404(f"“{path}” is not a file")
        body.file = open(path, "rb", buffering=0)  # noqa: SIM115
    except ValueError as error:  # NUL in the path
        raise Http404(f"{path!r} cannot be a file's name") from error
    except OSError as error:
        if error.errno not in _NO_SUCH_FILE:
            raise
        raise Http404(f"“{path}” does not exist") from error
    return os.fstat(body.file.fileno())


def _plan_parts(
    body: FileBody, ranges: list[ByteRange], headers: dict[str, str], size: int
) -> int:
    """Lay out multipart/byteranges (RFC 9110, 14.6); return its length."""
    boundary = secrets.token_hex(16)
    length = 0
    for found in ranges:
        line_end = "\r\n" if length else ""
        head = (
            f"{line_end}--{boundary}\r\nContent-Type: {headers['Content-Type']}\r\n"
            f"Content-Range: {found.content_range(size)}\r\n\r\n"
        ).encode("latin-1")
        body.plan += [head, found]
        length += len(head) + found.stop - found.start
    end = f"\r\n--{boundary}--\r\n".encode()
    body.plan.append(end)
    headers["Content-Type"] = f"multipart/byteranges; boundary={boundary}"
    return length + len(end)


def _server_sends_paths(request: HttpRequest) -> bool:
    scope = getattr(request, "scope", {})
    return "http.response.pathsend" in (scope.get("extensions") or {})
