"""Sound: a file per sample → its waveform, or how much energy its pitches have over time."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hybrid_lightning.data.inputs.base import check_count, check_name
from hybrid_lightning.data.inputs.files import FileInput
from hybrid_lightning.data.inputs.mpeg import with_length
from hybrid_lightning.data.inputs.numpy_files import refuse_huge, without_gaps
from hybrid_lightning.data.inputs.signals import count_frames, log_mel, mel_filters, resample
from hybrid_lightning.data.shard_members import source_of
from hybrid_lightning.data.table import Array
from hybrid_lightning.data.tensors import PART_POOL
from hybrid_lightning.errors import ConfigError, check_choice, check_number
from hybrid_lightning.importing import import_extra

_HIGHEST_RATE = 1_000_000
_LOUDEST = 8.0  # decoders go somewhat beyond 1; more is whole numbers in a floating file


class AudioInput(FileInput):
    """A sound per sample (WAV, FLAC, OGG, MP3), read with soundfile (extra ``audio``): `(C, L)` float32 from -1 to 1.

    Args:
        audio: Name of the column of paths.
        sample_rate: Samples per second; files with another rate are resampled, see `resample`.
        seconds: Length. Of longer files a part is read, a random one in training and otherwise the middle;
            shorter ones end in silence. None reads whole files, which then have to be equally long within a batch.
        channels: 1 mixes all channels of a file; another number is the one that all files must have.
        features: ``waveform``; or ``log_mel``, `(C, mels, frames)`, see `log_mel`, with a frame every 10 ms. Maps that
            a part makes of it are averaged over time alone, since the mean over pitch tells little, unless the part
            has a ``pool`` of its own.
        mels: Number of bands of ``log_mel``.
        standardize: Whether each band of ``log_mel`` is standardized with mean and standard deviation over the frames
            of the training sounds (of more than 1000 sounds, of 1000 at equal distances in the manifest), and sounds
            that are shorter than ``seconds`` end in 0, the mean. False gives logarithms, with silence as -13.8. A
            waveform stays as it is.
        train: Transforms of each training sample, see `make_steps`.
        eval: Transforms of each sample otherwise.
    """

    def __init__(
        self,
        key: str,
        audio: Any,
        sample_rate: Any = 16000,
        seconds: Any = None,
        channels: Any = 1,
        features: Any = "waveform",
        mels: Any = 64,
        standardize: Any = True,
        train: Any = (),
        eval: Any = (),
    ) -> None:
        super().__init__(key, check_name(audio, "audio"), train, eval)
        self.sample_rate = check_count(sample_rate, "sample_rate", 100)
        self.channels = check_count(channels, "channels")
        self.features = check_choice(features, "features", ("waveform", "log_mel"))
        self.mels = check_count(mels, "mels")
        self.standardize = check_choice(standardize, "standardize", (False, True))
        if seconds is not None:
            check_number(seconds, "seconds", 1 / self.sample_rate)
        self.seconds: float | None = seconds
        if self.features == "log_mel":
            filters = mel_filters(self.sample_rate, self.mels)
            if not filters.any(1).all():
                raise ConfigError(f"{mels} bands are narrower than the spectrum's resolution. Take fewer.", "mels")
        import_extra("soundfile", "audio", "sound")
        import_extra("scipy.signal", "audio", "sound")

    @property
    def inferred_arguments(self) -> dict[str, Any]:
        """Maps of a spectrogram are pooled over time."""
        return {PART_POOL: "time"} if self.features == "log_mel" else {}

    @property
    def is_standardized(self) -> bool:
        """As the option says, for ``log_mel``."""
        return self.features == "log_mel" and bool(self.standardize)

    def steps(self, path: Path) -> Array:
        """The bands of each frame, `(frames, mels)`."""
        bands = log_mel(self._sound(path, training=False), self.sample_rate, self.mels)
        return bands.movedim(1, 2).flatten(0, 1).numpy()

    def load(self, path: Path, training: bool) -> Tensor:
        """`(C, L)`, or `(C, mels, frames)`."""
        sound = self._sound(path, training)
        length = sound.shape[1] if self.seconds is None else round(self.seconds * self.sample_rate)
        missing = length - sound.shape[1]
        # the statistics of an earlier version's checkpoint hold no moments; those of another config may hold some
        if not self.is_standardized or "mean" not in self.statistics:
            sound = functional.pad(sound, (0, missing))
            return log_mel(sound, self.sample_rate, self.mels) if self.features == "log_mel" else sound
        mean = torch.tensor(self.statistics["mean"])[:, None]
        std = torch.tensor(self.statistics["std"])[:, None]
        bands = (log_mel(sound, self.sample_rate, self.mels) - mean) / std
        return functional.pad(bands, (0, count_frames(length, self.sample_rate) - bands.shape[2]))

    def _sound(self, path: Path, training: bool) -> Tensor:
        """The wanted part of a file, `(C, L)` at the wanted rate, or less if the file is shorter."""
        sound, rate = self._read(path, training)
        if self.channels == 1:
            sound = sound.mean(0, keepdim=True)
        elif len(sound) != self.channels:
            raise ValueError(f"it has {len(sound)} channels, and 'channels' is {self.channels}")
        sound = resample(sound, rate, self.sample_rate)
        return sound if self.seconds is None else sound[:, : round(self.seconds * self.sample_rate)]

    def _read(self, path: Path, training: bool) -> tuple[Tensor, int]:
        """All channels `(C, L)` of the wanted part, and the file's rate."""
        with opened(path) as file:
            rate = int(file.samplerate)
            start = 0
            count = int(file.frames)
            if self.seconds is not None:
                wanted = math.ceil(self.seconds * rate)
                room = max(0, count - wanted)
                start = int(torch.randint(room + 1, ())) if training else room // 2
                count = min(count, wanted)
            self._check_size(rate, count, int(file.channels))
            if start and file.seekable():
                file.seek(start)
            elif start:
                file.read(start, dtype="float32")
            samples = file.read(count, dtype="float32", always_2d=True)
        if not len(samples) or len(samples) < count:  # the header may state more than there is
            raise ValueError(f"it ends after {start + len(samples)} samples of {start + count}")
        samples = without_gaps(samples, "refuse")
        loudest = np.abs(samples).max()
        if loudest > _LOUDEST:
            raise ValueError(f"its values reach {loudest:g}, and a sound's lie from -1 to 1; divide them")
        return torch.from_numpy(samples.T.copy()), rate

    def _check_size(self, rate: int, count: int, channels: int) -> None:
        """Raises `ValueError` for a rate that no sound has, or a sound too large, before or after it is resampled."""
        if not 1 <= rate <= _HIGHEST_RATE:
            raise ValueError(f"its rate of {rate} samples per second is not one of 1 to {_HIGHEST_RATE}")
        growth = max(1.0, self.sample_rate / rate)
        refuse_huge(int(4 * channels * count * growth))

    def stated_shape(self, path: Path) -> tuple[int, ...]:
        """Channels and samples."""
        with opened(path) as file:
            if not file.frames:
                raise ValueError("it has no samples")
            return int(file.channels), int(file.frames)


def opened(path: Path) -> Any:
    """A file of soundfile's; an MP3 that does not state its length is counted, which a guess would cut off."""
    import soundfile

    if path.suffix.lower() == ".mp3":
        refuse_huge(path.stat().st_size)
        counted = with_length(path.read_bytes())
        if counted is not None:
            return soundfile.SoundFile(io.BytesIO(counted))
    return soundfile.SoundFile(source_of(path))
