"""MP3 files that do not state their length, of which a decoder would guess it from the size of the file."""

from typing import NamedTuple

_KBPS = {
    1: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
_SEARCHED = 2**16  # bytes behind the tags in which the first frame has to begin
_LENGTH_MARKS = (b"Xing", b"Info", b"VBRI")


class _Frame(NamedTuple):
    """What the four bytes at the start of a frame of layer III say."""

    length: int  # bytes
    samples: int
    generation: int  # 1 or 2, also for 2.5
    is_mono: bool


def with_length(content: bytes) -> bytes | None:
    """The same sound with a first frame that states how many follow; None if it is no MP3, or states its length."""
    start = _first_frame(content)
    if start is None:
        return None
    first = _frame_at(content, start)
    assert first is not None
    if any(mark in content[start : start + min(first.length, 64)] for mark in _LENGTH_MARKS):
        return None
    end, count, frame = start, 0, _frame_at(content, start)
    while frame is not None and end + frame.length <= len(content):
        end += frame.length
        count += 1
        frame = _frame_at(content, end)
    return _frame_with_length(content[start : start + 4], first, count) + content[start:end]


def _first_frame(content: bytes) -> int | None:
    """Where the first frame begins that another one follows."""
    start = 0
    if content[:3] == b"ID3" and len(content) > 10:
        sizes = content[6:10]  # seven bits each
        start = 10 + sum((byte & 127) << shift for byte, shift in zip(sizes, (21, 14, 7, 0), strict=True))
    for place in range(start, min(len(content) - 4, start + _SEARCHED)):
        frame = _frame_at(content, place)
        if frame is not None and _frame_at(content, place + frame.length) is not None:
            return place
    return None


def _frame_at(content: bytes, place: int) -> _Frame | None:
    header = content[place : place + 4]
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:  # the marks of a frame, and of layer III
        return None
    version = header[1] >> 3 & 3
    bitrate, rate, padding = header[2] >> 4, header[2] >> 2 & 3, header[2] >> 1 & 1
    if version == 1 or bitrate in (0, 15) or rate == 3:
        return None
    generation = 1 if version == 3 else 2
    samples = 1152 // generation
    length = samples // 8 * 1000 * _KBPS[generation][bitrate] // _RATES[version][rate] + padding
    return _Frame(length, samples, generation, header[3] >> 6 == 3)


def _frame_with_length(header: bytes, first: _Frame, count: int) -> bytes:
    """A silent frame whose Info header says how many follow."""
    largest = bytes([header[0], header[1] | 1, (header[2] & 0x0C) | 0xE0, header[3]])  # no checksum, most bits
    frame = _frame_at(largest, 0)
    assert frame is not None
    side = {(1, True): 17, (1, False): 32, (2, True): 9, (2, False): 17}[first.generation, first.is_mono]
    stated = largest + bytes(side) + b"Info" + (1).to_bytes(4, "big") + count.to_bytes(4, "big")
    return stated.ljust(frame.length, b"\0")
