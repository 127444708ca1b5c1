"""A manifest with small real files of every kind: ``python -m tests.data.make_files FOLDER [ROWS] [MISSING] [SEED]``.

Each patient has one of three labels, and two or three rows. Every input tells something of the label, none everything:

| column | files or cells | what the label changes |
| --- | --- | --- |
| photo | PNG with 8 bits, and JPEG in every other row; RGB, 24 x 20 | how red it is |
| xray | PNG with 16 bits, gray, 16 x 20; DICOM in every fourth row where pydicom is | how bright its middle is |
| scan | ``.nii.gz``, and ``.npy`` in every fourth row; 10 x 8 x 6 | how bright one corner is |
| emb | ``.npy``, 6 numbers | their mean |
| spectrum | ``.npz``, 12 numbers under the name ``values`` | where the peak is |
| curve | CSV with names, two channels, 5 to 20 steps | the slope of the first channel |
| sound | WAV with 16,000 samples per second, FLAC with 8,000 in every third row; 0.2 s | the pitch |
| report | a text | one of its words |
| age, dose | numbers | age |
| site, sex | categories | site |

Beside them ``sample`` (a name), ``patient``, ``split`` (train, val, test; patients stay together), ``label`` (low,
middle, high), ``score`` (a number that grows with the label), and ``fever`` and ``cough`` (0 or 1).
"""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from tests.tables import write_rows

LABELS = ["low", "middle", "high"]
INPUTS = ["photo", "xray", "scan", "emb", "spectrum", "curve", "sound", "report", "age", "dose", "site", "sex"]
WORDS = {"low": "calm", "middle": "doubtful", "high": "alarming"}
SITES = ["north", "east", "south"]


def make_manifest(folder: str | Path, rows: int = 40, missing: float = 0.3, seed: int = 0) -> Path:
    """Writes ``manifest.csv`` and its files, and returns its path.

    Args:
        folder: Where; made if it is not there.
        rows: Number of samples.
        missing: Share of the cells of inputs that are empty; each row keeps at least one.
        seed: Equal seeds write equal files.
    """
    folder = Path(folder)
    for kind in ("photos", "xrays", "scans", "arrays", "curves", "sounds"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    patients = np.repeat(np.arange(rows), random.integers(2, 4, rows))[:rows]
    classes = random.permutation(np.arange(rows) % 3)[patients]  # by patient
    splits = random.permutation(np.resize(["train", "train", "train", "val", "test"], rows))[patients]
    table = []
    for row, (patient, label) in enumerate(zip(patients, classes, strict=True)):
        cells = _inputs(folder, row, int(label), random)
        empty = random.random(len(INPUTS)) < missing
        empty[random.integers(len(INPUTS))] &= not empty.all()
        table.append(
            {
                "sample": f"s{row:04}",
                "patient": f"p{patient:03}",
                "split": splits[row],
                **{name: "" if hidden else cells[name] for name, hidden in zip(INPUTS, empty, strict=True)},
                "label": LABELS[label],
                "score": round(float(label + 0.3 * random.standard_normal()), 4),
                "fever": int(label > 0),
                "cough": int(random.random() < 0.2 + 0.3 * label),
            }
        )
    path = folder / "manifest.csv"
    write_rows(path, table)
    return path


def _inputs(folder: Path, row: int, label: int, random: np.random.Generator) -> dict[str, Any]:
    return {
        "photo": _photo(folder, row, label, random),
        "xray": _xray(folder, row, label, random),
        "scan": _scan(folder, row, label, random),
        "curve": _curve(folder, row, label, random),
        "sound": _sound(folder, row, label, random),
        **_arrays(folder, row, label, random),
        "report": " ".join(
            random.permutation(["Patient", "looks", WORDS[LABELS[label]], "today,", f"visit {row % 3}."])
        ),
        "age": int(40 + 10 * label + 5 * random.standard_normal()),
        "dose": round(float(random.gamma(2.0)), 3),
        "site": SITES[label if random.random() < 0.7 else random.integers(3)],
        "sex": random.choice(["f", "m"]),
    }


def _photo(folder: Path, row: int, label: int, random: np.random.Generator) -> str:
    from PIL import Image

    pixels = random.integers(0, 100, (20, 24, 3))
    pixels[..., 0] += 70 * label
    name = f"photos/{row}.{'jpg' if row % 2 else 'png'}"
    Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
    return name


def _xray(folder: Path, row: int, label: int, random: np.random.Generator) -> str:
    from PIL import Image

    pixels = random.integers(0, 20000, (20, 16))
    pixels[5:15, 4:12] += 20000 * label
    if row % 4 == 1 and find_spec("pydicom"):
        from tests.data.dicom import write_dicom

        name = f"xrays/{row}.dcm"
        write_dicom(folder / name, pixels.astype(np.uint16), WindowCenter=2**15, WindowWidth=2**16)
        return name
    name = f"xrays/{row}.png"
    Image.fromarray(pixels.astype(np.uint16)).save(folder / name)
    return name


def _scan(folder: Path, row: int, label: int, random: np.random.Generator) -> str:
    voxels = random.standard_normal((10, 8, 6)).astype(np.float32)  # x, y, z
    voxels[:5, :4, :3] += 2 * label
    if row % 4 == 3:
        name = f"scans/{row}.npy"
        np.save(folder / name, voxels.T)
        return name
    import nibabel

    name = f"scans/{row}.nii.gz"
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([2.0, 2.0, 3.0, 1.0])), folder / name)
    return name


def _arrays(folder: Path, row: int, label: int, random: np.random.Generator) -> dict[str, str]:
    np.save(folder / f"arrays/{row}.npy", random.standard_normal(6) + label)
    spectrum = random.random(12)
    spectrum[3 * label : 3 * label + 3] += 1
    np.savez_compressed(folder / f"arrays/{row}.npz", values=spectrum.astype(np.float32))
    return {"emb": f"arrays/{row}.npy", "spectrum": f"arrays/{row}.npz"}


def _curve(folder: Path, row: int, label: int, random: np.random.Generator) -> str:
    steps = np.arange(random.integers(5, 21))
    values = np.stack([0.2 * (label - 1) * steps, np.sin(steps)], 1) + 0.3 * random.standard_normal((len(steps), 2))
    name = f"curves/{row}.csv"
    np.savetxt(folder / name, values, "%.4f", delimiter=",", header="pressure,flow", comments="")
    return name


def _sound(folder: Path, row: int, label: int, random: np.random.Generator) -> str:
    import soundfile

    rate, name = (8000, f"sounds/{row}.flac") if row % 3 == 0 else (16000, f"sounds/{row}.wav")
    times = np.arange(rate // 5) / rate
    tone = 0.4 * np.sin(2 * np.pi * (300 + 200 * label) * times + random.uniform(0, 6))
    soundfile.write(folder / name, tone + 0.02 * random.standard_normal(len(times)), rate)
    return name


if __name__ == "__main__":
    words = sys.argv[1:]
    if not 1 <= len(words) <= 4:
        sys.exit(__doc__)
    print(make_manifest(words[0], *[kind(word) for kind, word in zip((int, float, int), words[1:], strict=False)]))
